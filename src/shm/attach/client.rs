//! The client of the attach socket: opens a session and maps the announced segments.

use std::io;
use std::net::Shutdown;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use super::fork::ForkGuard;
use super::outbox::Outbox;
use super::wire::{
    Announcement, AttachRefusal, ClientMessage, Hello, LineReader, Need, SharedKind, WireError,
};
use crate::error::{Code, Coded as _, ErrorKind, coded};
use crate::secret::Secret;
use crate::shm::futex::EndWord;
use crate::shm::layout::{Epoch, MetaHeader};
use crate::shm::local::{LocalFiles, Notifier};
use crate::shm::resolve_error::MapError;
use crate::shm::resolver::Mappings;
use crate::shm::segment::Kind;
use crate::sync::{Condvar, Mutex};

/// Time limit for the welcome by the service.
const WELCOME_LIMIT: Duration = Duration::from_secs(10);
/// Time limit for a segment that a table refers to.
const SEGMENT_LIMIT: Duration = Duration::from_secs(2);

/// Why the attach failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttachError {
    /// The socket or a message failed.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// An announced segment cannot be mapped.
    #[error(transparent)]
    Add(#[from] MapError),
    /// The service refused the client.
    #[error("{message}")]
    Refused {
        /// The kind of error: the possible reaction of the caller.
        kind: ErrorKind,
        /// The error code of the service.
        code: Code,
        /// The message of the service, without the code.
        message: String,
    },
}

impl From<io::Error> for AttachError {
    fn from(error: io::Error) -> Self {
        Self::Wire(error.into())
    }
}

coded! { AttachError {
    Wire(error) => error,
    Add(error) => error,
    Refused { kind, code, .. } => (*kind, *code),
} }

/// A session with a service on the node: its segments, mapped as they are announced.
///
/// The session ends when this is dropped or the process dies, which releases everything it held. A
/// forked child does not share it: there [`over`](Self::over) reports that, and dropping the
/// child's copy leaves the parent's session unaffected.
#[derive(Debug)]
pub struct Attachment {
    session: String,
    /// The name in the hello.
    #[cfg_attr(
        not(any(feature = "client", feature = "capi")),
        allow(dead_code, reason = "for timeframes")
    )]
    consumer: String,
    epoch: Epoch,
    stream: UnixStream,
    shared: Arc<AttachShared>,
    listener: Option<JoinHandle<()>>,
    guard: ForkGuard,
}

/// The state of a session that its reader thread updates.
#[derive(Debug, Default)]
struct AttachShared {
    mappings: ArcSwap<Mappings>,
    /// The reason, once the session is over.
    over: Mutex<Option<String>>,
    changed: Condvar,
    /// Number of announcements without segments: the answer to a request for an unknown segment.
    empty: AtomicU64,
    /// Serialises requests, so that an empty answer belongs to the request that waits.
    asking: Mutex<()>,
    /// Directory and pins page, where the service has sent them.
    local: OnceLock<Arc<LocalFiles>>,
    /// Set when the service is gone.
    ended: EndWord,
    /// Events of the local plane.
    events: Notifier,
    /// Lines sent after the hello.
    outbox: Outbox,
}

impl AttachShared {
    /// Maps the segments of an announcement, whose descriptors the reader holds.
    fn take(
        &self,
        announcement: &Announcement,
        epoch: Epoch,
        reader: &mut LineReader,
    ) -> Result<(), AttachError> {
        // Retired segments are unmapped first: another segment may have reused the id.
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
                // It was empty, so no request waits for it.
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
        // The lock orders this after the check of a waiter that is about to wait.
        drop(self.over.lock());
        self.changed.notify_all();
        Ok(())
    }

    fn end(&self, why: String) {
        self.ended.set();
        self.events.end();
        *self.over.lock() = Some(why);
        self.changed.notify_all();
    }
}

/// Parses the refusal of a service.
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

/// Name of this process as a consumer, if it has none of its own.
#[cfg(any(feature = "client", feature = "capi"))]
pub(crate) fn process_name() -> String {
    format!("process-{}", std::process::id())
}

impl Attachment {
    /// Opens a session. Blocks for at most 10 s, usually much less. `path` is that of the attach
    /// socket, `consumer` the name of this process (at most 256 bytes), `token` the one that the
    /// service requires, if it does.
    ///
    /// # Errors
    /// [`AttachError`]: the socket cannot be reached, the service refuses this user or token, or a
    /// segment cannot be mapped.
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

    /// Opens a session through a connected socket. Blocks for at most 10 s.
    ///
    /// # Errors
    /// [`AttachError`].
    pub(crate) fn of_stream(
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
        // Each copy is registered as soon as it exists: another thread may fork at any time.
        let guard = ForkGuard::new(&stream);
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
        if shared.local.get().is_some() {
            shared.outbox.allow_waiting()?;
        }
        let listener = std::thread::Builder::new().name("iovcache-attach".into()).spawn({
            let (shared, stream) = (Arc::clone(&shared), stream.try_clone()?);
            let listener_guard = ForkGuard::new(&stream);
            move || {
                // Unregistered before the copy is closed.
                let _guard = listener_guard;
                listen(&shared, epoch, &stream, reader);
            }
        })?;
        let session = welcome.session;
        let (consumer, listener) = (consumer.to_owned(), Some(listener));
        Ok(Self { session, consumer, epoch, stream, shared, listener, guard })
    }

    /// The id of the session, for requests.
    pub fn session(&self) -> &str {
        &self.session
    }

    /// The name of the consumer that opened the session. The service accepts its reports for this name.
    #[cfg(any(feature = "client", feature = "capi"))]
    pub(crate) fn consumer(&self) -> &str {
        &self.consumer
    }

