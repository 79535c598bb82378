//! The objects that nobody pins, and which of them goes first.
//!
//! ```text
//!  last pin gone ─┬─ new ──────────────▶ trial ──used again──▶ proven ◀─┐ used since: once more round
//!                 │                        │ not                │  └────┘
//!                 │                        ▼                    │ not
//!                 └─ lately evicted ─▶ …proven      evicted ◀───┘
//!                                       (evicted, and remembered for a while)
//! ```
//!
//! Two queues, first in first out, and how often each was used: S3-FIFO (Yang, Zhang, Qiu, Yue,
//! Rashmi: FIFO Queues are All You Need for Cache Eviction, SOSP 2023). What is looked at once, as by a
//! scan over a year of data, goes through a tenth of the memory and leaves the rest alone. To use an
//! object changes a number in it and nothing here, so no lock is on the way of a table; what is
//! pinned again stays in its queue, and is taken out when its turn comes.

use std::collections::VecDeque;
use std::hash::BuildHasher as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use foldhash::quality::RandomState;

use crate::cache::memory::object::Resident;
use crate::object::ObjectId;

/// One part in so many of the bytes is for those on trial.
const SMALL_SHARE: u64 = 10;
/// What was used more often than this while on trial is proven, as in the paper.
const PROMOTION_USES: u8 = 1;
/// So many are looked at under one lock.
const MAX_SCANNED: usize = 64;

/// What can go when room is needed.
#[derive(Debug, Default)]
pub(crate) struct EvictionQueues {
    queues: Mutex<Queues>,
    bytes: AtomicU64,
}

#[derive(Debug, Default)]
struct Queues {
    small: FifoQueue,
    main: FifoQueue,
    ghost: GhostQueue,
    /// Nothing comes in any more.
    closed: bool,
}

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

    /// Takes out those that `which` picks.
    fn take(&mut self, which: impl Fn(&Resident) -> bool) -> Vec<Arc<Resident>> {
        let all = std::mem::take(&mut self.order).into_iter();
        let (taken, rest): (VecDeque<_>, VecDeque<_>) = all.partition(|resident| which(resident));
        self.order = rest;
        self.bytes -= taken.iter().map(|resident| resident.charged_bytes()).sum::<u64>();
        taken.into()
    }
}

/// What becomes of the one whose turn it is.
enum EvictionStep {
    /// It is taken out.
    Goes(Arc<Resident>),
    /// It is in its queue, or the other one, again.
    Stays,
    /// There is none.
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

/// Who was evicted lately, as marks in a table that later ones write over: as good as a queue of ids,
/// at four bytes each.
#[derive(Debug, Default)]
struct GhostQueue {
    marks: Vec<u32>,
    hasher: RandomState,
}

impl GhostQueue {
    /// The place of `id`, and its mark.
    fn mark(&self, id: ObjectId) -> Option<(usize, u32)> {
        let hash = self.hasher.hash_one(id);
        let place = (hash as usize).checked_rem(self.marks.len())?;
        // 0 stands for none.
        Some((place, (hash >> 32) as u32 | 1))
    }

    /// One more, of about so many that are remembered.
    fn add(&mut self, id: ObjectId, objects: usize) {
        if self.marks.len() < objects {
            self.marks = vec![0; (2 * objects).next_power_of_two()];
        }
        if let Some((place, mark)) = self.mark(id) {
            self.marks[place] = mark;
        }
    }

    /// Whether it was one of them; it is none any more.
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
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes of all of them, those that are pinned again included.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// The same, counted anew.
    pub(crate) fn counted_bytes(&self) -> u64 {
        let queues = self.queues();
        let all = queues.small.order.iter().chain(&queues.main.order);
        all.map(|resident| resident.charged_bytes()).sum()
    }

    /// The last pin of an object is gone.
    pub(crate) fn add(&self, resident: &Arc<Resident>) {
        if resident.is_listed() {
            // It was one before, and still is; or is evicted just now, and then goes.
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

    /// Takes out the one that goes first. Unless it is pinned meanwhile, it is gone when this is
    /// dropped, which has to be without any lock.
    pub(crate) fn evict(&self) -> Option<Arc<Resident>> {
        // Where all were used much, it may take a look at each: who has one to add waits for a few.
        loop {
            match self.evict_among_some() {
                EvictionStep::Goes(resident) => return Some(resident),
                EvictionStep::Stays => {}
                EvictionStep::None => return None,
            }
        }
    }

    /// Looks at some; `Stays`: none of them goes.
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

    /// Takes out those that `which` picks.
    pub(crate) fn take(&self, which: impl Fn(&Resident) -> bool) -> Vec<Arc<Resident>> {
        let mut queues = self.queues();
        let mut taken = queues.small.take(&which);
        taken.append(&mut queues.main.take(&which));
        taken.iter().for_each(|resident| self.unlist(resident));
        taken
    }

    /// Takes all out; from now on nothing comes in.
    pub(crate) fn close(&self) -> Vec<Arc<Resident>> {
        self.queues().closed = true;
        self.take(|_| true)
    }

    /// Whether nothing comes in any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.queues().closed
    }

    /// Under the lock of the queues.
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

    /// So many objects fit.
    const ROOM: usize = 100;

    /// The object `n`, used once more.
    fn used(home: &Arc<Residency>, n: usize) -> Pin {
        let pin = object(home, n);
        // In a moment of its own.
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
    fn what_is_used_again_outlives_a_scan() {
        let home = home(ROOM);
        for _ in 0..2 {
            (0..50).for_each(|n| drop(used(&home, n)));
        }
        (1_000..3_000).for_each(|n| drop(used(&home, n)));
        assert_eq!(there(&home, 0..50), 50);
        assert_eq!(there(&home, 1_000..3_000), 50, "all of the memory is used");
    }

    #[test]
    fn what_was_used_but_is_not_any_more_goes_in_the_end() {
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
        assert!(after(1) < 20, "what comes once has a tenth of the memory");
        // Two that have the same mark in the table of the evicted may need some rounds more.
        assert!(after(2) > 60);
        assert_eq!(after(10), 80);
    }

    #[test]
    fn what_comes_back_soon_after_it_was_evicted_is_proven() {
        let home = home(ROOM);
        (0..ROOM + 1).for_each(|n| drop(used(&home, n)));
        assert_eq!(there(&home, 0..1), 0, "the first came first");
        drop(used(&home, 0));
        (1_000..1_200).for_each(|n| drop(used(&home, n)));
        assert_eq!(there(&home, 0..ROOM + 1), 1);
        assert_eq!(there(&home, 0..1), 1);
    }

    #[test]
    fn what_is_pinned_stays_and_can_go_when_it_is_not() {
        let home = home(ROOM);
        let pins: Vec<Pin> = (0..ROOM - 1).map(|n| used(&home, n)).collect();
        (1_000..1_200).for_each(|n| drop(used(&home, n)));
        assert_eq!(there(&home, 0..ROOM - 1), ROOM - 1);
        drop(pins);
        // Candidates, pinned anew, and not.
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
        assert_eq!(home.objects(), 0, "nothing is kept any more");
    }
}
