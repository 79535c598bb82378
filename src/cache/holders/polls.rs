//! Results of the loads that polls for the progress of a table have started.

use std::collections::HashMap;

use foldhash::fast::RandomState;

use crate::cache::error::CacheError;
use crate::cache::holders::lease::LeaseId;

/// Smaller maps are not swept.
const FIRST_SWEEP: usize = 64;

/// The state of a load that a poll has started.
#[derive(Debug)]
pub(crate) enum Polled {
    Loading,
    Done,
    Failed(CacheError),
}

/// The loads that polls have started, by lease.
#[derive(Debug)]
pub(crate) struct Polls {
    by_lease: HashMap<LeaseId, Polled, RandomState>,
    /// Number of entries at which those of ended leases are removed.
    sweep_at: usize,
}

impl Default for Polls {
    fn default() -> Self {
        Self { by_lease: HashMap::default(), sweep_at: FIRST_SWEEP }
    }
}

impl Polls {
    /// Whether a poll has started the load of a lease.
    pub(crate) fn is_begun(&self, lease: &LeaseId) -> bool {
        self.by_lease.contains_key(lease)
    }

    /// Whether this is the first poll of its lease, which starts the load. Entries of ended leases
    /// are removed each time the number of entries has doubled, so that the cost of a poll does not
    /// grow with them.
    pub(crate) fn begin(&mut self, lease: &LeaseId, is_open: impl Fn(&LeaseId) -> bool) -> bool {
        if self.is_begun(lease) {
            return false;
        }
        if self.by_lease.len() >= self.sweep_at {
            self.by_lease.retain(|lease, _| is_open(lease));
            self.sweep_at = (self.by_lease.len() * 2).max(FIRST_SWEEP);
        }
        self.by_lease.insert(lease.clone(), Polled::Loading);
        true
    }

    /// Sets the result of a load.
    pub(crate) fn set(&mut self, lease: LeaseId, polled: Polled) {
        self.by_lease.insert(lease, polled);
    }

    /// Whether the load of a lease is complete.
    pub(crate) fn is_done(&self, lease: &LeaseId) -> bool {
        matches!(self.by_lease.get(lease), Some(Polled::Done))
    }

    /// Removes and returns the error of a load, so that the next poll starts another.
    pub(crate) fn take_failure(&mut self, lease: &LeaseId) -> Option<CacheError> {
        if !matches!(self.by_lease.get(lease), Some(Polled::Failed(_))) {
            return None;
        }
        match self.by_lease.remove(lease) {
            Some(Polled::Failed(error)) => Some(error),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_begun_once_and_entries_of_ended_leases_are_swept() {
        let mut polls = Polls::default();
        let lease = |number: usize| LeaseId::from(number.to_string().as_str());
        for number in 0..10_000 {
            // Ten leases are open at a time.
            let is_open = |lease: &LeaseId| lease.as_str().parse::<usize>().unwrap() + 10 > number;
            assert!(!polls.is_begun(&lease(number)));
            assert!(polls.begin(&lease(number), is_open));
            assert!(!polls.begin(&lease(number), is_open));
            assert!(polls.by_lease.len() <= 2 * FIRST_SWEEP);
        }
        polls.set(lease(9_999), Polled::Done);
        assert!(polls.is_done(&lease(9_999)) && !polls.is_done(&lease(9_998)));
    }
}
