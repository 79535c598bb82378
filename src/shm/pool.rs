//! The service's side: takes blocks from segments, fills and publishes them, gives them back.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::mem::offset_of;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crc_fast::{CrcAlgorithm, Digest};
use serde::{Deserialize, Serialize};

use super::allocator::{Allocator, Place};
use super::backing::{Backing, Made, Maker};
use super::layout::{
    BLOCK_OVERHEAD_BYTES, BlockHeader, ChunkHeader, Epoch, GRANULE_BYTES, MetaHeader,
    SEGMENT_HEADER_BYTES, SegmentHeader,
};
use super::mapping::Mapping;
use super::region::Region;
use crate::error::{Code, Coded, ErrorKind};
use crate::object::ObjectId;

/// Sizes of segments are multiples of this.
const PAGE_BYTES: u64 = 4096;
/// A segment can have this much: its granules are counted in 32 bits.
const MAX_SEGMENT_BYTES: u64 = (u32::MAX as u64 - 1) * GRANULE_BYTES;

/// What a pool is made with.
#[derive(Debug)]
pub struct PoolOptions {
    /// All segments together have at most so many bytes. Ignored with a region, which has what it
    /// has.
    pub memory_bytes: u64,
    /// The size of a segment. An object that is larger gets one of its own.
    pub segment_bytes: u64,
    /// What segments are made of.
    pub backing: Backing,
    /// A region into which all blocks go, instead of segments.
    pub region: Option<Region>,
    /// The first generation; `None`: a random one, so that no two instances have any in common.
    pub first_generation: Option<u64>,
}

impl Default for PoolOptions {
    /// 4 GiB in segments of 512 MiB, memfds.
    fn default() -> Self {
        Self {
            memory_bytes: 4 << 30,
            segment_bytes: 512 << 20,
            backing: Backing::default(),
            region: None,
            first_generation: None,
        }
    }
}

/// What a place can be in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A segment of our own.
    Segment,
    /// A region that somebody else owns.
    Region,
}

/// A segment or region that blocks lie in, as consumers get it.
#[derive(Clone)]
pub struct SharedSegment(Arc<Area>);

impl SharedSegment {
    /// Segment or region.
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// Its number among those of its kind.
    pub fn id(&self) -> u16 {
        self.0.id
    }

    /// All of it, its header included.
    pub fn size_bytes(&self) -> u64 {
        self.0.mapping().length() as u64
    }

    /// Its file; a region that is but a range of memory has none.
    pub fn file(&self) -> Option<BorrowedFd<'_>> {
        match &self.0.memory {
            Memory::Segment(made) => Some(made.file.as_fd()),
            Memory::Region(region) => region.file.as_ref().map(|file| file.as_fd()),
        }
    }
}

impl fmt::Debug for SharedSegment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {} of {} bytes", self.kind(), self.id(), self.size_bytes())
    }
}

/// A segment or region.
struct Area {
    kind: Kind,
    id: u16,
    memory: Memory,
}

enum Memory {
    Segment(Made),
    Region(Region),
}

impl Area {
    fn mapping(&self) -> &Mapping {
        match &self.memory {
            Memory::Segment(made) => &made.mapping,
            Memory::Region(region) => &region.mapping,
        }
    }

    /// Where the first block can begin.
    fn first_block(&self) -> u64 {
        match self.kind {
            Kind::Segment => SEGMENT_HEADER_BYTES,
            Kind::Region => 0,
        }
    }

    fn granules(&self) -> u32 {
        let bytes = self.mapping().length() as u64 - self.first_block();
        u32::try_from(bytes / GRANULE_BYTES).unwrap_or(u32::MAX - 1)
    }

    fn write_segment_header(&self, epoch: Epoch) {
        let mapping = self.mapping();
        let parts: [(usize, &[u8]); 6] = [
            (offset_of!(SegmentHeader, initialised), &2_u32.to_le_bytes()),
            (offset_of!(SegmentHeader, version), &SegmentHeader::VERSION.to_le_bytes()),
            (offset_of!(SegmentHeader, epoch), &epoch.0.to_le_bytes()),
            (offset_of!(SegmentHeader, segment_id), &u32::from(self.id).to_le_bytes()),
            (offset_of!(SegmentHeader, size), &(mapping.length() as u64).to_le_bytes()),
            (offset_of!(SegmentHeader, magic), &SegmentHeader::MAGIC),
        ];
        for (offset, bytes) in parts {
            // SAFETY: the segment is new: nobody but us knows of it.
            unsafe { mapping.write(offset, bytes) };
        }
    }
}

