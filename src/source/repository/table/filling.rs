//! Fills a table with rows that arrive one by one.
//!
//! ```text
//!  rows in order ─▶ the open chunk ─full─▶ chunks of the table: each row is written once, and the
//!                                          carry of the next chunk is made while it is in the cache
//!  a row out of order ─▶ all rows in one list, which is sorted at the end
//! ```

use super::chunk::{CHUNK_ROWS, Chunk};
use super::path_table::{PathTable, drop_carries, most_carried};
use super::row::Row;
use crate::source::repository::carry::Carry;

/// Rows that will replace those of a table.
#[derive(Debug)]
pub(crate) struct Filling {
    /// Number of rows of a chunk.
    chunk_rows: usize,
    chunks: Vec<Chunk>,
    /// Only the carry of each chunk whose number is a multiple of this is kept.
    carry_step: usize,
    /// Length of all kept carries.
    carried: usize,
    /// The rows after those of `chunks`, or all rows if they are out of order.
    open: Vec<Row>,
    /// Earlier rows that can be in effect among `open`.
    carry: Carry,
    rows: usize,
    /// Number of different `from`.
    folders: u64,
    out_of_order: bool,
}

impl Default for Filling {
    fn default() -> Self {
        Self::with_chunk_rows(CHUNK_ROWS)
    }
}

impl Filling {
    pub(super) fn with_chunk_rows(chunk_rows: usize) -> Self {
        Self {
            chunk_rows,
            chunks: Vec::new(),
            carry_step: 1,
            carried: 0,
            open: Vec::new(),
            carry: Carry::default(),
            rows: 0,
            folders: 0,
            out_of_order: false,
        }
    }

    /// Length of all kept carries.
    #[cfg(test)]
    pub(super) fn carried(&self) -> usize {
        self.carried
    }

    /// Adds a row. If a version occurs twice, its last row counts.
    pub(crate) fn push(&mut self, row: Row) {
        let Some(last) = self.open.last_mut().filter(|_| !self.out_of_order) else {
            if self.open.is_empty() {
                (self.rows, self.folders) = (1, 1);
            }
            return self.open.push(row);
        };
        if row.key() <= last.key() {
            if row.key() == last.key() {
                *last = row;
                return;
            }
            let earlier = std::mem::take(&mut self.chunks).into_iter().flat_map(|chunk| chunk.rows);
            self.open = earlier.chain(std::mem::take(&mut self.open)).collect();
            self.out_of_order = true;
            return self.open.push(row);
        }
        if row.from != last.from {
            self.folders += 1;
            if self.open.len() >= self.chunk_rows {
                self.close_chunk(Some(row.from));
            }
        }
        self.rows += 1;
        self.open.push(row);
    }

    /// Ends the open chunk. `next` is the start of the following one.
    fn close_chunk(&mut self, next: Option<i64>) {
        let capacity = if next.is_some() { self.chunk_rows } else { 0 };
        let mut rows = std::mem::replace(&mut self.open, Vec::with_capacity(capacity));
        rows.shrink_to_fit();
        let carry = next.map(|start| self.carry.rolled(rows.iter().map(Row::carried), start));
        let carry = std::mem::replace(&mut self.carry, carry.unwrap_or_default());
        let is_kept = self.chunks.len().is_multiple_of(self.carry_step);
        self.carried += if is_kept { carry.len() } else { 0 };
        let carry = is_kept.then_some(carry);
        self.chunks.push(Chunk { carry, ..Chunk::new(rows) });
        self.thin_out();
    }

    /// Intervals can be nested so deeply that the carries are longer than the rows.
    fn thin_out(&mut self) {
        let limit = most_carried(self.rows);
        while self.carried > limit && self.carry_step < 2 * self.chunks.len() {
            self.carry_step *= 2;
            self.carried = drop_carries(&mut self.chunks, self.carry_step);
        }
    }

    /// Replaces all rows of `table`. Returns the number of different `from`.
    pub(crate) fn finish(mut self, table: &mut PathTable) -> u64 {
        if self.out_of_order {
            table.fill(self.open);
            return table.froms().count() as u64;
        }
        if !self.open.is_empty() {
            self.close_chunk(None);
        }
        table.set_chunks(self.chunks, self.rows);
        self.folders
    }
}
