//! The layout of shared memory: all bytes that cross processes, as drawn in `schemas/segment.md`.
//!
//! The MetaHeader is `fair::mq::shmem::MetaHeader` in its x86-64 layout, and the chunk header in
//! front of a payload is the header that FairMQ's shmem expects. So an unmodified FairMQ consumer
//! resolves these headers. All numbers are little endian.

use std::fmt;
use std::mem::{offset_of, size_of};

use crate::error::coded;

const _: () = assert!(cfg!(target_endian = "little"), "the layout is little endian");

/// The location of an object in shared memory: 40 bytes, little endian, that fit into a message or
/// a cell of a table. The layout is that of `fair::mq::shmem::MetaHeader` on x86-64;
/// `schemas/segment.md` draws it.
///
/// A header is a claim: [`Mappings`](crate::shm::Mappings) checks each field before it gives an
/// address.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct MetaHeader {
    /// Bytes of the payload.
    pub size: u64,
    /// The generation of the block: unique among all blocks of this and earlier instances, never 0.
    /// A block with another generation holds another object.
    pub hint: u64,
    /// Managed: offset of the chunk header (the payload follows 16 bytes later) from the start of
    /// the segment. Unmanaged: offset of the payload from the start of the region.
    pub handle: i64,
    /// -1; FairMQ's field for reference counts, which are not used.
    pub shared: i64,
    /// The unmanaged region, else 0.
    pub region_id: u16,
    /// The managed segment, else 0.
    pub segment_id: u16,
    /// 1: managed segment, 0: unmanaged region.
    pub managed: u8,
    pub(super) pad: [u8; 3],
}

const _: () = assert!(size_of::<MetaHeader>() == MetaHeader::BYTES);
const _: () = assert!(offset_of!(MetaHeader, hint) == 8);
const _: () = assert!(offset_of!(MetaHeader, handle) == 16);
const _: () = assert!(offset_of!(MetaHeader, shared) == 24);
const _: () = assert!(offset_of!(MetaHeader, region_id) == 32);
const _: () = assert!(offset_of!(MetaHeader, segment_id) == 34);
const _: () = assert!(offset_of!(MetaHeader, managed) == 36);

fn part<const N: usize>(bytes: &[u8; MetaHeader::BYTES], at: usize) -> [u8; N] {
    let mut part = [0; N];
    part.copy_from_slice(&bytes[at..at + N]);
    part
}

impl MetaHeader {
    /// The bytes of a cell without an object, under a null: 40 zeros.
    pub const NOTHING: Self = Self {
        size: 0,
        hint: 0,
        handle: 0,
        shared: 0,
        region_id: 0,
        segment_id: 0,
        managed: 0,
        pad: [0; 3],
    };

    /// Size in bytes.
    pub const BYTES: usize = 40;

    /// A header in a managed segment.
    pub const fn managed(segment_id: u16, handle: i64, size: u64, generation: u64) -> Self {
        let (shared, pad) = (-1, [0; 3]);
        Self { size, hint: generation, handle, shared, region_id: 0, segment_id, managed: 1, pad }
    }

    /// A header in an unmanaged region.
    pub const fn unmanaged(region_id: u16, handle: i64, size: u64, generation: u64) -> Self {
        let (shared, pad) = (-1, [0; 3]);
        Self { size, hint: generation, handle, shared, region_id, segment_id: 0, managed: 0, pad }
    }

    /// The bytes in little endian order.
    pub fn to_bytes(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[0..8].copy_from_slice(&self.size.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.hint.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.handle.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.shared.to_le_bytes());
        bytes[32..34].copy_from_slice(&self.region_id.to_le_bytes());
        bytes[34..36].copy_from_slice(&self.segment_id.to_le_bytes());
        bytes[36] = self.managed;
        bytes
    }

    /// Reads 40 bytes. The resolver checks their values.
    ///
    /// # Errors
    /// [`NotAMetaHeader`] if there are not 40 bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, NotAMetaHeader> {
        match bytes.try_into() {
            Ok(bytes) => Ok(Self::from_array(bytes)),
            Err(_) => Err(NotAMetaHeader { got_bytes: bytes.len() }),
        }
    }

    /// Reads exactly 40 bytes.
    pub(crate) fn from_array(bytes: &[u8; Self::BYTES]) -> Self {
        Self {
            size: u64::from_le_bytes(part(bytes, 0)),
            hint: u64::from_le_bytes(part(bytes, 8)),
            handle: i64::from_le_bytes(part(bytes, 16)),
            shared: i64::from_le_bytes(part(bytes, 24)),
            region_id: u16::from_le_bytes(part(bytes, 32)),
            segment_id: u16::from_le_bytes(part(bytes, 34)),
            managed: bytes[36],
            pad: [0; 3],
        }
    }
}

