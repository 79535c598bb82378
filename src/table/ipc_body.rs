//! Writes MetaHeaders as IPC messages without intermediate arrays. Most tables hold MetaHeaders,
//! and for many short columns building an array each would dominate the cost.
//!
//! ```text
//!  run_end     node rows ─ run_ends: node, no validity, Int32 … ─ values: node, validity, 40 B …
//!  dictionary  node rows ─ validity, keys Int32 …           and before, by column: values 40 B …
//! ```
//!
//! Consecutive tables of a kind have mostly the same objects, and so the same dictionaries. The
//! dictionaries encoded last are kept, and equal messages are recognised by their address, without
//! comparing their bytes.

use std::sync::Arc;

use arrow_ipc::{
    Buffer, DictionaryBatchBuilder, FieldNode, MessageBuilder, MessageHeader, MetadataVersion,
    RecordBatchBuilder, root_as_message,
};
use bytes::Bytes;
use flatbuffers::FlatBufferBuilder;

use super::cells::NOTHING;
use super::content::{Cell, Column, Objects};
use super::encode_error::EncodeError;
use super::ipc::Message;
use super::part::{ObjectPart, Part, PayloadPins};
use super::request_options::CellKind;
use crate::index::Timestamps;
use crate::shm::MetaHeader;
use crate::sync::{Mutex, MutexGuard};

/// Alignment of each buffer, as in Arrow's writer.
const ALIGNMENT: usize = 64;

/// Objects of at least this size are not copied into a message: their bytes in shared memory become
/// parts of it.
const SHARED_BYTES: usize = 4 << 10;

/// Body of a message, and the positions of its buffers.
#[derive(Default)]
struct BodyBuffers {
    /// The bytes after `parts`.
    bytes: Vec<u8>,
    parts: Vec<Part>,
    /// Total length of the parts.
    parts_bytes: usize,
    buffers: Vec<Buffer>,
}

/// Payloads of a table, for copying into a message or for parts of it.
#[derive(Clone, Copy)]
pub(super) struct Payloads<'a> {
    pub(super) objects: &'a dyn Objects,
    /// Keeps these objects in place for the parts of messages.
    pub(super) pins: &'a Arc<PayloadPins>,
}

impl BodyBuffers {
    fn with_capacity(bytes: usize, buffers: usize) -> Self {
        let buffers = Vec::with_capacity(buffers);
        Self { bytes: Vec::with_capacity(bytes), buffers, ..Self::default() }
    }

    fn len(&self) -> usize {
        self.parts_bytes + self.bytes.len()
    }

    /// Appends a buffer with the bytes that `write` adds.
    fn buffer(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let start = self.len();
        write(&mut self.bytes);
        self.end_buffer(start);
    }

    fn end_buffer(&mut self, start: usize) {
        let length = self.len() - start;
        let padding = self.len().next_multiple_of(ALIGNMENT) - self.len();
        self.bytes.resize(self.bytes.len() + padding, 0);
        self.buffers.push(Buffer::new(start as i64, length as i64));
    }

    fn part(&mut self, part: Part) {
        if !part.is_empty() {
            self.parts_bytes += part.len();
            self.parts.push(part);
        }
    }

    /// Appends a validity buffer: a bit per item, set where `is_valid`; empty if all items are
    /// valid.
    fn validity(&mut self, nulls: usize, is_valid: impl ExactSizeIterator<Item = bool>) {
        self.buffer(|bytes| {
            if nulls > 0 {
                let start = bytes.len();
                bytes.resize(start + is_valid.len().div_ceil(8), 0);
                for (item, is_valid) in is_valid.enumerate() {
                    bytes[start + item / 8] |= u8::from(is_valid) << (item % 8);
                }
            }
        });
    }