/// Memory for blocks. Clones are the same pool.
#[derive(Clone)]
pub struct Pool(Arc<Inner>);

type Listener = Box<dyn Fn(&SharedSegment) + Send + Sync>;

struct Inner {
    memory_bytes: u64,
    segment_bytes: u64,
    maker: Maker,
    fixed: bool,
    epoch: Epoch,
    next_generation: AtomicU64,
    used_bytes: AtomicU64,
    /// Held while a segment is made, which takes long; taking and giving places goes on.
    growing: Mutex<()>,
    state: Mutex<State>,
    listener: Mutex<Option<Listener>>,
}

#[derive(Default)]
struct State {
    areas: BTreeMap<u16, Slot>,
    /// Bytes of all segments, and of those that are being made.
    area_bytes: u64,
    next_id: u16,
}

struct Slot {
    area: Arc<Area>,
    allocator: Allocator,
}

/// How much there is of what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// What there can be in all.
    pub total_bytes: u64,
    /// What blocks and reservations take, their headers and rounding included.
    pub used_bytes: u64,
    /// The rest.
    pub free_bytes: u64,
    /// The largest payload that could be reserved now.
    pub largest_free_bytes: u64,
    /// How many segments there are.
    pub segments: usize,
}

/// What [`Pool::check`] looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolReport {
    /// Segments.
    pub segments: usize,
    /// Bytes that are taken in them.
    pub used_bytes: u64,
}

/// Why there is no memory.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PoolError {
    /// Not now: others have it.
    #[error(
        "no room for {needed_bytes} bytes: {free_bytes} are free, {largest_free_bytes} in one piece"
    )]
    NoRoom {
        /// What is needed.
        needed_bytes: u64,
        /// What is free in all.
        free_bytes: u64,
        /// What is free in one piece.
        largest_free_bytes: u64,
    },
    /// Never.
    #[error("{needed_bytes} bytes can never fit into a memory of {limit_bytes}")]
    NeverFits {
        /// What is needed.
        needed_bytes: u64,
        /// What there is.
        limit_bytes: u64,
    },
    /// The system does not give it.
    #[error("the system gives no segment of {bytes} bytes")]
    Segment {
        /// What was asked for.
        bytes: u64,
        /// What it says.
        #[source]
        error: io::Error,
    },
}

