//! Memory of a host: every payload lies in a buffer that the surrounding program allocates for it,
//! such as a FairMQ message that is never sent.
//!
//! ```text
//!  Pool ──allocate(size, 64)──▶ host ──▶ payload + MetaHeader     the host's own memory
//!    │                                      │
//!    └─ headers of the block (64 B)         └─ cell: the host's MetaHeader, hint = our generation
//!       in private memory
//! ```
//!
//! No segment is made, named, registered or mapped here. Consumers find a payload by the host's
//! MetaHeader. Within this process [`HostBlocks::locate`] finds it, checked like a block in a
//! segment.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::fmt;
use std::mem::offset_of;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::block::{BlockLocation, charge, fault_of_headers};
use super::layout::{BLOCK_OVERHEAD_BYTES, BlockHeader, GRANULE_BYTES, MetaHeader};
use super::mapping::Mapping;
use super::resolver::{Location, ResolveError};
use super::segment::{Kind, Segment, SegmentMemory};
use super::sync;
use crate::error::{Code, Coded, ErrorKind};
use crate::object::ObjectId;
use crate::sync::{Condvar, Mutex, RwLock};

/// What payloads are aligned to, as in segments.
const ALIGNMENT: usize = GRANULE_BYTES as usize;

/// Allocates payloads in memory of the program around the pool.
///
/// Both functions are called from any thread, also from several at a time. They must not call into
/// the pool or its cache.
///
/// # Safety
/// A buffer that `allocate` returns must be readable and writable, and belong to nobody else, until
/// `release` is called with its header.
pub unsafe trait HostAllocator: Send + Sync {
    /// A buffer of at least `size` bytes at a multiple of `align`. `None`: there is no memory now.
    fn allocate(&self, size: usize, align: usize) -> Option<HostBuffer>;

    /// Takes back the buffer that `allocate` returned together with `header`.
    fn release(&self, header: &MetaHeader);
}

/// A buffer in the host's memory.
#[derive(Debug, Clone, Copy)]
pub struct HostBuffer {
    /// The first byte.
    pub data: NonNull<u8>,
    /// How other processes find it. Size and hint are the host's own.
    pub header: MetaHeader,
}

/// The memory of a host, as a backing of a [`Pool`](super::Pool). Clones are the same memory.
#[derive(Clone)]
pub struct HostMemory(Arc<HostState>);

struct HostState {
    allocator: Box<dyn HostAllocator>,
    /// Whether the allocator may be called. Locked for reading during each call.
    attached: RwLock<bool>,
    /// Buffers that were allocated and not released.
    buffers: Mutex<usize>,
    released: Condvar,
}

impl HostMemory {
    /// The memory that `allocator` allocates in.
    pub fn new(allocator: impl HostAllocator + 'static) -> Self {
        Self(Arc::new(HostState {
            allocator: Box::new(allocator),
            attached: RwLock::new(true),
            buffers: Mutex::default(),
            released: Condvar::new(),
        }))
    }

    /// Buffers that were allocated and not released yet.
    pub fn buffers(&self) -> usize {
        *self.0.buffers.lock()
    }

    /// Waits until every buffer is released, at most `limit`, and calls the allocator no more.
    /// Returns how many buffers are left: those the host has to free itself, and something may
    /// still read them.
    pub fn detach(&self, limit: Duration) -> usize {
        let buffers = self.0.buffers.lock();
        let left = *self.0.released.wait_timeout_while(buffers, limit, |buffers| *buffers > 0);
        // Waits for the calls under way.
        *self.0.attached.write() = false;
        left
    }

    /// Calls the allocator, unless it is detached.
    fn call<T>(&self, work: impl FnOnce(&dyn HostAllocator) -> T) -> Option<T> {
        let attached = self.0.attached.read();
        attached.then(|| work(&*self.0.allocator))
    }

