//! The timestamps of a table: as they came, run-encoded ones never expanded.

use std::ops::Range;
use std::sync::OnceLock;

use arrow_buffer::{Buffer, NullBuffer, ScalarBuffer};

use crate::interval::Timestamp;

/// Rows of one block of which the least and the greatest timestamp are kept.
pub(super) const BLOCK_ROWS: usize = 256;

/// A timestamp in milliseconds as it lies in memory, at any address: those of a message mostly lie
/// askew, and to copy millions of them takes longer than to join them.
pub(super) type Millis = [u8; 8];

#[inline]
pub(super) const fn millis(at: &Millis) -> i64 {
    i64::from_ne_bytes(*at)
}

/// One timestamp per row; some may be null.
///
/// What is stored are *entries*: one per row, or, run-encoded, one per run of rows.
#[derive(Debug, Clone)]
pub struct Timestamps {
    /// [`Millis`] one after the other.
    values: Buffer,
    nulls: Option<NullBuffer>,
    /// Run-encoded: the row behind the last one of each entry, ascending.
    ends: Option<ScalarBuffer<i32>>,
    order: OnceLock<Order>,
    gap: OnceLock<u64>,
}

/// How the entries are ordered, found out once for all columns.
#[derive(Debug, Clone)]
pub(super) enum Order {
    /// Ascending, nulls aside.
    Sorted,
    /// Least and greatest value of each block of [`BLOCK_ROWS`] entries, nulls not left out.
    Blocks(Vec<(i64, i64)>),
}