    /// The epoch of the service.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The current mappings.
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
        self.shared.ended.is_set()
    }

    /// The events of the local plane.
    pub(in crate::shm) fn events(&self) -> &Notifier {
        &self.shared.events
    }

    /// The word that wakes waits when the service is gone.
    pub(in crate::shm) fn end_word(&self) -> &EndWord {
        &self.shared.ended
    }

    /// Like [`mappings`](Self::mappings) for a short time, without reference counting.
    #[cfg(feature = "capi")]
    #[inline]
    pub(crate) fn peek(&self) -> arc_swap::Guard<Arc<Mappings>> {
        self.shared.mappings.load()
    }

    /// Unmaps segments that the service has retired.
    pub fn sweep(&self) {
        self.shared.mappings.rcu(|mappings| mappings.swept());
    }

    /// The reason, if the session is over.
    pub fn over(&self) -> Option<String> {
        if self.is_forked() {
            return Some("the session is that of the parent process".to_owned());
        }
        self.shared.over.lock().clone()
    }

    /// Ends a lease of this session. There is no answer; an unknown or ended lease is no error.
    /// Returns whether the line was sent.
    pub fn release(&self, lease: &str) -> bool {
        !self.is_forked() && self.send(&ClientMessage::Release { lease: lease.to_owned() })
    }

    /// Sends a line. Blocks for at most 10 s if the service does not read.
    fn send(&self, message: &ClientMessage) -> bool {
        self.shared.outbox.send(&self.stream, message).is_ok()
    }

    /// Sends a line if that is possible without waiting. Returns its number: that of all lines sent
    /// so far, modulo 2^32. Not in a forked child.
    #[cfg(any(feature = "client", feature = "capi"))]
    pub(crate) fn try_report(&self, message: &ClientMessage) -> Option<u32> {
        if self.is_forked() {
            return None;
        }
        self.shared.outbox.try_send(&self.stream, message)
    }

    /// Like [`try_report`](Self::try_report), but the line may wait for the next one, for at most 2 ms.
    #[cfg(any(feature = "client", feature = "capi"))]
    pub(crate) fn report_later(&self, message: &ClientMessage) -> Option<u32> {
        if self.is_forked() {
            return None;
        }
        self.shared.outbox.send_later(&self.stream, message)
    }

    /// Sends the lines that wait.
    #[cfg(any(feature = "client", feature = "capi"))]
    pub(in crate::shm) fn flush(&self) {
        if !self.is_forked() {
            self.shared.outbox.flush(&self.stream);
        }
    }

    /// Whether this process is a fork of the one that opened the session.
    #[inline]
    pub fn is_forked(&self) -> bool {
        self.guard.is_forked()
    }

    /// The mappings with the segment or region of `header`. If it is not mapped yet, it is
    /// requested, and awaited until the service answers that there is none, for at most 2 s. If it
    /// does not arrive, resolving reports the error.
    pub fn mappings_for(&self, header: &MetaHeader) -> Arc<Mappings> {
        let mappings = self.mappings();
        if mappings.knows(header) || self.is_forked() {
            return mappings;
        }
        let (kind, id) = match header.managed {
            1 => (Kind::Segment, header.segment_id),
            _ => (Kind::Region, header.region_id),
        };
        let _asking = self.shared.asking.lock();
        let empty = || self.shared.empty.load(Ordering::Relaxed);
        let empty_before = empty();
        let message = ClientMessage::Need(Need { kind, id });
        if !self.send(&message) {
            return mappings;
        }
        let deadline = Instant::now() + SEGMENT_LIMIT;
        let mut over = self.shared.over.lock();
        loop {
            let mappings = self.mappings();
            let left = deadline.saturating_duration_since(Instant::now());
            let none = empty() != empty_before;
            if mappings.knows(header) || none || left.is_zero() || over.is_some() {
                return mappings;
            }
            over = self.shared.changed.wait_timeout(over, left);
        }
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        if self.is_forked() {
            // The child's sockets are not connected, and it has no listener thread.
            std::mem::forget(self.listener.take());
            return;
        }
        self.shared.outbox.flush(&self.stream);
        // This ends the session and wakes the listener.
        let _ = self.stream.shutdown(Shutdown::Both);
        if let Some(listener) = self.listener.take() {
            let _ = listener.join();
        }
        // The listener has ended them.
        self.shared.events.join();
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
                // One of the client's lines was wrong; the requested segment does not arrive.
                continue;
            }
            let taken = parse(&line)
                .map_err(AttachError::from)
                .and_then(|(announcement, _)| shared.take(&announcement, epoch, &mut reader));
            if let Err(error) = taken {
                return shared.end(error.message());
            }
        }
        let input = shared.outbox.until_input(stream).map_err(WireError::from);
        match input.and_then(|()| reader.read(stream)) {
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

    /// The service end of the socket, controlled by a test.
    struct Service {
        _folder: tempfile::TempDir,
        path: PathBuf,
        listener: UnixListener,
        pool: Pool,
    }

    impl Service {
        fn new() -> Self {
            // Two descriptors per segment in this process: more than the initial limit of some
            // systems.
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

        /// Accepts one client and announces `segments`.
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
    fn a_segment_retired_in_transit_is_left_out_and_the_session_goes_on() {
        let service = Service::new();
        let (stays, goes) = (service.object(1), service.object(2));
        let (kept, gone) = (stays.meta_header(), goes.meta_header());
        let spare = service.object(3);
        let segments = service.pool.segments();
        // One empty segment is kept; the second one is retired.
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
            // A segment retired while it is mapped is unmapped at the next announcement.
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
    fn a_file_that_is_not_the_announced_segment_is_refused_by_name() {
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
            // The service is gone: no wait.
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
