//! The blocks of a pool in a host's memory, by location.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::fmt;
use std::mem::offset_of;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::block_location::{BlockLocation, charge, fault_of_headers};
use super::host::{HostError, HostMemory};
use super::layout::{BLOCK_OVERHEAD_BYTES, BlockHeader, MetaHeader};
use super::resolve_error::ResolveError;
use super::resolver::{Location, UnmappedBlocks};
use super::segment::{Kind, Segment, SegmentMemory};
use super::sync;
use crate::object::ObjectId;
use crate::sync::Mutex;

/// The blocks of a pool in a host's memory, by location.
pub(super) struct HostBlocks {
    memory: HostMemory,
    by_place: Mutex<HashMap<BlockLocation, Arc<Segment>>>,
    /// Size of the smallest payload refused by the host since the last release.
    refused_bytes: AtomicU64,
}

impl HostBlocks {
    pub(super) fn new(memory: HostMemory) -> Self {
        let refused_bytes = AtomicU64::new(u64::MAX);
        Self { memory, by_place: Mutex::default(), refused_bytes }
    }

    /// Allocates and lists a buffer for a payload; returns it with the offset of its block.
    pub(super) fn take(&self, size_bytes: u64) -> Result<(Arc<Segment>, usize), HostError> {
        let allocation = self.memory.allocate(size_bytes).inspect_err(|_| {
            self.refused_bytes.fetch_min(size_bytes, Ordering::Relaxed);
        })?;
        let header = allocation.header;
        let location @ BlockLocation { kind, id, .. } = location_of(&allocation.header);
        let mut by_place = self.by_place.lock();
        if by_place.contains_key(&location) {
            // Releasing it would release the other buffer.
            allocation.leave();
            return Err(HostError::InUse { header });
        }
        let segment = Arc::new(Segment::new(kind, id, SegmentMemory::Host(allocation)));
        by_place.insert(location, Arc::clone(&segment));
        Ok((segment, location.offset))
    }

    /// Removes a buffer from the list. It is released with the last reference to its segment.
    pub(super) fn give(&self, segment: &Segment, block: usize) {
        self.refused_bytes.store(u64::MAX, Ordering::Relaxed);
        let Segment { kind, id, .. } = *segment;
        let listed = self.by_place.lock().remove(&BlockLocation { kind, id, offset: block });
        drop(listed);
    }

    /// The largest payload that may fit, if the pool has `free_bytes` left.
    pub(super) fn largest_free(&self, free_bytes: u64) -> u64 {
        let refused = self.refused_bytes.load(Ordering::Relaxed).saturating_sub(1);
        free_bytes.saturating_sub(BLOCK_OVERHEAD_BYTES).min(refused)
    }

    /// The live block that `header` names. The returned reference keeps its buffer.
    fn find(&self, header: &MetaHeader) -> Result<Arc<Segment>, ResolveError> {
        let MetaHeader { size, hint: expected, managed, .. } = *header;
        if managed > 1 {
            return Err(ResolveError::BadManagedFlag { got: managed });
        }
        let listed = self.by_place.lock().get(&location_of(header)).map(Arc::clone);
        let segment = listed.ok_or(ResolveError::Stale { expected, found: 0 })?;
        let (headers, block) = segment.headers(0);
        let found = sync::seen(headers.atomic_u64(block));
        if found != expected || found == 0 {
            return Err(ResolveError::Stale { expected, found });
        }
        let found = headers.atomic_u64(block + offset_of!(BlockHeader, size));
        match found.load(Ordering::Relaxed) {
            found if found == size => Ok(segment),
            found => Err(ResolveError::WrongSize { expected: size, found }),
        }
    }

    /// Examines every allocated buffer.
    pub(super) fn survey(&self) -> HostSurvey {
        let by_place = self.by_place.lock();
        let mut survey = HostSurvey::default();
        for (location, segment) in by_place.iter() {
            let SegmentMemory::Host(host) = &segment.memory else { continue };
            let bytes = charge(host.size_bytes);
            survey.used_bytes += bytes;
            let faults = fault_of_headers(segment, location.offset, bytes);
            survey.faults.extend(faults.map(|why| format!("{location}: {why}")));
            survey.taken.push((*location, sync::seen(host.headers.atomic_u64(0))));
        }
        survey
    }
}

impl UnmappedBlocks for HostBlocks {
    fn locate(&self, header: &MetaHeader) -> Result<Location, ResolveError> {
        let segment = self.find(header)?;
        let (payload, _) = segment.payload(0);
        Ok(Location { address: payload.base().cast_const(), size: header.size as usize })
    }

