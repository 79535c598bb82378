//! Parses the JSON of `/browse` into the versions of a path. An entry in doubt makes it unusable.
//!
//! Entries are judged while they are parsed, so the memory for a long listing is that of its
//! versions, not of its JSON.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::entry::{Judged, Listed, ListingEntry};
use crate::interval::ValidityInterval;
use crate::object::{ObjectId, ObjectInfo, ObjectPath, Query};
use crate::source::Knowledge;

/// Maximum number of doubts kept for the log. A single one makes a listing unusable.
const DOUBTS_KEPT: usize = 8;

/// The listing of one path.
#[derive(Debug, Default)]
pub(super) struct PathListing {
    /// Versions of exactly the requested path.
    pub(super) versions: Vec<Listed>,
    /// Number of entries, including those of other paths.
    pub(super) entries: usize,
    /// Contradictions in entries, in words.
    pub(super) doubts: Vec<String>,
    /// Traces of all entries.
    pub(super) traces: Traces,
}

impl PathListing {
    /// The spelling of the path's metadata keys, by their lower case. `None` for keys that have two
    /// spellings or are not valid header names: only listings have their values.
    pub(super) fn spelling(&self) -> HashMap<String, Option<String>> {
        let mut spelling: HashMap<String, Option<String>> = HashMap::new();
        for key in self.versions.iter().flat_map(|listed| listed.version.metadata.keys()) {
            let is_header = reqwest::header::HeaderName::from_bytes(key.as_bytes()).is_ok();
            let spelled = spelling
                .entry(key.to_ascii_lowercase())
                .or_insert_with(|| is_header.then(|| key.clone()));
            if spelled.as_ref().is_some_and(|known| known != key) {
                *spelled = None;
            }
        }
        spelling
    }

    /// Adds a version. If it is listed twice without differences, it counts once.
    fn add(&mut self, listed: Listed, seen: &mut HashMap<ObjectId, usize>) {
        let id = listed.version.id;
        match seen.get(&id).map(|place| &self.versions[*place]) {
            None => {
                seen.insert(id, self.versions.len());
                self.versions.push(listed);
            }
            Some(known) if known.version == listed.version => {}
            Some(_) => self.doubt(format!("version {id} is listed twice, with differences")),
        }
    }

    fn doubt(&mut self, doubt: String) {
        if self.doubts.len() < DOUBTS_KEPT {
            self.doubts.push(doubt);
        }
    }
}

/// Parses the answer to `/browse/<path>`, which may include other paths.
///
/// # Errors
/// If it is not the expected JSON.
pub(super) fn parse(body: &[u8], path: &ObjectPath) -> Result<PathListing, String> {
    let mut listing = PathListing::default();
    let mut seen = HashMap::new();
    read_page(body, |entry| {
        listing.entries += 1;
        listing.traces.add(&entry);
        match entry.judge(path) {
            Ok(Judged::Version(listed)) => listing.add(*listed, &mut seen),
            Ok(Judged::OtherPath | Judged::NeverValid) => {}
            Err(doubt) => listing.doubt(doubt),
        }
    })?;
    listing.traces.quick.sort_unstable();
    Ok(listing)
}

/// Parses the paths in an answer to `/browse`, with their numbers of entries.
///
/// # Errors
/// If it is not the expected JSON.
pub(super) fn parse_paths(body: &[u8]) -> Result<BTreeMap<ObjectPath, u64>, String> {
    let mut counts = BTreeMap::new();
    read_page(body, |entry| {
        // A path that violates the grammar cannot be requested either.
        if let Some(Ok(path)) = entry.text("path").map(|p| ObjectPath::new(p.trim_matches('/'))) {
            *counts.entry(path).or_insert(0) += 1;
        }
    })?;
    Ok(counts)
}

/// Parses the folders one level below.
///
/// # Errors
/// If it is not the expected JSON.
pub(super) fn parse_folder(body: &[u8]) -> Result<Vec<String>, String> {
    read_page(body, drop)
}

/// Fields whose [`trace`](ListingEntry::trace) is cheap to request.
pub(super) const QUICK_FIELDS: [&str; 2] = ["id", "validUntil"];
/// Fields that show every change of a version.
pub(super) const DIGEST_FIELDS: [&str; 5] =
    ["id", "createTime", "validFrom", "validUntil", "lastModified"];

/// Parses the traces of the entries of a listing with `fields`.
///
/// # Errors
/// If it is not the expected JSON.
pub(super) fn parse_traces(body: &[u8], fields: &[&str]) -> Result<Vec<u64>, String> {
    let mut traces = Vec::new();
    read_page(body, |entry| traces.push(entry.trace(fields)))?;
    traces.sort_unstable();
    Ok(traces)
}

