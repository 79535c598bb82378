//! Listings that are parsed while they arrive: paths with too many versions to keep, and all paths
//! below a prefix.
//!
//! ```text
//!  GET /browse/… ──chunks──▶ [4] ──▶ parser on a blocking thread ──pieces──▶ [2] ──▶ caller
//! ```
//!
//! Both queues are bounded, so a slow caller slows the server down, and no listing is held as a
//! whole.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::{self, Read};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use reqwest::header::{ACCEPT, HeaderMap, HeaderName, HeaderValue};
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::time::{Instant, timeout, timeout_at};

use super::entry::{Judged, ListingEntry};
use super::listing::read_page_from;
use super::location::path_in_location;
use super::paths::KnownPath;
use super::source::CcdbSource;
use super::transport::{Head, HttpRequest, chain};
use crate::interval::Timestamp;
use crate::object::ObjectPath;
use crate::source::{PathSummary, Scan, ScanPiece, ScannedVersion, SourceError, VersionStream};

const BROWSE_LIMIT: HeaderName = HeaderName::from_static("browse-limit");
const FILTER_FIELDS: HeaderName = HeaderName::from_static("x-filter-fields");
const IF_NOT_AFTER: HeaderName = HeaderName::from_static("if-not-after");
const IF_NOT_BEFORE: HeaderName = HeaderName::from_static("if-not-before");

/// Versions per piece.
const PIECE_VERSIONS: usize = 256;
/// Maximum number of chunks and of pieces that wait.
const WAITING_CHUNKS: usize = 4;
const WAITING_PIECES: usize = 2;
/// Maximum bytes of one entry, and of everything after the entries.
const ENTRY_BYTES: usize = 16 << 20;
/// A look-up that no server has a result for.
const MISS: &str = "/iovcache-probe/1";

impl CcdbSource {
    /// Implements [`Source::scan`](crate::source::Source::scan): `None` for a path that is listed in
    /// memory, and for servers and paths whose listings are not reliable.
    pub(super) async fn scan_listing(
        &self,
        scan: &Scan,
    ) -> Result<Option<VersionStream>, SourceError> {
        let options = &self.transport.options;
        let deadline = Instant::now() + Duration::from_millis(options.look_up_total_millis);
        let path = match (scan.below, ObjectPath::new(&scan.prefix)) {
            (false, Ok(path)) => Some(path),
            (true, Ok(_)) => None,
            (true, Err(_)) if scan.prefix.is_empty() => None,
            (_, Err(_)) => return Ok(None),
        };
        if options.browse_limit == 0 {
            return Ok(None);
        }
        if let Some(path) = &path {
            match self.path_state(path, Timestamp::default(), deadline).await? {
                KnownPath::ByTime(by_time) if by_time.is_too_long => {}
                KnownPath::Nothing | KnownPath::Listed(_) | KnownPath::ByTime(_) => {
                    return Ok(None);
                }
            }
        }
        if !self.answers_itself(MISS, deadline).await {
            return Ok(None);
        }
        let tail = tail_of(scan);
        let what = format!("the listing {tail}");
        let mut headers = HeaderMap::new();
        let newest = scan.newest.filter(|limit| *limit > 0);
        headers.extend(newest.map(|limit| (BROWSE_LIMIT, HeaderValue::from(limit))));
        for (name, limit) in
            [(IF_NOT_AFTER, scan.limits.not_after), (IF_NOT_BEFORE, scan.limits.not_before)]
        {
            // The server ignores others; the caller applies all limits itself.
            let limit = limit.map(|limit| limit.as_millis()).filter(|limit| *limit > 0);
            headers.extend(limit.map(|limit| (name, HeaderValue::from(limit))));
        }
        let prefix = scan.prefix.clone();
        let opened = self.open_listing(&tail, headers, &what).await?;
        let pieces = opened.into_pieces(move |entry| match &path {
            Some(path) => Some(entry.judge(path)),
            None => judge_below(entry, &prefix),
        });
        Ok(Some(pieces))
    }