    fn still_valid(&self, header: &MetaHeader) -> bool {
        self.find(header).is_ok_and(|segment| {
            let (headers, block) = segment.headers(0);
            sync::seen_again(headers.atomic_u64(block)) == header.hint
        })
    }

    fn object_id(&self, header: &MetaHeader) -> Result<ObjectId, ResolveError> {
        let segment = self.find(header)?;
        let (headers, block) = segment.headers(0);
        let id = block + offset_of!(BlockHeader, object_id);
        // SAFETY: the id of a published block is not written, and `segment` keeps it.
        let id = unsafe { headers.bytes(id, size_of::<ObjectId>()) };
        Ok(ObjectId::from_bytes(id.try_into().unwrap_or_default()))
    }

    fn read(&self, header: &MetaHeader) -> Result<Vec<u8>, ResolveError> {
        let segment = self.find(header)?;
        let (payload, offset) = segment.payload(0);
        // SAFETY: `segment` keeps the buffer, and a published payload is not written before the
        // buffer is released.
        Ok(unsafe { payload.bytes(offset, header.size as usize) }.to_vec())
    }

    fn header_at(
        &self,
        segment_id: u16,
        handle: i64,
        size: u64,
    ) -> Result<MetaHeader, ResolveError> {
        let header = MetaHeader::managed(segment_id, handle, size, 0);
        match self.find(&header) {
            Err(ResolveError::Stale { found, .. }) if found != 0 => {
                let header = MetaHeader { hint: found, ..header };
                self.find(&header).map(|_| header)
            }
            Err(error) => Err(error),
            Ok(_) => Err(ResolveError::Stale { expected: 0, found: 0 }),
        }
    }
}

impl fmt::Debug for HostBlocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostBlocks({:?})", self.memory)
    }
}

/// The buffers of a pool in a host's memory, with faults.
#[derive(Debug, Default)]
pub(super) struct HostSurvey {
    pub(super) faults: Vec<String>,
    /// The allocated places, each with the generation of its block; 0: not published.
    pub(super) taken: Vec<(BlockLocation, u64)>,
    pub(super) used_bytes: u64,
}

fn location_of(header: &MetaHeader) -> BlockLocation {
    let (kind, id) = match header.managed {
        1 => (Kind::Segment, header.segment_id),
        _ => (Kind::Region, header.region_id),
    };
    BlockLocation { kind, id, offset: header.handle.cast_unsigned() as usize }
}

#[cfg(test)]
mod tests {
    use super::super::host::{HostAllocator, HostBuffer};
    use super::super::host_arena::HostArena;
    use super::super::{Backing, Pool, PoolError, PoolOptions};
    use super::*;
    use crate::error::{Code, Coded as _};
    use std::time::Duration;

    const NO_WAIT: Duration = Duration::ZERO;

    fn pool(arena: &HostArena, memory_bytes: u64) -> (Pool, HostMemory) {
        let memory = arena.memory();
        let backing = Backing::Host(memory.clone());
        let options = PoolOptions { memory_bytes, backing, ..PoolOptions::default() };
        (Pool::new(options).unwrap(), memory)
    }

    fn published(pool: &Pool, bytes: &[u8]) -> super::super::Block {
        let mut reservation = pool.reserve(bytes.len() as u64).unwrap();
        reservation.fill(bytes);
        reservation.publish(ObjectId::from_bytes([1; 16]))
    }

    #[test]
    fn a_cell_is_the_header_of_the_host_with_our_size_and_generation() {
        for managed in [true, false] {
            let arena = HostArena::new(1 << 16, managed);
            let (pool, _) = pool(&arena, 1 << 20);
            for bytes in [&b""[..], b"seven b"] {
                let block = published(&pool, bytes);
                let header = block.meta_header();
                assert_eq!((header.size, header.hint), (bytes.len() as u64, block.generation()));
                assert_eq!(header.managed == 1, managed);
                let place = if managed { (4, 0) } else { (0, 2000) };
                assert_eq!((header.segment_id, header.region_id), place);
                let mappings = pool.mappings();
                assert_eq!(mappings.read(&header).as_deref(), Ok(bytes));
                drop(block);
                let stale = ResolveError::Stale { expected: header.hint, found: 0 };
                assert_eq!(mappings.read(&header), Err(stale));
                assert!(!mappings.still_valid(&header));
            }
            assert!(pool.segments().is_empty(), "nothing of ours is to be attached");
        }
    }

