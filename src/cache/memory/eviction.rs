//! Eviction: the queues of evictable objects, and the order in which they are evicted (S3-FIFO).
//!
//! ```text
//!  last pin gone ─┬─ new ─────────────▶ small ──used again──▶ main ◀─┐ used since: next round
//!                 │                       │ not               │  └───┘
//!                 │                       ▼                   │ not
//!                 └─ in ghost ─▶ main    evicted ◀────────────┘
//!                                       (its id stays in ghost for a while)
//! ```
//!
//! Two FIFO queues and a use count per object: S3-FIFO (Yang, Zhang, Qiu, Yue, Rashmi: FIFO Queues
//! are All You Need for Cache Eviction, SOSP 2023). Objects used once, as by a scan over a year of
//! data, pass through a tenth of the memory and leave the rest alone. A use changes only a number
//! in the object, so answering a table takes no lock here. An object that is pinned again stays in
//! its queue and is removed when it reaches the front.

use std::collections::VecDeque;
use std::hash::BuildHasher as _;
use std::sync::Arc;

use foldhash::quality::RandomState;

use crate::cache::memory::object::Resident;
use crate::object::ObjectId;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Mutex, MutexGuard};

/// The small queue gets one part in this many of the bytes.
const SMALL_SHARE: u64 = 10;
/// Objects used more often than this while in the small queue move to the main queue, as in the
/// paper.
const PROMOTION_USES: u8 = 1;
/// Maximum number of objects examined under one lock.
const MAX_SCANNED: usize = 64;

/// The evictable objects.
#[derive(Debug, Default)]
pub(crate) struct EvictionQueues {
    queues: Mutex<Queues>,
    bytes: AtomicU64,
}

/// The queues of S3-FIFO: `small` for new objects, `main` for objects used again, `ghost` for the
/// ids of objects evicted from `small`.
#[derive(Debug, Default)]
struct Queues {
    small: FifoQueue,
    main: FifoQueue,
    ghost: GhostQueue,
    /// No objects are added any more.
    closed: bool,
}

/// Objects in the order in which they were added, and their memory in bytes.
#[derive(Debug, Default)]
struct FifoQueue {
    order: VecDeque<Arc<Resident>>,
    bytes: u64,
}

impl FifoQueue {
    fn push(&mut self, resident: Arc<Resident>) {
        self.bytes += resident.charged_bytes();
        self.order.push_back(resident);
    }

    fn pop(&mut self) -> Option<Arc<Resident>> {
        let first = self.order.pop_front()?;
        self.bytes -= first.charged_bytes();
        Some(first)
    }

    /// Removes the objects that `which` selects.
    fn take(&mut self, which: impl Fn(&Resident) -> bool) -> Vec<Arc<Resident>> {
        let all = std::mem::take(&mut self.order).into_iter();
        let (taken, rest): (VecDeque<_>, VecDeque<_>) = all.partition(|resident| which(resident));
        self.order = rest;
        self.bytes -= taken.iter().map(|resident| resident.charged_bytes()).sum::<u64>();
        taken.into()
    }
}

/// The result for the object at the front.
enum EvictionStep {
    /// It was removed.
    Goes(Arc<Resident>),
    /// It was put back into its queue, or moved to the other one.
    Stays,
    /// The queues are empty.
    None,
}

impl Queues {
    fn first(&mut self) -> EvictionStep {
        let Self { small, main, .. } = self;
        let on_trial = small.bytes * SMALL_SHARE > small.bytes + main.bytes;
        if on_trial || main.order.is_empty() {
            let Some(first) = small.pop() else { return EvictionStep::None };
            if first.pins() > 0 || first.uses() <= PROMOTION_USES {
                return EvictionStep::Goes(first);
            }
            first.set_uses(0);
            main.push(first);
        } else if let Some(first) = main.pop() {
            match first.uses() {
                uses if uses > 0 && first.pins() == 0 => {
                    first.set_uses(uses - 1);
                    main.push(first);
                }
                _ => return EvictionStep::Goes(first),
            }
        }
        EvictionStep::Stays
    }
}

