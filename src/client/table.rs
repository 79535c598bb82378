//! A table that a client got: its cells borrow from it.

use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use arrow_array::RecordBatch;
use arrow_schema::{Schema, SchemaRef};
use tokio::sync::mpsc;

use super::error::ClientError;
use super::held::Joined;
use crate::shm::attach::Attachment;
use crate::shm::{AHEAD, Mappings, MetaHeader};
use crate::table::{CellValue, ColumnRuns, run_end_batch};

/// A table and the objects of its cells, which stay where they are as long as it lives.
#[derive(Debug)]
pub struct Table {
    schema: SchemaRef,
    /// Of a table whose rows were made here: made when they are asked for.
    batches: OnceLock<Vec<RecordBatch>>,
    rows: usize,
    columns: Vec<Cells>,
    mappings: Arc<Mappings>,
    /// Keeps the session, and with it the lease.
    attachment: Option<Arc<Attachment>>,
    lease: Mutex<Option<String>>,
    releases: mpsc::UnboundedSender<String>,
}

/// The runs of one column.
#[derive(Debug)]
pub(super) struct Cells {
    pub(super) name: String,
    pub(super) runs: ColumnRuns,
}

/// What keeps a table's objects.
#[derive(Debug)]
pub(super) struct Kept {
    /// Keeps the session, and with it the lease.
    pub(super) attachment: Option<Arc<Attachment>>,
    pub(super) lease: Option<String>,
    pub(super) releases: mpsc::UnboundedSender<String>,
}

impl Table {
    pub(super) fn new(
        schema: &SchemaRef,
        batches: Vec<RecordBatch>,
        kept: Kept,
    ) -> Result<Self, ClientError> {
        let mut columns = Vec::new();
        for (place, field) in schema.fields().iter().enumerate() {
            // The timestamps stand beside the objects, and are no cells.
            if !field.metadata().contains_key("url") {
                continue;
            }
            let mut runs = ColumnRuns::default();
            batches.iter().try_for_each(|batch| runs.extend(batch.column(place)))?;
            columns.push(Cells { name: field.name().clone(), runs });
        }
        let rows = batches.iter().map(RecordBatch::num_rows).sum();
        let schema = Arc::clone(schema);
        Ok(Self::of_parts(schema, OnceLock::from(batches), rows, columns, kept))
    }

    /// A table whose rows were made here.
    pub(super) fn joined(joined: Joined, kept: Kept) -> Self {
        let Joined { schema, columns, rows, .. } = joined;
        Self::of_parts(schema, OnceLock::new(), rows, columns, kept)
    }

    fn of_parts(
        schema: SchemaRef,
        batches: OnceLock<Vec<RecordBatch>>,
        rows: usize,
        columns: Vec<Cells>,
        kept: Kept,
    ) -> Self {
        let Kept { attachment, lease, releases } = kept;
        let lease = Mutex::new(lease);
        let mappings = attachment.as_ref().map(|one| one.mappings()).unwrap_or_default();
        Self { schema, batches, rows, columns, mappings, attachment, lease, releases }
    }

    /// Waits until every cell lies in a mapping, as far as they come: for a segment that is not
    /// mapped yet, on a blocking thread.
    pub(super) async fn mapped(mut self) -> Self {
        let Some(attachment) = self.attachment.clone() else { return self };
        let mut lacking: Vec<MetaHeader> = Vec::new();
        for (_, cell) in self.columns.iter().flat_map(|column| column.runs.iter()) {
            if let CellValue::Header(header) = cell
                && !self.mappings.knows(&header)
            {
                lacking.push(header);
            }
        }
        if lacking.is_empty() {
            return self;
        }
        let wait = move || {
            let mut mappings = attachment.mappings();
            for header in lacking {
                if !mappings.knows(&header) {
                    mappings = attachment.mappings_for(&header);
                }
            }
            mappings
        };
        // It fails only if the runtime goes down: then nothing resolves, and that is said.
        if let Ok(mappings) = tokio::task::spawn_blocking(wait).await {
            self.mappings = mappings;
        }
        self
    }

