//! The object index: versions by path and by id, for requests of single objects and for locks.
//!
//! ```text
//!  path ──▶ listings ─▶ every version, including those that others hide at all times
//!  id ────▶ ids seen before ─▶ listings ─▶ catalog ─▶ version
//! ```
//!
//! It holds no bytes of objects: ids and listings are small and bounded.

use std::sync::Arc;

use crate::bounded_cache::BoundedCache;
use crate::cache::error::CacheError;
use crate::cache::single_flight::{CallLost, SingleFlight};
use crate::cache::versions::catalog::Catalog;
use crate::clock::{Clock, Moment};
use crate::error::Coded as _;
use crate::interval::{Timestamp, ValidityInterval};
use crate::object::{CreationLimits, ObjectId, ObjectInfo, ObjectPath, Query};
use crate::source::SourceError;

/// Maximum number of versions known by id only.
const MAX_NAMES: u64 = 200_000;
/// Maximum number of versions in all cached listings.
const MAX_LISTED: u64 = 500_000;

/// The version that is effective at a time.
#[derive(Debug, Clone)]
pub struct Effective {
    /// The version.
    pub version: Arc<ObjectInfo>,
    /// The span in which it is effective, as far as it is known: no other version wins inside.
    pub span: ValidityInterval,
    /// The source did not confirm it in time.
    pub stale: bool,
}

/// Every version of a path that the service sees, in no particular order.
#[derive(Debug, Clone)]
pub struct Versions {
    /// The versions.
    pub versions: Vec<Arc<ObjectInfo>>,
    /// Whether these are all versions: a source may have too many to list.
    pub whole: bool,
}

/// All versions of a path that the source listed, and when it did.
#[derive(Debug)]
pub(crate) struct VersionListing {
    pub(crate) versions: Versions,
    learned: Moment,
}

/// Of all matching versions of a path, the one that is effective at `at`, and its span.
pub(crate) fn effective_of(
    versions: &[Arc<ObjectInfo>],
    query: &Query,
    at: Timestamp,
) -> Option<Effective> {
    let matching = || versions.iter().filter(|version| query.matches(version));
    let holding = matching().filter(|version| version.validity.contains(at));
    let version = holding.max_by_key(|version| version.rank())?;
    let (mut from, mut until) = (version.validity.from(), version.validity.until());
    for other in matching().filter(|other| other.rank() > version.rank()) {
        // None of these is valid at `at`.
        if other.validity.from() > at {
            until = until.min(other.validity.from());
        } else {
            from = from.max(other.validity.until());
        }
    }
    let span = ValidityInterval::new(from, until).ok()?;
    Some(Effective { version: Arc::clone(version), span, stale: false })
}

/// Cached state for requests of single objects.
#[derive(Debug)]
pub(crate) struct ObjectIndex {
    catalog: Arc<Catalog>,
    clock: Clock,
    /// Limits on the versions that the service sees.
    limits: CreationLimits,
    names: BoundedCache<ObjectId, ObjectInfo>,
    listings: BoundedCache<ObjectPath, VersionListing>,
    single_flight: SingleFlight<ObjectPath, Result<Arc<VersionListing>, SourceError>>,
}

impl ObjectIndex {
    pub(crate) fn new(catalog: Arc<Catalog>, clock: Clock, limits: CreationLimits) -> Self {
        let listings = BoundedCache::weighing(MAX_LISTED, |listing: &VersionListing| {
            u32::try_from(listing.versions.versions.len() + 1).unwrap_or(u32::MAX)
        });
        Self {
            catalog,
            clock,
            limits,
            names: BoundedCache::new(MAX_NAMES),
            listings,
            single_flight: SingleFlight::default(),
        }
    }
}

impl ObjectIndex {
    pub(crate) fn name(&self, version: &Arc<ObjectInfo>) {
        // A look-up by time gives the newest description: its end may have been moved.
        if self.names.get(&version.id).is_none_or(|known| known != *version) {
            self.names.insert(&version.id, Arc::clone(version));
        }
    }

    /// Keeps a whole listing of a path that was requested at `learned`.
    pub(crate) fn keep_listing(
        &self,
        path: &ObjectPath,
        versions: &[Arc<ObjectInfo>],
        learned: Moment,
    ) {
        let is_newer = |known: Arc<VersionListing>| known.learned >= learned;
        // Empty paths are not cached: clients can request any number of them.
        if versions.is_empty() || self.listings.get(path).is_some_and(is_newer) {
            return;
        }
        let versions = Versions { versions: versions.to_vec(), whole: true };
        self.listings.insert(path, Arc::new(VersionListing { versions, learned }));
    }

    /// Forgets the listing of a path.
    pub(crate) fn forget(&self, path: &ObjectPath) {
        self.listings.invalidate(path);
    }

