//! Lets other tasks run during work whose length a client decides.
//!
//! ```text
//!  take(units) ──every 1,024 units──▶ 500 µs of the thread are used? ──▶ yield
//! ```
//!
//! At each yield a deadline or a hang-up of the client can end the work: its future is dropped.

use std::time::{Duration, Instant};

/// Longest time that work keeps its thread, within the precision of one check.
const LONGEST: Duration = Duration::from_micros(500);
/// Units between two readings of the clock, about 100 µs.
const UNITS_PER_LOOK: usize = 1_024;

/// Measures how long the current work has kept its thread.
#[derive(Debug)]
pub(super) struct WorkClock {
    began: Instant,
    units: usize,
}

impl WorkClock {
    /// Starts the measurement now.
    pub(super) fn new() -> Self {
        Self { began: Instant::now(), units: 0 }
    }

    /// Counts `units` of about 100 ns each, done or next; yields when the time is used up.
    pub(super) async fn take(&mut self, units: usize) {
        self.units += units;
        if self.units >= UNITS_PER_LOOK {
            self.units = 0;
            if self.began.elapsed() >= LONGEST {
                tokio::task::yield_now().await;
                self.began = Instant::now();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn long_work_ends_at_its_deadline() {
        let work = async {
            let mut turns = WorkClock::new();
            loop {
                std::hint::black_box((0..100).sum::<u64>());
                turns.take(1).await;
            }
        };
        let began = Instant::now();
        let ended = tokio::time::timeout(Duration::from_millis(20), work).await;
        let _: Result<(), _> = ended;
        assert!(began.elapsed() < Duration::from_secs(2));
    }
}