    /// Appends two buffers: the end offset of each cell's payload, and the payloads. Payloads of
    /// large objects are not copied.
    fn payloads<'a>(
        &mut self,
        cells: impl Iterator<Item = Option<&'a Cell>> + Clone,
        payloads: Payloads<'_>,
    ) {
        let payload =
            |cell: Option<&Cell>| cell.map_or(&[][..], |cell| payloads.objects.bytes(cell.object));
        self.buffer(|bytes| {
            let mut end = 0_i64;
            bytes.extend_from_slice(&end.to_le_bytes());
            for cell in cells.clone() {
                end += payload(cell).len() as i64;
                bytes.extend_from_slice(&end.to_le_bytes());
            }
        });
        let start = self.len();
        for cell in cells {
            let Some(Cell { object: number, .. }) = cell else { continue };
            let bytes = payload(cell);
            if bytes.len() < SHARED_BYTES {
                self.bytes.extend_from_slice(bytes);
                continue;
            }
            let before = std::mem::take(&mut self.bytes);
            self.part(Part::Own(before.into()));
            self.part(Part::Object(ObjectPart::new(payloads.pins, *number, bytes.len())));
        }
        self.end_buffer(start);
    }

    /// Appends the buffers of an array of these cells; returns its node.
    fn cells<'a>(
        &mut self,
        cells: impl ExactSizeIterator<Item = Option<&'a Cell>> + Clone,
        kind: CellKind,
        payloads: Payloads<'_>,
    ) -> FieldNode {
        let nulls = cells.clone().filter(Option::is_none).count();
        let count = cells.len();
        self.validity(nulls, cells.clone().map(|cell| cell.is_some()));
        match kind {
            CellKind::Payload => self.payloads(cells, payloads),
            _ => self.buffer(|bytes| {
                for cell in cells {
                    let header = cell.map_or(NOTHING, |cell| cell.header);
                    bytes.extend_from_slice(&header.to_bytes());
                }
            }),
        }
        FieldNode::new(count as i64, nulls as i64)
    }

    /// The message of a batch with this number of rows, or of the dictionary with an id.
    fn into_message(self, rows: usize, nodes: &[FieldNode], dictionary: Option<i64>) -> Message {
        let body_bytes = self.len();
        let Self { bytes, mut parts, buffers, .. } = self;
        if !bytes.is_empty() {
            parts.push(Part::Own(bytes.into()));
        }
        let room = buffers.len() * 16 + nodes.len() * 16 + 256;
        let mut builder = FlatBufferBuilder::with_capacity(room);
        let buffers = builder.create_vector(&buffers);
        let nodes = builder.create_vector(nodes);
        let mut batch = RecordBatchBuilder::new(&mut builder);
        batch.add_length(rows as i64);
        batch.add_nodes(nodes);
        batch.add_buffers(buffers);
        let batch = batch.finish();
        let (kind, header) = match dictionary {
            Some(id) => {
                let mut dictionary = DictionaryBatchBuilder::new(&mut builder);
                dictionary.add_id(id);
                dictionary.add_data(batch);
                (MessageHeader::DictionaryBatch, dictionary.finish().as_union_value())
            }
            None => (MessageHeader::RecordBatch, batch.as_union_value()),
        };
        let mut message = MessageBuilder::new(&mut builder);
        message.add_version(MetadataVersion::V5);
        message.add_header_type(kind);
        message.add_bodyLength(body_bytes as i64);
        message.add_header(header);
        let message = message.finish();
        builder.finish(message, None);
        let header = builder.finished_data().to_vec().into();
        let mut rest = parts.into_iter().peekable();
        let own = rest.next_if(|part| matches!(part, Part::Own(_)));
        let body = match own {
            Some(Part::Own(bytes)) => bytes,
            _ => Bytes::new(),
        };
        Message { header, body, rest: rest.collect() }
    }
}

/// The dictionaries encoded last, for tables of one kind.
#[derive(Debug, Default)]
pub struct Dictionaries(Mutex<Arc<SentDictionaries>>);

