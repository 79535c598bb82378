//! Several sources in order, each for some paths, and paths that stand for other paths.
//!
//! ```text
//!  look_up(path, at) ─▶ first ──valid there──▶ its version, within its validity
//!                         │ nothing valid, or down
//!                         ▼
//!                       second ─▶ … ─▶ nothing in all: absent; one was down: unknown
//!  fetch(id) ─▶ the source that named it, then the others
//! ```
//!
//! If two sources have a valid version at a time, the first source decides, regardless of creation
//! times. So a folder in front of a server replaces the objects it has, and no others.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::{StreamExt as _, stream};

use super::{
    Body, Change, ChangeListener, Changed, Details, Knowledge, NewestVersions, PageKey, PathParts,
    PathSummary, Scan, Source, SourceError, SourceHealth, UploadBytes, VersionPage, VersionStream,
    WriteTarget, page_key,
};
use crate::interval::{Timestamp, ValidityInterval};
use crate::object::{ObjectId, ObjectInfo, ObjectPath, Query};

/// Maximum number of versions whose source is remembered.
const MAX_ORIGINS: u64 = 1 << 20;

/// One source of a chain.
#[derive(Debug, Clone)]
pub struct Link {
    /// The source.
    pub source: Arc<dyn Source>,
    /// Paths that the source serves; paths below them are included. Empty: all paths.
    pub prefixes: Vec<String>,
}

impl Link {
    fn serves(&self, path: &ObjectPath) -> bool {
        self.prefixes.is_empty() || self.prefixes.iter().any(|prefix| path.starts_with(prefix))
    }
}

/// A path that stands for another, possibly of another source (AliceO2's `condition-remap`).
#[derive(Debug, Clone)]
pub struct Remap {
    /// Requested path.
    pub path: ObjectPath,
    /// Served path.
    pub to: ObjectPath,
    /// Source of the served path; `None`: the chain.
    pub source: Option<Arc<dyn Source>>,
}

impl Remap {
    /// The query for the served path.
    fn query(&self, query: &Query) -> Query {
        Query { path: self.to.clone(), ..query.clone() }
    }
}

