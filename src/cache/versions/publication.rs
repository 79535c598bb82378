//! The published part of one timeline, for look-ups by attached consumers.
//!
//! ```text
//!  learn: next timeline ──all that is published is right in it──▶ confirmed until then
//!                     └─ something is not ──▶ withdrawn, before a request sees the next timeline
//! ```
//!
//! The service answers from the timeline, and consumers from its snapshot. So a snapshot is
//! withdrawn under the lock under which the timeline is replaced. Under the same lock the directory
//! names it, only while the timeline is the one it was made from.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::linked_timeline::LinkedTimeline;
use crate::cache::memory::object::Resident;
use crate::clock::{Clock, Moment};
use crate::index::{State, Timeline};
use crate::interval::ValidityInterval;
use crate::object::ObjectId;
use crate::shm::{BlockLocation, DirectoryEntry, PublishedSnapshot, UseSample, monotonic_millis};

/// Tolerance for two clocks that are read one after the other, each rounded to a millisecond.
const ROUNDING_MILLIS: u64 = 2;

/// How long the answers of the source for a path may be used.
#[derive(Debug, Clone)]
pub(crate) struct Freshness {
    pub(crate) clock: Clock,
    pub(crate) fresh_for: Duration,
    /// Spans learned before this moment are not published: they are unconfirmed, or have changed.
    pub(crate) oldest: Moment,
}

impl Freshness {
    /// End of the use of an answer that was learned at `learned`, in milliseconds of
    /// CLOCK_MONOTONIC; 0: not usable.
    fn confirmed_until(&self, learned: Moment) -> u64 {
        let age = self.clock.now().since(learned);
        let left = self.fresh_for.saturating_sub(age).as_millis();
        let left = u64::try_from(left).unwrap_or(u64::MAX).saturating_sub(ROUNDING_MILLIS);
        match learned < self.oldest || left == 0 {
            true => 0,
            false => monotonic_millis().saturating_add(left),
        }
    }
}

/// A snapshot that counts towards the bytes of all snapshots.
#[derive(Debug)]
pub(crate) struct CountedSnapshot {
    snapshot: PublishedSnapshot,
    all_bytes: Arc<AtomicU64>,
}

impl CountedSnapshot {
    pub(crate) fn new(snapshot: PublishedSnapshot, all_bytes: &Arc<AtomicU64>) -> Self {
        all_bytes.fetch_add(snapshot.charged_bytes(), Ordering::Relaxed);
        Self { snapshot, all_bytes: Arc::clone(all_bytes) }
    }
}

impl Deref for CountedSnapshot {
    type Target = PublishedSnapshot;

    fn deref(&self) -> &PublishedSnapshot {
        &self.snapshot
    }
}

impl Drop for CountedSnapshot {
    fn drop(&mut self) {
        self.all_bytes.fetch_sub(self.snapshot.charged_bytes(), Ordering::Relaxed);
    }
}

/// One span of a snapshot, as in the timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PublishedSpan {
    pub(crate) interval: ValidityInterval,
    pub(crate) version: u32,
    pub(crate) id: ObjectId,
    /// Generation of the object's block.
    pub(crate) generation: u64,
}

/// A snapshot and its entry in the directory. Dropping it makes consumers ask the service.
#[derive(Debug)]
pub(crate) struct Publication {
    // The entry is dropped first: then no look-up finds the snapshot any more.
    entry: DirectoryEntry,
    snapshot: CountedSnapshot,
    /// The spans refer to versions by their numbers in this timeline.
    timeline: Arc<LinkedTimeline>,
    spans: Arc<[PublishedSpan]>,
    /// Those of the snapshot before, which consumers may still speak of.
    earlier_spans: Arc<[PublishedSpan]>,
    is_named: bool,
}

/// A snapshot that no consumer sees yet.
#[derive(Debug)]
pub(crate) struct Draft {
    pub(crate) snapshot: CountedSnapshot,
    pub(crate) timeline: Arc<LinkedTimeline>,
    pub(crate) spans: Arc<[PublishedSpan]>,
}

impl Draft {
    /// Whether each of its spans is right in `current` too.
    pub(crate) fn is_right_in(&self, current: &Timeline) -> bool {
        all_right(&self.spans, current)
    }
}

fn all_right(spans: &[PublishedSpan], timeline: &Timeline) -> bool {
    spans.iter().all(|span| learned_in(timeline, span).is_some())
}

impl Publication {
    /// A publication that the directory does not name yet.
    pub(crate) fn new(entry: DirectoryEntry, draft: Draft) -> Self {
        let Draft { snapshot, timeline, spans } = draft;
        Self { entry, snapshot, timeline, spans, earlier_spans: Arc::default(), is_named: false }
    }

