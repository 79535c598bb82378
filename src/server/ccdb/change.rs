//! Uploads, changes and deletions: passed on to the source that keeps the path, and acknowledged
//! once the source has acknowledged them.
//!
//! ```text
//!  POST /path/from[/until][/uuid][/k=v]*     first part ──streamed──▶ Source::change ─▶ 201
//!  PUT  /path/t[/until][/uuid][/k=v]*?k=v&…                                           ─▶ 204, 304
//!  DELETE /path/t[/uuid][/k=v]*                                                       ─▶ 204
//!  GET  /truncate/path[/t…]                                                            ─▶ 204, 304
//! ```
//!
//! **Without write permission.** AliceO2's client takes every answer for success that libcurl takes
//! for one, regardless of its status. An upload or a change of a path that a CCDB keeps is
//! therefore redirected there with 307, which that client follows, as a node's cache does. All
//! others are refused with an answer that states the reason and is then cut short, which libcurl
//! reports as an error.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};

use super::address::ObjectAddress;
use super::front::{Front, limits};
use super::listing::FoundListing;
use super::listing_stream::{ListingPiece, ListingRequest};
use super::pattern::Pattern;
use super::reply::CcdbReply;
use super::request::{CcdbRequest, Method};
use super::{page, version};
use crate::cache::CacheError;
use crate::interval::{Timestamp, ValidityInterval};
use crate::object::{ObjectInfo, ObjectPath};
use crate::secret::Secret;
use crate::server::auth::{Peer, Role};
use crate::source::{Change, ChangeKind, Changed, UploadBytes, WriteTarget};

/// Addresses below these show no object: none is stored there.
const READ_ONLY_PAGES: [&str; 5] = ["browse", "latest", "truncate", "monitor", "download"];
/// Longest pause between two pieces of an upload.
const UPLOAD_PAUSE: Duration = Duration::from_secs(60);
/// Time to send the head and the text of an answer before it is cut short.
const BREAK_OFF_AFTER: Duration = Duration::from_millis(50);
/// Bytes announced beyond the text of an answer that is cut short.
const MISSING_BYTES: usize = 16;

impl Front {
    pub(super) async fn change(
        &self,
        request: &CcdbRequest,
        body: Incoming,
        peer: Option<SocketAddr>,
    ) -> Result<CcdbReply, CacheError> {
        let Ok(wanted) = ObjectAddress::parse(&request.path) else { return Ok(page::usage()) };
        if let Some(refusal) = self.refusal(request, &wanted, peer) {
            return Ok(refusal);
        }
        let first = wanted.path.split('/').next().unwrap_or_default();
        if READ_ONLY_PAGES.contains(&first) {
            let mut reply = broken_off(405, &format!("an object cannot be stored below /{first}"));
            reply.header("Allow", "GET, HEAD, OPTIONS");
            return Ok(reply);
        }
        let (Some(at), Ok(path)) = (wanted.at, ObjectPath::new(&wanted.path)) else {
            return Ok(page::usage());
        };
        let mut change = Change {
            path,
            at,
            until: wanted.until,
            id: wanted.id,
            metadata: wanted.metadata,
            limits: limits(request),
            kind: ChangeKind::Delete,
        };
        let mut upload = None;
        match request.method {
            Method::Post => match first_part(request, body, peer).await {
                Ok(part) => {
                    // As at a real server, where an empty value removes a key.
                    change.metadata.retain(|_, value| !value.trim().is_empty());
                    let until = change.until.get_or_insert_with(|| next_milli(at));
                    if let Err(error) = ValidityInterval::new(at, *until) {
                        return Ok(broken_off(400, &error.to_string()));
                    }
                    change.kind = part.0;
                    upload = Some(part.1);
                }
                Err(message) => return Ok(broken_off(400, &message)),
            },
            Method::Put => {
                change.kind = ChangeKind::Update { set: first_values(request.parameters()) };
            }
            _ => {}
        }
        self.apply(request, change, upload).await
    }

