//! Which version holds at a time: from the path's listing, else by asking for that time.
//!
//! ```text
//!             few versions                          span: all of time
//!  /browse ───────────────────▶ filtered by us ──▶
//!     │ many, or in doubt
//!     ▼            303, 200                         [at, Cache-Valid-Until) ∩ validity, else at
//!  HEAD …/at ─────────────────▶ checked ─────────▶
//!     ├──────────▶ 304: what the caller holds ───▶  the same, by what it holds
//!     ├──────────▶ 404: nothing ─────────────────▶  at
//!     └─ not what was asked for (a filter that the server ignores or inverts)
//!          ▼
//!        /browse/…/at, filtered by us ───────────▶  at
//! ```

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{ACCEPT, HeaderMap, HeaderName, HeaderValue, IF_NONE_MATCH};
use reqwest::{Method, StatusCode};
use tokio::time::Instant;

use super::answer::{self, Named};
use super::listing::{self, Listing};
use super::source::{CcdbSource, Unlisted};
use super::transport::{Ask, Reply};
use crate::interval::{Timestamp, ValidityInterval};
use crate::object::{ObjectInfo, ObjectPath, Query};
use crate::source::{Knowledge, PathSummary, SourceError};

const BROWSE_LIMIT: HeaderName = HeaderName::from_static("browse-limit");
const FILTER_FIELDS: HeaderName = HeaderName::from_static("x-filter-fields");
const IF_NOT_AFTER: HeaderName = HeaderName::from_static("if-not-after");
const IF_NOT_BEFORE: HeaderName = HeaderName::from_static("if-not-before");

/// How many bytes of a listing are read per version that may stand in it.
const LISTING_BYTES_PER_VERSION: usize = 8 << 10;
/// How long a path is not listed after its listing could not be had at all.
const LISTING_FAILED_PAUSE: Duration = Duration::from_secs(30);
/// How many versions may lie below a prefix whose paths are asked for.
const PATHS_LIMIT: usize = 100_000;

