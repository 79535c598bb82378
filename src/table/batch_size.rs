//! The division of the rows of a table into batches that are small enough for the wire.

use std::ops::Range;

use super::cells::check_cells;
use super::content::{Cell, Column, Objects};
use super::encode_error::EncodeError;
use super::layout::TableLayout;
use super::records::{MAX_CELL_BYTES, PAYLOAD_BATCH_BYTES};
use super::request_options::{CellKind, Encoding};
use crate::shm::MetaHeader;

/// Maximum size of a batch of MetaHeaders: with its message header it is below 2 MiB.
const BATCH_BYTES: u64 = 1_900 << 10;
/// Maximum size of all payloads of one batch or dictionary.
const MAX_PAYLOADS_BYTES: u64 = 1 << 30;

/// The sizes of the rows of a table.
#[derive(Clone, Copy)]
pub(super) struct RowSizes<'a> {
    pub(super) layout: &'a TableLayout,
    pub(super) columns: &'a [Column],
    pub(super) objects: &'a dyn Objects,
}

impl RowSizes<'_> {
    /// Checks that the objects can be cells.
    ///
    /// # Errors
    /// [`EncodeError`] if an object is too large or lies in the wrong kind of segment.
    pub(super) fn check(&self) -> Result<(), EncodeError> {
        check_cells(self.columns.iter().flat_map(|column| &column.cells), self.layout.cell)?;
        if self.layout.cell != CellKind::Payload {
            return Ok(());
        }
        for column in self.columns {
            let largest = column.cells.iter().map(|cell| self.bytes_of(cell)).max();
            check_payload(column, largest.unwrap_or(0), MAX_CELL_BYTES)?;
            if self.layout.encoding == Encoding::Dictionary {
                let all = column.cells.iter().map(|cell| self.bytes_of(cell)).sum();
                check_payload(column, all, MAX_PAYLOADS_BYTES)?;
            }
        }
        Ok(())
    }

    fn bytes_of(&self, cell: &Cell) -> u64 {
        self.objects.bytes(cell.object).len() as u64
    }

    /// The row after the last one of the batch that begins at `from`, in a table of `rows` rows.
    ///
    /// # Errors
    /// [`EncodeError::TooLarge`]
    pub(super) fn end_of_batch(&self, from: usize, rows: usize) -> Result<usize, EncodeError> {
        let payload = self.layout.cell == CellKind::Payload;
        let most = if payload { PAYLOAD_BATCH_BYTES } else { BATCH_BYTES };
        // The step doubles each time, so the rows inspected are about those of the batch.
        let (mut fits, mut too_far) = (from + 1, from.saturating_add(2));
        loop {
            too_far = too_far.min(rows);
            if too_far <= fits {
                return Ok(rows);
            }
            if self.bytes(from..too_far) > most {
                break;
            }
            if too_far == rows {
                return Ok(rows);
            }
            (fits, too_far) = (too_far, from.saturating_add((too_far - from) * 2));
        }
        while fits + 1 < too_far {
            let middle = fits + (too_far - fits) / 2;
            if self.bytes(from..middle) <= most { fits = middle } else { too_far = middle }
        }
        // A payload is sent once per run: batches end between runs where possible.
        if payload && self.layout.encoding == Encoding::RunEnd {
            fits = whole_runs(self.columns, from, fits, rows);
            let bytes = self.bytes(from..fits);
            if let Some(first) = self.columns.first() {
                check_payload(first, bytes, MAX_PAYLOADS_BYTES)?;
            }
        }
        Ok(fits)
    }

    /// Size of a batch of these rows on the wire, without its message header.
    fn bytes(&self, rows: Range<usize>) -> u64 {
        let count = rows.len() as u64;
        let timestamps = if self.layout.timestamps_column { count * 8 + count / 8 } else { 0 };
        let columns = self.columns.iter().map(|column| self.column_bytes(column, rows.clone()));
        timestamps + columns.sum::<u64>()
    }

    fn column_bytes(&self, column: &Column, rows: Range<usize>) -> u64 {
        // Buffers are padded to 64 bytes, and each column has several.
        let padding = 512;
        let count = rows.len() as u64;
        let cell_bytes = match self.layout.cell {
            CellKind::Binary | CellKind::Struct => MetaHeader::BYTES as u64,
            CellKind::O2 => 24,
            CellKind::Payload => 8,
        };
        padding
            + match self.layout.encoding {
                Encoding::Dictionary => count * 4 + count / 8,
                Encoding::RunEnd => {
                    let runs = column.rows.run_count_within(rows.clone()) as u64;
                    runs * (4 + cell_bytes) + runs / 8 + self.payload_bytes(column, rows, false)
                }
                Encoding::Plain => {
                    count * cell_bytes + count / 8 + self.payload_bytes(column, rows, true)
                }
            }
    }

    /// Bytes of the objects of the runs of these rows: each object once per run, or once per row.
    fn payload_bytes(&self, column: &Column, rows: Range<usize>, per_row: bool) -> u64 {
        if self.layout.cell != CellKind::Payload {
            return 0;
        }
        let mut start = rows.start;
        let runs = column.rows.runs_within(rows.clone());
        let bytes = runs.iter().map(|run| {
            let end = rows.end.min(run.end as usize);
            let count = end - std::mem::replace(&mut start, end);
            let times = if per_row { count as u64 } else { 1 };
            run.cell.map_or(0, |cell| self.bytes_of(&column.cells[cell as usize]) * times)
        });
        bytes.sum()
    }
}

fn check_payload(column: &Column, bytes: u64, limit_bytes: u64) -> Result<(), EncodeError> {
    if bytes <= limit_bytes {
        return Ok(());
    }
    let (column, path) = (column.name.to_string(), column.path.to_string());
    Err(EncodeError::TooLarge { column, path, bytes, limit_bytes })
}

/// Number of rows in which the end of a run is searched first.
const SEARCHED_ROWS: usize = 1 << 10;

/// The last row up to `wanted` at which a run of every column ends, or the first such row after it.
fn whole_runs(columns: &[Column], from: usize, wanted: usize, rows: usize) -> usize {
    let Some(first) = columns.first() else { return rows };
    let is_common = |row: &usize| columns.iter().all(|column| column.rows.ends_run(*row));
    let before = first.rows.runs_within(from..wanted);
    let ends = before.iter().rev().map(|run| run.end as usize).filter(|&end| end <= wanted);
    if let Some(end) = ends.into_iter().find(is_common) {
        return end;
    }
    let (mut start, mut searched) = (wanted, SEARCHED_ROWS);
    while start < rows {
        let end = rows.min(start + searched);
        let after = first.rows.runs_within(start..end);
        let ends = after.iter().map(|run| run.end as usize).filter(|&row| row > wanted);
        if let Some(end) = ends.into_iter().find(is_common) {
            return end;
        }
        (start, searched) = (end, searched * 2);
    }
    rows
}
