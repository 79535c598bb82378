//! Brings the bytes of versions into shared memory and pins them, all of a table's or none.
//!
//! ```text
//!  pin_all ──resident──▶ pin
//!     │ not resident
//!     ▼
//!  one flight per object ──▶ Source::fetch ──▶ BlockBody ──▶ published block ──▶ pin
//!     │ no room
//!     ▼
//!  let go of all, wait for the turn; whose turn it is keeps what it gets, until all is there
//! ```
//!
//! Nobody waits for memory while holding some, but the one whose turn it is: so two tables that
//! each lack what the other has cannot wait for each other. Timeframes in flight hold what they need
//! and do not wait (`places`): for them there is no turn.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use tokio::time::Instant;
use tracing::Instrument as _;

use super::error::CacheError;
use super::flight::{Flights, Lost};
use super::keep::{Refusal, Relic, Relics};
use super::places::{Claim, Place, Places, Room};
use super::residency::Residency;
use super::resident::{Pin, PinSet};
use super::versions::{Found, Wanted};
use crate::object::{ObjectId, ObjectInfo};
use crate::shm::{Pool, PoolError, Reservation};
use crate::source::{Body, BodyError, Source, SourceError};
use crate::table::CacheState;
use crate::telemetry::Counters;

/// Who waits for memory tries this often at most,
pub(super) const BREATH: Duration = Duration::from_millis(5);
/// and at least: should anything ever become free unheard.
pub(super) const DOZE: Duration = Duration::from_millis(250);
/// How many objects of one table are fetched at a time.
const PARALLEL_LOADS: usize = 16;

/// Brings objects into shared memory.
#[derive(Debug)]
pub(crate) struct Loader {
    residency: Arc<Residency>,
    source: Arc<dyn Source>,
    /// What a predecessor left is nearer than any source.
    relics: Arc<Relics>,
    counters: Arc<Counters>,
    flights: Flights<ObjectId, Result<Pin, LoadFailure>>,
    /// The room that timeframes in flight have for what they lack.
    places: Arc<Places>,
    /// Whose turn it is to wait for memory, in the order of asking.
    turn: tokio::sync::Mutex<()>,
    /// How many wait for their turn, or have it.
    waiting: AtomicUsize,
    /// How many are bringing objects in, and have pins in hand that nobody else knows of.
    under_way: AtomicUsize,
}

