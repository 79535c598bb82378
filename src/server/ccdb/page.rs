//! Answers without an object: pages in the style of real servers.

use super::reply::CcdbReply;
use crate::cache::CacheError;
use crate::error::{Coded as _, ErrorKind};

const USAGE: &str = "Usage of /*:
  GET, HEAD:
    path / time [ / key = value ]* - the version that holds at that time (ms)
    path / from / UUID - the bytes of that version

Usage of /download/*:
  GET, HEAD:
    UUID - the bytes of that version

Usage of /browse/* or /latest/*:
  GET, HEAD:
    path [ / time ] [ / key = value ]*
    The Accept header chooses the format: text/plain, text/html, text/xml, application/json
    ?report=true: folders in JSON have counts and sizes

Usage of /monitor/*:
  GET, HEAD:
    [ group [ / node [ / parameter ] ] ] - counters of this service, as JSON

A path has 1 to 10 elements of A-Z a-z 0-9 . _ -, none of them a number.

With --ccdb-writable also, as at the source:
  POST path / from [ / until ] [ / UUID ] [ / key = value ]* - the first part of a form
  PUT path / time [ / until ] [ / UUID ] ? key = value & ... - other metadata, another end
  DELETE path / time [ / UUID ]
  GET /truncate/path [ / time [ / UUID ] ] [ / key = value ]* - Browse-Limit: the newest only
";

/// A page with a status and a message.
pub(super) fn status(status: u16, message: &str) -> CcdbReply {
    let title = match status {
        400 => "Bad Request",
        204 => "No Content",
        304 => "Not Modified",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        409 => "Conflict",
        414 => "URI Too Long",
        416 => "Range Not Satisfiable",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        _ => "Internal Server Error",
    };
    let message = message.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let mut reply = CcdbReply::new(status);
    reply.header("Cache-Control", "no-cache");
    if status == 503 {
        reply.header("Retry-After", 1);
    }
    if matches!(status, 204 | 304) {
        reply.date();
        return reply;
    }
    reply.header("Content-Language", "en");
    reply.date();
    reply.last = matches!(status, 400 | 500 | 501);
    let page = format!(
        "<!doctype html><html lang=\"en\"><head><title>HTTP Status {status} – {title}</title></head>\
         <body><h1>HTTP Status {status} – {title}</h1><p><b>Message</b> {message}</p></body></html>"
    );
    reply.text("text/html;charset=utf-8", page.into_bytes())
}

/// No object is valid at that time, or there is no such version.
pub(super) fn not_found() -> CcdbReply {
    status(404, "No matching objects found")
}

/// Redirect to the browse page.
pub(super) fn to_browse() -> CcdbReply {
    let mut reply = CcdbReply::new(303);
    reply.header("Cache-Control", "no-cache");
    reply.header("Location", "/browse/");
    reply.date();
    reply.empty()
}

/// The usage page. Real servers send it with status 200, which clients take for an object; this
/// service does not.
pub(super) fn usage() -> CcdbReply {
    let mut reply = CcdbReply::new(400);
    reply.header("Cache-Control", "no-cache");
    reply.date();
    reply.text("text/plain;charset=UTF-8", USAGE.as_bytes().to_vec())
}

/// A page for an error of the cache.
pub(super) fn error(error: &CacheError) -> CcdbReply {
    let code = match error.kind() {
        ErrorKind::InvalidArgument => 400,
        ErrorKind::NotFound => 404,
        ErrorKind::AlreadyExists => 409,
        ErrorKind::Unavailable | ErrorKind::DeadlineExceeded => 503,
        ErrorKind::ResourceExhausted
        | ErrorKind::FailedPrecondition
        | ErrorKind::Unauthenticated
        | ErrorKind::PermissionDenied
        | ErrorKind::Internal => 500,
    };
    let message = error.message();
    tracing::warn!(status = code, error = message, "CCDB request");
    status(code, &message)
}