    /// Applies a change, and answers with the result.
    async fn apply(
        &self,
        request: &CcdbRequest,
        change: Change,
        upload: Option<UploadBytes>,
    ) -> Result<CcdbReply, CacheError> {
        if self.cache.write_target(&change.path) == WriteTarget::ReadOnly {
            let path = &change.path;
            return Ok(broken_off(
                403,
                &format!("no source of this service takes changes of {path}"),
            ));
        }
        let changed = match self.cache.change(&change, upload).await {
            Ok(changed) => changed,
            Err(error) => return Ok(failed(&error)),
        };
        tracing::info!(
            path = %change.path,
            at = %change.at,
            agent = request.user_agent.as_deref().unwrap_or_default(),
            changed = ?changed,
            "changed through the CCDB side"
        );
        Ok(match changed {
            Changed::Created(version) => self.described(201, &version),
            Changed::Updated(version) => self.described(204, &version),
            Changed::Deleted(_) => page::status(204, ""),
            Changed::Unchanged => page::status(304, ""),
            Changed::NotFound => page::not_found(),
        })
    }

    /// Deletes the matching versions of a path, or of all paths that a pattern matches. `address` is
    /// the text after `/truncate/`.
    pub(super) async fn truncate(
        &self,
        request: &CcdbRequest,
        address: &str,
        peer: Option<SocketAddr>,
    ) -> Result<CcdbReply, CacheError> {
        let Ok(wanted) = ObjectAddress::parse(address) else { return Ok(page::usage()) };
        if let Some(refusal) = self.refusal(request, &wanted, peer) {
            return Ok(refusal);
        }
        let paths = match self.truncated_paths(request, &wanted).await {
            Ok(paths) => paths,
            Err(reply) => return Ok(reply),
        };
        let mut deleted = 0;
        for (path, newest) in paths {
            let change = Change {
                path,
                at: wanted.at.unwrap_or_default(),
                until: None,
                id: wanted.id,
                metadata: wanted.metadata.clone(),
                limits: limits(request),
                kind: ChangeKind::Truncate { at: wanted.at, newest },
            };
            match self.cache.change(&change, None).await {
                Ok(Changed::Deleted(count)) => deleted += count,
                Ok(_) => {}
                Err(error) => {
                    let message = format!("{error}; {deleted} versions were deleted before");
                    return Ok(broken_off(page::error(&error).status, &message));
                }
            }
        }
        let mut reply = page::status(if deleted > 0 { 204 } else { 304 }, "");
        reply.header("Deleted", format_args!("{deleted} objects"));
        Ok(reply)
    }

    /// The paths that a truncation names, each with the number of versions that it deletes at most;
    /// an answer with the reason if they cannot be listed.
    async fn truncated_paths(
        &self,
        request: &CcdbRequest,
        wanted: &ObjectAddress,
    ) -> Result<Vec<(ObjectPath, Option<usize>)>, CcdbReply> {
        if wanted.id.is_some() && wanted.at.is_none() {
            // As at a real server, an id without a time matches nothing.
            return Ok(Vec::new());
        }
        let pattern = Pattern::new(&wanted.path);
        match (&pattern, ObjectPath::new(&wanted.path), request.browse_limit) {
            (Pattern::Plain, Ok(path), limit) => Ok(vec![(path, limit)]),
            (Pattern::Plain, Err(_), _) => Err(page::usage()),
            (Pattern::Wild { .. }, _, Some(limit)) => {
                self.newest_by_path(request, wanted, limit).await
            }
            (Pattern::Wild { .. }, _, None) => {
                let found = self.paths_of(&pattern).await.map_err(|error| failed(&error))?;
                Ok(found.into_iter().map(|summary| (summary.path, None)).collect())
            }
        }
    }