#[derive(Debug, Default)]
struct SentDictionaries {
    /// By column: the cells of its dictionary.
    cells: Vec<Vec<MetaHeader>>,
    /// The dictionaries as messages.
    messages: Arc<[Message]>,
}

/// Above this total number of cells, dictionaries are encoded anew for each table.
const MAX_KEPT_CELLS: usize = 512;

impl Dictionaries {
    /// The dictionaries of these columns, in the order of the columns.
    pub(super) fn messages(&self, columns: &[Column]) -> Arc<[Message]> {
        let made = |(column, id): (&Column, i64)| dictionary_message(&column.cells, id);
        if columns.iter().map(|column| column.cells.len()).sum::<usize>() > MAX_KEPT_CELLS {
            return columns.iter().zip(0..).map(made).collect();
        }
        let kept = Arc::clone(&self.kept());
        let same = |column: &Column, cells: &[MetaHeader]| {
            column.cells.iter().map(|cell| &cell.header).eq(cells)
        };
        let known: Vec<bool> = columns
            .iter()
            .enumerate()
            .map(|(place, column)| kept.cells.get(place).is_some_and(|cells| same(column, cells)))
            .collect();
        if known.len() != kept.cells.len() || known.contains(&false) {
            let messages = columns.iter().zip(0..).zip(&known).enumerate();
            let messages = messages.map(|(place, (one, known))| match known {
                true => kept.messages[place].clone(),
                false => made(one),
            });
            let headers = |column: &Column| column.cells.iter().map(|cell| cell.header).collect();
            let messages: Arc<[Message]> = messages.collect();
            let cells = columns.iter().map(headers).collect();
            *self.kept() = Arc::new(SentDictionaries { cells, messages: Arc::clone(&messages) });
            return messages;
        }
        Arc::clone(&kept.messages)
    }

    fn kept(&self) -> MutexGuard<'_, Arc<SentDictionaries>> {
        self.0.lock()
    }
}

/// Dictionary message whose values are the MetaHeaders of `cells`.
fn dictionary_message(cells: &[Cell], id: i64) -> Message {
    let mut body = BodyBuffers::with_capacity(cells.len() * MetaHeader::BYTES + ALIGNMENT, 2);
    body.buffer(|_| {});
    body.buffer(|bytes| {
        cells.iter().for_each(|cell| bytes.extend_from_slice(&cell.header.to_bytes()));
    });
    let nodes = [FieldNode::new(cells.len() as i64, 0)];
    body.into_message(cells.len(), &nodes, Some(id))
}

/// Dictionaries of columns whose cells are payloads, in the order of the columns.
pub(super) fn payload_dictionaries(columns: &[Column], payloads: Payloads<'_>) -> Arc<[Message]> {
    let message = |(column, id): (&Column, i64)| {
        let mut body = BodyBuffers::default();
        let node = body.cells(column.cells.iter().map(Some), CellKind::Payload, payloads);
        body.into_message(column.cells.len(), &[node], Some(id))
    };
    columns.iter().zip(0..).map(message).collect()
}

/// Fills the last column, of payloads, of a batch message that was encoded with an empty one, with
/// the payloads of `cells`.
///
/// # Errors
/// [`EncodeError::Arrow`] if `message` is not such a batch.
pub(super) fn with_payloads(
    message: &Message,
    cells: &[Option<&Cell>],
    payloads: Payloads<'_>,
) -> Result<Message, EncodeError> {
    let wrong = |reason: String| EncodeError::Arrow { reason };
    let parsed = root_as_message(&message.header).map_err(|error| wrong(error.to_string()))?;
    let batch = parsed.header_as_record_batch().ok_or_else(|| wrong("no batch".to_owned()))?;
    let nodes: Vec<FieldNode> = batch.nodes().iter().flatten().copied().collect();
    let mut buffers: Vec<Buffer> = batch.buffers().iter().flatten().copied().collect();
    // Validity, offsets and data of the last column.
    let first = buffers.len().saturating_sub(3);
    let end = buffers.get(first).map_or(0, |buffer| buffer.offset() as usize);
    buffers.truncate(first);
    let bytes = message.body.get(..end).ok_or_else(|| wrong("no body".to_owned()))?.to_vec();
    let mut body = BodyBuffers { bytes, buffers, ..BodyBuffers::default() };
    body.buffer(|_| {});
    body.payloads(cells.iter().copied(), payloads);
    Ok(body.into_message(cells.len(), &nodes, None))
}