/// Ids evicted recently, as marks in a table that later marks overwrite: as good as a queue of ids,
/// at four bytes each.
#[derive(Debug, Default)]
struct GhostQueue {
    marks: Vec<u32>,
    hasher: RandomState,
}

impl GhostQueue {
    /// The slot and mark of `id`.
    fn mark(&self, id: ObjectId) -> Option<(usize, u32)> {
        let hash = self.hasher.hash_one(id);
        let place = (hash as usize).checked_rem(self.marks.len())?;
        // 0 means an empty slot.
        Some((place, (hash >> 32) as u32 | 1))
    }

    /// Adds an id; about `objects` ids are remembered.
    fn add(&mut self, id: ObjectId, objects: usize) {
        if self.marks.len() < objects {
            self.marks = vec![0; (2 * objects).next_power_of_two()];
        }
        if let Some((place, mark)) = self.mark(id) {
            self.marks[place] = mark;
        }
    }

    /// Removes an id; true if it was there.
    fn remove(&mut self, id: ObjectId) -> bool {
        match self.mark(id) {
            Some((place, mark)) if self.marks[place] == mark => {
                self.marks[place] = 0;
                true
            }
            _ => false,
        }
    }
}

impl EvictionQueues {
    fn queues(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock()
    }

    /// Bytes of all listed objects, including those pinned again.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Like [`bytes`](Self::bytes), but counted anew.
    pub(crate) fn counted_bytes(&self) -> u64 {
        let queues = self.queues();
        let all = queues.small.order.iter().chain(&queues.main.order);
        all.map(|resident| resident.charged_bytes()).sum()
    }

    /// Lists an object whose last pin is gone.
    pub(crate) fn add(&self, resident: &Arc<Resident>) {
        if resident.is_listed() {
            // It is still listed, or is being evicted now and will be freed.
            return;
        }
        let mut queues = self.queues();
        if queues.closed || resident.is_listed() {
            return;
        }
        resident.set_listed(true);
        self.bytes.fetch_add(resident.charged_bytes(), Ordering::Relaxed);
        match queues.ghost.remove(resident.id()) {
            true => queues.main.push(Arc::clone(resident)),
            false => queues.small.push(Arc::clone(resident)),
        }
    }

    /// Removes the next object to evict. Unless it is pinned meanwhile, it is freed when the result
    /// is dropped, which must happen without any lock.
    pub(crate) fn evict(&self) -> Option<Arc<Resident>> {
        // If all objects were used often, this may examine each; the lock is released in between.
        loop {
            match self.evict_among_some() {
                EvictionStep::Goes(resident) => return Some(resident),
                EvictionStep::Stays => {}
                EvictionStep::None => return None,
            }
        }
    }

    /// Examines some objects; `Stays` if none of them is to be evicted.
    fn evict_among_some(&self) -> EvictionStep {
        let mut queues = self.queues();
        let decided = (0..MAX_SCANNED)
            .map(|_| queues.first())
            .find(|first| !matches!(first, EvictionStep::Stays));
        let decided = decided.unwrap_or(EvictionStep::Stays);
        if let EvictionStep::Goes(evicted) = &decided {
            if evicted.pins() == 0 {
                let objects = queues.small.order.len() + queues.main.order.len() + 1;
                queues.ghost.add(evicted.id(), objects);
            }
            self.unlist(evicted);
        }
        decided
    }

    /// Removes the objects that `which` selects.
    pub(crate) fn take(&self, which: impl Fn(&Resident) -> bool) -> Vec<Arc<Resident>> {
        let mut queues = self.queues();
        let mut taken = queues.small.take(&which);
        taken.append(&mut queues.main.take(&which));
        taken.iter().for_each(|resident| self.unlist(resident));
        taken
    }

    /// Removes all objects; none are added from now on.
    pub(crate) fn close(&self) -> Vec<Arc<Resident>> {
        self.queues().closed = true;
        self.take(|_| true)
    }

