//! Pages of the effective spans of a query: any part of a timeline, without keeping it.
//!
//! ```text
//!  at ──▶ known timeline, fresh at `at`? ──yes──▶ its steps as far as they are fresh
//!            │ no
//!            ▼
//!          Source::look_up ──▶ a window of versions ──▶ its spans      at = end of the window
//! ```
//!
//! Answers of the source are not added to the timeline of the query: a page costs the memory of a
//! page, even if the path has a million versions.

use std::time::{Duration, Instant};

use crate::cache::error::CacheError;
use crate::cache::versions::catalog::Catalog;
use crate::cache::yielder::WorkClock;
use crate::clock::Moment;
use crate::error::Coded as _;
use crate::index::{Span, State, Timeline};
use crate::interval::{Timestamp, ValidityInterval};
use crate::object::{ObjectId, Query};

/// A page ends when its look-ups have taken this long.
const PAGE_TIME: Duration = Duration::from_millis(400);
/// Maximum number of look-ups in a row whose answers cover one millisecond without a version.
const MAX_MOMENTS: usize = 31;

/// Time in which one version is effective.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct EffectiveSpan {
    pub(crate) interval: ValidityInterval,
    pub(crate) id: ObjectId,
}

/// The part of the spans that a page lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PageRange {
    pub(crate) range: ValidityInterval,
    /// Maximum number of spans.
    pub(crate) limit: usize,
    /// The last spans of the range instead of the first.
    pub(crate) latest: bool,
}

/// Effective spans in ascending order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct SpanPage {
    pub(crate) spans: Vec<EffectiveSpan>,
    /// The rest of the range begins here, or ends here if the page has its last spans.
    pub(crate) next: Option<Timestamp>,
    /// Some spans are of an earlier answer that the source could not confirm.
    pub(crate) stale: bool,
}

/// A stretch of time in which all spans are known.
struct Stretch {
    interval: ValidityInterval,
    spans: Vec<EffectiveSpan>,
    stale: bool,
}

/// A page in the order in which it is listed.
struct Listing {
    spans: Vec<EffectiveSpan>,
    limit: usize,
    latest: bool,
}

impl Listing {
    /// Adds the spans of a stretch. Returns the border at which the page is full, if it is.
    fn add(&mut self, stretch: Vec<EffectiveSpan>) -> Option<Timestamp> {
        match self.latest {
            false => stretch.into_iter().find_map(|span| self.push(span)),
            true => stretch.into_iter().rev().find_map(|span| self.push(span)),
        }
    }

    fn push(&mut self, span: EffectiveSpan) -> Option<Timestamp> {
        if let Some(last) = self.spans.last_mut().filter(|last| last.id == span.id) {
            // The parts of one span at the border of two stretches.
            let (first, second) = if self.latest {
                (span.interval, last.interval)
            } else {
                (last.interval, span.interval)
            };
            if first.until() == second.from()
                && let Ok(joined) = ValidityInterval::new(first.from(), second.until())
            {
                last.interval = joined;
                return None;
            }
        }
        if self.spans.len() == self.limit {
            return Some(if self.latest { span.interval.until() } else { span.interval.from() });
        }
        self.spans.push(span);
        None
    }

    fn into_page(mut self, next: Option<Timestamp>, stale: bool) -> SpanPage {
        if self.latest {
            self.spans.reverse();
        }
        SpanPage { spans: self.spans, next, stale }
    }
}