impl Coded for PoolError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NoRoom { .. } => ErrorKind::Unavailable,
            Self::NeverFits { .. } => ErrorKind::ResourceExhausted,
            Self::Segment { error, .. } => match error.kind() {
                io::ErrorKind::ResourceBusy => ErrorKind::AlreadyExists,
                io::ErrorKind::PermissionDenied => ErrorKind::PermissionDenied,
                _ => ErrorKind::Unavailable,
            },
        }
    }

    fn code(&self) -> Code {
        Code(match self {
            Self::NoRoom { .. } => 4001,
            Self::NeverFits { .. } => 4002,
            Self::Segment { .. } => 4003,
        })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn random() -> io::Result<u64> {
    let mut bytes = [0; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(u64::from_le_bytes(bytes))
}

impl Pool {
    /// A pool without any segment yet.
    ///
    /// # Errors
    /// [`PoolError::NeverFits`] if nothing can fit, [`PoolError::Segment`] if the folder of the
    /// backing cannot be had.
    pub fn new(options: PoolOptions) -> Result<Self, PoolError> {
        let PoolOptions { memory_bytes, segment_bytes, backing, region, first_generation } =
            options;
        let least = SEGMENT_HEADER_BYTES + PAGE_BYTES;
        let memory_bytes = match &region {
            Some(region) => region.mapping.length() as u64,
            None if memory_bytes < least => {
                return Err(PoolError::NeverFits {
                    needed_bytes: least,
                    limit_bytes: memory_bytes,
                });
            }
            None => memory_bytes,
        };
        let no_segment = |error| PoolError::Segment { bytes: segment_bytes, error };
        let fixed = region.is_some();
        let mut state = State::default();
        if let Some(region) = region {
            let id = region.id;
            let area = Area { kind: Kind::Region, id, memory: Memory::Region(region) };
            let allocator = Allocator::new(area.granules());
            state.areas.insert(id, Slot { area: Arc::new(area), allocator });
        }
        Ok(Self(Arc::new(Inner {
            memory_bytes,
            segment_bytes: segment_bytes
                .clamp(least, MAX_SEGMENT_BYTES)
                .next_multiple_of(PAGE_BYTES),
            maker: Maker::new(backing).map_err(no_segment)?,
            fixed,
            epoch: Epoch(random().map_err(no_segment)?),
            next_generation: AtomicU64::new(match first_generation {
                Some(first) => first,
                None => random().map_err(no_segment)?,
            }),
            used_bytes: AtomicU64::new(0),
            growing: Mutex::default(),
            state: Mutex::new(state),
            listener: Mutex::default(),
        })))
    }

    /// The instance: no other pool has it.
    pub fn epoch(&self) -> Epoch {
        self.0.epoch
    }

    /// What a payload takes of the memory: its header, and rounded up to 64 bytes.
    pub fn charge(size_bytes: u64) -> u64 {
        let bytes = size_bytes.saturating_add(BLOCK_OVERHEAD_BYTES);
        bytes.checked_next_multiple_of(GRANULE_BYTES).unwrap_or(u64::MAX)
    }

    /// Calls `listener` for each segment that is made from now on, once it is listed.
    pub fn on_new_segment(&self, listener: impl Fn(&SharedSegment) + Send + Sync + 'static) {
        *lock(&self.0.listener) = Some(Box::new(listener));
    }

    /// Room for a payload.
    ///
    /// # Errors
    /// [`PoolError`].
    pub fn reserve(&self, size_bytes: u64) -> Result<Reservation, PoolError> {
        let needed_bytes = Self::charge(size_bytes);
        let limit_bytes = self.0.largest_payload_area();
        let granules = match u32::try_from(needed_bytes / GRANULE_BYTES) {
            Ok(granules) if needed_bytes <= limit_bytes => granules,
            _ => return Err(PoolError::NeverFits { needed_bytes, limit_bytes }),
        };
        let mut taken = lock(&self.0.state).take(granules);
        if taken.is_none() && !self.0.fixed {
            taken = self.grow(granules)?;
        }
        let Some((area, start, place)) = taken else {
            let Usage { free_bytes, largest_free_bytes, .. } = self.usage();
            return Err(PoolError::NoRoom { needed_bytes, free_bytes, largest_free_bytes });
        };
        self.0.used_bytes.fetch_add(needed_bytes, Ordering::Relaxed);
        let block = (area.first_block() + u64::from(start) * GRANULE_BYTES) as usize;
        // What stood here before may look like a generation: until this block is published there
        // is none.
        area.mapping().atomic_u64(block).store(0, Ordering::Relaxed);
        fence(Ordering::Release);
        Ok(Reservation {
            place: Taken {
                pool: Arc::clone(&self.0),
                area,
                block,
                place: Some(place),
                needed_bytes,
            },
            size: size_bytes as usize,
            digest: Digest::new(CrcAlgorithm::Crc32Iscsi),
            digested: 0,
        })
    }

    /// Makes a segment in which `granules` have room, if the memory allows it, and takes them.
    fn grow(&self, granules: u32) -> Result<Option<(Arc<Area>, u32, Place)>, PoolError> {
        let inner = &*self.0;
        let _growing = lock(&inner.growing);
        let least = (SEGMENT_HEADER_BYTES + u64::from(granules) * GRANULE_BYTES)
            .next_multiple_of(PAGE_BYTES);
        let (id, bytes, retired) = {
            let mut state = lock(&inner.state);
            // Somebody may have made or emptied one while we waited.
            if let Some(taken) = state.take(granules) {
                return Ok(Some(taken));
            }
            let mut retired = Vec::new();
            let wanted = inner.segment_bytes.max(least);
            loop {
                let budget = inner.memory_bytes - state.area_bytes;
                let bytes = wanted.min(budget / PAGE_BYTES * PAGE_BYTES);
                if bytes >= least {
                    let Some(id) = state.unused_id() else { return Ok(None) };
                    state.area_bytes += bytes;
                    break (id, bytes, retired);
                }
                // An empty segment of another size may hold what is missing.
                let Some(empty) = state.take_out_an_empty_one() else { return Ok(None) };
                retired.push(empty);
            }
        };
        drop(retired);
        let made = inner.maker.make(id, bytes).and_then(|made| {
            let area = Area { kind: Kind::Segment, id, memory: Memory::Segment(made) };
            area.write_segment_header(inner.epoch);
            if let Memory::Segment(made) = &area.memory {
                inner.maker.seal(made)?;
            }
            Ok(Arc::new(area))
        });
        let area = match made {
            Ok(area) => area,
            Err(error) => {
                lock(&inner.state).area_bytes -= bytes;
                return Err(PoolError::Segment { bytes, error });
            }
        };
        let shared = SharedSegment(Arc::clone(&area));
        let taken = {
            let mut state = lock(&inner.state);
            let allocator = Allocator::new(area.granules());
            state.areas.insert(id, Slot { area, allocator });
            state.take(granules)
        };
        // Told once it is listed, and before anything is published in it by us.
        if let Some(listener) = &*lock(&inner.listener) {
            listener(&shared);
        }
        Ok(taken)
    }

    /// How much there is of what.
    pub fn usage(&self) -> Usage {
        let state = lock(&self.0.state);
        let longest = state.areas.values().map(|slot| slot.allocator.largest_free()).max();
        let in_areas = u64::from(longest.unwrap_or(0)) * GRANULE_BYTES;
        let in_a_new_one = if self.0.fixed {
            0
        } else {
            let empty = state.areas.values().filter(|slot| slot.allocator.is_empty());
            let empty: u64 = empty.map(|slot| slot.area.mapping().length() as u64).sum();
            let budget = self.0.memory_bytes - state.area_bytes + empty;
            let whole = (budget / PAGE_BYTES * PAGE_BYTES).min(MAX_SEGMENT_BYTES);
            whole.saturating_sub(SEGMENT_HEADER_BYTES)
        };
        let total_bytes = self.0.memory_bytes;
        let used_bytes = self.used_bytes();
        Usage {
            total_bytes,
            used_bytes,
            free_bytes: total_bytes.saturating_sub(used_bytes),
            largest_free_bytes: in_areas.max(in_a_new_one).saturating_sub(BLOCK_OVERHEAD_BYTES),
            segments: state.areas.len(),
        }
    }

    /// What the pool can have in all.
    pub fn total_bytes(&self) -> u64 {
        self.0.memory_bytes
    }

    /// What blocks and reservations take; without a lock.
    pub fn used_bytes(&self) -> u64 {
        self.0.used_bytes.load(Ordering::Relaxed)
    }

    /// All segments and regions, as of now.
    pub fn segments(&self) -> Vec<SharedSegment> {
        let state = lock(&self.0.state);
        state.areas.values().map(|slot| SharedSegment(Arc::clone(&slot.area))).collect()
    }

    /// Looks whether places overlap, free neighbours are one, and the bytes add up.
    ///
    /// # Errors
    /// All that is wrong, each in a sentence. While others reserve and give back, that can be the
    /// sum alone.
    pub fn check(&self) -> Result<PoolReport, Vec<String>> {
        let state = lock(&self.0.state);
        let mut faults = Vec::new();
        let mut granules = 0;
        for (id, slot) in &state.areas {
            faults.extend(
                slot.allocator.faults().into_iter().map(|why| format!("segment {id}: {why}")),
            );
            granules += u64::from(slot.allocator.taken_length());
        }
        let used_bytes = granules * GRANULE_BYTES;
        if used_bytes != self.used_bytes() {
            faults.push(format!("{used_bytes} bytes are taken, {} are counted", self.used_bytes()));
        }
        if faults.is_empty() {
            Ok(PoolReport { segments: state.areas.len(), used_bytes })
        } else {
            Err(faults)
        }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("epoch", &self.0.epoch).field("usage", &self.usage()).finish()
    }
}

impl Inner {
    /// The most that one block can take.
    fn largest_payload_area(&self) -> u64 {
        if self.fixed {
            return self.memory_bytes / GRANULE_BYTES * GRANULE_BYTES;
        }
        let whole = (self.memory_bytes / PAGE_BYTES * PAGE_BYTES).min(MAX_SEGMENT_BYTES);
        whole - SEGMENT_HEADER_BYTES
    }

    fn generation(&self) -> u64 {
        loop {
            let generation = self.next_generation.fetch_add(1, Ordering::Relaxed);
            if generation != 0 {
                return generation;
            }
        }
    }

    fn give(&self, area: &Area, place: Place, bytes: u64) {
        self.used_bytes.fetch_sub(bytes, Ordering::Relaxed);
        let retired = {
            let mut state = lock(&self.state);
            let Some(slot) = state.areas.get_mut(&area.id) else { return };
            slot.allocator.give(place);
            let odd = area.mapping().length() as u64 != self.segment_bytes;
            let useless = slot.allocator.is_empty()
                && !self.fixed
                && (odd
                    || state.areas.values().filter(|slot| slot.allocator.is_empty()).count() > 1);
            if useless { state.take_out(area.id) } else { None }
        };
        // Unmapping takes its time: not under the lock.
        drop(retired);
    }
}

impl State {
    fn take(&mut self, granules: u32) -> Option<(Arc<Area>, u32, Place)> {
        self.areas.values_mut().find_map(|slot| {
            let (start, place) = slot.allocator.take(granules)?;
            Some((Arc::clone(&slot.area), start, place))
        })
    }

    /// Ids ascend, so that a consumer does not soon see another segment under one that it knows.
    fn unused_id(&mut self) -> Option<u16> {
        (0..=u16::MAX).find_map(|_| {
            let id = self.next_id;
            self.next_id = id.wrapping_add(1);
            (!self.areas.contains_key(&id)).then_some(id)
        })
    }

    fn take_out_an_empty_one(&mut self) -> Option<Arc<Area>> {
        let id =
            self.areas.iter().find(|(_, slot)| slot.allocator.is_empty()).map(|(id, _)| *id)?;
        self.take_out(id)
    }

    fn take_out(&mut self, id: u16) -> Option<Arc<Area>> {
        let Slot { area, .. } = self.areas.remove(&id)?;
        self.area_bytes -= area.mapping().length() as u64;
        // SYNC(retire): pairs with the Acquire load in `Mappings::sweep`.
        let retired = area.mapping().atomic_u32(offset_of!(SegmentHeader, retired));
        retired.store(1, Ordering::Release);
        Some(area)
    }
}

/// A place that goes back when this is dropped.
struct Taken {
    pool: Arc<Inner>,
    area: Arc<Area>,
    /// Where it begins in the area.
    block: usize,
    place: Option<Place>,
    needed_bytes: u64,
}

impl Taken {
    fn payload(&self) -> usize {
        self.block + BLOCK_OVERHEAD_BYTES as usize
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        if let Some(place) = self.place.take() {
            self.pool.give(&self.area, place, self.needed_bytes);
        }
    }
}

/// Room for a payload that nobody else sees yet. Dropped, the room is free again.
pub struct Reservation {
    place: Taken,
    size: usize,
    digest: Digest,
    /// So many bytes from the start are in the digest.
    digested: usize,
}

impl Reservation {
    /// The size of the payload.
    pub fn size_bytes(&self) -> u64 {
        self.size as u64
    }

    /// The payload, to be written. At first it holds whatever was there before.
    pub fn payload_mut(&mut self) -> &mut [u8] {
        self.digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
        self.digested = 0;
        self.rest_mut(0)
    }

    /// The payload from `offset` on, to be written; what stands before is not changed any more.
    ///
    /// # Panics
    /// If `offset` lies behind the end.
    pub fn rest_mut(&mut self, offset: usize) -> &mut [u8] {
        debug_assert!(self.digested <= offset);
        let length = self.size - offset;
        // SAFETY: the place is reserved for us alone, no generation is published for it, so no
        // reader gets a slice of it; `&mut self` keeps ourselves from having two.
        unsafe { self.place.area.mapping().bytes_mut(self.place.payload() + offset, length) }
    }

    /// Says that the first `count` bytes are written for good. They go into the checksum now, while
    /// they are in the processor's cache.
    ///
    /// # Panics
    /// If there are not so many.
    pub fn settle(&mut self, count: usize) {
        assert!(count <= self.size, "{count} bytes of {}", self.size);
        if count > self.digested {
            let (start, length) = (self.place.payload() + self.digested, count - self.digested);
            // SAFETY: as in `rest_mut`.
            let fresh = unsafe { self.place.area.mapping().bytes(start, length) };
            self.digest.update(fresh);
            self.digested = count;
        }
    }

    /// What is settled so far.
    pub fn settled(&self) -> &[u8] {
        // SAFETY: as in `rest_mut`; settled bytes are not written any more.
        unsafe { self.place.area.mapping().bytes(self.place.payload(), self.digested) }
    }

    /// Writes the whole payload.
    ///
    /// # Panics
    /// If `bytes` are not as many as were reserved.
    pub fn fill(&mut self, bytes: &[u8]) {
        /// Small enough for a core's cache, so that the checksum reads what was just written.
        const PIECE_BYTES: usize = 128 << 10;
        assert_eq!(bytes.len(), self.size);
        self.payload_mut();
        for piece in bytes.chunks(PIECE_BYTES) {
            let start = self.digested;
            self.rest_mut(start)[..piece.len()].copy_from_slice(piece);
            self.settle(start + piece.len());
        }
    }

    /// Makes it a block that resolves, under a generation of its own.
    pub fn publish(mut self, id: ObjectId) -> Block {
        self.settle(self.size);
        let Self { place, size, digest, .. } = self;
        let generation = place.pool.generation();
        let mapping = place.area.mapping();
        let chunk = place.block + size_of::<BlockHeader>();
        let crc32c = digest.finalize() as u32;
        let mut chunk_fields = [0; 8];
        for (bytes, field) in chunk_fields.chunks_exact_mut(2).zip(ChunkHeader::FIELDS) {
            bytes.copy_from_slice(&field.to_le_bytes());
        }
        let parts: [(usize, &[u8]); 7] = [
            (place.block + offset_of!(BlockHeader, size), &(size as u64).to_le_bytes()),
            (place.block + offset_of!(BlockHeader, object_id), id.as_bytes()),
            (place.block + offset_of!(BlockHeader, crc32c), &crc32c.to_le_bytes()),
            (place.block + offset_of!(BlockHeader, flags), &[0; 4]),
            (place.block + offset_of!(BlockHeader, reserved), &[0; 8]),
            (chunk + offset_of!(ChunkHeader, fields), &chunk_fields),
            (chunk + offset_of!(ChunkHeader, reserved), &[0; 8]),
        ];
        for (offset, bytes) in parts {
            // SAFETY: the place is ours alone, and not published yet.
            unsafe { mapping.write(offset, bytes) };
        }
        // SYNC(publish): pairs with the Acquire load in `Mappings::resolve`.
        mapping.atomic_u64(place.block).store(generation, Ordering::Release);
        Block { place, size, generation, id, crc32c }
    }
}

impl fmt::Debug for Reservation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reservation({} bytes in {})", self.size, self.place.area.id)
    }
}

