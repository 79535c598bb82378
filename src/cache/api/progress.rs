//! How far a table is: PollFlightInfo. What is asked for is loaded meanwhile, and kept by a lease.

use std::sync::{Arc, MutexGuard, PoisonError};

use serde::Serialize;
use tokio::time::Instant;

use super::handle::Cache;
use crate::cache::error::CacheError;
use crate::cache::holders::caller::Caller;
use crate::cache::holders::lease::{LeaseHolder, LeaseId};
use crate::cache::holders::polls::{Polled, Polls};
use crate::cache::versions::linked_timeline::VersionSet;
use crate::cache::yielder::Turns;
use crate::table::Request;

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
        asker: &Caller,
    ) -> Result<Progress, CacheError> {
        self.0.leases.renew(lease)?;
        if let Some(error) = self.failure_of(lease) {
            return Err(error);
        }
        let deadline = Instant::now() + request.wait;
        let asker = Caller { in_advance: true, lease: Some(lease.clone()), ..asker.clone() };
        let (versions, holder) = self.versions_for(request, &asker, deadline).await?;
        // Nothing fails between here and the beginning of the load.
        if self.begin_poll(lease) {
            self.load_for(lease.clone(), Arc::clone(&versions), holder, deadline);
        }
        let mut progress =
            Progress { objects: 0, objects_loaded: 0, bytes: 0, bytes_loaded: 0, done: false };
        let mut turns = Turns::new();
        for version in versions.infos() {
            let resident = self.0.residency.size_of(version.id);
            let bytes = resident.or(version.size_bytes).unwrap_or(0);
            progress.objects += 1;
            progress.bytes += bytes;
            if resident.is_some() {
                progress.objects_loaded += 1;
                progress.bytes_loaded += bytes;
            }
            turns.take(1).await;
        }
        progress.done = matches!(self.polls().get(lease), Some(Polled::Done));
        Ok(progress)
    }

    fn polls(&self) -> MutexGuard<'_, Polls> {
        self.0.polls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why the loading that a poll of this lease has started failed, told once.
    fn failure_of(&self, lease: &LeaseId) -> Option<CacheError> {
        let mut polls = self.polls();
        if !matches!(polls.get(lease), Some(Polled::Failed(_))) {
            return None;
        }
        match polls.remove(lease) {
            Some(Polled::Failed(error)) => Some(error),
            _ => None,
        }
    }

    /// Whether this poll is the first one of its lease, which starts the loading.
    fn begin_poll(&self, lease: &LeaseId) -> bool {
        let mut polls = self.polls();
        let first = !polls.contains_key(lease);
        if first {
            // Those of leases that have ended are of no use any more.
            polls.retain(|lease, _| self.0.leases.is_open(lease));
            polls.insert(lease.clone(), Polled::Loading);
        }
        first
    }

    /// Loads and pins `versions` for a lease. The task keeps nothing alive but what it needs.
    fn load_for(
        &self,
        lease: LeaseId,
        versions: Arc<VersionSet>,
        holder: Option<LeaseHolder>,
        deadline: Instant,
    ) {
        let (loader, leases) = (Arc::clone(&self.0.loader), Arc::clone(&self.0.leases));
        let polls = Arc::clone(&self.0.polls);
        self.spawn(async move {
            let loaded = loader.pin_all(&*versions, deadline).await;
            let held = loaded.and_then(|got| leases.add(&lease, Arc::new(got.pins), holder));
            let polled = match held {
                Ok(()) => Polled::Done,
                Err(error) => Polled::Failed(error),
            };
            polls.lock().unwrap_or_else(PoisonError::into_inner).insert(lease, polled);
        });
    }
}