/// Sources that are asked in order.
pub struct ChainSource {
    url: String,
    links: Vec<Link>,
    remaps: HashMap<ObjectPath, Remap>,
    /// Index of the link that named a version, by id.
    origins: moka::sync::Cache<ObjectId, usize>,
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
            links,
            remaps: remaps.into_iter().map(|remap| (remap.path.clone(), remap)).collect(),
            origins: moka::sync::Cache::new(MAX_ORIGINS),
        }
    }

    /// The sources that serve a path, in order, each with its index.
    fn links(&self, path: &ObjectPath) -> impl Iterator<Item = (usize, &Arc<dyn Source>)> {
        let path = path.clone();
        let links = self.links.iter().enumerate().filter(move |(_, link)| link.serves(&path));
        links.map(|(place, link)| (place, &link.source))
    }

    /// The source of a version, and its path there.
    fn origin_of(&self, version: &ObjectInfo) -> Option<(Arc<dyn Source>, ObjectPath)> {
        let remap = self.remaps.get(&version.path);
        let path = remap.map_or(&version.path, |remap| &remap.to).clone();
        if let Some(source) = remap.and_then(|remap| remap.source.as_ref()) {
            return Some((Arc::clone(source), path));
        }
        let origin = self.origins.get(&version.id);
        let mut links = self.links(&path);
        let found = match origin {
            Some(origin) => links.find(|(place, _)| *place == origin),
            None => links.next(),
        };
        let source = found.map(|(_, source)| Arc::clone(source))?;
        drop(links);
        Some((source, path))
    }

    async fn look_up_in_order(
        &self,
        query: &Query,
        at: Timestamp,
        held: Option<&Arc<ObjectInfo>>,
    ) -> Result<Knowledge, SourceError> {
        let alone = self.links(&query.path).count() == 1;
        let mut span = ValidityInterval::ALL;
        let mut problems = Vec::new();
        let mut stale = false;
        let mut failure = None;
        for (place, source) in self.links(&query.path) {
            let mut knowledge = match source.look_up(query, at, held).await {
                Ok(knowledge) => knowledge,
                Err(error) if is_passing(&error) => {
                    tracing::debug!(url = source.url(), %error, "the next source is asked");
                    failure.get_or_insert(error);
                    continue;
                }
                Err(error) => return Err(error),
            };
            for version in &knowledge.versions {
                self.origins.insert(version.id, place);
            }
            if alone {
                return Ok(knowledge);
            }
            let (piece, valid) = piece_around(&knowledge, at);
            let Some(narrowed) = span.intersection(piece) else { continue };
            span = narrowed;
            problems.append(&mut knowledge.problems);
            stale |= knowledge.stale;
            if valid {
                let held_there =
                    |version: &Arc<ObjectInfo>| version.validity.intersection(span).is_some();
                let versions = knowledge.versions.into_iter().filter(held_there).collect();
                return Ok(Knowledge { span, versions, problems, stale });
            }
        }
        match failure {
            // A source that could not be asked may have a version: the answer is unknown, not
            // empty.
            Some(error) => Err(error),
            None => Ok(Knowledge { span, versions: Vec::new(), problems, stale }),
        }
    }

    /// Every version of every source. If several sources have an id, the first one's version is
    /// taken.
    async fn list_in_order(
        &self,
        query: &Query,
    ) -> Result<Option<Vec<Arc<ObjectInfo>>>, SourceError> {
        let mut seen = HashSet::new();
        let mut all = Vec::new();
        for (place, source) in self.links(&query.path) {
            let versions = match source.list(query).await {
                Ok(Some(versions)) => versions,
                Ok(None) => return Ok(None),
                // The other sources can still look up single versions.
                Err(error) if is_passing(&error) => return Ok(None),
                Err(error) => return Err(error),
            };
            for version in versions {
                if seen.insert(version.id) {
                    self.origins.insert(version.id, place);
                    all.push(version);
                }
            }
        }
        Ok(Some(all))
    }

    /// A page of the versions of every source, merged. If several sources have a version, the first
    /// one's is taken.
    async fn page_in_order(
        &self,
        query: &Query,
        after: Option<PageKey>,
        limit: usize,
    ) -> Result<VersionPage, SourceError> {
        let mut merged: Vec<(PageKey, usize, Arc<ObjectInfo>)> = Vec::new();
        let mut page = VersionPage { whole: true, ..VersionPage::default() };
        // Beyond the end of the shortest page, versions may be missing.
        let mut complete: Option<PageKey> = None;
        let mut first = None;
        for (place, source) in self.links(&query.path) {
            first.get_or_insert(place);
            let part = match source.list_page(query, after, limit).await {
                Ok(part) if part.whole => part,
                // The other sources can still look up single versions.
                Ok(_) => return Ok(VersionPage::default()),
                Err(error) if is_passing(&error) && self.links(&query.path).count() > 1 => {
                    return Ok(VersionPage::default());
                }
                Err(error) => return Err(error),
            };
            if let (true, Some(last)) = (part.more, part.versions.last()) {
                page.more = true;
                let last = page_key(last);
                complete = Some(complete.map_or(last, |known| known.min(last)));
            }
            page.problems.extend(part.problems);
            merged.extend(part.versions.into_iter().map(|v| (page_key(&v), place, v)));
        }
        merged.retain(|(key, _, _)| complete.is_none_or(|last| *key <= last));
        merged.sort_by_key(|(key, place, _)| (*key, *place));
        merged.dedup_by_key(|(key, _, _)| *key);
        page.more |= merged.len() > limit;
        merged.truncate(limit);
        for (_, place, version) in merged {
            // Without an origin, the first source is asked.
            if Some(place) != first {
                self.origins.insert(version.id, place);
            }
            page.versions.push(version);
        }
        Ok(page)
    }

    /// The versions created last of every source. If several sources have an id, the first one's
    /// version is taken.
    async fn newest_in_order(
        &self,
        query: &Query,
        at: Option<Timestamp>,
        limit: usize,
    ) -> Result<Option<Vec<Arc<ObjectInfo>>>, SourceError> {
        let (mut seen, mut newest) = (HashSet::new(), NewestVersions::new(limit));
        let is_alone = self.links(&query.path).count() == 1;
        for (place, source) in self.links(&query.path) {
            let versions = match source.newest(query, at, limit).await {
                Ok(Some(versions)) => versions,
                Ok(None) => return Ok(None),
                Err(error) if is_passing(&error) && !is_alone => return Ok(None),
                Err(error) => return Err(error),
            };
            for version in versions {
                if seen.insert(version.id) {
                    if !is_alone {
                        self.origins.insert(version.id, place);
                    }
                    newest.add(version.rank(), version);
                }
            }
        }
        Ok(Some(newest.into_versions()))
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
        let mut links = self.links.iter().filter(|link| {
            is_all(link) || (scan.below && link.prefixes.iter().any(|p| touches(p)))
        });
        let only = links.next().filter(|link| is_all(link))?;
        links.next().is_none().then_some(&only.source)
    }
}