    /// Asks the host for a payload.
    fn allocate(&self, size_bytes: u64) -> Result<HostAllocation, HostError> {
        let size = usize::try_from(size_bytes).map_err(|_| HostError::NoMemory)?;
        // An object without bytes has an address of its own too.
        let length = size.max(1);
        *self.0.buffers.lock() += 1;
        let buffer = self.call(|allocator| allocator.allocate(length, ALIGNMENT)).flatten();
        let Some(HostBuffer { data, header }) = buffer else {
            self.one_less();
            return Err(HostError::NoMemory);
        };
        // SAFETY: the allocator's contract: the buffer is ours until it is released, which only
        // dropping the allocation does.
        let payload = unsafe { Mapping::of_range(data, length) };
        let allocation = HostAllocation::new(header, size_bytes, payload, self.clone());
        if !data.addr().get().is_multiple_of(ALIGNMENT) {
            return Err(HostError::Misaligned { address: data.addr().get() });
        }
        if header.managed > 1 {
            return Err(HostError::BadManagedFlag { got: header.managed });
        }
        Ok(allocation)
    }

    fn release(&self, header: &MetaHeader) {
        if self.call(|allocator| allocator.release(header)).is_some() {
            self.one_less();
        }
    }

    fn one_less(&self) {
        *self.0.buffers.lock() -= 1;
        self.0.released.notify_all();
    }
}

impl PartialEq for HostMemory {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for HostMemory {}

impl fmt::Debug for HostMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostMemory({} buffers)", self.buffers())
    }
}

/// Why the host's memory cannot be used for a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HostError {
    /// The allocator returned nothing.
    #[error("the host has no memory")]
    NoMemory,
    /// The allocator ignored the alignment.
    #[error(
        "the host's allocator returned address {address:#x}, expected a multiple of {ALIGNMENT}: \
         pass the alignment on to the transport"
    )]
    Misaligned {
        /// What it returned.
        address: usize,
    },
    /// The header is no MetaHeader.
    #[error("the host's allocator returned a MetaHeader with managed {got}, expected 0 or 1")]
    BadManagedFlag {
        /// What it holds.
        got: u8,
    },
    /// Two live buffers with one place.
    #[error("the host's allocator returned {kind} {id}, handle {handle}, which is in use")]
    InUse {
        /// Segment or region.
        kind: Kind,
        /// Its number.
        id: u16,
        /// The place in it.
        handle: i64,
    },
}

impl Coded for HostError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NoMemory => ErrorKind::Unavailable,
            Self::Misaligned { .. } | Self::BadManagedFlag { .. } | Self::InUse { .. } => {
                ErrorKind::FailedPrecondition
            }
        }
    }

    fn code(&self) -> Code {
        Code(match self {
            Self::NoMemory => 4080,
            Self::Misaligned { .. } => 4081,
            Self::BadManagedFlag { .. } => 4082,
            Self::InUse { .. } => 4083,
        })
    }
}

/// The headers of one block. In a segment they stand before the payload.
#[repr(C, align(64))]
struct Headers([AtomicU64; BLOCK_OVERHEAD_BYTES as usize / 8]);

/// One buffer of the host, and what stands before a payload in a segment. Dropped, the buffer is
/// released.
pub(super) struct HostAllocation {
    /// As the host gave it.
    pub(super) header: MetaHeader,
    /// What was asked for.
    size_bytes: u64,
    pub(super) payload: Arc<Mapping>,
    pub(super) headers: Mapping,
    /// What `headers` maps.
    _headers: Box<Headers>,
    memory: HostMemory,
    /// Released when dropped.
    owned: bool,
}

impl HostAllocation {
    fn new(header: MetaHeader, size_bytes: u64, payload: Mapping, memory: HostMemory) -> Self {
        const { assert!(size_of::<Headers>() == BLOCK_OVERHEAD_BYTES as usize) };
        let mut headers = Box::new(Headers([const { AtomicU64::new(0) }; _]));
        let base = NonNull::from(&mut *headers).cast();
        // SAFETY: the box lives as long as this, and is accessed through the mapping alone.
        let mapped = unsafe { Mapping::of_range(base, size_of::<Headers>()) };
        let payload = Arc::new(payload);
        let (headers, _headers, owned) = (mapped, headers, true);
        Self { header, size_bytes, payload, headers, _headers, memory, owned }
    }

    /// Never releases the buffer.
    fn forget(mut self) {
        self.owned = false;
        self.memory.one_less();
    }
}

impl Drop for HostAllocation {
    fn drop(&mut self) {
        if self.owned {
            self.memory.release(&self.header);
        }
    }
}

/// The blocks of a pool in a host's memory, by their place.
pub(super) struct HostBlocks {
    memory: HostMemory,
    by_place: Mutex<HashMap<BlockLocation, Arc<Segment>>>,
    /// The smallest payload that the host had no memory for since it last took one back.
    refused_bytes: AtomicU64,
}

