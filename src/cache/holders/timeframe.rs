//! Timeframes in flight: their objects stay pinned until every consumer has consumed them.
//!
//! ```text
//!  register ──▶ loading ──all pinned──▶ ready ──sent to each consumer──▶ delivered
//!                         ▲             │                  │ each consumer has consumed it
//!                         └─────────────┘                  ▼
//!                         segment lost: issued anew     dropped
//! ```

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::futures::Notified;
use tokio::sync::{Notify, watch};

use crate::budget::{Charge, ClientBudget};
use crate::cache::error::CacheError;
use crate::cache::holders::limits::SlowHolder;
use crate::cache::holders::timeframe_publisher::{
    TableContent, TimeframePublication, TimeframePublisher,
};
use crate::cache::memory::object::PinSet;
use crate::cache::memory::pin_request::PinRequest as _;
use crate::cache::memory::reservations::Claim;
use crate::cache::memory::residency::Reclaimable;
use crate::cache::tables::column_sets::{ColumnSet, TableSchema};
use crate::cache::tables::plan::{Assembled, Plan};
use crate::cache::tables::plan_objects::content_of;
use crate::clock::{Clock, Moment};
use crate::shm::{BlockLocation, ConsumerMark};
use crate::sync::{Mutex, MutexGuard};
use crate::table::{
    ColumnRequest, ConsumerState, Content, RequestLimits, TimeframeState, TimeframeStatus,
};
use crate::telemetry::Counters;

/// The content of a registered timeframe.
#[derive(Debug)]
pub(crate) struct Registration {
    pub(crate) timeframe: u64,
    pub(crate) columns: Arc<ColumnSet>,
    /// The consumers that it is registered for; if empty, those that request it.
    pub(crate) consumers: Vec<String>,
    pub(crate) plan: Plan,
    /// Schema of the table for consumers that take it from shared memory; `None`: they request it.
    pub(crate) plane_schema: Option<Arc<TableSchema>>,
    /// Budget for its timestamps and names, charged to the client that registered it.
    #[expect(dead_code, reason = "held for its drop")]
    pub(crate) charge: Charge,
}

/// Whether the objects of a timeframe are pinned.
#[derive(Debug, Clone)]
pub(crate) enum LoadState {
    Loading,
    Ready(Arc<Assembled>),
    /// The timeframe was dropped.
    Gone,
}

/// A timeframe in flight.
#[derive(Debug)]
pub(crate) struct Timeframe {
    pub(crate) registration: Registration,
    load: watch::Sender<LoadState>,
    /// Its reservation until its objects are pinned.
    claim: Mutex<Claim>,
    clock: Clock,
    consumers: Mutex<BTreeMap<String, TimeframeConsumer>>,
    /// Earlier tables with objects in lost segments, for the consumers that have received them.
    /// Locked after `consumers`.
    earlier: Mutex<Vec<Arc<Assembled>>>,
    /// The timeframe in the directory, if consumers may find it there. Locked after `consumers`.
    publication: Option<TimeframePublication>,
    /// The last load has failed.
    has_failed: AtomicBool,
}

/// The progress of a consumer with a timeframe.
#[derive(Debug, Clone, Copy)]
struct TimeframeConsumer {
    state: ConsumerState,
    /// When it became ready, later when it was sent to this consumer; `None` before it is ready.
    since: Option<Moment>,
    /// The consumer was reported as slow.
    slow: bool,
    /// The consumer has received an earlier table.
    has_earlier: bool,
}

impl TimeframeConsumer {
    fn new(state: ConsumerState, since: Option<Moment>) -> Self {
        Self { state, since, slow: false, has_earlier: false }
    }
}

impl Timeframe {
    fn new(
        registration: Registration,
        claim: Claim,
        clock: Clock,
        publication: Option<TimeframePublication>,
    ) -> Self {
        let waiting = TimeframeConsumer::new(ConsumerState::Waiting, None);
        let consumers = registration.consumers.iter().map(|name| (name.clone(), waiting));
        let consumers = Mutex::new(consumers.collect());
        let (load, claim) = (watch::Sender::new(LoadState::Loading), Mutex::new(claim));
        let (earlier, has_failed) = (Mutex::default(), AtomicBool::new(false));
        Self { registration, load, claim, clock, consumers, earlier, publication, has_failed }
    }

