//! The residency: which objects are in shared memory, and eviction when memory is needed.
//!
//! ```text
//!             load                    last pin gone
//!   (source) ──────▶ resident, pinned ─────────────▶ resident, evictable ──evicted──▶ (free)
//!                        ▲                                │
//!                        └──────────── pinned again ──────┘
//! ```
//!
//! An object lives as long as one `Arc<Resident>` does. Each pin holds one, and so do the eviction
//! queues; the map by id holds only a `Weak`. So eviction never frees a pinned object, and only the
//! allocator decides whether there is room.

use std::collections::HashMap;
use std::fmt;
use std::hash::BuildHasher;
use std::sync::{Arc, Weak};
use std::time::Instant;

use foldhash::fast::RandomState;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use crate::cache::memory::eviction::EvictionQueues;
use crate::cache::memory::object::{ObjectHome, Pin, Resident};
use crate::cache::memory::publish::Verified;
use crate::cache::restart::{LogRecord, ObjectLog};
use crate::object::ObjectId;
use crate::shm::{Pool, PoolError, Reservation};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Mutex, MutexGuard, RwLock};
use crate::telemetry::Counters;

const SHARDS: usize = 64;
/// Once this many times the size of an object was evicted without success, reclaimable blocks are
/// freed too.
const MANY_TIMES: u64 = 8;
/// Uses of an object within this time count once: usually they are by the consumers of one table.
const TOUCH_MILLIS: u128 = 256;

/// The objects in shared memory.
pub(crate) struct Residency {
    pool: Pool,
    /// The log of object locations for the next process, if a descriptor store is configured.
    object_log: Option<Arc<ObjectLog>>,
    map: ObjectMap,
    eviction_queues: EvictionQueues,
    counters: Arc<Counters>,
    pinned_bytes: AtomicU64,
    evicting: Mutex<()>,
    /// Start of the ticks.
    began: Instant,
    /// Number of objects freed since the last [`sweep`](Self::sweep).
    gone: AtomicU64,
    /// Notified whenever memory may have become free.
    freed: Notify,
    reclaimable: RwLock<Vec<Weak<dyn Reclaimable>>>,
    /// Objects in condemned segments that have a successor in the map.
    abandoned: Mutex<Vec<Weak<Resident>>>,
}

/// Blocks of shared memory that hold no objects, and are freed when objects need the memory.
pub(crate) trait Reclaimable: Send + Sync {
    /// Bytes of shared memory that they take.
    fn bytes(&self) -> u64;

    /// Frees all of them.
    fn reclaim_all(&self);
}

/// Pins objects one after the other. Their bytes are counted as pinned when this is dropped, which
/// must happen before any of the pins is dropped.
pub(crate) struct Pinning<'a> {
    home: &'a Residency,
    /// The current tick, for use counts.
    tick: u16,
    bytes: u64,
}

impl Pinning<'_> {
    /// Pins the object if it is resident.
    pub(crate) fn by_id(&mut self, id: ObjectId) -> Option<Pin> {
        let resident = self.home.map.get(id)?;
        Some(self.take(resident))
    }

    /// Pins an object of this residency.
    pub(crate) fn take(&mut self, resident: Arc<Resident>) -> Pin {
        resident.touch(self.tick);
        let (pin, bytes) = Pin::taken(resident);
        self.bytes += bytes;
        pin
    }
}

impl Drop for Pinning<'_> {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.home.count_pinned(self.bytes);
        }
    }
}

/// The objects by id, in shards.
struct ObjectMap {
    hasher: RandomState,
    shards: Vec<Mutex<Shard>>,
}

type Shard = HashMap<ObjectId, Weak<Resident>, RandomState>;

impl ObjectMap {
    fn shard(&self, id: ObjectId) -> MutexGuard<'_, Shard> {
        let index = self.hasher.hash_one(id) as usize % SHARDS;
        self.shards[index].lock()
    }

    fn get(&self, id: ObjectId) -> Option<Arc<Resident>> {
        let resident = self.shard(id).get(&id)?.upgrade();
        resident.filter(|resident| !resident.is_condemned())
    }
}

