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
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use super::area::{Area, Kind, Memory};
use super::block::{Spot, charge, fault_of_headers};
use super::layout::{BLOCK_OVERHEAD_BYTES, BlockHeader, GRANULE_BYTES, MetaHeader};
use super::mapping::Mapping;
use super::resolver::{Location, ResolveError};
use super::sync;
use crate::error::{Code, Coded, ErrorKind};
use crate::object::ObjectId;

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
        *lock(&self.0.buffers)
    }

    /// Waits until every buffer is released, at most `limit`, and calls the allocator no more.
    /// Returns how many buffers are left: those the host has to free itself, and something may
    /// still read them.
    pub fn detach(&self, limit: Duration) -> usize {
        let buffers = lock(&self.0.buffers);
        let waited = self.0.released.wait_timeout_while(buffers, limit, |buffers| *buffers > 0);
        let (buffers, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let left = *buffers;
        drop(buffers);
        // Waits for the calls under way.
        *self.0.attached.write().unwrap_or_else(PoisonError::into_inner) = false;
        left
    }

    /// Calls the allocator, unless it is detached.
    fn call<T>(&self, work: impl FnOnce(&dyn HostAllocator) -> T) -> Option<T> {
        let attached = self.0.attached.read().unwrap_or_else(PoisonError::into_inner);
        attached.then(|| work(&*self.0.allocator))
    }

    /// Asks the host for a payload.
    fn allocate(&self, size_bytes: u64) -> Result<HostAllocation, HostError> {
        let size = usize::try_from(size_bytes).map_err(|_| HostError::NoMemory)?;
        // An object without bytes has an address of its own too.
        let length = size.max(1);
        *lock(&self.0.buffers) += 1;
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
        *lock(&self.0.buffers) -= 1;
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
            Self::NoMemory => 4060,
            Self::Misaligned { .. } => 4061,
            Self::BadManagedFlag { .. } => 4062,
            Self::InUse { .. } => 4063,
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
}

impl HostAllocation {
    fn new(header: MetaHeader, size_bytes: u64, payload: Mapping, memory: HostMemory) -> Self {
        const { assert!(size_of::<Headers>() == BLOCK_OVERHEAD_BYTES as usize) };
        let mut headers = Box::new(Headers([const { AtomicU64::new(0) }; _]));
        let base = NonNull::from(&mut *headers).cast();
        // SAFETY: the box lives as long as this, and is accessed through the mapping alone.
        let mapped = unsafe { Mapping::of_range(base, size_of::<Headers>()) };
        let payload = Arc::new(payload);
        Self { header, size_bytes, payload, headers: mapped, _headers: headers, memory }
    }

    fn kind(&self) -> (Kind, u16) {
        match self.header.managed {
            1 => (Kind::Segment, self.header.segment_id),
            _ => (Kind::Region, self.header.region_id),
        }
    }
}

impl Drop for HostAllocation {
    fn drop(&mut self) {
        self.memory.release(&self.header);
    }
}

/// The blocks of a pool in a host's memory, by their place.
pub(super) struct HostBlocks {
    memory: HostMemory,
    by_place: Mutex<HashMap<Spot, Arc<Area>>>,
    /// The smallest payload that the host had no memory for since it last took one back.
    refused_bytes: AtomicU64,
}

impl HostBlocks {
    pub(super) fn new(memory: HostMemory) -> Self {
        let refused_bytes = AtomicU64::new(u64::MAX);
        Self { memory, by_place: Mutex::default(), refused_bytes }
    }

    /// A buffer for a payload, listed, and where its block begins.
    pub(super) fn take(&self, size_bytes: u64) -> Result<(Arc<Area>, usize), HostError> {
        let allocation = self.memory.allocate(size_bytes).inspect_err(|_| {
            self.refused_bytes.fetch_min(size_bytes, Ordering::Relaxed);
        })?;
        let ((kind, id), handle) = (allocation.kind(), allocation.header.handle);
        let spot = spot_of(&allocation.header);
        let area = Arc::new(Area { kind, id, memory: Memory::Host(allocation) });
        let mut by_place = lock(&self.by_place);
        if by_place.contains_key(&spot) {
            drop(by_place);
            return Err(HostError::InUse { kind, id, handle });
        }
        by_place.insert(spot, Arc::clone(&area));
        Ok((area, spot.offset))
    }

    /// Takes a buffer off the list. It is released with the last reference to its area.
    pub(super) fn give(&self, area: &Area, block: usize) {
        self.refused_bytes.store(u64::MAX, Ordering::Relaxed);
        let Area { kind, id, .. } = *area;
        let listed = lock(&self.by_place).remove(&Spot { kind, id, offset: block });
        drop(listed);
    }

    /// The largest payload that may fit, of `free_bytes` that the pool has left.
    pub(super) fn largest_free(&self, free_bytes: u64) -> u64 {
        let refused = self.refused_bytes.load(Ordering::Relaxed).saturating_sub(1);
        free_bytes.saturating_sub(BLOCK_OVERHEAD_BYTES).min(refused)
    }

    /// The live block that `header` names. What this returns keeps its buffer.
    fn find(&self, header: &MetaHeader) -> Result<Arc<Area>, ResolveError> {
        let MetaHeader { size, hint: expected, managed, .. } = *header;
        if managed > 1 {
            return Err(ResolveError::Unmanageable { got: managed });
        }
        let listed = lock(&self.by_place).get(&spot_of(header)).map(Arc::clone);
        let area = listed.ok_or(ResolveError::Stale { expected, found: 0 })?;
        let (headers, block) = area.headers(0);
        let found = sync::seen(headers.atomic_u64(block));
        if found != expected || found == 0 {
            return Err(ResolveError::Stale { expected, found });
        }
        let found = headers.atomic_u64(block + offset_of!(BlockHeader, size));
        match found.load(Ordering::Relaxed) {
            found if found == size => Ok(area),
            found => Err(ResolveError::WrongSize { expected: size, found }),
        }
    }

    /// Where the payload of the live block lies that `header` names.
    pub(super) fn locate(&self, header: &MetaHeader) -> Result<Location, ResolveError> {
        let area = self.find(header)?;
        let (payload, _) = area.payload(0);
        Ok(Location { address: payload.base().cast_const(), size: header.size as usize })
    }

    /// Whether what was read of `header` until now was still the object.
    pub(super) fn still_valid(&self, header: &MetaHeader) -> bool {
        self.find(header).is_ok_and(|area| {
            let (headers, block) = area.headers(0);
            sync::seen_again(headers.atomic_u64(block)) == header.hint
        })
    }

    /// The version that `header` names.
    pub(super) fn object_id(&self, header: &MetaHeader) -> Result<ObjectId, ResolveError> {
        let area = self.find(header)?;
        let (headers, block) = area.headers(0);
        let id = block + offset_of!(BlockHeader, object_id);
        // SAFETY: the id of a published block is written by nobody, and `area` keeps it.
        let id = unsafe { headers.bytes(id, size_of::<ObjectId>()) };
        Ok(ObjectId::from_bytes(id.try_into().unwrap_or_default()))
    }

    /// A copy of the payload of the live block that `header` names.
    pub(super) fn read(&self, header: &MetaHeader) -> Result<Vec<u8>, ResolveError> {
        let area = self.find(header)?;
        let (payload, offset) = area.payload(0);
        // SAFETY: `area` keeps the buffer, and a published payload is written by nobody before the
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
        let by_place = lock(&self.by_place);
        let mut survey = HostSurvey::default();
        for (spot, area) in by_place.iter() {
            let Memory::Host(host) = &area.memory else { continue };
            let bytes = charge(host.size_bytes);
            survey.used_bytes += bytes;
            let faults = fault_of_headers(area, spot.offset, bytes);
            survey.faults.extend(faults.map(|why| format!("{spot}: {why}")));
            survey.taken.push((*spot, sync::seen(host.headers.atomic_u64(0))));
        }
        survey
    }
}

/// The buffers of a pool in a host's memory, as of one moment.
#[derive(Debug, Default)]
pub(super) struct HostSurvey {
    pub(super) faults: Vec<String>,
    /// Those that are taken, each with the generation of its block; 0: not published.
    pub(super) taken: Vec<(Spot, u64)>,
    pub(super) used_bytes: u64,
}

fn spot_of(header: &MetaHeader) -> Spot {
    let (kind, id) = match header.managed {
        1 => (Kind::Segment, header.segment_id),
        _ => (Kind::Region, header.region_id),
    };
    Spot { kind, id, offset: header.handle.cast_unsigned() as usize }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
