//! Decoding of Arrow messages from clients. Malformed input cannot bring the service down.
//!
//! arrow's decoder panics on some malformed input: the panic is caught here and is the client's
//! error. Memory is charged to the client before a message is decoded, decompressed or expanded.

use std::cell::Cell;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_flight::FlightData;
use arrow_flight::decode::{DecodedPayload, FlightDataDecoder};
use arrow_flight::error::FlightError;
use arrow_ipc::{MessageHeader, RecordBatch as ArrowBatch, root_as_message};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use futures::channel::mpsc as feed;
use futures::{FutureExt as _, StreamExt as _};
use tonic::Status;

use super::status::status;
use crate::budget::{Charge, ClientBudget};
use crate::cache::CacheError;
use crate::index::Timestamps;
use crate::table::{RequestError, TableRows, plain_timestamps, rows_of_part};

const CONTRADICTION: &str = "its Arrow data contradict themselves";

/// The status for malformed input; `what` names the input.
pub(super) fn malformed(what: &'static str, reason: impl Into<String>) -> Status {
    status(&RequestError::Malformed { what, reason: reason.into() })
}

/// The timestamps in the messages of a stream, each with a header of Arrow.
///
/// # Errors
/// INVALID_ARGUMENT for every malformed message.
pub fn timestamps_of_messages(messages: Vec<FlightData>) -> Result<Timestamps, Status> {
    let budget = ClientBudget::default();
    let charged = messages.into_iter().map(|message| {
        let charge = budget.charge(0, "messages of an embedded cache");
        Ok((message, charge.map_err(|error| status(&error))?))
    });
    let rows = rows_of_charged(charged.collect::<Result<_, Status>>()?, &[])?;
    Ok(Arc::unwrap_or_clone(rows.timestamps))
}

/// The rows in the messages of a stream, each with the charge for its bytes: timestamps, and the
/// keys of these names.
///
/// # Errors
/// INVALID_ARGUMENT for every malformed message; RESOURCE_EXHAUSTED if the decoded data exceeds the
/// client's memory budget.
pub(super) fn rows_of_charged(
    messages: Vec<(FlightData, Charge)>,
    keys: &[Arc<str>],
) -> Result<TableRows, Status> {
    let mut decoding = Decoding::new("timeframe");
    let (mut parts, mut charges, mut first_row) = (Vec::new(), Vec::new(), 0);
    for (message, mut charge) in messages {
        if let Some((times, more)) = decoding.next(message, charge)? {
            charge = more;
            let part = times.read(keys, first_row, &mut charge)?;
            first_row += part.timestamps.len();
            parts.push(part);
            charges.push(charge);
        }
    }
    let charge = charges.first_mut();
    match (&parts[..], decoding.schema) {
        ([], Some(schema)) => rows_of_batches(&[RecordBatch::new_empty(schema)], keys, 0, charge),
        ([], None) => rows_of_batches(&[], keys, 0, charge),
        ([_], _) => Ok(parts.swap_remove(0)),
        _ => {
            // While the parts are joined, all keys are in memory twice.
            let bytes: usize = parts.iter().map(|part| part.keys.memory_bytes()).sum();
            if let Some(charge) = charge {
                charge.grow(bytes as u64).map_err(|error| status(&error))?;
            }
            TableRows::concat::<CacheError>(&parts).map_err(|error| status(&error))
        }
    }
}

/// # Errors
/// INVALID_ARGUMENT, RESOURCE_EXHAUSTED.
fn rows_of_batches(
    batches: &[RecordBatch],
    keys: &[Arc<str>],
    first_row: usize,
    mut charge: Option<&mut Charge>,
) -> Result<TableRows, Status> {
    const WHAT: &str = "table of timestamps";
    let grow = |bytes: u64| match &mut charge {
        Some(charge) => charge.grow(bytes).map_err(CacheError::from),
        None => Ok(()),
    };
    let read = isolated(|| rows_of_part(batches, keys, first_row, grow));
    read.ok_or_else(|| malformed(WHAT, CONTRADICTION))?.map_err(|error| status(&error))
}

