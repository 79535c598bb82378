//! Join of timestamps and a timeline: which version serves which rows.
//!
//! There are three methods for three kinds of timestamps. Sorted ones are cut at the borders of the
//! steps; each border is searched from where a steady pace would put it. Nearly sorted ones are
//! processed in blocks, most of which lie between two borders. All others use a branch-free search,
//! several searches at a time, so that their cache misses overlap.

use std::hint::select_unpredictable;

use super::search::{before, gallop, search};
use super::timeline::{State, Timeline};
use super::timestamps::{BLOCK_ROWS, Millis, Order, Steps, Timestamps, millis};

/// State of a run of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Slot {
    /// This version serves them: an index for [`Timeline::version`].
    Version(u32),
    /// No version is valid.
    Absent,
    /// The valid version is not known.
    Unknown,
    /// The timestamps are null.
    Null,
}

impl From<State> for Slot {
    fn from(state: State) -> Self {
        match state {
            State::Version(index) => Self::Version(index),
            State::Absent => Self::Absent,
            State::Unknown => Self::Unknown,
        }
    }
}

/// Consecutive rows with one slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// The first row.
    pub start: usize,
    /// The row after the last one.
    pub end: usize,
    /// The slot that serves the rows.
    pub slot: Slot,
}

/// Runs of one column. They cover its rows without gaps, and neighbours differ.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Runs(Vec<Run>);

impl Runs {
    /// The runs in the order of their rows.
    pub fn iter(&self) -> impl Iterator<Item = Run> {
        self.0.iter().copied()
    }

    /// Number of runs.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are no runs.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Join of one column in pieces, so that other work can run in between.
#[derive(Debug)]
pub(crate) struct JoinPieces<'a> {
    timeline: &'a Timeline,
    timestamps: &'a Timestamps,
    /// The first entry that is not joined yet.
    next: usize,
}

impl<'a> JoinPieces<'a> {
    /// Maximum number of runs of one piece.
    pub(crate) const MAX_RUNS: usize = 1 << 14;

    /// A join that begins with the first row.
    pub(crate) fn new(timeline: &'a Timeline, timestamps: &'a Timestamps) -> Self {
        Self { timeline, timestamps, next: 0 }
    }

    /// Replaces `runs` by those of the next rows; returns `false` after the last row. The first run
    /// can continue the last run of the previous piece.
    #[doc(hidden)]
    pub(crate) fn next_into(&mut self, runs: &mut Vec<Run>) -> bool {
        runs.clear();
        let (timeline, timestamps) = (self.timeline, self.timestamps);
        let entries = timestamps.entries();
        if self.next == entries {
            return false;
        }
        // The cost of a sorted piece is that of its runs, independent of the number of rows.
        let whole = matches!(timestamps.order(), Order::Sorted) && !timestamps.has_nulls();
        let end = if whole { entries } else { entries.min(self.next + Self::MAX_RUNS) };
        let piece = Piece { entries: self.next..end, max_runs: Self::MAX_RUNS };
        self.next = join_timeline(runs, timeline, timestamps, piece);
        true
    }
}

/// Entries to join, up to a maximum number of runs.
pub(super) struct Piece {
    pub(super) entries: EntryRange,
    pub(super) max_runs: usize,
}

