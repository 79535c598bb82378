//! The load of one object: from its source, or from the instance before, into a published block.
//!
//! ```text
//!  resident, digest unknown ──computed, the same──▶ pin
//!  inherited block ──intact──▶ copied ─┐
//!  Source::fetch ──▶ BlockBody ────────┴──▶ checked against the description ──▶ published ──▶ pin
//! ```

use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::time::Instant;
use tracing::Instrument as _;

use crate::cache::error::CacheError;
use crate::cache::memory::object::{Pin, VersionMatch};
use crate::cache::memory::publish::{Description, Verified};
use crate::cache::memory::read_queue::ReadQueue;
use crate::cache::memory::reservations::{LoadBuffer, Reservations, Reserved};
use crate::cache::memory::residency::Residency;
use crate::cache::restart::{InheritRefusal, InheritedObject};
use crate::object::{Md5Sum, ObjectInfo, ObjectPath};
use crate::shm::{Pool, PoolError, Reservation};
use crate::source::{Body, BodyError, ReadBytes, Source, SourceError};
use crate::telemetry::Counters;

/// From this size on, a digest is computed on a blocking thread.
const HASH_BESIDE_FROM_BYTES: u64 = 256 << 10;
/// From this size on, the pages of a payload are mapped before they are written.
const MAPPED_FROM_BYTES: usize = 16 << 10;
/// Size of the range that is mapped at once before it is written.
const MAPPED_AHEAD_BYTES: usize = 512 << 10;

/// Why one object was not loaded.
#[derive(Debug, Clone)]
pub(super) enum LoadFailure {
    Source(SourceError),
    NoRoom {
        needed_bytes: u64,
    },
    /// Others have pinned an object with this id and other bytes, loaded for this path.
    TwoContents {
        other: ObjectPath,
    },
    Pool(Arc<PoolError>),
}

impl LoadFailure {
    /// The error for a table that needs this version.
    pub(super) fn of(self, version: &ObjectInfo, residency: &Residency) -> CacheError {
        let (path, id) = (version.path.clone(), version.id);
        match self {
            Self::Source(error) => CacheError::Load { path, id, error },
            Self::TwoContents { other } => CacheError::TwoContents { id, path, other },
            Self::NoRoom { needed_bytes } => CacheError::MemoryPinned {
                needed_bytes: Pool::charge(needed_bytes),
                pinned_bytes: residency.pinned_bytes(),
                total_bytes: residency.pool().total_bytes(),
            },
            Self::Pool(error) => match &*error {
                PoolError::NeverFits { needed_bytes, limit_bytes } => CacheError::NeverFits {
                    what: format!("version {id} of {path}"),
                    needed_bytes: *needed_bytes,
                    limit_bytes: *limit_bytes,
                },
                _ => CacheError::Pool(error),
            },
        }
    }
}

/// The load of one object.
pub(super) struct ObjectLoad {
    pub(super) residency: Arc<Residency>,
    pub(super) source: Arc<dyn Source>,
    pub(super) places: Arc<Reservations>,
    pub(super) inherited: Option<Arc<InheritedObject>>,
    /// Its reservation.
    pub(super) place: Option<Arc<Reserved>>,
    /// Hashes it together with other objects, if several are loaded.
    pub(super) reads: Option<Arc<ReadQueue>>,
    pub(super) counters: Arc<Counters>,
}

impl ObjectLoad {
    /// Takes over the inherited object of the version, if it is intact.
    async fn inherit(&self, version: &Arc<ObjectInfo>) -> Option<Result<Pin, LoadFailure>> {
        let (inherited, places) = (Arc::clone(self.inherited.as_ref()?), Arc::clone(&self.places));
        let place = self.place.clone();
        let copied = tokio::task::spawn_blocking(move || {
            let payload = inherited.payload()?;
            let freed = places.freed(place.as_ref(), payload.len() as u64);
            let mut freed = freed.map_err(InheritRefusal::Pool)?;
            inherited.check(freed.append(payload).unwrap_or_default())?;
            Ok(freed)
        });
        match copied.await.ok()? {
            Ok(freed) => {
                let published = self.publish(version, freed.into_reservation()?, None).await;
                if published.is_ok() {
                    self.counters.inherited.add(1);
                    return Some(published);
                }
                // The source has the described bytes.
                None
            }
            Err(InheritRefusal::Pool(PoolError::NoRoom { needed_bytes, .. })) => {
                Some(Err(LoadFailure::NoRoom { needed_bytes }))
            }
            Err(InheritRefusal::Pool(error)) => Some(Err(LoadFailure::Pool(Arc::new(error)))),
            Err(InheritRefusal::Damaged(reason)) => {
                let (path, id) = (&version.path, version.id);
                tracing::warn!(%path, %id, reason, "an inherited object is not used");
                None
            }
        }
    }

