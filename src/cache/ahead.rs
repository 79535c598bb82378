//! Loads what comes next before anybody asks for it, so that a running workflow does not wait at
//! the border of an interval.
//!
//! ```text
//!  a timeframe up to t ──▶ the span of each column around t ends soon? ──▶ who holds at its end?
//!                                                                     └▶ load it, pin nothing
//! ```
//!
//! Only where the timeframes that are registered, or the batches of a stream, move forwards in time,
//! several in a row, is anything looked ahead; soon is what
//! the next few of them will reach at that pace. Nothing is thrown out for it, and nobody waits for
//! it.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::Cache;
use super::plan::Plan;
use crate::error::Coded as _;
use crate::index::{State, Timestamps};
use crate::interval::Timestamp;
use crate::object::Query;
use crate::shm::Pool;

/// So many requests in a row must have moved forwards.
const STEPS: u32 = 3;
/// As far as so many more of them will come is looked ahead.
const STEPS_AHEAD: i64 = 4;
/// Loading ahead takes no longer.
const LIMIT: Duration = Duration::from_secs(60);
/// So much is looked ahead at the same time.
const MAX_UNDER_WAY: usize = 256;

/// The borders that are being looked at.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    under_way: Mutex<HashSet<(Query, Timestamp)>>,
}

/// How the requests of one query move in time.
#[derive(Debug, Default)]
pub(crate) struct Pace(Mutex<Steps>);

#[derive(Debug, Default)]
struct Steps {
    newest: Option<Timestamp>,
    forwards: u32,
}

impl Pace {
    /// How far beyond `newest` the next few requests will come, if they move forwards.
    fn reach(&self, newest: Timestamp) -> Option<i64> {
        let mut steps = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = steps.newest.replace(newest)?;
        let step = newest.as_millis().saturating_sub(before.as_millis());
        match step {
            // Several consumers ask for the same.
            0 => return None,
            1.. => steps.forwards += 1,
            _ => steps.forwards = 0,
        }
        (steps.forwards >= STEPS).then(|| step.saturating_mul(STEPS_AHEAD))
    }
}

impl Ahead {
    fn begin(&self, border: &(Query, Timestamp)) -> bool {
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        under_way.len() < MAX_UNDER_WAY && under_way.insert(border.clone())
    }

    fn end(&self, border: &(Query, Timestamp)) {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner).remove(border);
    }
}

impl Cache {
    /// Looks at what comes behind the timestamps of `plan`.
    pub(super) fn look_ahead(&self, plan: &Plan) {
        let rows = plan.timestamps();
        // Those in between need not be looked at: this is a guess in any case.
        let Some(last) = rows.len().checked_sub(1) else { return };
        let (Some(one), Some(other)) = (rows.value(0), rows.value(last)) else { return };
        let last = one.max(other);
        for (column, known) in plan.known_columns() {
            let reach = known.pace.as_ref().and_then(|pace| pace.reach(last));
            let Some(reach) = reach else { continue };
            let horizon = last.as_millis().saturating_add(reach);
            // What is effective at the last timestamp: its span where that is known, else the end
            // of the version's own interval.
            let Some(span) = known.timeline.span_at(last) else { continue };
            let State::Version(index) = span.state else { continue };
            let mut border = span.interval.until();
            let known_there = known.timeline.at(border).state;
            if known_there == State::Unknown {
                border = known.timeline.version(index).validity.until();
            }
            if border == Timestamp::MAX
                || border.as_millis() > horizon
                || known_there == State::Absent
            {
                continue;
            }
            // Where the next one is known and in memory there is nothing to do.
            if let State::Version(next) = known.timeline.at(border).state
                && self.0.residency.size_of(known.timeline.version(next).id).is_some()
            {
                continue;
            }
            let border = (column.query(self.0.limits), border);
            if self.0.ahead.begin(&border) {
                let cache = self.clone();
                self.spawn(async move {
                    tokio::select! {
                        () = cache.load_ahead(&border) => {}
                        () = cache.0.draining.cancelled() => {}
                    }
                    cache.0.ahead.end(&border);
                });
            }
        }
    }

    async fn load_ahead(&self, border: &(Query, Timestamp)) {
        let (query, at) = border;
        let work = async {
            let timestamps = Timestamps::new(vec![at.as_millis()], None);
            let known = self.0.catalog.known_at(query, &timestamps).await?;
            let Some(version) = known.timeline.version_at(*at).cloned() else { return Ok(()) };
            let pool = self.0.residency.pool();
            let free_bytes = pool.total_bytes().saturating_sub(pool.used_bytes());
            let needed_bytes = Pool::charge(version.size_bytes.unwrap_or(pool.total_bytes() / 8));
            if needed_bytes <= free_bytes {
                // The pins go at once: it stays as long as nobody needs the room.
                drop(
                    self.0
                        .loader
                        .pin_all(std::slice::from_ref(&version), Instant::now() + LIMIT)
                        .await?,
                );
            }
            Ok::<(), super::CacheError>(())
        };
        if let Ok(Err(error)) = tokio::time::timeout(LIMIT, work).await {
            // Who asks for it is told.
            tracing::debug!(path = %query.path, %at, error = error.message(), "not loaded ahead");
        }
    }
}
