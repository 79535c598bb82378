//! Cells of the rows of a column: as runs, or by a code per row.
//!
//! ```text
//!  runs    rows 0..7 cell 0, 7..9 none, 9..20 cell 1
//!  coded   codes of a key, by row     3 0 3 1 0 …            shared by all columns with that key
//!          segments of rows           0..10,000  10,000..…   at the borders of versions
//!          a table per segment        code ─▶ cell
//! ```
//!
//! Where a key changes on nearly each row, a run per change would cost more than the rows
//! themselves. The runs of coded rows are derived where an encoding needs them.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use crate::index::RowCodes;

/// A run of rows that one cell serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CellRun {
    /// The row after the last one; the run starts where the run before it ends.
    pub(crate) end: i32,
    /// Index into the column's cells; `None`: null.
    pub(crate) cell: Option<u32>,
}

/// The cell of each row of a column.
#[derive(Debug, Clone)]
pub struct CellRows(CellForm);

/// Cells as runs of rows, or as codes where runs would be short.
#[derive(Debug, Clone)]
enum CellForm {
    /// Runs that cover all rows without gaps. Neighbouring runs have different cells.
    Runs(Arc<[CellRun]>),
    Coded(Arc<CodedCells>),
}

/// Rows per word of a bitmap.
const WORD_ROWS: usize = u64::BITS as usize;

/// Cells by code: all rows of a segment share one table.
#[derive(Debug)]
pub(crate) struct CodedCells {
    codes: RowCodes,
    /// For each segment, the row after its last one.
    segment_ends: Vec<usize>,
    /// By segment and code: the cell, or [`NO_CELL`](Self::NO_CELL). Codes that do not occur in a
    /// segment have any cell.
    tables: Vec<u32>,
    /// Computed on demand.
    run_starts: OnceLock<RunStarts>,
}

/// The first rows of runs.
#[derive(Debug)]
struct RunStarts {
    /// A bit per row.
    bits: Vec<u64>,
    /// For each word of `bits`, the number of runs that start before it.
    before: Vec<u32>,
}

impl From<Vec<CellRun>> for CellRows {
    fn from(runs: Vec<CellRun>) -> Self {
        Self(CellForm::Runs(runs.into()))
    }
}

impl From<&[CellRun]> for CellRows {
    fn from(runs: &[CellRun]) -> Self {
        Self(CellForm::Runs(runs.into()))
    }
}

impl From<CodedCells> for CellRows {
    fn from(cells: CodedCells) -> Self {
        Self(CellForm::Coded(Arc::new(cells)))
    }
}

impl FromIterator<CellRun> for CellRows {
    fn from_iter<I: IntoIterator<Item = CellRun>>(runs: I) -> Self {
        Self(CellForm::Runs(runs.into_iter().collect()))
    }
}

impl CellRows {
    /// Number of rows.
    pub(crate) fn len(&self) -> usize {
        match &self.0 {
            CellForm::Runs(runs) => runs.last().map_or(0, |run| run.end as usize),
            CellForm::Coded(coded) => coded.codes.len(),
        }
    }

    /// Number of runs.
    pub(crate) fn run_count(&self) -> usize {
        match &self.0 {
            CellForm::Runs(runs) => runs.len(),
            CellForm::Coded(coded) => coded.run_count(0..coded.codes.len()),
        }
    }

    /// Derives the runs of coded rows, in one pass over them.
    pub(super) fn prepare_runs(&self) {
        if let CellForm::Coded(coded) = &self.0 {
            coded.run_starts();
        }
    }

    /// The codes, if the rows are coded.
    pub(super) fn coded(&self) -> Option<&CodedCells> {
        match &self.0 {
            CellForm::Runs(_) => None,
            CellForm::Coded(coded) => Some(coded),
        }
    }

