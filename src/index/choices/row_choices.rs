//! The look-up that a key chooses for each row.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use crate::index::join::{Run, Slot, join_steps};
use crate::index::key_column::{KeyColumn, KeyIds};
use crate::index::timestamps::Timestamps;

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
pub(super) struct ChoiceRuns {
    /// For each run, the row after its last one.
    pub(super) ends: Arc<[i32]>,
    /// By run: the number of the look-up, [`RowChoices::NULL`] or [`RowChoices::NONE`].
    pub(super) choices: Arc<[u32]>,
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
    pub(super) fn choice_runs(&self) -> &ChoiceRuns {
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
