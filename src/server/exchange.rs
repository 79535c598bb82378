//! DoExchange: the long stream of a consumer.
//!
//! ```text
//!  client ─▶ reader ─┬─ control message ─▶ release, at once
//!                    └─ batch ─▶ queue ─▶ answers, in order ─▶ client
//! ```
//!
//! Reader and answers are one task, and the reader is polled first. An entry that it queues is
//! taken in the same poll, without a wake-up. A task that wakes itself is queued behind all others,
//! and another thread is woken to help with them: that costs more than a small table.
//!
//! Control messages overtake queued requests: a queued table may wait for the memory that they
//! release.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use arrow_flight::FlightData;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tonic::{Request, Response, Status, Streaming};

use super::connection::PeerInfo;
use super::flight::{ResponseStream, Service, charge_message, origin_of_session};
use super::outgoing::{MessageRoom, Outgoing};
use super::status::status;
use super::ticket;
use super::untrusted_ipc::{self, Decoding, MessageTimestamps};
use crate::budget::{Charge, ClientBudget};
use crate::cache::Exchange;
use crate::sync::{Mutex, MutexGuard};
use crate::table::{BatchMessages, Message};

/// Maximum tables queued per exchange.
const MAX_QUEUED: usize = 4_096;
/// Maximum bytes queued per exchange.
const MAX_QUEUED_BYTES: usize = 256 << 20;
/// Maximum answer messages made ahead of the client's reads. Each is charged to the client.
const MAX_UNSENT: usize = 2;

fn malformed(reason: impl Into<String>) -> Status {
    untrusted_ipc::malformed("message of an exchange", reason)
}

/// The contents of `app_metadata` in a message from the client.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Control {
    timeframe: Option<u64>,
    consumed: Option<Vec<u64>>,
    oldest_possible: Option<u64>,
}

/// The `app_metadata` sent with the table of a timeframe.
#[derive(Debug, Serialize)]
struct TableAppMetadata<'a> {
    timeframe: u64,
    lease: &'a str,
    rows: u64,
}

/// A requested timeframe.
struct RequestedTimeframe {
    timeframe: u64,
    times: MessageTimestamps,
    /// Its share of the bytes that may be queued.
    queued: OwnedSemaphorePermit,
    /// The memory of its timestamps.
    taken: Charge,
}

impl Service {
    pub(super) async fn exchange(
        &self,
        request: Request<Streaming<FlightData>>,
    ) -> Result<Response<ResponseStream<FlightData>>, Status> {
        let budget = PeerInfo::budget(&request);
        let origin = origin_of_session(&request).await;
        let mut stream = request.into_inner();
        let first = tokio::time::timeout(self.message_pause, stream.message()).await;
        let first = first
            .map_err(|_| Status::deadline_exceeded("[IOV-1050] the client stopped sending"))?;
        let first = first?.ok_or_else(|| malformed("the stream has no message"))?;
        let descriptor = first
            .flight_descriptor
            .as_ref()
            .ok_or_else(|| malformed("the first message has no descriptor with a request"))?;
        // Held for the life of the stream, because the template is kept.
        let mut charge =
            ticket::charge(&descriptor.cmd, &budget).map_err(|error| status(&error))?;
        let template = crate::table::Request::parse_template(&descriptor.cmd)
            .map_err(|error| status(&error))?;
        self.requests.check(&template).map_err(|error| status(&error))?;
        ticket::charge_schema(&mut charge, &template).map_err(|error| status(&error))?;
        let exchange = self.cache.exchange_of(template, origin, budget.clone());
        let exchange = Arc::new(exchange.map_err(|error| status(&error))?);
        let reader = MessageReader {
            stream,
            exchange: Arc::clone(&exchange),
            queue: Arc::default(),
            queued: Arc::new(Semaphore::new(MAX_QUEUED_BYTES)),
            budget,
        };
        let (out, answers) = mpsc::channel(MAX_UNSENT);
        tokio::spawn(async move {
            serve(reader, first, &exchange, &out).await;
            // Everything the stream held is released before the client sees its end.
            drop((exchange, charge));
        });
        let answers = tokio_stream::wrappers::ReceiverStream::new(answers);
        Ok(Outgoing::into_response(Box::pin(answers)))
    }
}

