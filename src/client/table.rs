//! Tables of a client; their cells borrow from them.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use arrow_array::RecordBatch;
use arrow_schema::{Schema, SchemaRef};
use tokio::sync::mpsc;

use super::cells::Cells;
use super::consumption::Consumption;
use super::error::ClientError;
use super::local_join::JoinedRows;
use super::table_columns::TableColumns;
use crate::object::ObjectId;
use crate::shm::attach::{Attachment, PinnedBlocks};
use crate::shm::{AHEAD, MetaHeader, PinnedTimeframe};
use crate::table::{CellValue, ColumnRuns, TableRequest, run_end_batch};

/// A table and the objects of its cells. It holds the lease or the slots that pin them, and
/// releases these when it is dropped.
#[derive(Debug)]
pub struct Table {
    /// Made on first use for the table of a timeframe from shared memory.
    schema: OnceLock<SchemaRef>,
    /// Made on first use if the client joined the rows.
    batches: OnceLock<Vec<RecordBatch>>,
    rows: usize,
    columns: TableColumns,
    hold: Hold,
    request: TableRequest,
    consumption: Option<Consumption>,
}

/// Channel for leases to release.
pub(super) type Releases = mpsc::UnboundedSender<String>;

/// Holds the objects of a table.
#[derive(Debug)]
pub(super) enum Hold {
    /// A lease or slots of the client's session, and its segments.
    Pinned(PinnedBlocks),
    /// A lease whose segments this client has not mapped.
    Lease(HeldLease),
}

/// A lease that is released on drop; `None` if there is none.
#[derive(Debug)]
pub(super) struct HeldLease {
    id: Option<String>,
    releases: Releases,
}

impl Drop for HeldLease {
    fn drop(&mut self) {
        if let Some(lease) = self.id.take() {
            // Without a receiver the connection is closed, and the lease ends by itself.
            let _ = self.releases.send(lease);
        }
    }
}

impl Hold {
    pub(super) fn new(
        attachment: Option<Arc<Attachment>>,
        lease: Option<String>,
        releases: Releases,
    ) -> Self {
        match attachment {
            None => Self::Lease(HeldLease { id: lease, releases }),
            Some(attachment) => {
                let release = Box::new(move |lease| {
                    // As above.
                    let _ = releases.send(lease);
                });
                Self::Pinned(PinnedBlocks::new(attachment, lease, release))
            }
        }
    }

    fn lease(&self) -> Option<&str> {
        match self {
            Self::Pinned(pinned) => pinned.lease(),
            Self::Lease(lease) => lease.id.as_deref(),
        }
    }

    /// The table of a timeframe in shared memory.
    fn timeframe(&self) -> Option<&PinnedTimeframe> {
        match self {
            Self::Pinned(pinned) => pinned.timeframe(),
            Self::Lease(_) => None,
        }
    }

    /// Maps the segments that the cells of `columns` refer to.
    fn map(&mut self, columns: &[Cells]) {
        let Self::Pinned(pinned) = self else { return };
        for (_, cell) in columns.iter().flat_map(|column| column.runs.iter()) {
            match cell {
                CellValue::Header(header) => pinned.map(&header),
                CellValue::O2 { segment, .. } => {
                    if let Ok(segment) = u16::try_from(segment) {
                        pinned.map(&MetaHeader::managed(segment, 0, 0, 0));
                    }
                }
                CellValue::Null | CellValue::Payload(_) => {}
            }
        }
    }
}

impl Table {
    pub(super) fn new(
        schema: &SchemaRef,
        batches: Vec<RecordBatch>,
        hold: Hold,
        request: TableRequest,
    ) -> Result<Self, ClientError> {
        let mut columns = Vec::new();
        for (place, field) in schema.fields().iter().enumerate() {
            // Timestamps are a column without cells.
            if !field.metadata().contains_key("url") {
                continue;
            }
            let mut runs = ColumnRuns::default();
            batches.iter().try_for_each(|batch| runs.extend(batch.column(place)))?;
            columns.push(Cells { name: field.name().clone(), runs });
        }
        let rows = batches.iter().map(RecordBatch::num_rows).sum();
        let table = Self::of_runs(Arc::clone(schema), columns, rows, hold, request);
        Ok(Self { batches: OnceLock::from(batches), ..table })
    }

