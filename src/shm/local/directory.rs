//! The directory: maps the hash of a path to the snapshot of its timeline.
//!
//! ```text
//!  0        64            64 + 32 n
//!  ┌────────┬──────┬──────┬───┬────────────┬───
//!  │ header │entry │entry │ … │ timeframes │ …      a path's entry is one of the PROBES from its hash on
//!  └────────┴──────┴──────┴───┴────────────┴───
//! ```
//!
//! [`timeframe_entry`](super::timeframe_entry) has the entries of timeframes.
#![allow(unsafe_code)]

use std::mem::{offset_of, size_of};
use std::os::fd::OwnedFd;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use rustix::fs::SealFlags;

use super::super::layout::Epoch;
use super::super::mapping::{MapAccess, Mapping};
use super::block_place::BlockPlace;
use super::change_notice;
use super::protocol;
use super::sealed::{make_sealed, map_sealed};
use crate::sync::{Mutex, MutexGuard};

/// The first bytes of the directory.
#[repr(C)]
pub(super) struct DirectoryHeader {
    pub(super) magic: [u8; 8],
    pub(super) version: u32,
    /// Number of entries that follow: a power of two.
    pub(super) entries: u32,
    pub(super) epoch: u64,
    /// Size of the directory in bytes.
    pub(super) size: u64,
    /// Number of entries of timeframes behind those of paths: a power of two, or 0. An older service
    /// has 0, and an older consumer ignores them.
    pub(super) timeframes: u32,
    pub(super) reserved: u32,
    /// Rises when a session or a stream begins to use the name of a consumer; never 0. An older
    /// service has 0.
    pub(super) claims: u32,
    pub(super) reserved_end: [u32; 5],
}

/// Directory entry. It is free if `hash` is 0, and refers to no snapshot if `generation` is 0.
#[repr(C)]
pub(super) struct EntryLayout {
    pub(super) hash: u64,
    pub(super) generation: u64,
    /// See [`BlockPlace`].
    pub(super) place: u64,
    /// How often the answers of its path, or the path itself, have changed; see
    /// [`change_notice`](super::change_notice).
    pub(super) changes: u32,
    pub(super) reserved: u32,
}

/// The entry of a timeframe.
#[repr(C)]
pub(super) struct TimeframeEntryLayout {
    pub(super) timeframe: u64,
    /// Generation of the block of the table, if it is ready.
    pub(super) generation: u64,
    /// See [`BlockPlace`].
    pub(super) place: u64,
    /// How often the entry has changed.
    pub(super) changes: u32,
    /// An [`EntryState`](super::timeframe_entry).
    pub(super) state: u32,
}

const _: () = assert!(size_of::<TimeframeEntryLayout>() == 32);
const _: () = assert!(offset_of!(TimeframeEntryLayout, place) == 16);
const _: () = assert!(offset_of!(TimeframeEntryLayout, changes) == 24);
const _: () = assert!(offset_of!(TimeframeEntryLayout, state) == 28);

const _: () = assert!(size_of::<DirectoryHeader>() == 64);
const _: () = assert!(offset_of!(DirectoryHeader, version) == 8);
const _: () = assert!(offset_of!(DirectoryHeader, entries) == 12);
const _: () = assert!(offset_of!(DirectoryHeader, epoch) == 16);
const _: () = assert!(offset_of!(DirectoryHeader, size) == 24);
const _: () = assert!(offset_of!(DirectoryHeader, timeframes) == 32);
const _: () = assert!(offset_of!(DirectoryHeader, claims) == 40);
const _: () = assert!(size_of::<EntryLayout>() == 32);
const _: () = assert!(offset_of!(EntryLayout, generation) == 8);
const _: () = assert!(offset_of!(EntryLayout, place) == 16);
const _: () = assert!(offset_of!(EntryLayout, changes) == 24);

impl DirectoryHeader {
    pub(super) const MAGIC: [u8; 8] = *b"IOVDIREC";
    pub(super) const VERSION: u32 = 1;
}

/// Number of entries that can hold a path: that of its hash and the following ones, with
/// wrap-around.
pub(super) const PROBES: u64 = 16;

/// FNV-1a of the path's bytes. 0 marks a free entry and is replaced by 1.
pub(super) fn path_hash(path: &str) -> u64 {
    let hash = path.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    hash.max(1)
}

#[inline]
fn entry_offset(index: u32) -> usize {
    size_of::<DirectoryHeader>() + index as usize * size_of::<EntryLayout>()
}

/// Numbers of entries of a directory: for paths, and for timeframes. Each is rounded up to a power of
/// two, and to at least [`PROBES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct EntryCounts {
    pub(crate) paths: u32,
    pub(crate) timeframes: u32,
}

