//! The sources of a chain, asked in order.

use std::collections::HashSet;
use std::sync::Arc;

use crate::bounded_cache::BoundedCache;
use crate::interval::{Timestamp, ValidityInterval};
use crate::object::{ObjectId, ObjectInfo, ObjectPath, Query};
use crate::source::{
    Body, Knowledge, NewestVersions, PageKey, Source, SourceError, VersionPage, page_key,
};

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
    pub(super) fn serves(&self, path: &ObjectPath) -> bool {
        self.prefixes.is_empty() || self.prefixes.iter().any(|prefix| path.starts_with(prefix))
    }
}

/// The sources of a chain in order, and the origins of versions.
pub(super) struct Links {
    links: Vec<Link>,
    /// Index of the link that named a version, by id.
    origins: BoundedCache<ObjectId, usize>,
}

impl Links {
    pub(super) fn new(links: Vec<Link>) -> Self {
        Self { links, origins: BoundedCache::new(MAX_ORIGINS) }
    }

    /// All of them, in order.
    pub(super) fn all(&self) -> &[Link] {
        &self.links
    }

    /// The sources that serve a path, in order, each with its index.
    pub(super) fn serving(
        &self,
        path: &ObjectPath,
    ) -> impl Iterator<Item = (usize, &Arc<dyn Source>)> {
        let path = path.clone();
        let links = self.links.iter().enumerate().filter(move |(_, link)| link.serves(&path));
        links.map(|(place, link)| (place, &link.source))
    }

    /// The source that named a version of `path`; the first one if none is known.
    pub(super) fn origin(&self, id: ObjectId, path: &ObjectPath) -> Option<&Arc<dyn Source>> {
        let mut links = self.serving(path);
        let found = match self.origins.get(&id) {
            Some(origin) => links.find(|(place, _)| *place == *origin),
            None => links.next(),
        };
        found.map(|(_, source)| source)
    }

    /// Whether one source alone decides which version of `path` is in effect.
    pub(super) fn decide_by_creation(&self, path: &ObjectPath) -> bool {
        self.serving(path).count() < 2
    }

    /// For each version, the place of the first source that has it.
    pub(super) async fn places(
        &self,
        path: &ObjectPath,
        versions: &[Arc<ObjectInfo>],
    ) -> Result<Vec<usize>, SourceError> {
        if self.decide_by_creation(path) {
            return Ok(vec![0; versions.len()]);
        }
        let mut places = vec![usize::MAX; versions.len()];
        for (place, source) in self.serving(path) {
            let listed = source.list(&Query::all(path.clone())).await?;
            let listed: Option<HashSet<ObjectId>> =
                listed.map(|versions| versions.iter().map(|version| version.id).collect());
            let unplaced = versions.iter().zip(&mut places).filter(|(_, of)| **of == usize::MAX);
            for (version, of) in unplaced {
                let ObjectInfo { id, validity, created, .. } = &**version;
                let has_it = match &listed {
                    Some(ids) => ids.contains(id),
                    None => {
                        let described = source.describe(path, validity.from(), *created, *id);
                        described.await?.is_some()
                    }
                };
                if has_it {
                    *of = place;
                }
            }
        }
        Ok(places)
    }

    /// The version in effect at `at`: of the first source that has a valid one.
    pub(super) async fn look_up(
        &self,
        query: &Query,
        at: Timestamp,
        held: Option<&Arc<ObjectInfo>>,
    ) -> Result<Knowledge, SourceError> {
        let alone = self.serving(&query.path).count() == 1;
        let mut span = ValidityInterval::ALL;
        let mut problems = Vec::new();
        let mut stale = false;
        let mut failure = None;
        for (place, source) in self.serving(&query.path) {
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
                self.origins.insert(&version.id, Arc::new(place));
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
    pub(super) async fn list(
        &self,
        query: &Query,
    ) -> Result<Option<Vec<Arc<ObjectInfo>>>, SourceError> {
        let mut seen = HashSet::new();
        let mut all = Vec::new();
        for (place, source) in self.serving(&query.path) {
            let versions = match source.list(query).await {
                Ok(Some(versions)) => versions,
                Ok(None) => return Ok(None),
                // The other sources can still look up single versions.
                Err(error) if is_passing(&error) => return Ok(None),
                Err(error) => return Err(error),
            };
            for version in versions {
                if seen.insert(version.id) {
                    self.origins.insert(&version.id, Arc::new(place));
                    all.push(version);
                }
            }
        }
        Ok(Some(all))
    }

    /// A page of the versions of every source, merged. If several sources have a version, the first
    /// one's is taken.
    pub(super) async fn page(
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
        for (place, source) in self.serving(&query.path) {
            first.get_or_insert(place);
            let part = match source.list_page(query, after, limit).await {
                Ok(part) if part.whole => part,
                // The other sources can still look up single versions.
                Ok(_) => return Ok(VersionPage::default()),
                Err(error) if is_passing(&error) && self.serving(&query.path).count() > 1 => {
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
                self.origins.insert(&version.id, Arc::new(place));
            }
            page.versions.push(version);
        }
        Ok(page)
    }

    /// The versions created last of every source. If several sources have an id, the first one's
    /// version is taken.
    pub(super) async fn newest(
        &self,
        query: &Query,
        at: Option<Timestamp>,
        limit: usize,
    ) -> Result<Option<Vec<Arc<ObjectInfo>>>, SourceError> {
        let (mut seen, mut newest) = (HashSet::new(), NewestVersions::new(limit));
        let is_alone = self.serving(&query.path).count() == 1;
        for (place, source) in self.serving(&query.path) {
            let versions = match source.newest(query, at, limit).await {
                Ok(Some(versions)) => versions,
                Ok(None) => return Ok(None),
                Err(error) if is_passing(&error) && !is_alone => return Ok(None),
                Err(error) => return Err(error),
            };
            for version in versions {
                if seen.insert(version.id) {
                    if !is_alone {
                        self.origins.insert(&version.id, Arc::new(place));
                    }
                    newest.add(version.rank(), version);
                }
            }
        }
        Ok(Some(newest.into_versions()))
    }

    /// The description of a version, of the first source that has it.
    pub(super) async fn describe(
        &self,
        path: &ObjectPath,
        from: Timestamp,
        created: Timestamp,
        id: ObjectId,
    ) -> Result<Option<Arc<ObjectInfo>>, SourceError> {
        for (_, source) in self.serving(path) {
            match source.describe(path, from, created, id).await {
                Ok(None) => {}
                Err(error) if is_passing(&error) => {}
                told => return told,
            }
        }
        Ok(None)
    }

    /// Reads the bytes of a version from the source that named it, else from the others. `url` is
    /// that of the chain.
    pub(super) async fn fetch(
        &self,
        version: &ObjectInfo,
        body: &mut dyn Body,
        url: &str,
    ) -> Result<(), SourceError> {
        let origin = self.origins.get(&version.id).map(|origin| *origin);
        let mut order: Vec<(usize, &Arc<dyn Source>)> = self.serving(&version.path).collect();
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
            url: url.to_owned(),
            path: version.path.clone(),
            id: version.id,
        }))
    }
}

/// Whether the next source may be asked after this error.
fn is_passing(error: &SourceError) -> bool {
    match error {
        SourceError::Down { .. }
        | SourceError::Unusable { .. }
        | SourceError::NoSuchVersion { .. }
        | SourceError::NotAllowed { .. } => true,
        SourceError::Configuration { .. }
        | SourceError::Body { .. }
        | SourceError::Refused { .. }
        | SourceError::Exists { .. } => false,
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
