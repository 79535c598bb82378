//! A place in shared memory: reserved, filled, published, given up.
#![allow(unsafe_code)]

use std::fmt;
use std::mem::offset_of;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crc_fast::{CrcAlgorithm, Digest};

use super::allocator::AllocatedNode;
use super::layout::{BLOCK_OVERHEAD_BYTES, BlockHeader, ChunkHeader, GRANULE_BYTES, MetaHeader};
use super::local;
use super::mapping::Mapping;
use super::pool::PoolInner;
use super::segment::{Kind, Segment};
use super::sync;
use crate::object::ObjectId;

/// What a payload takes of the memory: its header, and rounded up to 64 bytes.
pub(super) fn charge(size_bytes: u64) -> u64 {
    let bytes = size_bytes.saturating_add(BLOCK_OVERHEAD_BYTES);
    bytes.checked_next_multiple_of(GRANULE_BYTES).unwrap_or(u64::MAX)
}

/// A place that goes back when this is dropped. There is one for each object in memory: what tells
/// where it lies comes first.
#[repr(C)]
pub(super) struct Allocation {
    /// Where it begins in the area.
    pub(super) block: usize,
    /// The size of the payload.
    pub(super) size: usize,
    // Fields drop in this order: the area's file goes before the pool and with it the right to
    // the file's name.
    pub(super) segment: Arc<Segment>,
    pub(super) pool: Arc<PoolInner>,
    pub(super) place: Option<AllocatedNode>,
    /// That of the payload, once it is published: kept here too, so that damage in the segment shows.
    pub(super) crc32c: u32,
}

impl Allocation {
    fn mapping(&self) -> &Mapping {
        self.segment.mapping()
    }

    fn generation(&self) -> &AtomicU64 {
        self.mapping().atomic_u64(self.block)
    }

    fn payload(&self) -> usize {
        self.block + BLOCK_OVERHEAD_BYTES as usize
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        if let Some(place) = self.place.take() {
            self.pool.give(&self.segment, place, charge(self.size as u64));
        }
    }
}

/// Room for a payload that nobody else sees yet. Dropped, the room is free again.
pub struct Reservation {
    place: Allocation,
    digest: Digest,
    /// So many bytes from the start are in the digest.
    digested: usize,
}

impl Reservation {
    pub(super) fn new(place: Allocation) -> Self {
        Self { place, digest: Digest::new(CrcAlgorithm::Crc32Iscsi), digested: 0 }
    }

    /// The size of the payload.
    pub fn size_bytes(&self) -> u64 {
        self.place.size as u64
    }

    /// The payload, to be written. At first it holds whatever was there before.
    pub fn payload_mut(&mut self) -> &mut [u8] {
        self.rest_mut(0)
    }

    /// The payload from `offset` on, to be written. If that takes back what was settled, all of it
    /// has to go into the checksum again.
    ///
    /// # Panics
    /// If `offset` lies behind the end.
    pub fn rest_mut(&mut self, offset: usize) -> &mut [u8] {
        if offset < self.digested {
            self.unsettle();
        }
        assert!(offset <= self.place.size, "{offset} is behind the {} bytes", self.place.size);
        let length = self.place.size - offset;
        // SAFETY: the place is reserved for us alone, no generation is published for it, so no
        // reader gets a slice of it; `&mut self` keeps ourselves from having two.
        unsafe { self.place.mapping().bytes_mut(self.place.payload() + offset, length) }
    }

    /// Takes back what was settled: the payload is to be written anew, from its start.
    pub fn unsettle(&mut self) {
        self.digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
        self.digested = 0;
    }

    /// Says that the first `count` bytes are written for good. They go into the checksum now, while
    /// they are in the processor's cache.
    ///
    /// # Panics
    /// If there are not so many.
    pub fn settle(&mut self, count: usize) {
        assert!(count <= self.place.size, "{count} bytes of {}", self.place.size);
        if count > self.digested {
            let (start, length) = (self.place.payload() + self.digested, count - self.digested);
            // SAFETY: as in `rest_mut`.
            let fresh = unsafe { self.place.mapping().bytes(start, length) };
            self.digest.update(fresh);
            self.digested = count;
        }
    }

