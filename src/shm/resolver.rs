//! The resolver: from a MetaHeader to the checked bytes of its object, without any I/O.
#![allow(unsafe_code)]

use std::fmt;
use std::io;
use std::mem::offset_of;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{SealFlags, fcntl_get_seals, fstat};
use rustix::io::{pread, retry_on_intr};

use super::layout::{
    BLOCK_OVERHEAD_BYTES, BlockHeader, ChunkHeader, Epoch, GRANULE_BYTES, MetaHeader,
    SEGMENT_HEADER_BYTES, SegmentHeader,
};
use super::mapping::{MapAccess, Mapping};
use super::prefetch::{AHEAD, prefetch};
use super::resolve_error::{MapError, ResolveError};
use super::segment::Kind;
use super::sync;
use crate::object::ObjectId;

/// The current segments and regions of a consumer, mapped read-only.
///
/// Immutable: changes make a new value. A mapping lives as long as any value contains it.
#[derive(Debug, Clone, Default)]
pub struct Mappings {
    segments: MappingTable<FIRST_IN_SEGMENT>,
    regions: MappingTable<FIRST_IN_REGION>,
    /// For a pool in a host's memory, in its own process; then there are no segments.
    host: Option<Arc<dyn UnmappedBlocks>>,
}

/// Live blocks outside the mappings: each call checks generation and size.
pub(super) trait UnmappedBlocks: fmt::Debug + Send + Sync {
    /// The location of the payload of the block that `header` names.
    fn locate(&self, header: &MetaHeader) -> Result<Location, ResolveError>;

    /// A copy of the payload of the block that `header` names.
    fn read(&self, header: &MetaHeader) -> Result<Vec<u8>, ResolveError>;

    /// Whether the bytes read so far were still those of the object of `header`.
    fn still_valid(&self, header: &MetaHeader) -> bool;

    /// The id of the object that `header` names.
    fn object_id(&self, header: &MetaHeader) -> Result<ObjectId, ResolveError>;

    /// The MetaHeader of the block at a place of a managed segment.
    fn header_at(
        &self,
        segment_id: u16,
        handle: i64,
        size: u64,
    ) -> Result<MetaHeader, ResolveError>;
}

/// Mappings by id in a dense array: a look-up is one bounds check. Payloads in them begin at
/// `FIRST` or later.
#[derive(Debug, Clone, Default)]
struct MappingTable<const FIRST: u64> {
    entries: Vec<MappedSegment>,
    mapped: Vec<Option<Arc<Mapping>>>,
}

const FIRST_IN_SEGMENT: u64 = SEGMENT_HEADER_BYTES + BLOCK_OVERHEAD_BYTES;
const FIRST_IN_REGION: u64 = BLOCK_OVERHEAD_BYTES;

/// The range of payloads in a mapping; resolving needs nothing else.
#[derive(Debug, Clone, Copy)]
struct MappedSegment {
    /// The first address at which a payload can begin.
    first: *const u8,
    /// Number of bytes from there on, at most `isize::MAX`.
    room: u64,
    /// `room` in granules, the last of which may be incomplete.
    granules: u64,
}

/// Stands in for a block where nothing is mapped. Its generation is 0, so nothing resolves there,
/// and resolving needs no branch for this case.
#[repr(C, align(64))]
struct NullBlock([AtomicU64; BLOCK_OVERHEAD_BYTES as usize / 8]);

static NULL_BLOCK: NullBlock =
    NullBlock([const { AtomicU64::new(0) }; BLOCK_OVERHEAD_BYTES as usize / 8]);

impl MappedSegment {
    fn none() -> Self {
        Self { first: (&raw const NULL_BLOCK).wrapping_add(1).cast(), room: 0, granules: 0 }
    }
}

// SAFETY: an entry points into the mapping of the same index, which lives as long as the table, and
// is read through atomics and slices of published blocks only.
unsafe impl<const FIRST: u64> Send for MappingTable<FIRST> {}
// SAFETY: as above.
unsafe impl<const FIRST: u64> Sync for MappingTable<FIRST> {}

