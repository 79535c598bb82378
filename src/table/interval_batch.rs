//! Batches of the view intervals.

use std::sync::Arc;

use arrow_array::ArrayRef;
use arrow_array::builder::{Int64Builder, StringBuilder};

use super::content::{Cell, IntervalColumn, Objects};
use super::encode_error::EncodeError;
use super::layout::TableLayout;
use super::records::{
    MAX_CELL_BYTES, PAYLOAD_BATCH_BYTES, RECORD_BYTES, RECORD_FIXED_BYTES, RECORD_ROWS,
};
use super::request_options::{CellKind, Encoding};
use super::text_runs::TextRuns;
use crate::object::ObjectId;

/// Position of the next effective span.
#[derive(Debug, Default)]
pub(super) struct IntervalCursor {
    column: usize,
    row: usize,
    is_over: bool,
}

/// The columns of one batch under construction.
#[derive(Default)]
struct IntervalRecords<'a> {
    /// Column and path.
    names: [TextRuns<'a>; 2],
    ids: StringBuilder,
    /// From and until.
    borders: [Int64Builder; 2],
    cells: Vec<&'a Cell>,
    bytes: usize,
    payload_bytes: u64,
}

impl IntervalRecords<'_> {
    fn is_full(&self) -> bool {
        self.cells.len() >= RECORD_ROWS
            || self.bytes >= RECORD_BYTES
            || self.payload_bytes >= PAYLOAD_BATCH_BYTES
    }
}

impl IntervalCursor {
    /// Whether all spans were returned.
    pub(super) fn is_over(&self) -> bool {
        self.is_over
    }

    /// The next effective spans: all arrays but the last, and the cells for the last one.
    ///
    /// # Errors
    /// [`EncodeError::TooLarge`]
    pub(super) fn next<'a>(
        &mut self,
        columns: &'a [IntervalColumn],
        objects: &dyn Objects,
        layout: &TableLayout,
    ) -> Result<(Vec<ArrayRef>, Vec<&'a Cell>), EncodeError> {
        let mut records = IntervalRecords::default();
        while let Some(column) = columns.get(self.column).filter(|_| !records.is_full()) {
            let Some(row) = column.rows.get(self.row) else {
                (self.column, self.row) = (self.column + 1, 0);
                continue;
            };
            self.row += 1;
            let cell = &column.cells[row.cell as usize];
            records.names[0].push(&column.name);
            records.names[1].push(column.path.as_str());
            let id = objects.id(cell.object);
            records.ids.append_value(id.text(&mut [0; ObjectId::TEXT_BYTES]));
            records.borders[0].append_value(row.interval.from().as_millis());
            records.borders[1].append_value(row.interval.until().as_millis());
            records.cells.push(cell);
            records.bytes += RECORD_FIXED_BYTES;
            if layout.encoding != Encoding::RunEnd {
                records.bytes += column.name.len() + column.path.as_str().len();
            }
            if layout.cell == CellKind::Payload {
                records.payload_bytes += payload_bytes(column, cell, objects)?;
            }
        }
        while columns.get(self.column).is_some_and(|column| column.rows.len() <= self.row) {
            (self.column, self.row) = (self.column + 1, 0);
        }
        self.is_over = self.column == columns.len();
        let IntervalRecords { names, mut ids, borders, cells, .. } = records;
        let [column, path] = names.map(|runs| runs.finish(layout.encoding, cells.len()));
        let [from, until] = borders.map(|mut builder| -> ArrayRef { Arc::new(builder.finish()) });
        Ok((vec![column?, path?, from, until, Arc::new(ids.finish())], cells))
    }
}

/// Size of an object as a payload cell, in bytes.
fn payload_bytes(
    column: &IntervalColumn,
    cell: &Cell,
    objects: &dyn Objects,
) -> Result<u64, EncodeError> {
    let bytes = objects.bytes(cell.object).len() as u64;
    if bytes <= MAX_CELL_BYTES {
        return Ok(bytes);
    }
    let (column, path) = (column.name.to_string(), column.path.to_string());
    Err(EncodeError::TooLarge { column, path, bytes, limit_bytes: MAX_CELL_BYTES })
}