    /// Number of versions of each path among the `limit` ones created last of all paths that a
    /// pattern matches; an answer with the reason if they cannot be listed.
    async fn newest_by_path(
        &self,
        request: &CcdbRequest,
        wanted: &ObjectAddress,
        limit: usize,
    ) -> Result<Vec<(ObjectPath, Option<usize>)>, CcdbReply> {
        let selection = ListingRequest {
            wanted: wanted.clone(),
            limits: limits(request),
            only_latest: false,
            newest: Some(limit),
        };
        let FoundListing { found, long } =
            self.find(selection, None).await.map_err(|error| failed(&error))?;
        let first = ListingPiece {
            versions: found.versions,
            left_out: found.left_out,
            ..ListingPiece::default()
        };
        let (further, _held) = match long {
            Some(long) => (long.pieces, Some((long.charge, long.place))),
            None => (stream::empty().boxed(), None),
        };
        let mut pieces = stream::iter([Ok(first)]).chain(further);
        let mut counts = BTreeMap::new();
        while let Some(piece) = pieces.try_next().await.map_err(|error| failed(&error))? {
            if let Some(path) = piece.left_out.first() {
                return Err(broken_off(501, &format!("the source does not list {path}")));
            }
            for version in piece.versions {
                *counts.entry(version.info.path.clone()).or_insert(0) += 1;
            }
        }
        Ok(counts.into_iter().map(|(path, count)| (path, Some(count))).collect())
    }

    /// The answer with a version that was stored or changed.
    fn described(&self, status: u16, version: &ObjectInfo) -> CcdbReply {
        let details = self.cache.known_details_of(version);
        let mut reply = CcdbReply::new(status);
        version::describe(&mut reply, version, &details, None);
        reply.header("Location", version::address(version));
        match status {
            204 => reply,
            _ => reply.empty(),
        }
    }

    /// The answer if this client may not change what `wanted` names.
    fn refusal(
        &self,
        request: &CcdbRequest,
        wanted: &ObjectAddress,
        peer: Option<SocketAddr>,
    ) -> Option<CcdbReply> {
        if !self.writes.enabled {
            return Some(self.refuse(request, wanted));
        }
        let allowed = self.may_write(request, peer);
        allowed.err().map(|message| broken_off(403, &message))
    }

    /// Whether this client may change anything.
    fn may_write(&self, request: &CcdbRequest, peer: Option<SocketAddr>) -> Result<(), String> {
        // A page in a browser can send a form to any port of the node the browser runs on.
        if request.has_origin {
            return Err("browsers may not change anything here".to_owned());
        }
        let address = peer.ok_or("the client's address is not known")?;
        let token = request.bearer.clone().map(Secret::from);
        let peer = Peer::Address { address, certificate: None };
        let identity = self.writes.access.identify(&peer, token.as_ref());
        let allowed = identity
            .and_then(|who| who.check(Role::Administer, "changing versions at their source"));
        allowed.map_err(|denied| denied.to_string())
    }

    /// The answer without write permission.
    fn refuse(&self, request: &CcdbRequest, wanted: &ObjectAddress) -> CcdbReply {
        let message = "this service only reads: it was started without --ccdb-writable";
        let is_followed = matches!(request.method, Method::Post | Method::Put);
        let descriptor_store =
            ObjectPath::new(&wanted.path).map(|path| self.cache.write_target(&path));
        match descriptor_store {
            Ok(WriteTarget::Source { ccdb: Some((url, path)) }) if is_followed => {
                let rest = after_path(&request.path, &wanted.path);
                let mut reply = CcdbReply::new(307);
                reply.header("Cache-Control", "no-cache");
                let query = match request.query.as_str() {
                    "" => String::new(),
                    query => format!("?{query}"),
                };
                reply.header("Location", format_args!("{url}/{path}{rest}{query}"));
                reply.date();
                // The rest of the upload is not read.
                reply.last = true;
                reply.empty()
            }
            _ => broken_off(403, message),
        }
    }
}

