//! The timeline of one query: which version is effective at any time, as far as it is known.

use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;

use super::search::before;
use crate::clock::Moment;
use crate::interval::{Timestamp, ValidityInterval};
use crate::object::{ObjectId, ObjectInfo};

/// What holds at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// This version: an index for [`Timeline::version`].
    Version(u32),
    /// Nothing: that is known.
    Absent,
    /// Not known: the source has to be asked.
    Unknown,
}

/// What holds at a time, and since when that is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// What holds.
    pub state: State,
    /// When it was learned.
    pub learned: Moment,
}

/// A piece of time in which one thing holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// The piece.
    pub interval: ValidityInterval,
    /// What holds in it.
    pub state: State,
    /// When it was learned.
    pub learned: Moment,
}

/// The exact, non-overlapping effective spans of the versions of one query.
///
/// A step function over all of i64: `starts[n]` is where `steps[n]` begins, `starts[0]` is the
/// earliest time there is. The very last millisecond, [`Timestamp::MAX`], is inside of no half-open
/// interval: there nothing is ever valid, and it has a step of its own that says so.
///
/// It is never changed but replaced: whoever has one reads it without a lock.
#[derive(Debug, Clone)]
pub struct Timeline {
    starts: Vec<i64>,
    steps: Vec<Step>,
    versions: Vec<Version>,
    whole: bool,
}

/// A version of a timeline. Who goes through many looks at their ids alone, one after the other in
/// memory.
#[derive(Debug, Clone)]
struct Version {
    id: ObjectId,
    info: Arc<ObjectInfo>,
}

impl Version {
    fn new(info: &Arc<ObjectInfo>) -> Self {
        Self { id: info.id, info: Arc::clone(info) }
    }
}

impl Timeline {
    /// Nothing is known.
    pub fn unknown() -> Self {
        let never = Moment::default();
        Self {
            starts: vec![i64::MIN, i64::MAX],
            steps: vec![
                Step { state: State::Unknown, learned: never },
                Step { state: State::Absent, learned: Moment::from_millis(u64::MAX) },
            ],
            versions: Vec::new(),
            whole: false,
        }
    }

    /// This timeline, with what is known in `span` replaced: there the versions decide of which the
    /// interval holds a time, the one of the greatest [`rank`](ObjectInfo::rank) first; where there
    /// is none, nothing is valid.
    ///
    /// Takes O(n log n) for `versions`, and a copy of the rest. A version that was known before
    /// stays the same `Arc`.
    #[must_use]
    pub fn learn(
        &self,
        span: ValidityInterval,
        versions: &[Arc<ObjectInfo>],
        learned: Moment,
    ) -> Self {
        let mut next = Builder::new(self);
        let (from, until) = (span.from().as_millis(), span.until().as_millis());
        let before = self.starts.partition_point(|&start| start < from);
        for place in 0..before {
            next.keep(self.starts[place], self.steps[place]);
        }
        effective(span, versions, |start, version| {
            let state = version.map_or(State::Absent, |place| next.learned(&versions[place]));
            next.push(start, Step { state, learned });
        });
        let first_after = self.starts.partition_point(|&start| start <= until);
        next.keep(until, self.steps[first_after - 1]);
        for place in first_after..self.starts.len() {
            next.keep(self.starts[place], self.steps[place]);
        }
        next.finish(span == ValidityInterval::ALL)
    }

    fn place(&self, at: Timestamp) -> usize {
        let at = at.as_millis();
        // starts[0] is the earliest time, and the last one the latest: between them versions mostly
        // follow each other at a steady pace.
        match &self.starts[..] {
            [_, inner @ .., last] if at < *last => match inner.first() {
                Some(first) if *first <= at => before(inner, |&start| start, at + 1),
                _ => 0,
            },
            starts => starts.partition_point(|&start| start <= at) - 1,
        }
    }

    /// What holds at `at`.
    pub fn at(&self, at: Timestamp) -> Step {
        self.steps[self.place(at)]
    }

    /// The version that holds at `at`, if one is known to.
    pub fn version_at(&self, at: Timestamp) -> Option<&Arc<ObjectInfo>> {
        match self.at(at).state {
            State::Version(index) => Some(self.version(index)),
            State::Absent | State::Unknown => None,
        }
    }

    /// The version `id`, if it decides anywhere. Looks at each.
    pub fn version_of(&self, id: ObjectId) -> Option<&Arc<ObjectInfo>> {
        self.versions.iter().find(|version| version.id == id).map(|version| &version.info)
    }

    /// The effective span around `at`: as far as what holds there holds without a break. `learned`
    /// is that of its oldest part. There is none around the very last millisecond.
    pub fn span_at(&self, at: Timestamp) -> Option<Span> {
        let (mut first, mut last) = (self.place(at), self.place(at));
        let Step { state, mut learned } = self.steps[first];
        while first > 0 && self.steps[first - 1].state == state {
            first -= 1;
            learned = learned.min(self.steps[first].learned);
        }
        while self.steps.get(last + 1).is_some_and(|next| next.state == state) {
            last += 1;
            learned = learned.min(self.steps[last].learned);
        }
        let from = Timestamp::from_millis(self.starts[first]);
        let until = self.starts.get(last + 1).copied().unwrap_or(i64::MAX);
        let interval = ValidityInterval::new(from, Timestamp::from_millis(until)).ok()?;
        interval.contains(at).then_some(Span { interval, state, learned })
    }

    /// How many versions are known.
    pub fn versions(&self) -> usize {
        self.versions.len()
    }

    /// The version behind [`State::Version`].
    ///
    /// # Panics
    /// If `index` is not from this timeline.
    pub fn version(&self, index: u32) -> &Arc<ObjectInfo> {
        &self.versions[index as usize].info
    }

