//! MetaHeaders as they cross the wire, without arrays in between: what most tables are, and where an
//! array for each of many short columns would cost more than all else.
//!
//! ```text
//!  run_end     node rows ─ run_ends: node, no validity, Int32 … ─ values: node, validity, 40 B …
//!  dictionary  node rows ─ validity, keys Int32 …           and before, by column: values 40 B …
//! ```
//!
//! From one table of a kind to the next most objects are the same, so most dictionaries are: those
//! that were encoded last are kept, and what is the same message again can be seen without a look at
//! its bytes.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arrow_ipc::{
    Buffer, DictionaryBatchBuilder, FieldNode, MessageBuilder, MessageHeader, MetadataVersion,
    RecordBatchBuilder,
};
use flatbuffers::FlatBufferBuilder;

use super::cells::NOTHING;
use super::content::{Cell, Column};
use super::ipc::Message;
use crate::shm::MetaHeader;

/// Arrow pads each buffer to this.
const ALIGNMENT: usize = 64;

/// The body of a message, and where its buffers are in it.
#[derive(Default)]
struct Body {
    bytes: Vec<u8>,
    buffers: Vec<Buffer>,
}

impl Body {
    fn with_capacity(bytes: usize, buffers: usize) -> Self {
        Self { bytes: Vec::with_capacity(bytes), buffers: Vec::with_capacity(buffers) }
    }

    /// One more buffer, with what `write` puts behind the others.
    fn buffer(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let start = self.bytes.len();
        write(&mut self.bytes);
        let length = self.bytes.len() - start;
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGNMENT), 0);
        self.buffers.push(Buffer::new(start as i64, length as i64));
    }

    /// The message of a batch of so many rows, or of the dictionary with an id.
    fn into_message(self, rows: usize, nodes: &[FieldNode], dictionary: Option<i64>) -> Message {
        let Self { bytes, buffers } = self;
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
        message.add_bodyLength(bytes.len() as i64);
        message.add_header(header);
        let message = message.finish();
        builder.finish(message, None);
        Message { header: builder.finished_data().to_vec().into(), body: bytes.into() }
    }
}

/// The dictionaries that were encoded last, for tables of one kind.
#[derive(Debug, Default)]
pub struct Dictionaries(Mutex<Arc<Kept>>);

#[derive(Debug, Default)]
struct Kept {
    /// By column: what stands in it.
    cells: Vec<Vec<MetaHeader>>,
    /// And as messages.
    messages: Arc<[Message]>,
}

/// Beyond so many cells in all, dictionaries are made anew for each table.
const MAX_KEPT_CELLS: usize = 512;

impl Dictionaries {
    /// Those of these columns, in their order.
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
            *self.kept() = Arc::new(Kept { cells, messages: Arc::clone(&messages) });
            return messages;
        }
        Arc::clone(&kept.messages)
    }

    fn kept(&self) -> MutexGuard<'_, Arc<Kept>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The message of a dictionary whose values are these.
fn dictionary_message(cells: &[Cell], id: i64) -> Message {
    let mut body = Body::with_capacity(cells.len() * MetaHeader::BYTES + ALIGNMENT, 2);
    body.buffer(|_| {});
    body.buffer(|bytes| {
        cells.iter().for_each(|cell| bytes.extend_from_slice(&cell.header.to_bytes()));
    });
    let nodes = [FieldNode::new(cells.len() as i64, 0)];
    body.into_message(cells.len(), &nodes, Some(id))
}

/// The batch of the rows from `from` to before `until`, whose keys are places of the columns' cells.
pub(super) fn dictionary_batch(columns: &[Column], from: usize, until: usize) -> Message {
    let rows = until - from;
    let (from, until) = (from as i32, until as i32);
    let room = (rows * size_of::<i32>()).next_multiple_of(ALIGNMENT) + ALIGNMENT;
    let mut body = Body::with_capacity(columns.len() * room, columns.len() * 2);
    let mut nodes = Vec::with_capacity(columns.len());
    for column in columns {
        let runs = &column.runs[column.runs_within(from, until)];
        let lengths = runs.iter().scan(from, |start, run| {
            let end = run.end.min(until);
            Some((run.cell, (end - std::mem::replace(start, end)) as usize))
        });
        let nulls = lengths.clone().filter(|(cell, _)| cell.is_none());
        let nulls: usize = nulls.map(|(_, length)| length).sum();
        nodes.push(FieldNode::new(rows as i64, nulls as i64));
        body.buffer(|bytes| {
            if nulls > 0 {
                let start = bytes.len();
                bytes.resize(start + rows.div_ceil(8), 0);
                let mut row = 0;
                for (cell, length) in lengths.clone() {
                    let valid = if cell.is_some() { row..row + length } else { row..row };
                    valid.for_each(|row| bytes[start + row / 8] |= 1 << (row % 8));
                    row += length;
                }
            }
        });
        body.buffer(|bytes| {
            for (cell, length) in lengths {
                // As in Arrow's own: under a null stands the first.
                let key = cell.map_or(0, |cell| cell as i32).to_le_bytes();
                bytes.extend(std::iter::repeat_n(key, length).flatten());
            }
        });
    }
    body.into_message(rows, &nodes, None)
}

/// The message of the batch of the rows from `from` to before `until`.
pub(super) fn run_end_batch(columns: &[Column], from: usize, until: usize) -> Message {
    let rows = until - from;
    let (from, until) = (from as i32, until as i32);
    let runs = columns.iter().map(|column| &column.runs[column.runs_within(from, until)]);
    let padded = |bytes: usize| bytes.next_multiple_of(ALIGNMENT);
    let room = runs.clone().map(|runs| {
        padded(runs.len() * size_of::<i32>()) + padded(runs.len() * MetaHeader::BYTES) + ALIGNMENT
    });
    let mut body = Body::with_capacity(room.sum(), columns.len() * 4);
    let mut nodes = Vec::with_capacity(columns.len() * 3);
    for (column, runs) in columns.iter().zip(runs) {
        let (count, nulls) = (runs.len(), runs.iter().filter(|run| run.cell.is_none()).count());
        let counts = [(rows, 0), (count, 0), (count, nulls)];
        nodes.extend(counts.map(|(length, nulls)| FieldNode::new(length as i64, nulls as i64)));
        body.buffer(|_| {});
        body.buffer(|bytes| {
            let ends = runs.iter().map(|run| run.end.min(until) - from);
            ends.for_each(|end| bytes.extend_from_slice(&end.to_le_bytes()));
        });
        body.buffer(|bytes| {
            if nulls > 0 {
                bytes.extend(runs.chunks(8).map(|runs| {
                    let bits = runs.iter().enumerate();
                    bits.fold(0, |byte, (bit, run)| byte | u8::from(run.cell.is_some()) << bit)
                }));
            }
        });
        body.buffer(|bytes| {
            for run in runs {
                let header = run.cell.map_or(NOTHING, |cell| column.cells[cell as usize].header);
                bytes.extend_from_slice(&header.to_bytes());
            }
        });
    }
    body.into_message(rows, &nodes, None)
}