    /// Implements [`Source::paths`](crate::source::Source::paths).
    pub(super) async fn list_paths(&self, prefix: &str) -> Result<Vec<PathSummary>, SourceError> {
        let prefix = prefix.trim_matches('/');
        // `.*` means 'all below' to both file-backed and SQL-backed servers.
        let tails = match prefix {
            "" => vec!["/browse/.*".to_owned()],
            prefix => match ObjectPath::new(prefix) {
                Ok(path) => vec![format!("/browse/{path}"), format!("/browse/{path}/.*")],
                // No valid path is below an invalid one.
                Err(_) => return Ok(Vec::new()),
            },
        };
        let what = format!("the paths below {prefix:?}");
        let mut counts: BTreeMap<ObjectPath, u64> = BTreeMap::new();
        for tail in tails {
            let mut headers = HeaderMap::new();
            headers.insert(FILTER_FIELDS, HeaderValue::from_static("path"));
            let opened = self.open_listing(&tail, headers, &what).await?;
            // Both requests may give the same paths: the larger count is right.
            for (path, versions) in opened.into_counts().await? {
                if path.starts_with(prefix) {
                    let count = counts.entry(path).or_insert(0);
                    *count = versions.max(*count);
                }
            }
        }
        Ok(counts.into_iter().map(|(path, versions)| PathSummary { path, versions }).collect())
    }

    async fn open_listing(
        &self,
        tail: &str,
        mut headers: HeaderMap,
        what: &str,
    ) -> Result<OpenListing, SourceError> {
        let options = &self.transport.options;
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        // A server reads all versions before it sends the first one.
        let first_byte = Duration::from_millis(options.fetch_total_millis);
        let request =
            HttpRequest { headers, first_byte: Some(first_byte), ..HttpRequest::default() };
        let deadline = Instant::now() + first_byte;
        let place = Arc::clone(&self.scans).acquire_owned();
        let Ok(Ok(place)) = timeout_at(deadline, place).await else {
            let (url, what) = (self.transport.url.clone(), what.to_owned());
            return Err(SourceError::Down {
                url,
                what,
                reason: "no place among the listings".into(),
            });
        };
        let (head, url) = self.transport.open(tail, &request, what, deadline).await?;
        let (source, what) = (self.transport.url.clone(), what.to_owned());
        let pause = Duration::from_millis(options.first_byte_millis);
        Ok(OpenListing { head, address: url.to_string(), source, what, pause, place })
    }
}

/// An answer whose body was not read yet.
struct OpenListing {
    head: Head,
    address: String,
    source: String,
    what: String,
    /// Longest pause between two chunks.
    pause: Duration,
    place: OwnedSemaphorePermit,
}

impl OpenListing {
    /// Parses it in pieces. `judge` gives the meaning of an entry; `None`: it does not belong to
    /// the listing.
    fn into_pieces(
        self,
        judge: impl Fn(&ListingEntry) -> Option<Result<Judged, String>> + Send + 'static,
    ) -> VersionStream {
        let (sender, receiver) = channel(WAITING_PIECES);
        let (source, what) = (self.source.clone(), self.what.clone());
        let chunks = self.into_chunks();
        tokio::task::spawn_blocking(move || {
            let mut piece = ScanPiece::default();
            let closed = sender.clone();
            let reader = ChunkReader::new(chunks, move || closed.is_closed());
            let progress = Rc::clone(&reader.since_entry);
            let read = read_page_from(reader, |entry| {
                progress.set(0);
                match judge(&entry) {
                    None | Some(Ok(Judged::OtherPath | Judged::NeverValid)) => {}
                    Some(Ok(Judged::Version(listed))) => piece.versions.push(ScannedVersion {
                        info: Arc::new(listed.version),
                        details: listed.details,
                    }),
                    Some(Err(doubt)) => {
                        tracing::debug!(what, doubt, "an entry is in doubt");
                        piece.in_doubt.push(name_of(&entry));
                    }
                }
                if piece.versions.len() >= PIECE_VERSIONS || piece.in_doubt.len() >= PIECE_VERSIONS
                {
                    // A closed queue ends the reader.
                    let _ = sender.blocking_send(Ok(std::mem::take(&mut piece)));
                }
            });
            if !piece.versions.is_empty() || !piece.in_doubt.is_empty() {
                let _ = sender.blocking_send(Ok(piece));
            }
            if let Err(reason) = read {
                let error = SourceError::Unusable { url: source, what, reason };
                let _ = sender.blocking_send(Err(error));
            }
        });
        let next = |mut receiver: Receiver<_>| async move {
            receiver.recv().await.map(|piece| (piece, receiver))
        };
        Box::pin(futures::stream::unfold(receiver, next))
    }

    /// Counts the entries of each path.
    async fn into_counts(self) -> Result<BTreeMap<ObjectPath, u64>, SourceError> {
        let (url, what) = (self.source.clone(), self.what.clone());
        let chunks = self.into_chunks();
        // Dropped with this future: the reader then ends.
        let wanted = Arc::new(());
        let is_wanted = Arc::downgrade(&wanted);
        let counted = tokio::task::spawn_blocking(move || {
            let mut counts = BTreeMap::new();
            let reader = ChunkReader::new(chunks, move || is_wanted.strong_count() == 0);
            let progress = Rc::clone(&reader.since_entry);
            read_page_from(reader, |entry| {
                progress.set(0);
                // A path that violates the grammar cannot be requested either.
                let path = entry.text("path").map(|path| ObjectPath::new(path.trim_matches('/')));
                if let Some(Ok(path)) = path {
                    *counts.entry(path).or_insert(0) += 1;
                }
            })
            .map(|()| counts)
        });
        let counted = counted.await.unwrap_or_else(|_| Err("reading it failed".into()));
        drop(wanted);
        counted.map_err(|reason| SourceError::Unusable { url, what, reason })
    }