impl HostBlocks {
    pub(super) fn new(memory: HostMemory) -> Self {
        let refused_bytes = AtomicU64::new(u64::MAX);
        Self { memory, by_place: Mutex::default(), refused_bytes }
    }

    /// A buffer for a payload, listed, and where its block begins.
    pub(super) fn take(&self, size_bytes: u64) -> Result<(Arc<Segment>, usize), HostError> {
        let allocation = self.memory.allocate(size_bytes).inspect_err(|_| {
            self.refused_bytes.fetch_min(size_bytes, Ordering::Relaxed);
        })?;
        let handle = allocation.header.handle;
        let location @ BlockLocation { kind, id, .. } = location_of(&allocation.header);
        let mut by_place = self.by_place.lock();
        if by_place.contains_key(&location) {
            // Releasing it would release the other one.
            allocation.forget();
            return Err(HostError::InUse { kind, id, handle });
        }
        let segment = Arc::new(Segment { kind, id, memory: SegmentMemory::Host(allocation) });
        by_place.insert(location, Arc::clone(&segment));
        Ok((segment, location.offset))
    }

    /// Takes a buffer off the list. It is released with the last reference to its segment.
    pub(super) fn give(&self, segment: &Segment, block: usize) {
        self.refused_bytes.store(u64::MAX, Ordering::Relaxed);
        let Segment { kind, id, .. } = *segment;
        let listed = self.by_place.lock().remove(&BlockLocation { kind, id, offset: block });
        drop(listed);
    }

    /// The largest payload that may fit, of `free_bytes` that the pool has left.
    pub(super) fn largest_free(&self, free_bytes: u64) -> u64 {
        let refused = self.refused_bytes.load(Ordering::Relaxed).saturating_sub(1);
        free_bytes.saturating_sub(BLOCK_OVERHEAD_BYTES).min(refused)
    }

    /// The live block that `header` names. What this returns keeps its buffer.
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

    /// Where the payload of the live block lies that `header` names.
    pub(super) fn locate(&self, header: &MetaHeader) -> Result<Location, ResolveError> {
        let segment = self.find(header)?;
        let (payload, _) = segment.payload(0);
        Ok(Location { address: payload.base().cast_const(), size: header.size as usize })
    }

    /// Whether what was read of `header` until now was still the object.
    pub(super) fn still_valid(&self, header: &MetaHeader) -> bool {
        self.find(header).is_ok_and(|segment| {
            let (headers, block) = segment.headers(0);
            sync::seen_again(headers.atomic_u64(block)) == header.hint
        })
    }

    /// The version that `header` names.
    pub(super) fn object_id(&self, header: &MetaHeader) -> Result<ObjectId, ResolveError> {
        let segment = self.find(header)?;
        let (headers, block) = segment.headers(0);
        let id = block + offset_of!(BlockHeader, object_id);
        // SAFETY: the id of a published block is written by nobody, and `segment` keeps it.
        let id = unsafe { headers.bytes(id, size_of::<ObjectId>()) };
        Ok(ObjectId::from_bytes(id.try_into().unwrap_or_default()))
    }

    /// A copy of the payload of the live block that `header` names.
    pub(super) fn read(&self, header: &MetaHeader) -> Result<Vec<u8>, ResolveError> {
        let segment = self.find(header)?;
        let (payload, offset) = segment.payload(0);
        // SAFETY: `segment` keeps the buffer, and a published payload is written by nobody before the
        // buffer is released.
        Ok(unsafe { payload.bytes(offset, header.size as usize) }.to_vec())
    }

    /// The MetaHeader of the live block at a place of a managed segment.
    pub(super) fn header_at(
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

    /// Looks at every buffer that is taken.
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

impl fmt::Debug for HostBlocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostBlocks({:?})", self.memory)
    }
}

/// The buffers of a pool in a host's memory, as of one moment.
#[derive(Debug, Default)]
pub(super) struct HostSurvey {
    pub(super) faults: Vec<String>,
    /// Those that are taken, each with the generation of its block; 0: not published.
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
    use super::super::host_arena::HostArena;
    use super::super::{Backing, Pool, PoolError, PoolOptions};
    use super::*;

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
        // The pool's own limit, where the host would give more.
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

        /// Gives one place twice.
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
