//! The views of records: objects (which version served which rows) and distinct (the objects of a
//! table).

use std::ops::Range;
use std::sync::Arc;

use arrow_array::ArrayRef;
use arrow_array::builder::{Int64Builder, MapBuilder, MapFieldNames, StringBuilder, UInt64Builder};
use arrow_schema::{DataType, Field};

use super::cells::cell_array;
use super::column::ColumnPath;
use super::content::{Cell, Column, Objects};
use super::encode_error::EncodeError;
use super::layout::TableLayout;
use super::request_options::{CellKind, Encoding};
use super::text_runs::TextRuns;
use crate::object::{ObjectId, ObjectInfo, ObjectPath};

/// Target size of batches of payloads; a single row can exceed it.
pub(super) const PAYLOAD_BATCH_BYTES: u64 = 4 << 20;
/// Target size of batches of the views objects and intervals.
pub(super) const RECORD_BYTES: usize = 1 << 20;
/// Size of a record without its texts.
pub(super) const RECORD_FIXED_BYTES: usize = 128;
/// Maximum size of a payload cell.
pub(super) const MAX_CELL_BYTES: u64 = 64 << 20;
/// Maximum number of rows of one batch of the views objects and intervals.
pub(super) const RECORD_ROWS: usize = 4_000;

/// Value of a column's key at `row` as text, and the first row up to `end` where it changes.
fn key_of(column: &Column, row: usize, end: usize) -> (Option<String>, usize) {
    let Some(key) = &column.key else { return (None, end) };
    let run = key.run_of(row);
    match run < key.run_count() {
        true => (key.run_value(run).map(|value| value.to_string()), key.run_rows(run).end.min(end)),
        false => (None, end),
    }
}

/// Path of an object in a column. Versions with one id can occur under two paths.
fn path_of<'a>(column: &'a Column, version: &'a ObjectInfo) -> &'a ObjectPath {
    match &column.path {
        ColumnPath::One(path) => path,
        ColumnPath::ByRange(_) => &version.path,
    }
}

/// Position of the next record.
#[derive(Debug, Default)]
pub(super) struct RecordCursor {
    /// Index of the column.
    column: usize,
    /// View distinct: index of the cell in the column.
    cell: usize,
    /// View objects: the row in the column.
    row: usize,
    /// By cell of the column: its first row and its number of rows.
    served: Vec<(i64, i64)>,
    is_over: bool,
}

/// Builders of the columns of the objects view.
struct ObjectRecords {
    /// Column, path, id, cache.
    texts: [StringBuilder; 4],
    /// First row, end of the rows, from, until, created.
    numbers: [Int64Builder; 5],
    /// Size in bytes, generation.
    sizes: [UInt64Builder; 2],
    metadata: MapBuilder<StringBuilder, StringBuilder>,
    keys: StringBuilder,
}

impl Default for ObjectRecords {
    fn default() -> Self {
        let names = MapFieldNames {
            entry: "entries".to_owned(),
            key: "key".to_owned(),
            value: "value".to_owned(),
        };
        let value = Field::new("value", DataType::Utf8, false);
        let metadata = MapBuilder::new(Some(names), StringBuilder::new(), StringBuilder::new())
            .with_values_field(Arc::new(value));
        Self {
            texts: Default::default(),
            numbers: Default::default(),
            sizes: Default::default(),
            metadata,
            keys: StringBuilder::new(),
        }
    }
}

impl ObjectRecords {
    /// Adds the record of `rows`, and returns its approximate size in bytes.
    fn push(
        &mut self,
        column: &Column,
        cell: &Cell,
        version: &ObjectInfo,
        rows: Range<usize>,
        key: Option<String>,
    ) -> Result<usize, EncodeError> {
        let mut id = [0; ObjectId::TEXT_BYTES];
        let id = version.id.text(&mut id);
        let path = path_of(column, version).as_str();
        let texts = [&column.name[..], path, id, cell.cache.name()];
        self.texts.iter_mut().zip(texts).for_each(|(builder, text)| builder.append_value(text));
        let numbers = [
            rows.start as i64,
            rows.end as i64,
            version.validity.from().as_millis(),
            version.validity.until().as_millis(),
            version.created.as_millis(),
        ];
        self.numbers.iter_mut().zip(numbers).for_each(|(builder, n)| builder.append_value(n));
        self.sizes[0].append_value(cell.header.size);
        self.sizes[1].append_value(cell.header.hint);
        let mut bytes = column.name.len() + path.len() + RECORD_FIXED_BYTES;
        for (key, value) in &version.metadata {
            self.metadata.keys().append_value(key);
            self.metadata.values().append_value(value);
            bytes += key.len() + value.len() + 8;
        }
        self.metadata.append(true)?;
        bytes += key.as_ref().map_or(0, String::len);
        self.keys.append_option(key);
        Ok(bytes)
    }

    /// The columns, with that of the keys if a column of the table has one.
    fn finish(mut self, keyed: bool) -> Vec<ArrayRef> {
        let [column, path, id, cache] =
            self.texts.map(|mut builder| -> ArrayRef { Arc::new(builder.finish()) });
        let [start, end, from, until, created] =
            self.numbers.map(|mut builder| -> ArrayRef { Arc::new(builder.finish()) });
        let [size, generation] =
            self.sizes.map(|mut builder| -> ArrayRef { Arc::new(builder.finish()) });
        let metadata: ArrayRef = Arc::new(self.metadata.finish());
        let mut arrays = vec![
            column, path, start, end, id, from, until, created, size, generation, cache, metadata,
        ];
        if keyed {
            arrays.push(Arc::new(self.keys.finish()));
        }
        arrays
    }
}