    /// The id of that version.
    ///
    /// # Panics
    /// If `index` is not from this timeline.
    pub fn id(&self, index: u32) -> ObjectId {
        self.versions[index as usize].id
    }

    /// Whether the versions behind each index are the very same as those of `other`.
    pub fn has_versions_of(&self, other: &Self) -> bool {
        let same = |(a, b): (&Version, &Version)| Arc::ptr_eq(&a.info, &b.info);
        self.versions.len() == other.versions.len()
            && self.versions.iter().zip(&other.versions).all(same)
    }

    /// The steps that touch `range`, cut at it, in order; neighbours may hold the same but were
    /// learned at different times.
    pub fn steps(&self, range: ValidityInterval) -> impl Iterator<Item = Span> {
        let first = self.place(range.from());
        (first..self.starts.len()).map_while(move |place| {
            let from = Timestamp::from_millis(self.starts[place]);
            let until = self.starts.get(place + 1).copied().unwrap_or(i64::MAX);
            let piece = ValidityInterval::new(from, Timestamp::from_millis(until)).ok()?;
            let Step { state, learned } = self.steps[place];
            Some(Span { interval: piece.intersection(range)?, state, learned })
        })
    }

    /// The effective spans that touch `range`, cut at it, in order; neighbours differ in what holds.
    /// `learned` is that of their oldest part.
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

    /// Whether the last that was learned was all of time at once.
    pub fn is_whole(&self) -> bool {
        self.whole
    }

    /// Where the steps begin, for the join.
    pub(super) fn starts(&self) -> &[i64] {
        &self.starts
    }

    /// What holds from each of [`starts`](Self::starts) on, and since when that is known.
    pub(super) fn all_steps(&self) -> &[Step] {
        &self.steps
    }

    /// What holds from one of [`starts`](Self::starts) on.
    pub(super) fn state(&self, place: usize) -> State {
        self.steps[place].state
    }
}

/// Puts the next timeline together, in order.
struct Builder<'a> {
    old: &'a Timeline,
    /// By place in the old versions: their place in the new ones.
    kept: Vec<Option<u32>>,
    known: HashMap<ObjectId, Vec<u32>>,
    next: Timeline,
}

impl<'a> Builder<'a> {
    fn new(old: &'a Timeline) -> Self {
        let mut known: HashMap<ObjectId, Vec<u32>> = HashMap::with_capacity(old.versions.len());
        for (place, version) in old.versions.iter().enumerate() {
            known.entry(version.id).or_default().push(place as u32);
        }
        let next =
            Timeline { starts: Vec::new(), steps: Vec::new(), versions: Vec::new(), whole: false };
        Self { old, kept: vec![None; old.versions.len()], known, next }
    }

    fn old_version(&mut self, place: u32) -> State {
        let kept = &mut self.kept[place as usize];
        let versions = &mut self.next.versions;
        State::Version(*kept.get_or_insert_with(|| {
            versions.push(self.old.versions[place as usize].clone());
            (versions.len() - 1) as u32
        }))
    }

    /// The state in which `version` holds; what is known already is taken from there.
    fn learned(&mut self, version: &Arc<ObjectInfo>) -> State {
        // A version can have several pieces, and stand in the old timeline too. Places behind the
        // old versions are those of the new ones.
        let old_count = self.old.versions.len();
        let places = self.known.entry(version.id).or_default();
        for &place in places.iter() {
            let place = place as usize;
            match self.old.versions.get(place) {
                Some(old) if old.info == *version => return self.old_version(place as u32),
                None if self.next.versions[place - old_count].info == *version => {
                    return State::Version((place - old_count) as u32);
                }
                _ => {}
            }
        }
        let new = self.next.versions.len();
        places.push((old_count + new) as u32);
        self.next.versions.push(Version::new(version));
        State::Version(new as u32)
    }

    /// A step of the old timeline.
    fn keep(&mut self, start: i64, step: Step) {
        let state = match step.state {
            State::Version(place) => self.old_version(place),
            other => other,
        };
        self.push(start, Step { state, ..step });
    }

    fn push(&mut self, start: i64, step: Step) {
        if self.next.starts.last() == Some(&start) {
            // The last millisecond keeps its own step, whatever is learned up to it.
            self.next.starts.pop();
            self.next.steps.pop();
        }
        if self.next.steps.last() != Some(&step) {
            self.next.starts.push(start);
            self.next.steps.push(step);
        }
    }

    fn finish(mut self, whole: bool) -> Timeline {
        self.next.whole = whole;
        self.next
    }
}

/// Calls `emit(start, place of the winner)` for each border inside of `span`, in order, beginning
/// with that of `span` itself.
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
    // Those that have begun, the winner on top; those that have ended are taken off when they get
    // there.
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
    use std::collections::BTreeMap;

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
            metadata: BTreeMap::new(),
        })
    }

    /// The rule itself, one timestamp at a time.
    fn linear(versions: &[Arc<ObjectInfo>], at: i64) -> Option<ObjectId> {
        let at = Timestamp::from_millis(at);
        let valid = versions.iter().filter(|version| version.validity.contains(at));
        valid.max_by_key(|version| version.rank()).map(|version| version.id)
    }

    fn at(timeline: &Timeline, at: i64) -> Option<ObjectId> {
        timeline.version_at(Timestamp::from_millis(at)).map(|version| version.id)
    }

    /// Every border of the versions, and its neighbours.
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
    fn what_is_learned_anew_keeps_its_arcs_and_its_moment_moves() {
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
            prop_assert!(timeline.starts.is_sorted_by(|a, b| a < b));
            prop_assert!(timeline.steps.windows(2).all(|pair| pair[0] != pair[1]));
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
            // In two parts that were learned at different times.
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
