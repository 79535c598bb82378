//! Segments and regions: the pool's view of them, and the view of consumers.
#![allow(unsafe_code)]

use std::fmt;
use std::io;
use std::mem::offset_of;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};

use super::backing::{Made, allocate_part};
use super::host::HostAllocation;
use super::layout::{
    BLOCK_OVERHEAD_BYTES, Epoch, GRANULE_BYTES, SEGMENT_HEADER_BYTES, SegmentHeader, usable_bytes,
};
use super::mapping::Mapping;
use super::region::Region;

/// The kind of memory that holds a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A segment of the service.
    Segment,
    /// A region owned by another process.
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

/// A segment or region with blocks, as given to consumers.
#[derive(Clone)]
pub struct SharedSegment(pub(super) Arc<Segment>);

impl SharedSegment {
    /// Segment or region.
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// Its id among those of its kind.
    pub fn id(&self) -> u16 {
        self.0.id
    }

    /// Its size, header included.
    pub fn size_bytes(&self) -> u64 {
        self.0.mapping().length() as u64
    }

    /// Its file: sealed, or open for reading only. A region from a range of memory has none.
    pub fn file(&self) -> Option<BorrowedFd<'_>> {
        match &self.0.memory {
            SegmentMemory::Segment(made) => Some(made.file.as_fd()),
            SegmentMemory::Region(region) => region.file.as_ref().map(|file| file.shared.as_fd()),
            SegmentMemory::Host(_) => None,
        }
    }
}

impl fmt::Debug for SharedSegment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} of {} bytes", self.kind(), self.id(), self.size_bytes())
    }
}

/// How a segment with a name was lost: consumers can no longer find it, or read it safely.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SegmentLoss {
    /// Its file no longer has a name.
    Removed,
    /// Another program has overwritten its head, and may overwrite its objects.
    Overwritten,
}

/// A segment whose name or head was lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LostSegment {
    /// Its id.
    pub id: u16,
    /// The path where the file should be.
    pub file: PathBuf,
    /// How it was lost.
    pub loss: SegmentLoss,
}

impl fmt::Display for LostSegment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.loss {
            SegmentLoss::Removed => "was removed: devices that start now do not find its objects",
            SegmentLoss::Overwritten => {
                "was reset by another program: its objects may be overwritten"
            }
        };
        let file = self.file.display();
        let remedy = "restart the service, or let it make such segments anew (fairmq_renew)";
        write!(f, "segment {}: {file} {what}; {remedy}", self.id)
    }
}

/// A segment or region.
pub(super) struct Segment {
    pub(super) kind: Kind,
    pub(super) id: u16,
    pub(super) memory: SegmentMemory,
    /// Whether its name or head was lost, so that nothing is allocated in it any more.
    condemned: AtomicBool,
    /// Whether its head was lost, so that another program may overwrite its blocks.
    overwritten: AtomicBool,
}

/// The memory of a segment, by its owner.
pub(super) enum SegmentMemory {
    Segment(Made),
    Region(Region),
    /// One buffer in a host's segment or region. Its mapping is that of the payload.
    Host(HostAllocation),
}

impl Segment {
    pub(super) fn new(kind: Kind, id: u16, memory: SegmentMemory) -> Self {
        let (condemned, overwritten) = Default::default();
        Self { kind, id, memory, condemned, overwritten }
    }

    /// Whether it was [condemned](Self::condemn).
    pub(super) fn is_condemned(&self) -> bool {
        self.condemned.load(Ordering::Acquire)
    }

    /// Whether it was condemned because another program has overwritten its head.
    pub(super) fn is_overwritten(&self) -> bool {
        self.overwritten.load(Ordering::Acquire)
    }

    /// Ends its use: its name or head was lost.
    pub(super) fn condemn(&self, loss: SegmentLoss) {
        self.overwritten.store(loss == SegmentLoss::Overwritten, Ordering::Release);
        self.condemned.store(true, Ordering::Release);
    }

    /// Removes its name, if it has one.
    pub(super) fn remove_name(&self) {
        if let SegmentMemory::Segment(made) = &self.memory {
            made.remove_name();
        }
    }

    pub(super) fn mapping(&self) -> &Arc<Mapping> {
        match &self.memory {
            SegmentMemory::Segment(made) => &made.mapping,
            SegmentMemory::Region(region) => &region.mapping,
            SegmentMemory::Host(host) => &host.payload,
        }
    }

    /// Mapping and offset of the headers of the block at `block`.
    pub(super) fn headers(&self, block: usize) -> (&Mapping, usize) {
        match &self.memory {
            SegmentMemory::Host(host) => (&host.headers, 0),
            SegmentMemory::Segment(_) | SegmentMemory::Region(_) => (self.mapping(), block),
        }
    }

