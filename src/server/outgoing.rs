//! Outgoing streams of Arrow messages: passed to HTTP/2 without gRPC's copy.
//!
//! ```text
//!  Answer ─▶ the window opens ─▶ room in the client's account ─▶ one message ─▶ frames ─▶ HTTP/2
//!                                  └ charged until HTTP/2 has sent it
//! ```
//!
//! tonic copies each message into a buffer of its own before it sends the first byte. Here a frame
//! is a slice of the message. Objects stay in shared memory until HTTP/2 can send more: then one
//! frame of them is copied. An answer that is not read therefore holds at most one message and some
//! frames, which are charged, and pins that end with its lease.
//!
//! A handler returns an empty stream and attaches the real one ([`Outgoing::into_response`]). The
//! guard makes the real one the body ([`Outgoing::unpack`]).

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{BufMut as _, Bytes, BytesMut};
use futures::stream;
use hyper::HeaderMap;
use hyper::body::{Body, Frame};
use tonic::{Code, Response, Status};

use super::flight::ResponseStream;
use super::status::status;
use crate::budget::{Charge, ClientBudget};
use crate::sync::Mutex;
use crate::table::{EncodeError, Message, Part};

/// One message of a stream of FlightData.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) app_metadata: Bytes,
    pub(super) message: Message,
    /// The memory of the message, charged until its last frame is sent.
    pub(super) charge: Option<Arc<Charge>>,
}

/// Expected maximum of a message: batches are split below it.
const MESSAGE_BYTES: u64 = 2 << 20;
/// Pause between two attempts to get room for a message in the client's account.
const CHARGE_RETRY: Duration = Duration::from_millis(5);
/// An answer ends with an error if there is no room for its next message for this long.
const CHARGE_LIMIT: Duration = Duration::from_secs(60);
/// Time spent on making messages after which the task yields.
const TURN: Duration = Duration::from_millis(1);
/// Size of the slices passed to HTTP/2.
const FRAME_BYTES: usize = 64 << 10;
/// Maximum bytes of a stream that HTTP/2 holds: its send buffer (400 KiB) and one frame more.
const SEND_BUFFER_BYTES: usize = (400 << 10) + FRAME_BYTES;

/// Memory for one message, before it is made.
pub(super) struct MessageRoom(Charge);

impl MessageRoom {
    /// Waits until the client's account has room for a message, that is until the client reads
    /// earlier messages.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED if there is none for [`CHARGE_LIMIT`].
    pub(super) async fn for_message(budget: &ClientBudget) -> Result<Self, Status> {
        let wanted = MESSAGE_BYTES.min(budget.limit_bytes() / 4);
        let began = Instant::now();
        loop {
            match budget.charge(wanted, "an answer that is not read") {
                Ok(charge) => return Ok(Self(charge)),
                Err(error) if began.elapsed() >= CHARGE_LIMIT => return Err(status(&error)),
                Err(_) => tokio::time::sleep(CHARGE_RETRY).await,
            }
        }
    }

    /// Charges the actual memory of `messages`, for as long as any of their bytes are held.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED if they are larger than expected and the account has no room for them.
    pub(super) fn settle(self, messages: &[Message]) -> Result<Arc<Charge>, Status> {
        let Self(mut charge) = self;
        let bytes = messages.iter().map(memory_bytes).sum::<u64>();
        charge.grow(bytes.saturating_sub(charge.bytes())).map_err(|error| status(&error))?;
        charge.shrink_to(bytes);
        Ok(Arc::new(charge))
    }
}

/// Maximum memory of a message while it is sent: its own bytes, and copied frames of its objects.
fn memory_bytes(message: &Message) -> u64 {
    let own = |part: &Part| match part {
        Part::Own(bytes) => bytes.len(),
        Part::Object(_) => 0,
    };
    let own =
        message.header.len() + message.body.len() + message.rest.iter().map(own).sum::<usize>();
    let copied = (message.bytes() - own).min(SEND_BUFFER_BYTES);
    (own + copied) as u64
}

/// Bytes that are charged as long as they live.
struct Charged {
    bytes: Bytes,
    _charge: Arc<Charge>,
}

