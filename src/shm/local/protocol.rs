//! Pins of one word: how a consumer pins a block without a request, and how the service frees a
//! block that a consumer may be pinning at the same time.
//!
//! ```text
//!  consumer   slot: 0 ─▶ g (SeqCst) │ block still g? (SeqCst) │ read bytes │ slot ─▶ 0 (Release)
//!                       ╲          ╱                                            │
//!                        ╲        ╱  one of the two sees the other              │
//!                         ╲      ╱                                              ▼
//!  service    block: g ─▶ 0 │ fence (SeqCst) │ quarantine │ any slot g? ──no──▶ place is free
//!                                                  ▲              │ yes (Acquire)
//!                                                  └──────────────┘
//! ```
//!
//! **A pinned block is not reused** (`SYNC(pin)`). Let C be the consumer's store of g into its
//! slot, L its load of the block's generation, Z the service's store of 0 and F its fence; C, L and
//! F are SeqCst, and C comes before L, Z before F. If the service does not find g in the slot, its
//! load read a value before C, so F precedes C in the order of all SeqCst operations, and so F
//! precedes L: L reads Z's value or a later one. Generations are unique, so L does not read g, and
//! the consumer does not use the block. If the service finds g, the place stays in quarantine. This
//! proof also covers the word with the number of used slots (`high_water`), which is stored before
//! C, and the count of live pages, which is raised and fenced before a consumer gets the page's
//! descriptor.
//!
//! **Bytes are read before their place is written again** (`SYNC(unpin)`). The consumer clears its
//! slot with Release; the service reads 0 with Acquire before it reuses the place.
//!
//! **Retiring needs no undo.** A block with generation 0 does not resolve and cannot be pinned.
//! Consumers that pinned it before can still read it, because its place is not reused. So a block
//! that turns out to be in use is not revived: its place waits in quarantine. Eviction checks the
//! slots before it selects a block, so that this is rare.
//!
//! **The page of an ended session pins no block.** The page is removed from the registry when its
//! session ends, that is when the kernel has closed the consumer's socket; places in quarantine are
//! checked again then. A consumer keeps its socket open as long as it has a view.
//!
//! **A snapshot is read without a pin** (`SYNC(publish)`, `SYNC(give-up)` in
//! [`sync`](super::super::sync)). A directory entry holds generation and place in two words. If a
//! read is torn, the block at that place has another generation, since generations are unique, and
//! the consumer asks the service. The words of the snapshot are copied between
//! [`seen`](super::super::sync::seen) and [`seen_again`](super::super::sync::seen_again), as for
//! every block that is not pinned.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::super::sync::{self, Word};

/// A slot of a pins page.
pub(super) trait PinSlot: Word {
    /// Stores `value` if the word is 0, in the total order of SeqCst operations.
    fn claim(&self, value: u64) -> bool;
}

impl PinSlot for AtomicU64 {
    #[inline]
    fn claim(&self, value: u64) -> bool {
        self.compare_exchange(0, value, Ordering::SeqCst, Ordering::Relaxed).is_ok()
    }
}

/// Result of an attempt to pin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PinAttempt {
    /// The block does not change until the slot is cleared.
    Pinned,
    /// The slot is in use.
    SlotTaken,
    /// The block was retired.
    Gone,
}

/// Pins the block with `generation` by `slot`; `block` is its generation word.
#[inline]
pub(super) fn pin<W: PinSlot>(slot: &W, block: &W, generation: u64) -> PinAttempt {
    // SYNC(pin): pairs with the fence in `retire`.
    if !slot.claim(generation) {
        return PinAttempt::SlotTaken;
    }
    // SYNC(pin): as above. It is an Acquire too: SYNC(publish) in `sync::publish`.
    if block.load(Ordering::SeqCst) == generation {
        return PinAttempt::Pinned;
    }
    unpin(slot);
    PinAttempt::Gone
}

/// Ends a pin. Its bytes must not be read afterwards.
#[inline]
pub(super) fn unpin<W: PinSlot>(slot: &W) {
    // SYNC(unpin): pairs with the Acquire load in `named`.
    slot.store(0, Ordering::Release);
}

/// Retires a block. Check the slots afterwards, by [`named`].
pub(in crate::shm) fn retire<W: Word>(block: &W) {
    sync::give_up(block);
    // SYNC(pin): pairs with the SeqCst operations in `pin`.
    W::fence(Ordering::SeqCst);
}

/// The generation that a slot names; 0: none. A block that was [retired](retire) before, and has
/// another one, is not pinned by the slot.
#[inline]
pub(super) fn named<W: Word>(slot: &W) -> u64 {
    // SYNC(unpin): pairs with the Release store in `unpin`.
    slot.load(Ordering::Acquire)
}

/// Stores a reference to a snapshot in a directory entry.
pub(super) fn store_entry<W: Word>(generation: &W, place: &W, snapshot: (u64, u64)) {
    place.store(snapshot.1, Ordering::Relaxed);
    // SYNC(entry): a load of this generation makes the place visible; pairs with the load in
    // `load_entry`.
    generation.store(snapshot.0, Ordering::Release);
}

