//! Limit of the bytes that the slots of a page pin, as its consumer counts them.

use std::sync::atomic::{AtomicU64, Ordering};

/// The bytes that the slots of a page pin, for a page with a limit.
#[derive(Debug)]
pub(super) struct ByteQuota {
    limit: u64,
    used: AtomicU64,
    /// The bytes that each slot pins. The holder of a slot writes its entry.
    pub(super) of_slots: Box<[AtomicU64]>,
}

impl ByteQuota {
    /// The limit for a page with this many slots.
    pub(super) fn new(limit: u64, slots: u32) -> Self {
        let of_slots = (0..slots).map(|_| AtomicU64::new(0)).collect();
        Self { limit, used: AtomicU64::new(0), of_slots }
    }

    /// Adds bytes; returns `false` if they exceed the limit.
    pub(super) fn take(&self, bytes: u64) -> bool {
        let add = |used: u64| used.checked_add(bytes).filter(|sum| *sum <= self.limit);
        // SYNC(quota): the slots of bytes that were given back are clear.
        self.used.try_update(Ordering::Acquire, Ordering::Relaxed, add).is_ok()
    }

    pub(super) fn give_back(&self, bytes: u64) {
        // SYNC(quota): pairs with the Acquire in `take`.
        self.used.fetch_sub(bytes, Ordering::Release);
    }
}
