//! The bytes of a version: from the first replica that gives exactly these.
//!
//! ```text
//!  Location, Content-Location…     as last seen; alien:// and root:// are passed over
//!  /<path>/<from>/<uuid>           per host: file-backed 200, SQL-backed 303
//!  /download/<uuid>                per host: SQL-backed 200
//!  …/<uuid>?HTTPOnly=true          only where the Grid alone was named
//!     │ 200 with the right ETag, size and MD5
//!     ▼
//!  chunk ──copy──▶ Body::spare()   said to be written only when all of it is found right,
//!    └──share────▶ MD5, beside     so that the next replica can begin anew
//! ```

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use md5::{Digest, Md5};
use reqwest::header::{CONTENT_ENCODING, CONTENT_LENGTH, HeaderMap, HeaderValue};
use reqwest::{Method, Url};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use super::answer::{etag_id, locations, read_details, single};
use super::location::id_in_location;
use super::source::CcdbSource;
use super::transport::{Ask, AttemptFailure, Head, Purpose, Rounds, chain};
use crate::object::{Md5Sum, ObjectInfo};
use crate::source::{Body, BodyError, SourceError};

/// Bodies below this are hashed between the reads; larger ones beside them.
const HASH_BESIDE_FROM_BYTES: u64 = 256 << 10;
/// How many chunks (of at most some 400 KiB) may wait for being hashed.
const CHUNKS_AHEAD: usize = 16;
/// By how much a body of unknown length grows at least.
const GROWTH_BYTES: u64 = 256 << 10;

/// A place to look for a body.
#[derive(Debug)]
struct Candidate {
    url: Url,
    /// How many redirects led here.
    hops: u32,
    /// Whether this is the last resort, which names no replica over HTTP by failing.
    http_only: bool,
}

/// What a place said.
enum Outcome {
    Done,
    Elsewhere(Vec<String>),
}