    /// The runs that touch `rows`. The last one can end after `rows`.
    pub(crate) fn runs_within(&self, rows: Range<usize>) -> Cow<'_, [CellRun]> {
        match &self.0 {
            CellForm::Runs(runs) => Cow::Borrowed(&runs[touching(runs, rows)]),
            CellForm::Coded(coded) => Cow::Owned(coded.runs_within(rows)),
        }
    }

    /// The run that `row` is in; the rows must contain it.
    pub(super) fn run_at(&self, row: usize) -> CellRun {
        match &self.0 {
            CellForm::Runs(runs) => runs[runs.partition_point(|run| run.end as usize <= row)],
            CellForm::Coded(coded) => coded.run_at(row),
        }
    }

    /// Number of runs that touch `rows`.
    pub(super) fn run_count_within(&self, rows: Range<usize>) -> usize {
        match &self.0 {
            CellForm::Runs(runs) => touching(runs, rows).len(),
            CellForm::Coded(coded) => coded.run_count(rows),
        }
    }

    /// Whether a run ends before `row`.
    pub(super) fn ends_run(&self, row: usize) -> bool {
        match &self.0 {
            CellForm::Runs(runs) => runs.binary_search_by_key(&(row as i32), |run| run.end).is_ok(),
            CellForm::Coded(coded) => row == coded.codes.len() || coded.starts_run(row),
        }
    }

    /// The first row and the number of rows of each of `count` cells; both are 0 for a cell without
    /// rows.
    pub(crate) fn rows_of_cells(&self, count: usize) -> Vec<(i64, i64)> {
        let mut served = vec![(0, 0); count];
        let mut add = |cell: u32, first_row: usize, rows: usize| {
            if let Some((first, total)) = served.get_mut(cell as usize) {
                if *total == 0 {
                    *first = first_row as i64;
                }
                *total += rows as i64;
            }
        };
        match &self.0 {
            CellForm::Runs(runs) => {
                let mut start = 0;
                for run in runs.iter() {
                    let end = run.end as usize;
                    run.cell.into_iter().for_each(|cell| add(cell, start, end - start));
                    start = end;
                }
            }
            CellForm::Coded(coded) => coded.each_code(add),
        }
        served
    }

    /// Memory in bytes, without the codes, which several columns share.
    pub(crate) fn memory_bytes(&self) -> usize {
        match &self.0 {
            CellForm::Runs(runs) => size_of_val(&runs[..]),
            CellForm::Coded(coded) => coded.memory_bytes(),
        }
    }
}

/// Indices of the runs that touch `rows`.
fn touching(runs: &[CellRun], rows: Range<usize>) -> Range<usize> {
    let (from, until) = (rows.start as i32, rows.end as i32);
    let first = runs.partition_point(|run| run.end <= from);
    let last = first + runs[first..].partition_point(|run| run.end < until);
    if from < until { first..last + 1 } else { first..first }
}

impl CodedCells {
    /// In a table: the cell is null.
    pub(crate) const NO_CELL: u32 = u32::MAX;

    /// The rows of `codes`, with `tables` of one cell per code for each of the segments that end
    /// before the rows `segment_ends`.
    ///
    /// # Panics
    /// If the segments do not end with the last row, or a table has another length.
    pub(crate) fn new(codes: RowCodes, segment_ends: Vec<usize>, tables: Vec<u32>) -> Self {
        assert!(
            segment_ends.last() == Some(&codes.len()),
            "the segments are not those of the rows"
        );
        assert!(tables.len() == segment_ends.len() * codes.table_len(), "tables of another length");
        Self { codes, segment_ends, tables, run_starts: OnceLock::new() }
    }

    /// Memory in bytes of this number of segments, without the codes.
    pub(crate) fn bytes_of(codes: &RowCodes, segments: usize) -> usize {
        let tables = segments * codes.table_len() * size_of::<u32>();
        let words = codes.len().div_ceil(WORD_ROWS);
        tables + segments * size_of::<usize>() + words * (size_of::<u64>() + size_of::<u32>())
    }

    fn memory_bytes(&self) -> usize {
        Self::bytes_of(&self.codes, self.segment_ends.len())
    }

    /// The parts of `rows` in each segment, with its table.
    fn parts(&self, rows: Range<usize>) -> impl Iterator<Item = (Range<usize>, &[u32])> {
        let first = self.segment_ends.partition_point(|&end| end <= rows.start);
        let mut start = rows.start;
        (first..self.segment_ends.len()).map_while(move |segment| {
            let end = self.segment_ends[segment].min(rows.end);
            let part = std::mem::replace(&mut start, end)..end;
            let width = self.codes.table_len();
            let table = &self.tables[segment * width..][..width];
            (!part.is_empty()).then_some((part, table))
        })
    }

