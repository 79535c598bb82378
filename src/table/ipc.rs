//! Encodes record batches as IPC messages.
//!
//! Each dictionary is sent once: all batches of a table share its array. arrow-flight's encoder is
//! not used: by default it expands dictionaries, and it splits batches by slicing, which counts
//! whole buffers.

use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_ipc::writer::{
    DictionaryHandling, DictionaryTracker, EncodedData, IpcDataGenerator, IpcWriteContext,
    IpcWriteOptions,
};
use arrow_schema::{DataType, Schema};
use bytes::Bytes;

use super::encode_error::EncodeError;
use super::part::Part;

/// One IPC message: schema, dictionary or batch.
#[derive(Debug, Clone)]
pub struct Message {
    /// The flatbuffer (`data_header` of FlightData).
    pub header: Bytes,
    /// The buffers (`data_body` of FlightData), or the first part of them.
    pub body: Bytes,
    /// The parts of the buffers after `body`. The payload of a large object is a part of its own,
    /// which stays in shared memory until it is sent.
    pub rest: Vec<Part>,
}

impl Message {
    /// A message whose buffers are contiguous.
    pub fn new(header: Bytes, body: Bytes) -> Self {
        Self { header, body, rest: Vec::new() }
    }

    /// All buffers in one piece. Copies the payloads.
    ///
    /// # Errors
    /// [`EncodeError::LeaseEnded`] if the lease of the table has ended.
    #[cfg(test)]
    pub(crate) fn whole_body(&self) -> Result<Bytes, EncodeError> {
        if self.rest.is_empty() {
            return Ok(self.body.clone());
        }
        let mut body = bytes::BytesMut::with_capacity(self.body.len() + self.rest_bytes());
        body.extend_from_slice(&self.body);
        for mut part in self.rest.iter().cloned() {
            body.extend_from_slice(&part.take_front(usize::MAX)?);
        }
        Ok(body.freeze())
    }

    /// Size of the parts after `body` in bytes.
    pub(crate) fn rest_bytes(&self) -> usize {
        self.rest.iter().map(Part::len).sum()
    }

    /// Size of the header and all buffers in bytes.
    pub fn bytes(&self) -> usize {
        self.header.len() + self.body.len() + self.rest_bytes()
    }
}

/// Payloads in shared memory are not compared: a message with such payloads equals no message.
impl PartialEq for Message {
    fn eq(&self, other: &Self) -> bool {
        self.rest.is_empty()
            && other.rest.is_empty()
            && is_same(&self.header, &other.header)
            && is_same(&self.body, &other.body)
    }
}

/// Compares addresses before bytes: cached messages are the same memory.
fn is_same(one: &Bytes, other: &Bytes) -> bool {
    (one.as_ptr(), one.len()) == (other.as_ptr(), other.len()) || one == other
}

/// Messages of one batch.
#[derive(Debug, Clone)]
pub struct BatchMessages {
    /// The dictionaries that it needs, in the order of the columns; empty if they were sent with an
    /// earlier batch.
    pub dictionaries: Arc<[Message]>,
    /// The batch itself.
    pub batch: Message,
}

impl BatchMessages {
    /// The messages in the order in which they are sent.
    pub fn into_messages(self) -> impl Iterator<Item = Message> {
        let Self { dictionaries, batch } = self;
        (0..dictionaries.len()).map(move |place| dictionaries[place].clone()).chain([batch])
    }

    /// Size of all messages in bytes.
    pub fn bytes(&self) -> usize {
        let all = self.dictionaries.iter().chain([&self.batch]);
        all.map(Message::bytes).sum()
    }
}

impl From<EncodedData> for Message {
    fn from(data: EncodedData) -> Self {
        Self::new(data.ipc_message.into(), data.arrow_data.into())
    }
}

/// Writer of one stream of IPC messages.
pub struct MessageWriter {
    generator: IpcDataGenerator,
    tracker: DictionaryTracker,
    options: IpcWriteOptions,
    context: IpcWriteContext,
}

fn options() -> IpcWriteOptions {
    IpcWriteOptions::default().with_dictionary_handling(DictionaryHandling::Resend)
}

impl MessageWriter {
    /// Begins a stream; returns the writer and the schema message.
    pub fn begin(schema: &Schema) -> (Self, Message) {
        let generator = IpcDataGenerator::default();
        let mut tracker = DictionaryTracker::new(false);
        let options = options();
        let first =
            generator.schema_to_bytes_with_dictionary_tracker(schema, &mut tracker, &options);
        let context = IpcWriteContext::default();
        (Self { generator, tracker, options, context }, first.into())
    }

    /// Continues a stream whose schema message was made elsewhere.
    pub(crate) fn after_schema(schema: &Schema) -> Self {
        let generator = IpcDataGenerator::default();
        let mut tracker = DictionaryTracker::new(false);
        // Only top-level fields of a table are dictionaries. They have consecutive ids.
        let fields = schema.fields().iter();
        for _ in fields.filter(|field| matches!(field.data_type(), DataType::Dictionary(..))) {
            tracker.next_dict_id();
        }
        let context = IpcWriteContext::default();
        Self { generator, tracker, options: options(), context }
    }

    /// Messages of one batch: new dictionaries, then the batch.
    ///
    /// # Errors
    /// [`EncodeError::Arrow`] if Arrow cannot encode the batch.
    pub fn write(&mut self, batch: &RecordBatch) -> Result<BatchMessages, EncodeError> {
        let Self { generator, tracker, options, context } = self;
        let (dictionaries, batch) = generator.encode(batch, tracker, options, context)?;
        let dictionaries = dictionaries.into_iter().map(Message::from).collect();
        Ok(BatchMessages { dictionaries, batch: batch.into() })
    }
}
