//! The buffers of a batch: written once, and read as an IPC message or as Arrow arrays.
//!
//! ```text
//!  rows of cells ──▶ BatchBuffers: nodes and buffers, ─┬─▶ IPC message
//!                    in the order of the IPC format    └─▶ arrays, by the types of the schema
//!
//!  run_end     node rows ─ run_ends: node, no validity, Int32 … ─ values: cells
//!  dictionary  node rows ─ validity, keys Int32 …           and before, by column: cells
//!  plain       cells
//! ```
//!
//! The only code that knows the physical layout of a column writes it here, so a message and the
//! arrays of the same rows cannot differ. The arrays share the memory of the buffers.

use std::sync::Arc;

use arrow_array::{ArrayRef, make_array};
use arrow_buffer::Buffer as ArrowBuffer;
use arrow_data::{ArrayData, ArrayDataBuilder};
use arrow_ipc::{
    Buffer, DictionaryBatchBuilder, FieldNode, MessageBuilder, MessageHeader, MetadataVersion,
    RecordBatchBuilder, root_as_message,
};
use arrow_schema::DataType;
use bytes::Bytes;
use flatbuffers::FlatBufferBuilder;

use super::content::Objects;
use super::encode_error::EncodeError;
use super::ipc::Message;
use super::part::{ObjectPart, Part, PayloadPins};

/// Alignment of each buffer, as in Arrow's writer.
pub(super) const ALIGNMENT: usize = 64;

/// Objects of at least this size are not copied into a message: their bytes in shared memory become
/// parts of it.
const SHARED_BYTES: usize = 4 << 10;

/// The nodes and buffers of the columns of a batch.
#[derive(Default)]
pub(super) struct BatchBuffers {
    /// The bytes after `parts`.
    bytes: Vec<u8>,
    parts: Vec<Part>,
    /// Total length of the parts.
    parts_bytes: usize,
    /// The positions of the buffers.
    buffers: Vec<Buffer>,
    /// One node per array, parents before their children.
    nodes: Vec<FieldNode>,
}

/// Payloads of a table, for copying into a batch or for parts of a message.
#[derive(Clone, Copy)]
pub(super) struct Payloads<'a> {
    pub(super) objects: &'a dyn Objects,
    /// Keeps large objects in place for the parts of messages; `None`: all payloads are copied.
    pub(super) pins: Option<&'a Arc<PayloadPins>>,
}

impl BatchBuffers {
    pub(super) fn with_capacity(bytes: usize, buffers: usize) -> Self {
        let (nodes, buffers) = (Vec::with_capacity(buffers), Vec::with_capacity(buffers));
        Self { bytes: Vec::with_capacity(bytes), buffers, nodes, ..Self::default() }
    }

    /// The buffers of a batch message, without its last `dropped` buffers.
    ///
    /// # Errors
    /// [`EncodeError::Arrow`] if `message` is no batch.
    pub(super) fn from_message(message: &Message, dropped: usize) -> Result<Self, EncodeError> {
        let wrong = |reason: String| EncodeError::Arrow { reason };
        let parsed = root_as_message(&message.header).map_err(|error| wrong(error.to_string()))?;
        let batch = parsed.header_as_record_batch().ok_or_else(|| wrong("no batch".to_owned()))?;
        let nodes: Vec<FieldNode> = batch.nodes().iter().flatten().copied().collect();
        let mut buffers: Vec<Buffer> = batch.buffers().iter().flatten().copied().collect();
        let first = buffers.len().saturating_sub(dropped);
        let end = buffers.get(first).map_or(message.body.len(), |one| one.offset() as usize);
        buffers.truncate(first);
        let bytes = message.body.get(..end).ok_or_else(|| wrong("no body".to_owned()))?.to_vec();
        Ok(Self { bytes, buffers, nodes, ..Self::default() })
    }

    fn len(&self) -> usize {
        self.parts_bytes + self.bytes.len()
    }

    /// Appends the node of an array.
    pub(super) fn node(&mut self, length: usize, nulls: usize) {
        self.nodes.push(FieldNode::new(length as i64, nulls as i64));
    }

