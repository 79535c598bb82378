//! Columns with their known timelines.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::key_look_ups::KeyedTimelines;
use crate::cache::versions::catalog::KnownTimeline;
use crate::object::ObjectPath;
use crate::table::{ColumnPath, ColumnRequest, KeyUse};

/// A column with the timelines that serve it.
#[derive(Debug)]
pub(crate) struct KnownColumn {
    pub(crate) request: ColumnRequest,
    pub(crate) timelines: ColumnTimelines,
}

/// A path of a column, with its known timeline over a range.
#[derive(Debug)]
pub(crate) struct RangeTimeline {
    /// The name of the column.
    pub(crate) name: Arc<str>,
    pub(crate) path: ObjectPath,
    pub(crate) known: KnownTimeline,
}

/// The timelines that serve a column.
#[derive(Debug, Clone)]
pub(crate) enum ColumnTimelines {
    Plain(KnownTimeline),
    Keyed(Arc<KeyedTimelines>),
}

/// The query of a column; equal for columns that ask for the same versions.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct QueryOfColumn<'a> {
    path: &'a ColumnPath,
    metadata: &'a BTreeMap<String, String>,
    key: Option<&'a KeyUse>,
}

impl<'a> QueryOfColumn<'a> {
    pub(crate) fn new(column: &'a ColumnRequest) -> Self {
        Self { path: &column.path, metadata: &column.metadata, key: column.key.as_ref() }
    }
}
