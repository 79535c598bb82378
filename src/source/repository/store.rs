//! Reads a repository in an object store.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{StreamExt as _, TryStreamExt as _};
use object_store::path::Path;
use object_store::{GetResult, ObjectMeta, ObjectStore, ObjectStoreExt as _};
use tokio::sync::Mutex;

use super::bucket::Bucket;
use super::entry::{self, PROPERTIES, names};
use super::fetch_check::FetchCheck;
use super::folder::from_of;
use super::index::{IndexRow, RowRef, StoreIndex, row_of};
use super::properties::Properties;
use super::store_listing::{FreshPair, FreshPairs, StoredListing, StoredPair, stamp};
use crate::bounded_cache::BoundedCache;
use crate::interval::{Timestamp, ValidityInterval};
use crate::object::{ObjectId, ObjectInfo, ObjectPath, Query};
use crate::source::body_digest::BodyDigest;
use crate::source::{
    Body, Details, Knowledge, NewestVersions, PageKey, PathSummary, Problem, SourceError,
    VersionPage, write_all,
};

/// Maximum number of paths whose listings are kept.
const MAX_PATHS: u64 = 10_000;
/// Maximum number of versions whose upload details are kept.
const MAX_DETAILS: u64 = 20_000;
/// Maximum number of folders and properties read in parallel.
const PARALLEL_READS: usize = 16;
/// Maximum size of a properties file.
const MAX_PROPERTIES_BYTES: u64 = 1 << 20;
/// Interval between two listings of a path in a repository with an index, as a multiple of
/// `refresh`.
const LISTING_PACE: u32 = 10;
/// Maximum number of folders of added versions that are listed one by one. For more, the whole path
/// is listed.
const MAX_ADDED_FOLDERS: usize = 64;

/// A repository in an object store.
pub(super) struct StoreRepository {
    url: String,
    store: Arc<dyn ObjectStore>,
    /// Prefix of the repository in the store.
    prefix: Path,
    refresh: Duration,
    index: StoreIndex,
    listings: BoundedCache<ObjectPath, Mutex<StoredListing>>,
    /// Facts about uploads, each with the version as it was described then.
    details: BoundedCache<ObjectId, (ObjectInfo, Details)>,
}

impl fmt::Debug for StoreRepository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StoreRepository({})", self.url)
    }
}

impl StoreRepository {
    pub(super) fn new(bucket: Bucket, refresh: Duration) -> Self {
        let Bucket { url, store, prefix } = bucket;
        let index = StoreIndex::new(Arc::clone(&store), &prefix);
        let listings = BoundedCache::new(MAX_PATHS);
        let details = BoundedCache::new(MAX_DETAILS);
        Self { url, store, prefix, refresh, index, listings, details }
    }

    /// Reads everything from the properties.
    pub(super) fn without_index(bucket: Bucket) -> Self {
        let nowhere: Arc<dyn ObjectStore> = Arc::new(object_store::memory::InMemory::new());
        let index = StoreIndex::new(nowhere, &Path::default());
        Self { index, ..Self::new(bucket, Duration::ZERO) }
    }

    /// The rows of an index for a path, read from the properties, and the entries that are no
    /// versions.
    pub(super) async fn rows(
        &self,
        path: &ObjectPath,
    ) -> Result<(Vec<IndexRow>, Vec<Problem>), SourceError> {
        let mut listing = StoredListing::default();
        self.read(path, &mut listing).await?;
        let name: Arc<str> = path.as_str().into();
        let rows = listing.stamped().map(|(info, stamp)| {
            let details = self.known_details(&info);
            IndexRow { details, ..row_of(&name, info, stamp, 0) }
        });
        Ok((rows.collect(), listing.problems()))
    }

