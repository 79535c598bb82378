//! Announces segments and errors to one attached process.
//!
//! ```text
//!  unannounced segments ─▶ one line with descriptors ─▶ socket ─read─▶ the next line
//! ```
//!
//! At most one line is in the socket. A segment created meanwhile waits as a number in a list, not
//! as a descriptor: a descriptor in a socket keeps the segment's memory, and counts against the
//! limit of open files of the service's user (ETOOMANYREFS). A process that does not read therefore
//! holds back one line, and no other process waits for it.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::time::sleep;

use crate::cache::versions::publisher::SessionPage;
use crate::error::Coded;
use crate::shm::attach::{
    Announcement, AttachRefusal, MAX_DESCRIPTORS, SegmentEntry, SharedKind, WireError, is_all_read,
    send,
};
use crate::shm::{InFlight, Kind, Pool, ServicePage, SharedSegment};

/// Pause before the next attempt when the kernel accepts no more descriptors in flight.
const RETRY: Duration = Duration::from_millis(50);
/// Interval for checking whether a line was read, in case the kernel sends no wake-up.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Share of the memory (one part in this many) that announced but unread segments of single large
/// objects may have. Beyond it each process gets one such segment at a time.
const LARGE_UNREAD_SHARE: u64 = 4;

/// Number of unread descriptors in the sockets of all attached processes.
#[derive(Debug)]
pub(crate) struct DescriptorsInFlight {
    unread: AtomicUsize,
    limit: usize,
}

impl DescriptorsInFlight {
    pub(crate) fn new(limit: usize) -> Self {
        Self { unread: AtomicUsize::new(0), limit }
    }

    /// Takes room for up to `wanted` descriptors, and for `least` even beyond the limit.
    fn take(self: &Arc<Self>, wanted: usize, least: usize) -> DescriptorPermit {
        let mut count = 0;
        let _ = self.unread.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |unread| {
            count = wanted.min(self.limit.saturating_sub(unread).max(least));
            Some(unread + count)
        });
        DescriptorPermit { descriptors: Arc::clone(self), count }
    }
}

/// Room for descriptors in flight; returned on drop.
#[derive(Debug)]
struct DescriptorPermit {
    descriptors: Arc<DescriptorsInFlight>,
    count: usize,
}

impl DescriptorPermit {
    fn shrink_to(&mut self, count: usize) {
        self.descriptors.unread.fetch_sub(self.count - count, Ordering::Relaxed);
        self.count = count;
    }
}

impl Drop for DescriptorPermit {
    fn drop(&mut self) {
        self.descriptors.unread.fetch_sub(self.count, Ordering::Relaxed);
    }
}

/// A line that was put into the socket and is not read yet.
#[derive(Debug)]
struct SentLine {
    bytes: Vec<u8>,
    sent: usize,
    /// The segments whose descriptors are in the line.
    _in_flight: Vec<InFlight>,
    _room: Option<DescriptorPermit>,
}

impl SentLine {
    /// Sends the unsent rest; true if the peer has read everything.
    fn is_read(&mut self, stream: &UnixStream) -> io::Result<bool> {
        match self.try_read(stream) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Like [`is_read`](Self::is_read), with `WouldBlock` for lines that are not entirely read.
    fn try_read(&mut self, stream: &UnixStream) -> io::Result<()> {
        if self.sent < self.bytes.len() {
            self.sent += send(stream.as_fd(), &self.bytes[self.sent..], &[])?;
        }
        let all_read = self.sent == self.bytes.len() && is_all_read(stream.as_fd())?;
        if all_read { Ok(()) } else { Err(io::ErrorKind::WouldBlock.into()) }
    }
}

/// Sends lines to one attached process.
#[derive(Debug)]
pub(crate) struct Announcer<'a> {
    stream: &'a UnixStream,
    pool: &'a Pool,
    session: &'a str,
    /// Sent with the welcome: directory and pins page of a process that looks up by itself.
    local: Option<&'a SessionPage>,
    descriptors: Arc<DescriptorsInFlight>,
    told: HashSet<(Kind, u16)>,
    /// Set if there may be unannounced segments.
    grown: bool,
    /// An announcement is due even without segments: the welcome, and the answer to `need`.
    answer: Option<Option<(Kind, u16)>>,
    error: Option<Vec<u8>>,
    line: Option<SentLine>,
    /// The process has read at least one line.
    reads: bool,
    /// The kernel accepted no more descriptors.
    refused: bool,
}

