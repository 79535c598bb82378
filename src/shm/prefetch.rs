//! A hint to the processor: what will be looked at soon.
#![allow(unsafe_code)]

/// So far ahead it is told, where many are gone through.
pub(crate) const AHEAD: usize = 8;

/// Asks the processor to bring what lies at `place` near. Any address will do, mapped or not.
#[inline]
pub(crate) fn prefetch<T>(place: *const T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch gives nothing to the program and faults nowhere.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(place.cast()) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}
