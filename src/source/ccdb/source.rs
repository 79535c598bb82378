//! The source itself: transport, what it remembers of paths and replicas, and the trait.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use reqwest::Url;
use tokio::time::Instant;

use super::address::Address;
use super::listing::of_all_time;
use super::options::CcdbOptions;
use super::paths::PathMemory;
use super::transport::Transport;
use crate::interval::Timestamp;
use crate::object::{ObjectId, ObjectInfo, ObjectPath, Query};
use crate::source::{
    Body, Change, Changed, Details, Knowledge, PathSummary, Source, SourceError, SourceHealth,
    UploadBytes, WriteTarget,
};

/// Versions whose listings are remembered, in all.
const REMEMBERED_VERSIONS: u64 = 2_000_000;
/// Versions of which it is remembered how they were uploaded.
const REMEMBERED_DETAILS: u64 = 100_000;

/// A CCDB server, or several that hold the same, over HTTP.
///
/// ```no_run
/// # use iovcache::{ObjectPath, Query, Timestamp};
/// # use iovcache::source::{Source, ccdb::{CcdbOptions, CcdbSource}};
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let ccdb = CcdbSource::new("http://ccdb.example:8080", CcdbOptions::default())?;
/// let query = Query::all(ObjectPath::new("TPC/Calib/VDriftTgl")?);
/// let known = ccdb.look_up(&query, Timestamp::from_millis(1_731_000_000_000), None).await?;
/// println!("{} versions decide within {}", known.versions.len(), known.span);
/// # Ok(())
/// # }
/// ```
pub struct CcdbSource {
    pub(super) transport: Transport,
    /// Where the bodies of versions are, absolute, in the server's order.
    replicas: moka::sync::Cache<ObjectId, Arc<[String]>>,
    /// What is remembered of paths.
    pub(super) paths: moka::sync::Cache<ObjectPath, Arc<PathMemory>>,
    /// Versions of paths that are asked for by time, as the headers told them and as they are.
    pub(super) described: moka::sync::Cache<ObjectId, Arc<TimedVersion>>,
    /// How versions were uploaded.
    details: moka::sync::Cache<ObjectId, Arc<Details>>,
}

/// A version of a path that is asked for by time.
#[derive(Debug)]
pub(super) struct TimedVersion {
    /// As the headers told it: names of metadata in lower case.
    pub(super) told: ObjectInfo,
    /// With names of metadata as they were uploaded.
    pub(super) exact: Arc<ObjectInfo>,
    /// When it was last told in full, and not by a 304.
    pub(super) told_at: Instant,
}

impl fmt::Debug for CcdbSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CcdbSource").field("url", &self.transport.url).finish_non_exhaustive()
    }
}

impl CcdbSource {
    /// Whether [`Self::new`] could read such an address.
    pub(crate) fn check_url(text: &str) -> Result<(), SourceError> {
        Address::parse_list(text).map(drop)
    }

    /// A source for `http(s)://[user:password@]host:port[/base]`, with further hosts of the same
    /// content after commas (`host:port`, which share scheme and base, or full URLs).
    ///
    /// Nothing is asked yet: a server that is down is noticed by the first question.
    ///
    /// # Errors
    /// [`SourceError::Configuration`] names what is wrong with URL or options.
    pub fn new(url: &str, options: CcdbOptions) -> Result<Self, SourceError> {
        let replicas = moka::sync::Cache::new(options.remembered_locations);
        let described = moka::sync::Cache::new(options.remembered_locations);
        let details = moka::sync::Cache::new(REMEMBERED_DETAILS);
        let weight = |_: &ObjectPath, memory: &Arc<PathMemory>| memory.weight();
        let paths =
            moka::sync::Cache::builder().max_capacity(REMEMBERED_VERSIONS).weigher(weight).build();
        Ok(Self { transport: Transport::new(url, options)?, replicas, paths, described, details })
    }

    /// Remembers where the body of `id` is, as written in an answer from `base`.
    pub(super) fn remember(&self, id: ObjectId, base: &Url, locations: &[String]) {
        let mut absolute = Vec::with_capacity(locations.len());
        for location in locations {
            absolute.extend(self.absolute(base, location).into_iter().map(String::from));
        }
        if !absolute.is_empty() {
            self.replicas.insert(id, absolute.into());
        }
    }

