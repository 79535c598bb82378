//! Parses the JSON of `/browse` into the versions of a path. An entry in doubt makes it unusable.
//!
//! Entries are judged while they are parsed, so the memory for a long listing is that of its
//! versions, not of its JSON.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::io::{BufReader, Read};
use std::sync::Arc;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::entry::{Judged, Listed, ListingEntry, is_listing_key};
use crate::interval::ValidityInterval;
use crate::object::{ObjectId, ObjectInfo, ObjectPath, Query};
use crate::source::Knowledge;

/// Maximum number of doubts kept for the log. A single one makes a listing unusable.
const DOUBTS_KEPT: usize = 8;

/// Bytes read at once from a listing that is parsed while it arrives.
const READ_BYTES: usize = 32 << 10;

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
    /// The server serves the versions of several sources, of which the first with a valid version
    /// decides. A listing does not tell which version is of which source.
    pub(super) of_several_sources: bool,
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
                .or_insert_with(|| is_header.then(|| key.to_owned()));
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
    let mut traces = TraceCollector::default();
    let mut replaces_keys = false;
    read_page(body, |entry| {
        listing.entries += 1;
        traces.add(&entry);
        match entry.judge(path) {
            Ok(Judged::Version(listed)) => {
                replaces_keys |= listed.version.metadata.keys().any(is_listing_key);
                listing.add(*listed, &mut seen);
            }
            Ok(Judged::OtherPath | Judged::NeverValid) => {}
            Err(doubt) => listing.doubt(doubt),
        }
    })?;
    listing.traces = Traces { replaces_keys, ..traces.finish() };
    Ok(listing)
}

/// Parses the folders one level below.
///
/// # Errors
/// If it is not the expected JSON.
pub(super) fn parse_folder(body: &[u8]) -> Result<Vec<String>, String> {
    read_page(body, drop)
}

/// Bytes of an answer that a check may use for metadata of the newest version, and that it may save
/// for comparisons of all versions: with them, a check every 1.5 refresh times costs 300 bytes per
/// refresh time.
pub(super) const SPARE_BYTES_PER_CHECK: u64 = 25;
/// Maximum number of metadata keys by which versions are compared.
const MAX_TRACED_KEYS: usize = 64;

/// Parses the traces of the entries of a listing of few fields, sorted.
///
/// # Errors
/// If it is not the expected JSON.
pub(super) fn parse_traces(body: &[u8]) -> Result<Vec<u64>, String> {
    let mut traces = Vec::new();
    read_page(body, |entry| traces.push(entry.trace(true, None)))?;
    traces.sort_unstable();
    Ok(traces)
}

/// Traces of a whole listing, to compare later listings of few fields with it.
///
/// File-backed servers list the time of the last change of a version. SQL-backed servers list its
/// creation time in that place, so only the metadata themselves show a change of metadata.
#[derive(Debug, Default)]
pub(super) struct Traces {
    /// Latest creation time (ms).
    pub(super) newest: Option<i64>,
    /// Traces of the versions created at that time, sorted.
    pub(super) newest_traces: Vec<u64>,
    /// Metadata keys in these traces.
    pub(super) newest_keys: BTreeSet<String>,
    /// Sum of the traces of all entries.
    pub(super) digest: u64,
    /// Metadata keys in the digest.
    pub(super) keys: BTreeSet<String>,
    /// Size of all metadata in bytes.
    pub(super) metadata_bytes: u64,
    /// Whether the listing has times of changes.
    pub(super) has_changes: bool,
    /// Whether a version has metadata named like a key of the listing: without times of changes, only
    /// whole listings show a change of those.
    pub(super) replaces_keys: bool,
}

impl Traces {
    /// Fields of a request for the newest versions.
    pub(super) fn newest_fields(&self) -> String {
        self.fields_with(&self.newest_keys)
    }

    /// Fields of a request for the traces of all versions.
    pub(super) fn fields(&self) -> String {
        self.fields_with(&self.keys)
    }

    fn fields_with(&self, keys: &BTreeSet<String>) -> String {
        let checked: &[&str] = match self.has_changes {
            true => &["lastModified", "validUntil"],
            false => &["validUntil"],
        };
        let keys = keys.iter().map(String::as_str);
        checked.iter().copied().chain(keys).collect::<Vec<_>>().join(",")
    }
}

/// Whether a server can be asked for metadata with this key.
fn is_field(key: &str) -> bool {
    !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_graphic() && byte != b',')
}

/// Collects [`Traces`] while a listing is parsed.
#[derive(Default)]
struct TraceCollector {
    traces: Traces,
    newest: Vec<ListingEntry>,
    /// Metadata cannot be compared by requests for fields: a request for metadata also shows those
    /// that replace keys of the listing, or a key is no valid field.
    without_metadata: bool,
    /// Sums of traces: with metadata or without, with times of changes or without.
    digests: [[u64; 2]; 2],
}