    /// Appends a buffer with the bytes that `write` adds.
    pub(super) fn buffer(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
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

    /// Appends node and validity buffer of an array with `length` items. `runs` are numbers of items
    /// and whether they are valid; the buffer is empty if all are.
    pub(super) fn validity(
        &mut self,
        length: usize,
        runs: impl Iterator<Item = (usize, bool)> + Clone,
    ) {
        let nulls = runs.clone().filter(|(_, is_valid)| !is_valid).map(|(items, _)| items).sum();
        self.node(length, nulls);
        self.buffer(|bytes| {
            if nulls == 0 {
                return;
            }
            let start = bytes.len();
            bytes.resize(start + length.div_ceil(8), 0);
            let mut item = 0;
            for (items, is_valid) in runs {
                let valid = if is_valid { item..item + items } else { item..item };
                valid.for_each(|item| bytes[start + item / 8] |= 1 << (item % 8));
                item += items;
            }
        });
    }

    /// Appends a run-end encoded array of `rows` rows: each run ends before a row of `ends`, which
    /// count from the first row of the batch. The caller appends the values.
    pub(super) fn run_ends(&mut self, rows: usize, ends: impl ExactSizeIterator<Item = i32>) {
        self.node(rows, 0);
        self.node(ends.len(), 0);
        self.buffer(|_| {});
        self.buffer(|bytes| ends.for_each(|end| bytes.extend_from_slice(&end.to_le_bytes())));
    }

    /// Appends two buffers: the end offset of each payload, and the payloads, each item of `numbers`
    /// being the number of an object, or `None` for an empty payload. Payloads of large objects are
    /// not copied into messages.
    pub(super) fn payloads(
        &mut self,
        numbers: impl Iterator<Item = Option<u32>> + Clone,
        payloads: Payloads<'_>,
    ) {
        let payload = |number: u32| payloads.objects.bytes(number);
        self.buffer(|bytes| {
            let mut end = 0_i64;
            bytes.extend_from_slice(&end.to_le_bytes());
            for number in numbers.clone() {
                end += number.map_or(0, |number| payload(number).len()) as i64;
                bytes.extend_from_slice(&end.to_le_bytes());
            }
        });
        let start = self.len();
        for number in numbers.flatten() {
            let bytes = payload(number);
            match payloads.pins.filter(|_| bytes.len() >= SHARED_BYTES) {
                None => self.bytes.extend_from_slice(bytes),
                Some(pins) => {
                    let before = std::mem::take(&mut self.bytes);
                    self.part(Part::Own(before.into()));
                    self.part(Part::Object(ObjectPart::new(pins, number, bytes.len())));
                }
            }
        }
        self.end_buffer(start);
    }

    /// The message of a batch with this number of rows, or of the dictionary with an id.
    pub(super) fn into_message(self, rows: usize, dictionary: Option<i64>) -> Message {
        let body_bytes = self.len();
        let Self { bytes, mut parts, buffers, nodes, .. } = self;
        if !bytes.is_empty() {
            parts.push(Part::Own(bytes.into()));
        }
        let room = buffers.len() * 16 + nodes.len() * 16 + 256;
        let mut builder = FlatBufferBuilder::with_capacity(room);
        let buffers = builder.create_vector(&buffers);
        let nodes = builder.create_vector(&nodes);
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

    /// The arrays of these types, which share the memory of the buffers. `dictionaries` has the
    /// values of each dictionary column in turn.
    ///
    /// # Errors
    /// [`EncodeError::Arrow`] if the buffers are not those of such arrays, or if payloads were not
    /// copied.
    pub(super) fn into_arrays<'a>(
        self,
        types: impl Iterator<Item = &'a DataType>,
        dictionaries: &[ArrayRef],
    ) -> Result<Vec<ArrayRef>, EncodeError> {
        let Self { bytes, parts, buffers, nodes, .. } = self;
        if !parts.is_empty() {
            return Err(mismatch("payloads outside of the batch"));
        }
        let mut reader = ArrayReader {
            body: ArrowBuffer::from_vec(bytes),
            buffers: buffers.iter(),
            nodes: nodes.iter(),
            dictionaries: dictionaries.iter(),
        };
        let arrays = types.map(|data_type| Ok(make_array(reader.next_array(data_type)?)));
        arrays.collect()
    }

    /// The only array, of this type.
    ///
    /// # Errors
    /// As [`into_arrays`](Self::into_arrays).
    pub(super) fn into_array(self, data_type: &DataType) -> Result<ArrayRef, EncodeError> {
        let arrays = self.into_arrays([data_type].into_iter(), &[])?;
        arrays.into_iter().next().ok_or_else(|| mismatch("no array"))
    }
}

fn mismatch(what: &str) -> EncodeError {
    EncodeError::Arrow { reason: format!("the buffers do not fit the schema: {what}") }
}

/// Takes arrays from buffers in the order in which they were written.
struct ArrayReader<'a> {
    body: ArrowBuffer,
    buffers: std::slice::Iter<'a, Buffer>,
    nodes: std::slice::Iter<'a, FieldNode>,
    dictionaries: std::slice::Iter<'a, ArrayRef>,
}

impl ArrayReader<'_> {
    fn next_buffer(&mut self) -> Result<ArrowBuffer, EncodeError> {
        let buffer = self.buffers.next().ok_or_else(|| mismatch("a buffer is missing"))?;
        let (start, length) = (buffer.offset() as usize, buffer.length() as usize);
        Ok(self.body.slice_with_length(start, length))
    }

    fn next_array(&mut self, data_type: &DataType) -> Result<ArrayData, EncodeError> {
        let node = self.nodes.next().ok_or_else(|| mismatch("a node is missing"))?;
        let mut array = ArrayData::builder(data_type.clone()).len(node.length() as usize);
        if !matches!(data_type, DataType::RunEndEncoded(..)) {
            let validity = self.next_buffer()?;
            array = array.null_bit_buffer((node.null_count() > 0).then_some(validity));
        }
        let array = match data_type {
            DataType::RunEndEncoded(ends, values) => array
                .add_child_data(self.next_array(ends.data_type())?)
                .add_child_data(self.next_array(values.data_type())?),
            DataType::Dictionary(..) => {
                let values = self.dictionaries.next();
                let values = values.ok_or_else(|| mismatch("a dictionary is missing"))?;
                array.add_buffer(self.next_buffer()?).add_child_data(values.to_data())
            }
            DataType::Struct(fields) => fields.iter().try_fold(array, |array, field| {
                Ok::<ArrayDataBuilder, EncodeError>(
                    array.add_child_data(self.next_array(field.data_type())?),
                )
            })?,
            DataType::FixedSizeList(item, _) => {
                array.add_child_data(self.next_array(item.data_type())?)
            }
            DataType::LargeBinary => {
                array.add_buffer(self.next_buffer()?).add_buffer(self.next_buffer()?)
            }
            _ => array.add_buffer(self.next_buffer()?),
        };
        // Buffers begin at multiples of 64 bytes in an allocation that need not be aligned itself.
        Ok(array.align_buffers(true).build()?)
    }
}
