//! The count of an object's pins, which tells the first pin and the last.
//!
//! ```text
//!  pin    0 ─▶ 1: its bytes count as pinned       n ─▶ n + 1: nothing else
//!  unpin  1 ─▶ 0: they do not, and it can go      n ─▶ n - 1: nothing else
//! ```
//!
//! A caller that pins holds the object already, by an `Arc`; so a count of 0 frees nothing by itself.

use crate::sync::atomic::{AtomicU32, Ordering};

/// One pin more; `first` is called by the first of them.
pub(crate) fn pin(pins: &AtomicU32, first: impl FnOnce()) {
    // SYNC(pins): the last to unpin sees all that those before it did with the object.
    if pins.fetch_add(1, Ordering::AcqRel) == 0 {
        first();
    }
}

/// One pin less; `last` is called by the last of them.
pub(crate) fn unpin(pins: &AtomicU32, last: impl FnOnce()) {
    // SYNC(pins): as above.
    if pins.fetch_sub(1, Ordering::AcqRel) == 1 {
        last();
    }
}
