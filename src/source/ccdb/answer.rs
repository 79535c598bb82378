//! Reads a version from the headers of an answer. No header is trusted alone.
//!
//! The server sends a version's metadata as headers, and metadata named like a protocol header
//! *replace* it: `ETag: foo`, `Valid-From: 7`. So the ETag must be a UUID, and equal to the one in
//! the address of the body (`Location`, else `Content-Location`), which metadata cannot change. If
//! that address also contains the `from` (file-backed servers), `Valid-From` must equal it.

use reqwest::Url;
use reqwest::header::HeaderMap;

use super::location::{file_name_of, from_in_location, id_in_location};
use super::transport::latin1;
use crate::interval::{Timestamp, ValidityInterval};
use crate::object::{Md5Sum, ObjectId, ObjectInfo, ObjectPath, VersionMetadata};
use crate::source::Details;

/// Headers of HTTP, of CCDB servers (the server in memory sends some that others do not) and of
/// caches in between. They are not metadata.
const PROTOCOL_HEADERS: &[&str] = &[
    "accept-ranges",
    "age",
    "allow",
    "alt-svc",
    "cache-control",
    "cache-status",
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
    "file-size",
    "initialvaliditylimit",
    "keep-alive",
    "last-modified",
    "link",
    "location",
    "originalfilename",
    "pragma",
    "proxy-authenticate",
    "proxy-connection",
    "referrer-policy",
    "retry-after",
    "server",
    "server-timing",
    "set-cookie",
    "strict-transport-security",
    "trailer",
    "transfer-encoding",
    "updatedfrom",
    "upgrade",
    "uploadedfrom",
    "valid-from",
    "valid-until",
    "vary",
    "via",
    "warning",
    "www-authenticate",
    "x-cache",
    "x-cache-hits",
    "x-cache-lookup",
    "x-content-type-options",
    "x-frame-options",
    "x-powered-by",
    "x-varnish",
];

/// Headers that real servers send themselves, besides `access-control-*`.
const EXPECTED_HEADERS: &[&str] = &[
    "accept-ranges",
    "cache-control",
    "connection",
    "content-disposition",
    "content-length",
    "content-location",
    "content-md5",
    "content-type",
    "created",
    "date",
    "etag",
    "file-size",
    "initialvaliditylimit",
    "keep-alive",
    "last-modified",
    "location",
    "originalfilename",
    "transfer-encoding",
    "updatedfrom",
    "uploadedfrom",
    "valid-from",
    "valid-until",
];

/// Whether some protocol headers of an answer may be metadata. `Cache-Valid-Until` is one of them:
/// older servers send it only for metadata of that name.
fn may_have_hidden_metadata(headers: &HeaderMap) -> bool {
    let mut names = headers.keys().map(|name| name.as_str());
    let is_no_sum = |text: String| Md5Sum::parse(text.trim()).is_none();
    single(headers, "content-md5").is_some_and(is_no_sum)
        || names.any(|name| {
            PROTOCOL_HEADERS.binary_search(&name).is_ok()
                && EXPECTED_HEADERS.binary_search(&name).is_err()
        })
}

/// Whether a header (in lower case) is not metadata.
pub(super) fn is_protocol_header(name: &str) -> bool {
    PROTOCOL_HEADERS.binary_search(&name).is_ok() || name.starts_with("access-control-")
}

/// Answer to a look-up by time.
#[derive(Debug)]
pub(super) struct Named {
    pub(super) version: ObjectInfo,
    /// End of the time for which the server guarantees the answer (`Cache-Valid-Until`).
    pub(super) cache_valid_until: Option<Timestamp>,
    /// Locations of the body, as written, in the server's order.
    pub(super) locations: Vec<String>,
    /// Whether protocol headers of the answer may be metadata.
    pub(super) may_hide_metadata: bool,
}

/// The value of a header; `None` if it is missing or has several different values.
pub(super) fn single(headers: &HeaderMap, name: &str) -> Option<String> {
    let mut values = headers.get_all(name).iter().map(|value| latin1(Some(value.as_bytes())));
    let first = values.next()?;
    values.all(|other| other == first).then_some(first)
}

/// The ETag without `W/` and quotes, if it is a UUID.
pub(super) fn etag_id(headers: &HeaderMap) -> Option<ObjectId> {
    let value = single(headers, "etag")?;
    let text = value.trim();
    let text = text.strip_prefix("W/").unwrap_or(text);
    ObjectId::parse(text.strip_prefix('"').and_then(|t| t.strip_suffix('"')).unwrap_or(text))
}

/// A time in milliseconds from a header.
pub(super) fn millis(headers: &HeaderMap, name: &str) -> Option<Timestamp> {
    single(headers, name)?.trim().parse().ok().map(Timestamp::from_millis)
}

