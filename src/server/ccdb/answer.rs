//! Answers to requests by time, path or UUID.

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use hyper::Response;
use hyper::body::Incoming;

use super::address::{AddressFault, ObjectAddress};
use super::config::Answering;
use super::front::{Front, MAX_WAIT, limits};
use super::range::{BodyPart, part};
use super::reply::{CcdbReply, ReplyBody};
use super::request::{CcdbRequest, MAX_TARGET_BYTES, Method, id_of_tag};
use super::{page, version};
use crate::cache::{CacheError, HeldObject};
use crate::interval::Timestamp;
use crate::object::{Md5Sum, ObjectId, ObjectInfo, ObjectPath, Query};
use crate::source::{Details, SourceError};

const ALLOWED_METHODS: &str = "GET, HEAD, POST, PUT, DELETE, OPTIONS";
/// Longest wait of an answer for optional details.
const DETAILS_LIMIT: Duration = Duration::from_secs(2);

/// The kind of address by which a body was requested.
#[derive(Clone, Copy, PartialEq, Eq)]
enum BodyAddress {
    /// A time.
    Time,
    /// Path, from and UUID.
    Path,
    /// The UUID alone.
    Id,
}

impl Front {
    pub(super) async fn answer(
        &self,
        request: hyper::Request<Incoming>,
        peer: Option<SocketAddr>,
    ) -> Response<ReplyBody> {
        let began = std::time::Instant::now();
        let (parts, body) = request.into_parts();
        let is_too_long = parts.uri.to_string().len() > MAX_TARGET_BYTES;
        let request = CcdbRequest::new(&parts);
        let answered = match is_too_long {
            true => Ok(page::status(414, "the address is too long")),
            false => self.try_answer(&request, body, peer).await,
        };
        let reply = answered.unwrap_or_else(|error| page::error(&error));
        let counters = self.cache.counters();
        counters.ccdb_requests.add(1);
        counters.timings.ccdb_request.observe(began.elapsed());
        if reply.status >= 400 && reply.status != 404 {
            counters.ccdb_errors.add(1);
        }
        if request.method == Method::Get {
            counters.ccdb_sent_bytes.add(reply.object_bytes());
        }
        reply.into_response(request.method == Method::Head)
    }

    async fn try_answer(
        &self,
        request: &CcdbRequest,
        body: Incoming,
        peer: Option<SocketAddr>,
    ) -> Result<CcdbReply, CacheError> {
        match request.method {
            Method::Get | Method::Head => {}
            Method::Options => return Ok(options()),
            Method::Post | Method::Put | Method::Delete => {
                return self.change(request, body, peer).await;
            }
            Method::Trace => {
                let mut reply = page::status(405, "no TRACE here");
                reply.header("Allow", ALLOWED_METHODS);
                return Ok(reply);
            }
            Method::Unknown => return Ok(page::status(501, "no such method here")),
        }
        let path = request.path.as_str();
        let (first, rest) = match path.trim_start_matches('/').split_once('/') {
            Some((first, rest)) => (first, rest),
            None => (path.trim_start_matches('/'), ""),
        };
        match first {
            "browse" | "latest" => self.browse(request, first == "latest", rest).await,
            "download" => self.download(request, rest).await,
            "monitor" => Ok(self.monitor(rest)),
            // As at a real server, this GET deletes.
            "truncate" if request.method == Method::Head => {
                let mut reply = page::status(405, "HEAD deletes nothing");
                reply.header("Allow", "GET");
                Ok(reply)
            }
            "truncate" => self.truncate(request, rest, peer).await,
            "" if self.is_a_person(request) => Ok(page::to_browse()),
            _ => match ObjectAddress::parse(path) {
                Err(AddressFault::Encoding) => {
                    Ok(page::status(400, "the address cannot be decoded"))
                }
                Err(AddressFault::Grammar) => Ok(page::usage()),
                Ok(wanted) => self.look_up(request, wanted).await,
            },
        }
    }

    /// Whether the request comes from a browser, for addresses without an object.
    fn is_a_person(&self, request: &CcdbRequest) -> bool {
        request.accept.as_deref().is_some_and(|accept| accept.contains("text/html"))
    }

