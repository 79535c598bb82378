//! Consecutive rows, and the earlier ones that can be in effect among them.

use std::sync::Arc;

use super::row::Row;
use crate::object::ObjectInfo;
use crate::source::repository::carry::Carry;

/// Maximum number of rows of a chunk before it is split. Rows with the same `from` stay together.
pub(super) const CHUNK_ROWS: usize = 1024;

/// Consecutive rows of a table.
#[derive(Debug, Default)]
pub(super) struct Chunk {
    /// In order of (from, id); never empty.
    pub(super) rows: Vec<Row>,
    /// No row was created later (ms).
    pub(super) created_until: i64,
    /// Rows of earlier chunks that can be in effect here; `None`: derived from earlier chunks.
    pub(super) carry: Option<Carry>,
    /// The versions that decide here, for queries without conditions.
    pub(super) versions: Option<Arc<[Arc<ObjectInfo>]>>,
}

impl Chunk {
    pub(super) fn new(rows: Vec<Row>) -> Self {
        let created_until = latest_creation(&rows);
        Self { rows, created_until, carry: None, versions: None }
    }

    pub(super) fn start(&self) -> i64 {
        self.rows.first().map_or(i64::MIN, |row| row.from)
    }

    #[cfg(test)]
    pub(super) fn carry_bytes(&self) -> usize {
        self.carry
            .as_ref()
            .map_or(0, |carry| carry.len() * size_of::<crate::source::repository::carry::Carried>())
    }
}

/// The latest creation time of some rows (ms).
pub(super) fn latest_creation(rows: &[Row]) -> i64 {
    rows.iter().map(|row| row.created).max().unwrap_or(i64::MIN)
}
