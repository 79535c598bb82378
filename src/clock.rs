//! The clock: that of the system, or a manual one for tests.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::interval::Timestamp;

/// A point on a monotonic clock; only differences between moments have a meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Moment(u64);

impl Moment {
    /// A moment in milliseconds since the clock was created.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    /// The moment `duration` after this one.
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)))
    }

    /// The time from `earlier` to this moment; zero if `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

/// A source of monotonic time and of the time of day.
///
/// ```
/// use std::time::Duration;
///
/// use iovcache::{Clock, Timestamp};
/// let clock = Clock::manual(Timestamp::from_millis(1_000));
/// let began = clock.now();
/// clock.advance(Duration::from_secs(60));
/// assert_eq!(clock.now().since(began), Duration::from_secs(60));
/// assert_eq!(clock.wall(), Timestamp::from_millis(61_000));
/// ```
#[derive(Debug, Clone)]
pub struct Clock(ClockKind);

/// The clock of the system, or one that a test sets.
#[derive(Debug, Clone)]
enum ClockKind {
    System(Instant),
    Manual(Arc<ManualHands>),
}

/// The two times of a clock that a test sets: monotonic, and since the Unix epoch.
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

    /// A clock that stays at `wall` until [`advance`](Self::advance) moves it.
    pub fn manual(wall: Timestamp) -> Self {
        Self(ClockKind::Manual(Arc::new(ManualHands {
            monotonic_millis: AtomicU64::new(0),
            wall_millis: AtomicI64::new(wall.as_millis()),
        })))
    }

    /// Moves a manual clock and all of its clones forward. No effect on a system clock.
    pub fn advance(&self, by: Duration) {
        if let ClockKind::Manual(hands) = &self.0 {
            let millis = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
            hands.monotonic_millis.fetch_add(millis, Ordering::SeqCst);
            let millis = i64::try_from(millis).unwrap_or(i64::MAX);
            hands.wall_millis.fetch_add(millis, Ordering::SeqCst);
        }
    }

    /// The current moment.
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
