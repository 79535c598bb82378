//! A source that asks several sources in order.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::{StreamExt as _, stream};

use super::links::{Link, Links};
use super::remap::{Remap, rename_all, renamed};
use crate::interval::Timestamp;
use crate::object::{ObjectId, ObjectInfo, ObjectPath, Query};
use crate::source::{
    Body, Change, ChangeListener, Changed, Details, Knowledge, PageKey, PathParts, PathSummary,
    Scan, Source, SourceError, SourceHealth, UploadBytes, VersionPage, VersionStream, WriteTarget,
};

/// Sources that are asked in order, as one source.
///
/// The first source with a version valid at a timestamp decides, regardless of creation times. A
/// source that is down is passed over; if no other has a valid version, the answer is its error,
/// because it may have one. A version is fetched from the source that named it, then from the
/// others.
///
/// ```
/// use std::sync::Arc;
///
/// use iovcache::source::{ChainSource, Link, MemorySource, Source};
/// # use iovcache::{ObjectId, ObjectInfo, ObjectPath, Query, Timestamp, ValidityInterval};
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
/// let (folder, server) = (MemorySource::new(), MemorySource::new());
/// folder.put(drift(1, 0, 10, 1), &b"replacement"[..]);
/// server.put(drift(2, 0, 90, 2), &b"drift"[..]);
/// let link = |source: MemorySource| {
///     let source: Arc<dyn Source> = Arc::new(source);
///     Link { source, prefixes: Vec::new() }
/// };
/// let chain = ChainSource::new(vec![link(folder), link(server)], Vec::new());
/// let query = Query::all(ObjectPath::new("TPC/Calib/VDrift")?);
/// for (at, id) in [(5, 1), (50, 2)] {
///     let at = Timestamp::from_millis(at);
///     let knowledge = chain.look_up(&query, at, None).await?;
///     assert!(knowledge.versions.iter().any(|version| version.id.as_bytes()[0] == id));
///     assert!(knowledge.span.contains(at));
/// }
/// # Ok(())
/// # }
/// ```
pub struct ChainSource {
    url: String,
    links: Links,
    remaps: HashMap<ObjectPath, Remap>,
}

impl fmt::Debug for ChainSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChainSource({})", self.url)
    }
}

impl ChainSource {
    /// Asks the sources of `links` in their order, and replaces the paths of `remaps`.
    pub fn new(links: Vec<Link>, remaps: Vec<Remap>) -> Self {
        let urls: Vec<&str> = links.iter().map(|link| link.source.url()).collect();
        Self {
            url: urls.join(" | "),
            links: Links::new(links),
            remaps: remaps.into_iter().map(|remap| (remap.path.clone(), remap)).collect(),
        }
    }

    /// The source that serves a path instead of the chain, and the path there.
    fn served<'a>(&'a self, path: &'a ObjectPath) -> (Option<&'a Arc<dyn Source>>, &'a ObjectPath) {
        match self.remaps.get(path) {
            Some(remap) => (remap.source.as_ref(), &remap.to),
            None => (None, path),
        }
    }

    /// The source of a version, and its path there.
    fn origin_of(&self, version: &ObjectInfo) -> Option<(Arc<dyn Source>, ObjectPath)> {
        let (source, path) = self.served(&version.path);
        let source = source.or_else(|| self.links.origin(version.id, path))?;
        Some((Arc::clone(source), path.clone()))
    }

    /// The only source that has anything of a listing.
    fn only_source_of(&self, scan: &Scan) -> Option<&Arc<dyn Source>> {
        let is_below = |path: &str, prefix: &str| {
            prefix.is_empty()
                || path
                    .strip_prefix(prefix)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let touches = |path: &str| {
            is_below(path, &scan.prefix) || (scan.below && is_below(&scan.prefix, path))
        };
        if self.remaps.keys().any(|path| touches(path.as_str())) {
            return None;
        }
        let is_all = |link: &Link| {
            link.prefixes.is_empty() || link.prefixes.iter().any(|p| is_below(&scan.prefix, p))
        };
        let mut links = self.links.all().iter().filter(|link| {
            is_all(link) || (scan.below && link.prefixes.iter().any(|p| touches(p)))
        });
        let only = links.next().filter(|link| is_all(link))?;
        links.next().is_none().then_some(&only.source)
    }
}

#[async_trait]
impl Source for ChainSource {
    fn url(&self) -> &str {
        &self.url
    }

    fn refresh(&self) -> Duration {
        let remapped = self.remaps.values().filter_map(|remap| remap.source.as_ref());
        let all = self.links.all().iter().map(|link| &link.source).chain(remapped);
        all.map(|source| source.refresh()).min().unwrap_or_default()
    }

