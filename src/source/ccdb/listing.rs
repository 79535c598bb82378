//! Reads the JSON of `/browse`: all versions of a path, if all of them can be understood.
//!
//! The server writes old keys and new ones side by side (`id` and `ETag`, `validFrom` and
//! `Valid-From`), and the version's metadata among them, where they replace what has their name:
//! as *strings*. So a time counts only as a number, the old keys are believed before the new, and
//! an id has to stand in the address of a replica too. What is then still in doubt spoils the
//! listing: to pass a version over would silently let an older one win.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::Value;

use super::answer::id_in_location;
use crate::interval::{Timestamp, ValidityInterval};
use crate::object::{Md5Sum, ObjectId, ObjectInfo, ObjectPath};

/// Keys of an entry that are no metadata.
const PROTOCOL_KEYS: &[&str] = &[
    "Cache-Valid-Until",
    "Content-Disposition",
    "Content-Length",
    "Content-Location",
    "Content-MD5",
    "Content-Type",
    "Created",
    "ETag",
    "InitialValidityLimit",
    "Last-Modified",
    "Location",
    "MD5",
    "UpdatedFrom",
    "UploadedFrom",
    "Valid-From",
    "Valid-Until",
    "contentType",
    "createTime",
    "fileName",
    "id",
    "initialValidity",
    "lastModified",
    "metadata",
    "path",
    "replicas",
    "size",
    "validFrom",
    "validUntil",
];

/// What a listing says of one path.
#[derive(Debug, Default)]
pub(super) struct Listing {
    /// The versions of the very path that was asked for, each with its replicas as written.
    pub(super) versions: Vec<(ObjectInfo, Vec<String>)>,
    /// How many entries there were, those of other paths included.
    pub(super) entries: usize,
    /// Entries of this path that cannot be told for sure.
    pub(super) doubts: Vec<String>,
}

impl Listing {
    /// How the path's metadata keys are spelled, by their lower case.
    pub(super) fn spelling(&self) -> HashMap<String, String> {
        self.versions
            .iter()
            .flat_map(|(version, _)| version.metadata.keys())
            .map(|key| (key.to_ascii_lowercase(), key.clone()))
            .collect()
    }
}

#[derive(Deserialize)]
struct Page {
    objects: Vec<Entry>,
}

/// A JSON object with all of its keys, also those that come twice.
struct Entry(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Entry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Entry;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entry, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Entry(fields))
            }
        }
        deserializer.deserialize_map(Fields)
    }
}

/// Reads the answer to `/browse/<path>`, in which other paths may stand as well.
///
/// # Errors
/// If it is no such JSON.
pub(super) fn parse(body: &[u8], path: &ObjectPath) -> Result<Listing, String> {
    let page: Page =
        serde_json::from_slice(body).map_err(|e| format!("no listing in JSON: {e}"))?;
    let mut listing = Listing { entries: page.objects.len(), ..Listing::default() };
    for entry in &page.objects {
        // Sub-paths stand there too, and other paths: SQL-backed servers match prefixes.
        if entry.text("path").map(|p| p.trim_matches('/')) != Some(path.as_str()) {
            if entry.text("path").is_none() {
                listing.doubts.push("an entry without a path".into());
            }
            continue;
        }
        match entry.version(path) {
            Ok(Some(version)) => listing.versions.push((version, entry.replicas())),
            Ok(None) => {}
            Err(doubt) => listing.doubts.push(doubt),
        }
    }
    Ok(listing)
}

/// Reads which paths stand in an answer to `/browse`, and how often each.
///
/// # Errors
/// If it is no such JSON.
pub(super) fn parse_paths(body: &[u8]) -> Result<BTreeMap<ObjectPath, u64>, String> {
    let page: Page =
        serde_json::from_slice(body).map_err(|e| format!("no listing in JSON: {e}"))?;
    let mut counts = BTreeMap::new();
    for entry in &page.objects {
        // A path outside of our grammar cannot be asked for either.
        if let Some(Ok(path)) = entry.text("path").map(|p| ObjectPath::new(p.trim_matches('/'))) {
            *counts.entry(path).or_insert(0) += 1;
        }
    }
    Ok(counts)
}

