//! All timeframes in flight: registered, found by id, and dropped when each consumer has consumed
//! them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use crate::budget::ClientBudget;
use crate::cache::error::CacheError;
use crate::cache::holders::limits::SlowHolder;
use crate::cache::holders::timeframe::{Registration, Timeframe};
use crate::cache::holders::timeframe_publisher::{TimeframePublication, TimeframePublisher};
use crate::cache::holders::watermarks::Watermarks;
use crate::cache::memory::object::PinSet;
use crate::cache::memory::reservations::Claim;
use crate::cache::memory::residency::Reclaimable;
use crate::clock::{Clock, Moment};
use crate::shm::BlockLocation;
use crate::sync::{Mutex, MutexGuard};
use crate::telemetry::Counters;

/// All timeframes in flight, and the progress of each consumer.
#[derive(Debug)]
pub(crate) struct Timeframes {
    clock: Clock,
    counters: Arc<Counters>,
    state: Mutex<TimeframeMap>,
    /// Notified when a timeframe is dropped.
    freed: Notify,
    /// Publishes them, if consumers may read the directory.
    publisher: OnceLock<Arc<TimeframePublisher>>,
    /// Their tables are requested from now on.
    withdrawn: AtomicBool,
}

/// The timeframes in flight by id, and the watermark of each consumer.
#[derive(Debug, Default)]
struct TimeframeMap {
    in_flight: BTreeMap<u64, Arc<Timeframe>>,
    watermarks: Watermarks,
    /// Number of registrations so far.
    registrations: u64,
}

/// The result of a registration.
pub(crate) enum Registered {
    /// Newly in flight.
    New(Arc<Timeframe>),
    /// Already in flight with the same content.
    Known(Arc<Timeframe>),
    /// All its consumers have already consumed it: it was never in flight.
    Consumed(Arc<Timeframe>),
}

impl Timeframes {
    pub(crate) fn new(clock: Clock, counters: Arc<Counters>) -> Self {
        let (publisher, withdrawn) = (OnceLock::new(), AtomicBool::new(false));
        let (state, freed) = (Mutex::default(), Notify::new());
        Self { clock, counters, state, freed, publisher, withdrawn }
    }

    /// Publishes the timeframes that are registered from now on.
    pub(crate) fn set_publisher(&self, publisher: Arc<TimeframePublisher>) {
        let _ = self.publisher.set(publisher);
    }

    /// The publication of a new timeframe.
    fn publication(&self, timeframe: u64) -> Option<TimeframePublication> {
        let is_withdrawn = self.withdrawn.load(Ordering::Acquire);
        let publisher = self.publisher.get().filter(|_| !is_withdrawn)?;
        Some(TimeframePublication::new(publisher, timeframe))
    }

    /// Publishes all timeframes, for a session that begins to read the directory.
    pub(crate) fn publish_all(&self) {
        self.all().iter().for_each(|timeframe| timeframe.publish());
    }

    /// Consumers request all tables from now on.
    pub(crate) fn withdraw_all(&self) {
        self.withdrawn.store(true, Ordering::Release);
        for timeframe in self.all() {
            timeframe.leave_directory();
        }
    }

    /// Locations of the published tables.
    pub(crate) fn table_locations(&self) -> Vec<BlockLocation> {
        self.all().iter().filter_map(|timeframe| timeframe.table_location()).collect()
    }

