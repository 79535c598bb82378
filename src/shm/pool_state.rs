//! The state of a pool: its segments, their free places and unread announcements, and its budget.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::allocator::{AllocatedNode, Allocator};
use super::backing::Maker;
use super::host_blocks::HostBlocks;
use super::layout::{Epoch, GRANULE_BYTES, SEGMENT_HEADER_BYTES, usable_bytes};
use super::local::{PageRegistry, QuarantinedPlace};
use super::segment::{Kind, Segment, SharedSegment};
use super::segment_creation::{SegmentCreation, SegmentRegistrar};
use super::sync;
use crate::sync::Mutex;

/// Sizes of segments are multiples of this.
pub(super) const PAGE_BYTES: u64 = 4096;
/// The smallest segment that is created.
pub(super) const LEAST_SEGMENT_BYTES: u64 = SEGMENT_HEADER_BYTES + PAGE_BYTES;
/// Maximum size of a segment: its granules are counted in 32 bits.
pub(super) const MAX_SEGMENT_BYTES: u64 = (u32::MAX as u64 - 1) * GRANULE_BYTES;

pub(super) type SegmentListener = Arc<dyn Fn(&SharedSegment) + Send + Sync>;
/// Called with the id of a retired segment.
pub(super) type RetiredHook = Arc<dyn Fn(u16) + Send + Sync>;

/// A pool: its options, its counters, and its segments under one lock.
pub(super) struct PoolInner {
    pub(super) memory_bytes: u64,
    /// The part of it that is used beside the segments.
    pub(super) aside_bytes: AtomicU64,
    pub(super) segment_bytes: u64,
    pub(super) maker: Maker,
    /// Size of the largest block if segments are all of one size and stay: a region, and segments
    /// that FairMQ knows by name.
    pub(super) fixed_bytes: Option<u64>,
    /// The blocks, if they are in a host's memory instead of in segments.
    pub(super) host: Option<Arc<HostBlocks>>,
    pub(super) epoch: Epoch,
    pub(super) next_generation: AtomicU64,
    pub(super) used_bytes: AtomicU64,
    /// Held while a segment is created or gets memory, which takes long; allocating and freeing
    /// blocks goes on.
    pub(super) growing: Mutex<()>,
    pub(super) state: Mutex<PoolState>,
    pub(super) listener: Mutex<Option<SegmentListener>>,
    pub(super) retired_hook: Mutex<Option<RetiredHook>>,
    /// Frozen: all blocks stay unchanged for the next process.
    pub(super) left: AtomicBool,
    /// The blocks that consumers pin without a call.
    pub(super) pages: PageRegistry,
    /// Whether a thread allocates memory for segments.
    pub(super) committing: AtomicBool,
    /// Only for segments that FairMQ knows by name.
    pub(super) creation: Option<SegmentCreation>,
    /// Registers new segments before they are used.
    pub(super) registrar: Mutex<Option<SegmentRegistrar>>,
}

/// The segments of a pool, behind its lock.
#[derive(Default)]
pub(super) struct PoolState {
    pub(super) segments: BTreeMap<u16, SegmentSlot>,
    /// Bytes of all segments, including those being created.
    pub(super) segment_bytes_in_all: u64,
    /// Segments retired while their descriptor was unread in a socket: the kernel keeps their
    /// memory until it is read.
    pub(super) unread: Vec<Unread>,
    pub(super) next_id: u16,
}

/// A segment with the allocator of its blocks.
pub(super) struct SegmentSlot {
    pub(super) segment: Arc<Segment>,
    pub(super) allocator: Allocator,
    /// Messages with its descriptor that are not read yet.
    pub(super) in_flight: usize,
}

/// A retired segment, and the number of unread messages with its descriptor.
pub(super) struct Unread {
    pub(super) segment: Arc<Segment>,
    pub(super) in_flight: usize,
}

/// A segment whose descriptor is in a message that is not read yet.
///
/// As long as this lives the kernel keeps the segment's memory, even after it is retired. So the
/// pool counts it: an empty segment in flight is reused instead of retired, and a retired one
/// counts against the memory.
pub(crate) struct InFlight {
    pub(super) pool: Arc<PoolInner>,
    pub(super) segment: Arc<Segment>,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.pool.landed(&self.segment);
    }
}

impl fmt::Debug for InFlight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} in flight", self.segment.kind, self.segment.id)
    }
}

impl PoolInner {
    /// The largest number of bytes that one block can take.
    pub(super) fn largest_payload_area(&self) -> u64 {
        if let Some(bytes) = self.fixed_bytes {
            return bytes;
        }
        let whole = (self.segments_limit() / PAGE_BYTES * PAGE_BYTES).min(MAX_SEGMENT_BYTES);
        usable_bytes(whole)
    }

