//! What a pool knows of its segments: which places are free, which segments are being announced, and
//! what may still be made.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::allocator::{AllocatedNode, Allocator};
use super::backing::Maker;
use super::host_blocks::HostBlocks;
use super::layout::{Epoch, GRANULE_BYTES, usable_bytes};
use super::segment::{Kind, Segment, SharedSegment};
use super::sync;
use crate::sync::Mutex;

/// Sizes of segments are multiples of this.
pub(super) const PAGE_BYTES: u64 = 4096;
/// A segment can have this much: its granules are counted in 32 bits.
pub(super) const MAX_SEGMENT_BYTES: u64 = (u32::MAX as u64 - 1) * GRANULE_BYTES;

pub(super) type SegmentListener = Arc<dyn Fn(&SharedSegment) + Send + Sync>;
/// Told of the id.
pub(super) type RetiredHook = Arc<dyn Fn(u16) + Send + Sync>;

pub(super) struct PoolInner {
    pub(super) memory_bytes: u64,
    pub(super) segment_bytes: u64,
    pub(super) maker: Maker,
    /// All is there from the start, and nothing is made or given back: a region, and segments that
    /// FairMQ knows by name. The most that one block can take.
    pub(super) fixed_bytes: Option<u64>,
    /// The blocks, where they lie in a host's memory instead of in segments.
    pub(super) host: Option<Arc<HostBlocks>>,
    pub(super) epoch: Epoch,
    pub(super) next_generation: AtomicU64,
    pub(super) used_bytes: AtomicU64,
    /// Held while a segment is made, which takes long; taking and giving places goes on.
    pub(super) growing: Mutex<()>,
    pub(super) state: Mutex<PoolState>,
    pub(super) listener: Mutex<Option<SegmentListener>>,
    pub(super) farewell: Mutex<Option<RetiredHook>>,
    /// All stays as it lies, for a successor.
    pub(super) left: AtomicBool,
}

pub(super) struct PoolState {
    pub(super) areas: BTreeMap<u16, SegmentSlot>,
    /// Bytes of all segments, and of those that are being made.
    pub(super) area_bytes: u64,
    /// Segments that were given back while a consumer had their descriptor unread: the kernel keeps
    /// their memory until it is read.
    pub(super) unread: Vec<Unread>,
    pub(super) next_id: u16,
}

pub(super) struct SegmentSlot {
    pub(super) segment: Arc<Segment>,
    pub(super) allocator: Allocator,
    /// Messages with its descriptor that no consumer has read yet.
    pub(super) in_flight: usize,
}

/// A segment that was given back, and the messages with its descriptor that are not read yet.
pub(super) struct Unread {
    pub(super) segment: Arc<Segment>,
    pub(super) in_flight: usize,
}

/// A segment whose descriptor is in a message that its receiver has not read yet.
///
/// As long as this lives the kernel keeps the segment's memory, whatever becomes of the segment, so
/// the pool counts it: an empty segment is reused instead of given back, and one that was given back
/// counts against the memory.
pub struct InFlight {
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
    /// The most that one block can take.
    pub(super) fn largest_payload_area(&self) -> u64 {
        if let Some(bytes) = self.fixed_bytes {
            return bytes;
        }
        let whole = (self.memory_bytes / PAGE_BYTES * PAGE_BYTES).min(MAX_SEGMENT_BYTES);
        usable_bytes(whole)
    }

    /// The next generation; 0 stands for none.
    pub(super) fn generation(&self) -> u64 {
        loop {
            let generation = self.next_generation.fetch_add(1, Ordering::Relaxed);
            if generation != 0 {
                return generation;
            }
        }
    }

    /// Whether all stays as it lies.
    pub(super) fn is_frozen(&self) -> bool {
        self.left.load(Ordering::Acquire)
    }

    pub(super) fn notify_retired(&self, segment: &Segment) {
        let farewell = self.farewell.lock().clone();
        if let (Some(farewell), Kind::Segment) = (farewell, segment.kind) {
            farewell(segment.id);
        }
    }

