//! An answer, written to the socket as it stands: heads by hand, bodies out of shared memory.

use std::fmt::Display;
use std::io::{self, IoSlice, Write as _};
use std::ops::Range;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::cache::Held;
use crate::interval::Timestamp;

/// A client that takes nothing for so long is cut: it keeps an object pinned.
const STALL_LIMIT: Duration = Duration::from_secs(30);

/// What follows a head.
#[derive(Debug)]
enum Body {
    Text(Vec<u8>),
    /// Pinned until it is sent.
    Object(Held, Range<usize>),
}

/// An answer.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: u16,
    head: Vec<u8>,
    body: Option<Body>,
    /// The connection ends with it.
    pub(super) last: bool,
}

impl Reply {
    /// An answer with the headers that every one has. No reason phrase: real servers send none.
    pub(super) fn new(status: u16) -> Self {
        let mut head = Vec::with_capacity(1024);
        let _ = write!(head, "HTTP/1.1 {status} \r\n");
        head.extend_from_slice(
            b"Access-Control-Allow-Origin: *\r\n\
              Access-Control-Allow-Headers: range\r\n\
              Access-Control-Expose-Headers: content-range,content-length,accept-ranges\r\n\
              Access-Control-Allow-Methods: HEAD,GET\r\n",
        );
        Self { status, head, body: None, last: false }
    }

    /// Adds a header. What is not Latin-1 becomes `?`, and no value can end its line.
    pub(super) fn header(&mut self, name: &str, value: impl Display) {
        self.head.extend_from_slice(name.as_bytes());
        self.head.extend_from_slice(b": ");
        let start = self.head.len();
        // Writing to a vector cannot fail.
        let _ = write!(self.head, "{value}");
        let written = &self.head[start..];
        if written.iter().any(|byte| !matches!(byte, 0x20..=0x7e)) {
            let text = String::from_utf8_lossy(written).into_owned();
            self.head.truncate(start);
            self.head.extend(text.chars().map(|c| match u8::try_from(c) {
                Ok(0..=0x1f | 0x7f) => b' ',
                Ok(byte) => byte,
                Err(_) => b'?',
            }));
        }
        self.head.extend_from_slice(b"\r\n");
    }

    pub(super) fn date(&mut self) {
        self.header("Date", httpdate::HttpDate::from(SystemTime::now()));
    }

    /// A time as HTTP writes it, if it can.
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

    /// With a text for a body.
    pub(super) fn text(mut self, content_type: &str, text: Vec<u8>) -> Self {
        self.header("Content-Type", content_type);
        self.header("Content-Length", text.len());
        self.body = Some(Body::Text(text));
        self
    }

    /// With a part of an object for a body.
    pub(super) fn object(mut self, held: Held, part: Range<usize>) -> Self {
        self.header("Content-Length", part.len());
        self.body = Some(Body::Object(held, part));
        self
    }

    /// The bytes of an object in it.
    pub(super) fn object_bytes(&self) -> u64 {
        match &self.body {
            Some(Body::Object(_, part)) => part.len() as u64,
            Some(Body::Text(_)) | None => 0,
        }
    }

    /// Sends it, the body straight from where it lies.
    pub(super) async fn write(mut self, stream: &mut TcpStream, is_head: bool) -> io::Result<()> {
        if self.last {
            self.header("Connection", "close");
        }
        self.head.extend_from_slice(b"\r\n");
        let body = match &self.body {
            _ if is_head => &[],
            None => &[][..],
            Some(Body::Text(text)) => text,
            Some(Body::Object(held, part)) => held.payload().get(part.clone()).unwrap_or_default(),
        };
        let (mut head, mut body) = (&self.head[..], body);
        while !head.is_empty() || !body.is_empty() {
            let written = match (head.is_empty(), body.is_empty()) {
                (false, false) => {
                    let parts = [IoSlice::new(head), IoSlice::new(body)];
                    timeout(STALL_LIMIT, stream.write_vectored(&parts)).await
                }
                (false, true) => timeout(STALL_LIMIT, stream.write(head)).await,
                (true, _) => timeout(STALL_LIMIT, stream.write(body)).await,
            };
            let written = written.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            let of_head = written.min(head.len());
            head = &head[of_head..];
            body = &body[written - of_head..];
        }
        Ok(())
    }
}