impl TraceCollector {
    fn add(&mut self, entry: &ListingEntry) {
        let none = BTreeSet::new();
        for (keys, sums) in [Some(&none), None].into_iter().zip(&mut self.digests) {
            for (with_changes, sum) in [false, true].into_iter().zip(sums) {
                *sum = sum.wrapping_add(entry.trace(with_changes, keys));
            }
        }
        let traces = &mut self.traces;
        traces.has_changes |= entry.is_file_backed();
        self.without_metadata |= entry.has_replaced_keys();
        for (key, value) in entry.own_metadata() {
            traces.metadata_bytes += (key.len() + value.len()) as u64;
            if !traces.keys.contains(key) {
                self.without_metadata |= !is_field(key) || traces.keys.len() >= MAX_TRACED_KEYS;
                traces.keys.insert(key.to_owned());
            }
        }
        let created = entry.integer("createTime").or_else(|| entry.integer("Created"));
        if created > traces.newest {
            (traces.newest, self.newest) = (created, Vec::new());
        }
        if created == traces.newest {
            self.newest.push(entry.clone());
        }
    }

    fn finish(self) -> Traces {
        let mut traces = self.traces;
        let has_changes = traces.has_changes;
        if self.without_metadata {
            traces.keys = BTreeSet::new();
        }
        let [plain, with_metadata] = self.digests;
        let sums = if self.without_metadata { plain } else { with_metadata };
        traces.digest = sums[usize::from(has_changes)];
        let metadata = || self.newest.iter().flat_map(ListingEntry::own_metadata);
        // With the quotes, the colon and the comma.
        let bytes: usize = metadata().map(|(key, value)| key.len() + value.len() + 6).sum();
        if bytes as u64 <= SPARE_BYTES_PER_CHECK && !self.without_metadata && !has_changes {
            traces.newest_keys = metadata().map(|(key, _)| key.to_owned()).collect();
        }
        let keys = Some(&traces.newest_keys);
        traces.newest_traces =
            self.newest.iter().map(|entry| entry.trace(has_changes, keys)).collect();
        traces.newest_traces.sort_unstable();
        traces
    }
}

/// Calls `each` for every entry of a page, and returns its `subfolders`.
fn read_page(body: &[u8], each: impl FnMut(ListingEntry)) -> Result<Vec<String>, String> {
    read_page_of(serde_json::Deserializer::from_slice(body), each)
}

/// Calls `each` for every entry of a page while it is read.
///
/// # Errors
/// If it is not the expected JSON, or cannot be read.
pub(super) fn read_page_from(
    reader: impl Read,
    each: impl FnMut(ListingEntry),
) -> Result<(), String> {
    let reader = BufReader::with_capacity(READ_BYTES, reader);
    read_page_of(serde_json::Deserializer::from_reader(reader), each).map(drop)
}

