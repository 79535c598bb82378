//! Timestamps of a table, as received; run-encoded ones are never expanded.

use std::ops::Range;
use std::sync::OnceLock;

use arrow_buffer::{Buffer, NullBuffer, ScalarBuffer};

use crate::interval::Timestamp;

/// Rows of one block, whose lowest and highest timestamps are kept.
pub(super) const BLOCK_ROWS: usize = 256;

/// A timestamp in milliseconds in memory, at any address. Those of a message are mostly not
/// aligned, and copying millions of them takes longer than joining them.
pub(super) type Millis = [u8; 8];

#[inline]
pub(super) const fn millis(at: &Millis) -> i64 {
    i64::from_ne_bytes(*at)
}

/// One timestamp per row; some may be null. Milliseconds since the Unix epoch.
///
/// ```
/// use iovcache::index::Timestamps;
/// let times: Timestamps = [Some(1_000), None, Some(4_000)].into_iter().collect();
/// assert_eq!((times.len(), times.bounds()), (3, Some((1_000, 4_000))));
/// assert_eq!(times.value(1), None);
/// ```
///
/// Timestamps are stored as *entries*: one per row, or, if run-encoded, one per run of rows.
#[derive(Debug, Clone)]
pub struct Timestamps {
    values: Values,
    nulls: Option<NullBuffer>,
    /// Of run-encoded timestamps: for each entry, the row after its last one, ascending.
    ends: Option<ScalarBuffer<i32>>,
    order: OnceLock<Order>,
    gap: OnceLock<u64>,
}

/// The timestamp of each entry in milliseconds.
#[derive(Debug, Clone)]
enum Values {
    /// An array of [`Millis`].
    Listed(Buffer),
    /// At a steady pace; never listed, however many there are.
    Steps(Steps),
}

/// Timestamps at a steady pace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Steps {
    first: i64,
    /// Milliseconds from one to the next, at least 1.
    step: u64,
    count: usize,
}

impl Steps {
    pub(super) const fn value(&self, entry: usize) -> i64 {
        // The sum is an i64; the product alone may overflow and wraps back.
        self.first.wrapping_add((entry as u64).wrapping_mul(self.step) as i64)
    }

    /// Number of timestamps before `border`.
    pub(super) fn before(&self, border: i64) -> usize {
        if border <= self.first {
            return 0;
        }
        let entries = border.abs_diff(self.first).div_ceil(self.step);
        usize::try_from(entries).unwrap_or(usize::MAX).min(self.count)
    }
}

/// Order of the entries, determined once for all columns.
#[derive(Debug, Clone)]
pub(super) enum Order {
    /// Ascending, ignoring nulls.
    Sorted,
    /// Lowest and highest value of each block of [`BLOCK_ROWS`] entries, nulls included.
    Blocks(Vec<(i64, i64)>),
}

/// Whether the values ascend, checked by blocks: a branch per value would take longer than reading
/// it.
fn ascending(values: &[Millis]) -> bool {
    const BLOCK: usize = 64;
    let (blocks, rest) = values.as_chunks::<BLOCK>();
    let mut last = i64::MIN;
    for block in blocks {
        let mut all = last <= millis(&block[0]);
        for n in 1..BLOCK {
            all &= millis(&block[n - 1]) <= millis(&block[n]);
        }
        if !all {
            return false;
        }
        last = millis(&block[BLOCK - 1]);
    }
    rest.is_sorted_by_key(millis) && rest.first().is_none_or(|first| last <= millis(first))
}

const fn around((least, most): (i64, i64), at: i64) -> (i64, i64) {
    (if at < least { at } else { least }, if at > most { at } else { most })
}

impl Timestamps {
    /// Maximum number of rows of a table: Arrow's run ends and dictionary keys are Int32.
    pub const MAX_ROWS: usize = i32::MAX as usize;

