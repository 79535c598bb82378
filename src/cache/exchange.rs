//! The long stream of one consumer: timestamps in, tables out, and all that it holds ends with it.
//!
//! ```text
//!  timestamps of 7 ─▶ answer ─▶ table of 7 ──┐
//!  timestamps of 8 ─▶ answer ─▶ table of 8 ──┤ leases by timeframe
//!  consumed [7] ───────────────▶ let go ◀────┘
//!  end of the stream, however it comes ─▶ all let go
//! ```

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Cache;
use super::answer::{Answer, Asker};
use super::error::CacheError;
use super::form::{Common, Key};
use super::lease::LeaseId;
use crate::budget::ClientBudget;
use crate::index::Timestamps;
use crate::table::{Request, When};

/// What one stream holds. Dropped, all of it is let go.
#[derive(Debug)]
pub struct Exchange {
    cache: Cache,
    budget: ClientBudget,
    /// The request, but for its timestamps.
    template: Request,
    common: Common,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// By timeframe; one that was asked for twice has two.
    held: BTreeMap<u64, Vec<LeaseId>>,
    /// All below are done. Never goes back.
    oldest: u64,
}

impl Exchange {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The request that each table is made for, but for its timestamps.
    pub fn template(&self) -> &Request {
        &self.template
    }

    /// The table of a timeframe, held until it is consumed.
    ///
    /// # Errors
    /// [`CacheError`].
    pub async fn answer(
        &self,
        timeframe: u64,
        timestamps: Timestamps,
    ) -> Result<Answer, CacheError> {
        let when = When::Timestamps(timestamps);
        let stream_timeframe = Some(timeframe);
        let budget = self.budget.clone();
        let asker = Asker { of_stream: true, stream_timeframe, budget, ..Asker::default() };
        let answer =
            self.cache.answer_for(&self.template, &when, &asker, Some(&self.common)).await?;
        let mut state = self.state();
        if timeframe < state.oldest {
            // Done before it came: its table is sent, and not held.
            drop(state);
            self.cache.release(answer.lease());
        } else {
            state.held.entry(timeframe).or_default().push(answer.lease().clone());
        }
        Ok(answer)
    }

    /// The consumer is done with these.
    pub fn consumed(&self, timeframes: &[u64]) {
        let done: Vec<LeaseId> = {
            let mut state = self.state();
            timeframes.iter().filter_map(|id| state.held.remove(id)).flatten().collect()
        };
        self.end(&done);
    }

    /// The consumer is done with all below.
    pub fn oldest_possible(&self, oldest: u64) {
        let done: Vec<LeaseId> = {
            let mut state = self.state();
            state.oldest = state.oldest.max(oldest);
            let kept = state.held.split_off(&oldest);
            std::mem::replace(&mut state.held, kept).into_values().flatten().collect()
        };
        self.end(&done);
    }

    fn end(&self, leases: &[LeaseId]) {
        for lease in leases {
            self.cache.release(lease);
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let held = std::mem::take(&mut self.state().held);
        let held: Vec<LeaseId> = held.into_values().flatten().collect();
        self.end(&held);
    }
}

impl Cache {
    /// Opens the stream of a consumer that asks for the same columns again and again. What its tables
    /// take beside the segments is charged to `budget`.
    ///
    /// # Errors
    /// [`CacheError`] if the request itself is wrong.
    pub fn exchange(
        &self,
        template: Request,
        budget: ClientBudget,
    ) -> Result<Exchange, CacheError> {
        self.check_open()?;
        if let Some(session) = &template.session {
            self.check_session(session)?;
        }
        let columns = self.columns(&template.columns, None)?;
        let form = self.form(Key::of_stream(&template), columns);
        let common = Common::new(form);
        Ok(Exchange { cache: self.clone(), budget, template, common, state: Mutex::default() })
    }
}
