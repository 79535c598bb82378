//! Key columns: values beside the timestamps, such as run numbers, on which the look-up of a
//! table's column depends.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use arrow_buffer::{NullBuffer, ScalarBuffer};
use foldhash::fast::RandomState;

use super::row_codes::RowCodes;
use super::timestamps::Timestamps;

/// A value of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KeyValue<'a> {
    /// An integer.
    Integer(i64),
    /// A text.
    Text(&'a str),
}

impl fmt::Display for KeyValue<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Integer(value) => value.fmt(f),
            Self::Text(value) => f.write_str(value),
        }
    }
}

/// Type of the values of a key column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyType {
    /// Integers.
    Integers,
    /// Texts.
    Texts,
}

impl KeyType {
    /// Name in messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Integers => "integers",
            Self::Texts => "strings",
        }
    }
}

/// Key column: one value per row, which can be null. Stored as runs of equal values.
///
/// ```
/// use iovcache::index::{KeyColumn, KeyValue};
/// let runs: KeyColumn = [Some(544_123), Some(544_123), None, Some(544_124)].into_iter().collect();
/// assert_eq!((runs.len(), runs.run_count(), runs.ids().len()), (4, 3, 2));
/// assert_eq!(runs.value(3), Some(KeyValue::Integer(544_124)));
/// assert_eq!(runs.value(2), None);
/// ```
#[derive(Debug, Clone)]
pub struct KeyColumn {
    /// For each run, the row after its last one, ascending.
    ends: Arc<[i32]>,
    values: KeyValues,
    /// By run; `None`: there are no nulls.
    nulls: Option<NullBuffer>,
    /// Shared by all clones: they are found once.
    ids: Arc<OnceLock<KeyIds>>,
}

/// The value of each run: an integer, or the index of a text.
#[derive(Debug, Clone)]
enum KeyValues {
    /// By run.
    Integers(ScalarBuffer<i64>),
    Texts {
        /// By run: an index into `texts`.
        ids: Arc<[u32]>,
        /// The distinct texts.
        texts: Arc<[Arc<str>]>,
    },
}

/// The distinct values of a key column, numbered in the order of their first rows.
#[derive(Debug)]
pub struct KeyIds {
    /// By run: the number of its value, or [`KeyIds::NULL`].
    pub(super) by_run: Arc<[u32]>,
    /// By number: the first run with the value.
    first_runs: Vec<u32>,
    /// Computed on demand.
    codes: OnceLock<RowCodes>,
}

impl KeyIds {
    /// The number of a null.
    pub(super) const NULL: u32 = u32::MAX;

    /// Number of distinct values.
    pub fn len(&self) -> usize {
        self.first_runs.len()
    }

    /// Whether all rows are null.
    pub fn is_empty(&self) -> bool {
        self.first_runs.is_empty()
    }
}

impl KeyColumn {
    /// Number of rows.
    pub fn len(&self) -> usize {
        self.ends.last().map_or(0, |&end| end as usize)
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Whether any row is null.
    pub(crate) fn has_nulls(&self) -> bool {
        self.nulls.is_some()
    }

    /// Whether every row is null, or there are no rows.
    pub(crate) fn is_all_null(&self) -> bool {
        match &self.nulls {
            Some(nulls) => nulls.null_count() == nulls.len(),
            None => self.ends.is_empty(),
        }
    }

    /// Type of the values.
    pub fn key_type(&self) -> KeyType {
        match &self.values {
            KeyValues::Integers(_) => KeyType::Integers,
            KeyValues::Texts { .. } => KeyType::Texts,
        }
    }

    /// Number of runs of equal values, which is the cost of work on all rows.
    pub fn run_count(&self) -> usize {
        self.ends.len()
    }

    pub(super) fn ends(&self) -> &Arc<[i32]> {
        &self.ends
    }

    /// The rows of a run.
    pub(crate) fn run_rows(&self, run: usize) -> Range<usize> {
        let start = run.checked_sub(1).map_or(0, |before| self.ends[before]);
        start as usize..self.ends[run] as usize
    }

    /// The value of a run; `None`: null.
    pub(crate) fn run_value(&self, run: usize) -> Option<KeyValue<'_>> {
        if self.nulls.as_ref().is_some_and(|nulls| nulls.is_null(run)) {
            return None;
        }
        Some(match &self.values {
            KeyValues::Integers(values) => KeyValue::Integer(values[run]),
            KeyValues::Texts { ids, texts } => KeyValue::Text(&texts[ids[run] as usize]),
        })
    }

