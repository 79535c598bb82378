//! Join of a column with several look-ups, where a key chooses one of them for each row.
//!
//! ```text
//!  key column ──▶ RowChoices: rows 0..7 look-up 0, 7..9 look-up 1, 9..12 none (null key)
//!                     × a Timeline per look-up × Timestamps ──▶ runs: rows, look-up, version
//! ```
//!
//! The cost grows with the runs of the key, and within each run with the runs of the join. Each
//! look-up remembers the step of its last row, so interleaved keys cost one comparison per run.

mod choice_join;
mod row_choices;
#[cfg(test)]
mod tests;

pub(crate) use choice_join::{ChoicePieces, ChoiceSource};
pub(crate) use row_choices::{RowChoices, RowRanges, ValueChoices};
