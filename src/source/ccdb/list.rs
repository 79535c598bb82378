//! Listings of paths: read once, then checked for changes.
//!
//! ```text
//!  first:  /browse/<path>   Browse-Limit: 257                       every version
//!          HEAD /<path>/<a time without a version>                  must give 404, not 307
//!  then:   /browse/<path>   If-Not-Before: <newest>, two fields     some 100 bytes
//!          /browse/<path>   two fields and metadata                 sometimes: all versions
//!          /browse/<path>                                           seldom: as the first time
//!  other traces than before ──▶ as the first time
//! ```
//!
//! A node's cache (the memory variant of the server) lists only the objects in its memory, and
//! redirects other look-ups to another server: its listings are never whole.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{ACCEPT, HeaderMap, HeaderName, HeaderValue, LOCATION};
use reqwest::{Method, StatusCode};
use tokio::time::{Instant, timeout_at};

use super::listing::{self, PathListing};
use super::location::from_in_location;
use super::paths::{ByTime, ChangeCheck, FIRST_LISTING, KnownPath, ListedPath, PathMemory};
use super::source::CcdbSource;
use super::transport::{HttpReply, HttpRequest, Purpose, latin1};
use crate::interval::Timestamp;
use crate::object::{ObjectId, ObjectInfo, ObjectPath};
use crate::source::{Details, SourceError, page_key};

const BROWSE_LIMIT: HeaderName = HeaderName::from_static("browse-limit");
const FILTER_FIELDS: HeaderName = HeaderName::from_static("x-filter-fields");
const IF_NOT_BEFORE: HeaderName = HeaderName::from_static("if-not-before");
/// Marks a listing of iovcache's own CCDB side that has versions of several sources.
const PRECEDENCE: HeaderName = HeaderName::from_static("iovcache-precedence");

/// Maximum bytes of a listing that are read: per version within the limit, and in total.
const LISTING_BYTES_PER_VERSION: usize = 8 << 10;
const LISTING_BYTES: usize = 96 << 20;
/// Minimum size of a listing that is parsed on a blocking thread.
const PARSED_BESIDE_FROM_BYTES: usize = 128 << 10;
/// Minimum pause after a listing that failed.
const LISTING_FAILED_PAUSE: Duration = Duration::from_secs(30);
/// A confirmed listing is used for this multiple of the refresh time.
const CONFIRMED_SHARE: f64 = 1.2;

/// A listing, and whether it is reliable.
pub(super) enum CheckedListing {
    Whole(PathListing),
    TooMany(PathListing),
    InDoubt(PathListing),
}

/// Restriction of a listing to a time or an id.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct ListingPart {
    pub(super) at: Option<Timestamp>,
    pub(super) id: Option<ObjectId>,
}

impl CcdbSource {
    /// The state of a path: a listing confirmed within the refresh time, or `ByTime`.
    ///
    /// # Errors
    /// Error of the server, if there is no usable state.
    pub(super) async fn path_state(
        &self,
        path: &ObjectPath,
        at: Timestamp,
        deadline: Instant,
    ) -> Result<KnownPath, SourceError> {
        let refresh = Duration::from_millis(self.transport.options.refresh_millis);
        let window = refresh.mul_f64(CONFIRMED_SHARE);
        let memory = self.memory_of(path);
        if let Some(state) = memory.usable(window) {
            return Ok(state);
        }
        let Ok(_asking) = timeout_at(deadline, memory.asking.lock()).await else {
            let (url, what) = (self.transport.url.clone(), format!("the listing of {path}"));
            let reason = "another look-up of the path has not got it in time".into();
            return Err(SourceError::Down { url, what, reason });
        };
        if let Some(state) = memory.usable(window) {
            return Ok(state);
        }
        let limit = match memory.state() {
            KnownPath::Nothing => FIRST_LISTING,
            KnownPath::ByTime(by_time) => by_time.due().unwrap_or(FIRST_LISTING),
            KnownPath::Listed(listed) => {
                let asked = Instant::now();
                let check = memory.check(&listed, self.recheck_pause());
                if check != ChangeCheck::Whole
                    && self.is_unchanged(path, &listed, check, deadline).await?
                {
                    memory.confirm(check, asked);
                    return Ok(KnownPath::Listed(listed));
                }
                listed.entries.saturating_mul(2).max(FIRST_LISTING)
            }
        };
        let longest = self.transport.options.browse_limit;
        self.list_path(path, at, limit.min(longest), &memory, deadline).await
    }