    /// Replaces the snapshot by a newer one, which is right in `current`. Returns the earlier one,
    /// to be dropped outside the lock.
    pub(crate) fn replace(
        &mut self,
        draft: Draft,
        current: &Timeline,
        freshness: &Freshness,
    ) -> CountedSnapshot {
        let Draft { snapshot, timeline, spans } = draft;
        self.timeline = timeline;
        self.earlier_spans = std::mem::replace(&mut self.spans, spans);
        let before = std::mem::replace(&mut self.snapshot, snapshot);
        self.is_named = false;
        self.confirm(current, freshness);
        before
    }

    /// The number of its directory entry.
    pub(crate) fn entry(&self) -> u32 {
        self.entry.index()
    }

    /// The location of its snapshot.
    pub(crate) fn location(&self) -> BlockLocation {
        self.snapshot.location()
    }

    /// Bytes of shared memory that it takes.
    pub(crate) fn charged_bytes(&self) -> u64 {
        self.snapshot.charged_bytes()
    }

    /// Whether consumers find it.
    pub(crate) fn is_named(&self) -> bool {
        self.is_named
    }

    /// Whether it is named and has the same spans as a draft.
    pub(crate) fn says(&self, spans: &[PublishedSpan]) -> bool {
        self.is_named && *self.spans == *spans
    }

    /// The span that a consumer says it has used, if it is one of this or of the snapshot before; and
    /// the object, if it is still linked.
    pub(crate) fn used(
        &self,
        sample: &UseSample,
    ) -> Option<(PublishedSpan, Option<Arc<Resident>>)> {
        let of = |spans: &[PublishedSpan]| {
            let span = spans.get(sample.span as usize).copied();
            span.filter(|span| span.generation == sample.generation)
        };
        match of(&self.spans) {
            Some(span) => Some((span, self.timeline.linked(span.version))),
            None => Some((of(&self.earlier_spans)?, None)),
        }
    }

    /// Whether each of its spans is right in `next` too. Takes one pass over them.
    pub(crate) fn is_right_in(&self, next: &Timeline) -> bool {
        all_right(&self.spans, next)
    }

    /// Withdraws it: the directory names it no more.
    pub(crate) fn withdraw(&mut self) {
        if self.is_named {
            self.entry.withdraw();
            self.is_named = false;
        }
    }

    /// Wakes consumers that wait for a change of the path. The next answers of the
    /// service must be visible before this.
    pub(crate) fn tell_changed(&self) {
        self.entry.tell_changed();
    }

    /// Confirms the spans that are right in `timeline`, each until the end of its freshness, and
    /// names the snapshot.
    pub(crate) fn confirm(&mut self, timeline: &Timeline, freshness: &Freshness) {
        if timeline.is_whole() {
            let first = self.spans.first().and_then(|span| learned_in(timeline, span));
            let until = first.map_or(0, |learned| freshness.confirmed_until(learned));
            self.snapshot.confirm(until);
        } else {
            self.snapshot.confirm(0);
            for (number, span) in self.spans.iter().enumerate() {
                let learned = learned_in(timeline, span).unwrap_or_default();
                self.snapshot.confirm_span(number, freshness.confirmed_until(learned));
            }
        }
        if !self.is_named {
            self.entry.name(self.snapshot.name());
            self.is_named = true;
        }
    }
}

/// Whether the answer of a service that knows `next` differs anywhere in `range` from that of one that
/// knows `known`. A version where none was known is no change.
pub(crate) fn differs(known: &Timeline, next: &Timeline, range: ValidityInterval) -> bool {
    let answer = |timeline: &Timeline, state| match state {
        State::Version(version) => Some(Some(timeline.id(version))),
        State::Absent => Some(None),
        State::Unknown => None,
    };
    let (mut before, mut after) = (known.steps(range), next.steps(range));
    let (mut left, mut right) = (before.next(), after.next());
    while let (Some(old), Some(new)) = (left, right) {
        if let (Some(old), Some(new)) = (answer(known, old.state), answer(next, new.state))
            && old != new
        {
            return true;
        }
        let (old_until, new_until) = (old.interval.until(), new.interval.until());
        if old_until <= new_until {
            left = before.next();
        }
        if new_until <= old_until {
            right = after.next();
        }
    }
    false
}

