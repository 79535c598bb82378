//! Access to single objects instead of tables: look-up of a version, and its pinned bytes.
//!
//! ```text
//!  (query, at) ─▶ Catalog ─▶ Effective: version, and the span in which it is effective
//!  path ────────▶ listings ─▶ every version, also those that are never effective
//!  id ──────────▶ ids seen before ─▶ listings ─▶ version
//!  version ─────▶ Loader ─▶ HeldObject: pinned and counted as in use until it is dropped
//! ```
//!
//! No bytes are copied from the residency. Ids and listings are small and bounded.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::handle::Cache;
use crate::cache::deadline::{LOOK_UP, by_deadline};
use crate::cache::error::CacheError;
use crate::cache::memory::in_use::InUseGuard;
use crate::cache::versions::object_index::{Effective, Versions, effective_of};
use crate::cache::versions::query_times::QueryTimes;
use crate::index::Timestamps;
use crate::interval::Timestamp;
use crate::object::{Md5Sum, ObjectId, ObjectInfo, ObjectPath, Query};
use crate::source::{Change, ChangeKind, Changed, Details, UploadBytes, WriteTarget};

/// Smaller objects are hashed on the calling thread, others on a blocking thread.
const HASH_BESIDE_FROM_BYTES: usize = 256 << 10;

/// One object in shared memory, which stays there until this is dropped.
///
/// ```
/// use std::sync::Arc;
/// use std::time::Duration;
///
/// use iovcache::source::MemorySource;
/// use iovcache::{Cache, ObjectPath, Query, Timestamp};
/// # use iovcache::shm::PoolOptions;
/// # use iovcache::{ObjectId, ObjectInfo, ValidityInterval};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let drift = |id: u8, from: i64, until: i64, created: i64| ObjectInfo {
/// #     path: ObjectPath::new("TPC/Calib/VDrift").unwrap(),
/// #     id: ObjectId::from_bytes([id; 16]),
/// #     validity: ValidityInterval::new(
/// #         Timestamp::from_millis(from), Timestamp::from_millis(until)).unwrap(),
/// #     created: Timestamp::from_millis(created),
/// #     size_bytes: None,
/// #     md5: None,
/// #     metadata: Default::default(),
/// # };
/// # let memory = PoolOptions { memory_bytes: 4 << 20, ..PoolOptions::default() };
/// let source = MemorySource::new();
/// source.put(drift(1, 0, 90, 1), &b"drift"[..]);
/// let cache = Cache::builder().source(Arc::new(source)).memory(memory).build()?;
///
/// let (at, limit) = (Timestamp::from_millis(5), Duration::from_secs(10));
/// let query = Query::all(ObjectPath::new("TPC/Calib/VDrift")?);
/// let effective = cache.version_at(&query, at, limit).await?.expect("a version is valid");
/// let object = cache.hold(&effective.version, limit).await?;
/// assert_eq!(object.payload(), b"drift");
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct HeldObject {
    pins: InUseGuard,
}

impl HeldObject {
    /// The object's bytes.
    pub fn payload(&self) -> &[u8] {
        self.pins.pins().first().map_or(&[], |pin| pin.payload())
    }
}

impl Cache {
    /// The version that is effective at `at`, if any.
    ///
    /// The limits of the service apply beside those of `query`. If the path can be listed and is of
    /// one source, a query with metadata or limits of its own is answered from the listing, and its
    /// result is not cached.
    ///
    /// # Errors
    /// If no older answer is known: [`CacheError::LookUp`] with the error of the source, and
    /// [`CacheError::DeadlineExceeded`] after `patience`. [`CacheError::Draining`].
    pub async fn version_at(
        &self,
        query: &Query,
        at: Timestamp,
        patience: Duration,
    ) -> Result<Option<Effective>, CacheError> {
        self.check_open()?;
        let limits = self.0.columns.limits.narrowed_by(query.limits);
        let query = Query { limits, ..query.clone() };
        let deadline = Instant::now() + patience;
        let is_special = !query.metadata.is_empty() || limits != self.0.columns.limits;
        if is_special && self.0.catalog.source().decides_by_creation(&query.path) {
            let listing = self.0.objects.listing(&query.path);
            let listing = by_deadline("the listing of a path", deadline, listing).await?;
            if listing.versions.whole {
                let found = effective_of(&listing.versions.versions, &query, at);
                found.iter().for_each(|effective| self.0.objects.name(&effective.version));
                return Ok(found);
            }
        }
        let timestamps = Timestamps::new(vec![at.as_millis()], None);
        let times = QueryTimes::All(&timestamps);
        let known = by_deadline(LOOK_UP, deadline, self.0.catalog.known_at(&query, &times)).await?;
        let found = known.timeline.version_at(at).zip(known.timeline.span_at(at));
        Ok(found.map(|(version, span)| {
            self.0.objects.name(version);
            Effective { version: Arc::clone(version), span: span.interval, stale: known.stale }
        }))
    }

    /// Every version of `path`, including versions that others hide at all times.
    ///
    /// # Errors
    /// [`CacheError`], if no older answer is known either.
    pub async fn versions(
        &self,
        path: &ObjectPath,
        patience: Duration,
    ) -> Result<Versions, CacheError> {
        self.check_open()?;
        let listing = self.0.objects.listing(path);
        let what = "the listing of a path at the source";
        let listing = by_deadline(what, Instant::now() + patience, listing).await?;
        Ok(listing.versions.clone())
    }

    /// Whether of all versions of a path that are valid at a time, the one created last is in effect.
    pub(crate) fn decides_by_creation(&self, path: &ObjectPath) -> bool {
        self.0.catalog.source().decides_by_creation(path)
    }

