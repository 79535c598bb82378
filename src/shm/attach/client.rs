//! The consumer's end of the attach socket.

use std::io;
use std::net::Shutdown;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use super::wire::{Announcement, ClientMessage, Hello, LineReader, Need, WireError};
use crate::error::{Code, Coded, ErrorKind};
use crate::shm::area::Kind;
use crate::shm::layout::{Epoch, MetaHeader};
use crate::shm::resolver::{AddError, Mappings};

/// How long the service may take to let us in.
const WELCOME_LIMIT: Duration = Duration::from_secs(10);
/// How long a segment that a table names may take to come.
const SEGMENT_LIMIT: Duration = Duration::from_secs(2);

/// Why attaching failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttachError {
    /// The socket or what came through it.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// A segment that came.
    #[error(transparent)]
    Add(#[from] AddError),
}

impl From<io::Error> for AttachError {
    fn from(error: io::Error) -> Self {
        Self::Wire(error.into())
    }
}

impl Coded for AttachError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Wire(error) => error.kind(),
            Self::Add(error) => error.kind(),
        }
    }

    fn code(&self) -> Code {
        match self {
            Self::Wire(error) => error.code(),
            Self::Add(error) => error.code(),
        }
    }
}

/// A session with a service on the node: its segments, mapped as they are announced.
///
/// The session lives as long as this does; when it is dropped, or the process dies, all that was
/// held for it is let go.
#[derive(Debug)]
pub struct Attachment {
    session: String,
    epoch: Epoch,
    stream: UnixStream,
    shared: Arc<Shared>,
    listener: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    mappings: ArcSwap<Mappings>,
    /// Whether the service is gone, and why.
    over: Mutex<Option<String>>,
    changed: Condvar,
}

impl Shared {
    /// Takes the segments of an announcement, whose descriptors the reader holds.
    fn take(
        &self,
        announcement: &Announcement,
        epoch: Epoch,
        reader: &mut LineReader,
    ) -> Result<(), AttachError> {
        // What was given back may have been replaced under the same id: it goes first.
        let mut mappings = self.mappings.load().swept();
        for entry in &announcement.segments {
            let file = reader.descriptor().ok_or_else(|| WireError::Malformed {
                expected: "a descriptor for each segment",
                reason: format!("none for {:?} {}", entry.kind, entry.id),
            })?;
            mappings = match mappings.with(entry.kind, entry.id, entry.size, epoch, file.as_fd()) {
                Ok(more) => more,
                // It was empty: nobody waits for it.
                Err(AddError::Retired { .. }) => continue,
                Err(error) => return Err(error.into()),
            };
        }
        self.mappings.store(Arc::new(mappings));
        // The lock orders this with a waiter that has just looked and is about to wait.
        drop(self.over.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
        Ok(())
    }

    fn end(&self, why: String) {
        *self.over.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
        self.changed.notify_all();
    }
}

fn parse(line: &[u8]) -> Result<(Announcement, Epoch), WireError> {
    let malformed =
        |reason| WireError::Malformed { expected: r#"{"session", "epoch", "segments"}"#, reason };
    let announcement: Announcement =
        serde_json::from_slice(line).map_err(|error| malformed(error.to_string()))?;
    let epoch = u64::from_str_radix(&announcement.epoch, 16)
        .map_err(|_| malformed(format!("epoch {:?}", announcement.epoch)))?;
    Ok((announcement, Epoch(epoch)))
}

impl Attachment {
    /// Opens a session. Blocks for a moment, at most 10 s.
    ///
    /// # Errors
    /// [`AttachError`].
    pub fn open(path: &Path, consumer: &str, token: Option<&str>) -> Result<Self, AttachError> {
        let mut stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(WELCOME_LIMIT))?;
        stream.set_write_timeout(Some(WELCOME_LIMIT))?;
        let token = token.map(str::to_owned);
        let hello = Hello { hello: 1, consumer: consumer.to_owned(), token };
        send_json(&mut stream, &hello)?;
        let mut reader = LineReader::default();
        let line = loop {
            if let Some(line) = reader.line() {
                break line;
            }
            reader.read(&stream)?;
        };
        let (welcome, epoch) = parse(&line)?;
        let shared = Arc::new(Shared::default());
        shared.take(&welcome, epoch, &mut reader)?;
        stream.set_read_timeout(None)?;
        let listener = std::thread::Builder::new().name("iovcache-attach".into()).spawn({
            let (shared, stream) = (Arc::clone(&shared), stream.try_clone()?);
            move || listen(&shared, epoch, &stream, reader)
        })?;
        let session = welcome.session;
        Ok(Self { session, epoch, stream, shared, listener: Some(listener) })
    }

    /// The session's name, for requests.
    pub fn session(&self) -> &str {
        &self.session
    }

    /// The instance of the service.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// What is mapped now.
    pub fn mappings(&self) -> Arc<Mappings> {
        self.shared.mappings.load_full()
    }

    /// Whether the service is there; if not, why.
    pub fn over(&self) -> Option<String> {
        self.shared.over.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The mappings with the segment or region that `header` lies in: if it is not there yet, it
    /// is asked for and waited for, at most 2 s. What does not come is left to resolving to say.
    pub fn mappings_for(&self, header: &MetaHeader) -> Arc<Mappings> {
        let mappings = self.mappings();
        if mappings.knows(header) {
            return mappings;
        }
        let (kind, id) = match header.managed {
            1 => (Kind::Segment, header.segment_id),
            _ => (Kind::Region, header.region_id),
        };
        let message = ClientMessage { need: Need { kind, id } };
        if send_json(&mut &self.stream, &message).is_err() {
            return mappings;
        }
        let deadline = Instant::now() + SEGMENT_LIMIT;
        let mut over = self.shared.over.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let mappings = self.mappings();
            let left = deadline.saturating_duration_since(Instant::now());
            if mappings.knows(header) || left.is_zero() || over.is_some() {
                return mappings;
            }
            let waited = self.shared.changed.wait_timeout(over, left);
            (over, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        // This is what ends the session, and wakes the listener.
        let _ = self.stream.shutdown(Shutdown::Both);
        if let Some(listener) = self.listener.take() {
            let _ = listener.join();
        }
    }
}

fn send_json(stream: &mut impl io::Write, message: &impl serde::Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    stream.write_all(&line)
}

fn listen(shared: &Shared, epoch: Epoch, stream: &UnixStream, mut reader: LineReader) {
    loop {
        while let Some(line) = reader.line() {
            let taken = parse(&line)
                .map_err(AttachError::from)
                .and_then(|(announcement, _)| shared.take(&announcement, epoch, &mut reader));
            if let Err(error) = taken {
                return shared.end(error.message());
            }
        }
        match reader.read(stream) {
            Ok(()) => {}
            Err(WireError::Io(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return shared.end(error.message()),
        }
    }
}
