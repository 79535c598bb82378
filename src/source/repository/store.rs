//! Reads a repository in an object store.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{StreamExt as _, TryStreamExt as _};
use md5::{Digest as _, Md5};
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt as _};
use tokio::sync::Mutex;

use super::bucket::Bucket;
use super::entry::{self, PROPERTIES, difference, names};
use super::properties::Properties;
use crate::interval::{Timestamp, ValidityInterval};
use crate::object::{Md5Sum, ObjectId, ObjectInfo, ObjectPath, Query};
use crate::source::{Body, BodyError, Knowledge, PathSummary, Problem, SourceError, write_all};

/// Maximum number of paths whose listings are kept.
const MAX_PATHS: u64 = 10_000;
/// Maximum number of folders and properties read in parallel.
const PARALLEL_READS: usize = 16;
/// Maximum size of a properties file.
const MAX_PROPERTIES_BYTES: u64 = 1 << 20;
/// A blob without properties counts as an unfinished put up to this age.
const PUT_LIMIT: Duration = Duration::from_secs(10);

/// A repository in an object store.
pub(super) struct StoreRepository {
    url: String,
    store: Arc<dyn ObjectStore>,
    /// Prefix of the repository in the store.
    prefix: Path,
    refresh: Duration,
    listings: moka::sync::Cache<ObjectPath, Arc<Mutex<StoredListing>>>,
}

/// Data read for a path.
#[derive(Debug, Default)]
struct StoredListing {
    read_at: Option<Instant>,
    entries: HashMap<String, StoredPair>,
    versions: Vec<Arc<ObjectInfo>>,
    problems: Vec<Problem>,
}

/// The two files of a version, as last read.
#[derive(Debug, Clone)]
struct StoredPair {
    stamp: (ObjectStamp, ObjectStamp),
    read: Result<Arc<ObjectInfo>, String>,
}

/// Values that differ once a file was changed: time (ns), size (bytes), ETag.
type ObjectStamp = (i64, u64, Option<String>);

fn stamp(meta: &ObjectMeta) -> ObjectStamp {
    let modified = meta.last_modified.timestamp_nanos_opt().unwrap_or(0);
    (modified, meta.size, meta.e_tag.clone())
}

impl fmt::Debug for StoreRepository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StoreRepository({})", self.url)
    }
}

impl StoreRepository {
    pub(super) fn new(bucket: Bucket, refresh: Duration) -> Self {
        let Bucket { url, store, prefix } = bucket;
        Self { url, store, prefix, refresh, listings: moka::sync::Cache::new(MAX_PATHS) }
    }