/// An object in shared memory that resolves. Dropped, it does not any more, and its place is free.
pub struct Block {
    place: Taken,
    size: usize,
    generation: u64,
    id: ObjectId,
    crc32c: u32,
}

impl Block {
    /// What consumers resolve.
    pub fn meta_header(&self) -> MetaHeader {
        let Area { kind, id, .. } = *self.place.area;
        let (size, generation) = (self.size as u64, self.generation);
        match kind {
            Kind::Segment => {
                let chunk = self.place.block + size_of::<BlockHeader>();
                MetaHeader::managed(id, chunk as i64, size, generation)
            }
            Kind::Region => {
                MetaHeader::unmanaged(id, self.place.payload() as i64, size, generation)
            }
        }
    }

    /// The bytes.
    pub fn payload(&self) -> &[u8] {
        // SAFETY: a published block is not written again before it is given up, which is when
        // `self` is dropped.
        unsafe { self.place.area.mapping().bytes(self.place.payload(), self.size) }
    }

    /// Which object it is.
    pub fn id(&self) -> ObjectId {
        self.id
    }

    /// The size of the payload.
    pub fn size_bytes(&self) -> u64 {
        self.size as u64
    }

    /// Unique among all blocks of this and earlier instances.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// What it takes of the memory.
    pub fn charged_bytes(&self) -> u64 {
        self.place.needed_bytes
    }

    /// Whether header and payload are as they were published.
    pub fn is_intact(&self) -> bool {
        let mapping = self.place.area.mapping();
        let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
        digest.update(self.payload());
        let size = mapping.atomic_u64(self.place.block + offset_of!(BlockHeader, size));
        mapping.atomic_u64(self.place.block).load(Ordering::Acquire) == self.generation
            && size.load(Ordering::Relaxed) == self.size as u64
            && digest.finalize() as u32 == self.crc32c
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SYNC(give-up): the zero is seen before anything that is written here later; pairs with
        // the fence and load in `Mappings::still_valid`. The place goes back after this.
        self.place.area.mapping().atomic_u64(self.place.block).store(0, Ordering::Release);
        fence(Ordering::SeqCst);
    }
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Block({}: {:?})", self.id, self.meta_header())
    }
}