/// The rows of one message.
pub(super) enum MessageTimestamps {
    Read(Timestamps),
    Batch(RecordBatch),
}

impl MessageTimestamps {
    /// The timestamps, and the keys of these names; these are charged to `charge`. Errors name rows
    /// counted from `first_row` on.
    ///
    /// # Errors
    /// INVALID_ARGUMENT, RESOURCE_EXHAUSTED.
    pub(super) fn read(
        self,
        keys: &[Arc<str>],
        first_row: usize,
        charge: &mut Charge,
    ) -> Result<TableRows, Status> {
        match self {
            Self::Read(timestamps) => Ok(timestamps.into()),
            Self::Batch(batch) => rows_of_batches(&[batch], keys, first_row, Some(charge)),
        }
    }
}

/// Decoder of the messages of one stream. Timestamps in the common layout are read in place;
/// arrow's decoder handles all others.
pub(super) struct Decoding {
    /// The name of a message in errors.
    what: &'static str,
    feed: feed::UnboundedSender<Result<FlightData, FlightError>>,
    decoder: FlightDataDecoder,
    /// Whether the decoder was fed and not yet polled: then it decodes the next batch.
    fed: bool,
    schema: Option<SchemaRef>,
    /// The charges for the dictionaries that the decoder keeps, by id.
    dictionaries: HashMap<i64, Vec<Charge>>,
}

impl Decoding {
    pub(super) fn new(what: &'static str) -> Self {
        let (feed, fed) = feed::unbounded();
        Self {
            what,
            feed,
            decoder: FlightDataDecoder::new(fed),
            fed: false,
            schema: None,
            dictionaries: HashMap::new(),
        }
    }

    /// Decodes a message with a header into timestamps with their charge, or nothing yet. The size
    /// after decompression or expansion is charged first.
    ///
    /// # Errors
    /// INVALID_ARGUMENT, RESOURCE_EXHAUSTED.
    pub(super) fn next(
        &mut self,
        message: FlightData,
        mut charge: Charge,
    ) -> Result<Option<(MessageTimestamps, Charge)>, Status> {
        let parsed = root_as_message(&message.data_header)
            .map_err(|error| malformed(self.what, error.to_string()))?;
        let header = parsed.header_type();
        if !self.fed
            && let (Some(schema), Some(batch)) = (&self.schema, parsed.header_as_record_batch())
            && let Some(timestamps) = plain_timestamps(schema, batch, &message.data_body)
        {
            return Ok(Some((MessageTimestamps::Read(timestamps), charge)));
        }
        let decoded_bytes = match parsed.header_as_record_batch() {
            Some(batch) => decoded_bytes(batch, &message.data_body, self.schema.as_deref()),
            None => {
                let dictionary = parsed.header_as_dictionary_batch();
                let data = dictionary.and_then(|dictionary| dictionary.data());
                data.map_or(0, |batch| decoded_bytes(batch, &message.data_body, None))
            }
        };
        charge.grow(decoded_bytes).map_err(|error| status(&error))?;
        if let Some(dictionary) = parsed.header_as_dictionary_batch() {
            let charges = self.dictionaries.entry(dictionary.id()).or_default();
            if !dictionary.isDelta() {
                charges.clear();
            }
            charges.push(charge);
            let _ = self.feed.unbounded_send(Ok(message));
            // A dictionary yields no timestamps; it is an error if no batch uses it.
            self.fed = true;
            return Ok(None);
        }
        let _ = self.feed.unbounded_send(Ok(message));
        match header {
            MessageHeader::Schema | MessageHeader::RecordBatch => self.fed = false,
            other => return Err(malformed(self.what, format!("a message of type {other:?}"))),
        }
        Ok(self.decode_fed()?.map(|batch| (MessageTimestamps::Batch(batch), charge)))
    }