impl CcdbSource {
    /// What [`Source::fetch`](crate::source::Source::fetch) does.
    pub(super) async fn download(
        &self,
        version: &ObjectInfo,
        body: &mut dyn Body,
    ) -> Result<(), SourceError> {
        let options = &self.transport.options;
        let what = format!("{} of {} from {}", version.id, version.path, version.validity.from());
        if let Some(size_bytes) = version.size_bytes.filter(|s| *s > options.max_size_bytes) {
            let error = BodyError::TooLarge { size_bytes, limit_bytes: options.max_size_bytes };
            return Err(SourceError::Body { what, error });
        }
        let deadline = Instant::now() + Duration::from_millis(options.fetch_total_millis);
        let mut rounds = Rounds::new(options, deadline);
        loop {
            match self.try_every_place(version, body, deadline, &mut rounds).await {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) => return Err(SourceError::Body { what, error }),
            }
            // Bytes that were said to be written cannot be taken back: only a new body helps.
            if body.written_bytes() > 0 || !rounds.pause().await {
                break;
            }
        }
        if rounds.is_missing() {
            return Err(SourceError::NoSuchVersion {
                url: self.transport.url.clone(),
                path: version.path.clone(),
                id: version.id,
            });
        }
        Err(rounds.error(&self.transport.url, &what))
    }

    /// One round over all places; true if the body is there.
    async fn try_every_place(
        &self,
        version: &ObjectInfo,
        body: &mut dyn Body,
        deadline: Instant,
        rounds: &mut Rounds<'_>,
    ) -> Result<bool, BodyError> {
        let options = &self.transport.options;
        let mut seen = HashSet::new();
        let mut on_grid = false;
        let mut places = self.places(version, &mut on_grid);
        let mut asked_for_http = false;
        loop {
            let Some(place) = places.pop_front() else {
                if !on_grid || asked_for_http {
                    return Ok(false);
                }
                asked_for_http = true;
                places = self.places_over_http_only(version);
                continue;
            };
            if !seen.insert(place.url.to_string()) {
                continue;
            }
            match self.fetch_from(&place, version, body, deadline).await {
                Ok(Outcome::Done) => return Ok(true),
                Ok(Outcome::Elsewhere(_)) if place.hops >= options.max_redirects => {
                    let limit = options.max_redirects;
                    let reason = format!("more than {limit} redirects, the last to {}", place.url);
                    rounds.note(AttemptFailure::unusable(reason));
                }
                Ok(Outcome::Elsewhere(locations)) => {
                    let mut next = VecDeque::new();
                    for location in &locations {
                        let Some(urls) = self.allowed(&place.url, location) else {
                            on_grid |= is_on_grid(location);
                            rounds.note_detour(format!(
                                "{} leads to {location:?}, where we may not go",
                                place.url
                            ));
                            continue;
                        };
                        next.extend(urls.into_iter().map(|url| Candidate {
                            url,
                            hops: place.hops + 1,
                            http_only: place.http_only,
                        }));
                    }
                    if !next.is_empty() && next.iter().all(|c| seen.contains(c.url.as_str())) {
                        rounds.note_detour(format!("{} leads in a circle", place.url));
                    }
                    // What a redirect names comes before what we would have guessed next.
                    next.append(&mut places);
                    places = next;
                }
                Err(AttemptFailure::Body(error)) => return Err(error),
                Err(AttemptFailure::Transient { reason, .. }) if place.http_only => {
                    // With nothing left over HTTP the server fails, as it always will.
                    rounds
                        .note(AttemptFailure::unusable(format!("no replica over HTTP: {reason}")));
                }
                Err(failure) => rounds.note(failure),
            }
            if body.written_bytes() > 0 {
                return Ok(false);
            }
        }
    }

    fn allowed(&self, base: &Url, location: &str) -> Option<Vec<Url>> {
        let urls: Vec<Url> = self
            .absolute(base, location)
            .iter()
            .filter_map(|url| self.transport.resolve(base, url.as_str()))
            .collect();
        (!urls.is_empty()).then_some(urls)
    }

    /// Where the body may be: as last seen, then where servers of either kind keep it.
    fn places(&self, version: &ObjectInfo, on_grid: &mut bool) -> VecDeque<Candidate> {
        let mut places = VecDeque::new();
        let mut add = |url| places.push_back(Candidate { url, hops: 0, http_only: false });
        for location in self.remembered(version.id).iter().flat_map(|all| all.iter()) {
            *on_grid |= is_on_grid(location);
            // They were made absolute when they were learned.
            if let Some(url) =
                Url::parse(location).ok().and_then(|url| self.transport.resolve(&url, location))
            {
                add(url);
            }
        }
        for (_, host) in self.transport.hosts_in_order() {
            let by_path = format!("/{}/{}/{}", version.path, version.validity.from(), version.id);
            for tail in [by_path, format!("/download/{}", version.id)] {
                if let Some(url) = host.address.url(&tail) {
                    add(url);
                }
            }
        }
        places
    }

    fn places_over_http_only(&self, version: &ObjectInfo) -> VecDeque<Candidate> {
        let tail =
            format!("/{}/{}/{}?HTTPOnly=true", version.path, version.validity.from(), version.id);
        self.transport
            .hosts_in_order()
            .filter_map(|(_, host)| host.address.url(&tail))
            .map(|url| Candidate { url, hops: 0, http_only: true })
            .collect()
    }

    async fn fetch_from(
        &self,
        place: &Candidate,
        version: &ObjectInfo,
        body: &mut dyn Body,
        deadline: Instant,
    ) -> Result<Outcome, AttemptFailure> {
        let mut headers = HeaderMap::new();
        if version.validity.from().as_millis() <= 0 && version.created.as_millis() > 0 {
            // A file-backed server ignores the UUID where `from` is not positive, and gives the
            // newest version that holds then: let that be ours.
            let created = HeaderValue::from(version.created.as_millis());
            headers.insert("if-not-after", created.clone());
            headers.insert("if-not-before", created);
        }
        let ask = Ask { method: Method::GET, headers, read_bytes: 0 };
        let head = self.transport.send(&ask, &place.url, Purpose::Body, deadline).await?;
        let status = head.response.status();
        match status.as_u16() {
            200 => {
                let host = std::sync::Arc::clone(&head.host);
                let details = read_details(head.response.headers());
                let result = self.take(head, &place.url, version, body, deadline).await;
                let result = result.inspect_err(|_| host.count_failure());
                result.map(|()| {
                    self.remember_details(version.id, details);
                    Outcome::Done
                })
            }
            300..=303 | 307 | 308 => {
                let found = locations(head.response.headers());
                if found.is_empty() {
                    return Err(AttemptFailure::unusable(format!("{} leads nowhere", place.url)));
                }
                Ok(Outcome::Elsewhere(found))
            }
            404 | 410 => {
                Err(AttemptFailure::Missing { reason: format!("{} is not there", place.url) })
            }
            other => {
                head.host.count_failure();
                let reason = format!("status {other} from {}", place.url);
                Err(AttemptFailure::unusable(reason))
            }
        }
    }

    /// Reads a body whose head promises the right one.
    async fn take(
        &self,
        mut head: Head,
        url: &Url,
        version: &ObjectInfo,
        body: &mut dyn Body,
        deadline: Instant,
    ) -> Result<(), AttemptFailure> {
        let limit_bytes = self.transport.options.max_size_bytes;
        let promise = Promise::read(head.response.headers(), version, limit_bytes, url)?;
        let already = body.written_bytes();
        if let Some(size) = promise.size_bytes {
            body.reserve(already.saturating_add(size)).await.map_err(AttemptFailure::Body)?;
        }
        let mut hash = Hash::new(promise.md5.is_some(), promise.size_bytes);
        let mut pace = BodyPace::new(
            self.transport.options.min_throughput_bytes,
            Duration::from_millis(self.transport.options.throughput_window_millis),
            deadline,
        );
        // With the size known nothing is said to be written before all of it is right, so that
        // another replica can begin anew. A body that hands out its room in parts, or grows,
        // leaves no choice.
        let spare = body.spare().len() as u64;
        let at_once = promise.size_bytes.is_some_and(|size| spare >= size);
        let mut got: u64 = 0;
        loop {
            let chunk = match timeout_at(pace.until(), head.response.chunk()).await {
                Ok(Ok(Some(chunk))) => chunk,
                Ok(Ok(None)) => break,
                Ok(Err(error)) => {
                    let reason = format!("torn after {got} bytes: {} ({url})", chain(&error));
                    return Err(AttemptFailure::Torn { reason });
                }
                Err(_) => match pace.turn() {
                    Ok(()) => continue,
                    Err(slow) => {
                        let reason = format!("{slow} after {got} bytes from {url}");
                        return Err(AttemptFailure::Transient { reason, after: None });
                    }
                },
            };
            pace.add(chunk.len() as u64);
            let end = got + chunk.len() as u64;
            if promise.size_bytes.is_some_and(|size| end > size) || end > limit_bytes {
                if promise.size_bytes.is_none() {
                    let size_bytes = end;
                    return Err(AttemptFailure::Body(BodyError::TooLarge {
                        size_bytes,
                        limit_bytes,
                    }));
                }
                let reason = format!("more bytes than were announced, {end}, from {url}");
                return Err(AttemptFailure::unusable(reason));
            }
            if at_once {
                // Both ends lie within `spare`, whose length was checked against the size.
                body.spare()[got as usize..end as usize].copy_from_slice(&chunk);
            } else {
                append(body, &chunk).await.map_err(AttemptFailure::Body)?;
            }
            hash.add(chunk).await;
            got = end;
        }
        if let Some(size) = promise.size_bytes.filter(|size| *size != got) {
            let reason = format!("torn: expected {size} bytes, got {got} from {url}");
            return Err(AttemptFailure::Torn { reason });
        }
        if let Some(expected) = promise.md5 {
            let found = hash.finish().await;
            if found != Some(expected) {
                let found = found.map_or_else(|| "none".into(), |sum| sum.to_string());
                let reason = format!("expected MD5 {expected}, got {found} from {url}");
                return Err(AttemptFailure::unusable(reason));
            }
        }
        if at_once {
            // `got` fits into the address space: it is at most the length of `spare`.
            body.advance(got as usize);
        } else if promise.size_bytes.is_none() && !body.spare().is_empty() {
            // Room was made ahead of bytes of unknown number: what is left over is given back.
            body.reserve(body.written_bytes()).await.map_err(AttemptFailure::Body)?;
        }
        // Bytes that were written before it are in no digest.
        if let Some(md5) = promise.md5.filter(|_| already == 0) {
            body.set_md5(md5);
        }
        Ok(())
    }
}

