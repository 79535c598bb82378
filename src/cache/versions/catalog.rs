//! The catalog: the known validity of versions, and their look-up at the source.
//!
//! ```text
//!  known(query, timestamps) ──▶ Timeline ──all known and fresh──▶ used, no lock taken
//!                                  │ unknown or too old
//!                                  ▼
//!                one look-up per (query, t) ──▶ Source ──▶ learn ──▶ Timeline
//!                                  │ fails, but there is an older answer
//!                                  └──▶ used, marked stale
//! ```

use std::collections::HashSet;
use std::collections::hash_map::{Entry, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use foldhash::fast::RandomState;
use futures::{Stream, TryStreamExt as _};
use tracing::Instrument as _;

use crate::budget::Charge;
use crate::cache::error::CacheError;
use crate::cache::single_flight::{CallLost, SingleFlight};
use crate::cache::versions::linked_timeline::LinkedTimeline;
use crate::cache::versions::pace::Pace;
use crate::cache::versions::publication::Freshness;
use crate::cache::versions::publish_queue::PublishQueue;
use crate::cache::versions::query_times::{PARALLEL_LOOK_UPS, QueryTimes, open_at};
use crate::cache::versions::series::Series;
use crate::clock::{Clock, Moment};
use crate::error::Coded as _;
use crate::index::{State, Timeline};
use crate::interval::{Timestamp, ValidityInterval};
use crate::object::{ObjectId, ObjectInfo, ObjectPath, Query};
use crate::source::{Knowledge, PathSummary, Problem, Source, SourceError};
use crate::sync::{Mutex, RwLock};
use crate::telemetry::Counters;

/// Maximum number of timelines; beyond, the least recently used are dropped.
const MAX_SERIES: usize = 100_000;
/// Maximum number of bytes in the queries of all timelines, which clients choose; beyond, the least
/// recently used are dropped.
const MAX_QUERY_BYTES: usize = 16 << 20;
/// Bytes of a timeline without the texts of its query and the versions of the source.
const SERIES_BYTES: usize = 320;
/// Maximum number of look-ups per column of one table.
const MAX_LOOK_UPS: usize = 100_000;
/// A path that its source does not list, and for which it has no version at this many timestamps of
/// one request, is not asked for at the others.
const MAX_VAIN_LOOK_UPS: usize = 31;
/// Maximum number of problems remembered.
const MAX_PROBLEMS: usize = 10_000;
/// The earliest time of a confirmed answer; answers with an earlier time are not confirmed.
const FIRST_MOMENT: Moment = Moment::from_millis(1);
/// The part of the refresh time for which an answer of the source is used.
const FRESH_PART: f64 = 0.75;
/// Time for the source to confirm a known answer.
const CONFIRM_TIME: Duration = Duration::from_secs(2);

/// The timelines of all queries so far.
#[derive(Debug)]
pub(crate) struct Catalog {
    pub(super) source: Arc<dyn Source>,
    pub(super) clock: Clock,
    counters: Arc<Counters>,
    pub(super) series: RwLock<HashMap<Query, Arc<Series>, RandomState>>,
    /// Bytes of the queries of all timelines; written under the lock of `series`.
    query_bytes: AtomicUsize,
    look_ups: SingleFlight<(Query, Timestamp), Result<LookUpResult, SourceError>>,
    /// Notified when a source has reported a change of some series.
    pub(super) told: tokio::sync::Notify,
    /// The entries that were skipped, so that each is reported once.
    problems: Mutex<HashSet<Problem>>,
    /// Series that are queued for a snapshot.
    pub(super) to_publish: Mutex<PublishQueue>,
    /// Notified when a series is queued for a snapshot.
    pub(super) publish: tokio::sync::Notify,
}

impl Series {
    fn known(&self, timeline: Arc<LinkedTimeline>, stale: bool) -> KnownTimeline {
        KnownTimeline { timeline, stale, pace: Some(Arc::clone(&self.pace)), charge: None }
    }
}

/// The result of a look-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LookUpResult {
    /// The source has answered.
    Now,
    /// The source did not answer, but an earlier answer is known.
    Earlier,
}

