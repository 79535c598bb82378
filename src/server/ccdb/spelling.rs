//! The spelling of header names in answers.
//!
//! Names of headers have no case, but AliceO2's client looks for `ETag` and `Content-MD5` as CCDB
//! spells them, and metadata are headers whose names are the keys as uploaded. hyper writes names
//! in lower case, but for those of a head that it has read itself with the spelling preserved: it
//! then leaves the spelling in an extension, whose type is its own, and heeds it in an answer. So
//! a head with the names that are wanted is read once per set of names, and its extension is put
//! into every answer with these names.

use std::convert::Infallible;
use std::io::Cursor;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use futures::FutureExt as _;
use http_body_util::Empty;
use hyper::body::{Bytes, Incoming};
use hyper::http::Extensions;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;

/// Sets of names whose spelling is remembered.
const REMEMBERED: u64 = 4_096;

static SPELLINGS: LazyLock<moka::sync::Cache<Arc<str>, Extensions>> =
    LazyLock::new(|| moka::sync::Cache::new(REMEMBERED));

/// What makes hyper write these names as they are spelled. `names` has one name per line.
pub(super) fn of(names: &str) -> Extensions {
    if let Some(known) = SPELLINGS.get(names) {
        return known;
    }
    let extensions = read(names);
    SPELLINGS.insert(names.into(), extensions.clone());
    extensions
}

/// Has hyper read a head with these names.
fn read(names: &str) -> Extensions {
    let mut head = b"GET / HTTP/1.1\r\n".to_vec();
    for name in names.lines() {
        head.extend_from_slice(name.as_bytes());
        // A length of 0 is one, and no other header is wrong with this value.
        head.extend_from_slice(b": 0\r\n");
    }
    head.extend_from_slice(b"\r\n");
    let found = Mutex::new(Extensions::new());
    let service = service_fn(|request: Request<Incoming>| {
        *found.lock().unwrap_or_else(PoisonError::into_inner) = request.extensions().clone();
        async { Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new())) }
    });
    let io = TokioIo::new(tokio::io::join(Cursor::new(head), tokio::io::sink()));
    let connection = hyper::server::conn::http1::Builder::new()
        .preserve_header_case(true)
        .max_headers(super::request::MAX_HEADERS)
        .header_read_timeout(None)
        .serve_connection(io, service);
    // All of it is in memory: nothing is waited for.
    let _ = connection.now_or_never();
    found.into_inner().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spelling_is_read_without_waiting_and_remembered() {
        assert!(!read("ETag\nrunNumber\nContent-Length\nConnection\n").is_empty());
        assert!(!of("ETag\nrunNumber\n").is_empty());
        assert!(SPELLINGS.contains_key("ETag\nrunNumber\n"));
    }
}
