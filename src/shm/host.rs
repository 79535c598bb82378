//! Memory of a host: every payload is in a buffer allocated by the surrounding program, such as a
//! FairMQ message that is never sent.
//!
//! ```text
//!  Pool ──allocate(size, 64)──▶ host ──▶ payload + MetaHeader     the host's own memory
//!    │                                      │
//!    └─ headers of the block (64 B)         └─ cell: the host's MetaHeader, hint = our generation
//!       in private memory
//! ```
//!
//! No segment is created, named, registered or mapped here. Consumers find a payload by the host's
//! MetaHeader.
#![allow(unsafe_code)]

use std::fmt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use super::layout::{BLOCK_OVERHEAD_BYTES, GRANULE_BYTES, MetaHeader};
use super::mapping::Mapping;
use crate::error::coded;
use crate::sync::{Condvar, Mutex, RwLock};

/// Alignment of payloads, as in segments.
const ALIGNMENT: usize = GRANULE_BYTES as usize;

/// Allocates payloads in memory of the surrounding program.
///
/// Both functions are called from any thread, also concurrently. They must not call into the pool
/// or its cache.
///
/// # Safety
/// A buffer that `allocate` returns must be readable and writable, and must not be used otherwise,
/// until `release` is called with its header.
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
    /// The location for other processes. Size and hint are the host's own.
    pub header: MetaHeader,
}

/// The memory of a host, as a backing of a [`Pool`](super::Pool). Clones are the same memory.
#[derive(Clone)]
pub struct HostMemory(Arc<HostState>);

/// The allocator of a host program, and the buffers that it gave out.
struct HostState {
    allocator: Box<dyn HostAllocator>,
    /// Whether the allocator may be called. Locked for reading during each call.
    attached: RwLock<bool>,
    /// Number of buffers allocated and not released.
    buffers: Mutex<usize>,
    released: Condvar,
}

impl HostMemory {
    /// Wraps an allocator.
    pub fn new(allocator: impl HostAllocator + 'static) -> Self {
        Self(Arc::new(HostState {
            allocator: Box::new(allocator),
            attached: RwLock::new(true),
            buffers: Mutex::default(),
            released: Condvar::new(),
        }))
    }

    /// Number of buffers allocated and not released yet.
    pub fn buffers(&self) -> usize {
        *self.0.buffers.lock()
    }

    /// Waits until every buffer is released, at most `limit`, and stops calling the allocator.
    /// Returns the number of buffers left: the host must free these itself, while they may still be
    /// in use.
    pub fn detach(&self, limit: Duration) -> usize {
        let buffers = self.0.buffers.lock();
        let left = *self.0.released.wait_timeout_while(buffers, limit, |buffers| *buffers > 0);
        // Waits for the calls in progress.
        *self.0.attached.write() = false;
        left
    }

    /// Calls the allocator, unless it was detached.
    fn call<T>(&self, work: impl FnOnce(&dyn HostAllocator) -> T) -> Option<T> {
        let attached = self.0.attached.read();
        attached.then(|| work(&*self.0.allocator))
    }

    /// Allocates a payload in the host's memory.
    pub(super) fn allocate(&self, size_bytes: u64) -> Result<HostAllocation, HostError> {
        let size = usize::try_from(size_bytes).map_err(|_| HostError::NoMemory)?;
        // An empty object needs an address of its own, too.
        let length = size.max(1);
        *self.0.buffers.lock() += 1;
        let buffer = self.call(|allocator| allocator.allocate(length, ALIGNMENT)).flatten();
        let Some(HostBuffer { data, header }) = buffer else {
            self.one_less();
            return Err(HostError::NoMemory);
        };
        // SAFETY: the allocator's contract: the buffer is exclusive until it is released, which
        // only dropping the allocation does.
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
        /// The address it returned.
        address: usize,
    },
    /// The header is not a valid MetaHeader.
    #[error("the host's allocator returned a MetaHeader with managed {got}, expected 0 or 1")]
    BadManagedFlag {
        /// Its value of `managed`.
        got: u8,
    },
    /// Two live buffers have the same location.
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

/// The headers of buffers that stay allocated as long as the process lives. The host's own object
/// of a buffer, to which `hint` may point, is no leak: a leak checker finds it here.
static LEFT: LazyLock<Mutex<Vec<MetaHeader>>> = LazyLock::new(Mutex::default);

/// The headers of one block, which in a segment precede the payload.
#[repr(C, align(64))]
struct Headers([AtomicU64; BLOCK_OVERHEAD_BYTES as usize / 8]);

/// One buffer of the host, with the headers that precede the payload in a segment. Dropping it
/// releases the buffer.
pub(super) struct HostAllocation {
    /// The header from the host.
    pub(super) header: MetaHeader,
    /// The requested size.
    pub(super) size_bytes: u64,
    pub(super) payload: Arc<Mapping>,
    pub(super) headers: Mapping,
    /// The memory that `headers` maps.
    _headers: Box<Headers>,
    memory: HostMemory,
    /// Whether it is released on drop.
    owned: AtomicBool,
}

impl HostAllocation {
    fn new(header: MetaHeader, size_bytes: u64, payload: Mapping, memory: HostMemory) -> Self {
        const { assert!(size_of::<Headers>() == BLOCK_OVERHEAD_BYTES as usize) };
        let mut headers = Box::new(Headers([const { AtomicU64::new(0) }; _]));
        let base = NonNull::from(&mut *headers).cast();
        // SAFETY: the box lives as long as this, and is accessed only through the mapping.
        let mapped = unsafe { Mapping::of_range(base, size_of::<Headers>()) };
        let payload = Arc::new(payload);
        let (headers, _headers, owned) = (mapped, headers, AtomicBool::new(true));
        Self { header, size_bytes, payload, headers, _headers, memory, owned }
    }

    /// From now on, dropping this does not release the buffer. False if that was so already.
    pub(super) fn leave(&self) -> bool {
        let was_owned = self.owned.swap(false, Ordering::AcqRel);
        if was_owned {
            LEFT.lock().push(self.header);
        }
        was_owned
    }
}

impl Drop for HostAllocation {
    fn drop(&mut self) {
        match *self.owned.get_mut() {
            true => self.memory.release(&self.header),
            false => self.memory.one_less(),
        }
    }
}