    fn consumers(&self) -> MutexGuard<'_, BTreeMap<String, TimeframeConsumer>> {
        self.consumers.lock()
    }

    pub(crate) fn id(&self) -> u64 {
        self.registration.timeframe
    }

    /// Whether these are its own columns by address; other columns may be equal.
    pub(crate) fn has_the(&self, columns: &[ColumnRequest]) -> bool {
        std::ptr::eq(columns, &**self.registration.columns)
    }

    /// A receiver of the load state and its changes.
    pub(crate) fn load(&self) -> watch::Receiver<LoadState> {
        self.load.subscribe()
    }

    /// Whether all its objects are resident, so that loading only pins them.
    pub(crate) fn is_resident(&self) -> bool {
        self.claim().is_resident()
    }

    /// Drops its claim: it has its pins, or will never get them.
    pub(crate) fn give_up_claim(&self) {
        let claim = std::mem::take(&mut *self.claim());
        drop(claim);
    }

    fn claim(&self) -> MutexGuard<'_, Claim> {
        self.claim.lock()
    }

    /// Sets the table; its objects stay pinned as long as it is in flight.
    pub(crate) fn set_ready(&self, assembled: Arc<Assembled>) {
        self.give_up_claim();
        self.load.send_if_modified(|load| {
            let loading = matches!(load, LoadState::Loading);
            if loading {
                *load = LoadState::Ready(assembled);
            }
            loading
        });
        let now = Some(self.clock.now());
        for reader in self.consumers().values_mut() {
            reader.since = reader.since.or(now);
        }
        self.has_failed.store(false, Ordering::Release);
        self.publish();
    }

    /// Publishes it for consumers that read the directory, as far as it is there: its state, and its
    /// table. Can be repeated.
    pub(crate) fn publish(&self) {
        let Some(publication) = &self.publication else { return };
        if !publication.enter() {
            return;
        }
        if self.has_failed.load(Ordering::Acquire) {
            return publication.withdraw(false);
        }
        let LoadState::Ready(assembled) = self.load.borrow().clone() else { return };
        let Registration { timeframe, consumers, plan, plane_schema, .. } = &self.registration;
        let draft = plane_schema.as_ref().and_then(|schema| {
            let (timeframe, assembled) = (*timeframe, &assembled);
            publication.make(TableContent { timeframe, consumers, plan, schema, assembled })
        });
        let unused = {
            let progress = self.consumers();
            // Withdrawn meanwhile: the next table is published instead.
            let is_current = match &*self.load.borrow() {
                LoadState::Ready(current) => Arc::ptr_eq(current, &assembled),
                LoadState::Loading | LoadState::Gone => false,
            };
            let mark = |name: &String| {
                progress.get(name).map_or(ConsumerMark::Waiting, |reader| mark_of(reader.state))
            };
            match is_current {
                true => publication.name(draft, consumers.iter().map(mark)),
                false => draft,
            }
        };
        // Without locks: retiring a block can take time.
        drop(unused);
    }

    /// Its load has failed: requests for its table report the error.
    pub(crate) fn set_failed(&self) {
        self.has_failed.store(true, Ordering::Release);
        if let Some(publication) = &self.publication {
            publication.withdraw(false);
        }
    }

    /// Its table and the pins of its objects, if all are pinned.
    pub(crate) fn content(&self) -> Option<(Content, Arc<PinSet>)> {
        match &*self.load.borrow() {
            LoadState::Ready(assembled) => {
                let content = content_of(&self.registration.plan, assembled);
                Some((content, Arc::clone(&assembled.pins)))
            }
            LoadState::Loading | LoadState::Gone => None,
        }
    }

    /// Whether a consumer that took its table from shared memory took the one of this registration.
    pub(crate) fn is_registration(&self, number: u64) -> bool {
        self.publication.as_ref().is_some_and(|one| one.registration() == number)
    }

    /// Tells consumers that read the directory about the progress of one of them.
    fn tell_progress(&self, consumer: &str, state: ConsumerState) {
        let Some(publication) = &self.publication else { return };
        let mut names = self.registration.consumers.iter();
        if let Some(number) = names.position(|name| name == consumer) {
            publication.set_consumer(number, mark_of(state));
        }
    }

    /// Frees the memory of its published table; consumers request it from then on.
    fn withdraw_table(&self) {
        if let Some(publication) = &self.publication {
            publication.withdraw(false);
        }
    }

    /// No consumer finds it in the directory from now on. Called under the lock under which it leaves
    /// the timeframes in flight: another one with its id can be registered afterwards.
    fn leave_directory(&self) {
        if let Some(publication) = &self.publication {
            publication.leave();
        }
    }

    /// Withdraws its table if objects of it lie in a lost segment, so that it is loaded again: true
    /// then. Consumers that have received the table keep its objects until they report it as
    /// consumed.
    pub(crate) fn withdraw_lost(&self) -> bool {
        let mut withdrawn = None;
        let mut consumers = self.consumers();
        self.load.send_if_modified(|load| {
            let LoadState::Ready(assembled) = load else { return false };
            if !assembled.pins.is_condemned() {
                return false;
            }
            withdrawn = Some(Arc::clone(assembled));
            *load = LoadState::Loading;
            true
        });
        let Some(withdrawn) = withdrawn else { return false };
        if let Some(publication) = &self.publication {
            publication.withdraw(true);
        }
        let mut is_kept = false;
        for reader in consumers.values_mut() {
            reader.has_earlier |= reader.state == ConsumerState::Delivered;
            is_kept |= reader.has_earlier;
        }
        if is_kept {
            self.earlier.lock().push(withdrawn);
            return true;
        }
        drop(consumers);
        Assembled::let_go(withdrawn);
        true
    }

    /// Releases the earlier tables.
    fn let_go_earlier(&self) {
        let earlier = std::mem::take(&mut *self.earlier.lock());
        earlier.into_iter().for_each(Assembled::let_go);
    }

    /// Marks it as dropped: releases its pins and stops its load.
    fn set_gone(&self) {
        let before = self.load.send_replace(LoadState::Gone);
        if let Some(publication) = &self.publication {
            publication.leave();
            publication.release();
        }
        self.give_up_claim();
        self.let_go_earlier();
        if let LoadState::Ready(assembled) = before {
            // Releases all pins at once; the plan itself is freed later.
            Assembled::let_go(assembled);
        }
    }

    /// Checks that `consumer` may read it.
    ///
    /// # Errors
    /// [`CacheError::UnknownConsumer`], [`CacheError::AlreadyConsumed`].
    pub(crate) fn check_reader(&self, consumer: &str) -> Result<(), CacheError> {
        let timeframe = self.id();
        match self.consumers().get(consumer).map(|reader| reader.state) {
            Some(ConsumerState::Consumed) => {
                Err(CacheError::AlreadyConsumed { timeframe, consumer: consumer.to_owned() })
            }
            Some(ConsumerState::Waiting | ConsumerState::Delivered) => Ok(()),
            None if self.registration.consumers.is_empty() => Ok(()),
            None => Err(CacheError::UnknownConsumer {
                timeframe,
                consumer: consumer.to_owned(),
                known: self.registration.consumers.clone(),
            }),
        }
    }

    /// Records that the table is being sent to `consumer`.
    pub(crate) fn set_delivered(&self, consumer: &str) {
        let mut consumers = self.consumers();
        let waiting = TimeframeConsumer::new(ConsumerState::Waiting, None);
        let reader = consumers.entry(consumer.to_owned()).or_insert(waiting);
        if reader.state == ConsumerState::Waiting {
            *reader = TimeframeConsumer::new(ConsumerState::Delivered, Some(self.clock.now()));
            self.tell_progress(consumer, ConsumerState::Delivered);
        }
    }

    /// Records a report of consumption; true if all consumers have consumed it.
    fn set_consumed(&self, consumer: &str) -> bool {
        let mut consumers = self.consumers();
        consumers
            .insert(consumer.to_owned(), TimeframeConsumer::new(ConsumerState::Consumed, None));
        self.tell_progress(consumer, ConsumerState::Consumed);
        let is_done = consumers.values().all(|reader| reader.state == ConsumerState::Consumed);
        if !consumers.values().any(|reader| reader.has_earlier) {
            drop(consumers);
            self.let_go_earlier();
        }
        is_done
    }

    fn waits_for(&self, consumer: &str) -> bool {
        self.consumers().get(consumer).is_some_and(|reader| reader.state != ConsumerState::Consumed)
    }

    /// The consumers for which it has been ready or sent for `after`, each returned once.
    fn newly_slow(&self, now: Moment, after: Duration) -> Vec<SlowHolder> {
        let mut late = Vec::new();
        for (consumer, reader) in self.consumers().iter_mut() {
            let held = reader.since.map(|since| now.since(since));
            let Some(held) = held.filter(|held| *held >= after && !reader.slow) else { continue };
            reader.slow = true;
            let (consumer, timeframe) = (consumer.clone(), Some(self.id()));
            late.push(SlowHolder { consumer, timeframe, held });
        }
        late
    }

    /// Its state; `None` if it is no longer in flight.
    pub(crate) fn state(&self) -> Option<TimeframeState> {
        Some(self.status()?.state)
    }

    /// Its consumers, registered or not.
    pub(crate) fn consumer_names(&self) -> Vec<String> {
        self.consumers().keys().cloned().collect()
    }

    /// Its status; `None` if it is no longer in flight.
    pub(crate) fn status(&self) -> Option<TimeframeStatus> {
        let load = self.load.borrow().clone();
        let consumers = self.consumers();
        let delivered = !consumers.is_empty()
            && consumers.values().all(|reader| reader.state != ConsumerState::Waiting);
        let (state, bytes) = match &load {
            LoadState::Gone => return None,
            LoadState::Loading => (TimeframeState::Loading, 0),
            LoadState::Ready(assembled) if delivered => {
                (TimeframeState::Delivered, assembled.charged_bytes())
            }
            LoadState::Ready(assembled) => (TimeframeState::Ready, assembled.charged_bytes()),
        };
        Some(TimeframeStatus {
            timeframe: self.id(),
            state,
            rows: self.registration.plan.rows() as u64,
            objects: self.registration.plan.versions().len() as u64,
            bytes,
            consumers: consumers.iter().map(|(name, one)| (name.clone(), one.state)).collect(),
        })
    }

    fn difference(&self, other: &Registration) -> Option<&'static str> {
        let own = &self.registration;
        if !own.columns.equals(&other.columns) {
            return Some("columns");
        }
        if !own.plan.timestamps().same_rows(other.plan.timestamps()) {
            return Some("timestamps");
        }
        if !own.plan.table_rows().keys.same_rows(&other.plan.table_rows().keys) {
            return Some("keys");
        }
        let sorted = |names: &[String]| {
            let mut names = names.to_vec();
            names.sort_unstable();
            names
        };
        (sorted(&own.consumers) != sorted(&other.consumers)).then_some("consumers")
    }
}

