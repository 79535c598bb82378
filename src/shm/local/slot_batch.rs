//! Pins by the slots of a page: by one of the thread's lane, or by many beside each other.

use std::sync::atomic::{AtomicU64, Ordering};

use super::pins_page::{ConsumerPage, SLOTS};
use super::protocol::{self, PinAttempt};
use super::slot_chunks::{self, CHUNK_SLOTS, LaneSlot, SlotHint};

impl ConsumerPage {
    /// Pins a block of `bytes` bytes by a slot of this thread's lane, or another one. Returns the index
    /// of the slot, or an error as [`SlotBatch::pin`].
    #[inline]
    pub(super) fn pin(
        &self,
        block: &AtomicU64,
        generation: u64,
        bytes: u64,
    ) -> Result<u32, PinAttempt> {
        let LaneSlot { page, slot } = slot_chunks::last_slot();
        if page == self.chunks.page() {
            // SYNC(pin): `high_water` was raised when the lane was entered.
            match protocol::pin(self.slot(slot), block, generation, self.fence()) {
                PinAttempt::Pinned => return Ok(slot),
                PinAttempt::Gone => return Err(PinAttempt::Gone),
                PinAttempt::SlotTaken => {}
            }
        }
        self.pin_elsewhere(block, generation, bytes)
    }

    /// Pins a block by another slot than the one that this thread used last.
    #[inline(never)]
    fn pin_elsewhere(
        &self,
        block: &AtomicU64,
        generation: u64,
        bytes: u64,
    ) -> Result<u32, PinAttempt> {
        // Slots of a lane count no bytes.
        let lane = if self.quota.is_none() { slot_chunks::lane(&self.chunks) } else { None };
        if let Some(first) = lane {
            let end = first + CHUNK_SLOTS;
            self.raise_high_water(end);
            for slot in first..end {
                match protocol::pin(self.slot(slot), block, generation, self.fence()) {
                    PinAttempt::Pinned => {
                        let page = self.chunks.page();
                        slot_chunks::use_lane_slot(LaneSlot { page, slot });
                        return Ok(slot);
                    }
                    PinAttempt::Gone => return Err(PinAttempt::Gone),
                    PinAttempt::SlotTaken => {}
                }
            }
        }
        self.batch().pin(block, generation, bytes)
    }

    /// Pins outside of this thread's lane.
    pub(super) fn batch(&self) -> SlotBatch<'_> {
        let SlotHint { first, next } = slot_chunks::slot_hint();
        let first = first % SLOTS;
        // Only a hint: what was pinned first was probably unpinned first.
        let is_first_free = self.slot(first).load(Ordering::Relaxed) == 0;
        let next = if is_first_free { first } else { next % SLOTS };
        SlotBatch { page: self, chunk: None, first, next }
    }

    /// Pins outside of the lane, from slot `hint` on.
    #[cfg(test)]
    pub(super) fn pin_from(
        &self,
        hint: u32,
        block: &AtomicU64,
        generation: u64,
        bytes: u64,
    ) -> Result<u32, PinAttempt> {
        slot_chunks::use_slot_hint(SlotHint { first: hint, next: hint });
        self.batch().pin(block, generation, bytes)
    }
}

/// Claims slots one after the other, in chunks that this thread takes for as long. Where it ends, the
/// next one of the thread begins.
#[derive(Debug)]
pub(super) struct SlotBatch<'a> {
    page: &'a ConsumerPage,
    /// The chunk that the thread has.
    chunk: Option<u32>,
    /// See [`SlotHint`].
    first: u32,
    /// The slot to be tried next.
    next: u32,
}

impl SlotBatch<'_> {
    /// Whether it claims slots of `page`.
    #[cfg(any(feature = "client", feature = "capi"))]
    #[inline]
    pub(super) fn is_of(&self, page: &ConsumerPage) -> bool {
        std::ptr::eq(self.page, page)
    }

    /// Pins a block of `bytes` bytes by the first free slot from the last one on, with wrap-around.
    /// Returns the index of the slot, or an error if no slot is free, the bytes exceed the quota, or
    /// the block is gone. The slots of a chunk that another thread uses count as taken.
    #[inline]
    pub(super) fn pin(
        &mut self,
        block: &AtomicU64,
        generation: u64,
        bytes: u64,
    ) -> Result<u32, PinAttempt> {
        let page = self.page;
        let Some(quota) = &page.quota else { return self.pin_by_slot(block, generation) };
        if !quota.take(bytes) {
            return Err(PinAttempt::SlotTaken);
        }
        let pinned = self.pin_by_slot(block, generation);
        match pinned {
            Ok(slot) => quota.of_slots[slot as usize].store(bytes, Ordering::Relaxed),
            Err(_) => quota.give_back(bytes),
        }
        pinned
    }

    #[inline]
    fn pin_by_slot(&mut self, block: &AtomicU64, generation: u64) -> Result<u32, PinAttempt> {
        let page = self.page;
        // The first chunk is visited twice: from the first slot to be tried, and up to it.
        let mut left = SLOTS + CHUNK_SLOTS;
        while left > 0 {
            let slot = self.next;
            if !self.has_chunk(slot / CHUNK_SLOTS) {
                let rest = CHUNK_SLOTS - slot % CHUNK_SLOTS;
                self.advance(rest);
                left = left.saturating_sub(rest);
                continue;
            }
            let word = page.slot(slot);
            if protocol::is_free(word) {
                page.raise_high_water(slot + 1);
                match protocol::pin(word, block, generation, page.fence()) {
                    PinAttempt::Pinned => {
                        self.advance(1);
                        return Ok(slot);
                    }
                    PinAttempt::Gone => return Err(PinAttempt::Gone),
                    PinAttempt::SlotTaken => {}
                }
            }
            self.advance(1);
            left -= 1;
        }
        Err(PinAttempt::SlotTaken)
    }

    #[inline]
    fn advance(&mut self, slots: u32) {
        self.next = (self.next + slots) % SLOTS;
    }

    /// Takes a chunk in place of the one before; whether the thread has it now.
    #[inline]
    fn has_chunk(&mut self, chunk: u32) -> bool {
        if self.chunk == Some(chunk) {
            return true;
        }
        self.give();
        let is_taken = self.page.chunks.take(chunk);
        self.chunk = is_taken.then_some(chunk);
        is_taken
    }

    fn give(&mut self) {
        if let Some(chunk) = self.chunk.take() {
            self.page.chunks.give(chunk);
        }
    }
}

impl Drop for SlotBatch<'_> {
    fn drop(&mut self) {
        self.give();
        slot_chunks::use_slot_hint(SlotHint { first: self.first, next: self.next });
    }
}
