//! Fetches the bytes of a version from the first replica that gives the right ones.
//!
//! ```text
//!  Location, Content-Location…     as last seen; alien:// and root:// are skipped
//!  /<path>/<from>/<uuid>           per host: file-backed 200, SQL-backed 303
//!  /download/<uuid>                per host: SQL-backed 200
//!  …/<uuid>?HTTPOnly=true          only if all known replicas are on the Grid
//!     │ 200 with the right ETag, size and MD5
//!     ▼
//!  chunk ──copy──▶ Body::spare()   marked as written only when the whole body is verified,
//!    └──share────▶ MD5 thread      so that the next replica can start from the beginning
//! ```

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{CONTENT_ENCODING, CONTENT_LENGTH, HeaderMap, HeaderValue};
use reqwest::{Method, Url};
use tokio::time::{Instant, timeout_at};

use super::answer::{etag_id, locations, millis, read_details, single};
use super::location::id_in_location;
use super::source::CcdbSource;
use super::transport::{AttemptFailure, Head, HttpRequest, Purpose, Rounds, chain};
use crate::object::{Md5Sum, ObjectInfo};
use crate::source::body_digest::BodyDigest;
use crate::source::{Body, BodyError, SourceError};

/// Minimum growth of a body of unknown length.
const GROWTH_BYTES: u64 = 256 << 10;

/// A location that may have the body.
#[derive(Debug)]
struct Candidate {
    url: Url,
    /// Number of redirects that led here.
    hops: u32,
    /// Whether this is the last resort, at which a server fails if it has no replica over HTTP.
    http_only: bool,
    /// Whether only servers of one kind know this address. Others answer with the page of usage.
    is_guess: bool,
}

impl AttemptFailure {
    /// The failure as it counts at a location. A server without a replica over HTTP always fails:
    /// retries are useless.
    fn at(self, place: &Candidate) -> Self {
        match self {
            Self::Transient { reason, .. } if place.http_only => {
                Self::unusable(format!("no replica over HTTP: {reason}"))
            }
            failure => failure,
        }
    }
}

/// Result of asking one location.
enum Outcome {
    Done,
    Elsewhere(Vec<String>),
}

impl CcdbSource {
    /// Implements [`Source::fetch`](crate::source::Source::fetch).
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
            // Bytes that are marked as written cannot be taken back: only a new body helps.
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

