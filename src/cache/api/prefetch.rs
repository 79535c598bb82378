//! Prefetch: loads the next version of each column before it is requested, so that a running
//! workflow does not wait at the end of a validity interval.
//!
//! ```text
//!  a timeframe up to t ──▶ the span of each column at t ends soon? ──▶ version valid at its end?
//!                                                                  └▶ load it, pin nothing
//! ```
//!
//! Prefetch starts only if several registered timeframes, or batches of a stream, in a row move
//! forwards in time. A span ends soon if the next few of them reach its end at that pace. Prefetch
//! evicts nothing and blocks no request.

use std::time::Duration;

use tokio::time::Instant;

use super::handle::Cache;
use crate::cache::deadline::{LOOK_UP, by_deadline};
use crate::cache::error::CacheError;
use crate::cache::holders::caller::Caller;
use crate::cache::tables::plan::Plan;
use crate::cache::versions::query_times::QueryTimes;
use crate::error::Coded as _;
use crate::index::{State, Timestamps};
use crate::interval::Timestamp;
use crate::object::Query;
use crate::shm::Pool;
use crate::table::{Prefetch, Request};

/// Longest time for one prefetch.
const LIMIT: Duration = Duration::from_secs(60);

impl Cache {
    /// Loads the objects for a range of time. They are not pinned and can be evicted again. Returns
    /// the number of objects that are resident now.
    ///
    /// # Errors
    /// [`CacheError::UnknownTable`]; [`CacheError::LookUp`] and [`CacheError::Load`] with the error of
    /// the source; [`CacheError::MemoryPinned`] and [`CacheError::DeadlineExceeded`].
    pub async fn prefetch(&self, prefetch: &Prefetch, caller: &Caller) -> Result<u64, CacheError> {
        self.check_open()?;
        let wait =
            caller.patience.map_or(Request::DEFAULT_WAIT, |wait| wait.min(Request::DEFAULT_WAIT));
        let deadline = Instant::now() + wait;
        let columns = self.0.columns.requested(&prefetch.columns, None)?;
        let spans = self.0.columns.spans(columns, prefetch.range, &caller.budget);
        let spans = by_deadline(LOOK_UP, deadline, spans).await?;
        let got = self.0.loader.pin_all(&**spans.versions(), deadline).await?;
        Ok(got.pins.pins().len() as u64)
    }

    /// Prefetches the versions that follow the timestamps of `plan`.
    pub(crate) fn prefetch_next(&self, plan: &Plan) {
        let rows = plan.timestamps();
        // The first and the last row suffice for a guess.
        let Some(last) = rows.len().checked_sub(1) else { return };
        let (Some(one), Some(other)) = (rows.value(0), rows.value(last)) else { return };
        let last = one.max(other);
        for (query, known) in plan.plain_queries() {
            let reach = known.pace.as_ref().and_then(|pace| pace.reach(last));
            let Some(reach) = reach else { continue };
            let horizon = last.as_millis().saturating_add(reach);
            // The span at the last timestamp, if it is known, else the end of the version's own
            // interval.
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
            // Nothing to do if the next version is known and resident.
            if let State::Version(next) = known.timeline.at(border).state
                && self.0.residency.size_of(known.timeline.version(next).id).is_some()
            {
                continue;
            }
            let (path, metadata) = (query.0.clone(), query.1.clone());
            let query = Query { path, metadata, limits: self.0.columns.limits };
            let border = (query, border);
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
            let known = self.0.catalog.known_at(query, &QueryTimes::All(&timestamps)).await?;
            let Some(version) = known.timeline.version_at(*at).cloned() else { return Ok(()) };
            let pool = self.0.residency.pool();
            let free_bytes = pool.total_bytes().saturating_sub(pool.used_bytes());
            let needed_bytes = Pool::charge(version.size_bytes.unwrap_or(pool.total_bytes() / 8));
            if needed_bytes <= free_bytes {
                // The pins are dropped at once: the object stays until its memory is needed.
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
            // A request for this version reports the error.
            tracing::debug!(path = %query.path, %at, error = error.message(), "not prefetched");
        }
    }
}
