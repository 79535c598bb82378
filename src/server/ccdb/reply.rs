//! An answer: headers in the order and spelling of CCDB, bodies from shared memory.

use std::fmt::{Display, Write as _};
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Empty, Full, StreamBody};
use hyper::body::{Bytes, Frame};
use hyper::ext::ReasonPhrase;
use hyper::header::{HeaderName, HeaderValue};
use hyper::{Response, StatusCode};

use super::spelling;
use crate::cache::HeldObject;
use crate::interval::Timestamp;

pub(super) type ReplyBody = UnsyncBoxBody<Bytes, io::Error>;

/// The content after the head.
enum ReplyContent {
    Nothing,
    Bytes(Bytes),
    /// Pieces of text and of objects, one after the other.
    Pieces(Vec<Bytes>),
    Stream(ReplyBody),
}

/// An answer.
pub(super) struct CcdbReply {
    pub(super) status: u16,
    headers: Vec<(String, HeaderValue)>,
    content: ReplyContent,
    object_bytes: u64,
    /// Whether the connection ends with this answer.
    pub(super) last: bool,
}

/// A part of an object that stays pinned until it is sent.
struct PinnedPart {
    held: Arc<HeldObject>,
    range: Range<usize>,
}

impl AsRef<[u8]> for PinnedPart {
    fn as_ref(&self) -> &[u8] {
        self.held.payload().get(self.range.clone()).unwrap_or_default()
    }
}

fn part_of(held: &Arc<HeldObject>, range: Range<usize>) -> Bytes {
    Bytes::from_owner(PinnedPart { held: Arc::clone(held), range })
}

impl CcdbReply {
    /// An answer with the common headers.
    pub(super) fn new(status: u16) -> Self {
        let mut reply = Self {
            status,
            headers: Vec::with_capacity(24),
            content: ReplyContent::Nothing,
            object_bytes: 0,
            last: false,
        };
        reply.header("Access-Control-Allow-Origin", "*");
        reply.header("Access-Control-Allow-Headers", "range");
        reply.header("Access-Control-Expose-Headers", "content-range,content-length,accept-ranges");
        reply.header("Access-Control-Allow-Methods", "HEAD,GET");
        reply
    }

    /// Adds a header. Characters outside Latin-1 become `?`, and no value can end its line.
    pub(super) fn header(&mut self, name: &str, value: impl Display) {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = write!(text, "{value}");
        let bytes: Vec<u8> = text
            .chars()
            .map(|c| match u8::try_from(c) {
                Ok(0..=0x1f | 0x7f) => b' ',
                Ok(byte) => byte,
                Err(_) => b'?',
            })
            .collect();
        // No other invalid byte is left.
        if let Ok(value) = HeaderValue::from_maybe_shared(Bytes::from(bytes)) {
            self.headers.push((name.to_owned(), value));
        }
    }

    /// Replaces a header that was added already.
    pub(super) fn replace(&mut self, name: &str, value: impl Display) {
        self.headers.retain(|(known, _)| known != name);
        self.header(name, value);
    }

    pub(super) fn date(&mut self) {
        self.header("Date", httpdate::HttpDate::from(SystemTime::now()));
    }

    /// Adds a header with a time in HTTP's format, if it can express the time.
    pub(super) fn http_date(&mut self, name: &str, at: Timestamp) {
        // The years 1970 to 9999.
        let millis = u64::try_from(at.as_millis()).ok().filter(|ms| *ms < 253_402_300_800_000);
        let time = millis.and_then(|ms| UNIX_EPOCH.checked_add(Duration::from_millis(ms)));
        if let Some(time) = time {
            self.header(name, httpdate::HttpDate::from(time));
        }
    }

    /// Ends the head of an answer without a body.
    pub(super) fn empty(mut self) -> Self {
        self.header("Content-Length", 0);
        self
    }

    /// Sets a text as body.
    pub(super) fn text(mut self, content_type: &str, text: Vec<u8>) -> Self {
        self.header("Content-Type", content_type);
        self.header("Content-Length", text.len());
        self.content = ReplyContent::Bytes(text.into());
        self
    }

    /// Sets a part of an object as body.
    pub(super) fn object(mut self, held: &Arc<HeldObject>, range: Range<usize>) -> Self {
        self.header("Content-Length", range.len());
        self.object_bytes = range.len() as u64;
        self.content = ReplyContent::Bytes(part_of(held, range));
        self
    }

    /// Sets several parts of an object as body, each preceded by a text, and a final text.
    pub(super) fn parts(
        mut self,
        held: &Arc<HeldObject>,
        parts: Vec<(String, Range<usize>)>,
        end: String,
    ) -> Self {
        let mut pieces = Vec::with_capacity(parts.len() * 2 + 1);
        for (text, range) in parts {
            self.object_bytes += range.len() as u64;
            pieces.extend([Bytes::from(text), part_of(held, range)]);
        }
        pieces.push(Bytes::from(end));
        self.header("Content-Length", pieces.iter().map(Bytes::len).sum::<usize>());
        self.content = ReplyContent::Pieces(pieces);
        self
    }

    /// Sets a body that is made while it is sent.
    pub(super) fn stream(mut self, content_type: &str, body: ReplyBody) -> Self {
        self.header("Content-Type", content_type);
        self.content = ReplyContent::Stream(body);
        self
    }

    /// Number of bytes of objects in the body.
    pub(super) fn object_bytes(&self) -> u64 {
        self.object_bytes
    }

    /// Converts the answer for hyper. It has no reason phrase, like those of real servers.
    pub(super) fn into_response(self, is_head: bool) -> Response<ReplyBody> {
        let never = |never| match never {};
        let body = match self.content {
            ReplyContent::Nothing => Empty::new().map_err(never).boxed_unsync(),
            _ if is_head => Empty::new().map_err(never).boxed_unsync(),
            ReplyContent::Bytes(bytes) => Full::new(bytes).map_err(never).boxed_unsync(),
            ReplyContent::Pieces(pieces) => {
                let frames = pieces.into_iter().map(|piece| Ok(Frame::data(piece)));
                StreamBody::new(stream::iter(frames)).boxed_unsync()
            }
            ReplyContent::Stream(body) => body,
        };
        let mut response = Response::new(body);
        *response.status_mut() =
            StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut names = String::with_capacity(512);
        for (name, value) in self.headers {
            // Names are constants or were checked: see `version::is_header`.
            if let Ok(header) = HeaderName::from_bytes(name.as_bytes()) {
                names.push_str(&name);
                names.push('\n');
                response.headers_mut().append(header, value);
            }
        }
        if self.last {
            names.push_str("Connection\n");
            let close = const { HeaderValue::from_static("close") };
            response.headers_mut().insert(hyper::header::CONNECTION, close);
        }
        *response.extensions_mut() = spelling::of(&names);
        response.extensions_mut().insert(const { ReasonPhrase::from_static(b"") });
        response
    }
}
