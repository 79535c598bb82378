//! The versions of one path in an object store, as listed.
//!
//! ```text
//!  files of a listing ──▶ pairs ──state as before──▶ kept
//!                           └──changed, new──▶ FreshPairs ──row of the index in this state──▶ taken
//!                                                  └──none──▶ its properties are read
//! ```

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use object_store::ObjectMeta;
use object_store::path::Path;

use super::entry::PROPERTIES;
use super::folder::from_of;
use super::index::{RowRef, store_stamp};
use crate::interval::{Timestamp, ValidityInterval};
use crate::object::{ObjectId, ObjectInfo, ObjectPath};
use crate::source::{Problem, page_key};

/// A blob without properties counts as an unfinished put up to this age.
const PUT_LIMIT: Duration = Duration::from_secs(10);

/// Data read for a path.
#[derive(Debug, Default)]
pub(super) struct StoredListing {
    /// Time of the last look-up that reached the store.
    pub(super) read_at: Option<Instant>,
    /// Time of the last listing of the whole path.
    pub(super) listed_at: Option<Instant>,
    /// Generation of the index at `read_at`.
    pub(super) generation: u64,
    entries: HashMap<String, StoredPair>,
    /// In order of (`from`, id).
    pub(super) versions: Vec<Arc<ObjectInfo>>,
    /// By location: reason why a file is no part of a version.
    faults: BTreeMap<String, String>,
}

/// The two files of a version, as last read.
#[derive(Debug, Clone)]
pub(super) struct StoredPair {
    pub(super) stamp: (ObjectStamp, ObjectStamp),
    pub(super) read: Result<Arc<ObjectInfo>, String>,
}

impl StoredPair {
    fn index_stamp(&self) -> u64 {
        let ((_, blob, blob_tag), (_, properties, properties_tag)) = &self.stamp;
        store_stamp((blob_tag.as_deref(), *blob), (properties_tag.as_deref(), *properties))
    }
}

/// Values that differ once a file was changed: time (ns), size (bytes), ETag.
type ObjectStamp = (i64, u64, Option<String>);

pub(super) fn stamp(meta: &ObjectMeta) -> ObjectStamp {
    let modified = meta.last_modified.timestamp_nanos_opt().unwrap_or(0);
    (modified, meta.size, meta.e_tag.clone())
}

/// A pair of files whose contents are not known.
#[derive(Debug)]
pub(super) struct FreshPair {
    pub(super) location: String,
    pub(super) blob: ObjectMeta,
    pub(super) properties: ObjectMeta,
}

/// The pairs of files whose contents are not known, and those found in the index.
#[derive(Debug, Default)]
pub(super) struct FreshPairs {
    /// By `from` and id. Pairs with other names are not in an index.
    by_key: HashMap<(i64, ObjectId), FreshPair>,
    others: Vec<FreshPair>,
    indexed: Vec<(String, StoredPair)>,
}

impl StoredListing {
    pub(super) fn problems(&self) -> Vec<Problem> {
        let wrong = self
            .entries
            .iter()
            .filter_map(|(location, pair)| Some((location, pair.read.as_ref().err()?)));
        let all = wrong.chain(&self.faults);
        all.map(|(entry, reason)| Problem { entry: entry.clone(), reason: reason.clone() })
            .collect()
    }

    /// Each version with the stamp of its objects for the index; 0 for versions whose file name is
    /// not their id, which are always read from their properties.
    pub(super) fn stamped(&self) -> impl Iterator<Item = (ObjectInfo, u64)> {
        self.entries.iter().filter_map(|(location, pair)| {
            let info = pair.read.as_ref().ok()?;
            let is_named_by_id = location.rsplit('/').next() == Some(&*info.id.to_string());
            let stamp = if is_named_by_id { pair.index_stamp() } else { 0 };
            Some((ObjectInfo::clone(info), stamp))
        })
    }

    /// Whether the version at `location` is known in the state that `index_stamp` describes.
    pub(super) fn has(&self, location: &str, index_stamp: u64) -> bool {
        let known = self.entries.get(location).map(StoredPair::index_stamp);
        index_stamp != 0 && known == Some(index_stamp)
    }

