//! The loader: loads versions into shared memory and pins them, all of a table or none.
//!
//! ```text
//!  pin_all ──resident──▶ pin
//!     │ not resident
//!     ▼
//!  single flight per object ──▶ Source::fetch ──▶ BlockBody ──▶ published block ──▶ pin
//!     │ no room: all pins are dropped
//!     ▼
//!  turn (200 ms at most, in order of arrival) ──room for all──▶ claim ──▶ load, without the turn
//!     │ no room
//!     ▼
//!  rest (until there may be room, 1 s at most), then the next turn
//! ```
//!
//! A request that waits for memory holds no pins, so two tables that need each other's memory
//! cannot deadlock. It keeps others from taking memory only during its turn, in which all memory
//! that becomes free is its own. Registrations take the same turns, longer ones the longer they have
//! waited. Timeframes in flight have their memory reserved and do not wait (`reservations`).

use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use futures::StreamExt;
use tokio::time::Instant;

use crate::cache::error::CacheError;
use crate::cache::memory::object::{Pin, PinSet, VersionMatch};
use crate::cache::memory::pin_request::{PinOutcome, PinRequest};
use crate::cache::memory::read_queue::ReadQueue;
use crate::cache::memory::reservations::{Claim, Reservations};
use crate::cache::memory::residency::Residency;
use crate::cache::restart::InheritedObjects;
use crate::cache::single_flight::{CallLost, SingleFlight};
use crate::cache::tables::object_load::{LoadFailure, ObjectLoad};
use crate::object::ObjectInfo;
use crate::shm::Pool;
use crate::source::{Source, SourceError};
use crate::table::CacheState;
use crate::telemetry::Counters;

/// Shortest pause between two attempts to get memory.
pub(crate) const MIN_RETRY: Duration = Duration::from_millis(5);
/// Longest pause between two attempts of a registration to reserve memory.
pub(crate) const MAX_RETRY: Duration = Duration::from_millis(250);
/// Longest time that one request keeps the others from taking memory.
const TURN: Duration = Duration::from_millis(200);
/// Longest turn of a registration, after a long wait.
const LONG_TURN: Duration = Duration::from_secs(2);
/// Longest pause after a turn in which there was no room.
const LONGEST_REST: Duration = Duration::from_secs(1);
/// Number of objects of one table fetched in parallel.
const PARALLEL_LOADS: usize = 64;
/// From this number of absent objects of a table on, their digests are computed together.
const HASHED_TOGETHER: usize = 4;

/// Loads objects into shared memory.
#[derive(Debug)]
pub(crate) struct Loader {
    residency: Arc<Residency>,
    source: Arc<dyn Source>,
    /// Objects of the previous process, which are faster than any source.
    inherited_objects: Arc<InheritedObjects>,
    counters: Arc<Counters>,
    single_flight: SingleFlight<LoadKey, Result<Pin, LoadFailure>>,
    reads: Arc<ReadQueue>,
    /// The memory reserved for timeframes in flight.
    places: Arc<Reservations>,
    /// Held by the request that may take memory while others wait for it; first come, first served.
    turn: tokio::sync::Mutex<()>,
    /// Number of requests that wait for their turn, or have it.
    waiting: AtomicUsize,
    /// Number of loads in progress, whose pins are in no pin set yet.
    under_way: AtomicUsize,
}

/// Counts one task until it is dropped.
struct CountGuard<'a>(&'a AtomicUsize);

impl<'a> CountGuard<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::AcqRel);
        Self(count)
    }
}

impl Drop for CountGuard<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The key of a load: the complete description of the version from the source.
#[derive(Debug, Clone, PartialEq, Eq)]
struct LoadKey(Arc<ObjectInfo>);

impl Hash for LoadKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.id.hash(state);
    }
}

/// The resource that an unfinished request waits for.
#[derive(Debug, Default)]
struct Wait {
    for_memory: AtomicBool,
    /// Size of the largest object without room.
    lacking_bytes: AtomicU64,
}

impl Wait {
    fn begin(&self) {
        self.for_memory.store(true, Ordering::Relaxed);
    }

    fn end(&self) {
        self.for_memory.store(false, Ordering::Relaxed);
    }

    fn is_for_memory(&self) -> bool {
        self.for_memory.load(Ordering::Relaxed)
    }

