//! Encodes runs of cells as record batches, each small enough for the wire.

use std::sync::Arc;

use arrow_array::builder::BinaryBuilder;
use arrow_array::{ArrayRef, Int64Array, LargeBinaryArray, RecordBatch, RecordBatchOptions};
use arrow_buffer::{Buffer, OffsetBuffer};
use arrow_schema::SchemaRef;

use super::batch_buffers::{BatchBuffers, Payloads};
use super::batch_size::RowSizes;
use super::cells::cell_array;
use super::content::{Cell, Column, Content, IntervalColumn, Objects, TableBody};
use super::dictionaries::{Dictionaries, dictionary_buffers};
use super::encode_error::EncodeError;
use super::interval_batch::IntervalCursor;
use super::ipc::{BatchMessages, MessageWriter};
use super::layout::{TableLayout, cell_type};
use super::part::PayloadPins;
use super::records::RecordCursor;
use super::request_options::{CellKind, Encoding, View};
use super::row_window::RowWindow;
use crate::index::Timestamps;

/// Size of one chunk of the view chunks.
const CHUNK_BYTES: usize = 1 << 20;

/// Iterator over the batches of a table. There is at least one, which may be empty.
pub struct Batches {
    layout: Arc<TableLayout>,
    schema: SchemaRef,
    content: Content,
    /// By column: the values of the dictionary, the same array in all batches.
    dictionaries: Vec<ArrayRef>,
    next: usize,
    /// View intervals: the next span.
    intervals: IntervalCursor,
    /// Views objects and distinct: the next record.
    records: RecordCursor,
    over: bool,
}

impl Content {
    /// Batches of this content in the given layout.
    pub fn batches(&self, layout: &TableLayout) -> Batches {
        self.batches_of(Arc::new(layout.clone()), layout.schema())
    }

    /// Like [`batches`](Self::batches), with the schema that goes with `layout`; it can have other
    /// metadata.
    pub(crate) fn batches_of(&self, layout: Arc<TableLayout>, schema: SchemaRef) -> Batches {
        Batches {
            schema,
            layout,
            content: self.clone(),
            dictionaries: Vec::new(),
            next: 0,
            intervals: IntervalCursor::default(),
            records: RecordCursor::default(),
            over: false,
        }
    }
}

impl Iterator for Batches {
    type Item = Result<RecordBatch, EncodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.over {
            return None;
        }
        let made = match self.content.body.clone() {
            TableBody::Rows { columns, timestamps } => match self.layout.view {
                View::Chunks => self.chunk(&columns),
                View::Objects => self.records(&columns),
                View::Distinct => self.distinct(&columns),
                View::Rows | View::Intervals => self.rows(&columns, &timestamps),
            },
            TableBody::Intervals(columns) => self.intervals(&columns),
        };
        self.over |= made.is_err();
        Some(made)
    }
}

/// Iterator over the batches as messages: for each batch the dictionaries that it needs, then the
/// batch.
pub struct EncodedMessages {
    pins: Arc<PayloadPins>,
    batches: Batches,
    writer: MessageWriter,
    dictionaries: Arc<Dictionaries>,
}

impl EncodedMessages {
    /// The pins of the payloads that the messages name. The messages hold them until all parts are
    /// read, or until they are withdrawn.
    pub(crate) fn payload_pins(&self) -> &Arc<PayloadPins> {
        &self.pins
    }
}

impl Iterator for EncodedMessages {
    type Item = Result<BatchMessages, EncodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        let Self { pins, batches, writer, dictionaries } = self;
        if batches.over {
            return None;
        }
        let layout = Arc::clone(&batches.layout);
        let made = match batches.content.body.clone() {
            TableBody::Rows { columns, timestamps } if layout.view == View::Rows => {
                batches.row_messages(&columns, &timestamps, dictionaries, pins)
            }
            TableBody::Intervals(columns) if layout.cell == CellKind::Payload => {
                batches.interval_messages(&columns, writer, pins)
            }
            _ => return Some(batches.next()?.and_then(|batch| writer.write(&batch))),
        };
        batches.over |= made.is_err();
        Some(made)
    }
}

