//! The CCDB source: transport, memory of paths and replicas, and the trait.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use reqwest::Url;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::address::Address;
use super::listing::of_all_time;
use super::options::CcdbOptions;
use super::paths::PathMemory;
use super::transport::Transport;
use crate::bounded_cache::BoundedCache;
use crate::interval::Timestamp;
use crate::object::{ObjectId, ObjectInfo, ObjectPath, Query};
use crate::source::{
    Body, Change, Changed, Details, Knowledge, PageKey, PathSummary, Scan, Source, SourceError,
    SourceHealth, UploadBytes, VersionPage, VersionStream, WriteTarget,
};

/// Maximum number of versions in remembered listings.
const REMEMBERED_VERSIONS: u64 = 2_000_000;
/// Maximum number of folders in remembered listings of folders.
const REMEMBERED_FOLDERS: u64 = 1_000_000;
/// Maximum number of listings that are parsed while they arrive, at one time.
const SCANS: usize = 8;
/// Maximum number of versions whose upload details are remembered.
const REMEMBERED_DETAILS: u64 = 100_000;

/// A CCDB server over HTTP, or several servers with the same contents.
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
    /// Absolute addresses of bodies, in the server's order.
    replicas: BoundedCache<ObjectId, Vec<String>>,
    /// State of paths.
    pub(super) paths: BoundedCache<ObjectPath, PathMemory>,
    /// Versions of paths that are asked by time, as in the headers and with exact metadata.
    pub(super) described: BoundedCache<ObjectId, TimedVersion>,
    /// Folders one level below a path, for the refresh time.
    folders: BoundedCache<str, Vec<String>>,
    /// Places for listings that are parsed while they arrive.
    pub(super) scans: Arc<Semaphore>,
    /// Facts about uploads, by id and beginning: a file-backed server may have an id at several
    /// places.
    details: BoundedCache<(ObjectId, Timestamp), Details>,
}

/// A version of a path that is asked by time.
#[derive(Debug)]
pub(super) struct TimedVersion {
    /// Version from the headers: keys of metadata are in lower case.
    pub(super) told: ObjectInfo,
    /// Version with keys of metadata as uploaded.
    pub(super) exact: Arc<ObjectInfo>,
    /// Time of the last full answer; a 304 is none.
    pub(super) told_at: Instant,
}

impl fmt::Debug for CcdbSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CcdbSource").field("url", &self.transport.url).finish_non_exhaustive()
    }
}

impl CcdbSource {
    /// Checks whether [`Self::new`] can parse the address.
    pub(crate) fn check_url(text: &str) -> Result<(), SourceError> {
        Address::parse_list(text).map(drop)
    }

    /// A source for `http(s)://[user:password@]host:port[/base]`. More hosts with the same contents
    /// may follow after commas: `host:port`, which share scheme and base path, or full URLs.
    ///
    /// No request is sent yet: the first look-up notices a server that is down.
    ///
    /// # Errors
    /// [`SourceError::Configuration`] with the fault of the URL or of the options.
    pub fn new(url: &str, options: CcdbOptions) -> Result<Self, SourceError> {
        let replicas = BoundedCache::new(options.remembered_locations);
        let described = BoundedCache::new(options.remembered_locations);
        let details = BoundedCache::new(REMEMBERED_DETAILS);
        let paths = BoundedCache::weighing(REMEMBERED_VERSIONS, PathMemory::weight);
        let refresh = Duration::from_millis(options.refresh_millis);
        let folders =
            BoundedCache::forgetting(REMEMBERED_FOLDERS, refresh, |folders: &Vec<String>| {
                u32::try_from(folders.len()).unwrap_or(u32::MAX).saturating_add(1)
            });
        let transport = Transport::new(url, options)?;
        let scans = Arc::new(Semaphore::new(SCANS));
        Ok(Self { transport, replicas, paths, described, folders, scans, details })
    }

    /// Remembers the locations of the body of `id`, as written in an answer from `base`.
    pub(super) fn remember(&self, id: ObjectId, base: &Url, locations: &[String]) {
        let mut absolute = Vec::with_capacity(locations.len());
        for location in locations {
            absolute.extend(self.absolute(base, location).into_iter().map(String::from));
        }
        if !absolute.is_empty() {
            self.replicas.insert(&id, Arc::new(absolute));
        }
    }

    /// Possible meanings of `location` at `base`: the one by RFC 3986 and, if the source's URL has
    /// a base path, one below it. A proxy may not have rewritten the location; AliceO2's client
    /// does the same.
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

    /// The last known locations of the body of `id`.
    pub(super) fn remembered(&self, id: ObjectId) -> Option<Arc<Vec<String>>> {
        self.replicas.get(&id)
    }

    /// The state of a path.
    pub(super) fn memory_of(&self, path: &ObjectPath) -> Arc<PathMemory> {
        self.paths.get_with(path, Arc::default)
    }

    /// Makes the next look-up of the path ask the server.
    pub(super) fn forget_path(&self, path: &ObjectPath) {
        if let Some(memory) = self.paths.get(path) {
            memory.doubt();
        }
        self.folders.invalidate_all();
        for one in self.described.values().filter(|one| one.told.path == *path) {
            self.described.invalidate(&one.told.id);
            self.details.invalidate(&details_key(&one.told));
        }
    }

    /// Remembers facts about an upload from headers, unless a listing had them: headers have whole
    /// seconds.
    pub(super) fn remember_header_details(&self, version: &ObjectInfo, details: Details) {
        if !self.details.contains_key(&details_key(version)) {
            self.remember_details(version, details);
        }
    }

    /// Remembers facts about an upload, if the answer had them.
    pub(super) fn remember_details(&self, version: &ObjectInfo, details: Details) {
        if details.file_name.is_some() {
            self.details.insert(&details_key(version), Arc::new(details));
        }
    }
}

fn details_key(version: &ObjectInfo) -> (ObjectId, Timestamp) {
    (version.id, version.validity.from())
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

    async fn list_page(
        &self,
        query: &Query,
        after: Option<PageKey>,
        limit: usize,
    ) -> Result<VersionPage, SourceError> {
        let listed = self.list_longest(&query.path).await?;
        Ok(listed.map_or_else(VersionPage::default, |listed| {
            VersionPage::of_sorted(&listed.versions, query, after, limit)
        }))
    }

    async fn scan(&self, scan: &Scan) -> Result<Option<VersionStream>, SourceError> {
        self.scan_listing(scan).await
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
        self.details.get(&details_key(version)).map(|details| Details::clone(&details))
    }

    async fn details(&self, version: &ObjectInfo) -> Result<Details, SourceError> {
        match self.known_details(version) {
            Some(details) => Ok(details),
            None => self.list_details(version).await,
        }
    }

    async fn subfolders(&self, path: &str) -> Result<Vec<String>, SourceError> {
        if let Some(known) = self.folders.get(path) {
            return Ok(known.to_vec());
        }
        let folders = self.list_subfolders(path).await?;
        self.folders.insert(path, Arc::new(folders.clone()));
        Ok(folders)
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