/// What the head of an answer says of the body, agreed with what is known of the version.
struct Promise {
    size_bytes: Option<u64>,
    md5: Option<Md5Sum>,
}

impl Promise {
    fn read(
        headers: &HeaderMap,
        version: &ObjectInfo,
        limit_bytes: u64,
        url: &Url,
    ) -> Result<Self, AttemptFailure> {
        if etag_id(headers) != Some(version.id) && !is_replaced_tag(headers, version, url) {
            let got = single(headers, "etag").unwrap_or_default();
            let reason = match headers.contains_key("etag") {
                true => format!("expected ETag {}, got {got:?} from {url}", version.id),
                false => format!("no ETag, as in a page of usage, from {url}"),
            };
            return Err(AttemptFailure::Unusable { reason });
        }
        if let Some(coding) = single(headers, CONTENT_ENCODING.as_str())
            .filter(|coding| !coding.eq_ignore_ascii_case("identity"))
        {
            return Err(AttemptFailure::unusable(format!("coded as {coding:?} by {url}")));
        }
        let announced = match headers.get(CONTENT_LENGTH) {
            None => None,
            Some(value) => match value.to_str().ok().and_then(|text| text.trim().parse().ok()) {
                Some(size) => Some(size),
                None => {
                    return Err(AttemptFailure::unusable(format!(
                        "a length that is none, {value:?}"
                    )));
                }
            },
        };
        if let Some(size_bytes) = announced.filter(|size| *size > limit_bytes) {
            return Err(AttemptFailure::Body(BodyError::TooLarge { size_bytes, limit_bytes }));
        }
        if let (Some(expected), Some(got)) = (version.size_bytes, announced)
            && expected != got
        {
            let reason = format!("expected {expected} bytes, {got} are announced by {url}");
            return Err(AttemptFailure::unusable(reason));
        }
        let told = single(headers, "content-md5");
        let md5 = told.as_deref().map(str::trim).and_then(Md5Sum::parse);
        let md5 = match (version.md5, md5, told) {
            (Some(expected), Some(got), _) if expected != got => {
                let reason = format!("expected MD5 {expected}, {got} is announced by {url}");
                return Err(AttemptFailure::unusable(reason));
            }
            // `Content-MD5=feed` as metadata: what the listing said counts, if it said anything.
            (None, None, Some(told)) => {
                return Err(AttemptFailure::unusable(format!("{told:?} is no MD5, from {url}")));
            }
            (known, got, _) => known.or(got),
        };
        Ok(Self { size_bytes: announced.or(version.size_bytes), md5 })
    }
}

