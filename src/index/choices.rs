//! Join of a column with several look-ups, where a key chooses one of them for each row.
//!
//! ```text
//!  key column ──▶ RowChoices: rows 0..7 look-up 0, 7..9 look-up 1, 9..12 none (null key)
//!                     × a Timeline per look-up × Timestamps ──▶ runs: rows, look-up, version
//! ```
//!
//! The cost grows with the runs of the key, and within each run with the runs of the join. Each
//! look-up remembers the step of its last row, so interleaved keys cost one comparison per run.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use super::join::{Piece, Run, Slot, join_steps, join_timeline, open_times_of};
use super::key_column::{KeyColumn, KeyIds};
use super::timeline::{Step, Timeline};
use super::timestamps::{Millis, Order, Timestamps, millis};
use crate::interval::Timestamp;

/// Runs of at least this many rows are joined like a separate column.
const LONG_RUN_ROWS: usize = 64;
/// Runs of equal look-ups that count as one step of work.
const EQUAL_RUNS_PER_STEP: usize = 8;

/// Look-up of each row.
#[derive(Debug, Clone)]
pub(crate) struct RowChoices {
    /// The look-up by value of a key, if that decides it alone.
    by_value: Option<ValueChoices>,
    /// Computed on demand where the key decides.
    runs: OnceLock<ChoiceRuns>,
}

/// A look-up for each distinct value of a key.
#[derive(Debug, Clone)]
pub(crate) struct ValueChoices {
    pub(crate) key: KeyColumn,
    /// By number of the value; `None`: the look-up has the number of the value.
    choices: Option<Arc<[u32]>>,
}

impl ValueChoices {
    /// The look-up of the value with a number, or [`RowChoices::NONE`].
    pub(crate) fn choice(&self, number: usize) -> u32 {
        match &self.choices {
            Some(choices) => choices[number],
            None => number as u32,
        }
    }
}

/// Look-up of each row, as runs that cover all rows without gaps.
#[derive(Debug, Clone)]
struct ChoiceRuns {
    /// For each run, the row after its last one.
    ends: Arc<[i32]>,
    /// By run: the number of the look-up, [`RowChoices::NULL`] or [`RowChoices::NONE`].
    choices: Arc<[u32]>,
}

/// Runs in the making: neighbours with the same choice become one.
#[derive(Default)]
struct MergedRuns {
    ends: Vec<i32>,
    choices: Vec<u32>,
}

impl MergedRuns {
    fn push(&mut self, end: i32, choice: u32) {
        match (self.ends.last_mut(), self.choices.last()) {
            (Some(last), Some(&before)) if before == choice => *last = end,
            _ => {
                self.ends.push(end);
                self.choices.push(choice);
            }
        }
    }
}

impl From<MergedRuns> for ChoiceRuns {
    fn from(MergedRuns { ends, choices }: MergedRuns) -> Self {
        Self { ends: ends.into(), choices: choices.into() }
    }
}

impl From<ChoiceRuns> for RowChoices {
    fn from(runs: ChoiceRuns) -> Self {
        Self { by_value: None, runs: OnceLock::from(runs) }
    }
}

fn merged(runs: impl Iterator<Item = (i32, u32)>) -> ChoiceRuns {
    let mut merged = MergedRuns::default();
    runs.for_each(|(end, choice)| merged.push(end, choice));
    merged.into()
}

impl RowChoices {
    /// The cell is null, because the key or the timestamp is null.
    pub(crate) const NULL: u32 = KeyIds::NULL;
    /// No look-up covers that value of the key.
    pub(crate) const NONE: u32 = u32::MAX - 1;

    /// One look-up per distinct value of the key, with the number of the value.
    pub(crate) fn by_value(key: &KeyColumn) -> Self {
        let (ends, choices) = (Arc::clone(key.ends()), Arc::clone(&key.ids().by_run));
        let by_value = Some(ValueChoices { key: key.clone(), choices: None });
        Self { by_value, runs: OnceLock::from(ChoiceRuns { ends, choices }) }
    }

