//! Timeframes come: registered for consumers, and loaded at once.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use tracing::Instrument as _;

use super::Cache;
use super::error::CacheError;
use super::loader::{BREATH, DOZE};
use super::places::Claim;
use super::plan::Plan;
use super::timeframe::{Entered, Load, Registration, Timeframe};
use super::versions::{VersionSet, Wanted as _};
use crate::budget::ClientBudget;
use crate::error::Coded as _;
use crate::index::Timestamps;
use crate::table::{ColumnRequest, PutAnswer, Register, Request};

/// After how long a timeframe that could not be loaded is tried again, the first time.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// And at most.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How long one try may take; without a limit a dead source would never be asked anew.
const TRY_LIMIT: Duration = Duration::from_secs(60);

impl Cache {
    /// Registers a timeframe and starts to load what it needs.
    ///
    /// Which versions serve it is decided now: what the source gets later does not change it. That
    /// nothing is valid for some timestamps is told to those who ask for its table.
    ///
    /// # Errors
    /// [`CacheError::TimeframeExists`] if the id is in flight with another content,
    /// [`CacheError::NeverFits`] if its objects can never be in memory together, and what the
    /// source answers.
    pub async fn register(
        &self,
        timeframe: u64,
        timestamps: Timestamps,
        register: &Register,
        patience: Option<Duration>,
    ) -> Result<PutAnswer, CacheError> {
        let budget = ClientBudget::default();
        self.register_for(timeframe, timestamps, register, patience, &budget).await
    }

    /// Like [`register`](Self::register), with the memory of the timeframe, waiting or in flight,
    /// charged to the client that registers it.
    ///
    /// # Errors
    /// As [`register`](Self::register), and [`CacheError::OverBudget`].
    pub async fn register_for(
        &self,
        timeframe: u64,
        timestamps: Timestamps,
        register: &Register,
        patience: Option<Duration>,
        budget: &ClientBudget,
    ) -> Result<PutAnswer, CacheError> {
        let entered = self.try_register(timeframe, timestamps, register, patience, budget).await;
        if entered.is_err() {
            self.0.counters.errors.add(1);
        }
        let (timeframe, state) = match entered? {
            Entered::New(timeframe) => {
                // Where everything is there it takes no time, and no task.
                let soon = Instant::now() + TRY_LIMIT;
                if !timeframe.is_resident() || self.load_timeframe(&timeframe, soon).await.is_err()
                {
                    self.load_in_background(Arc::clone(&timeframe));
                }
                let state = timeframe.status().state;
                (timeframe, state.name())
            }
            Entered::Known(timeframe) => {
                let state = timeframe.status().state;
                (timeframe, state.name())
            }
            Entered::Consumed(timeframe) => (timeframe, "consumed"),
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
        timestamps: Timestamps,
        register: &Register,
        patience: Option<Duration>,
        budget: &ClientBudget,
    ) -> Result<Entered, CacheError> {
        self.check_open()?;
        let bytes = timestamps.memory_bytes() as u64 + register.memory_bytes();
        let charge = budget.charge(bytes, "a timeframe")?;
        let wait = patience.map_or(Request::DEFAULT_WAIT, |wait| wait.min(Request::DEFAULT_WAIT));
        let deadline = Instant::now() + wait;
        let columns = self.columns(&register.columns, None)?;
        let limits = self.0.limits;
        let (catalog, now) = (&self.0.catalog, self.0.clock.now());
        let known =
            |column: &ColumnRequest| catalog.known_now(&column.query(limits), &timestamps, now);
        let known = columns.iter().map(known).collect();
        let known = self.all_known(columns, known, limits, &timestamps, deadline).await?;
        let columns = self.0.timeframes.shared_columns(columns);
        let plan = Plan::new(Arc::new(timestamps), known, budget)?;
        self.look_ahead(&plan);
        let versions = Arc::clone(plan.versions());
        self.0.loader.check_known_sizes(&*versions)?;
        let consumers = register.consumers.clone();
        let registration = Registration { timeframe, columns, consumers, plan, charge };
        let timeframes = &self.0.timeframes;
        // What is in flight already needs no place of its own.
        if let Some(known) = timeframes.known(&registration)? {
            return Ok(Entered::Known(known));
        }
        let placed = async {
            // In the order of asking: who waits for much is not passed by who waits for little.
            let _turn = self.0.registering.lock().await;
            let claim = self.wait_for_a_place(&versions).await?;
            timeframes.register(registration, claim)
        };
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

    /// Back-pressure: comes when one more timeframe with these objects can be in flight, with the
    /// memory for all of them.
    ///
    /// # Errors
    /// [`CacheError::Pool`] if the system gives no memory.
    async fn wait_for_a_place(&self, versions: &VersionSet) -> Result<Claim, CacheError> {
        let mut waited = false;
        let mut pause = BREATH;
        loop {
            let mut dropped = pin!(self.0.timeframes.room());
            let mut freed = pin!(self.0.residency.room());
            // Listen first, look then: what goes in between is not missed.
            dropped.as_mut().enable();
            freed.as_mut().enable();
            let looked = Instant::now();
            if self.0.timeframes.len() < self.0.max_timeframes
                && let Some(claim) = self.0.loader.claim(versions).await?
            {
                return Ok(claim);
            }
            if !waited {
                self.0.counters.put_waits.add(1);
                waited = true;
            }
            // What rings while one looks can be what one has let go of oneself, and to look is dear
            // where it makes segments: so who looks in vain looks less and less often, until a
            // timeframe is dropped.
            let soon = pause.saturating_sub(looked.elapsed());
            let other = async {
                let _ = tokio::time::timeout(DOZE, freed).await;
                tokio::time::sleep(soon).await;
            };
            tokio::select! {
                () = dropped => {
                    pause = BREATH;
                    tokio::time::sleep(BREATH.saturating_sub(looked.elapsed())).await;
                }
                () = other => pause = (pause * 2).min(DOZE),
            }
        }
    }

    /// Loads until it is there, or the timeframe is gone.
    fn load_in_background(&self, timeframe: Arc<Timeframe>) {
        let cache = self.clone();
        let load = async move {
            let mut load = timeframe.load();
            let began = Instant::now();
            let loaded = async {
                let mut pause = FIRST_PAUSE;
                while let Err(error) =
                    cache.load_timeframe(&timeframe, Instant::now() + TRY_LIMIT).await
                {
                    let message = error.message();
                    tracing::warn!(timeframe = timeframe.id(), "not loaded yet: {message}");
                    if !error.kind().is_transient() {
                        // Who asks for its table is told why.
                        timeframe.give_up_claim();
                        return;
                    }
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
                cache.0.counters.timings.timeframe_load.observe(began.elapsed());
            };
            tokio::select! {
                () = loaded => {}
                _ = load.wait_for(|load| matches!(load, Load::Gone)) => {}
                () = cache.0.draining.cancelled() => {}
            }
        };
        self.spawn(load);
    }
}
