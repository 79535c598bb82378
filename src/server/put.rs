//! Timeframes come in: DoPut.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use arrow_array::RecordBatch;
use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::error::FlightError;
use arrow_flight::{FlightData, PutResult};
use futures::{FutureExt as _, StreamExt as _, stream};
use tonic::{Request, Response, Status, Streaming};

use super::flight::{Answers, Service, all, patience};
use super::get::{TIMEFRAME, timeframe_id};
use super::status::status;
use crate::table::{Register, RequestError, timestamps_from_batches};

/// All of a timeframe's timestamps may have so many bytes.
const MAX_PUT_BYTES: usize = 1 << 30;
/// A client may pause so long between two messages.
const MESSAGE_LIMIT: Duration = Duration::from_secs(60);

fn malformed(reason: impl Into<String>) -> Status {
    status(&RequestError::Malformed { what: "timeframe", reason: reason.into() })
}

impl Service {
    pub(super) async fn put(
        &self,
        request: Request<Streaming<FlightData>>,
    ) -> Result<Response<Answers<PutResult>>, Status> {
        let patience = patience(&request);
        let Put { timeframe, register, messages } = collect(request.into_inner()).await?;
        let register = Register::parse(&register).map_err(|error| status(&error))?;
        let batches = decode(messages).await?;
        let timestamps = timestamps_from_batches(&batches).map_err(|error| status(&error))?;
        let registered = self.cache.register(timeframe, timestamps, &register, patience).await;
        let answer = registered.map_err(|error| status(&error))?;
        let app_metadata = serde_json::to_vec(&answer).unwrap_or_default().into();
        Ok(all(vec![PutResult { app_metadata }]))
    }
}

struct Put {
    timeframe: u64,
    register: Vec<u8>,
    messages: Vec<FlightData>,
}

/// Takes in all messages of the stream.
async fn collect(mut stream: Streaming<FlightData>) -> Result<Put, Status> {
    let mut timeframe = None;
    let mut register: Option<Vec<u8>> = None;
    let mut messages = Vec::new();
    let mut bytes = 0;
    loop {
        let next = tokio::time::timeout(MESSAGE_LIMIT, stream.message()).await;
        let next = next
            .map_err(|_| Status::deadline_exceeded("[IOV-1050] the client sends nothing more"))?;
        let Some(mut message) = next? else { break };
        if let Some(descriptor) = message.flight_descriptor.take() {
            timeframe = match &descriptor.path[..] {
                [kind, id] if kind == TIMEFRAME => {
                    Some(timeframe_id(id).map_err(|error| status(&error))?)
                }
                path => {
                    let expected = format!("path {path:?}, expected [\"timeframe\", \"<id>\"]");
                    return Err(malformed(expected));
                }
            };
        }
        if register.is_none() && !message.app_metadata.is_empty() {
            register = Some(message.app_metadata.to_vec());
        }
        // pyarrow's first message may have a descriptor alone.
        if message.data_header.is_empty() {
            continue;
        }
        bytes += message.data_header.len() + message.data_body.len();
        if bytes > MAX_PUT_BYTES {
            let reason = format!("more than {MAX_PUT_BYTES} bytes of timestamps");
            return Err(Status::resource_exhausted(format!("[IOV-1051] {reason}")));
        }
        messages.push(message);
    }
    let timeframe =
        timeframe.ok_or_else(|| malformed("no descriptor, expected path [\"timeframe\", id]"))?;
    let register = register.ok_or_else(|| {
        malformed("no app_metadata with {\"columns\" or \"table\", \"consumers\"}")
    })?;
    Ok(Put { timeframe, register, messages })
}

/// The batches of a stream; what a client sends can be anything, so a panic of the decoder is an
/// error of the client's.
async fn decode(messages: Vec<FlightData>) -> Result<Vec<RecordBatch>, Status> {
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
        Ok(Err(error)) => Err(malformed(error.to_string())),
        Err(_) => Err(malformed("its Arrow data contradict themselves")),
    }
}