    fn lacks(&self, bytes: u64) {
        self.lacking_bytes.fetch_max(Pool::charge(bytes), Ordering::Relaxed);
    }

    fn lacking_bytes(&self) -> u64 {
        self.lacking_bytes.load(Ordering::Relaxed)
    }
}

/// The memory that `versions` take, as far as their sizes are known.
fn known_bytes(versions: &(impl PinRequest + ?Sized)) -> u64 {
    let known = (0..versions.len()).filter_map(|place| versions.info(place).size_bytes);
    known.map(Pool::charge).fold(0, u64::saturating_add)
}

/// The pins obtained so far, by the number of the version.
struct PartialPins {
    pins: Vec<Option<Pin>>,
    how: Vec<CacheState>,
}

/// The pins of all requested versions.
#[derive(Debug)]
pub(crate) struct PinnedVersions {
    /// By number.
    pub(crate) pins: PinSet,
    /// How each was obtained.
    pub(crate) how: Vec<CacheState>,
}

impl PartialPins {
    fn none_of(count: usize) -> Self {
        let mut pins = Vec::new();
        pins.resize_with(count, || None);
        Self { pins, how: vec![CacheState::Hit; count] }
    }

    /// The numbers of the versions not pinned yet.
    fn open(&self) -> Vec<usize> {
        let open = self.pins.iter().enumerate().filter(|(_, pin)| pin.is_none());
        open.map(|(number, _)| number).collect()
    }

    /// The result once everything is pinned.
    fn into_pinned(self) -> PinnedVersions {
        #[expect(clippy::filter_map_identity, reason = "flatten would allocate anew")]
        let pins = self.pins.into_iter().filter_map(|pin| pin).collect();
        PinnedVersions { pins: PinSet::new(pins), how: self.how }
    }
}

impl Loader {
    pub(crate) fn new(
        residency: Arc<Residency>,
        source: Arc<dyn Source>,
        inherited_objects: Arc<InheritedObjects>,
        counters: Arc<Counters>,
    ) -> Self {
        let (single_flight, turn) = (SingleFlight::default(), tokio::sync::Mutex::default());
        let (waiting, under_way) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let places = Reservations::new(Arc::clone(&residency));
        Self {
            residency,
            source,
            inherited_objects,
            counters,
            single_flight,
            reads: Arc::default(),
            places,
            turn,
            waiting,
            under_way,
        }
    }

    /// Whether loads are in progress, whose pins are in no pin set yet.
    pub(crate) fn is_under_way(&self) -> bool {
        self.under_way.load(Ordering::Acquire) > 0
    }

    /// Whether memory is reserved for objects to be loaded. Their pins are in [`pin_sets`].
    ///
    /// [`pin_sets`]: Self::pin_sets
    pub(crate) fn keeps_room(&self) -> bool {
        !self.places.is_empty()
    }

    /// The pins that several timeframes share.
    pub(crate) fn pin_sets(&self) -> Vec<Arc<PinSet>> {
        self.places.pin_sets()
    }

    /// Pins the resident ones of `versions` and reserves memory for the others, all of it or none.
    /// `None` if there was no room during a turn without other takers. The turn grows with the time
    /// `waited` before: a large registration needs more memory than is freed in a short turn, and
    /// others take the memory that is freed between two turns.
    ///
    /// # Errors
    /// [`CacheError::Pool`] if the system provides no memory.
    pub(crate) async fn claim(
        &self,
        versions: &impl PinRequest,
        waited: Duration,
    ) -> Result<Option<Claim>, CacheError> {
        let _under_way = CountGuard::new(&self.under_way);
        if let Ok(claim) = self.places.claim(versions) {
            return Ok(Some(claim));
        }
        let _waiting = CountGuard::new(&self.waiting);
        // While others wait for memory, free memory is theirs.
        let _turn = self.turn.lock().await;
        let turn = (waited / 4).clamp(TURN, LONG_TURN);
        self.claim_in_turn(versions, Instant::now() + turn).await
    }