impl fmt::Debug for MetaHeader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { size, hint, handle, region_id, segment_id, .. } = self;
        match self.managed {
            0 => write!(f, "region {region_id} + {handle}: {size} bytes, generation {hint}"),
            _ => write!(f, "segment {segment_id} + {handle}: {size} bytes, generation {hint}"),
        }
    }
}

/// The bytes are not a MetaHeader.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a MetaHeader has 40 bytes, these are {got_bytes}")]
pub struct NotAMetaHeader {
    /// Number of bytes.
    pub got_bytes: usize,
}

coded! { NotAMetaHeader => InvalidArgument 4020 }

/// The epoch identifies one instance of a service; the next instance has another.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Epoch(pub u64);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Alignment and size unit of all blocks.
pub(crate) const GRANULE_BYTES: u64 = 64;

/// Bytes in front of each payload: the block header of 48 bytes and the chunk header of 16.
pub(crate) const BLOCK_OVERHEAD_BYTES: u64 = 64;

/// The first part of the headers of a block.
#[repr(C)]
pub(crate) struct BlockHeader {
    /// Stored last, with Release, when everything else is written; zeroed first when the block is
    /// freed.
    pub(crate) generation: u64,
    pub(crate) size: u64,
    pub(crate) object_id: [u8; 16],
    /// CRC-32C (Castagnoli) of the payload.
    pub(crate) crc32c: u32,
    pub(crate) flags: u32,
    pub(crate) reserved: u64,
}

/// The second part: the header that FairMQ's shmem expects in front of a payload.
#[repr(C)]
pub(crate) struct ChunkHeader {
    pub(crate) fields: [u16; 4],
    pub(crate) reserved: u64,
}

impl ChunkHeader {
    pub(crate) const FIELDS: [u16; 4] = [2, 0, 8, 1];

    /// The fields in memory order.
    pub(crate) fn field_bytes() -> [u8; 8] {
        let mut bytes = [0; 8];
        for (bytes, field) in bytes.chunks_exact_mut(2).zip(Self::FIELDS) {
            bytes.copy_from_slice(&field.to_le_bytes());
        }
        bytes
    }
}

const _: () = assert!(size_of::<BlockHeader>() == 48);
const _: () = assert!(size_of::<ChunkHeader>() == 16);
const _: () = assert!(offset_of!(BlockHeader, size) == 8);
const _: () = assert!(offset_of!(BlockHeader, object_id) == 16);
const _: () = assert!(offset_of!(BlockHeader, crc32c) == 32);
const _: () =
    assert!((size_of::<BlockHeader>() + size_of::<ChunkHeader>()) as u64 == BLOCK_OVERHEAD_BYTES);

/// Bytes at the start of a segment, before the first block.
pub(crate) const SEGMENT_HEADER_BYTES: u64 = 4096;

/// Bytes at the end of a segment that no block uses: Boost.Interprocess expects its end marker
/// there.
pub(crate) const SEGMENT_TAIL_BYTES: u64 = 16;

/// Bytes for blocks in a segment of `segment_bytes`.
pub(crate) const fn usable_bytes(segment_bytes: u64) -> u64 {
    segment_bytes.saturating_sub(SEGMENT_HEADER_BYTES + SEGMENT_TAIL_BYTES) / GRANULE_BYTES
        * GRANULE_BYTES
}