/// Traces of a whole listing, to compare later listings with it.
#[derive(Debug, Default)]
pub(super) struct Traces {
    /// Latest creation time (ms).
    pub(super) newest: Option<i64>,
    /// Traces of [`QUICK_FIELDS`] of the versions created at that time, sorted.
    pub(super) quick: Vec<u64>,
    /// Sum of the traces of [`DIGEST_FIELDS`] of all entries.
    pub(super) digest: u64,
}

impl Traces {
    fn add(&mut self, entry: &ListingEntry) {
        self.digest = self.digest.wrapping_add(entry.trace(&DIGEST_FIELDS));
        let created = entry.integer("createTime").or_else(|| entry.integer("Created"));
        if created > self.newest {
            (self.newest, self.quick) = (created, Vec::new());
        }
        if created == self.newest {
            self.quick.push(entry.trace(&QUICK_FIELDS));
        }
    }
}

/// Calls `each` for every entry of a page, and returns its `subfolders`.
fn read_page(body: &[u8], mut each: impl FnMut(ListingEntry)) -> Result<Vec<String>, String> {
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let read = ListingPage { each: &mut each }.deserialize(&mut deserializer);
    read.and_then(|folders| deserializer.end().map(|()| folders))
        .map_err(|error| format!("no listing in JSON: {error}"))
}

struct ListingPage<'a, F> {
    each: &'a mut F,
}

impl<'de, F: FnMut(ListingEntry)> DeserializeSeed<'de> for ListingPage<'_, F> {
    type Value = Vec<String>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, F: FnMut(ListingEntry)> Visitor<'de> for ListingPage<'_, F> {
    type Value = Vec<String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with the key objects")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut folders = Vec::new();
        let mut has_objects = false;
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "objects" => {
                    map.next_value_seed(ListingEntries { each: &mut *self.each })?;
                    has_objects = true;
                }
                "subfolders" => {
                    let all: Vec<ListedFolder> = map.next_value()?;
                    folders.extend(all.into_iter().map(|folder| match folder {
                        ListedFolder::Named(name) | ListedFolder::Reported { name } => name,
                    }));
                }
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        match has_objects {
            true => Ok(folders),
            false => Err(serde::de::Error::missing_field("objects")),
        }
    }
}

/// A subfolder: a name or, in a report, a name with counts.
#[derive(Deserialize)]
#[serde(untagged)]
enum ListedFolder {
    Named(String),
    Reported { name: String },
}

struct ListingEntries<'a, F> {
    each: &'a mut F,
}

