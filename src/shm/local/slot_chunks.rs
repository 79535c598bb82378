//! Chunks of slots: a thread takes one to claim slots in it without a locked instruction for each.
//!
//! ```text
//!  slots of the page   │ chunk    │ chunk    │ chunk    │ …     CHUNK_SLOTS each
//!                         ▲          ▲          ▲
//!                      lane of    lane of    taken for one pin, or for the pins of a table
//!                      a thread   a thread
//! ```
//!
//! Whether a chunk is taken is known to the consumer's process alone. A chunk that is given back can
//! have slots in use: views outlive the time in which their thread has the chunk.

use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use super::protocol::ChunkWord as _;

/// Number of slots of a chunk: two cache lines.
pub(super) const CHUNK_SLOTS: u32 = 16;

/// The chunks of one page.
#[derive(Debug)]
pub(super) struct SlotChunks {
    /// Unique among the pages of this process; not 0.
    page: u64,
    taken: Box<[AtomicU32]>,
    /// Number of lanes. At most half of the chunks are lanes.
    lanes: AtomicU32,
}

impl SlotChunks {
    /// The chunks of a page with this many slots.
    pub(super) fn new(slots: u32) -> Arc<Self> {
        static NEXT_PAGE: AtomicU64 = AtomicU64::new(1);
        let page = NEXT_PAGE.fetch_add(1, Ordering::Relaxed);
        let taken = (0..slots / CHUNK_SLOTS).map(|_| AtomicU32::new(0)).collect();
        Arc::new(Self { page, taken, lanes: AtomicU32::new(0) })
    }

    /// The page, by its number in this process.
    #[inline]
    pub(super) fn page(&self) -> u64 {
        self.page
    }

    /// Takes a chunk for this thread, unless another one has it.
    #[inline]
    pub(super) fn take(&self, chunk: u32) -> bool {
        self.taken.get(chunk as usize).is_some_and(|word| word.take())
    }

    /// Gives back a chunk that this thread has taken.
    #[inline]
    pub(super) fn give(&self, chunk: u32) {
        if let Some(word) = self.taken.get(chunk as usize) {
            word.give();
        }
    }

    /// Takes a chunk as a lane; `None` if there are enough lanes, or all chunks are taken.
    fn take_lane(&self) -> Option<u32> {
        let chunks = self.taken.len() as u32;
        if self.lanes.fetch_add(1, Ordering::Relaxed) < chunks / 2
            && let Some(chunk) = (0..chunks).find(|chunk| self.take(*chunk))
        {
            return Some(chunk);
        }
        self.lanes.fetch_sub(1, Ordering::Relaxed);
        None
    }

