//! State of one server: reachability, limit of concurrent requests, counts of failures.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use super::address::Address;
use super::options::CcdbOptions;
use crate::source::SourceHealth;
use crate::source::availability::Availability;
use crate::sync::{Mutex, MutexGuard};
use crate::telemetry::Histogram;

/// Minimum limit of concurrent requests to an overloaded host.
const LEAST_CONCURRENT: usize = 4;
/// Number of answers after which the limit of concurrent requests rises by one again.
const ANSWERS_PER_PLACE: usize = 16;

/// The limit of concurrent requests of one kind to a host. It follows the load that the host bears.
#[derive(Debug)]
pub(super) struct Bulkhead {
    places: Arc<Semaphore>,
    /// Number by which the limit is reduced, because of overload.
    withheld: AtomicUsize,
    most_withheld: usize,
    /// Number of answers since the last overload.
    in_order: AtomicUsize,
}

impl Bulkhead {
    fn new(max_concurrent: usize) -> Self {
        Self {
            places: Arc::new(Semaphore::new(max_concurrent)),
            withheld: AtomicUsize::new(0),
            most_withheld: max_concurrent.saturating_sub(LEAST_CONCURRENT),
            in_order: AtomicUsize::new(0),
        }
    }

    /// Waits for a place until `deadline`.
    pub(super) async fn enter(&self, deadline: Instant) -> Option<OwnedSemaphorePermit> {
        timeout_at(deadline, Arc::clone(&self.places).acquire_owned()).await.ok()?.ok()
    }

    /// Handles a report of overload: the limit of concurrent requests falls by one. The permit of
    /// the request with that answer is then not returned.
    pub(super) fn withhold(&self, place: OwnedSemaphorePermit) {
        self.in_order.store(0, Ordering::Relaxed);
        let more = |withheld| (withheld < self.most_withheld).then_some(withheld + 1);
        if self.withheld.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok() {
            place.forget();
        }
    }

    /// Handles an answer without overload: after some of these, the limit rises by one again.
    pub(super) fn in_order(&self) {
        if self.withheld.load(Ordering::Relaxed) == 0 {
            return;
        }
        let answers = self.in_order.fetch_add(1, Ordering::Relaxed) + 1;
        let less = |withheld: usize| withheld.checked_sub(1);
        if answers.is_multiple_of(ANSWERS_PER_PLACE)
            && self.withheld.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok()
        {
            self.places.add_permits(1);
        }
    }
}

/// A server with its breaker, its bulkheads and its counters.
#[derive(Debug)]
pub(super) struct CcdbHost {
    pub(super) address: Address,
    /// Look-ups and bodies have one bulkhead each, so that slow bodies do not delay look-ups.
    pub(super) look_ups: Bulkhead,
    pub(super) bodies: Bulkhead,
    breaker: Mutex<Breaker>,
    availability: Availability,
    requests: AtomicU64,
    failures: AtomicU64,
    latency: Histogram,
    /// Whether it redirects look-ups without a result to another server, and when that was seen.
    misses: Mutex<Option<(bool, Instant)>>,
    /// Held by the one request that finds this out.
    pub(super) probing: tokio::sync::Mutex<()>,
}

impl CcdbHost {
    pub(super) fn new(address: Address, options: &CcdbOptions) -> Self {
        Self {
            address,
            look_ups: Bulkhead::new(options.max_concurrent),
            bodies: Bulkhead::new(options.max_concurrent),
            breaker: Mutex::new(Breaker {
                limit: options.breaker_failures,
                open_for: Duration::from_millis(options.breaker_open_millis),
                in_a_row: 0,
                open_until: None,
            }),
            availability: Availability::default(),
            requests: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            latency: Histogram::default(),
            misses: Mutex::default(),
            probing: tokio::sync::Mutex::default(),
        }
    }

    /// Whether it redirects look-ups without a result to another server, if that was seen within
    /// `longest`.
    pub(super) fn forwards_misses(&self, longest: Duration) -> Option<bool> {
        let misses = self.misses.lock();
        misses.filter(|(_, seen)| seen.elapsed() < longest).map(|(forwards, _)| forwards)
    }

