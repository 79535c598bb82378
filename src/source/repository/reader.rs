//! Repositories as sources: in a local folder or in an object store.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures::{StreamExt as _, TryStreamExt as _, stream};

use super::bucket::Bucket;
use super::change;
use super::local::LocalRepository;
use super::spool;
use super::store::StoreRepository;
use super::store_change;
use crate::interval::Timestamp;
use crate::object::{ObjectId, ObjectInfo, ObjectPath, Query};
use crate::source::availability::Availability;
use crate::source::{
    Body, Change, ChangeListener, Changed, Details, Knowledge, PageKey, PathParts, PathSummary,
    Source, SourceError, SourceHealth, UploadBytes, VersionPage, WriteTarget, in_place,
};
use crate::telemetry::Histogram;

/// Options for reading a repository.
#[derive(Debug, Clone, Copy)]
pub struct RepositoryOptions {
    /// Longest time until a stored version is seen. Default: 1 s.
    pub refresh: Duration,
}

impl Default for RepositoryOptions {
    fn default() -> Self {
        Self { refresh: Duration::from_secs(1) }
    }
}

/// Maximum number of versions that [`Source::list`] returns for a path.
const LISTED_VERSIONS: usize = 100_000;

/// Location of a repository.
#[derive(Debug)]
enum RepositoryPlace {
    Local(LocalRepository),
    Store(Box<StoreRepository>),
}

/// A repository as a source.
#[derive(Debug)]
pub struct RepositorySource {
    place: RepositoryPlace,
    refresh: Duration,
    requests: AtomicU64,
    failures: AtomicU64,
    latency: Histogram,
    availability: Availability,
}

impl RepositorySource {
    /// Opens the repository in a local folder.
    ///
    /// # Errors
    /// [`SourceError::Configuration`] if the folder does not exist.
    pub fn open_folder(folder: &Path, options: RepositoryOptions) -> Result<Self, SourceError> {
        let local = LocalRepository::open(folder, options.refresh)?;
        Ok(Self::at(RepositoryPlace::Local(local), options))
    }

    /// Opens the repository in an object store.
    pub fn new(bucket: Bucket, options: RepositoryOptions) -> Self {
        let store = Box::new(StoreRepository::new(bucket, options.refresh));
        Self::at(RepositoryPlace::Store(store), options)
    }

    fn at(place: RepositoryPlace, options: RepositoryOptions) -> Self {
        Self {
            place,
            refresh: options.refresh,
            requests: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            latency: Histogram::default(),
            availability: Availability::default(),
        }
    }

    /// Counts an answer, its time, and whether the repository can be reached.
    fn note<T>(&self, began: Instant, answer: Result<T, SourceError>) -> Result<T, SourceError> {
        self.latency.observe(began.elapsed());
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.failures.fetch_add(u64::from(answer.is_err()), Ordering::Relaxed);
        match answer {
            Err(SourceError::Down { .. }) => self.availability.failed(),
            _ => self.availability.answered(),
        }
        answer
    }
}

#[async_trait]
impl Source for RepositorySource {
    fn url(&self) -> &str {
        match &self.place {
            RepositoryPlace::Local(local) => local.url(),
            RepositoryPlace::Store(store) => store.url(),
        }
    }

    fn refresh(&self) -> Duration {
        // Data read here can already be a fifth of `refresh` old.
        self.refresh.mul_f64(0.8)
    }

    fn subscribe(&self, listener: ChangeListener) {
        match &self.place {
            RepositoryPlace::Local(local) => local.subscribe(listener),
            RepositoryPlace::Store(_) => {}
        }
    }

    async fn look_up(
        &self,
        query: &Query,
        at: Timestamp,
        _held: Option<&Arc<ObjectInfo>>,
    ) -> Result<Knowledge, SourceError> {
        let began = Instant::now();
        let found = match &self.place {
            RepositoryPlace::Local(local) => local.look_up(query, at).await,
            RepositoryPlace::Store(store) => store.look_up(query).await,
        };
        self.note(began, found)
    }

    async fn list(&self, query: &Query) -> Result<Option<Vec<Arc<ObjectInfo>>>, SourceError> {
        let page = self.list_page(query, None, LISTED_VERSIONS).await?;
        Ok((!page.more).then_some(page.versions))
    }

    async fn list_page(
        &self,
        query: &Query,
        after: Option<PageKey>,
        limit: usize,
    ) -> Result<VersionPage, SourceError> {
        let began = Instant::now();
        let found = match &self.place {
            RepositoryPlace::Local(local) => local.list_page(query, after, limit).await,
            RepositoryPlace::Store(store) => store.list_page(query, after, limit).await,
        };
        self.note(began, found)
    }