    /// The place of the repository, for writing.
    pub(super) fn bucket(&self) -> Bucket {
        Bucket::of(self.url.clone(), Arc::clone(&self.store), self.prefix.clone())
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// Interval between two listings of a path in a repository with an index. Changes that are not
    /// in the index are found after this time.
    fn listing_pace(&self) -> Duration {
        self.refresh.saturating_mul(LISTING_PACE)
    }

    /// Facts about the upload of a version, if they were read before. A change of the version shows
    /// in its description.
    pub(super) fn known_details(&self, version: &ObjectInfo) -> Option<Details> {
        let known = self.details.get(&version.id)?;
        (known.0 == *version).then(|| known.1.clone())
    }

    /// Facts about the upload of a version, from its properties.
    ///
    /// # Errors
    /// [`SourceError`].
    pub(super) async fn details(&self, version: &ObjectInfo) -> Result<Details, SourceError> {
        if let Some(known) = self.known_details(version) {
            return Ok(known);
        }
        let folder = self.location(version.path.as_str()).join(version.validity.from().to_string());
        for name in names(version.id, &version.metadata) {
            let beside = folder.clone().join(format!("{name}{PROPERTIES}"));
            let failed = |error| self.error(beside.as_ref(), &error);
            let got = match self.store.get(&beside).await {
                Err(object_store::Error::NotFound { .. }) => continue,
                got => got.map_err(failed)?,
            };
            if got.meta.size > MAX_PROPERTIES_BYTES {
                break;
            }
            let bytes = got.bytes().await.map_err(failed)?;
            let properties = Properties::parse(&bytes).unwrap_or_default();
            let details = entry::details(&properties);
            self.remember_details(version, details.clone());
            return Ok(details);
        }
        Ok(Details::default())
    }

    fn remember_details(&self, version: &ObjectInfo, details: Details) {
        self.details.insert(&version.id, Arc::new((version.clone(), details)));
    }

    pub(super) fn store(&self) -> &dyn ObjectStore {
        &*self.store
    }

    pub(super) fn location(&self, path: &str) -> Path {
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
        let below = async |location: &Path| {
            let listed = self.store.list_with_delimiter(Some(location)).await;
            listed.map_err(|error| self.error(path, &error))
        };
        let mut folders = Vec::new();
        for folder in below(&location).await?.common_prefixes {
            let Some(name) = folder.filename() else { continue };
            let child = match path {
                "" => name.to_owned(),
                path => format!("{path}/{name}"),
            };
            // A negative number can be an element of a path; its contents decide.
            let is_number = !path.is_empty() && from_of(name).is_some();
            if ObjectPath::new(&child).is_ok()
                && (!is_number || !below(&folder).await?.common_prefixes.is_empty())
            {
                folders.push(child);
            }
        }
        folders.sort_unstable();
        Ok(folders)
    }

    pub(super) fn error(&self, what: &str, error: &object_store::Error) -> SourceError {
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
            .filter(|folder| folder.filename().and_then(from_of).is_some())
            .collect();
        if folders.len() > PARALLEL_READS && folders.len() == all {
            // Other paths can only be beneath a negative number, so a single listing gives the
            // versions and little else.
            let depth = location.parts().count() + 2;
            let listed = self.store.list(Some(&location));
            let deep = listed
                .try_filter(|file| std::future::ready(file.location.parts().count() == depth));
            return deep.try_collect().await;
        }
        self.files_in(folders).await
    }

    /// The files directly in folders of versions.
    async fn files_in(&self, folders: Vec<Path>) -> Result<Vec<ObjectMeta>, object_store::Error> {
        let listed = folders.into_iter().map(|folder| async move {
            let listed = self.store.list_with_delimiter(Some(&folder)).await?;
            Ok::<_, object_store::Error>(listed.objects)
        });
        let listed: Vec<Vec<ObjectMeta>> =
            futures::stream::iter(listed).buffer_unordered(PARALLEL_READS).try_collect().await?;
        Ok(listed.into_iter().flatten().collect())
    }

    /// Lists the path, and reads its changes since the last listing.
    async fn read(
        &self,
        path: &ObjectPath,
        listing: &mut StoredListing,
    ) -> Result<(), SourceError> {
        let began = Instant::now();
        let files = self.files(path).await.map_err(|error| self.error(path.as_str(), &error))?;
        let fresh = listing.begin(files, None);
        self.read_fresh(path, fresh, listing).await?;
        listing.listed_at = Some(began);
        Ok(())
    }

    /// Reads the folders of the versions that were added to the index since the last look-up.
    async fn read_added(
        &self,
        path: &ObjectPath,
        listing: &mut StoredListing,
    ) -> Result<(), SourceError> {
        let location = self.location(path.as_str());
        let mut froms = BTreeSet::new();
        self.index
            .for_path(path.as_str(), listing.generation, |row| {
                let entry = location.clone().join(row.from.to_string()).join(row.id.to_string());
                if !listing.has(entry.as_ref(), row.stamp) {
                    froms.insert(row.from);
                }
            })
            .await;
        if froms.len() > MAX_ADDED_FOLDERS {
            return self.read(path, listing).await;
        }
        let folders: Vec<Path> =
            froms.iter().map(|from| location.clone().join(from.to_string())).collect();
        let files = self.files_in(folders.clone()).await;
        let files = files.map_err(|error| self.error(path.as_str(), &error))?;
        let fresh = listing.begin(files, Some(&folders));
        self.read_fresh(path, fresh, listing).await
    }

    /// Reads the versions of `fresh`: from the index if it has them in this state, else from their
    /// properties.
    async fn read_fresh(
        &self,
        path: &ObjectPath,
        mut fresh: FreshPairs,
        listing: &mut StoredListing,
    ) -> Result<(), SourceError> {
        if !fresh.is_empty() {
            let mut remembered = 0;
            let take = |row: RowRef<'_>| {
                let Some(version) = fresh.take_indexed(path, &row) else { return };
                if let Some(details) = row.details().filter(|_| remembered < MAX_DETAILS) {
                    remembered += 1;
                    self.remember_details(&version, details);
                }
            };
            self.index.for_path(path.as_str(), 0, take).await;
        }
        let (indexed, unread) = fresh.into_parts();
        let read = unread.into_iter().map(|FreshPair { location, blob, properties }| async move {
            let read = self.read_pair(path, &blob, &properties).await?;
            let entry =
                StoredPair { stamp: (stamp(&blob), stamp(&properties)), read: read.map(Arc::new) };
            Ok::<_, SourceError>((location, entry))
        });
        let read: Vec<(String, StoredPair)> =
            futures::stream::iter(read).buffer_unordered(PARALLEL_READS).try_collect().await?;
        listing.finish(indexed.into_iter().chain(read));
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
            let from = parts.next().and_then(from_of);
            let from = from.map(Timestamp::from_millis).ok_or("its folder is no number")?;
            let version = entry::version(path, from, name, blob.size, &properties)?;
            self.remember_details(&version, entry::details(&properties));
            Ok(version)
        }))
    }

    async fn listing(&self, path: &ObjectPath) -> Result<Arc<Mutex<StoredListing>>, SourceError> {
        let listing = self.listings.get_with(path, Arc::default);
        let mut locked = listing.lock().await;
        // Another task may have read it in the meantime.
        let reuse = self.refresh / 5;
        if locked.read_at.is_none_or(|at| at.elapsed() >= reuse) {
            let began = Instant::now();
            let generation = self.index.refresh(reuse).await;
            let listed = locked.listed_at.is_some_and(|at| at.elapsed() < self.listing_pace());
            match generation {
                Some(generation) if listed && generation == locked.generation => {}
                Some(_) if listed => self.read_added(path, &mut locked).await?,
                _ => self.read(path, &mut locked).await?,
            }
            locked.generation = generation.unwrap_or(0);
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
        let fetch = FetchCheck { url: &self.url, version };
        let own = self.find(&version.path, version.id).await?.ok_or_else(|| fetch.gone())?;
        fetch.check_same(&own)?;
        // The listing is out of date: the next look-up lists the path again.
        let got = self.get_body(&own, &fetch).await?.ok_or_else(|| {
            self.forget(&version.path);
            fetch.gone()
        })?;
        let size = got.meta.size;
        if let Some(expected) = own.size_bytes
            && expected != size
        {
            return Err(fetch.unusable(format!("it has {size} bytes, expected {expected}")));
        }
        body.reserve(size).await.map_err(|error| fetch.no_body(error))?;
        let mut digest = BodyDigest::new(true, Some(size));
        let mut stream = got.into_stream();
        while let Some(piece) = stream.next().await {
            let piece = piece.map_err(|error| self.error(&fetch.what(), &error))?;
            if body.written_bytes() + piece.len() as u64 > size {
                return Err(fetch.unusable(format!("more than the {size} bytes announced")));
            }
            write_all(body, &piece).await.map_err(|error| fetch.no_body(error))?;
            digest.add(piece).await;
        }
        fetch.check_written(body, size)?;
        fetch.finish(body, &own, digest.finish().await)
    }

    /// The bytes of a version, by the first of its names that exists.
    async fn get_body(
        &self,
        own: &ObjectInfo,
        fetch: &FetchCheck<'_>,
    ) -> Result<Option<GetResult>, SourceError> {
        let folder = self.location(own.path.as_str());
        let folder = folder.join(own.validity.from().to_string());
        for name in names(own.id, &own.metadata) {
            match self.store.get(&folder.clone().join(name)).await {
                Ok(got) => return Ok(Some(got)),
                Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(self.error(&fetch.what(), &error)),
            }
        }
        Ok(None)
    }
}

