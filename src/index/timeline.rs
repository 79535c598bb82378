//! Timeline of one query: the effective version at any time, as far as it is known.

use std::collections::BinaryHeap;
use std::sync::Arc;

use super::search::before;
use super::version_list::VersionList;
use crate::clock::Moment;
use crate::interval::{Timestamp, ValidityInterval};
use crate::object::{ObjectId, ObjectInfo};

/// State of a timeline at one time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// This version is effective: an index for [`Timeline::version`].
    Version(u32),
    /// It is known that no version is valid.
    Absent,
    /// The effective version is not known; the source must be asked.
    Unknown,
}

/// State of a timeline at one time, and when it was learned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// The state.
    pub state: State,
    /// When the state was learned from the source.
    pub learned: Moment,
}

/// A span of time with one state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// The span.
    pub interval: ValidityInterval,
    /// The state in it.
    pub state: State,
    /// When the state was learned from the source.
    pub learned: Moment,
}

/// The exact, non-overlapping effective spans of the versions of one query.
///
/// ```text
///  firsts    MIN           a             b
///  segments  [steps … a)   [steps … b)   [steps … MAX]      each at most SEGMENT_STEPS long
/// ```
///
/// A step function over all of i64. It is immutable: changes make a new timeline, so readers need
/// no lock. The new timeline shares all unchanged segments, so a change costs as much as the
/// segments that it touches, independent of the length of the timeline.
///
/// The very last millisecond, [`Timestamp::MAX`], is inside no half-open interval: no version is
/// ever valid there. It has its own step with the state [`State::Absent`].
#[derive(Debug, Clone)]
pub struct Timeline {
    /// Start of each segment; the first one is the lowest i64.
    firsts: Vec<i64>,
    segments: Vec<Arc<StepSegment>>,
    versions: VersionList,
    whole: bool,
}

/// A part of the step function: `steps[n]` begins at `starts[n]`.
#[derive(Debug, Default)]
pub(super) struct StepSegment {
    pub(super) starts: Vec<i64>,
    pub(super) steps: Vec<Step>,
}

impl StepSegment {
    fn push(&mut self, start: i64, step: Step) {
        if self.starts.last() == Some(&start) {
            // The last millisecond keeps its own step.
            self.starts.pop();
            self.steps.pop();
        }
        if self.steps.last() != Some(&step) {
            self.starts.push(start);
            self.steps.push(step);
        }
    }

    /// Splits the segment into parts that are cheap to copy.
    fn split(mut self) -> Vec<Arc<Self>> {
        if self.starts.len() <= SEGMENT_STEPS {
            self.starts.shrink_to_fit();
            self.steps.shrink_to_fit();
            return vec![Arc::new(self)];
        }
        let parts = self.starts.len().div_ceil(SEGMENT_STEPS);
        let length = self.starts.len().div_ceil(parts);
        let parts = self.starts.chunks(length).zip(self.steps.chunks(length));
        let part = |(starts, steps): (&[i64], &[Step])| {
            Arc::new(Self { starts: starts.to_vec(), steps: steps.to_vec() })
        };
        parts.map(part).collect()
    }
}

/// Maximum steps of a segment. Tests use many short ones.
const SEGMENT_STEPS: usize = if cfg!(test) { 8 } else { 4096 };
/// The list of versions is compacted when it is longer than twice the number of steps plus this
/// number. Superseded versions, which are effective nowhere, are then removed.
const SPARE_VERSIONS: usize = 1024;

impl Timeline {
    /// A timeline without knowledge.
    pub fn unknown() -> Self {
        let never = Moment::default();
        let segment = StepSegment {
            starts: vec![i64::MIN, i64::MAX],
            steps: vec![
                Step { state: State::Unknown, learned: never },
                Step { state: State::Absent, learned: Moment::from_millis(u64::MAX) },
            ],
        };
        Self {
            firsts: vec![i64::MIN],
            segments: vec![Arc::new(segment)],
            versions: VersionList::default(),
            whole: false,
        }
    }

