//! Which objects are in shared memory, and which of them have to go when room is needed.
//!
//! ```text
//!             load                    last pin gone
//!   (source) ──────▶ resident, pinned ─────────────▶ resident, candidate ──evicted──▶ (free)
//!                        ▲                                │
//!                        └──────────── pinned again ──────┘
//! ```
//!
//! An object lives as long as one `Arc<Resident>` does. Each pin holds one, and the map by id holds
//! one for each candidate and only a `Weak` for the others: so eviction never takes what is pinned.
//!
//! Who goes first among the candidates is moka's decision (weighed by bytes, TinyLFU); it holds ids
//! and weights, no objects. moka neither knows pins nor can be told to free so and so much; what
//! makes it fit is the **ballast**: one entry of its own whose weight stands for all bytes that the
//! candidates may not use, i.e. what is pinned and what is being asked for. Growing the ballast
//! lets moka evict in its own order, least recently used first; and as it stays, an object whose
//! last pin goes is admitted only if it is more popular than what would have to go for it.

use std::collections::HashMap;
use std::fmt;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

use foldhash::fast::RandomState;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use super::keep::{Ledger, Record};
use super::resident::{Pin, Resident};
use crate::object::{Md5Sum, ObjectId, ObjectPath};
use crate::shm::{Block, Pool, PoolError, Reservation};
use crate::telemetry::Counters;

const SHARDS: usize = 64;
/// An object that is asked for again within this time is as popular as if it were asked for once:
/// to count is dearer than to pin (0.2 µs beside 0.1), and who is asked for four times a second for
/// some seconds is as popular as moka's sketch can tell.
const TOUCH_MILLIS: u128 = 256;

/// The objects in shared memory.
pub(crate) struct Residency {
    pool: Pool,
    /// Where it is written down what lies where, if anybody keeps it.
    ledger: Option<Arc<Ledger>>,
    map: Arc<Map>,
    /// Ids and weights of the candidates, and the ballast.
    policy: moka::sync::Cache<Key, u32>,
    /// Bytes per unit of weight: moka counts in u32.
    weight_unit_bytes: u64,
    pinned_bytes: AtomicU64,
    under_pressure: AtomicBool,
    /// Nothing is kept beyond its last pin any more.
    closed: AtomicBool,
    evicting: Mutex<()>,
    /// Moments of touches are counted from here.
    began: Instant,
    /// Rung whenever memory may have become free.
    room: Notify,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Key {
    Ballast,
    Object(ObjectId),
}

/// The objects by id, in shards.
struct Map {
    hasher: RandomState,
    shards: Vec<Mutex<HashMap<ObjectId, Place, RandomState>>>,
    /// Bytes of the candidates.
    candidate_bytes: AtomicU64,
    counters: Arc<Counters>,
}

struct Place {
    resident: Weak<Resident>,
    /// There while the object is a candidate, or is pinned and was one before.
    candidate: Option<Arc<Resident>>,
}

impl Map {
    fn shard(&self, id: ObjectId) -> MutexGuard<'_, HashMap<ObjectId, Place, RandomState>> {
        let index = self.hasher.hash_one(id) as usize % SHARDS;
        lock(&self.shards[index])
    }

    /// The object is a candidate no more. The reference is returned so that it is dropped outside
    /// of the lock.
    fn unlist(&self, id: ObjectId) -> Option<Arc<Resident>> {
        let mut shard = self.shard(id);
        let candidate = shard.get_mut(&id)?.candidate.take()?;
        candidate.set_listed(false);
        drop(shard);
        self.candidate_bytes.fetch_sub(candidate.block().charged_bytes(), Ordering::Relaxed);
        Some(candidate)
    }

