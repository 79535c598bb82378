//! Refreshes the timelines in use: after a change at the source, and before their answers get old.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::cache::ticks::tick_after;
use crate::cache::versions::catalog::Catalog;
use crate::cache::versions::series::Series;
use crate::clock::Moment;
use crate::interval::Timestamp;
use crate::object::Query;

/// A series without requests for this long is not refreshed in the background.
const IDLE_AFTER: Duration = Duration::from_secs(10);
/// Number of look-ups after a change, until one has started after it.
const REFRESH_ATTEMPTS: usize = 3;
/// Shortest pause between two refreshes, however soon the source's answers get old.
const MIN_PAUSE: Duration = Duration::from_millis(20);
/// Pause while no timeline is in use, unless answers get old much sooner or later: each wake-up of an
/// idle service costs time.
const IDLE_PAUSE: Duration = Duration::from_secs(1);

impl Catalog {
    /// Subscribes to changes at the source, so that they are seen before the timelines get old.
    pub(crate) fn listen(self: &Arc<Self>) {
        let catalog = Arc::downgrade(self);
        self.source.subscribe(Arc::new(move |paths| {
            let Some(catalog) = catalog.upgrade() else { return };
            let now = catalog.clock.now().since(Moment::default()).as_millis();
            let now = u64::try_from(now).unwrap_or(u64::MAX);
            let series = catalog.series.read();
            for (_, series) in series.iter().filter(|(query, _)| paths.contains(&query.path)) {
                // Series in frequent use are refreshed in the background, so requests do not wait.
                if Moment::from_millis(now).since(series.used()) < IDLE_AFTER {
                    series.told.store(true, Ordering::Release);
                    catalog.told.notify_one();
                } else {
                    series.changed.store(now, Ordering::Release);
                    series.withdraw();
                }
            }
        }));
    }

    /// Refreshes every timeline in use whose answer gets old, so that requests need not wait.
    ///
    /// Runs until it is dropped.
    pub(crate) async fn keep_fresh(self: Arc<Self>) {
        let pause = self.source.refresh().mul_f64(0.5).max(MIN_PAUSE);
        let idle_pause = pause.saturating_mul(4).min(IDLE_PAUSE).max(pause);
        let tick = |pause| tick_after(Instant::now(), pause);
        let mut next = tick(pause);
        loop {
            tokio::select! {
                () = self.told.notified() => {
                    self.refresh_told().await;
                    continue;
                }
                () = sleep_until(next) => {}
            }
            let now = self.clock.now();
            let busy: Vec<(Query, Arc<Series>)> = {
                let series = self.series.read();
                let busy =
                    series.iter().filter(|(_, series)| now.since(series.used()) < IDLE_AFTER);
                busy.map(|(query, series)| (query.clone(), Arc::clone(series))).collect()
            };
            // A request that finds an old answer before then looks it up by itself.
            next = tick(if busy.is_empty() { idle_pause } else { pause });
            for (query, series) in busy {
                // Only if one answer covers everything: otherwise the next time is unknown, and
                // requests look up their own times.
                let timeline = series.timeline.load();
                let whole = timeline.is_whole();
                drop(timeline);
                if whole {
                    // A request that needs the answer reports the error.
                    let at = Timestamp::default();
                    let _ = self.look_up(&query, &series, at, self.clock.now()).await;
                }
            }
        }
    }

    /// Refreshes each series with a reported change, around the time of its latest look-up.
    async fn refresh_told(self: &Arc<Self>) {
        let told: Vec<(Query, Arc<Series>)> = {
            let series = self.series.read();
            let told = series.iter().filter(|(_, one)| one.told.swap(false, Ordering::AcqRel));
            told.map(|(query, series)| (query.clone(), Arc::clone(series))).collect()
        };
        for (query, series) in told {
            let since = self.clock.now();
            let at = Timestamp::from_millis(series.asked.load(Ordering::Relaxed));
            let is_fresh = || series.timeline.load().at(at).learned >= since;
            for _ in 0..REFRESH_ATTEMPTS {
                // A look-up already in progress may not see the change.
                let asked = self.look_up(&query, &series, at, since).await;
                if asked.is_err() || is_fresh() {
                    break;
                }
            }
            if !is_fresh() {
                let millis = since.since(Moment::default()).as_millis();
                let millis = u64::try_from(millis).unwrap_or(u64::MAX);
                series.changed.store(millis, Ordering::Release);
                series.withdraw();
            }
        }
    }
}