    /// The run that contains `row`.
    pub fn run_of(&self, row: usize) -> usize {
        self.ends.partition_point(|&end| end as usize <= row)
    }

    /// The value of `row`, counted from 0; `None`: null, or there is no such row.
    pub fn value(&self, row: usize) -> Option<KeyValue<'_>> {
        let run = self.run_of(row);
        if run < self.ends.len() { self.run_value(run) } else { None }
    }

    /// The runs: the row after the last one of each, and its value.
    pub fn runs(&self) -> impl Iterator<Item = (usize, Option<KeyValue<'_>>)> {
        self.ends.iter().enumerate().map(|(run, &end)| (end as usize, self.run_value(run)))
    }

    /// The distinct values. They are computed on the first call, in one pass over the runs.
    pub fn ids(&self) -> &KeyIds {
        self.ids.get_or_init(|| {
            let is_null = |run| self.nulls.as_ref().is_some_and(|nulls| nulls.is_null(run));
            let runs = self.ends.len();
            match &self.values {
                KeyValues::Integers(values) => match narrow_range(values) {
                    Some((least, range)) => number_by_table(runs, range, is_null, |run| {
                        values[run].wrapping_sub(least) as usize
                    }),
                    None => number(runs, is_null, |run| values[run]),
                },
                KeyValues::Texts { ids, texts } => {
                    number_by_table(runs, texts.len(), is_null, |run| ids[run] as usize)
                }
            }
        })
    }

    /// The code of each row. They are computed on the first call, in one pass over the rows.
    pub(crate) fn codes(&self) -> &RowCodes {
        let ids = self.ids();
        ids.codes.get_or_init(|| {
            RowCodes::new(&self.ends, &ids.by_run, ids.len(), KeyIds::NULL, self.has_nulls())
        })
    }

    /// Memory of [`codes`](Self::codes) in bytes.
    pub(crate) fn codes_bytes(&self) -> u64 {
        (self.len() * RowCodes::width(self.ids().len())) as u64
    }

    /// Whether both are the same column in memory.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.ids, &other.ids)
    }

    /// The distinct value with a number, and the first row with it.
    ///
    /// # Panics
    /// If `id` is not less than the number of distinct values.
    pub fn distinct(&self, id: usize) -> (KeyValue<'_>, usize) {
        let run = self.ids().first_runs[id] as usize;
        let value = match &self.values {
            KeyValues::Integers(values) => KeyValue::Integer(values[run]),
            KeyValues::Texts { ids, texts } => KeyValue::Text(&texts[ids[run] as usize]),
        };
        (value, self.run_rows(run).start)
    }

    /// The values as timestamps in milliseconds; `None` if they are texts.
    pub fn to_timestamps(&self) -> Option<Timestamps> {
        let KeyValues::Integers(values) = &self.values else { return None };
        let (values, nulls) = (values.clone(), self.nulls.clone());
        Some(match self.ends.len() == self.len() {
            true => Timestamps::new(values, nulls),
            false => Timestamps::run_encoded(values, nulls, self.ends.to_vec()),
        })
    }

    /// Memory of the column, in bytes.
    pub fn memory_bytes(&self) -> usize {
        let runs = self.ends.len();
        match &self.values {
            KeyValues::Integers(_) => runs * (size_of::<i32>() + size_of::<i64>()),
            KeyValues::Texts { texts, .. } => {
                let texts: usize = texts.iter().map(|text| text.len() + TEXT_BYTES).sum();
                runs * (size_of::<i32>() + size_of::<u32>()) + texts
            }
        }
    }

    /// Whether both have equal values in every row.
    pub(crate) fn same_rows(&self, other: &Self) -> bool {
        self.ends == other.ends && self.runs().eq(other.runs())
    }

    /// Concatenates the rows of all parts. `None` if they have different types.
    ///
    /// # Panics
    /// If there are more rows than [`Timestamps::MAX_ROWS`].
    pub fn concat(parts: &[Self]) -> Option<Self> {
        let key_type = parts.first()?.key_type();
        let mut all = KeyBuilder::new(key_type);
        for part in parts {
            if part.key_type() != key_type {
                return None;
            }
            let mut start = 0;
            for (end, value) in part.runs() {
                all.push(end - start, value);
                start = end;
            }
        }
        Some(all.finish())
    }
}

