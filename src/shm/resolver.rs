//! The consumer's side: from a MetaHeader to the bytes, checked, without any I/O.
#![allow(unsafe_code)]

use std::fmt;
use std::io;
use std::mem::offset_of;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{SealFlags, fcntl_get_seals, fstat};
use rustix::io::{pread, retry_on_intr};

use super::area::Kind;
use super::layout::{
    BLOCK_OVERHEAD_BYTES, BlockHeader, ChunkHeader, Epoch, GRANULE_BYTES, MetaHeader,
    SEGMENT_HEADER_BYTES, SegmentHeader,
};
use super::mapping::{Access, Mapping};
use super::sync;
use crate::error::{Code, Coded, ErrorKind};
use crate::object::ObjectId;

/// The segments and regions that a consumer has mapped, read-only, as of one moment.
///
/// It is never changed but replaced; what was mapped stays mapped as long as any of them has it.
#[derive(Debug, Clone, Default)]
pub struct Mappings {
    segments: Table,
    regions: Table,
}

/// Mappings by id, dense: looking one up is one bounds check.
#[derive(Debug, Clone, Default)]
struct Table {
    entries: Vec<Entry>,
    mapped: Vec<Option<Arc<Mapping>>>,
}

/// Where a mapping is, so that resolving touches nothing else. Length 0: there is none.
#[derive(Debug, Clone, Copy)]
struct Entry {
    base: *const u8,
    length: usize,
}

// SAFETY: an entry points into the mapping of the same index, which lives as long as the table, and
// is read through atomics and slices of published blocks only.
unsafe impl Send for Table {}
// SAFETY: as above.
unsafe impl Sync for Table {}

impl Table {
    fn set(&mut self, id: u16, mapping: Option<Arc<Mapping>>) {
        let place = usize::from(id);
        if self.entries.len() <= place {
            self.entries.resize(place + 1, Entry { base: std::ptr::null(), length: 0 });
            self.mapped.resize(place + 1, None);
        }
        self.entries[place] = match &mapping {
            Some(mapping) => Entry { base: mapping.base(), length: mapping.length() },
            None => Entry { base: std::ptr::null(), length: 0 },
        };
        self.mapped[place] = mapping;
    }
}

/// Why a MetaHeader does not resolve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ResolveError {
    /// No such segment is mapped (yet, or any more).
    #[error("segment {id} is not mapped")]
    UnknownSegment {
        /// The segment.
        id: u16,
    },
    /// No such region is mapped.
    #[error("region {id} is not mapped")]
    UnknownRegion {
        /// The region.
        id: u16,
    },
    /// `managed` is neither 0 nor 1.
    #[error("managed is {got}, which is neither 0 nor 1")]
    Unmanageable {
        /// What it is.
        got: u8,
    },
    /// No payload begins there.
    #[error("no payload can begin at handle {handle}")]
    Misaligned {
        /// The handle.
        handle: i64,
    },
    /// Such a block would reach out of the segment.
    #[error("{size} bytes at handle {handle} reach out of the {length} bytes of the segment")]
    OutOfBounds {
        /// The handle.
        handle: i64,
        /// The size that was given.
        size: u64,
        /// What the segment has.
        length: u64,
    },
    /// The block was given up, and perhaps taken anew.
    #[error("stale: the block has generation {found} where {expected} is asked for")]
    Stale {
        /// The generation in the header.
        expected: u64,
        /// That of the block; 0: given up.
        found: u64,
    },
    /// The generation is right and the size is not.
    #[error("the block has {found} bytes where the header says {expected}")]
    WrongSize {
        /// The size in the header.
        expected: u64,
        /// That of the block.
        found: u64,
    },
}

impl Coded for ResolveError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Stale { .. } | Self::UnknownSegment { .. } | Self::UnknownRegion { .. } => {
                ErrorKind::FailedPrecondition
            }
            Self::Unmanageable { .. }
            | Self::Misaligned { .. }
            | Self::OutOfBounds { .. }
            | Self::WrongSize { .. } => ErrorKind::InvalidArgument,
        }
    }

    fn code(&self) -> Code {
        Code(match self {
            Self::UnknownSegment { .. } => 4040,
            Self::UnknownRegion { .. } => 4041,
            Self::Unmanageable { .. } => 4042,
            Self::Misaligned { .. } => 4043,
            Self::OutOfBounds { .. } => 4044,
            Self::Stale { .. } => 4045,
            Self::WrongSize { .. } => 4046,
        })
    }
}