    /// How many rows it has.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Its schema, as it came.
    pub fn schema(&self) -> &Schema {
        &self.schema
    }

    /// Its batches, as they came; or one of all rows, where these were made here.
    pub fn batches(&self) -> &[RecordBatch] {
        self.batches.get_or_init(|| {
            let runs: Vec<_> = self.columns.iter().map(|column| &column.runs).collect();
            // Its schema was made for these very columns: it is one batch.
            run_end_batch(&self.schema, &runs, self.rows).into_iter().collect()
        })
    }

    /// What keeps its objects.
    pub fn lease(&self) -> Option<String> {
        self.lease.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The names of its columns.
    pub fn columns(&self) -> impl Iterator<Item = &str> {
        self.columns.iter().map(|column| column.name.as_str())
    }

    /// One of its columns.
    ///
    /// # Errors
    /// [`ClientError::NoSuchColumn`].
    pub fn column(&self, name: &str) -> Result<Column<'_>, ClientError> {
        match self.columns.iter().find(|column| column.name == name) {
            Some(cells) => Ok(Column { table: self, cells }),
            None => Err(ClientError::NoSuchColumn {
                name: name.to_owned(),
                known: self.columns().map(str::to_owned).collect(),
            }),
        }
    }

    /// The lease, to be released by who takes it.
    pub(super) fn take_lease(&self) -> Option<String> {
        self.lease.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// The lease is not needed any more.
    pub(super) fn let_go(&self) {
        if let Some(lease) = self.take_lease() {
            // If nobody listens, the connection is gone, and the lease with it.
            let _ = self.releases.send(lease);
        }
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        self.let_go();
    }
}

/// A column of a table.
#[derive(Debug, Clone, Copy)]
pub struct Column<'a> {
    table: &'a Table,
    cells: &'a Cells,
}

impl<'a> Column<'a> {
    /// The object of a row; `None` where the cell is null. Does no I/O and no copy.
    ///
    /// # Errors
    /// [`ClientError::NoSuchRow`]; [`ClientError::Resolve`] if the service is gone and has given
    /// the object up.
    pub fn get(&self, row: usize) -> Result<Option<&'a [u8]>, ClientError> {
        match self.cells.runs.at(row) {
            Some(cell) => self.bytes(cell),
            None => Err(ClientError::NoSuchRow { row, rows: self.table.rows }),
        }
    }

    /// The rows of each run, and the object that serves them.
    pub fn runs(&self) -> impl Iterator<Item = Result<Run<'a>, ClientError>> {
        let column = *self;
        let mut start = 0;
        let mut ahead = self.cells.runs.iter().skip(AHEAD);
        self.cells.runs.iter().map(move |(end, cell)| {
            if let Some((_, CellValue::Header(next))) = ahead.next() {
                column.table.mappings.prefetch(&next);
            }
            let rows = start..end;
            start = end;
            Ok((rows, column.bytes(cell)?))
        })
    }

    /// The MetaHeader of a row, if its cell is one.
    pub fn header(&self, row: usize) -> Option<MetaHeader> {
        match self.cells.runs.at(row)? {
            CellValue::Header(header) => Some(header),
            CellValue::Null | CellValue::Payload(_) => None,
        }
    }

    fn bytes(&self, cell: CellValue<'a>) -> Result<Option<&'a [u8]>, ClientError> {
        match cell {
            CellValue::Null => Ok(None),
            CellValue::Header(header) => Ok(Some(self.table.mappings.resolve(&header)?)),
            CellValue::Payload(bytes) => Ok(Some(bytes)),
        }
    }
}

/// Rows that follow each other, and the object that serves them.
pub type Run<'a> = (Range<usize>, Option<&'a [u8]>);
