//! From a request to an answer.

use std::sync::Arc;
use std::time::Duration;

use super::address::{Nonsense, Wanted};
use super::range::{Part, part};
use super::reply::Reply;
use super::request::{Method, Request, id_of_tag};
use super::{Answering, page, version};
use crate::cache::{Cache, CacheError};
use crate::interval::Timestamp;
use crate::object::{CreationLimits, ObjectId, ObjectInfo, ObjectPath, Query};

/// How long a client is let wait for the source and for memory.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// The CCDB side of a cache.
#[derive(Debug, Clone)]
pub(in crate::server) struct Front {
    pub(super) cache: Cache,
    pub(super) answering: Answering,
}

/// By which address a body was asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    /// A time.
    Time,
    /// Path, from and UUID.
    Path,
    /// The UUID alone.
    Id,
}

impl Front {
    pub(in crate::server) fn new(cache: Cache, answering: Answering) -> Self {
        Self { cache, answering }
    }

    pub(super) async fn answer(&self, request: &Request) -> Reply {
        let began = std::time::Instant::now();
        let reply = match self.try_answer(request).await {
            Ok(reply) => reply,
            Err(error) => page::error(&error),
        };
        let counters = self.cache.counters();
        counters.ccdb_requests.add(1);
        counters.timings.ccdb_request.observe(began.elapsed());
        if reply.status >= 400 && reply.status != 404 {
            counters.ccdb_errors.add(1);
        }
        if request.method == Method::Get {
            counters.ccdb_sent_bytes.add(reply.object_bytes());
        }
        reply
    }

    async fn try_answer(&self, request: &Request) -> Result<Reply, CacheError> {
        match request.method {
            Method::Get | Method::Head => {}
            Method::Change => {
                return Ok(page::status(405, "this service only reads: change the source"));
            }
            Method::Unknown => return Ok(page::status(501, "no such method here")),
        }
        let (path, query) = request.target.split_once('?').unwrap_or((&request.target, ""));
        let (first, rest) = match path.trim_start_matches('/').split_once('/') {
            Some((first, rest)) => (first, rest),
            None => (path.trim_start_matches('/'), ""),
        };
        match first {
            "browse" | "latest" => self.browse(request, first == "latest", rest, query).await,
            "download" => self.download(request, rest).await,
            // With a real server a GET of this deletes.
            "truncate" => Ok(page::status(403, "this service only reads: change the source")),
            _ => match Wanted::parse(path) {
                Err(Nonsense::Encoding) => Ok(page::status(400, "the address cannot be decoded")),
                Err(Nonsense::Grammar) => Ok(page::usage()),
                Ok(wanted) => self.look_up(request, wanted).await,
            },
        }
    }

    async fn look_up(&self, request: &Request, wanted: Wanted) -> Result<Reply, CacheError> {
        let (Some(at), false) = (wanted.at, wanted.path.is_empty()) else {
            return Ok(page::usage());
        };
        // No version stands under what is no path of ours.
        let Ok(path) = ObjectPath::new(&wanted.path) else { return Ok(page::not_found()) };
        let limits = limits(request);
        let query = Query { path, metadata: wanted.metadata, limits };
        if let Some(id) = wanted.id {
            let found = self.cache.version_of(&query.path, at, id, PATIENCE).await?;
            return match found.filter(|version| query.matches(version)) {
                Some(version) => self.body(request, &version, By::Path, None).await,
                None => Ok(page::not_found()),
            };
        }
        let Some(effective) = self.cache.version_at(&query, at, PATIENCE).await? else {
            return Ok(page::not_found());
        };
        let (version, until) = (effective.version, effective.span.until());
        if request.if_none_match.contains(&version.id) {
            return Ok(not_modified(Some(until)));
        }
        match self.answering {
            Answering::Body => self.body(request, &version, By::Time, Some(until)).await,
            Answering::Redirect => {
                let mut reply = Reply::new(303);
                reply.header("Cache-Control", "no-cache");
                version::describe(&mut reply, &version, Some(until));
                reply.header("Location", version::address(&version));
                Ok(reply.empty())
            }
        }
    }

    async fn download(&self, request: &Request, rest: &str) -> Result<Reply, CacheError> {
        let Some(id) = ObjectId::parse(rest.trim_end_matches('/')) else {
            return Ok(page::status(400, "expected /download/UUID"));
        };
        match self.cache.version_known(id) {
            Some(version) => self.body(request, &version, By::Id, None).await,
            None => Ok(page::not_found()),
        }
    }

    /// The bytes of a version, or the part of them that is asked for.
    async fn body(
        &self,
        request: &Request,
        version: &Arc<ObjectInfo>,
        by: By,
        until: Option<Timestamp>,
    ) -> Result<Reply, CacheError> {
        if request.if_none_match.contains(&version.id) {
            return Ok(not_modified(until));
        }
        let begin = |status: u16| {
            let mut reply = Reply::new(status);
            if by != By::Id {
                reply.header("Cache-Control", "no-cache");
            }
            if by == By::Time {
                reply.header("Content-Location", format_args!("/download/{}", version.id));
            }
            version::describe(&mut reply, version, until);
            reply
        };
        let name = format!("inline;filename=\"{}\"", version::file_name(&version.path));
        // A HEAD need not load what is known without.
        if let (Method::Head, Some(size), Some(md5)) =
            (request.method, version.size_bytes, version.md5)
        {
            let mut reply = begin(200);
            reply.header("Accept-Ranges", "bytes");
            reply.header("Content-Disposition", name);
            reply.header("Content-MD5", md5);
            reply.header("Content-Type", version::CONTENT_TYPE);
            reply.header("Content-Length", size);
            return Ok(reply);
        }
        let held = self.cache.hold(version, PATIENCE).await?;
        let size = held.payload().len();
        let is_same = |tag: &str| id_of_tag(tag) == Some(version.id);
        let range = request.range.as_deref().filter(|_| request.method == Method::Get);
        let range = range.filter(|_| request.if_range.as_deref().is_none_or(is_same));
        match part(range, size) {
            Part::Whole => {
                let md5 = self.cache.md5_of(version, &held).await;
                let mut reply = begin(200);
                reply.header("Accept-Ranges", "bytes");
                reply.header("Content-Disposition", name);
                if let Some(md5) = md5 {
                    reply.header("Content-MD5", md5);
                }
                reply.header("Content-Type", version::CONTENT_TYPE);
                Ok(reply.object(held, 0..size))
            }
            Part::One(range) => {
                let mut reply = begin(206);
                let (first, last) = (range.start, range.end - 1);
                reply.header("Content-Range", format_args!("bytes {first}-{last}/{size}"));
                reply.header("Content-Disposition", name);
                reply.header("Content-Type", version::CONTENT_TYPE);
                Ok(reply.object(held, range))
            }
            Part::Nothing => {
                let mut reply = begin(416);
                reply.header("Content-Range", format_args!("bytes */{size}"));
                Ok(reply.empty())
            }
        }
    }
}

/// The limits on creation times that a request sets.
pub(super) fn limits(request: &Request) -> CreationLimits {
    CreationLimits {
        not_before: request.if_not_before.map(Timestamp::from_millis),
        not_after: request.if_not_after.map(Timestamp::from_millis),
    }
}

fn not_modified(until: Option<Timestamp>) -> Reply {
    let mut reply = Reply::new(304);
    reply.header("Cache-Control", "no-cache");
    reply.date();
    if let Some(until) = until {
        reply.header("Cache-Valid-Until", until);
    }
    reply
}
