//! Cells of one column, as runs.

use crate::table::ColumnRuns;

/// A column of a table: its name and its runs of cells.
#[derive(Debug)]
pub(super) struct Cells {
    pub(super) name: String,
    pub(super) runs: ColumnRuns,
}
