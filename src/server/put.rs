//! Timeframes come in: DoPut.

use arrow_flight::{FlightData, PutResult};
use tonic::{Request, Response, Status, Streaming};

use super::flight::{Answers, Service, all, patience};
use super::foreign::timestamps_of_messages;
use super::get::{TIMEFRAME, timeframe_id};
use super::intake::Taken;
use super::status::status;
use crate::table::Register;

/// All of a timeframe's timestamps may have so many bytes.
const MAX_PUT_BYTES: usize = 512 << 20;

fn malformed(reason: impl Into<String>) -> Status {
    super::foreign::malformed("timeframe", reason)
}

impl Service {
    pub(super) async fn put(
        &self,
        request: Request<Streaming<FlightData>>,
    ) -> Result<Response<Answers<PutResult>>, Status> {
        let patience = patience(&request);
        let Put { timeframe, register, messages, taken } = self.collect(request).await?;
        let register = Register::parse(&register).map_err(|error| status(&error))?;
        let timestamps = timestamps_of_messages(messages)?;
        // From here on they count among the timeframes in flight.
        drop(taken);
        let registered = self.cache.register(timeframe, timestamps, &register, patience).await;
        let answer = registered.map_err(|error| status(&error))?;
        let app_metadata = serde_json::to_vec(&answer).unwrap_or_default().into();
        Ok(all(vec![PutResult { app_metadata }]))
    }

    /// Takes in all messages of the stream.
    async fn collect(&self, request: Request<Streaming<FlightData>>) -> Result<Put, Status> {
        let mut stream = request.into_inner();
        let mut timeframe = None;
        let mut register: Option<Vec<u8>> = None;
        let (mut messages, mut taken) = (Vec::new(), Vec::new());
        let mut bytes = 0;
        loop {
            let next = tokio::time::timeout(self.message_pause, stream.message()).await;
            let next = next.map_err(|_| {
                Status::deadline_exceeded("[IOV-1050] the client sends nothing more")
            })?;
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
            taken.push(self.intake.take(&message)?);
            messages.push(message);
        }
        let timeframe = timeframe
            .ok_or_else(|| malformed("no descriptor, expected path [\"timeframe\", id]"))?;
        let register = register.ok_or_else(|| {
            malformed("no app_metadata with {\"columns\" or \"table\", \"consumers\"}")
        })?;
        Ok(Put { timeframe, register, messages, taken })
    }
}

struct Put {
    timeframe: u64,
    register: Vec<u8>,
    messages: Vec<FlightData>,
    taken: Vec<Taken>,
}