    async fn newest(
        &self,
        query: &Query,
        at: Option<Timestamp>,
        limit: usize,
    ) -> Result<Option<Vec<Arc<ObjectInfo>>>, SourceError> {
        let began = Instant::now();
        let found = match &self.place {
            RepositoryPlace::Local(local) => local.newest(query, at, limit).await,
            RepositoryPlace::Store(store) => store.newest(query, at, limit).await,
        };
        self.note(began, found).map(Some)
    }

    async fn describe(
        &self,
        path: &ObjectPath,
        from: Timestamp,
        created: Timestamp,
        id: ObjectId,
    ) -> Result<Option<Arc<ObjectInfo>>, SourceError> {
        let found = match &self.place {
            RepositoryPlace::Local(local) => local.find(path, from, id).await?.map(Arc::new),
            RepositoryPlace::Store(store) => store.find(path, id).await?,
        };
        Ok(found.filter(|version| version.created == created))
    }

    fn forget(&self, path: &ObjectPath) {
        match &self.place {
            RepositoryPlace::Local(local) => local.forget(path),
            RepositoryPlace::Store(store) => store.forget(path),
        }
    }

    fn write_target(&self, _path: &ObjectPath) -> WriteTarget {
        WriteTarget::Source { ccdb: None }
    }

    async fn change(
        &self,
        change: &Change,
        bytes: Option<UploadBytes>,
    ) -> Result<Changed, SourceError> {
        let (local, bytes) = match (&self.place, bytes) {
            (RepositoryPlace::Local(local), bytes) => (local, bytes),
            (RepositoryPlace::Store(store), Some(bytes)) => {
                let changed = spool::upload(&store.bucket(), store.url(), change, bytes).await;
                self.forget(&change.path);
                return changed;
            }
            (RepositoryPlace::Store(store), None) => {
                return store_change::apply(store, change).await;
            }
        };
        let root = local.folder().to_owned();
        let changed = match bytes {
            Some(bytes) => change::upload(root, local.url(), change, bytes).await,
            None => {
                self.forget(&change.path);
                let query = Query::all(change.path.clone());
                let versions = match self.list(&query).await? {
                    Some(versions) => versions,
                    None => self.look_up(&query, change.at, None).await?.versions,
                };
                change::apply(root, local.url(), change, versions).await
            }
        };
        self.forget(&change.path);
        changed
    }

    fn known_details(&self, version: &ObjectInfo) -> Option<Details> {
        match &self.place {
            RepositoryPlace::Local(local) => Some(in_place(|| local.details(version))),
            RepositoryPlace::Store(store) => store.known_details(version),
        }
    }

    async fn details(&self, version: &ObjectInfo) -> Result<Details, SourceError> {
        match &self.place {
            RepositoryPlace::Local(local) => {
                Ok(in_place(|| change::details(local.folder(), version)))
            }
            RepositoryPlace::Store(store) => store.details(version).await,
        }
    }

    async fn subfolders(&self, path: &str) -> Result<Vec<String>, SourceError> {
        if !path.is_empty() && ObjectPath::new(path).is_err() {
            return Ok(Vec::new());
        }
        let began = Instant::now();
        let found = match &self.place {
            RepositoryPlace::Local(local) => local.subfolders(path).await,
            RepositoryPlace::Store(store) => store.subfolders(path).await,
        };
        self.note(began, found)
    }

    async fn fetch(&self, version: &ObjectInfo, body: &mut dyn Body) -> Result<(), SourceError> {
        let began = Instant::now();
        let fetched = match &self.place {
            RepositoryPlace::Local(local) => local.fetch(version, body).await,
            RepositoryPlace::Store(store) => store.fetch(version, body).await,
        };
        self.note(began, fetched)
    }

    fn health(&self) -> Vec<SourceHealth> {
        vec![SourceHealth {
            url: self.url().to_owned(),
            state: self.availability.state(),
            requests: self.requests.load(Ordering::Relaxed),
            failures: self.failures.load(Ordering::Relaxed),
            latency: self.latency.timing(),
        }]
    }

    async fn paths(&self, prefix: &str) -> Result<Vec<PathSummary>, SourceError> {
        self.path_parts(prefix).await?.try_concat().await
    }

    async fn path_parts(&self, prefix: &str) -> Result<PathParts, SourceError> {
        let prefix = prefix.trim_matches('/');
        if !prefix.is_empty() && ObjectPath::new(prefix).is_err() {
            return Ok(stream::empty().boxed());
        }
        let began = Instant::now();
        let found = match &self.place {
            RepositoryPlace::Local(local) => local.path_parts(prefix).await,
            RepositoryPlace::Store(store) => {
                let paths = store.paths(prefix).await;
                paths.map(|paths| stream::once(async { Ok(paths) }).boxed())
            }
        };
        self.note(began, found)
    }
}