    /// Timestamps with one entry per row.
    ///
    /// # Panics
    /// If there are more than [`MAX_ROWS`](Self::MAX_ROWS) values, or the number of null flags
    /// differs.
    pub fn new(values: impl Into<ScalarBuffer<i64>>, nulls: Option<NullBuffer>) -> Self {
        Self::of(values.into().into_inner(), nulls)
    }

    /// Timestamps with one row per eight bytes, which need not be aligned.
    ///
    /// # Panics
    /// If there are more than [`MAX_ROWS`](Self::MAX_ROWS), or the last one is incomplete.
    #[cfg(feature = "server")]
    pub(crate) fn of_bytes(values: Buffer) -> Self {
        Self::of(values, None)
    }

    fn of(values: Buffer, nulls: Option<NullBuffer>) -> Self {
        let nulls = nulls.filter(|nulls| nulls.null_count() > 0);
        let (order, gap) = (OnceLock::new(), OnceLock::new());
        assert!(values.len().is_multiple_of(size_of::<Millis>()));
        let new = Self { values: Values::Listed(values), nulls, ends: None, order, gap };
        let rows = new.values().len();
        assert!(rows <= Self::MAX_ROWS, "{rows} rows are too many");
        assert!(new.nulls.as_ref().is_none_or(|nulls| nulls.len() == rows));
        new
    }

    /// `rows` timestamps: `first`, and each `step_millis` after the previous one. They take no
    /// memory.
    ///
    /// # Panics
    /// If the step is 0, there are more than [`MAX_ROWS`](Self::MAX_ROWS), or the last one exceeds
    /// an i64.
    pub(crate) fn stepped(first: Timestamp, step_millis: u64, rows: usize) -> Self {
        assert!(step_millis > 0 && rows <= Self::MAX_ROWS, "{rows} rows of {step_millis} ms");
        let first = first.as_millis();
        let length = i128::from(step_millis) * rows.saturating_sub(1) as i128;
        assert!(i128::from(first) + length <= i128::from(i64::MAX), "the last one is no i64");
        let values = Values::Steps(Steps { first, step: step_millis, count: rows });
        let (order, gap) = (OnceLock::new(), OnceLock::new());
        Self { values, nulls: None, ends: None, order, gap }
    }

    /// Timestamps with one entry per run of rows.
    ///
    /// # Panics
    /// If the numbers of values, ends and null flags differ, or the ends do not ascend from at
    /// least 1.
    pub(crate) fn run_encoded(
        values: impl Into<ScalarBuffer<i64>>,
        nulls: Option<NullBuffer>,
        ends: impl Into<ScalarBuffer<i32>>,
    ) -> Self {
        Self::new(values, nulls).with_ends(ends)
    }

    /// These entries as runs of rows; `ends` has the row after the last one of each.
    ///
    /// # Panics
    /// As [`run_encoded`](Self::run_encoded).
    #[must_use]
    pub(crate) fn with_ends(self, ends: impl Into<ScalarBuffer<i32>>) -> Self {
        let (own, ends) = (self.ends.is_some(), ends.into());
        assert!(!own, "runs of runs");
        assert_eq!(ends.len(), self.entries());
        assert!(ends.first().is_none_or(|&end| end > 0) && ends.is_sorted_by(|a, b| a < b));
        Self { ends: Some(ends), ..self }
    }

    /// Concatenates the rows of all parts; run-encoded if any part is.
    ///
    /// # Panics
    /// If there are more than [`MAX_ROWS`](Self::MAX_ROWS).
    pub fn concat(parts: &[Self]) -> Self {
        let rows: usize = parts.iter().map(Self::len).sum();
        assert!(rows <= Self::MAX_ROWS, "{rows} rows are too many");
        let values: Vec<i64> =
            parts.iter().flat_map(|p| (0..p.entries()).map(|entry| p.raw(entry))).collect();
        let nulls = parts
            .iter()
            .flat_map(|part| (0..part.entries()).map(|entry| part.entry(entry).is_some()));
        let nulls = NullBuffer::from_iter(nulls);
        if parts.iter().all(|part| part.ends.is_none()) {
            return Self::new(values, Some(nulls));
        }
        let mut before = 0;
        let mut ends = Vec::with_capacity(values.len());
        for part in parts {
            ends.extend((0..part.entries()).map(|entry| (before + part.row_end(entry)) as i32));
            before += part.len();
        }
        Self::run_encoded(values, Some(nulls), ends)
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        match &self.ends {
            None => self.entries(),
            Some(ends) => ends.last().map_or(0, |&end| end as usize),
        }
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.entries() == 0
    }

