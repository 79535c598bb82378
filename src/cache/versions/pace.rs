//! The pace of requests: how far the requests of a query move in time, and the prefetches in
//! progress.

use std::collections::HashSet;

use crate::interval::Timestamp;
use crate::object::Query;
use crate::sync::Mutex;

/// Number of requests in a row that must have moved forwards before anything is prefetched.
const STEPS: u32 = 3;
/// Distance that is prefetched, in steps of the current pace.
const STEPS_AHEAD: i64 = 4;
/// Maximum number of versions that are prefetched at the same time.
const MAX_UNDER_WAY: usize = 256;

/// The interval ends whose next versions are being prefetched.
#[derive(Debug, Default)]
pub(crate) struct Prefetcher {
    under_way: Mutex<HashSet<(Query, Timestamp)>>,
}

/// The steps in time between the requests of one query.
#[derive(Debug, Default)]
pub(crate) struct Pace(Mutex<PaceSteps>);

/// The newest timestamp requested so far, and how many requests in a row moved it forwards.
#[derive(Debug, Default)]
struct PaceSteps {
    newest: Option<Timestamp>,
    forwards: u32,
}

impl Pace {
    /// How far beyond `newest` the next few requests will reach, if they move forwards.
    pub(crate) fn reach(&self, newest: Timestamp) -> Option<i64> {
        let mut steps = self.0.lock();
        let before = steps.newest.replace(newest)?;
        let step = newest.as_millis().saturating_sub(before.as_millis());
        match step {
            // Several consumers request the same timestamp.
            0 => return None,
            1.. => steps.forwards += 1,
            _ => steps.forwards = 0,
        }
        (steps.forwards >= STEPS).then(|| step.saturating_mul(STEPS_AHEAD))
    }
}

impl Prefetcher {
    pub(crate) fn begin(&self, border: &(Query, Timestamp)) -> bool {
        let mut under_way = self.under_way.lock();
        under_way.len() < MAX_UNDER_WAY && under_way.insert(border.clone())
    }

    pub(crate) fn end(&self, border: &(Query, Timestamp)) {
        self.under_way.lock().remove(border);
    }
}
