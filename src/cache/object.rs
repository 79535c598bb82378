//! Single objects, for those who do not ask for tables: which version holds, and its pinned bytes.
//!
//! ```text
//!  (query, at) ─▶ Catalog ─▶ Effective: version, and the span in which it decides
//!  path ────────▶ listings ─▶ every version, also those that never win
//!  id ──────────▶ names (those told before) ─▶ listings ─▶ version
//!  version ─────▶ Loader ─▶ Held: pinned, and counted as held until it is dropped
//! ```
//!
//! Here are no bytes but those of the residency: names, listings and sums are small, and bounded.

use std::sync::Arc;
use std::time::Duration;

use md5::{Digest as _, Md5};
use tokio::time::Instant;

use super::Cache;
use super::answer::by_deadline;
use super::error::CacheError;
use super::flight::{Flights, Lost};
use super::hand::InHand;
use crate::clock::Moment;
use crate::error::Coded as _;
use crate::index::Timestamps;
use crate::interval::{Timestamp, ValidityInterval};
use crate::object::{Md5Sum, ObjectId, ObjectInfo, ObjectPath, Query};
use crate::source::{Change, Changed, Details, SourceError, UploadBytes, WriteTarget};

/// How many versions are known by their id alone.
const MAX_NAMES: u64 = 200_000;
/// How many versions the listings have that are kept, in all.
const MAX_LISTED: u64 = 500_000;
/// Up to this size a sum is made here and now; above, beside the other work.
const HASH_BESIDE_FROM_BYTES: usize = 256 << 10;

/// The version that decides at a time.
#[derive(Debug, Clone)]
pub struct Effective {
    /// The version.
    pub version: Arc<ObjectInfo>,
    /// Where it decides, as far as that is known: no other version wins inside of this.
    pub span: ValidityInterval,
    /// The source could not confirm it in time.
    pub stale: bool,
}

/// Every version of a path that the service sees, in no order.
#[derive(Debug, Clone)]
pub struct Versions {
    /// The versions.
    pub versions: Vec<Arc<ObjectInfo>>,
    /// Whether these are all: a source may have too many to list them.
    pub whole: bool,
}

#[derive(Debug)]
pub(super) struct Listing {
    pub(super) versions: Versions,
    learned: Moment,
}

/// Of all versions of a path, the one that decides at `at` among those that match, and where.
fn effective_of(versions: &[Arc<ObjectInfo>], query: &Query, at: Timestamp) -> Option<Effective> {
    let matching = || versions.iter().filter(|version| query.matches(version));
    let holding = matching().filter(|version| version.validity.contains(at));
    let version = holding.max_by_key(|version| version.rank())?;
    let (mut from, mut until) = (version.validity.from(), version.validity.until());
    for other in matching().filter(|other| other.rank() > version.rank()) {
        // None of these holds at `at`.
        if other.validity.from() > at {
            until = until.min(other.validity.from());
        } else {
            from = from.max(other.validity.until());
        }
    }
    let span = ValidityInterval::new(from, until).ok()?;
    Some(Effective { version: Arc::clone(version), span, stale: false })
}

/// What is remembered for those who ask for single objects.
#[derive(Debug)]
pub(super) struct Objects {
    names: moka::sync::Cache<ObjectId, Arc<ObjectInfo>>,
    sums: moka::sync::Cache<ObjectId, Md5Sum>,
    listings: moka::sync::Cache<ObjectPath, Arc<Listing>>,
    flights: Flights<ObjectPath, Result<Arc<Listing>, SourceError>>,
}

impl Default for Objects {
    fn default() -> Self {
        let listings = moka::sync::Cache::builder()
            .max_capacity(MAX_LISTED)
            .weigher(|_, listing: &Arc<Listing>| {
                u32::try_from(listing.versions.versions.len() + 1).unwrap_or(u32::MAX)
            })
            .build();
        Self {
            names: moka::sync::Cache::new(MAX_NAMES),
            sums: moka::sync::Cache::new(MAX_NAMES),
            listings,
            flights: Flights::default(),
        }
    }
}

impl Objects {
    fn name(&self, version: &Arc<ObjectInfo>) {
        // What is told by time is the newest that is known of it: its end may have been moved.
        if self.names.get(&version.id).is_none_or(|known| known != *version) {
            self.names.insert(version.id, Arc::clone(version));
        }
    }

    /// Forgets the listing of a path.
    pub(super) fn forget(&self, path: &ObjectPath) {
        self.listings.invalidate(path);
    }
}

/// One object in shared memory, which stays there until this is dropped.
#[derive(Debug)]
pub struct Held {
    pins: InHand,
}

