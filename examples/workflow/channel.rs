//! Messages between devices over Unix sockets: a line of JSON and, with it, an Arrow table.
//!
//! ```text
//!  u32 length │ message (JSON) │ u32 length │ Arrow IPC stream, or nothing
//! ```

use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use arrow_array::RecordBatch;
use arrow_ipc::reader::StreamReader;
use arrow_ipc::writer::StreamWriter;
use serde::{Deserialize, Serialize};

use crate::PATIENCE;
use crate::plan::Seat;

/// Maximum length of a frame. No frame of this workflow comes near it.
const LONGEST: u32 = 64 << 20;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Message {
    /// The connecting device; `session` is that of its attach socket.
    Hello { seat: Seat, session: Option<String> },
    /// The connecting device is registered now.
    Welcome,
    /// A timeslice begins, with its timestamps. Source to consumers and cache.
    Data { timeslice: u64, seats: Vec<Seat> },
    /// The conditions of a timeslice are loaded, with the table of MetaHeaders. Cache to consumers.
    Conditions { timeslice: u64 },
    /// The processes that a timeslice was sent to. Source to sink.
    Expected { timeslice: u64, seats: Vec<Seat> },
    /// The number of timeslices sent. Source to sink.
    End { timeslices: u64 },
    /// One consumer has finished one timeslice. Consumer to sink.
    Checked { timeslice: u64, seat: Seat, checked: Checked },
    /// All timeslices below are finished; `complete` is their number in all. Sink to cache and
    /// source.
    OldestPossible { timeslice: u64, complete: u64 },
}

/// Result of a consumer for one timeslice.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Checked {
    /// Cells: rows times columns.
    pub(crate) rows: u64,
    /// Cells without a version in the repository, correctly null.
    pub(crate) nulls: u64,
    pub(crate) wrong_rows: u64,
    /// Bytes that were read through shared memory and compared.
    pub(crate) bytes: u64,
    pub(crate) wrong_bytes: u64,
    /// 1 if the rows are of more than one run.
    pub(crate) run_changes: u64,
    /// Time that the data of the timeslice waited for its conditions.
    pub(crate) wait_micros: u64,
}

fn malformed(reason: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.to_string())
}

/// Serialises a frame.
pub(crate) fn frame(message: &Message, table: &[RecordBatch]) -> io::Result<Vec<u8>> {
    let message = serde_json::to_vec(message)?;
    let mut body = Vec::new();
    if let Some(first) = table.first() {
        let mut writer = StreamWriter::try_new(&mut body, &first.schema()).map_err(malformed)?;
        table.iter().try_for_each(|batch| writer.write(batch)).map_err(malformed)?;
        writer.finish().map_err(malformed)?;
    }
    let mut bytes = Vec::with_capacity(8 + message.len() + body.len());
    for part in [message, body] {
        bytes.extend(u32::try_from(part.len()).map_err(malformed)?.to_le_bytes());
        bytes.extend(part);
    }
    Ok(bytes)
}

pub(crate) fn send(
    mut stream: &UnixStream,
    message: &Message,
    table: &[RecordBatch],
) -> io::Result<()> {
    stream.write_all(&frame(message, table)?)
}

/// Receives the next frame; `None`: the other end closed the connection.
pub(crate) fn receive(mut stream: &UnixStream) -> io::Result<Option<(Message, Vec<RecordBatch>)>> {
    let message = match part(&mut stream) {
        Ok(message) => serde_json::from_slice(&message)?,
        Err(error) if is_hang_up(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    let body = match part(&mut stream) {
        Ok(body) => body,
        // The other end died in the middle of a frame, which is discarded.
        Err(error) if is_hang_up(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    if body.is_empty() {
        return Ok(Some((message, Vec::new())));
    }
    let reader = StreamReader::try_new(&body[..], None).map_err(malformed)?;
    let table = reader.collect::<Result<_, _>>().map_err(malformed)?;
    Ok(Some((message, table)))
}

fn is_hang_up(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset)
}

fn part(stream: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length);
    if length > LONGEST {
        return Err(malformed(format!("a frame of {length} bytes, expected at most {LONGEST}")));
    }
    let mut part = vec![0; length as usize];
    stream.read_exact(&mut part)?;
    Ok(part)
}

/// Connects, introduces the device, and returns when the other end has registered it.
pub(crate) fn connect(path: &Path, seat: &Seat, session: Option<&str>) -> io::Result<UnixStream> {
    let deadline = Instant::now() + PATIENCE;
    let stream = loop {
        match UnixStream::connect(path) {
            Ok(stream) => break stream,
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let hello = Message::Hello { seat: seat.clone(), session: session.map(str::to_owned) };
    send(&stream, &hello, &[])?;
    match receive(&stream)? {
        Some((Message::Welcome, _)) => {}
        other => return Err(malformed(format!("{other:?}, expected a welcome"))),
    }
    // The driver alone decides how long a device may be silent, since it sees all of them.
    stream.set_read_timeout(None)?;
    Ok(stream)
}

/// Accepts connections, and gives each a thread of its own once the device has introduced itself.
pub(crate) fn accept(
    path: &Path,
    attend: impl Fn(Seat, Option<String>, UnixStream) + Clone + Send + 'static,
) -> io::Result<()> {
    let listener = UnixListener::bind(path)?;
    std::thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            let attend = attend.clone();
            std::thread::spawn(move || {
                let limited = stream.set_read_timeout(Some(PATIENCE)).is_ok()
                    && stream.set_write_timeout(Some(PATIENCE)).is_ok();
                // A device that dies before it has introduced itself is ignored.
                if let Ok(Some((Message::Hello { seat, session }, _))) = receive(&stream)
                    && limited
                    && stream.set_read_timeout(None).is_ok()
                {
                    attend(seat, session, stream);
                }
            });
        }
    });
    Ok(())
}