/// Whether the next source may be asked after this error.
fn is_passing(error: &SourceError) -> bool {
    match error {
        SourceError::Down { .. }
        | SourceError::Unusable { .. }
        | SourceError::NoSuchVersion { .. }
        | SourceError::NotAllowed { .. } => true,
        SourceError::Configuration { .. } | SourceError::Body { .. } => false,
    }
}

/// The longest interval around `at` in which a version is valid throughout, or in which none is
/// valid anywhere; `true` for the former.
fn piece_around(knowledge: &Knowledge, at: Timestamp) -> (ValidityInterval, bool) {
    let (mut from, mut until) = (knowledge.span.from(), knowledge.span.until());
    let mut pieces: Vec<ValidityInterval> =
        knowledge.versions.iter().map(|version| version.validity).collect();
    pieces.sort_by_key(|piece| (piece.from(), piece.until()));
    // Merges intervals that touch or overlap.
    let mut joined: Vec<(Timestamp, Timestamp)> = Vec::new();
    for piece in pieces {
        match joined.last_mut() {
            Some(last) if piece.from() <= last.1 => last.1 = last.1.max(piece.until()),
            _ => joined.push((piece.from(), piece.until())),
        }
    }
    for (begin, end) in joined {
        if begin <= at && at < end {
            (from, until) = (from.max(begin), until.min(end));
            return (ValidityInterval::new(from, until).unwrap_or(knowledge.span), true);
        }
        if end <= at {
            from = from.max(end);
        } else {
            until = until.min(begin);
        }
    }
    (ValidityInterval::new(from, until).unwrap_or(knowledge.span), false)
}

/// A copy of `version` under another path.
fn renamed(version: &ObjectInfo, path: &ObjectPath) -> ObjectInfo {
    ObjectInfo { path: path.clone(), ..version.clone() }
}

/// Puts the versions of a served path under the requested one.
fn rename_all(versions: &mut [Arc<ObjectInfo>], path: &ObjectPath) {
    for version in versions {
        *version = Arc::new(renamed(version, path));
    }
}

#[async_trait]
impl Source for ChainSource {
    fn url(&self) -> &str {
        &self.url
    }

