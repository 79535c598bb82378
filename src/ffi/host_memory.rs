//! Memory of the program around an embedded cache, by two functions of C.

use std::ffi::{c_int, c_void};
use std::ptr::NonNull;

use super::status::CallFailure;
use crate::error::ErrorKind;
use crate::shm::{HostAllocator, HostBuffer, HostMemory, MetaHeader};

/// Memory of the program around a cache, into which the objects go: for a FairMQ device, messages of
/// its own transport that are never sent. The cache maps, names and registers nothing then; cells
/// carry the headers that `allocate` writes, with `hint` replaced by the generation of the object
/// and `size` by its size.
///
/// Both functions are called from any thread, also from several at a time. They must not wait for
/// memory, throw, or call into the cache. After iovc_cache_close has returned neither is called.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct HostMemoryFunctions {
    /// The first argument of both functions.
    pub context: *mut c_void,
    /// Allocates `size` bytes at a multiple of `align`: writes where they are to `data`, and to
    /// `header` how other processes find them. They must be readable and writable, and belong to
    /// nobody else, until they are released.
    ///
    /// Returns 0. Anything else, or null in `data`, says that there is no memory now: the cache
    /// evicts, and tries again.
    pub allocate: Option<
        unsafe extern "C" fn(
            context: *mut c_void,
            size: usize,
            align: usize,
            data: *mut *mut c_void,
            header: *mut MetaHeader,
        ) -> c_int,
    >,
    /// Takes back what `allocate` returned with this header, which comes as `allocate` wrote it.
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
    /// Both functions keep what [`HostMemoryFunctions`] asks of them.
    pub(super) unsafe fn memory(&self) -> Result<HostMemory, CallFailure> {
        let (Some(allocate), Some(release)) = (self.allocate, self.release) else {
            let missing = if self.allocate.is_none() { "allocate" } else { "release" };
            let message = format!("[IOV-7112] host_memory: {missing} is null");
            return Err(CallFailure::new(ErrorKind::InvalidArgument, message));
        };
        Ok(HostMemory::new(Functions { context: self.context, allocate, release }))
    }
}

struct Functions {
    context: *mut c_void,
    allocate: AllocateFunction,
    release: ReleaseFunction,
}

// SAFETY: the functions may be called from any thread with this context, as their caller promises.
unsafe impl Send for Functions {}
// SAFETY: as above.
unsafe impl Sync for Functions {}

// SAFETY: the host's functions keep this contract, as whoever passed them promises.
unsafe impl HostAllocator for Functions {
    fn allocate(&self, size: usize, align: usize) -> Option<HostBuffer> {
        let mut data = std::ptr::null_mut();
        let mut header = MetaHeader::managed(0, -1, 0, 0);
        // SAFETY: both places are writable, and the function is the host's own.
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