    /// The look-up that `choices` gives for each distinct value of the key, by its number. Neighbours
    /// with the same look-up become one run, so the cost of a join follows the look-ups and not the
    /// values.
    ///
    /// # Panics
    /// If there are fewer choices than distinct values.
    pub(crate) fn of_values(key: &KeyColumn, choices: &[u32]) -> Self {
        assert!(choices.len() >= key.ids().len(), "a value has no choice");
        let by_value = ValueChoices { key: key.clone(), choices: Some(choices.into()) };
        Self { by_value: Some(by_value), runs: OnceLock::new() }
    }

    /// The look-up by value of a key, if that decides it alone.
    pub(crate) fn by_key_value(&self) -> Option<&ValueChoices> {
        self.by_value.as_ref()
    }

    /// The runs of equal look-ups.
    fn choice_runs(&self) -> &ChoiceRuns {
        self.runs.get_or_init(|| {
            let Some(by_value) = &self.by_value else { return MergedRuns::default().into() };
            let number = |id: u32| if id == KeyIds::NULL { None } else { Some(id as usize) };
            let choice = |id| number(id).map_or(Self::NULL, |number| by_value.choice(number));
            let by_run = by_value.key.ids().by_run.iter().map(|&id| choice(id));
            merged(by_value.key.ends().iter().copied().zip(by_run))
        })
    }

    /// Look-up 0 in all rows with a key that is not null.
    pub(crate) fn where_valid(key: &KeyColumn) -> Self {
        if !key.has_nulls() {
            let rows = (!key.is_empty()).then_some((key.len() as i32, 0));
            return merged(rows.into_iter()).into();
        }
        let choice = |value: Option<_>| if value.is_some() { 0 } else { Self::NULL };
        merged(key.runs().map(|(end, value)| (end as i32, choice(value)))).into()
    }

    /// The look-up from a step function over the values of the key: `choice(n)` holds from
    /// `starts[n]` on. `values` are the values of the key as timestamps.
    ///
    /// # Panics
    /// If `starts` is not ascending or does not begin with the lowest i64.
    pub(crate) fn by_steps(
        values: &Timestamps,
        starts: &[i64],
        choice: impl Fn(usize) -> Option<u32>,
    ) -> Self {
        let slot = |step: usize| choice(step).map_or(Slot::Absent, Slot::Version);
        let runs = join_steps(starts, slot, values);
        let choice = |run: Run| match run.slot {
            Slot::Version(choice) => choice,
            Slot::Absent | Slot::Unknown => Self::NONE,
            Slot::Null => Self::NULL,
        };
        let ends = runs.iter().map(|run| run.end as i32).collect();
        ChoiceRuns { ends, choices: runs.iter().map(choice).collect() }.into()
    }

    /// These choices, with a null wherever the timestamp is null.
    #[must_use]
    pub(crate) fn without_null_timestamps(self, timestamps: &Timestamps) -> Self {
        if !timestamps.has_nulls() {
            return self;
        }
        let mut merged = MergedRuns::default();
        let mut times = timestamps.runs().peekable();
        let mut start = 0;
        for (_, end, choice) in self.runs() {
            while start < end {
                let Some(&(time_end, at)) = times.peek() else { break };
                let stop = end.min(time_end);
                let choice = if at.is_none() { Self::NULL } else { choice };
                merged.push(stop as i32, choice);
                start = stop;
                if stop == time_end {
                    times.next();
                }
            }
        }
        ChoiceRuns::from(merged).into()
    }

    /// The runs: first row, row after the last one, choice.
    pub(crate) fn runs(&self) -> impl Iterator<Item = (usize, usize, u32)> {
        let mut start = 0;
        let ChoiceRuns { ends, choices } = self.choice_runs();
        ends.iter().zip(choices.iter()).map(move |(&end, &choice)| {
            let end = end as usize;
            (std::mem::replace(&mut start, end), end, choice)
        })
    }

    /// The first row of each of `count` look-ups; `None` for a look-up without rows.
    pub(crate) fn first_rows(&self, count: usize) -> Vec<Option<usize>> {
        let mut first = vec![None; count];
        for (start, _, choice) in self.runs() {
            if let Some(first) = first.get_mut(choice as usize) {
                first.get_or_insert(start);
            }
        }
        first
    }