    fn subscribe(&self, listener: ChangeListener) {
        // A change of the served path is also a change of the requested one.
        let named: Vec<(ObjectPath, ObjectPath)> =
            self.remaps.values().map(|remap| (remap.to.clone(), remap.path.clone())).collect();
        let told: ChangeListener = Arc::new(move |changed| {
            let also = named.iter().filter(|(to, _)| changed.contains(to));
            let also: Vec<ObjectPath> = also.map(|(_, path)| path.clone()).collect();
            if also.is_empty() {
                return listener(changed);
            }
            listener(&changed.iter().cloned().chain(also).collect());
        });
        let remapped = self.remaps.values().filter_map(|remap| remap.source.as_ref());
        for source in self.links.all().iter().map(|link| &link.source).chain(remapped) {
            source.subscribe(Arc::clone(&told));
        }
    }

    async fn look_up(
        &self,
        query: &Query,
        at: Timestamp,
        held: Option<&Arc<ObjectInfo>>,
    ) -> Result<Knowledge, SourceError> {
        let Some(remap) = self.remaps.get(&query.path) else {
            return self.links.look_up(query, at, held).await;
        };
        let asked = remap.query(query);
        let held = held.map(|version| Arc::new(renamed(version, &remap.to)));
        let mut knowledge = match &remap.source {
            Some(source) => source.look_up(&asked, at, held.as_ref()).await?,
            None => self.links.look_up(&asked, at, held.as_ref()).await?,
        };
        rename_all(&mut knowledge.versions, &query.path);
        Ok(knowledge)
    }

    async fn list(&self, query: &Query) -> Result<Option<Vec<Arc<ObjectInfo>>>, SourceError> {
        let remap = self.remaps.get(&query.path);
        let asked = match remap {
            Some(remap) => &remap.query(query),
            None => query,
        };
        let own = remap.and_then(|remap| remap.source.as_ref());
        let mut listed = match own {
            Some(source) => source.list(asked).await?,
            None => self.links.list(asked).await?,
        };
        if remap.is_some() {
            rename_all(listed.as_deref_mut().unwrap_or_default(), &query.path);
        }
        Ok(listed)
    }

    async fn list_page(
        &self,
        query: &Query,
        after: Option<PageKey>,
        limit: usize,
    ) -> Result<VersionPage, SourceError> {
        let Some(remap) = self.remaps.get(&query.path) else {
            return self.links.page(query, after, limit).await;
        };
        let asked = remap.query(query);
        let mut page = match &remap.source {
            Some(source) => source.list_page(&asked, after, limit).await?,
            None => self.links.page(&asked, after, limit).await?,
        };
        rename_all(&mut page.versions, &query.path);
        Ok(page)
    }

    async fn newest(
        &self,
        query: &Query,
        at: Option<Timestamp>,
        limit: usize,
    ) -> Result<Option<Vec<Arc<ObjectInfo>>>, SourceError> {
        let Some(remap) = self.remaps.get(&query.path) else {
            return self.links.newest(query, at, limit).await;
        };
        let asked = remap.query(query);
        let mut newest = match &remap.source {
            Some(source) => source.newest(&asked, at, limit).await?,
            None => self.links.newest(&asked, at, limit).await?,
        };
        rename_all(newest.as_deref_mut().unwrap_or_default(), &query.path);
        Ok(newest)
    }

    async fn scan(&self, scan: &Scan) -> Result<Option<VersionStream>, SourceError> {
        match self.only_source_of(scan) {
            Some(source) => source.scan(scan).await,
            None => Ok(None),
        }
    }

    async fn describe(
        &self,
        path: &ObjectPath,
        from: Timestamp,
        created: Timestamp,
        id: ObjectId,
    ) -> Result<Option<Arc<ObjectInfo>>, SourceError> {
        let found = match self.served(path) {
            (Some(source), asked) => source.describe(asked, from, created, id).await?,
            (None, asked) => self.links.describe(asked, from, created, id).await?,
        };
        Ok(match self.remaps.contains_key(path) {
            false => found,
            true => found.map(|version| Arc::new(renamed(&version, path))),
        })
    }

    fn decides_by_creation(&self, path: &ObjectPath) -> bool {
        match self.served(path) {
            (Some(source), path) => source.decides_by_creation(path),
            (None, path) => self.links.decide_by_creation(path),
        }
    }

    async fn places(
        &self,
        path: &ObjectPath,
        versions: &[Arc<ObjectInfo>],
    ) -> Result<Vec<usize>, SourceError> {
        match self.served(path) {
            (Some(source), path) => source.places(path, versions).await,
            (None, path) => self.links.places(path, versions).await,
        }
    }