impl<const FIRST: u64> MappingTable<FIRST> {
    fn set(&mut self, id: u16, mapping: Option<Arc<Mapping>>) {
        let place = usize::from(id);
        if self.entries.len() <= place {
            self.entries.resize(place + 1, MappedSegment::none());
            self.mapped.resize(place + 1, None);
        }
        self.entries[place] = match &mapping {
            Some(mapping) if mapping.length() as u64 >= FIRST => {
                let room = mapping.length() as u64 - FIRST;
                // Inside the mapping, or just behind it.
                let first = mapping.base().wrapping_add(FIRST as usize).cast_const();
                MappedSegment { first, room, granules: room / GRANULE_BYTES }
            }
            _ => MappedSegment::none(),
        };
        self.mapped[place] = mapping;
    }

    fn get(&self, id: u16) -> Option<&Arc<Mapping>> {
        self.mapped.get(usize::from(id))?.as_ref()
    }

    /// The address of a payload that begins at `payload`, if it is inside the mapping.
    #[inline]
    fn place_of(&self, id: u16, payload: u64) -> Option<*const u8> {
        let &MappedSegment { first, room, .. } = self.entries.get(usize::from(id))?;
        let offset = payload.wrapping_sub(FIRST);
        (offset <= room).then(|| first.wrapping_add(offset as usize))
    }

    /// The place whose payload would begin at `payload`, if that lies inside.
    fn raw(&self, id: u16, payload: u64) -> Option<RawBlock> {
        let place = self.place_of(id, payload)?;
        let room = self.entries.get(usize::from(id))?.room - payload.wrapping_sub(FIRST);
        let payload = NonNull::new(place.cast_mut())?;
        payload
            .addr()
            .get()
            .is_multiple_of(GRANULE_BYTES as usize)
            .then_some(RawBlock { payload, room })
    }

    /// The block whose payload begins at `payload`, if it matches `header`.
    #[inline(always)]
    fn find(&self, id: u16, payload: u64, header: &MetaHeader) -> Option<CheckedHeader> {
        let &MappedSegment { first, room, granules } = self.entries.get(usize::from(id))?;
        // An offset before the first payload, or a negative one, becomes huge.
        let offset = payload.wrapping_sub(FIRST);
        // Rotated by six bits, so does an offset that is no multiple of 64: one check for three.
        let granule = offset.rotate_right(GRANULE_BYTES.ilog2());
        // If granule <= room, so is offset.
        if granule > granules || header.size > room - offset {
            return None;
        }
        // SAFETY: offset <= room, and `room` bytes from `first` on are mapped.
        let payload = unsafe { first.add(offset as usize) };
        // SAFETY: 64 bytes precede each address at which a payload can begin.
        let block = unsafe { payload.sub(BLOCK_OVERHEAD_BYTES as usize) };
        // Both words are in one cache line and usually match: one branch for both.
        let found = sync::seen(generation(block));
        if (found ^ header.hint) | (size_in(block) ^ header.size) != 0 || found == 0 {
            return None;
        }
        Some(CheckedHeader { block, size: header.size as usize })
    }
}

/// The location of a payload in this process: address and size in bytes, checked once, and not
/// pinned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Location {
    /// Address of the first byte; valid for `size` bytes as long as the mappings live.
    pub address: *const u8,
    /// Number of bytes.
    pub size: usize,
}

/// A block as the local plane reads it: inside of a mapping, and pinned by nothing.
#[derive(Debug, Clone, Copy)]
pub(super) struct RawBlock {
    /// 64 bytes of headers stand before it, `room` bytes from it on are mapped.
    payload: NonNull<u8>,
    room: u64,
}

impl RawBlock {
    #[inline]
    fn header_word(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: 64 bytes of headers stand before the payload.
        let block = unsafe { self.payload.sub(BLOCK_OVERHEAD_BYTES as usize) };
        // SAFETY: `offset` is that of a field of the header.
        let place = unsafe { block.add(offset) };
        // SAFETY: aligned, and mapped as long as the mappings of the block live; the holder of a
        // `RawBlock` keeps these. Other processes access it atomically.
        unsafe { AtomicU64::from_ptr(place.as_ptr().cast()) }
    }

