//! `/browse` (every version) and `/latest` (of each path the one created last), as JSON or text.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use super::address::Wanted;
use super::answer::{Front, limits};
use super::listing::{Found, Pattern};
use super::reply::Reply;
use super::request::Request;
use super::{page, version};
use crate::cache::CacheError;
use crate::object::{ObjectInfo, ObjectPath};

/// Who asks for these (ALICE's quality control) gets the new names of two of them as well.
const QUALITY_CONTROL: [&str; 3] = ["path", "createTime", "lastModified"];

impl Front {
    pub(super) async fn browse(
        &self,
        request: &Request,
        only_latest: bool,
        path: &str,
        query: &str,
    ) -> Result<Reply, CacheError> {
        // Real servers never answer this with a page of usage.
        let wanted = Wanted::parse(path).unwrap_or_default();
        let asked = query.split('&').find_map(|pair| pair.strip_prefix("Accept="));
        let accept = asked.or(request.accept.as_deref()).unwrap_or("");
        let as_json = accept.contains("json");
        let mut fields: Option<Vec<&str>> = request
            .filter_fields
            .as_deref()
            .map(|fields| fields.split(',').map(str::trim).collect());
        if let Some(fields) = fields.as_mut().filter(|fields| **fields == QUALITY_CONTROL) {
            fields.extend(["Created", "Last-Modified"]);
        }
        if as_json
            && !only_latest
            && fields.as_deref() == Some(&["path"])
            && let Some(reply) = self.only_paths(request, &wanted).await?
        {
            return Ok(reply);
        }
        // Who limits the number looks for versions, and the folders cost the source a question.
        let with_subfolders = request.browse_limit.is_none();
        let mut found = self.find(&wanted, limits(request), with_subfolders).await?;
        if found.too_many {
            let message = "the source has too many versions of this path to list them";
            return Ok(page::status(501, message));
        }
        if only_latest {
            let mut latest: BTreeMap<ObjectPath, Arc<ObjectInfo>> = BTreeMap::new();
            for version in found.versions {
                match latest.get(&version.path) {
                    Some(known) if known.rank() > version.rank() => {}
                    _ => drop(latest.insert(version.path.clone(), version)),
                }
            }
            found.versions = latest.into_values().collect();
        }
        if let Some(limit) = request.browse_limit.filter(|limit| *limit < found.versions.len()) {
            let mut by_age: Vec<_> = found.versions.iter().map(|v| Reverse(v.rank())).collect();
            by_age.sort_unstable();
            let last = by_age[limit - 1];
            found.versions.retain(|version| Reverse(version.rank()) <= last);
        }
        let mut reply = Reply::new(200);
        reply.header("Cache-Control", "no-cache");
        reply.date();
        Ok(if as_json {
            let text = json_page(&found, fields.as_deref());
            reply.text("application/json;charset=ISO-8859-1", text.into_bytes())
        } else {
            let latin1 = |c: char| u8::try_from(c).unwrap_or(b'?');
            let text = text_page(&found).chars().map(latin1).collect();
            reply.text("text/plain;charset=ISO-8859-1", text)
        })
    }

    /// Which paths there are, one entry per version: what a service before this one asks for. The
    /// source tells that without a listing of each.
    async fn only_paths(
        &self,
        request: &Request,
        wanted: &Wanted,
    ) -> Result<Option<Reply>, CacheError> {
        let plain = wanted.at.is_none() && wanted.id.is_none() && wanted.metadata.is_empty();
        let pattern = Pattern::new(&wanted.path);
        let is_pattern = matches!(pattern, Pattern::Wild { .. });
        if !is_pattern || !plain || limits(request) != Default::default() {
            return Ok(None);
        }
        let mut entries = Vec::new();
        let mut left = request.browse_limit.unwrap_or(usize::MAX);
        for summary in self.paths_of(&pattern).await? {
            let count = usize::try_from(summary.versions).unwrap_or(usize::MAX).min(left);
            let entry = format!("{{\"path\":{}}}", json(summary.path.as_str()));
            entries.extend(std::iter::repeat_n(entry, count));
            left -= count;
        }
        let mut reply = Reply::new(200);
        reply.header("Cache-Control", "no-cache");
        reply.date();
        let text = format!("{{\"objects\":[\n{}]\n}}\n", entries.join(",\n"));
        Ok(Some(reply.text("application/json;charset=ISO-8859-1", text.into_bytes())))
    }
}

fn json_page(found: &Found, fields: Option<&[&str]>) -> String {
    let objects: Vec<String> =
        found.versions.iter().map(|version| entry(version, fields)).collect();
    let mut page = format!("{{\"objects\":[\n{}]\n", objects.join(",\n"));
    if let Some(folders) = &found.subfolders {
        let folders: Vec<String> = folders.iter().map(|folder| json(folder)).collect();
        let _ = write!(page, ",\"subfolders\":[\n{}]\n", folders.join(",\n"));
    }
    page.push_str("}\n");
    page
}

