//! Requests that shared memory can answer: which fields they may have.

use std::sync::Arc;

use crate::index::Timestamps;
use crate::table::{
    CellKind, ColumnRequest, Encoding, Missing, RequestMessage, TableRequest, Times, View,
};

/// The fields that may be given in a request that shared memory answers. All others are left out, or
/// ask for the form of its tables: rows of run-end encoded MetaHeaders.
#[derive(Debug, Clone, Copy)]
pub(super) struct PlaneFields<'a> {
    pub(super) columns: Option<&'a [ColumnRequest]>,
    pub(super) timeframe: Option<u64>,
    pub(super) timestamps: Option<&'a Arc<Timestamps>>,
    pub(super) consumer: Option<&'a str>,
    pub(super) missing: Option<Missing>,
}

impl<'a> PlaneFields<'a> {
    /// `None`: the service must be asked, even if all objects are in memory.
    pub(super) fn of(request: &'a TableRequest) -> Option<Self> {
        // Every field is named here: a new one must be considered.
        let RequestMessage {
            columns,
            table: None,
            timeframe,
            timestamps,
            keys: None,
            range: None,
            consumer,
            session: None,
            encoding: None | Some(Encoding::RunEnd),
            cell: None | Some(CellKind::Binary),
            view: None | Some(View::Rows),
            missing,
            timestamps_column: None | Some(false),
            schema_metadata: None,
            not_after: None,
            not_before: None,
            lock: None,
            wait_ms: _,
        } = request.checked().ok()?
        else {
            return None;
        };
        Some(Self {
            columns: columns.as_ref().map(|columns| &columns.0[..]),
            timeframe: *timeframe,
            timestamps: timestamps.as_ref().map(|Times(timestamps)| timestamps),
            consumer: consumer.as_deref(),
            missing: *missing,
        })
    }
}