    /// A table whose rows the client joined.
    pub(super) fn joined(joined: JoinedRows, hold: Hold, request: TableRequest) -> Self {
        let JoinedRows { schema, columns, rows, .. } = joined;
        Self::of_runs(schema, columns, rows, hold, request)
    }

    /// A table of these runs, which are the columns of the schema.
    pub(super) fn of_runs(
        schema: SchemaRef,
        columns: Vec<Cells>,
        rows: usize,
        hold: Hold,
        request: TableRequest,
    ) -> Self {
        let consumption = Consumption::requested(&request, &schema);
        let (columns, schema) = (TableColumns::Decoded(columns), OnceLock::from(schema));
        Self { schema, batches: OnceLock::new(), rows, columns, hold, request, consumption }
    }

    /// The table of a timeframe in shared memory.
    pub(super) fn of_timeframe(
        columns: TableColumns,
        rows: usize,
        hold: Hold,
        request: TableRequest,
        consumption: Consumption,
    ) -> Self {
        let (schema, batches) = (OnceLock::new(), OnceLock::new());
        let consumption = Some(consumption);
        Self { schema, batches, rows, columns, hold, request, consumption }
    }

    /// The timeframe and the consumer, if it is the table of a timeframe for a consumer.
    pub fn consumption(&self) -> Option<&Consumption> {
        self.consumption.as_ref()
    }

    /// Waits until all segments of its cells are mapped; new segments are mapped on a blocking
    /// thread.
    pub(super) async fn mapped(self) -> Result<Self, ClientError> {
        if self.is_all_mapped() {
            return Ok(self);
        }
        let map = move || {
            let mut table = self;
            table.hold.map(table.columns.decoded());
            table
        };
        let mapped = tokio::task::spawn_blocking(map).await;
        mapped.map_err(|error| ClientError::Answer { reason: error.to_string() })
    }

    fn is_all_mapped(&self) -> bool {
        let Hold::Pinned(pinned) = &self.hold else { return true };
        // The segments of a timeframe in shared memory were mapped before.
        let mut cells = self.columns.decoded().iter().flat_map(|column| column.runs.iter());
        cells.all(|(_, cell)| match cell {
            CellValue::Header(header) => pinned.mappings().knows(&header),
            CellValue::O2 { .. } => false,
            CellValue::Null | CellValue::Payload(_) => true,
        })
    }

    /// Number of rows: that of the timestamps.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Arrow schema, as received: one field per column with the metadata `url` (its object path),
    /// and the metadata `iovcache.version`, `iovcache.epoch`, `iovcache.lease` and others of the
    /// table.
    pub fn schema(&self) -> &SchemaRef {
        self.schema.get_or_init(|| match &self.columns {
            TableColumns::OfTimeframe(columns) => columns.schema(),
            // Those that come decoded have their schema.
            TableColumns::Decoded(_) => Arc::new(Schema::empty()),
        })
    }

    /// The batches as received; a single batch if the client joined the rows. Columns are
    /// `RunEndEncoded<Int32, cell>` unless the request says otherwise, and the cell is
    /// `FixedSizeBinary(40)` (a MetaHeader), or `LargeBinary` (the bytes) for a client without the
    /// service's shared memory.
    pub fn batches(&self) -> &[RecordBatch] {
        self.batches.get_or_init(|| {
            let columns = (0..self.columns.len()).map(|number| self.cells(number));
            let Ok(columns) = columns.collect::<Result<Vec<_>, _>>() else { return Vec::new() };
            let runs: Vec<_> = columns.iter().map(|column| &column.runs).collect();
            // The schema was made for these columns, so the batch cannot fail.
            run_end_batch(self.schema(), &runs, self.rows).into_iter().collect()
        })
    }

