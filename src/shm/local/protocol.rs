//! Pins of one word: how a consumer pins a block without a request, and how the service frees a
//! block that a consumer may be pinning at the same time.
//!
//! ```text
//!  consumer   slot: 0 ─▶ g │ fence │ block still g? │ read bytes │ slot ─▶ 0 (Release)
//!                      ╲          ╱                                  │
//!                       ╲        ╱  one of the two sees the other    │
//!                        ╲      ╱                                    ▼
//!  service    block: g ─▶ 0 │ fence │ quarantine │ barrier │ any slot g? ──no──▶ place is free
//!                                         ▲                     │ yes (Acquire)
//!                                         └─────────────────────┘
//! ```
//!
//! **A pinned block is not reused** (`SYNC(pin)`). Let C be the consumer's store of g into its
//! slot, X its fence, L its load of the block's generation, Z the service's store of 0, Y its fence,
//! and N its load of the slot, in the order C X L and Z Y N. X and Y are SeqCst fences, so one of
//! them is first in the order of all SeqCst operations. If X is, N sees C or a later value of the
//! slot. If Y is, L sees Z or a later value of the block; generations are unique, so it does not read
//! g, and the consumer does not use the block. So if N does not find g, the consumer does not use the
//! block, or has cleared the slot. If N finds g, the place stays in quarantine. This proof also covers
//! the word with the number of used slots (`high_water`), which is stored, or seen to be large enough,
//! before X, and the count of live pages, which is raised and fenced before a consumer gets the page's
//! descriptor.
//!
//! **The service can execute the fence X for its consumers.** With the flag `PINS_WITHOUT_FENCE` of the
//! page, and a consumer that is registered for barriers, X keeps the compiler alone from reordering
//! ([`PinSlot::light_fence`]), and Y is [`Barrier::heavy`]: each thread of the consumer executes a full
//! memory barrier at some point between begin and end of that call. If the point is behind C, N sees C
//! or a later value. Otherwise it is before C and so before L, and L sees Z, which is before the call.
//! So the pair orders as two SeqCst fences do (as `asymmetric_thread_fence` of the C++ proposal
//! P1202), and the models use these.
//!
//! **A slot is claimed without a locked instruction** (`SYNC(chunk)`). A thread claims slots only in
//! a chunk that it has taken, so no other thread stores a generation there. It finds a slot free by
//! an Acquire load, since another thread may have ended its last pin, and stores with Release: so the
//! service that reads the new generation knows that the bytes of the old one were read.
//!
//! **Bytes are read before their place is written again** (`SYNC(unpin)`). The consumer clears its
//! slot with Release; the service reads 0, or a later generation, with Acquire before it reuses the
//! place.
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

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, compiler_fence};

use super::super::sync::{self, Word};
use super::barrier;

/// A slot of a pins page.
pub(super) trait PinSlot: Word {
    /// The fence X where the service executes a barrier for it: keeps the compiler from moving loads
    /// before stores.
    fn light_fence();
}

impl PinSlot for AtomicU64 {
    #[inline]
    fn light_fence() {
        compiler_fence(Ordering::SeqCst);
    }
}

/// Which fence separates the store to a slot from the load behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PinFence {
    /// One of this thread.
    Own,
    /// The service executes it, by [`heavy`](Barrier::heavy).
    OfService,
}

impl PinFence {
    #[inline]
    fn execute<W: PinSlot>(self) {
        match self {
            Self::OfService => W::light_fence(),
            Self::Own => W::fence(Ordering::SeqCst),
        }
    }
}

/// The barrier of the service before it looks at the slots.
pub(super) trait Barrier {
    /// Executes the fence X of all consumers. Returns whether this succeeded.
    fn heavy(&self) -> bool;
}

/// The barrier of the kernel.
pub(super) struct KernelBarrier;