/// Memory of a distinct text in addition to its bytes.
const TEXT_BYTES: usize = 48;

/// Tables of numbers have at most this many entries per run.
const TABLE_ENTRIES_PER_RUN: u64 = 4;

/// The lowest value, and the number of values up to the highest one, if a table of them is small
/// beside the values themselves.
fn narrow_range(values: &[i64]) -> Option<(i64, usize)> {
    let (least, most) = (*values.iter().min()?, *values.iter().max()?);
    let limit = values.len() as u64 * TABLE_ENTRIES_PER_RUN;
    let last = most.abs_diff(least);
    (last < limit).then(|| (least, last as usize + 1))
}

/// Like [`number`], for values below `range`, without hashing.
fn number_by_table(
    runs: usize,
    range: usize,
    is_null: impl Fn(usize) -> bool,
    value: impl Fn(usize) -> usize,
) -> KeyIds {
    let mut numbers = vec![KeyIds::NULL; range];
    let mut first_runs = Vec::new();
    let number = |run: usize| {
        if is_null(run) {
            return KeyIds::NULL;
        }
        let number = &mut numbers[value(run)];
        if *number == KeyIds::NULL {
            *number = first_runs.len() as u32;
            first_runs.push(run as u32);
        }
        *number
    };
    let by_run = (0..runs).map(number).collect();
    KeyIds { by_run, first_runs, codes: OnceLock::new() }
}

fn number<T: Eq + Hash>(
    runs: usize,
    is_null: impl Fn(usize) -> bool,
    value: impl Fn(usize) -> T,
) -> KeyIds {
    let mut numbers: HashMap<T, u32, RandomState> = HashMap::default();
    let mut first_runs = Vec::new();
    let number = |run: usize| {
        if is_null(run) {
            return KeyIds::NULL;
        }
        *numbers.entry(value(run)).or_insert_with(|| {
            first_runs.push(run as u32);
            first_runs.len() as u32 - 1
        })
    };
    let by_run = (0..runs).map(number).collect();
    KeyIds { by_run, first_runs, codes: OnceLock::new() }
}

/// Builder of a key column, run by run. Equal neighbours become one run.
#[derive(Debug)]
pub struct KeyBuilder {
    key_type: KeyType,
    ends: Vec<i32>,
    integers: Vec<i64>,
    text_ids: Vec<u32>,
    texts: Vec<Arc<str>>,
    known_texts: HashMap<Arc<str>, u32, RandomState>,
    text_bytes: usize,
    valid: Vec<bool>,
    has_nulls: bool,
}

impl KeyBuilder {
    /// A builder without rows.
    pub fn new(key_type: KeyType) -> Self {
        Self {
            key_type,
            ends: Vec::new(),
            integers: Vec::new(),
            text_ids: Vec::new(),
            texts: Vec::new(),
            known_texts: HashMap::default(),
            text_bytes: 0,
            valid: Vec::new(),
            has_nulls: false,
        }
    }

    /// Type of the values.
    pub fn key_type(&self) -> KeyType {
        self.key_type
    }

    /// Memory of the builder, in bytes.
    pub fn memory_bytes(&self) -> usize {
        let run_bytes = size_of::<i32>() + size_of::<i64>() + size_of::<bool>();
        let text_bytes: usize = self.text_bytes + self.texts.len() * 3 * TEXT_BYTES;
        2 * self.ends.len() * run_bytes + text_bytes
    }

    /// Number of rows so far.
    pub fn len(&self) -> usize {
        self.ends.last().map_or(0, |&end| end as usize)
    }

