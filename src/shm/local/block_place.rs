//! Location of a block, as one word of the directory.

use super::super::block::Block;
use super::super::layout::{BLOCK_OVERHEAD_BYTES, GRANULE_BYTES};

/// Location of a block as one word: bit 63 is 1 in a segment and 0 in a region, bits 47 to 62 are
/// the id of the segment or region, bits 0 to 46 the block's offset divided by 64.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BlockPlace {
    pub(super) managed: bool,
    pub(super) id: u16,
    /// Offset of the block in bytes.
    pub(super) offset: u64,
}

impl BlockPlace {
    const OFFSET_BITS: u32 = 47;

    /// The location of a published block.
    pub(super) fn of(block: &Block) -> Self {
        let header = block.meta_header();
        let (managed, overhead) = match header.managed {
            1 => (true, BLOCK_OVERHEAD_BYTES - 16),
            _ => (false, BLOCK_OVERHEAD_BYTES),
        };
        let id = if managed { header.segment_id } else { header.region_id };
        Self { managed, id, offset: header.handle.cast_unsigned() - overhead }
    }

    pub(super) fn from_word(word: u64) -> Self {
        Self {
            managed: word >> 63 == 1,
            id: (word >> Self::OFFSET_BITS) as u16,
            offset: (word & ((1 << Self::OFFSET_BITS) - 1)) * GRANULE_BYTES,
        }
    }

    pub(super) fn to_word(self) -> u64 {
        let granule = self.offset / GRANULE_BYTES;
        debug_assert!(granule < 1 << Self::OFFSET_BITS, "segments are smaller");
        u64::from(self.managed) << 63 | u64::from(self.id) << Self::OFFSET_BITS | granule
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_one_word_and_comes_back() {
        for (managed, id, offset) in [(true, 0, 0), (true, u16::MAX, 4096), (false, 9, 1 << 40)] {
            let place = BlockPlace { managed, id, offset };
            assert_eq!(BlockPlace::from_word(place.to_word()), place);
        }
    }
}
