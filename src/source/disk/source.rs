//! A source that stores the answers and objects of another source on disk.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;

use super::bodies::Bodies;
use super::file;
use super::lookup_log::LookupLog;
use crate::error::Coded as _;
use crate::interval::Timestamp;
use crate::object::{ObjectId, ObjectInfo, ObjectPath, Query};
use crate::source::{
    Body, Knowledge, PageKey, PathSummary, Reachability, Scan, Source, SourceError, SourceHealth,
    VersionPage, VersionStream,
};
use crate::telemetry::Timing;

/// Time limit for a look-up at the source if the disk has an answer.
const LOOK_UP_LIMIT: Duration = Duration::from_secs(2);
/// Divisor of the disk space: at most this fraction of it is used for answers.
const ANSWERS_SHARE: u64 = 16;

/// A disk tier in front of another source.
pub struct DiskSource {
    url: String,
    inner: Arc<dyn Source>,
    bodies: Arc<Bodies>,
    answers: LookupLog,
    requests: AtomicU64,
    failures: AtomicU64,
    /// Lock on the folder.
    _lock: std::fs::File,
}

impl fmt::Debug for DiskSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DiskSource({} before {:?})", self.url, self.inner)
    }
}

impl DiskSource {
    /// Stores answers and objects of `inner` in `folder`, which is created if it does not exist, in
    /// at most `limit_bytes`.
    ///
    /// # Errors
    /// [`SourceError::Configuration`] if the folder cannot be used, or another process uses it.
    pub fn open(
        folder: &Path,
        limit_bytes: u64,
        inner: Arc<dyn Source>,
    ) -> Result<Self, SourceError> {
        let url = format!("disk:{}", folder.display());
        let wrong = |what: &str, error: std::io::Error| SourceError::Configuration {
            url: url.clone(),
            reason: format!("{what}: {error}"),
        };
        std::fs::create_dir_all(folder).map_err(|error| wrong("cannot make the folder", error))?;
        let lock = file::lock(folder).map_err(|error| wrong("another process uses it", error))?;
        let answers_bytes = limit_bytes / ANSWERS_SHARE;
        let bodies = Bodies::open(folder, limit_bytes - answers_bytes)
            .map_err(|error| wrong("bodies", error))?;
        let answers = LookupLog::open(folder, answers_bytes, inner.url())
            .map_err(|error| wrong("answers", error))?;
        Ok(Self {
            url,
            inner,
            bodies: Arc::new(bodies),
            answers,
            requests: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            _lock: lock,
        })
    }

    /// Number of bodies on the disk, and total size of bodies and answers in bytes.
    pub fn usage(&self) -> (usize, u64) {
        let (count, bytes) = self.bodies.usage();
        (count, bytes + self.answers.usage())
    }

    /// Waits until all answers are written to the disk.
    pub fn flush(&self) {
        self.answers.flush();
    }

    /// Answer of the source; `None` if it is silent and the disk has an answer.
    async fn ask_behind(
        &self,
        query: &Query,
        at: Timestamp,
        held: Option<&Arc<ObjectInfo>>,
    ) -> Option<Result<Knowledge, SourceError>> {
        let asked = self.inner.look_up(query, at, held);
        let mut asked = std::pin::pin!(asked);
        match tokio::time::timeout(LOOK_UP_LIMIT, &mut asked).await {
            Ok(answer) => Some(answer),
            Err(_) if self.answers.find(query, at).is_some() => None,
            // The disk has no answer, so the source gets all the time that the caller has.
            Err(_) => Some(asked.await),
        }
    }
}

#[async_trait]
impl Source for DiskSource {
    fn url(&self) -> &str {
        self.inner.url()
    }

    fn inner(&self) -> Option<&dyn Source> {
        Some(&*self.inner)
    }

    fn refresh(&self) -> Duration {
        self.inner.refresh()
    }

    async fn look_up(
        &self,
        query: &Query,
        at: Timestamp,
        held: Option<&Arc<ObjectInfo>>,
    ) -> Result<Knowledge, SourceError> {
        let error = match self.ask_behind(query, at, held).await {
            Some(Ok(knowledge)) => {
                // A stale answer is not newer than the logged one.
                if !knowledge.stale {
                    self.answers.keep(query, &knowledge);
                }
                return Ok(knowledge);
            }
            Some(Err(error)) if error.kind().is_transient() => error,
            Some(Err(error)) => return Err(error),
            None => SourceError::Down {
                url: self.inner.url().to_owned(),
                what: format!("{} at {at}", query.path),
                reason: format!("no answer in {} s", LOOK_UP_LIMIT.as_secs()),
            },
        };
        self.requests.fetch_add(1, Ordering::Relaxed);
        match self.answers.find(query, at) {
            Some(knowledge) => {
                tracing::warn!(path = %query.path, %at, %error, "the disk answers instead");
                Ok(knowledge)
            }
            None => Err(error),
        }
    }

    async fn list(&self, query: &Query) -> Result<Option<Vec<Arc<ObjectInfo>>>, SourceError> {
        self.inner.list(query).await
    }

    async fn list_page(
        &self,
        query: &Query,
        after: Option<PageKey>,
        limit: usize,
    ) -> Result<VersionPage, SourceError> {
        self.inner.list_page(query, after, limit).await
    }

    async fn newest(
        &self,
        query: &Query,
        at: Option<Timestamp>,
        limit: usize,
    ) -> Result<Option<Vec<Arc<ObjectInfo>>>, SourceError> {
        self.inner.newest(query, at, limit).await
    }

    async fn scan(&self, scan: &Scan) -> Result<Option<VersionStream>, SourceError> {
        self.inner.scan(scan).await
    }

    async fn describe(
        &self,
        path: &ObjectPath,
        from: Timestamp,
        created: Timestamp,
        id: ObjectId,
    ) -> Result<Option<Arc<ObjectInfo>>, SourceError> {
        self.inner.describe(path, from, created, id).await
    }

    async fn fetch(&self, version: &ObjectInfo, body: &mut dyn Body) -> Result<(), SourceError> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        if let Some(opened) = self.bodies.find(version).await {
            match opened.read_into(body).await {
                Ok(()) => return Ok(()),
                // Only an empty body can be filled by the source instead.
                Err(error) if body.written_bytes() == 0 && error.kind().is_transient() => {
                    tracing::warn!(%error, "a body on the disk cannot be read");
                    self.failures.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) => return Err(error),
            }
        }
        let mut through = self.bodies.write_through(version, body);
        self.inner.fetch(version, &mut through).await?;
        through.keep().await;
        Ok(())
    }

    fn health(&self) -> Vec<SourceHealth> {
        let mut all = self.inner.health();
        all.push(SourceHealth {
            url: self.url.clone(),
            state: Reachability::Up,
            requests: self.requests.load(Ordering::Relaxed),
            failures: self.failures.load(Ordering::Relaxed) + self.bodies.failures(),
            latency: Timing::default(),
        });
        all
    }

    async fn paths(&self, prefix: &str) -> Result<Vec<PathSummary>, SourceError> {
        match self.inner.paths(prefix).await {
            Err(error) if error.kind().is_transient() => {
                let known = self.answers.paths(prefix).await;
                if known.is_empty() { Err(error) } else { Ok(known) }
            }
            answer => answer,
        }
    }
}