    async fn look_up(
        &self,
        request: &CcdbRequest,
        wanted: ObjectAddress,
    ) -> Result<CcdbReply, CacheError> {
        let (Some(at), false) = (wanted.at, wanted.path.is_empty()) else {
            return Ok(page::usage());
        };
        // An invalid path has no versions.
        let Ok(path) = ObjectPath::new(&wanted.path) else { return Ok(page::not_found()) };
        let limits = limits(request);
        let query = Query { path, metadata: wanted.metadata, limits };
        if let Some(id) = wanted.id {
            let found = self.cache.version_of(&query.path, at, id, MAX_WAIT).await?;
            return match found.filter(|version| query.matches(version)) {
                Some(version) => self.body(request, &version, BodyAddress::Path, None).await,
                None => Ok(page::not_found()),
            };
        }
        let Some(effective) = self.cache.version_at(&query, at, MAX_WAIT).await? else {
            return Ok(page::not_found());
        };
        let (version, until) = (effective.version, effective.span.until());
        if request.if_none_match.contains(&version.id) {
            return Ok(not_modified(Some(until)));
        }
        match self.answering {
            Answering::Body => {
                let reply = self.body(request, &version, BodyAddress::Time, Some(until)).await?;
                if reply.status != 404 {
                    return Ok(reply);
                }
                self.next_body(request, &query, at, &version).await
            }
            Answering::Redirect => {
                let details = self.details(&version).await;
                let mut reply = CcdbReply::new(303);
                reply.header("Cache-Control", "no-cache");
                let address = version::address(&version);
                reply.header("Content-Location", &address);
                version::describe(&mut reply, &version, &details, Some(until));
                reply.header("Location", address);
                Ok(reply.empty())
            }
        }
    }

    /// The bytes of the version at `at`, after the source had no bytes of the version `gone`.
    async fn next_body(
        &self,
        request: &CcdbRequest,
        query: &Query,
        at: Timestamp,
        gone: &ObjectInfo,
    ) -> Result<CcdbReply, CacheError> {
        match self.cache.version_at(query, at, MAX_WAIT).await? {
            Some(now) if *now.version != *gone => {
                let until = Some(now.span.until());
                self.body(request, &now.version, BodyAddress::Time, until).await
            }
            Some(_) | None => Ok(page::not_found()),
        }
    }

    async fn download(&self, request: &CcdbRequest, rest: &str) -> Result<CcdbReply, CacheError> {
        let Some(id) = ObjectId::parse(rest.trim_end_matches('/')) else {
            return Ok(page::status(400, "expected /download/UUID"));
        };
        match self.cache.version_known(id) {
            Some(version) => self.body(request, &version, BodyAddress::Id, None).await,
            None => Ok(page::not_found()),
        }
    }

    pub(super) async fn details(&self, version: &ObjectInfo) -> Details {
        self.cache.details_of(version, DETAILS_LIMIT).await
    }

    /// The bytes of a version, or the requested part of them.
    async fn body(
        &self,
        request: &CcdbRequest,
        version: &Arc<ObjectInfo>,
        by: BodyAddress,
        until: Option<Timestamp>,
    ) -> Result<CcdbReply, CacheError> {
        if request.if_none_match.contains(&version.id) {
            return Ok(not_modified(until));
        }
        // A HEAD loads nothing if size and MD5 are known.
        let known = version.size_bytes.zip(version.md5);
        let held = match (request.method, known) {
            (Method::Head, Some(_)) => None,
            _ => match self.cache.hold(version, MAX_WAIT).await {
                Ok(held) => Some(Arc::new(held)),
                Err(CacheError::Load { error: SourceError::NoSuchVersion { .. }, .. }) => {
                    // It was deleted since it was looked up.
                    self.cache.invalidate(&version.path);
                    return Ok(page::not_found());
                }
                Err(error) => return Err(error),
            },
        };
        let details = self.details(version).await;
        let reply = ObjectReply::new(version, &details, by, until);
        let Some(held) = held else { return Ok(reply.head_alone(known)) };
        let size = held.payload().len();
        let is_same = |tag: &str| id_of_tag(tag) == Some(version.id);
        let range = request.range.as_deref().filter(|_| request.method == Method::Get);
        let range = range.filter(|_| request.if_range.as_deref().is_none_or(is_same));
        Ok(match part(range, size) {
            BodyPart::Whole => reply.whole(&held, self.cache.md5_of(version, &held).await),
            BodyPart::One(range) => reply.one(&held, range),
            BodyPart::Several(ranges) => reply.several(&held, ranges),
            BodyPart::Nothing => reply.nothing(size),
        })
    }
}