    /// The CRC-32C of what is settled so far.
    #[cfg(feature = "cache")]
    pub(crate) fn crc32c(&self) -> u32 {
        self.digest.finalize() as u32
    }

    /// What is settled so far.
    pub fn settled(&self) -> &[u8] {
        // SAFETY: as in `rest_mut`; settled bytes are not written as long as `self` is borrowed.
        unsafe { self.place.mapping().bytes(self.place.payload(), self.digested) }
    }

    /// Writes the whole payload.
    ///
    /// # Panics
    /// If `bytes` are not as many as were reserved.
    pub fn fill(&mut self, bytes: &[u8]) {
        assert_eq!(bytes.len(), self.place.size);
        self.unsettle();
        self.append(bytes);
    }

    /// Writes `bytes` behind what is settled, and settles them: the fastest way in.
    ///
    /// # Panics
    /// If there is no room for so many.
    pub fn append(&mut self, bytes: &[u8]) {
        /// So little that the copy finds in the core's second cache what the checksum has read, and
        /// so much that the checksum's own beginning and end do not count (it takes 414 ns for
        /// 4 KiB, of which 70 are those).
        const PIECE_BYTES: usize = 128 << 10;
        /// So many go past the caches. Of 64 MiB, measured on an EPYC: 8.0 ms, 10.3 ms through the
        /// caches, as much as one memcpy without checksum. Of 8 MiB both take as long, but who
        /// reads them then finds them in the third cache.
        const PAST_CACHES_BYTES: usize = 16 << 20;
        assert!(
            bytes.len() <= self.place.size - self.digested,
            "no room for {} bytes",
            bytes.len()
        );
        for piece in bytes.chunks(PIECE_BYTES) {
            self.digest.update(piece);
            let (mapping, offset) = (self.place.mapping(), self.place.payload() + self.digested);
            if bytes.len() < PAST_CACHES_BYTES {
                // SAFETY: as in `rest_mut`, which is where the offset lies.
                unsafe { mapping.write(offset, piece) };
            } else {
                // SAFETY: as above.
                unsafe { mapping.write_past_caches(offset, piece) };
            }
            self.digested += piece.len();
        }
    }

    /// Makes it a block that resolves, under a generation of its own.
    pub fn publish(mut self, id: ObjectId) -> Block {
        self.settle(self.place.size);
        let Self { mut place, digest, .. } = self;
        let generation = place.pool.generation();
        let chunk = place.block + size_of::<BlockHeader>();
        let crc32c = digest.finalize() as u32;
        place.crc32c = crc32c;
        let chunk_fields = ChunkHeader::field_bytes();
        let parts: [(usize, &[u8]); 7] = [
            (place.block + offset_of!(BlockHeader, size), &(place.size as u64).to_le_bytes()),
            (place.block + offset_of!(BlockHeader, object_id), id.as_bytes()),
            (place.block + offset_of!(BlockHeader, crc32c), &crc32c.to_le_bytes()),
            (place.block + offset_of!(BlockHeader, flags), &[0; 4]),
            (place.block + offset_of!(BlockHeader, reserved), &[0; 8]),
            (chunk + offset_of!(ChunkHeader, fields), &chunk_fields),
            (chunk + offset_of!(ChunkHeader, reserved), &[0; 8]),
        ];
        for (offset, bytes) in parts {
            // SAFETY: the place is ours alone, and not published yet.
            unsafe { place.mapping().write(offset, bytes) };
        }
        sync::publish(place.generation(), generation);
        Block { generation, place }
    }
}

impl fmt::Debug for Reservation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reservation({} bytes in {})", self.place.size, self.place.segment.id)
    }
}

/// An object in shared memory that resolves. Dropped, it does not any more, and its place is free.
///
/// What stands in its header, which nobody else can write, is read there.
#[repr(C)]
pub struct Block {
    generation: u64,
    place: Allocation,
}

impl Block {
    /// What consumers resolve.
    pub fn meta_header(&self) -> MetaHeader {
        let Segment { kind, id, .. } = *self.place.segment;
        let (size, generation) = (self.place.size as u64, self.generation);
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
        unsafe { self.place.mapping().bytes(self.place.payload(), self.place.size) }
    }

    /// Which object it is.
    pub fn id(&self) -> ObjectId {
        let id = self.header_bytes(offset_of!(BlockHeader, object_id), size_of::<ObjectId>());
        ObjectId::from_bytes(id.try_into().unwrap_or_default())
    }

