//! Registration of timeframes: DoPut.

use std::sync::Arc;

use arrow_flight::{FlightData, PutResult};
use tonic::{Request, Response, Status, Streaming};

use super::connection::PeerInfo;
use super::do_get::{TIMEFRAME, timeframe_id};
use super::flight::{ResponseStream, Service, all, charge_message, patience};
use super::status::status;
use super::ticket;
use super::untrusted_ipc::rows_of_charged;
use crate::budget::{Charge, ClientBudget};
use crate::cache::Caller;
use crate::table::Register;

fn malformed(reason: impl Into<String>) -> Status {
    super::untrusted_ipc::malformed("timeframe", reason)
}

impl Service {
    pub(super) async fn put(
        &self,
        request: Request<Streaming<FlightData>>,
    ) -> Result<Response<ResponseStream<PutResult>>, Status> {
        let (patience, budget) = (patience(&request), PeerInfo::budget(&request));
        let Put { timeframe, register, messages } = self.collect(request, &budget).await?;
        let _charge = ticket::charge(&register, &budget).map_err(|error| status(&error))?;
        let register = Register::parse(&register).map_err(|error| status(&error))?;
        self.requests.check_registration(&register).map_err(|error| status(&error))?;
        // From here on the timestamps are counted with the timeframes, waiting or in flight.
        let keys = self.cache.key_names(&register.columns).map_err(|error| status(&error))?;
        let mut rows = rows_of_charged(messages, &keys)?;
        rows.timestamps = Arc::new(rows.timestamps.compacted());
        let _place = Arc::clone(&self.registrations).try_acquire_owned().map_err(|_| {
            let limit = self.max_registrations;
            Status::resource_exhausted(format!(
                "[IOV-1053] {limit} registrations wait for their answer (limit: registrations)"
            ))
        })?;
        let asker = Caller { patience, budget: budget.clone(), ..Caller::default() };
        let registered = self.cache.register_for(timeframe, rows, &register, &asker).await;
        let answer = registered.map_err(|error| status(&error))?;
        let app_metadata = serde_json::to_vec(&answer).unwrap_or_default().into();
        Ok(all(vec![PutResult { app_metadata }]))
    }

    /// Receives all messages of the stream.
    async fn collect(
        &self,
        request: Request<Streaming<FlightData>>,
        budget: &ClientBudget,
    ) -> Result<Put, Status> {
        let mut stream = request.into_inner();
        let mut timeframe = None;
        let mut register: Option<Vec<u8>> = None;
        let mut messages = Vec::new();
        loop {
            let next = tokio::time::timeout(self.message_pause, stream.message()).await;
            let next = next
                .map_err(|_| Status::deadline_exceeded("[IOV-1050] the client stopped sending"))?;
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
            // pyarrow's first message may have only a descriptor.
            if message.data_header.is_empty() {
                continue;
            }
            let charge = charge_message(&message, budget)?;
            messages.push((message, charge));
        }
        // hyper ends the body of a call that the client cancels (RST_STREAM with CANCEL) like a
        // complete one, and checks for the cancellation only when the call waits. The call yields
        // once here, so that a timeframe of which only a part came is never registered.
        tokio::task::yield_now().await;
        let timeframe = timeframe
            .ok_or_else(|| malformed("no descriptor, expected path [\"timeframe\", id]"))?;
        let register = register.ok_or_else(|| {
            malformed("no app_metadata with {\"columns\" or \"table\", \"consumers\"}")
        })?;
        Ok(Put { timeframe, register, messages })
    }
}

struct Put {
    timeframe: u64,
    register: Vec<u8>,
    messages: Vec<(FlightData, Charge)>,
}