    /// The listing of a whole path if possible, at any cost.
    pub(super) async fn list_longest(
        &self,
        path: &ObjectPath,
    ) -> Result<Option<Arc<ListedPath>>, SourceError> {
        let (longest, at) = (self.transport.options.browse_limit, Timestamp::default());
        if longest == 0 {
            return Ok(None);
        }
        let total = Duration::from_millis(self.transport.options.look_up_total_millis);
        let deadline = Instant::now() + total;
        let mut state = self.path_state(path, at, deadline).await?;
        if matches!(&state, KnownPath::ByTime(by_time) if by_time.may_be_listed()) {
            let memory = self.memory_of(path);
            if let Ok(_asking) = timeout_at(deadline, memory.asking.lock()).await {
                state = match memory.state() {
                    KnownPath::ByTime(_) => {
                        self.list_path(path, at, longest, &memory, deadline).await?
                    }
                    other => other,
                };
            }
        }
        Ok(match state {
            KnownPath::Listed(listed) => Some(listed),
            KnownPath::Nothing | KnownPath::ByTime(_) => None,
        })
    }

    fn recheck_pause(&self) -> Duration {
        Duration::from_millis(self.transport.options.listing_recheck_millis)
    }

    /// Lists a path, and remembers the result.
    async fn list_path(
        &self,
        path: &ObjectPath,
        at: Timestamp,
        limit: usize,
        memory: &Arc<PathMemory>,
        deadline: Instant,
    ) -> Result<KnownPath, SourceError> {
        let asked = Instant::now();
        let pause = self.recheck_pause();
        let state = match self.list(path, ListingPart::default(), limit, deadline).await? {
            CheckedListing::Whole(listing)
                if !listing.of_several_sources
                    && self.is_whole(path, &listing, at, deadline).await =>
            {
                let (entries, traces) = (listing.entries, listing.traces);
                let mut versions: Vec<Arc<ObjectInfo>> =
                    listing.versions.into_iter().map(|l| Arc::new(l.version)).collect();
                versions.sort_unstable_by_key(|version| page_key(version));
                KnownPath::Listed(Arc::new(ListedPath { versions, entries, traces }))
            }
            CheckedListing::TooMany(listing) => {
                let (spelling, took) = (listing.spelling(), asked.elapsed());
                let longest = self.transport.options.browse_limit;
                KnownPath::ByTime(Arc::new(ByTime::too_many(spelling, limit, took, longest, pause)))
            }
            CheckedListing::InDoubt(listing) | CheckedListing::Whole(listing) => {
                KnownPath::ByTime(Arc::new(ByTime::in_doubt(listing.spelling(), pause)))
            }
        };
        memory.set(state.clone(), asked);
        // Inserted again, because its weight has changed.
        self.paths.insert(path, Arc::clone(memory));
        Ok(state)
    }

    /// Stops listing a path for a while after a failed listing.
    pub(super) fn do_not_list(&self, path: &ObjectPath) {
        let pause = self.recheck_pause().min(LISTING_FAILED_PAUSE);
        let by_time = ByTime::without_listing(Some(pause));
        self.memory_of(path).set(KnownPath::ByTime(Arc::new(by_time)), Instant::now());
    }

    /// Lists versions of a path.
    pub(super) async fn list(
        &self,
        path: &ObjectPath,
        part: ListingPart,
        limit: usize,
        deadline: Instant,
    ) -> Result<CheckedListing, SourceError> {
        let mut tail = format!("/browse/{path}");
        let mut what = format!("the listing of {path}");
        if let Some(at) = part.at {
            let _ = write!(tail, "/{at}");
            let _ = write!(what, " at {at}");
        }
        if let Some(id) = part.id {
            let _ = write!(tail, "/{id}");
        }
        let request = listing_request(limit, None);
        // Listings are checked below. No fault of a listing is a reason to ask another host.
        let reply = match self.transport.ask(&tail, &request, &what, deadline, &|_| Ok(())).await {
            Ok(reply) => reply,
            Err(SourceError::Unusable { reason, .. } | SourceError::NotAllowed { reason, .. }) => {
                tracing::debug!(%path, reason, "no listing");
                return Ok(CheckedListing::InDoubt(PathListing::default()));
            }
            Err(error) => return Err(error),
        };
        let (url, status, overflow) = (reply.url.clone(), reply.status, reply.overflow);
        let of_several_sources = reply.headers.contains_key(&PRECEDENCE);
        let listing = match status {
            StatusCode::OK if !overflow => parse_beside(reply, path.clone()).await,
            StatusCode::OK => Ok(PathListing { entries: usize::MAX, ..PathListing::default() }),
            status => Err(format!("status {}", status.as_u16())),
        };
        let mut listing = listing
            .unwrap_or_else(|doubt| PathListing { doubts: vec![doubt], ..PathListing::default() });
        listing.of_several_sources = of_several_sources;
        if listing.doubts.is_empty() && listing.entries <= limit {
            for listed in &listing.versions {
                self.remember(listed.version.id, &url, &listed.replicas);
                self.remember_details(&listed.version, listed.details.clone());
            }
            return Ok(CheckedListing::Whole(listing));
        }
        tracing::debug!(%path, entries = listing.entries, doubts = ?listing.doubts, "not listed");
        Ok(match listing.entries > limit {
            true => CheckedListing::TooMany(listing),
            false => CheckedListing::InDoubt(listing),
        })
    }

