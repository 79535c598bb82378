//! The head of a request, as far as it matters here.

use crate::object::ObjectId;

/// The longest head that is read: Tomcat, which real servers stand on, is set to as much.
pub(super) const MAX_HEAD_BYTES: usize = 100 << 10;
const MAX_HEADERS: usize = 128;

/// What is done with the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Method {
    Get,
    Head,
    /// One that changes things: known, and refused.
    Change,
    Unknown,
}

/// A request's head.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) method: Method,
    /// Path and query as sent, without scheme and host.
    pub(super) target: String,
    /// The versions that the client has, from every line and every list.
    pub(super) if_none_match: Vec<ObjectId>,
    pub(super) if_not_after: Option<i64>,
    pub(super) if_not_before: Option<i64>,
    pub(super) range: Option<String>,
    pub(super) if_range: Option<String>,
    pub(super) accept: Option<String>,
    pub(super) browse_limit: Option<usize>,
    pub(super) filter_fields: Option<String>,
    /// The connection can be used for another request.
    pub(super) keep_alive: bool,
}

/// What stands at the beginning of the bytes that came.
#[derive(Debug)]
pub(super) enum Head {
    /// A request, and how many bytes its head takes.
    Whole(Box<Request>, usize),
    Partial,
    /// No HTTP, or too much of it.
    Malformed,
}

pub(super) fn parse(bytes: &[u8]) -> Head {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut parsed = httparse::Request::new(&mut headers);
    let length = match parsed.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) if bytes.len() < MAX_HEAD_BYTES => return Head::Partial,
        Ok(httparse::Status::Partial) | Err(_) => return Head::Malformed,
    };
    let (Some(method), Some(target), Some(minor)) = (parsed.method, parsed.path, parsed.version)
    else {
        return Head::Malformed;
    };
    let mut request = Request {
        method: match method {
            "GET" => Method::Get,
            "HEAD" => Method::Head,
            "POST" | "PUT" | "DELETE" | "PATCH" | "OPTIONS" => Method::Change,
            _ => Method::Unknown,
        },
        target: without_origin(target).to_owned(),
        if_none_match: Vec::new(),
        if_not_after: None,
        if_not_before: None,
        range: None,
        if_range: None,
        accept: None,
        browse_limit: None,
        filter_fields: None,
        keep_alive: minor == 1,
    };
    for header in parsed.headers.iter() {
        request.take(header.name, &String::from_utf8_lossy(header.value));
    }
    Head::Whole(Box::new(request), length)
}

impl Request {
    fn take(&mut self, name: &str, value: &str) {
        let is = |other: &str| name.eq_ignore_ascii_case(other);
        let value = value.trim();
        // A limit of 0 or less, or one that is no number, is none.
        let limit = || value.parse().ok().filter(|limit: &i64| *limit > 0);
        if is("if-none-match") {
            self.if_none_match.extend(ids(value));
        } else if is("if-not-after") {
            self.if_not_after = self.if_not_after.or_else(limit);
        } else if is("if-not-before") {
            self.if_not_before = self.if_not_before.or_else(limit);
        } else if is("range") {
            self.range = Some(value.to_owned());
        } else if is("if-range") {
            self.if_range = Some(value.to_owned());
        } else if is("accept") {
            self.accept = Some(value.to_owned());
        } else if is("browse-limit") {
            self.browse_limit = value.parse().ok().filter(|limit| *limit > 0);
        } else if is("x-filter-fields") {
            self.filter_fields = Some(value.to_owned());
        } else if is("connection") {
            let has = |word: &str| value.split(',').any(|w| w.trim().eq_ignore_ascii_case(word));
            self.keep_alive = (self.keep_alive || has("keep-alive")) && !has("close");
        } else if is("transfer-encoding") || (is("content-length") && value != "0") {
            // A body follows, which nobody reads: what comes after it is no request.
            self.keep_alive = false;
        }
    }
}