impl EntryCounts {
    fn rounded(self) -> Self {
        let [paths, timeframes] =
            [self.paths, self.timeframes].map(|count| count.next_power_of_two().max(PROBES as u32));
        Self { paths, timeframes }
    }

    /// Offset of the entry of a timeframe.
    fn timeframe_offset(self, index: u32) -> usize {
        entry_offset(self.paths) + index as usize * size_of::<TimeframeEntryLayout>()
    }

    /// The memory that a directory with this many entries takes.
    pub(crate) fn bytes(self) -> u64 {
        let rounded = self.rounded();
        (rounded.timeframe_offset(rounded.timeframes) as u64).next_multiple_of(4096)
    }
}

/// Indices of the entries that can hold a path of this hash, or this timeframe.
pub(super) fn probes(hash: u64, entries: u32) -> impl Iterator<Item = u32> {
    let mask = u64::from(entries) - 1;
    (0..PROBES.min(u64::from(entries))).map(move |step| (hash.wrapping_add(step) & mask) as u32)
}

/// The directory as read by a consumer: checked once, then read by atomics only.
#[derive(Debug)]
pub(super) struct DirectoryView {
    mapping: Mapping,
    entries: u32,
    timeframes: u32,
}

impl DirectoryView {
    /// Maps the directory of the service with this epoch.
    ///
    /// # Errors
    /// The reason in words. The directory of a newer service may have another layout; its consumers
    /// then ask the service.
    pub(super) fn open(file: BorrowedFd<'_>, size: u64, epoch: Epoch) -> Result<Self, String> {
        let mapping = map_sealed(file, size, MapAccess::Read)?;
        // SAFETY: the service writes this part of the header once, before it sends the descriptor.
        let header = unsafe { mapping.bytes(0, offset_of!(DirectoryHeader, claims)) };
        let word = |at: usize| header[at..at + 8].try_into().map_or(0, u64::from_le_bytes);
        let entries = (word(8) >> 32) as u32;
        let (version, magic) = (word(8) as u32, u64::from_le_bytes(DirectoryHeader::MAGIC));
        let timeframes = word(offset_of!(DirectoryHeader, timeframes)) as u32;
        let counts = EntryCounts { paths: entries, timeframes };
        let needed = counts.timeframe_offset(timeframes) as u64;
        let right = word(offset_of!(DirectoryHeader, magic)) == magic
            && version == DirectoryHeader::VERSION
            && word(offset_of!(DirectoryHeader, epoch)) == epoch.0
            && word(offset_of!(DirectoryHeader, size)) == size
            && entries.is_power_of_two()
            && (timeframes == 0 || timeframes.is_power_of_two())
            && needed <= size;
        match right {
            true => Ok(Self { mapping, entries, timeframes }),
            false => Err(format!("a directory of version {version} with {entries} entries")),
        }
    }

    #[inline]
    fn word(&self, index: u32, field: usize) -> &AtomicU64 {
        self.mapping.atomic_u64(entry_offset(index) + field)
    }

    /// The words of an entry: generation and place. `index` comes from [`find`](Self::find).
    #[inline]
    pub(super) fn entry(&self, index: u32) -> EntryWords<'_> {
        EntryWords {
            generation: self.word(index, offset_of!(EntryLayout, generation)),
            place: self.word(index, offset_of!(EntryLayout, place)),
        }
    }

    /// Whether there is such an entry.
    pub(super) fn has(&self, index: u32) -> bool {
        index < self.entries
    }

    /// The count of changes of an entry.
    #[inline]
    pub(super) fn changes(&self, index: u32) -> &AtomicU32 {
        self.mapping.atomic_u32(entry_offset(index) + offset_of!(EntryLayout, changes))
    }

    /// The count of claims of consumers' names; `None`: the service does not tell it.
    #[cfg(any(feature = "client", feature = "capi", test))]
    pub(super) fn claims(&self) -> Option<u32> {
        // SYNC(notice): before a name is used, or the service is asked for it.
        let claims = self.mapping.atomic_u32(offset_of!(DirectoryHeader, claims));
        Some(change_notice::note(claims)).filter(|count| *count != 0)
    }

    /// Number of entries of timeframes; 0: the service publishes none.
    pub(super) fn timeframes(&self) -> u32 {
        self.timeframes
    }

    /// The mapping, and the offset of the entry of a timeframe in it.
    pub(super) fn timeframe_entry(&self, index: u32) -> (&Mapping, usize) {
        let counts = EntryCounts { paths: self.entries, timeframes: self.timeframes };
        (&self.mapping, counts.timeframe_offset(index))
    }

    /// Entries with this hash that refer to a snapshot. Paths can share a hash, so the caller
    /// compares the path in the snapshot.
    pub(super) fn find(&self, hash: u64) -> impl Iterator<Item = u32> {
        probes(hash, self.entries).filter(move |&index| {
            let stored = self.word(index, offset_of!(EntryLayout, hash));
            // Relaxed: a wrong candidate is rejected by the path in its snapshot.
            stored.load(Ordering::Relaxed) == hash && self.entry(index).load().0 != 0
        })
    }
}