    /// Whether any row is null.
    pub(crate) fn has_nulls(&self) -> bool {
        self.nulls.is_some()
    }

    /// The timestamp of `row`, counted from 0; `None` if it is null.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn value(&self, row: usize) -> Option<Timestamp> {
        self.entry(self.entry_of(row))
    }

    /// Whether each row is an entry of its own.
    pub(super) fn has_row_entries(&self) -> bool {
        self.ends.is_none()
    }

    /// The entry that contains `row`.
    pub(super) fn entry_of(&self, row: usize) -> usize {
        match &self.ends {
            None => row,
            Some(ends) => ends.partition_point(|&end| end as usize <= row),
        }
    }

    /// Number of entries, which is the cost of work on all of them.
    pub fn entries(&self) -> usize {
        match &self.values {
            Values::Listed(_) => self.values().len(),
            Values::Steps(steps) => steps.count,
        }
    }

    /// The value of an entry, which has no meaning under a null.
    fn raw(&self, entry: usize) -> i64 {
        match &self.values {
            Values::Listed(_) => millis(&self.values()[entry]),
            Values::Steps(steps) => steps.value(entry),
        }
    }

    /// Memory of the entries, in bytes.
    pub fn memory_bytes(&self) -> usize {
        let values = match &self.values {
            Values::Listed(values) => values.len(),
            Values::Steps(_) => 0,
        };
        let nulls = self.nulls.as_ref().map_or(0, |nulls| nulls.len().div_ceil(8));
        values + nulls + self.ends.as_ref().map_or(0, |ends| ends.len() * size_of::<i32>())
    }

    /// A copy of the rows in its own memory, run-encoded if that takes less than half of it.
    /// Timestamps that share the memory of a message keep the whole message in memory.
    #[must_use]
    #[doc(hidden)]
    pub fn compacted(&self) -> Self {
        let (values, nulls) = (self.values(), self.nulls.is_some());
        let same = |pair: &&[Millis]| pair[0] == pair[1];
        let runs = values.len() - values.windows(2).filter(same).count();
        let run_bytes = size_of::<Millis>() + size_of::<i32>();
        if nulls || self.ends.is_some() || matches!(self.values, Values::Steps(_)) {
            return self.clone();
        }
        if runs * run_bytes * 2 > size_of_val(values) {
            return Self::new(values.iter().map(millis).collect::<Vec<_>>(), None);
        }
        let (mut starts, mut ends) = (Vec::with_capacity(runs), Vec::with_capacity(runs));
        for (row, value) in values.iter().enumerate() {
            if starts.last() != Some(&millis(value)) {
                starts.push(millis(value));
                ends.push(0);
            }
            if let Some(end) = ends.last_mut() {
                *end = row as i32 + 1;
            }
        }
        Self::run_encoded(starts, None, ends)
    }

    /// The timestamp of an entry; `None`: null.
    pub(super) fn entry(&self, entry: usize) -> Option<Timestamp> {
        let value = Timestamp::from_millis(self.raw(entry));
        self.nulls.as_ref().is_none_or(|nulls| nulls.is_valid(entry)).then_some(value)
    }

    /// The timestamp of each row.
    pub fn rows(&self) -> impl Iterator<Item = Option<Timestamp>> {
        let mut row = 0;
        (0..self.entries()).flat_map(move |entry| {
            let end = self.row_end(entry);
            std::iter::repeat_n(self.entry(entry), end - std::mem::replace(&mut row, end))
        })
    }

    /// The runs of equal timestamps: the row after the last one of each, and its timestamp.
    pub fn runs(&self) -> impl Iterator<Item = (usize, Option<Timestamp>)> {
        self.runs_from(0)
    }

    /// The runs from `row` on; `row` can be inside the first one.
    pub(crate) fn runs_from(&self, row: usize) -> impl Iterator<Item = (usize, Option<Timestamp>)> {
        let mut entries = (self.entry_of(row)..self.entries()).peekable();
        std::iter::from_fn(move || {
            let mut last = entries.next()?;
            let value = self.entry(last);
            while let Some(next) = entries.next_if(|&next| self.entry(next) == value) {
                last = next;
            }
            Some((self.row_end(last), value))
        })
    }

    /// Whether both have equal timestamps in every row, in any encoding.
    pub(crate) fn same_rows(&self, other: &Self) -> bool {
        let plain = self.ends.is_none() && other.ends.is_none();
        if plain && self.nulls.is_none() && other.nulls.is_none() {
            match (&self.values, &other.values) {
                (Values::Listed(own), Values::Listed(other)) => return own == other,
                (Values::Steps(own), Values::Steps(other)) => return own == other,
                _ => {}
            }
        }
        self.runs().eq(other.runs())
    }

    /// The row after the last one of an entry.
    pub(super) fn row_end(&self, entry: usize) -> usize {
        self.ends.as_ref().map_or(entry + 1, |ends| ends[entry] as usize)
    }

    /// The values of the entries; those outside [`valid`](Self::valid) have no meaning. Empty for
    /// [`steps`](Self::steps).
    pub(super) fn values(&self) -> &[Millis] {
        match &self.values {
            Values::Listed(values) => values.as_chunks().0,
            Values::Steps(_) => &[],
        }
    }

    /// The pace of timestamps that are steady and not listed.
    pub(super) fn steps(&self) -> Option<&Steps> {
        match &self.values {
            Values::Listed(_) => None,
            Values::Steps(steps) => Some(steps),
        }
    }

    /// The lowest and the highest timestamp, in milliseconds; `None` if there is none.
    pub fn bounds(&self) -> Option<(i64, i64)> {
        if let Some(steps) = self.steps() {
            let last = steps.count.checked_sub(1)?;
            return Some((steps.first, steps.value(last)));
        }
        let values = self.values();
        match self.order() {
            Order::Sorted => {
                let mut valid = self.valid();
                let first = valid.next()?;
                let last = valid.last().unwrap_or(first.clone());
                Some((millis(&values[first.start]), millis(&values[last.end - 1])))
            }
            Order::Blocks(blocks) if self.nulls.is_none() => {
                let bounds = blocks.iter().flat_map(|&(least, most)| [least, most]);
                Some(bounds.fold((i64::MAX, i64::MIN), around))
            }
            Order::Blocks(_) => {
                let values = self.valid().flat_map(|range| &values[range]).map(millis);
                Some(values.fold((i64::MAX, i64::MIN), around))
            }
        }
    }

    /// Largest difference between neighbours in sorted order, in milliseconds. Computed once.
    pub fn gap(&self) -> u64 {
        *self.gap.get_or_init(|| {
            if let Some(steps) = self.steps() {
                return if steps.count > 1 { steps.step } else { 0 };
            }
            let gap = |last: i64, next: i64| next.wrapping_sub(last) as u64;
            let values = self.values();
            if self.nulls.is_none() && matches!(self.order(), Order::Sorted) {
                let pairs = values.windows(2).map(|pair| gap(millis(&pair[0]), millis(&pair[1])));
                return pairs.max().unwrap_or(0);
            }
            let valid = self.valid().flat_map(|range| &values[range]);
            let mut sorted: Vec<i64> = valid.map(millis).collect();
            sorted.sort_unstable();
            sorted.windows(2).map(|pair| gap(pair[0], pair[1])).max().unwrap_or(0)
        })
    }

    /// The ranges of entries that are not null.
    pub(super) fn valid(&self) -> impl Iterator<Item = Range<usize>> {
        let all = (self.nulls.is_none() && !self.is_empty()).then(|| 0..self.entries());
        let parts = self.nulls.iter().flat_map(NullBuffer::valid_slices);
        all.into_iter().chain(parts.map(|(start, end)| start..end))
    }

    /// Like [`valid`](Self::valid), within these entries.
    pub(super) fn valid_within(&self, entries: Range<usize>) -> impl Iterator<Item = Range<usize>> {
        let first = entries.start;
        let all = (self.nulls.is_none() && !entries.is_empty()).then(|| entries.clone());
        let nulls = self.nulls.as_ref().map(|nulls| nulls.slice(first, entries.len()));
        let parts: Vec<(usize, usize)> = match &nulls {
            Some(nulls) => nulls.valid_slices().collect(),
            None => Vec::new(),
        };
        let parts = parts.into_iter().map(move |(start, end)| first + start..first + end);
        all.into_iter().chain(parts)
    }

    /// The lowest and the highest timestamp of `rows`, none of which may be null; in milliseconds.
    #[doc(hidden)]
    pub fn bounds_of(&self, rows: Range<usize>) -> Option<(i64, i64)> {
        if rows.is_empty() {
            return None;
        }
        if let Some(steps) = self.steps() {
            return Some((steps.value(rows.start), steps.value(rows.end - 1)));
        }
        let (first, last) = (self.entry_of(rows.start), self.entry_of(rows.end - 1));
        let values = self.values();
        let Order::Blocks(blocks) = self.order() else {
            return Some((millis(&values[first]), millis(&values[last])));
        };
        let bounds = |range: Range<usize>| {
            values[range].iter().map(millis).fold((i64::MAX, i64::MIN), around)
        };
        let whole = first.div_ceil(BLOCK_ROWS)..(last + 1) / BLOCK_ROWS;
        if whole.start >= whole.end {
            return Some(bounds(first..last + 1));
        }
        let edges =
            [bounds(first..whole.start * BLOCK_ROWS), bounds(whole.end * BLOCK_ROWS..last + 1)];
        let all = blocks[whole].iter().chain(&edges);
        Some(
            all.fold((i64::MAX, i64::MIN), |(least, most), one| {
                (least.min(one.0), most.max(one.1))
            }),
        )
    }

    /// Determines the order of the entries, in one pass over them.
    pub fn prepare(&self) {
        self.order();
    }

    pub(super) fn order(&self) -> &Order {
        self.order.get_or_init(|| {
            let values = self.values();
            let ascending = match &self.nulls {
                None => ascending(values),
                Some(nulls) => {
                    nulls.valid_indices().map(|entry| millis(&values[entry])).is_sorted()
                }
            };
            if ascending {
                return Order::Sorted;
            }
            let blocks = values.chunks(BLOCK_ROWS).map(|block| {
                let bounds = (i64::MAX, i64::MIN);
                block.iter().map(millis).fold(bounds, around)
            });
            Order::Blocks(blocks.collect())
        })
    }
}