    /// What `location` can mean at `base`: by RFC 3986, and where the source's URL has a base
    /// path, also below that (a proxy may not have rewritten it; AliceO2's client does the same).
    pub(super) fn absolute(&self, base: &Url, location: &str) -> Vec<Url> {
        let mut found: Vec<Url> = base.join(location).into_iter().collect();
        let address = &self.transport.host_of(base).address;
        if location.starts_with('/') && !location.starts_with("//") {
            let prefix = address.base_path();
            if !prefix.is_empty() && !location.starts_with(&format!("{prefix}/")) {
                found.extend(address.url(location));
            }
        }
        found
    }

    /// Where the body of `id` was last seen to be.
    pub(super) fn remembered(&self, id: ObjectId) -> Option<Arc<[String]>> {
        self.replicas.get(&id)
    }

    /// What is remembered of a path.
    pub(super) fn memory_of(&self, path: &ObjectPath) -> Arc<PathMemory> {
        self.paths.get_with_by_ref(path, Arc::default)
    }

    /// The next look-up of the path asks the server.
    pub(super) fn forget_path(&self, path: &ObjectPath) {
        if let Some(memory) = self.paths.get(path) {
            memory.doubt();
        }
        let ids = self.described.iter().filter(|(_, one)| one.told.path == *path);
        let ids: Vec<ObjectId> = ids.map(|(id, _)| *id).collect();
        for id in &ids {
            self.described.invalidate(id);
            self.details.invalidate(id);
        }
    }

    /// Remembers how a version was uploaded, as far as that was told.
    pub(super) fn remember_details(&self, id: ObjectId, details: Details) {
        if details.file_name.is_some() {
            self.details.insert(id, Arc::new(details));
        }
    }
}

#[async_trait]
impl Source for CcdbSource {
    fn url(&self) -> &str {
        &self.transport.url
    }

    fn refresh(&self) -> Duration {
        Duration::from_millis(self.transport.options.refresh_millis)
    }

    async fn look_up(
        &self,
        query: &Query,
        at: Timestamp,
        held: Option<&Arc<ObjectInfo>>,
    ) -> Result<Knowledge, SourceError> {
        self.decide(query, at, held).await
    }

    fn forget(&self, path: &ObjectPath) {
        self.forget_path(path);
    }

    async fn list(&self, query: &Query) -> Result<Option<Vec<Arc<ObjectInfo>>>, SourceError> {
        let listed = self.list_longest(&query.path).await?;
        Ok(listed.map(|listed| of_all_time(query, listed.versions.clone()).versions))
    }

    fn write_target(&self, path: &ObjectPath) -> WriteTarget {
        let host = self.transport.hosts_in_order().next();
        WriteTarget::Source { ccdb: host.map(|(_, host)| (host.address.label(), path.clone())) }
    }

    async fn change(
        &self,
        change: &Change,
        bytes: Option<UploadBytes>,
    ) -> Result<Changed, SourceError> {
        self.pass_on(change, bytes).await
    }

    fn known_details(&self, version: &ObjectInfo) -> Option<Details> {
        self.details.get(&version.id).map(|details| Details::clone(&details))
    }

    async fn details(&self, version: &ObjectInfo) -> Result<Details, SourceError> {
        match self.known_details(version) {
            Some(details) => Ok(details),
            None => self.list_details(version).await,
        }
    }

    async fn subfolders(&self, path: &str) -> Result<Vec<String>, SourceError> {
        self.list_subfolders(path).await
    }

    async fn fetch(&self, version: &ObjectInfo, body: &mut dyn Body) -> Result<(), SourceError> {
        self.download(version, body).await
    }

    async fn paths(&self, prefix: &str) -> Result<Vec<PathSummary>, SourceError> {
        self.list_paths(prefix).await
    }

    fn health(&self) -> Vec<SourceHealth> {
        self.transport.hosts.iter().map(|host| host.health()).collect()
    }
}