/// The head of a segment. Its first 256 bytes are those of a heap of Boost.Interprocess
/// (`rbtree_best_fit`, `null_index`, x86-64, Boost 1.74 and 1.81) in which one block takes
/// everything. A process that opens the segment as FairMQ does, and allocates in it by mistake,
/// gets Boost's out-of-memory error, and FairMQ's monitor shows 16 free bytes.
#[repr(C)]
pub(crate) struct SegmentHeader {
    /// 2: the value that Boost.Interprocess takes as 'initialised'.
    pub(crate) initialised: u32,
    pub(crate) boost_padding: [u32; 3],
    /// The heap's mutex: glibc's `pthread_mutex_t`, unlocked.
    pub(crate) heap_mutex: BoostMutex,
    /// Free blocks in the heap's tree: 0.
    pub(crate) tree_size: u64,
    /// The tree's root: 1, a null pointer of Boost.Interprocess.
    pub(crate) tree_root: u64,
    /// The tree's leftmost and rightmost node: the tree's own head, as distances from these fields.
    pub(crate) tree_leftmost: i64,
    pub(crate) tree_rightmost: i64,
    /// Bytes between the heap's head and its first block.
    pub(crate) extra_header_bytes: u64,
    /// Allocated bytes of the heap: all.
    pub(crate) allocated_bytes: u64,
    /// Bytes of the segment without those before Boost's header: what FairMQ reads as the size of
    /// the segment.
    pub(crate) managed_size: u64,
    /// The mutex of the segment manager, recursive, unlocked.
    pub(crate) manager_mutex: BoostMutex,
    pub(crate) manager_padding: u64,
    /// The heap's one block: the length of the block before it (as Boost leaves it), and its own,
    /// both in units of 16 bytes.
    pub(crate) previous_length: u64,
    /// Bits 62 and 63: the block before it, and it, are allocated.
    pub(crate) length: u64,
    pub(crate) boost_reserved: [u64; 10],
    pub(crate) magic: [u8; 8],
    pub(crate) version: u32,
    /// 1 once the segment is retired: nothing in it will be valid again.
    pub(crate) retired: u32,
    pub(crate) epoch: u64,
    pub(crate) segment_id: u32,
    /// In a FairMQ session: 1 more than the number from which the cache counts its segments; else
    /// 0.
    pub(crate) range: u32,
    /// Size of the segment, this header included.
    pub(crate) size: u64,
}

/// A `pthread_mutex_t` of glibc on x86-64, shared between processes.
#[repr(C)]
pub(crate) struct BoostMutex {
    pub(crate) state: [u32; 4],
    /// 128: shared between processes; and 1: recursive.
    pub(crate) kind: u32,
    pub(crate) rest: [u32; 5],
}

impl SegmentHeader {
    pub(crate) const MAGIC: [u8; 8] = *b"IOVCACHE";
    pub(crate) const MAGIC_OFFSET: usize = offset_of!(Self, magic);
    pub(crate) const VERSION: u32 = 2;
    /// Offset of the heap's block.
    const HEAP_BLOCK_OFFSET: u64 = offset_of!(Self, previous_length) as u64;
    const HEAP_OFFSET: u64 = offset_of!(Self, heap_mutex) as u64;

    /// The head of a segment of `size` bytes.
    pub(crate) fn new(epoch: Epoch, segment_id: u16, range: u32, size: u64) -> Self {
        let mutex = |kind| BoostMutex { state: [0; 4], kind, rest: [0; 5] };
        let managed_size = size - Self::HEAP_OFFSET;
        let block_length = (size - Self::HEAP_BLOCK_OFFSET - SEGMENT_TAIL_BYTES) / 16;
        Self {
            initialised: 2,
            boost_padding: [0; 3],
            heap_mutex: mutex(0x80),
            tree_size: 0,
            tree_root: 1,
            tree_leftmost: -8,
            tree_rightmost: -16,
            extra_header_bytes: 48,
            allocated_bytes: block_length * 16,
            managed_size,
            manager_mutex: mutex(0x81),
            manager_padding: 0,
            previous_length: block_length,
            length: 0b11 << 62 | block_length,
            boost_reserved: [0; 10],
            magic: Self::MAGIC,
            version: Self::VERSION,
            retired: 0,
            epoch: epoch.0,
            segment_id: segment_id.into(),
            range,
            size,
        }
    }

    /// Offsets of the 8-byte words of a head that no other program may change: the state of the
    /// full heap, and the fields of this service except `retired`. Boost's mutexes are left out.
    pub(crate) const FIXED_WORDS: [usize; 13] = [
        offset_of!(Self, tree_size),
        offset_of!(Self, tree_root),
        offset_of!(Self, tree_leftmost),
        offset_of!(Self, tree_rightmost),
        offset_of!(Self, extra_header_bytes),
        offset_of!(Self, allocated_bytes),
        offset_of!(Self, managed_size),
        offset_of!(Self, previous_length),
        offset_of!(Self, length),
        offset_of!(Self, magic),
        offset_of!(Self, epoch),
        offset_of!(Self, segment_id),
        offset_of!(Self, size),
    ];

    /// The field `range` of a head; `None` if it is not the head of a segment of this service.
    pub(crate) fn range_of(head: &[u8; size_of::<Self>()]) -> Option<u32> {
        let part =
            |offset: usize| head[offset..].first_chunk::<4>().map(|part| u32::from_le_bytes(*part));
        let is_ours = head[Self::MAGIC_OFFSET..].starts_with(&Self::MAGIC);
        is_ours.then(|| part(offset_of!(Self, range))).flatten()
    }

