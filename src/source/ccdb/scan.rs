//! Listings that are parsed while they arrive: paths with too many versions to keep, and all paths
//! below a prefix.
//!
//! ```text
//!  GET /browse/… ──chunks──▶ [4] ──▶ parser on a blocking thread ──pieces──▶ [2] ──▶ caller
//! ```
//!
//! Both queues are bounded, so a slow caller slows the server down, and no listing is held as a
//! whole.
//!
//! Where replicas do not name the path (SQL-backed servers), metadata named `path` would put a
//! version under another path. Such a listing of many paths is used only if the server shows that
//! no version has this key; else each path is listed by itself, where a replaced path is noticed.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::{self, Read};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use futures::StreamExt as _;
use reqwest::StatusCode;
use reqwest::header::{ACCEPT, HeaderMap, HeaderName, HeaderValue};
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::time::{Instant, timeout, timeout_at};

use super::entry::{Judged, ListedOf, ListingEntry};
use super::list::listing_request;
use super::listing::{parse_traces, read_page_from};
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
        let opened = self.open_listing(&tail, headers, &what).await?;
        let Some(path) = path else {
            let prefix = scan.prefix.clone();
            let pieces = opened.into_pieces(move |entry| judge_below(entry, &prefix));
            return self.verified(pieces, deadline).await;
        };
        let pieces = opened.into_pieces(move |entry| {
            // All entries belong to the requested path, whatever they say.
            Some(entry.judge(&path).map_err(|doubt| (path.to_string(), doubt)))
        });
        Ok(Some(stream_of(pieces, None, true)))
    }

    /// The pieces of a listing of many paths; `None` if metadata may have replaced some paths.
    async fn verified(
        &self,
        mut pieces: Receiver<Result<JudgedPiece, SourceError>>,
        deadline: Instant,
    ) -> Result<Option<VersionStream>, SourceError> {
        let first = pieces.recv().await.transpose()?;
        let by_key = first.as_ref().and_then(|piece| piece.by_key.first());
        let is_trusted = match by_key {
            None => false,
            Some(version) if self.lacks_path_metadata(&version.info.path, deadline).await? => true,
            Some(_) => {
                tracing::debug!("metadata may have replaced paths: each path is listed by itself");
                return Ok(None);
            }
        };
        Ok(Some(stream_of(pieces, first, is_trusted)))
    }

    /// Whether no version of the server has metadata named `path`.
    ///
    /// An SQL-backed server ignores a filter by a key that no version ever had, so it lists versions
    /// of `path` although none of them can match.
    async fn lacks_path_metadata(
        &self,
        path: &ObjectPath,
        deadline: Instant,
    ) -> Result<bool, SourceError> {
        let tail = format!("/browse/{path}/path={}", uuid::Uuid::new_v4());
        let what = format!("versions of {path} with metadata path");
        let request = listing_request(0, Some("id"));
        let reply = self.transport.ask(&tail, &request, &what, deadline, &|_| Ok(())).await?;
        let is_listing = reply.status == StatusCode::OK && !reply.overflow;
        Ok(is_listing && parse_traces(&reply.body).is_ok_and(|entries| !entries.is_empty()))
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

/// A piece of a listing as parsed.
#[derive(Debug, Default)]
struct JudgedPiece {
    /// Versions whose replicas name their path.
    versions: Vec<ScannedVersion>,
    /// Versions whose path is known from the key `path`, which metadata may have replaced.
    by_key: Vec<ScannedVersion>,
    /// Paths with an entry in doubt.
    in_doubt: Vec<String>,
}

impl JudgedPiece {
    fn is_full(&self) -> bool {
        let lengths = [self.versions.len(), self.by_key.len(), self.in_doubt.len()];
        lengths.into_iter().any(|length| length >= PIECE_VERSIONS)
    }

    fn is_empty(&self) -> bool {
        self.versions.is_empty() && self.by_key.is_empty() && self.in_doubt.is_empty()
    }

    /// The versions, including those known from the key `path` if that key is trusted.
    fn into_scanned(mut self, is_key_trusted: bool) -> ScanPiece {
        match is_key_trusted {
            true => self.versions.append(&mut self.by_key),
            false => {
                self.in_doubt.extend(self.by_key.iter().map(|one| one.info.path.to_string()));
            }
        }
        ScanPiece { versions: self.versions, in_doubt: self.in_doubt }
    }
}

/// The pieces, the first one included.
fn stream_of(
    pieces: Receiver<Result<JudgedPiece, SourceError>>,
    first: Option<JudgedPiece>,
    is_key_trusted: bool,
) -> VersionStream {
    let next = |mut pieces: Receiver<_>| async move {
        pieces.recv().await.map(|piece: Result<JudgedPiece, _>| (piece, pieces))
    };
    let rest = futures::stream::unfold(pieces, next);
    let all = futures::stream::iter(first.map(Ok)).chain(rest);
    Box::pin(all.map(move |piece| piece.map(|piece| piece.into_scanned(is_key_trusted))))
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
    /// Parses it in pieces. `judge` gives the meaning of an entry, or its path and the doubt; `None`:
    /// it does not belong to the listing.
    fn into_pieces(
        self,
        judge: impl Fn(&ListingEntry) -> Option<Result<Judged, (String, String)>> + Send + 'static,
    ) -> Receiver<Result<JudgedPiece, SourceError>> {
        let (sender, receiver) = channel(WAITING_PIECES);
        let (source, what) = (self.source.clone(), self.what.clone());
        let chunks = self.into_chunks();
        tokio::task::spawn_blocking(move || {
            let mut piece = JudgedPiece::default();
            let closed = sender.clone();
            let reader = ChunkReader::new(chunks, move || closed.is_closed());
            let progress = Rc::clone(&reader.since_entry);
            let read = read_page_from(reader, |entry| {
                progress.set(0);
                match judge(&entry) {
                    None | Some(Ok(Judged::OtherPath | Judged::NeverValid)) => {}
                    Some(Ok(Judged::Version(listed))) => {
                        let info = Arc::new(listed.version);
                        let version = ScannedVersion { info, details: listed.details };
                        match entry.path() {
                            Ok(ListedOf::Replicas(_)) => piece.versions.push(version),
                            Ok(ListedOf::Key(_)) | Err(_) => piece.by_key.push(version),
                        }
                    }
                    Some(Err((path, doubt))) => {
                        tracing::debug!(what, path, doubt, "an entry is in doubt");
                        if piece.in_doubt.last() != Some(&path) {
                            piece.in_doubt.push(path);
                        }
                    }
                }
                if piece.is_full() {
                    // A closed queue ends the reader.
                    let _ = sender.blocking_send(Ok(std::mem::take(&mut piece)));
                }
            });
            if !piece.is_empty() {
                let _ = sender.blocking_send(Ok(piece));
            }
            if let Err(reason) = read {
                let error = SourceError::Unusable { url: source, what, reason };
                let _ = sender.blocking_send(Err(error));
            }
        });
        receiver
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
                let path = entry.path().ok().map(|path| ObjectPath::new(path.as_str()));
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

/// The meaning of an entry in the listing of all paths below `prefix`, or its path and the doubt;
/// `None`: a path that no client can request.
fn judge_below(entry: &ListingEntry, prefix: &str) -> Option<Result<Judged, (String, String)>> {
    let listed = match entry.path() {
        Ok(listed) => listed,
        Err(doubt) => {
            let said = entry.text("path").unwrap_or_default().trim_matches('/');
            return Some(Err((said.to_owned(), doubt)));
        }
    };
    let name = listed.as_str();
    let in_doubt = |doubt| Some(Err((name.to_owned(), doubt)));
    let is_below = prefix.is_empty()
        || name.strip_prefix(prefix).is_some_and(|r| r.is_empty() || r.starts_with('/'));
    if !is_below {
        return in_doubt(format!("an entry of path {name:?} among those below {prefix:?}"));
    }
    match (ObjectPath::new(name), listed) {
        (Ok(path), _) => Some(entry.judge(&path).map_err(|doubt| (name.to_owned(), doubt))),
        (Err(_), ListedOf::Replicas(_)) => None,
        // It may be metadata of a version of any path.
        (Err(error), ListedOf::Key(_)) => in_doubt(error.to_string()),
    }
}