impl AsRef<[u8]> for Charged {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// The messages of a table, each made on demand once the client's account has room.
pub(super) fn of_table(
    messages: impl Iterator<Item = Result<Message, EncodeError>> + Send + 'static,
    budget: ClientBudget,
) -> ResponseStream<Outgoing> {
    Box::pin(stream::unfold((messages, budget), async |(mut messages, budget)| {
        let room = match MessageRoom::for_message(&budget).await {
            Ok(room) => room,
            Err(error) => return Some((Err(error), (messages, budget))),
        };
        let made = match messages.next()? {
            Ok(message) => room.settle(std::slice::from_ref(&message)).map(|charge| Outgoing {
                app_metadata: Bytes::new(),
                message,
                charge: Some(charge),
            }),
            Err(error) => Err(status(&error)),
        };
        Some((made, (messages, budget)))
    }))
}

impl Outgoing {
    /// A response with these messages as its body.
    pub(super) fn into_response<T: Send + 'static>(
        messages: ResponseStream<Self>,
    ) -> Response<ResponseStream<T>> {
        let mut response = Response::new(Box::pin(stream::empty()) as ResponseStream<T>);
        let frames =
            Frames { messages, ready: Parts::default(), busy: Duration::ZERO, over: false };
        response.extensions_mut().insert(Packed(Arc::new(Mutex::new(Some(frames)))));
        response
    }

    /// Replaces the body of a response by the messages attached to it.
    pub(super) fn unpack(
        response: hyper::Response<tonic::body::Body>,
    ) -> hyper::Response<tonic::body::Body> {
        let (mut parts, body) = response.into_parts();
        let packed = parts.extensions.remove::<Packed>();
        let frames = packed.and_then(|Packed(frames)| frames.lock().take());
        let body = frames.map_or(body, tonic::body::Body::new);
        hyper::Response::from_parts(parts, body)
    }

    /// The parts of the message on the wire: gRPC's head and the fields of FlightData.
    fn into_parts(self) -> Parts {
        const HEADER: u64 = 2;
        const APP_METADATA: u64 = 3;
        const BODY: u64 = 1_000;
        let Self { app_metadata, message: Message { header, body, rest }, charge } = self;
        let body_bytes = body.len() + rest.iter().map(Part::len).sum::<usize>();
        let mut begin = BytesMut::new();
        for (field, bytes) in [(HEADER, &header), (APP_METADATA, &app_metadata)] {
            if !bytes.is_empty() {
                put_field(&mut begin, field, bytes.len());
                begin.extend_from_slice(bytes);
            }
        }
        if body_bytes > 0 {
            put_field(&mut begin, BODY, body_bytes);
        }
        let mut head = BytesMut::with_capacity(5);
        head.put_u8(0);
        head.put_u32(u32::try_from(begin.len() + body_bytes).unwrap_or(u32::MAX));
        head.unsplit(begin);
        let parts = [head.freeze(), body].map(Part::Own).into_iter().chain(rest);
        Parts { parts: parts.filter(|part| !part.is_empty()).collect(), charge }
    }
}

/// The parts of a message that are not sent yet.
#[derive(Default)]
struct Parts {
    parts: VecDeque<Part>,
    charge: Option<Arc<Charge>>,
}

impl Parts {
    /// The next frame's data, which keeps the charge. Only as much of an object is copied.
    fn next_slice(&mut self) -> Option<Result<Bytes, EncodeError>> {
        let first = self.parts.front_mut()?;
        let bytes = match first.take_front(FRAME_BYTES) {
            Ok(bytes) => bytes,
            Err(error) => {
                self.parts.clear();
                return Some(Err(error));
            }
        };
        if first.is_empty() {
            self.parts.pop_front();
        }
        Some(Ok(match &self.charge {
            Some(charge) => Bytes::from_owner(Charged { bytes, _charge: Arc::clone(charge) }),
            None => bytes,
        }))
    }
}

