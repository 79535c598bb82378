//! Reads one file of an index.

use std::any::Any;
use std::cmp::Ordering;
use std::fs::File;
use std::io::{self, BufReader, Read as _, Seek as _, SeekFrom};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::thread;

use arrow_array::cast::AsArray as _;
use arrow_array::types::{Int32Type, Int64Type, UInt64Type};
use arrow_array::{Array as _, DictionaryArray, FixedSizeBinaryArray, RecordBatch, StringArray};
use arrow_buffer::ScalarBuffer;
use arrow_ipc::reader::FileReader;
use arrow_schema::ArrowError;

use super::details::{DetailColumns, KnownBatch, KnownBatches, RowKey, place_of};
use super::encode::{BATCHES_KEY, ROOT_KEY, VERSION_KEY, crc32c, fields};
use super::file_name::{FORMER_VERSION, VERSION};
use super::row::{IndexRow, RowCheck, RowRef};
use crate::object::{Md5Sum, ObjectId};
use crate::source::Details;

/// Number of columns of a file of the former version.
const FORMER_COLUMNS: usize = 11;
/// Maximum size of the footer of a file.
const MAX_FOOTER_BYTES: u64 = 64 << 20;
/// Number of batches that are read ahead of the rows in use. Fewer are read one by one.
const AHEAD_BATCHES: usize = 8;

type BatchReader = FileReader<BufReader<File>>;

/// The keys of the rows of a batch.
#[derive(Debug)]
pub(super) struct RowKeys {
    paths: ScalarBuffer<i32>,
    from: ScalarBuffer<i64>,
    listed: ScalarBuffer<i64>,
    ids: FixedSizeBinaryArray,
}

impl RowKeys {
    pub(super) fn len(&self) -> usize {
        self.paths.len()
    }

    /// Number of the path of a row.
    pub(super) fn path(&self, row: usize) -> i32 {
        self.paths[row]
    }

    /// `from` and id of a row.
    pub(super) fn key(&self, row: usize) -> (i64, [u8; 16]) {
        (self.from[row], self.ids.value(row).try_into().unwrap_or_default())
    }

    pub(super) fn listed(&self, row: usize) -> i64 {
        self.listed[row]
    }
}

/// An open index file.
pub(super) struct IndexFile {
    reader: BatchReader,
    /// In ascending order.
    paths: StringArray,
    /// First and last path of each batch, as indices into `paths`.
    batches: Vec<[i32; 2]>,
    /// The facts about uploads that were read last.
    known: KnownBatches,
}

impl std::fmt::Debug for IndexFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "IndexFile({} batches of {} paths)", self.batches.len(), self.paths.len())
    }
}

fn wrong(reason: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.into())
}

/// Runs code that reads untrusted bytes: Arrow's decoder panics on some damaged files.
fn guarded<T>(work: impl FnOnce() -> Result<T, ArrowError>) -> io::Result<T> {
    let text = |panic: Box<dyn Any + Send>| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
    };
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(done) => done.map_err(|error| wrong(error.to_string())),
        Err(panic) => Err(wrong(text(panic).unwrap_or_else(|| "it is malformed".to_owned()))),
    }
}

impl IndexFile {
    /// Verifies a file against the checksum in its name, and reads its schema and paths.
    ///
    /// # Errors
    /// With kind `InvalidData` if it is damaged, malformed, of another version or for another
    /// folder.
    pub(super) fn open(mut file: File, expected_crc: u32, root_inode: u64) -> io::Result<Self> {
        let (crc, length) = crc32c(&file)?;
        if crc != expected_crc {
            return Err(wrong(format!("its checksum is {crc:08x}, expected {expected_crc:08x}")));
        }
        check_blocks(&mut file, length)?;
        file.seek(SeekFrom::Start(0))?;
        let mut reader = guarded(|| FileReader::try_new(BufReader::new(file), None))?;
        let schema = reader.schema();
        let said = |key: &str| schema.metadata().get(key).map_or("", String::as_str);
        let is_former = said(VERSION_KEY) == FORMER_VERSION;
        if said(VERSION_KEY) != VERSION && !is_former {
            let version = said(VERSION_KEY);
            return Err(wrong(format!("its version is {version:?}, expected {VERSION:?}")));
        }
        if said(ROOT_KEY) != root_inode.to_string() {
            return Err(wrong("it is for another folder"));
        }
        let mut expected = fields();
        if is_former {
            expected.truncate(FORMER_COLUMNS);
        }
        if schema.fields().iter().map(|field| (**field).clone()).ne(expected) {
            return Err(wrong("its columns are not those of an index"));
        }
        let batches: Vec<[i32; 2]> =
            serde_json::from_str(said(BATCHES_KEY)).map_err(|error| wrong(error.to_string()))?;
        if batches.len() != reader.num_batches() {
            return Err(wrong("it does not have as many batches as it says"));
        }
        // All batches share the dictionary of the first one.
        let mut paths = StringArray::from(Vec::<&str>::new());
        if !batches.is_empty() {
            let batch = read_batch(&mut reader, 0)?;
            paths = dictionary(&batch)?.values().as_string::<i32>().clone();
        }
        let in_range = |number: &i32| usize::try_from(*number).is_ok_and(|n| n < paths.len());
        if !batches.iter().flatten().all(in_range) || !is_ascending(&paths) {
            return Err(wrong("its paths are not in order"));
        }
        Ok(Self { reader, paths, batches, known: KnownBatches::default() })
    }