impl FromIterator<Option<i64>> for Timestamps {
    /// One row per item, in milliseconds.
    ///
    /// # Panics
    /// If there are more than [`MAX_ROWS`](Self::MAX_ROWS).
    fn from_iter<I: IntoIterator<Item = Option<i64>>>(rows: I) -> Self {
        let rows: Vec<Option<i64>> = rows.into_iter().collect();
        let nulls = NullBuffer::from_iter(rows.iter().map(Option::is_some));
        let values: Vec<i64> = rows.into_iter().map(Option::unwrap_or_default).collect();
        Self::new(values, Some(nulls))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_rows_are_the_same_however_they_are_encoded() {
        let plain: Timestamps = [Some(5), Some(5), None, Some(7)].into_iter().collect();
        let nulls = NullBuffer::from(vec![true, false, true]);
        let encoded = Timestamps::run_encoded(vec![5, 99, 7], Some(nulls), vec![2, 3, 4]);
        assert!(plain.same_rows(&encoded));
        assert_eq!(encoded.len(), 4);
        for row in 0..4 {
            assert_eq!(plain.value(row), encoded.value(row));
        }
        let other: Timestamps = [Some(5), Some(5), Some(0), Some(7)].into_iter().collect();
        assert!(!plain.same_rows(&other));
    }

    #[test]
    fn stepped_timestamps_are_those_that_are_listed_and_take_no_memory() {
        for (first, step, rows) in
            [(0, 1, 0), (5, 7, 1), (-20, 3, 40), (i64::MIN, 1 << 62, 4), (i64::MAX - 1, 1, 2)]
        {
            let stepped = Timestamps::stepped(Timestamp::from_millis(first), step, rows);
            let listed: Vec<i64> = (0..rows as i128)
                .map(|row| (i128::from(first) + row * i128::from(step)) as i64)
                .collect();
            let listed = Timestamps::new(listed, None);
            assert!(stepped.same_rows(&listed) && listed.same_rows(&stepped));
            assert_eq!((stepped.bounds(), stepped.gap()), (listed.bounds(), listed.gap()));
            assert!(stepped.runs_from(rows / 2).eq(listed.runs_from(rows / 2)));
            assert!(Timestamps::concat(&[stepped.clone(), listed.clone()]).len() == rows * 2);
            assert_eq!(stepped.memory_bytes(), 0);
            assert_eq!(stepped.bounds_of(0..rows), listed.bounds_of(0..rows));
            assert_eq!(stepped.bounds_of(rows / 2..rows), listed.bounds_of(rows / 2..rows));
        }
    }

    #[test]
    fn compacted_timestamps_have_the_same_rows_in_less_memory() {
        let few: Timestamps = (0..10_000).map(|row| Some(row / 1_000)).collect();
        let all: Timestamps = (0..10_000).map(Some).collect();
        for timestamps in [&few, &all] {
            let compacted = timestamps.compacted();
            assert!(compacted.same_rows(timestamps));
            assert_eq!(compacted.bounds(), timestamps.bounds());
        }
        assert_eq!(few.compacted().memory_bytes(), 10 * 12);
        assert_eq!(all.compacted().memory_bytes(), 80_000);
        let nulls: Timestamps = [Some(1), None, None].into_iter().collect();
        assert!(nulls.compacted().same_rows(&nulls));
        let none = Timestamps::new(Vec::new(), None).compacted();
        assert!(none.is_empty());
    }

    #[test]
    fn order_is_seen_wherever_it_is_broken() {
        let of = |values: Vec<i64>| Timestamps::new(values, None);
        let is_sorted = |values| matches!(of(values).order(), Order::Sorted);
        for rows in [0, 1, 2, 63, 64, 65, 128, 200] {
            let ascending: Vec<i64> = (0..rows).map(|n| n / 3).collect();
            assert!(is_sorted(ascending.clone()), "{rows}");
            for place in 1..ascending.len() {
                let mut broken = ascending.clone();
                broken[place] = broken[place - 1] - 1;
                assert!(!is_sorted(broken), "{place} of {rows}");
            }
        }
    }

    #[test]
    fn bounds_and_gap_are_those_of_the_values_that_are_there() {
        let of = |rows: &[Option<i64>]| {
            let timestamps: Timestamps = rows.iter().copied().collect();
            (timestamps.bounds(), timestamps.gap())
        };
        assert_eq!(of(&[]), (None, 0));
        assert_eq!(of(&[None]), (None, 0));
        assert_eq!(of(&[Some(4)]), (Some((4, 4)), 0));
        assert_eq!(of(&[Some(1), Some(4), Some(9)]), (Some((1, 9)), 5));
        assert_eq!(of(&[Some(9), Some(1), Some(4)]), (Some((1, 9)), 5));
        assert_eq!(of(&[None, Some(9), None, Some(1), Some(4), None]), (Some((1, 9)), 5));
        let all = [Some(i64::MIN), Some(i64::MAX)];
        assert_eq!(of(&all), (Some((i64::MIN, i64::MAX)), u64::MAX));
    }
}
