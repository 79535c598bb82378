//! HTTP/2 by hand: a client that sends frames that no library would.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use crate::common::PATIENCE;

pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Not refused, the client shall send less: the error code for a flood.
pub(crate) const ENHANCE_YOUR_CALM: u32 = 11;
/// The stream was not begun.
pub(crate) const REFUSED_STREAM: u32 = 7;

/// A received frame.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

impl Frame {
    /// The code of a GOAWAY or RST_STREAM.
    pub(crate) fn error(&self) -> u32 {
        let at = if self.kind == GOAWAY { 4 } else { 0 };
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }
}

/// An HTTP/2 connection without any automatic frames.
pub(crate) struct Connection {
    pub(crate) stream: TcpStream,
}

impl Connection {
    /// Connects, and sends the connection preface.
    pub(crate) fn open(address: &str) -> std::io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut connection = Self { stream };
        connection.stream.write_all(PREFACE)?;
        connection.send(SETTINGS, 0, 0, &[])?;
        Ok(connection)
    }

    pub(crate) fn send(
        &mut self,
        kind: u8,
        flags: u8,
        stream: u32,
        payload: &[u8],
    ) -> std::io::Result<()> {
        self.stream.write_all(&frame(kind, flags, stream, payload))
    }

    /// Begins a call and leaves it open.
    pub(crate) fn begin(&mut self, stream: u32, method: &str) -> std::io::Result<()> {
        self.stream.write_all(&beginning(stream, method, 0))
    }

    /// Sends a call that ends with its headers.
    pub(crate) fn send_empty(&mut self, stream: u32, method: &str) -> std::io::Result<()> {
        const END_STREAM: u8 = 1;
        self.stream.write_all(&beginning(stream, method, END_STREAM))
    }

    /// Resets a call.
    pub(crate) fn reset(&mut self, stream: u32) -> std::io::Result<()> {
        self.stream.write_all(&reset(stream))
    }

    /// Begins and resets `count` calls with one write: all of it arrives at once.
    pub(crate) fn begin_and_reset(
        &mut self,
        first: u32,
        count: u32,
        method: &str,
    ) -> std::io::Result<()> {
        let streams = (0..count).map(|call| first + call * 2);
        let frames: Vec<u8> = streams
            .flat_map(|stream| [beginning(stream, method, 0), reset(stream)])
            .flatten()
            .collect();
        self.stream.write_all(&frames)
    }

    /// The next frame; `None` after the service has hung up.
    pub(crate) fn next(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        self.stream.read_exact(&mut head).ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let mut payload = vec![0; length];
        self.stream.read_exact(&mut payload).ok()?;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        Some(Frame { kind: head[3], stream, payload })
    }

    pub(crate) fn wait_at_most(&self, limit: Duration) {
        self.stream.set_read_timeout(Some(limit)).unwrap();
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(9 + payload.len());
    frame.extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
    frame.extend_from_slice(&[kind, flags]);
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

fn beginning(stream: u32, method: &str, flags: u8) -> Vec<u8> {
    const END_HEADERS: u8 = 4;
    frame(HEADERS, END_HEADERS | flags, stream, &headers(method))
}

fn reset(stream: u32) -> Vec<u8> {
    const CANCEL: u32 = 8;
    frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes())
}

/// The headers of a call, each literal (HPACK, not indexed).
fn headers(method: &str) -> Vec<u8> {
    let path = format!("/arrow.flight.protocol.FlightService/{method}");
    let mut block = Vec::new();
    for (name, value) in [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", &path),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ] {
        assert!(name.len() < 127 && value.len() < 127);
        block.push(0);
        for text in [name, value] {
            block.push(text.len() as u8);
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}
