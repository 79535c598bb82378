//! Finds the version in effect at a time: from the path's listing, or else by a request for that
//! time.
//!
//! ```text
//!             listed whole                           span: all of time
//!  /browse ────────────────────▶ filtered here ───▶
//!     │ too many, in doubt, or not whole
//!     ▼            303, 200                          [at, Cache-Valid-Until) ∩ validity, else at
//!  HEAD …/at ──────────────────▶ checked ─────────▶
//!     ├──────────▶ 304: the caller's version ─────▶  the same, by that version
//!     ├──────────▶ 404: no version ───────────────▶  at
//!     └─ another version (the server ignores or inverts a filter), or metadata in place of
//!        headers
//!          ▼
//!        /browse/…/at, filtered here ─────────────▶  at
//! ```
//!
//! Names of headers have no case. Metadata of a version found by time are spelled as in the part of
//! the path's listing that was read, or else as in the listing of that version.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{HeaderMap, HeaderName, HeaderValue, IF_NONE_MATCH};
use reqwest::{Method, StatusCode};
use tokio::time::Instant;

use super::answer::{self, Named, is_protocol_header};
use super::entry::is_listing_key;
use super::list::{CheckedListing, ListingPart};
use super::listing::of_all_time;
use super::location::from_in_location;
use super::paths::{ByTime, FIRST_LISTING, KnownPath};
use super::source::{CcdbSource, TimedVersion};
use super::transport::{HttpReply, HttpRequest};
use crate::interval::{Timestamp, ValidityInterval};
use crate::object::{ObjectId, ObjectInfo, ObjectPath, Query};
use crate::source::{Knowledge, SourceError};

/// Metadata that no listing of a real server shows: it has the addresses of the bytes there.
const REPLICAS: &str = "replicas";
const IF_NOT_AFTER: HeaderName = HeaderName::from_static("if-not-after");
const IF_NOT_BEFORE: HeaderName = HeaderName::from_static("if-not-before");

impl CcdbSource {
    /// Implements [`Source::look_up`](crate::source::Source::look_up).
    pub(super) async fn decide(
        &self,
        query: &Query,
        at: Timestamp,
        held: Option<&Arc<ObjectInfo>>,
    ) -> Result<Knowledge, SourceError> {
        let options = &self.transport.options;
        let total = Duration::from_millis(options.look_up_total_millis);
        let deadline = Instant::now() + total;
        let Some(moment) = moment(at) else {
            // No half-open interval contains the last millisecond of the time scale.
            return Ok(nothing(ValidityInterval::ALL));
        };
        let mut after_listing = None;
        let by_time = if options.browse_limit == 0 {
            Arc::new(ByTime::without_listing(None))
        } else if query.metadata.keys().any(|key| is_listing_key(key)) {
            // In a listing such metadata cannot be distinguished from the server's own values.
            Arc::default()
        } else {
            // A listing may take half of the time, so that a look-up by time is still possible.
            match self.path_state(&query.path, at, Instant::now() + total / 2).await {
                Ok(KnownPath::Listed(listed)) => {
                    return Ok(of_all_time(query, listed.versions.clone()));
                }
                Ok(KnownPath::ByTime(by_time)) => by_time,
                Ok(KnownPath::Nothing) => Arc::default(),
                Err(error) => {
                    after_listing = Some(error);
                    Arc::new(ByTime::without_listing(None))
                }
            }
        };
        let asked = Instant::now();
        let knowledge = self.decide_at(query, at, moment, held, &by_time, deadline).await?;
        by_time.spend(asked.elapsed());
        if let Some(error) = after_listing {
            tracing::debug!(path = %query.path, %error, "not listed, but looked up by time");
            self.do_not_list(&query.path);
        }
        Ok(knowledge)
    }