    /// The next generation; 0 means none.
    pub(super) fn generation(&self) -> u64 {
        loop {
            let generation = self.next_generation.fetch_add(1, Ordering::Relaxed);
            if generation != 0 {
                return generation;
            }
        }
    }

    /// Whether the pool is frozen.
    pub(super) fn is_frozen(&self) -> bool {
        self.left.load(Ordering::Acquire)
    }

    pub(super) fn notify_retired(&self, segment: &Segment) {
        let retired_hook = self.retired_hook.lock().clone();
        if let (Some(retired_hook), Kind::Segment) = (retired_hook, segment.kind) {
            retired_hook(segment.id);
        }
    }

    pub(super) fn give_to_host(&self, segment: &Segment, block: usize, bytes: u64) {
        if let Some(host) = &self.host {
            host.give(segment, block);
            self.used_bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
    }

    /// Keeps a place until no consumer pins the block that it had.
    pub(super) fn quarantine(&self, place: QuarantinedPlace) {
        if self.pages.keep(place) {
            self.reclaim();
        }
    }

    /// Frees the places that no consumer pins any more. Returns whether there were any.
    pub(super) fn reclaim(&self) -> bool {
        if self.is_frozen() {
            return false;
        }
        let unused = self.pages.take_unused();
        let any = !unused.is_empty();
        for QuarantinedPlace { segment, place, bytes, kept, .. } in unused {
            if let Some(place) = place {
                self.give(&segment, place, bytes);
            }
            // Without any lock of the pool: it can unpin objects.
            drop(kept);
        }
        any
    }

    pub(super) fn give(&self, segment: &Segment, place: AllocatedNode, bytes: u64) {
        if self.is_frozen() {
            return;
        }
        self.used_bytes.fetch_sub(bytes, Ordering::Relaxed);
        let retired = {
            let mut state = self.state.lock();
            let Some(slot) = state.segments.get_mut(&segment.id) else { return };
            slot.allocator.give(place);
            self.take_out_if_useless(&mut state, segment)
        };
        if let Some(segment) = &retired {
            self.notify_retired(segment);
        }
        // Unmapping takes time, so it is done without the lock.
        drop(retired);
    }

    /// Removes an empty segment, unless it should be kept. One empty segment is kept, so that an
    /// object that comes and goes does not create and retire one each time; but not a segment made
    /// for a single large object. A segment with an unread descriptor is kept, too: its memory
    /// would not become free.
    pub(super) fn take_out_if_useless(
        &self,
        state: &mut PoolState,
        segment: &Segment,
    ) -> Option<Arc<Segment>> {
        let slot =
            state.segments.get(&segment.id).filter(|slot| std::ptr::eq(&*slot.segment, segment))?;
        let oversized = segment.mapping().length() as u64 > self.segment_bytes;
        let empty = |slot: &SegmentSlot| slot.allocator.is_empty();
        if empty(slot) && segment.is_condemned() {
            return state.take_out(segment.id);
        }
        let useless = empty(slot)
            && slot.in_flight == 0
            && self.fixed_bytes.is_none()
            && (oversized || state.segments.values().filter(|slot| empty(slot)).count() > 1);
        if useless { state.take_out(segment.id) } else { None }
    }

    /// Handles that a message with the descriptor of this segment was read, or its socket was
    /// closed.
    pub(super) fn landed(&self, segment: &Arc<Segment>) {
        let (retired, unread) = {
            let mut state = self.state.lock();
            let listed = state.segments.get_mut(&segment.id);
            if let Some(slot) = listed.filter(|slot| Arc::ptr_eq(&slot.segment, segment)) {
                slot.in_flight -= 1;
                let left = self.is_frozen();
                (if left { None } else { self.take_out_if_useless(&mut state, segment) }, None)
            } else {
                (None, state.landed(segment))
            }
        };
        if let Some(segment) = &retired {
            self.notify_retired(segment);
        }
        // Unmapping takes time, so it is done without the lock.
        drop((retired, unread));
    }

    /// Bytes available for new segments.
    pub(super) fn budget(&self, state: &PoolState) -> u64 {
        let unread = state.unread.iter().map(|unread| unread.segment.length());
        let taken = state.segment_bytes_in_all + self.counted_bytes(unread);
        self.segments_limit().saturating_sub(taken)
    }

    /// Bytes that segments can take in all.
    pub(super) fn segments_limit(&self) -> u64 {
        self.memory_bytes.saturating_sub(self.aside_bytes.load(Ordering::Relaxed))
    }

    /// Takes the bytes of a new segment, at least `least`, from the budget. Empty segments of other
    /// sizes are retired if it is too small; they are returned as well. `None` without enough memory.
    pub(super) fn take_budget(
        &self,
        state: &mut PoolState,
        least: u64,
    ) -> Option<(u64, Vec<Arc<Segment>>)> {
        let mut retired = Vec::new();
        let wanted = self.segment_bytes.max(least);
        if self.budget_without_empty(state) < least {
            return None;
        }
        loop {
            let bytes = wanted.min(self.budget(state) / PAGE_BYTES * PAGE_BYTES);
            if bytes >= least {
                state.segment_bytes_in_all += bytes;
                return Some((bytes, retired));
            }
            if self.fixed_bytes.is_some() {
                return None;
            }
            retired.push(state.take_out_an_empty_one()?);
        }
    }

    /// Like [`budget`](Self::budget), if all empty segments were retired.
    pub(super) fn budget_without_empty(&self, state: &PoolState) -> u64 {
        let in_flight = state.segments.values().filter(|slot| {
            slot.in_flight > 0 && slot.allocator.is_empty() && self.fixed_bytes.is_none()
        });
        let unread = state.unread.iter().map(|unread| unread.segment.length());
        let unread = unread.chain(in_flight.map(|slot| slot.segment.length()));
        // Fixed segments stay, even empty.
        let empty = if self.fixed_bytes.is_none() { state.empty_bytes() } else { 0 };
        let taken = state.segment_bytes_in_all - empty + self.counted_bytes(unread);
        self.segments_limit().saturating_sub(taken)
    }

    /// The part of the memory of unread segments that counts against the pool. The largest of them
    /// does not count, so a single consumer that stops reading takes no memory from the others.
    pub(super) fn counted_bytes(&self, unread: impl Iterator<Item = u64>) -> u64 {
        let (sum, largest) =
            unread.fold((0, 0), |(sum, largest): (u64, u64), one| (sum + one, largest.max(one)));
        sum.saturating_sub(largest.max(self.segment_bytes))
    }
}

/// An allocated place: its segment, the offset of its block, and the node to release it.
pub(super) type AllocatedBlock = (Arc<Segment>, usize, AllocatedNode);

impl PoolState {
    /// Lists a segment without blocks; returns the bytes for blocks in it.
    pub(super) fn insert(&mut self, segment: Arc<Segment>) -> u64 {
        let granules = segment.granules();
        let allocator = Allocator::new(granules, segment.granules_with_memory());
        self.segments.insert(segment.id, SegmentSlot { segment, allocator, in_flight: 0 });
        u64::from(granules) * GRANULE_BYTES
    }