    /// Whether the server still has exactly the versions of a listing.
    async fn is_unchanged(
        &self,
        path: &ObjectPath,
        listed: &ListedPath,
        check: ChangeCheck,
        deadline: Instant,
    ) -> Result<bool, SourceError> {
        let is_newest = check == ChangeCheck::Newest;
        let (fields, expected) = match is_newest {
            true => (listed.traces.newest_fields(), listed.traces.newest_traces.len()),
            false => (listed.traces.fields(), listed.entries),
        };
        let mut request = listing_request(expected, Some(&fields));
        if let (true, Some(newest)) = (is_newest, listed.traces.newest) {
            request.headers.insert(IF_NOT_BEFORE, HeaderValue::from(newest));
        }
        let what = format!("changes of {path}");
        let tail = format!("/browse/{path}");
        let reply = match self.transport.ask(&tail, &request, &what, deadline, &|_| Ok(())).await {
            Ok(reply) => reply,
            // The whole listing will show the cause.
            Err(SourceError::Unusable { .. } | SourceError::NotAllowed { .. }) => return Ok(false),
            Err(error) => return Err(error),
        };
        let decides = !reply.headers.contains_key(&PRECEDENCE);
        if reply.status != StatusCode::OK || reply.overflow || !decides {
            return Ok(false);
        }
        let Ok(traces) = listing::parse_traces(&reply.body) else { return Ok(false) };
        if is_newest {
            return Ok(traces == listed.traces.newest_traces);
        }
        let sum = traces.iter().fold(0_u64, |sum, trace| sum.wrapping_add(*trace));
        Ok(traces.len() == expected && sum == listed.traces.digest)
    }

    /// Whether the server has no versions besides those of a listing: it must answer a look-up
    /// without a result with 404.
    async fn is_whole(
        &self,
        path: &ObjectPath,
        listing: &PathListing,
        at: Timestamp,
        deadline: Instant,
    ) -> bool {
        match time_without_version(listing, at) {
            Some(miss) => self.answers_itself(&format!("/{path}/{miss}"), deadline).await,
            None => true,
        }
    }

    /// Whether the server answers a look-up without a result with 404, and not with a redirect to
    /// another server. `tail` is such a look-up.
    pub(super) async fn answers_itself(&self, tail: &str, deadline: Instant) -> bool {
        let Some((_, host)) = self.transport.hosts_in_order().next() else { return true };
        let Ok(_probing) = timeout_at(deadline, host.probing.lock()).await else { return true };
        if let Some(forwards) = host.forwards_misses(self.recheck_pause()) {
            return !forwards;
        }
        let Some(url) = host.address.url(tail) else { return true };
        let request = HttpRequest { method: Method::HEAD, ..HttpRequest::default() };
        let Ok(head) = self.transport.send(&request, &url, Purpose::LookUp, deadline).await else {
            // Not known: the next listing tries again.
            return true;
        };
        let (status, headers) = (head.response.status(), head.response.headers());
        let location = latin1(headers.get(LOCATION).map(|value| value.as_bytes()));
        let is_elsewhere =
            url.join(&location).is_ok_and(|target| !host.address.is_same_place(&target));
        match status.as_u16() {
            404 => {
                host.note_misses(false);
                true
            }
            300..=308 if !headers.contains_key("etag") && !is_elsewhere => true,
            300..=308 if !headers.contains_key("etag") => {
                tracing::info!(
                    url = host.address.label(),
                    "sends elsewhere for what it does not have: its listings are not whole"
                );
                host.note_misses(true);
                false
            }
            // A version that is not in the listing.
            200 | 300..=308 => false,
            _ => true,
        }
    }