    /// Loads and publishes the version.
    ///
    /// # Errors
    /// [`LoadFailure`].
    pub(super) async fn run(self, version: &Arc<ObjectInfo>) -> Result<Pin, LoadFailure> {
        let loaded = self.load(version).await;
        if let (Ok(pin), Some(place)) = (&loaded, &self.place) {
            place.land(pin);
        }
        loaded
    }

    /// The resident object with an unverified digest, if it turns out to match.
    async fn verify_resident(&self, version: &ObjectInfo) -> Option<Pin> {
        let pin = self.residency.pin(version.id)?;
        if version.md5.is_some() && pin.match_of(version) == VersionMatch::Unverified {
            let resident = Arc::clone(pin.resident());
            tokio::task::spawn_blocking(move || resident.compute_md5()).await.ok()?;
        }
        (pin.match_of(version) == VersionMatch::Same).then_some(pin)
    }

    /// Publishes the loaded bytes, if they match the description of the source.
    async fn publish(
        &self,
        version: &ObjectInfo,
        reservation: Reservation,
        md5: Option<Md5Sum>,
    ) -> Result<Pin, LoadFailure> {
        let description = Description::from(version);
        let verified = match Verified::hashes(&description, &reservation, md5) {
            0..HASH_BESIDE_FROM_BYTES => Ok(Verified::check(description, reservation, md5)),
            _ => {
                let check = move || Verified::check(description, reservation, md5);
                tokio::task::spawn_blocking(check).await
            }
        };
        let unusable = |reason: String| {
            LoadFailure::Source(SourceError::Unusable {
                url: self.source.url().to_owned(),
                what: format!("{} {}", version.path, version.id),
                reason,
            })
        };
        match verified {
            Ok(Ok(verified)) => {
                let described = verified.description().clone();
                let pin = self.residency.admit(verified);
                // An object that others have pinned stays, whatever its bytes.
                match pin.resident().match_of_description(&described) {
                    VersionMatch::Same => Ok(pin),
                    VersionMatch::Other | VersionMatch::Unverified => {
                        Err(LoadFailure::TwoContents { other: pin.resident().path().clone() })
                    }
                }
            }
            Ok(Err(wrong)) => Err(unusable(wrong.to_string())),
            Err(error) => Err(unusable(format!("its digest could not be computed: {error}"))),
        }
    }

    async fn load(&self, version: &Arc<ObjectInfo>) -> Result<Pin, LoadFailure> {
        if let Some(pin) = self.verify_resident(version).await {
            return Ok(pin);
        }
        if let Some(inherited) = self.inherit(version).await {
            return inherited;
        }
        let mut body = BlockBody {
            places: Arc::clone(&self.places),
            place: self.place.clone(),
            freed: self.places.no_room(),
            written: 0,
            mapped: 0,
            reads: self.reads.clone(),
            md5: None,
            failure: None,
        };
        let asked = Instant::now();
        let span = tracing::info_span!("load", path = %version.path, id = %version.id);
        let fetched = match self.source.fetch(version, &mut body).instrument(span).await {
            Ok(()) => match body.finish(version, self.source.url()).await {
                Ok((reservation, md5)) => self.publish(version, reservation, md5).await,
                Err(failure) => Err(failure),
            },
            Err(error) => Err(body.failure.take().unwrap_or(LoadFailure::Source(error))),
        };
        match fetched {
            Ok(pin) => {
                self.counters.timings.load.observe(asked.elapsed());
                self.counters.loads.add(1);
                self.counters.loaded_bytes.add(pin.resident().block().size_bytes());
                Ok(pin)
            }
            Err(failure) => {
                if !matches!(failure, LoadFailure::NoRoom { .. }) {
                    self.counters.load_failures.add(1);
                }
                Err(failure)
            }
        }
    }
}

/// The block being written, as the target of a source.
struct BlockBody {
    places: Arc<Reservations>,
    /// Its reservation.
    place: Option<Arc<Reserved>>,
    freed: LoadBuffer,
    written: usize,
    /// Number of bytes whose pages are mapped.
    mapped: usize,
    reads: Option<Arc<ReadQueue>>,
    /// Digest of everything written, if the source computed it.
    md5: Option<Md5Sum>,
    failure: Option<LoadFailure>,
}