    /// Its generation word.
    #[inline]
    pub(super) fn generation(&self) -> &AtomicU64 {
        self.header_word(offset_of!(BlockHeader, generation))
    }

    /// The size of its payload, if so many bytes are mapped.
    pub(super) fn size(&self) -> Option<usize> {
        let size = self.header_word(offset_of!(BlockHeader, size)).load(Ordering::Relaxed);
        (size <= self.room).then_some(size as usize)
    }

    /// Number of bytes from the payload on: of a block that was checked, the size of its payload.
    #[inline]
    pub(super) fn room(&self) -> usize {
        self.room as usize
    }

    /// Which object it is.
    #[inline]
    pub(super) fn object_id(&self) -> [u8; 16] {
        let halves = [0, 8].map(|half| {
            let word = self.header_word(offset_of!(BlockHeader, object_id) + half);
            word.load(Ordering::Relaxed).to_le_bytes()
        });
        let mut id = [0; 16];
        id[..8].copy_from_slice(&halves[0]);
        id[8..].copy_from_slice(&halves[1]);
        id
    }

    /// Its first byte, at a multiple of 64.
    #[inline]
    pub(super) fn payload(&self) -> NonNull<u8> {
        self.payload
    }
}

/// A checked block: its address, and the length of its payload.
struct CheckedHeader {
    block: *const u8,
    size: usize,
}

/// The first bytes of a segment's file. They are read, not mapped, so that a file that is too short
/// gives an error instead of a SIGBUS.
struct SegmentHead([u8; size_of::<SegmentHeader>()]);

impl SegmentHead {
    const MAGIC: u64 = u64::from_le_bytes(SegmentHeader::MAGIC);

    fn read(file: BorrowedFd<'_>) -> rustix::io::Result<Self> {
        let mut head = [0; size_of::<SegmentHeader>()];
        // A short read leaves zeros, which fail every check.
        retry_on_intr(|| pread(file, &mut head, 0))?;
        Ok(Self(head))
    }

    fn part<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut part = [0; N];
        part.copy_from_slice(&self.0[at..at + N]);
        part
    }

    fn u32(&self, at: usize) -> u64 {
        u64::from(u32::from_le_bytes(self.part(at)))
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.part(at))
    }
}

impl Mappings {
    /// These mappings and one more; a mapping with the same id is replaced.
    ///
    /// `size_bytes` and `epoch` are those that the service announced with the descriptor `file`.
    ///
    /// # Errors
    /// [`MapError::Unlike`] if the file is not the announced segment, [`MapError::NotSealed`] if its
    /// owner could truncate or overwrite it, [`MapError::Retired`] if the service has retired it
    /// meanwhile; else the error of the system.
    pub fn with(
        &self,
        kind: Kind,
        id: u16,
        size_bytes: u64,
        epoch: Epoch,
        file: BorrowedFd<'_>,
    ) -> Result<Self, MapError> {
        let failed = |error: io::Error| MapError::Map { kind, id, error };
        let unlike = |what, got, expected| {
            if got == expected {
                Ok(())
            } else {
                Err(MapError::Unlike { kind, id, what, got, expected })
            }
        };
        let length =
            usize::try_from(size_bytes).map_err(|_| failed(io::ErrorKind::OutOfMemory.into()))?;
        let facts = fstat(file).map_err(|error| failed(error.into()))?;
        unlike("the size of the file", u64::try_from(facts.st_size).unwrap_or(0), size_bytes)?;
        let least_bytes = match kind {
            Kind::Segment => SEGMENT_HEADER_BYTES,
            Kind::Region => 2 * GRANULE_BYTES,
        };
        unlike("at least the size", size_bytes.min(least_bytes), least_bytes)?;
        if kind == Kind::Segment {
            // An unnamed file has no links and must be sealed. A file with a name cannot be sealed.
            let sealed = facts.st_nlink > 0
                || fcntl_get_seals(file).is_ok_and(|seals| seals.contains(SealFlags::SHRINK));
            // Read afterwards: the name is removed after the segment is retired.
            let head = SegmentHead::read(file).map_err(|error| failed(error.into()))?;
            unlike("the magic", head.u64(offset_of!(SegmentHeader, magic)), SegmentHead::MAGIC)?;
            let version = u64::from(SegmentHeader::VERSION);
            unlike("the version", head.u32(offset_of!(SegmentHeader, version)), version)?;
            unlike("the epoch", head.u64(offset_of!(SegmentHeader, epoch)), epoch.0)?;
            unlike("the id", head.u32(offset_of!(SegmentHeader, segment_id)), u64::from(id))?;
            unlike("the size", head.u64(offset_of!(SegmentHeader, size)), size_bytes)?;
            if head.u32(offset_of!(SegmentHeader, retired)) != 0 {
                return Err(MapError::Retired { id });
            }
            if !sealed {
                return Err(MapError::NotSealed { id });
            }
        }
        let mapping = Mapping::of_file(file.as_fd(), length, MapAccess::Read).map_err(failed)?;
        Ok(self.clone().with_mapped(kind, id, Arc::new(mapping)))
    }