/// Joins timestamps with a timeline.
///
/// Sorted timestamps cost O(runs × log(rows)), others O(rows × log(versions)) at most.
///
/// ```
/// # use std::sync::Arc;
/// use iovcache::index::{Slot, Timeline, Timestamps, join};
/// # use iovcache::{Clock, ObjectId, ObjectInfo, ObjectPath, Timestamp, ValidityInterval};
/// # let drift = |id: u8, from: i64, until: i64, created: i64| ObjectInfo {
/// #     path: ObjectPath::new("TPC/Calib/VDrift").unwrap(),
/// #     id: ObjectId::from_bytes([id; 16]),
/// #     validity: ValidityInterval::new(
/// #         Timestamp::from_millis(from), Timestamp::from_millis(until)).unwrap(),
/// #     created: Timestamp::from_millis(created),
/// #     size_bytes: None,
/// #     md5: None,
/// #     metadata: Default::default(),
/// # };
/// // Version 2 was created later, so it is effective where both are valid.
/// let versions = [Arc::new(drift(1, 0, 90, 1)), Arc::new(drift(2, 30, 50, 2))];
/// let now = Clock::system().now();
/// let timeline = Timeline::unknown().learn(ValidityInterval::ALL, &versions, now);
/// let runs = join(&timeline, &Timestamps::new(vec![10, 20, 30, 40, 50, 95], None));
/// let ids: Vec<_> = runs
///     .iter()
///     .map(|run| match run.slot {
///         Slot::Version(number) => (run.start..run.end, Some(timeline.id(number).as_bytes()[0])),
///         _ => (run.start..run.end, None),
///     })
///     .collect();
/// assert_eq!(ids, [(0..2, Some(1)), (2..4, Some(2)), (4..5, Some(1)), (5..6, None)]);
/// ```
pub fn join(timeline: &Timeline, timestamps: &Timestamps) -> Runs {
    let mut runs = Vec::new();
    let piece = Piece { entries: 0..timestamps.entries(), max_runs: usize::MAX };
    join_timeline(&mut runs, timeline, timestamps, piece);
    Runs(runs)
}

/// Like [`join`], for any step function: `slot(n)` holds from `starts[n]` on.
///
/// # Panics
/// If `starts` is not ascending or does not begin with the lowest i64.
pub(crate) fn join_steps(
    starts: &[i64],
    slot: impl Fn(usize) -> Slot,
    timestamps: &Timestamps,
) -> Runs {
    assert!(starts.first() == Some(&i64::MIN), "there is no step at the beginning of time");
    let mut runs = Vec::new();
    let piece = Piece { entries: 0..timestamps.entries(), max_runs: usize::MAX };
    join_piece(&mut runs, starts, slot, timestamps, piece);
    Runs(runs)
}

/// Appends the runs of a piece to `runs`. Returns the entry after the last one joined.
fn join_piece(
    runs: &mut Vec<Run>,
    starts: &[i64],
    slot: impl Fn(usize) -> Slot,
    timestamps: &Timestamps,
    piece: Piece,
) -> usize {
    let max_runs = piece.max_runs;
    if let Some(steps) = timestamps.steps() {
        let row_start = piece.entries.start;
        let mut sink = RunSink { runs, row_start, timestamps, slot };
        let mut emit = |end: usize, place: usize| sink.push(end, (sink.slot)(place));
        return stepped(starts, steps, piece.entries, max_runs, &mut emit);
    }
    let (values, order) = (timestamps.values(), timestamps.order());
    emit_runs(runs, timestamps, piece, slot, |valid, sink| {
        let mut emit = |end: usize, place: usize| sink.emit(end, place);
        match order {
            Order::Sorted => sorted(starts, values, valid, max_runs, &mut emit),
            Order::Blocks(blocks) => {
                let end = valid.end;
                by_blocks(starts, values, blocks, valid, &mut emit);
                end
            }
        }
    })
}

/// Like [`join_piece`], for the segments of a timeline.
pub(super) fn join_timeline(
    runs: &mut Vec<Run>,
    timeline: &Timeline,
    timestamps: &Timestamps,
    piece: Piece,
) -> usize {
    let (firsts, segments) = timeline.segments();
    if let [segment] = segments {
        let slot = |place: usize| segment.steps[place].state.into();
        return join_piece(runs, &segment.starts, slot, timestamps, piece);
    }
    let max_runs = piece.max_runs;
    // A place is a segment (upper 32 bits) and an index in it (lower 32 bits).
    let slot = |place: usize| segments[place >> 32].steps[place & 0xffff_ffff].state.into();
    if let Some(steps) = timestamps.steps() {
        let row_start = piece.entries.start;
        let mut sink = RunSink { runs, row_start, timestamps, slot };
        let mut emit = |end: usize, place: usize| sink.push(end, (sink.slot)(place));
        return stepped_segments(timeline, steps, piece, &mut emit);
    }
    let (values, order) = (timestamps.values(), timestamps.order());
    emit_runs(runs, timestamps, piece, slot, |valid, sink| {
        let (mut entry, mut emitted) = (valid.start, 0);
        while entry < valid.end && emitted < max_runs {
            let segment = search(firsts, millis(&values[entry]));
            let starts = &segments[segment].starts;
            let mut emit = |end: usize, place: usize| {
                emitted += 1;
                sink.emit(end, segment << 32 | place);
            };
            let border = firsts.get(segment + 1).copied();
            let rest = &values[entry..valid.end];
            match order {
                Order::Sorted => {
                    let count = border.map_or(rest.len(), |border| before(rest, millis, border));
                    let entries = entry..entry + count;
                    entry = sorted(starts, values, entries, max_runs, &mut emit);
                }
                Order::Blocks(_) => {
                    // Consecutive values are mostly in one segment.
                    let count = inside(rest, firsts[segment], border);
                    each(starts, &rest[..count], |at, place| emit(entry + at + 1, place));
                    entry += count;
                }
            }
        }
        entry
    })
}