    /// Tries during its turn, until `ends`. Nothing is held between two attempts.
    async fn claim_in_turn(
        &self,
        versions: &(impl PinRequest + ?Sized),
        ends: Instant,
    ) -> Result<Option<Claim>, CacheError> {
        loop {
            // Subscribe before the attempt, so that no notification is missed.
            let mut freed = std::pin::pin!(self.residency.freed());
            freed.as_mut().enable();
            let tried = Instant::now();
            if let Some(claim) = self.take_places(versions).await? {
                return Ok(Some(claim));
            }
            if self.residency.unevictable_bytes() == 0 {
                // Everything is evictable, and still it does not fit because of fragmentation.
                let residency = Arc::clone(&self.residency);
                let cleared = tokio::task::spawn_blocking(move || residency.clear_out()).await;
                cleared.map_err(|error| lost("the eviction of all objects", &error))?;
                return self.take_places(versions).await;
            }
            if tokio::time::timeout_at(ends, freed).await.is_err() {
                return Ok(None);
            }
            tokio::time::sleep(MIN_RETRY.saturating_sub(tried.elapsed())).await;
        }
    }

    async fn take_places(
        &self,
        versions: &(impl PinRequest + ?Sized),
    ) -> Result<Option<Claim>, CacheError> {
        let lacking = match self.places.claim(versions) {
            Ok(claim) => return Ok(Some(claim)),
            Err(lacking) => lacking,
        };
        let places = Arc::clone(&self.places);
        let taken = tokio::task::spawn_blocking(move || places.take(lacking)).await;
        let taken = taken.map_err(|error| lost("the reservation of memory", &error))?;
        taken.map_err(|error| CacheError::Pool(Arc::new(error)))
    }

    /// Pins all of `versions` (distinct ids), in order, and loads those that are not resident.
    ///
    /// # Errors
    /// [`CacheError::NeverFits`] at once if they do not fit into the memory;
    /// [`CacheError::MemoryPinned`] if there was no room until `deadline`;
    /// [`CacheError::DeadlineExceeded`] if there was, but the source was not done; errors of the
    /// source.
    pub(crate) async fn pin_all(
        &self,
        versions: &(impl PinRequest + ?Sized),
        deadline: Instant,
    ) -> Result<PinnedVersions, CacheError> {
        let _under_way = CountGuard::new(&self.under_way);
        let mut got = PartialPins::none_of(versions.len());
        let absent = self.pin_resident(versions, 0..versions.len(), &mut got)?;
        if absent.is_empty() {
            return Ok(got.into_pinned());
        }
        self.check_known_sizes(versions)?;
        let began = Instant::now();
        let wait = Wait::default();
        let loading = self.pin_absent(versions, absent, got, &wait);
        match tokio::time::timeout_at(deadline, loading).await {
            Ok(pinned) => pinned,
            Err(_) if wait.is_for_memory() => Err(CacheError::MemoryPinned {
                needed_bytes: known_bytes(versions).max(wait.lacking_bytes()),
                pinned_bytes: self.residency.pinned_bytes(),
                total_bytes: self.residency.pool().total_bytes(),
            }),
            Err(_) => Err(CacheError::DeadlineExceeded {
                what: "the load of the objects".to_owned(),
                wait_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
            }),
        }
    }

    /// Loads the `absent` versions; waits if there is no room for them.
    async fn pin_absent(
        &self,
        versions: &(impl PinRequest + ?Sized),
        absent: Vec<usize>,
        mut got: PartialPins,
        wait: &Wait,
    ) -> Result<PinnedVersions, CacheError> {
        // While others wait for memory, only requests that need none may overtake them: otherwise
        // memory released for the first of them would go to any newcomer.
        let alone = self.waiting.load(Ordering::Acquire) == 0 && self.may_fit(versions, &absent);
        let secured = absent.iter().all(|&place| self.places.find(versions.id(place)).is_some());
        if alone || secured {
            match self.load_all(versions, absent, &mut got).await? {
                None => return Ok(got.into_pinned()),
                Some(bytes) => wait.lacks(bytes),
            }
        }
        // From here on nothing is held while there is no room.
        drop(got);
        self.counters.waits.add(1);
        loop {
            wait.begin();
            if let Some(got) = self.try_in_turn(versions, wait).await? {
                return Ok(got.into_pinned());
            }
            self.rest(versions).await;
        }
    }