    fn candidates(&self, which: impl Fn(&Resident) -> bool) -> Vec<ObjectId> {
        let listed = |place: &Place| place.candidate.as_ref().is_some_and(|r| which(r));
        self.shards
            .iter()
            .flat_map(|shard| {
                let shard = lock(shard);
                let ids = shard.iter().filter(|(_, place)| listed(place)).map(|(id, _)| *id);
                ids.collect::<Vec<_>>()
            })
            .collect()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Residency {
    pub(crate) fn new(
        pool: Pool,
        counters: Arc<Counters>,
        ledger: Option<Arc<Ledger>>,
    ) -> Arc<Self> {
        let total_bytes = pool.total_bytes();
        // Fine enough for a block, coarse enough that the whole of the memory fits into u32.
        let weight_unit_bytes = (total_bytes >> 31).next_power_of_two().max(64);
        let map = Arc::new(Map {
            hasher: RandomState::default(),
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            candidate_bytes: AtomicU64::new(0),
            counters,
        });
        let policy = moka::sync::Cache::builder()
            .max_capacity((total_bytes / weight_unit_bytes).max(1))
            .weigher(|_: &Key, weight: &u32| *weight)
            .eviction_listener({
                let map = Arc::clone(&map);
                move |key, _, cause| {
                    if let Key::Object(id) = *key
                        && let Some(resident) = map.unlist(id)
                        && cause.was_evicted()
                        && resident.pins() == 0
                    {
                        map.counters.evictions.add(1);
                    }
                }
            })
            .build();
        Arc::new(Self {
            pool,
            ledger,
            map,
            policy,
            weight_unit_bytes,
            pinned_bytes: AtomicU64::new(0),
            under_pressure: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            evicting: Mutex::new(()),
            began: Instant::now(),
            room: Notify::new(),
        })
    }

    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Pins the object if it is resident. This is the one touch that counts for its popularity.
    pub(crate) fn pin(&self, id: ObjectId) -> Option<Pin> {
        self.pin_at(id, self.tick())
    }

    /// The same for one of many objects that are pinned in the same moment.
    pub(crate) fn pin_at(&self, id: ObjectId, tick: u32) -> Option<Pin> {
        let resident = self.map.shard(id).get(&id)?.resident.upgrade()?;
        let first_touch = resident.touch(tick);
        let pin = Pin::taken(resident, self);
        if first_touch {
            let _ = self.policy.get(&Key::Object(id));
        }
        Some(pin)
    }

    /// This moment, for touches.
    pub(crate) fn tick(&self) -> u32 {
        // Any two moments that are not the same one differ; more is not needed.
        (self.began.elapsed().as_millis() / TOUCH_MILLIS) as u32
    }

    /// The size of the object, if it is resident. No touch: its popularity stays as it is.
    pub(crate) fn size_of(&self, id: ObjectId) -> Option<u64> {
        let resident = self.map.shard(id).get(&id)?.resident.upgrade()?;
        Some(resident.block().size_bytes())
    }

    /// Room for `size_bytes`, if need be at the cost of candidates.
    ///
    /// That the system gives no further segment is no reason to fail as long as there are
    /// candidates in those that it gave.
    ///
    /// # Errors
    /// [`PoolError::NoRoom`] if all that is left is pinned, and what the pool says else.
    pub(crate) fn reserve(&self, size_bytes: u64) -> Result<Reservation, PoolError> {
        match self.pool.reserve(size_bytes) {
            Err(PoolError::NoRoom { .. } | PoolError::Segment { .. }) => {}
            other => return other,
        }
        // One evicts at a time, or two would throw out twice as much as they need.
        let _evicting = lock(&self.evicting);
        let mut wanted_bytes = Pool::charge(size_bytes);
        loop {
            match self.pool.reserve(size_bytes) {
                Err(error @ (PoolError::NoRoom { .. } | PoolError::Segment { .. })) => {
                    if self.map.candidate_bytes.load(Ordering::Relaxed) == 0 {
                        return Err(error);
                    }
                }
                other => return other,
            }
            self.press_out(wanted_bytes);
            // What was thrown out may lie scattered, or be pinned by somebody: ask for more.
            wanted_bytes = wanted_bytes.saturating_mul(2);
        }
    }

    /// Takes at least `wanted_bytes` of candidates off the list, or all of them.
    fn press_out(&self, wanted_bytes: u64) {
        self.under_pressure.store(true, Ordering::Relaxed);
        let candidate_bytes = || self.map.candidate_bytes.load(Ordering::Relaxed);
        let keep_bytes = candidate_bytes().saturating_sub(wanted_bytes);
        self.set_ballast(self.pool.total_bytes().saturating_sub(keep_bytes));
        loop {
            let before = candidate_bytes();
            if before <= keep_bytes {
                return;
            }
            self.policy.run_pending_tasks();
            if candidate_bytes() == before {
                break;
            }
        }
        // Rounding of the weights, or a candidate that moka has yet to hear of.
        if keep_bytes == 0 {
            let gone = self.unlist(|_| true);
            self.map.counters.evictions.add(gone);
        }
    }

    /// Candidates that `which` picks are none any more; unless pinned, they are gone. Gives how many
    /// are.
    pub(crate) fn unlist(&self, which: impl Fn(&Resident) -> bool) -> u64 {
        let mut gone = 0;
        for id in self.map.candidates(which) {
            gone += self.map.unlist(id).map_or(0, |resident| u64::from(resident.pins() == 0));
            self.policy.invalidate(&Key::Object(id));
        }
        self.policy.run_pending_tasks();
        gone
    }

    /// Whether nothing is kept any more.
    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Lets all candidates go, and keeps none from now on.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.unlist(|_| true);
    }

    fn set_ballast(&self, bytes: u64) {
        if !self.policy.contains_key(&Key::Ballast) {
            // Without weight it is always admitted, and an update is never refused.
            self.policy.insert(Key::Ballast, 0);
            self.policy.run_pending_tasks();
        }
        let most = self.policy.policy().max_capacity().unwrap_or(0);
        let weight = u64::from(self.weight(bytes)).min(most);
        self.policy.insert(Key::Ballast, u32::try_from(weight).unwrap_or(u32::MAX));
    }

    fn weight(&self, bytes: u64) -> u32 {
        u32::try_from(bytes.div_ceil(self.weight_unit_bytes)).unwrap_or(u32::MAX)
    }

    /// Takes a published block in and pins it.
    ///
    /// If the object is resident already, that one is pinned and `block` given up.
    pub(crate) fn admit(
        self: &Arc<Self>,
        path: &ObjectPath,
        md5: Option<Md5Sum>,
        block: Block,
    ) -> Pin {
        let id = block.id();
        let entry = self.ledger.as_ref().and_then(|ledger| {
            let (header, crc32c) = (block.meta_header(), block.crc32c());
            ledger.enter(&Record { header, id, md5, crc32c, path: path.clone() })
        });
        let fresh = Resident::new(path.clone(), md5, entry, block, Arc::downgrade(self));
        let mut shard = self.map.shard(id);
        let resident = match shard.get(&id).and_then(|place| place.resident.upgrade()) {
            Some(earlier) => earlier,
            None => {
                let resident = Arc::downgrade(&fresh);
                shard.insert(id, Place { resident, candidate: None });
                Arc::clone(&fresh)
            }
        };
        drop(shard);
        Pin::taken(resident, self)
    }

    /// An object is gone, and its block with it.
    pub(super) fn forget(&self, id: ObjectId) {
        {
            let mut shard = self.map.shard(id);
            // Meanwhile the object may have been loaded anew: then the place is not ours.
            if shard.get(&id).is_some_and(|place| place.resident.strong_count() == 0) {
                shard.remove(&id);
            }
        }
        self.ring();
    }

    pub(super) fn count_pinned(&self, bytes: u64) {
        self.pinned_bytes.fetch_add(bytes, Ordering::AcqRel);
    }

    /// So many bytes are pinned no more.
    pub(super) fn let_go(&self, bytes: u64) {
        if bytes > 0 {
            self.pinned_bytes.fetch_sub(bytes, Ordering::AcqRel);
            self.ring();
        }
    }

    /// The last pin of `resident` is gone: it becomes a candidate. Whoever says so lets its bytes go
    /// ([`let_go`](Self::let_go)).
    pub(super) fn last_pin_gone(&self, resident: &Arc<Resident>) {
        let bytes = resident.block().charged_bytes();
        if resident.is_listed() {
            // It was one before, and still is; or is evicted just now, and then goes.
            return;
        }
        let listed = {
            let mut shard = self.map.shard(resident.id());
            match shard.get_mut(&resident.id()) {
                Some(place)
                    if !self.closed.load(Ordering::Acquire)
                        && place.candidate.is_none()
                        && std::ptr::eq(place.resident.as_ptr(), Arc::as_ptr(resident)) =>
                {
                    place.candidate = Some(Arc::clone(resident));
                    resident.set_listed(true);
                    self.map.candidate_bytes.fetch_add(bytes, Ordering::Relaxed);
                    true
                }
                _ => false,
            }
        };
        if listed {
            if self.under_pressure.load(Ordering::Relaxed) {
                let used = self.pool.used_bytes();
                let candidates = self.map.candidate_bytes.load(Ordering::Relaxed);
                self.set_ballast(used.saturating_sub(candidates));
            }
            self.policy.insert(Key::Object(resident.id()), self.weight(bytes));
        }
    }

    /// Wakes all who wait for [`room`](Self::room).
    pub(crate) fn ring(&self) {
        self.room.notify_waiters();
    }

    /// Comes when memory may have become free.
    pub(crate) fn room(&self) -> Notified<'_> {
        self.room.notified()
    }