impl Batches {
    /// The batches as messages that follow the schema. `dictionaries` holds those of similar
    /// tables.
    pub fn into_messages(self, dictionaries: Arc<Dictionaries>) -> EncodedMessages {
        EncodedMessages {
            pins: PayloadPins::new(Arc::clone(&self.content.objects)),
            writer: MessageWriter::after_schema(&self.schema),
            batches: self,
            dictionaries,
        }
    }

    /// Checks that the objects can be cells, before the first batch is made.
    ///
    /// # Errors
    /// [`EncodeError`] if an object is too large or lies in the wrong kind of segment.
    pub fn check(&self) -> Result<(), EncodeError> {
        let TableBody::Rows { columns, .. } = &self.content.body else { return Ok(()) };
        if self.layout.view != View::Rows {
            return Ok(());
        }
        self.sizes(columns).check()
    }

    /// Makes the passes over all rows that the first batch needs.
    pub(crate) fn prepare(&self) {
        let TableBody::Rows { columns, .. } = &self.content.body else { return };
        let is_distinct = self.layout.view == View::Distinct;
        if !is_distinct
            && (self.layout.view != View::Rows || self.layout.encoding == Encoding::RunEnd)
        {
            columns.iter().for_each(|column| column.rows.prepare_runs());
        }
    }