impl CcdbSource {
    /// What [`Source::look_up`](crate::source::Source::look_up) answers.
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
            // No half-open interval holds the last millisecond of all.
            return Ok(nothing(ValidityInterval::ALL));
        };
        let mut after_listing = None;
        let unlisted = match self.unlisted(&query.path) {
            Some(unlisted) => unlisted,
            // A listing may take half of the time: a path must not be lost over its listing.
            None => match self.list(&query.path, None, Instant::now() + total / 2).await {
                Ok(Listed::Whole(versions)) => return Ok(of_all_time(query, versions)),
                Ok(Listed::NotWhole(unlisted)) => unlisted,
                Err(error) => {
                    after_listing = Some(error);
                    Arc::default()
                }
            },
        };
        let knowledge = self.decide_at(query, at, moment, held, &unlisted, deadline).await?;
        if let Some(error) = after_listing {
            tracing::debug!(path = %query.path, %error, "not listed, but looked up by time");
            let pause = Duration::from_millis(options.listing_recheck_millis);
            self.do_not_list(&query.path, Default::default(), pause.min(LISTING_FAILED_PAUSE));
        }
        Ok(knowledge)
    }

    /// The path's versions, all or those that hold at a time, if the listing can be relied on.
    async fn list(
        &self,
        path: &ObjectPath,
        at: Option<Timestamp>,
        deadline: Instant,
    ) -> Result<Listed, SourceError> {
        let options = &self.transport.options;
        let limit = options.browse_limit.max(usize::from(at.is_some()) * 256);
        let mut tail = format!("/browse/{path}");
        let mut what = format!("the listing of {path}");
        if let Some(at) = at {
            let _ = write!(tail, "/{at}");
            let _ = write!(what, " at {at}");
        }
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        headers.insert(BROWSE_LIMIT, HeaderValue::from(limit as u64 + 1));
        let read_bytes = (limit + 8) * LISTING_BYTES_PER_VERSION;
        let ask = Ask { method: Method::GET, headers, read_bytes };
        // What a listing says is looked at below: nothing in it is a reason to ask another host.
        let reply = match self.transport.ask(&tail, &ask, &what, deadline, &|_| Ok(())).await {
            Ok(reply) => reply,
            Err(SourceError::Unusable { .. } | SourceError::NotAllowed { .. }) => {
                let pause = Duration::from_millis(options.listing_recheck_millis);
                return Ok(Listed::NotWhole(self.do_not_list(path, Default::default(), pause)));
            }
            Err(error) => return Err(error),
        };
        let listing = match (reply.status, reply.overflow) {
            (StatusCode::OK, false) => listing::parse(&reply.body, path),
            (StatusCode::OK, true) => Err("it is too long".into()),
            (status, _) => Err(format!("status {}", status.as_u16())),
        };
        let listing =
            listing.unwrap_or_else(|doubt| Listing { doubts: vec![doubt], ..Listing::default() });
        if listing.doubts.is_empty() && listing.entries <= limit {
            for (version, replicas) in &listing.versions {
                self.remember(version.id, &reply.url, replicas);
            }
            let versions = listing.versions.into_iter().map(|(version, _)| Arc::new(version));
            return Ok(Listed::Whole(versions.collect()));
        }
        tracing::debug!(%path, entries = listing.entries, doubts = ?listing.doubts, "not listed");
        let pause = Duration::from_millis(options.listing_recheck_millis);
        let spelling = listing.spelling();
        Ok(Listed::NotWhole(match at {
            None => self.do_not_list(path, spelling, pause),
            Some(_) => Arc::default(),
        }))
    }

    async fn decide_at(
        &self,
        query: &Query,
        at: Timestamp,
        moment: ValidityInterval,
        held: Option<&Arc<ObjectInfo>>,
        unlisted: &Unlisted,
        deadline: Instant,
    ) -> Result<Knowledge, SourceError> {
        // To the server a limit of 0 or less is none: it cannot be asked for such a one.
        if query.limits.not_after.is_some_and(|limit| limit.as_millis() <= 0) {
            return self.decide_by_listing_at(query, at, moment, deadline).await;
        }
        // A 304 says no more than 'the same id': it hides a changed Valid-Until. So it counts only
        // for a version that holds at this time by what is known of it.
        let held = held.filter(|version| version.validity.contains(at) && query.matches(version));
        let mut reply = self.ask_at(query, at, held, Method::HEAD, deadline).await?;
        if matches!(reply.status.as_u16(), 405 | 501) {
            reply = self.ask_at(query, at, held, Method::GET, deadline).await?;
        }
        match (reply.status, held) {
            (StatusCode::NOT_FOUND, _) => Ok(nothing(moment)),
            (StatusCode::NOT_MODIFIED, Some(version)) => {
                let vouched = answer::millis(&reply.headers, "cache-valid-until");
                Ok(one(Arc::clone(version), vouched_span(moment, vouched, version.validity)))
            }
            _ => {
                let Named { mut version, cache_valid_until, locations } =
                    read(&reply, &query.path, at).map_err(|reason| SourceError::Unusable {
                        url: self.transport.url.clone(),
                        what: format!("{} at {at}", query.path),
                        reason,
                    })?;
                spell(&mut version, query, unlisted);
                self.remember(version.id, &reply.url, &locations);
                if !query.matches(&version) {
                    // Servers ignore or invert filters. What was passed over can only be told by
                    // looking at all versions that hold at this time.
                    return self.decide_by_listing_at(query, at, moment, deadline).await;
                }
                let span = vouched_span(moment, cache_valid_until, version.validity);
                Ok(one(Arc::new(version), span))
            }
        }
    }

    async fn ask_at(
        &self,
        query: &Query,
        at: Timestamp,
        held: Option<&Arc<ObjectInfo>>,
        method: Method,
        deadline: Instant,
    ) -> Result<Reply, SourceError> {
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
            // A UUID in quotes is always a header value.
            if let Ok(value) = HeaderValue::from_str(&format!("\"{}\"", version.id)) {
                headers.insert(IF_NONE_MATCH, value);
            }
        }
        let ask = Ask { method, headers, read_bytes: 0 };
        let what = format!("{} at {at}", query.path);
        let check = |reply: &Reply| match reply.status.as_u16() {
            404 | 405 | 501 => Ok(()),
            304 if held.is_some() => Ok(()),
            200 | 300..=303 | 307 | 308 => read(reply, &query.path, at).map(drop),
            _ => Err("expected 200, 303, 304 or 404".to_owned()),
        };
        self.transport.ask(&tail, &ask, &what, deadline, &check).await
    }

    /// All versions that hold at `at`, listed without any filter and filtered by us.
    async fn decide_by_listing_at(
        &self,
        query: &Query,
        at: Timestamp,
        moment: ValidityInterval,
        deadline: Instant,
    ) -> Result<Knowledge, SourceError> {
        match self.list(&query.path, Some(at), deadline).await? {
            Listed::Whole(mut versions) => {
                versions.retain(|v| v.validity.contains(at) && query.matches(v));
                Ok(Knowledge { span: moment, versions, problems: Vec::new(), stale: false })
            }
            Listed::NotWhole(_) => Err(SourceError::Unusable {
                url: self.transport.url.clone(),
                what: format!("{} at {at}", query.path),
                reason: "the server does not filter as asked, and its listing for that time is \
                         too long or in doubt"
                    .into(),
            }),
        }
    }

    /// What [`Source::paths`](crate::source::Source::paths) answers.
    pub(super) async fn list_paths(&self, prefix: &str) -> Result<Vec<PathSummary>, SourceError> {
        let prefix = prefix.trim_matches('/');
        let wrong = |reason: String| SourceError::Unusable {
            url: self.transport.url.clone(),
            what: format!("the paths below {prefix:?}"),
            reason,
        };
        // `.*` is what file-backed and SQL-backed servers both take for 'all below'.
        let tails = match prefix {
            "" => vec!["/browse/.*".to_owned()],
            prefix => match ObjectPath::new(prefix) {
                Ok(path) => vec![format!("/browse/{path}"), format!("/browse/{path}/.*")],
                // No path of ours can lie below what is no path.
                Err(_) => return Ok(Vec::new()),
            },
        };
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        headers.insert(BROWSE_LIMIT, HeaderValue::from(PATHS_LIMIT as u64 + 1));
        headers.insert(FILTER_FIELDS, HeaderValue::from_static("path"));
        let ask = Ask { method: Method::GET, headers, read_bytes: PATHS_LIMIT * 256 };
        let total = Duration::from_millis(self.transport.options.look_up_total_millis);
        let deadline = Instant::now() + total;
        let mut counts = std::collections::BTreeMap::new();
        for tail in tails {
            let what = format!("the paths below {prefix:?}");
            let check = |reply: &Reply| match reply.status {
                StatusCode::OK if reply.overflow => Ok(()),
                StatusCode::OK => listing::parse_paths(&reply.body).map(drop),
                _ => Err("expected a listing".to_owned()),
            };
            let reply = self.transport.ask(&tail, &ask, &what, deadline, &check).await?;
            let found = listing::parse_paths(&reply.body).map_err(&wrong);
            let found = if reply.overflow { Default::default() } else { found? };
            if reply.overflow || found.values().sum::<u64>() > PATHS_LIMIT as u64 {
                let reason = format!("more than {PATHS_LIMIT} versions: ask for a longer prefix");
                return Err(wrong(reason));
            }
            // Both questions may be answered with the same paths: the fuller count is the true one.
            for (path, versions) in found.into_iter().filter(|(p, _)| p.starts_with(prefix)) {
                let count = counts.entry(path).or_insert(0);
                *count = versions.max(*count);
            }
        }
        Ok(counts.into_iter().map(|(path, versions)| PathSummary { path, versions }).collect())
    }
}

