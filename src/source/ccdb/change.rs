//! Changes at a CCDB server: forwarded, and acknowledged only after the server's acknowledgement.

use std::fmt::Write as _;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Body, Method, StatusCode};
use tokio::time::Instant;

use super::answer::{etag_id, is_protocol_header, millis, single};
use super::entry::Listed;
use super::list::{CheckedListing, ListingPart};
use super::location::path_in_location;
use super::look_up::form_encoded;
use super::paths::FIRST_LISTING;
use super::source::CcdbSource;
use super::transport::latin1;
use crate::error::Coded as _;
use crate::interval::{Timestamp, ValidityInterval};
use crate::object::{Md5Sum, ObjectInfo, Query};
use crate::source::{Change, ChangeKind, Changed, SourceError, UploadBytes};

/// The time by which a server finds the versions to change.
enum ServerTime {
    At(Option<Timestamp>),
    /// There is no version to change.
    NoVersion,
}

impl CcdbSource {
    /// Implements [`Source::change`](crate::source::Source::change).
    pub(super) async fn pass_on(
        &self,
        change: &Change,
        bytes: Option<UploadBytes>,
    ) -> Result<Changed, SourceError> {
        let what = match time_of(change) {
            Some(at) => format!("a change of {} at {at}", change.path),
            None => format!("a change of {}", change.path),
        };
        let total = Duration::from_millis(self.transport.options.fetch_total_millis);
        let deadline = Instant::now() + total;
        self.check_end(change, &what, deadline).await?;
        let at = match self.address_of(change, &what, deadline).await? {
            ServerTime::At(at) => at,
            ServerTime::NoVersion => return Ok(Changed::NotFound),
        };
        let (method, tail) = request_of(change, at);
        let mut headers = limits_of(change);
        let body = match (&change.kind, bytes) {
            (ChangeKind::Upload { file_name, content_type, .. }, Some(bytes)) => {
                let boundary = uuid::Uuid::new_v4().simple().to_string();
                let multipart = format!("multipart/form-data; boundary={boundary}");
                // Hex digits and dashes are always a valid header value.
                if let Ok(value) = HeaderValue::from_str(&multipart) {
                    headers.insert(CONTENT_TYPE, value);
                }
                Some(form(&boundary, file_name, content_type, bytes))
            }
            _ => None,
        };
        let response =
            self.transport.send_once(method, &tail, headers, body, &what, deadline).await?;
        let changed = self.outcome(change, response, what).await;
        // The path may have changed with any status: remembered answers no longer count.
        self.forget_path(&change.path);
        changed
    }

    /// Refuses an end of validity that does not lie after the beginning: servers take it, and the
    /// version is then valid at no time.
    async fn check_end(
        &self,
        change: &Change,
        what: &str,
        deadline: Instant,
    ) -> Result<(), SourceError> {
        let Some(until) = change.until else { return Ok(()) };
        let from = match change.kind {
            ChangeKind::Upload { .. } => Some(change.at),
            // A version that is valid at `at` begins then or before.
            ChangeKind::Update { .. } if until <= change.at => {
                let query = Query {
                    path: change.path.clone(),
                    metadata: change.metadata.clone(),
                    limits: change.limits,
                };
                self.beginning_of(&query, change.at, change.id, deadline).await?
            }
            _ => None,
        };
        match from.map(|from| ValidityInterval::new(from, until)) {
            Some(Err(error)) => Err(SourceError::of_change(
                error.kind(),
                &self.transport.url,
                what,
                error.to_string(),
            )),
            _ => Ok(()),
        }
    }