/// `Location` and all `Content-Location`, as written, in order.
pub(super) fn locations(headers: &HeaderMap) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for name in ["location", "content-location"] {
        for value in headers.get_all(name) {
            let text = latin1(Some(value.as_bytes()));
            if !text.is_empty() && !found.contains(&text) {
                found.push(text);
            }
        }
    }
    found
}

/// Whether all headers that describe a version are present, with any values. If such an answer is
/// inconsistent, metadata have replaced some of them.
pub(super) fn describes_a_version(headers: &HeaderMap) -> bool {
    ["etag", "valid-from", "valid-until", "created"].iter().all(|name| headers.contains_key(*name))
}

/// Reads the version of `path` that an answer for `at` names.
///
/// # Errors
/// The contradiction in words.
pub(super) fn read_version(
    headers: &HeaderMap,
    is_redirect: bool,
    path: &ObjectPath,
    at: Timestamp,
    url: &Url,
) -> Result<Named, String> {
    let shown = |name: &str| format!("{:?}", single(headers, name).unwrap_or_default());
    if !headers.contains_key("etag") || !headers.contains_key("valid-from") {
        return Err("no ETag or no Valid-From, as in a page of usage".into());
    }
    let id = etag_id(headers)
        .ok_or_else(|| format!("expected a UUID as ETag, got {}", shown("etag")))?;
    let time = |name: &'static str| {
        millis(headers, name)
            .ok_or_else(|| format!("expected milliseconds as {name}, got {}", shown(name)))
    };
    let (from, until, created) = (time("valid-from")?, time("valid-until")?, time("created")?);
    let validity = ValidityInterval::new(from, until).map_err(|error| error.to_string())?;
    if !validity.contains(at) {
        return Err(format!("{validity} of version {id} does not hold {at}"));
    }
    if is_redirect && !headers.contains_key("location") {
        return Err("a redirect without a Location".into());
    }
    let locations = locations(headers);
    for location in own_locations(&locations, is_redirect) {
        check_location(location, path, id, from).map_err(|reason| format!("{reason} ({url})"))?;
    }
    let version = ObjectInfo {
        path: path.clone(),
        id,
        validity,
        created,
        // On a redirect Content-Length is the length of the empty body.
        size_bytes: single(headers, "content-length")
            .filter(|_| !is_redirect)
            .and_then(|text| text.trim().parse().ok()),
        md5: single(headers, "content-md5").and_then(|text| Md5Sum::parse(text.trim())),
        metadata: metadata_of(headers),
    };
    Ok(Named {
        version,
        cache_valid_until: millis(headers, "cache-valid-until"),
        locations,
        may_hide_metadata: may_have_hidden_metadata(headers),
    })
}

/// The locations that tell which version an answer is about. The Location of a redirect comes from
/// the server's own storage. A Content-Location may be metadata: together with a Location it is only
/// a further place to look for the body.
fn own_locations(locations: &[String], is_redirect: bool) -> &[String] {
    if is_redirect { &locations[..locations.len().min(1)] } else { locations }
}

/// Checks that a location is that of a version's body.
fn check_location(
    location: &str,
    path: &ObjectPath,
    id: ObjectId,
    from: Timestamp,
) -> Result<(), String> {
    if id_in_location(location) != Some(id) {
        return Err(format!("ETag names {id}, but the body is at {location:?}"));
    }
    match from_in_location(location, path) {
        Some(told) if told != from => {
            Err(format!("Valid-From is {from}, but the body is at {location:?}"))
        }
        _ => Ok(()),
    }
}

/// The headers that are metadata of a version; values of one name are joined with commas.
fn metadata_of(headers: &HeaderMap) -> VersionMetadata {
    let names = headers.keys().map(|name| name.as_str()).filter(|name| !is_protocol_header(name));
    let values = |name: &str| -> Vec<String> {
        headers.get_all(name).iter().map(|v| latin1(Some(v.as_bytes()))).collect()
    };
    names.map(|name| (name, values(name).join(", "))).collect()
}

/// Facts about the upload of a version, from the headers before its bytes.
pub(super) fn read_details(headers: &HeaderMap) -> Details {
    let disposition = single(headers, "content-disposition");
    let original = single(headers, "originalfilename");
    let changed = single(headers, "last-modified");
    let changed = changed.and_then(|text| httpdate::parse_http_date(&text).ok());
    let since = changed.and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
    Details {
        file_name: disposition.as_deref().and_then(file_name_of).map(unescaped).or(original),
        content_type: single(headers, "content-type"),
        last_modified: since
            .and_then(|since| i64::try_from(since.as_millis()).ok())
            .map(Timestamp::from_millis),
        initial_until: millis(headers, "initialvaliditylimit"),
        uploaded_from: single(headers, "uploadedfrom"),
    }
}

/// A text between quotes without its escapes.
fn unescaped(text: &str) -> String {
    text.replace("\\\"", "\"").replace("\\\\", "\\")
}