    /// Every resident object, as of now.
    pub(crate) fn residents(&self) -> Vec<Arc<Resident>> {
        self.map
            .shards
            .iter()
            .flat_map(|shard| {
                let shard = lock(shard);
                let residents = shard.values().filter_map(|place| place.resident.upgrade());
                residents.collect::<Vec<_>>()
            })
            .collect()
    }

    /// Looks at every resident object, a shard at a time and without keeping any: what is being
    /// looked at while `look` runs holds up a 64th of the objects.
    pub(crate) fn look_at_each(&self, mut look: impl FnMut(&Arc<Resident>)) {
        for shard in &self.map.shards {
            let mut last = Vec::new();
            for place in lock(shard).values() {
                if let Some(resident) = place.resident.upgrade() {
                    look(&resident);
                    last.push(resident);
                }
            }
            // Outside of the lock: one of these may be the last reference meanwhile.
            drop(last);
        }
    }

    /// Whether the object is resident, and how many pins keep it. No touch.
    pub(crate) fn pins_of(&self, id: ObjectId) -> Option<u32> {
        let resident = self.map.shard(id).get(&id)?.resident.upgrade();
        resident.map(|resident| resident.pins())
    }

    /// What is wrong with the bytes that are counted for `residents`, if anything: the name of each
    /// sum, and a sentence.
    pub(super) fn faults_of_sums(
        &self,
        residents: &[Arc<Resident>],
    ) -> Vec<(&'static str, String)> {
        let pinned = residents.iter().filter(|resident| resident.pins() > 0);
        let pinned: u64 = pinned.map(|resident| resident.block().charged_bytes()).sum();
        let listed = self.map.shards.iter().map(|shard| {
            let shard = lock(shard);
            let listed = shard.values().filter_map(|place| place.candidate.as_ref());
            listed.map(|resident| resident.block().charged_bytes()).sum::<u64>()
        });
        let listed: u64 = listed.sum();
        let mut faults = Vec::new();
        let counted = self.pinned_bytes();
        if pinned != counted {
            faults.push(("pinned", format!("{pinned} bytes are pinned, {counted} are counted")));
        }
        let counted = self.map.candidate_bytes.load(Ordering::Relaxed);
        if listed != counted {
            let text = format!("{listed} bytes are candidates for eviction, {counted} are counted");
            faults.push(("candidates", text));
        }
        faults
    }

    /// How many objects are resident.
    pub(crate) fn objects(&self) -> usize {
        self.map.shards.iter().map(|shard| lock(shard).len()).sum()
    }

    /// Bytes that no eviction makes free: pinned, reserved, or in the hands of a load. At least so
    /// many.
    pub(crate) fn unevictable_bytes(&self) -> u64 {
        let candidates = self.map.candidate_bytes.load(Ordering::Relaxed);
        // A candidate that is pinned again stays one.
        self.pool.used_bytes().saturating_sub(candidates).max(self.pinned_bytes())
    }

    /// Empties the memory of all that is not pinned, and gives the segments back that are empty then.
    pub(crate) fn clear_out(&self) {
        let _evicting = lock(&self.evicting);
        let gone = self.unlist(|_| true);
        self.map.counters.evictions.add(gone);
        self.pool.give_back_empty_segments();
    }

    /// Bytes of memory that pins keep.
    pub(crate) fn pinned_bytes(&self) -> u64 {
        self.pinned_bytes.load(Ordering::Acquire)
    }
}

impl fmt::Debug for Residency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Residency")
            .field("objects", &self.objects())
            .field("pinned_bytes", &self.pinned_bytes())
            .finish_non_exhaustive()
    }
}
