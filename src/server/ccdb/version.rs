//! The headers that describe a version in an answer.

use std::borrow::Cow;

use super::reply::CcdbReply;
use crate::interval::Timestamp;
use crate::object::ObjectInfo;
use crate::source::Details;

/// Header names that metadata must not use, in lower case. At real servers such metadata replace
/// the header of that name, so that a client gets a wrong ETag or length.
const RESERVED: &[&str] = &[
    "accept-ranges",
    "age",
    "allow",
    "cache-control",
    "cache-valid-until",
    "connection",
    "content-disposition",
    "content-encoding",
    "content-language",
    "content-length",
    "content-location",
    "content-md5",
    "content-range",
    "content-type",
    "created",
    "date",
    "etag",
    "expires",
    "initialvaliditylimit",
    "keep-alive",
    "last-modified",
    "location",
    "pragma",
    "proxy-authenticate",
    "retry-after",
    "set-cookie",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "valid-from",
    "valid-until",
    "vary",
    "warning",
    "www-authenticate",
];

/// Whether metadata of this name can be sent as a header.
fn is_header(key: &str) -> bool {
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    let lower = key.to_ascii_lowercase();
    !key.is_empty()
        && key.bytes().all(is_token)
        && RESERVED.binary_search(&lower.as_str()).is_err()
        && !lower.starts_with("access-control-")
}

/// Adds the headers of a version, in the order of real servers.
pub(super) fn describe(
    reply: &mut CcdbReply,
    version: &ObjectInfo,
    details: &Details,
    until: Option<Timestamp>,
) {
    reply.date();
    reply.header("Valid-Until", version.validity.until());
    reply.header("Valid-From", version.validity.from());
    if let Some(initial) = details.initial_until.filter(|at| *at != version.validity.until()) {
        reply.header("InitialValidityLimit", initial);
    }
    reply.header("Created", version.created);
    reply.header("ETag", format_args!("\"{}\"", version.id));
    reply.http_date("Last-Modified", details.last_modified.unwrap_or(version.created));
    if let Some(until) = until {
        reply.header("Cache-Valid-Until", until);
    }
    for (key, value) in version.metadata.iter().filter(|(key, _)| is_header(key)) {
        reply.header(key, value);
    }
}

/// The address of the body, in the form of file-backed servers; it is sufficient to find the
/// version.
pub(super) fn address(version: &ObjectInfo) -> String {
    format!("/{}/{}/{}", version.path, version.validity.from(), version.id)
}

/// The name of the uploaded file, or if it has none the id, as at real servers.
pub(super) fn file_name<'a>(version: &ObjectInfo, details: &'a Details) -> Cow<'a, str> {
    let told = details.file_name.as_deref().filter(|name| !name.trim().is_empty());
    told.map_or_else(|| version.id.to_string().into(), Cow::Borrowed)
}

/// The value of `Content-Disposition` for a file of this name. Quotes and backslashes in the name are
/// escaped, as in each quoted text of a header; real servers send them as they are.
pub(super) fn disposition(file_name: &str) -> String {
    let name = file_name.replace('\\', "\\\\").replace('"', "\\\"");
    format!("inline;filename=\"{name}\"")
}

/// The media type given at upload, or that of arbitrary bytes.
pub(super) fn content_type(details: &Details) -> &str {
    details.content_type.as_deref().unwrap_or("application/octet-stream")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_become_headers_only_where_they_take_the_place_of_none() {
        assert!(RESERVED.is_sorted());
        for key in ["RunNumber", "partName", "quality", "a.b_c"] {
            assert!(is_header(key), "{key}");
        }
        for key in ["", "ETag", "etag", "Valid-From", "Content-Length", "a b", "a:", "é", "a\r\nb"]
        {
            assert!(!is_header(key), "{key}");
        }
    }
}
