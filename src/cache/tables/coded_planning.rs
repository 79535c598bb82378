//! The plan of a keyed column by codes of its key instead of runs of rows.
//!
//! ```text
//!  SlotSegments: rows × look-up ─▶ slot  ┐
//!  codes of the key: row ─▶ value        ├─▶ per segment, the cell of each value that occurs in it
//!  choices: value ─▶ look-up             ┘
//! ```
//!
//! The cost follows the segments and the values of the key; of the rows only the first ones of each
//! segment are read, until each value was found. Only cells that occur are planned, in the order of
//! their first rows, so the plan is that of the runs.

use super::planning::{KeyedPlan, MissingRows, Planning};
use crate::cache::error::CacheError;
use crate::index::{RowChoices, RowCodes, Slot, SlotSegments, ValueChoices};
use crate::source::in_place;
use crate::table::{CellRows, CellRun, CodedCells};

/// Rows are coded if the runs of their key have fewer rows than this on average.
const SHORT_RUN_ROWS: usize = 16;
/// Maximum number of entries of all tables of a column.
const MAX_TABLE_ENTRIES: usize = 1 << 18;
/// Maximum number of entries of all tables, in rows per entry.
const ROWS_PER_ENTRY: usize = 2;
/// From this number of rows on, the pass over them does not block other tasks of the thread.
const MANY_ROWS: usize = 1 << 16;
/// Number of rows read that counts as one step of work.
const ROWS_PER_STEP: usize = 8;

/// The key and segments of a column whose rows are coded.
struct CodedColumn<'a> {
    choices: &'a ValueChoices,
    codes: &'a RowCodes,
    segments: SlotSegments,
}

impl CodedColumn<'_> {
    /// The rows of a segment.
    fn rows_of(&self, segment: usize) -> std::ops::Range<usize> {
        let start = segment.checked_sub(1).map_or(0, |before| self.segments.ends[before]);
        start..self.segments.ends[segment]
    }

    /// The look-up of a code, and its slot in a segment.
    fn slot(&self, segment: usize, code: usize) -> (u32, Slot) {
        if code == self.codes.null() {
            return (RowChoices::NULL, Slot::Null);
        }
        let choice = self.choices.choice(code);
        let slots = self.segments.slots_of(segment);
        (choice, slots.get(choice as usize).copied().unwrap_or(Slot::Absent))
    }
}

impl Planning {
    /// The cells of a column whose key changes often; `None` if runs fit it better, or if its rows
    /// are not in the order of their timestamps.
    ///
    /// # Errors
    /// [`CacheError::Budget`]
    pub(super) async fn coded_cells(
        &mut self,
        plan: &mut KeyedPlan<'_>,
    ) -> Result<Option<CellRows>, CacheError> {
        self.runs.clear();
        let keyed = plan.keyed;
        let Some(choices) = keyed.look_ups.rows.by_key_value() else { return Ok(None) };
        let Some(segments) = self.segments_of(plan, choices).await else { return Ok(None) };
        self.charge_codes(&choices.key)?;
        let codes = match choices.key.len() {
            0..MANY_ROWS => choices.key.codes(),
            _ => in_place(|| choices.key.codes()),
        };
        let count = segments.ends.len();
        let bytes = CodedCells::bytes_of(codes, count) as u64;
        self.row_bytes += bytes;
        self.pay()?;
        let column = CodedColumn { choices, codes, segments };
        let (mut tables, mut seen) = (vec![0; count * codes.table_len()], Vec::new());
        // By segment, the cell of all of its rows, if they have the same.
        let mut only: Vec<Option<u32>> = Vec::with_capacity(count);
        for (segment, table) in tables.chunks_exact_mut(codes.table_len()).enumerate() {
            let (cell, work) = self.segment_cells(plan, &column, segment, table, &mut seen);
            only.push(cell);
            self.pay()?;
            self.turns.take(work).await;
        }
        // Where the key decides nothing, runs are smaller.
        if let Some(only) = only.into_iter().collect::<Option<Vec<u32>>>() {
            let runs = runs_of(&column.segments.ends, &only);
            self.row_bytes = self.row_bytes - bytes + runs.memory_bytes() as u64;
            return Ok(Some(runs));
        }
        Ok(Some(CodedCells::new(codes.clone(), column.segments.ends, tables).into()))
    }

    /// The segments of a column, if its rows are to be coded.
    async fn segments_of(
        &mut self,
        plan: &KeyedPlan<'_>,
        choices: &ValueChoices,
    ) -> Option<SlotSegments> {
        let times = &plan.keyed.look_ups.times;
        let (key, rows) = (&choices.key, times.len());
        if key.run_count() * SHORT_RUN_ROWS <= rows {
            return None;
        }
        let max_entries = (rows / ROWS_PER_ENTRY).min(MAX_TABLE_ENTRIES);
        let segments = SlotSegments::new(plan.sources, times, max_entries)?;
        let count = segments.ends.len();
        self.turns.take(count * plan.sources.len() / ROWS_PER_STEP).await;
        (count * (key.ids().len() + 1) <= max_entries).then_some(segments)
    }

    /// Fills the table of a segment. Returns the cell of all of its rows, if they have the same, and
    /// the steps of work.
    fn segment_cells(
        &mut self,
        plan: &mut KeyedPlan<'_>,
        column: &CodedColumn<'_>,
        segment: usize,
        table: &mut [u32],
        seen: &mut Vec<bool>,
    ) -> (Option<u32>, usize) {
        let rows = column.rows_of(segment);
        let (mut first, mut is_only, mut absent) = (None, true, Vec::new());
        let read = column.codes.first_rows(rows.clone(), seen, |row, code| {
            let (choice, slot) = column.slot(segment, code);
            let cell = match slot {
                Slot::Version(index) => self.cell_of(plan, choice, index),
                Slot::Null => CodedCells::NO_CELL,
                Slot::Absent | Slot::Unknown => {
                    absent.push((row, code, choice));
                    CodedCells::NO_CELL
                }
            };
            table[code] = cell;
            is_only &= *first.get_or_insert(cell) == cell;
        });
        let only = first.filter(|_| is_only);
        if absent.is_empty() {
            return (only, 1 + read / ROWS_PER_STEP);
        }
        let counts = column.codes.counts(rows.clone());
        for (first, code, choice) in absent {
            let (rows, last) = counts[code];
            plan.add_missing(choice, MissingRows { first, last, rows });
        }
        (only, 1 + (read + rows.len()) / ROWS_PER_STEP)
    }
}

/// The runs of segments with one cell each.
fn runs_of(ends: &[usize], cells: &[u32]) -> CellRows {
    let mut runs: Vec<CellRun> = Vec::new();
    for (&end, &cell) in ends.iter().zip(cells) {
        let end = i32::try_from(end).unwrap_or(i32::MAX);
        let cell = (cell != CodedCells::NO_CELL).then_some(cell);
        match runs.last_mut() {
            Some(last) if last.cell == cell => last.end = end,
            _ => runs.push(CellRun { end, cell }),
        }
    }
    runs.into()
}
