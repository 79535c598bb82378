//! Timeframes in flight: their objects stay pinned until every consumer has consumed them.
//!
//! ```text
//!  register ──▶ loading ──all pinned──▶ ready ──sent to each consumer──▶ delivered
//!                         ▲             │                  │ each consumer has consumed it
//!                         └─────────────┘                  ▼
//!                         segment lost: issued anew     dropped
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::watch;

use crate::budget::Charge;
use crate::cache::error::CacheError;
use crate::cache::holders::limits::SlowHolder;
use crate::cache::holders::timeframe_publisher::{TableContent, TimeframePublication};
use crate::cache::memory::object::PinSet;
use crate::cache::memory::pin_request::PinRequest as _;
use crate::cache::memory::reservations::Claim;
use crate::cache::tables::column_sets::{ColumnSet, TableSchema};
use crate::cache::tables::plan::{Assembled, Plan};
use crate::cache::tables::plan_objects::content_of;
use crate::clock::{Clock, Moment};
use crate::shm::{BlockLocation, ConsumerMark};
use crate::sync::{Mutex, MutexGuard};
use crate::table::{
    ColumnRequest, ConsumerState, Content, TimeframeMark, TimeframeState, TimeframeStatus,
};

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
    /// Number of the registration, unique within the epoch.
    number: u64,
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
    pub(super) fn new(
        registration: Registration,
        number: u64,
        claim: Claim,
        clock: Clock,
        publication: Option<TimeframePublication>,
    ) -> Self {
        let waiting = TimeframeConsumer::new(ConsumerState::Waiting, None);
        let consumers = registration.consumers.iter().map(|name| (name.clone(), waiting));
        let consumers = Mutex::new(consumers.collect());
        let (load, claim) = (watch::Sender::new(LoadState::Loading), Mutex::new(claim));
        let (earlier, has_failed) = (Mutex::default(), AtomicBool::new(false));
        Self {
            registration,
            number,
            load,
            claim,
            clock,
            consumers,
            earlier,
            publication,
            has_failed,
        }
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
        let Registration { consumers, plan, plane_schema, .. } = &self.registration;
        let draft = plane_schema.as_ref().and_then(|schema| {
            let (mark, assembled) = (self.mark(), &assembled);
            publication.make(TableContent { mark, consumers, plan, schema, assembled })
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

    /// The pins of its objects, if all are pinned.
    pub(super) fn pins(&self) -> Option<Arc<PinSet>> {
        match &*self.load.borrow() {
            LoadState::Ready(assembled) => Some(Arc::clone(&assembled.pins)),
            LoadState::Loading | LoadState::Gone => None,
        }
    }

    /// All pins that it holds: those of its table, of its earlier tables and of its claim.
    pub(super) fn pin_sets(&self) -> Vec<Arc<PinSet>> {
        let mut pin_sets = Vec::from_iter(self.pins());
        pin_sets.push(Arc::clone(self.claim().pins()));
        pin_sets.extend(self.earlier.lock().iter().map(|table| Arc::clone(&table.pins)));
        pin_sets
    }

    /// Location of its published table.
    pub(super) fn table_location(&self) -> Option<BlockLocation> {
        self.publication.as_ref()?.location()
    }

    /// Whether a table that a consumer has is the one of this registration.
    pub(crate) fn is_registration(&self, number: u64) -> bool {
        self.number == number
    }

    /// The timeframe in the schema of its tables.
    pub(crate) fn mark(&self) -> TimeframeMark {
        TimeframeMark { timeframe: self.id(), registration: self.number }
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
    pub(super) fn withdraw_table(&self) {
        if let Some(publication) = &self.publication {
            publication.withdraw(false);
        }
    }

    /// No consumer finds it in the directory from now on. Called under the lock under which it leaves
    /// the timeframes in flight: another one with its id can be registered afterwards.
    pub(super) fn leave_directory(&self) {
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
        Assembled::release(withdrawn);
        true
    }

    /// Releases the earlier tables.
    fn release_earlier(&self) {
        let earlier = std::mem::take(&mut *self.earlier.lock());
        earlier.into_iter().for_each(Assembled::release);
    }

    /// Marks it as dropped: releases its pins and stops its load.
    pub(super) fn set_gone(&self) {
        let before = self.load.send_replace(LoadState::Gone);
        if let Some(publication) = &self.publication {
            publication.leave();
            publication.release();
        }
        self.give_up_claim();
        self.release_earlier();
        if let LoadState::Ready(assembled) = before {
            // Releases all pins at once; the plan itself is freed later.
            Assembled::release(assembled);
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
    pub(super) fn set_consumed(&self, consumer: &str) -> bool {
        let mut consumers = self.consumers();
        consumers
            .insert(consumer.to_owned(), TimeframeConsumer::new(ConsumerState::Consumed, None));
        self.tell_progress(consumer, ConsumerState::Consumed);
        let is_done = consumers.values().all(|reader| reader.state == ConsumerState::Consumed);
        if !consumers.values().any(|reader| reader.has_earlier) {
            drop(consumers);
            self.release_earlier();
        }
        is_done
    }

    pub(super) fn waits_for(&self, consumer: &str) -> bool {
        self.consumers().get(consumer).is_some_and(|reader| reader.state != ConsumerState::Consumed)
    }

    /// The consumers that have received it and not consumed it.
    pub(super) fn receivers(&self) -> Vec<String> {
        let consumers = self.consumers();
        let received = consumers.iter().filter(|(_, one)| one.state == ConsumerState::Delivered);
        received.map(|(name, _)| name.clone()).collect()
    }

    /// How long `consumer` has held it, if it has received it and not consumed it.
    pub(super) fn held_by(&self, consumer: &str, now: Moment) -> Option<Duration> {
        let consumers = self.consumers();
        let reader = consumers.get(consumer)?;
        let sent = reader.state == ConsumerState::Delivered;
        reader.since.filter(|_| sent).map(|since| now.since(since))
    }

    /// The consumers for which it has been ready or sent for `after`, each returned once.
    pub(super) fn newly_slow(&self, now: Moment, after: Duration) -> Vec<SlowHolder> {
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

    pub(super) fn difference(&self, other: &Registration) -> Option<&'static str> {
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
