//! Every counter of a cache, once.

use std::sync::atomic::{AtomicU64, Ordering};

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

macro_rules! counters {
    ($($(#[doc = $help:literal])+ $name:ident,)+) => {
        /// What a cache counts from its start.
        #[derive(Debug, Default)]
        pub struct Counters {
            $($(#[doc = $help])+ pub $name: Counter,)+
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
