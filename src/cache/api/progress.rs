//! The progress of a table (PollFlightInfo). A poll loads its objects and pins them for a lease.

use std::sync::Arc;

use serde::Serialize;
use tokio::time::Instant;

use super::handle::Cache;
use crate::budget::Charge;
use crate::cache::error::CacheError;
use crate::cache::holders::caller::Caller;
use crate::cache::holders::lease::LeaseId;
use crate::cache::holders::lease_terms::{LeaseHolder, charge_lease};
use crate::cache::holders::polls::{Polled, Polls};
use crate::cache::memory::pin_request::PinRequest as _;
use crate::cache::versions::linked_timeline::VersionSet;
use crate::cache::yielder::WorkClock;
use crate::sync::MutexGuard;
use crate::table::Request;

/// The progress of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Progress {
    /// Number of distinct objects.
    pub objects: u64,
    /// Number of these objects in shared memory.
    pub objects_loaded: u64,
    /// Bytes of these objects, as far as they are known.
    pub bytes: u64,
    /// Bytes of these objects in shared memory.
    pub bytes_loaded: u64,
    /// Whether everything is pinned, so that the table would be returned at once.
    pub done: bool,
}

impl Progress {
    /// Progress from 0 to 1: by bytes if they are known, else by objects.
    pub fn share(&self) -> f64 {
        match (self.done, self.bytes, self.objects) {
            (true, ..) | (_, _, 0) => 1.0,
            (_, 0, objects) => self.objects_loaded as f64 / objects as f64,
            (_, bytes, _) => self.bytes_loaded as f64 / bytes as f64,
        }
    }
}

impl Cache {
    /// The progress of the table of `request`. The first call starts to load it for `lease`, and
    /// each call renews the lease. Its memory is charged to the budget of `caller`.
    ///
    /// # Errors
    /// [`CacheError::LeaseEnded`]; the errors of [`answer`](Self::answer), also the one of a load that
    /// failed since the last call. The next call then starts a new load.
    pub async fn poll(
        &self,
        request: &Request,
        lease: &LeaseId,
        caller: &Caller,
    ) -> Result<Progress, CacheError> {
        self.0.leases.renew(lease)?;
        if let Some(error) = self.polls().take_failure(lease) {
            return Err(error);
        }
        let deadline = Instant::now() + request.wait;
        let caller = Caller { in_advance: true, lease: Some(lease.clone()), ..caller.clone() };
        let (versions, holder) = self.versions_for(request, &caller, deadline).await?;
        // Only the first poll loads, and pays for the pins.
        let charge = match self.polls().is_begun(lease) {
            true => None,
            false => Some(charge_lease(&caller.budget, versions.len())?),
        };
        // No step between here and the start of the load may fail.
        if let Some(charge) = charge
            && self.polls().begin(lease, |lease| self.0.leases.is_open(lease))
        {
            self.load_for(lease.clone(), Arc::clone(&versions), holder, deadline, charge);
        }
        let mut progress =
            Progress { objects: 0, objects_loaded: 0, bytes: 0, bytes_loaded: 0, done: false };
        let mut turns = WorkClock::new();
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
        progress.done = self.polls().is_done(lease);
        Ok(progress)
    }

    fn polls(&self) -> MutexGuard<'_, Polls> {
        self.0.polls.lock()
    }

    /// Loads and pins `versions` for a lease. The task keeps only its own inputs alive.
    fn load_for(
        &self,
        lease: LeaseId,
        versions: Arc<VersionSet>,
        holder: Option<LeaseHolder>,
        deadline: Instant,
        charge: Charge,
    ) {
        let (loader, leases) = (Arc::clone(&self.0.loader), Arc::clone(&self.0.leases));
        let polls = Arc::clone(&self.0.polls);
        self.spawn(async move {
            let loaded = loader.pin_all(&*versions, deadline).await;
            let held =
                loaded.and_then(|got| leases.add(&lease, Arc::new(got.pins), holder, charge));
            let polled = match held {
                Ok(()) => Polled::Done,
                Err(error) => Polled::Failed(error),
            };
            polls.lock().set(lease, polled);
        });
    }
}