enum Listed {
    Whole(Vec<Arc<ObjectInfo>>),
    NotWhole(Arc<Unlisted>),
}

fn read(reply: &Reply, path: &ObjectPath, at: Timestamp) -> Result<Named, String> {
    answer::read_version(&reply.headers, reply.status.is_redirection(), path, at, &reply.url)
}

/// The one millisecond of `at`; there is none for the very last.
fn moment(at: Timestamp) -> Option<ValidityInterval> {
    let next = at.as_millis().checked_add(1)?;
    ValidityInterval::new(at, Timestamp::from_millis(next)).ok()
}

/// Where the server vouches for a version that it named for `moment`.
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

fn of_all_time(query: &Query, mut versions: Vec<Arc<ObjectInfo>>) -> Knowledge {
    versions.retain(|version| query.matches(version));
    Knowledge { span: ValidityInterval::ALL, versions, problems: Vec::new(), stale: false }
}

/// Gives metadata that came as headers their spelling back, which HTTP does not keep.
fn spell(version: &mut ObjectInfo, query: &Query, unlisted: &Unlisted) {
    let respelled = std::mem::take(&mut version.metadata).into_iter().map(|(key, value)| {
        let asked = query.metadata.keys().find(|asked| asked.eq_ignore_ascii_case(&key));
        (asked.or_else(|| unlisted.spelling.get(&key)).cloned().unwrap_or(key), value)
    });
    version.metadata = respelled.collect();
}

/// Percent-encodes all that is not certain to pass: the server decodes forms, `+` is a blank.
fn form_encoded(text: &str) -> String {
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