/// The two mutable words of an entry.
#[derive(Debug, Clone, Copy)]
pub(super) struct EntryWords<'a> {
    generation: &'a AtomicU64,
    place: &'a AtomicU64,
}

impl EntryWords<'_> {
    /// Generation (0: none) and place of the snapshot.
    #[inline]
    pub(super) fn load(self) -> (u64, u64) {
        protocol::load_entry(self.generation, self.place)
    }
}

/// The directory as written by the service, its only writer.
#[derive(Debug)]
pub(crate) struct Directory {
    file: OwnedFd,
    mapping: Mapping,
    counts: EntryCounts,
    /// Whether each entry is taken.
    taken: Mutex<Vec<bool>>,
    /// Whether each entry of a timeframe is taken.
    taken_timeframes: Mutex<Vec<bool>>,
}

impl Directory {
    /// A directory of the instance `epoch`.
    ///
    /// # Errors
    /// The error of the system.
    pub(crate) fn new(epoch: Epoch, counts: EntryCounts) -> std::io::Result<Self> {
        let (counts, size) = (counts.rounded(), counts.bytes());
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::FUTURE_WRITE | SealFlags::SEAL;
        let (file, mapping) = make_sealed(c"iovcache-directory", size, seals)?;
        let mut header = [0; size_of::<DirectoryHeader>()];
        let mut put = |offset: usize, bytes: &[u8]| {
            header[offset..offset + bytes.len()].copy_from_slice(bytes);
        };
        put(offset_of!(DirectoryHeader, magic), &DirectoryHeader::MAGIC);
        put(offset_of!(DirectoryHeader, version), &DirectoryHeader::VERSION.to_le_bytes());
        put(offset_of!(DirectoryHeader, entries), &counts.paths.to_le_bytes());
        put(offset_of!(DirectoryHeader, epoch), &epoch.0.to_le_bytes());
        put(offset_of!(DirectoryHeader, size), &size.to_le_bytes());
        put(offset_of!(DirectoryHeader, timeframes), &counts.timeframes.to_le_bytes());
        put(offset_of!(DirectoryHeader, claims), &1_u32.to_le_bytes());
        // SAFETY: no other process has the file yet, and it is longer than its header.
        unsafe { mapping.write(0, &header) };
        let [taken, taken_timeframes] =
            [counts.paths, counts.timeframes].map(|count| Mutex::new(vec![false; count as usize]));
        Ok(Self { file, mapping, counts, taken, taken_timeframes })
    }

    /// Descriptor of the file, for consumers.
    pub(crate) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Size in bytes.
    pub(crate) fn size_bytes(&self) -> u64 {
        self.mapping.length() as u64
    }

    fn taken(&self) -> MutexGuard<'_, Vec<bool>> {
        self.taken.lock()
    }

    /// A session or a stream has begun to use the name of a consumer. The service refuses other users
    /// of the name before this, and the session or stream does not know of its claim yet.
    pub(crate) fn note_claim(&self) {
        let claims = self.mapping.atomic_u32(offset_of!(DirectoryHeader, claims));
        let next = |count: u32| Some(count.checked_add(1).unwrap_or(1));
        // SYNC(notice): pairs with the Acquire load in `DirectoryView::claims`. No consumer sleeps on
        // this word.
        let _ = claims.try_update(Ordering::Release, Ordering::Relaxed, next);
    }

    fn word(&self, index: u32, field: usize) -> &AtomicU64 {
        self.mapping.atomic_u64(entry_offset(index) + field)
    }

    /// The mapping, and the offset of the entry of a timeframe in it.
    pub(super) fn timeframe_entry(&self, index: u32) -> (&Mapping, usize) {
        (&self.mapping, self.counts.timeframe_offset(index))
    }

    /// Takes the index of an entry for a timeframe; `None` if all that can hold it are taken.
    pub(super) fn take_timeframe_index(&self, timeframe: u64) -> Option<u32> {
        let mut taken = self.taken_timeframes.lock();
        let mut places = probes(timeframe, self.counts.timeframes);
        let index = places.find(|&index| !taken[index as usize])?;
        taken[index as usize] = true;
        Some(index)
    }

    /// Frees the entry of a timeframe.
    pub(super) fn give_timeframe_index(&self, index: u32) {
        self.taken_timeframes.lock()[index as usize] = false;
    }

    /// Takes an entry for `path`; `None` if all entries that can hold it are taken.
    pub(crate) fn take(self: &std::sync::Arc<Self>, path: &str) -> Option<DirectoryEntry> {
        let hash = path_hash(path);
        let mut taken = self.taken();
        let index = probes(hash, self.counts.paths).find(|&index| !taken[index as usize])?;
        taken[index as usize] = true;
        let stored = self.word(index, offset_of!(EntryLayout, hash));
        stored.store(hash, Ordering::Relaxed);
        Some(DirectoryEntry { directory: std::sync::Arc::clone(self), index })
    }
}