/// Whether the ETag of an answer is metadata of that name, which servers send in its place: the
/// version is known by its listing, is at an address of its own, and its bytes can be checked.
fn is_replaced_tag(headers: &HeaderMap, version: &ObjectInfo, url: &Url) -> bool {
    let mut replacing = version.metadata.iter().filter(|(key, _)| key.eq_ignore_ascii_case("etag"));
    let told = single(headers, "etag");
    version.md5.is_some()
        && id_in_location(url.path()) == Some(version.id)
        && replacing.any(|(_, value)| Some(value) == told.as_ref())
}

/// Writes behind what was written, making room as needed.
async fn append(body: &mut dyn Body, mut bytes: &[u8]) -> Result<(), BodyError> {
    while !bytes.is_empty() {
        if body.spare().is_empty() {
            let written = body.written_bytes();
            let more = written.max(GROWTH_BYTES).max(bytes.len() as u64);
            body.reserve(written.saturating_add(more)).await?;
        }
        let spare = body.spare();
        let count = spare.len().min(bytes.len());
        if count == 0 {
            let size_bytes = body.written_bytes() + bytes.len() as u64;
            let reason = "no room after a reservation".into();
            return Err(BodyError::NoRoom { size_bytes, reason });
        }
        spare[..count].copy_from_slice(&bytes[..count]);
        body.advance(count);
        bytes = &bytes[count..];
    }
    Ok(())
}