impl BlockBody {
    async fn take_room(&mut self, size_bytes: u64) -> Result<(), BodyError> {
        let mut fresh = match self.places.kept_room(self.place.as_ref(), size_bytes) {
            Some(kept) => kept,
            None => self.other_room(size_bytes).await?,
        };
        if self.written > 0 {
            fresh.rest_mut(0)[..self.written]
                .copy_from_slice(&self.freed.settled()[..self.written]);
            fresh.settle(self.written);
        }
        self.freed = fresh;
        self.mapped = 0;
        Ok(())
    }

    /// Maps the pages that are written next: one call costs less than a fault for each page.
    fn map_ahead(&mut self) {
        let size = self.freed.size_bytes().unwrap_or(0) as usize;
        let needed = size.min(self.written.saturating_add(MAPPED_AHEAD_BYTES / 2));
        if size < MAPPED_FROM_BYTES || self.mapped >= needed {
            return;
        }
        self.freed.map_pages(self.written, MAPPED_AHEAD_BYTES);
        self.mapped = self.written.saturating_add(MAPPED_AHEAD_BYTES);
    }

    async fn other_room(&mut self, size_bytes: u64) -> Result<LoadBuffer, BodyError> {
        if let Some(freed) = self.places.room_now(size_bytes) {
            return Ok(freed);
        }
        let places = Arc::clone(&self.places);
        // Creating a segment takes time: the kernel zeroes every page of it.
        let reserved = tokio::task::spawn_blocking(move || places.freed(None, size_bytes)).await;
        match reserved {
            Ok(Ok(freed)) => Ok(freed),
            Ok(Err(error)) => {
                let answer = match error {
                    PoolError::NeverFits { limit_bytes, .. } => {
                        BodyError::TooLarge { size_bytes, limit_bytes }
                    }
                    _ => BodyError::NoRoom { size_bytes, reason: error.to_string() },
                };
                self.failure = Some(match error {
                    PoolError::NoRoom { .. } => LoadFailure::NoRoom { needed_bytes: size_bytes },
                    other => LoadFailure::Pool(Arc::new(other)),
                });
                Err(answer)
            }
            Err(error) => Err(BodyError::NoRoom { size_bytes, reason: error.to_string() }),
        }
    }

    async fn finish(
        &mut self,
        version: &ObjectInfo,
        url: &str,
    ) -> Result<(Reservation, Option<Md5Sum>), LoadFailure> {
        if self.freed.size_bytes().is_none() && self.take_room(0).await.is_err() {
            return Err(self.failure.take().unwrap_or(LoadFailure::NoRoom { needed_bytes: 0 }));
        }
        let written = self.written as u64;
        let complete = self.freed.size_bytes() == Some(written);
        let freed = std::mem::replace(&mut self.freed, self.places.no_room());
        match freed.into_reservation() {
            Some(reservation) if complete => Ok((reservation, self.md5)),
            other => Err(LoadFailure::Source(SourceError::Unusable {
                url: url.to_owned(),
                what: format!("{} {}", version.path, version.id),
                reason: format!(
                    "{} of {} announced bytes arrived",
                    self.written,
                    other.map_or(0, |reservation| reservation.size_bytes())
                ),
            })),
        }
    }
}

#[async_trait]
impl Body for BlockBody {
    async fn reserve(&mut self, size_bytes: u64) -> Result<(), BodyError> {
        match self.freed.size_bytes() {
            Some(size) if size == size_bytes => Ok(()),
            _ => self.take_room(size_bytes).await,
        }
    }

    fn spare(&mut self) -> &mut [u8] {
        self.map_ahead();
        self.freed.rest_mut(self.written)
    }

    fn advance(&mut self, count: usize) {
        let spare = self.freed.rest_mut(self.written).len();
        assert!(count <= spare, "advanced by {count} bytes where {spare} were spare");
        self.written += count;
        self.md5 = None;
        self.freed.settle(self.written);
    }

    fn written_bytes(&self) -> u64 {
        self.written as u64
    }

    fn reads_together(&self) -> bool {
        self.reads.is_some() && self.written == 0
    }

    async fn read_hashed(&mut self, read: ReadBytes) -> Option<io::Result<Md5Sum>> {
        let reads = self.reads.clone().filter(|_| self.reads_together())?;
        let buffer = std::mem::replace(&mut self.freed, self.places.no_room());
        let (buffer, md5) = reads.read(buffer, read).await?;
        self.written = buffer.settled().len();
        self.freed = buffer;
        Some(md5)
    }

    fn set_md5(&mut self, md5: Md5Sum) {
        self.md5 = Some(md5);
    }
}