    /// This timeline with its knowledge in `span` replaced. Several `versions` can contain a time
    /// in `span`: the one with the greatest [`rank`](ObjectInfo::rank) is effective there. If none
    /// contains it, no version is valid.
    ///
    /// Takes O(n log n) for `versions`, and copies the segments that `span` touches. A version that
    /// was known before keeps its `Arc` and its number.
    #[must_use]
    pub fn learn(
        &self,
        span: ValidityInterval,
        versions: &[Arc<ObjectInfo>],
        learned: Moment,
    ) -> Self {
        let (from, until) = (span.from().as_millis(), span.until().as_millis());
        let (first, last) = (self.segment_of(from), self.segment_of(until));
        let (before, after) = (&self.segments[first], &self.segments[last]);
        let mut list = self.versions.clone();
        let mut changed = StepSegment::default();
        for (start, step) in before.starts.iter().zip(&before.steps) {
            if *start < from {
                changed.push(*start, *step);
            }
        }
        let mut numbers: Vec<Option<u32>> = vec![None; versions.len()];
        effective(span, versions, |start, version| {
            let mut number =
                |place: usize| *numbers[place].get_or_insert_with(|| list.number(&versions[place]));
            let state = version.map_or(State::Absent, |place| State::Version(number(place)));
            changed.push(start, Step { state, learned });
        });
        let first_after = after.starts.partition_point(|&start| start <= until);
        changed.push(until, after.steps[first_after - 1]);
        for place in first_after..after.starts.len() {
            changed.push(after.starts[place], after.steps[place]);
        }
        list.shrink_to_fit();
        let changed = changed.split();
        let kept = first + self.segments.len() - (last + 1);
        let mut segments = Vec::with_capacity(kept + changed.len());
        segments.extend(self.segments[..first].iter().map(Arc::clone));
        segments.extend(changed);
        segments.extend(self.segments[last + 1..].iter().map(Arc::clone));
        let firsts = segments.iter().map(|segment| segment.starts[0]).collect();
        let steps: usize = segments.iter().map(|segment| segment.starts.len()).sum();
        let whole = span == ValidityInterval::ALL;
        let next = Self { firsts, segments, versions: list, whole };
        if next.versions.len() > 2 * steps + SPARE_VERSIONS { next.compact() } else { next }
    }

    /// This timeline without versions that are effective nowhere.
    fn compact(self) -> Self {
        let mut versions = VersionList::default();
        let mut kept: Vec<Option<u32>> = vec![None; self.versions.len()];
        let mut renumbered = |step: &Step| {
            let State::Version(old) = step.state else { return *step };
            let new =
                kept[old as usize].get_or_insert_with(|| versions.number(self.versions.info(old)));
            Step { state: State::Version(*new), ..*step }
        };
        let segments = self.segments.iter().map(|segment| {
            let steps = segment.steps.iter().map(&mut renumbered).collect();
            Arc::new(StepSegment { starts: segment.starts.clone(), steps })
        });
        let segments = segments.collect();
        Self { segments, versions, ..self }
    }

    /// The segment that contains a time.
    fn segment_of(&self, at: i64) -> usize {
        match &self.firsts[..] {
            [_] => 0,
            firsts => firsts.partition_point(|&first| first <= at) - 1,
        }
    }

    /// Segment, and index in it, of the step at `at`.
    fn place(&self, at: Timestamp) -> (usize, usize) {
        let at = at.as_millis();
        let segment = self.segment_of(at);
        // starts[0] is the earliest time, and the last start the latest. The versions between them
        // mostly follow each other at a steady pace.
        let place = match &self.segments[segment].starts[..] {
            [_, inner @ .., last] if at < *last => match inner.first() {
                Some(first) if *first <= at => before(inner, |&start| start, at + 1),
                _ => 0,
            },
            starts => starts.partition_point(|&start| start <= at) - 1,
        };
        (segment, place)
    }

    /// The state at `at`.
    pub fn at(&self, at: Timestamp) -> Step {
        let (segment, place) = self.place(at);
        self.segments[segment].steps[place]
    }