    /// These mappings and one that is already mapped.
    pub(super) fn with_mapped(mut self, kind: Kind, id: u16, mapping: Arc<Mapping>) -> Self {
        match kind {
            Kind::Region => self.regions.set(id, Some(mapping)),
            Kind::Segment => self.segments.set(id, Some(mapping)),
        }
        self
    }

    /// The mappings of a pool in a host's memory.
    pub(super) fn of_host(host: Arc<dyn UnmappedBlocks>) -> Self {
        Self { host: Some(host), ..Self::default() }
    }

    /// These mappings without retired segments: nothing in them resolves any more, and their
    /// mappings keep memory of the node.
    #[must_use]
    pub(crate) fn swept(&self) -> Self {
        let mut next = self.clone();
        for (id, mapping) in (0..=u16::MAX).zip(&self.segments.mapped) {
            let retired = mapping.as_ref().is_some_and(|mapping| {
                // SYNC(retire): pairs with the Release store when the pool gives it back.
                let word = mapping.atomic_u32(offset_of!(SegmentHeader, retired));
                word.load(Ordering::Acquire) != 0
            });
            if retired {
                next.segments.set(id, None);
            }
        }
        next
    }

    /// Number of mapped segments and regions.
    pub fn len(&self) -> usize {
        let mapped = self.segments.mapped.iter().chain(&self.regions.mapped);
        mapped.filter(|mapping| mapping.is_some()).count()
    }

    /// Whether nothing is mapped.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the segment or region of `header` is mapped.
    pub fn knows(&self, header: &MetaHeader) -> bool {
        self.mapping_of(header).is_some()
    }

    fn mapping_of(&self, header: &MetaHeader) -> Option<&Arc<Mapping>> {
        match header.managed {
            1 => self.segments.get(header.segment_id),
            _ => self.regions.get(header.region_id),
        }
    }

    /// Finds the block; the cause of a failure is determined separately.
    #[inline(always)]
    fn find(&self, header: &MetaHeader) -> Option<CheckedHeader> {
        let handle = header.handle.cast_unsigned();
        match header.managed {
            1 => {
                let payload = handle.wrapping_add(size_of::<ChunkHeader>() as u64);
                self.segments.find(header.segment_id, payload, header)
            }
            0 => self.regions.find(header.region_id, handle, header),
            _ => None,
        }
    }

    /// The block that `header` names, if it has its generation and size now. Keeps nothing.
    #[inline(always)]
    pub(super) fn live_block(&self, header: &MetaHeader) -> Option<RawBlock> {
        let CheckedHeader { block, size } = self.find(header)?;
        // SAFETY: `find` has seen that the headers lie inside of the mapping.
        let payload = unsafe { block.add(BLOCK_OVERHEAD_BYTES as usize) };
        Some(RawBlock { payload: NonNull::new(payload.cast_mut())?, room: size as u64 })
    }

    /// The block that begins at `offset` of a segment or region, unchecked against a MetaHeader.
    pub(super) fn raw_block(&self, managed: bool, id: u16, offset: u64) -> Option<RawBlock> {
        let payload = offset.checked_add(BLOCK_OVERHEAD_BYTES)?;
        match managed {
            true => self.segments.raw(id, payload),
            false => self.regions.raw(id, payload),
        }
    }