impl StoreRepository {
    pub(super) async fn look_up(&self, query: &Query) -> Result<Knowledge, SourceError> {
        let listing = self.listing(&query.path).await?;
        let listing = listing.lock().await;
        let versions = listing.versions.iter().filter(|version| query.matches(version));
        Ok(Knowledge {
            span: ValidityInterval::ALL,
            versions: versions.map(Arc::clone).collect(),
            problems: listing.problems(),
            stale: false,
        })
    }

    pub(super) async fn list_page(
        &self,
        query: &Query,
        after: Option<PageKey>,
        limit: usize,
    ) -> Result<VersionPage, SourceError> {
        let listing = self.listing(&query.path).await?;
        let listing = listing.lock().await;
        let page = VersionPage::of_sorted(&listing.versions, query, after, limit);
        let problems = if after.is_none() { listing.problems() } else { Vec::new() };
        Ok(VersionPage { problems, ..page })
    }

    pub(super) async fn newest(
        &self,
        query: &Query,
        at: Option<Timestamp>,
        limit: usize,
    ) -> Result<Vec<Arc<ObjectInfo>>, SourceError> {
        let listing = self.listing(&query.path).await?;
        let listing = listing.lock().await;
        let mut newest = NewestVersions::new(limit);
        for version in listing.versions.iter().filter(|version| query.matches(version)) {
            if at.is_none_or(|at| version.validity.contains(at)) {
                newest.add(version.rank(), Arc::clone(version));
            }
        }
        Ok(newest.into_versions())
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
                && from_of(&from).is_some()
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