/// The entry of one path. Dropping it frees the entry.
#[derive(Debug)]
pub(crate) struct DirectoryEntry {
    directory: std::sync::Arc<Directory>,
    index: u32,
}

impl DirectoryEntry {
    /// Index of the entry, which consumers use in samples.
    pub(crate) fn index(&self) -> u32 {
        self.index
    }

    fn store(&self, generation: u64, place: u64) {
        let words = [offset_of!(EntryLayout, generation), offset_of!(EntryLayout, place)];
        let [first, second] = words.map(|field| self.directory.word(self.index, field));
        protocol::store_entry(first, second, (generation, place));
    }

    /// Replaces the snapshot to which the entry refers.
    pub(crate) fn name(&self, (generation, place): (u64, BlockPlace)) {
        self.store(generation, place.to_word());
    }

    /// Removes the reference to a snapshot, so that consumers ask the service.
    pub(crate) fn withdraw(&self) {
        self.store(0, 0);
    }

    /// Wakes consumers that wait for a change of the path. The next answers are visible before this.
    pub(crate) fn tell_changed(&self) {
        let changes = entry_offset(self.index) + offset_of!(EntryLayout, changes);
        change_notice::tell_changed(self.directory.mapping.atomic_u32(changes));
    }
}

impl Drop for DirectoryEntry {
    fn drop(&mut self) {
        self.withdraw();
        let hash = self.directory.word(self.index, offset_of!(EntryLayout, hash));
        hash.store(0, Ordering::Relaxed);
        self.tell_changed();
        self.directory.taken()[self.index as usize] = false;
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd as _;
    use std::sync::Arc;

    use rustix::fs::{MemfdFlags, memfd_create};

    use super::*;

    fn counts(paths: u32) -> EntryCounts {
        EntryCounts { paths, timeframes: 16 }
    }

    #[test]
    fn a_path_is_found_in_its_entries_and_gone_with_them() {
        let epoch = Epoch(7);
        let directory = Arc::new(Directory::new(epoch, counts(32)).unwrap());
        let size = directory.size_bytes();
        let view = DirectoryView::open(directory.file(), size, epoch).unwrap();
        let hash = path_hash("A/B");
        let entry = directory.take("A/B").unwrap();
        assert_eq!(view.find(hash).count(), 0, "it names no snapshot yet");
        entry.store(5, 64);
        assert_eq!(view.find(hash).collect::<Vec<_>>(), [entry.index()]);
        assert_eq!(view.entry(entry.index()).load(), (5, 64));
        drop(entry);
        assert_eq!(view.find(hash).count(), 0);
        assert!(directory.taken().iter().all(|taken| !taken));
    }

    #[test]
    fn paths_whose_entries_are_all_taken_are_not_published() {
        let directory = Arc::new(Directory::new(Epoch(7), counts(16)).unwrap());
        let taken: Vec<_> = (0..40).filter_map(|n| directory.take(&format!("A/{n}x"))).collect();
        assert_eq!(taken.len(), 16);
        drop(taken);
        assert!(directory.take("A").is_some());
    }

    #[test]
    fn a_directory_that_could_change_or_is_anothers_is_not_used() {
        let directory = Directory::new(Epoch(7), counts(32)).unwrap();
        let size = directory.size_bytes();
        assert!(DirectoryView::open(directory.file(), size, Epoch(8)).is_err(), "another epoch");
        assert!(DirectoryView::open(directory.file(), size + 1, Epoch(7)).is_err(), "its size");
        assert!(rustix::io::pwrite(directory.file(), b"x", 0).is_err(), "it can be written");
        let loose = tempfile::tempfile().unwrap();
        loose.set_len(size).unwrap();
        assert!(DirectoryView::open(loose.as_fd(), size, Epoch(7)).is_err(), "no seals");
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let open = File::from(memfd_create(c"open", flags).unwrap());
        open.set_len(size).unwrap();
        assert!(DirectoryView::open(open.as_fd(), size, Epoch(7)).is_err(), "it could shrink");
    }
}