/// A timeline that is known wherever it was requested.
#[derive(Debug, Clone)]
pub(crate) struct KnownTimeline {
    pub(crate) timeline: Arc<LinkedTimeline>,
    /// The source did not confirm it in time.
    pub(crate) stale: bool,
    /// The pace of requests of this query; `None` if the versions are given by a lock.
    pub(crate) pace: Option<Arc<Pace>>,
    /// Budget for a timeline made for one request.
    pub(crate) charge: Option<Arc<Charge>>,
}

/// Bytes that the query of a timeline takes.
fn query_bytes(query: &Query) -> usize {
    let metadata = query.metadata.iter().map(|(key, value)| key.len() + value.len() + 96);
    SERIES_BYTES + query.path.as_str().len() + metadata.sum::<usize>()
}

impl Catalog {
    pub(crate) fn new(source: Arc<dyn Source>, clock: Clock, counters: Arc<Counters>) -> Self {
        Self {
            source,
            clock,
            counters,
            series: RwLock::default(),
            query_bytes: AtomicUsize::new(0),
            look_ups: SingleFlight::default(),
            told: tokio::sync::Notify::new(),
            problems: Mutex::default(),
            to_publish: Mutex::default(),
            publish: tokio::sync::Notify::new(),
        }
    }

    pub(crate) fn source(&self) -> &Arc<dyn Source> {
        &self.source
    }

    pub(super) fn series(&self, query: &Query, now: Moment) -> Arc<Series> {
        let millis = u64::try_from(now.since(Moment::default()).as_millis()).unwrap_or(u64::MAX);
        let known = {
            let series = self.series.read();
            series.get(query).map(Arc::clone)
        };
        let series = known.unwrap_or_else(|| {
            let mut all = self.series.write();
            let bytes = query_bytes(query) + self.query_bytes.load(Ordering::Relaxed);
            if all.len() >= MAX_SERIES || bytes > MAX_QUERY_BYTES {
                let mut used: Vec<Moment> = all.values().map(|series| series.used()).collect();
                used.sort_unstable();
                let limit = used.get(used.len() / 4).copied().unwrap_or_default();
                all.retain(|_, series| series.used() > limit);
                let bytes = all.keys().map(query_bytes).sum();
                self.query_bytes.store(bytes, Ordering::Relaxed);
            }
            match all.entry(query.clone()) {
                Entry::Occupied(entry) => Arc::clone(entry.get()),
                Entry::Vacant(entry) => {
                    self.query_bytes.fetch_add(query_bytes(query), Ordering::Relaxed);
                    Arc::clone(entry.insert(Arc::new(Series::new(millis))))
                }
            }
        });
        series.used.store(millis, Ordering::Relaxed);
        series
    }

    /// Answers learned before this are too old. The age is less than the refresh time, so that a
    /// change at the source is seen within that time, including the source's own listing.
    pub(crate) fn oldest_fresh(&self, path: &ObjectPath, now: Moment) -> Moment {
        let age = now.since(Moment::default());
        let fresh = age.saturating_sub(self.source.refresh_of(path).mul_f64(FRESH_PART));
        Moment::default().after(fresh).max(FIRST_MOMENT)
    }

    /// The timeline of `query`, if it is known and fresh `now` at each of `timestamps`. Does not
    /// wait.
    pub(crate) fn known_now(
        &self,
        query: &Query,
        times: &QueryTimes<'_>,
        now: Moment,
    ) -> Option<KnownTimeline> {
        let series = self.series(query, now);
        let timeline = series.timeline.load_full();
        let oldest = self.oldest_fresh(&query.path, now).max(series.changed());
        let open = open_at(&timeline, times, oldest);
        open.is_empty().then(|| series.known(timeline, false))
    }

    /// The timeline of `query`, known and fresh at each of `timestamps`.
    ///
    /// # Errors
    /// The error of the source, if no older answer is known.
    pub(crate) async fn known_at(
        self: &Arc<Self>,
        query: &Query,
        times: &QueryTimes<'_>,
    ) -> Result<KnownTimeline, CacheError> {
        self.known(query, |timeline, oldest| open_at(timeline, times, oldest)).await
    }