    /// The beginning of the version in effect at `at`, or of the one with this id, as the server has
    /// it now. `None` if there is none.
    pub(super) async fn beginning_of(
        &self,
        query: &Query,
        at: Timestamp,
        id: Option<ObjectId>,
        deadline: Instant,
    ) -> Result<Option<Timestamp>, SourceError> {
        let Some(moment) = moment(at) else { return Ok(None) };
        let knowledge = match id {
            Some(_) => self.decide_by_listing_at(query, at, moment, deadline).await?,
            None => {
                let by_time = ByTime::without_listing(None);
                self.decide_at(query, at, moment, None, &by_time, deadline).await?
            }
        };
        let meant = knowledge.versions.iter().filter(|one| id.is_none_or(|id| id == one.id));
        Ok(meant.max_by_key(|one| one.rank()).map(|one| one.validity.from()))
    }

    async fn decide_at(
        &self,
        query: &Query,
        at: Timestamp,
        moment: ValidityInterval,
        held: Option<&Arc<ObjectInfo>>,
        by_time: &ByTime,
        deadline: Instant,
    ) -> Result<Knowledge, SourceError> {
        // The server ignores a limit of 0 or less: it cannot be asked with one.
        if query.limits.not_after.is_some_and(|limit| limit.as_millis() <= 0) {
            return self.decide_by_listing_at(query, at, moment, deadline).await;
        }
        let held = held.filter(|version| self.may_be_confirmed(version, query, at));
        let reply = self.ask_at_any(query, at, held, deadline).await?;
        match (reply.status, held) {
            (StatusCode::NOT_FOUND, _) => Ok(nothing(moment)),
            (StatusCode::NOT_MODIFIED, Some(version)) => {
                let vouched = answer::millis(&reply.headers, "cache-valid-until");
                Ok(one(Arc::clone(version), vouched_span(moment, vouched, version.validity)))
            }
            _ => {
                let named = match read(&reply, &query.path, at) {
                    Ok(named) => named,
                    Err(reason) => {
                        // Metadata in place of headers: the listing distinguishes them.
                        let listed = self.decide_by_listing_at(query, at, moment, deadline).await;
                        let (url, what) =
                            (self.transport.url.clone(), format!("{} at {at}", query.path));
                        return listed.map_err(|_| SourceError::Unusable { url, what, reason });
                    }
                };
                self.remember(named.version.id, &reply.url, &named.locations);
                let mut cache_valid_until = named.cache_valid_until;
                let version = self.with_exact_metadata(named, query, by_time).await;
                if !query.matches(&version) || !version.validity.contains(at) {
                    // Servers ignore or invert filters. The right version can then only be found
                    // among all versions that are valid at this time.
                    return self.decide_by_listing_at(query, at, moment, deadline).await;
                }
                if version.metadata.keys().any(|key| key.eq_ignore_ascii_case("cache-valid-until"))
                {
                    cache_valid_until = None;
                }
                let span = vouched_span(moment, cache_valid_until, version.validity);
                Ok(one(version, span))
            }
        }
    }

    /// Whether a 304 is sufficient for a version that the caller holds.
    ///
    /// A 304 confirms only the id: it hides a changed end of validity and changed metadata. So it
    /// is accepted only for a version that is valid at this time as far as known, if its last
    /// full answer is within the refresh time. A file-backed server may have the id at several
    /// places, so its 304 confirms none of them.
    fn may_be_confirmed(&self, version: &ObjectInfo, query: &Query, at: Timestamp) -> bool {
        let refresh = Duration::from_millis(self.transport.options.refresh_millis);
        let was_told = |described: Arc<TimedVersion>| {
            described.told_at.elapsed() < refresh && *described.exact == *version
        };
        let places = self.remembered(version.id);
        let is_path = |location: &String| from_in_location(location, &version.path).is_some();
        version.validity.contains(at)
            && query.matches(version)
            && !places.is_some_and(|places| places.iter().any(is_path))
            && self.described.get(&version.id).is_some_and(was_told)
    }

    /// A version from headers, with its metadata keys in the spelling of the upload.
    async fn with_exact_metadata(
        &self,
        named: Named,
        query: &Query,
        by_time: &ByTime,
    ) -> Arc<ObjectInfo> {
        let told = named.version;
        let known = self.described.get(&told.id).filter(|known| known.told == told);
        let exact = match known {
            Some(known) => Arc::clone(&known.exact),
            None => {
                let is_certain = !named.may_hide_metadata && is_spelled(&told, by_time);
                Arc::new(self.respelled(&told, query, by_time, is_certain).await)
            }
        };
        let described = TimedVersion { told, exact: Arc::clone(&exact), told_at: Instant::now() };
        self.described.insert(&exact.id, Arc::new(described));
        exact
    }