    /// Replaces `cells` by the cell of each of `rows`.
    pub(super) fn gather(&self, rows: Range<usize>, cells: &mut Vec<u32>) {
        cells.clear();
        cells.reserve(rows.len());
        for (part, table) in self.parts(rows) {
            self.codes.gather(part, table, cells);
        }
    }

    /// Whether the tables for `rows` hold no null, so that no row is null. A null of a code that
    /// occurs only in other rows of a segment makes this false, too.
    pub(super) fn is_whole(&self, rows: Range<usize>) -> bool {
        self.parts(rows).all(|(_, table)| !table.contains(&Self::NO_CELL))
    }

    /// Appends the cell of each of `rows` as a little-endian u32. `pairs` is a buffer.
    pub(super) fn gather_bytes(
        &self,
        rows: Range<usize>,
        pairs: &mut Vec<u64>,
        into: &mut Vec<u8>,
    ) {
        for (part, table) in self.parts(rows) {
            self.codes.gather_bytes(part, table, pairs, into);
        }
    }

    /// Calls `each` with a cell, the first of its rows, and the number of its rows, for each code of
    /// each segment that occurs there. The first rows of one call after the other are ascending
    /// within a segment.
    fn each_code(&self, mut each: impl FnMut(u32, usize, usize)) {
        let mut seen = Vec::new();
        for (part, table) in self.parts(0..self.codes.len()) {
            let counts = self.codes.counts(part.clone());
            self.codes.first_rows(part, &mut seen, |row, code| {
                if table[code] != Self::NO_CELL {
                    each(table[code], row, counts[code].0);
                }
            });
        }
    }

    fn run_starts(&self) -> &RunStarts {
        self.run_starts.get_or_init(|| {
            let words = self.codes.len().div_ceil(WORD_ROWS);
            let (mut bits, mut before) = (Vec::with_capacity(words), Vec::with_capacity(words));
            let (mut count, mut cells, mut last) = (0_u32, Vec::new(), None);
            for word in 0..words {
                let start = word * WORD_ROWS;
                self.gather(start..self.codes.len().min(start + WORD_ROWS), &mut cells);
                let mut starts = u64::from(last != cells.first().copied());
                for (row, pair) in cells.windows(2).enumerate() {
                    starts |= u64::from(pair[0] != pair[1]) << (row + 1);
                }
                last = cells.last().copied();
                before.push(count);
                bits.push(starts);
                count += starts.count_ones();
            }
            RunStarts { bits, before }
        })
    }

    fn starts_run(&self, row: usize) -> bool {
        self.run_starts().bits[row / WORD_ROWS] >> (row % WORD_ROWS) & 1 == 1
    }

    /// The run that `row` is in.
    fn run_at(&self, row: usize) -> CellRun {
        let mut cells = Vec::new();
        self.gather(row..row + 1, &mut cells);
        let cell = cells.first().copied().filter(|&cell| cell != Self::NO_CELL);
        let bits = &self.run_starts().bits;
        let (mut word, bit) = ((row + 1) / WORD_ROWS, (row + 1) % WORD_ROWS);
        let mut starts = bits.get(word).map_or(0, |starts| starts & (u64::MAX << bit));
        while starts == 0 && word + 1 < bits.len() {
            word += 1;
            starts = bits[word];
        }
        let end = match starts {
            0 => self.codes.len(),
            _ => word * WORD_ROWS + starts.trailing_zeros() as usize,
        };
        CellRun { end: end as i32, cell }
    }

    /// Number of runs that start before `row`.
    fn runs_before(&self, row: usize) -> usize {
        let RunStarts { bits, before } = self.run_starts();
        let (word, bit) = (row / WORD_ROWS, row % WORD_ROWS);
        match bits.get(word) {
            Some(bits) => before[word] as usize + (bits & ((1 << bit) - 1)).count_ones() as usize,
            None => match (before.last(), bits.last()) {
                (Some(before), Some(bits)) => *before as usize + bits.count_ones() as usize,
                _ => 0,
            },
        }
    }