/// Why a segment is not mapped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AddError {
    /// It cannot be mapped.
    #[error("cannot map {kind} {id}")]
    Map {
        /// Segment or region.
        kind: Kind,
        /// Its number.
        id: u16,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// It is not what the service says it is.
    #[error("{kind} {id} is not as announced: {what} is {got}, expected {expected}")]
    Unlike {
        /// Segment or region.
        kind: Kind,
        /// Its number.
        id: u16,
        /// What differs.
        what: &'static str,
        /// What it is.
        got: u64,
        /// What it should be.
        expected: u64,
    },
    /// The service has given it back while it was on its way to us: nothing in it resolves.
    #[error("segment {id} was given back meanwhile")]
    Retired {
        /// Its number.
        id: u16,
    },
    /// It could shrink under our feet.
    #[error("segment {id} is not sealed: whoever truncates it would kill its readers")]
    NotSealed {
        /// Its number.
        id: u16,
    },
}

impl Coded for AddError {
    fn kind(&self) -> ErrorKind {
        ErrorKind::FailedPrecondition
    }
    fn code(&self) -> Code {
        Code(match self {
            Self::Map { .. } => 4050,
            Self::Unlike { .. } => 4051,
            Self::NotSealed { .. } => 4052,
            Self::Retired { .. } => 4053,
        })
    }
}

/// A checked place: where the block begins, and how long its payload is.
struct Checked {
    block: *const u8,
    size: usize,
}

/// The first bytes of a segment's file, read and not mapped: that a file which is no segment after
/// all is too short costs an error then, not the process.
struct Head([u8; size_of::<SegmentHeader>()]);

impl Head {
    const MAGIC: u64 = u64::from_le_bytes(SegmentHeader::MAGIC);