    /// The version as listed, unless the spelling of its metadata is certain.
    async fn respelled(
        &self,
        told: &ObjectInfo,
        query: &Query,
        by_time: &ByTime,
        is_certain: bool,
    ) -> ObjectInfo {
        let mut version = told.clone();
        let asked = |key: &str| query.metadata.keys().find(|k| k.eq_ignore_ascii_case(key));
        if !is_certain && !by_time.never_listed {
            match self.list_one(told).await {
                // Metadata may have replaced any header but the Location, never numbers of the
                // listing.
                Ok(Some((mut listed, _))) => {
                    // Listings have their own value in the place of this key.
                    if let Some(value) = told.metadata.get(REPLICAS)
                        && !listed.metadata.contains_key(REPLICAS)
                    {
                        listed.metadata = listed.metadata.with(REPLICAS, value);
                    }
                    return listed;
                }
                Ok(None) => {}
                Err(error) => tracing::debug!(path = %told.path, %error, "not listed"),
            }
        }
        let spelled = |key: &str| by_time.spelling.get(key).cloned().flatten();
        version.metadata = told
            .metadata
            .iter()
            .map(|(key, value)| {
                let name = spelled(key).or_else(|| asked(key).cloned());
                (name.unwrap_or_else(|| key.to_owned()), value)
            })
            .collect();
        version
    }

    /// Asks with HEAD, or with GET if the server does not support HEAD.
    async fn ask_at_any(
        &self,
        query: &Query,
        at: Timestamp,
        held: Option<&Arc<ObjectInfo>>,
        deadline: Instant,
    ) -> Result<HttpReply, SourceError> {
        let reply = self.ask_at(query, at, held, Method::HEAD, deadline).await?;
        if matches!(reply.status.as_u16(), 405 | 501) {
            return self.ask_at(query, at, held, Method::GET, deadline).await;
        }
        Ok(reply)
    }

    async fn ask_at(
        &self,
        query: &Query,
        at: Timestamp,
        held: Option<&Arc<ObjectInfo>>,
        method: Method,
        deadline: Instant,
    ) -> Result<HttpReply, SourceError> {
        let mut tail = format!("/{}/{at}", query.path);
        for (key, value) in &query.metadata {
            let _ = write!(tail, "/{}={}", form_encoded(key), form_encoded(value));
        }
        let mut headers = HeaderMap::new();
        for (name, limit) in
            [(IF_NOT_AFTER, query.limits.not_after), (IF_NOT_BEFORE, query.limits.not_before)]
        {
            if let Some(limit) = limit.filter(|limit| limit.as_millis() > 0) {
                headers.insert(name, HeaderValue::from(limit.as_millis()));
            }
        }
        if let Some(version) = held {
            // A UUID in quotes is always a valid header value.
            if let Ok(value) = HeaderValue::from_str(&format!("\"{}\"", version.id)) {
                headers.insert(IF_NONE_MATCH, value);
            }
        }
        let request = HttpRequest { method, headers, ..HttpRequest::default() };
        let what = format!("{} at {at}", query.path);
        let check = |reply: &HttpReply| match reply.status.as_u16() {
            404 | 405 | 501 => Ok(()),
            304 if held.is_some() => Ok(()),
            200 | 300..=303 | 307 | 308 if answer::describes_a_version(&reply.headers) => Ok(()),
            200 | 300..=303 | 307 | 308 => read(reply, &query.path, at).map(drop),
            _ => Err("expected 200, 303, 304 or 404".to_owned()),
        };
        self.transport.ask(&tail, &request, &what, deadline, &check).await
    }