/// Builders of the columns of the distinct view.
#[derive(Default)]
struct DistinctRecords<'a> {
    /// Column, path.
    names: [TextRuns<'a>; 2],
    ids: StringBuilder,
    cells: Vec<&'a Cell>,
    /// First row, number of rows.
    numbers: [Int64Builder; 2],
}

impl<'a> DistinctRecords<'a> {
    /// Adds the record of a cell, and returns the size of its texts in bytes.
    #[inline]
    fn push(
        &mut self,
        column: &'a Column,
        cell: &'a Cell,
        objects: &'a dyn Objects,
        served: (i64, i64),
    ) -> usize {
        let path = path_of(column, objects.version(cell.object)).as_str();
        self.names[0].push(&column.name);
        self.names[1].push(path);
        self.ids.append_value(objects.id(cell.object).text(&mut [0; ObjectId::TEXT_BYTES]));
        self.numbers[0].append_value(served.0);
        self.numbers[1].append_value(served.1);
        self.cells.push(cell);
        column.name.len() + path.len()
    }

    fn finish(
        self,
        objects: &dyn Objects,
        layout: &TableLayout,
    ) -> Result<Vec<ArrayRef>, EncodeError> {
        let Self { names, mut ids, cells, numbers } = self;
        let [column, path] = names.map(|runs| runs.finish(layout.encoding, cells.len()));
        let [first_row, count] =
            numbers.map(|mut builder| -> ArrayRef { Arc::new(builder.finish()) });
        let cells = cell_array(layout.cell, cells.iter().copied(), objects)?;
        Ok(vec![column?, path?, Arc::new(ids.finish()), cells, first_row, count])
    }
}

impl RecordCursor {
    /// Whether all records were made.
    pub(super) fn is_over(&self) -> bool {
        self.is_over
    }

    /// Batch of the objects view: one record per run of rows.
    pub(super) fn objects(
        &mut self,
        columns: &[Column],
        objects: &dyn Objects,
        keyed: bool,
    ) -> Result<(Vec<ArrayRef>, usize), EncodeError> {
        let mut records = ObjectRecords::default();
        let (mut rows, mut bytes) = (0, 0);
        while rows < RECORD_ROWS
            && bytes < RECORD_BYTES
            && let Some(column) = columns.get(self.column)
        {
            let start = self.row;
            if start == column.rows.len() {
                (self.column, self.row) = (self.column + 1, 0);
                continue;
            }
            let run = column.rows.run_at(start);
            // A run that spans several values of a key has a record per value.
            let (key, end) = key_of(column, start, run.end as usize);
            self.row = end;
            let Some(cell) = run.cell.map(|cell| &column.cells[cell as usize]) else { continue };
            bytes += records.push(column, cell, objects.version(cell.object), start..end, key)?;
            rows += 1;
        }
        // The remaining runs may all be without an object.
        while let Some(column) = columns.get(self.column) {
            if self.row == column.rows.len() {
                (self.column, self.row) = (self.column + 1, 0);
                continue;
            }
            let run = column.rows.run_at(self.row);
            if run.cell.is_some() {
                break;
            }
            self.row = run.end as usize;
        }
        self.is_over = self.column == columns.len();
        Ok((records.finish(keyed), rows))
    }

    /// Batch of the distinct view: one record per entry of each column's dictionary, in its order.
    pub(super) fn distinct(
        &mut self,
        columns: &[Column],
        objects: &dyn Objects,
        layout: &TableLayout,
    ) -> Result<(Vec<ArrayRef>, usize), EncodeError> {
        let mut records = DistinctRecords::default();
        let (mut bytes, mut payload_bytes) = (0, 0);
        let (mut place, mut next_cell) = (self.column, self.cell);
        let mut served = std::mem::take(&mut self.served);
        while records.cells.len() < RECORD_ROWS && bytes < RECORD_BYTES && place < columns.len() {
            let column = &columns[place];
            if next_cell == 0 {
                served = column.rows.rows_of_cells(column.cells.len());
            }
            let Some(cell) = column.cells.get(next_cell) else {
                (place, next_cell) = (place + 1, 0);
                continue;
            };
            if layout.cell == CellKind::Payload {
                payload_bytes += payload_of(column, cell, objects)?;
            }
            let text_bytes = records.push(column, cell, objects, served[next_cell]);
            next_cell += 1;
            bytes += RECORD_FIXED_BYTES;
            if layout.encoding != Encoding::RunEnd {
                bytes += text_bytes;
            }
            if payload_bytes >= PAYLOAD_BATCH_BYTES {
                break;
            }
        }
        while columns.get(place).is_some_and(|column| column.cells.len() <= next_cell) {
            (place, next_cell) = (place + 1, 0);
        }
        self.is_over = place == columns.len();
        self.served = served;
        (self.column, self.cell) = (place, next_cell);
        let rows = records.cells.len();
        Ok((records.finish(objects, layout)?, rows))
    }
}

/// Size in bytes of an object as a payload cell.
///
/// # Errors
/// [`EncodeError::TooLarge`] if it exceeds the limit of a cell.
fn payload_of(column: &Column, cell: &Cell, objects: &dyn Objects) -> Result<u64, EncodeError> {
    let bytes = objects.bytes(cell.object).len() as u64;
    if bytes <= MAX_CELL_BYTES {
        return Ok(bytes);
    }
    let (column, path) = (column.name.to_string(), column.path.to_string());
    Err(EncodeError::TooLarge { column, path, bytes, limit_bytes: MAX_CELL_BYTES })
}