/// Length of the prefix of `values` that is at or after `from`, and before `border`.
#[inline]
fn inside(values: &[Millis], from: i64, border: Option<i64>) -> usize {
    let is_inside = |at: i64| from <= at && border.is_none_or(|border| at < border);
    values.iter().take_while(|at| is_inside(millis(at))).count()
}

/// Joins stepped timestamps with the segments of a timeline. Returns the entry after the last one
/// joined.
fn stepped_segments(
    timeline: &Timeline,
    steps: &Steps,
    piece: Piece,
    emit: &mut impl FnMut(usize, usize),
) -> usize {
    let (firsts, segments) = timeline.segments();
    let mut entry = piece.entries.start;
    for _ in 0..piece.max_runs {
        if entry >= piece.entries.end {
            break;
        }
        let at = steps.value(entry);
        let segment = search(firsts, at);
        let starts = &segments[segment].starts;
        let place = search(starts, at);
        let border = starts.get(place + 1).or_else(|| firsts.get(segment + 1));
        entry = border.map_or(piece.entries.end, |&border| steps.before(border));
        emit(entry, segment << 32 | place);
    }
    entry.min(piece.entries.end)
}

/// Receiver of the runs of a piece.
struct RunSink<'a, S> {
    runs: &'a mut Vec<Run>,
    /// The first row of the piece.
    row_start: usize,
    timestamps: &'a Timestamps,
    slot: S,
}

impl<S: Fn(usize) -> Slot> RunSink<'_, S> {
    /// Emits a run up to the entry `end` with the slot of `place`.
    fn emit(&mut self, end: usize, place: usize) {
        self.push(self.timestamps.row_end(end - 1), (self.slot)(place));
    }

    fn push(&mut self, end: usize, slot: Slot) {
        match self.runs.last_mut() {
            Some(last) if last.slot == slot => last.end = end,
            last => {
                let start = last.map_or(self.row_start, |last| last.end);
                self.runs.push(Run { start, end, slot });
            }
        }
    }
}