    /// Whether there may be memory for the `absent` versions beside unevictable memory.
    fn may_fit(&self, versions: &(impl PinRequest + ?Sized), absent: &[usize]) -> bool {
        let sizes = absent.iter().filter_map(|place| versions.info(*place).size_bytes);
        let needed_bytes = sizes.map(Pool::charge).fold(0, u64::saturating_add);
        let taken_bytes = self.residency.unevictable_bytes();
        needed_bytes.saturating_add(taken_bytes) <= self.residency.pool().total_bytes()
    }

    /// Tries to pin all of `versions` during a turn. `None` if there was no room; then nothing is
    /// held.
    async fn try_in_turn(
        &self,
        versions: &(impl PinRequest + ?Sized),
        wait: &Wait,
    ) -> Result<Option<PartialPins>, CacheError> {
        let waiting = CountGuard::new(&self.waiting);
        let turn = self.turn.lock().await;
        let ends = Instant::now() + TURN;
        let Some(claim) = self.claim_in_turn(versions, ends).await? else { return Ok(None) };
        let mut got = PartialPins::none_of(versions.len());
        if !claim.is_open() {
            // All memory is reserved, so the load needs no turn.
            drop((turn, waiting));
            wait.end();
            let lacking = self.try_pin_all(versions, &mut got).await?;
            lacking.into_iter().for_each(|bytes| wait.lacks(bytes));
            return Ok(lacking.is_none().then_some(got));
        }
        // The source does not give the sizes: objects that fit are kept while the others are tried,
        // until the turn ends.
        let mut turn = Some((turn, waiting));
        loop {
            let mut freed = std::pin::pin!(self.residency.freed());
            freed.as_mut().enable();
            let tried = Instant::now();
            let lacking = {
                let mut loading = std::pin::pin!(self.try_pin_all(versions, &mut got));
                match tokio::time::timeout_at(ends, &mut loading).await {
                    Ok(lacking) => lacking?,
                    Err(_) => {
                        // A slow source must not keep others from memory.
                        turn = None;
                        wait.end();
                        loading.await?
                    }
                }
            };
            let Some(bytes) = lacking else { return Ok(Some(got)) };
            wait.begin();
            wait.lacks(bytes);
            let held: u64 = got.pins.iter().flatten().map(Pin::charged_bytes).sum();
            self.check_fits(held.saturating_add(Pool::charge(bytes)), versions.len())?;
            if turn.is_none() || tokio::time::timeout_at(ends, freed).await.is_err() {
                return Ok(None);
            }
            // A notification can come from this attempt itself (a body that outgrew its buffer),
            // and must not cause endless requests to the source.
            tokio::time::sleep(MIN_RETRY.saturating_sub(tried.elapsed())).await;
        }
    }