/// The tag and the length of a field of bytes.
fn put_field(out: &mut BytesMut, field: u64, length: usize) {
    const LENGTH_DELIMITED: u64 = 2;
    prost::encoding::encode_varint(field << 3 | LENGTH_DELIMITED, out);
    prost::encoding::encode_varint(length as u64, out);
}

/// The messages attached to a response, until they become its body.
#[derive(Clone)]
struct Packed(Arc<Mutex<Option<Frames>>>);

/// The body of a response, made message by message when HTTP/2 asks for more.
struct Frames {
    messages: ResponseStream<Outgoing>,
    ready: Parts,
    /// Time spent on messages since the task last yielded.
    busy: Duration,
    over: bool,
}

impl fmt::Debug for Frames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Frames").field("over", &self.over).finish_non_exhaustive()
    }
}

impl Frames {
    /// The last frame: the status of the stream.
    fn end(&mut self, end: &Status) -> Result<Frame<Bytes>, Status> {
        self.over = true;
        let mut trailers = HeaderMap::new();
        end.add_header(&mut trailers).map(|()| Frame::trailers(trailers))
    }
}

impl Body for Frames {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        loop {
            match self.ready.next_slice() {
                Some(Ok(slice)) => return Poll::Ready(Some(Ok(Frame::data(slice)))),
                Some(Err(error)) => return Poll::Ready(Some(self.end(&status(&error)))),
                None => {}
            }
            if self.over {
                return Poll::Ready(None);
            }
            if self.busy >= TURN {
                self.busy = Duration::ZERO;
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            let began = Instant::now();
            let next = self.messages.as_mut().poll_next(context);
            self.busy += began.elapsed();
            let end = match ready!(next) {
                Some(Ok(message)) => {
                    self.ready = message.into_parts();
                    continue;
                }
                Some(Err(error)) => error,
                None => Status::new(Code::Ok, ""),
            };
            return Poll::Ready(Some(self.end(&end)));
        }
    }
}

#[cfg(test)]
mod tests {
    use arrow_flight::FlightData;
    use prost::Message as _;

    use super::*;
    use crate::budget::Budget;

    #[test]
    fn the_parts_of_a_message_are_what_prost_encodes() {
        let part = |byte: u8, length: usize| Bytes::from(vec![byte; length]);
        for (header, app_metadata, body, rest) in [
            (0, 0, 0, vec![]),
            (3, 0, 0, vec![]),
            (200, 7, 70_000, vec![]),
            (9, 0, 64, vec![70_000, 1, 130]),
        ] {
            let rest = rest.into_iter().map(|length| Part::Own(part(4, length))).collect();
            let message = Message { header: part(1, header), body: part(3, body), rest };
            let app_metadata = part(2, app_metadata);
            let data = FlightData {
                flight_descriptor: None,
                data_header: message.header.clone(),
                app_metadata: app_metadata.clone(),
                data_body: message.whole_body().unwrap(),
            };
            let mut parts = Outgoing { app_metadata, message, charge: None }.into_parts();
            let slices = std::iter::from_fn(|| parts.next_slice());
            let sent = slices.collect::<Result<Vec<_>, _>>().unwrap().concat();
            let encoded = data.encode_to_vec();
            assert_eq!(sent[..5], [&[0][..], &(encoded.len() as u32).to_be_bytes()].concat());
            assert_eq!(sent[5..], encoded);
        }
    }

    #[tokio::test]
    async fn a_message_is_charged_until_its_last_slice_is_gone() {
        let budget = Budget::new(64 << 20);
        let client = budget.client("one");
        let message = || Message::new(Bytes::from(vec![1; 100]), Bytes::from(vec![2; 1000]));
        let mut messages = of_table([Ok(message()), Ok(message())].into_iter(), client);
        let next = std::future::poll_fn(|context| messages.as_mut().poll_next(context));
        let mut parts = next.await.unwrap().unwrap().into_parts();
        assert_eq!(budget.used_bytes(), 1_100);
        let slice = parts.next_slice().unwrap().unwrap();
        drop(parts);
        assert_eq!(budget.used_bytes(), 1_100);
        drop((slice, messages));
        assert_eq!(budget.used_bytes(), 0);
    }
}
