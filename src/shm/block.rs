//! Blocks in shared memory: reserved, filled, published, freed.
#![allow(unsafe_code)]

use std::any::Any;
use std::fmt;
use std::mem::offset_of;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering, fence};

use crc_fast::{CrcAlgorithm, Digest};

use super::allocator::AllocatedNode;
use super::block_location::BlockLocation;
use super::block_location::charge;
use super::layout::{BLOCK_OVERHEAD_BYTES, BlockHeader, ChunkHeader, MetaHeader};
use super::local;
use super::mapping::Mapping;
use super::pool_state::PoolInner;
use super::segment::{Kind, Segment, SegmentMemory};
use super::sync;
use crate::object::ObjectId;

/// An allocated place, released on drop. One exists per object in memory, so the fields for its
/// location come first.
#[repr(C)]
pub(super) struct Allocation {
    /// Offset of the block in the segment.
    pub(super) block: usize,
    pub(super) size: PayloadSize,
    // Fields drop in this order: the segment's file is closed before the pool, which owns the lock
    // on the file's name.
    pub(super) segment: Arc<Segment>,
    pub(super) pool: Arc<PoolInner>,
    /// `None` in a host's memory.
    pub(super) place: Option<AllocatedNode>,
    /// CRC-32C of the payload, once published; also kept here, so that damage in the segment is
    /// detected.
    pub(super) crc32c: u32,
}

/// The size of a payload, and whether a snapshot has named its block. In one word, since there is one
/// for each object in memory.
pub(super) struct PayloadSize(AtomicUsize);

impl PayloadSize {
    const IN_SNAPSHOT: usize = 1 << (usize::BITS - 1);

    pub(super) fn new(size: usize) -> Self {
        debug_assert!(size < Self::IN_SNAPSHOT, "no segment is as large");
        Self(AtomicUsize::new(size))
    }

    #[inline]
    fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed) & !Self::IN_SNAPSHOT
    }

    fn enter_snapshot(&self) {
        self.0.fetch_or(Self::IN_SNAPSHOT, Ordering::Relaxed);
    }

    fn is_in_snapshot(&self) -> bool {
        self.0.load(Ordering::Relaxed) & Self::IN_SNAPSHOT != 0
    }
}

impl Allocation {
    /// The mapping and offset of its headers.
    fn headers(&self) -> (&Mapping, usize) {
        self.segment.headers(self.block)
    }

    fn generation(&self) -> &AtomicU64 {
        let (headers, block) = self.headers();
        headers.atomic_u64(block)
    }

    /// The mapping and offset of its payload.
    fn payload(&self) -> (&Mapping, usize) {
        self.segment.payload(self.block)
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        let bytes = charge(self.size.get() as u64);
        match self.place.take() {
            Some(place) => self.pool.give(&self.segment, place, bytes),
            None => self.pool.give_to_host(&self.segment, self.block, bytes),
        }
    }
}

/// Memory for a payload that is not visible to readers yet. Dropping it frees the memory.
pub struct Reservation {
    place: Allocation,
    digest: Digest,
    /// Number of bytes from the start that are in the digest.
    digested: usize,
}

impl Reservation {
    pub(super) fn new(place: Allocation) -> Self {
        Self { place, digest: Digest::new(CrcAlgorithm::Crc32Iscsi), digested: 0 }
    }

    /// The size of the payload.
    pub fn size_bytes(&self) -> u64 {
        self.place.size.get() as u64
    }

    /// The payload, for writing. At first it holds arbitrary bytes.
    pub fn payload_mut(&mut self) -> &mut [u8] {
        self.rest_mut(0)
    }

