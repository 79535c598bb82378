//! The times at which periodic work wakes up: those of all loops coincide.
//!
//! ```text
//!  every second   ●───────────────●───────────────●──▶
//!  every 200 ms   ●──●──●──●──●──●──●──●──●──●──●──●─▶
//! ```
//!
//! A wake-up of an idle process can take milliseconds of processor time, since none of its code
//! is in the processor's caches. Loops with a common multiple of their intervals share wake-ups.

use std::sync::OnceLock;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// Longest interval: the clock cannot represent any time.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3_600);

/// Sleeps until a multiple of `interval`, counted from the first call in this process: the first one
/// that is half of `interval` or more from now, so that work which takes long pauses too.
pub(super) async fn next_tick(interval: Duration) {
    sleep_until(tick_after(Instant::now(), interval)).await;
}

/// The first multiple of `interval` that is half of it or more after `now`.
pub(super) fn tick_after(now: Instant, interval: Duration) -> Instant {
    static FIRST: OnceLock<Instant> = OnceLock::new();
    let elapsed = now.saturating_duration_since(*FIRST.get_or_init(|| now));
    now + until_tick(elapsed, interval.min(LONGEST))
}

/// Time from `elapsed` to that multiple of `interval`: at least half of it and less than one and a half.
fn until_tick(elapsed: Duration, interval: Duration) -> Duration {
    let earliest = (elapsed + interval / 2).as_nanos();
    let tick = earliest.next_multiple_of(interval.as_nanos().max(1));
    Duration::from_nanos(u64::try_from(tick - elapsed.as_nanos()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn the_next_tick_is_a_multiple_and_half_an_interval_away_or_more() {
        for (elapsed, interval, left) in [
            (0, 1_000, 1_000),
            (1, 1_000, 999),
            (500, 1_000, 500),
            (501, 1_000, 1_499),
            (999, 1_000, 1_001),
            (1_000, 1_000, 1_000),
            (1_250, 200, 150),
        ] {
            assert_eq!(until_tick(ms(elapsed), ms(interval)), ms(left), "{elapsed} of {interval}");
        }
        assert_eq!(until_tick(ms(5), Duration::ZERO), Duration::ZERO);
        let now = Instant::now();
        assert!(tick_after(now, Duration::MAX) > now);
    }

    #[tokio::test]
    async fn loops_with_a_common_multiple_wake_together() {
        let now = Instant::now();
        for later in [ms(0), ms(7), ms(499), ms(777), ms(12_345)] {
            let at = now + later;
            let second = tick_after(at, ms(1_000));
            assert!(second >= at + ms(500) && second < at + ms(1_500));
            // A tick of the shorter interval falls on each tick of the longer one.
            assert_eq!(tick_after(second - ms(150), ms(200)), second);
            assert_eq!(tick_after(second - ms(300), ms(500)), second);
        }
    }
}