    /// The bytes in little endian order.
    pub(crate) fn to_bytes(&self) -> [u8; size_of::<Self>()] {
        let mut bytes = [0; size_of::<Self>()];
        let mut put = |offset: usize, part: &[u8]| {
            bytes[offset..offset + part.len()].copy_from_slice(part);
        };
        let kind = offset_of!(BoostMutex, kind);
        put(offset_of!(Self, initialised), &self.initialised.to_le_bytes());
        put(offset_of!(Self, heap_mutex) + kind, &self.heap_mutex.kind.to_le_bytes());
        put(offset_of!(Self, tree_size), &self.tree_size.to_le_bytes());
        put(offset_of!(Self, tree_root), &self.tree_root.to_le_bytes());
        put(offset_of!(Self, tree_leftmost), &self.tree_leftmost.to_le_bytes());
        put(offset_of!(Self, tree_rightmost), &self.tree_rightmost.to_le_bytes());
        put(offset_of!(Self, extra_header_bytes), &self.extra_header_bytes.to_le_bytes());
        put(offset_of!(Self, allocated_bytes), &self.allocated_bytes.to_le_bytes());
        put(offset_of!(Self, managed_size), &self.managed_size.to_le_bytes());
        put(offset_of!(Self, manager_mutex) + kind, &self.manager_mutex.kind.to_le_bytes());
        put(offset_of!(Self, previous_length), &self.previous_length.to_le_bytes());
        put(offset_of!(Self, length), &self.length.to_le_bytes());
        put(offset_of!(Self, magic), &self.magic);
        put(offset_of!(Self, version), &self.version.to_le_bytes());
        put(offset_of!(Self, retired), &self.retired.to_le_bytes());
        put(offset_of!(Self, epoch), &self.epoch.to_le_bytes());
        put(offset_of!(Self, segment_id), &self.segment_id.to_le_bytes());
        put(offset_of!(Self, range), &self.range.to_le_bytes());
        put(offset_of!(Self, size), &self.size.to_le_bytes());
        bytes
    }
}

const _: () = assert!(size_of::<BoostMutex>() == 40);
const _: () = assert!(offset_of!(SegmentHeader, heap_mutex) == 16);
const _: () = assert!(offset_of!(SegmentHeader, tree_size) == 56);
const _: () = assert!(offset_of!(SegmentHeader, extra_header_bytes) == 88);
const _: () = assert!(offset_of!(SegmentHeader, managed_size) == 104);
const _: () = assert!(offset_of!(SegmentHeader, manager_mutex) == 112);
const _: () = assert!(offset_of!(SegmentHeader, previous_length) == 160);
const _: () = assert!(offset_of!(SegmentHeader, magic) == 256);
const _: () = assert!(offset_of!(SegmentHeader, version) == 264);
const _: () = assert!(offset_of!(SegmentHeader, retired) == 268);
const _: () = assert!(offset_of!(SegmentHeader, epoch) == 272);
const _: () = assert!(offset_of!(SegmentHeader, segment_id) == 280);
const _: () = assert!(offset_of!(SegmentHeader, range) == 284);
const _: () = assert!(offset_of!(SegmentHeader, size) == 288);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_are_those_of_the_drawing() {
        let header = MetaHeader::managed(7, 268_435_504, 106_964, 9_223_372_036_854_775_809);
        let hex: String = header.to_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            hex,
            "d4a101000000000001000000000000803000001000000000ffffffffffffffff0000070001000000"
        );
        assert_eq!(MetaHeader::from_bytes(&header.to_bytes()), Ok(header));
        let header = MetaHeader::unmanaged(2000, 0, 64, 42);
        let hex: String = header.to_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            hex,
            "40000000000000002a000000000000000000000000000000ffffffffffffffffd007000000000000"
        );
    }

    #[test]
    fn no_block_reaches_the_last_sixteen_bytes_of_a_segment() {
        for size in [8192, 65_536, 512 << 20] {
            let end = SEGMENT_HEADER_BYTES + usable_bytes(size);
            assert!(end + SEGMENT_TAIL_BYTES <= size && end + 2 * GRANULE_BYTES > size, "{size}");
        }
        assert_eq!((usable_bytes(0), usable_bytes(4096), usable_bytes(4111)), (0, 0, 0));
    }

    #[test]
    fn only_forty_bytes_are_a_header() {
        for length in [0, 39, 41] {
            let bytes = vec![0; length];
            assert_eq!(MetaHeader::from_bytes(&bytes), Err(NotAMetaHeader { got_bytes: length }));
        }
    }
}