    /// The payload from `offset` on, for writing. If this includes settled bytes, everything must
    /// be settled again.
    ///
    /// # Panics
    /// If `offset` is beyond the end.
    pub(crate) fn rest_mut(&mut self, offset: usize) -> &mut [u8] {
        if offset < self.digested {
            self.unsettle();
        }
        assert!(
            offset <= self.place.size.get(),
            "{offset} is behind the {} bytes",
            self.place.size.get()
        );
        let length = self.place.size.get() - offset;
        let (mapping, payload) = self.place.payload();
        // SAFETY: the place is reserved for us alone, no generation is published for it, so no
        // reader gets a slice of it; `&mut self` keeps ourselves from having two.
        unsafe { mapping.bytes_mut(payload + offset, length) }
    }

    /// Maps the pages of the payload for writing, `length` bytes from `offset` on.
    #[cfg(feature = "cache")]
    pub(crate) fn map_pages(&self, offset: usize, length: usize) {
        let end = offset.saturating_add(length).min(self.place.size.get());
        if offset < end && !self.place.segment.is_mapped_ahead() {
            let (mapping, payload) = self.place.payload();
            mapping.map_pages(payload + offset, end - offset);
        }
    }

    /// Discards the settled state: the payload is to be written again from its start.
    pub(crate) fn unsettle(&mut self) {
        self.digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
        self.digested = 0;
    }

    /// Marks the first `count` bytes as final. They are added to the checksum now, while they are
    /// in the processor's cache.
    ///
    /// # Panics
    /// If the payload is shorter.
    pub fn settle(&mut self, count: usize) {
        assert!(count <= self.place.size.get(), "{count} bytes of {}", self.place.size.get());
        if count > self.digested {
            let (mapping, payload) = self.place.payload();
            let (start, length) = (payload + self.digested, count - self.digested);
            // SAFETY: as in `rest_mut`.
            let fresh = unsafe { mapping.bytes(start, length) };
            self.digest.update(fresh);
            self.digested = count;
        }
    }

    /// The CRC-32C of the settled bytes.
    #[cfg(feature = "cache")]
    pub(crate) fn crc32c(&self) -> u32 {
        self.digest.finalize() as u32
    }

    /// The settled bytes.
    pub(crate) fn settled(&self) -> &[u8] {
        let (mapping, payload) = self.place.payload();
        // SAFETY: as in `rest_mut`; settled bytes are not written as long as `self` is borrowed.
        unsafe { mapping.bytes(payload, self.digested) }
    }

    /// Writes the whole payload.
    ///
    /// # Panics
    /// If the length of `bytes` is not the reserved size.
    pub fn fill(&mut self, bytes: &[u8]) {
        assert_eq!(bytes.len(), self.place.size.get());
        self.unsettle();
        self.append(bytes);
    }

    /// Appends `bytes` to the settled bytes and settles them. This is the fastest way to write.
    ///
    /// # Panics
    /// If they do not fit.
    pub fn append(&mut self, bytes: &[u8]) {
        /// Small enough that the copy finds the bytes read by the checksum in the core's
        /// second-level cache, and large enough that the fixed cost of the checksum does not count
        /// (4 KiB take 414 ns, of which 70 ns are fixed).
        const PIECE_BYTES: usize = 128 << 10;
        /// From this size on, writes bypass the caches. For 64 MiB, measured on an EPYC: 8.0 ms,
        /// versus 10.3 ms through the caches, as much as one memcpy without checksum. For 8 MiB
        /// both take equally long, but readers then find the bytes in the third-level cache.
        const PAST_CACHES_BYTES: usize = 16 << 20;
        assert!(
            bytes.len() <= self.place.size.get() - self.digested,
            "no room for {} bytes",
            bytes.len()
        );
        for piece in bytes.chunks(PIECE_BYTES) {
            self.digest.update(piece);
            let (mapping, payload) = self.place.payload();
            let offset = payload + self.digested;
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

    /// Publishes the payload as a block that resolves, with a generation of its own.
    pub fn publish(mut self, id: ObjectId) -> Block {
        self.settle(self.place.size.get());
        let Self { mut place, digest, .. } = self;
        let generation = place.pool.generation();
        let (headers, block) = place.segment.headers(place.block);
        let chunk = block + size_of::<BlockHeader>();
        let crc32c = digest.finalize() as u32;
        place.crc32c = crc32c;
        let chunk_fields = ChunkHeader::field_bytes();
        let parts: [(usize, &[u8]); 7] = [
            (block + offset_of!(BlockHeader, size), &(place.size.get() as u64).to_le_bytes()),
            (block + offset_of!(BlockHeader, object_id), id.as_bytes()),
            (block + offset_of!(BlockHeader, crc32c), &crc32c.to_le_bytes()),
            (block + offset_of!(BlockHeader, flags), &[0; 4]),
            (block + offset_of!(BlockHeader, reserved), &[0; 8]),
            (chunk + offset_of!(ChunkHeader, fields), &chunk_fields),
            (chunk + offset_of!(ChunkHeader, reserved), &[0; 8]),
        ];
        for (offset, bytes) in parts {
            // SAFETY: the place is ours alone, and not published yet.
            unsafe { headers.write(offset, bytes) };
        }
        sync::publish(place.generation(), generation);
        Block { generation, place }
    }
}

impl fmt::Debug for Reservation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reservation({} bytes in {})", self.place.size.get(), self.place.segment.id)
    }
}