    /// The folders one level below a path. The server lists none of their contents.
    pub(super) async fn list_subfolders(&self, path: &str) -> Result<Vec<String>, SourceError> {
        if !path.is_empty() && ObjectPath::new(path).is_err() {
            return Ok(Vec::new());
        }
        let total = Duration::from_millis(self.transport.options.look_up_total_millis);
        let what = format!("the folders below {path:?}");
        let mut request = listing_request(0, Some("path"));
        request.read_bytes = LISTING_BYTES;
        let check = |reply: &HttpReply| match reply.status {
            StatusCode::OK if !reply.overflow => listing::parse_folder(&reply.body).map(drop),
            _ => Err("expected a listing".to_owned()),
        };
        let tail = format!("/browse/{path}");
        let deadline = Instant::now() + total;
        let reply = self.transport.ask(&tail, &request, &what, deadline, &check).await?;
        let mut folders = listing::parse_folder(&reply.body).unwrap_or_default();
        for folder in &mut folders {
            *folder = folder.trim_matches('/').to_owned();
        }
        folders.retain(|folder| ObjectPath::new(folder).is_ok());
        folders.sort_unstable();
        folders.dedup();
        Ok(folders)
    }

    /// Facts about the upload of a version, from its listing.
    pub(super) async fn list_details(&self, version: &ObjectInfo) -> Result<Details, SourceError> {
        let listed = self.list_one(version).await?;
        Ok(listed.map(|listed| listed.1).unwrap_or_default())
    }

    /// One version from its listing; `None` if the listing is not reliable.
    pub(super) async fn list_one(
        &self,
        version: &ObjectInfo,
    ) -> Result<Option<(ObjectInfo, Details)>, SourceError> {
        let total = Duration::from_millis(self.transport.options.look_up_total_millis);
        // File-backed servers need the beginning of the interval, and no other time. It may be wrong
        // in headers, and is right in the address of the body.
        let places = self.remembered(version.id);
        let mut places = places.iter().flat_map(|all| all.iter());
        let from = places.find_map(|location| from_in_location(location, &version.path));
        let from = from.unwrap_or(version.validity.from());
        let part = ListingPart { at: Some(from), id: Some(version.id) };
        let asked = self.list(&version.path, part, FIRST_LISTING, Instant::now() + total).await?;
        let CheckedListing::Whole(listing) = asked else { return Ok(None) };
        let found = listing.versions.into_iter().find(|l| l.version.id == version.id);
        Ok(found.map(|listed| (listed.version, listed.details)))
    }
}

/// Request for `limit + 1` versions, so that the answer shows whether there are more than `limit`.
pub(super) fn listing_request(limit: usize, fields: Option<&str>) -> HttpRequest {
    let mut headers = HeaderMap::new();
    headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
    headers.insert(BROWSE_LIMIT, HeaderValue::from(limit as u64 + 1));
    if let Some(fields) = fields.and_then(|fields| HeaderValue::from_str(fields).ok()) {
        headers.insert(FILTER_FIELDS, fields);
    }
    let read_bytes = (limit + 8).saturating_mul(LISTING_BYTES_PER_VERSION).min(LISTING_BYTES);
    HttpRequest { method: Method::GET, headers, read_bytes, ..HttpRequest::default() }
}

async fn parse_beside(reply: HttpReply, path: ObjectPath) -> Result<PathListing, String> {
    if reply.body.len() < PARSED_BESIDE_FROM_BYTES {
        return listing::parse(&reply.body, &path);
    }
    let parsed = tokio::task::spawn_blocking(move || listing::parse(&reply.body, &path));
    parsed.await.unwrap_or_else(|_| Err("reading it failed".into()))
}

/// A time without a version in a listing: `at`, or else a time after or before all of them.
fn time_without_version(listing: &PathListing, at: Timestamp) -> Option<Timestamp> {
    let intervals = || listing.versions.iter().map(|listed| listed.version.validity);
    if !intervals().any(|interval| interval.contains(at)) {
        return Some(at);
    }
    let after = intervals().map(|interval| interval.until()).max()?;
    let before = intervals().map(|interval| interval.from()).min()?;
    // In the last millisecond of the time scale no version is ever valid.
    if after.as_millis() < i64::MAX - 1 {
        return Some(after);
    }
    before.as_millis().checked_sub(1).map(Timestamp::from_millis)
}
