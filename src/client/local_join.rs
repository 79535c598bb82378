//! Timestamps that stay with the client: the service tells the effective spans, and the rows are made
//! here. A million of them need not travel.
//!
//! ```text
//!  Timestamps ──from, until, gap──▶ service ──spans, pinned──▶ join ──▶ Table
//!      └────────────────────────────────────────────────────────┘
//! ```
//!
//! Only where it loads nothing more than the rows need: each span must hold a timestamp. Where two
//! neighbouring timestamps are never farther apart than `gap`, each span of that length holds one, so
//! the service is told the gap, and refuses if it has shorter ones.

use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_schema::{Schema, SchemaRef};
use serde_json::{Value, json};

use super::cells::Cells;
use super::error::ClientError;
use super::request::TableRequest;
use crate::index::Timestamps;
use crate::object::ObjectPath;
use crate::table::{
    CellKind, ColumnPath, ColumnSpans, Encoding, Meta, SHORT_SPAN, TableLayout, View,
};

/// Fewer timestamps than this are sent along: that costs less than spans, which are larger than cells.
const MIN_ROWS: usize = 20_000;

/// A request whose rows are made here.
#[derive(Debug)]
pub(super) struct LocalJoin {
    timestamps: Arc<Timestamps>,
    columns: Vec<(Arc<str>, ColumnPath)>,
    nullable: bool,
    /// What the service is asked for.
    pub(super) request: TableRequest,
}

/// The rows of a table that were made here.
#[derive(Debug)]
pub(super) struct JoinedRows {
    pub(super) schema: SchemaRef,
    pub(super) columns: Vec<Cells>,
    pub(super) rows: usize,
    /// Whether nothing is valid at some timestamps.
    pub(super) gaps: bool,
}

impl LocalJoin {
    /// The request for the spans, where `request` is one whose rows can be made here.
    pub(super) fn of(request: &TableRequest) -> Option<Self> {
        let timestamps = request.held().filter(|at| at.len() >= MIN_ROWS)?;
        let is = |field, wanted: &str| request.get(field).is_none_or(|value| value == wanted);
        let plain = is("view", "rows") && is("encoding", "run_end") && is("cell", "binary");
        let others = ["table", "timeframe", "range", "keys"];
        if !plain
            || request.get("timestamps_column").is_some_and(|value| value != false)
            || others.iter().any(|field| request.get(field).is_some())
        {
            return None;
        }
        let columns = request.columns().iter().map(|(name, column)| {
            // What depends on a key is no step function of time.
            if column.get("key").is_some() {
                return None;
            }
            let path = column.as_str().or_else(|| column.get("path")?.as_str())?;
            Some((name.as_str().into(), ColumnPath::One(ObjectPath::new(path).ok()?)))
        });
        let columns = columns.collect::<Option<Vec<_>>>()?;
        let (first, last) = timestamps.bounds()?;
        let gap = i64::try_from(timestamps.gap()).ok()?;
        // Nothing is valid in the very last millisecond: who asks for that is told by the service.
        let until = last.checked_add(1).filter(|_| last < i64::MAX - 1)?;
        let range = json!({"from": first, "until": until, "gap": gap.max(1)});
        let nullable =
            timestamps.has_nulls() || request.get("missing") == Some(&Value::from("null"));
        let timestamps = Arc::clone(timestamps);
        let request = request.clone().spans_of(range);
        Some(Self { timestamps, columns, nullable, request })
    }

    /// Whether an error says that the timestamps themselves have to be asked for.
    pub(super) fn is_refused(error: &ClientError) -> bool {
        matches!(error, ClientError::Service { code, .. } if *code == SHORT_SPAN)
    }

    /// Makes the rows.
    ///
    /// # Errors
    /// [`ClientError`] if the answer is not what the protocol says.
    pub(super) fn join(
        self,
        schema: &Schema,
        batches: &[RecordBatch],
    ) -> Result<JoinedRows, ClientError> {
        let names: Vec<&str> = self.columns.iter().map(|(name, _)| &**name).collect();
        let spans = ColumnSpans::of_batches(&names, batches)?;
        let mut gaps = false;
        let columns = names.iter().zip(&spans).map(|(name, spans)| {
            let joined = spans.join(&self.timestamps);
            gaps |= joined.gaps;
            Cells { name: (*name).to_owned(), runs: joined.runs }
        });
        let columns = columns.collect();
        let shape = TableLayout {
            view: View::Rows,
            encoding: Encoding::RunEnd,
            cell: CellKind::Binary,
            timestamps_column: false,
            null_timestamps: self.timestamps.has_nulls(),
            nullable: self.nullable || gaps,
            optional: Vec::new(),
            columns: self.columns,
            keyed: false,
            meta: Meta::default(),
        };
        let fields = shape.schema().fields().clone();
        let schema = Arc::new(Schema::new_with_metadata(fields, schema.metadata.clone()));
        Ok(JoinedRows { schema, columns, rows: self.timestamps.len(), gaps })
    }
}
