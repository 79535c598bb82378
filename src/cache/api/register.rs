//! Registration of timeframes: reserves their memory and loads their objects at once.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use tracing::Instrument as _;

use super::handle::Cache;
use crate::cache::deadline::{PLANNING, by_deadline};
use crate::cache::error::CacheError;
use crate::cache::holders::caller::Caller;
use crate::cache::holders::timeframe::{LoadState, Registration, Timeframe};
use crate::cache::holders::timeframe_load::load_timeframe;
use crate::cache::holders::timeframes::Registered;
use crate::cache::memory::pin_request::PinRequest as _;
use crate::cache::memory::reservations::Claim;
use crate::cache::tables::column_sets::{ColumnSet, SchemaKey, TableSchema};
use crate::cache::tables::loader::{MAX_RETRY, MIN_RETRY};
use crate::cache::tables::plan::Plan;
use crate::cache::versions::linked_timeline::VersionSet;
use crate::error::Coded as _;
use crate::table::{
    Encoding, PutAnswer, Register, Request, TableRequest, TableRows, TimeframeState,
};

/// First pause before a timeframe that failed to load is retried.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause before a retry.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Longest time that one registration blocks the others while it waits for memory.
const PLACE_TURN: Duration = Duration::from_secs(5);
/// Time limit of one attempt; without it a dead source would never be asked again.
const TRY_LIMIT: Duration = Duration::from_secs(60);

impl Cache {
    /// Registers a timeframe and starts to load its objects.
    ///
    /// The versions are decided now: later changes at the source do not affect the timeframe.
    /// Timestamps without a valid object are reported to requests for the table.
    ///
    /// While too many timeframes are in flight or their objects leave no memory, the registration
    /// waits in the order of arrival, at most for `patience`, and at most 60 s.
    ///
    /// # Errors
    /// [`CacheError::TimeframeExists`] if the id is in flight with other content,
    /// [`CacheError::NeverFits`] if its objects can never be in memory together,
    /// [`CacheError::NoPlace`] if it could not be admitted within `patience`, and the errors of the
    /// source.
    pub async fn register(
        &self,
        timeframe: u64,
        rows: impl Into<TableRows>,
        register: &Register,
        patience: Option<Duration>,
    ) -> Result<PutAnswer, CacheError> {
        let caller = Caller { patience, ..Caller::default() };
        self.register_for(timeframe, rows, register, &caller).await
    }

    /// Like [`register`](Self::register); the plan is charged to the budget of `caller` as long as
    /// the timeframe is in flight.
    ///
    /// # Errors
    /// As [`register`](Self::register), and [`CacheError::Budget`].
    pub(crate) async fn register_for(
        &self,
        timeframe: u64,
        rows: impl Into<TableRows>,
        register: &Register,
        caller: &Caller,
    ) -> Result<PutAnswer, CacheError> {
        let entered = self.try_register(timeframe, rows.into(), register, caller).await;
        if entered.is_err() {
            self.0.counters.errors.add(1);
        }
        let (timeframe, state) = match entered? {
            Registered::New(timeframe) => {
                // If everything is resident, this takes no time and needs no task.
                let soon = Instant::now() + TRY_LIMIT;
                if !timeframe.is_resident()
                    || load_timeframe(&self.0.loader, &timeframe, soon).await.is_err()
                {
                    self.load_in_background(Arc::clone(&timeframe));
                }
                (Arc::clone(&timeframe), state_of(&timeframe))
            }
            Registered::Known(timeframe) => (Arc::clone(&timeframe), state_of(&timeframe)),
            Registered::Consumed(timeframe) => (timeframe, "consumed"),
        };
        let plan = &timeframe.registration.plan;
        Ok(PutAnswer {
            timeframe: timeframe.id(),
            rows: plan.rows() as u64,
            objects: plan.versions().len() as u64,
            state: state.to_owned(),
        })
    }

    async fn try_register(
        &self,
        timeframe: u64,
        rows: TableRows,
        register: &Register,
        caller: &Caller,
    ) -> Result<Registered, CacheError> {
        self.check_open()?;
        let bytes = rows.memory_bytes() as u64 + register.memory_bytes();
        let charge = caller.budget.charge(bytes, "a timeframe")?;
        let wait =
            caller.patience.map_or(Request::DEFAULT_WAIT, |wait| wait.min(Request::DEFAULT_WAIT));
        let deadline = Instant::now() + wait;
        let columns = self.0.columns.requested(&register.columns, None)?;
        rows.keys.check(columns, rows.timestamps.len())?;
        let (limits, budget) = (self.0.columns.limits, &caller.budget);
        let known = columns.iter().map(|_| None).collect();
        let known =
            self.0.columns.all_known(columns, known, limits, &rows, budget, deadline).await?;
        let columns = self.0.column_sets.intern(columns);
        let planned = Plan::new(rows, known, &caller.budget);
        let plan = by_deadline(PLANNING, deadline, planned).await?;
        self.prefetch_next(&plan);
        let versions = Arc::clone(plan.versions());
        self.0.loader.check_known_sizes(&*versions)?;
        let consumers = register.consumers.clone();
        let plane_schema = self.plane_schema(&plan, &columns);
        let registration =
            Registration { timeframe, columns, consumers, plan, plane_schema, charge };
        let timeframes = &self.0.timeframes;
        // A timeframe that is in flight already needs no further reservation.
        if let Some(known) = timeframes.known(&registration)? {
            return Ok(Registered::Known(known));
        }
        let placed = async { timeframes.register(registration, self.in_turn(&versions).await?) };
        let placed = placed.instrument(tracing::info_span!("register", timeframe));
        match timeout_at(deadline, placed).await {
            Ok(registered) => registered,
            Err(_) => Err(CacheError::NoPlace {
                timeframe,
                in_flight: timeframes.len(),
                limit: self.0.max_timeframes,
                taken_bytes: self.0.residency.unevictable_bytes(),
                total_bytes: self.0.pool.total_bytes(),
            }),
        }
    }

