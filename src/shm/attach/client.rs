//! The consumer's end of the attach socket.

use std::io;
use std::net::Shutdown;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use super::fork::ForkGuard;
use super::wire::{
    Announcement, AttachRefusal, ClientMessage, Hello, LineReader, Need, SharedKind, WireError,
};
use crate::error::{Code, Coded, ErrorKind};
use crate::secret::Secret;
use crate::shm::layout::{Epoch, MetaHeader};
use crate::shm::local::LocalFiles;
use crate::shm::resolver::{MapError, Mappings};
use crate::shm::segment::Kind;

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
    Add(#[from] MapError),
    /// The service does not let us in, and says why.
    #[error("{message}")]
    Refused {
        /// What can be done about it.
        kind: ErrorKind,
        /// The service's own code.
        code: Code,
        /// What it said, without the code.
        message: String,
    },
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
            Self::Refused { kind, .. } => *kind,
        }
    }

    fn code(&self) -> Code {
        match self {
            Self::Wire(error) => error.code(),
            Self::Add(error) => error.code(),
            Self::Refused { code, .. } => *code,
        }
    }
}

/// A session with a service on the node: its segments, mapped as they are announced.
///
/// The session lives as long as this does; when it is dropped, or the process dies, everything it
/// held is released. A forked child has no part in it: there [`over`](Self::over) says so, and
/// dropping the child's copy leaves the parent's session alone.
#[derive(Debug)]
pub struct Attachment {
    session: String,
    epoch: Epoch,
    stream: UnixStream,
    shared: Arc<AttachShared>,
    listener: Option<JoinHandle<()>>,
    guard: ForkGuard,
    /// Lines are sent one at a time.
    sending: Mutex<()>,
}

#[derive(Debug, Default)]
struct AttachShared {
    mappings: ArcSwap<Mappings>,
    /// Whether the service is gone, and why.
    over: Mutex<Option<String>>,
    changed: Condvar,
    /// How many announcements told of nothing: the answer where a segment that was asked for is not.
    empty: AtomicU64,
    /// One asks at a time, so that such an answer is to the one who waits.
    asking: Mutex<()>,
    /// Directory and pins page, where the service has sent them.
    local: OnceLock<Arc<LocalFiles>>,
    /// The service is gone.
    ended: AtomicBool,
}

impl AttachShared {
    /// Takes the segments of an announcement, whose descriptors the reader holds.
    fn take(
        &self,
        announcement: &Announcement,
        epoch: Epoch,
        reader: &mut LineReader,
    ) -> Result<(), AttachError> {
        // What was given back may have been replaced under the same id: it goes first.
        let mut mappings = self.mappings.load().swept();
        let (mut directory, mut pins) = (None, None);
        for entry in &announcement.segments {
            let file = reader.descriptor().ok_or_else(|| WireError::Malformed {
                expected: "a descriptor for each segment",
                reason: format!("none for {:?} {}", entry.kind, entry.id),
            })?;
            let kind = match entry.kind {
                SharedKind::Segment => Kind::Segment,
                SharedKind::Region => Kind::Region,
                SharedKind::Directory => {
                    directory = Some((file, entry.size));
                    continue;
                }
                SharedKind::Pins => {
                    pins = Some((file, entry.size));
                    continue;
                }
            };
            mappings = match mappings.with(kind, entry.id, entry.size, epoch, file.as_fd()) {
                Ok(more) => more,
                // It was empty: nobody waits for it.
                Err(MapError::Retired { .. }) => continue,
                Err(error) => return Err(error.into()),
            };
        }
        self.mappings.store(Arc::new(mappings));
        if let (Some((directory, directory_bytes)), Some((pins, pins_bytes))) = (directory, pins) {
            let directory = (directory.as_fd(), directory_bytes);
            // Of another version, for instance: the service is asked for everything then.
            if let Ok(files) = LocalFiles::open(directory, (pins.as_fd(), pins_bytes), epoch) {
                let _ = self.local.set(Arc::new(files));
            }
        }
        if announcement.segments.is_empty() {
            self.empty.fetch_add(1, Ordering::Relaxed);
        }
        // The lock orders this with a waiter that has just looked and is about to wait.
        drop(self.over.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
        Ok(())
    }

    fn end(&self, why: String) {
        self.ended.store(true, Ordering::Release);
        *self.over.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
        self.changed.notify_all();
    }
}

/// What a service says that does not let us in.
fn refused(line: &[u8]) -> Option<AttachError> {
    let AttachRefusal { kind, error } = serde_json::from_slice(line).ok()?;
    let kind = match kind.as_str() {
        "UNAUTHENTICATED" => ErrorKind::Unauthenticated,
        "PERMISSION_DENIED" => ErrorKind::PermissionDenied,
        "INVALID_ARGUMENT" => ErrorKind::InvalidArgument,
        _ => ErrorKind::Unavailable,
    };
    let (code, message) = Code::of_message(&error).unwrap_or((Code(4061), &error));
    Some(AttachError::Refused { kind, code, message: message.to_owned() })
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
        Self::of_stream(UnixStream::connect(path)?, consumer, token)
    }

