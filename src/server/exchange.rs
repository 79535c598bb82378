//! DoExchange: the long stream of a consumer.
//!
//! ```text
//!  client ─▶ reader ─┬─ control message ─▶ let go, at once
//!                    └─ batch ─▶ queue ─▶ answers, in order ─▶ client
//! ```
//!
//! Control messages pass what is queued: the memory that a queued table waits for may be what they
//! let go.

use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_flight::FlightData;
use arrow_flight::decode::{DecodedPayload, FlightDataDecoder};
use arrow_flight::error::FlightError;
use arrow_ipc::{MessageHeader, root_as_message};
use futures::channel::mpsc as feed;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tonic::{Request, Response, Status, Streaming};

use super::flight::{Answers, Service};
use super::foreign;
use super::get::flight_data;
use super::intake::{Intake, Taken};
use super::status::status;
use crate::cache::Exchange;
use crate::table::Message;

/// So many tables can wait for their turn.
const MAX_QUEUED: usize = 4_096;
/// And so many bytes of theirs.
const MAX_QUEUED_BYTES: usize = 256 << 20;
/// So many messages of answers wait to be sent.
const MAX_UNSENT: usize = 16;

fn malformed(reason: impl Into<String>) -> Status {
    foreign::malformed("message of an exchange", reason)
}

/// What stands in `app_metadata`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Control {
    timeframe: Option<u64>,
    consumed: Option<Vec<u64>>,
    oldest_possible: Option<u64>,
}

/// One timeframe that is asked for.
struct Asked {
    timeframe: u64,
    batch: RecordBatch,
    /// Its share of what is queued, and of what is taken in over all.
    queued: OwnedSemaphorePermit,
    taken: Vec<Taken>,
}

impl Service {
    pub(super) async fn exchange(
        &self,
        request: Request<Streaming<FlightData>>,
    ) -> Result<Response<Answers<FlightData>>, Status> {
        let mut stream = request.into_inner();
        let first = tokio::time::timeout(self.message_pause, stream.message()).await;
        let first = first
            .map_err(|_| Status::deadline_exceeded("[IOV-1050] the client sends nothing more"))?;
        let first = first?.ok_or_else(|| malformed("no message came"))?;
        let descriptor = first
            .flight_descriptor
            .as_ref()
            .ok_or_else(|| malformed("the first message has no descriptor with a request"))?;
        let template = crate::table::Request::parse_template(&descriptor.cmd)
            .map_err(|error| status(&error))?;
        let exchange = self.cache.exchange(template).map_err(|error| status(&error))?;
        let exchange = Arc::new(exchange);
        let (queue, asked) = mpsc::channel(MAX_QUEUED);
        let (out, answers) = mpsc::channel(MAX_UNSENT);
        let (intake, queued) = (self.intake.clone(), Arc::new(Semaphore::new(MAX_QUEUED_BYTES)));
        let exchange_of_reader = Arc::clone(&exchange);
        let reader = Reader { stream, exchange: exchange_of_reader, queue, queued, intake };
        tokio::spawn(async move {
            let read = reader.read(first);
            let answered = answer_all(&exchange, asked, &out);
            // Both to their ends, or the first failure; or the client is gone.
            let done = async { tokio::try_join!(read, answered).map(|_| ()) };
            tokio::select! {
                done = done => {
                    if let Err(failure) = done {
                        let _ = out.send(Err(failure)).await;
                    }
                }
                () = out.closed() => {}
            }
            // All that the stream held goes before its end is seen.
            drop(exchange);
        });
        let answers = tokio_stream::wrappers::ReceiverStream::new(answers);
        Ok(Response::new(Box::pin(answers)))
    }
}

/// Takes the client's messages apart.
struct Reader {
    stream: Streaming<FlightData>,
    exchange: Arc<Exchange>,
    queue: mpsc::Sender<Asked>,
    /// Bytes that may wait for their turn yet.
    queued: Arc<Semaphore>,
    intake: Intake,
}