impl<'a> Announcer<'a> {
    /// Creates an announcer whose welcome is due.
    pub(crate) fn new(
        stream: &'a UnixStream,
        pool: &'a Pool,
        session: &'a str,
        local: Option<&'a SessionPage>,
        descriptors: Arc<DescriptorsInFlight>,
    ) -> Self {
        Self {
            stream,
            pool,
            session,
            local,
            descriptors,
            told: HashSet::new(),
            grown: true,
            answer: Some(None),
            error: None,
            line: None,
            reads: false,
            refused: false,
        }
    }

    /// Notes that there are new segments.
    pub(crate) fn grown(&mut self) {
        self.grown = true;
    }

    /// Handles `need`: the process asks for a segment again.
    pub(crate) fn need(&mut self, kind: Kind, id: u16) {
        self.told.remove(&(kind, id));
        (self.grown, self.answer) = (true, Some(Some((kind, id))));
    }

    /// Queues an error about the last line of the process.
    pub(crate) fn tell(&mut self, error: &(dyn Coded + Send + Sync)) {
        self.error = Some(refusal(error));
    }

    /// Sends a final error at once if the socket accepts it, else drops it.
    pub(crate) fn tell_at_once(&self, error: &(dyn Coded + Send + Sync)) {
        if self.line.as_ref().is_none_or(|line| line.sent == line.bytes.len()) {
            let _ = send(self.stream.as_fd(), &refusal(error), &[]);
        }
    }

    /// Whether the answer to the last line of the process is sent. Until then no more of its lines
    /// are read, so a process that does not read cannot queue up answers.
    pub(crate) fn is_ready(&self) -> bool {
        self.error.is_none() && self.answer.is_none()
    }

    /// Sends the due lines, each once the process has read the line before, and waits until there
    /// may be more to send. Cancel-safe.
    ///
    /// # Errors
    /// Errors of the socket.
    pub(crate) async fn run(&mut self) -> Result<(), WireError> {
        loop {
            if self.line.is_none() && !self.begin()? {
                return std::future::pending().await;
            }
            if self.refused {
                sleep(RETRY).await;
                self.refused = false;
                continue;
            }
            let stream = self.stream;
            let Some(line) = &mut self.line else { continue };
            // A failed attempt clears the readiness of the socket, so the next buffer that is read
            // wakes this task. An event in between is caught by checking at once.
            let is_read = line.is_read(stream)?
                || match stream.try_io(Interest::WRITABLE, || line.try_read(stream)) {
                    Ok(()) => true,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
                    Err(error) => return Err(error.into()),
                };
            if is_read {
                (self.line, self.reads) = (None, true);
                // Returns because the caller may read the next line of the process now.
                return Ok(());
            }
            let _ = tokio::time::timeout(LOOK_AGAIN, self.stream.writable()).await;
        }
    }

    /// Starts the next line, if one is due.
    fn begin(&mut self) -> Result<bool, WireError> {
        if let Some(bytes) = self.error.clone() {
            let begun = self.put(bytes, &[], Vec::new(), None)?;
            if !self.refused {
                self.error = None;
            }
            return Ok(begun);
        }
        if !self.grown && self.answer.is_none() {
            return Ok(false);
        }
        let untold = self.untold();
        let (part, in_flight, freed) = self.part_of(&untold);
        if part.is_empty() && self.answer.is_none() {
            self.grown = false;
            return Ok(false);
        }
        let message = Announcement {
            session: self.session.to_owned(),
            epoch: self.pool.epoch().to_string(),
            segments: part.iter().map(SegmentEntry::from).chain(self.local_entries()).collect(),
        };
        let mut bytes = serde_json::to_vec(&message).map_err(io::Error::from)?;
        bytes.push(b'\n');
        let begun = self.put(bytes, &part, in_flight, Some(freed))?;
        if !self.refused {
            self.local = None;
            self.told.extend(part.iter().map(|one| (one.kind(), one.id())));
            self.grown = part.len() < untold.len();
            let answered = |wanted: Option<(Kind, u16)>| {
                wanted.is_none_or(|wanted| part.is_empty() || self.told.contains(&wanted))
            };
            self.answer = self.answer.filter(|wanted| !answered(*wanted));
        }
        Ok(begun)
    }