    /// The timeline of `query`, known and fresh over all of `range`.
    ///
    /// # Errors
    /// The error of the source, if no older answer is known.
    pub(crate) async fn known_over(
        self: &Arc<Self>,
        query: &Query,
        range: ValidityInterval,
    ) -> Result<KnownTimeline, CacheError> {
        let wanted = |timeline: &Timeline, oldest: Moment| {
            let wanted = timeline.steps(range).filter_map(|span| {
                let unknown = span.state == State::Unknown;
                let old = span.learned < oldest;
                (unknown || old).then_some((span.interval.from(), unknown))
            });
            wanted.take(PARALLEL_LOOK_UPS + 1).collect()
        };
        self.known(query, wanted).await
    }

    /// Asks the source until `wanted` returns no more timestamps that are unknown or too old.
    /// `wanted` returns the first of them, each with whether it is unknown.
    ///
    /// The first look-up is for one timestamp, since its answer may cover all others. If it covers
    /// only itself, an increasing number of look-ups run in parallel.
    async fn known(
        self: &Arc<Self>,
        query: &Query,
        wanted: impl Fn(&Timeline, Moment) -> Vec<(Timestamp, bool)>,
    ) -> Result<KnownTimeline, CacheError> {
        let now = self.clock.now();
        let series = self.series(query, now);
        // As of now: answers from here on count as fresh, however long this takes.
        let mut oldest = self.oldest_fresh(&query.path, now).max(series.changed());
        let mut stale = false;
        let (mut at_once, mut expected) = (1, None);
        let mut asked_in_all = 0;
        for _ in 0..MAX_LOOK_UPS {
            let timeline = series.timeline.load_full();
            let open = wanted(&timeline, oldest);
            let Some(&(next, _)) = open.first() else {
                return Ok(series.known(timeline, stale));
            };
            if asked_in_all >= MAX_VAIN_LOOK_UPS && timeline.versions() == 0 {
                return Err(CacheError::NothingFound { path: query.path.clone(), asked_in_all });
            }
            at_once = if expected == Some(next) { (at_once * 2).min(PARALLEL_LOOK_UPS) } else { 1 };
            expected = open.get(at_once).map(|(at, _)| *at);
            asked_in_all += open.len().min(at_once);
            let asked = open.into_iter().take(at_once);
            let asked =
                asked.map(|(at, unknown)| self.confirm(query, &series, at, unknown, oldest));
            let learned = futures::future::try_join_all(asked).await?;
            if learned.contains(&LookUpResult::Earlier) {
                (stale, oldest) = (true, Moment::default());
            }
        }
        Err(CacheError::TooManyLookUps { path: query.path.clone(), limit: MAX_LOOK_UPS })
    }

    /// Looks up; if an older answer is known, it is used when the source does not confirm it in
    /// time.
    async fn confirm(
        self: &Arc<Self>,
        query: &Query,
        series: &Arc<Series>,
        at: Timestamp,
        unknown: bool,
        oldest: Moment,
    ) -> Result<LookUpResult, CacheError> {
        let asked = self.look_up(query, series, at, oldest);
        if unknown {
            return asked.await;
        }
        match tokio::time::timeout(CONFIRM_TIME, asked).await {
            Ok(Err(error)) if error.kind().is_transient() => {
                tracing::warn!(path = %query.path, %at, %error, "serving an older answer");
                Ok(LookUpResult::Earlier)
            }
            Ok(learned) => learned,
            Err(_) => {
                let error = "the source did not answer in time";
                tracing::warn!(path = %query.path, %at, error, "serving an older answer");
                Ok(LookUpResult::Earlier)
            }
        }
    }

