//! Encodes an index file: an Arrow IPC file of rows, each with a checksum.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{self, Read};
use std::sync::Arc;

use arrow_array::builder::{
    FixedSizeBinaryBuilder, Int64Builder, MapBuilder, StringBuilder, UInt64Builder,
};
use arrow_array::{ArrayRef, DictionaryArray, Int32Array, RecordBatch, StringArray};
use arrow_ipc::writer::FileWriter;
use arrow_schema::{ArrowError, DataType, Field, Fields, Schema};
use crc_fast::{CrcAlgorithm, Digest};

use super::file_name::VERSION;
use super::row::IndexRow;

/// Number of rows of a record batch, the smallest unit that is read: some 150 kB. A first look-up of
/// a path of few versions reads and decodes one. Larger buffers, freed between small ones that stay,
/// leave gaps in the heap: with 8,192 rows, 10,000 look-ups took 600 MiB.
pub(super) const BATCH_ROWS: usize = 1024;

/// Keys of the metadata of the schema.
pub(super) const VERSION_KEY: &str = "iovcache.index";
pub(super) const ROOT_KEY: &str = "iovcache.root";
pub(super) const BATCHES_KEY: &str = "iovcache.batches";

fn metadata_type() -> DataType {
    let entries = Fields::from(vec![
        Field::new("key", DataType::Utf8, false),
        Field::new("value", DataType::Utf8, false),
    ]);
    DataType::Map(Arc::new(Field::new("entries", DataType::Struct(entries), false)), false)
}

/// The columns of an index file.
pub(super) fn fields() -> Vec<Field> {
    let path = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
    vec![
        Field::new("path", path, false),
        Field::new("from", DataType::Int64, false),
        Field::new("until", DataType::Int64, false),
        Field::new("created", DataType::Int64, false),
        Field::new("id", DataType::FixedSizeBinary(16), false),
        Field::new("size", DataType::UInt64, false),
        Field::new("md5", DataType::FixedSizeBinary(16), true),
        Field::new("metadata", metadata_type(), false),
        Field::new("stamp", DataType::UInt64, false),
        Field::new("listed", DataType::Int64, false),
        Field::new("check", DataType::UInt64, false),
    ]
    .into_iter()
    .chain(super::details::fields())
    .collect()
}

/// Bytes and CRC-32C of an index file with `rows`. `root_inode` is the inode of the repository's
/// root folder.
///
/// # Errors
/// If Arrow cannot write them.
pub(super) fn encode(mut rows: Vec<IndexRow>, root_inode: u64) -> io::Result<(Vec<u8>, u32)> {
    let key = |row: &IndexRow| (Arc::clone(&row.path), row.from, row.id);
    if !rows.is_sorted_by(|a, b| (&a.path, a.from, a.id) <= (&b.path, b.from, b.id)) {
        rows.sort_by_key(key);
    }
    let paths: BTreeSet<&str> = rows.iter().map(|row| &*row.path).collect();
    let numbers: BTreeMap<&str, i32> = paths.iter().zip(0..).map(|(path, n)| (*path, n)).collect();
    let dictionary: ArrayRef = Arc::new(StringArray::from_iter_values(&paths));
    let keys: Vec<i32> = rows.iter().map(|row| numbers[&*row.path]).collect();
    let batches: Vec<[i32; 2]> =
        keys.chunks(BATCH_ROWS).map(|keys| [keys[0], keys[keys.len() - 1]]).collect();
    let metadata = [
        (VERSION_KEY.to_owned(), VERSION.to_owned()),
        (ROOT_KEY.to_owned(), root_inode.to_string()),
        (BATCHES_KEY.to_owned(), serde_json::to_string(&batches).map_err(io::Error::other)?),
    ];
    let schema = Arc::new(Schema::new_with_metadata(fields(), HashMap::from(metadata)));
    let write = || {
        let mut writer = FileWriter::try_new(Vec::new(), &schema)?;
        for (rows, keys) in rows.chunks(BATCH_ROWS).zip(keys.chunks(BATCH_ROWS)) {
            let keys = Int32Array::from(keys.to_vec());
            let path = DictionaryArray::try_new(keys, Arc::clone(&dictionary))?;
            let mut columns: Vec<ArrayRef> = vec![Arc::new(path)];
            columns.extend(columns_of(rows)?);
            columns.extend(super::details::columns_of(rows.iter().map(|row| row.details.as_ref())));
            writer.write(&RecordBatch::try_new(Arc::clone(&schema), columns)?)?;
        }
        writer.finish()?;
        writer.into_inner()
    };
    let bytes = write().map_err(|error: ArrowError| io::Error::other(error))?;
    let crc = crc32c(&bytes[..])?.0;
    Ok((bytes, crc))
}

/// All columns of `rows` except the path.
fn columns_of(rows: &[IndexRow]) -> Result<Vec<ArrayRef>, ArrowError> {
    let [mut from, mut until, mut created, mut listed] =
        std::array::from_fn(|_| Int64Builder::with_capacity(rows.len()));
    let [mut size, mut stamp, mut check] =
        std::array::from_fn(|_| UInt64Builder::with_capacity(rows.len()));
    let [mut id, mut md5] =
        std::array::from_fn(|_| FixedSizeBinaryBuilder::with_capacity(rows.len(), 16));
    let names = arrow_array::builder::MapFieldNames {
        entry: "entries".into(),
        key: "key".into(),
        value: "value".into(),
    };
    let value = Field::new("value", DataType::Utf8, false);
    let mut metadata = MapBuilder::new(Some(names), StringBuilder::new(), StringBuilder::new())
        .with_values_field(value);
    for row in rows {
        from.append_value(row.from);
        until.append_value(row.until);
        created.append_value(row.created);
        listed.append_value(row.listed);
        size.append_value(row.size_bytes);
        stamp.append_value(row.stamp);
        id.append_value(row.id.as_bytes())?;
        match row.md5 {
            Some(sum) => md5.append_value(sum.0)?,
            None => md5.append_null(),
        }
        for (key, value) in &row.metadata {
            metadata.keys().append_value(key);
            metadata.values().append_value(value);
        }
        metadata.append(true)?;
        check.append_value(row.check());
    }
    Ok(vec![
        Arc::new(from.finish()),
        Arc::new(until.finish()),
        Arc::new(created.finish()),
        Arc::new(id.finish()),
        Arc::new(size.finish()),
        Arc::new(md5.finish()),
        Arc::new(metadata.finish()),
        Arc::new(stamp.finish()),
        Arc::new(listed.finish()),
        Arc::new(check.finish()),
    ])
}

/// CRC-32C and length of all bytes of `bytes`.
pub(super) fn crc32c(mut bytes: impl Read) -> io::Result<(u32, u64)> {
    let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
    let mut piece = vec![0; 256 << 10];
    let mut length = 0;
    loop {
        match bytes.read(&mut piece) {
            Ok(0) => return Ok((digest.finalize() as u32, length)),
            Ok(count) => {
                digest.update(&piece[..count]);
                length += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