impl Held {
    /// The object's bytes.
    pub fn payload(&self) -> &[u8] {
        self.pins.pins().first().map_or(&[], |pin| pin.payload())
    }
}

impl Cache {
    /// Which version holds at `at`; nothing where none does.
    ///
    /// The limits of the service apply beside those of `query`. Where a path can be listed, a query
    /// with metadata or limits of its own is answered from the listing: nothing is kept of it.
    ///
    /// # Errors
    /// [`CacheError`], where nothing older is known either.
    pub async fn version_at(
        &self,
        query: &Query,
        at: Timestamp,
        patience: Duration,
    ) -> Result<Option<Effective>, CacheError> {
        self.check_open()?;
        let limits = self.0.limits.narrowed_by(query.limits);
        let query = Query { limits, ..query.clone() };
        let deadline = Instant::now() + patience;
        if !query.metadata.is_empty() || limits != self.0.limits {
            let listing = self.listing(&query.path);
            let listing = by_deadline("the source to list a path", deadline, listing).await?;
            if listing.versions.whole {
                let found = effective_of(&listing.versions.versions, &query, at);
                found.iter().for_each(|effective| self.0.objects.name(&effective.version));
                return Ok(found);
            }
        }
        let timestamps = Timestamps::new(vec![at.as_millis()], None);
        let known = by_deadline(
            "the source to say which version holds",
            deadline,
            self.0.catalog.known_at(&query, &timestamps),
        )
        .await?;
        let found = known.timeline.version_at(at).zip(known.timeline.span_at(at));
        Ok(found.map(|(version, span)| {
            self.0.objects.name(version);
            Effective { version: Arc::clone(version), span: span.interval, stale: known.stale }
        }))
    }

    /// Every version of `path`, also those that others hide at every time.
    ///
    /// # Errors
    /// [`CacheError`], where nothing older is known either.
    pub async fn versions(
        &self,
        path: &ObjectPath,
        patience: Duration,
    ) -> Result<Versions, CacheError> {
        self.check_open()?;
        let listing = self.listing(path);
        let what = "the source to list a path";
        let listing = by_deadline(what, Instant::now() + patience, listing).await?;
        Ok(listing.versions.clone())
    }

    /// Every version of `path` within the limits of the service, from a listing that is not too old.
    pub(super) async fn listing(&self, path: &ObjectPath) -> Result<Arc<Listing>, CacheError> {
        let objects = &self.0.objects;
        let oldest = self.0.catalog.oldest_fresh(path, self.0.clock.now());
        let fresh = || objects.listings.get(path).filter(|listing| listing.learned >= oldest);
        if let Some(listing) = fresh() {
            return Ok(listing);
        }
        let work = || {
            let (source, kept) = (Arc::clone(self.0.catalog.source()), objects.listings.clone());
            let query = Query { limits: self.0.limits, ..Query::all(path.clone()) };
            // As of before the question: what is put meanwhile may or may not be in the answer.
            let learned = self.0.clock.now();
            async move {
                let listed = source.list(&query).await?;
                let (whole, versions) = (listed.is_some(), listed.unwrap_or_default());
                let listing = Listing { versions: Versions { versions, whole }, learned };
                let listing = Arc::new(listing);
                // A path of which there is nothing is not kept: anybody can ask for any.
                if !whole || !listing.versions.versions.is_empty() {
                    kept.insert(query.path, Arc::clone(&listing));
                }
                Ok(listing)
            }
        };
        let listed = match objects.flights.join(path.clone(), || fresh().map(Ok), work).await {
            Ok(listed) => listed,
            Err(Lost) => Err(SourceError::Unusable {
                url: self.0.catalog.source().url().to_owned(),
                what: format!("the listing of {path}"),
                reason: "it ended without a result".into(),
            }),
        };
        match (listed, objects.listings.get(path)) {
            (Ok(listing), _) => Ok(listing),
            (Err(error), Some(older)) if error.kind().is_transient() => {
                tracing::warn!(%path, %error, "listing what was known before");
                Ok(older)
            }
            (Err(error), _) => Err(CacheError::Paths { prefix: path.to_string(), error }),
        }
    }

    /// Who takes changes of a path.
    pub fn write_target(&self, path: &ObjectPath) -> WriteTarget {
        self.0.catalog.source().write_target(path)
    }

    /// Changes versions at their source; from then on this cache serves what is there.
    ///
    /// # Errors
    /// [`CacheError`].
    pub async fn change(
        &self,
        change: &Change,
        bytes: Option<UploadBytes>,
    ) -> Result<Changed, CacheError> {
        self.check_open()?;
        let changed = self.0.catalog.source().change(change, bytes).await;
        self.invalidate(&change.path);
        let path = || change.path.to_string();
        changed.map_err(|error| CacheError::Paths { prefix: path(), error })
    }