/// A published object in shared memory. After the drop it no longer resolves, and its memory is
/// free.
///
/// Fields of its header are read from the segment, which no other process can write.
#[repr(C)]
pub struct Block {
    generation: u64,
    place: Allocation,
}

impl Block {
    /// The MetaHeader that consumers resolve.
    pub fn meta_header(&self) -> MetaHeader {
        let Segment { kind, id, ref memory, .. } = *self.place.segment;
        let (size, generation) = (self.place.size.get() as u64, self.generation);
        if let SegmentMemory::Host(host) = memory {
            return MetaHeader { size, hint: generation, pad: [0; 3], ..host.header };
        }
        match kind {
            Kind::Segment => {
                let chunk = self.place.block + size_of::<BlockHeader>();
                MetaHeader::managed(id, chunk as i64, size, generation)
            }
            Kind::Region => {
                let payload = self.place.block + BLOCK_OVERHEAD_BYTES as usize;
                MetaHeader::unmanaged(id, payload as i64, size, generation)
            }
        }
    }

    /// The bytes of the object.
    pub fn payload(&self) -> &[u8] {
        let (mapping, payload) = self.place.payload();
        // SAFETY: a published block is not written again before it is given up, which is when
        // `self` is dropped.
        unsafe { mapping.bytes(payload, self.place.size.get()) }
    }

    /// The id of the object.
    pub fn id(&self) -> ObjectId {
        let id = self.header_bytes(offset_of!(BlockHeader, object_id), size_of::<ObjectId>());
        ObjectId::from_bytes(id.try_into().unwrap_or_default())
    }

    /// Bytes of the header.
    fn header_bytes(&self, offset: usize, length: usize) -> &[u8] {
        debug_assert!(offset + length <= size_of::<BlockHeader>());
        let (headers, block) = self.place.headers();
        // SAFETY: each block has a header; that of a published block is not written before the
        // block is freed, except its generation, which is not read here.
        unsafe { headers.bytes(block + offset, length) }
    }

    /// A snapshot is going to name it: consumers can pin it without a call. Only such a block is
    /// looked for in the pins pages when it is given up.
    pub(crate) fn enter_snapshot(&self) {
        self.place.size.enter_snapshot();
    }

    /// The size of the payload.
    pub fn size_bytes(&self) -> u64 {
        self.place.size.get() as u64
    }

    /// The generation: unique among all blocks of this and earlier instances.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The memory that it takes.
    pub fn charged_bytes(&self) -> u64 {
        charge(self.place.size.get() as u64)
    }

    /// Whether header and payload are unchanged since publication. Reads the whole payload.
    pub(crate) fn is_intact(&self) -> bool {
        let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
        digest.update(self.payload());
        self.has_its_header() && digest.finalize() as u32 == self.crc32c()
    }

