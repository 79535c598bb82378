//! Memory for unnamed segments, in pieces as blocks need it: creating a segment takes no time, and
//! a service with few objects takes little memory.
//!
//! ```text
//!  segment  [ head | blocks and free places, with memory | tail: address range without memory ]
//!                                                         └─▶ piece: allocated, mapped, free
//!  reserve: no place         ──▶ the next piece, now
//!           little free left ──▶ a thread allocates the next piece
//! ```
//!
//! A piece is allocated by fallocate before a block can lie in it, so a system without memory is an
//! error here and never a later SIGBUS.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;

use super::layout::GRANULE_BYTES;
use super::pool_error::PoolError;
use super::pool_state::{AllocatedBlock, PoolInner, PoolState, SegmentSlot};
use super::segment::Segment;

/// Memory of each further piece.
const PIECE_BYTES: u64 = 16 << 20;
/// If less is free before the tail, the next piece is allocated. Clearing and mapping a page takes
/// several times as long as writing to it, so this much can be loaded at once without waiting.
const LOW_BYTES: u64 = 64 << 20;

const fn granules(bytes: u64) -> u32 {
    (bytes / GRANULE_BYTES) as u32
}

impl SegmentSlot {
    /// Whether little of it is free, and it has a tail.
    fn is_low(&self) -> bool {
        let (_, tail) = self.allocator.tail();
        tail > 0 && self.allocator.free_before_tail() < granules(LOW_BYTES)
    }
}

/// A part of a tail.
struct TailPart {
    segment: Arc<Segment>,
    start: u32,
    length: u32,
}

impl PoolState {
    /// The part of a tail that needs memory for a place of `needed` granules.
    fn tail_part(&self, needed: u32) -> Option<TailPart> {
        let usable = self.segments.values().filter(|slot| !slot.segment.is_condemned());
        usable.into_iter().find_map(|slot| {
            let (start, tail) = slot.allocator.tail();
            let lacking = needed.saturating_sub(slot.allocator.free_before_tail());
            let length = granules(PIECE_BYTES).max(lacking).min(tail);
            let segment = Arc::clone(&slot.segment);
            (tail > 0 && lacking <= tail).then_some(TailPart { segment, start, length })
        })
    }

    fn low_part(&self) -> Option<TailPart> {
        let low = self.segments.values().find(|slot| slot.is_low() && !slot.segment.is_condemned());
        low.map(|slot| {
            let (start, tail) = slot.allocator.tail();
            let length = granules(PIECE_BYTES).min(tail);
            TailPart { segment: Arc::clone(&slot.segment), start, length }
        })
    }
}

impl PoolInner {
    /// Allocates a place that has memory. If little is left, a thread allocates more.
    pub(super) fn take(self: &Arc<Self>, granules: u32) -> Option<AllocatedBlock> {
        let (taken, is_low) = {
            let mut state = self.state.lock();
            let taken = state.take(granules)?;
            let is_low = state.segments.get(&taken.0.id).is_some_and(SegmentSlot::is_low);
            (taken, is_low)
        };
        if is_low {
            self.commit_ahead();
        }
        Some(taken)
    }

    /// Allocates memory at the begin of a tail, for a place of `needed` granules. `false`: no
    /// segment has such a tail. The caller holds `growing`, so tails change only here.
    ///
    /// # Errors
    /// [`PoolError::Segment`] if the system has no memory.
    pub(super) fn commit(&self, needed: u32) -> Result<bool, PoolError> {
        let part = self.state.lock().tail_part(needed);
        part.map_or(Ok(false), |part| self.commit_part(part).map(|()| true))
    }

    fn commit_part(&self, part: TailPart) -> Result<(), PoolError> {
        let TailPart { segment, start, length } = part;
        // Without the lock of the state: it takes milliseconds.
        segment.commit(start, length).map_err(|error| {
            let bytes = u64::from(length) * GRANULE_BYTES;
            PoolError::Segment { bytes, error }
        })?;
        let mut state = self.state.lock();
        let slot = state.segments.get_mut(&segment.id);
        if let Some(slot) = slot.filter(|slot| Arc::ptr_eq(&slot.segment, &segment)) {
            slot.allocator.free_tail(length);
        }
        Ok(())
    }