/// Reads requests and answers them until both have finished, at the first failure, or until the
/// client is gone.
async fn serve(
    reader: MessageReader,
    first: FlightData,
    exchange: &Exchange,
    out: &mpsc::Sender<Result<Outgoing, Status>>,
) {
    let (queue, budget) = (Arc::clone(&reader.queue), reader.budget.clone());
    let read = reader.read(first);
    let answered = answer_all(exchange, &queue, out, &budget);
    let done = async { tokio::try_join!(biased; read, answered).map(|_| ()) };
    tokio::select! {
        done = done => {
            if let Err(failure) = done {
                let _ = out.send(Err(failure)).await;
            }
        }
        () = out.closed() => {}
    }
}

/// Parses the client's messages.
struct MessageReader {
    stream: Streaming<FlightData>,
    exchange: Arc<Exchange>,
    queue: Arc<RequestQueue>,
    /// Bytes that may still be queued.
    queued: Arc<Semaphore>,
    budget: ClientBudget,
}

impl MessageReader {
    async fn read(mut self, first: FlightData) -> Result<(), Status> {
        let mut decoding = Decoding::new("message of an exchange");
        let mut next = Some(first);
        while let Some(message) = next {
            self.take(message, &mut decoding)?;
            next = self.stream.message().await?;
        }
        self.queue.end();
        Ok(())
    }

    fn take(&self, message: FlightData, decoding: &mut Decoding) -> Result<(), Status> {
        let control = match &message.app_metadata[..] {
            [] => Control::default(),
            json => serde_json::from_slice(json).map_err(|error| malformed(error.to_string()))?,
        };
        if let Some(done) = &control.consumed {
            self.exchange.consumed(done);
        }
        if let Some(oldest) = control.oldest_possible {
            self.exchange.oldest_possible(oldest);
        }
        // A message without a header has no batch: pyarrow's first message may have only a
        // descriptor, and a control message only `app_metadata`.
        if message.data_header.is_empty() {
            return Ok(());
        }
        let charge = charge_message(&message, &self.budget)?;
        let bytes = message.data_header.len() + message.data_body.len();
        let Some((times, taken)) = decoding.next(message, charge)? else { return Ok(()) };
        let timeframe = control
            .timeframe
            .ok_or_else(|| malformed("a batch needs app_metadata {\"timeframe\": id}"))?;
        let full = || {
            Status::resource_exhausted(format!(
                "[IOV-1060] more than {MAX_QUEUED} timeframes or {MAX_QUEUED_BYTES} bytes are asked \
                 for and not answered"
            ))
        };
        let bytes = u32::try_from(bytes).map_err(|_| full())?;
        let queued = Arc::clone(&self.queued).try_acquire_many_owned(bytes).map_err(|_| full())?;
        self.exchange.expect(timeframe);
        match self.queue.push(RequestedTimeframe { timeframe, times, queued, taken }) {
            true => Ok(()),
            false => Err(full()),
        }
    }
}

/// Timeframes requested and not yet answered, between two halves of one task. The producer is
/// polled before the consumer, so no waker is needed.
#[derive(Default)]
struct RequestQueue(Mutex<QueuedRequests>);

/// Requested timeframes in order, and whether the client has ended its side.
#[derive(Default)]
struct QueuedRequests {
    asked: VecDeque<RequestedTimeframe>,
    ended: bool,
}

impl RequestQueue {
    fn waiting(&self) -> MutexGuard<'_, QueuedRequests> {
        self.0.lock()
    }

    /// Queues a request. Returns whether there was room for it.
    fn push(&self, asked: RequestedTimeframe) -> bool {
        let mut waiting = self.waiting();
        let room = waiting.asked.len() < MAX_QUEUED;
        if room {
            waiting.asked.push_back(asked);
        }
        room
    }

    /// Marks the end of the requests.
    fn end(&self) {
        self.waiting().ended = true;
    }

    /// The next request; `None` after the last one.
    async fn next(&self) -> Option<RequestedTimeframe> {
        poll_fn(|_| {
            let mut waiting = self.waiting();
            match waiting.asked.pop_front() {
                Some(asked) => Poll::Ready(Some(asked)),
                None if waiting.ended => Poll::Ready(None),
                None => Poll::Pending,
            }
        })
        .await
    }
}