impl Entry {
    fn text(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(name, _)| name == key)?.1.as_str()
    }

    fn replicas(&self) -> Vec<String> {
        let all = self.0.iter().find(|(name, _)| name == "replicas");
        let Some((_, Value::Array(all))) = all else { return Vec::new() };
        all.iter().filter_map(|value| value.as_str().map(str::to_owned)).collect()
    }

    /// The number under the old key or, if metadata took its place, under the new one.
    fn number(&self, old: &str, new: &str) -> Result<i64, String> {
        let of = |key: &str| self.0.iter().find(|(name, _)| name == key)?.1.as_i64();
        match (of(old), of(new)) {
            (Some(a), Some(b)) if a != b => Err(format!("{old} is {a}, but {new} is {b}")),
            (Some(n), _) | (None, Some(n)) => Ok(n),
            (None, None) => Err(format!("neither {old} nor {new} is a number")),
        }
    }

    fn id(&self) -> Result<ObjectId, String> {
        let unquoted = |text: &str| ObjectId::parse(text.trim_matches('"'));
        let old = self.text("id").and_then(unquoted);
        let new = self.text("ETag").and_then(unquoted);
        let told: Vec<_> = self.replicas().iter().filter_map(|r| id_in_location(r)).collect();
        match (old, new) {
            (Some(id), _) | (None, Some(id)) if told.contains(&id) => Ok(id),
            (Some(id), Some(same)) if id == same && told.is_empty() => Ok(id),
            (Some(id), None) | (None, Some(id)) if told.is_empty() => Ok(id),
            _ => Err(format!(
                "id is {:?}, ETag is {:?}, replicas are {:?}",
                self.text("id"),
                self.text("ETag"),
                self.replicas()
            )),
        }
    }

    /// The version, or nothing where its interval is empty: such a one is never found.
    fn version(&self, path: &ObjectPath) -> Result<Option<ObjectInfo>, String> {
        for (n, (key, _)) in self.0.iter().enumerate() {
            if self.0[..n].iter().any(|(earlier, _)| earlier == key) {
                return Err(format!("{key} stands there twice"));
            }
        }
        let id = self.id()?;
        let named = |doubt: String| format!("version {id}: {doubt}");
        let time = |old, new| self.number(old, new).map(Timestamp::from_millis).map_err(named);
        let from = time("validFrom", "Valid-From")?;
        let until = time("validUntil", "Valid-Until")?;
        let created = time("createTime", "Created")?;
        let Ok(validity) = ValidityInterval::new(from, until) else { return Ok(None) };
        let mut metadata = BTreeMap::new();
        for (key, value) in &self.0 {
            match value {
                Value::String(text) if PROTOCOL_KEYS.binary_search(&key.as_str()).is_err() => {
                    metadata.insert(key.clone(), text.clone());
                }
                Value::Object(nested) if key == "metadata" => {
                    metadata.extend(nested.iter().filter_map(|(key, value)| {
                        value.as_str().map(|text| (key.clone(), text.to_owned()))
                    }));
                }
                _ => {}
            }
        }
        Ok(Some(ObjectInfo {
            path: path.clone(),
            id,
            validity,
            created,
            size_bytes: self
                .number("size", "Content-Length")
                .ok()
                .and_then(|size| u64::try_from(size).ok()),
            md5: ["MD5", "Content-MD5"].iter().find_map(|key| Md5Sum::parse(self.text(key)?)),
            metadata,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "517efe90-e716-11f1-8b62-7f0000010203";

    fn entry(change: &str) -> String {
        let plain = format!(
            r#""path":"A\/One","createTime":1795421846777,"lastModified":1795421846777,"Created":1795421846777,"Last-Modified":1795421846777,"id":"{ID}","validFrom":1000,"validUntil":2000,"initialValidity":2000,"MD5":"a34a346122318ab0aeedc4bd18873255","fileName":"a.txt","contentType":"text\/plain","size":14,"ETag":"\"{ID}\"","Valid-From":1000,"Valid-Until":2000,"InitialValidityLimit":2000,"Content-MD5":"a34a346122318ab0aeedc4bd18873255","Content-Disposition":"inline;filename=\"a.txt\"","Content-Type":"text\/plain","Content-Length":14,"run":"1","replicas":["\/A\/One\/1000\/{ID}"]"#
        );
        match change.split_once('=') {
            Some((old, new)) => {
                assert!(plain.contains(old), "{old}");
                plain.replace(old, new)
            }
            None => plain,
        }
    }

    fn page(entries: &[String]) -> Listing {
        let body =
            format!("{{\"objects\":[\n{{{}}}]\n,\"subfolders\":[\n]\n}}", entries.join("},\n{"));
        parse(body.as_bytes(), &ObjectPath::new("A/One").unwrap()).unwrap()
    }

    #[test]
    fn the_list_of_protocol_keys_is_sorted() {
        assert!(PROTOCOL_KEYS.is_sorted());
    }

    #[test]
    fn a_recorded_listing_is_read() {
        let listing = page(&[entry("")]);
        assert_eq!(listing.doubts, Vec::<String>::new());
        let (version, replicas) = &listing.versions[0];
        assert_eq!(version.id.to_string(), ID);
        assert_eq!(version.validity.to_string(), "[1000, 2000)");
        assert_eq!((version.size_bytes, version.md5.is_some()), (Some(14), true));
        assert_eq!(
            version.metadata.clone().into_iter().collect::<Vec<_>>(),
            [("run".to_owned(), "1".to_owned())]
        );
        assert_eq!(replicas, &[format!("/A/One/1000/{ID}")]);
    }

    #[test]
    fn other_paths_are_counted_and_left_out() {
        let listing =
            page(&[entry(r"A\/One=A\/One\/Deep"), entry(r"A\/One=A\/OneMore"), entry("")]);
        assert_eq!((listing.entries, listing.versions.len()), (3, 1));
        assert!(listing.doubts.is_empty());
    }

    #[test]
    fn metadata_that_imitate_the_new_keys_are_not_believed() {
        // `ETag=foo` and `Valid-From=7` as uploaded: strings in the place of the new keys.
        let changed = entry(&format!("\"ETag\":\"\\\"{ID}\\\"\"=\"ETag\":\"foo\""))
            .replace("\"Valid-From\":1000", "\"Valid-From\":\"7\"");
        let listing = page(&[changed]);
        assert!(listing.doubts.is_empty(), "{:?}", listing.doubts);
        assert_eq!(listing.versions[0].0.id.to_string(), ID);
        assert_eq!(listing.versions[0].0.validity.from().as_millis(), 1000);
    }

    #[test]
    fn what_cannot_be_told_for_sure_is_a_doubt_and_not_passed_over() {
        let other = ID.replace("517e", "0000");
        for change in [
            format!("\"id\":\"{ID}\"=\"id\":\"{other}\""),
            format!("/1000\\/{ID}=/1000\\/{other}"),
            "\"validFrom\":1000=\"validFrom\":999".to_owned(),
            "\"run\":\"1\"=\"id\":\"x\"".to_owned(),
            "\"createTime\":1795421846777=\"createTime\":1".to_owned(),
        ] {
            let listing = page(&[entry(&change)]);
            // An id that only the old key tells otherwise is settled by ETag and replica.
            let settled = change.starts_with("\"id\"") && listing.doubts.is_empty();
            assert!(listing.doubts.len() == 1 || settled, "{change}: {listing:?}");
            if settled {
                assert_eq!(listing.versions[0].0.id.to_string(), ID);
            }
        }
    }

    #[test]
    fn an_empty_interval_is_passed_over_since_no_server_finds_it() {
        let reversed = entry("\"validUntil\":2000=\"validUntil\":500")
            .replace("\"Valid-Until\":2000", "\"Valid-Until\":500");
        let listing = page(&[reversed]);
        assert!(listing.versions.is_empty() && listing.doubts.is_empty());
    }

    #[test]
    fn what_is_no_listing_is_an_error() {
        let path = ObjectPath::new("A/One").unwrap();
        for body in ["", "[]", "{}", "Usage of /*:", r#"{"objects":[1]}"#, r#"{"objects":{}}"#] {
            assert!(parse(body.as_bytes(), &path).is_err(), "{body}");
        }
    }
}