    /// The place of the repository, for writing.
    pub(super) fn bucket(&self) -> Bucket {
        Bucket::of(self.url.clone(), Arc::clone(&self.store), self.prefix.clone())
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    fn location(&self, path: &str) -> Path {
        path.split('/').fold(self.prefix.clone(), |location, part| location.join(part))
    }

    /// Drops the listing of `path`, so that the next look-up lists it again.
    pub(super) fn forget(&self, path: &ObjectPath) {
        self.listings.invalidate(path);
    }

    /// The folders directly beneath `path` (`""`: the root) that can be, or contain, paths; sorted.
    pub(super) async fn subfolders(&self, path: &str) -> Result<Vec<String>, SourceError> {
        let location = match path {
            "" => self.prefix.clone(),
            path => self.location(path),
        };
        let listed = self.store.list_with_delimiter(Some(&location)).await;
        let listed = listed.map_err(|error| self.error(path, &error))?;
        let names = listed.common_prefixes.iter().filter_map(|folder| folder.filename());
        let folders = names.map(|name| match path {
            "" => name.to_owned(),
            path => format!("{path}/{name}"),
        });
        let mut folders: Vec<String> =
            folders.filter(|folder| ObjectPath::new(folder).is_ok()).collect();
        folders.sort_unstable();
        Ok(folders)
    }

    fn error(&self, what: &str, error: &object_store::Error) -> SourceError {
        let (url, what, mut reason) = (self.url.clone(), what.to_owned(), error.to_string());
        let mut cause = std::error::Error::source(error);
        while let Some(error) = cause {
            let more = error.to_string();
            if !reason.contains(&more) {
                reason = format!("{reason}: {more}");
            }
            cause = error.source();
        }
        match error {
            object_store::Error::PermissionDenied { .. }
            | object_store::Error::Unauthenticated { .. } => {
                SourceError::NotAllowed { url, what, reason }
            }
            _ => SourceError::Down { url, what, reason },
        }
    }

    /// The files of the versions of a path, in folders with numeric names directly beneath it.
    async fn files(&self, path: &ObjectPath) -> Result<Vec<ObjectMeta>, object_store::Error> {
        let location = self.location(path.as_str());
        let below = self.store.list_with_delimiter(Some(&location)).await?;
        let all = below.common_prefixes.len();
        let folders: Vec<Path> = below
            .common_prefixes
            .into_iter()
            .filter(|folder| folder.filename().is_some_and(|name| name.parse::<i64>().is_ok()))
            .collect();
        if folders.len() > PARALLEL_READS && folders.len() == all {
            // No other path is below this one, so a single listing gives exactly its versions.
            let depth = location.parts().count() + 2;
            let listed = self.store.list(Some(&location));
            let deep = listed
                .try_filter(|file| std::future::ready(file.location.parts().count() == depth));
            return deep.try_collect().await;
        }
        let listed = folders.into_iter().map(|folder| async move {
            let listed = self.store.list_with_delimiter(Some(&folder)).await?;
            Ok::<_, object_store::Error>(listed.objects)
        });
        let listed: Vec<Vec<ObjectMeta>> =
            futures::stream::iter(listed).buffer_unordered(PARALLEL_READS).try_collect().await?;
        Ok(listed.into_iter().flatten().collect())
    }

    /// Reads the changes of a path since its last listing.
    async fn read(
        &self,
        path: &ObjectPath,
        listing: &mut StoredListing,
    ) -> Result<(), SourceError> {
        let files = self.files(path).await.map_err(|error| self.error(path.as_str(), &error))?;
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
        let mut problems = Vec::new();
        let mut fresh = Vec::new();
        let mut entries = HashMap::with_capacity(pairs.len());
        for (location, pair) in pairs {
            match pair {
                (Some(blob), Some(properties)) => {
                    let now = (stamp(&blob), stamp(&properties));
                    match listing.entries.get(location.as_ref()) {
                        Some(known) if known.stamp == now => {
                            entries.insert(location.to_string(), known.clone());
                        }
                        _ => fresh.push((location, blob, properties)),
                    }
                }
                (Some(blob), None) => {
                    let age = age_of(&blob);
                    if age.is_none_or(|age| age > PUT_LIMIT) {
                        let reason = format!("{PROPERTIES} is not there");
                        problems.push(Problem { entry: location.to_string(), reason });
                    }
                }
                // An unfinished put: properties are written first.
                (None, _) => {}
            }
        }
        let read = fresh.into_iter().map(|(location, blob, properties)| async move {
            let read = self.read_pair(path, &blob, &properties).await?;
            let entry =
                StoredPair { stamp: (stamp(&blob), stamp(&properties)), read: read.map(Arc::new) };
            Ok::<_, SourceError>((location.to_string(), entry))
        });
        let read: Vec<(String, StoredPair)> =
            futures::stream::iter(read).buffer_unordered(PARALLEL_READS).try_collect().await?;
        entries.extend(read);
        listing.versions = entries.values().filter_map(|entry| entry.read.clone().ok()).collect();
        problems.extend(entries.iter().filter_map(|(location, entry)| {
            let reason = entry.read.clone().err()?;
            Some(Problem { entry: location.clone(), reason })
        }));
        listing.problems = problems;
        listing.entries = entries;
        Ok(())
    }

    /// The version that two files describe, or their fault in words as the inner `Err`.
    async fn read_pair(
        &self,
        path: &ObjectPath,
        blob: &ObjectMeta,
        properties: &ObjectMeta,
    ) -> Result<Result<ObjectInfo, String>, SourceError> {
        if properties.size > MAX_PROPERTIES_BYTES {
            return Ok(Err(format!("{} bytes of properties are too many", properties.size)));
        }
        let got = async { self.store.get(&properties.location).await?.bytes().await };
        let bytes = match got.await {
            Ok(bytes) => bytes,
            // The file was removed since the listing.
            Err(object_store::Error::NotFound { .. }) => {
                return Ok(Err("it went away while it was read".to_owned()));
            }
            Err(error) => return Err(self.error(properties.location.as_ref(), &error)),
        };
        let read = Properties::parse(&bytes).map_err(|error| error.to_string());
        Ok(read.and_then(|properties| {
            let mut parts = blob.location.as_ref().rsplit('/');
            let name = parts.next().unwrap_or_default();
            let from = parts.next().and_then(|from| from.parse().ok());
            let from = from.map(Timestamp::from_millis).ok_or("its folder is no number")?;
            entry::version(path, from, name, blob.size, &properties)
        }))
    }

    async fn listing(&self, path: &ObjectPath) -> Result<Arc<Mutex<StoredListing>>, SourceError> {
        let listing = self.listings.get_with(path.clone(), Arc::default);
        let mut locked = listing.lock().await;
        // Another task may have read it in the meantime.
        let reuse = self.refresh / 5;
        if locked.read_at.is_none_or(|at| at.elapsed() >= reuse) {
            let began = Instant::now();
            self.read(path, &mut locked).await?;
            locked.read_at = Some(began);
        }
        drop(locked);
        Ok(listing)
    }

    /// The version as described by this repository.
    pub(super) async fn find(
        &self,
        path: &ObjectPath,
        id: ObjectId,
    ) -> Result<Option<Arc<ObjectInfo>>, SourceError> {
        let listing = self.listing(path).await?;
        let listing = listing.lock().await;
        Ok(listing.versions.iter().find(|version| version.id == id).cloned())
    }

    pub(super) async fn fetch(
        &self,
        version: &ObjectInfo,
        body: &mut dyn Body,
    ) -> Result<(), SourceError> {
        let what = format!("{} {}", version.path, version.id);
        let unusable =
            |reason| SourceError::Unusable { url: self.url.clone(), what: what.clone(), reason };
        let gone = || SourceError::NoSuchVersion {
            url: self.url.clone(),
            path: version.path.clone(),
            id: version.id,
        };
        let own = self.find(&version.path, version.id).await?.ok_or_else(gone)?;
        if let Some(difference) = difference(&own, version) {
            return Err(unusable(format!("the repository has another {difference} for it")));
        }
        let version = &*own;
        let folder = self.location(version.path.as_str());
        let folder = folder.join(version.validity.from().to_string());
        let mut got = None;
        for name in names(version.id, &version.metadata) {
            got = match self.store.get(&folder.clone().join(name)).await {
                Err(object_store::Error::NotFound { .. }) => None,
                got => Some(got.map_err(|error| self.error(&what, &error))?),
            };
            if got.is_some() {
                break;
            }
        }
        let got = got.ok_or_else(gone)?;
        let size = got.meta.size;
        if let Some(expected) = version.size_bytes
            && expected != size
        {
            return Err(unusable(format!("it has {size} bytes, expected {expected}")));
        }
        let full = |error: BodyError| SourceError::Body { what: what.clone(), error };
        body.reserve(size).await.map_err(full)?;
        let mut digest = Md5::new();
        let mut stream = got.into_stream();
        while let Some(piece) = stream.next().await {
            let piece = piece.map_err(|error| self.error(&what, &error))?;
            digest.update(&piece);
            if body.written_bytes() + piece.len() as u64 > size {
                return Err(unusable(format!("more than the {size} bytes announced")));
            }
            write_all(body, &piece).await.map_err(full)?;
        }
        let written = body.written_bytes();
        if written != size {
            return Err(unusable(format!("{written} bytes came of {size}")));
        }
        let md5 = Md5Sum(digest.finalize().into());
        match version.md5 {
            Some(expected) if expected != md5 => {
                Err(unusable(format!("its MD5 is {md5}, expected {expected}")))
            }
            _ => {
                body.set_md5(md5);
                Ok(())
            }
        }
    }
}

fn age_of(meta: &ObjectMeta) -> Option<Duration> {
    let modified = std::time::SystemTime::from(meta.last_modified);
    // A time in the future is the end of validity: the put is complete.
    std::time::SystemTime::now().duration_since(modified).ok()
}

impl StoreRepository {
    pub(super) async fn look_up(&self, query: &Query) -> Result<Knowledge, SourceError> {
        let listing = self.listing(&query.path).await?;
        let listing = listing.lock().await;
        let versions = listing.versions.iter().filter(|version| query.matches(version));
        Ok(Knowledge {
            span: ValidityInterval::ALL,
            versions: versions.map(Arc::clone).collect(),
            problems: listing.problems.clone(),
            stale: false,
        })
    }

    pub(super) async fn paths(&self, prefix: &str) -> Result<Vec<PathSummary>, SourceError> {
        let location = match prefix {
            "" => self.prefix.clone(),
            prefix => self.location(prefix),
        };
        let skip = self.prefix.parts().count();
        let mut counts: HashMap<ObjectPath, u64> = HashMap::new();
        let mut files = self.store.list(Some(&location));
        while let Some(file) = files.next().await {
            let file = file.map_err(|error| self.error(prefix, &error));
            let file = file?;
            // Location: path…/from/name.properties
            let mut parts: Vec<String> =
                file.location.parts().skip(skip).map(|part| part.as_ref().to_owned()).collect();
            let (name, from) = (parts.pop().unwrap_or_default(), parts.pop().unwrap_or_default());
            let properties = name.ends_with(PROPERTIES) && !name.starts_with('.');
            if properties
                && from.parse::<i64>().is_ok()
                && let Ok(path) = ObjectPath::new(&parts.join("/"))
            {
                *counts.entry(path).or_default() += 1;
            }
        }
        let mut paths: Vec<PathSummary> =
            counts.into_iter().map(|(path, versions)| PathSummary { path, versions }).collect();
        paths.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(paths)
    }
}