/// Answers the requested timeframes, in order.
async fn answer_all(
    exchange: &Exchange,
    queue: &RequestQueue,
    out: &mpsc::Sender<Result<Outgoing, Status>>,
    budget: &ClientBudget,
) -> Result<(), Status> {
    let mut sent = SentParts::default();
    while let Some(RequestedTimeframe { timeframe, times, queued, mut taken }) = queue.next().await
    {
        let rows = times.read(exchange.keys(), 0, &mut taken)?;
        drop((queued, taken));
        let answered = exchange.answer(timeframe, rows).await;
        let answer = answered.map_err(|error| status(&error))?;
        let about =
            TableAppMetadata { timeframe, lease: answer.lease().as_str(), rows: answer.rows() };
        let about = Bytes::from(serde_json::to_vec(&about).unwrap_or_default());
        let (head, body) =
            (answer.schema_message(), answer.body().map_err(|error| status(&error))?);
        // From here on only the body holds the pins. It loses them if the lease is revoked while
        // the client does not read.
        drop(answer);
        if !std::mem::replace(&mut sent.schema, true) {
            send(out, Bytes::new(), head, None).await?;
        }
        let mut batches = body;
        loop {
            let room = MessageRoom::for_message(budget).await?;
            let Some(batch) = batches.next() else { break };
            let BatchMessages { dictionaries, batch } = batch.map_err(|error| status(&error))?;
            let new = sent.take(&dictionaries).into_iter();
            let mut messages: Vec<Message> = new.map(|one| dictionaries[one].clone()).collect();
            messages.push(batch);
            let charge = room.settle(&messages)?;
            let last = messages.len() - 1;
            for (number, message) in messages.into_iter().enumerate() {
                let about = if number == last { about.clone() } else { Bytes::new() };
                send(out, about, message, Some(Arc::clone(&charge))).await?;
            }
        }
    }
    Ok(())
}

/// The parts of the stream that were already sent to the client.
#[derive(Default)]
struct SentParts {
    schema: bool,
    /// In the order of the columns. A table's batches after the first have none, or all.
    dictionaries: Arc<[Message]>,
}

impl SentParts {
    /// The indices of the dictionaries that differ from those sent before: these are sent now.
    fn take(&mut self, dictionaries: &Arc<[Message]>) -> Vec<usize> {
        if dictionaries.is_empty() || Arc::ptr_eq(dictionaries, &self.dictionaries) {
            return Vec::new();
        }
        // Payloads are not kept: they would keep their objects pinned.
        if dictionaries.iter().any(|message| !message.rest.is_empty()) {
            self.dictionaries = Arc::default();
            return (0..dictionaries.len()).collect();
        }
        let before = std::mem::replace(&mut self.dictionaries, Arc::clone(dictionaries));
        let differs = |place: &usize| {
            let new = &dictionaries[*place];
            before.get(*place) != Some(new)
        };
        (0..dictionaries.len()).filter(differs).collect()
    }
}

async fn send(
    out: &mpsc::Sender<Result<Outgoing, Status>>,
    app_metadata: Bytes,
    message: Message,
    charge: Option<Arc<Charge>>,
) -> Result<(), Status> {
    let message = Outgoing { app_metadata, message, charge };
    out.send(Ok(message)).await.map_err(|_| Status::cancelled("the client is gone"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_dictionaries_that_differ_from_those_before_are_sent() {
        let message = |n: u8| Message::new(vec![n].into(), vec![n; 4].into());
        let mut sent = SentParts::default();
        let first: Arc<[Message]> = [1, 2, 3].map(message).into();
        assert_eq!(sent.take(&first), [0, 1, 2]);
        assert_eq!(sent.take(&first), [0; 0]);
        // Equal, at different addresses in memory.
        assert_eq!(sent.take(&[1, 2, 3].map(message).into()), [0; 0]);
        // Later batches of a table whose dictionaries were already sent.
        assert_eq!(sent.take(&Arc::default()), [0; 0]);
        assert_eq!(sent.take(&[1, 4, 3].map(message).into()), [1]);
        assert_eq!(sent.take(&first), [1]);
    }
}
