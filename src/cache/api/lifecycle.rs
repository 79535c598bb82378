//! Invalidation of a path, and the shutdown of a cache.

use super::handle::Cache;
use crate::cache::error::CacheError;
use crate::object::ObjectPath;

impl Cache {
    /// Forgets everything known about a path: the next request asks the source. Resident objects
    /// are reused if their versions are still valid.
    pub fn invalidate(&self, path: &ObjectPath) {
        self.0.catalog.forget(path);
        self.0.objects.forget(path);
        self.0.residency.unlist(|resident| resident.path() == path);
    }

    /// Refuses new work from now on.
    pub fn drain(&self) {
        self.0.draining.cancel();
        self.0.timeframes.withdraw_all();
    }

    /// Shuts down like [`close`](Self::close), at the end of a process. The objects are left in the
    /// segments unchanged: other processes can still hold them.
    pub fn leave(&self) {
        // A host's memory outlives this process.
        if !self.0.pool.is_of_host() {
            self.0.pool.freeze();
        }
        self.close();
    }

    /// Shuts down: refuses new work, and ends all sessions, leases and timeframes. If a descriptor
    /// store keeps the segments, the objects are left in them unchanged.
    pub fn close(&self) {
        self.drain();
        if let Some(kept) = &self.0.kept {
            kept.note(&self.0.catalog.saved_timelines(|id| self.0.residency.size_of(id).is_some()));
            kept.object_log.leave();
            self.0.pool.freeze();
        }
        self.0.timeframes.clear();
        self.0.leases.end_everything();
        self.0.residency.close();
    }

    /// Leaves the objects allocated in the host's memory that tables and timeframes hold: other
    /// processes may be reading them. Returns their number.
    #[cfg(feature = "capi")]
    pub(crate) fn leave_held_objects(&self) -> usize {
        let mut held = self.0.leases.pin_sets();
        held.extend(self.0.timeframes.pin_sets());
        let pins = held.iter().flat_map(|set| set.pins());
        // Tables can share objects.
        pins.filter(|pin| pin.resident().block().leave_in_host()).count()
    }

    /// # Errors
    /// [`CacheError::Draining`].
    pub(crate) fn check_open(&self) -> Result<(), CacheError> {
        if self.0.draining.is_cancelled() { Err(CacheError::Draining) } else { Ok(()) }
    }

    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.0.tasks.lock();
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }
}
