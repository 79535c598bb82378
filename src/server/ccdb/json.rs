//! A listing as JSON, with old and new keys as real servers write them.

use std::fmt::Write as _;

use super::listing::{FolderContents, FolderListing};
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

    fn start(&self, _found: &FolderListing) -> String {
        "{\"objects\":[\n".to_owned()
    }

    fn version(&self, text: &mut String, number: usize, version: &ObjectInfo, details: &Details) {
        if number > 0 {
            text.push_str(",\n");
        }
        entry(text, version, details, self.fields.as_deref());
    }

    fn needs_details(&self) -> bool {
        let is_detail = |field: &String| DETAILS.contains(&field.as_str());
        self.fields.as_ref().is_none_or(|fields| fields.iter().any(is_detail))
    }

    fn names_left_out(&self) -> bool {
        true
    }

    fn end(&self, found: &FolderListing) -> String {
        let mut text = "]\n".to_owned();
        if let Some(folders) = &found.subfolders {
            let folders: Vec<String> = match &found.report {
                None => folders.iter().map(|folder| quoted(folder)).collect(),
                Some(report) => report.iter().map(reported).collect(),
            };
            let _ = write!(text, ",\"subfolders\":[\n{}]\n", folders.join(",\n"));
        }
        if found.is_long && !found.left_out.is_empty() {
            let paths: Vec<String> = found.left_out.iter().map(|path| quoted(path)).collect();
            let _ = write!(text, ",\"notListed\":[\n{}]\n", paths.join(",\n"));
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

/// Keys of an entry besides the metadata.
const KEYS: [&str; 24] = [
    "path",
    "createTime",
    "lastModified",
    "Created",
    "Last-Modified",
    "id",
    "validFrom",
    "validUntil",
    "initialValidity",
    "MD5",
    "fileName",
    "contentType",
    "size",
    "ETag",
    "Valid-From",
    "Valid-Until",
    "InitialValidityLimit",
    "Content-MD5",
    "Content-Disposition",
    "Content-Type",
    "Content-Length",
    "UploadedFrom",
    "replicas",
    "metadata",
];

/// Writes the requested fields of an entry.
struct EntryWriter<'a> {
    text: &'a mut String,
    fields: Option<&'a [String]>,
    has_fields: bool,
}

impl EntryWriter<'_> {
    /// Whether the field is requested. Its name is then written.
    fn begin(&mut self, key: &str) -> bool {
        if !self.fields.is_none_or(|fields| fields.iter().any(|field| field == key)) {
            return false;
        }
        if std::mem::replace(&mut self.has_fields, true) {
            self.text.push(',');
        }
        push_quoted(self.text, key);
        self.text.push(':');
        true
    }

    fn number(&mut self, key: &str, number: impl std::fmt::Display) {
        if self.begin(key) {
            let _ = write!(self.text, "{number}");
        }
    }

    fn string(&mut self, key: &str, value: &str) {
        if self.begin(key) {
            push_quoted(self.text, value);
        }
    }
}

/// One version.
fn entry(text: &mut String, version: &ObjectInfo, details: &Details, fields: Option<&[String]>) {
    let id = version.id.to_string();
    let md5 = version.md5.map(|md5| md5.to_string());
    let (from, until) = (version.validity.from(), version.validity.until());
    let name = version::file_name(version, details);
    let content_type = version::content_type(details);
    let modified = details.last_modified.unwrap_or(version.created);
    let initial = details.initial_until.unwrap_or(until);
    text.push('{');
    let mut entry = EntryWriter { text, fields, has_fields: false };
    entry.string("path", version.path.as_str());
    entry.number("createTime", version.created);
    entry.number("lastModified", modified);
    entry.number("Created", version.created);
    entry.number("Last-Modified", modified);
    entry.string("id", &id);
    entry.number("validFrom", from);
    entry.number("validUntil", until);
    entry.number("initialValidity", initial);
    md5.iter().for_each(|md5| entry.string("MD5", md5));
    entry.string("fileName", &name);
    entry.string("contentType", content_type);
    version.size_bytes.iter().for_each(|size| entry.number("size", size));
    entry.string("ETag", &format!("\"{id}\""));
    entry.number("Valid-From", from);
    entry.number("Valid-Until", until);
    entry.number("InitialValidityLimit", initial);
    md5.iter().for_each(|md5| entry.string("Content-MD5", md5));
    entry.string("Content-Disposition", &format!("inline;filename=\"{name}\""));
    entry.string("Content-Type", content_type);
    version.size_bytes.iter().for_each(|size| entry.number("Content-Length", size));
    details.uploaded_from.iter().for_each(|from| entry.string("UploadedFrom", from));
    // Metadata replace no other key: those with the name of another key go into a separate
    // object.
    let is_apart = |key: &str| KEYS.contains(&key);
    for (key, value) in version.metadata.iter().filter(|(key, _)| !is_apart(key)) {
        entry.string(key, value);
    }
    let apart: Vec<String> = version
        .metadata
        .iter()
        .filter(|(key, _)| is_apart(key))
        .map(|(key, value)| format!("{}:{}", quoted(key), quoted(value)))
        .collect();
    if !apart.is_empty() {
        entry.number("metadata", format_args!("{{{}}}", apart.join(",")));
    }
    if entry.begin("replicas") {
        let address = quoted(&version::address(version));
        let _ = write!(entry.text, "[{address}]");
    }
    text.push('}');
}

/// A JSON string as real servers write it: slashes and non-ASCII characters escaped.
pub(super) fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    push_quoted(&mut quoted, text);
    quoted
}

/// Adds a JSON string; see [`quoted`].
fn push_quoted(quoted: &mut String, text: &str) {
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