#[cfg(test)]
mod tests {
    use super::*;
    use reqwest::header::{HeaderName, HeaderValue};

    const ID: &str = "4d201140-e716-11f1-8b62-7f0000010203";

    fn headers(changes: &[(&str, &str)]) -> HeaderMap {
        let location = format!("/Test/Basic/1000/{ID}");
        let tag = format!("\"{ID}\"");
        let mut map = HeaderMap::new();
        for (name, value) in [
            ("valid-until", "2000"),
            ("valid-from", "1000"),
            ("created", "1795421839444"),
            ("etag", &tag),
            ("quality", "good"),
            ("runnumber", "42"),
            ("location", &location),
            ("content-length", "0"),
        ]
        .iter()
        .chain(changes)
        {
            let name: HeaderName = name.parse().unwrap();
            match *value {
                "" => drop(map.remove(&name)),
                value => drop(map.insert(name, HeaderValue::from_str(value).unwrap())),
            }
        }
        map
    }

    fn read(map: &HeaderMap) -> Result<Named, String> {
        let path = ObjectPath::new("Test/Basic").unwrap();
        let url = Url::parse("http://ccdb:8080/Test/Basic/1500").unwrap();
        read_version(map, map.contains_key("location"), &path, Timestamp::from_millis(1500), &url)
    }

    #[test]
    fn the_list_of_protocol_headers_is_sorted() {
        assert!(PROTOCOL_HEADERS.is_sorted() && EXPECTED_HEADERS.is_sorted());
    }

    #[test]
    fn a_recorded_answer_is_read() {
        let named = read(&headers(&[("cache-valid-until", "1900")])).unwrap();
        assert_eq!(named.version.id.to_string(), ID);
        assert_eq!(named.version.validity.to_string(), "[1000, 2000)");
        assert_eq!(named.version.created.as_millis(), 1_795_421_839_444);
        let metadata: Vec<_> = named.version.metadata.iter().collect();
        assert_eq!(metadata, [("quality", "good"), ("runnumber", "42")]);
        assert_eq!(named.cache_valid_until, Some(Timestamp::from_millis(1900)));
        assert_eq!(named.version.size_bytes, None);
    }

    #[test]
    fn metadata_that_imitate_headers_are_not_believed() {
        let other = "\"00000000-e716-11f1-8b62-7f0000010203\"";
        for change in [
            ("etag", "foo"),
            ("etag", other),
            ("etag", ""),
            ("valid-from", "7"),
            ("valid-from", "x"),
            ("valid-from", ""),
            ("valid-from", "3000"),
            ("valid-until", "1500"),
            ("valid-until", ""),
            ("created", "yesterday"),
            ("location", "/Test/Basic/1000/00000000-e716-11f1-8b62-7f0000010203"),
            ("location", "/Test/Basic/7/4d201140-e716-11f1-8b62-7f0000010203"),
            ("location", "/Test/Basic/1000/nothing"),
        ] {
            assert!(read(&headers(&[change])).is_err(), "{change:?}");
        }
    }

    #[test]
    fn a_location_on_the_grid_tells_the_id_even_without_its_slash() {
        let location = format!("alien:///alice/data/CCDB/Test/Rep/default{ID}");
        assert_eq!(id_in_location(&location).unwrap().to_string(), ID);
        assert!(read(&headers(&[("location", &location)])).is_ok());
    }

    #[test]
    fn only_an_address_below_the_path_tells_the_from() {
        let path = ObjectPath::new("Test/Basic").unwrap();
        let told = |location: &str| from_in_location(location, &path).map(Timestamp::as_millis);
        for location in ["/Test/Basic/1000/", "http://a/base/Test/Basic/1000/", "1000/"] {
            assert_eq!(told(&format!("{location}{ID}?x")), Some(1000), "{location}");
        }
        assert_eq!(told(&format!("alien:///alice/data/CCDB/Test/Basic/03/31287/{ID}")), None);
        assert_eq!(told(&format!("/Other/Basic/1000/{ID}")), None);
        assert_eq!(told(&format!("/download/{ID}")), None);
        assert_eq!(told("/Test/Basic/1000/x"), None);
    }

    #[test]
    fn two_etags_that_differ_are_none() {
        let mut map = headers(&[]);
        map.append("etag", HeaderValue::from_static("\"00000000-e716-11f1-8b62-7f0000010203\""));
        assert!(read(&map).is_err());
    }

    #[test]
    fn an_etag_is_read_in_every_form_that_servers_write() {
        for text in [ID.to_owned(), format!("\"{ID}\""), format!("W/\"{ID}\""), ID.to_uppercase()] {
            assert!(etag_id(&headers(&[("etag", &text)])).is_some(), "{text}");
        }
        for text in [format!("'{ID}'"), format!("{{{ID}}}"), "*".into()] {
            assert!(etag_id(&headers(&[("etag", &text)])).is_none(), "{text}");
        }
    }
}