    /// Number of runs that touch `rows`.
    fn run_count(&self, rows: Range<usize>) -> usize {
        if rows.is_empty() {
            return 0;
        }
        // The first row continues a run or starts one.
        self.runs_before(rows.end) - self.runs_before(rows.start + 1) + 1
    }

    /// The runs that touch `rows`; the last one ends with `rows`.
    fn runs_within(&self, rows: Range<usize>) -> Vec<CellRun> {
        let mut runs = Vec::with_capacity(self.run_count(rows.clone()));
        let mut cells = Vec::new();
        self.gather(rows.clone(), &mut cells);
        let cell_of = |cell: u32| (cell != Self::NO_CELL).then_some(cell);
        let bits = &self.run_starts().bits;
        let mut start = rows.start;
        let (first, end) = ((rows.start + 1) / WORD_ROWS, rows.end.div_ceil(WORD_ROWS));
        for (word, &starts) in bits.iter().enumerate().take(end).skip(first) {
            let mut starts = starts;
            while starts != 0 {
                let row = word * WORD_ROWS + starts.trailing_zeros() as usize;
                starts &= starts - 1;
                if row <= rows.start {
                    continue;
                }
                if row >= rows.end {
                    break;
                }
                runs.push(CellRun { end: row as i32, cell: cell_of(cells[start - rows.start]) });
                start = row;
            }
        }
        if start < rows.end {
            let cell = cell_of(cells[start - rows.start]);
            runs.push(CellRun { end: rows.end as i32, cell });
        }
        runs
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::index::KeyColumn;

    /// The runs of cells by row.
    fn runs_of(cells: &[u32]) -> Vec<CellRun> {
        let mut runs: Vec<CellRun> = Vec::new();
        for (row, &cell) in cells.iter().enumerate() {
            let (end, cell) = (row as i32 + 1, (cell != CodedCells::NO_CELL).then_some(cell));
            match runs.last_mut() {
                Some(last) if last.cell == cell => last.end = end,
                _ => runs.push(CellRun { end, cell }),
            }
        }
        runs
    }

    proptest! {
        #[test]
        fn coded_rows_are_the_same_as_their_runs(
            key in proptest::collection::vec(proptest::option::weighted(0.9, 0..5_i64), 1..300),
            borders in proptest::collection::vec(1..300_usize, 0..5),
            tables in proptest::collection::vec(
                prop_oneof![4 => 0..3_u32, 1 => Just(CodedCells::NO_CELL)], 6 * 6),
            window in (0..300_usize, 0..300_usize),
        ) {
            let rows = key.len();
            let key: KeyColumn = key.into_iter().collect();
            let codes = key.codes().clone();
            let mut ends: Vec<usize> = borders.into_iter().filter(|&end| end < rows).collect();
            ends.push(rows);
            ends.sort_unstable();
            ends.dedup();
            let tables = tables[..ends.len() * codes.table_len()].to_vec();
            let coded = CodedCells::new(codes, ends, tables);
            let mut cells = Vec::new();
            coded.gather(0..rows, &mut cells);
            let (runs, coded) = (CellRows::from(runs_of(&cells)), CellRows::from(coded));
            prop_assert_eq!((runs.len(), runs.run_count()), (coded.len(), coded.run_count()));
            prop_assert_eq!(runs.rows_of_cells(3), coded.rows_of_cells(3));
            for row in 0..rows {
                prop_assert_eq!(runs.run_at(row), coded.run_at(row), "row {}", row);
            }
            for row in 1..=rows {
                prop_assert_eq!(runs.ends_run(row), coded.ends_run(row), "row {}", row);
            }
            let (from, until) = (window.0.min(rows), window.1.min(rows));
            for window in [0..rows, from.min(until)..from.max(until)] {
                let end = window.end as i32;
                let clipped = |runs: &CellRows| -> Vec<CellRun> {
                    let runs = runs.runs_within(window.clone());
                    runs.iter().map(|run| CellRun { end: run.end.min(end), ..*run }).collect()
                };
                prop_assert_eq!(clipped(&runs), clipped(&coded));
                let count = runs.run_count_within(window.clone());
                prop_assert_eq!(count, coded.run_count_within(window.clone()));
            }
        }
    }
}