    fn state(&self) -> MutexGuard<'_, TimeframeMap> {
        self.state.lock()
    }

    /// Completes when a timeframe is dropped.
    pub(crate) fn freed(&self) -> Notified<'_> {
        self.freed.notified()
    }

    /// The timeframe, if it is already in flight.
    ///
    /// # Errors
    /// [`CacheError::TimeframeExists`] if it is in flight with other content.
    pub(crate) fn known(
        &self,
        registration: &Registration,
    ) -> Result<Option<Arc<Timeframe>>, CacheError> {
        self.state().known(registration)
    }

    /// # Errors
    /// [`CacheError::TimeframeExists`] if the id is in flight with other content.
    pub(crate) fn register(
        &self,
        registration: Registration,
        claim: Claim,
    ) -> Result<Registered, CacheError> {
        let mut state = self.state();
        if let Some(timeframe) = state.known(&registration)? {
            return Ok(Registered::Known(timeframe));
        }
        let number = state.next_registration();
        let publication = self.publication(registration.timeframe);
        let clock = self.clock.clone();
        let timeframe = Arc::new(Timeframe::new(registration, number, claim, clock, publication));
        self.counters.timeframes_registered.add(1);
        let mut done = false;
        for name in &timeframe.registration.consumers {
            if state.watermarks.has_consumed(name, timeframe.id()) {
                done = timeframe.set_consumed(name);
            }
        }
        if done {
            self.counters.timeframes_dropped.add(1);
            return Ok(Registered::Consumed(timeframe));
        }
        state.in_flight.insert(timeframe.id(), Arc::clone(&timeframe));
        drop(state);
        timeframe.publish();
        Ok(Registered::New(timeframe))
    }

    /// # Errors
    /// [`CacheError::UnknownTimeframe`].
    pub(crate) fn get(&self, timeframe: u64) -> Result<Arc<Timeframe>, CacheError> {
        let state = self.state();
        let found = state.in_flight.get(&timeframe).map(Arc::clone);
        found.ok_or(CacheError::UnknownTimeframe { timeframe })
    }

    /// Records that `consumer` has consumed `timeframe`, that of a registration if one is given.
    /// Returns the timeframe if this dropped it.
    ///
    /// # Errors
    /// [`CacheError::UnknownTimeframe`], [`CacheError::UnknownConsumer`].
    pub(crate) fn consumed(
        &self,
        timeframe: u64,
        consumer: &str,
        registration: Option<u64>,
    ) -> Result<Option<Arc<Timeframe>>, CacheError> {
        let mut state = self.state();
        let Some(entry) = state.in_flight.get(&timeframe) else {
            // A repeated report is no error.
            if state.watermarks.has_consumed(consumer, timeframe) {
                return Ok(None);
            }
            return Err(CacheError::UnknownTimeframe { timeframe });
        };
        if registration.is_some_and(|number| !entry.is_registration(number)) {
            return Err(CacheError::UnknownTimeframe { timeframe });
        }
        match entry.check_reader(consumer) {
            Ok(()) => {}
            Err(CacheError::AlreadyConsumed { .. }) => return Ok(None),
            Err(error) => return Err(error),
        }
        if !entry.set_consumed(consumer) {
            return Ok(None);
        }
        let dropped = state.remove(timeframe);
        drop(state);
        self.release(dropped.as_slice());
        Ok(dropped)
    }

    /// Releases timeframes that are no longer in flight.
    fn release(&self, dropped: &[Arc<Timeframe>]) {
        for timeframe in dropped {
            self.counters.timeframes_dropped.add(1);
            timeframe.set_gone();
        }
        self.freed.notify_waiters();
    }

    /// Records that `consumer` has consumed all timeframes below `oldest`. Returns those that it
    /// had not consumed before, and those dropped now. The watermark is charged to `budget`.
    ///
    /// # Errors
    /// [`CacheError::Budget`].
    pub(crate) fn oldest_possible(
        &self,
        consumer: &str,
        oldest: u64,
        budget: &ClientBudget,
    ) -> Result<(Vec<u64>, Vec<Arc<Timeframe>>), CacheError> {
        let mut state = self.state();
        state.watermarks.raise(consumer, oldest, budget, self.clock.now())?;
        let below: Vec<Arc<Timeframe>> = state
            .in_flight
            .range(..oldest)
            .map(|(_, timeframe)| timeframe)
            .filter(|timeframe| timeframe.waits_for(consumer))
            .map(Arc::clone)
            .collect();
        let mut dropped = Vec::new();
        for timeframe in &below {
            if timeframe.set_consumed(consumer) {
                dropped.extend(state.remove(timeframe.id()));
            }
        }
        drop(state);
        self.release(&dropped);
        Ok((below.iter().map(|timeframe| timeframe.id()).collect(), dropped))
    }

    /// Refunds the charges for watermarks of clients that are gone. Of these watermarks only the
    /// latest are kept.
    pub(crate) fn sweep_watermarks(&self) {
        self.state().watermarks.sweep();
    }

    /// Lowers the watermark of a consumer; dropped timeframes stay dropped.
    pub(crate) fn set_watermark_back(&self, consumer: &str, oldest: u64) {
        self.state().watermarks.lower(consumer, oldest);
    }

    /// Drops a timeframe even if consumers have not consumed it.
    ///
    /// # Errors
    /// [`CacheError::UnknownTimeframe`].
    pub(crate) fn drop_timeframe(&self, timeframe: u64) -> Result<Arc<Timeframe>, CacheError> {
        let dropped = self.state().remove(timeframe);
        self.release(dropped.as_slice());
        dropped.ok_or(CacheError::UnknownTimeframe { timeframe })
    }

    /// The pins of the timeframes that are ready, of their earlier tables, and of the claims of the
    /// others.
    pub(crate) fn pin_sets(&self) -> Vec<Arc<PinSet>> {
        let all = self.all();
        let of_timeframes = all.iter().flat_map(|timeframe| timeframe.pin_sets());
        let published = self.publisher.get().map(|publisher| publisher.pin_sets());
        of_timeframes.chain(published.unwrap_or_default()).collect()
    }

    /// By name of a consumer, the pins of the timeframes that it has received and not consumed.
    pub(crate) fn delivered_pins(&self) -> BTreeMap<String, Vec<Arc<PinSet>>> {
        let mut delivered: BTreeMap<String, Vec<Arc<PinSet>>> = BTreeMap::new();
        for timeframe in self.all() {
            let Some(pins) = timeframe.pins() else { continue };
            for name in timeframe.receivers() {
                delivered.entry(name).or_default().push(Arc::clone(&pins));
            }
        }
        delivered
    }

    /// How long `consumer` has held its oldest delivered timeframe.
    pub(crate) fn held_longest(&self, consumer: &str, now: Moment) -> Option<Duration> {
        self.all().iter().filter_map(|timeframe| timeframe.held_by(consumer, now)).max()
    }

    /// Consumers that now have a timeframe for `after`, each returned once per timeframe.
    pub(crate) fn newly_slow(&self, now: Moment, after: Duration) -> Vec<(u64, SlowHolder)> {
        let late = |timeframe: &Arc<Timeframe>| {
            let late = timeframe.newly_slow(now, after).into_iter();
            late.map(|late| (timeframe.id(), late)).collect::<Vec<_>>()
        };
        self.all().iter().flat_map(late).collect()
    }

    /// All timeframes, by id.
    pub(crate) fn all(&self) -> Vec<Arc<Timeframe>> {
        self.state().in_flight.values().map(Arc::clone).collect()
    }

    /// The `limit` timeframes with the highest ids.
    pub(crate) fn latest(&self, limit: usize) -> Vec<Arc<Timeframe>> {
        let state = self.state();
        let latest = state.in_flight.values().rev().take(limit);
        latest.map(Arc::clone).collect()
    }

    /// Number of timeframes in flight.
    pub(crate) fn len(&self) -> usize {
        self.state().in_flight.len()
    }

    pub(crate) fn clear(&self) {
        let dropped = {
            let mut state = self.state();
            state.in_flight.values().for_each(|timeframe| timeframe.leave_directory());
            std::mem::take(&mut state.in_flight)
        };
        dropped.values().for_each(|timeframe| timeframe.set_gone());
        self.freed.notify_waiters();
    }
}