    #[inline(always)]
    fn check(&self, header: &MetaHeader) -> Result<CheckedHeader, ResolveError> {
        match self.find(header) {
            Some(checked) => Ok(checked),
            None => Err(self.why_not(header)),
        }
    }

    /// The location of the payload in the host's memory, or the reason why it does not resolve.
    #[cold]
    #[inline(never)]
    fn locate_in_host(&self, header: &MetaHeader) -> Result<Location, ResolveError> {
        match &self.host {
            Some(host) => host.locate(header),
            None => Err(self.why_not(header)),
        }
    }

    /// The first check that `header` fails.
    #[cold]
    #[inline(never)]
    fn why_not(&self, header: &MetaHeader) -> ResolveError {
        let MetaHeader { size, handle, hint: expected, .. } = *header;
        if header.managed > 1 {
            return ResolveError::BadManagedFlag { got: header.managed };
        }
        let Some(mapping) = self.mapping_of(header) else {
            return match header.managed {
                1 => ResolveError::UnknownSegment { id: header.segment_id },
                _ => ResolveError::UnknownRegion { id: header.region_id },
            };
        };
        let length = mapping.length() as u64;
        let (chunk, first) = match header.managed {
            1 => (size_of::<ChunkHeader>() as i64, FIRST_IN_SEGMENT),
            _ => (0, FIRST_IN_REGION),
        };
        let payload = handle.checked_add(chunk).and_then(|payload| u64::try_from(payload).ok());
        let out_of_bounds = ResolveError::OutOfBounds { handle, size, length };
        let Some(payload) = payload else { return out_of_bounds };
        if !payload.is_multiple_of(GRANULE_BYTES) {
            return ResolveError::Misaligned { handle };
        }
        let end = payload.checked_add(size);
        if payload < first || end.is_none_or(|end| end > length) {
            return out_of_bounds;
        }
        let block = (payload - BLOCK_OVERHEAD_BYTES) as usize;
        let found = sync::seen(mapping.atomic_u64(block));
        if found != expected || found == 0 {
            return ResolveError::Stale { expected, found };
        }
        let found = mapping.atomic_u64(block + offset_of!(BlockHeader, size));
        ResolveError::WrongSize { expected: size, found: found.load(Ordering::Relaxed) }
    }

    /// The location of the payload of the object that `header` names.
    ///
    /// Address and size keep nothing pinned: the memory may be reused once the block has no pins. A
    /// caller without a pin must call [`still_valid`](Self::still_valid) after reading, or use
    /// [`read`](Self::read), which does both.
    ///
    /// # Errors
    /// [`ResolveError`], one variant per failed check: unknown segment or region, misaligned handle,
    /// place outside of the mapping, other generation (stale), other size. Forged headers are safe.
    ///
    /// Takes no lock, allocates nothing and does no I/O.
    // A call would cost as much as the checks.
    #[inline(always)]
    pub fn locate(&self, header: &MetaHeader) -> Result<Location, ResolveError> {
        let Some(CheckedHeader { block, size }) = self.find(header) else {
            return self.locate_in_host(header);
        };
        // SAFETY: `find` has verified that 64 bytes of headers and `size` bytes of payload are
        // inside the mapping.
        let address = unsafe { block.add(BLOCK_OVERHEAD_BYTES as usize) };
        Ok(Location { address, size })
    }

    /// The bytes of the object that `header` names, in place.
    ///
    /// # Errors
    /// [`ResolveError`]. Forged headers are safe.
    ///
    /// # Safety
    /// The block must stay pinned as long as the slice lives: by a lease, a session or a timeframe
    /// of the table that `header` came with, or because the caller owns the pool. Safe code gets
    /// bytes from a [`Table`](crate::client::Table), or a copy from [`read`](Self::read).
    #[inline(always)]
    pub unsafe fn resolve(&self, header: &MetaHeader) -> Result<&[u8], ResolveError> {
        let Location { address, size } = self.locate(header)?;
        // SAFETY: inside the mapping, which lives as long as `self`. A published block is not
        // written again before its generation is zeroed, which the service does only when it has no
        // pins; that it stays pinned is this function's contract.
        Ok(unsafe { std::slice::from_raw_parts(address, size) })
    }