    /// Id of the lease that pins its objects; `None` if slots pin them.
    pub fn lease(&self) -> Option<&str> {
        self.hold.lease()
    }

    /// Whether this client has mapped the shared memory of its objects.
    pub fn is_mapped(&self) -> bool {
        matches!(self.hold, Hold::Pinned(_))
    }

    /// The session of the request, if it is a session of this client.
    pub(super) fn attachment(&self) -> Option<Arc<Attachment>> {
        match &self.hold {
            Hold::Pinned(pinned) => Some(Arc::clone(pinned.attachment())),
            Hold::Lease(_) => None,
        }
    }

    /// The request, with its session.
    pub(super) fn request(&self) -> &TableRequest {
        &self.request
    }

    /// Names of its columns, in the order of the request.
    pub fn columns(&self) -> impl ExactSizeIterator<Item = &str> {
        (0..self.columns.len()).map(|number| self.columns.name(number))
    }

    fn cells(&self, number: usize) -> Result<&Cells, ClientError> {
        self.columns.get(number, self.hold.timeframe(), self.rows)
    }

    /// The column `name`.
    ///
    /// # Errors
    /// [`ClientError::NoSuchColumn`] if there is none; in a forked child
    /// [`ClientError::ForkedProcess`], if it lies in shared memory and was not read before.
    pub fn column(&self, name: &str) -> Result<Column<'_>, ClientError> {
        match self.columns.position(name) {
            Some(number) => Ok(Column { table: self, cells: self.cells(number)? }),
            None => Err(ClientError::NoSuchColumn {
                name: name.to_owned(),
                known: self.columns().map(str::to_owned).collect(),
            }),
        }
    }

    /// Pins of its objects, if this client has mapped their shared memory.
    pub(super) fn into_pinned(self) -> Option<PinnedBlocks> {
        match self.hold {
            Hold::Pinned(pinned) => Some(pinned),
            Hold::Lease(_) => None,
        }
    }

    /// The lease, for a caller that releases it.
    pub(super) fn into_lease(self) -> Option<String> {
        match self.hold {
            Hold::Pinned(pinned) => pinned.into_lease(),
            Hold::Lease(mut lease) => lease.id.take(),
        }
    }

    fn bytes<'a>(&'a self, cell: CellValue<'a>) -> Result<Option<&'a [u8]>, ClientError> {
        let header = match cell {
            CellValue::Null => return Ok(None),
            CellValue::Payload(bytes) => return Ok(Some(bytes)),
            CellValue::Header(header) => header,
            CellValue::O2 { handle, segment, size } => self.header_at(segment, handle, size)?,
        };
        match &self.hold {
            Hold::Pinned(pinned) => Ok(Some(pinned.resolve(&header)?)),
            Hold::Lease(_) => Err(ClientError::NotAttached),
        }
    }

    fn header_at(&self, segment: i64, handle: i64, size: i64) -> Result<MetaHeader, ClientError> {
        match &self.hold {
            Hold::Pinned(pinned) => Ok(pinned.mappings().header_at(segment, handle, size)?),
            Hold::Lease(_) => Err(ClientError::NotAttached),
        }
    }

    /// Whether the block of a MetaHeader cell still has its generation. `false` if the service that
    /// pinned it is gone and its memory was reused.
    pub fn is_live(&self, header: &MetaHeader) -> bool {
        match &self.hold {
            Hold::Pinned(pinned) => pinned.is_live(header),
            Hold::Lease(_) => false,
        }
    }

    /// Whether its objects were found in shared memory, without a request. Then there is no lease:
    /// they are pinned by slots of the session's pins page.
    pub fn is_local(&self) -> bool {
        matches!(&self.hold, Hold::Pinned(pinned) if pinned.has_slots())
    }

    /// The id of the object of a cell, where a slot pins it.
    pub(super) fn id_by_slot(&self, header: &MetaHeader) -> Option<ObjectId> {
        match &self.hold {
            Hold::Pinned(pinned) => pinned.id_by_slot(header),
            Hold::Lease(_) => None,
        }
    }

    /// Runs and their MetaHeader cells, column by column, for comparison with the objects view.
    /// Columns with other cells are left out.
    pub(super) fn headers(&self) -> impl Iterator<Item = (&str, Vec<(usize, MetaHeader)>)> {
        (0..self.columns.len()).filter_map(|number| {
            let column = self.cells(number).ok()?;
            let mut start = 0;
            let mut seen = Vec::new();
            for (end, cell) in column.runs.iter() {
                match cell {
                    CellValue::Header(header) => seen.push((start, header)),
                    CellValue::Null => {}
                    CellValue::O2 { .. } | CellValue::Payload(_) => return None,
                }
                start = end;
            }
            Some((column.name.as_str(), seen))
        })
    }
}