    pub(super) async fn look_up(
        self: &Arc<Self>,
        query: &Query,
        series: &Arc<Series>,
        at: Timestamp,
        oldest: Moment,
    ) -> Result<LookUpResult, CacheError> {
        // Another look-up may have finished since the timeline was read.
        let landed = || {
            let step = series.timeline.load().at(at);
            (step.state != State::Unknown && step.learned >= oldest)
                .then_some(Ok(LookUpResult::Now))
        };
        let work = || {
            let (catalog, series, query) = (Arc::clone(self), Arc::clone(series), query.clone());
            async move { catalog.ask(&query, &series, at).await }
        };
        match self.look_ups.join((query.clone(), at), landed, work).await {
            Ok(Ok(learned)) => Ok(learned),
            Ok(Err(error)) => Err(CacheError::LookUp { path: query.path.clone(), at, error }),
            Err(CallLost) => {
                Err(CacheError::Lost { what: format!("the look-up of {}", query.path) })
            }
        }
    }

    /// Asks the source, and counts the look-up. Its answer is not added to the timeline.
    ///
    /// # Errors
    /// The error of the source.
    pub(crate) async fn ask_source(
        &self,
        query: &Query,
        at: Timestamp,
        held: Option<&Arc<ObjectInfo>>,
    ) -> Result<Knowledge, SourceError> {
        self.counters.look_ups.add(1);
        let began = std::time::Instant::now();
        let span = tracing::info_span!("look_up", path = %query.path, %at);
        let answer = self.source.look_up(query, at, held).instrument(span).await;
        self.counters.timings.look_up.observe(began.elapsed());
        match answer {
            Ok(mut knowledge) => {
                self.tell(std::mem::take(&mut knowledge.problems));
                Ok(knowledge)
            }
            Err(error) => {
                self.counters.look_up_failures.add(1);
                Err(error)
            }
        }
    }

    /// The timeline of `query` as far as it is known, and the moment before which its answers are
    /// too old.
    pub(crate) fn known_timeline(&self, query: &Query) -> Option<(Arc<LinkedTimeline>, Moment)> {
        let series = self.series.read().get(query).map(Arc::clone)?;
        let oldest = self.oldest_fresh(&query.path, self.clock.now()).max(series.changed());
        Some((series.timeline.load_full(), oldest))
    }

    async fn ask(
        &self,
        query: &Query,
        series: &Arc<Series>,
        at: Timestamp,
    ) -> Result<LookUpResult, SourceError> {
        series.asked.store(at.as_millis(), Ordering::Relaxed);
        // As of before the look-up: a change during it may or may not be in the answer.
        let asked = self.clock.now().max(FIRST_MOMENT);
        let held = series.timeline.load().version_at(at).cloned();
        let knowledge = self.ask_source(query, at, held.as_ref()).await?;
        let (span, versions) = (knowledge.span, knowledge.versions);
        if knowledge.stale {
            // A stale answer fills gaps only; parts confirmed since then stay.
            let unknown = series.timeline.load().at(at).state == State::Unknown;
            if unknown {
                let long_ago = Moment::default();
                self.learn(query, series, span, &versions, long_ago);
            }
            return Ok(LookUpResult::Earlier);
        }
        self.learn(query, series, span, &versions, asked);
        Ok(LookUpResult::Now)
    }

    fn learn(
        &self,
        query: &Query,
        series: &Arc<Series>,
        span: ValidityInterval,
        versions: &[Arc<ObjectInfo>],
        learned: Moment,
    ) {
        if series.learn(span, versions, learned, || self.freshness(&query.path, series)) {
            self.add_to_publish(query, series);
        }
    }

    /// How long consumers may use the answers for a series without a call.
    pub(super) fn freshness(&self, path: &ObjectPath, series: &Series) -> Freshness {
        let fresh_for = self.source.refresh_of(path).mul_f64(FRESH_PART);
        Freshness {
            clock: self.clock.clone(),
            fresh_for,
            oldest: series.changed().max(FIRST_MOMENT),
        }
    }

