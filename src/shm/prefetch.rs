//! Prefetch hints to the processor.
#![allow(unsafe_code)]

/// Distance, in items, of prefetches in a loop.
pub(crate) const AHEAD: usize = 8;

/// Prefetches the cache line at `place`. Any address is allowed, mapped or not.
#[inline]
pub(crate) fn prefetch<T>(place: *const T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch has no effect on the program and never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(place.cast()) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}
