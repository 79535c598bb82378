//! The location of a block, the memory that it takes, and the check of its headers.

use std::fmt;
use std::mem::offset_of;
use std::sync::atomic::Ordering;

use super::layout::{BLOCK_OVERHEAD_BYTES, BlockHeader, ChunkHeader, GRANULE_BYTES};
use super::segment::{Kind, Segment};
use super::sync;

/// The memory that a payload takes: with its header, rounded up to 64 bytes.
pub(super) fn charge(size_bytes: u64) -> u64 {
    let bytes = size_bytes.saturating_add(BLOCK_OVERHEAD_BYTES);
    bytes.checked_next_multiple_of(GRANULE_BYTES).unwrap_or(u64::MAX)
}

/// The location of a block.
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

/// Checks the headers of a place of `bytes` that begins at `block`; returns a fault, if any. No
/// place may be allocated or freed meanwhile; publishing is allowed.
pub(super) fn fault_of_headers(segment: &Segment, block: usize, bytes: u64) -> Option<String> {
    let (mapping, block) = segment.headers(block);
    let generation = mapping.atomic_u64(block);
    if sync::seen(generation) == 0 {
        return None;
    }
    let size = mapping.atomic_u64(block + offset_of!(BlockHeader, size)).load(Ordering::Relaxed);
    let chunk = block + size_of::<BlockHeader>();
    let chunk = mapping.atomic_u64(chunk + offset_of!(ChunkHeader, fields)).load(Ordering::Relaxed);
    if sync::seen(generation) == 0 {
        // Freed meanwhile.
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