/// The part of an address behind its path elements.
fn after_path<'a>(address: &'a str, path: &str) -> &'a str {
    let mut rest = address;
    for _ in path.split('/') {
        rest = rest.trim_start_matches('/');
        rest = rest.find('/').map_or("", |slash| &rest[slash..]);
    }
    rest
}

/// The first value of each key that has a name, as at a real server.
fn first_values(pairs: impl Iterator<Item = (String, String)>) -> Vec<(String, String)> {
    let mut first: Vec<(String, String)> = Vec::new();
    for (key, value) in pairs.filter(|(key, _)| !key.is_empty()) {
        if first.iter().all(|(known, _)| *known != key) {
            first.push((key, value));
        }
    }
    first
}

fn next_milli(at: Timestamp) -> Timestamp {
    Timestamp::from_millis(at.as_millis().saturating_add(1))
}

/// The first part of a form: its name and type, and its bytes as they come.
async fn first_part(
    request: &CcdbRequest,
    body: Incoming,
    peer: Option<SocketAddr>,
) -> Result<(ChangeKind, UploadBytes), String> {
    let content_type = request.content_type.as_deref().unwrap_or_default();
    let boundary = multer::parse_boundary(content_type)
        .map_err(|error| format!("expected multipart/form-data: {error}"))?;
    let mut form = multer::Multipart::new(pieces(body), boundary);
    let part = form.next_field().await.map_err(|error| error.to_string())?;
    let part = part.ok_or("POST request doesn't contain the data to upload")?;
    let file_name = part.file_name().unwrap_or_default().trim().to_owned();
    let content_type = part.content_type().map(|mime| mime.to_string());
    let content_type = content_type.unwrap_or_else(|| "application/octet-stream".to_owned());
    let bytes = part.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error));
    let uploaded_from = peer.map(|peer| peer.ip().to_canonical().to_string());
    Ok((ChangeKind::Upload { file_name, content_type, uploaded_from }, Box::pin(bytes)))
}

/// The pieces of a body. It ends with an error if the client stops sending.
fn pieces(body: Incoming) -> impl futures::Stream<Item = io::Result<Bytes>> + Send + 'static {
    stream::try_unfold(body, |mut body| async move {
        loop {
            let Ok(frame) = tokio::time::timeout(UPLOAD_PAUSE, body.frame()).await else {
                return Err(io::ErrorKind::TimedOut.into());
            };
            match frame {
                None => return Ok(None),
                Some(Err(error)) => return Err(io::Error::other(error)),
                Some(Ok(frame)) => {
                    if let Ok(bytes) = frame.into_data() {
                        return Ok(Some((bytes, body)));
                    }
                }
            }
        }
    })
}

/// The answer to a change that failed.
fn failed(error: &CacheError) -> CcdbReply {
    broken_off(page::error(error).status, &error.to_string())
}

/// An answer that libcurl reports as an error, because it is shorter than announced.
fn broken_off(status: u16, message: &str) -> CcdbReply {
    let text = format!("{message}\n");
    let mut reply = CcdbReply::new(status);
    reply.header("Cache-Control", "no-cache");
    reply.date();
    reply.header("Content-Length", text.len() + MISSING_BYTES);
    reply.last = true;
    let frames = stream::once(async move { Ok(Frame::data(Bytes::from(text))) }).chain(
        stream::once(async {
            tokio::time::sleep(BREAK_OFF_AFTER).await;
            Err(io::Error::other("nothing was changed"))
        }),
    );
    reply.stream("text/plain;charset=utf-8", StreamBody::new(frames).boxed_unsync())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_after_the_path_is_kept_as_sent() {
        assert_eq!(after_path("/A/B/1/2/k=v%2F", "A/B"), "/1/2/k=v%2F");
        assert_eq!(after_path("//A//B/1", "A/B"), "/1");
        assert_eq!(after_path("/A/B", "A/B"), "");
    }
}
