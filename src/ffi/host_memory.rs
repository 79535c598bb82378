//! Memory of the program that hosts an embedded cache, provided by two C functions.

use std::ffi::{c_int, c_void};
use std::ptr::NonNull;

use super::status::CallFailure;
use crate::error::ErrorKind;
use crate::shm::{HostAllocator, HostBuffer, HostMemory, MetaHeader};

/// Allocator of the host program for the objects of a cache. A FairMQ device allocates messages of
/// its own transport, which it never sends. The cache then maps, names and registers no memory
/// itself. Cells hold the headers that `allocate` writes, with `hint` replaced by the generation of
/// the object and `size` by its size.
///
/// Both functions are called from any thread, also from several at a time. They must not wait for
/// memory, throw, or call into the cache. They are not called after iovc_cache_close has returned.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct HostMemoryFunctions {
    /// First argument of both functions.
    pub context: *mut c_void,
    /// Allocates `size` bytes at a multiple of `align`. Writes their address to `data`, and to
    /// `header` the header by which other processes find them. The bytes must be readable and
    /// writable, and used by the cache alone until they are released.
    ///
    /// Returns 0 on success. Any other value, or null in `data`, means that there is no memory now:
    /// the cache evicts objects and tries again.
    pub allocate: Option<
        unsafe extern "C" fn(
            context: *mut c_void,
            size: usize,
            align: usize,
            data: *mut *mut c_void,
            header: *mut MetaHeader,
        ) -> c_int,
    >,
    /// Frees memory of `allocate`; `header` is the header that `allocate` wrote. Not called for
    /// objects that are held when the cache is closed, see iovc_cache_close.
    pub release: Option<unsafe extern "C" fn(context: *mut c_void, header: *const MetaHeader)>,
}

type AllocateFunction =
    unsafe extern "C" fn(*mut c_void, usize, usize, *mut *mut c_void, *mut MetaHeader) -> c_int;
type ReleaseFunction = unsafe extern "C" fn(*mut c_void, *const MetaHeader);

impl HostMemoryFunctions {
    /// # Errors
    /// If a function is null.
    ///
    /// # Safety
    /// Both functions fulfil the contract of [`HostMemoryFunctions`].
    pub(super) unsafe fn memory(&self) -> Result<HostMemory, CallFailure> {
        let (Some(allocate), Some(release)) = (self.allocate, self.release) else {
            let missing = if self.allocate.is_none() { "allocate" } else { "release" };
            let message = format!("[IOV-7130] host_memory: {missing} is null");
            return Err(CallFailure::new(ErrorKind::InvalidArgument, message));
        };
        Ok(HostMemory::new(Functions { context: self.context, allocate, release }))
    }
}

/// The allocator of a host program, as it passed it over the C ABI.
struct Functions {
    context: *mut c_void,
    allocate: AllocateFunction,
    release: ReleaseFunction,
}

// SAFETY: both functions may be called from any thread with this context, as the C program
// promises.
unsafe impl Send for Functions {}
// SAFETY: as above.
unsafe impl Sync for Functions {}

// SAFETY: the functions keep this contract, as the C program that passes them promises.
unsafe impl HostAllocator for Functions {
    fn allocate(&self, size: usize, align: usize) -> Option<HostBuffer> {
        let mut data = std::ptr::null_mut();
        let mut header = MetaHeader::managed(0, -1, 0, 0);
        // SAFETY: both out pointers are writable, and the function is the host's own.
        let status =
            unsafe { (self.allocate)(self.context, size, align, &raw mut data, &raw mut header) };
        if status != 0 {
            return None;
        }
        NonNull::new(data.cast()).map(|data| HostBuffer { data, header })
    }

    fn release(&self, header: &MetaHeader) {
        // SAFETY: the host's own function, with the header that it wrote.
        unsafe { (self.release)(self.context, header) };
    }
}