/// The progress of a consumer, for its record in a published table.
fn mark_of(state: ConsumerState) -> ConsumerMark {
    match state {
        ConsumerState::Waiting => ConsumerMark::Waiting,
        ConsumerState::Delivered => ConsumerMark::Delivered,
        ConsumerState::Consumed => ConsumerMark::Consumed,
    }
}

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
    /// By consumer: all timeframes below are consumed. Only an administrator lowers it.
    watermarks: HashMap<String, Watermark>,
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
        let location = |timeframe: &Arc<Timeframe>| timeframe.publication.as_ref()?.location();
        self.all().iter().filter_map(location).collect()
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
        let publication = self.publication(registration.timeframe);
        let timeframe = Timeframe::new(registration, claim, self.clock.clone(), publication);
        let timeframe = Arc::new(timeframe);
        self.counters.timeframes_registered.add(1);
        let mut done = false;
        for name in &timeframe.registration.consumers {
            if state.watermarks.get(name).is_some_and(|mark| timeframe.id() < mark.oldest) {
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
            if state.watermarks.get(consumer).is_some_and(|mark| timeframe < mark.oldest) {
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
        self.let_go(dropped.as_slice());
        Ok(dropped)
    }

    /// Releases timeframes that are no longer in flight.
    fn let_go(&self, dropped: &[Arc<Timeframe>]) {
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
        state.set_watermark(consumer, oldest, budget, self.clock.now())?;
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
        self.let_go(&dropped);
        Ok((below.iter().map(|timeframe| timeframe.id()).collect(), dropped))
    }

    /// Refunds the charges for watermarks of clients that are gone. Of these watermarks only the
    /// latest are kept.
    pub(crate) fn sweep_watermarks(&self) {
        self.state().sweep_watermarks();
    }

    /// Lowers the watermark of a consumer; dropped timeframes stay dropped.
    pub(crate) fn set_watermark_back(&self, consumer: &str, oldest: u64) {
        let mut state = self.state();
        match state.watermarks.get_mut(consumer) {
            Some(mark) if oldest < mark.oldest && oldest > 0 => mark.oldest = oldest,
            Some(mark) if oldest < mark.oldest => drop(state.watermarks.remove(consumer)),
            _ => {}
        }
    }

    /// Drops a timeframe even if consumers have not consumed it.
    ///
    /// # Errors
    /// [`CacheError::UnknownTimeframe`].
    pub(crate) fn drop_timeframe(&self, timeframe: u64) -> Result<Arc<Timeframe>, CacheError> {
        let dropped = self.state().remove(timeframe);
        self.let_go(dropped.as_slice());
        dropped.ok_or(CacheError::UnknownTimeframe { timeframe })
    }

    /// The pins of the timeframes that are ready, of their earlier tables, and of the claims of the
    /// others.
    pub(crate) fn pin_sets(&self) -> Vec<Arc<PinSet>> {
        let pins = |timeframe: &Arc<Timeframe>| match &*timeframe.load.borrow() {
            LoadState::Ready(assembled) => Some(Arc::clone(&assembled.pins)),
            LoadState::Loading | LoadState::Gone => None,
        };
        let claimed = |timeframe: &Arc<Timeframe>| Arc::clone(timeframe.claim().pins());
        let all = self.all();
        let earlier = all.iter().flat_map(|timeframe| {
            let earlier = timeframe.earlier.lock();
            earlier.iter().map(|table| Arc::clone(&table.pins)).collect::<Vec<_>>()
        });
        let now = all.iter().filter_map(pins).chain(all.iter().map(claimed));
        let published = self.publisher.get().map(|publisher| publisher.pin_sets());
        now.chain(earlier).chain(published.unwrap_or_default()).collect()
    }

    /// By name of a consumer, the pins of the timeframes that it has received and not consumed.
    pub(crate) fn delivered_pins(&self) -> BTreeMap<String, Vec<Arc<PinSet>>> {
        let mut delivered: BTreeMap<String, Vec<Arc<PinSet>>> = BTreeMap::new();
        for timeframe in self.all() {
            let pins = match &*timeframe.load.borrow() {
                LoadState::Ready(assembled) => Arc::clone(&assembled.pins),
                LoadState::Loading | LoadState::Gone => continue,
            };
            for (name, reader) in timeframe.consumers().iter() {
                if reader.state == ConsumerState::Delivered {
                    delivered.entry(name.clone()).or_default().push(Arc::clone(&pins));
                }
            }
        }
        delivered
    }

    /// How long `consumer` has held its oldest delivered timeframe.
    pub(crate) fn held_longest(&self, consumer: &str, now: Moment) -> Option<Duration> {
        let held = |timeframe: &Arc<Timeframe>| {
            let consumers = timeframe.consumers();
            let reader = consumers.get(consumer)?;
            let sent = reader.state == ConsumerState::Delivered;
            reader.since.filter(|_| sent).map(|since| now.since(since))
        };
        self.all().iter().filter_map(held).max()
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

/// Maximum number of watermarks kept for consumers whose clients are gone.
const MAX_IDLE_WATERMARKS: usize = 10_000;
/// Bytes of a watermark without the consumer's name.
const WATERMARK_BYTES: usize = 160;

/// All timeframes below `oldest` are consumed.
#[derive(Debug)]
struct Watermark {
    oldest: u64,
    set: Moment,
    /// Budget for its memory, charged to the client that set it first, as long as that is
    /// connected.
    charge: Charge,
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
    /// Takes a timeframe out of those in flight. No consumer finds it any more.
    fn remove(&mut self, timeframe: u64) -> Option<Arc<Timeframe>> {
        let removed = self.in_flight.remove(&timeframe)?;
        removed.leave_directory();
        Some(removed)
    }

    fn set_watermark(
        &mut self,
        consumer: &str,
        oldest: u64,
        budget: &ClientBudget,
        now: Moment,
    ) -> Result<(), CacheError> {
        // No timeframe can be registered for such a consumer, so there is nothing to keep.
        if consumer.len() > RequestLimits::MOST.name_bytes {
            return Ok(());
        }
        if let Some(mark) = self.watermarks.get_mut(consumer) {
            (mark.oldest, mark.set) = (oldest.max(mark.oldest), now);
            return Ok(());
        }
        let bytes = (consumer.len() + WATERMARK_BYTES) as u64;
        let charge = budget.charge(bytes, "the watermark of a consumer")?;
        self.watermarks.insert(consumer.to_owned(), Watermark { oldest, set: now, charge });
        Ok(())
    }

    fn sweep_watermarks(&mut self) {
        let mut idle: Vec<Moment> = Vec::new();
        for mark in self.watermarks.values_mut().filter(|mark| mark.charge.client_is_gone()) {
            mark.charge.shrink_to(0);
            idle.push(mark.set);
        }
        if idle.len() > MAX_IDLE_WATERMARKS {
            idle.sort_unstable();
            let mut surplus = idle.len() - MAX_IDLE_WATERMARKS;
            let last = idle[surplus - 1];
            self.watermarks.retain(|_, mark| {
                let is_kept = !mark.charge.client_is_gone() || mark.set > last || surplus == 0;
                surplus -= usize::from(!is_kept);
                is_kept
            });
            self.watermarks.shrink_to_fit();
        }
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
        assert!(state.watermarks.contains_key("of a client that stays"));
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