    /// Reads the body in a task of its own, until the receiver is dropped.
    fn into_chunks(self) -> Receiver<io::Result<Bytes>> {
        let (sender, receiver) = channel(WAITING_CHUNKS);
        tokio::spawn(async move {
            // The place is free when the listing was read.
            let Self { mut head, address, pause, place: _place, .. } = self;
            loop {
                let next = tokio::select! {
                    next = timeout(pause, head.response.chunk()) => next,
                    () = sender.closed() => return,
                };
                let chunk = match next {
                    Ok(Ok(Some(chunk))) => Ok(chunk),
                    Ok(Ok(None)) => return,
                    Ok(Err(error)) => Err(format!("{address}: {}", chain(&error))),
                    Err(_) => Err(format!("{address} stopped in the middle of its answer")),
                };
                let is_end = chunk.is_err();
                if is_end {
                    head.host.count_failure();
                }
                if send(&sender, chunk.map_err(io::Error::other)).await.is_err() || is_end {
                    return;
                }
            }
        });
        receiver
    }
}

async fn send(sender: &Sender<io::Result<Bytes>>, chunk: io::Result<Bytes>) -> Result<(), ()> {
    sender.send(chunk).await.map_err(|_| ())
}

/// Blocking reader of a body.
struct ChunkReader<F> {
    chunks: Receiver<io::Result<Bytes>>,
    chunk: Bytes,
    /// Bytes read since the last entry.
    since_entry: Rc<Cell<usize>>,
    is_unwanted: F,
}

impl<F: Fn() -> bool> ChunkReader<F> {
    fn new(chunks: Receiver<io::Result<Bytes>>, is_unwanted: F) -> Self {
        Self { chunks, chunk: Bytes::new(), since_entry: Rc::default(), is_unwanted }
    }
}

impl<F: Fn() -> bool> Read for ChunkReader<F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if (self.is_unwanted)() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if self.since_entry.get() > ENTRY_BYTES {
            return Err(io::Error::other(format!("an entry has more than {ENTRY_BYTES} bytes")));
        }
        while self.chunk.is_empty() {
            match self.chunks.blocking_recv() {
                None => return Ok(0),
                Some(chunk) => self.chunk = chunk?,
            }
        }
        let count = self.chunk.len().min(buffer.len());
        self.chunk.copy_to_slice(&mut buffer[..count]);
        self.since_entry.set(self.since_entry.get() + count);
        Ok(count)
    }
}

/// The end of the address of a listing.
fn tail_of(scan: &Scan) -> String {
    let command = if scan.only_latest { "latest" } else { "browse" };
    let mut tail = format!("/{command}/{}", scan.prefix);
    if scan.below {
        // `.*` means 'all below' to both file-backed and SQL-backed servers.
        tail.push_str(if scan.prefix.is_empty() { ".*" } else { "/.*" });
    }
    // File-backed servers ignore a time that is not positive.
    if let Some(at) = scan.at.filter(|at| at.as_millis() > 0) {
        tail = format!("{tail}/{at}");
    }
    tail
}

/// The meaning of an entry in the listing of all paths below `prefix`; `None`: a path that no client
/// can request.
fn judge_below(entry: &ListingEntry, prefix: &str) -> Option<Result<Judged, String>> {
    let said = entry.text("path").unwrap_or_default().trim_matches('/');
    let is_below = prefix.is_empty()
        || said.strip_prefix(prefix).is_some_and(|r| r.is_empty() || r.starts_with('/'));
    if !is_below {
        // Metadata in place of the path.
        return Some(Err(format!("an entry of path {said:?} among those below {prefix:?}")));
    }
    let path = ObjectPath::new(said).ok()?;
    Some(entry.judge(&path))
}

/// The path to name for an entry in doubt.
fn name_of(entry: &ListingEntry) -> String {
    let replicas = entry.replicas();
    let told = replicas.iter().find_map(|replica| path_in_location(replica));
    let path = told.map(|(path, _)| path).or_else(|| entry.text("path")).unwrap_or_default();
    path.trim_matches('/').to_owned()
}