    /// Waits until a new attempt makes sense: there may be room, or some time has passed. Others
    /// can take memory meanwhile.
    async fn rest(&self, versions: &(impl PinRequest + ?Sized)) {
        let needed_bytes = known_bytes(versions);
        let fits = async {
            loop {
                let mut freed = std::pin::pin!(self.residency.freed());
                freed.as_mut().enable();
                tokio::time::sleep(MIN_RETRY).await;
                freed.await;
                // Objects of the table that others pin count twice here; then the timeout decides.
                let taken_bytes = self.residency.unevictable_bytes();
                let total_bytes = self.residency.pool().total_bytes();
                if needed_bytes.saturating_add(taken_bytes) <= total_bytes {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(LONGEST_REST, fits).await;
    }

    /// # Errors
    /// [`CacheError::NeverFits`] if these versions can never be in memory together, as far as their
    /// sizes are known.
    pub(crate) fn check_known_sizes(
        &self,
        versions: &(impl PinRequest + ?Sized),
    ) -> Result<(), CacheError> {
        let known = || (0..versions.len()).filter_map(|place| versions.info(place).size_bytes);
        let needed_bytes = known_bytes(versions);
        self.check_fits(needed_bytes, versions.len())?;
        let pool = self.residency.pool();
        // Half of the memory holds any objects of that size, except for a few large ones, which can
        // be waited for. Only beyond that are the sizes examined.
        if needed_bytes > pool.total_bytes() / 2 && !pool.can_hold_together(known()) {
            let objects = versions.len();
            let what = format!("a table of {objects} distinct objects, which do not fit together,");
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

    /// Pins the resident ones of `numbers`. Returns the numbers of the others.
    fn pin_resident(
        &self,
        versions: &(impl PinRequest + ?Sized),
        numbers: impl ExactSizeIterator<Item = usize>,
        got: &mut PartialPins,
    ) -> Result<Vec<usize>, CacheError> {
        let (mut absent, mut others) = (Vec::new(), Vec::new());
        let wanted = numbers.len();
        versions.pin_each(&self.residency, numbers, |number, found| match found {
            PinOutcome::Same(pin) => got.pins[number] = Some(pin),
            PinOutcome::Other(pin) | PinOutcome::Unverified(pin) => {
                absent.push(number);
                others.push((number, pin));
            }
            PinOutcome::Nothing => absent.push(number),
        });
        self.counters.hits.add((wanted - absent.len()) as u64);
        // Objects pinned by others stay unchanged, but are not served under this description.
        let conflict = others.iter().find(|(number, pin)| {
            let other = pin.match_of(versions.info(*number)) == VersionMatch::Other;
            other && pin.resident().pins() > 1
        });
        match conflict {
            Some((number, pin)) => {
                let other = pin.resident().path().clone();
                Err(LoadFailure::TwoContents { other }.of(versions.info(*number), &self.residency))
            }
            None => Ok(absent),
        }
    }

    /// Pins the versions not in `got` yet. `Some(bytes)`: there was no room for an object of this
    /// size.
    async fn try_pin_all(
        &self,
        versions: &(impl PinRequest + ?Sized),
        got: &mut PartialPins,
    ) -> Result<Option<u64>, CacheError> {
        let absent = self.pin_resident(versions, got.open().into_iter(), got)?;
        self.load_all(versions, absent, got).await
    }

    /// Loads the `absent` versions. `Some(bytes)`: there was no room for an object of this size.
    async fn load_all(
        &self,
        versions: &(impl PinRequest + ?Sized),
        absent: Vec<usize>,
        got: &mut PartialPins,
    ) -> Result<Option<u64>, CacheError> {
        let together = absent.len() >= HASHED_TOGETHER;
        let loads = absent.into_iter().map(async |place| {
            let (version, loaded) = self.load(Arc::clone(versions.info(place)), together).await;
            (place, version, loaded)
        });
        let mut loads = futures::stream::iter(loads).buffer_unordered(PARALLEL_LOADS);
        while let Some((place, version, loaded)) = loads.next().await {
            match loaded {
                Ok(pin) => {
                    (got.pins[place], got.how[place]) = (Some(pin), CacheState::Loaded);
                }
                // A table without room stops its loads: it must hold nothing while it waits.
                Err(LoadFailure::NoRoom { needed_bytes }) => return Ok(Some(needed_bytes)),
                Err(failure) => return Err(failure.of(&version, &self.residency)),
            }
        }
        Ok(None)
    }

    /// Loads one version. Its digest is computed `together` with those of other loads.
    async fn load(
        &self,
        version: Arc<ObjectInfo>,
        together: bool,
    ) -> (Arc<ObjectInfo>, Result<Pin, LoadFailure>) {
        let id = version.id;
        let landed = || {
            let pin = self.residency.pin(id)?;
            (pin.match_of(&version) == VersionMatch::Same).then_some(Ok(pin))
        };
        let work = || {
            let load = ObjectLoad {
                residency: Arc::clone(&self.residency),
                source: Arc::clone(&self.source),
                places: Arc::clone(&self.places),
                inherited: self.inherited_objects.find(&version),
                place: self.places.find(id),
                reads: together.then(|| Arc::clone(&self.reads)),
                counters: Arc::clone(&self.counters),
            };
            let version = Arc::clone(&version);
            async move { load.run(&version).await }
        };
        let loaded =
            match self.single_flight.join(LoadKey(Arc::clone(&version)), landed, work).await {
                Ok(result) => result,
                Err(CallLost) => Err(LoadFailure::Source(SourceError::Unusable {
                    url: self.source.url().to_owned(),
                    what: format!("{} {id}", version.path),
                    reason: "the load ended without a result".into(),
                })),
            };
        (version, loaded)
    }
}

/// The error for a task that ended without a result.
fn lost(what: &str, error: &tokio::task::JoinError) -> CacheError {
    CacheError::Lost { what: format!("{what} ({error})") }
}