    /// The time by which every kind of server finds the version to change.
    ///
    /// A file-backed server finds a version by its id only together with the beginning of its
    /// interval, and ignores the id if that time is not positive.
    async fn address_of(
        &self,
        change: &Change,
        what: &str,
        deadline: Instant,
    ) -> Result<ServerTime, SourceError> {
        let is_upload = matches!(change.kind, ChangeKind::Upload { .. });
        let asked = time_of(change);
        let (Some(at), Some(id), false) = (asked, change.id, is_upload) else {
            return Ok(ServerTime::At(asked));
        };
        let ambiguous = |reason: &str| SourceError::Unusable {
            url: self.transport.url.clone(),
            what: what.to_owned(),
            reason: reason.to_owned(),
        };
        let part = ListingPart { at: Some(at), id: None };
        let listing = match self.list(&change.path, part, FIRST_LISTING, deadline).await? {
            CheckedListing::Whole(listing) => listing,
            CheckedListing::TooMany(_) | CheckedListing::InDoubt(_) if at.as_millis() > 0 => {
                return Ok(ServerTime::At(asked));
            }
            CheckedListing::TooMany(_) | CheckedListing::InDoubt(_) => {
                return Err(ambiguous("the server may ignore the id of a version before 1970"));
            }
        };
        let found = listing.versions.iter().find(|listed| listed.version.id == id);
        if found.is_none() && at.as_millis() <= 0 {
            return Ok(ServerTime::NoVersion);
        }
        let is_file_backed =
            |listed: &&Listed| listed.replicas.iter().any(|one| path_in_location(one).is_some());
        let Some(found) = found.filter(is_file_backed) else {
            return Ok(ServerTime::At(asked));
        };
        let from = found.version.validity.from();
        if from.as_millis() > 0 {
            return Ok(ServerTime::At(Some(from)));
        }
        if at.as_millis() > 0 {
            return Err(ambiguous("this server finds no version before 1970 by its id"));
        }
        match is_alone(change, &listing.versions, found) {
            true => Ok(ServerTime::At(asked)),
            false => Err(ambiguous("this server ignores the id, and would change another version")),
        }
    }

    async fn outcome(
        &self,
        change: &Change,
        response: reqwest::Response,
        what: String,
    ) -> Result<Changed, SourceError> {
        let url = self.transport.url.clone();
        let (status, headers) = (response.status(), response.headers().clone());
        let reason = || format!("status {}", status.as_u16());
        match (status, &change.kind) {
            (StatusCode::CREATED, ChangeKind::Upload { .. }) => {
                described(change, &headers).map(|version| Changed::Created(Box::new(version)))
            }
            (StatusCode::NO_CONTENT, ChangeKind::Update { .. }) => {
                described(change, &headers).map(|version| Changed::Updated(Box::new(version)))
            }
            (StatusCode::NO_CONTENT, ChangeKind::Delete) => return Ok(Changed::Deleted(1)),
            (StatusCode::NO_CONTENT, ChangeKind::Truncate { .. }) => {
                let told = single(&headers, "deleted");
                let count = told.and_then(|text| text.split(' ').next()?.parse().ok());
                return Ok(Changed::Deleted(count.unwrap_or(1)));
            }
            (StatusCode::NOT_MODIFIED, ChangeKind::Update { .. }) => return Ok(Changed::Unchanged),
            (StatusCode::NOT_MODIFIED, ChangeKind::Truncate { .. }) => {
                return Ok(Changed::Deleted(0));
            }
            (StatusCode::NOT_FOUND, _) => return Ok(Changed::NotFound),
            (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, _) => {
                return Err(SourceError::NotAllowed { url, what, reason: reason() });
            }
            (status, _) if status.is_redirection() => {
                let place = latin1(headers.get("location").map(HeaderValue::as_bytes));
                Err(format!(
                    "{}: it sends changes on to {place:?}, which is to be asked itself",
                    reason()
                ))
            }
            (status, _) if status.is_server_error() => {
                return Err(SourceError::Down { url, what, reason: reason() });
            }
            (StatusCode::CONFLICT, _) => {
                return Err(SourceError::Exists { url, what, reason: reason() });
            }
            (status, _) if status.is_client_error() => {
                return Err(SourceError::Refused { url, what, reason: reason() });
            }
            _ => Err(reason()),
        }
        .map_err(|reason| SourceError::Unusable { url, what, reason })
    }
}

/// Whether a server that ignores ids changes only `found` of the versions valid at that time.
fn is_alone(change: &Change, versions: &[Listed], found: &Listed) -> bool {
    let matches = |listed: &&Listed| {
        let metadata = &listed.version.metadata;
        change.limits.admit(listed.version.created)
            && change.metadata.iter().all(|(key, value)| metadata.get(key) == Some(value.as_str()))
    };
    let is_truncate = matches!(change.kind, ChangeKind::Truncate { .. });
    let is_met = |one: &&Listed| is_truncate || one.version.created >= found.version.created;
    versions.iter().filter(matches).filter(is_met).count() == 1
}

