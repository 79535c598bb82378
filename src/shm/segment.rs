//! A segment or region: what it is to the pool, and as what consumers get it.
#![allow(unsafe_code)]

use std::fmt;
use std::mem::offset_of;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};

use super::backing::Made;
use super::layout::{Epoch, GRANULE_BYTES, SEGMENT_HEADER_BYTES, SegmentHeader, usable_bytes};
use super::mapping::Mapping;
use super::region::Region;

/// What a place can be in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A segment of our own.
    Segment,
    /// A region that somebody else owns.
    Region,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Segment => "segment",
            Self::Region => "region",
        })
    }
}

/// A segment or region that blocks lie in, as consumers get it.
#[derive(Clone)]
pub struct SharedSegment(pub(super) Arc<Segment>);

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

    /// Its file: sealed, or open for reading only. A region that is but a range of memory has none.
    pub fn file(&self) -> Option<BorrowedFd<'_>> {
        match &self.0.memory {
            SegmentMemory::Segment(made) => Some(made.file.as_fd()),
            SegmentMemory::Region(region) => region.file.as_ref().map(|file| file.shared.as_fd()),
        }
    }
}

impl fmt::Debug for SharedSegment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} of {} bytes", self.kind(), self.id(), self.size_bytes())
    }
}

/// A segment or region.
pub(super) struct Segment {
    pub(super) kind: Kind,
    pub(super) id: u16,
    pub(super) memory: SegmentMemory,
}

pub(super) enum SegmentMemory {
    Segment(Made),
    Region(Region),
}

impl Segment {
    pub(super) fn mapping(&self) -> &Arc<Mapping> {
        match &self.memory {
            SegmentMemory::Segment(made) => &made.mapping,
            SegmentMemory::Region(region) => &region.mapping,
        }
    }

    /// All of it, in bytes.
    pub(super) fn length(&self) -> u64 {
        self.mapping().length() as u64
    }

    /// Where the first block can begin.
    fn first_block(&self) -> u64 {
        match self.kind {
            Kind::Segment => SEGMENT_HEADER_BYTES,
            Kind::Region => 0,
        }
    }

    /// Where the block begins whose place starts at this granule.
    pub(super) fn block_at(&self, granule: u32) -> usize {
        (self.first_block() + u64::from(granule) * GRANULE_BYTES) as usize
    }

    /// How many granules blocks can take.
    pub(super) fn granules(&self) -> u32 {
        let length = self.mapping().length() as u64;
        let bytes = match self.kind {
            Kind::Segment => usable_bytes(length),
            Kind::Region => length,
        };
        u32::try_from(bytes / GRANULE_BYTES).unwrap_or(u32::MAX - 1)
    }

    pub(super) fn write_segment_header(&self, epoch: Epoch) {
        let mapping = self.mapping();
        let header = SegmentHeader::new(epoch, self.id, mapping.length() as u64).to_bytes();
        // SAFETY: the segment is new: no other process knows of it, and it is longer than its head.
        unsafe { mapping.write(0, &header) };
    }

    /// Says to all who have it mapped that nothing in it will be valid any more.
    pub(super) fn retire(&self) {
        // SYNC(retire): pairs with the Acquire load in `Mappings::swept`.
        let retired = self.mapping().atomic_u32(offset_of!(SegmentHeader, retired));
        retired.store(1, Ordering::Release);
    }

    /// Zeroes whatever an earlier instance left that looks like a generation: this one will divide
    /// the region differently, so what an old MetaHeader names would be half of one object and half
    /// of another.
    pub(super) fn forget_generations(&self) {
        for granule in 0..self.granules() {
            let word = self.mapping().atomic_u64(self.block_at(granule));
            // A page that was never written is not to be made just for a zero.
            if word.load(Ordering::Relaxed) != 0 {
                word.store(0, Ordering::Release);
            }
        }
    }
}