fn read_page_of<'de, R: serde_json::de::Read<'de>>(
    mut deserializer: serde_json::Deserializer<R>,
    mut each: impl FnMut(ListingEntry),
) -> Result<Vec<String>, String> {
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

/// The versions that match `query`, known for all of time.
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
        assert_eq!(version.metadata, [("run", "1")].into());
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
            assert_eq!(version.metadata.get(key), Some(value));
            assert_eq!(version.metadata.len(), 2, "{:?}", version.metadata);
        }
        let listing = page(&[entry("\"run\":\"1\"=\"metadata\":\"m\"")]);
        assert_eq!(listing.versions[0].version.metadata.get("metadata"), Some("m"));
    }

    #[test]
    fn a_version_that_is_listed_twice_counts_once_and_two_of_one_id_are_a_doubt() {
        let same = page(&[entry(""), entry("")]);
        assert_eq!((same.versions.len(), same.doubts.len(), same.entries), (1, 0, 2));
        let other = page(&[entry(""), entry("\"run\":\"1\"=\"run\":\"2\"")]);
        assert_eq!(other.doubts.len(), 1);
    }

    /// An entry of an SQL-backed server.
    fn sql_entry(change: &str) -> String {
        entry(change).replace(r"\/A\/One\/1000\/", r"\/download\/")
    }

    #[test]
    fn traces_change_with_every_change_that_a_listing_of_few_fields_shows() {
        let told = |body: &str| parse_traces(body.as_bytes()).unwrap();
        let file_backed = page(&[entry("")]).traces;
        assert_eq!(file_backed.newest, Some(1_795_421_846_777));
        assert_eq!(file_backed.newest_fields(), "lastModified,validUntil");
        assert_eq!(file_backed.fields(), "lastModified,validUntil,run");
        let sql_backed = page(&[sql_entry("")]).traces;
        assert_eq!(sql_backed.newest_fields(), "validUntil,run");
        assert_eq!(sql_backed.fields(), sql_backed.newest_fields());
        let [newest, all] = [r#""#, r#","run":"1""#].map(|metadata| {
            format!(
                r#"{{"objects":[{{"lastModified":1795421846777,"validUntil":2000{metadata}}}]}}"#
            )
        });
        let sql = r#"{"objects":[{"validUntil":2000,"run":"1"}]}"#;
        assert_eq!(told(&newest), file_backed.newest_traces);
        assert_eq!(told(&all)[0], file_backed.digest);
        assert_eq!(told(sql), sql_backed.newest_traces);
        assert_eq!(told(sql)[0], sql_backed.digest);
        for (old, new) in [("2000", "2001"), ("777", "778"), ("\"1\"", "\"2\"")] {
            assert_ne!(told(&all.replace(old, new))[0], file_backed.digest, "{old}");
            assert!(told(&sql.replace(old, new)) != sql_backed.newest_traces || old == "777");
        }
        assert_ne!(told(r#"{"objects":[]}"#), sql_backed.newest_traces);
    }

    #[test]
    fn metadata_that_cannot_be_requested_alone_are_not_compared() {
        let told = parse_traces(br#"{"objects":[{"validUntil":2000}]}"#).unwrap();
        for change in ["\"a,b\":\"1\"", "\"a b\":\"1\"", "\"\":\"1\"", "\"\\u00e9\":\"1\""] {
            let traces = page(&[sql_entry(&format!("\"run\":\"1\"={change}"))]).traces;
            assert_eq!(traces.fields(), "validUntil", "{change}");
            assert_eq!((told[0], &told), (traces.digest, &traces.newest_traces), "{change}");
        }
        // A request for metadata would show the replaced value.
        let replaced = page(&[sql_entry("\"validUntil\":2000=\"validUntil\":\"7\"")]).traces;
        assert_eq!(replaced.fields(), "validUntil");
        assert_eq!(told, replaced.newest_traces);
        // Long metadata of the newest version are compared less often.
        let long = format!("\"run\":\"1\"=\"run\":\"{}\"", "x".repeat(100));
        let long = page(&[sql_entry(&long)]).traces;
        assert_eq!(long.newest_fields(), "validUntil");
        assert_eq!(long.fields(), "validUntil,run");
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
    fn an_uncertain_result_is_a_doubt_and_is_not_passed_over() {
        let other = ID.replace("517e", "0000");
        for change in [
            format!("\"id\":\"{ID}\"=\"id\":\"{other}\""),
            format!("/1000\\/{ID}=/1000\\/{other}"),
            "\"validFrom\":1000=\"validFrom\":999".to_owned(),
            "\"run\":\"1\"=\"id\":\"x\"".to_owned(),
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
    fn the_replicas_of_a_file_backed_server_tell_the_path_whatever_its_key_says() {
        for said in ["x", "One", r"A\/One\/", "", "7", r"B\/A\/One"] {
            let listing = page(&[entry(&format!(r#""path":"A\/One"="path":"{said}""#))]);
            assert_eq!(listing.doubts, Vec::<String>::new(), "{said}");
            let version = &listing.versions[0].version;
            let said = said.replace('\\', "");
            assert_eq!(
                (version.path.as_str(), version.metadata.get("path")),
                ("A/One", Some(&*said))
            );
        }
        // Replicas of another path: with metadata, with a prefix, or of several paths.
        let deep = entry(r"A\/One\/1000=A\/One\/Deep\/1000");
        let prefixed = entry(r"A\/One\/1000=base\/A\/One\/1000");
        let two = entry(&format!(r#""replicas":[="replicas":["\/B\/1000\/{ID}","#));
        // Another path, although metadata replace no key.
        let apart = entry(r#""path":"A\/One"="metadata":{},"path":"A\/Two""#);
        let sql_backed = sql_entry(r#""path":"A\/One"="path":"One""#);
        for doubted in [deep, prefixed, two, apart, sql_backed] {
            let listing = page(std::slice::from_ref(&doubted));
            assert_eq!((listing.versions.len(), listing.doubts.len()), (0, 1), "{doubted}");
        }
    }

    #[test]
    fn a_key_that_stands_twice_is_told_apart_by_its_type_or_is_a_doubt() {
        let plain = entry("");
        let places: Vec<usize> =
            plain.match_indices(",\"").map(|(place, _)| place).chain([plain.len()]).collect();
        for (key, is_number) in [
            ("path", false),
            ("id", false),
            ("ETag", false),
            ("MD5", false),
            ("fileName", false),
            ("Content-Type", false),
            ("size", true),
            ("createTime", true),
            ("validFrom", true),
            ("Valid-Until", true),
            ("lastModified", true),
            ("initialValidity", true),
            ("replicas", true),
        ] {
            for place in &places {
                let (before, after) = plain.split_at(*place);
                let listing = page(&[format!("{before},\"{key}\":\"One\"{after}")]);
                match is_number {
                    true => {
                        assert_eq!(listing.doubts, Vec::<String>::new(), "{key}");
                        let version = &listing.versions[0].version;
                        assert_eq!(version.metadata.get(key), Some("One"), "{place}");
                        assert_eq!(version.validity.to_string(), "[1000, 2000)");
                    }
                    false => assert_eq!(
                        (listing.versions.len(), listing.doubts.len()),
                        (0, 1),
                        "{key} {place}"
                    ),
                }
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
    fn an_answer_that_is_no_listing_is_an_error() {
        let path = ObjectPath::new("A/One").unwrap();
        for body in ["", "[]", "{}", "Usage of /*:", r#"{"objects":[1]}"#, r#"{"objects":{}}"#] {
            assert!(parse(body.as_bytes(), &path).is_err(), "{body}");
        }
    }
}
