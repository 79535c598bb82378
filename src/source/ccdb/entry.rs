//! One entry of a listing: its version, and the keys that are metadata.
//!
//! The server writes old and new keys side by side (`id` and `ETag`, `validFrom` and `Valid-From`),
//! then the version's metadata, which replace keys of the same name, then `replicas`:
//!
//! ```text
//!  key           value of the server           a replacement is detected by
//!  createTime …  a number                      its type: metadata are strings
//!  id, ETag      the UUID of the replicas      another value
//!  MD5 …         32 hex digits                 its form
//!  path          the requested path            the path in a file-backed server's replicas, which
//!                                              nothing replaces; else nothing: it is not listed
//! ```
//!
//! Any remaining doubt makes the listing unusable: if an entry were skipped, an older version would
//! be in effect without any sign of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::Value;

use super::location::{file_name_of, id_in_location, path_in_location};
use crate::interval::{Timestamp, ValidityInterval};
use crate::object::{Md5Sum, ObjectId, ObjectInfo, ObjectPath};
use crate::source::Details;

/// Keys with numbers, each with the newer key for the same value.
const NUMBERS: [(&str, &str); 6] = [
    ("createTime", "Created"),
    ("lastModified", "Last-Modified"),
    ("validFrom", "Valid-From"),
    ("validUntil", "Valid-Until"),
    ("initialValidity", "InitialValidityLimit"),
    ("size", "Content-Length"),
];

/// Other keys of the server.
const TEXTS: [&str; 12] = [
    "path",
    "id",
    "ETag",
    "MD5",
    "Content-MD5",
    "fileName",
    "Content-Disposition",
    "contentType",
    "Content-Type",
    "UploadedFrom",
    "metadata",
    "replicas",
];

/// Whether metadata with this key may replace a value of the server in a listing.
///
/// Only the server can tell which versions have such metadata.
pub(super) fn is_listing_key(key: &str) -> bool {
    TEXTS.contains(&key) || NUMBERS.iter().any(|(old, new)| *old == key || *new == key)
}

/// A JSON object with all of its keys, including repeated ones.
#[derive(Clone)]
pub(super) struct ListingEntry(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for ListingEntry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = ListingEntry;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<ListingEntry, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(ListingEntry(fields))
            }
        }
        deserializer.deserialize_map(Fields)
    }
}

/// Whether a text is an address as servers write it, with or without a network mask.
fn is_network_address(text: &str) -> bool {
    let host = text.split('/').next().unwrap_or_default();
    host.parse::<std::net::IpAddr>().is_ok()
}

/// Meaning of an entry in the listing of a path.
pub(super) enum Judged {
    /// A version that certainly belongs to another path.
    OtherPath,
    /// A version with an empty interval, which no look-up finds.
    NeverValid,
    /// A version of the path.
    Version(Box<Listed>),
}

/// Path of an entry, by the place that tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ListedOf<'a> {
    /// The addresses of the replicas, at a file-backed server. Metadata cannot change them.
    Replicas(&'a str),
    /// The key `path`. Metadata may have replaced it.
    Key(&'a str),
}

impl<'a> ListedOf<'a> {
    pub(super) fn as_str(self) -> &'a str {
        match self {
            Self::Replicas(path) | Self::Key(path) => path,
        }
    }
}

/// A version from a listing.
#[derive(Debug, Clone)]
pub(super) struct Listed {
    pub(super) version: ObjectInfo,
    /// Locations of its body, as written.
    pub(super) replicas: Vec<String>,
    pub(super) details: Details,
}

impl ListingEntry {
    fn values(&self, key: &str) -> impl Iterator<Item = &Value> {
        self.0.iter().filter(move |(name, _)| name == key).map(|(_, value)| value)
    }

    pub(super) fn text(&self, key: &str) -> Option<&str> {
        self.values(key).find_map(Value::as_str)
    }

    /// The number under this key, if any.
    pub(super) fn integer(&self, key: &str) -> Option<i64> {
        self.values(key).find_map(Value::as_i64)
    }

    /// Hash of the end of validity, of the time of the last change if `with_changes`, and of the
    /// metadata with these keys (`None`: all). Metadata named like a key of the listing do not
    /// count: only whole listings have them.
    pub(super) fn trace(&self, with_changes: bool, keys: Option<&BTreeSet<String>>) -> u64 {
        let mut hasher = DefaultHasher::new();
        let number = |old, new| self.integer(old).or_else(|| self.integer(new));
        number("validUntil", "Valid-Until").hash(&mut hasher);
        with_changes.then(|| number("lastModified", "Last-Modified")).flatten().hash(&mut hasher);
        let is_traced = |key: &str| keys.is_none_or(|keys| keys.contains(key));
        let traced: BTreeSet<_> = self.own_metadata().filter(|(key, _)| is_traced(key)).collect();
        traced.hash(&mut hasher);
        hasher.finish()
    }