    /// The bytes of a block in a sealed segment whose writer has ended: an object of the previous
    /// process.
    ///
    /// # Errors
    /// [`ResolveError`].
    #[cfg(feature = "cache")]
    pub(crate) fn resolve_inherited(&self, header: &MetaHeader) -> Result<&[u8], ResolveError> {
        // SAFETY: the segment is not written any more, so its blocks do not change.
        unsafe { self.resolve(header) }
    }

    /// The bytes of a block pinned by a lease. Only [`PinnedBlocks`](super::attach::PinnedBlocks)
    /// calls this: it keeps the lease as long as it lives, and the slice borrows from it.
    ///
    /// # Errors
    /// [`ResolveError`].
    #[cfg(feature = "client")]
    #[inline(always)]
    pub(super) fn resolve_pinned(&self, header: &MetaHeader) -> Result<&[u8], ResolveError> {
        // SAFETY: the caller holds the lease that pins the block for longer than the slice lives.
        unsafe { self.resolve(header) }
    }

    /// A copy of the bytes of the object that `header` names. The generation is checked before and
    /// after copying, so the copy is correct or an error, even without a pin.
    ///
    /// # Errors
    /// [`ResolveError`].
    pub fn read(&self, header: &MetaHeader) -> Result<Vec<u8>, ResolveError> {
        if let Some(host) = &self.host {
            return host.read(header);
        }
        let Location { address, size } = self.locate(header)?;
        let mut copy: Vec<u8> = Vec::with_capacity(size);
        // SAFETY: `size` bytes at `address` are mapped and stay mapped while `self` lives, the
        // vector has room for as many, and the two do not overlap. The service may write them
        // meanwhile, which the check below detects; no reference to them is made.
        unsafe { std::ptr::copy_nonoverlapping(address, copy.as_mut_ptr(), size) };
        if !self.still_valid(header) {
            return Err(self.why_not(header));
        }
        // SAFETY: as many bytes were just written.
        unsafe { copy.set_len(size) };
        Ok(copy)
    }

    /// The MetaHeader of the current block at a place of a managed segment, for cells without a
    /// generation (`o2`): segment, handle and size are checked as in [`locate`](Self::locate), and
    /// the generation is read from the block.
    ///
    /// # Errors
    /// [`ResolveError`].
    #[doc(hidden)]
    pub fn header_at(
        &self,
        segment: i64,
        handle: i64,
        size: i64,
    ) -> Result<MetaHeader, ResolveError> {
        let known = u16::try_from(segment).ok();
        let id = known.ok_or(ResolveError::UnknownSegment { id: u16::MAX })?;
        if let Some(host) = &self.host {
            return host.header_at(id, handle, size.cast_unsigned());
        }
        // A negative size becomes huge, which reaches beyond every segment. No block has generation
        // 0, so this header never resolves, and faults of its place are reported first.
        let header = MetaHeader::managed(id, handle, size.cast_unsigned(), 0);
        match self.why_not(&header) {
            ResolveError::Stale { found, .. } if found != 0 => {
                let header = MetaHeader { hint: found, ..header };
                self.check(&header).map(|_| header)
            }
            error => Err(error),
        }
    }

    /// Prefetches the headers and first bytes of the object of `header`. Does nothing for an
    /// invalid place.
    #[inline]
    pub fn prefetch(&self, header: &MetaHeader) {
        if let Some(payload) = self.place_of(header) {
            prefetch(payload.wrapping_sub(BLOCK_OVERHEAD_BYTES as usize));
            prefetch(payload);
        }
    }

    /// Like [`prefetch`](Self::prefetch), without the bytes of the payload.
    #[inline]
    fn prefetch_block(&self, header: &MetaHeader) {
        if let Some(payload) = self.place_of(header) {
            prefetch(payload.wrapping_sub(BLOCK_OVERHEAD_BYTES as usize));
        }
    }