impl<'de, F: FnMut(ListingEntry)> DeserializeSeed<'de> for ListingEntries<'_, F> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de, F: FnMut(ListingEntry)> Visitor<'de> for ListingEntries<'_, F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while let Some(entry) = seq.next_element::<ListingEntry>()? {
            (self.each)(entry);
        }
        Ok(())
    }
}
pub(super) fn of_all_time(query: &Query, mut versions: Vec<Arc<ObjectInfo>>) -> Knowledge {
    versions.retain(|version| query.matches(version));
    Knowledge { span: ValidityInterval::ALL, versions, problems: Vec::new(), stale: false }
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

    fn page(entries: &[String]) -> PathListing {
        let body =
            format!("{{\"objects\":[\n{{{}}}]\n,\"subfolders\":[\n]\n}}", entries.join("},\n{"));
        parse(body.as_bytes(), &ObjectPath::new("A/One").unwrap()).unwrap()
    }

    #[test]
    fn a_recorded_listing_is_read() {
        let listing = page(&[entry("")]);
        assert_eq!(listing.doubts, Vec::<String>::new());
        let Listed { version, replicas, details } = &listing.versions[0];
        assert_eq!(version.id.to_string(), ID);
        assert_eq!(version.validity.to_string(), "[1000, 2000)");
        assert_eq!((version.size_bytes, version.md5.is_some()), (Some(14), true));
        assert_eq!(
            version.metadata.clone().into_iter().collect::<Vec<_>>(),
            [("run".to_owned(), "1".to_owned())]
        );
        assert_eq!(replicas, &[format!("/A/One/1000/{ID}")]);
        assert_eq!(details.file_name.as_deref(), Some("a.txt"));
        assert_eq!(details.content_type.as_deref(), Some("text/plain"));
        assert_eq!(details.initial_until.map(|until| until.as_millis()), Some(2000));
    }

    #[test]
    fn metadata_that_replace_keys_of_the_listing_are_metadata() {
        for (key, value) in [
            ("createTime", "5"),
            ("size", "9"),
            ("validFrom", "7"),
            ("Valid-Until", "1"),
            ("lastModified", "x"),
            ("id", "abc"),
            ("ETag", "foo"),
            ("MD5", "q"),
            ("fileName", "other"),
            ("contentType", "none"),
        ] {
            let plain = entry("");
            let start = plain.find(&format!("\"{key}\":")).unwrap() + key.len() + 3;
            let length = plain[start..].find(",\"").unwrap();
            let changed = format!("{}\"{value}\"{}", &plain[..start], &plain[start + length..]);
            let listing = page(&[changed]);
            assert_eq!(listing.doubts, Vec::<String>::new(), "{key}");
            let version = &listing.versions[0].version;
            assert_eq!((version.id.to_string().as_str(), version.size_bytes), (ID, Some(14)));
            assert_eq!(version.validity.to_string(), "[1000, 2000)");
            assert_eq!(version.metadata.get(key).map(String::as_str), Some(value));
            assert_eq!(version.metadata.len(), 2, "{:?}", version.metadata);
        }
        let listing = page(&[entry("\"run\":\"1\"=\"metadata\":\"m\"")]);
        assert_eq!(listing.versions[0].version.metadata["metadata"], "m");
    }

    #[test]
    fn a_version_that_is_listed_twice_counts_once_and_two_of_one_id_are_a_doubt() {
        let same = page(&[entry(""), entry("")]);
        assert_eq!((same.versions.len(), same.doubts.len(), same.entries), (1, 0, 2));
        let other = page(&[entry(""), entry("\"run\":\"1\"=\"run\":\"2\"")]);
        assert_eq!(other.doubts.len(), 1);
    }

    #[test]
    fn traces_change_with_what_was_asked_for_and_with_nothing_else() {
        let traces = |change: &str| page(&[entry(change)]).traces;
        let plain = traces("");
        let quick = |body: &str| parse_traces(body.as_bytes(), &QUICK_FIELDS).unwrap();
        let few = format!(r#"{{"objects":[{{"id":"{ID}","validUntil":2000}}]}}"#);
        assert_eq!(quick(&few), plain.quick);
        assert_ne!(quick(&few.replace("2000", "2001")), plain.quick);
        assert_ne!(quick(r#"{"objects":[]}"#), plain.quick);
        assert_eq!(traces("\"run\":\"1\"=\"run\":\"2\"").digest, plain.digest);
        assert_ne!(traces("\"lastModified\":1795=\"lastModified\":1796").digest, plain.digest);
        assert_eq!(plain.newest, Some(1_795_421_846_777));
    }

    #[test]
    fn keys_that_no_header_can_spell_are_known_as_such() {
        let spelling = page(&[entry(
            "\"run\":\"1\"=\"runNumber\":\"1\",\"a b\":\"2\",\"Two\":\"3\",\"two\":\"4\"",
        )])
        .spelling();
        assert_eq!(spelling["runnumber"].as_deref(), Some("runNumber"));
        assert_eq!((&spelling["a b"], &spelling["two"]), (&None, &None));
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
        // `ETag=foo` and `Valid-From=7` as uploaded: strings in place of the new keys.
        let changed = entry(&format!("\"ETag\":\"\\\"{ID}\\\"\"=\"ETag\":\"foo\""))
            .replace("\"Valid-From\":1000", "\"Valid-From\":\"7\"");
        let listing = page(&[changed]);
        assert!(listing.doubts.is_empty(), "{:?}", listing.doubts);
        assert_eq!(listing.versions[0].version.id.to_string(), ID);
        assert_eq!(listing.versions[0].version.validity.from().as_millis(), 1000);
    }

    #[test]
    fn what_cannot_be_told_for_sure_is_a_doubt_and_not_passed_over() {
        let other = ID.replace("517e", "0000");
        for change in [
            format!("\"id\":\"{ID}\"=\"id\":\"{other}\""),
            format!("/1000\\/{ID}=/1000\\/{other}"),
            "\"validFrom\":1000=\"validFrom\":999".to_owned(),
            "\"run\":\"1\"=\"id\":\"x\"".to_owned(),
            // Metadata `path`, or a version of another path: the entry does not show which.
            "\"path\":\"A\\/One\"=\"path\":\"x\"".to_owned(),
            "\"path\":\"A\\/One\"=\"path\":5".to_owned(),
            "\"MD5\":\"a34a=\"MD5\":\"0000".to_owned(),
            "\"createTime\":1795421846777=\"createTime\":1".to_owned(),
        ] {
            let listing = page(&[entry(&change)]);
            // If only the old key has another id, ETag and replica decide.
            let settled = change.starts_with("\"id\"") && listing.doubts.is_empty();
            assert!(listing.doubts.len() == 1 || settled, "{change}: {listing:?}");
            if settled {
                assert_eq!(listing.versions[0].version.id.to_string(), ID);
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