    /// Allocates the next pieces on a thread, unless one is at it. If that fails, the next block
    /// that needs the memory reports the error.
    pub(super) fn commit_ahead(self: &Arc<Self>) {
        if self.committing.swap(true, Ordering::AcqRel) {
            return;
        }
        let pool = Arc::clone(self);
        let work = move || {
            while !pool.is_frozen() {
                let _growing = pool.growing.lock();
                let part = pool.state.lock().low_part();
                if part.is_none_or(|part| pool.commit_part(part).is_err()) {
                    break;
                }
            }
            pool.committing.store(false, Ordering::Release);
        };
        let started = thread::Builder::new().name("iovcache-memory".to_owned()).spawn(work);
        if started.is_err() {
            self.committing.store(false, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;
    use std::time::{Duration, Instant};

    use crate::object::ObjectId;
    use crate::shm::{Block, Pool, PoolOptions};

    const SEGMENT_BYTES: u64 = 256 << 20;

    fn pool(segments: u64) -> Pool {
        let (memory_bytes, segment_bytes) = (segments * SEGMENT_BYTES, SEGMENT_BYTES);
        Pool::new(PoolOptions { memory_bytes, segment_bytes, ..PoolOptions::default() }).unwrap()
    }

    fn block(pool: &Pool, bytes: usize, byte: u8) -> Block {
        let mut reservation = pool.reserve(bytes as u64).unwrap();
        reservation.payload_mut().fill(byte);
        reservation.publish(ObjectId::from_bytes([byte; 16]))
    }

    /// Memory of all segments.
    fn allocated_bytes(pool: &Pool) -> u64 {
        let bytes = |segment: &crate::shm::SharedSegment| {
            rustix::fs::fstat(segment.file().unwrap().as_fd()).unwrap().st_blocks as u64 * 512
        };
        pool.segments().iter().map(bytes).sum()
    }

    #[test]
    fn a_segment_takes_memory_as_its_blocks_need_it_and_offers_all_of_it() {
        let pool = pool(1);
        let first = block(&pool, 1000, 1);
        let usage = pool.usage();
        assert!(usage.largest_free_bytes > SEGMENT_BYTES - (1 << 20), "{usage:?}");
        assert_eq!(pool.segments()[0].size_bytes(), SEGMENT_BYTES);
        assert!(allocated_bytes(&pool) <= 128 << 20, "{}", allocated_bytes(&pool));
        // As large as the rest, so it needs all of the tail at once.
        let rest = block(&pool, usage.largest_free_bytes as usize, 2);
        assert_eq!(pool.segments().len(), 1);
        assert!(allocated_bytes(&pool) >= SEGMENT_BYTES - (1 << 20));
        assert!(first.is_intact() && rest.is_intact());
        pool.check().unwrap();
        drop((first, rest));
        pool.check().unwrap();
        assert_eq!(pool.used_bytes(), 0);
    }

    #[test]
    fn memory_is_allocated_ahead_of_the_blocks() {
        let pool = pool(1);
        let held = block(&pool, 1000, 1);
        let began = Instant::now();
        while allocated_bytes(&pool) < 64 << 20 {
            assert!(began.elapsed() < Duration::from_secs(20), "{}", allocated_bytes(&pool));
            std::thread::sleep(Duration::from_millis(2));
        }
        drop(held);
    }

    #[test]
    fn threads_that_fill_segments_at_once_get_places_with_memory() {
        let pool = pool(2);
        let threads: Vec<_> = (0..4_u8)
            .map(|thread| {
                let pool = pool.clone();
                std::thread::spawn(move || {
                    (0..300).map(|_| block(&pool, 300 << 10, thread)).collect::<Vec<_>>()
                })
            })
            .collect();
        let held: Vec<Block> =
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        assert!(held.iter().all(Block::is_intact));
        assert_eq!(pool.segments().len(), 2, "the first one was filled before the next was made");
        pool.check().unwrap();
        let used = held.len() as u64 * Pool::charge(300 << 10);
        assert_eq!(pool.used_bytes(), used);
        drop(held);
        pool.check().unwrap();
    }
}