    pub(super) fn take(&mut self, granules: u32) -> Option<AllocatedBlock> {
        self.segments.values_mut().filter(|slot| !slot.segment.is_condemned()).find_map(|slot| {
            let (start, place) = slot.allocator.take(granules)?;
            let block = slot.segment.block_at(start);
            // The bytes there may look like a generation. Cleared under the lock, so that an
            // allocated place has none until its block is published.
            sync::claim(slot.segment.mapping().atomic_u64(block));
            Some((Arc::clone(&slot.segment), block, place))
        })
    }

    /// Ids ascend, so that consumers do not soon see another segment under an id they know.
    pub(super) fn unused_id(&mut self, is_free: impl Fn(u16) -> bool) -> Option<u16> {
        (0..=u16::MAX).find_map(|_| {
            let id = self.next_id;
            self.next_id = id.wrapping_add(1);
            (!self.segments.contains_key(&id) && is_free(id)).then_some(id)
        })
    }

    /// Bytes of empty segments.
    pub(super) fn empty_bytes(&self) -> u64 {
        let empty = self.segments.values().filter(|slot| slot.allocator.is_empty());
        empty.map(|slot| slot.segment.length()).sum()
    }

    /// Removes an empty segment, preferably one with memory that becomes free at once.
    pub(super) fn take_out_an_empty_one(&mut self) -> Option<Arc<Segment>> {
        let empty = self.segments.iter().filter(|(_, slot)| slot.allocator.is_empty());
        let id = empty.min_by_key(|(_, slot)| slot.in_flight > 0).map(|(id, _)| *id)?;
        self.take_out(id)
    }

    pub(super) fn take_out(&mut self, id: u16) -> Option<Arc<Segment>> {
        let SegmentSlot { segment, in_flight, .. } = self.segments.remove(&id)?;
        self.segment_bytes_in_all -= segment.length();
        segment.retire();
        if in_flight > 0 {
            self.unread.push(Unread { segment: Arc::clone(&segment), in_flight });
        }
        Some(segment)
    }

    /// Removes one unread message with the descriptor of a retired segment. Returns the segment if
    /// it was the last message.
    pub(super) fn landed(&mut self, segment: &Arc<Segment>) -> Option<Arc<Segment>> {
        let at = self.unread.iter().position(|unread| Arc::ptr_eq(&unread.segment, segment))?;
        self.unread[at].in_flight -= 1;
        (self.unread[at].in_flight == 0).then(|| self.unread.swap_remove(at).segment)
    }
}