    /// Mapping and offset of the payload of the block at `block`.
    pub(super) fn payload(&self, block: usize) -> (&Mapping, usize) {
        match &self.memory {
            SegmentMemory::Host(host) => (&host.payload, 0),
            SegmentMemory::Segment(_) | SegmentMemory::Region(_) => {
                (self.mapping(), block + BLOCK_OVERHEAD_BYTES as usize)
            }
        }
    }

    /// Its size in bytes.
    pub(super) fn length(&self) -> u64 {
        self.mapping().length() as u64
    }

    /// Offset of the first block.
    fn first_block(&self) -> u64 {
        match self.kind {
            Kind::Segment => SEGMENT_HEADER_BYTES,
            Kind::Region => 0,
        }
    }

    /// Offset of the block whose place starts at this granule.
    pub(super) fn block_at(&self, granule: u32) -> usize {
        (self.first_block() + u64::from(granule) * GRANULE_BYTES) as usize
    }

    /// Number of granules for blocks.
    pub(super) fn granules(&self) -> u32 {
        let length = self.mapping().length() as u64;
        let bytes = match self.kind {
            Kind::Segment => usable_bytes(length),
            Kind::Region => length,
        };
        u32::try_from(bytes / GRANULE_BYTES).unwrap_or(u32::MAX - 1)
    }

    /// Number of granules, from the first one on, that have memory from the start.
    pub(super) fn granules_with_memory(&self) -> u32 {
        let whole = self.granules();
        let bytes = match &self.memory {
            SegmentMemory::Segment(made) => made.allocated_bytes,
            SegmentMemory::Region(_) | SegmentMemory::Host(_) => return whole,
        };
        let granules = bytes.saturating_sub(self.first_block()) / GRANULE_BYTES;
        u32::try_from(granules).map_or(whole, |granules| granules.min(whole))
    }

    /// Allocates and maps memory for granules.
    ///
    /// # Errors
    /// If the system has none.
    pub(super) fn commit(&self, start: u32, granules: u32) -> io::Result<()> {
        let SegmentMemory::Segment(made) = &self.memory else { return Ok(()) };
        let (begin, end) = (self.block_at(start), self.block_at(start + granules));
        allocate_part(&made.file, begin as u64, (end - begin) as u64)?;
        #[cfg(feature = "cache")]
        made.mapping.map_pages(begin, end - begin);
        Ok(())
    }

    /// Whether pages of blocks are mapped when they get memory.
    #[cfg(feature = "cache")]
    pub(super) fn is_mapped_ahead(&self) -> bool {
        match &self.memory {
            SegmentMemory::Segment(made) => made.allocated_bytes < self.length(),
            SegmentMemory::Region(_) | SegmentMemory::Host(_) => false,
        }
    }

    /// Checks its name and its head, if it has a name.
    pub(super) fn loss(&self, epoch: Epoch, range: u32) -> Option<LostSegment> {
        let SegmentMemory::Segment(made) = &self.memory else { return None };
        let file = made.path()?.to_owned();
        let head = SegmentHeader::new(epoch, self.id, range, self.length()).to_bytes();
        let is_kept = |offset: &usize| {
            let kept = head[*offset..].first_chunk().map(|word| u64::from_le_bytes(*word));
            kept == Some(self.mapping().atomic_u64(*offset).load(Ordering::Relaxed))
        };
        let loss = if !SegmentHeader::FIXED_WORDS.iter().all(is_kept) {
            SegmentLoss::Overwritten
        } else if made.has_lost_its_name() {
            SegmentLoss::Removed
        } else {
            return None;
        };
        Some(LostSegment { id: self.id, file, loss })
    }

    /// Marks the segment as retired for all processes that have it mapped.
    pub(super) fn retire(&self) {
        let magic = self.mapping().atomic_u64(SegmentHeader::MAGIC_OFFSET).load(Ordering::Relaxed);
        if self.is_condemned() && magic.to_le_bytes() != SegmentHeader::MAGIC {
            // Its bytes are another program's by now.
            return;
        }
        // SYNC(retire): pairs with the Acquire load in `Mappings::swept`.
        let retired = self.mapping().atomic_u32(offset_of!(SegmentHeader, retired));
        retired.store(1, Ordering::Release);
    }

    /// Zeroes words of an earlier instance that look like a generation. This instance divides the
    /// region differently, so an old MetaHeader could refer to parts of two objects.
    pub(super) fn forget_generations(&self) {
        for granule in 0..self.granules() {
            let word = self.mapping().atomic_u64(self.block_at(granule));
            // A page that was never written must not be allocated just for a zero.
            if word.load(Ordering::Relaxed) != 0 {
                word.store(0, Ordering::Release);
            }
        }
    }
}
