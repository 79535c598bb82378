//! A piece of memory that several processes map.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, AtomicU64};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// A mapping, or a range of memory that somebody else keeps.
#[derive(Debug)]
pub(crate) struct Mapping {
    base: NonNull<u8>,
    length: usize,
    /// Unmapped with this.
    own: bool,
}

// SAFETY: it is but an address range; all access goes through the methods below, each of which
// says what its caller has to see to.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

/// Whether a mapping can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    ReadWrite,
}

impl Mapping {
    /// Maps the first `length` bytes of a file, shared with all who map it.
    ///
    /// That the file has so many bytes, and keeps them, is for the caller to know: reading behind
    /// its end is a SIGBUS.
    pub(crate) fn of_file(file: BorrowedFd<'_>, length: usize, access: Access) -> io::Result<Self> {
        let protection = match access {
            Access::Read => ProtFlags::READ,
            Access::ReadWrite => ProtFlags::READ | ProtFlags::WRITE,
        };
        // SAFETY: the kernel picks an address range that nobody uses, so no memory that anybody
        // refers to changes.
        let base = unsafe { mmap(ptr::null_mut(), length, protection, MapFlags::SHARED, file, 0) }?;
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { base, length, own: true })
    }

    /// Memory that somebody else keeps.
    ///
    /// # Safety
    /// The range must stay readable (and writable, if it is written) as long as this lives.
    pub(crate) unsafe fn of_range(base: NonNull<u8>, length: usize) -> Self {
        Self { base, length, own: false }
    }

    pub(crate) fn base(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    pub(crate) fn length(&self) -> usize {
        self.length
    }

    fn place(&self, offset: usize, length: usize, alignment: usize) -> *mut u8 {
        let end = offset.checked_add(length);
        assert!(end.is_some_and(|end| end <= self.length), "{offset}+{length} is outside");
        // SAFETY: offset <= length of the range, as was checked above.
        let place = unsafe { self.base().add(offset) };
        assert!(place.addr().is_multiple_of(alignment), "{offset} is not aligned");
        place
    }

    /// The eight bytes at `offset`, which other processes read and write too.
    ///
    /// # Panics
    /// If they are outside of the mapping or not aligned.
    pub(crate) fn atomic_u64(&self, offset: usize) -> &AtomicU64 {
        let place = self.place(offset, size_of::<AtomicU64>(), align_of::<AtomicU64>());
        // SAFETY: inside of the mapping, aligned, and mapped as long as `self` lives. Nobody
        // accesses these bytes otherwise than atomically.
        unsafe { AtomicU64::from_ptr(place.cast()) }
    }

    /// The four bytes at `offset`; as [`atomic_u64`](Self::atomic_u64).
    pub(crate) fn atomic_u32(&self, offset: usize) -> &AtomicU32 {
        let place = self.place(offset, size_of::<AtomicU32>(), align_of::<AtomicU32>());
        // SAFETY: as in `atomic_u64`.
        unsafe { AtomicU32::from_ptr(place.cast()) }
    }

    /// Copies `bytes` to `offset`.
    ///
    /// # Safety
    /// The mapping is writable, and nobody reads or writes these bytes meanwhile.
    ///
    /// # Panics
    /// If they are outside of the mapping.
    pub(crate) unsafe fn write(&self, offset: usize, bytes: &[u8]) {
        let place = self.place(offset, bytes.len(), 1);
        // SAFETY: `place` has room for them (checked), and by this function's contract it is ours.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), place, bytes.len()) };
    }

    /// The bytes at `offset`.
    ///
    /// # Safety
    /// Nobody writes them as long as the slice lives.
    ///
    /// # Panics
    /// If they are outside of the mapping.
    pub(crate) unsafe fn bytes(&self, offset: usize, length: usize) -> &[u8] {
        let place = self.place(offset, length, 1);
        // SAFETY: inside of the mapping (checked), unchanged by this function's contract.
        unsafe { std::slice::from_raw_parts(place, length) }
    }

    /// The bytes at `offset`, to be written.
    ///
    /// # Safety
    /// The mapping is writable, and nobody else reads or writes them as long as the slice lives.
    ///
    /// # Panics
    /// If they are outside of the mapping.
    #[allow(clippy::mut_from_ref, reason = "exclusiveness is the caller's promise")]
    pub(crate) unsafe fn bytes_mut(&self, offset: usize, length: usize) -> &mut [u8] {
        let place = self.place(offset, length, 1);
        // SAFETY: inside of the mapping (checked), exclusive by this function's contract.
        unsafe { std::slice::from_raw_parts_mut(place, length) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.own {
            // SAFETY: `mmap` gave this range to us; every slice of it borrows from `self`.
            let unmapped = unsafe { munmap(self.base().cast(), self.length) };
            debug_assert!(unmapped.is_ok());
        }
    }
}