/// One of those who are counted.
struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::AcqRel);
        Self(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Why one object did not come.
#[derive(Debug, Clone)]
enum LoadFailure {
    Source(SourceError),
    NoRoom { needed_bytes: u64 },
    Pool(Arc<PoolError>),
}

/// What is pinned of the versions that are wanted, by their numbers.
struct Got {
    pins: Vec<Option<Pin>>,
    how: Vec<CacheState>,
}

/// All that was wanted is pinned.
#[derive(Debug)]
pub(crate) struct Pinned {
    /// By number.
    pub(crate) pins: PinSet,
    /// How each came.
    pub(crate) how: Vec<CacheState>,
}

impl Got {
    fn none_of(count: usize) -> Self {
        let mut pins = Vec::new();
        pins.resize_with(count, || None);
        Self { pins, how: vec![CacheState::Hit; count] }
    }

    /// The numbers of what is not pinned.
    fn open(&self) -> Vec<usize> {
        let open = self.pins.iter().enumerate().filter(|(_, pin)| pin.is_none());
        open.map(|(number, _)| number).collect()
    }

    /// All of it.
    fn into_pinned(self) -> Pinned {
        #[expect(clippy::filter_map_identity, reason = "flatten would take memory anew")]
        let pins = self.pins.into_iter().filter_map(|pin| pin).collect();
        Pinned { pins: PinSet::new(pins), how: self.how }
    }
}

impl Loader {
    pub(crate) fn new(
        residency: Arc<Residency>,
        source: Arc<dyn Source>,
        relics: Arc<Relics>,
        counters: Arc<Counters>,
    ) -> Self {
        let (flights, turn) = (Flights::default(), tokio::sync::Mutex::default());
        let (waiting, under_way) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let places = Places::new(Arc::clone(&residency));
        Self { residency, source, relics, counters, flights, places, turn, waiting, under_way }
    }

    /// Whether objects are being brought in, or have room to come.
    pub(super) fn is_under_way(&self) -> bool {
        self.under_way.load(Ordering::Acquire) > 0 || !self.places.is_empty()
    }

    /// What is pinned in the name of several timeframes.
    pub(super) fn pin_sets(&self) -> Vec<Arc<PinSet>> {
        self.places.pin_sets()
    }

    /// Pins what is resident of `versions` and takes the memory that the others need: all of it, or
    /// none. `None`: there is no room now.
    ///
    /// # Errors
    /// [`CacheError::Pool`] if the system gives no memory.
    pub(crate) async fn claim(&self, versions: &impl Wanted) -> Result<Option<Claim>, CacheError> {
        let _under_way = Counted::new(&self.under_way);
        if let Ok(claim) = self.places.claim(versions) {
            return Ok(Some(claim));
        }
        // Where others wait for memory, what becomes free is theirs. Nothing is held meanwhile.
        let _turn = self.turn.lock().await;
        let claim = self.take_places(versions).await?;
        if claim.is_some() || self.residency.unevictable_bytes() > 0 {
            return Ok(claim);
        }
        // All that is here could go, and still it does not fit: it lies in the way.
        let residency = Arc::clone(&self.residency);
        let cleared = tokio::task::spawn_blocking(move || residency.clear_out()).await;
        cleared.map_err(|error| lost("memory to be cleared", &error))?;
        self.take_places(versions).await
    }

    async fn take_places(&self, versions: &impl Wanted) -> Result<Option<Claim>, CacheError> {
        let lacking = match self.places.claim(versions) {
            Ok(claim) => return Ok(Some(claim)),
            Err(lacking) => lacking,
        };
        let places = Arc::clone(&self.places);
        let taken = tokio::task::spawn_blocking(move || places.take(lacking)).await;
        let taken = taken.map_err(|error| lost("memory to be taken", &error))?;
        taken.map_err(|error| CacheError::Pool(Arc::new(error)))
    }

    /// Pins every one of `versions` (distinct ids), in their order, loading what is not resident.
    ///
    /// # Errors
    /// [`CacheError::NeverFits`] at once where that is so; [`CacheError::MemoryPinned`] if by
    /// `deadline` there was no room; what the source answered.
    pub(crate) async fn pin_all(
        &self,
        versions: &(impl Wanted + ?Sized),
        deadline: Instant,
    ) -> Result<Pinned, CacheError> {
        let _under_way = Counted::new(&self.under_way);
        let mut got = Got::none_of(versions.len());
        let began = Instant::now();
        let mut lacking_bytes = 0;
        let absent = self.pin_resident(versions, 0..versions.len(), &mut got)?;
        if absent.is_empty() {
            return Ok(got.into_pinned());
        }
        self.check_known_sizes(versions)?;
        // Where others wait for memory, only what needs none may pass them: else what is let go for
        // the first of them would be taken by whoever comes along.
        let alone = self.waiting.load(Ordering::Acquire) == 0;
        let secured = absent.iter().all(|&place| self.places.find(versions.id(place)).is_some());
        if alone || secured {
            let first_try = self.load_all(versions, absent, &mut got);
            let Ok(tried) = tokio::time::timeout_at(deadline, first_try).await else {
                return Err(CacheError::DeadlineExceeded {
                    what: "objects to be loaded".to_owned(),
                    wait_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
                });
            };
            match tried? {
                None => return Ok(got.into_pinned()),
                Some(needed_bytes) => lacking_bytes = needed_bytes,
            }
        }
        got = Got::none_of(versions.len());
        self.counters.waits.add(1);
        let _waiting = Counted::new(&self.waiting);
        let waiting = async {
            // What has its memory waits for nobody: its room is in the hands of another load.
            let _turn = match secured {
                true => None,
                false => Some(self.turn.lock().await),
            };
            loop {
                // Listen first, try then: room that is made in between is not missed.
                let mut room = std::pin::pin!(self.residency.room());
                room.as_mut().enable();
                let tried = Instant::now();
                let Some(needed_bytes) = self.try_pin_all(versions, &mut got).await? else {
                    return Ok::<_, CacheError>(());
                };
                lacking_bytes = needed_bytes;
                let held: u64 = got.pins.iter().flatten().map(Pin::charged_bytes).sum();
                let all = held.saturating_add(Pool::charge(needed_bytes));
                self.check_fits(all, versions.len())?;
                let _ = tokio::time::timeout(DOZE, room).await;
                // What rings while one tries can be one's own attempt (a body that outgrew its
                // room): that must not become a question to the source without end.
                tokio::time::sleep(BREATH.saturating_sub(tried.elapsed())).await;
            }
        };
        match tokio::time::timeout_at(deadline, waiting).await {
            Ok(done) => done?,
            Err(_) => {
                return Err(CacheError::MemoryPinned {
                    needed_bytes: Pool::charge(lacking_bytes),
                    pinned_bytes: self.residency.pinned_bytes(),
                    total_bytes: self.residency.pool().total_bytes(),
                });
            }
        }
        Ok(got.into_pinned())
    }

    /// # Errors
    /// [`CacheError::NeverFits`] if these can never be in memory together, as far as their sizes
    /// are known.
    pub(crate) fn check_known_sizes(
        &self,
        versions: &(impl Wanted + ?Sized),
    ) -> Result<(), CacheError> {
        let known = || (0..versions.len()).filter_map(|place| versions.info(place).size_bytes);
        let needed_bytes = known().map(Pool::charge).fold(0, u64::saturating_add);
        self.check_fits(needed_bytes, versions.len())?;
        let pool = self.residency.pool();
        // Half of the memory holds what is no larger, a few large objects aside, which then are
        // waited for; only beyond it is looked closely.
        if needed_bytes > pool.total_bytes() / 2 && !pool.can_hold_together(known()) {
            let objects = versions.len();
            let what = format!("a table of {objects} distinct objects, which do not pack into it,");
            let limit_bytes = pool.total_bytes();
            return Err(CacheError::NeverFits { what, needed_bytes, limit_bytes });
        }
        Ok(())
    }

    fn check_fits(&self, needed_bytes: u64, objects: usize) -> Result<(), CacheError> {
        let limit_bytes = self.residency.pool().total_bytes();
        if needed_bytes <= limit_bytes {
            return Ok(());
        }
        let what = format!("a table of {objects} distinct objects");
        Err(CacheError::NeverFits { what, needed_bytes, limit_bytes })
    }

    /// Pins what is resident of `numbers`. Gives those of what is not.
    fn pin_resident(
        &self,
        versions: &(impl Wanted + ?Sized),
        numbers: impl ExactSizeIterator<Item = usize>,
        got: &mut Got,
    ) -> Result<Vec<usize>, CacheError> {
        let (mut absent, mut other) = (Vec::new(), None);
        let wanted = numbers.len();
        versions.pin_each(&self.residency, numbers, |number, found| {
            let pin = match found {
                Found::It(pin) => pin,
                Found::Other(pin) => {
                    other = other.or(Some(number));
                    pin
                }
                Found::Nothing => return absent.push(number),
            };
            got.pins[number] = Some(pin);
        });
        self.counters.hits.add((wanted - absent.len()) as u64);
        match other.and_then(|number| Some((versions.info(number), got.pins[number].as_ref()?))) {
            Some((version, pin)) => Err(two_contents(version, pin)),
            None => Ok(absent),
        }
    }

    /// Pins what is not in `got` yet. `Some(bytes)`: an object of that size found no room.
    async fn try_pin_all(
        &self,
        versions: &(impl Wanted + ?Sized),
        got: &mut Got,
    ) -> Result<Option<u64>, CacheError> {
        let absent = self.pin_resident(versions, got.open().into_iter(), got)?;
        self.load_all(versions, absent, got).await
    }

    /// Loads what is `absent`. `Some(bytes)`: an object of that size found no room.
    async fn load_all(
        &self,
        versions: &(impl Wanted + ?Sized),
        absent: Vec<usize>,
        got: &mut Got,
    ) -> Result<Option<u64>, CacheError> {
        let loads = absent.into_iter().map(async |place| {
            let (version, loaded) = self.load(Arc::clone(versions.info(place))).await;
            (place, version, loaded)
        });
        let mut loads = futures::stream::iter(loads).buffer_unordered(PARALLEL_LOADS);
        let mut no_room = None;
        while let Some((place, version, loaded)) = loads.next().await {
            match loaded {
                Ok(pin) if !pin.is_of(&version) => return Err(two_contents(&version, &pin)),
                Ok(pin) => {
                    (got.pins[place], got.how[place]) = (Some(pin), CacheState::Loaded);
                }
                Err(LoadFailure::NoRoom { needed_bytes }) => {
                    no_room = no_room.max(Some(needed_bytes));
                }
                Err(failure) => return Err(failure.of(&version)),
            }
        }
        Ok(no_room)
    }

    async fn load(&self, version: Arc<ObjectInfo>) -> (Arc<ObjectInfo>, Result<Pin, LoadFailure>) {
        let id = version.id;
        let landed = || self.residency.pin(id).map(Ok);
        let work = || {
            let load = Load {
                residency: Arc::clone(&self.residency),
                source: Arc::clone(&self.source),
                places: Arc::clone(&self.places),
                relic: self.relics.find(&version),
                place: self.places.find(id),
                counters: Arc::clone(&self.counters),
            };
            let version = Arc::clone(&version);
            async move { load.run(&version).await }
        };
        let loaded = match self.flights.join(id, landed, work).await {
            Ok(result) => result,
            Err(Lost) => Err(LoadFailure::Source(SourceError::Unusable {
                url: self.source.url().to_owned(),
                what: format!("{} {id}", version.path),
                reason: "the load ended without a result".into(),
            })),
        };
        (version, loaded)
    }
}

/// One id is one content, and here are two.
fn two_contents(version: &ObjectInfo, pin: &Pin) -> CacheError {
    let (path, other) = (version.path.clone(), pin.resident().path().clone());
    CacheError::TwoContents { id: version.id, path, other }
}

impl LoadFailure {
    fn of(self, version: &ObjectInfo) -> CacheError {
        let (path, id) = (version.path.clone(), version.id);
        match self {
            Self::Source(error) => CacheError::Load { path, id, error },
            Self::NoRoom { needed_bytes } => CacheError::NeverFits {
                what: format!("version {id} of {path}"),
                needed_bytes,
                limit_bytes: 0,
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

/// A task of ours has ended without a result.
fn lost(what: &str, error: &tokio::task::JoinError) -> CacheError {
    CacheError::Lost { what: format!("{what} ({error})") }
}

struct Load {
    residency: Arc<Residency>,
    source: Arc<dyn Source>,
    places: Arc<Places>,
    relic: Option<Arc<Relic>>,
    /// The room that is kept for it.
    place: Option<Arc<Place>>,
    counters: Arc<Counters>,
}

impl Load {
    /// What a predecessor left of it, if that is right.
    async fn inherit(&self, version: &Arc<ObjectInfo>) -> Option<Result<Pin, LoadFailure>> {
        let (relic, places) = (Arc::clone(self.relic.as_ref()?), Arc::clone(&self.places));
        let place = self.place.clone();
        let copied = tokio::task::spawn_blocking(move || {
            let payload = relic.payload()?;
            let room = places.room(place.as_ref(), payload.len() as u64);
            let mut room = room.map_err(Refusal::Pool)?;
            relic.check(room.append(payload).unwrap_or_default())?;
            Ok(room)
        });
        match copied.await.ok()? {
            Ok(room) => {
                let block = room.into_reservation()?.publish(version.id);
                self.counters.inherited.add(1);
                Some(Ok(self.residency.admit(&version.path, version.md5, block)))
            }
            Err(Refusal::Pool(PoolError::NoRoom { needed_bytes, .. })) => {
                Some(Err(LoadFailure::NoRoom { needed_bytes }))
            }
            Err(Refusal::Pool(error)) => Some(Err(LoadFailure::Pool(Arc::new(error)))),
            Err(Refusal::Damaged(reason)) => {
                let (path, id) = (&version.path, version.id);
                tracing::warn!(%path, %id, reason, "what a predecessor left is not taken");
                None
            }
        }
    }

    async fn run(self, version: &Arc<ObjectInfo>) -> Result<Pin, LoadFailure> {
        let loaded = self.load(version).await;
        if let (Ok(pin), Some(place)) = (&loaded, &self.place) {
            place.land(pin);
        }
        loaded
    }

    async fn load(&self, version: &Arc<ObjectInfo>) -> Result<Pin, LoadFailure> {
        if let Some(inherited) = self.inherit(version).await {
            return inherited;
        }
        let mut body = BlockBody {
            places: Arc::clone(&self.places),
            place: self.place.clone(),
            room: self.places.no_room(),
            written: 0,
            failure: None,
        };
        let asked = Instant::now();
        let span = tracing::info_span!("load", path = %version.path, id = %version.id);
        let fetched = match self.source.fetch(version, &mut body).instrument(span).await {
            Ok(()) => body.finish(version, self.source.url()).await,
            Err(error) => Err(body.failure.take().unwrap_or(LoadFailure::Source(error))),
        };
        match fetched {
            Ok(reservation) => {
                let block = reservation.publish(version.id);
                self.counters.timings.load.observe(asked.elapsed());
                self.counters.loads.add(1);
                self.counters.loaded_bytes.add(block.size_bytes());
                Ok(self.residency.admit(&version.path, version.md5, block))
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

/// The memory of a block that is being written: where a source puts the bytes.
struct BlockBody {
    places: Arc<Places>,
    /// Where room is kept for it.
    place: Option<Arc<Place>>,
    room: Room,
    written: usize,
    failure: Option<LoadFailure>,
}

impl BlockBody {
    async fn take_room(&mut self, size_bytes: u64) -> Result<(), BodyError> {
        let mut fresh = match self.places.kept_room(self.place.as_ref(), size_bytes) {
            Some(kept) => kept,
            None => self.other_room(size_bytes).await?,
        };
        if self.written > 0 {
            fresh.rest_mut(0)[..self.written].copy_from_slice(&self.room.settled()[..self.written]);
            fresh.settle(self.written);
        }
        self.room = fresh;
        Ok(())
    }

    async fn other_room(&mut self, size_bytes: u64) -> Result<Room, BodyError> {
        if let Some(room) = self.places.room_now(size_bytes) {
            return Ok(room);
        }
        let places = Arc::clone(&self.places);
        // A new segment takes its time: the kernel zeroes every page of it.
        let reserved = tokio::task::spawn_blocking(move || places.room(None, size_bytes)).await;
        match reserved {
            Ok(Ok(room)) => Ok(room),
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
    ) -> Result<Reservation, LoadFailure> {
        if self.room.size_bytes().is_none() && self.take_room(0).await.is_err() {
            return Err(self.failure.take().unwrap_or(LoadFailure::NoRoom { needed_bytes: 0 }));
        }
        let written = self.written as u64;
        let complete = self.room.size_bytes() == Some(written);
        let room = std::mem::replace(&mut self.room, self.places.no_room());
        match room.into_reservation() {
            Some(reservation) if complete => Ok(reservation),
            other => Err(LoadFailure::Source(SourceError::Unusable {
                url: url.to_owned(),
                what: format!("{} {}", version.path, version.id),
                reason: format!(
                    "{} bytes came of {} that were announced",
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
        match self.room.size_bytes() {
            Some(size) if size == size_bytes => Ok(()),
            _ => self.take_room(size_bytes).await,
        }
    }

    fn spare(&mut self) -> &mut [u8] {
        self.room.rest_mut(self.written)
    }

    fn advance(&mut self, count: usize) {
        let spare = self.spare().len();
        assert!(count <= spare, "advanced by {count} bytes where {spare} were spare");
        self.written += count;
        self.room.settle(self.written);
    }

    fn written_bytes(&self) -> u64 {
        self.written as u64
    }
}
