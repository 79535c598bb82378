//! Mappings of shared memory into this process.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, AtomicU64};

use rustix::io::{Errno, retry_on_intr};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};
use rustix::param::page_size;

/// Size of a huge page, which the kernel can use if file and address are aligned.
const HUGE_BYTES: usize = 2 << 20;

/// A mapping, or a range of memory owned by the caller.
#[derive(Debug)]
pub(crate) struct Mapping {
    base: NonNull<u8>,
    length: usize,
    /// Whether it is unmapped on drop.
    own: bool,
}

// SAFETY: it is just an address range; all access goes through the methods below, each of which
// states the duties of its caller.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

/// Whether a mapping can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MapAccess {
    Read,
    ReadWrite,
}

impl Mapping {
    /// Maps the first `length` bytes of a file, shared between all mappings; 2 MiB or more at a
    /// multiple of 2 MiB, so that huge pages can be used.
    ///
    /// The caller must ensure that the file has that many bytes, and keeps them: reading beyond its
    /// end is a SIGBUS.
    pub(crate) fn of_file(
        file: BorrowedFd<'_>,
        length: usize,
        access: MapAccess,
    ) -> io::Result<Self> {
        let protection = match access {
            MapAccess::Read => ProtFlags::READ,
            MapAccess::ReadWrite => ProtFlags::READ | ProtFlags::WRITE,
        };
        if length >= HUGE_BYTES {
            return Self::aligned(file, length, protection);
        }
        // SAFETY: the kernel picks an unused address range, so no memory with references changes.
        let base = unsafe { mmap(ptr::null_mut(), length, protection, MapFlags::SHARED, file, 0) }?;
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { base, length, own: true })
    }

    /// Reserves a larger address range, maps the file at an aligned part of it, and unmaps the
    /// rest.
    fn aligned(file: BorrowedFd<'_>, length: usize, protection: ProtFlags) -> io::Result<Self> {
        let pages = length.checked_next_multiple_of(page_size());
        let taken = pages.and_then(|pages| Some((pages, pages.checked_add(HUGE_BYTES)?)));
        let (pages, taken) = taken.ok_or(io::ErrorKind::OutOfMemory)?;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: as in `of_file`.
        let start = unsafe { mmap_anonymous(ptr::null_mut(), taken, ProtFlags::empty(), flags) }?;
        let start = NonNull::new(start.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        // If a later step fails, the whole range is unmapped.
        let all = Self { base: start, length: taken, own: true };
        let front = start.addr().get().next_multiple_of(HUGE_BYTES) - start.addr().get();
        // SAFETY: `front` is less than `HUGE_BYTES`, the excess over `pages`.
        let base = unsafe { start.add(front) };
        let flags = MapFlags::SHARED | MapFlags::FIXED;
        // SAFETY: these addresses belong to `all`, which has no references.
        unsafe { mmap(base.as_ptr().cast(), length, protection, flags, file, 0) }?;
        // SAFETY: at most `taken` from the start.
        let behind = unsafe { base.add(pages) };
        for (place, bytes) in [(start, front), (behind, HUGE_BYTES - front)] {
            if bytes > 0 {
                // SAFETY: addresses of `all` in which the file is not mapped.
                unsafe { munmap(place.as_ptr().cast(), bytes) }?;
            }
        }
        std::mem::forget(all);
        Ok(Self { base, length, own: true })
    }

    /// Makes huge pages of the 2 MiB parts of the mapping, if the kernel has any and wants advice.
    /// Existing pages of the file stay as they are. If memory is short, or the kernel does not
    /// support this, pages are left out.
    pub(super) fn make_huge_pages(&self) {
        let length = self.length / HUGE_BYTES * HUGE_BYTES;
        let base = self.base().cast();
        let advise = |advice| -> Result<(), Errno> {
            // SAFETY: a range of this mapping, and neither advice changes its contents.
            retry_on_intr(|| unsafe { madvise(base, length, advice) })
        };
        // Not by writing to each page: without memory that would be a SIGBUS, while this is an
        // error.
        let _ = advise(Advice::LinuxHugepage).and_then(|()| advise(Advice::LinuxPopulateWrite));
    }

    /// Wraps memory owned by the caller.
    ///
    /// # Safety
    /// The range must stay readable (and writable, if it is written) as long as this lives.
    pub(crate) unsafe fn of_range(base: NonNull<u8>, length: usize) -> Self {
        Self { base, length, own: false }
    }

    #[inline]
    pub(crate) fn base(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    pub(crate) fn length(&self) -> usize {
        self.length
    }

    #[inline]
    fn place(&self, offset: usize, length: usize, alignment: usize) -> *mut u8 {
        let end = offset.checked_add(length);
        assert!(end.is_some_and(|end| end <= self.length), "{offset}+{length} is outside");
        // SAFETY: offset <= length of the range, as was checked above.
        let place = unsafe { self.base().add(offset) };
        assert!(place.addr().is_multiple_of(alignment), "{offset} is not aligned");
        place
    }

    /// The eight bytes at `offset`, which other processes also read and write.
    ///
    /// # Panics
    /// If they are outside of the mapping or not aligned.
    #[inline]
    pub(crate) fn atomic_u64(&self, offset: usize) -> &AtomicU64 {
        let place = self.place(offset, size_of::<AtomicU64>(), align_of::<AtomicU64>());
        // SAFETY: inside the mapping, aligned, and mapped as long as `self` lives. These bytes are
        // accessed only atomically.
        unsafe { AtomicU64::from_ptr(place.cast()) }
    }

    /// The four bytes at `offset`; like [`atomic_u64`](Self::atomic_u64).
    #[inline]
    pub(crate) fn atomic_u32(&self, offset: usize) -> &AtomicU32 {
        let place = self.place(offset, size_of::<AtomicU32>(), align_of::<AtomicU32>());
        // SAFETY: as in `atomic_u64`.
        unsafe { AtomicU32::from_ptr(place.cast()) }
    }

    /// Copies `bytes` to `offset`.
    ///
    /// # Safety
    /// The mapping is writable, and these bytes are not read or written by others meanwhile.
    ///
    /// # Panics
    /// If they are outside of the mapping.
    pub(crate) unsafe fn write(&self, offset: usize, bytes: &[u8]) {
        let place = self.place(offset, bytes.len(), 1);
        // SAFETY: `place` has room for them (checked), and by this function's contract it is
        // exclusive.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), place, bytes.len()) };
    }

    /// Like [`write`](Self::write), but bypasses the caches if the processor can: larger copies
    /// would evict other data, after each line was read only to be overwritten.
    ///
    /// # Safety
    /// As of [`write`](Self::write).
    ///
    /// # Panics
    /// As there.
    pub(crate) unsafe fn write_past_caches(&self, offset: usize, bytes: &[u8]) {
        let place = self.place(offset, bytes.len(), 1);
        // SAFETY: as in `write`.
        unsafe { stream(place, bytes) };
    }

    /// The bytes at `offset`.
    ///
    /// # Safety
    /// The bytes are not written as long as the slice lives.
    ///
    /// # Panics
    /// If they are outside of the mapping.
    pub(crate) unsafe fn bytes(&self, offset: usize, length: usize) -> &[u8] {
        let place = self.place(offset, length, 1);
        // SAFETY: inside of the mapping (checked), unchanged by this function's contract.
        unsafe { std::slice::from_raw_parts(place, length) }
    }

    /// The bytes at `offset`, for writing.
    ///
    /// # Safety
    /// The mapping is writable, and the bytes are not accessed otherwise as long as the slice
    /// lives.
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

#[cfg(feature = "cache")]
impl Mapping {
    /// Maps the whole pages of a range for writing, all at once instead of one by one with their
    /// first writes. It changes no byte. Errors are ignored: the first writes then map the pages.
    ///
    /// # Panics
    /// If the range is outside of the mapping.
    pub(crate) fn map_pages(&self, offset: usize, length: usize) {
        const PAGE_BYTES: usize = 4096;
        let place = self.place(offset, length, 1);
        let skipped = place.align_offset(PAGE_BYTES);
        let whole = length.saturating_sub(skipped) / PAGE_BYTES * PAGE_BYTES;
        if whole > 0 {
            let first = place.wrapping_add(skipped).cast();
            // SAFETY: the pages are inside of the mapping (checked), and keep their bytes.
            let _ = unsafe { madvise(first, whole, Advice::LinuxPopulateWrite) };
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.own {
            // SAFETY: `mmap` returned this range; every slice of it borrows from `self`.
            let unmapped = unsafe { munmap(self.base().cast(), self.length) };
            debug_assert!(unmapped.is_ok());
        }
    }
}

/// Copies `bytes` to `place` with stores that bypass the caches.
///
/// # Safety
/// There is room for them at `place`, and it is not accessed otherwise meanwhile.
#[cfg(target_arch = "x86_64")]
unsafe fn stream(place: *mut u8, bytes: &[u8]) {
    use std::arch::x86_64::{_mm_loadu_si128, _mm_sfence, _mm_stream_si128};
    const PART_BYTES: usize = 16;

    let front = place.align_offset(PART_BYTES).min(bytes.len());
    let (front, rest) = bytes.split_at(front);
    // SAFETY: room for all is this function's contract.
    unsafe { ptr::copy_nonoverlapping(front.as_ptr(), place, front.len()) };
    let (parts, back) = rest.as_chunks::<PART_BYTES>();
    // SAFETY: `front` is at most as long as `bytes`.
    let mut place = unsafe { place.add(front.len()) };
    // SYNC(give-up): such stores may overtake others, but no fence. The zeroed generation is
    // visible before them.
    // SAFETY: every x86-64 processor supports it.
    unsafe { _mm_sfence() };
    for part in parts {
        // SAFETY: reads 16 bytes, which are there.
        let part = unsafe { _mm_loadu_si128(part.as_ptr().cast()) };
        // SAFETY: writes 16 bytes at a multiple of 16; there is room for all.
        unsafe { _mm_stream_si128(place.cast(), part) };
        // SAFETY: directly after the bytes just written.
        place = unsafe { place.add(PART_BYTES) };
    }
    // SYNC(publish): they are visible before the generation is.
    // SAFETY: as above.
    unsafe { _mm_sfence() };
    // SAFETY: as above, the last of them.
    unsafe { ptr::copy_nonoverlapping(back.as_ptr(), place, back.len()) };
}

/// As above, for processors without such stores.
#[cfg(not(target_arch = "x86_64"))]
unsafe fn stream(place: *mut u8, bytes: &[u8]) {
    // SAFETY: the same contract.
    unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), place, bytes.len()) };
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::fd::AsFd as _;

    use rustix::fs::{MemfdFlags, memfd_create};

    use super::*;

    fn file_of(name: &std::ffi::CStr, bytes: usize) -> File {
        let file = File::from(memfd_create(name, MemfdFlags::CLOEXEC).unwrap());
        file.set_len(bytes as u64).unwrap();
        file
    }

    #[test]
    fn memory_for_huge_pages_begins_at_a_multiple_of_their_size() {
        for length in [100, 4096, HUGE_BYTES - 1, HUGE_BYTES, HUGE_BYTES + 1, (64 << 20) + 4096] {
            let file = file_of(c"iovcache-aligned", length);
            let mapping = Mapping::of_file(file.as_fd(), length, MapAccess::ReadWrite).unwrap();
            assert_eq!(mapping.length(), length);
            if length >= HUGE_BYTES {
                assert!(mapping.base().addr().is_multiple_of(HUGE_BYTES), "{length}");
            }
            // SAFETY: not accessed by others.
            unsafe { mapping.write(length - 3, b"end") };
            let again = Mapping::of_file(file.as_fd(), length, MapAccess::Read).unwrap();
            // SAFETY: not written any more.
            assert_eq!(unsafe { again.bytes(length - 3, 3) }, b"end");
        }
    }

    #[test]
    fn no_address_is_kept_of_mappings_that_are_gone_or_failed() {
        const TIMES: usize = 4_000;
        let name = c"iovcache-come-and-go";
        let length = HUGE_BYTES + 4096;
        let file = file_of(name, length);
        let reads = File::open(format!("/proc/self/fd/{}", rustix::fd::AsRawFd::as_raw_fd(&file)));
        let reads = reads.unwrap();
        let address_space = || {
            let pages = fs::read_to_string("/proc/self/statm").unwrap();
            pages.split(' ').next().unwrap().parse::<usize>().unwrap() * page_size()
        };
        let before = address_space();
        for _ in 0..TIMES {
            Mapping::of_file(file.as_fd(), length, MapAccess::ReadWrite).unwrap();
            Mapping::of_file(reads.as_fd(), length, MapAccess::ReadWrite).unwrap_err();
        }
        assert!(Mapping::of_file(file.as_fd(), usize::MAX, MapAccess::Read).is_err());
        assert!(Mapping::of_file(file.as_fd(), usize::MAX / 2, MapAccess::Read).is_err());
        // Other tests run in parallel: their use is less than a tenth of a leak.
        let more = address_space().saturating_sub(before);
        assert!(more < TIMES * HUGE_BYTES / 2, "{more} bytes");
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        assert!(!maps.contains(name.to_str().unwrap()), "{maps}");
    }
}
