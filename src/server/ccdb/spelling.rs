//! The spelling of header names in answers.
//!
//! Header names are case-insensitive, but AliceO2's client looks for `ETag` and `Content-MD5` as
//! CCDB spells them, and metadata are headers whose names are the keys as uploaded. hyper writes
//! names in lower case, except for those of a head that it has read itself with the spelling
//! preserved: it then stores the spelling in an extension of a private type, and uses it in an
//! answer. A head with the needed names is therefore read once per set of names, and its extension
//! is added to every answer with these names.

use std::convert::Infallible;
use std::io::Cursor;
use std::sync::{Arc, LazyLock};

use futures::FutureExt as _;
use http_body_util::Empty;
use hyper::body::{Bytes, Incoming};
use hyper::http::Extensions;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;

use crate::bounded_cache::BoundedCache;
use crate::sync::Mutex;

/// Maximum cached sets of names.
const MAX_SPELLINGS: u64 = 4_096;

static SPELLINGS: LazyLock<BoundedCache<str, Extensions>> =
    LazyLock::new(|| BoundedCache::new(MAX_SPELLINGS));

/// Extensions that make hyper preserve the spelling of `names`, one name per line.
pub(super) fn of(names: &str) -> Extensions {
    if let Some(known) = SPELLINGS.get(names) {
        return Extensions::clone(&known);
    }
    let extensions = read(names);
    SPELLINGS.insert(names, Arc::new(extensions.clone()));
    extensions
}

/// Lets hyper parse a head with these names.
fn read(names: &str) -> Extensions {
    let mut head = b"GET / HTTP/1.1\r\n".to_vec();
    for name in names.lines() {
        head.extend_from_slice(name.as_bytes());
        // 0 is a valid length, and no other header rejects this value.
        head.extend_from_slice(b": 0\r\n");
    }
    head.extend_from_slice(b"\r\n");
    let found = Mutex::new(Extensions::new());
    let service = service_fn(|request: Request<Incoming>| {
        *found.lock() = request.extensions().clone();
        async { Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new())) }
    });
    let io = TokioIo::new(tokio::io::join(Cursor::new(head), tokio::io::sink()));
    let connection = hyper::server::conn::http1::Builder::new()
        .preserve_header_case(true)
        .max_headers(super::request::MAX_HEADERS)
        .header_read_timeout(None)
        .serve_connection(io, service);
    // All input is in memory: the future completes without waiting.
    let _ = connection.now_or_never();
    found.into_inner()
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
