//! The counters and timings of a cache, each defined once.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `count`.
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// The current value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A histogram of durations.
#[derive(Debug, Default)]
pub struct Histogram {
    counts: [AtomicU64; Self::BOUNDS_MICROS.len() + 1],
    sum_nanos: AtomicU64,
    recent_nanos: AtomicU64,
}

/// The state of a [`Histogram`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Timing {
    /// Number of durations up to each of the bounds and above the previous bound;
    /// the last entry is for durations above all bounds.
    pub counts: Vec<u64>,
    /// Sum of all durations.
    pub sum: Duration,
    /// Moving average: the latest duration has a weight of one eighth, and the average before it
    /// the rest. `None` before the first duration.
    pub recent: Option<Duration>,
}

impl Histogram {
    /// The bounds, in microseconds: 50 µs to 100 s.
    pub(crate) const BOUNDS_MICROS: [u64; 14] = [
        50,
        200,
        500,
        1_000,
        2_500,
        10_000,
        25_000,
        100_000,
        250_000,
        1_000_000,
        2_500_000,
        10_000_000,
        30_000_000,
        100_000_000,
    ];

    /// Counts one duration.
    pub(crate) fn observe(&self, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let place = Self::BOUNDS_MICROS.partition_point(|bound| bound * 1_000 < nanos);
        self.counts[place].fetch_add(1, Ordering::Relaxed);
        self.sum_nanos.fetch_add(nanos, Ordering::Relaxed);
        // Of two concurrent updates one may be lost, which is acceptable for an average.
        let before = self.recent_nanos.load(Ordering::Relaxed);
        let recent = if before == 0 { nanos } else { before - before / 8 + nanos / 8 };
        self.recent_nanos.store(recent.max(1), Ordering::Relaxed);
    }

    /// The current state.
    pub fn timing(&self) -> Timing {
        let recent = self.recent_nanos.load(Ordering::Relaxed);
        Timing {
            counts: self.counts.iter().map(|count| count.load(Ordering::Relaxed)).collect(),
            sum: Duration::from_nanos(self.sum_nanos.load(Ordering::Relaxed)),
            recent: (recent > 0).then(|| Duration::from_nanos(recent)),
        }
    }
}

macro_rules! timings {
    ($($(#[doc = $help:literal])+ $name:ident,)+) => {
        /// Durations since the start of a cache.
        #[derive(Debug, Default)]
        pub struct Timings {
            $($(#[doc = $help])+ pub $name: Histogram,)+
        }

        impl Timings {
            /// Name, help and state of each.
            pub fn all(&self) -> Vec<(&'static str, &'static str, Timing)> {
                vec![$(
                    (stringify!($name), concat!($($help),+).trim_ascii(), self.$name.timing()),
                )+]
            }
        }
    };
}

timings! {
    /// From a request for a table until all of its objects were loaded and pinned.
    answer,
    /// From the registration of a timeframe until all of its objects were loaded and pinned.
    timeframe_load,
    /// From the request for an object's bytes until they were in shared memory.
    load,
    /// From the look-up of a version at a source until the source's answer.
    look_up,
    /// From a request to the CCDB side until the start of its answer.
    ccdb_request,
}

macro_rules! counters {
    ($($(#[doc = $help:literal])+ $name:ident,)+) => {
        /// Counters since the start of a cache.
        #[derive(Debug, Default)]
        pub struct Counters {
            $($(#[doc = $help])+ pub $name: Counter,)+
            /// Durations.
            pub timings: Timings,
        }

        impl Counters {
            /// Name, help and value of each.
            pub fn all(&self) -> Vec<(&'static str, &'static str, u64)> {
                vec![$((stringify!($name), concat!($($help),+).trim_ascii(), self.$name.get()),)+]
            }
        }
    };
}

counters! {
    /// Cells of tables (one per distinct object) answered from shared memory.
    hits,
    /// Objects loaded from a source into shared memory.
    loads,
    /// Objects taken over from the previous service.
    inherited,
    /// Bytes of the loaded objects.
    loaded_bytes,
    /// Failed loads.
    load_failures,
    /// Look-ups of a version at a source.
    look_ups,
    /// Failed look-ups of a version at a source.
    look_up_failures,
    /// Tables that had to wait for memory.
    waits,
    /// Timeframes whose registration had to wait for memory or for the limit on timeframes.
    put_waits,
    /// Objects evicted to make room.
    evictions,
    /// Cells served although the source did not confirm them in time.
    stale,
    /// Tables sent.
    tables,
    /// Tables of timeframes that consumers took from shared memory.
    local_timeframes,
    /// Rows of the tables sent.
    rows,
    /// Requests answered with an error.
    errors,
    /// Timeframes registered.
    timeframes_registered,
    /// Timeframes dropped.
    timeframes_dropped,
    /// Sessions opened.
    sessions_opened,
    /// Sessions ended, for any cause.
    sessions_ended,
    /// Sessions that ended with open leases.
    sessions_ended_holding,
    /// Processes refused at the attach socket.
    attach_refused,
    /// Calls refused because the client did not prove its identity.
    unauthenticated,
    /// Calls refused because the client lacks the permission.
    permission_denied,
    /// Calls refused because too many were in progress.
    calls_refused,
    /// Connections refused because there were too many.
    connections_refused,
    /// Leases whose time ran out.
    leases_expired,
    /// Requests to the CCDB side.
    ccdb_requests,
    /// Requests to the CCDB side answered with 4xx or 5xx, except 404.
    ccdb_errors,
    /// Bytes of objects sent by the CCDB side.
    ccdb_sent_bytes,
    /// Tables and timeframes that a consumer held for too long.
    slow_consumers,
    /// Requests refused because their consumer holds a table or timeframe for too long.
    slow_refused,
    /// Tables and timeframes revoked from consumers that held them for too long.
    slow_revoked,
    /// Requests refused because their consumer would have held more than its quota.
    over_quota,
    /// Entries of a source skipped because they could not be read.
    problems,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_counted_below_its_bound_and_the_recent_ones_weigh_most() {
        let histogram = Histogram::default();
        assert_eq!(histogram.timing().recent, None);
        for micros in [0, 50, 51, 1_000, 1_000_000_000] {
            histogram.observe(Duration::from_micros(micros));
        }
        let timing = histogram.timing();
        assert_eq!(timing.counts, [2, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(timing.sum, Duration::from_micros(1_000_001_101));
        let slow = timing.recent.unwrap();
        (0..120).for_each(|_| histogram.observe(Duration::from_millis(1)));
        let recent = histogram.timing().recent.unwrap();
        assert!(recent < slow && recent.as_micros().abs_diff(1_000) < 1_000, "{recent:?}");
    }
}
