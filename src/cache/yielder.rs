//! Yields to other tasks during work whose length a client decides.
//!
//! ```text
//!  take(units) ──every so many units──▶ 1 ms of the thread is used ──▶ yield
//! ```
//!
//! Where work yields, a deadline ends it and a client that has hung up, too: its future is dropped.

use std::time::{Duration, Instant};

/// For so long work keeps its thread at most, give or take one unit.
const LONGEST: Duration = Duration::from_micros(500);
/// The clock is read each time that this many units are done: some 100 µs.
const UNITS_PER_LOOK: usize = 1_024;

/// How long the work at hand has kept its thread.
#[derive(Debug)]
pub(super) struct Turns {
    began: Instant,
    units: usize,
}

impl Turns {
    /// Begins now.
    pub(super) fn new() -> Self {
        Self { began: Instant::now(), units: 0 }
    }

    /// Counts `units` of some 100 ns each that are done or come next; yields where it is time.
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
            let mut turns = Turns::new();
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