/// Generation and place of the snapshot to which a directory entry refers; 0: none. The two may
/// belong to different snapshots: then the block at the place has another generation.
#[inline]
pub(super) fn load_entry<W: Word>(generation: &W, place: &W) -> (u64, u64) {
    // SYNC(entry): pairs with the store in `store_entry`.
    let seen = generation.load(Ordering::Acquire);
    (seen, place.load(Ordering::Relaxed))
}

/// The state of an entry.
pub(super) trait StateWord {
    fn load(&self, ordering: Ordering) -> u32;
    fn store(&self, state: u32, ordering: Ordering);
}

impl StateWord for AtomicU32 {
    #[inline]
    fn load(&self, ordering: Ordering) -> u32 {
        self.load(ordering)
    }

    fn store(&self, state: u32, ordering: Ordering) {
        self.store(state, ordering);
    }
}

/// Stores the state of an entry and its target (generation and place).
pub(super) fn store_state<W: Word, S: StateWord>(
    state: &S,
    (generation, place): (&W, &W),
    next: (u32, (u64, u64)),
) {
    store_entry(generation, place, next.1);
    // SYNC(state): a load of this state makes the block visible; pairs with the load in
    // `load_state`.
    state.store(next.0, Ordering::Release);
}

/// The state of an entry, and generation and place of at least the time when it got this state.
#[inline]
pub(super) fn load_state<W: Word, S: StateWord>(
    state: &S,
    (generation, place): (&W, &W),
) -> (u32, (u64, u64)) {
    // SYNC(state): pairs with the store in `store_state`.
    let seen = state.load(Ordering::Acquire);
    (seen, load_entry(generation, place))
}

#[cfg(test)]
mod tests {
    use loom::sync::atomic::{AtomicU64, fence};
    use loom::sync::{Arc, Mutex};
    use loom::thread;

    use super::*;

    impl PinSlot for AtomicU64 {
        fn claim(&self, value: u64) -> bool {
            let claimed =
                self.compare_exchange(0, value, Ordering::AcqRel, Ordering::Relaxed).is_ok();
            // Loom orders SeqCst operations only as AcqRel ones, but models SeqCst fences. A fence
            // here is equivalent to the SeqCst operations of the real words (see the proof above).
            fence(Ordering::SeqCst);
            claimed
        }
    }

    /// One place of shared memory, one slot of a page, and the records of the service.
    #[derive(Default)]
    struct Memory {
        slot: AtomicU64,
        generation: AtomicU64,
        payload: [AtomicU64; 2],
        book: Mutex<Book>,
    }

    #[derive(Default)]
    struct Book {
        /// The place is free.
        free: bool,
        quarantined: Option<u64>,
        /// The consumer's page is registered.
        page: bool,
    }

    impl Memory {
        /// With a page, and object 7 under generation 1.
        fn with_an_object() -> Arc<Self> {
            let memory = Self::default();
            memory.book.lock().unwrap().page = true;
            memory.write(7, 1);
            Arc::new(memory)
        }

        fn write(&self, value: u64, generation: u64) {
            sync::claim(&self.generation);
            for word in &self.payload {
                word.store(value, Ordering::Relaxed);
            }
            sync::publish(&self.generation, generation);
        }

        /// Models dropping a block.
        fn give_up(&self, generation: u64) {
            retire(&self.generation);
            let mut book = self.book.lock().unwrap();
            if book.page {
                book.quarantined = Some(generation);
            } else {
                book.free = true;
            }
        }

        /// Models the pool when it reclaims memory.
        fn reclaim(&self) {
            let mut book = self.book.lock().unwrap();
            if let Some(generation) = book.quarantined
                && (!book.page || named(&self.slot) != generation)
            {
                (book.quarantined, book.free) = (None, true);
            }
        }

        /// Takes the place for object 8 under generation 2, if it is free.
        fn reuse(&self) -> bool {
            let free = std::mem::take(&mut self.book.lock().unwrap().free);
            if free {
                self.write(8, 2);
            }
            free
        }

        fn read(&self) -> [u64; 2] {
            [self.payload[0].load(Ordering::Relaxed), self.payload[1].load(Ordering::Relaxed)]
        }
    }

    fn spawn(memory: &Arc<Memory>, work: impl FnOnce(&Memory) + 'static) -> thread::JoinHandle<()> {
        let memory = Arc::clone(memory);
        thread::spawn(move || work(&memory))
    }

    #[test]
    fn a_block_that_is_pinned_while_it_is_evicted_keeps_its_bytes() {
        loom::model(|| {
            let memory = Memory::with_an_object();
            let service = spawn(&memory, |memory| {
                memory.give_up(1);
                memory.reclaim();
                memory.reuse();
            });
            if pin(&memory.slot, &memory.generation, 1) == PinAttempt::Pinned {
                assert_eq!(memory.read(), [7, 7]);
                unpin(&memory.slot);
            }
            service.join().unwrap();
        });
    }

