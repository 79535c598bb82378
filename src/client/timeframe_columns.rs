//! The columns of the table of a timeframe in shared memory, decoded one by one.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use arrow_array::FixedSizeBinaryArray;
use arrow_buffer::{BooleanBuffer, Buffer, NullBuffer};
use arrow_ipc::convert::try_fb_to_schema;
use arrow_ipc::root_as_message;
use arrow_schema::{Fields, Schema, SchemaRef};

use super::cells::Cells;
use super::error::ClientError;
use crate::shm::{ColumnArrays, MetaHeader, PinnedTimeframe};
use crate::table::{ColumnRuns, REGISTRATION, TIMEFRAME, TimeframeMark};

/// The schema of the tables of timeframes with the same columns.
#[derive(Debug)]
pub(super) struct TimeframeSchema {
    fields: Fields,
    /// Number of the first column with each name.
    numbers: HashMap<Box<str>, usize>,
    /// Without the timeframe and its registration.
    metadata: HashMap<String, String>,
}

impl TimeframeSchema {
    /// Decodes the schema of a table.
    pub(super) fn of(pinned: &PinnedTimeframe) -> Option<Self> {
        let message = root_as_message(pinned.schema()?).ok()?;
        let schema = try_fb_to_schema(message.header_as_schema()?).ok()?;
        let Schema { fields, metadata } = schema;
        let mut metadata: HashMap<String, String> = metadata.into();
        metadata.remove(TIMEFRAME);
        metadata.remove(REGISTRATION);
        let mut numbers = HashMap::with_capacity(fields.len());
        for (number, field) in fields.iter().enumerate() {
            numbers.entry(field.name().as_str().into()).or_insert(number);
        }
        (fields.len() == pinned.columns()).then_some(Self { fields, numbers, metadata })
    }

    /// The schema of the table of a timeframe.
    fn of_timeframe(&self, mark: TimeframeMark) -> SchemaRef {
        let mut metadata = self.metadata.clone();
        metadata.insert(TIMEFRAME.to_owned(), mark.timeframe.to_string());
        metadata.insert(REGISTRATION.to_owned(), mark.registration.to_string());
        Arc::new(Schema::new_with_metadata(self.fields.clone(), metadata))
    }
}

/// The columns of the table of a timeframe in shared memory.
#[derive(Debug)]
pub(super) struct TimeframeColumns {
    mark: TimeframeMark,
    schema: Arc<TimeframeSchema>,
    /// Each is decoded on first use.
    cells: Box<[OnceLock<Box<Cells>>]>,
}

impl TimeframeColumns {
    pub(super) fn new(mark: TimeframeMark, schema: Arc<TimeframeSchema>) -> Self {
        let cells = (0..schema.fields.len()).map(|_| OnceLock::new()).collect();
        Self { mark, schema, cells }
    }

    /// The schema of the table.
    pub(super) fn schema(&self) -> SchemaRef {
        self.schema.of_timeframe(self.mark)
    }

    pub(super) fn len(&self) -> usize {
        self.cells.len()
    }

    /// Number of the first column with this name.
    pub(super) fn position(&self, name: &str) -> Option<usize> {
        self.schema.numbers.get(name).copied()
    }

    /// Name of a column.
    pub(super) fn name(&self, number: usize) -> &str {
        self.schema.fields[number].name()
    }

    /// The cells of a column of a table of `rows` rows.
    ///
    /// # Errors
    /// [`ClientError::ForkedProcess`] if the table is not `pinned`: the pin belongs to the process that
    /// took it; [`ClientError::Answer`].
    pub(super) fn get(
        &self,
        number: usize,
        pinned: Option<&PinnedTimeframe>,
        rows: usize,
    ) -> Result<&Cells, ClientError> {
        let cells = &self.cells[number];
        if let Some(known) = cells.get() {
            return Ok(known);
        }
        let arrays = pinned.and_then(|pinned| pinned.column(number));
        let arrays = arrays.ok_or(ClientError::ForkedProcess)?;
        let decoded = cells_of(self.name(number), &arrays, rows)?;
        Ok(cells.get_or_init(|| Box::new(decoded)))
    }
}

/// The cells of a column of a table of `rows` rows.
///
/// # Errors
/// [`ClientError::Answer`] if the arrays are no column of such a table.
fn cells_of(name: &str, arrays: &ColumnArrays<'_>, rows: usize) -> Result<Cells, ClientError> {
    let wrong = |reason: &str| ClientError::Answer { reason: format!("column {name:?}: {reason}") };
    let mut ends: Vec<usize> = Vec::with_capacity(arrays.runs);
    for end in arrays.ends.chunks_exact(size_of::<i32>()) {
        let end = end.try_into().map_or(0, i32::from_le_bytes);
        let end = usize::try_from(end).map_err(|_| wrong("a run end is negative"))?;
        if ends.last().copied().unwrap_or(0) >= end {
            return Err(wrong("its run ends do not ascend"));
        }
        ends.push(end);
    }
    if ends.last().copied().unwrap_or(0) != rows {
        return Err(wrong("its runs do not end with the table"));
    }
    let nulls = arrays.validity.map(|bits| {
        NullBuffer::new(BooleanBuffer::new(Buffer::from(bits.to_vec()), 0, arrays.runs))
    });
    let (size, cells) = (MetaHeader::BYTES as i32, Buffer::from_vec(arrays.cells.to_vec()));
    let cells = FixedSizeBinaryArray::try_new_with_len(size, cells, nulls, arrays.runs);
    let cells = cells.map_err(|error| wrong(&error.to_string()))?;
    let runs = ColumnRuns::of_headers(ends, cells)?;
    Ok(Cells { name: name.to_owned(), runs })
}