    fn give_lane(&self, chunk: u32) {
        self.give(chunk);
        self.lanes.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The slot that a thread used last in its lane of a page.
#[derive(Debug, Clone, Copy)]
pub(super) struct LaneSlot {
    /// The page; 0: none.
    pub(super) page: u64,
    pub(super) slot: u32,
}

/// A chunk of this thread.
struct ThreadLane {
    page: u64,
    chunk: u32,
    chunks: Weak<SlotChunks>,
}

/// The lanes of a thread, in the pages that it uses. They are given back when the thread ends.
struct ThreadLanes(Vec<ThreadLane>);

impl Drop for ThreadLanes {
    fn drop(&mut self) {
        LAST.set(NO_SLOT);
        for lane in &self.0 {
            if let Some(chunks) = lane.chunks.upgrade() {
                chunks.give_lane(lane.chunk);
            }
        }
    }
}

const NO_SLOT: LaneSlot = LaneSlot { page: 0, slot: 0 };

/// Slots where a thread looks for a free one outside of its lane.
#[derive(Debug, Clone, Copy)]
pub(super) struct SlotHint {
    /// The first slot that it has used, to begin with if it is free.
    pub(super) first: u32,
    /// The slot behind the last one.
    pub(super) next: u32,
}

impl SlotHint {
    /// Threads begin in different chunks.
    fn of_thread() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let first = NEXT.fetch_add(CHUNK_SLOTS, Ordering::Relaxed);
        Self { first, next: first }
    }
}

thread_local! {
    static LAST: Cell<LaneSlot> = const { Cell::new(NO_SLOT) };
    static LANES: RefCell<ThreadLanes> = const { RefCell::new(ThreadLanes(Vec::new())) };
    static HINT: Cell<SlotHint> = Cell::new(SlotHint::of_thread());
}

/// The slot that this thread used last in a lane.
#[inline]
pub(super) fn last_slot() -> LaneSlot {
    LAST.get()
}

/// Sets the slot that this thread tries next.
#[inline]
pub(super) fn use_lane_slot(slot: LaneSlot) {
    LAST.set(slot);
}

/// The first slot of this thread's lane in a page; `None` if it has none and gets none.
pub(super) fn lane(chunks: &Arc<SlotChunks>) -> Option<u32> {
    let find_or_take = |lanes: &RefCell<ThreadLanes>| {
        let lanes = &mut lanes.borrow_mut().0;
        let page = chunks.page;
        if let Some(known) = lanes.iter().find(|lane| lane.page == page) {
            return Some(known.chunk);
        }
        lanes.retain(|lane| lane.chunks.strong_count() > 0);
        let chunk = chunks.take_lane()?;
        lanes.push(ThreadLane { page, chunk, chunks: Arc::downgrade(chunks) });
        Some(chunk)
    };
    // A thread that is ending has given its lanes back.
    Some(LANES.try_with(find_or_take).ok()?? * CHUNK_SLOTS)
}

/// Where this thread looks for a free slot outside of its lane.
#[inline]
pub(super) fn slot_hint() -> SlotHint {
    HINT.get()
}

/// Sets where this thread looks for a free slot outside of its lane.
#[inline]
pub(super) fn use_slot_hint(hint: SlotHint) {
    HINT.set(hint);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_has_one_lane_in_each_page_and_gives_it_back_when_it_ends() {
        let pages = [0, 1].map(|_| SlotChunks::new(8 * CHUNK_SLOTS));
        let lanes = |pages: &[Arc<SlotChunks>; 2]| [0, 1].map(|page: usize| lane(&pages[page]));
        assert_eq!(lanes(&pages), [Some(0), Some(0)]);
        assert_eq!(lanes(&pages), [Some(0), Some(0)], "the same lanes again");
        let other = pages.clone();
        let other = std::thread::spawn(move || lanes(&other)).join().unwrap();
        assert_eq!(other, [Some(CHUNK_SLOTS), Some(CHUNK_SLOTS)]);
        assert!(!pages[0].take(0) && pages[0].take(1), "that of the ended thread alone is free");
        pages[0].give(1);
        assert!(pages[0].take(1));
    }

    #[test]
    fn half_of_the_chunks_are_left_to_threads_without_a_lane() {
        let chunks = SlotChunks::new(8 * CHUNK_SLOTS);
        let (begun, end) =
            (Arc::new(std::sync::Barrier::new(7)), Arc::new(std::sync::Barrier::new(7)));
        let threads: Vec<_> = (0..6)
            .map(|_| {
                let (chunks, begun, end) =
                    (Arc::clone(&chunks), Arc::clone(&begun), Arc::clone(&end));
                std::thread::spawn(move || {
                    let lane = lane(&chunks);
                    begun.wait();
                    end.wait();
                    lane
                })
            })
            .collect();
        begun.wait();
        assert_eq!((0..8).filter(|chunk| chunks.take(*chunk)).count(), 4);
        end.wait();
        let lanes: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        assert_eq!(lanes.iter().flatten().count(), 4, "{lanes:?}");
    }

    #[test]
    fn a_lane_in_a_page_that_is_gone_is_forgotten() {
        let gone = SlotChunks::new(8 * CHUNK_SLOTS);
        assert!(lane(&gone).is_some());
        drop(gone);
        let page = SlotChunks::new(8 * CHUNK_SLOTS);
        assert!(lane(&page).is_some());
        let pages: Vec<u64> =
            LANES.with(|lanes| lanes.borrow().0.iter().map(|lane| lane.page).collect());
        assert_eq!(pages, [page.page]);
    }
}