    #[test]
    fn a_place_in_quarantine_is_used_again_only_after_its_bytes_were_read() {
        loom::model(|| {
            let memory = Memory::with_an_object();
            assert_eq!(pin(&memory.slot, &memory.generation, 1), PinAttempt::Pinned);
            let service = spawn(&memory, |memory| {
                memory.give_up(1);
                memory.reclaim();
                memory.reuse();
            });
            assert_eq!(memory.read(), [7, 7]);
            unpin(&memory.slot);
            service.join().unwrap();
            // Once the slot is clear, the place is reclaimed, whatever came before.
            memory.reclaim();
            let free = memory.book.lock().unwrap().free;
            assert!(free || memory.generation.load(Ordering::Acquire) == 2, "the place is lost");
        });
    }

    #[test]
    fn two_consumers_of_one_slot_do_not_free_each_others_block() {
        // Threads of one process share its slots: the second one gets another slot.
        loom::model(|| {
            let memory = Memory::with_an_object();
            let other = spawn(&memory, |memory| {
                if pin(&memory.slot, &memory.generation, 1) == PinAttempt::Pinned {
                    assert_eq!(memory.read(), [7, 7]);
                    unpin(&memory.slot);
                }
            });
            let service = spawn(&memory, |memory| {
                memory.give_up(1);
                memory.reclaim();
                memory.reuse();
            });
            if pin(&memory.slot, &memory.generation, 1) == PinAttempt::Pinned {
                assert_eq!(memory.read(), [7, 7]);
                unpin(&memory.slot);
            }
            other.join().unwrap();
            service.join().unwrap();
        });
    }

    #[test]
    fn a_page_given_up_with_its_session_leaves_no_place_behind() {
        loom::model(|| {
            let memory = Memory::with_an_object();
            // A consumer that is killed between pin and unpin: its slot is never cleared.
            assert_eq!(pin(&memory.slot, &memory.generation, 1), PinAttempt::Pinned);
            let evicts = spawn(&memory, |memory| memory.give_up(1));
            // The kernel closes its socket.
            memory.book.lock().unwrap().page = false;
            memory.reclaim();
            evicts.join().unwrap();
            memory.reclaim();
            assert!(memory.book.lock().unwrap().free, "the place is lost");
        });
    }

    /// A snapshot at one of two places, and the entry that refers to one of them.
    #[derive(Default)]
    struct Published {
        entry: [AtomicU64; 2],
        generations: [AtomicU64; 2],
        payloads: [[AtomicU64; 2]; 2],
    }

    impl Published {
        fn write(&self, place: usize, generation: u64) {
            sync::claim(&self.generations[place]);
            for word in &self.payloads[place] {
                word.store(generation, Ordering::Relaxed);
            }
            sync::publish(&self.generations[place], generation);
        }

        fn name(&self, place: usize, generation: u64) {
            store_entry(&self.entry[0], &self.entry[1], (generation, place as u64));
        }

        /// Models a look-up.
        fn look_up(&self) -> Option<(u64, [u64; 2])> {
            let (generation, place) = load_entry(&self.entry[0], &self.entry[1]);
            let block = &self.generations[place as usize];
            if sync::seen(block) != generation {
                return None;
            }
            let words = &self.payloads[place as usize];
            let read = [words[0].load(Ordering::Relaxed), words[1].load(Ordering::Relaxed)];
            (sync::seen_again(block) == generation).then_some((generation, read))
        }
    }

    #[test]
    fn a_timeline_that_is_replaced_under_a_reader_is_read_whole_or_not_at_all() {
        loom::model(|| {
            let published = Arc::new(Published::default());
            published.write(0, 1);
            published.name(0, 1);
            let service = thread::spawn({
                let published = Arc::clone(&published);
                move || {
                    published.write(1, 2);
                    published.name(1, 2);
                    sync::give_up(&published.generations[0]);
                    // The place of the first snapshot is reused at once.
                    published.write(0, 3);
                }
            });
            if let Some((generation, read)) = published.look_up() {
                assert_eq!(read, [generation; 2]);
                assert_ne!(generation, 3, "no entry names it");
            }
            service.join().unwrap();
            assert_eq!(published.look_up(), Some((2, [2, 2])));
        });
    }

    #[test]
    fn a_timeline_that_is_withdrawn_is_not_read_afterwards() {
        loom::model(|| {
            let published = Arc::new(Published::default());
            published.write(0, 1);
            published.name(0, 1);
            let told = Arc::new(Mutex::new(false));
            let service = thread::spawn({
                let (published, told) = (Arc::clone(&published), Arc::clone(&told));
                move || {
                    published.name(0, 0);
                    // From here on the service gives another answer.
                    *told.lock().unwrap() = true;
                }
            });
            let was_told = *told.lock().unwrap();
            let found = published.look_up();
            assert!(
                !was_told || found.is_none(),
                "an answer that was withdrawn before it was asked"
            );
            service.join().unwrap();
        });
    }
}
