//! The relevant parts of the head of a request.

use std::borrow::Cow;

use hyper::HeaderMap;
use hyper::header::HeaderValue;
use hyper::http::request::Parts;

use crate::object::ObjectId;

/// Longest head: as configured for Tomcat at real servers.
pub(super) const MAX_HEAD_BYTES: usize = 100 << 10;
pub(super) const MAX_HEADERS: usize = 128;
/// Longest target. Every target is parsed, and some are kept, without authentication.
pub(super) const MAX_TARGET_BYTES: usize = 16 << 10;

/// The method of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Method {
    Get,
    Head,
    Options,
    Post,
    Put,
    Delete,
    Trace,
    Unknown,
}

/// A request's head.
#[derive(Debug)]
pub(super) struct CcdbRequest {
    pub(super) method: Method,
    /// The path as sent, still encoded.
    pub(super) path: String,
    /// The query: the text behind the question mark.
    pub(super) query: String,
    /// The ids of the versions that the client has, from every line and every list.
    pub(super) if_none_match: Vec<ObjectId>,
    pub(super) if_not_after: Option<i64>,
    pub(super) if_not_before: Option<i64>,
    pub(super) range: Option<String>,
    pub(super) if_range: Option<String>,
    pub(super) accept: Option<String>,
    pub(super) browse_limit: Option<usize>,
    pub(super) filter_fields: Option<String>,
    pub(super) content_type: Option<String>,
    /// The token of `Authorization: Bearer`.
    pub(super) bearer: Option<String>,
    pub(super) user_agent: Option<String>,
    /// Whether there is an `Origin` header, as browsers send it.
    pub(super) has_origin: bool,
}

impl CcdbRequest {
    pub(super) fn new(parts: &Parts) -> Self {
        let headers = &parts.headers;
        // A limit of 0 or less, or one that is not a number, is ignored.
        let limit = |name| {
            let mut all = texts(headers, name);
            all.find_map(|text| text.trim().parse().ok().filter(|limit: &i64| *limit > 0))
        };
        let last = |name| texts(headers, name).last().map(Cow::into_owned);
        Self {
            method: match parts.method.as_str() {
                "GET" => Method::Get,
                "HEAD" => Method::Head,
                "OPTIONS" => Method::Options,
                "POST" => Method::Post,
                "PUT" => Method::Put,
                "DELETE" => Method::Delete,
                "TRACE" => Method::Trace,
                _ => Method::Unknown,
            },
            path: parts.uri.path().to_owned(),
            query: parts.uri.query().unwrap_or_default().to_owned(),
            if_none_match: texts(headers, "if-none-match").flat_map(|text| ids(&text)).collect(),
            if_not_after: limit("if-not-after"),
            if_not_before: limit("if-not-before"),
            range: last("range"),
            if_range: last("if-range"),
            accept: last("accept"),
            browse_limit: limit("browse-limit").and_then(|limit| usize::try_from(limit).ok()),
            filter_fields: texts(headers, "x-filter-fields").next().map(Cow::into_owned),
            content_type: last("content-type"),
            bearer: last("authorization").and_then(|text| {
                let (scheme, token) = text.split_once(' ')?;
                scheme.eq_ignore_ascii_case("bearer").then(|| token.trim().to_owned())
            }),
            user_agent: last("user-agent"),
            has_origin: headers.contains_key("origin"),
        }
    }

    /// The value of a parameter of the query, decoded as in a form.
    pub(super) fn parameter(&self, name: &str) -> Option<String> {
        self.parameters().find(|(key, _)| key == name).map(|(_, value)| value)
    }

    /// The parameters of the query; undecodable ones are skipped.
    pub(super) fn parameters(&self) -> impl Iterator<Item = (String, String)> {
        self.query.split('&').filter(|pair| !pair.is_empty()).filter_map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            Some((super::address::form_decoded(key)?, super::address::form_decoded(value)?))
        })
    }
}

/// The values of all headers of a name, without the blanks around them.
fn texts<'a>(headers: &'a HeaderMap, name: &str) -> impl Iterator<Item = Cow<'a, str>> {
    headers.get_all(name).into_iter().map(HeaderValue::as_bytes).map(String::from_utf8_lossy)
}

/// The UUIDs in a list of ETags. Other values are skipped (AliceO2 sends a timestamp in a second
/// line). As at real servers a bare UUID counts, and one in quotes other than `"` does not.
fn ids(list: &str) -> Vec<ObjectId> {
    list.split(',').filter_map(|tag| id_of_tag(tag.trim())).collect()
}

/// The UUID of an ETag: `"U"`, `U` or `W/"U"`.
pub(super) fn id_of_tag(tag: &str) -> Option<ObjectId> {
    let tag = tag.strip_prefix("W/").unwrap_or(tag);
    ObjectId::parse(tag.strip_prefix('"').and_then(|t| t.strip_suffix('"')).unwrap_or(tag))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "4d201140-e716-11f1-8b62-7f0000010203";

    fn request(target: &str, headers: &[(&str, &str)]) -> CcdbRequest {
        let mut request = hyper::Request::builder().uri(target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        CcdbRequest::new(&request.body(()).unwrap().into_parts().0)
    }

    #[test]
    fn every_line_of_if_none_match_counts_and_what_is_no_uuid_does_not() {
        let all = format!("*, W/\"{ID}\", '{ID}'");
        let tag = format!("\"{ID}\"");
        let request = request(
            "/A/1",
            &[("If-None-Match", &tag), ("If-None-Match", "1500"), ("if-none-match", &all)],
        );
        assert_eq!(request.if_none_match.len(), 2);
    }

    #[test]
    fn limits_are_positive_numbers() {
        let headers = [("If-Not-After", "0"), ("If-Not-Before", "x"), ("Browse-Limit", "-1")];
        let request = request("/A/1", &headers);
        assert_eq!((request.if_not_after, request.if_not_before), (None, None));
        assert_eq!(request.browse_limit, None);
    }

    #[test]
    fn the_target_is_a_path_whatever_stands_before_it() {
        let of = |target: &str| request(target, &[]);
        assert_eq!(
            (of("http://a:1/A/1?x").path.as_str(), of("http://a:1/A/1?x").query.as_str()),
            ("/A/1", "x")
        );
        assert_eq!(of("http://a").path, "/");
        assert_eq!(of("/A/x=http://b").path, "/A/x=http://b");
    }

    #[test]
    fn parameters_are_decoded_as_in_a_form_and_tokens_found() {
        let request = request("/A/1?a=b+c%2F&report=TRUE&d", &[("Authorization", "bearer  t1")]);
        assert_eq!(request.parameter("a").as_deref(), Some("b c/"));
        assert_eq!(request.parameter("d").as_deref(), Some(""));
        assert_eq!(request.bearer.as_deref(), Some("t1"));
    }
}
