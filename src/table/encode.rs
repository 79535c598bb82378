//! Encodes runs of cells as record batches, each small enough for the wire.

use std::sync::Arc;

use arrow_array::builder::{BinaryBuilder, Int64Builder, StringBuilder};
use arrow_array::{
    ArrayRef, DictionaryArray, Int32Array, Int64Array, LargeBinaryArray, RecordBatch,
    RecordBatchOptions,
};
use arrow_buffer::{Buffer, NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow_schema::SchemaRef;

use super::cells::{cell_array, run_array};
use super::content::{Cell, Column, Content, IntervalColumn, Objects, TableBody};
use super::encode_error::EncodeError;
use super::ipc::{BatchMessages, MessageWriter};
use super::ipc_body::{Dictionaries, Payloads, RowWindow, payload_dictionaries, with_payloads};
use super::layout::TableLayout;
use super::part::PayloadPins;
use super::records::{
    MAX_CELL_BYTES, PAYLOAD_BATCH_BYTES, RECORD_BYTES, RECORD_FIXED_BYTES, RECORD_ROWS,
    RecordCursor,
};
use super::request_options::{CellKind, Encoding, View};
use super::text_runs::TextRuns;
use crate::index::Timestamps;
use crate::object::ObjectId;
use crate::shm::MetaHeader;

/// Maximum size of a batch of MetaHeaders: with its message header it is below 2 MiB.
const BATCH_BYTES: u64 = 1_900 << 10;
/// Maximum size of all payloads of one batch or dictionary.
const MAX_PAYLOADS_BYTES: u64 = 1 << 30;
/// Size of one chunk of the view chunks.
const CHUNK_BYTES: usize = 1 << 20;

/// Iterator over the batches of a table. There is at least one, which may be empty.
pub struct Batches {
    shape: Arc<TableLayout>,
    schema: SchemaRef,
    content: Content,
    /// By column: the values of the dictionary, the same array in all batches.
    dictionaries: Vec<ArrayRef>,
    next: usize,
    /// View intervals: the next column, and its next span.
    next_in_column: (usize, usize),
    /// Views objects and distinct: the next record.
    records: RecordCursor,
    over: bool,
}

impl Content {
    /// Batches of this content in the given layout.
    pub fn batches(&self, shape: &TableLayout) -> Batches {
        self.batches_of(Arc::new(shape.clone()), shape.schema())
    }

    /// Like [`batches`](Self::batches), with the schema that goes with `shape`; it can have other
    /// metadata.
    pub(crate) fn batches_of(&self, shape: Arc<TableLayout>, schema: SchemaRef) -> Batches {
        Batches {
            schema,
            shape,
            content: self.clone(),
            dictionaries: Vec::new(),
            next: 0,
            next_in_column: (0, 0),
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
        let made = match self.content.shown.clone() {
            TableBody::Rows { columns, timestamps } => match self.shape.view {
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
        let shape = Arc::clone(&batches.shape);
        let made = match batches.content.shown.clone() {
            TableBody::Rows { columns, timestamps }
                if shape.view == View::Rows
                    && matches!(shape.cell, CellKind::Binary | CellKind::Payload) =>
            {
                batches.row_messages(&columns, &timestamps, dictionaries, pins)
            }
            TableBody::Intervals(columns) if shape.cell == CellKind::Payload => {
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
        let TableBody::Rows { columns, .. } = &self.content.shown else { return Ok(()) };
        if self.shape.view != View::Rows {
            return Ok(());
        }
        let cells = || columns.iter().flat_map(|column| &column.cells);
        if self.shape.cell == CellKind::O2
            && let Some(cell) = cells().find(|cell| cell.header.managed == 0)
        {
            return Err(EncodeError::Unmanaged { region: cell.header.region_id });
        }
        self.check_payloads(columns)
    }

    /// Schema of all batches.
    pub fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn batch(&self, columns: Vec<ArrayRef>, rows: usize) -> Result<RecordBatch, EncodeError> {
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        Ok(RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options)?)
    }

    /// Writes the next rows as messages, without intermediate arrays.
    fn row_messages(
        &mut self,
        columns: &[Column],
        timestamps: &Timestamps,
        kept: &Dictionaries,
        pins: &Arc<PayloadPins>,
    ) -> Result<BatchMessages, EncodeError> {
        let shape = Arc::clone(&self.shape);
        if self.next == 0 {
            self.check_payloads(columns)?;
        }
        let (from, until) = self.next_rows(columns, timestamps)?;
        let timestamps = shape.timestamps_column.then_some(timestamps);
        let payloads = Payloads { objects: self.objects(), pins };
        let window = RowWindow { columns, timestamps, from, until, cell: shape.cell, payloads };
        let (dictionaries, batch) = match shape.encoding {
            Encoding::RunEnd => (Arc::default(), window.run_end()),
            Encoding::Plain => (Arc::default(), window.plain()),
            Encoding::Dictionary if from > 0 => (Arc::default(), window.dictionary()),
            Encoding::Dictionary => {
                let dictionaries = match shape.cell {
                    CellKind::Payload => payload_dictionaries(columns, payloads),
                    _ => kept.messages(columns),
                };
                (dictionaries, window.dictionary())
            }
        };
        Ok(BatchMessages { dictionaries, batch })
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
        let batch =
            with_payloads(&messages.batch, &cells, Payloads { objects: self.objects(), pins })?;
        Ok(BatchMessages { batch, ..messages })
    }

    fn rows(
        &mut self,
        columns: &[Column],
        timestamps: &Timestamps,
    ) -> Result<RecordBatch, EncodeError> {
        if self.next == 0 {
            self.begin(columns)?;
        }
        let (from, until) = self.next_rows(columns, timestamps)?;
        let mut arrays: Vec<ArrayRef> = Vec::with_capacity(columns.len() + 1);
        if self.shape.timestamps_column {
            arrays.push(Arc::new(timestamps_array(timestamps, from, until)));
        }
        for (place, column) in columns.iter().enumerate() {
            arrays.push(match self.shape.encoding {
                Encoding::RunEnd => self.run_end(column, place, from, until)?,
                Encoding::Dictionary => self.dictionary(column, place, from, until)?,
                Encoding::Plain => {
                    let places = expanded(column, from, until);
                    cell_array(self.shape.cell, at(column, &places), self.objects())?
                }
            });
        }
        self.batch(arrays, until - from)
    }

    /// Rows of the next batch.
    fn next_rows(
        &mut self,
        columns: &[Column],
        timestamps: &Timestamps,
    ) -> Result<(usize, usize), EncodeError> {
        let (from, rows) = (self.next, timestamps.len());
        self.next = self.end_of_batch(columns, from, rows)?;
        self.over = self.next == rows;
        Ok((from, self.next))
    }

    /// Checks that the payloads can be sent.
    fn check_payloads(&self, columns: &[Column]) -> Result<(), EncodeError> {
        if self.shape.cell != CellKind::Payload {
            return Ok(());
        }
        for column in columns {
            let largest = column.cells.iter().map(|cell| self.bytes_of(cell)).max();
            self.check_payload(column, largest.unwrap_or(0), MAX_CELL_BYTES)?;
            if self.shape.encoding == Encoding::Dictionary {
                let all = column.cells.iter().map(|cell| self.bytes_of(cell)).sum();
                self.check_payload(column, all, MAX_PAYLOADS_BYTES)?;
            }
        }
        Ok(())
    }

    /// Checks that the columns can be sent, and builds the dictionaries.
    fn begin(&mut self, columns: &[Column]) -> Result<(), EncodeError> {
        self.check_payloads(columns)?;
        for column in columns {
            if self.shape.encoding == Encoding::Dictionary {
                let cells = column.cells.iter().map(Some);
                let values = cell_array(self.shape.cell, cells, self.objects())?;
                self.dictionaries.push(values);
            }
        }
        Ok(())
    }

    fn objects(&self) -> &dyn Objects {
        &*self.content.objects
    }

    fn bytes_of(&self, cell: &Cell) -> u64 {
        self.objects().bytes(cell.object).len() as u64
    }

    fn check_payload(
        &self,
        column: &Column,
        bytes: u64,
        limit_bytes: u64,
    ) -> Result<(), EncodeError> {
        if bytes <= limit_bytes {
            return Ok(());
        }
        let (column, path) = (column.name.to_string(), column.path.to_string());
        Err(EncodeError::TooLarge { column, path, bytes, limit_bytes })
    }

    /// The row after the last one of the batch that begins at `from`.
    fn end_of_batch(
        &self,
        columns: &[Column],
        from: usize,
        rows: usize,
    ) -> Result<usize, EncodeError> {
        let payload = self.shape.cell == CellKind::Payload;
        let most = if payload { PAYLOAD_BATCH_BYTES } else { BATCH_BYTES };
        // The step doubles each time, so the rows inspected are about those of the batch.
        let (mut fits, mut too_far) = (from + 1, from.saturating_add(2));
        loop {
            too_far = too_far.min(rows);
            if too_far <= fits {
                return Ok(rows);
            }
            if self.bytes(columns, from, too_far) > most {
                break;
            }
            if too_far == rows {
                return Ok(rows);
            }
            (fits, too_far) = (too_far, from.saturating_add((too_far - from) * 2));
        }
        while fits + 1 < too_far {
            let middle = fits + (too_far - fits) / 2;
            if self.bytes(columns, from, middle) <= most { fits = middle } else { too_far = middle }
        }
        // A payload is sent once per run: batches end between runs where possible.
        if payload && self.shape.encoding == Encoding::RunEnd {
            fits = whole_runs(columns, from, fits, rows);
            let bytes = self.bytes(columns, from, fits);
            if let Some(first) = columns.first() {
                self.check_payload(first, bytes, MAX_PAYLOADS_BYTES)?;
            }
        }
        Ok(fits)
    }

    /// Size of a batch of these rows on the wire, without its message header.
    fn bytes(&self, columns: &[Column], from: usize, until: usize) -> u64 {
        let rows = (until - from) as u64;
        let cell_bytes = match self.shape.cell {
            CellKind::Binary | CellKind::Struct => MetaHeader::BYTES as u64,
            CellKind::O2 => 24,
            CellKind::Payload => 8,
        };
        let timestamps = if self.shape.timestamps_column { rows * 8 + rows / 8 } else { 0 };
        let column_bytes = |column: &Column| {
            // Buffers are padded to 64 bytes, and each column has several.
            let padding = 512;
            let runs = column.runs_within(from as i32, until as i32);
            padding
                + match self.shape.encoding {
                    Encoding::Dictionary => rows * 4 + rows / 8,
                    Encoding::RunEnd => {
                        let count = runs.len() as u64;
                        count * (4 + cell_bytes)
                            + count / 8
                            + self.payload_bytes(column, runs, None)
                    }
                    Encoding::Plain => {
                        let window = Some((from as i32, until as i32));
                        rows * cell_bytes + rows / 8 + self.payload_bytes(column, runs, window)
                    }
                }
        };
        timestamps + columns.iter().map(column_bytes).sum::<u64>()
    }

    /// Bytes of the objects of the runs: each object once, or once per row of the window.
    fn payload_bytes(
        &self,
        column: &Column,
        runs: std::ops::Range<usize>,
        window: Option<(i32, i32)>,
    ) -> u64 {
        if self.shape.cell != CellKind::Payload {
            return 0;
        }
        runs.map(|place| {
            let run = column.runs[place];
            let times = window.map_or(1, |(from, until)| {
                let start = if place == 0 { 0 } else { column.runs[place - 1].end };
                (run.end.min(until) - start.max(from)).unsigned_abs().into()
            });
            run.cell.map_or(0, |cell| self.bytes_of(&column.cells[cell as usize]) * times)
        })
        .sum()
    }

    fn run_end(
        &self,
        column: &Column,
        place: usize,
        from: usize,
        until: usize,
    ) -> Result<ArrayRef, EncodeError> {
        let (from, until) = (from as i32, until as i32);
        let runs = &column.runs[column.runs_within(from, until)];
        let ends = Int32Array::from_iter_values(runs.iter().map(|run| run.end.min(until) - from));
        let cells = runs.iter().map(|run| run.cell.map(|cell| &column.cells[cell as usize]));
        let values = cell_array(self.shape.cell, cells, self.objects())?;
        let place = place + usize::from(self.shape.timestamps_column);
        let data_type = self.schema.field(place).data_type();
        run_array(data_type, ends, &values, (until - from) as usize)
    }

    fn dictionary(
        &self,
        column: &Column,
        place: usize,
        from: usize,
        until: usize,
    ) -> Result<ArrayRef, EncodeError> {
        let mut keys: Vec<i32> = Vec::with_capacity(until - from);
        let mut start = from as i32;
        let runs = &column.runs[column.runs_within(start, until as i32)];
        for run in runs {
            let end = run.end.min(until as i32);
            let key = run.cell.map_or(0, |cell| cell as i32);
            keys.resize(keys.len() + (end - start) as usize, key);
            start = end;
        }
        let nulls = runs.iter().any(|run| run.cell.is_none()).then(|| {
            NullBuffer::from_iter(expanded(column, from, until).iter().map(Option::is_some))
        });
        let keys = Int32Array::new(ScalarBuffer::from(keys), nulls);
        Ok(Arc::new(DictionaryArray::try_new(keys, Arc::clone(&self.dictionaries[place]))?))
    }

    /// The next records of the objects view: one per run.
    fn records(&mut self, columns: &[Column]) -> Result<RecordBatch, EncodeError> {
        let objects = Arc::clone(&self.content.objects);
        let (arrays, rows) = self.records.objects(columns, &*objects, self.shape.keyed)?;
        self.over = self.records.is_over();
        self.batch(arrays, rows)
    }

    /// The next records of the distinct objects.
    fn distinct(&mut self, columns: &[Column]) -> Result<RecordBatch, EncodeError> {
        let objects = Arc::clone(&self.content.objects);
        let (arrays, rows) = self.records.distinct(columns, &*objects, &self.shape)?;
        self.over = self.records.is_over();
        self.batch(arrays, rows)
    }

    /// The next effective spans.
    fn intervals(&mut self, columns: &[IntervalColumn]) -> Result<RecordBatch, EncodeError> {
        let (mut arrays, cells) = self.next_intervals(columns)?;
        let rows = cells.len();
        arrays.push(cell_array(self.shape.cell, cells.into_iter(), self.objects())?);
        self.batch(arrays, rows)
    }

    /// The next effective spans: all arrays but the last, and the cells for the last one.
    fn next_intervals<'a>(
        &mut self,
        columns: &'a [IntervalColumn],
    ) -> Result<(Vec<ArrayRef>, Vec<Option<&'a Cell>>), EncodeError> {
        let objects = Arc::clone(&self.content.objects);
        let mut names: [TextRuns; 2] = Default::default();
        let mut ids = StringBuilder::new();
        let mut borders = [0, 1].map(|_| Int64Builder::new());
        let mut cells: Vec<Option<&Cell>> = Vec::new();
        let (mut bytes, mut payload_bytes) = (0, 0);
        let (mut place, mut next_row) = self.next_in_column;
        while cells.len() < RECORD_ROWS && bytes < RECORD_BYTES && place < columns.len() {
            let column = &columns[place];
            let Some(row) = column.rows.get(next_row) else {
                (place, next_row) = (place + 1, 0);
                continue;
            };
            next_row += 1;
            let cell = &column.cells[row.cell as usize];
            names[0].push(&column.name);
            names[1].push(column.path.as_str());
            ids.append_value(objects.id(cell.object).text(&mut [0; ObjectId::TEXT_BYTES]));
            borders[0].append_value(row.interval.from().as_millis());
            borders[1].append_value(row.interval.until().as_millis());
            cells.push(Some(cell));
            bytes += RECORD_FIXED_BYTES;
            if self.shape.encoding != Encoding::RunEnd {
                bytes += column.name.len() + column.path.as_str().len();
            }
            if self.shape.cell == CellKind::Payload {
                let bytes = self.bytes_of(cell);
                if bytes > MAX_CELL_BYTES {
                    return Err(EncodeError::TooLarge {
                        column: column.name.to_string(),
                        path: column.path.to_string(),
                        bytes,
                        limit_bytes: MAX_CELL_BYTES,
                    });
                }
                payload_bytes += bytes;
                if payload_bytes >= PAYLOAD_BATCH_BYTES {
                    break;
                }
            }
        }
        while columns.get(place).is_some_and(|column| column.rows.len() <= next_row) {
            (place, next_row) = (place + 1, 0);
        }
        self.over = place == columns.len();
        self.next_in_column = (place, next_row);
        let rows = cells.len();
        let [column, path] = names.map(|runs| runs.finish(self.shape.encoding, rows));
        let [from, until] = borders.map(|mut builder| -> ArrayRef { Arc::new(builder.finish()) });
        Ok((vec![column?, path?, from, until, Arc::new(ids.finish())], cells))
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

/// The cells at these indices of a column.
fn at<'a>(
    column: &'a Column,
    places: &'a [Option<u32>],
) -> impl ExactSizeIterator<Item = Option<&'a Cell>> + Clone {
    places.iter().map(|place| place.map(|place| &column.cells[place as usize]))
}

/// The cell index of each row.
fn expanded(column: &Column, from: usize, until: usize) -> Vec<Option<u32>> {
    let mut places = Vec::with_capacity(until - from);
    let mut start = from as i32;
    for run in &column.runs[column.runs_within(start, until as i32)] {
        let end = run.end.min(until as i32);
        places.resize(places.len() + (end - start) as usize, run.cell);
        start = end;
    }
    places
}

/// The last row up to `wanted` at which a run of every column ends, or the first such row after it.
fn whole_runs(columns: &[Column], from: usize, wanted: usize, rows: usize) -> usize {
    let ends_at =
        |column: &Column, row: i32| column.runs.binary_search_by_key(&row, |run| run.end).is_ok();
    let common = |row: &i32| columns.iter().all(|column| ends_at(column, *row));
    let Some(first) = columns.first() else { return rows };
    let (from, wanted) = (from as i32, wanted as i32);
    let runs = &first.runs[first.runs_within(from, rows as i32)];
    let ends = || runs.iter().map(|run| run.end).filter(|&end| from < end);
    let before = ends().take_while(|&end| end <= wanted).filter(common).last();
    let end = before.or_else(|| ends().filter(|&end| wanted < end).find(common));
    end.map_or(rows, |end| end as usize)
}

fn timestamps_array(timestamps: &Timestamps, from: usize, until: usize) -> Int64Array {
    let mut builder = Int64Builder::with_capacity(until - from);
    let mut start = from;
    for (end, value) in timestamps.runs_from(from) {
        let end = end.min(until);
        match value {
            Some(at) => builder.append_value_n(at.as_millis(), end - start),
            None => builder.append_nulls(end - start),
        }
        start = end;
        if end == until {
            break;
        }
    }
    builder.finish()
}