    /// The choice, if all rows have the same one.
    pub(crate) fn only(&self) -> Option<u32> {
        let Some(by_value) = &self.by_value else {
            return match self.choice_runs().choices[..] {
                [only] => Some(only),
                _ => None,
            };
        };
        let values = by_value.key.ids().len();
        let first = (values > 0 && !by_value.key.has_nulls()).then(|| by_value.choice(0))?;
        (1..values).all(|number| by_value.choice(number) == first).then_some(first)
    }

    /// The ranges of rows of each of `groups` groups; `group` maps a look-up to its group.
    pub(crate) fn ranges(&self, groups: usize, group: impl Fn(u32) -> Option<usize>) -> RowRanges {
        let mut offsets = vec![0_usize; groups + 1];
        let grouped = || {
            let with_group = |(start, end, choice)| {
                let group = (choice < Self::NONE).then(|| group(choice)).flatten()?;
                Some((start as u32..end as u32, group))
            };
            self.runs().filter_map(with_group)
        };
        grouped().for_each(|(_, group)| offsets[group + 1] += 1);
        for group in 0..groups {
            offsets[group + 1] += offsets[group];
        }
        let mut next = offsets.clone();
        let mut ranges = vec![0..0; offsets[groups]];
        for (rows, group) in grouped() {
            ranges[next[group]] = rows;
            next[group] += 1;
        }
        RowRanges { offsets, ranges }
    }
}

/// Ranges of rows by group, in ascending order.
#[derive(Debug)]
pub(crate) struct RowRanges {
    /// By group: index of its first range.
    offsets: Vec<usize>,
    ranges: Vec<Range<u32>>,
}

impl RowRanges {
    /// The ranges of one group.
    ///
    /// # Panics
    /// If there is no such group.
    pub(crate) fn of_group(&self, group: usize) -> &[Range<u32>] {
        &self.ranges[self.offsets[group]..self.offsets[group + 1]]
    }
}

/// Source of the slots of one look-up.
#[derive(Debug, Clone, Copy)]
pub(crate) enum ChoiceSource<'a> {
    /// One slot for all of its rows.
    Fixed(Slot),
    /// The state of a timeline at the timestamp of each row.
    Timeline(&'a Timeline),
}

/// Consecutive rows with one look-up and one slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ChoiceRun {
    /// The first row.
    pub start: usize,
    /// The row after the last one.
    pub end: usize,
    /// The look-up.
    pub choice: u32,
    /// The slot that serves the rows.
    pub slot: Slot,
}

/// The step of the last row of a look-up.
#[derive(Debug, Clone, Copy)]
struct Cursor {
    from: i64,
    until: i64,
    slot: Slot,
}

/// Join of one column with several look-ups, in pieces, so that other work can run in between.
#[derive(Debug)]
pub(crate) struct ChoicePieces<'a> {
    choices: &'a ChoiceRuns,
    sources: &'a [ChoiceSource<'a>],
    timestamps: &'a Timestamps,
    /// The timestamp of each row, if each is listed and none is null.
    row_values: Option<&'a [Millis]>,
    /// By look-up.
    cursors: Vec<Cursor>,
    /// By look-up: the first one that serves its rows with the same.
    first_equal: Vec<u32>,
    run: usize,
    row: usize,
    /// The entry of the timestamps that contains `row`.
    entry: usize,
    piece: Vec<Run>,
}

impl<'a> ChoicePieces<'a> {
    /// Approximate number of rows or runs of one piece.
    const MAX_RUNS: usize = 1 << 14;