    /// Decodes the message that the decoder was fed: the batch, or nothing for a schema.
    fn decode_fed(&mut self) -> Result<Option<RecordBatch>, Status> {
        // The decoder needs no further message here: a message that it skips is as malformed as one
        // that it refuses.
        let decoded = isolated(|| self.decoder.next().now_or_never()).flatten().flatten();
        let decoded = decoded.ok_or_else(|| malformed(self.what, CONTRADICTION))?;
        let decoded = decoded.map_err(|error| malformed(self.what, error.to_string()))?;
        match decoded.payload {
            DecodedPayload::RecordBatch(batch) => Ok(Some(batch)),
            DecodedPayload::Schema(_) if self.schema.is_some() => {
                Err(malformed(self.what, "a second schema in one stream"))
            }
            DecodedPayload::Schema(schema) => {
                self.schema = Some(schema);
                Ok(None)
            }
            DecodedPayload::None => Ok(None),
        }
    }
}

/// Bytes that a batch takes beyond those of its message: compressed buffers at their declared size
/// (the decoder refuses larger ones), and timestamps encoded with a dictionary.
fn decoded_bytes(batch: ArrowBatch<'_>, body: &[u8], schema: Option<&Schema>) -> u64 {
    let mut bytes = 0_u64;
    if batch.compression().is_some() {
        for buffer in batch.buffers().iter().flatten() {
            let length = usize::try_from(buffer.offset()).ok();
            let length = length.and_then(|offset| body.get(offset..)?.first_chunk::<8>());
            let length = length.map_or(0, |length| i64::from_le_bytes(*length));
            bytes = bytes.saturating_add(u64::try_from(length).unwrap_or(0));
        }
    }
    let is_dictionary = |field: &Arc<Field>| matches!(field.data_type(), DataType::Dictionary(..));
    if schema.is_some_and(|schema| schema.fields().iter().any(is_dictionary)) {
        let rows = u64::try_from(batch.length()).unwrap_or(0);
        bytes = bytes.saturating_add(rows.saturating_mul(size_of::<i64>() as u64));
    }
    bytes
}

thread_local! {
    /// Whether this thread decodes data of a client.
    static READING: Cell<bool> = const { Cell::new(false) };
}

/// The result of `work`; `None` if it panics.
fn isolated<T>(work: impl FnOnce() -> T) -> Option<T> {
    READING.set(true);
    let done = catch_unwind(AssertUnwindSafe(work));
    READING.set(false);
    done.ok()
}

/// Silences the panic hook for panics caught while client data is decoded. Otherwise any client
/// could fill the log with backtraces. The client gets the error.
pub fn silence_decode_panics() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !READING.get() {
            before(panic);
        }
    }));
}

#[cfg(test)]
mod tests {
    use arrow_array::{ArrayRef, Int64Array, TimestampMillisecondArray};
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::table::{Message, MessageWriter, timestamps_from_batches};

    fn flight_data(message: Message) -> FlightData {
        let Message { header, body, .. } = message;
        FlightData { data_header: header, data_body: body, ..FlightData::default() }
    }

    fn next(
        decoding: &mut Decoding,
        message: &FlightData,
    ) -> Result<Option<MessageTimestamps>, Status> {
        let charge = ClientBudget::default().charge(0, "test").unwrap();
        Ok(decoding.next(message.clone(), charge)?.map(|(times, _)| times))
    }

    fn messages(values: ArrayRef) -> (RecordBatch, Vec<FlightData>) {
        let batch = RecordBatch::try_from_iter_with_nullable([("t", values, true)]).unwrap();
        let (mut writer, schema) = MessageWriter::begin(&batch.schema());
        let mut messages = vec![flight_data(schema)];
        messages.extend(writer.write(&batch).unwrap().into_messages().map(flight_data));
        (batch, messages)
    }

