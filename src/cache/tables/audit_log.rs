//! The audit log: one line per answered table, and one per session that looked up by itself, to prove
//! later which version served which rows.
//!
//! Written at level info under [`TARGET`]; without a subscriber for it, it costs nothing:
//! `serve --log warn,iovcache::table=info`.

use std::time::Duration;

use serde::Serialize;

use crate::cache::memory::object::PinSet;
use crate::cache::versions::look_up_record::LookUpRecord;
use crate::object::ObjectInfo;
use crate::table::{Cell, ColumnPath, Content, Request, TableBody, When};

/// Target of the log lines.
pub const TARGET: &str = "iovcache::table";

/// A version, and the rows of a column that it served.
#[derive(Debug, Serialize)]
struct ServedRows<'a> {
    column: &'a str,
    path: &'a str,
    object_id: String,
    valid_from: i64,
    valid_until: i64,
    created: i64,
    size: u64,
    generation: u64,
    rows: u64,
    cache: &'static str,
}

impl<'a> ServedRows<'a> {
    fn new(column: &'a str, path: &'a str, cell: &Cell, version: &ObjectInfo, rows: u64) -> Self {
        Self {
            column,
            path,
            object_id: version.id.to_string(),
            valid_from: version.validity.from().as_millis(),
            valid_until: version.validity.until().as_millis(),
            created: version.created.as_millis(),
            size: cell.header.size,
            generation: cell.header.hint,
            rows,
            cache: cell.cache.name(),
        }
    }
}

/// The receiver of a table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Requester<'a> {
    pub(crate) timeframe: Option<u64>,
    pub(crate) consumer: Option<&'a str>,
    /// Whether the table is for a session.
    pub(crate) session: bool,
}

impl<'a> Requester<'a> {
    pub(crate) fn of(request: &'a Request) -> Self {
        let timeframe = match &request.when {
            When::Timeframe(timeframe) => Some(*timeframe),
            _ => None,
        };
        let consumer = request.consumer.as_deref();
        Self { timeframe, consumer, session: request.session.is_some() }
    }
}

/// Writes the line of a table.
pub(crate) fn record(
    rows: u64,
    pins: &PinSet,
    content: &Content,
    requester: &Requester<'_>,
    took: Duration,
) {
    if !tracing::enabled!(target: TARGET, tracing::Level::INFO) {
        return;
    }
    let versions = served(content);
    let bytes: u64 = pins.pins().iter().map(|pin| pin.payload().len() as u64).sum();
    let (first, last) = times(content);
    let Requester { timeframe, consumer, session } = *requester;
    tracing::info!(
        target: TARGET,
        timeframe,
        consumer,
        session,
        rows,
        first,
        last,
        objects = pins.pins().len() as u64,
        bytes,
        took_micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
        versions = %serde_json::to_string(&versions).unwrap_or_default(),
        "table"
    );
}

/// Writes the line of a session that is over, if it looked up anything by itself.
pub(crate) fn record_look_ups(consumer: &str, pid: i32, look_ups: u64, record: &LookUpRecord) {
    if !tracing::enabled!(target: TARGET, tracing::Level::INFO) {
        return;
    }
    let versions = record.versions();
    if look_ups == 0 && versions.is_empty() {
        return;
    }
    tracing::info!(
        target: TARGET,
        consumer,
        pid,
        look_ups,
        versions = %serde_json::to_string(&versions).unwrap_or_default(),
        unnamed = record.unnamed(),
        "look-ups"
    );
}

fn served(content: &Content) -> Vec<ServedRows<'_>> {
    let version = |cell: &Cell| content.objects.version(cell.object);
    match &content.body {
        TableBody::Rows { columns, .. } => columns
            .iter()
            .flat_map(|column| {
                let served = column.rows.rows_of_cells(column.cells.len());
                let rows = served.into_iter().map(|(_, rows)| rows.unsigned_abs());
                let of = |(cell, rows)| {
                    let version = version(cell);
                    let path = match &column.path {
                        ColumnPath::One(path) => path,
                        ColumnPath::ByRange(_) => &version.path,
                    };
                    ServedRows::new(&column.name, path.as_str(), cell, version, rows)
                };
                column.cells.iter().zip(rows).map(of).collect::<Vec<_>>()
            })
            .collect(),
        TableBody::Intervals(columns) => columns
            .iter()
            .flat_map(|column| {
                let of = |cell| {
                    ServedRows::new(&column.name, column.path.as_str(), cell, version(cell), 0)
                };
                column.cells.iter().map(of)
            })
            .collect(),
    }
}

/// The first and the last time in the table.
fn times(content: &Content) -> (Option<i64>, Option<i64>) {
    let mut all: Box<dyn Iterator<Item = i64>> = match &content.body {
        TableBody::Rows { timestamps, .. } => {
            Box::new(timestamps.runs().filter_map(|(_, at)| at).map(|at| at.as_millis()))
        }
        TableBody::Intervals(columns) => {
            let rows = columns.iter().flat_map(|column| &column.rows);
            Box::new(rows.flat_map(|row| {
                [row.interval.from().as_millis(), row.interval.until().as_millis() - 1]
            }))
        }
    };
    let Some(first) = all.next() else { return (None, None) };
    let (least, most) = all.fold((first, first), |(a, b), at| (a.min(at), b.max(at)));
    (Some(least), Some(most))
}
