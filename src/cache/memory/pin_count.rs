//! The pin count of an object: detects the first pin and the last unpin.
//!
//! ```text
//!  pin    0 ─▶ 1: its bytes count as pinned            n ─▶ n + 1: nothing else
//!  unpin  1 ─▶ 0: they do not, and it can be evicted   n ─▶ n - 1: nothing else
//! ```
//!
//! The caller already holds the object by an `Arc`, so a count of 0 frees nothing by itself.

use crate::sync::atomic::{AtomicU32, Ordering};

/// Adds a pin; calls `first` if it is the first.
pub(crate) fn pin(pins: &AtomicU32, first: impl FnOnce()) {
    // SYNC(pins): the last to unpin sees all earlier accesses to the object.
    if pins.fetch_add(1, Ordering::AcqRel) == 0 {
        first();
    }
}

/// Removes a pin; calls `last` if it was the last.
pub(crate) fn unpin(pins: &AtomicU32, last: impl FnOnce()) {
    // SYNC(pins): as above.
    if pins.fetch_sub(1, Ordering::AcqRel) == 1 {
        last();
    }
}