    /// Start, end and state of the step at `at`.
    pub(super) fn step_around(&self, at: Timestamp) -> (i64, i64, Step) {
        let (segment, place) = self.place(at);
        let StepSegment { starts, steps } = &*self.segments[segment];
        let next = starts.get(place + 1).or_else(|| self.firsts.get(segment + 1));
        (starts[place], next.copied().unwrap_or(i64::MAX), steps[place])
    }

    /// The state at `at`, and the start of the next step.
    pub(super) fn step_at(&self, at: Timestamp) -> (Step, i64) {
        let (_, until, step) = self.step_around(at);
        (step, until)
    }

    /// The effective version at `at`, if it is known.
    pub fn version_at(&self, at: Timestamp) -> Option<&Arc<ObjectInfo>> {
        match self.at(at).state {
            State::Version(index) => Some(self.version(index)),
            State::Absent | State::Unknown => None,
        }
    }

    /// The version `id`, if it is effective anywhere.
    pub fn version_of(&self, id: ObjectId) -> Option<&Arc<ObjectInfo>> {
        let decides = |number: &u32| {
            let validity = self.version(*number).validity;
            self.steps(validity).any(|span| span.state == State::Version(*number))
        };
        let number = self.versions.with_id(id).into_iter().find(decides)?;
        Some(self.version(number))
    }

    /// The effective span around `at`: as far as the state is the same without a break. `learned`
    /// is that of its oldest part. `None` for the very last millisecond.
    pub(crate) fn span_at(&self, at: Timestamp) -> Option<Span> {
        let (segment, place) = self.place(at);
        let Step { state, mut learned } = self.segments[segment].steps[place];
        let mut from = self.segments[segment].starts[place];
        let earlier = self.segments[..segment].iter().rev();
        let earlier = earlier.flat_map(|segment| segment.starts.iter().zip(&segment.steps).rev());
        let here = &self.segments[segment];
        let here = here.starts[..place].iter().zip(&here.steps[..place]).rev();
        for (start, step) in here.chain(earlier).take_while(|(_, step)| step.state == state) {
            (from, learned) = (*start, learned.min(step.learned));
        }
        let mut until = i64::MAX;
        for (start, step) in self.pairs_from(segment, place + 1) {
            if step.state != state {
                until = start;
                break;
            }
            learned = learned.min(step.learned);
        }
        let [from, until] = [from, until].map(Timestamp::from_millis);
        let interval = ValidityInterval::new(from, until).ok()?;
        interval.contains(at).then_some(Span { interval, state, learned })
    }

    /// The steps from an index in a segment on.
    fn pairs_from(&self, segment: usize, place: usize) -> impl Iterator<Item = (i64, Step)> {
        let pairs = move |(nth, segment): (usize, &Arc<StepSegment>)| {
            let first = if nth == 0 { place.min(segment.starts.len()) } else { 0 };
            let segment = Arc::clone(segment);
            (first..segment.starts.len()).map(move |at| (segment.starts[at], segment.steps[at]))
        };
        self.segments[segment..].iter().enumerate().flat_map(pairs)
    }

    /// Upper bound of the numbers of versions, exclusive.
    pub fn versions(&self) -> usize {
        self.versions.len()
    }

    /// The version of [`State::Version`].
    ///
    /// # Panics
    /// If `index` is not from this timeline.
    pub fn version(&self, index: u32) -> &Arc<ObjectInfo> {
        self.versions.info(index)
    }

    /// The id of the version of [`State::Version`].
    ///
    /// # Panics
    /// If `index` is not from this timeline.
    pub fn id(&self, index: u32) -> ObjectId {
        self.versions.id(index)
    }

    /// Whether this timeline has the versions of `other` under the same numbers.
    pub(crate) fn has_versions_of(&self, other: &Self) -> bool {
        self.versions.extends(&other.versions)
    }

    /// The steps that touch `range`, cut at it, in order. Neighbours can have the same state,
    /// learned at different times.
    pub fn steps(&self, range: ValidityInterval) -> impl Iterator<Item = Span> {
        let (segment, place) = self.place(range.from());
        let mut steps = self.pairs_from(segment, place).peekable();
        std::iter::from_fn(move || {
            let (start, Step { state, learned }) = steps.next()?;
            let until = steps.peek().map_or(i64::MAX, |(next, _)| *next);
            let [from, until] = [start, until].map(Timestamp::from_millis);
            let piece = ValidityInterval::new(from, until).ok()?;
            Some(Span { interval: piece.intersection(range)?, state, learned })
        })
    }

