//! How clients behave: who breaks off call after call is cut off, and not let in for a while.
//!
//! HTTP/2 lets a client begin a call and break it off without waiting for anything, so what it costs
//! is all ours (CVE-2023-44487). h2 limits how many such calls wait to be looked at; those that are
//! looked at in time are counted here, for each peer over all of its connections.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// For how long a peer is not let in that broke off too much.
const REST: Duration = Duration::from_secs(1);

/// How one peer behaves.
#[derive(Debug)]
pub(super) struct Conduct {
    /// So many calls may be broken off at once, and as many more in each second.
    allowance: f64,
    began: Instant,
    level: Mutex<(f64, Instant)>,
    /// In milliseconds from the beginning.
    shut_until: AtomicU64,
}

impl Conduct {
    pub(super) fn new(allowance: usize) -> Self {
        let began = Instant::now();
        let level = Mutex::new((0.0, began));
        Self { allowance: allowance as f64, began, level, shut_until: AtomicU64::new(0) }
    }

    /// Counts one more; whether it is too many.
    fn broke_off(&self, now: Instant) -> bool {
        let mut level = self.level.lock().unwrap_or_else(PoisonError::into_inner);
        let (count, last) = *level;
        let forgotten = now.saturating_duration_since(last).as_secs_f64() * self.allowance;
        let count = (count - forgotten).max(0.0) + 1.0;
        *level = (count.min(self.allowance * 2.0), now);
        let too_many = count > self.allowance;
        if too_many {
            let until = now.saturating_duration_since(self.began) + REST;
            self.shut_until.fetch_max(millis(until), Ordering::Relaxed);
        }
        too_many
    }

    /// Whether the peer is not to be let in now.
    pub(super) fn is_shut(&self, now: Instant) -> bool {
        let until = self.shut_until.load(Ordering::Relaxed);
        until > 0 && millis(now.saturating_duration_since(self.began)) < until
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// One connection of a peer.
#[derive(Debug)]
pub(super) struct Line {
    conduct: Arc<Conduct>,
    cut: AtomicBool,
    /// The client hung up: then all that it had under way ends with it, and is no flood.
    over: AtomicBool,
}

impl Line {
    pub(super) fn new(conduct: Arc<Conduct>) -> Self {
        Self { conduct, cut: AtomicBool::new(false), over: AtomicBool::new(false) }
    }

    /// Whether the connection has to end.
    pub(super) fn is_cut(&self) -> bool {
        self.cut.load(Ordering::Relaxed)
    }

    pub(super) fn set_over(&self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

/// A call that is under way; dropped before [`done`](Self::done), it was broken off.
#[derive(Debug)]
pub(super) struct UnderWay {
    line: Option<Arc<Line>>,
    torn: Torn,
}

/// Whether what a client sent ended in an error: then it broke off, whatever the call comes to.
#[derive(Debug, Clone, Default)]
pub(super) struct Torn(Arc<AtomicBool>);

impl Torn {
    pub(super) fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl UnderWay {
    pub(super) const fn new(line: Option<Arc<Line>>, torn: Torn) -> Self {
        Self { line, torn }
    }

    pub(super) fn done(&mut self) {
        if !self.torn.0.load(Ordering::Relaxed) {
            self.line = None;
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let Some(line) = &self.line else { return };
        if !line.over.load(Ordering::Relaxed) && line.conduct.broke_off(Instant::now()) {
            line.cut.store(true, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_breaks_off_too_much_is_shut_out_for_a_while_and_forgiven() {
        let conduct = Conduct::new(10);
        let at = |millis| conduct.began + Duration::from_millis(millis);
        assert!((0..10).all(|_| !conduct.broke_off(at(0))) && !conduct.is_shut(at(0)));
        assert!(conduct.broke_off(at(0)) && conduct.is_shut(at(1)) && conduct.is_shut(at(999)));
        assert!(!conduct.is_shut(at(1_000)));
        // Ten are forgotten in each second.
        assert!(conduct.broke_off(at(50)));
        assert!((0..9).all(|_| !conduct.broke_off(at(1_100))));
        assert!(conduct.broke_off(at(1_100)));
    }

    #[test]
    fn only_what_a_client_breaks_off_while_it_is_there_counts() {
        let conduct = Arc::new(Conduct::new(1));
        let line = Arc::new(Line::new(Arc::clone(&conduct)));
        let call = || UnderWay::new(Some(Arc::clone(&line)), Torn::default());
        (0..5).for_each(|_| call().done());
        drop(call());
        assert!(!line.is_cut());
        let mut torn = call();
        torn.torn.set();
        torn.done();
        drop(torn);
        assert!(line.is_cut());
        let other = Arc::new(Line::new(Arc::new(Conduct::new(1))));
        other.set_over();
        (0..5).for_each(|_| drop(UnderWay::new(Some(Arc::clone(&other)), Torn::default())));
        assert!(!other.is_cut());
    }
}