    /// A join that begins with the first row.
    pub(crate) fn new(
        choices: &'a RowChoices,
        sources: &'a [ChoiceSource<'a>],
        timestamps: &'a Timestamps,
    ) -> Self {
        let nowhere = Cursor { from: i64::MAX, until: i64::MIN, slot: Slot::Unknown };
        let cursors = vec![nowhere; sources.len()];
        let first_equal = (0..sources.len() as u32).collect();
        let (run, row, entry, piece) = (0, 0, 0, Vec::new());
        let is_listed = timestamps.has_row_entries() && !timestamps.has_nulls();
        let values = timestamps.values();
        let row_values = (is_listed && values.len() == timestamps.len()).then_some(values);
        let choices = choices.choice_runs();
        Self {
            choices,
            sources,
            timestamps,
            row_values,
            cursors,
            first_equal,
            run,
            row,
            entry,
            piece,
        }
    }

    /// Takes look-ups of one version for all of their rows together where they give the same version:
    /// a run may then be of several of them, and names the first. `timeline` gives the number of the
    /// timeline that a look-up is in.
    #[must_use]
    pub(crate) fn merging(mut self, timeline: impl Fn(usize) -> u32) -> Self {
        let mut known: HashMap<(u32, u32), u32> = HashMap::new();
        for (number, source) in self.sources.iter().enumerate() {
            if let ChoiceSource::Fixed(Slot::Version(version)) = source {
                let first = known.entry((timeline(number), *version)).or_insert(number as u32);
                self.first_equal[number] = *first;
            }
        }
        self
    }

    /// Replaces `runs` by those of the next rows; returns `false` after the last row. The first run
    /// can continue the last run of the previous piece.
    pub(crate) fn next_into(&mut self, runs: &mut Vec<ChoiceRun>) -> bool {
        runs.clear();
        let mut work = 0;
        while work < Self::MAX_RUNS
            && let Some(&end) = self.choices.ends.get(self.run)
        {
            let (start, end) = (self.row, end as usize);
            let choice = self.choices.choices[self.run];
            match self.sources.get(choice as usize) {
                None => {
                    let slot = if choice == RowChoices::NULL { Slot::Null } else { Slot::Absent };
                    push(runs, ChoiceRun { start: self.row, end, choice, slot });
                    self.row = end;
                }
                Some(ChoiceSource::Fixed(slot)) => {
                    let last = self.last_equal(choice);
                    work += (last - self.run) / EQUAL_RUNS_PER_STEP;
                    self.run = last;
                    self.row = self.choices.ends[last] as usize;
                    let choice = self.first_equal[choice as usize];
                    push(runs, ChoiceRun { start, end: self.row, choice, slot: *slot });
                    self.run += 1;
                    work += 1;
                    continue;
                }
                Some(ChoiceSource::Timeline(timeline)) => {
                    if let Some(values) = self.row_values
                        && end - self.row < LONG_RUN_ROWS
                    {
                        work += self.join_rows(values, runs);
                        continue;
                    }
                    self.skip_entries();
                    if end - self.row < LONG_RUN_ROWS {
                        work += end - self.row;
                        self.join_short(timeline, choice, end, runs);
                    } else {
                        work += self.join_long(timeline, choice, end, runs);
                    }
                }
            }
            work += 1;
            if self.row == end {
                self.run += 1;
            }
        }
        !runs.is_empty()
    }

    /// The last of the next runs that are served with the same as `choice`, at most as many as one
    /// piece may have.
    fn last_equal(&self, choice: u32) -> usize {
        let first = self.first_equal[choice as usize];
        let most = (self.run + Self::MAX_RUNS * EQUAL_RUNS_PER_STEP).min(self.choices.ends.len());
        let rest = &self.choices.choices[self.run + 1..most];
        let is_equal =
            |next: &&u32| self.first_equal.get(**next as usize).is_some_and(|one| *one == first);
        self.run + rest.iter().take_while(is_equal).count()
    }

    /// Advances to the entry that contains the next row.
    fn skip_entries(&mut self) {
        if self.timestamps.has_row_entries() {
            self.entry = self.row;
            return;
        }
        let mut steps = 0;
        while self.timestamps.row_end(self.entry) <= self.row {
            self.entry += 1;
            steps += 1;
            if steps == LONG_RUN_ROWS {
                self.entry = self.timestamps.entry_of(self.row);
                return;
            }
        }
    }

    /// All short runs from this one on, as many as one piece may have, if each row has a timestamp of
    /// its own and none is null. Gives what it cost.
    fn join_rows(&mut self, values: &[Millis], runs: &mut Vec<ChoiceRun>) -> usize {
        let (choices, sources) = (self.choices, self.sources);
        let first_row = self.row;
        while let Some(&end) = choices.ends.get(self.run)
            && self.row - first_row < Self::MAX_RUNS
        {
            let (end, choice) = (end as usize, choices.choices[self.run]);
            let Some(ChoiceSource::Timeline(timeline)) = sources.get(choice as usize) else {
                break;
            };
            if end - self.row >= LONG_RUN_ROWS {
                break;
            }
            let cursor = &mut self.cursors[choice as usize];
            for at in &values[self.row..end] {
                let at = millis(at);
                if at < cursor.from || cursor.until <= at {
                    let (from, until, step) = timeline.step_around(Timestamp::from_millis(at));
                    *cursor = Cursor { from, until, slot: step.state.into() };
                }
                push(
                    runs,
                    ChoiceRun { start: self.row, end: self.row + 1, choice, slot: cursor.slot },
                );
                self.row += 1;
            }
            self.run += 1;
        }
        self.row - first_row
    }

    /// Joins row by row, from the step of the look-up's last row.
    fn join_short(
        &mut self,
        timeline: &Timeline,
        choice: u32,
        end: usize,
        runs: &mut Vec<ChoiceRun>,
    ) {
        let cursor = &mut self.cursors[choice as usize];
        while self.row < end {
            let entry_end = self.timestamps.row_end(self.entry);
            let stop = entry_end.min(end);
            let slot = match self.timestamps.entry(self.entry) {
                None => Slot::Null,
                Some(at) => {
                    let at_millis = at.as_millis();
                    if at_millis < cursor.from || cursor.until <= at_millis {
                        let (from, until, step) = timeline.step_around(at);
                        *cursor = Cursor { from, until, slot: step.state.into() };
                    }
                    cursor.slot
                }
            };
            push(runs, ChoiceRun { start: self.row, end: stop, choice, slot });
            self.row = stop;
            if stop == entry_end {
                self.entry += 1;
            }
        }
    }

    /// Joins like a separate column, up to the rows of one piece. Returns the cost.
    fn join_long(
        &mut self,
        timeline: &Timeline,
        choice: u32,
        end: usize,
        runs: &mut Vec<ChoiceRun>,
    ) -> usize {
        let timestamps = self.timestamps;
        let whole = matches!(timestamps.order(), Order::Sorted) && !timestamps.has_nulls();
        let last = timestamps.entry_of(end - 1) + 1;
        let last = if whole { last } else { last.min(self.entry + Self::MAX_RUNS) };
        let piece = Piece { entries: self.entry..last, max_runs: Self::MAX_RUNS };
        self.piece.clear();
        let done = join_timeline(&mut self.piece, timeline, timestamps, piece);
        for run in &self.piece {
            let (start, end) = (run.start.max(self.row), run.end.min(end));
            push(runs, ChoiceRun { start, end, choice, slot: run.slot });
        }
        // `done` > `self.entry`: each piece has at least one entry.
        let joined = timestamps.row_end(done - 1).min(end);
        self.row = joined;
        self.entry = done - usize::from(timestamps.row_end(done - 1) > joined);
        if whole { self.piece.len() } else { last }
    }
}