/// Lists a page of the effective spans of `query`.
///
/// # Errors
/// The error of the source, if no earlier answer is known.
pub(crate) async fn span_page(
    catalog: &Catalog,
    query: &Query,
    PageRange { range, limit, latest }: PageRange,
) -> Result<SpanPage, CacheError> {
    let began = Instant::now();
    let mut turns = WorkClock::new();
    let mut listing = Listing { spans: Vec::new(), limit: limit.max(1), latest };
    let (mut rest, mut stale, mut moments) = (Some(range), false, 0);
    while let Some(open) = rest {
        let stretch = stretch(catalog, query, open, latest, limit).await?;
        stale |= stretch.stale;
        turns.take(1 + 4 * stretch.spans.len()).await;
        let is_moment = stretch.interval.until().as_millis()
            == stretch.interval.from().as_millis().saturating_add(1);
        moments = if is_moment && stretch.spans.is_empty() { moments + 1 } else { 0 };
        if moments >= MAX_MOMENTS && listing.spans.is_empty() {
            let path = query.path.clone();
            return Err(CacheError::NothingFound { path, asked_in_all: moments });
        }
        rest = match latest {
            false => ValidityInterval::new(stretch.interval.until(), open.until()).ok(),
            true => ValidityInterval::new(open.from(), stretch.interval.from()).ok(),
        };
        let next = rest.map(|rest| if latest { rest.until() } else { rest.from() });
        if let Some(full) = listing.add(stretch.spans) {
            return Ok(listing.into_page(Some(full), stale));
        }
        if moments >= MAX_MOMENTS || began.elapsed() >= PAGE_TIME {
            return Ok(listing.into_page(next, stale));
        }
    }
    Ok(listing.into_page(None, stale))
}

/// The spans around the first, or the last, millisecond of `open`, cut at it.
async fn stretch(
    catalog: &Catalog,
    query: &Query,
    open: ValidityInterval,
    latest: bool,
    limit: usize,
) -> Result<Stretch, CacheError> {
    let at = match latest {
        false => open.from(),
        true => Timestamp::from_millis(open.until().as_millis() - 1),
    };
    let known = catalog.known_timeline(query);
    let from_known = |oldest: Moment| {
        let (timeline, _) = known.as_ref().filter(|_| !latest)?;
        known_steps(timeline, open, oldest, limit)
    };
    if let Some((_, oldest)) = &known
        && let Some((interval, spans)) = from_known(*oldest)
    {
        return Ok(Stretch { interval, spans, stale: false });
    }
    let held = known.as_ref().and_then(|(timeline, _)| timeline.version_at(at));
    let knowledge = match catalog.ask_source(query, at, held).await {
        Ok(knowledge) => knowledge,
        Err(error) => match from_known(Moment::default()) {
            Some((interval, spans)) if error.kind().is_transient() => {
                return Ok(Stretch { interval, spans, stale: true });
            }
            _ => {
                return Err(CacheError::LookUp { path: query.path.clone(), at, error });
            }
        },
    };
    // The span of an answer contains the requested time.
    let interval = knowledge.span.intersection(open).unwrap_or(open);
    let window = Timeline::unknown().learn(interval, &knowledge.versions, Moment::default());
    let spans = window.spans(interval).iter().filter_map(|span| effective(&window, span)).collect();
    Ok(Stretch { interval, spans, stale: knowledge.stale })
}

/// The steps of a timeline from the begin of `open` on, as far as they were learned since `oldest`:
/// their time, and their spans. A few more than `limit`.
fn known_steps(
    timeline: &Timeline,
    open: ValidityInterval,
    oldest: Moment,
    limit: usize,
) -> Option<(ValidityInterval, Vec<EffectiveSpan>)> {
    let is_known = |span: &Span| span.state != State::Unknown && span.learned >= oldest;
    let (mut spans, mut until) = (Vec::new(), open.from());
    for step in timeline.steps(open).take_while(is_known).take(limit.saturating_mul(2)) {
        spans.extend(effective(timeline, &step));
        until = step.interval.until();
    }
    let interval = ValidityInterval::new(open.from(), until).ok()?;
    Some((interval, spans))
}

