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

use super::cells::Cells;
use super::error::ClientError;
use crate::index::Timestamps;
use crate::table::{
    CellKind, ColumnPath, ColumnRequest, ColumnSpans, Encoding, Meta, Missing, SHORT_SPAN,
    TableLayout, TableRequest, Times, View,
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
        let fields = request.checked().ok()?;
        let Times(timestamps) = fields.timestamps.as_ref()?;
        let is_plain = fields.view.is_none_or(|view| view == View::Rows)
            && fields.encoding.is_none_or(|encoding| encoding == Encoding::RunEnd)
            && fields.cell.is_none_or(|cell| cell == CellKind::Binary)
            && fields.timestamps_column != Some(true)
            && fields.keys.is_none()
            && fields.table.is_none()
            && fields.timeframe.is_none()
            && fields.range.is_none();
        if !is_plain || timestamps.len() < MIN_ROWS {
            return None;
        }
        // A column that depends on a key is no step function of time.
        let column = |column: &ColumnRequest| {
            let path = column.plain_path()?;
            Some((Arc::clone(&column.name), ColumnPath::One(path.clone())))
        };
        let columns = fields.columns.as_ref()?.0.iter().map(column);
        let columns = columns.collect::<Option<Vec<_>>>()?;
        let (first, last) = timestamps.bounds()?;
        let gap = i64::try_from(timestamps.gap()).ok()?;
        // Nothing is valid in the very last millisecond. The service reports that as an error.
        let until = last.checked_add(1).filter(|_| last < i64::MAX - 1)?;
        let nullable = timestamps.has_nulls() || fields.missing == Some(Missing::Null);
        let timestamps = Arc::clone(timestamps);
        let request = request.clone().spans_of(first, until, gap.max(1));
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