    async fn fetch(&self, version: &ObjectInfo, body: &mut dyn Body) -> Result<(), SourceError> {
        let remap = self.remaps.get(&version.path);
        let version = match remap {
            Some(remap) => &renamed(version, &remap.to),
            None => version,
        };
        if let Some(source) = remap.and_then(|remap| remap.source.as_ref()) {
            return source.fetch(version, body).await;
        }
        self.links.fetch(version, body, &self.url).await
    }

    fn forget(&self, path: &ObjectPath) {
        match self.served(path) {
            (Some(source), path) => source.forget(path),
            (None, path) => self.links.serving(path).for_each(|(_, source)| source.forget(path)),
        }
    }

    fn write_target(&self, path: &ObjectPath) -> WriteTarget {
        let (source, path) = self.served(path);
        let first = || self.links.serving(path).next().map(|(_, source)| source);
        let target = source.or_else(first).map(|source| source.write_target(path));
        target.unwrap_or(WriteTarget::ReadOnly)
    }

    /// Changes the first source that serves the path: its versions take precedence.
    async fn change(
        &self,
        change: &Change,
        bytes: Option<UploadBytes>,
    ) -> Result<Changed, SourceError> {
        let remap = self.remaps.get(&change.path);
        let mut asked = change.clone();
        if let Some(remap) = remap {
            asked.path = remap.to.clone();
        }
        let first = self.links.serving(&asked.path).next().map(|(_, source)| source);
        let changed = match remap.and_then(|remap| remap.source.as_ref()).or(first) {
            Some(source) => source.change(&asked, bytes).await?,
            None => return Ok(Changed::NotFound),
        };
        let back = |mut version: Box<ObjectInfo>| {
            version.path = change.path.clone();
            version
        };
        Ok(match changed {
            Changed::Created(version) => Changed::Created(back(version)),
            Changed::Updated(version) => Changed::Updated(back(version)),
            other => other,
        })
    }

    fn known_details(&self, version: &ObjectInfo) -> Option<Details> {
        let (source, path) = self.origin_of(version)?;
        source.known_details(&renamed(version, &path))
    }

    async fn details(&self, version: &ObjectInfo) -> Result<Details, SourceError> {
        match self.origin_of(version) {
            Some((source, path)) => source.details(&renamed(version, &path)).await,
            None => Ok(Details::default()),
        }
    }

    async fn subfolders(&self, path: &str) -> Result<Vec<String>, SourceError> {
        let mut folders = Vec::new();
        let is_below = |path: &str, prefix: &str| {
            path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        for link in self.links.all() {
            let serves = |folder: &str| {
                link.prefixes.is_empty()
                    || link.prefixes.iter().any(|p| is_below(folder, p) || is_below(p, folder))
            };
            if path.is_empty() || serves(path) {
                let below = link.source.subfolders(path).await?;
                folders.extend(below.into_iter().filter(|folder| serves(folder)));
            }
        }
        for remap in self.remaps.keys().map(ObjectPath::as_str) {
            let rest = match path {
                "" => Some(remap),
                path => remap.strip_prefix(path).and_then(|rest| rest.strip_prefix('/')),
            };
            if let Some(rest) = rest {
                let length = remap.len() - rest.len() + rest.find('/').unwrap_or(rest.len());
                folders.push(remap[..length].to_owned());
            }
        }
        folders.sort_unstable();
        folders.dedup();
        Ok(folders)
    }

    fn health(&self) -> Vec<SourceHealth> {
        let remapped = self.remaps.values().filter_map(|remap| remap.source.as_ref());
        let all = self.links.all().iter().map(|link| &link.source).chain(remapped);
        all.flat_map(|source| source.health()).collect()
    }

    async fn paths(&self, prefix: &str) -> Result<Vec<PathSummary>, SourceError> {
        let mut counts: HashMap<ObjectPath, u64> = HashMap::new();
        for link in self.links.all() {
            for summary in link.source.paths(prefix).await? {
                if link.serves(&summary.path) {
                    *counts.entry(summary.path).or_default() += summary.versions;
                }
            }
        }
        let mut paths: Vec<PathSummary> =
            counts.into_iter().map(|(path, versions)| PathSummary { path, versions }).collect();
        paths.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(paths)
    }

    async fn path_parts(&self, prefix: &str) -> Result<PathParts, SourceError> {
        match self.links.all() {
            [one] if one.prefixes.is_empty() => one.source.path_parts(prefix).await,
            // A path can be in several sources.
            _ => {
                let paths = self.paths(prefix).await?;
                Ok(stream::once(async { Ok(paths) }).boxed())
            }
        }
    }
}