impl Residency {
    pub(crate) fn new(
        pool: Pool,
        counters: Arc<Counters>,
        object_log: Option<Arc<ObjectLog>>,
    ) -> Arc<Self> {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Arc::new(Self {
            pool,
            object_log,
            map: ObjectMap { hasher: RandomState::default(), shards },
            eviction_queues: EvictionQueues::default(),
            counters,
            pinned_bytes: AtomicU64::new(0),
            evicting: Mutex::new(()),
            began: Instant::now(),
            gone: AtomicU64::new(0),
            freed: Notify::new(),
            reclaimable: RwLock::default(),
            abandoned: Mutex::default(),
        })
    }

    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Pins the object if it is resident, and counts a use.
    pub(crate) fn pin(&self, id: ObjectId) -> Option<Pin> {
        self.pinning().by_id(id)
    }

    /// Pins many objects at one tick.
    pub(crate) fn pinning(&self) -> Pinning<'_> {
        Pinning { home: self, tick: self.tick(), bytes: 0 }
    }

    /// The current tick, for use counts.
    fn tick(&self) -> u16 {
        // Ticks repeat only after some hours, which suffices.
        let tick = (self.began.elapsed().as_millis() / TOUCH_MILLIS) as u16;
        tick.wrapping_add(1)
    }

    /// The object if it is resident. Counts no use and pins nothing.
    pub(crate) fn find(&self, id: ObjectId) -> Option<Arc<Resident>> {
        self.map.get(id)
    }

    /// Counts a use by a consumer that looked the object up by itself.
    pub(crate) fn used(&self, resident: &Resident) {
        resident.touch(self.tick());
    }

    /// The size of the object, if it is resident. Counts no use.
    pub(crate) fn size_of(&self, id: ObjectId) -> Option<u64> {
        Some(self.map.get(id)?.block().size_bytes())
    }

    /// Reserves `size_bytes`, evicting objects if necessary.
    ///
    /// If the system gives no further segment, this fails only when the existing segments have no
    /// evictable objects left.
    ///
    /// # Errors
    /// [`PoolError::NoRoom`] if all remaining memory is pinned, and other errors of the pool.
    pub(crate) fn reserve(&self, size_bytes: u64) -> Result<Reservation, PoolError> {
        match self.pool.reserve(size_bytes) {
            Err(PoolError::NoRoom { .. } | PoolError::Segment { .. }) => {}
            other => return other,
        }
        // One task evicts at a time, or two would evict twice as much as needed.
        let _evicting = self.evicting.lock();
        let mut wanted_bytes = Pool::charge(size_bytes);
        let mut exhausted = false;
        loop {
            match self.pool.reserve(size_bytes) {
                Err(error @ (PoolError::NoRoom { .. } | PoolError::Segment { .. })) => {
                    if exhausted {
                        return Err(error);
                    }
                }
                other => return other,
            }
            exhausted = self.evict_bytes(wanted_bytes) < wanted_bytes;
            if exhausted || wanted_bytes >= MANY_TIMES.saturating_mul(Pool::charge(size_bytes)) {
                // A reclaimable block may separate free ranges; it can be made again.
                self.reclaim_all();
            }
            // The evicted memory may be scattered, or an object pinned again: evict more.
            wanted_bytes = wanted_bytes.saturating_mul(2);
        }
    }

    /// Reserves memory in existing segments without eviction, which takes no time.
    pub(crate) fn reserve_now(&self, size_bytes: u64) -> Option<Reservation> {
        self.pool.reserve_now(size_bytes)
    }

    /// Evicts at least `wanted_bytes`, or everything that is not pinned. Returns the evicted bytes.
    fn evict_bytes(&self, wanted_bytes: u64) -> u64 {
        let in_use = self.pool.recently_used_slots();
        let mut left = in_use.left();
        let (mut bytes, mut used) = (0, Vec::new());
        while bytes < wanted_bytes
            && let Some(resident) = self.eviction_queues.evict()
        {
            let block = resident.block();
            if in_use.keep(block.generation(), block.size_bytes(), &mut left) {
                used.push(resident);
                continue;
            }
            bytes += resident.charged_bytes();
            self.counters.evictions.add(u64::from(resident.pins() == 0));
        }
        // Objects pinned from here on keep their blocks: see `Block`'s drop.
        used.iter().for_each(|resident| self.eviction_queues.add(resident));
        bytes
    }

    /// Adds blocks that are freed when objects need the memory.
    pub(crate) fn add_reclaimable(&self, reclaimable: Weak<dyn Reclaimable>) {
        self.reclaimable.write().push(reclaimable);
    }

    fn reclaimable(&self) -> Vec<Arc<dyn Reclaimable>> {
        self.reclaimable.read().iter().filter_map(Weak::upgrade).collect()
    }

    /// Frees all blocks that hold no objects.
    fn reclaim_all(&self) {
        self.reclaimable().iter().for_each(|reclaimable| reclaimable.reclaim_all());
    }

    /// Removes the objects that `which` selects from the eviction queues. Unless pinned, they are
    /// freed. Returns the number of freed objects.
    pub(crate) fn unlist(&self, which: impl Fn(&Resident) -> bool) -> u64 {
        let taken = self.eviction_queues.take(which);
        taken.iter().filter(|resident| resident.pins() == 0).count() as u64
    }

    /// Whether no objects are kept any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.eviction_queues.is_closed()
    }

    /// Frees all evictable objects, and keeps none from now on.
    pub(crate) fn close(&self) {
        self.eviction_queues.close();
    }

    /// Publishes an object and pins it. Only this function makes bytes visible under an id.
    ///
    /// If the object is already resident, that one is pinned and the new block is freed. An
    /// unpinned object with the same id and other bytes is replaced.
    pub(crate) fn admit(self: &Arc<Self>, object: Verified) -> Pin {
        let (block, description) = object.publish();
        let id = block.id();
        let entry = self.object_log.as_ref().and_then(|object_log| {
            let (header, crc32c) = (block.meta_header(), block.crc32c());
            let (md5, path, times) = (description.md5, description.path.clone(), description.times);
            object_log.enter(&LogRecord { header, id, md5, crc32c, path, times })
        });
        let home: Weak<dyn ObjectHome> = Arc::downgrade(&(Arc::clone(self) as Arc<dyn ObjectHome>));
        let fresh = Resident::new(description, entry, block, home);
        let mut replaced = None;
        let mut shard = self.map.shard(id);
        let known = shard.get(&id).and_then(Weak::upgrade);
        let resident = match known.filter(|known| !self.abandon_if_condemned(known)) {
            Some(earlier) if earlier.has_bytes_of(&fresh) || earlier.pins() > 0 => earlier,
            earlier => {
                replaced = earlier;
                shard.insert(id, Arc::downgrade(&fresh));
                Arc::clone(&fresh)
            }
        };
        let (pin, bytes) = Pin::taken(resident);
        drop(shard);
        self.count_pinned(bytes);
        if let Some(replaced) = replaced {
            self.unlist(|resident| std::ptr::eq(resident, &*replaced));
        }
        pin
    }

    /// Keeps track of an object in a condemned segment that gets a successor.
    fn abandon_if_condemned(&self, resident: &Arc<Resident>) -> bool {
        let is_condemned = resident.is_condemned();
        if is_condemned {
            self.abandoned.lock().push(Arc::downgrade(resident));
        }
        is_condemned
    }

    /// Hands out no object in a condemned segment any more: unpinned ones are freed now, pinned ones
    /// with their last pin. They are loaded anew elsewhere when they are requested. Headers of those
    /// that another program may overwrite are stale from now on, pinned or not.
    pub(crate) fn abandon_condemned(&self) {
        for resident in self.residents() {
            resident.block().invalidate_if_overwritten();
        }
        self.unlist(Resident::is_condemned);
        // Published snapshots may name them.
        self.reclaim_all();
        self.notify_freed();
    }

    /// Calls `links` if many links may be dangling.
    pub(crate) fn sweep(&self, links: impl FnOnce()) {
        const MANY: u64 = 1_000;
        if self.gone.load(Ordering::Relaxed) >= MANY {
            self.gone.store(0, Ordering::Relaxed);
            links();
        }
    }

    pub(crate) fn count_pinned(&self, bytes: u64) {
        self.pinned_bytes.fetch_add(bytes, Ordering::AcqRel);
    }

    /// Wakes all tasks that wait in [`freed`](Self::room).
    pub(crate) fn notify_freed(&self) {
        self.freed.notify_waiters();
    }

    /// Completes when memory may have become free.
    pub(crate) fn freed(&self) -> Notified<'_> {
        self.freed.notified()
    }

    /// All resident objects, those of condemned segments included.
    pub(crate) fn residents(&self) -> Vec<Arc<Resident>> {
        let abandoned: Vec<_> = {
            let mut abandoned = self.abandoned.lock();
            abandoned.retain(|resident| resident.strong_count() > 0);
            abandoned.iter().filter_map(Weak::upgrade).collect()
        };
        let listed = self.map.shards.iter().flat_map(|shard| {
            let shard = shard.lock();
            let residents = shard.values().filter_map(Weak::upgrade);
            residents.collect::<Vec<_>>()
        });
        listed.chain(abandoned).collect()
    }

    /// Calls `look` for every resident object, one shard at a time and without keeping references.
    /// While it runs, it blocks access to a 64th of the objects.
    pub(crate) fn for_each_object(&self, mut look: impl FnMut(&Arc<Resident>)) {
        for shard in &self.map.shards {
            let mut last = Vec::new();
            for resident in shard.lock().values() {
                if let Some(resident) = resident.upgrade() {
                    look(&resident);
                    last.push(resident);
                }
            }
            // Outside of the lock: one of these may be the last reference by now.
            drop(last);
        }
    }

    /// The number of pins of an object, if it is resident. Counts no use.
    pub(crate) fn pins_of(&self, id: ObjectId) -> Option<u32> {
        self.map.get(id).map(|resident| resident.pins())
    }

    /// Faults in the byte counts for `residents`: the name of each count, and a sentence.
    pub(crate) fn faults_of_sums(
        &self,
        residents: &[Arc<Resident>],
    ) -> Vec<(&'static str, String)> {
        let pinned = residents.iter().filter(|resident| resident.pins() > 0);
        let pinned: u64 = pinned.map(|resident| resident.charged_bytes()).sum();
        let listed = self.eviction_queues.counted_bytes();
        let mut faults = Vec::new();
        let counted = self.pinned_bytes();
        if pinned != counted {
            faults.push(("pinned", format!("{pinned} bytes are pinned, {counted} are counted")));
        }
        let counted = self.eviction_queues.bytes();
        if listed != counted {
            let text = format!("{listed} bytes are candidates for eviction, {counted} are counted");
            faults.push(("candidates", text));
        }
        faults
    }

    /// Number of resident objects.
    pub(crate) fn objects(&self) -> usize {
        self.map.shards.iter().map(|shard| shard.lock().len()).sum()
    }

    /// Bytes that no eviction frees: pinned, reserved, or taken by a load. A lower bound.
    pub(crate) fn unevictable_bytes(&self) -> u64 {
        let reclaimable = self.reclaimable();
        let reclaimable = reclaimable.iter().map(|reclaimable| reclaimable.bytes()).sum::<u64>();
        // An object pinned again stays in its eviction queue.
        let evictable = self.eviction_queues.bytes().saturating_add(reclaimable);
        self.pool.used_bytes().saturating_sub(evictable).max(self.pinned_bytes())
    }

    /// Bytes in the eviction queues, counted anew.
    #[cfg(all(test, feature = "loom"))]
    pub(crate) fn candidate_bytes(&self) -> u64 {
        self.eviction_queues.bytes()
    }

    /// Frees everything that is not pinned, and returns empty segments to the system.
    pub(crate) fn clear_out(&self) {
        let _evicting = self.evicting.lock();
        let gone = self.unlist(|_| true);
        self.counters.evictions.add(gone);
        self.pool.give_back_empty_segments();
    }

    /// Bytes pinned.
    pub(crate) fn pinned_bytes(&self) -> u64 {
        self.pinned_bytes.load(Ordering::Acquire)
    }
}

impl ObjectHome for Residency {
    fn forget(&self, id: ObjectId) {
        {
            let mut shard = self.map.shard(id);
            // The object may have been loaded anew by now; then the entry belongs to the new one.
            if shard.get(&id).is_some_and(|resident| resident.strong_count() == 0) {
                shard.remove(&id);
            }
        }
        self.gone.fetch_add(1, Ordering::Relaxed);
        self.notify_freed();
    }

    fn last_pin_gone(&self, object: &Arc<Resident>) {
        if !object.is_condemned() {
            self.eviction_queues.add(object);
        }
    }

    fn unpinned(&self, bytes: u64) {
        if bytes > 0 {
            self.pinned_bytes.fetch_sub(bytes, Ordering::AcqRel);
            self.notify_freed();
        }
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