    /// The effective spans that touch `range`, cut at it, in order. Neighbours have different
    /// states. `learned` is that of their oldest part.
    pub fn spans(&self, range: ValidityInterval) -> Vec<Span> {
        let mut spans: Vec<Span> = Vec::new();
        for step in self.steps(range) {
            match spans.last_mut() {
                Some(last) if last.state == step.state => {
                    let joined = ValidityInterval::new(last.interval.from(), step.interval.until());
                    last.interval = joined.unwrap_or(last.interval);
                    last.learned = last.learned.min(step.learned);
                }
                _ => spans.push(step),
            }
        }
        spans
    }

    /// Whether the latest knowledge covers all of time at once.
    pub(crate) fn is_whole(&self) -> bool {
        self.whole
    }

    /// Starts and steps of the segments, for the join.
    pub(super) fn segments(&self) -> (&[i64], &[Arc<StepSegment>]) {
        (&self.firsts, &self.segments)
    }
}

/// Calls `emit(start, index of the effective version)` for each border inside `span`, in order,
/// beginning with the start of `span` itself.
fn effective(
    span: ValidityInterval,
    versions: &[Arc<ObjectInfo>],
    mut emit: impl FnMut(i64, Option<usize>),
) {
    let mut pieces: Vec<(i64, i64, usize)> = versions
        .iter()
        .enumerate()
        .filter_map(|(place, version)| {
            let piece = version.validity.intersection(span)?;
            Some((piece.from().as_millis(), piece.until().as_millis(), place))
        })
        .collect();
    pieces.sort_unstable();
    let mut borders: Vec<i64> = pieces.iter().flat_map(|&(from, until, _)| [from, until]).collect();
    borders.push(span.from().as_millis());
    borders.sort_unstable();
    borders.dedup();
    // Versions that have begun, the winner on top. Those that have ended are removed when they
    // reach the top.
    let mut begun = BinaryHeap::new();
    let mut coming = pieces.into_iter().peekable();
    for border in borders {
        if border == span.until().as_millis() {
            break;
        }
        while let Some((_, until, place)) = coming.next_if(|&(from, ..)| from <= border) {
            begun.push((versions[place].rank(), place, until));
        }
        while begun.peek().is_some_and(|&(_, _, until)| until <= border) {
            begun.pop();
        }
        emit(border, begun.peek().map(|&(_, place, _)| place));
    }
}

#[cfg(test)]
mod tests {

    use proptest::prelude::*;

    use super::*;
    use crate::object::{CreationLimits, ObjectPath, Query};

    fn interval(from: i64, until: i64) -> ValidityInterval {
        let [from, until] = [from, until].map(Timestamp::from_millis);
        ValidityInterval::new(from, until).unwrap()
    }

    fn version(id: u8, from: i64, until: i64, created: i64) -> Arc<ObjectInfo> {
        Arc::new(ObjectInfo {
            path: ObjectPath::new("A/B").unwrap(),
            id: ObjectId::from_bytes([id; 16]),
            validity: interval(from, until),
            created: Timestamp::from_millis(created),
            size_bytes: None,
            md5: None,
            metadata: Default::default(),
        })
    }

    /// The rule itself, one timestamp at a time: the reference.
    fn linear(versions: &[Arc<ObjectInfo>], at: i64) -> Option<ObjectId> {
        let at = Timestamp::from_millis(at);
        let valid = versions.iter().filter(|version| version.validity.contains(at));
        valid.max_by_key(|version| version.rank()).map(|version| version.id)
    }

    fn at(timeline: &Timeline, at: i64) -> Option<ObjectId> {
        timeline.version_at(Timestamp::from_millis(at)).map(|version| version.id)
    }

