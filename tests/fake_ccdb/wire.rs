//! HTTP/1.1 by hand: parses requests, and writes answers byte by byte as given.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::Fault;

/// A request without a body.
pub(crate) struct Request {
    pub(crate) method: String,
    /// Path and query, as sent.
    pub(crate) target: String,
    headers: Vec<(String, String)>,
    /// The bytes after the head.
    pub(crate) body: Vec<u8>,
}

impl Request {
    /// The first header of this name (in lower case): real servers ignore further ones.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }
}

/// Reads the head of a request; `None` at the end of the connection.
pub(crate) async fn read_request(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<Request> {
    let end = loop {
        if let Some(end) = buffer.windows(4).position(|w| w == b"\r\n\r\n") {
            break end;
        }
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8(buffer.drain(..end + 4).collect()).ok()?;
    let mut lines = head.trim_end().split("\r\n");
    let mut first = lines.next()?.split(' ');
    let (method, target) = (first.next()?.to_owned(), first.next()?.to_owned());
    let headers = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let mut request = Request { method, target, headers, body: Vec::new() };
    if let Some(length) = request.header("content-length").and_then(|text| text.parse().ok()) {
        request.body = take(stream, buffer, length).await?;
    } else if request.header("transfer-encoding") == Some("chunked") {
        loop {
            while !buffer.windows(2).any(|w| w == b"\r\n") {
                if stream.read_buf(buffer).await.ok()? == 0 {
                    return None;
                }
            }
            let end = buffer.windows(2).position(|w| w == b"\r\n")?;
            let line = String::from_utf8(buffer.drain(..end + 2).collect()).ok()?;
            let length = usize::from_str_radix(line.trim(), 16).ok()?;
            let chunk = take(stream, buffer, length + 2).await?;
            request.body.extend_from_slice(&chunk[..length]);
            if length == 0 {
                break;
            }
        }
    }
    Some(request)
}

/// The next `length` bytes.
async fn take(stream: &mut TcpStream, buffer: &mut Vec<u8>, length: usize) -> Option<Vec<u8>> {
    while buffer.len() < length {
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    }
    Some(buffer.drain(..length).collect())
}

/// How the body is sent.
pub(crate) enum Pace {
    AtOnce,
    /// Byte by byte with a pause after each.
    Slow(Duration),
    /// Only this many bytes, then the connection closes.
    Torn(usize),
    Chunked,
    Endless,
}

/// An answer, headers in order and as spelled.
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Bytes,
    /// Whether the body is that of a version.
    pub(crate) is_version: bool,
    /// Whether the connection closes after it.
    pub(crate) last: bool,
    pace: Pace,
    length: Option<u64>,
}

impl Reply {
    /// A status with the headers that every answer has.
    pub(crate) fn new(status: u16) -> Self {
        let headers = [
            ("Access-Control-Allow-Origin", "*"),
            ("Access-Control-Allow-Headers", "range"),
            ("Access-Control-Expose-Headers", "content-range,content-length,accept-ranges"),
            ("Access-Control-Allow-Methods", "HEAD,GET"),
        ];
        Self {
            status,
            headers: headers.map(|(n, v)| (n.to_owned(), v.to_owned())).to_vec(),
            body: Bytes::new(),
            is_version: false,
            last: false,
            pace: Pace::AtOnce,
            length: None,
        }
    }

    /// A redirect without any header of CCDB.
    pub(crate) fn redirect(location: &str) -> Self {
        let mut reply = Self::new(303);
        reply.push("Location", location);
        reply
    }

    /// The redirect of the node's cache for versions that it does not have.
    pub(crate) fn elsewhere(location: &str) -> Self {
        let mut reply = Self::new(307);
        reply.push("Cache-Control", "no-cache");
        reply.push("Location", location);
        reply.push("Date", "Mon, 23 Nov 2026 08:17:21 GMT");
        reply
    }

    /// Bytes of the answer to a request, head included.
    pub(crate) fn bytes(&self, request: &Request) -> usize {
        let lines = self.headers.iter().map(|(name, value)| name.len() + value.len() + 4);
        let body = if request.method == "HEAD" { 0 } else { self.body.len() };
        "HTTP/1.1 200 \r\nContent-Length: 123\r\n\r\n".len() + lines.sum::<usize>() + body
    }

    /// Adds a header, after those of the same name.
    pub(crate) fn push(&mut self, name: &str, value: &str) {
        self.headers.push((name.to_owned(), value.to_owned()));
    }

    /// Replaces a header in its place, or adds it: the effect of metadata on protocol headers.
    pub(crate) fn set(&mut self, name: &str, value: &str) {
        match self.headers.iter_mut().find(|(n, _)| n.eq_ignore_ascii_case(name)) {
            Some((_, old)) => value.clone_into(old),
            None => self.push(name, value),
        }
    }

    /// Applies a fault to the answer.
    pub(crate) fn spoil(&mut self, fault: &Fault) {
        match fault {
            Fault::SlowBody(pause) => self.pace = Pace::Slow(*pause),
            Fault::TruncatedWithMatchingLength(missing) => {
                let left = self.body.len().saturating_sub(*missing);
                self.body.truncate(left);
            }
            Fault::Torn(missing) => {
                self.pace = Pace::Torn(self.body.len().saturating_sub(*missing));
            }
            Fault::FlippedBit => {
                let mut bytes = self.body.to_vec();
                if let Some(byte) = bytes.last_mut() {
                    *byte ^= 1;
                }
                self.body = bytes.into();
            }
            Fault::WrongMd5 => self.set("Content-MD5", "00000000000000000000000000000000"),
            Fault::Without(name) => self.headers.retain(|(n, _)| !n.eq_ignore_ascii_case(name)),
            Fault::Header(name, value) => self.set(name, value),
            Fault::Chunked => self.pace = Pace::Chunked,
            Fault::Endless => self.pace = Pace::Endless,
            Fault::Length(bytes) => self.length = Some(*bytes),
            Fault::Status(_)
            | Fault::RetryAfter(_)
            | Fault::Hang
            | Fault::HangUp
            | Fault::Usage
            | Fault::Redirect(_)
            | Fault::RedirectToItself => {}
        }
    }

    /// Sends it; HEAD gets no body, and unless the status is 200 `Transfer-Encoding: chunked`
    /// instead of a length.
    pub(crate) async fn write(&self, stream: &mut TcpStream, request: &Request) -> io::Result<()> {
        let is_head = request.method == "HEAD";
        // Status line without a reason, as in Tomcat.
        let mut head = format!("HTTP/1.1 {} \r\n", self.status).into_bytes();
        let mut line = |name: &str, value: &str| {
            // Latin-1, as in HTTP; other characters become a question mark, ends of lines a blank.
            let byte = |c| match u8::try_from(c) {
                Ok(b'\r' | b'\n') => b' ',
                Ok(byte) => byte,
                Err(_) => b'?',
            };
            head.extend(name.chars().map(byte));
            head.extend_from_slice(b": ");
            head.extend(value.chars().map(byte));
            head.extend_from_slice(b"\r\n");
        };
        for (name, value) in &self.headers {
            line(name, value);
        }
        if matches!(self.pace, Pace::Chunked | Pace::Endless) || (is_head && self.status != 200) {
            if self.status != 304 {
                line("Transfer-Encoding", "chunked");
            }
        } else if !matches!(self.status, 204 | 304) {
            let length = self.length.unwrap_or(self.body.len() as u64);
            line("Content-Length", &length.to_string());
        }
        if self.last {
            line("Connection", "close");
        }
        head.extend_from_slice(b"\r\n");
        if is_head || self.status == 304 {
            stream.write_all(&head).await?;
            return stream.flush().await;
        }
        match self.pace {
            Pace::AtOnce if self.length.is_none() => {
                if self.body.len() < 64 << 10 {
                    head.extend_from_slice(&self.body);
                    stream.write_all(&head).await?;
                } else {
                    stream.write_all(&head).await?;
                    stream.write_all(&self.body).await?;
                }
            }
            Pace::AtOnce => {
                stream.write_all(&head).await?;
                stream.write_all(&self.body).await?;
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            Pace::Slow(pause) => {
                stream.write_all(&head).await?;
                for byte in &self.body {
                    stream.write_all(&[*byte]).await?;
                    tokio::time::sleep(pause).await;
                }
            }
            Pace::Torn(count) => {
                stream.write_all(&head).await?;
                stream.write_all(&self.body[..count]).await?;
                stream.flush().await?;
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            Pace::Chunked | Pace::Endless => {
                stream.write_all(&head).await?;
                loop {
                    for part in self.body.chunks(4 << 10) {
                        stream.write_all(format!("{:x}\r\n", part.len()).as_bytes()).await?;
                        stream.write_all(part).await?;
                        stream.write_all(b"\r\n").await?;
                    }
                    if matches!(self.pace, Pace::Chunked) || self.body.is_empty() {
                        break;
                    }
                }
                stream.write_all(b"0\r\n\r\n").await?;
            }
        }
        stream.flush().await
    }
}
