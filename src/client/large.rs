//! Tables whose objects are too large for cells, sent over the network: each object in chunks.
//!
//! ```text
//!  request, cell payload ──▶ RESOURCE_EXHAUSTED
//!  request, cell binary  ──▶ runs and generations ─┐
//!  request, view objects ──▶ generation, version ──┼─▶ per distinct version: view chunks ─▶ Table
//! ```
//!
//! Each chunk request locks its version, so versions stored in between do not change the result.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arrow_array::cast::AsArray as _;
use arrow_array::types::{Int32Type, Int64Type, UInt64Type};
use arrow_array::{ArrayRef, DictionaryArray, Int32Array, LargeBinaryArray, RecordBatch};
use arrow_buffer::{Buffer, OffsetBuffer, ScalarBuffer};
use arrow_schema::{DataType, Field, Schema};
use futures::StreamExt as _;
use serde_json::json;

use super::error::ClientError;
use super::service::{Client, answer, of_flight};
use super::table::{Hold, Table};
use crate::table::{CellKind, CellValue, ColumnRuns, Encoding, LockEntry, TableRequest, View};

/// Description of a version in the objects view.
struct ObjectVersion {
    path: String,
    valid_from: i64,
    size: u64,
    lock: LockEntry,
}

impl Client {
    /// The table of `request` with the bytes of its objects. Each version is fetched once, in
    /// chunks; `limit` bounds the wait for each message.
    pub(super) async fn large_table(
        &self,
        request: TableRequest,
        limit: Duration,
    ) -> Result<Table, ClientError> {
        let cells = request.clone().cell(CellKind::Binary).encoding(Encoding::RunEnd);
        let (schema, batches) = self.get(&cells).await?;
        let asked = request.clone().objects_view();
        let (objects_schema, objects) = self.get(&asked).await?;
        let versions = versions(&objects)?;
        let mut fields = Vec::new();
        let mut columns: Vec<ArrayRef> = Vec::new();
        for (place, field) in schema.fields().iter().enumerate() {
            if !field.metadata().contains_key("url") {
                continue;
            }
            let mut runs = ColumnRuns::default();
            batches.iter().try_for_each(|batch| runs.extend(batch.column(place)))?;
            columns.push(self.large_column(&runs, &versions, limit).await?);
            let kind =
                DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::LargeBinary));
            let url = field.metadata()["url"].clone();
            let metadata = HashMap::from([("url".to_owned(), url)]);
            let field = Field::new(field.name(), kind, field.is_nullable());
            fields.push(field.with_metadata(metadata));
        }
        // The leases are not needed any more: the objects are here.
        drop(self.hold(None, &objects_schema));
        drop(self.hold(None, &schema));
        let metadata = schema.metadata().clone();
        let schema = Arc::new(Schema::new_with_metadata(fields, metadata));
        let batch = RecordBatch::try_new(Arc::clone(&schema), columns);
        let batch = batch.map_err(|error| answer(&error.to_string()))?;
        let hold = Hold::new(None, None, self.releases());
        Table::new(&schema, vec![batch], hold, request)
    }

    async fn large_column(
        &self,
        runs: &ColumnRuns,
        versions: &HashMap<u64, ObjectVersion>,
        limit: Duration,
    ) -> Result<ArrayRef, ClientError> {
        let mut keys: Vec<Option<i32>> = Vec::with_capacity(runs.rows());
        let mut known: HashMap<u64, i32> = HashMap::new();
        let (mut bytes, mut offsets) = (Vec::new(), vec![0_i64]);
        for (end, cell) in runs.iter() {
            let key = match cell {
                CellValue::Header(header) => match known.get(&header.hint) {
                    Some(key) => Some(*key),
                    None => {
                        let version = versions.get(&header.hint).ok_or(ClientError::Changed)?;
                        self.append_chunks(version, limit, &mut bytes).await?;
                        let key = known.len() as i32;
                        offsets.push(bytes.len() as i64);
                        known.insert(header.hint, key);
                        Some(key)
                    }
                },
                CellValue::Null => None,
                CellValue::O2 { .. } | CellValue::Payload(_) => {
                    return Err(answer("the cells are not of the requested kind"));
                }
            };
            keys.resize(end, key);
        }
        let offsets = OffsetBuffer::new(ScalarBuffer::from(offsets));
        let values = LargeBinaryArray::try_new(offsets, Buffer::from_vec(bytes), None);
        let values = values.map_err(|error| answer(&error.to_string()))?;
        let keys = Int32Array::from(keys);
        let array = DictionaryArray::<Int32Type>::try_new(keys, Arc::new(values));
        Ok(Arc::new(array.map_err(|error| answer(&error.to_string()))?))
    }

    /// Appends the bytes of one version.
    async fn append_chunks(
        &self,
        version: &ObjectVersion,
        limit: Duration,
        bytes: &mut Vec<u8>,
    ) -> Result<(), ClientError> {
        let request = TableRequest::new()
            .column("object", &version.path)
            .timestamps([version.valid_from])
            .lock(vec![version.lock.clone()])
            .view(View::Chunks)
            .wait(limit);
        let before = bytes.len();
        let in_time =
            |limit: Duration| move |_| ClientError::NotInTime { limit_millis: limit.as_millis() };
        let stream = tokio::time::timeout(limit, self.stream(&request)).await;
        let mut stream = stream.map_err(in_time(limit))??;
        loop {
            let next = tokio::time::timeout(limit, stream.next()).await.map_err(in_time(limit))?;
            let Some(batch) = next else { break };
            let batch = batch.map_err(|error| of_flight(&error))?;
            let pieces = batch.column_by_name("bytes").and_then(|one| one.as_binary_opt::<i32>());
            let pieces = pieces.ok_or_else(|| answer("no column of bytes came"))?;
            pieces.iter().flatten().for_each(|piece| bytes.extend_from_slice(piece));
        }
        if let Some(schema) = stream.schema() {
            drop(self.hold(None, schema));
        }
        match (bytes.len() - before) as u64 {
            got if got == version.size => Ok(()),
            got => Err(answer(&format!(
                "{}: {got} bytes came in chunks, expected {}",
                version.path, version.size
            ))),
        }
    }
}