    /// The schema of the table of a timeframe in the form that clients request by default; `None`
    /// if they must request it: it has errors to report, or no consumer reads shared memory.
    fn plane_schema(&self, plan: &Plan, columns: &Arc<ColumnSet>) -> Option<Arc<TableSchema>> {
        self.0.publisher.as_ref()?;
        let request = TableRequest::new().timeframe(0).encoding(Encoding::RunEnd).build().ok()?;
        self.0.columns.check_missing(plan, &request).ok()?;
        let rows = plan.table_rows();
        let key = SchemaKey::new(&request, rows.timestamps.has_nulls(), true, false);
        let null_keys = rows.keys.iter().filter(|(_, key)| key.has_nulls());
        let key = key.with_null_keys(null_keys.map(|(name, _)| Arc::clone(name)).collect());
        Some(self.table_schema(key, columns))
    }

    /// Waits for a place in the order of arrival: a large registration is not overtaken by small
    /// ones, except by those that arrive while it pauses between two turns.
    async fn in_turn(&self, versions: &VersionSet) -> Result<Claim, CacheError> {
        let began = Instant::now();
        loop {
            let _turn = self.0.registering.lock().await;
            let placed = self.wait_for_a_place(versions, began);
            if let Ok(claim) = tokio::time::timeout(PLACE_TURN, placed).await {
                return claim;
            }
        }
    }

    /// Back-pressure: waits until one more timeframe can be in flight, with the memory for all its
    /// objects. The registration has waited since `began`.
    ///
    /// # Errors
    /// [`CacheError::Pool`] if the system provides no memory.
    async fn wait_for_a_place(
        &self,
        versions: &VersionSet,
        began: Instant,
    ) -> Result<Claim, CacheError> {
        let mut waited = false;
        let mut pause = MIN_RETRY;
        loop {
            let mut dropped = pin!(self.0.timeframes.freed());
            let mut freed = pin!(self.0.residency.freed());
            // Subscribe before the check, so that no notification is missed.
            dropped.as_mut().enable();
            freed.as_mut().enable();
            let looked = Instant::now();
            if self.0.timeframes.len() < self.0.max_timeframes
                && let Some(claim) = self.0.loader.claim(versions, began.elapsed()).await?
            {
                return Ok(claim);
            }
            if !waited {
                self.0.counters.put_waits.add(1);
                waited = true;
            }
            // A notification can come from memory that this task itself has returned, and a check
            // is expensive if it creates segments. So the pause grows with each failed check, until
            // a timeframe is dropped.
            let soon = pause.saturating_sub(looked.elapsed());
            let other = async {
                let _ = tokio::time::timeout(MAX_RETRY, freed).await;
                tokio::time::sleep(soon).await;
            };
            tokio::select! {
                () = dropped => {
                    pause = MIN_RETRY;
                    tokio::time::sleep(MIN_RETRY.saturating_sub(looked.elapsed())).await;
                }
                () = other => pause = (pause * 2).min(MAX_RETRY),
            }
        }
    }

    /// Issues the timeframes anew that hold objects in lost segments: they are loaded again, into
    /// other segments.
    pub(super) fn reissue_timeframes(&self) {
        for timeframe in self.0.timeframes.all() {
            if timeframe.withdraw_lost() {
                self.load_in_background(timeframe);
            }
        }
    }

    /// Loads until everything is resident or the timeframe is dropped. The task keeps only its
    /// own inputs alive: it ends when the cache is dropped.
    fn load_in_background(&self, timeframe: Arc<Timeframe>) {
        let (loader, counters) = (Arc::clone(&self.0.loader), Arc::clone(&self.0.counters));
        let draining = self.0.draining.clone();
        let load = async move {
            let mut load = timeframe.load();
            let began = Instant::now();
            let loaded = async {
                let mut pause = FIRST_PAUSE;
                while let Err(error) =
                    load_timeframe(&loader, &timeframe, Instant::now() + TRY_LIMIT).await
                {
                    let message = error.message();
                    tracing::warn!(timeframe = timeframe.id(), "not loaded yet: {message}");
                    // Requests for its table report the error.
                    timeframe.set_failed();
                    if !error.kind().is_transient() {
                        timeframe.give_up_claim();
                        return;
                    }
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
                counters.timings.timeframe_load.observe(began.elapsed());
            };
            tokio::select! {
                () = loaded => {}
                _ = load.wait_for(|load| matches!(load, LoadState::Gone)) => {}
                () = draining.cancelled() => {}
            }
        };
        self.spawn(load);
    }
}

/// The state of a timeframe as named in answers.
fn state_of(timeframe: &Timeframe) -> &'static str {
    // Its consumers may have reported it as consumed meanwhile.
    timeframe.state().map_or("consumed", TimeframeState::name)
}
