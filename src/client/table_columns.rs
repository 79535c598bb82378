//! The columns of a table: decoded when they come from the service, or on first use where they lie in
//! shared memory.

use super::cells::Cells;
use super::error::ClientError;
use super::timeframe_columns::TimeframeColumns;
use crate::shm::PinnedTimeframe;

/// The columns of a table.
#[derive(Debug)]
pub(super) enum TableColumns {
    Decoded(Vec<Cells>),
    OfTimeframe(TimeframeColumns),
}

impl TableColumns {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Decoded(columns) => columns.len(),
            Self::OfTimeframe(columns) => columns.len(),
        }
    }

    /// Number of the first column with this name.
    pub(super) fn position(&self, name: &str) -> Option<usize> {
        match self {
            Self::Decoded(columns) => columns.iter().position(|column| column.name == name),
            Self::OfTimeframe(columns) => columns.position(name),
        }
    }

    /// Name of a column.
    pub(super) fn name(&self, number: usize) -> &str {
        match self {
            Self::Decoded(columns) => &columns[number].name,
            Self::OfTimeframe(columns) => columns.name(number),
        }
    }

    /// The cells of a column of a table of `rows` rows.
    ///
    /// # Errors
    /// [`ClientError::ForkedProcess`] in a forked child, [`ClientError::Answer`].
    pub(super) fn get(
        &self,
        number: usize,
        pinned: Option<&PinnedTimeframe>,
        rows: usize,
    ) -> Result<&Cells, ClientError> {
        match self {
            Self::Decoded(columns) => Ok(&columns[number]),
            Self::OfTimeframe(columns) => columns.get(number, pinned, rows),
        }
    }

    /// The columns that were decoded when they came.
    pub(super) fn decoded(&self) -> &[Cells] {
        match self {
            Self::Decoded(columns) => columns,
            Self::OfTimeframe(_) => &[],
        }
    }
}
