//! Writes a window of the rows of a table, in each encoding.

use super::batch_buffers::{ALIGNMENT, BatchBuffers, Payloads};
use super::cell_rows::{CellRun, CodedCells};
use super::cells::repeat;
use super::content::{Cell, Column};
use super::request_options::{CellKind, Encoding};
use crate::index::Timestamps;
use crate::shm::MetaHeader;

/// The rows `from..until` of a table: one batch.
pub(super) struct RowWindow<'a> {
    pub(super) columns: &'a [Column],
    /// The timestamps, if the table has a column of them.
    pub(super) timestamps: Option<&'a Timestamps>,
    pub(super) from: usize,
    pub(super) until: usize,
    /// Kind of the cells.
    pub(super) cell: CellKind,
    pub(super) payloads: Payloads<'a>,
}

impl RowWindow<'_> {
    /// The buffers of all columns.
    pub(super) fn write(&self, encoding: Encoding) -> BatchBuffers {
        match encoding {
            Encoding::RunEnd => self.run_end(),
            Encoding::Dictionary => self.dictionary(),
            Encoding::Plain => self.plain(),
        }
    }

    pub(super) fn rows(&self) -> usize {
        self.until - self.from
    }

    /// Appends the timestamp column, if there is one.
    fn timestamps(&self, buffers: &mut BatchBuffers) {
        let Some(timestamps) = self.timestamps else { return };
        let mut runs: Vec<(usize, Option<i64>)> = Vec::new();
        let mut start = self.from;
        for (end, at) in timestamps.runs_from(self.from) {
            let end = end.min(self.until);
            runs.push((end - start, at.map(|at| at.as_millis())));
            start = end;
            if end == self.until {
                break;
            }
        }
        let runs = runs.iter().copied();
        buffers.validity(self.rows(), runs.clone().map(|(rows, at)| (rows, at.is_some())));
        buffers.buffer(|bytes| {
            for (rows, at) in runs {
                repeat(bytes, &at.unwrap_or_default().to_le_bytes(), rows);
            }
        });
    }

    fn run_end(&self) -> BatchBuffers {
        let (from, until) = (self.from as i32, self.until as i32);
        let padded = |bytes: usize| bytes.next_multiple_of(ALIGNMENT);
        let runs = self.columns.iter().map(|one| one.rows.runs_within(self.from..self.until));
        let all: Vec<_> = runs.collect();
        let room = all.iter().map(|runs| {
            padded(runs.len() * size_of::<i32>())
                + padded(runs.len() * MetaHeader::BYTES)
                + ALIGNMENT
        });
        let mut buffers = BatchBuffers::with_capacity(room.sum(), self.columns.len() * 4);
        self.timestamps(&mut buffers);
        for (column, runs) in self.columns.iter().zip(&all) {
            buffers.run_ends(self.rows(), runs.iter().map(|run| run.end.min(until) - from));
            let cell = |run: &CellRun| (1, cell_at(column, run.cell));
            buffers.cells(runs.len(), runs.iter().map(cell), self.cell, self.payloads);
        }
        buffers
    }

    /// The keys index the columns' cells.
    fn dictionary(&self) -> BatchBuffers {
        let room = (self.rows() * size_of::<i32>()).next_multiple_of(ALIGNMENT) + ALIGNMENT;
        let mut buffers =
            BatchBuffers::with_capacity(self.columns.len() * room, self.columns.len() * 2);
        self.timestamps(&mut buffers);
        let (mut cells, mut pairs) = (Vec::new(), Vec::new());
        for column in self.columns {
            if let Some(coded) = column.rows.coded() {
                let rows = self.from..self.until;
                if coded.is_whole(rows.clone()) {
                    buffers.validity(self.rows(), std::iter::once((self.rows(), true)));
                    buffers.buffer(|bytes| coded.gather_bytes(rows, &mut pairs, bytes));
                    continue;
                }
                coded.gather(rows, &mut cells);
                self.coded_keys(&mut buffers, &cells);
                continue;
            }
            let runs = column.rows.runs_within(self.from..self.until);
            let runs = self.lengths(&runs);
            let is_valid = runs.clone().map(|(rows, cell)| (rows, cell.is_some()));
            buffers.validity(self.rows(), is_valid);
            buffers.buffer(|bytes| {
                for (rows, cell) in runs {
                    repeat(bytes, &key_of(cell.unwrap_or(NULL_KEY)), rows);
                }
            });
        }
        buffers
    }

    /// Appends validity and keys of a column with these cells.
    fn coded_keys(&self, buffers: &mut BatchBuffers, cells: &[u32]) {
        match cells.contains(&CodedCells::NO_CELL) {
            true => {
                let is_valid = cells.iter().map(|cell| (1, *cell != CodedCells::NO_CELL));
                buffers.validity(self.rows(), is_valid);
            }
            false => buffers.validity(self.rows(), std::iter::once((self.rows(), true))),
        }
        buffers.buffer(|bytes| {
            let start = bytes.len();
            bytes.resize(start + size_of_val(cells), 0);
            let places = bytes[start..].chunks_exact_mut(size_of::<i32>());
            for (place, &cell) in places.zip(cells) {
                let key = if cell == CodedCells::NO_CELL { NULL_KEY } else { cell };
                place.copy_from_slice(&key_of(key));
            }
        });
    }

    fn plain(&self) -> BatchBuffers {
        let mut buffers = BatchBuffers::default();
        if self.cell != CellKind::Payload {
            let room = (self.rows() * MetaHeader::BYTES).next_multiple_of(ALIGNMENT) + ALIGNMENT;
            buffers =
                BatchBuffers::with_capacity(self.columns.len() * room, self.columns.len() * 2);
        }
        self.timestamps(&mut buffers);
        let mut cells = Vec::new();
        for column in self.columns {
            if let Some(coded) = column.rows.coded() {
                coded.gather(self.from..self.until, &mut cells);
                let cell = |&cell: &u32| (1, column.cells.get(cell as usize));
                buffers.cells(self.rows(), cells.iter().map(cell), self.cell, self.payloads);
                continue;
            }
            let runs = column.rows.runs_within(self.from..self.until);
            let runs = self.lengths(&runs).map(|(rows, cell)| (rows, cell_at(column, cell)));
            buffers.cells(self.rows(), runs, self.cell, self.payloads);
        }
        buffers
    }

    /// Runs within the window: the number of rows of each, and its cell.
    fn lengths<'r>(
        &self,
        runs: &'r [CellRun],
    ) -> impl Iterator<Item = (usize, Option<u32>)> + Clone + use<'r> {
        let (from, until) = (self.from as i32, self.until as i32);
        runs.iter().scan(from, move |start, run| {
            let end = run.end.min(until);
            Some(((end - std::mem::replace(start, end)) as usize, run.cell))
        })
    }
}

/// The key under a null: the first, as in Arrow's own encoder.
const NULL_KEY: u32 = 0;

/// The bytes of the key of a cell.
fn key_of(cell: u32) -> [u8; 4] {
    cell.cast_signed().to_le_bytes()
}

/// The cell with an index in a column.
fn cell_at(column: &Column, cell: Option<u32>) -> Option<&Cell> {
    cell.map(|cell| &column.cells[cell as usize])
}
