//! A host for tests: an arena in this process that allocates like a transport.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::Arc;

use super::host::{HostAllocator, HostBuffer, HostMemory};
use super::layout::MetaHeader;
use crate::sync::{Mutex, MutexGuard};

/// Offsets of the free and the allocated ranges, each with its length.
#[derive(Default)]
struct Ranges {
    free: BTreeMap<usize, usize>,
    taken: BTreeMap<usize, usize>,
}

/// First-fit over one range of memory, which is never unmapped.
#[derive(Clone)]
pub(crate) struct HostArena {
    base: NonNull<u8>,
    ranges: Arc<Mutex<Ranges>>,
    managed: bool,
    /// Offset added to each address, to imitate a host that ignores the alignment.
    pub(crate) shift: usize,
}

// SAFETY: the arena outlives everything, and ranges are handed out once each, under a lock.
unsafe impl Send for HostArena {}
// SAFETY: as above.
unsafe impl Sync for HostArena {}

impl HostArena {
    /// `managed`: whether its headers refer to a segment, number 4, or to a region.
    pub(crate) fn new(length: usize, managed: bool) -> Self {
        let blocks: &mut [[u64; 8]] = vec![[u64::MAX; 8]; length / 64 + 1].leak();
        let start = blocks.as_mut_ptr().cast::<u8>();
        let start = start.map_addr(|address| address.next_multiple_of(64));
        let free = BTreeMap::from([(0, length)]);
        let ranges = Arc::new(Mutex::new(Ranges { free, ..Ranges::default() }));
        Self { base: NonNull::new(start).unwrap(), ranges, managed, shift: 0 }
    }

    pub(crate) fn memory(&self) -> HostMemory {
        HostMemory::new(self.clone())
    }

    /// Number of allocated bytes.
    pub(crate) fn taken_bytes(&self) -> usize {
        self.locked().taken.values().sum()
    }

    fn locked(&self) -> MutexGuard<'_, Ranges> {
        self.ranges.lock()
    }
}

// SAFETY: ranges do not overlap, and a range is handed out again only after it was released.
unsafe impl HostAllocator for HostArena {
    fn allocate(&self, size: usize, align: usize) -> Option<HostBuffer> {
        assert!(size > 0 && align == 64);
        let length = (size + self.shift).next_multiple_of(align);
        let mut ranges = self.locked();
        let (&start, &room) = ranges.free.iter().find(|(_, room)| **room >= length)?;
        ranges.free.remove(&start);
        if room > length {
            ranges.free.insert(start + length, room - length);
        }
        ranges.taken.insert(start, length);
        // SAFETY: inside the arena.
        let data = unsafe { self.base.add(start + self.shift) };
        // Like a transport: handles of a segment point before the payload, and hint is the host's.
        let handle = start as i64;
        let header = match self.managed {
            true => MetaHeader::managed(4, handle + 4096, size as u64, 77),
            false => MetaHeader::unmanaged(2000, handle, size as u64, 77),
        };
        Some(HostBuffer { data, header })
    }

    fn release(&self, header: &MetaHeader) {
        assert_eq!(header.hint, 77, "the host's own header comes back");
        let start = header.handle as usize - if self.managed { 4096 } else { 0 };
        let mut ranges = self.locked();
        let mut length = ranges.taken.remove(&start).expect("what is released was allocated");
        if let Some(behind) = ranges.free.remove(&(start + length)) {
            length += behind;
        }
        let before = ranges.free.range(..start).next_back().map(|(start, room)| (*start, *room));
        match before.filter(|(before, room)| before + room == start) {
            Some((before, room)) => ranges.free.insert(before, room + length),
            None => ranges.free.insert(start, length),
        };
    }
}
