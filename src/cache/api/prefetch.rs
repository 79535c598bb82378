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

use std::time::Duration;

use tokio::time::Instant;

use super::handle::Cache;
use crate::cache::deadline::{LOOK_UP, by_deadline};
use crate::cache::error::CacheError;
use crate::cache::holders::caller::Caller;
use crate::cache::tables::plan::Plan;
use crate::error::Coded as _;
use crate::index::{State, Timestamps};
use crate::interval::Timestamp;
use crate::object::Query;
use crate::shm::Pool;
use crate::table::{Prefetch, Request};

/// Loading ahead takes no longer.
const LIMIT: Duration = Duration::from_secs(60);

impl Cache {
    /// Loads what a range of time needs. What it loads is not pinned: it can be thrown out again.
    /// Gives the number of objects that are there now.
    ///
    /// # Errors
    /// [`CacheError`].
    pub async fn prefetch(&self, prefetch: &Prefetch, asker: &Caller) -> Result<u64, CacheError> {
        self.check_open()?;
        let wait =
            asker.patience.map_or(Request::DEFAULT_WAIT, |wait| wait.min(Request::DEFAULT_WAIT));
        let deadline = Instant::now() + wait;
        let columns = self.0.columns.requested(&prefetch.columns, None)?;
        let spans = self.0.columns.spans(columns, prefetch.range, &asker.budget);
        let spans = by_deadline(LOOK_UP, deadline, spans).await?;
        let got = self.0.loader.pin_all(&**spans.versions(), deadline).await?;
        Ok(got.pins.pins().len() as u64)
    }

    /// Looks at what comes behind the timestamps of `plan`.
    pub(crate) fn prefetch_next(&self, plan: &Plan) {
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
            let border = (column.query(self.0.columns.limits), border);
            if self.0.prefetcher.begin(&border) {
                let cache = self.clone();
                self.spawn(async move {
                    tokio::select! {
                        () = cache.load_next(&border) => {}
                        () = cache.0.draining.cancelled() => {}
                    }
                    cache.0.prefetcher.end(&border);
                });
            }
        }
    }

    async fn load_next(&self, border: &(Query, Timestamp)) {
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
            Ok::<(), CacheError>(())
        };
        if let Ok(Err(error)) = tokio::time::timeout(LIMIT, work).await {
            // Who asks for it is told.
            tracing::debug!(path = %query.path, %at, error = error.message(), "not loaded ahead");
        }
    }
}
