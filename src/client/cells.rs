//! The cells of one column, as runs.

use crate::table::ColumnRuns;

/// The runs of one column.
#[derive(Debug)]
pub(super) struct Cells {
    pub(super) name: String,
    pub(super) runs: ColumnRuns,
}