/// A column of a table.
#[derive(Debug, Clone, Copy)]
pub struct Column<'a> {
    table: &'a Table,
    cells: &'a Cells,
}

impl<'a> Column<'a> {
    /// Name of the column.
    pub fn name(&self) -> &'a str {
        &self.cells.name
    }

    /// Object of a row, counted from 0; `None` if the cell is null. Does no I/O and no copy.
    ///
    /// # Errors
    /// [`ClientError::NoSuchRow`]; [`ClientError::Resolve`] if the service is gone and the object
    /// was evicted; [`ClientError::NotAttached`] if its memory is not mapped.
    pub fn get(&self, row: usize) -> Result<Option<&'a [u8]>, ClientError> {
        match self.cells.runs.at(row) {
            Some(cell) => self.table.bytes(cell),
            None => Err(ClientError::NoSuchRow { row, rows: self.table.rows }),
        }
    }

    /// The rows of each run, and the object that serves them.
    pub fn runs(&self) -> impl Iterator<Item = Result<ObjectRun<'a>, ClientError>> {
        let table = self.table;
        let mut start = 0;
        let mut ahead = self.cells.runs.iter().skip(AHEAD);
        self.cells.runs.iter().map(move |(end, cell)| {
            if let Some((_, CellValue::Header(next))) = ahead.next()
                && let Hold::Pinned(pinned) = &table.hold
            {
                pinned.mappings().prefetch(&next);
            }
            let rows = start..end;
            start = end;
            Ok((rows, table.bytes(cell)?))
        })
    }

    /// The row after the last one of each run, in ascending order.
    pub fn ends(&self) -> &'a [usize] {
        self.cells.runs.ends()
    }

    /// Object of a run, counted from 0; `None` if its cells are null.
    ///
    /// # Errors
    /// As [`get`](Self::get); [`ClientError::NoSuchRow`] if there is no such run.
    pub fn run(&self, run: usize) -> Result<Option<&'a [u8]>, ClientError> {
        match self.cells.runs.run(run) {
            Some(cell) => self.table.bytes(cell),
            None => Err(ClientError::NoSuchRow { row: run, rows: self.cells.runs.len() }),
        }
    }

    /// MetaHeader of a row, if its cell is a MetaHeader or refers to a block in a mapped segment.
    pub fn header(&self, row: usize) -> Option<MetaHeader> {
        match self.cells.runs.at(row)? {
            CellValue::Header(header) => Some(header),
            CellValue::O2 { handle, segment, size } => {
                self.table.header_at(segment, handle, size).ok()
            }
            CellValue::Null | CellValue::Payload(_) => None,
        }
    }
}

/// Consecutive rows, and the object that serves them.
pub type ObjectRun<'a> = (Range<usize>, Option<&'a [u8]>);
