//! What a table holds, before it gets its Arrow form: runs of cells.

use std::fmt;
use std::sync::Arc;

use super::column::ColumnPath;
use crate::index::{KeyColumn, Timestamps};
use crate::interval::ValidityInterval;
use crate::object::{ObjectId, ObjectInfo, ObjectPath};
use crate::shm::MetaHeader;

/// The objects that the cells of a table name by number, and who keeps them in place.
pub trait Objects: fmt::Debug + Send + Sync {
    /// The id of the version.
    fn id(&self, number: u32) -> ObjectId;

    /// Which version it is.
    fn version(&self, number: u32) -> &ObjectInfo;

    /// Its bytes.
    fn bytes(&self, number: u32) -> &[u8];

    /// Called for each frame that a client takes, so that a slow client that reads keeps its lease.
    fn note_reading(&self) {}
}

/// How an object came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheState {
    /// It was in shared memory.
    Hit,
    /// It was loaded for this table.
    Loaded,
    /// That it is the right one could not be confirmed by the source in time.
    Stale,
}

impl CacheState {
    /// As it stands in the objects view.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Loaded => "loaded",
            Self::Stale => "stale",
        }
    }
}

/// One distinct object of a column.
#[derive(Debug, Clone, Copy)]
pub struct Cell {
    /// Where it lies.
    pub header: MetaHeader,
    /// Its number among the table's [`Objects`].
    pub object: u32,
    /// How it came.
    pub cache: CacheState,
}

/// Rows that one cell serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CellRun {
    /// The row behind the last one; the first is the end of the run before.
    pub end: i32,
    /// A place among the column's cells; `None`: null.
    pub cell: Option<u32>,
}

/// A column of a table.
#[derive(Debug, Clone)]
pub struct Column {
    /// Its name.
    pub name: Arc<str>,
    /// Whose objects.
    pub path: ColumnPath,
    /// They tile the rows, and neighbours differ.
    pub runs: Arc<[CellRun]>,
    /// The distinct objects.
    pub cells: Vec<Cell>,
    /// The key on which it depends.
    pub key: Option<KeyColumn>,
}

impl Column {
    /// The places of the runs that touch the rows from `from` to before `until`.
    pub(super) fn runs_within(&self, from: i32, until: i32) -> std::ops::Range<usize> {
        let first = self.runs.partition_point(|run| run.end <= from);
        let last = first + self.runs[first..].partition_point(|run| run.end < until);
        if from < until { first..last + 1 } else { first..first }
    }
}

/// A piece of time that one object serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IntervalRow {
    /// The piece.
    pub interval: ValidityInterval,
    /// A place among the column's cells.
    pub cell: u32,
}

/// The effective spans of a column over a range.
#[derive(Debug, Clone)]
pub struct IntervalColumn {
    /// Its name.
    pub name: Arc<str>,
    /// Whose objects.
    pub path: ObjectPath,
    /// In order; where nothing is valid there is none.
    pub rows: Vec<IntervalRow>,
    /// The distinct objects.
    pub cells: Vec<Cell>,
}

/// What a table holds.
#[derive(Debug, Clone)]
pub struct Content {
    /// What stands in it.
    pub shown: TableBody,
    /// What its cells name.
    pub objects: Arc<dyn Objects>,
}

/// What stands in a table.
#[derive(Debug, Clone)]
pub enum TableBody {
    /// A cell for each timestamp; of the views rows, objects and chunks.
    Rows {
        /// The columns, as they were asked for.
        columns: Arc<Vec<Column>>,
        /// One per row.
        timestamps: Arc<Timestamps>,
    },
    /// Of the view intervals: the columns, as they were asked for.
    Intervals(Arc<Vec<IntervalColumn>>),
}
