//! How far a table is: PollFlightInfo. What is asked for is loaded meanwhile, and kept by a lease.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};

use serde::Serialize;
use tokio::time::Instant;

use super::Cache;
use super::answer::Asker;
use super::error::CacheError;
use super::lease::LeaseId;
use super::plan::Plan;
use crate::budget::ClientBudget;
use crate::table::{Request, When};

/// What became of the loading that a poll has started.
#[derive(Debug)]
pub(super) enum Polled {
    Loading,
    Done,
    Failed(CacheError),
}

/// By lease.
pub(super) type Polls = HashMap<LeaseId, Polled>;

/// How far a table is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Progress {
    /// Its distinct objects.
    pub objects: u64,
    /// Those of them that are in shared memory.
    pub objects_loaded: u64,
    /// The bytes of its objects, as far as they are known.
    pub bytes: u64,
    /// Those of them that are in shared memory.
    pub bytes_loaded: u64,
    /// Whether all is pinned, and the table would come at once.
    pub done: bool,
}

impl Progress {
    /// From 0 to 1, by bytes where they are known, else by objects.
    pub fn share(&self) -> f64 {
        match (self.done, self.bytes, self.objects) {
            (true, ..) | (_, _, 0) => 1.0,
            (_, 0, objects) => self.objects_loaded as f64 / objects as f64,
            (_, bytes, _) => self.bytes_loaded as f64 / bytes as f64,
        }
    }
}

impl Cache {
    /// How far the table of `request` is. The first time its loading begins, for `lease`. Its memory
    /// is charged to `budget`.
    ///
    /// # Errors
    /// [`CacheError`], also why loading failed: asked again it begins anew.
    pub async fn poll(
        &self,
        request: &Request,
        lease: &LeaseId,
        budget: &ClientBudget,
    ) -> Result<Progress, CacheError> {
        self.0.leases.renew(lease)?;
        let begun = {
            let mut polls = self.0.polls.lock().unwrap_or_else(PoisonError::into_inner);
            match polls.get(lease) {
                Some(Polled::Failed(_)) => match polls.remove(lease) {
                    Some(Polled::Failed(error)) => return Err(error),
                    _ => false,
                },
                Some(Polled::Done) => true,
                Some(Polled::Loading) => true,
                None => {
                    // Those of leases that have ended are of no use any more.
                    polls.retain(|lease, _| self.0.leases.is_open(lease));
                    polls.insert(lease.clone(), Polled::Loading);
                    false
                }
            }
        };
        let deadline = Instant::now() + request.wait;
        let versions = match &request.when {
            When::Timeframe(id) => {
                Arc::clone(self.0.timeframes.get(*id)?.registration.plan.versions())
            }
            When::Timestamps(timestamps) => {
                let columns = self.columns(&request.columns, None)?;
                let known = self.known_at(request, columns, timestamps, None, deadline).await?;
                Arc::clone(Plan::new(Arc::new(timestamps.clone()), known, budget)?.versions())
            }
            When::Range(range) => {
                let columns = self.columns(&request.columns, None)?;
                Arc::clone(self.spans(columns, *range).await?.versions())
            }
        };
        if !begun {
            let (cache, request, lease) = (self.clone(), request.clone(), lease.clone());
            let budget = budget.clone();
            self.spawn(async move {
                let lease_of_it = Some(lease.clone());
                let asker =
                    Asker { lease: lease_of_it, in_advance: true, budget, ..Asker::default() };
                let polled = match cache.answer(&request, &asker).await {
                    Ok(_) => Polled::Done,
                    Err(error) => Polled::Failed(error),
                };
                let mut polls = cache.0.polls.lock().unwrap_or_else(PoisonError::into_inner);
                polls.insert(lease, polled);
            });
        }
        let mut progress =
            Progress { objects: 0, objects_loaded: 0, bytes: 0, bytes_loaded: 0, done: false };
        for version in versions.infos() {
            let resident = self.0.residency.size_of(version.id);
            let bytes = resident.or(version.size_bytes).unwrap_or(0);
            progress.objects += 1;
            progress.bytes += bytes;
            if resident.is_some() {
                progress.objects_loaded += 1;
                progress.bytes_loaded += bytes;
            }
        }
        let polls = self.0.polls.lock().unwrap_or_else(PoisonError::into_inner);
        progress.done = matches!(polls.get(lease), Some(Polled::Done));
        Ok(progress)
    }
}