/// The UUIDs in a list of ETags; what is none (AliceO2 sends a timestamp in a second line) is
/// passed over. A bare one and one in other quotes than `"` are told apart as real servers do.
fn ids(list: &str) -> impl Iterator<Item = ObjectId> {
    list.split(',').filter_map(|tag| id_of_tag(tag.trim()))
}

/// The UUID of an ETag: `"U"`, `U` or `W/"U"`.
pub(super) fn id_of_tag(tag: &str) -> Option<ObjectId> {
    let tag = tag.strip_prefix("W/").unwrap_or(tag);
    ObjectId::parse(tag.strip_prefix('"').and_then(|t| t.strip_suffix('"')).unwrap_or(tag))
}

/// `http://host/path` is what proxies send.
fn without_origin(target: &str) -> &str {
    match target.split_once("://") {
        Some((scheme, rest)) if !scheme.contains('/') => {
            rest.find('/').map_or("/", |slash| &rest[slash..])
        }
        _ => target,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "4d201140-e716-11f1-8b62-7f0000010203";

    fn request(head: &str) -> Request {
        let bytes = format!("{head}\r\n\r\n").replace('\n', "\r\n").replace("\r\r", "\r");
        match parse(bytes.as_bytes()) {
            Head::Whole(request, length) if length == bytes.len() => *request,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_line_of_if_none_match_counts_and_what_is_no_uuid_does_not() {
        let request = request(&format!(
            "GET /A/1 HTTP/1.1\nIf-None-Match: \"{ID}\"\nIf-None-Match: 1500\nif-none-match: *, W/\"{ID}\", '{ID}'"
        ));
        assert_eq!(request.if_none_match.len(), 2);
    }

    #[test]
    fn limits_are_positive_numbers() {
        let request =
            request("GET /A/1 HTTP/1.1\nIf-Not-After: 0\nIf-Not-Before: x\nBrowse-Limit: -1");
        assert_eq!((request.if_not_after, request.if_not_before), (None, None));
        assert_eq!(request.browse_limit, None);
    }

    #[test]
    fn a_connection_is_kept_only_where_the_next_request_can_be_found() {
        assert!(request("GET / HTTP/1.1").keep_alive);
        assert!(!request("GET / HTTP/1.0").keep_alive);
        assert!(request("GET / HTTP/1.0\nConnection: Keep-Alive").keep_alive);
        for head in ["Connection: foo, close", "Content-Length: 5", "Transfer-Encoding: chunked"] {
            assert!(!request(&format!("POST / HTTP/1.1\n{head}")).keep_alive, "{head}");
        }
    }

    #[test]
    fn the_target_is_a_path_whatever_stands_before_it() {
        assert_eq!(request("GET http://a:1/A/1?x HTTP/1.1").target, "/A/1?x");
        assert_eq!(request("GET http://a HTTP/1.1").target, "/");
        assert_eq!(request("GET /A/x=http://b HTTP/1.1").target, "/A/x=http://b");
    }

    #[test]
    fn what_is_no_http_is_malformed_and_never_waited_for_without_end() {
        assert!(matches!(parse(b"GET / HTTP/1.1\r\n"), Head::Partial));
        assert!(matches!(parse(b"\x16\x03\x01\x02\x00"), Head::Malformed));
        let endless = [b"GET / HTTP/1.1\r\nA: ".to_vec(), vec![b'a'; MAX_HEAD_BYTES]].concat();
        assert!(matches!(parse(&endless), Head::Malformed));
    }

    proptest::proptest! {
        #[test]
        fn whatever_comes_is_parsed_or_refused(
            bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300),
            text in "GET [ -~]{0,80} HTTP/1\\.[01]\r\n([A-Za-z-]{1,20}: [ -~]{0,40}\r\n){0,6}\r\n",
        ) {
            parse(&bytes);
            parse(text.as_bytes());
        }
    }
}