    pub(super) fn give_to_host(&self, segment: &Segment, block: usize, bytes: u64) {
        if let Some(host) = &self.host {
            host.give(segment, block);
            self.used_bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
    }

    pub(super) fn give(&self, segment: &Segment, place: AllocatedNode, bytes: u64) {
        if self.is_frozen() {
            return;
        }
        self.used_bytes.fetch_sub(bytes, Ordering::Relaxed);
        let retired = {
            let mut state = self.state.lock();
            let Some(slot) = state.areas.get_mut(&segment.id) else { return };
            slot.allocator.give(place);
            self.take_out_if_useless(&mut state, segment)
        };
        if let Some(segment) = &retired {
            self.notify_retired(segment);
        }
        // Unmapping takes its time: not under the lock.
        drop(retired);
    }

    /// Takes out a segment that is not worth keeping empty. One empty segment is kept, so that an
    /// object that comes and goes does not make and unmake one each time; but none that was made for
    /// a single large object. A segment whose descriptor is unread is kept too: its memory would not
    /// become free.
    pub(super) fn take_out_if_useless(
        &self,
        state: &mut PoolState,
        segment: &Segment,
    ) -> Option<Arc<Segment>> {
        let slot =
            state.areas.get(&segment.id).filter(|slot| std::ptr::eq(&*slot.segment, segment))?;
        let oversized = segment.mapping().length() as u64 > self.segment_bytes;
        let empty = |slot: &SegmentSlot| slot.allocator.is_empty();
        let useless = empty(slot)
            && slot.in_flight == 0
            && self.fixed_bytes.is_none()
            && (oversized || state.areas.values().filter(|slot| empty(slot)).count() > 1);
        if useless { state.take_out(segment.id) } else { None }
    }

    /// A message with the descriptor of this segment was read, or its socket is gone.
    pub(super) fn landed(&self, segment: &Arc<Segment>) {
        let (retired, unread) = {
            let mut state = self.state.lock();
            let listed = state.areas.get_mut(&segment.id);
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
        // Unmapping takes its time: not under the lock.
        drop((retired, unread));
    }

    /// What new segments may take.
    pub(super) fn budget(&self, state: &PoolState) -> u64 {
        let unread = state.unread.iter().map(|unread| unread.segment.length());
        let taken = state.area_bytes + self.counted_bytes(unread);
        self.memory_bytes.saturating_sub(taken)
    }

    /// The same if all empty segments were given back.
    pub(super) fn budget_without_empty(&self, state: &PoolState) -> u64 {
        let in_flight = state.areas.values().filter(|slot| {
            slot.in_flight > 0 && slot.allocator.is_empty() && self.fixed_bytes.is_none()
        });
        let unread = state.unread.iter().map(|unread| unread.segment.length());
        let unread = unread.chain(in_flight.map(|slot| slot.segment.length()));
        let taken = state.area_bytes - state.empty_bytes() + self.counted_bytes(unread);
        self.memory_bytes.saturating_sub(taken)
    }

    /// The part of the memory of unread segments that counts against the pool. The memory of one
    /// segment, the largest of them, does not count: a consumer that stops reading costs nothing.
    pub(super) fn counted_bytes(&self, unread: impl Iterator<Item = u64>) -> u64 {
        let (sum, largest) =
            unread.fold((0, 0), |(sum, largest): (u64, u64), one| (sum + one, largest.max(one)));
        sum.saturating_sub(largest.max(self.segment_bytes))
    }
}

/// A place that was found: in what, where its block begins, and what gives it back.
pub(super) type AllocatedBlock = (Arc<Segment>, usize, AllocatedNode);

impl PoolState {
    /// Lists an area, all of it free; the bytes that blocks can take there.
    pub(super) fn insert(&mut self, segment: Arc<Segment>) -> u64 {
        let granules = segment.granules();
        let allocator = Allocator::new(granules);
        self.areas.insert(segment.id, SegmentSlot { segment, allocator, in_flight: 0 });
        u64::from(granules) * GRANULE_BYTES
    }

    pub(super) fn take(&mut self, granules: u32) -> Option<AllocatedBlock> {
        self.areas.values_mut().find_map(|slot| {
            let (start, place) = slot.allocator.take(granules)?;
            let block = slot.segment.block_at(start);
            // What stood here before may look like a generation. Under the lock, so that a place
            // that is taken has none until its block is published.
            sync::claim(slot.segment.mapping().atomic_u64(block));
            Some((Arc::clone(&slot.segment), block, place))
        })
    }

    /// Ids ascend, so that a consumer does not soon see another segment under one that it knows.
    pub(super) fn unused_id(&mut self) -> Option<u16> {
        (0..=u16::MAX).find_map(|_| {
            let id = self.next_id;
            self.next_id = id.wrapping_add(1);
            (!self.areas.contains_key(&id)).then_some(id)
        })
    }

    /// What could be given back.
    pub(super) fn empty_bytes(&self) -> u64 {
        let empty = self.areas.values().filter(|slot| slot.allocator.is_empty());
        empty.map(|slot| slot.segment.length()).sum()
    }

    /// Takes out an empty segment: one whose memory becomes free at once, if there is any.
    pub(super) fn take_out_an_empty_one(&mut self) -> Option<Arc<Segment>> {
        let empty = self.areas.iter().filter(|(_, slot)| slot.allocator.is_empty());
        let id = empty.min_by_key(|(_, slot)| slot.in_flight > 0).map(|(id, _)| *id)?;
        self.take_out(id)
    }

    pub(super) fn take_out(&mut self, id: u16) -> Option<Arc<Segment>> {
        let SegmentSlot { segment, in_flight, .. } = self.areas.remove(&id)?;
        self.area_bytes -= segment.length();
        segment.retire();
        if in_flight > 0 {
            self.unread.push(Unread { segment: Arc::clone(&segment), in_flight });
        }
        Some(segment)
    }

    /// One message less with the descriptor of a segment that was given back. Returns the segment if
    /// it was the last.
    pub(super) fn landed(&mut self, segment: &Arc<Segment>) -> Option<Arc<Segment>> {
        let at = self.unread.iter().position(|unread| Arc::ptr_eq(&unread.segment, segment))?;
        self.unread[at].in_flight -= 1;
        (self.unread[at].in_flight == 0).then(|| self.unread.swap_remove(at).segment)
    }
}