fn push(runs: &mut Vec<ChoiceRun>, run: ChoiceRun) {
    match runs.last_mut() {
        Some(last) if last.slot == run.slot && last.choice == run.choice => last.end = run.end,
        _ => runs.push(run),
    }
}

/// The first few timestamps in `ranges` of rows at whose step `open` returns a value: each
/// timestamp once, with the value.
pub(crate) fn open_times_within<T>(
    timeline: &Timeline,
    timestamps: &Timestamps,
    ranges: &[Range<u32>],
    limit: usize,
    open: impl Fn(&Step) -> Option<T>,
) -> Vec<(Timestamp, T)> {
    let mut found: Vec<(Timestamp, T)> = Vec::new();
    // Start and end of the last step without a value.
    let mut closed = (i64::MAX, i64::MIN);
    for rows in ranges {
        let first = timestamps.entry_of(rows.start as usize);
        let last = match rows.len() {
            1 => first,
            _ => timestamps.entry_of(rows.end as usize - 1),
        };
        if last > first {
            let more = open_times_of(timeline, timestamps, first..last + 1, limit, &open);
            let is_new = |at: &Timestamp| found.iter().all(|(known, _)| known != at);
            let more: Vec<_> = more.into_iter().filter(|(at, _)| is_new(at)).collect();
            found.extend(more);
        } else if let Some(at) = timestamps.entry(first) {
            let millis = at.as_millis();
            if closed.0 <= millis && millis < closed.1 {
                continue;
            }
            let (from, until, step) = timeline.step_around(at);
            match open(&step) {
                None => closed = (from, until),
                Some(told) if found.iter().all(|(known, _)| *known != at) => found.push((at, told)),
                Some(_) => {}
            }
        }
        if found.len() >= limit {
            found.truncate(limit);
            break;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::clock::Moment;
    use crate::index::{KeyBuilder, KeyType, KeyValue, State};
    use crate::interval::ValidityInterval;
    use crate::object::{ObjectId, ObjectInfo, ObjectPath};

    fn timeline(pieces: &[(i64, i64)], known: Option<(i64, i64)>) -> Timeline {
        let at = Timestamp::from_millis;
        let version = |(n, &(from, until)): (usize, &(i64, i64))| {
            Arc::new(ObjectInfo {
                path: ObjectPath::new("A").unwrap(),
                id: ObjectId::from_bytes([n as u8; 16]),
                validity: ValidityInterval::new(at(from), at(until)).unwrap(),
                created: at(n as i64),
                size_bytes: None,
                md5: None,
                metadata: Default::default(),
            })
        };
        let versions: Vec<_> = pieces.iter().enumerate().map(version).collect();
        let span = match known {
            Some((from, until)) => ValidityInterval::new(at(from), at(until)).unwrap(),
            None => ValidityInterval::ALL,
        };
        Timeline::unknown().learn(span, &versions, Moment::from_millis(5))
    }

    fn pieces() -> impl Strategy<Value = Vec<(i64, i64)>> {
        let piece = (-60_i64..60, 1_i64..40).prop_map(|(from, length)| (from, from + length));
        proptest::collection::vec(piece, 0..12)
    }

    /// Rows in all layouts of timestamps: sorted or not, with nulls, run-encoded, stepped.
    fn timestamps() -> impl Strategy<Value = Timestamps> {
        let rows = proptest::collection::vec(
            prop_oneof![9 => (-70_i64..70).prop_map(Some), 1 => Just(None)],
            1..400,
        );
        (rows, 0..5_usize, 1..30_i32).prop_map(|(mut rows, layout, length)| match layout {
            0 => rows.into_iter().collect(),
            1 => rows.into_iter().map(|at| at.or(Some(3))).collect(),
            2 => {
                rows.sort_by_key(|at| at.unwrap_or(7));
                rows.into_iter().collect()
            }
            3 => {
                let plain: Timestamps = rows.iter().copied().collect();
                let ends: Vec<i32> = (1..=plain.len() as i32).map(|n| n * length).collect();
                plain.with_ends(ends)
            }
            _ => Timestamps::stepped(Timestamp::from_millis(-70), 3, rows.len()),
        })
    }

    /// The key of `rows` rows, with these values and their numbers of rows in turn.
    fn key_of_runs(runs: &[(Option<i64>, usize)], rows: usize) -> KeyColumn {
        let mut builder = KeyBuilder::new(KeyType::Integers);
        for (value, length) in runs.iter().cycle() {
            let length = (*length).min(rows - builder.len());
            builder.push(length, value.map(KeyValue::Integer));
            if builder.len() == rows {
                break;
            }
        }
        builder.finish()
    }

    /// The look-up of a value: 0 to 4 have their own, 5 shares that of 0, higher ones have none.
    fn choice_of(value: Option<KeyValue<'_>>) -> u32 {
        match value {
            None => RowChoices::NULL,
            Some(KeyValue::Integer(value)) if value > 5 => RowChoices::NONE,
            Some(KeyValue::Integer(value)) => (value % 5) as u32,
            Some(KeyValue::Text(_)) => unreachable!(),
        }
    }

    fn distinct(mut times: Vec<Timestamp>) -> Vec<Timestamp> {
        times.sort_unstable();
        times.dedup();
        times
    }

    /// Look-up and version of each row, from the runs of the join.
    fn joined_rows(
        choices: &RowChoices,
        sources: &[ChoiceSource<'_>],
        timestamps: &Timestamps,
    ) -> Result<Vec<(u32, Slot)>, TestCaseError> {
        let mut joined = Vec::new();
        let (mut join, mut runs) = (ChoicePieces::new(choices, sources, timestamps), vec![]);
        while join.next_into(&mut runs) {
            for run in &runs {
                prop_assert_eq!(run.start, joined.len());
                prop_assert!(run.end > run.start);
                joined.resize(run.end, (run.choice, run.slot));
            }
        }
        Ok(joined)
    }

    /// Checks that the open times within `ranges` are those of `times` that the timeline does not
    /// know.
    fn check_open_times(
        timeline: &Timeline,
        timestamps: &Timestamps,
        ranges: &[Range<u32>],
        mut times: Vec<Timestamp>,
    ) -> Result<(), TestCaseError> {
        let unknown = |step: &Step| (step.state == State::Unknown).then_some(());
        let found = open_times_within(timeline, timestamps, ranges, 1000, unknown);
        let found = found.into_iter().map(|(at, ())| at).collect();
        times.retain(|at| timeline.at(*at).state == State::Unknown);
        // Neighbouring ranges may repeat a time within one piece only.
        prop_assert_eq!(distinct(found), distinct(times));
        Ok(())
    }

    proptest! {
        #[test]
        fn each_row_gets_what_its_own_look_up_says(
            timestamps in timestamps(),
            key in proptest::collection::vec((prop_oneof![
                9 => (0_i64..8).prop_map(Some), 1 => Just(None)
            ], 1..200_usize), 1..400),
            all in proptest::collection::vec(pieces(), 5),
            known in proptest::option::of((-50_i64..0, 1_i64..50)),
            fixed in 0..5_usize,
        ) {
            let key = key_of_runs(&key, timestamps.len());
            // Values 0..5 have look-ups of their own, 5 shares that of 0, and 6 and 7 have none.
            let values = key.to_timestamps().unwrap();
            let starts = [i64::MIN, 0, 1, 2, 3, 4, 5, 6];
            let of = |step: usize| [None, Some(0), Some(1), Some(2), Some(3), Some(4), Some(0), None]
                [step];
            let choices = RowChoices::by_steps(&values, &starts, of);
            let timelines: Vec<Timeline> = all.iter().map(|all| timeline(all, known)).collect();
            let sources: Vec<ChoiceSource<'_>> = timelines
                .iter()
                .enumerate()
                .map(|(n, one)| match n == fixed {
                    true => ChoiceSource::Fixed(Slot::Version(99)),
                    false => ChoiceSource::Timeline(one),
                })
                .collect();
            let joined = joined_rows(&choices, &sources, &timestamps)?;
            prop_assert_eq!(joined.len(), timestamps.len());
            for (row, cell) in joined.into_iter().enumerate() {
                let (choice, at) = (choice_of(key.value(row)), timestamps.value(row));
                let slot = match (choice, at) {
                    (RowChoices::NULL, _) => Slot::Null,
                    (RowChoices::NONE, _) => Slot::Absent,
                    (choice, _) if choice as usize == fixed => Slot::Version(99),
                    (_, None) => Slot::Null,
                    (choice, Some(at)) => timelines[choice as usize].at(at).state.into(),
                };
                prop_assert_eq!(cell, (choice, slot), "row {}", row);
            }
            let ranges = choices.ranges(5, |choice| Some(choice as usize));
            for (choice, timeline) in timelines.iter().enumerate() {
                let rows = choices.runs().filter(|(.., one)| *one == choice as u32);
                let rows = rows.flat_map(|(start, end, _)| start..end);
                let times = rows.filter_map(|row| timestamps.value(row)).collect();
                check_open_times(timeline, &timestamps, ranges.of_group(choice), times)?;
            }
        }

        #[test]
        fn null_timestamps_have_no_look_up(
            timestamps in timestamps(),
            values in proptest::collection::vec(proptest::option::of(0_i64..3), 1..20),
        ) {
            let rows = (0..timestamps.len()).map(|row| values[row / 3 % values.len()]);
            let key: KeyColumn = rows.collect();
            let choices = RowChoices::by_value(&key).without_null_timestamps(&timestamps);
            let mut row = 0;
            for (start, end, choice) in choices.runs() {
                prop_assert_eq!(start, row);
                for at in start..end {
                    let expected = match (timestamps.value(at), key.value(at)) {
                        (Some(_), Some(value)) => Some(value),
                        _ => None,
                    };
                    let got = (choice != RowChoices::NULL)
                        .then(|| key.distinct(choice as usize).0);
                    prop_assert_eq!(got, expected);
                }
                row = end;
            }
            prop_assert_eq!(row, timestamps.len());
        }
    }
}