    /// Opens a session that looks up by itself ([`LocalPlane`](crate::shm::LocalPlane)), where the
    /// service offers that; else an ordinary one. Blocks at most 10 s.
    ///
    /// # Errors
    /// [`AttachError`].
    pub fn open_local(
        path: &Path,
        consumer: &str,
        token: Option<&str>,
    ) -> Result<Self, AttachError> {
        match Self::greet(UnixStream::connect(path)?, consumer, token, true) {
            // An older service knows no such field.
            Err(AttachError::Refused { kind: ErrorKind::InvalidArgument, message, .. })
                if message.contains("local") =>
            {
                Self::open(path, consumer, token)
            }
            opened => opened,
        }
    }

    /// Opens a session through a socket that is connected already. Blocks at most 10 s.
    ///
    /// # Errors
    /// [`AttachError`].
    pub fn of_stream(
        stream: UnixStream,
        consumer: &str,
        token: Option<&str>,
    ) -> Result<Self, AttachError> {
        Self::greet(stream, consumer, token, false)
    }

    fn greet(
        mut stream: UnixStream,
        consumer: &str,
        token: Option<&str>,
        local: bool,
    ) -> Result<Self, AttachError> {
        stream.set_read_timeout(Some(WELCOME_LIMIT))?;
        stream.set_write_timeout(Some(WELCOME_LIMIT))?;
        let token = token.map(Secret::from);
        let hello = Hello { hello: 1, consumer: consumer.to_owned(), token, local };
        send_json(&mut stream, &hello)?;
        let mut reader = LineReader::default();
        let line = loop {
            if let Some(line) = reader.line() {
                break line;
            }
            reader.read(&stream)?;
        };
        if let Some(refused) = refused(&line) {
            return Err(refused);
        }
        let (welcome, epoch) = parse(&line)?;
        let shared = Arc::new(AttachShared::default());
        shared.take(&welcome, epoch, &mut reader)?;
        stream.set_read_timeout(None)?;
        let guard = ForkGuard::new(&stream);
        let listener = std::thread::Builder::new().name("iovcache-attach".into()).spawn({
            let (shared, stream) = (Arc::clone(&shared), stream.try_clone()?);
            move || {
                let _guard = ForkGuard::new(&stream);
                listen(&shared, epoch, &stream, reader);
            }
        })?;
        let session = welcome.session;
        Ok(Self {
            session,
            epoch,
            stream,
            shared,
            listener: Some(listener),
            guard,
            sending: Mutex::default(),
        })
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

    /// Directory and pins page, where the service has sent them.
    pub(in crate::shm) fn local_files(&self) -> Option<Arc<LocalFiles>> {
        self.shared.local.get().map(Arc::clone)
    }

    /// Whether the service is known to be gone.
    #[inline]
    pub(in crate::shm) fn has_ended(&self) -> bool {
        self.shared.ended.load(Ordering::Acquire)
    }

    /// The same for a moment, without counting who uses them.
    #[cfg(feature = "capi")]
    #[inline]
    pub(crate) fn peek(&self) -> arc_swap::Guard<Arc<Mappings>> {
        self.shared.mappings.load()
    }

    /// Lets go of what the service has given back.
    pub fn sweep(&self) {
        self.shared.mappings.rcu(|mappings| mappings.swept());
    }

    /// Whether the service is there; if not, why.
    pub fn over(&self) -> Option<String> {
        if self.is_forked() {
            return Some("the session is that of the parent process".to_owned());
        }
        self.shared.over.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends a lease of this session. There is no answer; a lease that is over already is no error.
    /// Returns whether the line was sent.
    pub fn release(&self, lease: &str) -> bool {
        !self.is_forked() && self.send(&ClientMessage::Release { lease: lease.to_owned() })
    }

    /// Sends a line. A service that does not read makes this wait, for 10 s at most.
    fn send(&self, message: &ClientMessage) -> bool {
        let _sending = self.sending.lock().unwrap_or_else(PoisonError::into_inner);
        send_json(&mut &self.stream, message).is_ok()
    }

    /// Whether this process is a fork of the one that opened the session.
    pub fn is_forked(&self) -> bool {
        self.guard.is_forked()
    }

    /// The mappings with the segment or region that `header` lies in: if it is not there yet, it
    /// is asked for and waited for: until the service says that there is none, at most 2 s. What does
    /// not come is left to resolving to say.
    pub fn mappings_for(&self, header: &MetaHeader) -> Arc<Mappings> {
        let mappings = self.mappings();
        if mappings.knows(header) || self.is_forked() {
            return mappings;
        }
        let (kind, id) = match header.managed {
            1 => (Kind::Segment, header.segment_id),
            _ => (Kind::Region, header.region_id),
        };
        let _asking = self.shared.asking.lock().unwrap_or_else(PoisonError::into_inner);
        let empty = || self.shared.empty.load(Ordering::Relaxed);
        let empty_before = empty();
        let message = ClientMessage::Need(Need { kind, id });
        if !self.send(&message) {
            return mappings;
        }
        let deadline = Instant::now() + SEGMENT_LIMIT;
        let mut over = self.shared.over.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let mappings = self.mappings();
            let left = deadline.saturating_duration_since(Instant::now());
            let none = empty() != empty_before;
            if mappings.knows(header) || none || left.is_zero() || over.is_some() {
                return mappings;
            }
            let waited = self.shared.changed.wait_timeout(over, left);
            (over, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        if self.is_forked() {
            // The child's sockets lead nowhere, and no listener runs in it.
            std::mem::forget(self.listener.take());
            return;
        }
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

fn listen(shared: &AttachShared, epoch: Epoch, stream: &UnixStream, mut reader: LineReader) {
    loop {
        while let Some(line) = reader.line() {
            if refused(&line).is_some() {
                // One of our lines was wrong; what it asked for does not come.
                continue;
            }
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

#[cfg(test)]
mod tests {
    use std::os::fd::BorrowedFd;
    use std::os::unix::net::UnixListener;
    use std::path::PathBuf;

    use super::*;
    use crate::object::ObjectId;
    use crate::shm::attach::{
        ClientMessage, MAX_DESCRIPTORS, SegmentEntry, parse_hello, parse_line, send,
    };
    use crate::shm::{Block, Pool, PoolOptions, SharedSegment};

    /// The service's end: what a test tells it to send, and what it is asked for.
    struct Service {
        _folder: tempfile::TempDir,
        path: PathBuf,
        listener: UnixListener,
        pool: Pool,
    }

    impl Service {
        fn new() -> Self {
            // Two descriptors per segment in this process: more than some systems allow at first.
            use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
            let limit = getrlimit(Resource::Nofile);
            let raised = Rlimit { current: limit.maximum, ..limit };
            setrlimit(Resource::Nofile, raised).unwrap();
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("attach.sock");
            let listener = UnixListener::bind(&path).unwrap();
            let segment_bytes = 8192;
            let options = PoolOptions { segment_bytes, ..PoolOptions::default() };
            let pool = Pool::new(options).unwrap();
            Self { _folder: folder, path, listener, pool }
        }

        /// An object that fills a segment.
        fn object(&self, byte: u8) -> Block {
            let mut reservation = self.pool.reserve(3960).unwrap();
            reservation.fill(&[byte; 3960]);
            reservation.publish(ObjectId::from_bytes([byte; 16]))
        }

        /// Takes one client in and tells it of `segments`.
        fn welcome(&self, segments: &[SharedSegment]) -> (UnixStream, LineReader) {
            let (stream, _) = self.listener.accept().unwrap();
            let mut reader = LineReader::default();
            let hello = parse_hello(&next_line(&stream, &mut reader)).unwrap();
            let token = hello.token.as_ref().map(Secret::reveal);
            assert_eq!((hello.consumer.as_str(), token), ("test", Some("secret")));
            if segments.is_empty() {
                self.announce(&stream, &[]);
            }
            for part in segments.chunks(MAX_DESCRIPTORS) {
                self.announce(&stream, part);
            }
            (stream, reader)
        }

        fn announce(&self, stream: &UnixStream, segments: &[SharedSegment]) {
            let message = Announcement {
                session: "s-1".into(),
                epoch: self.pool.epoch().to_string(),
                segments: segments.iter().map(SegmentEntry::from).collect(),
            };
            let mut line = serde_json::to_vec(&message).unwrap();
            line.push(b'\n');
            let files: Vec<BorrowedFd<'_>> =
                segments.iter().map(|one| one.file().unwrap()).collect();
            assert_eq!(send(stream, &line, &files).unwrap(), line.len());
        }
    }

    fn next_line(stream: &UnixStream, reader: &mut LineReader) -> Vec<u8> {
        loop {
            if let Some(line) = reader.line() {
                return line;
            }
            reader.read(stream).unwrap();
        }
    }

    fn open(path: &Path) -> Result<Attachment, AttachError> {
        Attachment::open(path, "test", Some("secret"))
    }

    fn eventually(what: &str, holds: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(5);
        while !holds() {
            assert!(Instant::now() < deadline, "{what}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn more_segments_than_one_message_takes_all_arrive_and_so_do_later_ones() {
        let service = Service::new();
        let blocks: Vec<Block> = (0..260_u16).map(|n| service.object(n as u8)).collect();
        std::thread::scope(|scope| {
            let welcoming = scope.spawn(|| service.welcome(&service.pool.segments()));
            let attachment = open(&service.path).unwrap();
            let (stream, _reader) = welcoming.join().unwrap();
            assert_eq!(attachment.session(), "s-1");
            assert_eq!(attachment.epoch(), service.pool.epoch());
            eventually("all segments", || attachment.mappings().len() == 260);
            let mappings = attachment.mappings();
            for block in &blocks {
                assert_eq!(mappings.resolved(&block.meta_header()), Ok(block.payload()));
            }
            let late = service.object(77);
            let new = service.pool.segments().pop().unwrap();
            assert_eq!(new.id(), late.meta_header().segment_id);
            service.announce(&stream, &[new]);
            eventually("the new segment", || attachment.mappings().knows(&late.meta_header()));
            assert!(!mappings.knows(&late.meta_header()));
        });
    }

    #[test]
    fn a_segment_that_is_not_there_yet_is_asked_for() {
        let service = Service::new();
        let block = service.object(1);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (stream, mut reader) = service.welcome(&[]);
                let message = parse_line(&next_line(&stream, &mut reader)).unwrap();
                let need = Need { kind: Kind::Segment, id: 0 };
                assert_eq!(message, ClientMessage::Need(need));
                service.announce(&stream, &service.pool.segments());
                // Until the client hangs up.
                assert!(matches!(reader.read(&stream), Err(WireError::HungUp)));
            });
            let attachment = open(&service.path).unwrap();
            assert!(attachment.mappings().is_empty());
            let mappings = attachment.mappings_for(&block.meta_header());
            assert_eq!(mappings.resolved(&block.meta_header()), Ok(block.payload()));
        });
    }

    #[test]
    fn a_segment_given_back_on_its_way_is_left_out_and_the_session_goes_on() {
        let service = Service::new();
        let (stays, goes) = (service.object(1), service.object(2));
        let (kept, gone) = (stays.meta_header(), goes.meta_header());
        let spare = service.object(3);
        let segments = service.pool.segments();
        // One empty segment is kept; the second one goes.
        drop(spare);
        drop(goes);
        assert_eq!(service.pool.usage().segments, 2);
        std::thread::scope(|scope| {
            let welcoming = scope.spawn(|| service.welcome(&segments));
            let attachment = open(&service.path).unwrap();
            let (stream, _reader) = welcoming.join().unwrap();
            assert!(!attachment.mappings().knows(&gone));
            assert!(attachment.mappings().knows(&kept));
            assert_eq!(attachment.mappings().len(), 2);
            // What is retired while it is mapped goes with the next announcement.
            drop(stays);
            assert_eq!(service.pool.usage().segments, 1);
            let large = service.pool.reserve(100_000).unwrap();
            let large = large.publish(ObjectId::from_bytes([4; 16]));
            service.announce(&stream, &service.pool.segments()[1..]);
            eventually("the large one", || attachment.mappings().knows(&large.meta_header()));
            assert!(!attachment.mappings().knows(&kept));
            assert_eq!(attachment.over(), None);
        });
    }

    #[test]
    fn what_is_not_the_announced_segment_is_refused_by_name() {
        let service = Service::new();
        let _block = service.object(1);
        std::thread::scope(|scope| {
            let welcoming = scope.spawn(|| {
                let other = Pool::new(PoolOptions {
                    memory_bytes: 64 << 10,
                    segment_bytes: 8192,
                    ..PoolOptions::default()
                })
                .unwrap();
                drop(other.reserve(1).unwrap());
                service.welcome(&other.segments())
            });
            let error = open(&service.path).unwrap_err();
            assert!(error.to_string().contains("the epoch"), "{error}");
            drop(welcoming.join());
        });
    }

    #[test]
    fn a_service_that_goes_is_noticed_and_what_is_mapped_stays() {
        let service = Service::new();
        let block = service.object(9);
        std::thread::scope(|scope| {
            let welcoming = scope.spawn(|| service.welcome(&service.pool.segments()));
            let attachment = open(&service.path).unwrap();
            drop(welcoming.join().unwrap());
            eventually("the end", || attachment.over().is_some());
            let mappings = attachment.mappings();
            assert_eq!(mappings.resolved(&block.meta_header()), Ok(block.payload()));
            // Nobody is there to be asked: no waiting.
            let start = Instant::now();
            let mut unknown = block.meta_header();
            unknown.segment_id = 999;
            assert!(!attachment.mappings_for(&unknown).knows(&unknown));
            assert!(start.elapsed() < SEGMENT_LIMIT / 2);
        });
    }

    #[test]
    fn no_socket_is_an_error_that_can_pass() {
        let folder = tempfile::tempdir().unwrap();
        let error = open(&folder.path().join("none")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
    }
}
