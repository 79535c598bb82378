//! The clock that limits how long a timeline counts as confirmed.
#![allow(unsafe_code)]

use std::mem::MaybeUninit;

#[inline]
fn millis_of(clock: libc::clockid_t) -> u64 {
    let mut time = MaybeUninit::<libc::timespec>::uninit();
    // SAFETY: the kernel writes one timespec to `time`, which lives until it returns.
    let status = unsafe { libc::clock_gettime(clock, time.as_mut_ptr()) };
    if status != 0 {
        // Both clocks exist since Linux 2.6.32. Without a clock no timeline counts as confirmed.
        return u64::MAX;
    }
    // SAFETY: the call above has succeeded, so it has written the whole timespec.
    let time = unsafe { time.assume_init() };
    // Both are not negative: these clocks begin at 0, and count up.
    let (seconds, nanos) = (time.tv_sec.cast_unsigned(), time.tv_nsec.cast_unsigned());
    seconds.saturating_mul(1_000).saturating_add(nanos / 1_000_000)
}

/// Milliseconds of CLOCK_MONOTONIC, common to all processes of the node.
pub(crate) fn monotonic_millis() -> u64 {
    millis_of(libc::CLOCK_MONOTONIC)
}

/// Like [`monotonic_millis`], as of the last tick, at most some milliseconds ago; reading it takes
/// a quarter of the time. Confirmations of the service end a quarter of the refresh time early, so
/// the tick does not matter.
#[inline]
pub(super) fn coarse_monotonic_millis() -> u64 {
    millis_of(libc::CLOCK_MONOTONIC_COARSE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_clocks_are_one_but_for_a_tick() {
        for _ in 0..1_000 {
            let (coarse, exact) = (coarse_monotonic_millis(), monotonic_millis());
            assert!(coarse <= exact && exact - coarse < 200, "{coarse} {exact}");
        }
    }
}
