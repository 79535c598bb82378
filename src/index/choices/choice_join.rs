//! Join of a column in which a key chooses the look-up of each row.

use std::collections::HashMap;

use super::row_choices::{ChoiceRuns, RowChoices};
use crate::index::join::{Piece, Run, Slot, join_timeline};
use crate::index::timeline::Timeline;
use crate::index::timestamps::{Millis, Order, Timestamps, millis};
use crate::interval::Timestamp;

/// Runs of at least this many rows are joined like a separate column.
const LONG_RUN_ROWS: usize = 64;
/// Runs of equal look-ups that count as one step of work.
const EQUAL_RUNS_PER_STEP: usize = 8;

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
    /// its own and none is null. Returns the cost.
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