    /// Remembers whether it redirects look-ups without a result.
    pub(super) fn note_misses(&self, forwards: bool) {
        let mut misses = self.misses.lock();
        *misses = Some((forwards, Instant::now()));
    }

    /// Whether a request may be sent now. If not, the time until it may.
    pub(super) fn admit(&self) -> Result<(), Duration> {
        self.breaker().admit(Instant::now())
    }

    pub(super) fn count_request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// Records the time of an answer.
    pub(super) fn count_answer(&self, took: Duration) {
        self.latency.observe(took);
    }

    /// Counts a request without a usable answer, whatever the reason.
    pub(super) fn count_failure(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
    }

    /// Records that the server is reachable: it sent some answer.
    pub(super) fn connected(&self) {
        self.breaker().connected();
        self.availability.answered();
    }

    /// Records a refused or timed-out connection. No other failure counts against the host.
    pub(super) fn refused(&self) {
        self.breaker().refused(Instant::now());
        self.availability.failed();
    }

    pub(super) fn health(&self) -> SourceHealth {
        SourceHealth {
            url: self.address.label(),
            state: self.availability.state(),
            requests: self.requests.load(Ordering::Relaxed),
            failures: self.failures.load(Ordering::Relaxed),
            latency: self.latency.timing(),
        }
    }

    fn breaker(&self) -> MutexGuard<'_, Breaker> {
        // No critical section leaves this half-changed on a panic.
        self.breaker.lock()
    }
}

/// Closed until `limit` connections in a row failed; then open, with one probe per `open_for`.
#[derive(Debug)]
struct Breaker {
    limit: u32,
    open_for: Duration,
    in_a_row: u32,
    open_until: Option<Instant>,
}

impl Breaker {
    fn admit(&mut self, now: Instant) -> Result<(), Duration> {
        match self.open_until {
            Some(until) if now < until => Err(until - now),
            Some(_) => {
                // This caller probes, and the others wait for its result. A cancelled probe needs
                // no clean-up: the next one follows after `open_for`.
                self.open_until = Some(now + self.open_for);
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn connected(&mut self) {
        self.in_a_row = 0;
        self.open_until = None;
    }

    fn refused(&mut self, now: Instant) {
        self.in_a_row = self.in_a_row.saturating_add(1);
        if self.in_a_row >= self.limit {
            self.open_until = Some(now + self.open_for);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_overloaded_host_is_asked_for_less_and_for_more_when_it_recovers() {
        let options = CcdbOptions { max_concurrent: 6, ..CcdbOptions::default() };
        let address = Address::parse_list("http://a:1").unwrap().remove(0);
        let host = CcdbHost::new(address, &options);
        for bulkhead in [&host.look_ups, &host.bodies] {
            let free = || bulkhead.places.available_permits();
            for left in [5, 4, 4, 4] {
                let place = bulkhead.enter(Instant::now() + Duration::from_secs(5)).await;
                bulkhead.withhold(place.unwrap());
                assert_eq!(free(), left);
            }
            for answers in 1..=3 * ANSWERS_PER_PLACE {
                bulkhead.in_order();
                assert_eq!(free(), 4 + (answers / ANSWERS_PER_PLACE).min(2));
            }
        }
    }

    #[test]
    fn the_breaker_opens_after_the_limit_and_lets_one_probe_through() {
        let open_for = Duration::from_millis(100);
        let mut breaker = Breaker { limit: 2, open_for, in_a_row: 0, open_until: None };
        let start = Instant::now();
        breaker.refused(start);
        assert_eq!(breaker.admit(start), Ok(()));
        breaker.refused(start);
        assert_eq!(breaker.admit(start), Err(open_for));
        let later = start + open_for;
        assert_eq!(breaker.admit(later), Ok(()));
        assert_eq!(breaker.admit(later), Err(open_for), "a second probe at the same time");
        breaker.connected();
        assert_eq!(breaker.admit(later), Ok(()));
        breaker.refused(later);
        assert_eq!(breaker.admit(later), Ok(()), "the count begins anew after a success");
    }
}