/// When the oldest part of a span was learned; `None` unless its version is effective in all of it.
fn learned_in(timeline: &Timeline, span: &PublishedSpan) -> Option<Moment> {
    let mut oldest = None;
    for step in timeline.steps(span.interval) {
        match step.state {
            State::Version(version) if timeline.id(version) == span.id => {
                oldest =
                    Some(oldest.map_or(step.learned, |oldest: Moment| oldest.min(step.learned)));
            }
            _ => return None,
        }
    }
    oldest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interval::Timestamp;
    use crate::object::{ObjectInfo, ObjectPath};

    fn interval(from: i64, until: i64) -> ValidityInterval {
        let [from, until] = [from, until].map(Timestamp::from_millis);
        ValidityInterval::new(from, until).unwrap()
    }

    fn version(n: u8, validity: ValidityInterval, created: i64) -> Arc<ObjectInfo> {
        Arc::new(ObjectInfo {
            path: ObjectPath::new("A/B").unwrap(),
            id: ObjectId::from_bytes([n; 16]),
            validity,
            created: Timestamp::from_millis(created),
            size_bytes: None,
            md5: None,
            metadata: Default::default(),
        })
    }

    fn span(n: u8, interval: ValidityInterval) -> PublishedSpan {
        PublishedSpan { interval, version: 0, id: ObjectId::from_bytes([n; 16]), generation: 1 }
    }

    #[test]
    fn a_span_is_right_where_its_version_decides_all_over_it() {
        let first = version(1, interval(0, 100), 1);
        let at = Moment::from_millis;
        let timeline =
            Timeline::unknown().learn(interval(0, 100), std::slice::from_ref(&first), at(5));
        assert_eq!(learned_in(&timeline, &span(1, interval(0, 100))), Some(at(5)));
        assert_eq!(learned_in(&timeline, &span(2, interval(0, 100))), None);
        // A part is learned again: the older part limits how long the whole span is fresh.
        let again = timeline.learn(interval(40, 60), std::slice::from_ref(&first), at(9));
        assert_eq!(learned_in(&again, &span(1, interval(0, 100))), Some(at(5)));
        // A newer version is effective in the middle.
        let newer = version(2, interval(50, 60), 2);
        let changed = again.learn(interval(0, 100), &[first, newer], at(12));
        assert_eq!(learned_in(&changed, &span(1, interval(0, 100))), None);
        assert_eq!(learned_in(&changed, &span(1, interval(0, 50))), Some(at(12)));
        assert_eq!(learned_in(&changed, &span(2, interval(50, 60))), Some(at(12)));
    }

    #[test]
    fn timelines_differ_where_another_version_decides_and_not_where_nothing_was_known() {
        let all = interval(0, 100);
        let at = Moment::from_millis;
        let [first, second] = [1, 2].map(|n| version(n, all, i64::from(n)));
        let nothing = Timeline::unknown();
        let one = nothing.learn(all, std::slice::from_ref(&first), at(5));
        assert!(!differs(&nothing, &one, all), "nothing was known");
        let again = one.learn(interval(20, 40), std::slice::from_ref(&first), at(9));
        assert!(!differs(&one, &again, all), "it was confirmed in a part");
        let two = again.learn(interval(50, 60), &[first, second], at(12));
        assert!(differs(&again, &two, all) && differs(&two, &again, all));
        assert!(!differs(&again, &two, interval(0, 50)));
        assert!(!differs(&again, &two, interval(60, 100)));
        assert!(differs(&again, &two, interval(59, 60)));
        let gone = two.learn(interval(90, 100), &[], at(13));
        assert!(differs(&two, &gone, all), "nothing is valid there any more");
    }

    #[test]
    fn answers_that_are_unconfirmed_or_too_old_are_not_confirmed() {
        let clock = Clock::manual(Timestamp::from_millis(0));
        clock.advance(Duration::from_secs(10));
        let oldest = Moment::from_millis(1);
        let freshness = |fresh_for| Freshness { clock: clock.clone(), fresh_for, oldest };
        let second = freshness(Duration::from_secs(1));
        assert_eq!(second.confirmed_until(Moment::default()), 0);
        assert_eq!(second.confirmed_until(Moment::from_millis(9_000)), 0);
        let now = monotonic_millis();
        let until = second.confirmed_until(Moment::from_millis(9_500));
        assert!((now + 400..now + 5_000).contains(&until), "{until} at {now}");
        let changed = Freshness { oldest: Moment::from_millis(9_600), ..second };
        assert_eq!(changed.confirmed_until(Moment::from_millis(9_500)), 0);
        let forever = freshness(Duration::MAX);
        assert!(forever.confirmed_until(Moment::from_millis(1)) > now + 1_000_000);
    }
}
