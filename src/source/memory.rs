//! A source in memory, for tests and for workflows that produce their own objects.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use md5::{Digest as _, Md5};

use super::{
    Body, Knowledge, PathSummary, Reachability, Source, SourceError, SourceHealth, write_all,
};
use crate::interval::{Timestamp, ValidityInterval};
use crate::object::{Md5Sum, ObjectId, ObjectInfo, ObjectPath, Query};
use crate::sync::RwLock;
use crate::telemetry::Timing;

const URL: &str = "memory:";

/// Versions and their bytes in memory, added at run time with [`put`](Self::put).
#[derive(Debug, Default)]
pub struct MemorySource {
    paths: RwLock<BTreeMap<ObjectPath, BTreeMap<ObjectId, StoredObject>>>,
    requests: AtomicU64,
}

/// A version with its bytes.
#[derive(Debug, Clone)]
struct StoredObject {
    info: Arc<ObjectInfo>,
    bytes: Arc<[u8]>,
    /// MD5 of `bytes`, if `info` has one.
    md5: Option<Md5Sum>,
}

impl MemorySource {
    /// An empty source.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a version, or replaces the one with the same path and id. `size_bytes` of `info` is set
    /// to the length of `bytes`.
    pub fn put(&self, mut info: ObjectInfo, bytes: impl Into<Arc<[u8]>>) {
        let bytes = bytes.into();
        info.size_bytes = Some(bytes.len() as u64);
        // Once here instead of with each load. Loads compare it with that of `info`.
        let md5 = info.md5.map(|_| Md5Sum(Md5::digest(&bytes).into()));
        let mut paths = self.paths.write();
        let versions = paths.entry(info.path.clone()).or_default();
        versions.insert(info.id, StoredObject { info: Arc::new(info), bytes, md5 });
    }
}

#[async_trait]
impl Source for MemorySource {
    fn url(&self) -> &str {
        URL
    }

    fn refresh(&self) -> Duration {
        // An answer costs nothing, so none is reused.
        Duration::ZERO
    }

    async fn look_up(
        &self,
        query: &Query,
        _at: Timestamp,
        _held: Option<&Arc<ObjectInfo>>,
    ) -> Result<Knowledge, SourceError> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let paths = self.paths.read();
        let versions = paths.get(&query.path).into_iter().flat_map(BTreeMap::values);
        let versions = versions.map(|held| &held.info).filter(|info| query.matches(info));
        let versions = versions.map(Arc::clone).collect();
        Ok(Knowledge { span: ValidityInterval::ALL, versions, problems: Vec::new(), stale: false })
    }

    async fn fetch(&self, version: &ObjectInfo, body: &mut dyn Body) -> Result<(), SourceError> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let held = {
            let paths = self.paths.read();
            paths.get(&version.path).and_then(|versions| versions.get(&version.id)).cloned()
        };
        let Some(StoredObject { bytes, md5, .. }) = held else {
            let (url, path, id) = (URL.to_owned(), version.path.clone(), version.id);
            return Err(SourceError::NoSuchVersion { url, path, id });
        };
        let stored = async {
            body.reserve(bytes.len() as u64).await?;
            write_all(body, &bytes).await?;
            md5.into_iter().for_each(|md5| body.set_md5(md5));
            Ok(())
        };
        stored.await.map_err(|error| SourceError::Body {
            what: format!("{} {}", version.path, version.id),
            error,
        })
    }

    fn health(&self) -> Vec<SourceHealth> {
        vec![SourceHealth {
            url: URL.to_owned(),
            state: Reachability::Up,
            requests: self.requests.load(Ordering::Relaxed),
            failures: 0,
            latency: Timing::default(),
        }]
    }

    async fn paths(&self, prefix: &str) -> Result<Vec<PathSummary>, SourceError> {
        let paths = self.paths.read();
        let below = paths.iter().filter(|(path, _)| path.starts_with(prefix));
        Ok(below
            .map(|(path, versions)| PathSummary {
                path: path.clone(),
                versions: versions.len() as u64,
            })
            .collect())
    }
}