    /// Directory and pins page, until the process was told of them.
    fn local_entries(&self) -> impl Iterator<Item = SegmentEntry> + use<> {
        let entries = self.local.map(|local| {
            let entry = |kind, size| SegmentEntry { kind, id: 0, size };
            [
                entry(SharedKind::Directory, local.directory().size_bytes()),
                entry(SharedKind::Pins, ServicePage::BYTES),
            ]
        });
        entries.into_iter().flatten()
    }

    /// The unannounced segments, the requested one first.
    fn untold(&mut self) -> Vec<SharedSegment> {
        let all = self.pool.segments();
        // An id can be reused by another segment.
        self.told.retain(|(kind, id)| all.iter().any(|one| (one.kind(), one.id()) == (*kind, *id)));
        let is_untold = |one: &SharedSegment| {
            one.file().is_some() && !self.told.contains(&(one.kind(), one.id()))
        };
        let mut untold: Vec<SharedSegment> = all.into_iter().filter(is_untold).collect();
        if let Some(Some(wanted)) = self.answer {
            untold.sort_by_key(|one| (one.kind(), one.id()) != wanted);
        }
        untold
    }

    /// Selects the segments for the next line. A process that has read a line gets at least one;
    /// before that it gets as many as the limit allows.
    fn part_of(
        &self,
        untold: &[SharedSegment],
    ) -> (Vec<SharedSegment>, Vec<InFlight>, DescriptorPermit) {
        let of_segments = MAX_DESCRIPTORS - 2 * usize::from(self.local.is_some());
        let (least, most) = (usize::from(self.reads), of_segments.min(untold.len()));
        let mut freed = self.descriptors.take(most, least.min(most));
        let (mut part, mut in_flight) = (Vec::new(), Vec::new());
        let large_limit = self.pool.total_bytes() / LARGE_UNREAD_SHARE;
        for one in untold.iter().take(freed.count) {
            let first = self.reads && part.is_empty();
            if !first && self.pool.large_in_flight_with(one) > large_limit {
                continue;
            }
            if let Some(flying) = self.pool.put_in_flight(one) {
                part.push(one.clone());
                in_flight.push(flying);
            }
        }
        freed.shrink_to(part.len());
        (part, in_flight, freed)
    }

    /// Puts a line into the empty socket. False if it has to wait.
    fn put(
        &mut self,
        bytes: Vec<u8>,
        segments: &[SharedSegment],
        in_flight: Vec<InFlight>,
        freed: Option<DescriptorPermit>,
    ) -> Result<bool, WireError> {
        let local = self.local.filter(|_| freed.is_some());
        let local = local.map(|local| [local.directory().file(), local.page().file()]);
        let files = segments.iter().filter_map(|one| one.file());
        let files: Vec<BorrowedFd<'_>> = files.chain(local.into_iter().flatten()).collect();
        let sent = match send(self.stream.as_fd(), &bytes, &files) {
            Ok(sent) => sent,
            Err(error) if is_full(&error, files.is_empty()) => {
                self.refused = true;
                return Ok(true);
            }
            Err(error) => return Err(error.into()),
        };
        self.line = Some(SentLine { bytes, sent, _in_flight: in_flight, _room: freed });
        Ok(true)
    }
}

/// Whether a line can be sent later: the socket is full, or the kernel accepts no descriptors.
fn is_full(error: &io::Error, without_files: bool) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
        || (!without_files && error.raw_os_error() == Some(libc::ETOOMANYREFS))
}

/// The line that reports an error to a process.
pub(crate) fn refusal(error: &(dyn Coded + Send + Sync)) -> Vec<u8> {
    let refusal = AttachRefusal { kind: error.kind().name().to_owned(), error: error.message() };
    let mut line = serde_json::to_vec(&refusal).unwrap_or_default();
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_in_flight_are_bounded_and_a_process_that_reads_always_gets_one() {
        let descriptors = Arc::new(DescriptorsInFlight::new(10));
        let mut first = descriptors.take(8, 0);
        let second = descriptors.take(8, 0);
        assert_eq!((first.count, second.count), (8, 2));
        assert_eq!((descriptors.take(8, 0).count, descriptors.take(8, 1).count), (0, 1));
        first.shrink_to(3);
        assert_eq!(descriptors.take(8, 0).count, 5);
        drop((first, second));
        assert_eq!(descriptors.unread.load(Ordering::Relaxed), 0);
    }
}