impl Reclaimable for Timeframes {
    fn bytes(&self) -> u64 {
        self.publisher.get().map_or(0, |publisher| publisher.table_bytes())
    }

    fn reclaim_all(&self) {
        if self.bytes() > 0 {
            self.all().iter().for_each(|timeframe| timeframe.withdraw_table());
        }
    }
}

impl TimeframeMap {
    /// The number of the next registration.
    fn next_registration(&mut self) -> u64 {
        self.registrations += 1;
        self.registrations
    }

    /// Takes a timeframe out of those in flight. No consumer finds it any more.
    fn remove(&mut self, timeframe: u64) -> Option<Arc<Timeframe>> {
        let removed = self.in_flight.remove(&timeframe)?;
        removed.leave_directory();
        Some(removed)
    }

    fn known(&self, registration: &Registration) -> Result<Option<Arc<Timeframe>>, CacheError> {
        let Some(known) = self.in_flight.get(&registration.timeframe) else { return Ok(None) };
        match known.difference(registration) {
            None => Ok(Some(Arc::clone(known))),
            Some(difference) => {
                let timeframe = registration.timeframe;
                Err(CacheError::TimeframeExists { timeframe, difference })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::Budget;
    use crate::cache::holders::watermarks::{MAX_IDLE_WATERMARKS, WATERMARK_BYTES};

    #[test]
    fn watermarks_are_charged_and_those_of_clients_that_are_gone_are_few() {
        let timeframes = Timeframes::new(Clock::system(), Arc::default());
        let budget = Budget::new(64 << 20);
        let client = budget.client("one");
        let set = |name: &str, client: &ClientBudget| timeframes.oldest_possible(name, 1, client);
        for n in 0..20_000 {
            set(&format!("n{n}"), &client).unwrap();
        }
        assert!(budget.used_bytes() > 20_000 * WATERMARK_BYTES as u64);
        timeframes.sweep_watermarks();
        assert_eq!(timeframes.state().watermarks.len(), 20_000);
        let other = budget.client("other");
        set("of a client that stays", &other).unwrap();
        drop(client);
        timeframes.sweep_watermarks();
        assert_eq!(budget.used_bytes(), ("of a client that stays".len() + WATERMARK_BYTES) as u64);
        let state = timeframes.state();
        assert_eq!(state.watermarks.len(), MAX_IDLE_WATERMARKS + 1);
        assert!(state.watermarks.contains("of a client that stays"));
    }

    #[test]
    fn a_client_sets_no_more_watermarks_than_its_account_has_room_for() {
        let timeframes = Timeframes::new(Clock::system(), Arc::default());
        let client = Budget::new(4_000).client("one");
        let set = |name: &str| timeframes.oldest_possible(name, 1, &client);
        let refused = (0..10).map(|n| set(&format!("n{n}"))).filter(Result::is_err).count();
        assert!(refused > 0 && refused < 10, "{refused}");
        // An existing watermark still advances, and a name that no timeframe can have is not kept.
        assert!(set("n0").is_ok());
        assert!(set(&"x".repeat(1_000_000)).is_ok());
        assert!(timeframes.state().watermarks.len() < 10);
    }
}