    fn refresh(&self) -> Duration {
        let remapped = self.remaps.values().filter_map(|remap| remap.source.as_ref());
        let all = self.links.iter().map(|link| &link.source).chain(remapped);
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
        for source in self.links.iter().map(|link| &link.source).chain(remapped) {
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
            return self.look_up_in_order(query, at, held).await;
        };
        let asked = remap.query(query);
        let held = held.map(|version| Arc::new(renamed(version, &remap.to)));
        let mut knowledge = match &remap.source {
            Some(source) => source.look_up(&asked, at, held.as_ref()).await?,
            None => self.look_up_in_order(&asked, at, held.as_ref()).await?,
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
            None => self.list_in_order(asked).await?,
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
            return self.page_in_order(query, after, limit).await;
        };
        let asked = remap.query(query);
        let mut page = match &remap.source {
            Some(source) => source.list_page(&asked, after, limit).await?,
            None => self.page_in_order(&asked, after, limit).await?,
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
            return self.newest_in_order(query, at, limit).await;
        };
        let asked = remap.query(query);
        let mut newest = match &remap.source {
            Some(source) => source.newest(&asked, at, limit).await?,
            None => self.newest_in_order(&asked, at, limit).await?,
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
        let remap = self.remaps.get(path);
        let asked = remap.map_or(path, |remap| &remap.to);
        let found = match remap.and_then(|remap| remap.source.as_ref()) {
            Some(source) => source.describe(asked, from, created, id).await?,
            None => {
                let mut found = None;
                for (_, source) in self.links(asked) {
                    match source.describe(asked, from, created, id).await {
                        Ok(None) => {}
                        Err(error) if is_passing(&error) => {}
                        told => {
                            found = told?;
                            break;
                        }
                    }
                }
                found
            }
        };
        Ok(match remap {
            None => found,
            Some(_) => found.map(|version| Arc::new(renamed(&version, path))),
        })
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
        let origin = self.origins.get(&version.id);
        let mut order: Vec<(usize, &Arc<dyn Source>)> = self.links(&version.path).collect();
        order.sort_by_key(|(place, _)| (Some(*place) != origin, *place));
        let mut failure: Option<SourceError> = None;
        for (_, source) in order {
            // Bytes of a failed source are useless, and only an empty body can be filled.
            if body.written_bytes() > 0 {
                break;
            }
            match source.fetch(version, body).await {
                Ok(()) => return Ok(()),
                Err(error) if is_passing(&error) => {
                    // The first error other than "no such version" tells most.
                    let vague = matches!(failure, None | Some(SourceError::NoSuchVersion { .. }));
                    if vague {
                        failure = Some(error);
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Err(failure.unwrap_or_else(|| SourceError::NoSuchVersion {
            url: self.url.clone(),
            path: version.path.clone(),
            id: version.id,
        }))
    }

    fn forget(&self, path: &ObjectPath) {
        let remap = self.remaps.get(path);
        let path = remap.map_or(path, |remap| &remap.to);
        match remap.and_then(|remap| remap.source.as_ref()) {
            Some(source) => source.forget(path),
            None => self.links(path).for_each(|(_, source)| source.forget(path)),
        }
    }

    fn write_target(&self, path: &ObjectPath) -> WriteTarget {
        let remap = self.remaps.get(path);
        let path = remap.map_or(path, |remap| &remap.to);
        match remap.and_then(|remap| remap.source.as_ref()) {
            Some(source) => source.write_target(path),
            None => {
                self.links(path).next().map_or(WriteTarget::ReadOnly, |(_, s)| s.write_target(path))
            }
        }
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
        let first = self.links(&asked.path).next().map(|(_, source)| source);
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
        for link in &self.links {
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
        let all = self.links.iter().map(|link| &link.source).chain(remapped);
        all.flat_map(|source| source.health()).collect()
    }

    async fn paths(&self, prefix: &str) -> Result<Vec<PathSummary>, SourceError> {
        let mut counts: HashMap<ObjectPath, u64> = HashMap::new();
        for link in &self.links {
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
        match &self.links[..] {
            [one] if one.prefixes.is_empty() => one.source.path_parts(prefix).await,
            // A path can be in several sources.
            _ => {
                let paths = self.paths(prefix).await?;
                Ok(stream::once(async { Ok(paths) }).boxed())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::source::{MemorySource, VecBody};

    fn path(text: &str) -> ObjectPath {
        ObjectPath::new(text).unwrap()
    }

    fn put(source: &MemorySource, name: &str, id: u8, from: i64, until: i64) {
        let at = Timestamp::from_millis;
        let info = ObjectInfo {
            path: path(name),
            id: ObjectId::from_bytes([id; 16]),
            validity: ValidityInterval::new(at(from), at(until)).unwrap(),
            created: at(i64::from(id)),
            size_bytes: None,
            md5: None,
            metadata: Default::default(),
        };
        source.put(info, vec![id; 3]);
    }

    /// A source that can be switched off.
    #[derive(Debug, Default)]
    struct Switch {
        memory: MemorySource,
        off: AtomicBool,
    }

    impl Switch {
        fn check(&self) -> Result<(), SourceError> {
            match self.off.load(Ordering::SeqCst) {
                false => Ok(()),
                true => Err(SourceError::Down {
                    url: "switch:".into(),
                    what: "anything".into(),
                    reason: "switched off".into(),
                }),
            }
        }
    }

    #[async_trait]
    impl Source for Switch {
        fn url(&self) -> &str {
            "switch:"
        }
        fn refresh(&self) -> Duration {
            Duration::from_secs(1)
        }
        async fn look_up(
            &self,
            query: &Query,
            at: Timestamp,
            held: Option<&Arc<ObjectInfo>>,
        ) -> Result<Knowledge, SourceError> {
            self.check()?;
            self.memory.look_up(query, at, held).await
        }
        async fn fetch(
            &self,
            version: &ObjectInfo,
            body: &mut dyn Body,
        ) -> Result<(), SourceError> {
            self.check()?;
            self.memory.fetch(version, body).await
        }
        fn health(&self) -> Vec<SourceHealth> {
            self.memory.health()
        }
        async fn paths(&self, prefix: &str) -> Result<Vec<PathSummary>, SourceError> {
            self.check()?;
            self.memory.paths(prefix).await
        }
    }

    /// First byte of the id in effect at a time, according to the chain.
    async fn id_at(chain: &ChainSource, name: &str, at: i64) -> Option<u8> {
        let at = Timestamp::from_millis(at);
        let query = Query::all(path(name));
        let knowledge = chain.look_up(&query, at, None).await.unwrap();
        assert!(knowledge.span.contains(at));
        assert!(knowledge.versions.iter().all(|version| query.matches(version)));
        let valid = knowledge.versions.iter().filter(|version| version.validity.contains(at));
        valid.max_by_key(|version| version.rank()).map(|version| version.id.as_bytes()[0])
    }

    fn two() -> (Arc<Switch>, Arc<MemorySource>, ChainSource) {
        let (first, second) = (Arc::new(Switch::default()), Arc::new(MemorySource::new()));
        put(&first.memory, "A/B", 1, 10, 20);
        put(&first.memory, "A/B", 2, 15, 30);
        put(&second, "A/B", 9, 0, 100);
        put(&second, "Only/Second", 8, 0, 10);
        let links = vec![
            Link { source: Arc::clone(&first) as Arc<dyn Source>, prefixes: Vec::new() },
            Link { source: Arc::clone(&second) as Arc<dyn Source>, prefixes: Vec::new() },
        ];
        (first, second, ChainSource::new(links, Vec::new()))
    }

    #[tokio::test]
    async fn the_first_that_has_something_decides_and_the_next_fills_its_gaps() {
        let (_, _, chain) = two();
        for (at, id) in [(-1, None), (0, Some(9)), (9, Some(9)), (10, Some(1)), (15, Some(2))] {
            assert_eq!(id_at(&chain, "A/B", at).await, id, "at {at}");
        }
        for (at, id) in [(29, Some(2)), (30, Some(9)), (99, Some(9)), (100, None)] {
            assert_eq!(id_at(&chain, "A/B", at).await, id, "at {at}");
        }
        assert_eq!(id_at(&chain, "Only/Second", 5).await, Some(8));
        // The answer for one time holds in the whole span that comes with it.
        let query = Query::all(path("A/B"));
        let knowledge = chain.look_up(&query, Timestamp::from_millis(50), None).await.unwrap();
        let span = ValidityInterval::new(Timestamp::from_millis(30), Timestamp::from_millis(100));
        assert_eq!(knowledge.span, span.unwrap());
    }

    #[tokio::test]
    async fn when_the_first_is_down_the_next_answers_and_what_it_has_not_is_not_known() {
        let (first, _, chain) = two();
        first.off.store(true, Ordering::SeqCst);
        assert_eq!(id_at(&chain, "A/B", 12).await, Some(9));
        let query = Query::all(path("Nowhere"));
        let error = chain.look_up(&query, Timestamp::from_millis(1), None).await.unwrap_err();
        assert!(matches!(error, SourceError::Down { .. }));
        first.off.store(false, Ordering::SeqCst);
        assert_eq!(id_at(&chain, "A/B", 12).await, Some(1));
    }

    #[tokio::test]
    async fn a_body_comes_from_whoever_has_it() {
        let (first, second, chain) = two();
        let query = Query::all(path("A/B"));
        let at = Timestamp::from_millis(12);
        let knowledge = chain.look_up(&query, at, None).await.unwrap();
        let version = knowledge.versions.iter().find(|version| version.id.as_bytes()[0] == 1);
        let version = version.unwrap();
        let mut body = VecBody::default();
        chain.fetch(version, &mut body).await.unwrap();
        assert_eq!(body.bytes(), [1; 3]);
        // The second source gets a copy of the version.
        put(&second, "A/B", 1, 10, 20);
        first.off.store(true, Ordering::SeqCst);
        let mut body = VecBody::default();
        chain.fetch(version, &mut body).await.unwrap();
        assert_eq!(body.bytes(), [1; 3]);
        let other = ObjectInfo { id: ObjectId::from_bytes([77; 16]), ..(**version).clone() };
        let error = chain.fetch(&other, &mut VecBody::default()).await.unwrap_err();
        assert!(matches!(error, SourceError::Down { .. }), "{error}");
    }

    #[tokio::test]
    async fn pages_of_several_sources_are_merged_without_gaps_whatever_their_length() {
        let (first, second) = (Arc::new(MemorySource::new()), Arc::new(MemorySource::new()));
        for n in 0..40_u8 {
            let source = if n % 3 == 0 { &first } else { &second };
            put(source, "A/B", n, i64::from(n / 2) * 10, 1000);
        }
        // The second source has a copy of a version with another end: the first one's counts.
        put(&second, "A/B", 3, 10, 999);
        let link = |source: &Arc<MemorySource>| Link {
            source: Arc::clone(source) as Arc<dyn Source>,
            prefixes: Vec::new(),
        };
        let remap = Remap { path: path("Old/B"), to: path("A/B"), source: None };
        let chain = ChainSource::new(vec![link(&first), link(&second)], vec![remap]);
        for name in ["A/B", "Old/B"] {
            for limit in [1, 2, 7, 39, 40, 100] {
                let query = Query::all(path(name));
                let (mut after, mut found) = (None, Vec::new());
                loop {
                    let page = chain.list_page(&query, after, limit).await.unwrap();
                    assert!(page.whole && page.versions.len() <= limit);
                    assert!(page.versions.iter().all(|version| version.path == query.path));
                    after = page.versions.last().map(|version| page_key(version)).or(after);
                    found.extend(page.versions);
                    if !page.more {
                        break;
                    }
                }
                assert_eq!(found.len(), 40, "{name} {limit}");
                assert!(found.is_sorted_by_key(|version| page_key(version)));
                assert!(found.iter().all(|version| version.validity.until().as_millis() == 1000));
            }
            let newest = chain.newest(&Query::all(path(name)), None, 3).await.unwrap().unwrap();
            let mut ids: Vec<u8> = newest.iter().map(|version| version.id.as_bytes()[0]).collect();
            ids.sort_unstable();
            assert_eq!(ids, [37, 38, 39]);
        }
    }

    #[tokio::test]
    async fn prefixes_and_remaps_lead_elsewhere() {
        let (one, two) = (Arc::new(MemorySource::new()), Arc::new(MemorySource::new()));
        put(&one, "TPC/X", 1, 0, 10);
        put(&two, "TPC/X", 2, 0, 10);
        put(&two, "ITS/Y", 3, 0, 10);
        let links = vec![
            Link { source: Arc::clone(&one) as Arc<dyn Source>, prefixes: vec!["ITS".into()] },
            Link { source: Arc::clone(&two) as Arc<dyn Source>, prefixes: Vec::new() },
        ];
        let remaps = vec![
            Remap { path: path("Old/Y"), to: path("ITS/Y"), source: None },
            Remap { path: path("Test/X"), to: path("TPC/X"), source: Some(one) },
        ];
        let chain = ChainSource::new(links, remaps);
        assert_eq!(id_at(&chain, "TPC/X", 5).await, Some(2));
        assert_eq!(id_at(&chain, "Old/Y", 5).await, Some(3));
        assert_eq!(id_at(&chain, "Test/X", 5).await, Some(1));
        let query = Query::all(path("Test/X"));
        let at = Timestamp::from_millis(5);
        let knowledge = chain.look_up(&query, at, None).await.unwrap();
        let mut body = VecBody::default();
        chain.fetch(&knowledge.versions[0], &mut body).await.unwrap();
        assert_eq!(body.bytes(), [1; 3]);
    }
}