    /// Takes a listing of the whole path, or of `folders` of it. Returns the pairs to be read.
    pub(super) fn begin(&mut self, files: Vec<ObjectMeta>, folders: Option<&[Path]>) -> FreshPairs {
        let is_listed = |location: &str| match folders {
            None => true,
            Some(folders) => {
                let folder = location.rsplit_once('/').map_or("", |(folder, _)| folder);
                folders.iter().any(|listed| listed.as_ref() == folder)
            }
        };
        let (before, kept) =
            std::mem::take(&mut self.entries).into_iter().partition(|(key, _)| is_listed(key));
        let mut before: HashMap<String, StoredPair> = before;
        self.entries = kept;
        self.faults.retain(|location, _| !is_listed(location));
        let mut fresh = FreshPairs::default();
        for (location, pair) in pairs(files) {
            match pair {
                (Some(blob), Some(properties)) => {
                    let now = (stamp(&blob), stamp(&properties));
                    match before.remove(location.as_ref()) {
                        Some(known) if known.stamp == now => {
                            self.entries.insert(location.to_string(), known);
                        }
                        _ => fresh.insert(location, blob, properties),
                    }
                }
                (Some(blob), None) => {
                    if age_of(&blob).is_none_or(|age| age > PUT_LIMIT) {
                        let reason = format!("{PROPERTIES} is not there");
                        self.faults.insert(location.to_string(), reason);
                    }
                }
                // An unfinished put: properties are written first.
                (None, _) => {}
            }
        }
        fresh
    }

    /// Takes the pairs that were read.
    pub(super) fn finish(&mut self, read: impl Iterator<Item = (String, StoredPair)>) {
        self.entries.extend(read);
        self.versions = self.entries.values().filter_map(|pair| pair.read.clone().ok()).collect();
        self.versions.sort_unstable_by_key(|version| page_key(version));
    }
}

impl FreshPairs {
    fn insert(&mut self, location: Path, blob: ObjectMeta, properties: ObjectMeta) {
        let key = key_of(&location);
        let pair = FreshPair { location: location.into(), blob, properties };
        match key {
            Some(key) => drop(self.by_key.insert(key, pair)),
            None => self.others.push(pair),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_key.is_empty() && self.others.is_empty()
    }

    /// Takes a row of the index, if it describes one of the pairs in its present state. Returns the
    /// version then.
    pub(super) fn take_indexed(
        &mut self,
        path: &ObjectPath,
        row: &RowRef<'_>,
    ) -> Option<Arc<ObjectInfo>> {
        let key = (row.from, row.id);
        let pair = self.by_key.get(&key)?;
        let now = store_stamp(
            (pair.blob.e_tag.as_deref(), pair.blob.size),
            (pair.properties.e_tag.as_deref(), pair.properties.size),
        );
        if now == 0 || now != row.stamp || pair.blob.size != row.size_bytes {
            return None;
        }
        let [from, until, created] = [row.from, row.until, row.created].map(Timestamp::from_millis);
        let validity = ValidityInterval::new(from, until).ok()?;
        let FreshPair { location, blob, properties } = self.by_key.remove(&key)?;
        let info = ObjectInfo {
            path: path.clone(),
            id: row.id,
            validity,
            created,
            size_bytes: Some(row.size_bytes),
            md5: row.md5,
            metadata: row.metadata().collect(),
        };
        let (info, stamp) = (Arc::new(info), (stamp(&blob), stamp(&properties)));
        self.indexed.push((location, StoredPair { stamp, read: Ok(Arc::clone(&info)) }));
        Some(info)
    }

    /// The pairs found in the index, and those to be read.
    pub(super) fn into_parts(self) -> (Vec<(String, StoredPair)>, Vec<FreshPair>) {
        (self.indexed, self.by_key.into_values().chain(self.others).collect())
    }
}

/// Bytes and properties of each version, by the location of the bytes.
fn pairs(files: Vec<ObjectMeta>) -> HashMap<Path, (Option<ObjectMeta>, Option<ObjectMeta>)> {
    let mut pairs: HashMap<Path, (Option<ObjectMeta>, Option<ObjectMeta>)> = HashMap::new();
    for file in files {
        if file.location.filename().is_some_and(|name| name.starts_with('.')) {
            continue;
        }
        let blob = file.location.as_ref().strip_suffix(PROPERTIES).map(Path::parse);
        match blob {
            Some(Ok(blob)) => pairs.entry(blob).or_default().1 = Some(file),
            Some(Err(_)) => {}
            None => {
                let location = file.location.clone();
                pairs.entry(location).or_default().0 = Some(file);
            }
        }
    }
    pairs
}

/// `from` and id of a version whose file name is its id.
pub(super) fn key_of(location: &Path) -> Option<(i64, ObjectId)> {
    let mut parts = location.as_ref().rsplit('/');
    let name = parts.next()?;
    let id = ObjectId::parse(name).filter(|id| id.to_string() == name)?;
    Some((from_of(parts.next()?)?, id))
}

fn age_of(meta: &ObjectMeta) -> Option<Duration> {
    let modified = SystemTime::from(meta.last_modified);
    // A time in the future is the end of validity: the put is complete.
    SystemTime::now().duration_since(modified).ok()
}