    /// Whether there are no rows yet.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Appends `rows` rows with one value; `None`: null. A value of another type than the column's
    /// counts as null, so the caller must check the type first.
    ///
    /// # Panics
    /// If there are more than [`Timestamps::MAX_ROWS`] rows then.
    pub fn push(&mut self, rows: usize, value: Option<KeyValue<'_>>) {
        if rows == 0 {
            return;
        }
        let end = self.len() + rows;
        assert!(end <= Timestamps::MAX_ROWS, "{end} rows are too many");
        let (integer, text) = match (self.key_type, value) {
            (KeyType::Integers, Some(KeyValue::Integer(value))) => (Some(value), None),
            (KeyType::Texts, Some(KeyValue::Text(text))) => (None, Some(self.text_id(text))),
            _ => (None, None),
        };
        let is_valid = integer.is_some() || text.is_some();
        let (integer, text) = (integer.unwrap_or_default(), text.unwrap_or_default());
        if let (Some(last), Some(&valid)) = (self.ends.last_mut(), self.valid.last()) {
            let same = match self.key_type {
                KeyType::Integers => self.integers.last() == Some(&integer),
                KeyType::Texts => self.text_ids.last() == Some(&text),
            };
            if valid == is_valid && (!valid || same) {
                *last = end as i32;
                return;
            }
        }
        self.ends.push(end as i32);
        self.valid.push(is_valid);
        self.has_nulls |= !is_valid;
        match self.key_type {
            KeyType::Integers => self.integers.push(integer),
            KeyType::Texts => self.text_ids.push(text),
        }
    }

    fn text_id(&mut self, text: &str) -> u32 {
        if let Some(&id) = self.known_texts.get(text) {
            return id;
        }
        let (id, text) = (self.texts.len() as u32, Arc::<str>::from(text));
        self.text_bytes += text.len();
        self.texts.push(Arc::clone(&text));
        self.known_texts.insert(text, id);
        id
    }

    /// The finished column.
    pub fn finish(self) -> KeyColumn {
        let values = match self.key_type {
            KeyType::Integers => KeyValues::Integers(self.integers.into()),
            KeyType::Texts => {
                KeyValues::Texts { ids: self.text_ids.into(), texts: self.texts.into() }
            }
        };
        let nulls = self.has_nulls.then(|| NullBuffer::from(self.valid));
        KeyColumn { ends: self.ends.into(), values, nulls, ids: Arc::default() }
    }
}

impl FromIterator<Option<i64>> for KeyColumn {
    fn from_iter<I: IntoIterator<Item = Option<i64>>>(rows: I) -> Self {
        let mut builder = KeyBuilder::new(KeyType::Integers);
        rows.into_iter().for_each(|value| builder.push(1, value.map(KeyValue::Integer)));
        builder.finish()
    }
}

impl<'a> FromIterator<Option<&'a str>> for KeyColumn {
    fn from_iter<I: IntoIterator<Item = Option<&'a str>>>(rows: I) -> Self {
        let mut builder = KeyBuilder::new(KeyType::Texts);
        rows.into_iter().for_each(|value| builder.push(1, value.map(KeyValue::Text)));
        builder.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_neighbours_are_one_run_and_nulls_are_kept() {
        let rows = [Some(5), Some(5), None, None, Some(0), Some(5)];
        let key: KeyColumn = rows.into_iter().collect();
        assert_eq!((key.len(), key.run_count(), key.has_nulls()), (6, 4, true));
        for (row, value) in rows.into_iter().enumerate() {
            assert_eq!(key.value(row), value.map(KeyValue::Integer));
        }
        assert_eq!(key.value(6), None);
        let timestamps = key.to_timestamps().unwrap();
        let values = (0..6).map(|row| timestamps.value(row).map(|at| at.as_millis()));
        assert!(values.eq(rows));
    }

    #[test]
    fn distinct_values_are_numbered_by_their_first_rows() {
        let key: KeyColumn = [None, Some("b"), Some("a"), Some("b"), None].into_iter().collect();
        assert_eq!(key.ids().len(), 2);
        assert_eq!(key.distinct(0), (KeyValue::Text("b"), 1));
        assert_eq!(key.distinct(1), (KeyValue::Text("a"), 2));
        assert_eq!(key.ids().by_run[..], [KeyIds::NULL, 0, 1, 0, KeyIds::NULL]);
        assert!(key.to_timestamps().is_none());
    }

    #[test]
    fn parts_together_have_the_rows_of_all() {
        let [one, two] = [[Some(1), Some(2)], [Some(2), None]].map(KeyColumn::from_iter);
        let all = KeyColumn::concat(&[one.clone(), two]).unwrap();
        let expected: KeyColumn = [Some(1), Some(2), Some(2), None].into_iter().collect();
        assert!(all.same_rows(&expected));
        assert!(!all.same_rows(&one));
        let text: KeyColumn = [Some("x")].into_iter().collect();
        assert!(KeyColumn::concat(&[one, text]).is_none());
    }
}
