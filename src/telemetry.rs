//! Every counter and every timing of a cache, once.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds to it.
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// What it came to.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// How long something took, each time: counted by how long.
#[derive(Debug, Default)]
pub struct Histogram {
    counts: [AtomicU64; Self::BOUNDS_MICROS.len() + 1],
    sum_nanos: AtomicU64,
    recent_nanos: AtomicU64,
}

/// What a [`Histogram`] came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Timing {
    /// How many took up to [`Histogram::BOUNDS_MICROS`] and longer than the bound before; the last
    /// are those beyond all bounds.
    pub counts: Vec<u64>,
    /// All of them together.
    pub sum: Duration,
    /// As of late: each weighs an eighth, and what was before it the rest. `None`: there was none.
    pub recent: Option<Duration>,
}

impl Histogram {
    /// The bounds, in microseconds: 50 µs to 100 s.
    pub const BOUNDS_MICROS: [u64; 14] = [
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

    /// Counts one that took so long.
    pub(crate) fn observe(&self, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let place = Self::BOUNDS_MICROS.partition_point(|bound| bound * 1_000 < nanos);
        self.counts[place].fetch_add(1, Ordering::Relaxed);
        self.sum_nanos.fetch_add(nanos, Ordering::Relaxed);
        // Of two at the same moment one may be lost here, which is no loss for a glance.
        let before = self.recent_nanos.load(Ordering::Relaxed);
        let recent = if before == 0 { nanos } else { before - before / 8 + nanos / 8 };
        self.recent_nanos.store(recent.max(1), Ordering::Relaxed);
    }

    /// What it came to so far.
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
        /// How long it takes, from the start of a cache.
        #[derive(Debug, Default)]
        pub struct Timings {
            $($(#[doc = $help])+ pub $name: Histogram,)+
        }

        impl Timings {
            /// Name, help and what each came to.
            pub fn all(&self) -> Vec<(&'static str, &'static str, Timing)> {
                vec![$(
                    (stringify!($name), concat!($($help),+).trim_ascii(), self.$name.timing()),
                )+]
            }
        }
    };
}

timings! {
    /// From a request for a table until all of its objects were there and pinned.
    answer,
    /// From the registration of a timeframe until all of its objects were there and pinned.
    timeframe_load,
    /// From the question for an object's bytes until they were in shared memory.
    load,
    /// From the question which version holds until the source's answer.
    look_up,
    /// From a request at the CCDB side until its answer began to be sent.
    ccdb_request,
}

macro_rules! counters {
    ($($(#[doc = $help:literal])+ $name:ident,)+) => {
        /// What a cache counts from its start.
        #[derive(Debug, Default)]
        pub struct Counters {
            $($(#[doc = $help])+ pub $name: Counter,)+
            /// How long it took.
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
    /// Cells of tables (one per distinct object) that were answered from shared memory.
    hits,
    /// Objects that were loaded from a source into shared memory.
    loads,
    /// Objects that were taken over from the service before this one.
    inherited,
    /// Bytes of the objects that were loaded.
    loaded_bytes,
    /// Loads that failed.
    load_failures,
    /// Questions to a source which version holds.
    look_ups,
    /// Such questions that failed.
    look_up_failures,
    /// Tables that had to wait for memory.
    waits,
    /// Timeframes that had to wait for a place in flight.
    put_waits,
    /// Objects that were thrown out to make room.
    evictions,
    /// Cells that were served although the source could not confirm them in time.
    stale,
    /// Tables that were sent.
    tables,
    /// Rows of the tables that were sent.
    rows,
    /// Requests that were answered with an error.
    errors,
    /// Timeframes that were registered.
    timeframes_registered,
    /// Timeframes that were dropped.
    timeframes_dropped,
    /// Sessions that were opened.
    sessions_opened,
    /// Sessions that ended, in whatever way.
    sessions_ended,
    /// Sessions that ended while they still held something.
    sessions_ended_holding,
    /// Processes that were not let in on the attach socket.
    attach_refused,
    /// Calls that were refused because nobody is known to have made them.
    unauthenticated,
    /// Calls that were refused because who made them may not.
    permission_denied,
    /// Calls that were refused because too many were under way.
    calls_refused,
    /// Connections that were refused because there were too many.
    connections_refused,
    /// Leases whose time ran out.
    leases_expired,
    /// Requests to the CCDB side.
    ccdb_requests,
    /// Such requests that were answered with 4xx or 5xx, 404 aside.
    ccdb_errors,
    /// Bytes of objects that were sent there.
    ccdb_sent_bytes,
    /// Tables and timeframes that a consumer held for longer than it should.
    slow_consumers,
    /// Requests that were refused because their consumer holds something for too long.
    slow_refused,
    /// Tables and timeframes that were let go in the name of a consumer that did not.
    slow_revoked,
    /// Requests that were refused because their consumer would have held more than its quota.
    over_quota,
    /// Entries of a source that were passed over because they could not be read.
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