    /// Whether a file-backed server listed it.
    pub(super) fn is_file_backed(&self) -> bool {
        self.replicas().iter().any(|replica| path_in_location(replica).is_some())
    }

    /// Metadata of the entry, without those named like a key of the listing.
    pub(super) fn own_metadata(&self) -> impl Iterator<Item = (&str, &str)> {
        let texts = self.0.iter().filter_map(|(key, value)| Some((key.as_str(), value.as_str()?)));
        texts.filter(|(key, _)| !is_listing_key(key))
    }

    /// Whether some metadata are named like a key of the listing, as far as it can be told.
    pub(super) fn has_replaced_keys(&self) -> bool {
        let numbers = NUMBERS.iter().flat_map(|(old, new)| [*old, *new]);
        numbers.chain(["metadata", "replicas"]).any(|key| self.text(key).is_some())
    }

    /// Path of the version, as far as the entry shows it: that of the replicas, which no metadata
    /// replace, or else the value of the key `path`, which may be metadata.
    ///
    /// # Errors
    /// The contradiction in words.
    pub(super) fn path(&self) -> Result<ListedOf<'_>, String> {
        let mut told = self.replica_texts().filter_map(path_in_location).map(|(path, _)| path);
        match (told.next(), self.text("path")) {
            (Some(first), _) if told.all(|other| other == first) => Ok(ListedOf::Replicas(first)),
            (None, Some(said)) => Ok(ListedOf::Key(said.trim_matches('/'))),
            (Some(_), _) => Err(format!("replicas of several paths: {:?}", self.replicas())),
            (None, None) => Err("an entry without a path".to_owned()),
        }
    }

    fn replica_texts(&self) -> impl Iterator<Item = &str> {
        let all = self.values("replicas").find_map(Value::as_array);
        all.into_iter().flatten().filter_map(Value::as_str)
    }

    pub(super) fn replicas(&self) -> Vec<String> {
        self.replica_texts().map(str::to_owned).collect()
    }

    /// Meaning of this entry in the listing of `path`.
    ///
    /// # Errors
    /// The contradiction in words.
    pub(super) fn judge(&self, path: &ObjectPath) -> Result<Judged, String> {
        self.check_repeated()?;
        let replicas = self.replicas();
        if !self.is_of(path)? {
            return Ok(Judged::OtherPath);
        }
        let id = self.id(&replicas)?;
        let named = |doubt: String| format!("version {id}: {doubt}");
        let time = |old, new| self.number(old, new).map(Timestamp::from_millis).map_err(named);
        let from = time("validFrom", "Valid-From")?;
        let until = time("validUntil", "Valid-Until")?;
        let created = time("createTime", "Created")?;
        let told = replicas.iter().find_map(|replica| Some(path_in_location(replica)?.1));
        if told.is_some_and(|told| told != from) {
            return Err(named(format!("it holds from {from}, but its replicas are {replicas:?}")));
        }
        let Ok(validity) = ValidityInterval::new(from, until) else {
            return Ok(Judged::NeverValid);
        };
        let size = self.number("size", "Content-Length").ok();
        let version = ObjectInfo {
            path: path.clone(),
            id,
            validity,
            created,
            size_bytes: size.and_then(|size| u64::try_from(size).ok()),
            md5: self.md5().map_err(named)?,
            metadata: self.metadata(path, id).map_err(named)?.into(),
        };
        Ok(Judged::Version(Box::new(Listed { version, replicas, details: self.details() })))
    }

    /// Checks repeated keys. A key occurs twice if metadata did not replace the server's value:
    /// that value is a number or an array, and the metadata are a string.
    fn check_repeated(&self) -> Result<(), String> {
        for (n, (key, value)) in self.0.iter().enumerate() {
            let is_text = value.is_string();
            if self.0[..n].iter().any(|(k, v)| k == key && v.is_string() == is_text) {
                return Err(format!("{key} stands there twice"));
            }
        }
        Ok(())
    }

    /// Whether this is a version of `path`. Servers that match prefixes also list other paths; the
    /// replicas of a file-backed server then name the other path too.
    fn is_of(&self, path: &ObjectPath) -> Result<bool, String> {
        let said = self.text("path").ok_or("an entry without a path")?.trim_matches('/');
        let is_other = match self.path()? {
            ListedOf::Key(key) if key == path.as_str() => return Ok(true),
            ListedOf::Key(_) => false,
            // Metadata in an object of their own replace no key: there, another path is a contradiction.
            ListedOf::Replicas(told) if told == path.as_str() => {
                let is_replaced = !self.values("metadata").any(Value::is_object);
                if is_replaced || said == told {
                    return Ok(true);
                }
                false
            }
            // An address with a prefix may be that of the path itself.
            ListedOf::Replicas(told) => {
                let prefix = told.strip_suffix(path.as_str());
                said == told && !prefix.is_some_and(|prefix| prefix.ends_with('/'))
            }
        };
        match is_other {
            true => Ok(false),
            false => Err(format!("an entry of path {said:?} with replicas {:?}", self.replicas())),
        }
    }

    /// The number under the old key, or under the new one if metadata replaced the old one.
    fn number(&self, old: &str, new: &str) -> Result<i64, String> {
        match (self.integer(old), self.integer(new)) {
            (Some(a), Some(b)) if a != b => Err(format!("{old} is {a}, but {new} is {b}")),
            (Some(n), _) | (None, Some(n)) => Ok(n),
            (None, None) => Err(format!("neither {old} nor {new} is a number")),
        }
    }

    fn id(&self, replicas: &[String]) -> Result<ObjectId, String> {
        let unquoted = |text: &str| ObjectId::parse(text.trim_matches('"'));
        let old = self.text("id").and_then(unquoted);
        let new = self.text("ETag").and_then(unquoted);
        let told: Vec<_> = replicas.iter().filter_map(|r| id_in_location(r)).collect();
        let same = |id: &ObjectId| told.iter().all(|told| told == id);
        match (old, new) {
            (Some(id), _) if same(&id) && (!told.is_empty() || new.is_none_or(|n| n == id)) => {
                Ok(id)
            }
            (_, Some(id)) if same(&id) && (!told.is_empty() || old.is_none()) => Ok(id),
            _ => Err(format!(
                "id is {:?}, ETag is {:?}, replicas are {replicas:?}",
                self.text("id"),
                self.text("ETag"),
            )),
        }
    }

    fn md5(&self) -> Result<Option<Md5Sum>, String> {
        let sums = ["MD5", "Content-MD5"].map(|key| self.text(key).and_then(Md5Sum::parse));
        match sums {
            [Some(a), Some(b)] if a != b => Err(format!("MD5 is {a}, but Content-MD5 is {b}")),
            [a, b] => Ok(a.or(b)),
        }
    }

    /// The users' metadata, in the spelling of the upload.
    fn metadata(
        &self,
        path: &ObjectPath,
        id: ObjectId,
    ) -> Result<BTreeMap<String, String>, String> {
        let mut metadata = BTreeMap::new();
        for (key, value) in &self.0 {
            match value {
                Value::String(text) if !self.is_own(key, text, path, id) => {
                    metadata.insert(key.clone(), text.clone());
                }
                Value::Object(nested) if key == "metadata" => {
                    for (key, value) in nested {
                        match value {
                            Value::String(text) => {
                                metadata.insert(key.clone(), text.clone());
                            }
                            Value::Null => {}
                            other => return Err(format!("metadata {key:?} is {other}")),
                        }
                    }
                }
                _ => {}
            }
        }
        Ok(metadata)
    }

    /// Whether a string is the server's own value for this key.
    fn is_own(&self, key: &str, text: &str, path: &ObjectPath, id: ObjectId) -> bool {
        match key {
            "path" => text == path.as_str(),
            "UploadedFrom" => is_network_address(text),
            "id" | "ETag" => ObjectId::parse(text.trim_matches('"')) == Some(id),
            "MD5" | "Content-MD5" => text.is_empty() || Md5Sum::parse(text).is_some(),
            "fileName" => self.disposed_name().is_none_or(|name| name == text),
            "Content-Disposition" => file_name_of(text).is_some(),
            "contentType" | "Content-Type" => text.is_empty() || text.contains('/'),
            // The server's values for other keys are numbers, an object and an array.
            _ => false,
        }
    }

    fn disposed_name(&self) -> Option<&str> {
        self.text("Content-Disposition").and_then(file_name_of)
    }

    fn details(&self) -> Details {
        let time = |old, new| self.number(old, new).ok().map(Timestamp::from_millis);
        let content_type = ["Content-Type", "contentType"]
            .iter()
            .find_map(|key| self.text(key)?.contains('/').then(|| self.text(key)).flatten());
        Details {
            file_name: self.disposed_name().or(self.text("fileName")).map(str::to_owned),
            content_type: content_type.map(str::to_owned),
            last_modified: time("lastModified", "Last-Modified"),
            initial_until: time("initialValidity", "InitialValidityLimit"),
            uploaded_from: self
                .text("UploadedFrom")
                .filter(|text| is_network_address(text))
                .map(str::to_owned),
        }
    }
}