/// Whether a replica lies where only Grid software can read it.
fn is_on_grid(location: &str) -> bool {
    ["alien://", "root://", "xroot://", "roots://"].iter().any(|s| location.starts_with(s))
}

/// An MD5 in the making: between the reads for small bodies, on a thread of its own for large
/// ones, which shares the chunks (they are counted references) and reads no shared memory.
enum Hash {
    None,
    Between(Md5),
    Beside { chunks: mpsc::Sender<Bytes>, sum: JoinHandle<Md5Sum> },
}

impl Hash {
    fn new(wanted: bool, size_bytes: Option<u64>) -> Self {
        match size_bytes {
            _ if !wanted => Self::None,
            Some(size) if size < HASH_BESIDE_FROM_BYTES => Self::Between(Md5::new()),
            _ => {
                let (chunks, mut queue) = mpsc::channel::<Bytes>(CHUNKS_AHEAD);
                let sum = tokio::task::spawn_blocking(move || {
                    let mut md5 = Md5::new();
                    while let Some(chunk) = queue.blocking_recv() {
                        md5.update(&chunk);
                    }
                    Md5Sum(md5.finalize().into())
                });
                Self::Beside { chunks, sum }
            }
        }
    }

    async fn add(&mut self, chunk: Bytes) {
        match self {
            Self::None => {}
            Self::Between(md5) => md5.update(&chunk),
            // It fails only if the thread died; `finish` finds that out.
            Self::Beside { chunks, .. } => drop(chunks.send(chunk).await),
        }
    }

    async fn finish(self) -> Option<Md5Sum> {
        match self {
            Self::None => None,
            Self::Between(md5) => Some(Md5Sum(md5.finalize().into())),
            Self::Beside { chunks, sum } => {
                drop(chunks);
                sum.await.ok()
            }
        }
    }
}

/// Whether a body comes fast enough, window by window.
struct BodyPace {
    /// What has to come in each window; nothing where there is no such limit.
    bytes_per_window: u64,
    window: Duration,
    ends: Instant,
    deadline: Instant,
    got: u64,
}

impl BodyPace {
    fn new(bytes_per_second: u64, window: Duration, deadline: Instant) -> Self {
        let bytes = u128::from(bytes_per_second) * window.as_millis() / 1000;
        let bytes_per_window = u64::try_from(bytes).unwrap_or(u64::MAX);
        Self { bytes_per_window, window, ends: Instant::now() + window, deadline, got: 0 }
    }

    /// Until when the next chunk may be waited for.
    fn until(&self) -> Instant {
        self.ends.min(self.deadline)
    }

    fn add(&mut self, bytes: u64) {
        self.got += bytes;
        let now = Instant::now();
        if now >= self.ends && self.got >= self.bytes_per_window {
            self.got = 0;
            self.ends = now + self.window;
        }
    }

    /// The waiting ended without a chunk: is that too slow?
    fn turn(&mut self) -> Result<(), &'static str> {
        let now = Instant::now();
        if now >= self.deadline {
            return Err("out of time");
        }
        if self.got < self.bytes_per_window {
            return Err("too slow");
        }
        self.got = 0;
        self.ends = now + self.window;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_hash_beside_the_reads_is_the_hash_between_them() {
        let bytes: Vec<u8> = (0..1_000_000u32).map(|n| (n * 7 % 251) as u8).collect();
        let mut sums = Vec::new();
        for size in [Some(1), Some(1 << 20), None] {
            let mut hash = Hash::new(true, size);
            for chunk in bytes.chunks(70_000) {
                hash.add(Bytes::copy_from_slice(chunk)).await;
            }
            sums.push(hash.finish().await.unwrap());
        }
        assert_eq!(sums[0], Md5Sum(Md5::digest(&bytes).into()));
        assert!(sums.iter().all(|sum| *sum == sums[0]));
        assert_eq!(Hash::new(false, None).finish().await, None);
    }

    #[test]
    fn grid_addresses_are_told_from_others() {
        assert!(is_on_grid("alien:///alice/x") && is_on_grid("root://eos//x"));
        assert!(!is_on_grid("http://a/alien://") && !is_on_grid("/download/x"));
    }
}