/// The replies that carry a version, or a part of it.
struct ObjectReply<'a> {
    version: &'a Arc<ObjectInfo>,
    details: &'a Details,
    by: BodyAddress,
    until: Option<Timestamp>,
    content_type: &'a str,
    disposition: String,
}

impl<'a> ObjectReply<'a> {
    fn new(
        version: &'a Arc<ObjectInfo>,
        details: &'a Details,
        by: BodyAddress,
        until: Option<Timestamp>,
    ) -> Self {
        let content_type = version::content_type(details);
        let disposition = version::disposition(&version::file_name(version, details));
        Self { version, details, by, until, content_type, disposition }
    }

    fn begin(&self, status: u16) -> CcdbReply {
        let mut reply = CcdbReply::new(status);
        if self.by != BodyAddress::Id {
            reply.header("Cache-Control", "no-cache");
        }
        if self.by == BodyAddress::Time {
            reply.header("Content-Location", format_args!("/download/{}", self.version.id));
        }
        version::describe(&mut reply, self.version, self.details, self.until);
        reply
    }

    /// The answer to a HEAD request for a version with known size and MD5.
    fn head_alone(&self, known: Option<(u64, Md5Sum)>) -> CcdbReply {
        let mut reply = self.begin(200);
        reply.header("Accept-Ranges", "bytes");
        reply.header("Content-Disposition", &self.disposition);
        if let Some((size, md5)) = known {
            reply.header("Content-MD5", md5);
            reply.header("Content-Type", self.content_type);
            reply.header("Content-Length", size);
        }
        reply
    }

    fn whole(&self, held: &Arc<HeldObject>, md5: Option<Md5Sum>) -> CcdbReply {
        let mut reply = self.begin(200);
        reply.header("Accept-Ranges", "bytes");
        reply.header("Content-Disposition", &self.disposition);
        if let Some(md5) = md5 {
            reply.header("Content-MD5", md5);
        }
        reply.header("Content-Type", self.content_type);
        reply.object(held, 0..held.payload().len())
    }

    fn one(&self, held: &Arc<HeldObject>, range: Range<usize>) -> CcdbReply {
        let mut reply = self.begin(206);
        let (first, last, size) = (range.start, range.end - 1, held.payload().len());
        reply.header("Content-Range", format_args!("bytes {first}-{last}/{size}"));
        reply.header("Content-Disposition", &self.disposition);
        reply.header("Content-Type", self.content_type);
        reply.object(held, range)
    }

    fn several(&self, held: &Arc<HeldObject>, ranges: Vec<Range<usize>>) -> CcdbReply {
        let (content_type, size) = (self.content_type, held.payload().len());
        let boundary = format!("THIS_STRING_SEPARATES_{}", uuid::Uuid::new_v4());
        let mut reply = self.begin(206);
        let multipart = format_args!("multipart/byteranges; boundary={boundary}");
        reply.header("Content-Type", multipart);
        let parts = ranges.into_iter().map(|range| {
            let (first, last) = (range.start, range.end - 1);
            let head = format!(
                "\r\n--{boundary}\r\nContent-Type: {content_type}\r\n\
                 Content-Range: bytes {first}-{last}/{size}\r\n\r\n"
            );
            (head, range)
        });
        reply.parts(held, parts.collect(), format!("\r\n--{boundary}--"))
    }

    fn nothing(&self, size: usize) -> CcdbReply {
        let mut reply = self.begin(416);
        reply.header("Content-Range", format_args!("bytes */{size}"));
        reply.empty()
    }
}

/// The allowed methods, for OPTIONS requests and for browsers' preflight requests.
fn options() -> CcdbReply {
    let mut reply = CcdbReply::new(200);
    reply.replace(
        "Access-Control-Allow-Headers",
        "range,accept,if-none-match,if-not-after,if-not-before,browse-limit,x-filter-fields",
    );
    reply.header("Access-Control-Max-Age", 600);
    reply.header("Allow", ALLOWED_METHODS);
    reply.header("Accept-Ranges", "bytes");
    reply.date();
    reply.empty()
}

fn not_modified(until: Option<Timestamp>) -> CcdbReply {
    let mut reply = CcdbReply::new(304);
    reply.header("Cache-Control", "no-cache");
    reply.date();
    if let Some(until) = until {
        reply.header("Cache-Valid-Until", until);
    }
    reply
}