    /// Asks all locations once. Returns whether the body is complete.
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
                    let mut next = self.follow(&place, &locations, &mut on_grid, rounds);
                    if !next.is_empty() && next.iter().all(|c| seen.contains(c.url.as_str())) {
                        rounds.note_detour(format!("{} redirects in a circle", place.url));
                    }
                    // The targets of a redirect come before the guessed locations.
                    next.append(&mut places);
                    places = next;
                }
                Err(AttemptFailure::Body(error)) => return Err(error),
                Err(failure) => rounds.note(failure.at(&place)),
            }
            if body.written_bytes() > 0 {
                return Ok(false);
            }
        }
    }

    /// The targets of a redirect that may be asked; `on_grid` is set if others are on the Grid.
    fn follow(
        &self,
        place: &Candidate,
        locations: &[String],
        on_grid: &mut bool,
        rounds: &mut Rounds<'_>,
    ) -> VecDeque<Candidate> {
        let mut next = VecDeque::new();
        for location in locations {
            let Some(urls) = self.allowed(&place.url, location) else {
                *on_grid |= is_on_grid(location);
                rounds.note_detour(format!(
                    "{} redirects to {location:?}, which is not among allowed_redirects",
                    place.url
                ));
                continue;
            };
            next.extend(urls.into_iter().map(|url| Candidate {
                url,
                hops: place.hops + 1,
                http_only: place.http_only,
                is_guess: false,
            }));
        }
        next
    }

    fn allowed(&self, base: &Url, location: &str) -> Option<Vec<Url>> {
        let urls: Vec<Url> = self
            .absolute(base, location)
            .iter()
            .filter_map(|url| self.transport.resolve(base, url.as_str()))
            .collect();
        (!urls.is_empty()).then_some(urls)
    }

    /// Locations to ask: the last known ones, then those of servers of either kind.
    fn places(&self, version: &ObjectInfo, on_grid: &mut bool) -> VecDeque<Candidate> {
        let mut places = VecDeque::new();
        let mut add = |url, is_guess| {
            places.push_back(Candidate { url, hops: 0, http_only: false, is_guess });
        };
        for location in self.remembered(version.id).iter().flat_map(|all| all.iter()) {
            *on_grid |= is_on_grid(location);
            // They were made absolute when they were stored.
            if let Some(url) =
                Url::parse(location).ok().and_then(|url| self.transport.resolve(&url, location))
            {
                add(url, false);
            }
        }
        for (_, host) in self.transport.hosts_in_order() {
            let by_path = format!("/{}/{}/{}", version.path, version.validity.from(), version.id);
            let by_id = format!("/download/{}", version.id);
            for (tail, is_guess) in [(by_path, false), (by_id, true)] {
                if let Some(url) = host.address.url(&tail) {
                    add(url, is_guess);
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
            .map(|url| Candidate { url, hops: 0, http_only: true, is_guess: false })
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
            // A file-backed server ignores the UUID if `from` is not positive, and gives the newest
            // version that is valid then. The limits make this the requested version.
            let created = HeaderValue::from(version.created.as_millis());
            headers.insert("if-not-after", created.clone());
            headers.insert("if-not-before", created);
        }
        let request = HttpRequest { method: Method::GET, headers, ..HttpRequest::default() };
        let head = self.transport.send(&request, &place.url, Purpose::Body, deadline).await?;
        let status = head.response.status();
        match status.as_u16() {
            200 if place.is_guess && !head.response.headers().contains_key("etag") => {
                Err(AttemptFailure::Missing { reason: format!("{} is no address", place.url) })
            }
            200 => {
                let host = std::sync::Arc::clone(&head.host);
                let details = read_details(head.response.headers());
                let result = self.take(head, &place.url, version, body, deadline).await;
                let result = result.inspect_err(|_| host.count_failure());
                result.map(|()| {
                    self.remember_header_details(version, details);
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

    /// The least throughput of a body.
    fn body_pace(&self, deadline: Instant) -> BodyPace {
        let options = &self.transport.options;
        let window = Duration::from_millis(options.throughput_window_millis);
        BodyPace::new(options.min_throughput_bytes, window, deadline)
    }

    /// Reads a body after its headers were received.
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
        let mut hash = BodyDigest::new(promise.md5.is_some(), promise.size_bytes);
        let mut pace = self.body_pace(deadline);
        // If the size is known, the bytes are marked as written only after verification, so that
        // another replica can start from the beginning. That is not possible for a body that
        // provides its room in parts, or grows.
        let spare = body.spare().len() as u64;
        let at_once = promise.size_bytes.is_some_and(|size| spare >= size);
        let mut got: u64 = 0;
        while let Some(chunk) = next_chunk(&mut head, &mut pace, got, url).await? {
            pace.add(chunk.len() as u64);
            let end = got + chunk.len() as u64;
            promise.check_size_so_far(end, limit_bytes, url)?;
            if at_once {
                // Both ends lie within `spare`, whose length was compared with the size.
                body.spare()[got as usize..end as usize].copy_from_slice(&chunk);
            } else {
                append(body, &chunk).await.map_err(AttemptFailure::Body)?;
            }
            hash.add(chunk).await;
            got = end;
        }
        promise.check(got, hash, url).await?;
        if at_once {
            // `got` fits into the address space: it is at most the length of `spare`.
            body.advance(got as usize);
        } else if promise.size_bytes.is_none() && !body.spare().is_empty() {
            // The length was unknown and more room was reserved: the rest is returned.
            body.reserve(body.written_bytes()).await.map_err(AttemptFailure::Body)?;
        }
        // The digest does not cover bytes that were written before this call.
        if let Some(md5) = promise.md5.filter(|_| already == 0) {
            body.set_md5(md5);
        }
        Ok(())
    }
}

/// The next bytes of a body; `None` at its end.
async fn next_chunk(
    head: &mut Head,
    pace: &mut BodyPace,
    got: u64,
    url: &Url,
) -> Result<Option<Bytes>, AttemptFailure> {
    loop {
        match timeout_at(pace.until(), head.response.chunk()).await {
            Ok(Ok(chunk)) => return Ok(chunk),
            Ok(Err(error)) => {
                let reason = format!("torn after {got} bytes: {} ({url})", chain(&error));
                return Err(AttemptFailure::Torn { reason });
            }
            Err(_) => pace.turn().map_err(|slow| {
                let reason = format!("{slow} after {got} bytes from {url}");
                AttemptFailure::Transient { reason, after: None }
            })?,
        }
    }
}

/// Size and MD5 of the body from the headers, checked against the version.
struct Promise {
    size_bytes: Option<u64>,
    md5: Option<Md5Sum>,
}

impl Promise {
    /// Checks the size after some bytes, up to `end`.
    fn check_size_so_far(
        &self,
        end: u64,
        limit_bytes: u64,
        url: &Url,
    ) -> Result<(), AttemptFailure> {
        match self.size_bytes {
            None if end > limit_bytes => {
                let error = BodyError::TooLarge { size_bytes: end, limit_bytes };
                Err(AttemptFailure::Body(error))
            }
            Some(size) if end > size.min(limit_bytes) => {
                let reason = format!("more bytes than were announced, {end}, from {url}");
                Err(AttemptFailure::unusable(reason))
            }
            _ => Ok(()),
        }
    }

    /// Checks size and digest of the whole body.
    async fn check(&self, got: u64, hash: BodyDigest, url: &Url) -> Result<(), AttemptFailure> {
        if let Some(size) = self.size_bytes.filter(|size| *size != got) {
            let reason = format!("torn: expected {size} bytes, got {got} from {url}");
            return Err(AttemptFailure::Torn { reason });
        }
        let Some(expected) = self.md5 else { return Ok(()) };
        let found = hash.finish().await;
        if found == Some(expected) {
            return Ok(());
        }
        let found = found.map_or_else(|| "none".into(), |sum| sum.to_string());
        let reason = format!("expected MD5 {expected}, got {found} from {url}");
        Err(AttemptFailure::unusable(reason))
    }

    fn read(
        headers: &HeaderMap,
        version: &ObjectInfo,
        limit_bytes: u64,
        url: &Url,
    ) -> Result<Self, AttemptFailure> {
        check_identity(headers, version, url)?;
        let size_bytes = announced_size(headers, version, limit_bytes, url)?;
        let md5 = announced_md5(headers, version, url)?;
        Ok(Self { size_bytes: size_bytes.or(version.size_bytes), md5 })
    }
}

/// Checks that a body is that of the version, and is not encoded. Without a digest, the times of the
/// version must agree.
fn check_identity(
    headers: &HeaderMap,
    version: &ObjectInfo,
    url: &Url,
) -> Result<(), AttemptFailure> {
    if etag_id(headers) != Some(version.id) && !is_replaced_tag(headers, version, url) {
        let got = single(headers, "etag").unwrap_or_default();
        let reason = match headers.contains_key("etag") {
            true => format!("expected ETag {}, got {got:?} from {url}", version.id),
            false => format!("no ETag, as in a page of usage, from {url}"),
        };
        return Err(AttemptFailure::Unusable { reason });
    }
    if version.md5.is_none() {
        // A file-backed server may have the id at several places, and may have got other bytes for it.
        let times = [("valid-from", version.validity.from()), ("created", version.created)];
        for (name, expected) in times {
            if let Some(told) = millis(headers, name).filter(|told| *told != expected) {
                let reason = format!("expected {name} {expected}, got {told} from {url}");
                return Err(AttemptFailure::Missing { reason });
            }
        }
    }
    let coding = single(headers, CONTENT_ENCODING.as_str())
        .filter(|coding| !coding.eq_ignore_ascii_case("identity"))
        .filter(|coding| !is_metadata(version, CONTENT_ENCODING.as_str(), coding));
    match coding {
        None => Ok(()),
        Some(coding) => Err(AttemptFailure::unusable(format!(
            "expected a body without Content-Encoding, got {coding:?} from {url}"
        ))),
    }
}

/// The announced size in bytes, if there is one.
fn announced_size(
    headers: &HeaderMap,
    version: &ObjectInfo,
    limit_bytes: u64,
    url: &Url,
) -> Result<Option<u64>, AttemptFailure> {
    let Some(value) = headers.get(CONTENT_LENGTH) else { return Ok(None) };
    let size_bytes = value.to_str().ok().and_then(|text| text.trim().parse().ok());
    let size_bytes: u64 = size_bytes.ok_or_else(|| {
        let reason = format!("expected a number as Content-Length, got {value:?} from {url}");
        AttemptFailure::unusable(reason)
    })?;
    if size_bytes > limit_bytes {
        return Err(AttemptFailure::Body(BodyError::TooLarge { size_bytes, limit_bytes }));
    }
    match version.size_bytes {
        Some(expected) if expected != size_bytes => Err(AttemptFailure::unusable(format!(
            "expected {expected} bytes, {size_bytes} are announced by {url}"
        ))),
        _ => Ok(Some(size_bytes)),
    }
}

/// The MD5 of the version, or else the announced one.
fn announced_md5(
    headers: &HeaderMap,
    version: &ObjectInfo,
    url: &Url,
) -> Result<Option<Md5Sum>, AttemptFailure> {
    let told = single(headers, "content-md5");
    let md5 = told.as_deref().map(str::trim).and_then(Md5Sum::parse);
    match (version.md5, md5, told) {
        (Some(expected), Some(got), _) if expected != got => {
            let reason = format!("expected MD5 {expected}, {got} is announced by {url}");
            Err(AttemptFailure::unusable(reason))
        }
        // Metadata `Content-MD5=feed` replaced the header: the MD5 of the listing counts, if any.
        (None, None, Some(told)) => {
            Err(AttemptFailure::unusable(format!("{told:?} is no MD5, from {url}")))
        }
        (known, got, _) => Ok(known.or(got)),
    }
}

/// Whether the ETag of an answer is metadata of that name, which servers send in its place. It is
/// accepted if the address has the version's id.
fn is_replaced_tag(headers: &HeaderMap, version: &ObjectInfo, url: &Url) -> bool {
    let told = single(headers, "etag");
    id_in_location(url.path()) == Some(version.id)
        && told.is_some_and(|told| is_metadata(version, "etag", &told))
}

/// Whether the value of a header is metadata of that name, which servers send in its place. It is
/// accepted if the MD5 of the version is known.
fn is_metadata(version: &ObjectInfo, header: &str, value: &str) -> bool {
    let mut named = version.metadata.iter().filter(|(key, _)| key.eq_ignore_ascii_case(header));
    version.md5.is_some() && named.any(|(_, known)| as_header(known).trim() == value.trim())
}

/// A value as servers write it into a header.
fn as_header(value: &str) -> String {
    let sent = |c: char| match c {
        '\r' | '\n' => ' ',
        c if u8::try_from(c).is_err() => '?',
        c => c,
    };
    value.chars().map(sent).collect()
}

/// Appends bytes, and reserves room as needed.
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

/// Whether only Grid software can read a replica.
fn is_on_grid(location: &str) -> bool {
    ["alien://", "root://", "xroot://", "roots://"].iter().any(|s| location.starts_with(s))
}

/// Checks the throughput of a body, window by window.
struct BodyPace {
    /// Minimum bytes per window; 0: no minimum.
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

    /// Time limit for the next chunk.
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

    /// Checks the throughput when a wait ended without a chunk.
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

    #[test]
    fn grid_addresses_are_told_from_others() {
        assert!(is_on_grid("alien:///alice/x") && is_on_grid("root://eos//x"));
        assert!(!is_on_grid("http://a/alien://") && !is_on_grid("/download/x"));
    }
}