    /// Bytes of its header.
    fn header_bytes(&self, offset: usize, length: usize) -> &[u8] {
        debug_assert!(offset + length <= size_of::<BlockHeader>());
        // SAFETY: a header stands before each payload; that of a published block is not written
        // before the block is given up, but for its generation, which is not asked for here.
        unsafe { self.place.mapping().bytes(self.place.block + offset, length) }
    }

    /// The size of the payload.
    pub fn size_bytes(&self) -> u64 {
        self.place.size as u64
    }

    /// Unique among all blocks of this and earlier instances.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// What it takes of the memory.
    pub fn charged_bytes(&self) -> u64 {
        charge(self.place.size as u64)
    }

    /// Whether header and payload are as they were published. Reads all of the payload.
    pub fn is_intact(&self) -> bool {
        let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
        digest.update(self.payload());
        self.has_its_header() && digest.finalize() as u32 == self.crc32c()
    }

    /// Whether the header is as it was published.
    pub fn has_its_header(&self) -> bool {
        let size = self.place.block + offset_of!(BlockHeader, size);
        let size = self.place.mapping().atomic_u64(size);
        sync::seen(self.place.generation()) == self.generation
            && size.load(Ordering::Relaxed) == self.place.size as u64
    }

    /// The CRC-32C of the payload.
    pub(crate) fn crc32c(&self) -> u32 {
        self.place.crc32c
    }

    /// Eight bytes of the payload, which this process changes after publication. Nobody may borrow
    /// the payload of such a block.
    ///
    /// # Panics
    /// If they are outside of the payload or not aligned.
    #[cfg(feature = "cache")]
    pub(super) fn payload_word(&self, offset: usize) -> &AtomicU64 {
        let end = offset.checked_add(size_of::<u64>());
        assert!(end.is_some_and(|end| end <= self.place.size), "{offset} is outside");
        self.place.mapping().atomic_u64(self.place.payload() + offset)
    }

    /// Where it lies.
    #[cfg(feature = "cache")]
    pub(crate) fn location(&self) -> BlockLocation {
        let Segment { kind, id, .. } = *self.place.segment;
        BlockLocation { kind, id, offset: self.place.block }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if self.place.pool.is_frozen() {
            return;
        }
        // Before the place goes back, which dropping `place` does after this.
        local::retire(self.place.generation());
        if self.place.pool.pages.names(self.generation)
            && let Some(place) = self.place.place.take()
        {
            let segment = Arc::clone(&self.place.segment);
            let bytes = charge(self.place.size as u64);
            self.place.pool.quarantine(local::QuarantinedPlace {
                generation: self.generation,
                block: self.place.block,
                segment,
                place,
                bytes,
            });
        }
    }
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Block({}: {:?})", self.id(), self.meta_header())
    }
}

/// Where a block begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct BlockLocation {
    pub(crate) kind: Kind,
    pub(crate) id: u16,
    pub(crate) offset: usize,
}

impl fmt::Display for BlockLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} + {}", self.kind, self.id, self.offset)
    }
}

/// What is wrong with the headers of a place of `bytes` that begins at `block`, if anything. Nobody
/// may take or give places meanwhile; publishing is no harm.
pub(super) fn fault_of_headers(segment: &Segment, block: usize, bytes: u64) -> Option<String> {
    let mapping = segment.mapping();
    let generation = mapping.atomic_u64(block);
    if sync::seen(generation) == 0 {
        return None;
    }
    let size = mapping.atomic_u64(block + offset_of!(BlockHeader, size)).load(Ordering::Relaxed);
    let chunk = block + size_of::<BlockHeader>();
    let chunk = mapping.atomic_u64(chunk + offset_of!(ChunkHeader, fields)).load(Ordering::Relaxed);
    if sync::seen(generation) == 0 {
        // Given up meanwhile.
        return None;
    }
    if charge(size) != bytes {
        return Some(format!("the block at {block} says {size} bytes, its place has {bytes}"));
    }
    if chunk.to_le_bytes() != ChunkHeader::field_bytes() {
        return Some(format!("the block at {block} has no chunk header: {chunk:#018x}"));
    }
    None
}
