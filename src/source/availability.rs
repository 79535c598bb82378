//! Whether a source answers, and since when it does not.

use std::sync::atomic::{AtomicI64, Ordering};

use super::contract::Reachability;
use crate::clock::Clock;
use crate::interval::Timestamp;

/// Stands for a source that answers.
const UP: i64 = i64::MIN;

/// Whether a source answers. Requests note their results; reading takes no lock.
#[derive(Debug)]
pub(super) struct Availability {
    clock: Clock,
    /// Time of the first failure since the last answer, in milliseconds; [`UP`] if there is none.
    down_since: AtomicI64,
}

impl Default for Availability {
    fn default() -> Self {
        Self::new(Clock::system())
    }
}

impl Availability {
    fn new(clock: Clock) -> Self {
        Self { clock, down_since: AtomicI64::new(UP) }
    }

    /// Notes that the source answered.
    pub(super) fn answered(&self) {
        // Nearly always the source answered before as well: then this only reads.
        if self.down_since.load(Ordering::Relaxed) != UP {
            self.down_since.store(UP, Ordering::Relaxed);
        }
    }

    /// Notes that the source could not be reached.
    pub(super) fn failed(&self) {
        if self.down_since.load(Ordering::Relaxed) == UP {
            let now = self.clock.wall().as_millis().max(UP + 1);
            let _ = self.down_since.compare_exchange(UP, now, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    pub(super) fn state(&self) -> Reachability {
        match self.down_since.load(Ordering::Relaxed) {
            UP => Reachability::Up,
            since => Reachability::Down { since: Timestamp::from_millis(since) },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_source_is_down_from_its_first_failure_to_its_next_answer() {
        let clock = Clock::manual(Timestamp::from_millis(1_000));
        let availability = Availability::new(clock.clone());
        assert_eq!(availability.state(), Reachability::Up);
        let down = |millis| Reachability::Down { since: Timestamp::from_millis(millis) };
        availability.failed();
        clock.advance(Duration::from_millis(500));
        availability.failed();
        assert_eq!(availability.state(), down(1_000));
        availability.answered();
        assert_eq!(availability.state(), Reachability::Up);
        availability.failed();
        assert_eq!(availability.state(), down(1_500));
    }
}
