//! Arrow as clients send it: read so that nothing in it brings the service down.
//!
//! arrow's decoder panics on some of what it is given: that is the client's error, and stays here.
//! How much it can be is bounded before (`intake`, `message_bytes`) and by the rows that a table of
//! timestamps can have.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

use arrow_array::RecordBatch;
use arrow_flight::FlightData;
use arrow_flight::decode::{DecodedFlightData, FlightDataDecoder, FlightRecordBatchStream};
use arrow_flight::error::FlightError;
use futures::{FutureExt as _, StreamExt as _, stream};
use tonic::Status;

use super::status::status;
use crate::index::Timestamps;
use crate::table::{RequestError, timestamps_from_batches};

const CONTRADICTION: &str = "its Arrow data contradict themselves";

/// What is wrong with `what`.
pub(super) fn malformed(what: &'static str, reason: impl Into<String>) -> Status {
    status(&RequestError::Malformed { what, reason: reason.into() })
}

/// The timestamps in the messages of a stream, each with a header of Arrow.
///
/// # Errors
/// INVALID_ARGUMENT, whatever they are.
pub fn timestamps_of_messages(messages: Vec<FlightData>) -> Result<Timestamps, Status> {
    timestamps_of_batches(&batches(messages)?)
}

/// # Errors
/// INVALID_ARGUMENT.
pub(super) fn timestamps_of_batches(batches: &[RecordBatch]) -> Result<Timestamps, Status> {
    const WHAT: &str = "table of timestamps";
    let read = isolated(|| timestamps_from_batches(batches));
    read.ok_or_else(|| malformed(WHAT, CONTRADICTION))?.map_err(|error| status(&error))
}

fn batches(messages: Vec<FlightData>) -> Result<Vec<RecordBatch>, Status> {
    const WHAT: &str = "timeframe";
    let decoded = async {
        let messages = stream::iter(messages.into_iter().map(Ok));
        let mut stream = FlightRecordBatchStream::new_from_flight_data(messages);
        let mut batches = Vec::new();
        while let Some(batch) = stream.next().await {
            batches.push(batch?);
        }
        if let (true, Some(schema)) = (batches.is_empty(), stream.schema()) {
            batches.push(RecordBatch::new_empty(schema.clone()));
        }
        Ok::<_, FlightError>(batches)
    };
    let decoded = isolated(|| decoded.now_or_never()).flatten();
    let decoded = decoded.ok_or_else(|| malformed(WHAT, CONTRADICTION))?;
    decoded.map_err(|error| malformed(WHAT, error.to_string()))
}

/// What a decoder makes of the message that it was fed. It waits for no other: one that the decoder
/// passes over is as wrong as one that it refuses.
///
/// # Errors
/// INVALID_ARGUMENT.
pub(super) fn next(decoder: &mut FlightDataDecoder) -> Result<DecodedFlightData, Status> {
    const WHAT: &str = "message of an exchange";
    let decoded = isolated(|| decoder.next().now_or_never()).flatten().flatten();
    let decoded = decoded.ok_or_else(|| malformed(WHAT, CONTRADICTION))?;
    decoded.map_err(|error| malformed(WHAT, error.to_string()))
}

thread_local! {
    /// Whether this thread reads what a client sent.
    static READING: Cell<bool> = const { Cell::new(false) };
}

/// What `work` gives, unless it panics.
fn isolated<T>(work: impl FnOnce() -> T) -> Option<T> {
    READING.set(true);
    let done = catch_unwind(AssertUnwindSafe(work));
    READING.set(false);
    done.ok()
}

/// From now on the process says nothing of panics that are caught while it reads what clients sent:
/// else any of them could fill its log with backtraces. The client is told what they come to.
pub fn hush_panics_of_decoding() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !READING.get() {
            before(panic);
        }
    }));
}