/// The rows `from..until` of a table: one batch.
pub(super) struct RowWindow<'a> {
    pub(super) columns: &'a [Column],
    /// The timestamps, if the table has a column of them.
    pub(super) timestamps: Option<&'a Timestamps>,
    pub(super) from: usize,
    pub(super) until: usize,
    /// Kind of the cells: binary or payload.
    pub(super) cell: CellKind,
    pub(super) payloads: Payloads<'a>,
}

impl RowWindow<'_> {
    fn rows(&self) -> usize {
        self.until - self.from
    }

    /// The runs of a column within the window: the rows of each, and its cell.
    fn runs<'c>(
        &self,
        column: &'c Column,
    ) -> impl Iterator<Item = (usize, Option<u32>)> + Clone + use<'c> {
        let (from, until) = (self.from as i32, self.until as i32);
        let runs = &column.runs[column.runs_within(from, until)];
        runs.iter().scan(from, move |start, run| {
            let end = run.end.min(until);
            Some(((end - std::mem::replace(start, end)) as usize, run.cell))
        })
    }

    /// Appends the timestamp column, if there is one.
    fn begin(&self, body: &mut BodyBuffers, nodes: &mut Vec<FieldNode>) {
        let Some(timestamps) = self.timestamps else { return };
        let mut runs: Vec<(usize, Option<i64>)> = Vec::new();
        let mut start = self.from;
        for (end, at) in timestamps.runs_from(self.from) {
            let end = end.min(self.until);
            runs.push((end - start, at.map(|at| at.as_millis())));
            start = end;
            if end == self.until {
                break;
            }
        }
        let nulls = runs.iter().filter(|(_, at)| at.is_none()).map(|(rows, _)| rows).sum();
        nodes.push(FieldNode::new(self.rows() as i64, nulls as i64));
        let runs = runs.iter().copied();
        bits(body, self.rows(), nulls, runs.clone().map(|(rows, at)| (rows, at.is_some())));
        body.buffer(|bytes| {
            for (rows, at) in runs {
                repeat(bytes, &at.unwrap_or_default().to_le_bytes(), rows);
            }
        });
    }

    /// Batch message with run-end encoded columns.
    pub(super) fn run_end(&self) -> Message {
        let (from, until) = (self.from as i32, self.until as i32);
        let runs = self.columns.iter().map(|one| &one.runs[one.runs_within(from, until)]);
        let padded = |bytes: usize| bytes.next_multiple_of(ALIGNMENT);
        let room = runs.clone().map(|runs| {
            padded(runs.len() * size_of::<i32>())
                + padded(runs.len() * MetaHeader::BYTES)
                + ALIGNMENT
        });
        let mut body = BodyBuffers::with_capacity(room.sum(), self.columns.len() * 4);
        let mut nodes = Vec::with_capacity(self.columns.len() * 3);
        self.begin(&mut body, &mut nodes);
        for (column, runs) in self.columns.iter().zip(runs) {
            nodes.push(FieldNode::new(self.rows() as i64, 0));
            nodes.push(FieldNode::new(runs.len() as i64, 0));
            body.buffer(|_| {});
            body.buffer(|bytes| {
                let ends = runs.iter().map(|run| run.end.min(until) - from);
                ends.for_each(|end| bytes.extend_from_slice(&end.to_le_bytes()));
            });
            let cells = runs.iter().map(|run| run.cell.map(|cell| &column.cells[cell as usize]));
            nodes.push(body.cells(cells, self.cell, self.payloads));
        }
        body.into_message(self.rows(), &nodes, None)
    }

    /// Batch message with dictionary columns: their keys index the columns' cells.
    pub(super) fn dictionary(&self) -> Message {
        let room = (self.rows() * size_of::<i32>()).next_multiple_of(ALIGNMENT) + ALIGNMENT;
        let mut body =
            BodyBuffers::with_capacity(self.columns.len() * room, self.columns.len() * 2);
        let mut nodes = Vec::with_capacity(self.columns.len());
        self.begin(&mut body, &mut nodes);
        for column in self.columns {
            nodes.push(self.validity(&mut body, column));
            body.buffer(|bytes| {
                for (rows, cell) in self.runs(column) {
                    // As in Arrow's own encoder, the key under a null is the first.
                    let key = cell.map_or(0, |cell| cell as i32);
                    repeat(bytes, &key.to_le_bytes(), rows);
                }
            });
        }
        body.into_message(self.rows(), &nodes, None)
    }

    /// Batch message with a cell in each row.
    pub(super) fn plain(&self) -> Message {
        let mut body = BodyBuffers::default();
        if self.cell == CellKind::Binary {
            let room = (self.rows() * MetaHeader::BYTES).next_multiple_of(ALIGNMENT) + ALIGNMENT;
            body = BodyBuffers::with_capacity(self.columns.len() * room, self.columns.len() * 2);
        }
        let mut nodes = Vec::with_capacity(self.columns.len());
        self.begin(&mut body, &mut nodes);
        for column in self.columns {
            let cell = |place: Option<u32>| place.map(|place| &column.cells[place as usize]);
            nodes.push(self.validity(&mut body, column));
            let runs = self.runs(column);
            if self.cell == CellKind::Payload {
                let rows = runs.flat_map(|(rows, place)| std::iter::repeat_n(cell(place), rows));
                body.payloads(rows, self.payloads);
                continue;
            }
            body.buffer(|bytes| {
                for (rows, place) in runs {
                    let header = cell(place).map_or(NOTHING, |cell| cell.header);
                    repeat(bytes, &header.to_bytes(), rows);
                }
            });
        }
        body.into_message(self.rows(), &nodes, None)
    }

    /// Appends the validity buffer of a column; returns its node.
    fn validity(&self, body: &mut BodyBuffers, column: &Column) -> FieldNode {
        let runs = self.runs(column);
        let nulls = runs.clone().filter(|(_, cell)| cell.is_none());
        let nulls: usize = nulls.map(|(rows, _)| rows).sum();
        bits(body, self.rows(), nulls, runs.map(|(rows, cell)| (rows, cell.is_some())));
        FieldNode::new(self.rows() as i64, nulls as i64)
    }
}

/// Appends a validity buffer: a bit per row, set in the valid runs; empty if all are valid.
fn bits(
    body: &mut BodyBuffers,
    rows: usize,
    nulls: usize,
    runs: impl Iterator<Item = (usize, bool)>,
) {
    body.buffer(|bytes| {
        if nulls == 0 {
            return;
        }
        let start = bytes.len();
        bytes.resize(start + rows.div_ceil(8), 0);
        let mut row = 0;
        for (rows, is_valid) in runs {
            let valid = if is_valid { row..row + rows } else { row..row };
            valid.for_each(|row| bytes[start + row / 8] |= 1 << (row % 8));
            row += rows;
        }
    });
}

/// Writes `item` `times` times. Each copy doubles the bytes that were written.
fn repeat(bytes: &mut Vec<u8>, item: &[u8], times: usize) {
    let start = bytes.len();
    let wanted = item.len() * times;
    if times == 0 {
        return;
    }
    bytes.extend_from_slice(item);
    while bytes.len() - start < wanted {
        let more = (bytes.len() - start).min(wanted - (bytes.len() - start));
        bytes.extend_from_within(start..start + more);
    }
}