    #[test]
    fn a_buffer_is_released_when_its_block_or_reservation_goes_and_not_before() {
        let arena = HostArena::new(1 << 16, true);
        let (pool, memory) = pool(&arena, 1 << 20);
        let block = published(&pool, &[5; 100]);
        let reservation = pool.reserve(200).unwrap();
        assert_eq!((memory.buffers(), arena.taken_bytes()), (2, 128 + 256));
        drop(reservation);
        assert_eq!((memory.buffers(), arena.taken_bytes()), (1, 128));
        assert_eq!(pool.check().unwrap().used_bytes, block.charged_bytes());
        drop(block);
        assert_eq!((memory.buffers(), arena.taken_bytes(), pool.used_bytes()), (0, 0, 0));
    }

    #[test]
    fn an_allocator_that_refuses_means_no_room_now_and_the_limit_counts_as_well() {
        let arena = HostArena::new(1024, true);
        let (pool, memory) = pool(&arena, 4096);
        assert!(matches!(pool.reserve(5000), Err(PoolError::NeverFits { .. })));
        let held = pool.reserve(900).unwrap();
        let Err(PoolError::NoRoom { largest_free_bytes, .. }) = pool.reserve(512) else {
            panic!("the arena has no 512 bytes left");
        };
        assert_eq!(largest_free_bytes, 511, "what was just refused is not free");
        assert_eq!(memory.buffers(), 1);
        drop(held);
        assert!(pool.usage().largest_free_bytes > 511);
        drop(pool.reserve(512).unwrap());
        // The pool's own limit applies although the host has more.
        let arena = HostArena::new(1 << 20, true);
        let (pool, _) = self::pool(&arena, 4096);
        let held = pool.reserve(3000).unwrap();
        assert!(matches!(pool.reserve(2000), Err(PoolError::NoRoom { .. })));
        drop(held);
        assert!(pool.reserve(2000).is_ok());
    }

    #[test]
    fn a_buffer_that_is_misaligned_or_in_use_is_refused_and_released() {
        let mut arena = HostArena::new(1 << 16, true);
        arena.shift = 8;
        let (pool, memory) = pool(&arena, 1 << 20);
        let error = pool.reserve(100).unwrap_err();
        assert_eq!(error.code(), Code(4081));
        assert_eq!((memory.buffers(), arena.taken_bytes(), pool.used_bytes()), (0, 0, 0));

        /// Returns one location twice.
        struct Twice(HostArena);
        // SAFETY: its buffers are the arena's own; only their headers are wrong.
        unsafe impl HostAllocator for Twice {
            fn allocate(&self, size: usize, align: usize) -> Option<HostBuffer> {
                let buffer = self.0.allocate(size, align)?;
                let header = MetaHeader { handle: 4096, ..buffer.header };
                Some(HostBuffer { header, ..buffer })
            }
            fn release(&self, _: &MetaHeader) {
                panic!("what would be released is the other one");
            }
        }
        let memory = HostMemory::new(Twice(HostArena::new(1 << 16, true)));
        let backing = Backing::Host(memory.clone());
        let pool = Pool::new(PoolOptions { backing, ..PoolOptions::default() }).unwrap();
        let first = published(&pool, b"first");
        assert_eq!(pool.reserve(5).unwrap_err().code(), Code(4083));
        assert_eq!(pool.mappings().read(&first.meta_header()).as_deref(), Ok(&b"first"[..]));
        assert_eq!(pool.check().unwrap().used_bytes, first.charged_bytes());
        assert_eq!(memory.detach(NO_WAIT), 1, "the first one, and no other");
    }

    #[test]
    fn after_detaching_the_host_is_called_no_more() {
        let arena = HostArena::new(1 << 16, true);
        let (pool, memory) = pool(&arena, 1 << 20);
        let block = published(&pool, b"held");
        assert_eq!(memory.detach(NO_WAIT), 1);
        assert!(matches!(pool.reserve(5), Err(PoolError::NoRoom { .. })));
        drop(block);
        assert_eq!(arena.taken_bytes(), 64, "the host frees what is left itself");
        assert_eq!(HostArena::new(64, true).memory().detach(NO_WAIT), 0);
    }

    #[test]
    fn detaching_waits_for_buffers_that_are_released_meanwhile() {
        let arena = HostArena::new(1 << 16, true);
        let (pool, memory) = pool(&arena, 1 << 20);
        let block = published(&pool, b"held");
        let other = std::thread::spawn(move || drop((block, pool)));
        assert_eq!(memory.detach(Duration::from_secs(30)), 0);
        other.join().unwrap();
        assert_eq!(arena.taken_bytes(), 0);
    }
}
