//! A listing as JSON, with old and new keys as real servers write them.

use std::fmt::Write as _;

use super::listing::{FolderContents, Found};
use super::listing_format::ListingFormat;
use super::version;
use crate::object::ObjectInfo;
use crate::source::Details;

/// JSON with all keys, or with selected ones.
pub(super) struct JsonPage {
    pub(super) fields: Option<Vec<String>>,
}

impl ListingFormat for JsonPage {
    fn content_type(&self) -> &'static str {
        "application/json;charset=ISO-8859-1"
    }

    fn start(&self, _found: &Found) -> String {
        "{\"objects\":[\n".to_owned()
    }

    fn version(&self, number: usize, version: &ObjectInfo, details: &Details) -> String {
        let before = if number == 0 { "" } else { ",\n" };
        format!("{before}{}", entry(version, details, self.fields.as_deref()))
    }

    fn needs_details(&self) -> bool {
        let is_detail = |field: &String| DETAILS.contains(&field.as_str());
        self.fields.as_ref().is_none_or(|fields| fields.iter().any(is_detail))
    }

    fn end(&self, found: &Found) -> String {
        let mut text = "]\n".to_owned();
        if let Some(folders) = &found.subfolders {
            let folders: Vec<String> = match &found.report {
                None => folders.iter().map(|folder| quoted(folder)).collect(),
                Some(report) => report.iter().map(reported).collect(),
            };
            let _ = write!(text, ",\"subfolders\":[\n{}]\n", folders.join(",\n"));
        }
        text.push('}');
        text
    }
}

/// Keys whose values are upload details.
const DETAILS: [&str; 9] = [
    "lastModified",
    "Last-Modified",
    "initialValidity",
    "InitialValidityLimit",
    "fileName",
    "Content-Disposition",
    "contentType",
    "Content-Type",
    "UploadedFrom",
];

/// A folder with its contents, as in a report of an SQL-backed server.
fn reported(folder: &FolderContents) -> String {
    let ((own, own_bytes), (below, below_bytes)) = (folder.own, folder.below);
    format!(
        "{{\"name\":{},\"ownFiles\":{own},\"ownSize\":{own_bytes},\"filesInSubfolders\":{below},\
         \"sizeOfSubfolders\":{below_bytes}}}",
        quoted(&folder.name)
    )
}

/// One version.
fn entry(version: &ObjectInfo, details: &Details, fields: Option<&[String]>) -> String {
    let id = version.id.to_string();
    let (from, until) = (version.validity.from(), version.validity.until());
    let name = version::file_name(&version.path, details);
    let disposition = format!("inline;filename=\"{name}\"");
    let content_type = version::content_type(details);
    let modified = details.last_modified.unwrap_or(version.created);
    let initial = details.initial_until.unwrap_or(until);
    let mut all: Vec<(&str, Option<String>)> = vec![
        ("path", Some(quoted(version.path.as_str()))),
        ("createTime", Some(version.created.to_string())),
        ("lastModified", Some(modified.to_string())),
        ("Created", Some(version.created.to_string())),
        ("Last-Modified", Some(modified.to_string())),
        ("id", Some(quoted(&id))),
        ("validFrom", Some(from.to_string())),
        ("validUntil", Some(until.to_string())),
        ("initialValidity", Some(initial.to_string())),
        ("MD5", version.md5.map(|md5| quoted(&md5.to_string()))),
        ("fileName", Some(quoted(name))),
        ("contentType", Some(quoted(content_type))),
        ("size", version.size_bytes.map(|size| size.to_string())),
        ("ETag", Some(quoted(&format!("\"{id}\"")))),
        ("Valid-From", Some(from.to_string())),
        ("Valid-Until", Some(until.to_string())),
        ("InitialValidityLimit", Some(initial.to_string())),
        ("Content-MD5", version.md5.map(|md5| quoted(&md5.to_string()))),
        ("Content-Disposition", Some(quoted(&disposition))),
        ("Content-Type", Some(quoted(content_type))),
        ("Content-Length", version.size_bytes.map(|size| size.to_string())),
        ("UploadedFrom", details.uploaded_from.as_deref().map(quoted)),
    ];
    const OWN: [&str; 2] = ["replicas", "metadata"];
    let known: Vec<&str> = all.iter().map(|(key, _)| *key).chain(OWN).collect();
    // Metadata replace no other key: those with the name of another key go into a separate
    // object.
    let (apart, plain): (Vec<_>, Vec<_>) =
        version.metadata.iter().partition(|(key, _)| known.contains(&key.as_str()));
    all.extend(plain.into_iter().map(|(key, value)| (key.as_str(), Some(quoted(value)))));
    if !apart.is_empty() {
        let apart: Vec<String> =
            apart.iter().map(|(key, value)| format!("{}:{}", quoted(key), quoted(value))).collect();
        all.push(("metadata", Some(format!("{{{}}}", apart.join(",")))));
    }
    all.push(("replicas", Some(format!("[{}]", quoted(&version::address(version))))));
    let all: Vec<String> = all
        .iter()
        .filter(|(key, _)| fields.is_none_or(|fields| fields.iter().any(|field| field == key)))
        .filter_map(|(key, value)| Some(format!("{}:{}", quoted(key), value.as_ref()?)))
        .collect();
    format!("{{{}}}", all.join(","))
}

/// A JSON string as real servers write it: slashes and non-ASCII characters escaped.
pub(super) fn quoted(text: &str) -> String {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_ascii_and_cannot_end_early() {
        assert_eq!(quoted("a/b\"\\\n"), r#""a\/b\"\\\u000a""#);
        assert_eq!(quoted("é\u{1f600}"), r#""\u00e9\ud83d\ude00""#);
    }
}
