//! Join of timestamps in the client: the service sends the effective spans, and the client makes
//! the rows. A million timestamps need not be sent.
//!
//! ```text
//!  Timestamps ──from, until, gap──▶ service ──spans, pinned──▶ join ──▶ Table
//!      └────────────────────────────────────────────────────────┘
//! ```
//!
//! Only for requests where the spans load no more objects than the rows need: each span must hold a
//! timestamp. If two neighbouring timestamps are at most `gap` apart, each span of at least that
//! length holds one. So the request contains the gap, and the service refuses it if there are
//! shorter spans.

use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_schema::{Schema, SchemaRef};

use super::cells::Cells;
use super::error::ClientError;
use crate::index::Timestamps;
use crate::table::{
    CellKind, ColumnPath, ColumnRequest, ColumnSpans, Encoding, Missing, SHORT_SPAN, TableLayout,
    TableMetadata, TableRequest, Times, View,
};

/// Smaller numbers of timestamps are sent: they are smaller than spans, which are larger than
/// cells.
const MIN_ROWS: usize = 20_000;

/// A request whose rows the client makes.
#[derive(Debug)]
pub(super) struct LocalJoin {
    timestamps: Arc<Timestamps>,
    columns: Vec<(Arc<str>, ColumnPath)>,
    nullable: bool,
    /// The request for the spans.
    pub(super) request: TableRequest,
}

/// Rows of a table, made by the client.
#[derive(Debug)]
pub(super) struct JoinedRows {
    pub(super) schema: SchemaRef,
    pub(super) columns: Vec<Cells>,
    pub(super) rows: usize,
    /// Whether no object is valid at some timestamps.
    pub(super) gaps: bool,
}

impl LocalJoin {
    /// The request for the spans of `request`; `None` if the client cannot make its rows.
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
        // A column with a key is not a step function of time alone.
        let column = |column: &ColumnRequest| {
            let path = column.plain_path()?;
            Some((Arc::clone(&column.name), ColumnPath::One(path.clone())))
        };
        let columns = fields.columns.as_ref()?.0.iter().map(column);
        let columns = columns.collect::<Option<Vec<_>>>()?;
        let (first, last) = timestamps.bounds()?;
        let gap = i64::try_from(timestamps.gap()).ok()?;
        // No object is valid in the very last millisecond; the service answers requests for it.
        let until = last.checked_add(1).filter(|_| last < i64::MAX - 1)?;
        let nullable = timestamps.has_nulls() || fields.missing == Some(Missing::Null);
        let timestamps = Arc::clone(timestamps);
        let request = request.clone().spans_of(first, until, gap.max(1));
        Some(Self { timestamps, columns, nullable, request })
    }

    /// Whether an error means that the timestamps must be sent.
    pub(super) fn is_refused(error: &ClientError) -> bool {
        matches!(error, ClientError::Service { code, .. } if *code == SHORT_SPAN)
    }

    /// Makes the rows from the answer of the service.
    ///
    /// # Errors
    /// [`ClientError`] if the answer violates the protocol.
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
            meta: TableMetadata::default(),
        };
        let fields = shape.schema().fields().clone();
        let schema = Arc::new(Schema::new_with_metadata(fields, schema.metadata.clone()));
        Ok(JoinedRows { schema, columns, rows: self.timestamps.len(), gaps })
    }
}