impl Barrier for KernelBarrier {
    fn heavy(&self) -> bool {
        barrier::for_registered()
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

/// Whether the slot, in a chunk that this thread has taken, is free.
#[inline]
pub(super) fn is_free<W: Word>(slot: &W) -> bool {
    // SYNC(chunk): pairs with the Release store in `unpin`.
    slot.load(Ordering::Acquire) == 0
}

/// Pins the block with `generation` by `slot`, if that is free; `block` is its generation word. This
/// thread has taken the slot's chunk.
#[inline]
pub(super) fn pin<W: PinSlot>(slot: &W, block: &W, generation: u64, fence: PinFence) -> PinAttempt {
    if !is_free(slot) {
        return PinAttempt::SlotTaken;
    }
    // SYNC(unpin): passes on the end of the slot's last pin.
    slot.store(generation, Ordering::Release);
    // SYNC(pin): pairs with the fence in `retire`, or with `look_at_slots`.
    fence.execute::<W>();
    // SYNC(publish): pairs with the Release store in `sync::publish`.
    if block.load(Ordering::Acquire) == generation {
        return PinAttempt::Pinned;
    }
    unpin(slot);
    PinAttempt::Gone
}

/// Orders what retired blocks before the slots that are looked at behind it. If it fails, each slot
/// counts as naming each block.
#[must_use]
pub(super) fn look_at_slots(barrier: &impl Barrier) -> bool {
    // SYNC(pin): pairs with the light fence in `pin`.
    barrier.heavy()
}

/// Says whether a thread uses a chunk of slots: 0, or 1.
pub(super) trait ChunkWord {
    fn take(&self) -> bool;
    fn give(&self);
}

impl ChunkWord for AtomicU32 {
    #[inline]
    fn take(&self) -> bool {
        // SYNC(chunk): pairs with the Release store in `give`.
        self.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    #[inline]
    fn give(&self) {
        // SYNC(chunk): the generations that this thread stored are seen by the next one.
        self.store(0, Ordering::Release);
    }
}

/// Ends a pin. Its bytes must not be read afterwards.
#[inline]
pub(super) fn unpin<W: PinSlot>(slot: &W) {
    // SYNC(unpin): pairs with the Acquire load in `named`. SYNC(chunk): and with that in `is_free`.
    slot.store(0, Ordering::Release);
}

/// Retires a block. Check the slots afterwards, by [`named`].
pub(in crate::shm) fn retire<W: Word>(block: &W) {
    sync::give_up(block);
    // SYNC(pin): pairs with the fence in `pin`, if that is the consumer's own.
    W::fence(Ordering::SeqCst);
}

/// The generation that a slot names; 0: none. A block that was [retired](retire) before, and has
/// another one, is not pinned by the slot.
#[inline]
pub(super) fn named<W: Word>(slot: &W) -> u64 {
    // SYNC(unpin): pairs with the Release stores in `unpin` and `pin`.
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
    use loom::sync::atomic::{AtomicU32, AtomicU64};
    use loom::sync::{Arc, Condvar, Mutex};
    use loom::thread;

    use super::*;

    impl PinSlot for AtomicU64 {
        fn light_fence() {
            INTERRUPTS.point();
        }
    }

    impl ChunkWord for AtomicU32 {
        fn take(&self) -> bool {
            self.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_ok()
        }

        fn give(&self) {
            self.store(0, Ordering::Release);
        }
    }

    loom::lazy_static! {
        static ref INTERRUPTS: Interrupts = Interrupts::default();
    }

    /// The kernel's part in a barrier: a running consumer is interrupted at one of its points, between
    /// any two of its accesses that matter. Where no barrier comes, a point orders nothing.
    #[derive(Default)]
    struct Interrupts {
        state: Mutex<InterruptState>,
        executed: Condvar,
    }

    #[derive(Default)]
    struct InterruptState {
        runs: bool,
        is_requested: bool,
    }

    impl Interrupts {
        fn set(&self, runs: bool) {
            *self.state.lock().unwrap() = InterruptState { runs, is_requested: false };
            self.executed.notify_all();
        }

        /// Executes the barrier, if one was requested.
        fn point(&self) {
            let mut state = self.state.lock().unwrap();
            if std::mem::take(&mut state.is_requested) {
                self.executed.notify_all();
            }
        }
    }

    /// A consumer that is registered for barriers and runs until this is dropped.
    struct Running;

    impl Running {
        fn new() -> Self {
            INTERRUPTS.set(true);
            Self
        }
    }

    impl Drop for Running {
        fn drop(&mut self) {
            INTERRUPTS.set(false);
        }
    }

    struct ModelBarrier;

    impl Barrier for ModelBarrier {
        fn heavy(&self) -> bool {
            let mut state = INTERRUPTS.state.lock().unwrap();
            state.is_requested = state.runs;
            while state.is_requested {
                state = INTERRUPTS.executed.wait(state).unwrap();
            }
            true
        }
    }

    /// One place of shared memory, one slot of a page, and the records of the service.
    struct Memory {
        slot: AtomicU64,
        /// The chunk of the slot.
        chunk: AtomicU32,
        generation: AtomicU64,
        payload: [AtomicU64; 2],
        book: Mutex<Book>,
        fence: PinFence,
        /// Whether the service executes the barriers that its consumers rely on.
        has_barriers: bool,
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
        fn with_an_object(fence: PinFence) -> Arc<Self> {
            Self::with_barriers(fence, true)
        }

        fn with_barriers(fence: PinFence, has_barriers: bool) -> Arc<Self> {
            let memory = Self {
                slot: AtomicU64::default(),
                chunk: AtomicU32::default(),
                generation: AtomicU64::default(),
                payload: Default::default(),
                book: Mutex::default(),
                fence,
                has_barriers,
            };
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
            if self.has_barriers && book.quarantined.is_some() && self.fence == PinFence::OfService
            {
                assert!(look_at_slots(&ModelBarrier));
            }
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

        fn evict(&self) {
            self.give_up(1);
            self.reclaim();
            self.reuse();
        }

        /// Models a view from its look-up to its drop, in a chunk that the thread has taken.
        fn view(&self) {
            if pin(&self.slot, &self.generation, 1, self.fence) == PinAttempt::Pinned {
                assert_eq!(self.read(), [7, 7]);
                unpin(&self.slot);
            }
        }

        fn read(&self) -> [u64; 2] {
            [self.payload[0].load(Ordering::Relaxed), self.payload[1].load(Ordering::Relaxed)]
        }
    }

    fn spawn(memory: &Arc<Memory>, work: impl FnOnce(&Memory) + 'static) -> thread::JoinHandle<()> {
        let memory = Arc::clone(memory);
        thread::spawn(move || work(&memory))
    }

    /// Explores all orders with at most three preemptions: models of three threads have many steps.
    fn bounded(model: impl Fn() + Sync + Send + 'static) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(3);
        builder.check(model);
    }

    #[test]
    fn a_block_that_is_pinned_while_it_is_evicted_keeps_its_bytes() {
        loom::model(|| {
            let memory = Memory::with_an_object(PinFence::Own);
            let service = spawn(&memory, Memory::evict);
            memory.view();
            service.join().unwrap();
        });
    }

    /// A consumer that executes no fence has views, one after the other, while the service evicts.
    fn views_without_a_fence(views: usize, has_barriers: bool) {
        loom::model(move || {
            let memory = Memory::with_barriers(PinFence::OfService, has_barriers);
            let running = Running::new();
            let service = spawn(&memory, Memory::evict);
            (0..views).for_each(|_| memory.view());
            drop(running);
            service.join().unwrap();
        });
    }

    #[test]
    fn a_block_that_is_pinned_without_a_fence_keeps_its_bytes_as_the_service_executes_one() {
        views_without_a_fence(1, true);
    }

    #[test]
    #[should_panic(expected = "left == right")]
    fn without_the_barrier_of_the_service_a_block_that_is_pinned_without_a_fence_is_reused() {
        views_without_a_fence(1, false);
    }

    #[test]
    fn many_blocks_that_are_pinned_one_after_the_other_without_a_fence_keep_their_bytes() {
        views_without_a_fence(2, true);
    }

    #[test]
    fn a_place_in_quarantine_is_used_again_only_after_its_bytes_were_read() {
        loom::model(|| {
            let memory = Memory::with_an_object(PinFence::Own);
            let pinned = pin(&memory.slot, &memory.generation, 1, memory.fence);
            assert_eq!(pinned, PinAttempt::Pinned);
            let service = spawn(&memory, Memory::evict);
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
    fn a_slot_that_goes_to_another_block_does_not_free_the_first_one_too_early() {
        bounded(|| {
            let memory = Memory::with_an_object(PinFence::Own);
            let other = Arc::new(AtomicU64::new(9));
            assert!(memory.chunk.take());
            assert_eq!(pin(&memory.slot, &memory.generation, 1, PinFence::Own), PinAttempt::Pinned);
            // The view is dropped by another thread than that of the chunk, which uses the slot again.
            let drops = spawn(&memory, |memory| {
                assert_eq!(memory.read(), [7, 7]);
                unpin(&memory.slot);
            });
            let service = spawn(&memory, Memory::evict);
            if pin(&memory.slot, &*other, 9, PinFence::Own) == PinAttempt::Pinned {
                assert_eq!(named(&memory.slot), 9);
                unpin(&memory.slot);
            }
            drops.join().unwrap();
            service.join().unwrap();
        });
    }

    #[test]
    fn two_threads_that_take_the_chunk_of_one_slot_do_not_free_each_others_block() {
        bounded(|| {
            let memory = Memory::with_an_object(PinFence::Own);
            let view = |memory: &Memory| {
                if memory.chunk.take() {
                    memory.view();
                    memory.chunk.give();
                }
            };
            let other = spawn(&memory, view);
            let service = spawn(&memory, Memory::evict);
            view(&memory);
            other.join().unwrap();
            service.join().unwrap();
        });
    }

    #[test]
    fn a_thread_that_takes_a_chunk_with_a_view_in_it_leaves_the_view_its_slot() {
        bounded(|| {
            let memory = Memory::with_an_object(PinFence::Own);
            // The first thread keeps its view beyond its time with the chunk.
            let first = spawn(&memory, |memory| {
                if memory.chunk.take() {
                    let pinned = pin(&memory.slot, &memory.generation, 1, PinFence::Own);
                    memory.chunk.give();
                    if pinned == PinAttempt::Pinned {
                        assert_eq!(memory.read(), [7, 7]);
                        unpin(&memory.slot);
                    }
                }
            });
            let service = spawn(&memory, Memory::evict);
            if memory.chunk.take() {
                memory.view();
                memory.chunk.give();
            }
            first.join().unwrap();
            service.join().unwrap();
        });
    }

    #[test]
    fn a_page_given_up_with_its_session_leaves_no_place_behind() {
        loom::model(|| {
            let memory = Memory::with_an_object(PinFence::Own);
            // A consumer that is killed between pin and unpin: its slot is never cleared.
            let pinned = pin(&memory.slot, &memory.generation, 1, memory.fence);
            assert_eq!(pinned, PinAttempt::Pinned);
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