    proptest! {
        /// In any alignment the timestamps equal those that arrow decodes, and a truncated body is
        /// refused.
        #[test]
        fn timestamps_that_are_read_where_they_lie_are_those_that_arrow_reads(
            values in proptest::collection::vec(
                prop_oneof![4 => any::<i64>().prop_map(Some), 1 => Just(None)], 0..40
            ),
            // Few are copied, many are read in place.
            repeated in prop_oneof![9 => Just(1_usize), 1 => Just(4_000)],
            nulls in any::<bool>(),
            of_time in any::<bool>(),
            askew in 0..8_usize,
            cut in 1..9_usize,
        ) {
            let values = values.repeat(repeated);
            let values = values.into_iter().filter(|at| nulls || at.is_some());
            let array: ArrayRef = match of_time {
                true => std::sync::Arc::new(values.collect::<TimestampMillisecondArray>()),
                false => std::sync::Arc::new(values.collect::<Int64Array>()),
            };
            let plain = array.null_count() == 0;
            let (batch, mut messages) = messages(array);
            let expected = timestamps_from_batches(&[batch]).unwrap();
            let body = messages[1].data_body.clone();
            let shifted = [&vec![7; askew][..], &body].concat();
            messages[1].data_body = Bytes::from(shifted).slice(askew..);
            let mut decoding = Decoding::new("test");
            prop_assert!(next(&mut decoding, &messages[0]).unwrap().is_none());
            let times = next(&mut decoding, &messages[1]).unwrap().unwrap();
            prop_assert_eq!(matches!(times, MessageTimestamps::Read(_)), plain);
            let mut charge = ClientBudget::default().charge(0, "test").unwrap();
            let read = times.read(&[], 0, &mut charge).unwrap().timestamps;
            prop_assert!(read.same_rows(&expected));
            prop_assert_eq!((read.bounds(), read.gap()), (expected.bounds(), expected.gap()));
            // More than the padding of the last buffer is missing.
            let needed = expected.len() * 8;
            if plain && needed > 0 {
                messages[1].data_body = body.slice(..needed.saturating_sub(cut));
                prop_assert!(next(&mut decoding, &messages[1]).is_err());
            }
        }
    }

    #[test]
    fn a_stream_has_one_schema_and_any_number_of_batches() {
        let (_, messages) = messages(std::sync::Arc::new(Int64Array::from(vec![1, 2])));
        let [schema, batch] = &messages[..] else { panic!("{messages:?}") };
        let of = |messages: &[&FlightData]| {
            timestamps_of_messages(messages.iter().copied().cloned().collect())
        };
        assert_eq!(of(&[schema, batch, batch]).unwrap().len(), 4);
        assert_eq!(of(&[schema]).unwrap().len(), 0);
        for wrong in [&[][..], &[batch][..], &[schema, schema, batch][..]] {
            assert_eq!(of(wrong).unwrap_err().code(), tonic::Code::InvalidArgument);
        }
    }

    #[test]
    fn a_message_that_no_batch_uses_is_refused_and_not_kept() {
        let (_, plain) = messages(std::sync::Arc::new(Int64Array::from(vec![1, 2])));
        let [schema, batch] = &plain[..] else { panic!("{plain:?}") };
        let words: arrow_array::DictionaryArray<arrow_array::types::Int32Type> =
            ["a", "b"].into_iter().collect();
        let (_, of_words) = messages(std::sync::Arc::new(words));
        let [_, dictionary, _] = &of_words[..] else { panic!("{of_words:?}") };
        let mut decoding = Decoding::new("test");
        assert!(next(&mut decoding, schema).unwrap().is_none());
        assert!(next(&mut decoding, batch).unwrap().is_some());
        assert!(next(&mut decoding, dictionary).unwrap().is_none());
        assert!(next(&mut decoding, batch).is_err());
    }
}