    /// Records that a consumer used a series by itself, so that it is kept fresh like requested
    /// ones.
    pub(crate) fn used(&self, series: &Series) {
        let millis = self.clock.now().since(Moment::default()).as_millis();
        series.used.store(u64::try_from(millis).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Reports each skipped entry once.
    fn tell(&self, found: Vec<Problem>) {
        if found.is_empty() {
            return;
        }
        let mut told = self.problems.lock();
        for problem in found {
            if told.len() < MAX_PROBLEMS && !told.contains(&problem) {
                tracing::warn!(entry = %problem.entry, reason = %problem.reason, "entry skipped");
                self.counters.problems.add(1);
                told.insert(problem);
            }
        }
    }

    /// The entries skipped so far because they could not be read.
    pub(crate) fn problems(&self) -> Vec<Problem> {
        let told = self.problems.lock();
        let mut problems: Vec<Problem> = told.iter().cloned().collect();
        problems.sort_by(|a, b| a.entry.cmp(&b.entry));
        problems
    }

    /// The paths at and below `prefix`, sorted.
    ///
    /// # Errors
    /// The error of the source.
    pub(crate) async fn paths(&self, prefix: &str) -> Result<Vec<PathSummary>, CacheError> {
        let found = self.source.paths(prefix).await;
        found.map_err(|error| CacheError::Paths { prefix: prefix.to_owned(), error })
    }

    /// The paths at and below `prefix`, sorted, in parts.
    ///
    /// # Errors
    /// The error of the source, also within the parts.
    pub(crate) async fn path_parts(
        &self,
        prefix: &str,
    ) -> Result<impl Stream<Item = Result<Vec<PathSummary>, CacheError>> + use<>, CacheError> {
        let named = prefix.to_owned();
        let failed = move |error| CacheError::Paths { prefix: named.clone(), error };
        let parts = self.source.path_parts(prefix).await.map_err(&failed)?;
        Ok(parts.map_err(failed))
    }

    /// Removes links to objects that are gone.
    pub(crate) fn sweep(&self) {
        let all: Vec<Arc<Series>> = {
            let series = self.series.read();
            series.values().map(Arc::clone).collect()
        };
        all.iter().for_each(|series| series.timeline.load().sweep());
    }

    /// The version `id`, if it is effective anywhere on a known timeline.
    pub(crate) fn version(&self, id: ObjectId) -> Option<Arc<ObjectInfo>> {
        let series = self.series.read();
        series.values().find_map(|series| series.timeline.load().version_of(id).cloned())
    }

    /// The latest queries, at most `limit`, with their timelines; and the number of all queries.
    pub(crate) fn asked_last(&self, limit: usize) -> (Vec<(Query, Arc<LinkedTimeline>)>, usize) {
        let all = self.series.read();
        let mut asked: Vec<_> = all.iter().collect();
        if asked.len() > limit {
            asked.select_nth_unstable_by_key(limit, |(_, series)| std::cmp::Reverse(series.used()));
            asked.truncate(limit);
        }
        let known =
            asked.into_iter().map(|(query, series)| (query.clone(), series.timeline.load_full()));
        (known.collect(), all.len())
    }

    /// Forgets everything known about a path.
    pub(crate) fn forget(&self, path: &ObjectPath) {
        self.source.forget(path);
        let mut series = self.series.write();
        series.retain(|query, one| {
            let kept = query.path != *path;
            if !kept {
                one.close();
            }
            kept
        });
        self.query_bytes.store(series.keys().map(query_bytes).sum(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::CreationLimits;
    use crate::source::MemorySource;

    #[tokio::test]
    async fn queries_take_a_bounded_number_of_bytes() {
        let source = Arc::new(MemorySource::new());
        let catalog = Catalog::new(source, Clock::system(), Arc::default());
        for n in 0..2_000 {
            let metadata = [("k".to_owned(), format!("{n:05}{}", "v".repeat(60_000)))].into();
            let path = ObjectPath::new("A").unwrap();
            let query = Query { path, metadata, limits: CreationLimits::default() };
            catalog.series(&query, Moment::from_millis(n));
            let kept = catalog.series.read();
            let bytes: usize = kept.keys().map(query_bytes).sum();
            assert_eq!(bytes, catalog.query_bytes.load(Ordering::Relaxed));
            assert!(bytes <= MAX_QUERY_BYTES, "{bytes}");
            assert!(kept.contains_key(&query));
        }
        catalog.forget(&ObjectPath::new("A").unwrap());
        assert_eq!(catalog.query_bytes.load(Ordering::Relaxed), 0);
    }
}