    fn read(file: BorrowedFd<'_>) -> rustix::io::Result<Self> {
        let mut head = [0; size_of::<SegmentHeader>()];
        // A short read leaves zeros, which no check lets pass.
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
    /// These, and one more; a mapping of the same id is replaced.
    ///
    /// # Errors
    /// [`AddError`].
    pub fn with(
        &self,
        kind: Kind,
        id: u16,
        size_bytes: u64,
        epoch: Epoch,
        file: BorrowedFd<'_>,
    ) -> Result<Self, AddError> {
        let failed = |error: io::Error| AddError::Map { kind, id, error };
        let unlike = |what, got, expected| {
            if got == expected {
                Ok(())
            } else {
                Err(AddError::Unlike { kind, id, what, got, expected })
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
            // A file without a name has no links: it must be sealed. One with a name cannot be.
            let sealed = facts.st_nlink > 0
                || fcntl_get_seals(file).is_ok_and(|seals| seals.contains(SealFlags::SHRINK));
            // Read after that: a name goes after the segment is retired.
            let head = Head::read(file).map_err(|error| failed(error.into()))?;
            unlike("the magic", head.u64(offset_of!(SegmentHeader, magic)), Head::MAGIC)?;
            let version = u64::from(SegmentHeader::VERSION);
            unlike("the version", head.u32(offset_of!(SegmentHeader, version)), version)?;
            unlike("the epoch", head.u64(offset_of!(SegmentHeader, epoch)), epoch.0)?;
            unlike("the id", head.u32(offset_of!(SegmentHeader, segment_id)), u64::from(id))?;
            unlike("the size", head.u64(offset_of!(SegmentHeader, size)), size_bytes)?;
            if head.u32(offset_of!(SegmentHeader, retired)) != 0 {
                return Err(AddError::Retired { id });
            }
            if !sealed {
                return Err(AddError::NotSealed { id });
            }
        }
        let mapping = Mapping::of_file(file.as_fd(), length, Access::Read).map_err(failed)?;
        Ok(self.clone().with_mapped(kind, id, Arc::new(mapping)))
    }

    /// These, and one more that is mapped already.
    pub(super) fn with_mapped(mut self, kind: Kind, id: u16, mapping: Arc<Mapping>) -> Self {
        match kind {
            Kind::Region => self.regions.set(id, Some(mapping)),
            Kind::Segment => self.segments.set(id, Some(mapping)),
        }
        self
    }

    /// These without the segments that the service has given back: nothing in them resolves any
    /// more, and mapped they keep memory from the node.
    #[must_use]
    pub fn swept(&self) -> Self {
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

    /// How many segments and regions are mapped.
    pub fn len(&self) -> usize {
        let mapped = self.segments.mapped.iter().chain(&self.regions.mapped);
        mapped.filter(|mapping| mapping.is_some()).count()
    }

    /// Whether none is mapped.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the segment or region is mapped in which `header` lies.
    pub fn knows(&self, header: &MetaHeader) -> bool {
        let (table, id) = match header.managed {
            1 => (&self.segments, header.segment_id),
            _ => (&self.regions, header.region_id),
        };
        table.entries.get(usize::from(id)).is_some_and(|entry| entry.length > 0)
    }

    #[inline]
    fn check(&self, header: &MetaHeader) -> Result<Checked, ResolveError> {
        let (entry, payload, first) = match header.managed {
            1 => {
                let entry = self.segments.entries.get(usize::from(header.segment_id));
                let payload = header.handle.checked_add(size_of::<ChunkHeader>() as i64);
                (entry, payload, SEGMENT_HEADER_BYTES as usize)
            }
            0 => (self.regions.entries.get(usize::from(header.region_id)), Some(header.handle), 0),
            got => return Err(ResolveError::Unmanageable { got }),
        };
        let Some(&Entry { base, length }) = entry.filter(|entry| entry.length > 0) else {
            return Err(match header.managed {
                1 => ResolveError::UnknownSegment { id: header.segment_id },
                _ => ResolveError::UnknownRegion { id: header.region_id },
            });
        };
        let out_of_bounds = || ResolveError::OutOfBounds {
            handle: header.handle,
            size: header.size,
            length: length as u64,
        };
        let payload = payload.and_then(|at| usize::try_from(at).ok()).ok_or_else(out_of_bounds)?;
        if payload & (GRANULE_BYTES as usize - 1) != 0 {
            return Err(ResolveError::Misaligned { handle: header.handle });
        }
        let size = usize::try_from(header.size).map_err(|_| out_of_bounds())?;
        let end = payload.checked_add(size).ok_or_else(out_of_bounds)?;
        if payload < first + BLOCK_OVERHEAD_BYTES as usize || end > length {
            return Err(out_of_bounds());
        }
        // SAFETY: 64 <= payload <= end <= length was checked, so the block's header lies inside of
        // the mapping.
        let block = unsafe { base.add(payload - BLOCK_OVERHEAD_BYTES as usize) };
        let found = sync::seen(generation(block));
        if found != header.hint || found == 0 {
            return Err(ResolveError::Stale { expected: header.hint, found });
        }
        // SAFETY: `size` is the second field of the header, which lies inside of the mapping.
        let place = unsafe { block.add(offset_of!(BlockHeader, size)) };
        // SAFETY: eight bytes inside of the mapping, aligned to 8 since the block is to 64.
        let found = unsafe { AtomicU64::from_ptr(place.cast_mut().cast()) }.load(Ordering::Relaxed);
        if found != header.size {
            return Err(ResolveError::WrongSize { expected: header.size, found });
        }
        Ok(Checked { block, size })
    }

    /// The bytes of the object that `header` names.
    ///
    /// They stay as they are as long as the table that `header` came with is held (its lease or
    /// session, or its timeframe); whoever reads on without must ask
    /// [`still_valid`](Self::still_valid) afterwards.
    ///
    /// # Errors
    /// [`ResolveError`]; no header, however forged, is a danger.
    #[inline]
    pub fn resolve(&self, header: &MetaHeader) -> Result<&[u8], ResolveError> {
        let Checked { block, size } = self.check(header)?;
        // SAFETY: `check` has seen that 64 bytes of headers and `size` bytes of payload lie inside
        // of the mapping.
        let payload = unsafe { block.add(BLOCK_OVERHEAD_BYTES as usize) };
        // SAFETY: as above; mapped as long as `self`. A published block is not written again
        // before its generation is zeroed, which the service does only when nobody holds it.
        Ok(unsafe { std::slice::from_raw_parts(payload, size) })
    }

    /// Resolves many headers; the first that fails is the error.
    ///
    /// # Errors
    /// [`ResolveError`].
    pub fn resolve_many<'a>(
        &'a self,
        headers: &[MetaHeader],
    ) -> Result<Vec<&'a [u8]>, ResolveError> {
        headers.iter().map(|header| self.resolve(header)).collect()
    }

    /// Whether what was read of `header` until now was still the object.
    pub fn still_valid(&self, header: &MetaHeader) -> bool {
        self.check(header)
            .is_ok_and(|Checked { block, .. }| sync::seen_again(generation(block)) == header.hint)
    }

    /// The version that lies there.
    ///
    /// # Errors
    /// [`ResolveError`].
    pub fn object_id(&self, header: &MetaHeader) -> Result<ObjectId, ResolveError> {
        let Checked { block, .. } = self.check(header)?;
        // SAFETY: the id is a field of the header, which lies inside of the mapping.
        let place = unsafe { block.add(offset_of!(BlockHeader, object_id)) };
        // SAFETY: 16 bytes inside of the mapping; a published block does not change.
        Ok(ObjectId::from_bytes(unsafe { place.cast::<[u8; 16]>().read() }))
    }
}

#[inline]
fn generation<'a>(block: *const u8) -> &'a AtomicU64 {
    // SAFETY: the caller has checked that a block's header lies at `block`, inside of the mapping
    // and aligned to 64; these bytes are only accessed atomically.
    unsafe { AtomicU64::from_ptr(block.cast_mut().cast()) }
}

impl fmt::Display for Mappings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} mappings", self.len())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Backing, Pool, PoolOptions, Region, Reservation};
    use super::*;

    fn id(n: u8) -> ObjectId {
        ObjectId::from_bytes([n; 16])
    }

    fn mappings_of(pool: &Pool) -> Mappings {
        pool.segments().iter().fold(Mappings::default(), |mappings, shared| {
            let file = shared.file().unwrap();
            let size = shared.size_bytes();
            mappings.with(shared.kind(), shared.id(), size, pool.epoch(), file).unwrap()
        })
    }

    fn filled(pool: &Pool, bytes: &[u8]) -> Reservation {
        let mut reservation = pool.reserve(bytes.len() as u64).unwrap();
        reservation.fill(bytes);
        reservation
    }

    /// The same for every backing: memfds, files with names, a region of somebody else.
    fn for_each_backing(test: impl Fn(Pool)) {
        let folder = tempfile::tempdir().unwrap();
        let small = |backing, region| {
            let (memory_bytes, segment_bytes) = (1 << 20, 128 << 10);
            let first_generation = None;
            let options =
                PoolOptions { memory_bytes, segment_bytes, backing, region, first_generation };
            Pool::new(options).unwrap()
        };
        test(small(Backing::Memfd, None));
        test(small(Backing::Folder(folder.path().join("segments")), None));
        let file = folder.path().join("region");
        std::fs::write(&file, vec![0xAB; 1 << 20]).unwrap();
        test(small(Backing::Memfd, Some(Region::open(&file, 2000).unwrap())));
    }

    #[test]
    fn what_is_published_resolves_to_its_bytes_in_every_backing() {
        for_each_backing(|pool| {
            let objects: Vec<Vec<u8>> =
                [0, 1, 63, 64, 65, 5000].iter().map(|&size| vec![size as u8; size]).collect();
            let blocks: Vec<_> = objects
                .iter()
                .zip(0..)
                .map(|(bytes, n)| filled(&pool, bytes).publish(id(n)))
                .collect();
            let mappings = mappings_of(&pool);
            for (n, (block, bytes)) in blocks.iter().zip(&objects).enumerate() {
                let header = block.meta_header();
                assert_eq!(mappings.resolve(&header), Ok(&bytes[..]));
                assert_eq!(mappings.object_id(&header), Ok(id(n as u8)));
                assert_eq!(block.payload(), bytes);
                assert!(block.is_intact() && mappings.still_valid(&header));
                assert_eq!(block.payload().as_ptr().addr() % 64, 0);
            }
            let report = pool.check().unwrap();
            assert_eq!(report.used_bytes, blocks.iter().map(|b| b.charged_bytes()).sum::<u64>());
            drop(blocks);
            assert_eq!(pool.check().unwrap().used_bytes, 0);
        });
    }

    #[test]
    fn a_block_that_was_given_up_is_stale_even_when_its_place_is_taken_anew() {
        for_each_backing(|pool| {
            let keep = filled(&pool, b"keeps the segment").publish(id(9));
            let block = filled(&pool, b"old").publish(id(1));
            let mappings = mappings_of(&pool);
            let header = block.meta_header();
            let expected = header.hint;
            drop(block);
            assert_eq!(mappings.resolve(&header), Err(ResolveError::Stale { expected, found: 0 }));
            assert!(!mappings.still_valid(&header));
            let anew = filled(&pool, b"new").publish(id(2));
            assert_eq!(anew.meta_header().handle, header.handle);
            let found = anew.generation();
            assert_eq!(mappings.resolve(&header), Err(ResolveError::Stale { expected, found }));
            drop(keep);
        });
    }

    #[test]
    fn a_block_is_stale_while_it_is_being_filled() {
        let options = PoolOptions { memory_bytes: 1 << 20, ..PoolOptions::default() };
        let pool = Pool::new(options).unwrap();
        let first = filled(&pool, &[0xFF; 1000]).publish(id(1));
        let _second = filled(&pool, b"keeps the segment").publish(id(2));
        let header = first.meta_header();
        drop(first);
        let mappings = mappings_of(&pool);
        let mut half = pool.reserve(1000).unwrap();
        half.payload_mut()[..10].fill(1);
        let forged = MetaHeader { hint: u64::MAX, ..header };
        assert!(matches!(mappings.resolve(&forged), Err(ResolveError::Stale { found: 0, .. })));
    }

    #[test]
    fn each_field_of_a_header_is_checked() {
        let pool = Pool::new(PoolOptions { memory_bytes: 1 << 20, ..PoolOptions::default() });
        let pool = pool.unwrap();
        let block = filled(&pool, b"right").publish(id(1));
        let (mappings, right) = (mappings_of(&pool), block.meta_header());
        let error = |header: MetaHeader| mappings.resolve(&header).unwrap_err();
        let mut wrong = right;
        wrong.segment_id = 77;
        assert_eq!(error(wrong), ResolveError::UnknownSegment { id: 77 });
        let mut wrong = right;
        wrong.managed = 0;
        assert_eq!(error(wrong), ResolveError::UnknownRegion { id: 0 });
        let mut wrong = right;
        wrong.managed = 2;
        assert_eq!(error(wrong), ResolveError::Unmanageable { got: 2 });
        for handle in [right.handle + 1, right.handle + 16, right.handle - 8] {
            let wrong = MetaHeader { handle, ..right };
            assert_eq!(error(wrong), ResolveError::Misaligned { handle });
        }
        for handle in [i64::MIN, -16, i64::MAX, i64::MAX - 15, 48, 4096 - 16, (1 << 20) + 48] {
            let wrong = MetaHeader { handle, ..right };
            assert!(
                matches!(
                    error(wrong),
                    ResolveError::OutOfBounds { .. } | ResolveError::Misaligned { .. }
                ),
                "{handle}"
            );
        }
        for size in [u64::MAX, u64::MAX - 4159, 1 << 20, 1 << 63] {
            let wrong = MetaHeader { size, ..right };
            assert!(matches!(error(wrong), ResolveError::OutOfBounds { .. }), "{size}");
        }
        let wrong = MetaHeader { size: 4, ..right };
        assert_eq!(error(wrong), ResolveError::WrongSize { expected: 4, found: 5 });
        for hint in [0, right.hint.wrapping_add(1)] {
            let wrong = MetaHeader { hint, ..right };
            assert!(matches!(error(wrong), ResolveError::Stale { .. }));
        }
        assert_eq!(mappings.resolve(&right), Ok(&b"right"[..]));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn no_forged_header_is_a_danger(seed in any::<u64>()) {
            let pool = Pool::new(PoolOptions {
                memory_bytes: 64 << 10,
                segment_bytes: 16 << 10,
                ..PoolOptions::default()
            })
            .unwrap();
            let blocks: Vec<_> =
                (0..20).map(|n| filled(&pool, &vec![n; usize::from(n) * 50]).publish(id(n))).collect();
            let mappings = mappings_of(&pool);
            let mut state = seed | 1;
            let mut random = || {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state
            };
            for _ in 0..20_000 {
                let mut bytes = blocks[(random() % 20) as usize].meta_header().to_bytes();
                for _ in 0..=random() % 3 {
                    bytes[(random() % 40) as usize] = random() as u8;
                }
                let header = MetaHeader::from_array(&bytes);
                if let Ok(found) = mappings.resolve(&header) {
                    let real = blocks.iter().find(|block| block.generation() == header.hint);
                    prop_assert_eq!(real.map(|block| block.payload()), Some(found));
                }
            }
        }
    }

    #[test]
    fn a_file_that_is_not_what_was_announced_is_not_mapped() {
        use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
        let pool = Pool::new(PoolOptions { memory_bytes: 1 << 20, ..PoolOptions::default() });
        let pool = pool.unwrap();
        let _block = filled(&pool, b"x").publish(id(1));
        let shared = pool.segments().remove(0);
        let (file, size, none) = (shared.file().unwrap(), shared.size_bytes(), Mappings::default());
        let add = |id, size, epoch| none.with(Kind::Segment, id, size, epoch, file);
        assert!(matches!(add(0, size + 1, pool.epoch()), Err(AddError::Unlike { .. })));
        assert!(matches!(add(1, size, pool.epoch()), Err(AddError::Unlike { what: "the id", .. })));
        let other = Epoch(pool.epoch().0 ^ 1);
        assert!(matches!(add(0, size, other), Err(AddError::Unlike { what: "the epoch", .. })));
        let loose = memfd_create(c"loose", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&loose, 8192).unwrap();
        let added = none.with(Kind::Segment, 0, 8192, pool.epoch(), loose.as_fd());
        assert!(matches!(added, Err(AddError::NotSealed { .. } | AddError::Unlike { .. })));
    }

    #[test]
    fn a_consumer_can_neither_write_nor_truncate_a_segment() {
        let pool = Pool::new(PoolOptions { memory_bytes: 1 << 20, ..PoolOptions::default() });
        let pool = pool.unwrap();
        let _block = filled(&pool, b"x").publish(id(1));
        let shared = pool.segments().remove(0);
        let file = shared.file().unwrap();
        assert!(rustix::fs::ftruncate(file, 0).is_err());
        assert!(rustix::io::pwrite(file, b"spoilt", 4096).is_err());
        let length = shared.size_bytes() as usize;
        assert!(Mapping::of_file(file, length, Access::ReadWrite).is_err());
    }

    #[test]
    fn an_empty_segment_goes_back_and_a_sweep_lets_it_go() {
        let pool = Pool::new(PoolOptions {
            memory_bytes: 1 << 20,
            segment_bytes: 64 << 10,
            ..PoolOptions::default()
        })
        .unwrap();
        let small = filled(&pool, b"stays").publish(id(1));
        let large = filled(&pool, &vec![1; 500 << 10]).publish(id(2));
        let mappings = mappings_of(&pool);
        assert_eq!((pool.usage().segments, mappings.len()), (2, 2));
        let gone = large.meta_header();
        drop(large);
        assert_eq!(pool.usage().segments, 1);
        let swept = mappings.swept();
        assert_eq!(swept.len(), 1);
        assert!(matches!(mappings.resolve(&gone), Err(ResolveError::Stale { .. })));
        assert!(matches!(swept.resolve(&gone), Err(ResolveError::UnknownSegment { .. })));
        assert_eq!(swept.resolve(&small.meta_header()), Ok(&b"stays"[..]));
    }

    #[test]
    fn what_does_not_fit_is_told_from_what_never_will() {
        use super::super::PoolError;
        let pool = Pool::new(PoolOptions {
            memory_bytes: 256 << 10,
            segment_bytes: 64 << 10,
            ..PoolOptions::default()
        })
        .unwrap();
        assert!(matches!(pool.reserve(256 << 10), Err(PoolError::NeverFits { .. })));
        assert!(matches!(pool.reserve(u64::MAX), Err(PoolError::NeverFits { .. })));
        let largest = pool.usage().largest_free_bytes;
        let all = pool.reserve(largest).unwrap();
        assert!(matches!(pool.reserve(1), Err(PoolError::NoRoom { .. })));
        drop(all);
        // An empty spare must not keep the memory from an object of another size.
        drop(pool.reserve(1000).unwrap());
        drop(pool.reserve(largest).unwrap());
        assert_eq!(pool.used_bytes(), 0);
    }
}
