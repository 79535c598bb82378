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
use crate::source::SourceError;

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
struct Listing {
    versions: Versions,
    learned: Moment,
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
    /// The limits of the service apply beside those of `query`.
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
        let timestamps = Timestamps::new(vec![at.as_millis()], None);
        let known = by_deadline(
            "the source to say which version holds",
            Instant::now() + patience,
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
        by_deadline(what, Instant::now() + patience, listing).await
    }

    /// Every version of `path` within the limits of the service, from a listing that is not too old.
    pub(super) async fn listing(&self, path: &ObjectPath) -> Result<Versions, CacheError> {
        let objects = &self.0.objects;
        let oldest = self.0.catalog.oldest_fresh(path, self.0.clock.now());
        let fresh = || objects.listings.get(path).filter(|listing| listing.learned >= oldest);
        if let Some(listing) = fresh() {
            return Ok(listing.versions.clone());
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
            (Ok(listing), _) => Ok(listing.versions.clone()),
            (Err(error), Some(older)) if error.kind().is_transient() => {
                tracing::warn!(%path, %error, "listing what was known before");
                Ok(older.versions.clone())
            }
            (Err(error), _) => Err(CacheError::Paths { prefix: path.to_string(), error }),
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