/// Makes the runs of a piece. `find` emits those of non-null entries and returns the entry after
/// the last one it read. Returns the entry after the last one of the piece.
fn emit_runs<S: Fn(usize) -> Slot>(
    runs: &mut Vec<Run>,
    timestamps: &Timestamps,
    piece: Piece,
    slot: S,
    find: impl Fn(EntryRange, &mut RunSink<'_, S>) -> usize,
) -> usize {
    let entries = piece.entries;
    let row_start = entries.start.checked_sub(1).map_or(0, |last| timestamps.row_end(last));
    let mut sink = RunSink { runs, row_start, timestamps, slot };
    let mut done = entries.start;
    for valid in timestamps.valid_within(entries.clone()) {
        if done < valid.start {
            sink.push(timestamps.row_end(valid.start - 1), Slot::Null);
        }
        let valid_end = valid.end;
        done = find(valid, &mut sink);
        if done < valid_end {
            return done;
        }
    }
    if done < entries.end {
        sink.push(timestamps.row_end(entries.end - 1), Slot::Null);
    }
    entries.end
}

pub(super) type EntryRange = std::ops::Range<usize>;

/// Joins stepped timestamps: the first one after each border is computed. Emits at most `most`
/// runs; returns the entry after the last one joined.
fn stepped(
    starts: &[i64],
    steps: &Steps,
    entries: EntryRange,
    most: usize,
    emit: &mut impl FnMut(usize, usize),
) -> usize {
    let (mut entry, mut place) = (entries.start, 0);
    for _ in 0..most {
        if entry >= entries.end {
            break;
        }
        let at = steps.value(entry);
        place += gallop(&starts[place..], |&start| start <= at) - 1;
        entry = starts.get(place + 1).map_or(entries.end, |&border| steps.before(border));
        emit(entry, place);
    }
    entry.min(entries.end)
}

/// Joins ascending values from border to border, at most `most` runs. Returns the entry after the
/// last one joined.
fn sorted(
    starts: &[i64],
    values: &[Millis],
    entries: EntryRange,
    most: usize,
    emit: &mut impl FnMut(usize, usize),
) -> usize {
    let values = &values[..entries.end];
    let mut entry = entries.start;
    let (mut place, mut emitted) = (0, 0);
    while entry < values.len() && emitted < most {
        let at = millis(&values[entry]);
        // starts[0] is the lowest i64, so every value has a place.
        place += gallop(&starts[place..], |&start| start <= at) - 1;
        entry = match starts.get(place + 1) {
            Some(&border) => entry + before(&values[entry..], millis, border),
            None => values.len(),
        };
        emit(entry, place);
        emitted += 1;
    }
    entry
}

/// Joins values in any order by blocks; most blocks lie between two borders.
fn by_blocks(
    starts: &[i64],
    values: &[Millis],
    blocks: &[(i64, i64)],
    entries: EntryRange,
    emit: &mut impl FnMut(usize, usize),
) {
    let mut entry = entries.start;
    let mut place = 0;
    while entry < entries.end {
        let block = entry / BLOCK_ROWS;
        let end = entries.end.min((block + 1) * BLOCK_ROWS);
        let (least, most) = blocks[block];
        let holds = |place: usize| {
            starts[place] <= least && starts.get(place + 1).is_none_or(|&border| most < border)
        };
        if !holds(place) {
            place = search(starts, least);
        }
        if holds(place) {
            emit(end, place);
        } else {
            // Only steps between the lowest and the highest value can occur.
            let last = place + search(&starts[place..], most);
            each(&starts[place..=last], &values[entry..end], |at, found| {
                emit(entry + at + 1, place + found);
            });
        }
        entry = end;
    }
}

/// Number of searches that run interleaved.
const LANES: usize = 16;

fn each(starts: &[i64], values: &[Millis], mut emit: impl FnMut(usize, usize)) {
    let (chunks, rest) = values.as_chunks::<LANES>();
    for (chunk, values) in chunks.iter().enumerate() {
        let mut places = [0; LANES];
        let mut length = starts.len();
        while length > 1 {
            let half = length / 2;
            for (place, value) in places.iter_mut().zip(values) {
                let after = starts[*place + half] <= millis(value);
                *place = select_unpredictable(after, *place + half, *place);
            }
            length -= half;
        }
        for (lane, place) in places.into_iter().enumerate() {
            emit(chunk * LANES + lane, place);
        }
    }
    let first = values.len() - rest.len();
    for (at, value) in rest.iter().enumerate() {
        emit(first + at, search(starts, millis(value)));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_buffer::NullBuffer;
    use proptest::prelude::*;

    use super::*;
    use crate::clock::Moment;
    use crate::index::open_times::open_times;
    use crate::index::timeline::Step;
    use crate::interval::{Timestamp, ValidityInterval};
    use crate::object::{ObjectId, ObjectInfo, ObjectPath};

    fn timeline(pieces: &[(i64, i64)], unknown_from: Option<i64>) -> Timeline {
        let at = Timestamp::from_millis;
        let versions: Vec<_> = pieces
            .iter()
            .enumerate()
            .map(|(n, &(from, until))| {
                Arc::new(ObjectInfo {
                    path: ObjectPath::new("A").unwrap(),
                    id: ObjectId::from_bytes([n as u8; 16]),
                    validity: ValidityInterval::new(at(from), at(until)).unwrap(),
                    created: at(n as i64),
                    size_bytes: None,
                    md5: None,
                    metadata: Default::default(),
                })
            })
            .collect();
        let until = unknown_from.unwrap_or(i64::MAX);
        let span = ValidityInterval::new(at(i64::MIN), at(until)).unwrap();
        Timeline::unknown().learn(span, &versions, Moment::default())
    }

    /// Joins row by row.
    fn naive(timeline: &Timeline, timestamps: &Timestamps) -> Vec<Slot> {
        let slot = |row| match timestamps.value(row) {
            None => Slot::Null,
            Some(at) => timeline.at(at).state.into(),
        };
        (0..timestamps.len()).map(slot).collect()
    }

    fn expanded(runs: &Runs) -> Vec<Slot> {
        runs.iter().flat_map(|run| std::iter::repeat_n(run.slot, run.end - run.start)).collect()
    }

    fn check(timeline: &Timeline, timestamps: &Timestamps) {
        let runs = join(timeline, timestamps);
        assert_eq!(expanded(&runs), naive(timeline, timestamps));
        assert!(runs.0.windows(2).all(|pair| pair[0].slot != pair[1].slot));
        assert!(runs.0.iter().all(|run| run.start < run.end));
        // Pieces give the same runs; a run can continue in the next piece.
        let (mut pieces, mut piece) = (JoinPieces::new(timeline, timestamps), Vec::new());
        let mut joined: Vec<Run> = Vec::new();
        while pieces.next_into(&mut piece) {
            for run in &piece {
                match joined.last_mut() {
                    Some(last) if last.slot == run.slot && last.end == run.start => {
                        last.end = run.end;
                    }
                    _ => joined.push(*run),
                }
            }
        }
        assert_eq!(joined, runs.0);
        // The lowest and highest timestamp of each run is found without reading each row.
        for run in runs.iter().filter(|run| run.slot != Slot::Null) {
            let rows = (run.start..run.end).filter_map(|row| timestamps.value(row));
            let millis: Vec<i64> = rows.map(Timestamp::as_millis).collect();
            let bounds = millis.iter().min().zip(millis.iter().max());
            let bounds = bounds.map(|(least, most)| (*least, *most));
            assert_eq!(timestamps.bounds_of(run.start..run.end), bounds);
        }
    }

    #[test]
    fn pieces_of_many_runs_are_joined_like_the_whole() {
        let timeline = timeline(&[(10, 20)], None);
        let rows = 3 * JoinPieces::MAX_RUNS / 2;
        let alternating = |n: usize| Some(if n.is_multiple_of(2) { 15 } else { 5 });
        check(&timeline, &(0..rows).map(alternating).collect());
        let with_nulls = |n: usize| alternating(n).filter(|_| !n.is_multiple_of(3));
        check(&timeline, &(0..rows).map(with_nulls).collect());
        let sorted_with_many_runs = |n: usize| Some(n as i64);
        let pieces: Vec<_> = (0..rows as i64).step_by(2).map(|n| (n, n + 1)).collect();
        check(&self::timeline(&pieces, None), &(0..rows).map(sorted_with_many_runs).collect());
    }

    #[test]
    fn no_rows_give_no_runs() {
        let none = Timestamps::new(Vec::new(), None);
        assert_eq!(join(&timeline(&[(0, 10)], None), &none), Runs::default());
    }

    #[test]
    fn borders_and_extremes_belong_where_the_interval_says() {
        let timeline = timeline(&[(10, 20), (i64::MIN, 0)], Some(100));
        let times = [i64::MIN, -1, 0, 9, 10, 19, 20, 99, 100, i64::MAX - 1, i64::MAX];
        check(&timeline, &Timestamps::new(times.to_vec(), None));
        check(&timeline, &Timestamps::new(times.iter().rev().copied().collect::<Vec<_>>(), None));
    }

    #[test]
    fn a_million_sorted_rows_fall_into_as_many_runs_as_there_are_spans() {
        let pieces: Vec<_> = (0..100).map(|n| (n * 10_000, n * 10_000 + 10_000)).collect();
        let timestamps = Timestamps::new((0..1_000_000).collect::<Vec<i64>>(), None);
        assert_eq!(join(&timeline(&pieces, None), &timestamps).0.len(), 100);
    }

    #[test]
    fn all_rows_of_two_thousand_million_steps_are_joined_at_once() {
        let timeline = timeline(&[(10, 20), (1 << 20, 1 << 30)], Some(1 << 30));
        let rows = Timestamps::MAX_ROWS;
        let timestamps = Timestamps::stepped(Timestamp::from_millis(0), 1, rows);
        let runs = join(&timeline, &timestamps);
        let ends: Vec<usize> = runs.iter().map(|run| run.end).collect();
        assert_eq!(ends, [10, 20, 1 << 20, 1 << 30, rows]);
        let unknown = |step: &Step| (step.state == State::Unknown).then_some(());
        let open = open_times(&timeline, &timestamps, 2, unknown);
        assert_eq!(
            open.iter().map(|(at, ())| at.as_millis()).collect::<Vec<_>>(),
            [1 << 30, (1 << 30) + 1]
        );
    }

    fn any_pieces() -> impl Strategy<Value = Vec<(i64, i64)>> {
        let piece = (-50..50_i64, 1..40_i64).prop_map(|(from, length)| (from, from + length));
        proptest::collection::vec(piece, 0..20)
    }

    proptest! {
        #[test]
        fn it_is_the_row_by_row_look_up_for_timestamps_of_every_order(
            pieces in any_pieces(),
            unknown_from in proptest::option::of(0..60_i64),
            mut rows in proptest::collection::vec(proptest::option::weighted(0.9, -60..100_i64), 0..1500),
            sort in 0..3_u8,
        ) {
            match sort {
                0 => rows.sort_unstable(),
                // Nearly sorted: only neighbours are swapped.
                1 => {
                    rows.sort_unstable();
                    for pair in rows.chunks_exact_mut(3) {
                        pair.swap(0, 2);
                    }
                }
                _ => {}
            }
            let timestamps: Timestamps = rows.into_iter().collect();
            let timeline = timeline(&pieces, unknown_from);
            check(&timeline, &timestamps);
            let unknown = |step: &Step| (step.state == State::Unknown).then_some(());
            let mut expected: Vec<_> = timestamps
                .runs()
                .filter_map(|(_, at)| Some((at?, unknown(&timeline.at(at?))?)))
                .collect();
            // A null between two equal ones parts them.
            expected.truncate(5);
            prop_assert_eq!(open_times(&timeline, &timestamps, 5, unknown), expected);
        }

        #[test]
        fn stepped_timestamps_give_the_same(
            pieces in any_pieces(),
            unknown_from in proptest::option::of(0..60_i64),
            first in -70..60_i64,
            step in 1..30_u64,
            rows in 0..90_usize,
        ) {
            let stepped = Timestamps::stepped(Timestamp::from_millis(first), step, rows);
            let timeline = timeline(&pieces, unknown_from);
            check(&timeline, &stepped);
            let listed: Timestamps = stepped.rows().map(|at| at.map(|at| at.as_millis())).collect();
            let unknown = |step: &Step| (step.state == State::Unknown).then_some(());
            let open = |timestamps| open_times(&timeline, timestamps, 5, unknown);
            prop_assert_eq!(open(&stepped), open(&listed));
        }

        #[test]
        fn run_encoded_timestamps_give_the_same(
            pieces in any_pieces(),
            entries in proptest::collection::vec((proptest::option::of(-60..100_i64), 1..50_i32), 1..80),
        ) {
            let mut end = 0;
            let ends: Vec<i32> = entries.iter().map(|(_, rows)| { end += rows; end }).collect();
            let values: Vec<i64> = entries.iter().map(|(at, _)| at.unwrap_or(3)).collect();
            let nulls = NullBuffer::from_iter(entries.iter().map(|(at, _)| at.is_some()));
            let timestamps = Timestamps::run_encoded(values, Some(nulls), ends);
            check(&timeline(&pieces, None), &timestamps);
        }
    }
}
