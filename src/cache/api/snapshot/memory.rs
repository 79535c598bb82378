//! The layout of shared memory in a snapshot: which objects are at which place.
//!
//! A few objects are drawn one by one. If there are many, neighbours share a cell: segments are
//! divided into cells, so that all segments together have at most [`MAX_PIECES`].

use std::collections::BTreeMap;

use serde::Serialize;

use super::holders::{HolderSet, Holders};
use crate::cache::memory::object::Resident;
use crate::cache::memory::residency::Residency;
use crate::object::ObjectPath;
use crate::shm::{Kind, MetaHeader, Pool};

/// Maximum number of pieces.
const MAX_PIECES: usize = 2_048;
/// Maximum number of segments.
const MAX_SEGMENTS: usize = 64;
/// Distance from the start of a block to the offset in its MetaHeader.
const BLOCK_HEADER_BYTES: u64 = 48;

/// A segment or region.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SegmentSnapshot {
    /// Segment or region.
    pub kind: Kind,
    /// Its id among those of its kind.
    pub id: u16,
    /// Size in bytes.
    pub size_bytes: u64,
    /// The occupied pieces, in order; the gaps are free.
    pub pieces: Vec<SegmentPiece>,
}

/// One object, or the contents of one cell.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SegmentPiece {
    /// Start, as an offset in the segment.
    pub at: u64,
    /// Length in bytes.
    pub length: u64,
    /// Bytes used by objects.
    pub used_bytes: u64,
    /// Bytes of pinned objects; the rest can be evicted.
    pub pinned_bytes: u64,
    /// Number of objects.
    pub objects: u32,
    /// The path of one of them.
    pub path: Option<ObjectPath>,
    /// The holders of its pins, as positions in the snapshot's list of holders.
    pub by: Vec<u8>,
}

/// A piece under construction.
#[derive(Debug, Clone, Default)]
struct PieceBuilder {
    used_bytes: u64,
    pinned_bytes: u64,
    objects: u32,
    path: Option<ObjectPath>,
    by: HolderSet,
}

impl PieceBuilder {
    fn add(&mut self, resident: &Resident, bytes: u64, holders: &Holders) {
        self.used_bytes += bytes;
        self.objects += 1;
        if resident.pins() > 0 {
            self.pinned_bytes += bytes;
            self.by |= holders.of(resident.id());
        }
        if self.path.is_none() {
            self.path = Some(resident.path().clone());
        }
    }

    fn piece(self, at: u64, length: u64) -> SegmentPiece {
        let Self { used_bytes, pinned_bytes, objects, path, by } = self;
        let by = Holders::places(by);
        SegmentPiece { at, length, used_bytes, pinned_bytes, objects, path, by }
    }
}

/// A segment under construction.
struct SegmentBuilder {
    size_bytes: u64,
    /// Cells by start offset, with their lengths.
    cells: BTreeMap<u64, (u64, PieceBuilder)>,
    /// Length of a cell; 0 if each object is a cell.
    cell_bytes: u64,
}

/// The segments, and the number of segments left out.
pub(super) fn draw(
    pool: &Pool,
    residency: &Residency,
    holders: &Holders,
) -> (Vec<SegmentSnapshot>, usize) {
    let segments = pool.segments();
    let drawn = segments.len().min(MAX_SEGMENTS);
    let many = residency.objects() > MAX_PIECES;
    let cells = (MAX_PIECES / drawn.max(1)) as u64;
    let mut sheets: BTreeMap<(Kind, u16), SegmentBuilder> = segments[..drawn]
        .iter()
        .map(|segment| {
            let size_bytes = segment.size_bytes();
            let cell_bytes = if many { size_bytes.div_ceil(cells) } else { 0 };
            (
                (segment.kind(), segment.id()),
                SegmentBuilder { size_bytes, cells: BTreeMap::new(), cell_bytes },
            )
        })
        .collect();
    residency.for_each_object(|resident| {
        let (place, at) = place_of(&resident.block().meta_header());
        let Some(sheet) = sheets.get_mut(&place) else { return };
        let bytes = resident.charged_bytes();
        if sheet.cell_bytes == 0 {
            let (_, cell) = sheet.cells.entry(at).or_insert((bytes, PieceBuilder::default()));
            cell.add(resident, bytes, holders);
            return;
        }
        // An object longer than a cell fills all cells that it overlaps.
        let end = (at + bytes).min(sheet.size_bytes);
        let mut from = at;
        while from < end {
            let begin = from / sheet.cell_bytes * sheet.cell_bytes;
            let until = (begin + sheet.cell_bytes).min(end);
            let length = sheet.cell_bytes.min(sheet.size_bytes - begin);
            let (_, cell) = sheet.cells.entry(begin).or_insert((length, PieceBuilder::default()));
            cell.add(resident, until - from, holders);
            from = until;
        }
    });
    let pictures = sheets.into_iter().map(|((kind, id), sheet)| {
        let pieces = sheet.cells.into_iter();
        let pieces = pieces.map(|(at, (length, cell))| cell.piece(at, length)).collect();
        SegmentSnapshot { kind, id, size_bytes: sheet.size_bytes, pieces }
    });
    (pictures.collect(), segments.len() - drawn)
}

/// The segment of a block, and the offset of its start.
fn place_of(header: &MetaHeader) -> ((Kind, u16), u64) {
    let at = u64::try_from(header.handle).unwrap_or(0);
    match header.managed {
        0 => ((Kind::Region, header.region_id), at.saturating_sub(BLOCK_HEADER_BYTES + 16)),
        _ => ((Kind::Segment, header.segment_id), at.saturating_sub(BLOCK_HEADER_BYTES)),
    }
}
