//! Content of a table before it is encoded as Arrow: runs of cells.

use std::fmt;
use std::sync::Arc;

use super::cell_rows::CellRows;
use super::column::ColumnPath;
use super::served_digest::ServedDigest;
use crate::index::{KeyColumn, Timestamps};
use crate::interval::ValidityInterval;
use crate::object::{ObjectId, ObjectInfo, ObjectPath};
use crate::shm::MetaHeader;

/// The objects that the cells of a table refer to by number. An implementation keeps them in place.
pub trait Objects: fmt::Debug + Send + Sync {
    /// Id of the version.
    fn id(&self, number: u32) -> ObjectId;

    /// Description of the version.
    fn version(&self, number: u32) -> &ObjectInfo;

    /// Payload of the object.
    fn bytes(&self, number: u32) -> &[u8];

    /// Called for each frame that a client takes, so that a slow client that reads keeps its lease.
    fn note_reading(&self) {}
}

/// Where an object came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheState {
    /// It was in shared memory.
    Hit,
    /// It was loaded for this table.
    Loaded,
    /// The source could not confirm in time that it is the valid version.
    Stale,
}

impl CacheState {
    /// Name in the objects view.
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
    /// Location of the object.
    pub header: MetaHeader,
    /// Number of the object in the table's [`Objects`].
    pub object: u32,
    /// Where it came from.
    pub cache: CacheState,
}

/// A column of a table.
#[derive(Debug, Clone)]
pub struct Column {
    /// Name of the column.
    pub name: Arc<str>,
    /// Path or paths of its objects.
    pub path: ColumnPath,
    /// The cell of each row.
    pub rows: CellRows,
    /// The distinct objects of the column.
    pub cells: Vec<Cell>,
    /// The key on which it depends.
    pub key: Option<KeyColumn>,
}

/// A span of time that one object serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IntervalRow {
    /// The span.
    pub interval: ValidityInterval,
    /// Index into the column's cells.
    pub cell: u32,
}

/// Effective spans of a column over a range.
#[derive(Debug, Clone)]
pub struct IntervalColumn {
    /// Name of the column.
    pub name: Arc<str>,
    /// Path of its objects.
    pub path: ObjectPath,
    /// Spans in ascending order. Where no object is valid there is no span.
    pub rows: Vec<IntervalRow>,
    /// The distinct objects of the column.
    pub cells: Vec<Cell>,
}

/// Content of a table.
#[derive(Debug, Clone)]
pub struct Content {
    /// Rows or spans.
    pub body: TableBody,
    /// The objects that the cells refer to.
    pub objects: Arc<dyn Objects>,
}

/// Rows or spans of a table.
#[derive(Debug, Clone)]
pub enum TableBody {
    /// One cell per timestamp and column: the views rows, objects, distinct and chunks.
    Rows {
        /// The columns, as requested.
        columns: Arc<Vec<Column>>,
        /// One timestamp per row.
        timestamps: Arc<Timestamps>,
    },
    /// The columns of the view intervals, as requested.
    Intervals(Arc<Vec<IntervalColumn>>),
}

impl Content {
    /// Digest of which versions serve which rows. Spans name their versions themselves, and have no
    /// part in it.
    pub(crate) fn served_digest(&self) -> String {
        let mut digest = ServedDigest::default();
        let TableBody::Rows { columns, .. } = &self.body else { return digest.finish() };
        for column in columns.iter() {
            let mut start = 0;
            for run in column.rows.runs_within(0..column.rows.len()).iter() {
                let rows = start..run.end as usize;
                start = rows.end;
                if let Some(cell) = run.cell {
                    let object = column.cells[cell as usize].object;
                    digest.add(&column.name, rows, self.objects.id(object));
                }
            }
        }
        digest.finish()
    }
}