impl Reader {
    async fn read(mut self, first: FlightData) -> Result<(), Status> {
        let (feed, fed) = feed::unbounded::<Result<FlightData, FlightError>>();
        let mut decoder = FlightDataDecoder::new(fed);
        let mut next = Some(first);
        let mut taken = Vec::new();
        while let Some(message) = next {
            self.take(message, &feed, &mut decoder, &mut taken).await?;
            next = self.stream.message().await?;
        }
        Ok(())
    }

    async fn take(
        &self,
        message: FlightData,
        feed: &feed::UnboundedSender<Result<FlightData, FlightError>>,
        decoder: &mut FlightDataDecoder,
        taken: &mut Vec<Taken>,
    ) -> Result<(), Status> {
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
        // pyarrow's first message may have a descriptor alone, and so has a control message none.
        if message.data_header.is_empty() {
            return Ok(());
        }
        let header = root_as_message(&message.data_header)
            .map_err(|error| malformed(error.to_string()))?
            .header_type();
        taken.push(self.intake.take(&message)?);
        let bytes = message.data_header.len() + message.data_body.len();
        let _ = feed.unbounded_send(Ok(message));
        match header {
            MessageHeader::Schema | MessageHeader::RecordBatch => {}
            // A dictionary is taken in with the batch that follows it.
            _ => return Ok(()),
        }
        let decoded = foreign::next(decoder)?;
        let DecodedPayload::RecordBatch(batch) = decoded.payload else { return Ok(()) };
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
        let taken = std::mem::take(taken);
        self.queue.try_send(Asked { timeframe, batch, queued, taken }).map_err(|_| full())
    }
}

/// Answers what is asked for, in order.
async fn answer_all(
    exchange: &Exchange,
    mut asked: mpsc::Receiver<Asked>,
    out: &mpsc::Sender<Result<FlightData, Status>>,
) -> Result<(), Status> {
    let mut sent = Sent::default();
    while let Some(Asked { timeframe, batch, queued, taken }) = asked.recv().await {
        let timestamps = foreign::timestamps_of_batches(&[batch])?;
        drop((queued, taken));
        let answered = exchange.answer(timeframe, timestamps).await;
        let answer = answered.map_err(|error| status(&error))?;
        let about = json!({
            "timeframe": timeframe,
            "lease": answer.lease().as_str(),
            "rows": answer.rows(),
        });
        let about = about.to_string();
        if !std::mem::replace(&mut sent.schema, true) {
            send(out, flight_data(answer.head())).await?;
        }
        for messages in answer.body().map_err(|error| status(&error))? {
            let mut messages = messages.map_err(|error| status(&error))?;
            // The batch itself comes last, after its dictionaries.
            let batch = messages.pop();
            for (place, dictionary) in messages.into_iter().enumerate() {
                if sent.is_new(place, &dictionary) {
                    send(out, flight_data(dictionary)).await?;
                }
            }
            if let Some(batch) = batch {
                let app_metadata = about.clone().into();
                send(out, FlightData { app_metadata, ..flight_data(batch) }).await?;
            }
        }
    }
    Ok(())
}

/// What the client has of the stream already.
#[derive(Default)]
struct Sent {
    schema: bool,
    /// By dictionary, in the order of the columns. A table's batches after the first have none, or
    /// all.
    dictionaries: Vec<Message>,
}

impl Sent {
    /// Whether a dictionary differs from the one that was sent before it in its place.
    fn is_new(&mut self, place: usize, dictionary: &Message) -> bool {
        match self.dictionaries.get_mut(place) {
            Some(before) if before == dictionary => false,
            Some(before) => {
                *before = dictionary.clone();
                true
            }
            None => {
                self.dictionaries.push(dictionary.clone());
                true
            }
        }
    }
}

async fn send(
    out: &mpsc::Sender<Result<FlightData, Status>>,
    message: FlightData,
) -> Result<(), Status> {
    out.send(Ok(message)).await.map_err(|_| Status::cancelled("the client is gone"))
}
