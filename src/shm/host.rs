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
//! MetaHeader.
#![allow(unsafe_code)]

use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use super::layout::{BLOCK_OVERHEAD_BYTES, GRANULE_BYTES, MetaHeader};
use super::mapping::Mapping;
use crate::error::coded;
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
    pub(super) fn allocate(&self, size_bytes: u64) -> Result<HostAllocation, HostError> {
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
    #[error("the host's allocator returned a place that is in use: {header:?}")]
    InUse {
        /// The header of both.
        header: MetaHeader,
    },
}

coded! { HostError {
    NoMemory => Unavailable 4080,
    Misaligned => FailedPrecondition 4081,
    BadManagedFlag => FailedPrecondition 4082,
    InUse => FailedPrecondition 4083,
} }

/// The headers of one block. In a segment they stand before the payload.
#[repr(C, align(64))]
struct Headers([AtomicU64; BLOCK_OVERHEAD_BYTES as usize / 8]);

/// One buffer of the host, and what stands before a payload in a segment. Dropped, the buffer is
/// released.
pub(super) struct HostAllocation {
    /// As the host gave it.
    pub(super) header: MetaHeader,
    /// What was asked for.
    pub(super) size_bytes: u64,
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
    pub(super) fn forget(mut self) {
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