/// Versions of an objects view, by the generation of their blocks.
fn versions(objects: &[RecordBatch]) -> Result<HashMap<u64, ObjectVersion>, ClientError> {
    let mut versions = HashMap::new();
    for batch in objects {
        let column = |name: &str| {
            batch.column_by_name(name).ok_or_else(|| answer(&format!("no column {name} came")))
        };
        let wrong = |name: &'static str| move || answer(&format!("{name} has another type"));
        let texts = |name: &'static str| {
            let column = column(name)?;
            let cast = column.as_string_opt::<i32>();
            cast.cloned().ok_or_else(wrong(name))
        };
        let integers = |name: &'static str| {
            let column = column(name)?;
            column.as_primitive_opt::<Int64Type>().cloned().ok_or_else(wrong(name))
        };
        let counts = |name: &'static str| {
            let column = column(name)?;
            column.as_primitive_opt::<UInt64Type>().cloned().ok_or_else(wrong(name))
        };
        let (paths, ids) = (texts("path")?, texts("object_id")?);
        let (from, until) = (integers("valid_from")?, integers("valid_until")?);
        let created = integers("created")?;
        let (sizes, generations) = (counts("size")?, counts("generation")?);
        for row in 0..batch.num_rows() {
            let path = paths.value(row).to_owned();
            let valid_from = from.value(row);
            let lock = serde_json::from_value(json!({
                "path": path,
                "object_id": ids.value(row),
                "valid_from": valid_from,
                "valid_until": until.value(row),
                "created": created.value(row),
            }));
            let lock = lock.map_err(|error| answer(&format!("row {row}: {error}")))?;
            let version = ObjectVersion { path, valid_from, size: sizes.value(row), lock };
            versions.insert(generations.value(row), version);
        }
    }
    Ok(versions)
}