/// Whether they ascend. A block at a time: to ask of each would take longer than to read it.
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
    /// The most rows that a table can have: Arrow's run ends and dictionary keys are Int32.
    pub const MAX_ROWS: usize = i32::MAX as usize;

    /// One entry per row.
    ///
    /// # Panics
    /// If there are more than [`MAX_ROWS`](Self::MAX_ROWS), or not as many nulls as values.
    pub fn new(values: impl Into<ScalarBuffer<i64>>, nulls: Option<NullBuffer>) -> Self {
        Self::of(values.into().into_inner(), nulls)
    }

    /// One row per eight bytes, wherever they lie.
    ///
    /// # Panics
    /// If they are more than [`MAX_ROWS`](Self::MAX_ROWS), or the last one is cut.
    #[cfg(feature = "server")]
    pub(crate) fn of_bytes(values: Buffer) -> Self {
        Self::of(values, None)
    }

    fn of(values: Buffer, nulls: Option<NullBuffer>) -> Self {
        let nulls = nulls.filter(|nulls| nulls.null_count() > 0);
        let (order, gap) = (OnceLock::new(), OnceLock::new());
        let new = Self { values, nulls, ends: None, order, gap };
        assert!(new.values.len().is_multiple_of(size_of::<Millis>()));
        let rows = new.values().len();
        assert!(rows <= Self::MAX_ROWS, "{rows} rows are too many");
        assert!(new.nulls.as_ref().is_none_or(|nulls| nulls.len() == rows));
        new
    }

    /// One entry per run of rows.
    ///
    /// # Panics
    /// If there is not one end and one null flag per value, or the ends do not ascend from 1 on.
    pub fn run_encoded(
        values: impl Into<ScalarBuffer<i64>>,
        nulls: Option<NullBuffer>,
        ends: impl Into<ScalarBuffer<i32>>,
    ) -> Self {
        Self::new(values, nulls).with_ends(ends)
    }

    /// The same entries, each now a run of rows that ends before the row of `ends`.
    ///
    /// # Panics
    /// As [`run_encoded`](Self::run_encoded).
    #[must_use]
    pub fn with_ends(self, ends: impl Into<ScalarBuffer<i32>>) -> Self {
        let (own, ends) = (self.ends.is_some(), ends.into());
        assert!(!own, "runs of runs");
        assert_eq!(ends.len(), self.values().len());
        assert!(ends.first().is_none_or(|&end| end > 0) && ends.is_sorted_by(|a, b| a < b));
        Self { ends: Some(ends), ..self }
    }

    /// The rows of all parts, one after the other; run-encoded if any of them is.
    ///
    /// # Panics
    /// If there are more than [`MAX_ROWS`](Self::MAX_ROWS).
    pub fn concat(parts: &[Self]) -> Self {
        let rows: usize = parts.iter().map(Self::len).sum();
        assert!(rows <= Self::MAX_ROWS, "{rows} rows are too many");
        let values: Vec<i64> =
            parts.iter().flat_map(|part| part.values().iter().map(millis)).collect();
        let nulls = parts
            .iter()
            .flat_map(|part| (0..part.values().len()).map(|entry| part.entry(entry).is_some()));
        let nulls = NullBuffer::from_iter(nulls);
        if parts.iter().all(|part| part.ends.is_none()) {
            return Self::new(values, Some(nulls));
        }
        let mut before = 0;
        let mut ends = Vec::with_capacity(values.len());
        for part in parts {
            ends.extend(
                (0..part.values().len()).map(|entry| (before + part.row_end(entry)) as i32),
            );
            before += part.len();
        }
        Self::run_encoded(values, Some(nulls), ends)
    }

    /// How many rows there are.
    pub fn len(&self) -> usize {
        match &self.ends {
            None => self.values().len(),
            Some(ends) => ends.last().map_or(0, |&end| end as usize),
        }
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Whether any row is null.
    pub fn has_nulls(&self) -> bool {
        self.nulls.is_some()
    }

    /// The timestamp of `row`; `None` where it is null.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn value(&self, row: usize) -> Option<Timestamp> {
        self.entry(self.entry_of(row))
    }

    fn entry_of(&self, row: usize) -> usize {
        match &self.ends {
            None => row,
            Some(ends) => ends.partition_point(|&end| end as usize <= row),
        }
    }

    fn entry(&self, entry: usize) -> Option<Timestamp> {
        let value = Timestamp::from_millis(millis(&self.values()[entry]));
        self.nulls.as_ref().is_none_or(|nulls| nulls.is_valid(entry)).then_some(value)
    }

    /// The timestamp of each row.
    pub fn rows(&self) -> impl Iterator<Item = Option<Timestamp>> {
        let mut row = 0;
        (0..self.values().len()).flat_map(move |entry| {
            let end = self.row_end(entry);
            std::iter::repeat_n(self.entry(entry), end - std::mem::replace(&mut row, end))
        })
    }

    /// The runs of equal timestamps: the row behind the last one of each, and its timestamp.
    pub fn runs(&self) -> impl Iterator<Item = (usize, Option<Timestamp>)> {
        self.runs_from(0)
    }

    /// The runs from `row` on, which may lie within the first of them.
    pub fn runs_from(&self, row: usize) -> impl Iterator<Item = (usize, Option<Timestamp>)> {
        let mut entries = (self.entry_of(row)..self.values().len()).peekable();
        std::iter::from_fn(move || {
            let mut last = entries.next()?;
            let value = self.entry(last);
            while let Some(next) = entries.next_if(|&next| self.entry(next) == value) {
                last = next;
            }
            Some((self.row_end(last), value))
        })
    }

    /// Whether both have the same timestamp in every row, however encoded.
    pub fn same_rows(&self, other: &Self) -> bool {
        let plain = self.ends.is_none() && other.ends.is_none();
        if plain && self.nulls.is_none() && other.nulls.is_none() {
            return self.values == other.values;
        }
        self.runs().eq(other.runs())
    }

    /// The row behind the last one of an entry.
    pub(super) fn row_end(&self, entry: usize) -> usize {
        self.ends.as_ref().map_or(entry + 1, |ends| ends[entry] as usize)
    }

    /// The entries themselves; where [`valid`](Self::valid) does not reach, they mean nothing.
    pub(super) fn values(&self) -> &[Millis] {
        self.values.as_chunks().0
    }

    /// The least and the greatest timestamp.
    pub fn bounds(&self) -> Option<(i64, i64)> {
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

    /// How far apart two neighbours are at most once they are in order, in milliseconds. Found out
    /// once.
    pub fn gap(&self) -> u64 {
        *self.gap.get_or_init(|| {
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
        let all = (self.nulls.is_none() && !self.is_empty()).then(|| 0..self.values().len());
        let parts = self.nulls.iter().flat_map(NullBuffer::valid_slices);
        all.into_iter().chain(parts.map(|(start, end)| start..end))
    }

    /// As [`valid`](Self::valid), of these entries alone.
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

    /// The least and the greatest timestamp of `rows`, none of which may be null.
    pub fn bounds_of(&self, rows: Range<usize>) -> Option<(i64, i64)> {
        if rows.is_empty() {
            return None;
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

    /// How many entries there are: what work over all of them costs.
    pub fn entries(&self) -> usize {
        self.values().len()
    }

    /// Finds out the order of the entries, which looks at each of them once.
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