    /// The folders one level below a path, as whole paths, sorted.
    ///
    /// # Errors
    /// [`CacheError`].
    pub async fn subfolders(&self, path: &str) -> Result<Vec<String>, CacheError> {
        self.check_open()?;
        let found = self.0.catalog.source().subfolders(path).await;
        found.map_err(|error| CacheError::Paths { prefix: path.to_owned(), error })
    }

    /// How a version was uploaded, as far as that is at hand.
    pub fn known_details_of(&self, version: &ObjectInfo) -> Details {
        self.0.catalog.source().known_details(version).unwrap_or_default()
    }

    /// How a version was uploaded, as far as its source tells within `patience`; nothing of it
    /// decides which version is served.
    pub async fn details_of(&self, version: &ObjectInfo, patience: Duration) -> Details {
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

    /// The version `id` of `path`, of which it is said that it holds at `at`.
    ///
    /// # Errors
    /// [`CacheError`].
    pub async fn version_of(
        &self,
        path: &ObjectPath,
        at: Timestamp,
        id: ObjectId,
        patience: Duration,
    ) -> Result<Option<Arc<ObjectInfo>>, CacheError> {
        self.check_open()?;
        let is_it = |version: &Arc<ObjectInfo>| {
            version.id == id && version.path == *path && version.validity.contains(at)
        };
        if let Some(version) = self.0.objects.names.get(&id).filter(is_it) {
            return Ok(Some(version));
        }
        let listed = self.versions(path, patience).await?;
        if let Some(version) = listed.versions.iter().find(|version| is_it(version)) {
            self.0.objects.name(version);
            return Ok(Some(Arc::clone(version)));
        }
        if listed.whole {
            return Ok(None);
        }
        let query = Query::all(path.clone());
        let effective = self.version_at(&query, at, patience).await?;
        Ok(effective.map(|effective| effective.version).filter(is_it))
    }

    /// The version `id` of whatever path, if the cache has come across it. Asks no source.
    pub fn version_known(&self, id: ObjectId) -> Option<Arc<ObjectInfo>> {
        let objects = &self.0.objects;
        if let Some(version) = objects.names.get(&id) {
            return Some(version);
        }
        let listed = || {
            let mut listings = objects.listings.iter();
            listings.find_map(|(_, listing)| {
                let versions = &listing.versions.versions;
                versions.iter().find(|version| version.id == id).cloned()
            })
        };
        let version = self.0.catalog.version(id).or_else(listed)?;
        objects.name(&version);
        Some(version)
    }

    /// Brings an object into shared memory and keeps it there.
    ///
    /// # Errors
    /// [`CacheError`].
    pub async fn hold(
        &self,
        version: &Arc<ObjectInfo>,
        patience: Duration,
    ) -> Result<Held, CacheError> {
        self.check_open()?;
        let versions = std::slice::from_ref(version);
        let got = self.0.loader.pin_all(versions, Instant::now() + patience).await?;
        Ok(Held { pins: self.0.hands.take(Arc::new(got.pins)) })
    }

    /// The MD5 of an object: as its source gives it, else made once and remembered.
    pub async fn md5_of(&self, version: &ObjectInfo, held: &Held) -> Option<Md5Sum> {
        let known = || held.pins.pins().first().and_then(|pin| pin.resident().md5());
        if let Some(md5) = version.md5.or_else(known) {
            return Some(md5);
        }
        let sums = &self.0.objects.sums;
        if let Some(md5) = sums.get(&version.id) {
            return Some(md5);
        }
        let sum = |bytes: &[u8]| Md5Sum(Md5::digest(bytes).into());
        let md5 = match held.payload() {
            small if small.len() < HASH_BESIDE_FROM_BYTES => sum(small),
            _ => {
                // Its memory is not taken anew before this is gone.
                let object = Arc::clone(held.pins.pins().first()?.resident());
                let beside = tokio::task::spawn_blocking(move || sum(object.block().payload()));
                beside.await.ok()?
            }
        };
        sums.insert(version.id, md5);
        Some(md5)
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
                    metadata: [("run".to_owned(), run.to_string())].into(),
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
                // It wins all over its span, and right outside of it no more, or does not hold.
                prop_assert!((from..until).all(|at| winner(at) == Some(found.version.id)));
                prop_assert!(winner(from - 1) != Some(found.version.id));
                prop_assert!(winner(until) != Some(found.version.id));
            }
        }
    }
}