    /// Calls `each` for the rows of one path.
    ///
    /// # Errors
    /// Of kind `InvalidData` if the file is malformed.
    pub(super) fn for_path(
        &mut self,
        path: &str,
        each: &mut dyn FnMut(RowRef<'_>),
    ) -> io::Result<()> {
        let Some(number) = self.number_of(path) else { return Ok(()) };
        let has_path = |at: &usize| {
            let [first, last] = self.batches[*at];
            first <= number && number <= last
        };
        let batches: Vec<usize> = (0..self.batches.len()).filter(has_path).collect();
        if batches.len() >= AHEAD_BATCHES
            && let Some(done) = read_ahead(&mut self.reader, &batches, (number, path), each)
        {
            return done;
        }
        let mut batches = batches.into_iter();
        batches.try_for_each(|at| path_rows(&mut self.reader, at, (number, path))?.for_each(each))
    }

    /// The facts about the upload of a version in the state that `stamp` describes. Those of its
    /// neighbours are kept, so it takes little time for versions in order.
    ///
    /// # Errors
    /// Of kind `InvalidData` if the file is malformed.
    pub(super) fn details(
        &mut self,
        path: &str,
        from: i64,
        id: ObjectId,
        stamp: u64,
    ) -> io::Result<Option<Details>> {
        let Some(number) = self.number_of(path) else { return Ok(None) };
        let key: RowKey = (number, from, *id.as_bytes());
        if let Some(batch) = self.known.with(&key) {
            return Ok(batch.find(&key, stamp).cloned());
        }
        // The batches with the path: [low, high).
        let mut low = self.batches.partition_point(|[_, last]| *last < number);
        let mut high = self.batches.partition_point(|[first, _]| *first <= number);
        let mut next = self.known.next_for(&key);
        while low < high {
            let at = next.take().filter(|at| (low..high).contains(at));
            let at = at.unwrap_or(usize::midpoint(low, high));
            let mut read = None;
            let bounds = match self.known.bounds(at) {
                Some(bounds) => bounds,
                None => read.insert(self.read_details(at)?).bounds(),
            };
            match place_of(&key, &bounds) {
                Ordering::Less => high = at,
                Ordering::Greater => low = at + 1,
                Ordering::Equal => {
                    let batch = read.map_or_else(|| self.read_details(at), Ok)?;
                    let found = batch.find(&key, stamp).cloned();
                    self.known.keep(batch);
                    return Ok(found);
                }
            }
        }
        Ok(None)
    }

    /// The facts of the rows of a batch, whose bounds are known from then on.
    fn read_details(&mut self, number: usize) -> io::Result<KnownBatch> {
        let batch = read_batch(&mut self.reader, number)?;
        let paths = dictionary(&batch)?.keys().values().clone();
        let in_range = |number: &i32| usize::try_from(*number).is_ok_and(|n| n < self.paths.len());
        if !paths.iter().all(in_range) {
            return Err(wrong("a row has a path that is not in the dictionary"));
        }
        let names = &self.paths;
        let rows = guarded(|| {
            check_rows(&batch, 0..batch.num_rows(), |at| names.value(paths[at] as usize))?;
            let mut rows = Vec::with_capacity(batch.num_rows());
            for_rows(&batch, 0..batch.num_rows(), &mut |row| {
                let key = (paths[rows.len()], row.from, *row.id.as_bytes());
                rows.push((key, row.stamp, row.details()));
            });
            Ok(rows)
        })?;
        let read = KnownBatch::new(number, rows).ok_or_else(|| wrong("a batch has no rows"))?;
        self.known.set_bounds(&read);
        Ok(read)
    }

    fn number_of(&self, path: &str) -> Option<i32> {
        let number = self.lower_bound(path);
        let is_it = number < self.paths.len() && self.paths.value(number) == path;
        is_it.then(|| i32::try_from(number).ok()).flatten()
    }

    /// Number of paths less than `path`.
    fn lower_bound(&self, path: &str) -> usize {
        let (mut low, mut high) = (0, self.paths.len());
        while low < high {
            let middle = usize::midpoint(low, high);
            match self.paths.value(middle) < path {
                true => low = middle + 1,
                false => high = middle,
            }
        }
        low
    }

    /// Number of the first batch with a path not less than `path`.
    pub(super) fn batch_from(&self, path: &str) -> usize {
        let number = self.lower_bound(path) as i32;
        self.batches.partition_point(|[_, last]| *last < number)
    }

    /// The path with this number in the dictionary.
    pub(super) fn path(&self, number: i32) -> &str {
        self.paths.value(number as usize)
    }

    /// The keys of the rows of a batch; `None` after the last one.
    ///
    /// # Errors
    /// Of kind `InvalidData` if the file is malformed.
    pub(super) fn keys(&mut self, batch: usize) -> io::Result<Option<RowKeys>> {
        if batch >= self.batches.len() {
            return Ok(None);
        }
        let batch = read_batch(&mut self.reader, batch)?;
        let paths = dictionary(&batch)?.keys().values().clone();
        let in_range = |number: &i32| usize::try_from(*number).is_ok_and(|n| n < self.paths.len());
        if !paths.iter().all(in_range) {
            return Err(wrong("a row has a path that is not in the dictionary"));
        }
        let names = &self.paths;
        let keys = guarded(|| {
            check_rows(&batch, 0..batch.num_rows(), |at| names.value(paths[at] as usize))?;
            let numbers = |at: usize| batch.column(at).as_primitive::<Int64Type>().values().clone();
            let ids = batch.column(4).as_fixed_size_binary().clone();
            Ok(RowKeys { paths: paths.clone(), from: numbers(1), listed: numbers(9), ids })
        });
        keys.map(Some)
    }

    /// All rows.
    ///
    /// # Errors
    /// Of kind `InvalidData` if the file is malformed.
    pub(super) fn all(&mut self) -> io::Result<Vec<IndexRow>> {
        let mut rows: Vec<IndexRow> = Vec::new();
        self.for_each(&mut |path, row| {
            let known = rows.last().map(|last| Arc::clone(&last.path));
            let path = known.filter(|last| **last == *path).unwrap_or_else(|| path.into());
            let mut row = row.to_row(&path);
            // Neighbouring rows mostly have equal metadata.
            if let Some(last) = rows.last().filter(|last| last.metadata == row.metadata) {
                row.metadata = last.metadata.clone();
            }
            rows.push(row);
        })?;
        Ok(rows)
    }

    /// Calls `each` for every row with its path, batch by batch.
    ///
    /// # Errors
    /// Of kind `InvalidData` if the file is malformed.
    pub(super) fn for_each(&mut self, each: &mut dyn FnMut(&str, RowRef<'_>)) -> io::Result<()> {
        for at in 0..self.batches.len() {
            let batch = read_batch(&mut self.reader, at)?;
            let keys = dictionary(&batch)?.keys().values().clone();
            let mut key = keys.iter();
            let paths = &self.paths;
            guarded(|| {
                let path = |at: usize| paths.value(keys[at] as usize);
                check_rows(&batch, 0..batch.num_rows(), path)?;
                for_rows(&batch, 0..batch.num_rows(), &mut |row| {
                    let number = key.next().copied().unwrap_or(0);
                    each(paths.value(number as usize), row);
                });
                Ok(())
            })?;
        }
        Ok(())
    }
}

fn is_ascending(paths: &StringArray) -> bool {
    paths.null_count() == 0 && (1..paths.len()).all(|n| paths.value(n - 1) < paths.value(n))
}

/// Checks that all blocks lie within the file, because their sizes decide how much memory is
/// allocated.
fn check_blocks(file: &mut File, length: u64) -> io::Result<()> {
    const END_BYTES: u64 = 10;
    let mut end = [0; END_BYTES as usize];
    if length < END_BYTES {
        return Err(wrong("it is too short"));
    }
    file.seek(SeekFrom::Start(length - END_BYTES))?;
    file.read_exact(&mut end)?;
    let footer = guarded(|| arrow_ipc::reader::read_footer_length(end))? as u64;
    if footer > MAX_FOOTER_BYTES || footer > length - END_BYTES {
        return Err(wrong(format!("its footer has {footer} bytes, and it has {length}")));
    }
    file.seek(SeekFrom::Start(length - END_BYTES - footer))?;
    let mut bytes = vec![0; footer as usize];
    file.read_exact(&mut bytes)?;
    let footer = arrow_ipc::root_as_footer(&bytes).map_err(|error| wrong(error.to_string()))?;
    let blocks = footer.dictionaries().into_iter().flatten();
    for block in blocks.chain(footer.recordBatches().into_iter().flatten()) {
        let parts = [block.offset(), i64::from(block.metaDataLength()), block.bodyLength()];
        let parts: Option<Vec<u64>> = parts.iter().map(|part| u64::try_from(*part).ok()).collect();
        let end = parts
            .and_then(|parts| parts.into_iter().try_fold(0_u64, |sum, part| sum.checked_add(part)));
        if end.is_none_or(|end| end > length) {
            return Err(wrong("a block of it lies outside of it"));
        }
    }
    Ok(())
}

fn read_batch(reader: &mut BatchReader, at: usize) -> io::Result<RecordBatch> {
    guarded(|| {
        reader.set_index(at)?;
        reader.next().unwrap_or_else(|| Err(ArrowError::IpcError("a batch is missing".to_owned())))
    })
}

/// The rows of one path in a batch, compared with their checksums.
struct PathRows {
    batch: RecordBatch,
    rows: Range<usize>,
}

impl PathRows {
    fn for_each(self, each: &mut dyn FnMut(RowRef<'_>)) -> io::Result<()> {
        guarded(|| {
            for_rows(&self.batch, self.rows, each);
            Ok(())
        })
    }
}

/// Reads the rows of a path, with its number in the dictionary.
fn path_rows(
    reader: &mut BatchReader,
    at: usize,
    (number, path): (i32, &str),
) -> io::Result<PathRows> {
    let batch = read_batch(reader, at)?;
    let keys = dictionary(&batch)?.keys().values();
    let first = keys.partition_point(|key| *key < number);
    let end = first + keys[first..].partition_point(|key| *key == number);
    guarded(|| check_rows(&batch, first..end, |_| path))?;
    Ok(PathRows { batch, rows: first..end })
}

/// Calls `each` for the rows of a path, while a thread reads those of the next batches. `None` if the
/// thread cannot be started.
fn read_ahead(
    reader: &mut BatchReader,
    batches: &[usize],
    path: (i32, &str),
    each: &mut dyn FnMut(RowRef<'_>),
) -> Option<io::Result<()>> {
    thread::scope(|scope| {
        let (sender, read) = sync_channel(AHEAD_BATCHES);
        let ahead = move || {
            for at in batches {
                // The receiver ends with the first fault.
                if sender.send(path_rows(reader, *at, path)).is_err() {
                    return;
                }
            }
        };
        let thread = thread::Builder::new().name("iovcache-index".to_owned());
        thread.spawn_scoped(scope, ahead).ok()?;
        Some(read.into_iter().try_for_each(|rows: io::Result<PathRows>| rows?.for_each(each)))
    })
}

fn dictionary(batch: &RecordBatch) -> io::Result<&DictionaryArray<Int32Type>> {
    let path = batch.columns().first().and_then(|column| column.as_dictionary_opt::<Int32Type>());
    path.ok_or_else(|| wrong("its first column is not the path"))
}

/// Calls `each` for a range of rows. It panics if columns have other types than [`fields`]: callers
/// catch that.
fn for_rows(batch: &RecordBatch, rows: Range<usize>, each: &mut dyn FnMut(RowRef<'_>)) {
    let numbers = |at: usize| batch.column(at).as_primitive::<Int64Type>().values();
    let (from, until, created, listed) = (numbers(1), numbers(2), numbers(3), numbers(9));
    let id = batch.column(4).as_fixed_size_binary();
    let size = batch.column(5).as_primitive::<UInt64Type>().values();
    let md5 = batch.column(6).as_fixed_size_binary();
    let metadata = batch.column(7).as_map();
    let stamp = batch.column(8).as_primitive::<UInt64Type>().values();
    let (keys, values) = (metadata.keys().as_string(), metadata.values().as_string());
    let offsets = metadata.value_offsets();
    let sixteen = |bytes: &[u8]| <[u8; 16]>::try_from(bytes).unwrap_or_default();
    let details = DetailColumns::of(batch);
    for at in rows {
        each(RowRef {
            from: from[at],
            until: until[at],
            created: created[at],
            id: ObjectId::from_bytes(sixteen(id.value(at))),
            size_bytes: size[at],
            md5: md5.is_valid(at).then(|| Md5Sum(sixteen(md5.value(at)))),
            stamp: stamp[at],
            listed: listed[at],
            metadata: (keys, values, offsets[at] as usize, offsets[at + 1] as usize),
            details: details.as_ref().map(|columns| (columns, at)),
        });
    }
}

/// Compares rows with their checksums, before any of them is used.
fn check_rows<'a>(
    batch: &RecordBatch,
    rows: Range<usize>,
    path: impl Fn(usize) -> &'a str,
) -> Result<(), ArrowError> {
    let expected = batch.column(10).as_primitive::<UInt64Type>().values();
    let mut at = rows.start;
    let (mut check, mut of) = (RowCheck::new(""), "");
    let mut wrong = None;
    for_rows(batch, rows, &mut |row| {
        if path(at) != of {
            of = path(at);
            check = RowCheck::new(of);
        }
        let facts = row.details.map(|(columns, at)| columns.facts(at));
        if check.of_row(&row, row.metadata(), facts) != expected[at] {
            wrong = Some(at);
        }
        at += 1;
    });
    match wrong {
        None => Ok(()),
        Some(at) => Err(ArrowError::IpcError(format!("row {at} differs from its checksum"))),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::super::encode::{BATCH_ROWS, encode};
    use super::*;
    use crate::interval::Timestamp;

    const INODE: u64 = 4711;

    fn rows() -> Vec<IndexRow> {
        let row = |path: &str, from: i64, id: u8, metadata: &[(&str, &str)]| IndexRow {
            path: path.into(),
            from,
            until: from + 10,
            created: 1_730_000_000_000 + i64::from(id),
            id: ObjectId::from_bytes([id; 16]),
            size_bytes: u64::from(id) * 1000,
            md5: (id != 3).then_some(Md5Sum([id; 16])),
            metadata: metadata.iter().copied().collect(),
            stamp: u64::from(id) << 40,
            listed: 1_730_000_000_000_000_000,
            details: (id != 4).then(|| Details {
                file_name: Some(format!("object {id}.root")),
                content_type: (id != 3).then(|| "text/plain".to_owned()),
                uploaded_from: (id == 1).then(|| "2001:db8::1".to_owned()),
                last_modified: Some(Timestamp::from_millis(1_730_000_000_500)),
                initial_until: (id != 2).then(|| Timestamp::from_millis(from + 20)),
            }),
        };
        vec![
            row("TPC/Calib/VDrift", i64::MIN, 1, &[("runNumber", "555"), ("ümlaut", "é")]),
            row("TPC/Calib/VDrift", 1000, 2, &[]),
            row("TPC/Calib/VDrift", 1000, 3, &[("runNumber", "555")]),
            row("ITS/Noise", 5, 4, &[]),
        ]
    }

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file.seek(SeekFrom::Start(0)).unwrap();
        file
    }

    fn open(bytes: &[u8]) -> io::Result<IndexFile> {
        let crc = crc32c(bytes).unwrap().0;
        IndexFile::open(file(bytes), crc, INODE)
    }

    fn of_path(index: &mut IndexFile, path: &str) -> Vec<IndexRow> {
        let (mut found, path): (_, Arc<str>) = (Vec::new(), path.into());
        index.for_path(&path, &mut |row| found.push(row.to_row(&path))).unwrap();
        found
    }

    #[test]
    fn rows_are_read_as_they_were_written_by_path_and_all_together() {
        let (bytes, _) = encode(rows(), INODE).unwrap();
        let mut index = open(&bytes).unwrap();
        assert_eq!(of_path(&mut index, "TPC/Calib/VDrift"), rows()[..3]);
        assert_eq!(of_path(&mut index, "ITS/Noise"), rows()[3..]);
        assert_eq!(of_path(&mut index, "ITS"), []);
        let mut all = rows();
        all.rotate_right(1);
        assert_eq!(index.all().unwrap(), all);
    }

    #[test]
    fn many_batches_are_read_by_path() {
        let many: Vec<IndexRow> = (0..3 * BATCH_ROWS as i64)
            .map(|n| {
                let path = format!("A/P{}", n % 5).into();
                IndexRow { path, from: n, until: n + 1, ..rows()[1].clone() }
            })
            .collect();
        let (bytes, _) = encode(many.clone(), INODE).unwrap();
        let mut index = open(&bytes).unwrap();
        for path in ["A/P0", "A/P3", "A/P4"] {
            let expected = many.iter().filter(|row| &*row.path == path).count();
            assert_eq!(of_path(&mut index, path).len(), expected, "{path}");
        }
    }

    #[test]
    fn rows_that_are_read_ahead_arrive_in_order_until_one_differs_from_its_checksum() {
        const FIRST: i64 = 1_730_000_000_000;
        let count = 3 * (AHEAD_BATCHES * BATCH_ROWS) as i64;
        let many: Vec<IndexRow> = (FIRST..FIRST + count)
            .map(|n| IndexRow { from: n, until: n + 1, ..rows()[1].clone() })
            .chain([IndexRow { path: "Z".into(), ..rows()[1].clone() }])
            .collect();
        let (mut bytes, _) = encode(many.clone(), INODE).unwrap();
        let (path, of_path) = (&many[0].path, &many[..many.len() - 1]);
        let mut index = open(&bytes).unwrap();
        let mut found = Vec::new();
        index.for_path(path, &mut |row| found.push(row.to_row(path))).unwrap();
        assert_eq!(found, of_path);

        // One of its times.
        let forged = (FIRST + count * 2 / 3).to_le_bytes();
        let at = bytes.windows(8).position(|bytes| bytes == forged).unwrap();
        bytes[at] ^= 1;
        let mut index = open(&bytes).unwrap();
        let mut found = Vec::new();
        let error = index.for_path(path, &mut |row| found.push(row.to_row(path))).unwrap_err();
        assert!(error.to_string().contains("checksum"), "{error}");
        assert!(!found.is_empty() && of_path.starts_with(&found), "{} rows", found.len());
    }

    #[test]
    fn the_golden_file_is_read() {
        let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/schemas/golden/repository-index.arrow");
        let bytes = std::fs::read(golden).unwrap();
        let mut all = rows();
        all.rotate_right(1);
        assert_eq!(open(&bytes).unwrap().all().unwrap(), all);
    }

    #[test]
    fn the_golden_file_of_the_former_version_is_read_without_the_facts_about_uploads() {
        let golden =
            concat!(env!("CARGO_MANIFEST_DIR"), "/schemas/golden/repository-index-1.arrow");
        let bytes = std::fs::read(golden).unwrap();
        let mut all = rows();
        all.rotate_right(1);
        all.iter_mut().for_each(|row| row.details = None);
        let mut file = open(&bytes).unwrap();
        assert_eq!(file.all().unwrap(), all);
        let row = &rows()[1];
        assert_eq!(file.details(&row.path, row.from, row.id, row.stamp).unwrap(), None);
    }

    #[test]
    fn facts_about_uploads_are_found_by_version_and_state_in_any_order() {
        let many: Vec<IndexRow> = (0..5 * BATCH_ROWS as i64)
            .map(|n| {
                let file_name = Some(format!("{n}.root"));
                let details = Some(Details { file_name, ..Details::default() });
                let (path, stamp) = (format!("A/P{}", n % 3).into(), 1 + n.cast_unsigned());
                IndexRow { path, from: n / 2, stamp, details, ..rows()[1].clone() }
            })
            .collect();
        let (bytes, _) = encode(many.clone(), INODE).unwrap();
        let mut index = open(&bytes).unwrap();
        let forward = many.iter().step_by(7);
        let backward = many.iter().rev().step_by(997);
        let spread = (0..200).map(|n| &many[n * 7_919 % many.len()]);
        for row in forward.chain(backward).chain(spread) {
            let mut found = |from, stamp| index.details(&row.path, from, row.id, stamp).unwrap();
            assert_eq!(found(row.from, row.stamp), row.details, "{row:?}");
            assert_eq!(found(row.from, row.stamp + 1), None);
            assert_eq!(found(row.from, 0), None);
            assert_eq!(found(row.from + 1_000_000, row.stamp), None);
        }
        assert_eq!(index.details("A/P9", 1, rows()[1].id, 1).unwrap(), None);
        assert_eq!(index.details("A/P1", -1, rows()[1].id, 1).unwrap(), None);
    }

    #[test]
    fn facts_in_the_order_of_a_listing_are_read_once_per_batch() {
        const BATCHES: usize = 24;
        let details = Some(Details { file_name: Some("a".to_owned()), ..Details::default() });
        // Times with four to eight digits, which alternate in the order of their texts.
        let from = |n: i64| 10_i64.pow(3 + (n % 5) as u32) * 9 - n / 5;
        let mut many: Vec<IndexRow> = (0..(BATCHES * BATCH_ROWS) as i64)
            .map(|n| IndexRow {
                from: from(n),
                stamp: 1,
                details: details.clone(),
                ..rows()[1].clone()
            })
            .collect();
        let (bytes, _) = encode(many.clone(), INODE).unwrap();
        let mut index = open(&bytes).unwrap();
        many.sort_by_cached_key(|row| row.from.to_string());
        for row in &many {
            let found = index.details(&row.path, row.from, row.id, row.stamp).unwrap();
            assert_eq!(found, row.details, "{row:?}");
            // Between the rows of the file, as those of another file lie.
            assert_eq!(
                index.details(&row.path, row.from, ObjectId::from_bytes([0; 16]), 1).unwrap(),
                None
            );
        }
        // Twice: a batch whose bounds were needed first, and not its rows.
        let reads = index.known.read_count;
        assert!((BATCHES..=2 * BATCHES).contains(&reads), "{reads} reads of {BATCHES} batches");
    }

    /// Writes the golden file; run it once per layout: `cargo test --lib golden -- --ignored`.
    #[test]
    #[ignore = "writes a file of the repository"]
    fn write_the_golden_file() {
        let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/schemas/golden/repository-index.arrow");
        std::fs::write(golden, encode(rows(), INODE).unwrap().0).unwrap();
    }

    #[test]
    fn a_torn_file_or_one_of_another_folder_is_refused() {
        let (bytes, crc) = encode(rows(), INODE).unwrap();
        let reason = |bytes: &[u8], inode| {
            IndexFile::open(file(bytes), crc, inode).map(|_| ()).unwrap_err().to_string()
        };
        assert!(reason(&bytes[..bytes.len() / 2], INODE).contains("checksum"));
        let mut flipped = bytes.clone();
        flipped[bytes.len() / 3] ^= 1;
        assert!(reason(&flipped, INODE).contains("checksum"));
        assert!(reason(&bytes, INODE + 1).contains("another folder"));
    }

    #[test]
    fn whatever_byte_is_forged_under_a_right_checksum_no_other_row_is_read() {
        let rows = rows();
        let (bytes, _) = encode(rows.clone(), INODE).unwrap();
        std::panic::set_hook(Box::new(|_| {}));
        for at in 0..bytes.len() {
            for value in [0, 0x7f, 0xff, bytes[at] ^ 1] {
                let mut forged = bytes.clone();
                forged[at] = value;
                let Ok(mut index) = open(&forged) else { continue };
                // Either an error, or rows that were written.
                if let Ok(found) = index.all() {
                    assert!(found.iter().all(|row| rows.contains(row)), "byte {at}: {found:?}");
                }
                let path: Arc<str> = "TPC/Calib/VDrift".into();
                let mut found = Vec::new();
                let _ = index.for_path(&path, &mut |row| found.push(row.to_row(&path)));
                assert!(found.iter().all(|row| rows.contains(row)), "byte {at}: {found:?}");
            }
        }
        for length in 0..bytes.len() {
            let _ = open(&bytes[..length]);
        }
        let _ = std::panic::take_hook();
    }
}