    /// Schema of all batches.
    pub fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn batch(&self, columns: Vec<ArrayRef>, rows: usize) -> Result<RecordBatch, EncodeError> {
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        Ok(RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options)?)
    }

    /// The next rows, written as buffers, and their number; the payloads are copied unless there are
    /// `pins` for them.
    fn next_rows(
        &mut self,
        columns: &[Column],
        timestamps: &Timestamps,
        pins: Option<&Arc<PayloadPins>>,
    ) -> Result<(BatchBuffers, usize), EncodeError> {
        let sizes = self.sizes(columns);
        if self.next == 0 {
            sizes.check()?;
        }
        let (from, rows) = (self.next, timestamps.len());
        let until = sizes.end_of_batch(from, rows)?;
        (self.next, self.over) = (until, until == rows);
        let timestamps = self.layout.timestamps_column.then_some(timestamps);
        let payloads = Payloads { objects: self.objects(), pins };
        let cell = self.layout.cell;
        let window = RowWindow { columns, timestamps, from, until, cell, payloads };
        Ok((window.write(self.layout.encoding), until - from))
    }

    /// The next rows as messages.
    fn row_messages(
        &mut self,
        columns: &[Column],
        timestamps: &Timestamps,
        kept: &Dictionaries,
        pins: &Arc<PayloadPins>,
    ) -> Result<BatchMessages, EncodeError> {
        let is_first = self.next == 0;
        let (buffers, rows) = self.next_rows(columns, timestamps, Some(pins))?;
        let payloads = Payloads { objects: self.objects(), pins: Some(pins) };
        let dictionaries = match self.layout.encoding {
            Encoding::Dictionary if is_first => kept.messages(columns, self.layout.cell, payloads),
            _ => Arc::default(),
        };
        Ok(BatchMessages { dictionaries, batch: buffers.into_message(rows, None) })
    }

    /// The next rows as arrays.
    fn rows(
        &mut self,
        columns: &[Column],
        timestamps: &Timestamps,
    ) -> Result<RecordBatch, EncodeError> {
        let is_first = self.next == 0;
        let (buffers, rows) = self.next_rows(columns, timestamps, None)?;
        if is_first && self.layout.encoding == Encoding::Dictionary {
            let (kind, payloads) =
                (self.layout.cell, Payloads { objects: self.objects(), pins: None });
            let values = |column: &Column| {
                dictionary_buffers(column, kind, payloads).into_array(&cell_type(kind))
            };
            self.dictionaries = columns.iter().map(values).collect::<Result<_, EncodeError>>()?;
        }
        let types = self.schema.fields().iter().map(|field| field.data_type());
        let arrays = buffers.into_arrays(types, &self.dictionaries)?;
        self.batch(arrays, rows)
    }

    /// Writes the next effective spans with their payloads, which are not copied.
    fn interval_messages(
        &mut self,
        columns: &[IntervalColumn],
        writer: &mut MessageWriter,
        pins: &Arc<PayloadPins>,
    ) -> Result<BatchMessages, EncodeError> {
        let (mut arrays, cells) = self.next_intervals(columns)?;
        let empty = OffsetBuffer::<i64>::new_zeroed(cells.len());
        arrays.push(Arc::new(LargeBinaryArray::try_new(empty, Buffer::default(), None)?));
        let messages = writer.write(&self.batch(arrays, cells.len())?)?;
        // Offsets and payloads replace those of the empty array.
        let mut buffers = BatchBuffers::from_message(&messages.batch, 2)?;
        let numbers = cells.iter().map(|cell| Some(cell.object));
        buffers.payloads(numbers, Payloads { objects: self.objects(), pins: Some(pins) });
        let batch = buffers.into_message(cells.len(), None);
        Ok(BatchMessages { batch, ..messages })
    }

    fn objects(&self) -> &dyn Objects {
        &*self.content.objects
    }

    fn sizes<'a>(&'a self, columns: &'a [Column]) -> RowSizes<'a> {
        RowSizes { layout: &self.layout, columns, objects: self.objects() }
    }

    /// The next records of the objects view: one per run.
    fn records(&mut self, columns: &[Column]) -> Result<RecordBatch, EncodeError> {
        let objects = Arc::clone(&self.content.objects);
        let (arrays, rows) = self.records.objects(columns, &*objects, self.layout.keyed)?;
        self.over = self.records.is_over();
        self.batch(arrays, rows)
    }

    /// The next records of the distinct objects.
    fn distinct(&mut self, columns: &[Column]) -> Result<RecordBatch, EncodeError> {
        let objects = Arc::clone(&self.content.objects);
        let (arrays, rows) = self.records.distinct(columns, &*objects, &self.layout)?;
        self.over = self.records.is_over();
        self.batch(arrays, rows)
    }

    /// The next effective spans.
    fn intervals(&mut self, columns: &[IntervalColumn]) -> Result<RecordBatch, EncodeError> {
        let (mut arrays, cells) = self.next_intervals(columns)?;
        arrays.push(cell_array(self.layout.cell, cells.iter().copied(), self.objects())?);
        self.batch(arrays, cells.len())
    }

    /// The next effective spans: all arrays but the last, and the cells for the last one.
    fn next_intervals<'a>(
        &mut self,
        columns: &'a [IntervalColumn],
    ) -> Result<(Vec<ArrayRef>, Vec<&'a Cell>), EncodeError> {
        let next = self.intervals.next(columns, &*self.content.objects, &self.layout);
        self.over = self.intervals.is_over();
        next
    }

    /// The next chunk of the object.
    fn chunk(&mut self, columns: &[Column]) -> Result<RecordBatch, EncodeError> {
        let objects = Arc::clone(&self.content.objects);
        let cell = columns.first().and_then(|column| column.cells.first());
        let bytes = cell.map_or(&[][..], |cell| objects.bytes(cell.object));
        let end = bytes.len().min(self.next + CHUNK_BYTES);
        let piece = &bytes[self.next..end];
        let rows = usize::from(!piece.is_empty());
        let offsets = Int64Array::from_iter_values((0..rows).map(|_| self.next as i64));
        let mut pieces = BinaryBuilder::with_capacity(rows, piece.len());
        if rows == 1 {
            pieces.append_value(piece);
        }
        self.next = end;
        self.over = end == bytes.len();
        self.batch(vec![Arc::new(offsets), Arc::new(pieces.finish())], rows)
    }
}