/// One version, old keys and new ones side by side as real servers write them.
fn entry(version: &ObjectInfo, fields: Option<&[&str]>) -> String {
    let id = version.id.to_string();
    let (from, until) = (version.validity.from(), version.validity.until());
    let name = version::file_name(&version.path);
    let disposition = format!("inline;filename=\"{name}\"");
    let mut all: Vec<(&str, Option<String>)> = vec![
        ("path", Some(json(version.path.as_str()))),
        ("createTime", Some(version.created.to_string())),
        ("lastModified", Some(version.created.to_string())),
        ("Created", Some(version.created.to_string())),
        ("Last-Modified", Some(version.created.to_string())),
        ("id", Some(json(&id))),
        ("validFrom", Some(from.to_string())),
        ("validUntil", Some(until.to_string())),
        ("initialValidity", Some(until.to_string())),
        ("MD5", version.md5.map(|md5| json(&md5.to_string()))),
        ("fileName", Some(json(name))),
        ("contentType", Some(json(version::CONTENT_TYPE))),
        ("size", version.size_bytes.map(|size| size.to_string())),
        ("ETag", Some(json(&format!("\"{id}\"")))),
        ("Valid-From", Some(from.to_string())),
        ("Valid-Until", Some(until.to_string())),
        ("InitialValidityLimit", Some(until.to_string())),
        ("Content-MD5", version.md5.map(|md5| json(&md5.to_string()))),
        ("Content-Disposition", Some(json(&disposition))),
        ("Content-Type", Some(json(version::CONTENT_TYPE))),
        ("Content-Length", version.size_bytes.map(|size| size.to_string())),
    ];
    const OWN: [&str; 2] = ["replicas", "metadata"];
    let known: Vec<&str> = all.iter().map(|(key, _)| *key).chain(OWN).collect();
    // Metadata take the place of nothing: what has the name of another key goes into a folder of
    // its own.
    let (apart, plain): (Vec<_>, Vec<_>) =
        version.metadata.iter().partition(|(key, _)| known.contains(&key.as_str()));
    all.extend(plain.into_iter().map(|(key, value)| (key.as_str(), Some(json(value)))));
    if !apart.is_empty() {
        let apart: Vec<String> =
            apart.iter().map(|(key, value)| format!("{}:{}", json(key), json(value))).collect();
        all.push(("metadata", Some(format!("{{{}}}", apart.join(",")))));
    }
    all.push(("replicas", Some(format!("[{}]", json(&version::address(version))))));
    let all: Vec<String> = all
        .iter()
        .filter(|(key, _)| fields.is_none_or(|fields| fields.contains(key)))
        .filter_map(|(key, value)| Some(format!("{}:{}", json(key), value.as_ref()?)))
        .collect();
    format!("{{{}}}", all.join(","))
}

/// A JSON string as real servers write it: slashes escaped, and all that is not ASCII.
fn json(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' | '/' => quoted.extend(['\\', c]),
            ' '..='~' => quoted.push(c),
            c => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    let _ = write!(quoted, "\\u{unit:04x}");
                }
            }
        }
    }
    quoted.push('"');
    quoted
}

fn text_page(found: &Found) -> String {
    let mut page = String::new();
    for version in &found.versions {
        let (from, until) = (version.validity.from(), version.validity.until());
        let size = version.size_bytes.map_or("unknown".to_owned(), |size| size.to_string());
        let md5 = version.md5.map_or("unknown".to_owned(), |md5| md5.to_string());
        let _ = write!(
            page,
            "ID: {}\nPath: {}\nValidity: {from} - {until}\nInitial validity limit: {until}\n\
             Created: {created}\nLast modified: {created}\n\
             Original file: {}, size: {size}, md5: {md5}, content type: {}\nMetadata:\n",
            version.id,
            version::address(version),
            version::file_name(&version.path),
            version::CONTENT_TYPE,
            created = version.created,
        );
        for (key, value) in &version.metadata {
            let _ = writeln!(page, "  {key} = {value}");
        }
        page.push_str("\n\n");
    }
    if let Some(folders) = &found.subfolders {
        page.push_str("\nSubfolders:\n");
        for folder in folders {
            let _ = writeln!(page, "  {folder}");
        }
        page.push('\n');
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_ascii_and_cannot_end_early() {
        assert_eq!(json("a/b\"\\\n"), r#""a\/b\"\\\u000a""#);
        assert_eq!(json("é\u{1f600}"), r#""\u00e9\ud83d\ude00""#);
    }
}