    #[inline]
    fn place_of(&self, header: &MetaHeader) -> Option<*const u8> {
        let handle = header.handle.cast_unsigned();
        match header.managed {
            1 => {
                let payload = handle.wrapping_add(size_of::<ChunkHeader>() as u64);
                self.segments.place_of(header.segment_id, payload)
            }
            _ => self.regions.place_of(header.region_id, handle),
        }
    }

    /// Locates many headers in order: for the rows of a table, or for objects whose headers are in
    /// the processor's caches.
    pub fn locate_each<'a>(
        &'a self,
        headers: &'a [MetaHeader],
    ) -> impl Iterator<Item = Result<Location, ResolveError>> {
        headers.iter().map(|header| self.locate(header))
    }

    /// Like [`locate_each`](Self::locate_each), for objects scattered over more memory than the
    /// caches hold: their headers are prefetched. This is faster there, and slower where
    /// [`locate_each`](Self::locate_each) suffices.
    pub fn locate_scattered<'a>(
        &'a self,
        headers: &'a [MetaHeader],
    ) -> impl Iterator<Item = Result<Location, ResolveError>> {
        let mut ahead = headers.iter().skip(FAR_AHEAD);
        let told = headers.iter().inspect(move |_| {
            if let Some(ahead) = ahead.next() {
                self.prefetch_block(ahead);
            }
        });
        told.map(|header| self.locate(header))
    }

    /// Locates many headers, in their order.
    ///
    /// # Errors
    /// The first [`ResolveError`].
    pub fn locate_many(&self, headers: &[MetaHeader]) -> Result<Vec<Location>, ResolveError> {
        self.locate_each(headers).collect()
    }

    /// Whether the bytes read so far were still those of the object of `header`: its block has the
    /// same generation as before the read. Call it after the last byte was read.
    pub fn still_valid(&self, header: &MetaHeader) -> bool {
        if let Some(host) = &self.host {
            return host.still_valid(header);
        }
        self.check(header).is_ok_and(|CheckedHeader { block, .. }| {
            sync::seen_again(generation(block)) == header.hint
        })
    }

    /// The id of the object of `header`, from the header of its block.
    ///
    /// # Errors
    /// [`ResolveError`], as [`locate`](Self::locate).
    pub fn object_id(&self, header: &MetaHeader) -> Result<ObjectId, ResolveError> {
        if let Some(host) = &self.host {
            return host.object_id(header);
        }
        let CheckedHeader { block, .. } = self.check(header)?;
        // SAFETY: the id is a field of the block header, which is inside the mapping.
        let place = unsafe { block.add(offset_of!(BlockHeader, object_id)) };
        // SAFETY: 16 bytes inside of the mapping; a published block does not change.
        Ok(ObjectId::from_bytes(unsafe { place.cast::<[u8; 16]>().read() }))
    }
}

/// Prefetch distance of a loop that only resolves.
const FAR_AHEAD: usize = 2 * AHEAD;

/// The size in the block header.
#[inline]
fn size_in(block: *const u8) -> u64 {
    // SAFETY: the caller has checked that a block header is at `block`, inside the mapping.
    let place = unsafe { block.add(offset_of!(BlockHeader, size)) };
    // SAFETY: eight bytes inside of the mapping, aligned to 8 since the block is to 64.
    unsafe { AtomicU64::from_ptr(place.cast_mut().cast()) }.load(Ordering::Relaxed)
}

#[inline]
fn generation<'a>(block: *const u8) -> &'a AtomicU64 {
    // SAFETY: the caller has checked that a block header is at `block`, inside the mapping and
    // aligned to 64; these bytes are only accessed atomically.
    unsafe { AtomicU64::from_ptr(block.cast_mut().cast()) }
}

#[cfg(test)]
impl Mappings {
    /// The bytes of a block that the test itself keeps, or reads byte by byte.
    pub(crate) fn resolved(&self, header: &MetaHeader) -> Result<&[u8], ResolveError> {
        // SAFETY: the tests keep the blocks that they read, or read them byte by byte.
        unsafe { self.resolve(header) }
    }
}

impl fmt::Display for Mappings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} mappings", self.len())
    }
}