/// The time in the address of a change.
fn time_of(change: &Change) -> Option<Timestamp> {
    match change.kind {
        ChangeKind::Truncate { at, .. } => at,
        ChangeKind::Upload { .. } | ChangeKind::Update { .. } | ChangeKind::Delete => {
            Some(change.at)
        }
    }
}

/// Method and address for a change, with `at` as its time.
fn request_of(change: &Change, at: Option<Timestamp>) -> (Method, String) {
    let is_truncate = matches!(change.kind, ChangeKind::Truncate { .. });
    let mut tail = format!("{}/{}", if is_truncate { "/truncate" } else { "" }, change.path);
    if let Some(at) = at {
        let _ = write!(tail, "/{at}");
    }
    if let Some(until) = change.until {
        let _ = write!(tail, "/{until}");
    }
    if let Some(id) = change.id {
        let _ = write!(tail, "/{id}");
    }
    for (key, value) in &change.metadata {
        let _ = write!(tail, "/{}={}", form_encoded(key), form_encoded(value));
    }
    let method = match &change.kind {
        ChangeKind::Upload { .. } => Method::POST,
        ChangeKind::Delete => Method::DELETE,
        ChangeKind::Truncate { .. } => Method::GET,
        ChangeKind::Update { set } => {
            for (place, (key, value)) in set.iter().enumerate() {
                let sign = if place == 0 { '?' } else { '&' };
                let _ = write!(tail, "{sign}{}={}", form_encoded(key), form_encoded(value));
            }
            Method::PUT
        }
    };
    (method, tail)
}

/// The headers with the limits of a change.
fn limits_of(change: &Change) -> HeaderMap {
    let newest = match change.kind {
        ChangeKind::Truncate { newest, .. } => newest.map(HeaderValue::from),
        ChangeKind::Upload { .. } | ChangeKind::Update { .. } | ChangeKind::Delete => None,
    };
    let limit = |time: Option<Timestamp>| time.map(|time| HeaderValue::from(time.as_millis()));
    let limits = [
        ("if-not-after", limit(change.limits.not_after)),
        ("if-not-before", limit(change.limits.not_before)),
        ("browse-limit", newest),
    ];
    let limits = limits.into_iter().filter_map(|(name, value)| Some((name, value?)));
    limits.map(|(name, value)| (HeaderName::from_static(name), value)).collect()
}

/// A multipart form with one part, streamed.
fn form(boundary: &str, file_name: &str, content_type: &str, bytes: UploadBytes) -> Body {
    let plain = |text: &str| text.replace(['"', '\r', '\n', '\\'], "_");
    let file_name = match file_name {
        "" => String::new(),
        name => format!("; filename=\"{}\"", plain(name)),
    };
    let head = format!(
        "--{boundary}\r\nContent-Disposition: form-data; name=\"blob\"{file_name}\r\n\
         Content-Type: {}\r\n\r\n",
        plain(content_type),
    );
    let end = format!("\r\n--{boundary}--\r\n");
    let one = |text: String| stream::once(async move { Ok(Bytes::from(text)) });
    Body::wrap_stream(one(head).chain(bytes).chain(one(end)))
}

/// The version described by the answer to a change.
fn described(change: &Change, headers: &HeaderMap) -> Result<ObjectInfo, String> {
    let id = etag_id(headers).ok_or("no UUID as ETag")?;
    let time =
        |name: &str| millis(headers, name).ok_or_else(|| format!("no milliseconds as {name}"));
    let validity = ValidityInterval::new(time("valid-from")?, time("valid-until")?)
        .map_err(|error| format!("it is stored, but never valid: {error}"))?;
    let metadata = match &change.kind {
        ChangeKind::Upload { .. } => (&change.metadata).into(),
        _ => headers
            .iter()
            .filter(|(name, _)| !is_protocol_header(name.as_str()))
            .map(|(name, value)| (name.to_string(), latin1(Some(value.as_bytes()))))
            .collect(),
    };
    Ok(ObjectInfo {
        path: change.path.clone(),
        id,
        validity,
        created: time("created")?,
        size_bytes: None,
        md5: single(headers, "content-md5").and_then(|text| Md5Sum::parse(text.trim())),
        metadata,
    })
}
