//! The queue of timelines whose snapshots in shared memory are to be made.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::cache::versions::catalog::Catalog;
use crate::cache::versions::publication::Draft;
use crate::cache::versions::publish_queue::is_present;
use crate::cache::versions::series::{PublishOutcome, Series};
use crate::clock::Moment;
use crate::object::Query;
use crate::shm::DirectoryEntry;

/// Pause before a snapshot whose content would be unchanged is made again.
const PUBLISH_PAUSE: Duration = Duration::from_millis(200);
/// Interval between checks for deferred snapshots.
const PUBLISH_RETRY: Duration = Duration::from_millis(50);
/// Number of series taken from the queue at a time.
const TOGETHER: usize = 64;

impl Catalog {
    pub(super) fn add_to_publish(&self, query: &Query, series: &Arc<Series>) {
        if !series.to_publish.swap(true, Ordering::AcqRel) {
            let is_present = is_present(series);
            self.to_publish.lock().add(query, series, is_present);
            self.publish.notify_one();
        }
    }

    /// Queues the series of this query for a snapshot: a consumer that looks up by itself needs it.
    pub(crate) fn want_published(&self, query: &Query) {
        let found = {
            let series = self.series.read();
            series.get(query).map(Arc::clone)
        };
        if let Some(series) = found {
            self.add_to_publish(query, &series);
        }
    }

    /// Completes when a snapshot of some series is to be made.
    pub(crate) async fn to_publish(&self) {
        let deferred = !self.to_publish.lock().is_empty();
        match deferred {
            false => self.publish.notified().await,
            true => {
                let _ = tokio::time::timeout(PUBLISH_RETRY, self.publish.notified()).await;
            }
        }
    }

    /// Defers the next snapshot of a series whose content would be unchanged, regardless of the
    /// number of requests for it.
    pub(crate) fn defer_publishing(&self, series: &Series) {
        let after = self.clock.now().after(PUBLISH_PAUSE).since(Moment::default()).as_millis();
        series.publish_after.store(u64::try_from(after).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Takes some of the series whose snapshots are due. Where there may be more of them,
    /// [`to_publish`](Self::to_publish) completes at once.
    pub(crate) fn take_to_publish(&self) -> Vec<(Query, Arc<Series>)> {
        let taken = self.to_publish.lock().take(self.clock.now(), TOGETHER);
        if taken.len() == TOGETHER {
            self.publish.notify_one();
        }
        let there = taken.into_iter().filter_map(|(query, series)| {
            let series = series.upgrade()?;
            // Changes from here on are published again.
            series.to_publish.store(false, Ordering::Release);
            Some((query, series))
        });
        there.collect()
    }

    /// Publishes a draft of a series. If its timeline was replaced meanwhile, the series is queued
    /// again. `entry` takes an entry of the directory, if one is free.
    pub(crate) fn publish(
        &self,
        query: &Query,
        series: &Arc<Series>,
        draft: Draft,
        entry: impl FnOnce() -> Option<DirectoryEntry>,
    ) -> PublishOutcome {
        let outcome = series.publish(draft, || self.freshness(&query.path, series), entry);
        if outcome == PublishOutcome::Changed {
            self.add_to_publish(query, series);
        }
        outcome
    }
}