    /// Whether the header is unchanged since publication.
    pub(crate) fn has_its_header(&self) -> bool {
        let (headers, block) = self.place.headers();
        let size = headers.atomic_u64(block + offset_of!(BlockHeader, size));
        sync::seen(self.place.generation()) == self.generation
            && size.load(Ordering::Relaxed) == self.place.size.get() as u64
    }

    /// The CRC-32C of the payload.
    pub(crate) fn crc32c(&self) -> u32 {
        self.place.crc32c
    }

    /// Eight bytes of the payload, which this process changes after publication. The payload of
    /// such a block must not be borrowed.
    ///
    /// # Panics
    /// If they are outside of the payload or not aligned.
    pub(super) fn payload_word(&self, offset: usize) -> &AtomicU64 {
        let end = offset.checked_add(size_of::<u64>());
        assert!(end.is_some_and(|end| end <= self.place.size.get()), "{offset} is outside");
        let (mapping, payload) = self.place.payload();
        mapping.atomic_u64(payload + offset)
    }

    /// Whether its segment was lost, so that consumers may not find or read it any more.
    pub(crate) fn is_condemned(&self) -> bool {
        self.place.segment.is_condemned()
    }

    /// Invalidates it for all consumers if another program may overwrite its bytes: its header is
    /// stale then.
    pub(crate) fn invalidate_if_overwritten(&self) {
        if self.place.segment.is_overwritten() {
            sync::give_up_own(self.place.generation(), self.generation);
        }
    }

    /// Leaves its memory allocated in the host, also after it is dropped. False if it does not lie
    /// there, or is left already.
    #[cfg(feature = "capi")]
    pub(crate) fn leave_in_host(&self) -> bool {
        match &self.place.segment.memory {
            SegmentMemory::Host(host) => host.leave(),
            SegmentMemory::Segment(_) | SegmentMemory::Region(_) => false,
        }
    }

    /// Its location.
    pub(crate) fn location(&self) -> BlockLocation {
        let Segment { kind, id, .. } = *self.place.segment;
        BlockLocation { kind, id, offset: self.place.block }
    }
}

impl Block {
    /// Gives it up, like dropping it. `kept` is dropped as soon as no consumer pins the block.
    /// A consumer counts `pinned_bytes` for a pin of it.
    pub(crate) fn retire_keeping(mut self, kept: Arc<dyn Any + Send + Sync>, pinned_bytes: u64) {
        self.give_up(Some((kept, pinned_bytes)));
    }

    fn give_up(&mut self, kept: Option<(Arc<dyn Any + Send + Sync>, u64)>) {
        // No published block has generation 0.
        let generation = std::mem::take(&mut self.generation);
        if generation == 0 || self.place.pool.is_frozen() {
            return;
        }
        let is_condemned = self.is_condemned();
        match is_condemned {
            // Its place is never used again.
            true => sync::give_up_own(self.place.generation(), generation),
            // Before the memory is released, which dropping `place` does afterwards.
            false => local::retire(self.place.generation()),
        }
        if is_condemned && kept.is_none() {
            return;
        }
        // SYNC(pin): as in `retire`, also for a block that was given up before.
        fence(Ordering::SeqCst);
        // Relaxed: a publisher sets it while it has a reference to the block.
        if self.place.size.is_in_snapshot() && self.place.pool.pages.has_pages() {
            let segment = Arc::clone(&self.place.segment);
            let bytes = charge(self.place.size.get() as u64);
            let place = if is_condemned { None } else { self.place.place.take() };
            let (block, bytes) = (self.place.block, if place.is_some() { bytes } else { 0 });
            let (kept, pinned_bytes) = match kept {
                Some((kept, bytes)) => (Some(kept), bytes),
                None => (None, self.place.size.get() as u64),
            };
            let retired = local::QuarantinedPlace {
                generation,
                block,
                segment,
                place,
                bytes,
                pinned_bytes,
                kept,
            };
            self.place.pool.quarantine(retired);
        }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.give_up(None);
    }
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Block({}: {:?})", self.id(), self.meta_header())
    }
}