    pub(crate) fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// Forgets the versions of a path that are known by id.
    pub(crate) fn forget_names(&self, path: &ObjectPath) {
        for version in self.names.values().filter(|version| version.path == *path) {
            self.names.invalidate(&version.id);
        }
    }

    /// The version `id`, if it was seen before.
    pub(crate) fn named(&self, id: ObjectId) -> Option<Arc<ObjectInfo>> {
        self.names.get(&id)
    }

    /// Every version of `path` within the limits of the service, from a listing that is fresh. If
    /// the source does not answer, an older listing is used.
    ///
    /// # Errors
    /// [`CacheError::Paths`] if the source fails and there is no older listing.
    pub(crate) async fn listing(
        &self,
        path: &ObjectPath,
    ) -> Result<Arc<VersionListing>, CacheError> {
        let oldest = self.catalog.oldest_fresh(path, self.clock.now());
        let fresh = || self.listings.get(path).filter(|listing| listing.learned >= oldest);
        if let Some(listing) = fresh() {
            return Ok(listing);
        }
        let work = || {
            let (source, kept) = (Arc::clone(self.catalog.source()), self.listings.clone());
            let query = Query { limits: self.limits, ..Query::all(path.clone()) };
            // As of before the request: a change during it may or may not be in the answer.
            let learned = self.clock.now();
            async move {
                let listed = source.list(&query).await?;
                let (whole, versions) = (listed.is_some(), listed.unwrap_or_default());
                let listing = VersionListing { versions: Versions { versions, whole }, learned };
                let listing = Arc::new(listing);
                // Empty paths are not cached: clients can request any number of them.
                if !whole || !listing.versions.versions.is_empty() {
                    kept.insert(&query.path, Arc::clone(&listing));
                }
                Ok(listing)
            }
        };
        let listed = match self.single_flight.join(path.clone(), || fresh().map(Ok), work).await {
            Ok(listed) => listed,
            Err(CallLost) => Err(SourceError::Unusable {
                url: self.catalog.source().url().to_owned(),
                what: format!("the listing of {path}"),
                reason: "it ended without a result".into(),
            }),
        };
        match (listed, self.listings.get(path)) {
            (Ok(listing), _) => Ok(listing),
            (Err(error), Some(older)) if error.kind().is_transient() => {
                tracing::warn!(%path, %error, "serving an older listing");
                Ok(older)
            }
            (Err(error), _) => Err(CacheError::Paths { prefix: path.to_string(), error }),
        }
    }

    /// The version `id` of any path, if the cache has seen it. Asks no source.
    pub(crate) fn known(&self, id: ObjectId) -> Option<Arc<ObjectInfo>> {
        if let Some(version) = self.names.get(&id) {
            return Some(version);
        }
        let listed = || {
            let mut listings = self.listings.values();
            listings.find_map(|listing| {
                let versions = &listing.versions.versions;
                versions.iter().find(|version| version.id == id).cloned()
            })
        };
        let version = self.catalog.version(id).or_else(listed)?;
        self.name(&version);
        Some(version)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_listing_answers_what_a_linear_scan_does(
            versions in proptest::collection::vec((0..40_i64, 1..20_i64, 0..9_i64, 0..3_u8), 0..20),
            at in -2..62_i64,
            run in proptest::option::of(0..3_u8),
            not_after in proptest::option::of(0..9_i64),
        ) {
            let millis = Timestamp::from_millis;
            let path = ObjectPath::new("A/B").unwrap();
            let versions: Vec<Arc<ObjectInfo>> = versions
                .into_iter()
                .enumerate()
                .map(|(n, (from, length, created, run))| Arc::new(ObjectInfo {
                    path: path.clone(),
                    id: ObjectId::from_bytes([n as u8; 16]),
                    validity: ValidityInterval::new(millis(from), millis(from + length)).unwrap(),
                    created: millis(created),
                    size_bytes: None,
                    md5: None,
                    metadata: [("run", run.to_string())].into(),
                }))
                .collect();
            let mut query = Query::all(path);
            query.metadata.extend(run.map(|run| ("run".to_owned(), run.to_string())));
            query.limits.not_after = not_after.map(millis);
            let winner = |at: i64| {
                let holding = versions.iter().filter(|v| v.validity.contains(millis(at)));
                holding.filter(|v| query.matches(v)).max_by_key(|v| v.rank()).map(|v| v.id)
            };
            let found = effective_of(&versions, &query, millis(at));
            prop_assert_eq!(found.as_ref().map(|found| found.version.id), winner(at));
            if let Some(found) = found {
                let (from, until) = (found.span.from().as_millis(), found.span.until().as_millis());
                prop_assert!(found.span.contains(millis(at)));
                // It wins in all of its span, and just outside it no longer wins or is not valid.
                prop_assert!((from..until).all(|at| winner(at) == Some(found.version.id)));
                prop_assert!(winner(from - 1) != Some(found.version.id));
                prop_assert!(winner(until) != Some(found.version.id));
            }
        }
    }
}