    /// All versions that are valid at `at`, listed without a filter and filtered here.
    async fn decide_by_listing_at(
        &self,
        query: &Query,
        at: Timestamp,
        moment: ValidityInterval,
        deadline: Instant,
    ) -> Result<Knowledge, SourceError> {
        let part = ListingPart { at: Some(at), id: None };
        match self.list(&query.path, part, FIRST_LISTING, deadline).await? {
            CheckedListing::Whole(listing) => {
                let of_several_sources = listing.of_several_sources;
                let versions = listing.versions.into_iter().map(|listed| listed.version);
                let versions: Vec<_> = versions
                    .filter(|v| v.validity.contains(at) && query.matches(v))
                    .map(Arc::new)
                    .collect();
                let undecided = if versions.is_empty() && query.metadata.contains_key(REPLICAS) {
                    Some("its listing does not show metadata replicas")
                } else if versions.len() > 1 && of_several_sources {
                    Some("its listing has versions of several sources")
                } else {
                    None
                };
                if let Some(reason) = undecided {
                    return Err(SourceError::Unusable {
                        url: self.transport.url.clone(),
                        what: format!("{} at {at}", query.path),
                        reason: format!("the server does not filter as asked, and {reason}"),
                    });
                }
                Ok(Knowledge { span: moment, versions, problems: Vec::new(), stale: false })
            }
            CheckedListing::TooMany(_) | CheckedListing::InDoubt(_) => Err(SourceError::Unusable {
                url: self.transport.url.clone(),
                what: format!("{} at {at}", query.path),
                reason: "the server does not filter as asked, and its listing for that time is \
                         too long or in doubt"
                    .into(),
            }),
        }
    }
}

/// Whether the spelling of all metadata of a version is known, and none of the path's metadata may
/// stand in the place of a header.
fn is_spelled(told: &ObjectInfo, by_time: &ByTime) -> bool {
    let is_plain =
        |(key, spelled): (&String, &Option<String>)| spelled.is_some() && !is_protocol_header(key);
    by_time.spelling.iter().all(is_plain)
        && told.metadata.keys().all(|key| by_time.spelling.contains_key(key))
}

fn read(reply: &HttpReply, path: &ObjectPath, at: Timestamp) -> Result<Named, String> {
    answer::read_version(&reply.headers, reply.status.is_redirection(), path, at, &reply.url)
}

/// The interval of the one millisecond `at`; `None` for the last one of the time scale.
fn moment(at: Timestamp) -> Option<ValidityInterval> {
    let next = at.as_millis().checked_add(1)?;
    ValidityInterval::new(at, Timestamp::from_millis(next)).ok()
}

/// The span for which the server guarantees a version that it named for `moment`.
fn vouched_span(
    moment: ValidityInterval,
    vouched_until: Option<Timestamp>,
    validity: ValidityInterval,
) -> ValidityInterval {
    vouched_until
        .and_then(|until| ValidityInterval::new(moment.from(), until.min(validity.until())).ok())
        .unwrap_or(moment)
}

fn nothing(span: ValidityInterval) -> Knowledge {
    Knowledge { span, versions: Vec::new(), problems: Vec::new(), stale: false }
}

fn one(version: Arc<ObjectInfo>, span: ValidityInterval) -> Knowledge {
    Knowledge { span, versions: vec![version], problems: Vec::new(), stale: false }
}

/// Percent-encodes all but safe characters: the server decodes forms, in which `+` is a blank.
pub(super) fn form_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_values_are_encoded_so_that_a_form_decoder_gives_them_back() {
        assert_eq!(form_encoded("a+b c/d=é%"), "a%2Bb%20c%2Fd%3D%C3%A9%25");
        assert_eq!(form_encoded("A-z_0.9~"), "A-z_0.9~");
    }

    #[test]
    fn a_vouched_span_never_reaches_beyond_the_version_nor_before_the_question() {
        let at = Timestamp::from_millis;
        let moment = moment(at(1500)).unwrap();
        let validity = ValidityInterval::new(at(1000), at(2000)).unwrap();
        let until = |vouched: Option<i64>| {
            let span = vouched_span(moment, vouched.map(at), validity);
            assert_eq!(span.from(), at(1500));
            span.until().as_millis()
        };
        assert_eq!(until(None), 1501);
        assert_eq!(until(Some(0)), 1501);
        assert_eq!(until(Some(1500)), 1501);
        assert_eq!(until(Some(1700)), 1700);
        assert_eq!(until(Some(9000)), 2000);
    }
}
