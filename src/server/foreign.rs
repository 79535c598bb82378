//! Arrow as clients send it: read so that nothing in it brings the service down.
//!
//! arrow's decoder panics on some of what it is given: that is the client's error, and stays here.
//! How much it can be is bounded before (`intake`, `message_bytes`) and by the rows that a table of
//! timestamps can have.

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
pub async fn timestamps_of_messages(messages: Vec<FlightData>) -> Result<Timestamps, Status> {
    timestamps_of_batches(&batches(messages).await?)
}

/// # Errors
/// INVALID_ARGUMENT.
pub(super) fn timestamps_of_batches(batches: &[RecordBatch]) -> Result<Timestamps, Status> {
    match catch_unwind(AssertUnwindSafe(|| timestamps_from_batches(batches))) {
        Ok(read) => read.map_err(|error| status(&error)),
        Err(_) => Err(malformed("table of timestamps", CONTRADICTION)),
    }
}

async fn batches(messages: Vec<FlightData>) -> Result<Vec<RecordBatch>, Status> {
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
    match AssertUnwindSafe(decoded).catch_unwind().await {
        Ok(Ok(batches)) => Ok(batches),
        Ok(Err(error)) => Err(malformed("timeframe", error.to_string())),
        Err(_) => Err(malformed("timeframe", CONTRADICTION)),
    }
}

/// The next message of a stream.
///
/// # Errors
/// INVALID_ARGUMENT.
pub(super) async fn next(decoder: &mut FlightDataDecoder) -> Result<DecodedFlightData, Status> {
    const WHAT: &str = "message of an exchange";
    match AssertUnwindSafe(decoder.next()).catch_unwind().await {
        Ok(Some(Ok(decoded))) => Ok(decoded),
        Ok(Some(Err(error))) => Err(malformed(WHAT, error.to_string())),
        Ok(None) | Err(_) => Err(malformed(WHAT, CONTRADICTION)),
    }
}