    /// The target for changes of a path.
    pub(crate) fn write_target(&self, path: &ObjectPath) -> WriteTarget {
        self.0.catalog.source().write_target(path)
    }

    /// Changes versions at their source and invalidates the path, also after an error. `bytes` are
    /// the contents of an upload.
    ///
    /// # Errors
    /// [`CacheError::Change`] with the error of the source
    /// ([`NotAllowed`](crate::source::SourceError::NotAllowed) if it only reads),
    /// [`CacheError::Draining`].
    pub async fn change(
        &self,
        change: &Change,
        bytes: Option<UploadBytes>,
    ) -> Result<Changed, CacheError> {
        self.check_open()?;
        let changed = self.0.catalog.source().change(change, bytes).await;
        // An object of a deleted version can still be in memory, where its address would find it.
        if matches!(change.kind, ChangeKind::Delete | ChangeKind::Truncate { .. }) {
            self.0.objects.forget_names(&change.path);
        }
        self.invalidate(&change.path);
        changed.map_err(|error| CacheError::Change { path: change.path.clone(), error })
    }

    /// The folders one level below a path (`""`: the root), as full paths, sorted.
    ///
    /// # Errors
    /// [`CacheError::Paths`] with the error of the source, [`CacheError::Draining`].
    pub async fn subfolders(&self, path: &str) -> Result<Vec<String>, CacheError> {
        self.check_open()?;
        let found = self.0.catalog.source().subfolders(path).await;
        found.map_err(|error| CacheError::Paths { prefix: path.to_owned(), error })
    }

    /// Upload details of a version, as far as they are known without asking the source.
    pub(crate) fn known_details_of(&self, version: &ObjectInfo) -> Details {
        self.0.catalog.source().known_details(version).unwrap_or_default()
    }

    /// Upload details of a version, if its source returns them within `patience`. They do not
    /// affect which version is served.
    pub(crate) async fn details_of(&self, version: &ObjectInfo, patience: Duration) -> Details {
        let told = self.0.catalog.source().details(version);
        match tokio::time::timeout(patience, told).await {
            Ok(Ok(details)) => details,
            Ok(Err(error)) => {
                tracing::debug!(path = %version.path, %error, "no details");
                Details::default()
            }
            Err(_) => Details::default(),
        }
    }

    /// The version `id` of `path`, which is expected to begin at `at` or, if the source lists the
    /// path, to be valid then. `None` if the source has no such version.
    ///
    /// # Errors
    /// [`CacheError::LookUp`] and [`CacheError::Paths`] with the error of the source,
    /// [`CacheError::DeadlineExceeded`] after `patience`, [`CacheError::Draining`].
    pub async fn version_of(
        &self,
        path: &ObjectPath,
        at: Timestamp,
        id: ObjectId,
        patience: Duration,
    ) -> Result<Option<Arc<ObjectInfo>>, CacheError> {
        self.check_open()?;
        // A file-backed CCDB may have an id at several places of a path, so the version that begins
        // at `at` comes first.
        let begins = |version: &Arc<ObjectInfo>| {
            version.id == id && version.path == *path && version.validity.from() == at
        };
        if let Some(version) = self.0.objects.named(id).filter(begins) {
            return Ok(Some(version));
        }
        let beginning = self.version_beginning_at(path, at, id);
        let beginning = by_deadline(LOOK_UP, Instant::now() + patience, beginning).await;
        if let Ok(Some(version)) = beginning {
            self.0.objects.name(&version);
            return Ok(Some(version));
        }
        let listed = self.versions(path, patience).await?;
        if listed.whole {
            let is_it =
                |version: &&Arc<ObjectInfo>| version.id == id && version.validity.contains(at);
            let version = listed.versions.iter().find(is_it);
            version.iter().for_each(|version| self.0.objects.name(version));
            return Ok(version.cloned());
        }
        let query = Query::all(path.clone());
        let effective = self.version_at(&query, at, patience).await?;
        Ok(effective.map(|effective| effective.version).filter(begins))
    }

    /// The version `id` of any path, if the cache has seen it. Asks no source.
    pub(crate) fn version_known(&self, id: ObjectId) -> Option<Arc<ObjectInfo>> {
        self.0.objects.known(id)
    }

    /// Loads an object into shared memory, if it is not there, and keeps it there.
    ///
    /// # Errors
    /// [`CacheError::Load`] with the error of the source; [`CacheError::MemoryPinned`] and
    /// [`CacheError::NeverFits`] if there is no memory for it; [`CacheError::DeadlineExceeded`] after
    /// `patience`; [`CacheError::Draining`].
    pub async fn hold(
        &self,
        version: &Arc<ObjectInfo>,
        patience: Duration,
    ) -> Result<HeldObject, CacheError> {
        self.check_open()?;
        let versions = std::slice::from_ref(version);
        let got = self.0.loader.pin_all(versions, Instant::now() + patience).await?;
        Ok(HeldObject { pins: self.0.in_use.take(Arc::new(got.pins)) })
    }

    /// The MD5 of an object: from its source, else computed once while it is in memory.
    pub(crate) async fn md5_of(&self, version: &ObjectInfo, held: &HeldObject) -> Option<Md5Sum> {
        if version.md5.is_some() {
            return version.md5;
        }
        // The reference keeps its memory from being reused before the hash is done.
        let object = Arc::clone(held.pins.pins().first()?.resident());
        if object.md5().is_some() || held.payload().len() < HASH_BESIDE_FROM_BYTES {
            return Some(object.compute_md5());
        }
        tokio::task::spawn_blocking(move || object.compute_md5()).await.ok()
    }
}
