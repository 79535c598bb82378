//! Calls cancelled by clients: a connection with too many of them is cut.
//!
//! HTTP/2 lets a client begin a call and cancel it without waiting, so the service bears the cost
//! (CVE-2023-44487). h2 limits the number of such calls that are pending. This module counts, per
//! connection, the cancelled calls that the service has accepted: other processes of the same user
//! or address keep their connections.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use super::local_user::Loopback;
use crate::sync::Mutex;

/// One connection of a peer.
#[derive(Debug)]
pub(super) struct ConnectionWatch {
    /// Unique among the connections of this service.
    pub(super) number: u64,
    /// Both ends, if the connection is over loopback.
    pub(super) loopback: Option<Loopback>,
    /// Number of cancelled calls allowed at once, and in each further second.
    allowance: f64,
    level: Mutex<(f64, Instant)>,
    cut: AtomicBool,
    /// Whether the client hung up. Its running calls then end with the connection and are not
    /// counted.
    over: AtomicBool,
}

impl ConnectionWatch {
    pub(super) fn new(allowance: usize, loopback: Option<Loopback>) -> Self {
        static LAST: AtomicU64 = AtomicU64::new(0);
        Self {
            number: LAST.fetch_add(1, Ordering::Relaxed),
            loopback,
            allowance: allowance as f64,
            level: Mutex::new((0.0, Instant::now())),
            cut: AtomicBool::new(false),
            over: AtomicBool::new(false),
        }
    }

    /// Counts one more cancelled call, and cuts the connection if there are too many.
    fn broke_off(&self, now: Instant) {
        let mut level = self.level.lock();
        let (count, last) = *level;
        let forgotten = now.saturating_duration_since(last).as_secs_f64() * self.allowance;
        let count = (count - forgotten).max(0.0) + 1.0;
        *level = (count, now);
        if count > self.allowance {
            self.cut.store(true, Ordering::Relaxed);
        }
    }

    /// Whether the connection has to end.
    pub(super) fn is_cut(&self) -> bool {
        self.cut.load(Ordering::Relaxed)
    }

    pub(super) fn set_over(&self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

/// A running call. Dropped before [`done`](Self::done), it counts as cancelled.
#[derive(Debug)]
pub(super) struct RunningCall {
    line: Option<Arc<ConnectionWatch>>,
    torn: BodyBroken,
}

/// Whether the request body ended in an error: then the client cancelled, whatever the result of
/// the call.
#[derive(Debug, Clone, Default)]
pub(super) struct BodyBroken(Arc<AtomicBool>);

impl BodyBroken {
    pub(super) fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl RunningCall {
    pub(super) const fn new(line: Option<Arc<ConnectionWatch>>, torn: BodyBroken) -> Self {
        Self { line, torn }
    }

    pub(super) fn done(&mut self) {
        if !self.torn.0.load(Ordering::Relaxed) {
            self.line = None;
        }
    }
}

impl Drop for RunningCall {
    fn drop(&mut self) {
        let Some(line) = &self.line else { return };
        if !line.over.load(Ordering::Relaxed) {
            line.broke_off(Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_connection_that_breaks_off_too_many_calls_is_cut_and_slow_ones_are_not() {
        let (line, began) = (ConnectionWatch::new(10, None), Instant::now());
        let at = |millis| began + Duration::from_millis(millis);
        (0..10).for_each(|_| line.broke_off(at(0)));
        assert!(!line.is_cut());
        // Ten are forgotten in each second.
        (0..10).for_each(|_| line.broke_off(at(1_100)));
        assert!(!line.is_cut());
        line.broke_off(at(1_100));
        assert!(line.is_cut());
    }

    #[test]
    fn only_what_a_client_breaks_off_while_it_is_there_counts() {
        let line = Arc::new(ConnectionWatch::new(1, None));
        let call = || RunningCall::new(Some(Arc::clone(&line)), BodyBroken::default());
        (0..5).for_each(|_| call().done());
        drop(call());
        assert!(!line.is_cut());
        let mut torn = call();
        torn.torn.set();
        torn.done();
        drop(torn);
        assert!(line.is_cut());
        let other = Arc::new(ConnectionWatch::new(1, None));
        other.set_over();
        (0..5)
            .for_each(|_| drop(RunningCall::new(Some(Arc::clone(&other)), BodyBroken::default())));
        assert!(!other.is_cut());
    }
}
