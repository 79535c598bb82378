//! What time it is: the system's clock, or one that a test moves by hand.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::interval::Timestamp;

/// A point on a clock that never goes back; only differences mean something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Moment(u64);

impl Moment {
    /// Milliseconds since the clock was made.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    /// This moment and a duration after it.
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)))
    }

    /// How long ago `earlier` was, zero if it is yet to come.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

/// Tells the time.
#[derive(Debug, Clone)]
pub struct Clock(ClockKind);

#[derive(Debug, Clone)]
enum ClockKind {
    System(Instant),
    Manual(Arc<ManualHands>),
}

#[derive(Debug)]
struct ManualHands {
    monotonic_millis: AtomicU64,
    wall_millis: AtomicI64,
}

impl Clock {
    /// The system's clock.
    pub fn system() -> Self {
        Self(ClockKind::System(Instant::now()))
    }

    /// A clock that stands at `wall` until [`advance`](Self::advance) moves it.
    pub fn manual(wall: Timestamp) -> Self {
        Self(ClockKind::Manual(Arc::new(ManualHands {
            monotonic_millis: AtomicU64::new(0),
            wall_millis: AtomicI64::new(wall.as_millis()),
        })))
    }

    /// Moves a manual clock and all of its clones forward; a system clock does not heed it.
    pub fn advance(&self, by: Duration) {
        if let ClockKind::Manual(hands) = &self.0 {
            let millis = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
            hands.monotonic_millis.fetch_add(millis, Ordering::SeqCst);
            let millis = i64::try_from(millis).unwrap_or(i64::MAX);
            hands.wall_millis.fetch_add(millis, Ordering::SeqCst);
        }
    }

    /// A moment that never goes back.
    pub fn now(&self) -> Moment {
        match &self.0 {
            ClockKind::System(start) => Moment::default().after(start.elapsed()),
            ClockKind::Manual(hands) => Moment(hands.monotonic_millis.load(Ordering::SeqCst)),
        }
    }

    /// The time of day.
    pub fn wall(&self) -> Timestamp {
        match &self.0 {
            ClockKind::System(_) => {
                let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                Timestamp::from_millis(i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX))
            }
            ClockKind::Manual(hands) => {
                Timestamp::from_millis(hands.wall_millis.load(Ordering::SeqCst))
            }
        }
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::system()
    }
}