    /// Whether no objects are added any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.queues().closed
    }

    /// Marks an object as not listed. Called under the lock of the queues.
    fn unlist(&self, resident: &Resident) {
        resident.set_listed(false);
        self.bytes.fetch_sub(resident.charged_bytes(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::memory::object::Pin;
    use crate::cache::memory::residency::Residency;
    use crate::cache::memory::samples::{CHARGED_BYTES, home, id, object};

    /// Number of objects that fit into the memory.
    const ROOM: usize = 100;

    /// The object `n`, used once more.
    fn used(home: &Arc<Residency>, n: usize) -> Pin {
        let pin = object(home, n);
        // At a tick of its own.
        let uses = pin.resident().uses();
        (1..).find(|tick| {
            pin.resident().touch(*tick);
            pin.resident().uses() > uses || uses == 3
        });
        pin
    }

    fn there(home: &Residency, numbers: std::ops::Range<usize>) -> usize {
        numbers.filter(|n| home.pins_of(id(*n)).is_some()).count()
    }

    #[test]
    fn objects_used_again_outlive_a_scan() {
        let home = home(ROOM);
        for _ in 0..2 {
            (0..50).for_each(|n| drop(used(&home, n)));
        }
        (1_000..3_000).for_each(|n| drop(used(&home, n)));
        assert_eq!(there(&home, 0..50), 50);
        assert_eq!(there(&home, 1_000..3_000), 50, "all of the memory is used");
    }

    #[test]
    fn objects_that_are_not_used_any_more_are_evicted_in_the_end() {
        let home = home(ROOM);
        for _ in 0..3 {
            (0..ROOM).for_each(|n| drop(used(&home, n)));
        }
        let after = |rounds| {
            for _ in 0..rounds {
                (1_000..1_080).for_each(|n| drop(used(&home, n)));
            }
            there(&home, 1_000..1_080)
        };
        assert!(after(1) < 20, "objects used once get a tenth of the memory");
        // Objects with the same mark in the ghost queue may need some more rounds.
        assert!(after(2) > 60);
        assert_eq!(after(10), 80);
    }

    #[test]
    fn an_object_that_comes_back_soon_after_its_eviction_enters_the_main_queue() {
        let home = home(ROOM);
        (0..ROOM + 1).for_each(|n| drop(used(&home, n)));
        assert_eq!(there(&home, 0..1), 0, "the first object is evicted first");
        drop(used(&home, 0));
        (1_000..1_200).for_each(|n| drop(used(&home, n)));
        assert_eq!(there(&home, 0..ROOM + 1), 1);
        assert_eq!(there(&home, 0..1), 1);
    }

    #[test]
    fn pinned_objects_stay_and_unpinned_ones_can_be_evicted() {
        let home = home(ROOM);
        let pins: Vec<Pin> = (0..ROOM - 1).map(|n| used(&home, n)).collect();
        (1_000..1_200).for_each(|n| drop(used(&home, n)));
        assert_eq!(there(&home, 0..ROOM - 1), ROOM - 1);
        drop(pins);
        // Evictable objects: pinned again, and not.
        let pins: Vec<Pin> = (0..50).map(|n| home.pin(id(n)).unwrap()).collect();
        (2_000..2_300).for_each(|n| drop(used(&home, n)));
        assert_eq!(there(&home, 0..50), 50);
        assert_eq!(home.pinned_bytes(), 50 * CHARGED_BYTES);
        assert!(home.reserve(51 * CHARGED_BYTES).is_err());
        drop(pins);
        assert!(home.reserve(51 * CHARGED_BYTES).is_ok());
        assert_eq!(home.pinned_bytes(), 0);
        let all = home.residents();
        assert_eq!(home.faults_of_sums(&all), []);
        drop(all);
        home.close();
        assert_eq!(home.objects(), 0);
        drop(used(&home, 1));
        assert_eq!(home.objects(), 0, "no object is kept any more");
    }
}