    /// Every border of the versions, and the milliseconds beside it.
    fn interesting(versions: &[Arc<ObjectInfo>]) -> Vec<i64> {
        let borders = versions.iter().flat_map(|v| [v.validity.from(), v.validity.until()]);
        let borders = borders.map(Timestamp::as_millis).chain([i64::MIN, i64::MAX, 0]);
        let mut all: Vec<i64> =
            borders.flat_map(|t| [t.saturating_sub(1), t, t.saturating_add(1)]).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    fn learned(versions: &[Arc<ObjectInfo>]) -> Timeline {
        Timeline::unknown().learn(ValidityInterval::ALL, versions, Moment::default())
    }

    #[test]
    fn the_version_created_last_wins_and_the_earlier_one_holds_again_after_it() {
        let versions = [version(1, 1000, 9000, 1), version(2, 3000, 5000, 2)];
        let timeline = learned(&versions);
        let spans: Vec<(i64, i64, State)> = timeline
            .spans(interval(0, 10_000))
            .into_iter()
            .map(|s| (s.interval.from().as_millis(), s.interval.until().as_millis(), s.state))
            .collect();
        let [first, second] = [spans[1].2, spans[2].2];
        assert_eq!(
            spans,
            [
                (0, 1000, State::Absent),
                (1000, 3000, first),
                (3000, 5000, second),
                (5000, 9000, first),
                (9000, 10_000, State::Absent),
            ]
        );
    }

    #[test]
    fn of_equal_creation_times_the_later_from_wins_then_the_greater_id() {
        let timeline = learned(&[version(9, 0, 100, 5), version(1, 50, 100, 5)]);
        assert_eq!(at(&timeline, 60), Some(ObjectId::from_bytes([1; 16])));
        let timeline = learned(&[version(9, 0, 100, 5), version(1, 0, 100, 5)]);
        assert_eq!(at(&timeline, 60), Some(ObjectId::from_bytes([9; 16])));
    }

    #[test]
    fn nothing_is_valid_in_the_very_last_millisecond_and_that_is_always_known() {
        let forever = [version(1, i64::MIN, i64::MAX, 1)];
        for timeline in [Timeline::unknown(), learned(&forever)] {
            assert_eq!(timeline.at(Timestamp::MAX).state, State::Absent);
        }
        assert_eq!(at(&learned(&forever), i64::MAX - 1), Some(forever[0].id));
        assert_eq!(at(&learned(&forever), i64::MIN), Some(forever[0].id));
    }

    #[test]
    fn versions_learned_anew_keep_their_arcs_and_their_moment_moves() {
        let versions = [version(1, 0, 10, 1), version(2, 5, 20, 2)];
        let first = learned(&versions);
        let again: Vec<_> = versions.iter().map(|v| Arc::new(ObjectInfo::clone(v))).collect();
        let second = first.learn(ValidityInterval::ALL, &again, Moment::from_millis(7));
        let time = Timestamp::from_millis(6);
        assert!(Arc::ptr_eq(first.version_at(time).unwrap(), second.version_at(time).unwrap()));
        assert_eq!(second.at(time).learned, Moment::from_millis(7));
        assert!(second.is_whole());
        assert!(!second.learn(interval(3, 4), &[], Moment::from_millis(8)).is_whole());
    }

    #[test]
    fn a_version_whose_interval_was_shortened_is_another_one() {
        let timeline = learned(&[version(1, 0, 100, 1)]);
        let timeline =
            timeline.learn(ValidityInterval::ALL, &[version(1, 0, 50, 1)], Moment::default());
        assert_eq!(at(&timeline, 49), Some(ObjectId::from_bytes([1; 16])));
        assert_eq!(at(&timeline, 50), None);
    }

    #[test]
    fn a_hundred_thousand_overlapping_versions_are_right() {
        let versions: Vec<_> = (0..100_000_i64)
            .map(|n| {
                let mut info = ObjectInfo::clone(&version(0, n * 7, n * 7 + 50, (n * 31) % 97));
                let mut id = [0; 16];
                id[8..].copy_from_slice(&n.to_be_bytes());
                info.id = ObjectId::from_bytes(id);
                Arc::new(info)
            })
            .collect();
        let timeline = learned(&versions);
        for n in (8..99_990_usize).step_by(997) {
            for time in [n as i64 * 7 - 1, n as i64 * 7, n as i64 * 7 + 1, n as i64 * 7 + 50] {
                assert_eq!(at(&timeline, time), linear(&versions[n - 8..n + 10], time));
            }
        }
    }

    #[test]
    fn one_more_version_leaves_all_other_segments_as_they_are() {
        let numbered = |n: i64| {
            let mut info = ObjectInfo::clone(&version(0, n * 10, n * 10 + 10, n));
            let mut id = [0; 16];
            id[8..].copy_from_slice(&n.to_be_bytes());
            info.id = ObjectId::from_bytes(id);
            Arc::new(info)
        };
        let versions: Vec<_> = (0..5000).map(numbered).collect();
        let timeline = learned(&versions);
        assert!(timeline.segments.len() > 500);
        for n in [5000, 2500] {
            let new =
                Arc::new(ObjectInfo { created: Timestamp::MAX, ..ObjectInfo::clone(&numbered(n)) });
            let span = interval(n * 10, n * 10 + 10);
            let next = timeline.learn(span, &[new], Moment::from_millis(1));
            let is_shared = |segment: &&Arc<StepSegment>| {
                timeline.segments.iter().any(|old| Arc::ptr_eq(old, segment))
            };
            let changed = next.segments.len() - next.segments.iter().filter(is_shared).count();
            assert!((1..=2).contains(&changed), "{changed}");
            assert!(next.has_versions_of(&timeline));
            let time = Timestamp::from_millis(n * 10 + 5);
            assert_eq!(next.version_at(time).map(|version| version.created), Some(Timestamp::MAX));
        }
    }

    #[test]
    fn versions_that_decide_nowhere_any_more_are_given_up_in_the_end() {
        let mut timeline = learned(&[version(0, 0, 100, 0)]);
        for n in 0..5000 {
            let next = Arc::new(ObjectInfo {
                validity: interval(0, 101 + n),
                ..ObjectInfo::clone(&version(0, 0, 1, 0))
            });
            timeline = timeline.learn(ValidityInterval::ALL, &[next], Moment::default());
        }
        assert!(timeline.versions() <= 2 * SPARE_VERSIONS, "{}", timeline.versions());
        assert_eq!(at(&timeline, 5099), Some(ObjectId::from_bytes([0; 16])));
        assert!(timeline.version_of(ObjectId::from_bytes([0; 16])).is_some());
        assert!(timeline.version_of(ObjectId::from_bytes([1; 16])).is_none());
    }

    fn any_time() -> impl Strategy<Value = i64> {
        prop_oneof![
            8 => -20..20_i64,
            1 => Just(i64::MIN),
            1 => Just(i64::MIN + 1),
            1 => Just(i64::MAX - 1),
            1 => Just(i64::MAX),
        ]
    }

    fn any_versions() -> impl Strategy<Value = Vec<Arc<ObjectInfo>>> {
        let one = (any_time(), any_time(), 0..4_i64);
        proptest::collection::vec(one, 0..25).prop_map(|all| {
            let valid = all.into_iter().enumerate().filter(|(_, (from, until, _))| from < until);
            valid.map(|(n, (from, until, made))| version(n as u8, from, until, made)).collect()
        })
    }

    proptest! {
        #[test]
        fn it_is_the_linear_scan_at_every_border(versions in any_versions()) {
            let timeline = learned(&versions);
            for time in interesting(&versions) {
                prop_assert_eq!(at(&timeline, time), linear(&versions, time), "at {}", time);
            }
            let steps: Vec<_> = timeline.pairs_from(0, 0).collect();
            prop_assert!(steps.is_sorted_by(|a, b| a.0 < b.0));
            prop_assert!(steps.windows(2).all(|pair| pair[0].1 != pair[1].1));
        }

        #[test]
        fn with_creation_limits_it_is_the_scan_over_those_that_pass(
            versions in any_versions(),
            not_before in proptest::option::of(-1..5_i64),
            not_after in proptest::option::of(-1..5_i64),
        ) {
            let limits = CreationLimits {
                not_before: not_before.map(Timestamp::from_millis),
                not_after: not_after.map(Timestamp::from_millis),
            };
            let query = Query { limits, ..Query::all(ObjectPath::new("A/B").unwrap()) };
            let seen: Vec<_> = versions.iter().filter(|v| query.matches(v)).cloned().collect();
            let made = |v: &&Arc<ObjectInfo>| {
                let made = v.created.as_millis();
                not_before.is_none_or(|limit| limit <= made)
                    && not_after.is_none_or(|limit| made <= limit)
            };
            let expected: Vec<_> = versions.iter().filter(made).cloned().collect();
            let timeline = learned(&seen);
            for time in interesting(&versions) {
                prop_assert_eq!(at(&timeline, time), linear(&expected, time));
            }
        }

        #[test]
        fn patches_in_any_order_come_to_the_same_as_the_whole(
            versions in any_versions(),
            cuts in proptest::collection::btree_set(any_time(), 0..6),
            order in any::<prop::sample::Index>(),
        ) {
            let mut borders: Vec<i64> = cuts.into_iter().collect();
            borders.insert(0, i64::MIN);
            borders.push(i64::MAX);
            borders.dedup();
            let mut spans: Vec<_> = borders
                .windows(2)
                .filter(|pair| pair[0] < pair[1])
                .map(|pair| interval(pair[0], pair[1]))
                .collect();
            let places = spans.len();
            spans.rotate_left(order.index(places));
            let mut timeline = Timeline::unknown();
            for span in spans {
                timeline = timeline.learn(span, &versions, Moment::default());
            }
            for time in interesting(&versions) {
                prop_assert_eq!(at(&timeline, time), linear(&versions, time));
            }
        }

        #[test]
        fn outside_of_what_is_learned_nothing_changes(
            versions in any_versions(),
            other in any_versions(),
            from in -20..0_i64,
            length in 1..20_i64,
        ) {
            let span = interval(from, from + length);
            let timeline = learned(&versions).learn(span, &other, Moment::from_millis(1));
            let mut times = interesting(&versions);
            times.extend(interesting(&other));
            times.extend([from - 1, from, from + length - 1, from + length]);
            for time in times {
                let inside = span.contains(Timestamp::from_millis(time));
                let expected = if inside { &other } else { &versions };
                prop_assert_eq!(at(&timeline, time), linear(expected, time), "at {}", time);
            }
        }

        #[test]
        fn the_span_around_a_time_is_the_one_among_all_that_holds_it(
            versions in any_versions(),
            cut in -5..30_i64,
        ) {
            // Two parts that were learned at different times.
            let mut timeline = Timeline::unknown();
            let parts = [(i64::MIN, cut, 7), (cut, i64::MAX, 3)];
            for (from, until, when) in parts {
                let when = Moment::from_millis(when);
                timeline = timeline.learn(interval(from, until), &versions, when);
            }
            let all = timeline.spans(ValidityInterval::ALL);
            for time in interesting(&versions).into_iter().filter(|time| *time != i64::MAX) {
                let time = Timestamp::from_millis(time);
                let expected = all.iter().find(|span| span.interval.contains(time)).copied();
                prop_assert_eq!(timeline.span_at(time), expected);
            }
            prop_assert_eq!(timeline.span_at(Timestamp::MAX).map(|span| span.state), None);
        }

        #[test]
        fn spans_tile_the_range(versions in any_versions(), from in -20..0_i64, length in 1..40_i64) {
            let range = interval(from, from + length);
            let timeline = learned(&versions);
            let spans = timeline.spans(range);
            prop_assert_eq!(spans[0].interval.from(), range.from());
            prop_assert_eq!(spans[spans.len() - 1].interval.until(), range.until());
            for pair in spans.windows(2) {
                prop_assert_eq!(pair[0].interval.until(), pair[1].interval.from());
                prop_assert!(pair[0].state != pair[1].state);
            }
            for span in spans {
                let expected = linear(&versions, span.interval.from().as_millis());
                let got = match span.state {
                    State::Version(index) => Some(timeline.version(index).id),
                    _ => None,
                };
                prop_assert_eq!(got, expected);
            }
        }
    }
}
