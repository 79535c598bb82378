//! Run-end encoded MetaHeaders as they cross the wire, without arrays in between: what most tables
//! are, and where an array for each of many short columns would cost more than all else.
//!
//! ```text
//!  column:  node rows ─ run_ends: node, no validity, Int32 … ─ values: node, validity, 40 B …
//! ```

use arrow_ipc::{
    Buffer, FieldNode, MessageBuilder, MessageHeader, MetadataVersion, RecordBatchBuilder,
};
use flatbuffers::FlatBufferBuilder;

use super::cells::NOTHING;
use super::content::Column;
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
    /// One more buffer, with what `write` puts behind the others.
    fn buffer(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let start = self.bytes.len();
        write(&mut self.bytes);
        let length = self.bytes.len() - start;
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGNMENT), 0);
        self.buffers.push(Buffer::new(start as i64, length as i64));
    }
}

/// The message of the batch of the rows from `from` to before `until`.
pub(super) fn run_end_message(columns: &[Column], from: usize, until: usize) -> Message {
    let rows = until - from;
    let (from, until) = (from as i32, until as i32);
    let runs = columns.iter().map(|column| &column.runs[column.runs_within(from, until)]);
    let padded = |bytes: usize| bytes.next_multiple_of(ALIGNMENT);
    let room = runs.clone().map(|runs| {
        padded(runs.len() * size_of::<i32>()) + padded(runs.len() * MetaHeader::BYTES) + ALIGNMENT
    });
    let mut body = Body {
        bytes: Vec::with_capacity(room.sum()),
        buffers: Vec::with_capacity(columns.len() * 4),
    };
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
    let Body { bytes, buffers } = body;
    let mut builder = FlatBufferBuilder::with_capacity(buffers.len() * 16 + nodes.len() * 16 + 256);
    let buffers = builder.create_vector(&buffers);
    let nodes = builder.create_vector(&nodes);
    let mut batch = RecordBatchBuilder::new(&mut builder);
    batch.add_length(rows as i64);
    batch.add_nodes(nodes);
    batch.add_buffers(buffers);
    let batch = batch.finish();
    let mut message = MessageBuilder::new(&mut builder);
    message.add_version(MetadataVersion::V5);
    message.add_header_type(MessageHeader::RecordBatch);
    message.add_bodyLength(bytes.len() as i64);
    message.add_header(batch.as_union_value());
    let message = message.finish();
    builder.finish(message, None);
    Message { header: builder.finished_data().to_vec().into(), body: bytes.into() }
}