fn effective(timeline: &Timeline, span: &Span) -> Option<EffectiveSpan> {
    match span.state {
        State::Version(index) => {
            Some(EffectiveSpan { interval: span.interval, id: timeline.id(index) })
        }
        State::Absent | State::Unknown => None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use async_trait::async_trait;
    use proptest::prelude::*;

    use super::*;
    use crate::cache::versions::query_times::QueryTimes;
    use crate::clock::Clock;
    use crate::index::Timestamps;
    use crate::object::{ObjectInfo, ObjectPath};
    use crate::source::{Body, Knowledge, PathSummary, Source, SourceError, SourceHealth};

    /// Answers with windows of `window` ms, or of one ms where it has nothing.
    #[derive(Debug)]
    struct Windows {
        versions: Vec<Arc<ObjectInfo>>,
        window: i64,
        moments: bool,
        is_down: AtomicBool,
        asked: AtomicUsize,
    }

    #[async_trait]
    impl Source for Windows {
        fn url(&self) -> &str {
            "windows:"
        }

        fn refresh(&self) -> Duration {
            Duration::ZERO
        }

        async fn look_up(
            &self,
            query: &Query,
            at: Timestamp,
            _held: Option<&Arc<ObjectInfo>>,
        ) -> Result<Knowledge, SourceError> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            if self.is_down.load(Ordering::Relaxed) {
                let (url, what, reason) = Default::default();
                return Err(SourceError::Down { url, what, reason });
            }
            let at = at.as_millis();
            let begin = at.div_euclid(self.window).saturating_mul(self.window);
            let is_in = |from: i64, until: i64| {
                self.versions
                    .iter()
                    .any(|one| one.validity.intersection(interval(from, until)).is_some())
            };
            let until = begin.saturating_add(self.window);
            let span = match is_in(begin, until) {
                true => interval(begin, until),
                false if self.moments => interval(at, at + 1),
                false if at < -100 => interval(i64::MIN, -100),
                false if at >= 200 => interval(200, i64::MAX),
                false => interval(begin, until),
            };
            let versions = self.versions.iter().filter(|one| query.matches(one)).cloned().collect();
            Ok(Knowledge { span, versions, problems: Vec::new(), stale: false })
        }

        async fn fetch(&self, _: &ObjectInfo, _: &mut dyn Body) -> Result<(), SourceError> {
            unreachable!("a timeline loads nothing")
        }

        fn health(&self) -> Vec<SourceHealth> {
            Vec::new()
        }

        async fn paths(&self, _: &str) -> Result<Vec<PathSummary>, SourceError> {
            Ok(Vec::new())
        }
    }

    fn interval(from: i64, until: i64) -> ValidityInterval {
        let [from, until] = [from, until].map(Timestamp::from_millis);
        ValidityInterval::new(from, until).unwrap()
    }

    fn path() -> ObjectPath {
        ObjectPath::new("A/B").unwrap()
    }

    fn versions(plans: &[(i64, i64, i64)]) -> Vec<Arc<ObjectInfo>> {
        let version = |(n, &(from, length, created)): (usize, &(i64, i64, i64))| {
            Arc::new(ObjectInfo {
                path: path(),
                id: ObjectId::from_bytes([n as u8; 16]),
                validity: interval(from, from + length),
                created: Timestamp::from_millis(created),
                size_bytes: None,
                md5: None,
                metadata: Default::default(),
            })
        };
        plans.iter().enumerate().map(version).collect()
    }

    fn catalog(source: &Arc<Windows>) -> Arc<Catalog> {
        Arc::new(Catalog::new(Arc::clone(source) as _, Clock::system(), Arc::default()))
    }

    /// All pages, in ascending order, with the parts of one span joined.
    async fn all(catalog: &Catalog, mut part: PageRange) -> Vec<(i64, i64, ObjectId)> {
        let mut pages = Vec::new();
        loop {
            let page = span_page(catalog, &Query::all(path()), part).await.unwrap();
            assert!(page.spans.len() <= part.limit && !page.stale);
            assert!(page.next.is_none() || !page.spans.is_empty(), "no page is empty here");
            pages.push(page.spans);
            let (from, until) = (part.range.from(), part.range.until());
            part.range = match (page.next, part.latest) {
                (None, _) => break,
                (Some(next), false) => ValidityInterval::new(next, until).unwrap(),
                (Some(next), true) => ValidityInterval::new(from, next).unwrap(),
            };
        }
        if part.latest {
            pages.reverse();
        }
        let mut spans: Vec<(i64, i64, ObjectId)> = Vec::new();
        for span in pages.into_iter().flatten() {
            let (from, until) =
                (span.interval.from().as_millis(), span.interval.until().as_millis());
            match spans.last_mut() {
                Some(last) if last.1 == from && last.2 == span.id => last.1 = until,
                _ => spans.push((from, until, span.id)),
            }
        }
        spans
    }

    proptest! {
        #[test]
        fn pages_in_either_order_are_the_timeline_cut_in_pieces(
            plans in proptest::collection::vec((-50..150_i64, 1..60_i64, 0..6_i64), 1..20),
            window in 2..70_i64,
            limit in 1..9_usize,
            latest in any::<bool>(),
            range in proptest::option::of((-60..200_i64, 1..90_i64)),
            known in proptest::option::of(-60..200_i64),
        ) {
            let versions = versions(&plans);
            let range = range.map_or(ValidityInterval::ALL, |(from, length)| interval(from, from + length));
            let whole = Timeline::unknown().learn(ValidityInterval::ALL, &versions, Moment::default());
            let expected: Vec<_> = whole.spans(range).iter().filter_map(|span| {
                let found = effective(&whole, span)?;
                Some((found.interval.from().as_millis(), found.interval.until().as_millis(), found.id))
            }).collect();
            let source = Arc::new(Windows {
                versions,
                window,
                moments: false,
                is_down: AtomicBool::new(false),
                asked: AtomicUsize::new(0),
            });
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let listed = runtime.block_on(async {
                let catalog = catalog(&source);
                if let Some(at) = known {
                    let at = Timestamps::new(vec![at], None);
                    catalog.known_at(&Query::all(path()), &QueryTimes::All(&at)).await.unwrap();
                }
                all(&catalog, PageRange { range, limit, latest }).await
            });
            prop_assert_eq!(listed, expected);
        }
    }

    fn source(plans: &[(i64, i64, i64)], window: i64, moments: bool) -> Arc<Windows> {
        let (versions, is_down, asked) =
            (versions(plans), AtomicBool::new(false), AtomicUsize::new(0));
        Arc::new(Windows { versions, window, moments, is_down, asked })
    }

    #[tokio::test]
    async fn one_span_of_many_costs_one_look_up_and_keeps_nothing() {
        let plans: Vec<_> = (0..100).map(|n| (n * 10, 10, n)).collect();
        let source = source(&plans, 100, false);
        let catalog = catalog(&source);
        let part =
            |from, until, latest| PageRange { range: interval(from, until), limit: 1, latest };
        let query = Query::all(path());
        let after = span_page(&catalog, &query, part(500, 1000, false)).await.unwrap();
        assert_eq!((after.spans[0].interval, after.spans.len()), (interval(500, 510), 1));
        let before = span_page(&catalog, &query, part(0, 500, true)).await.unwrap();
        assert_eq!((before.spans[0].interval, before.spans.len()), (interval(490, 500), 1));
        assert_eq!(source.asked.load(Ordering::Relaxed), 2);
        assert!(catalog.known_timeline(&query).is_none(), "the answers are not kept");
    }

    #[tokio::test]
    async fn while_the_source_is_down_known_spans_are_listed_as_stale() {
        let source = source(&[(0, 10, 1)], 100, false);
        let catalog = catalog(&source);
        let (query, at) = (Query::all(path()), Timestamps::new(vec![5], None));
        catalog.known_at(&query, &QueryTimes::All(&at)).await.unwrap();
        source.is_down.store(true, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(5)).await;
        let part = |until| PageRange { range: interval(5, until), limit: 9, latest: false };
        let page = span_page(&catalog, &query, part(50)).await.unwrap();
        assert!(page.stale && page.next.is_none());
        assert_eq!(
            page.spans.iter().map(|span| span.interval).collect::<Vec<_>>(),
            [interval(5, 10)]
        );
        assert!(span_page(&catalog, &query, part(500)).await.is_err(), "the rest is not known");
    }

    #[tokio::test]
    async fn a_path_that_is_known_only_by_the_millisecond_is_given_up() {
        let source = source(&[(5, 3, 1)], 1, true);
        let part = |from| PageRange { range: interval(from, i64::MAX), limit: 9, latest: false };
        let (catalog, query) = (catalog(&source), Query::all(path()));
        let page = span_page(&catalog, &query, part(0)).await.unwrap();
        assert_eq!(page.spans[0].interval, interval(5, 8));
        let next = page.next.unwrap().as_millis();
        let nothing = span_page(&catalog, &query, part(next)).await.unwrap_err();
        assert!(matches!(nothing, CacheError::NothingFound { .. }), "{nothing}");
    }
}
