//! Codes of rows: for each row the number of its distinct value of a key, in as few bytes as
//! possible.
//!
//! Where the value of a key changes on nearly each row, a code per row takes less memory and less
//! time than a run per row, and all columns that depend on the key share the codes.

use std::ops::Range;
use std::sync::Arc;

/// For each row the number of its value, or [`null`](Self::null).
#[derive(Debug, Clone)]
pub(crate) struct RowCodes {
    codes: Codes,
    /// Number of distinct values.
    values: usize,
    has_nulls: bool,
}

/// The width follows the number of values.
#[derive(Debug, Clone)]
enum Codes {
    Bytes(Arc<[u8]>),
    Shorts(Arc<[u16]>),
    Words(Arc<[u32]>),
}

/// Calls a function that is generic over the width with the slice of codes.
macro_rules! with_codes {
    ($codes:expr, |$slice:ident| $body:expr) => {
        match $codes {
            Codes::Bytes($slice) => $body,
            Codes::Shorts($slice) => $body,
            Codes::Words($slice) => $body,
        }
    };
}

impl RowCodes {
    /// The codes of runs: the row after the last one of each, and the number of its value, which is
    /// `null_number` for a null. There are `values` distinct values.
    pub(super) fn new(
        ends: &[i32],
        numbers: &[u32],
        values: usize,
        null_number: u32,
        has_nulls: bool,
    ) -> Self {
        let null = values as u32;
        let code = |number: u32| if number == null_number { null } else { number };
        let codes = match Self::width(values) {
            1 => Codes::Bytes(expanded(ends, numbers, |number| code(number) as u8)),
            2 => Codes::Shorts(expanded(ends, numbers, |number| code(number) as u16)),
            _ => Codes::Words(expanded(ends, numbers, code)),
        };
        Self { codes, values, has_nulls }
    }

    /// Bytes per row of the codes of this number of values.
    pub(super) const fn width(values: usize) -> usize {
        match values {
            0..=0xFF => 1,
            0x100..=0xFFFF => 2,
            _ => 4,
        }
    }

    /// Number of codes, that of null included: the length of a table that codes index.
    pub(crate) fn table_len(&self) -> usize {
        self.values + 1
    }

    /// The code of a null.
    pub(crate) fn null(&self) -> usize {
        self.values
    }

    /// Number of rows.
    pub(crate) fn len(&self) -> usize {
        with_codes!(&self.codes, |codes| codes.len())
    }

    /// Appends the value in `table` of the code of each of `rows`.
    ///
    /// # Panics
    /// If `table` is shorter than [`table_len`](Self::table_len), or there are no such rows.
    pub(crate) fn gather(&self, rows: Range<usize>, table: &[u32], into: &mut Vec<u32>) {
        let table = &table[..self.table_len()];
        with_codes!(&self.codes, |codes| gather(&codes[rows], table, into));
    }

    /// Appends the value in `table` of the code of each of `rows`, as four bytes in the order of a
    /// little-endian machine. `pairs` is a buffer.
    ///
    /// # Panics
    /// As for [`gather`](Self::gather).
    pub(crate) fn gather_bytes(
        &self,
        rows: Range<usize>,
        table: &[u32],
        pairs: &mut Vec<u64>,
        into: &mut Vec<u8>,
    ) {
        let table = &table[..self.table_len()];
        let start = into.len();
        into.resize(start + rows.len() * size_of::<u32>(), 0);
        let into = &mut into[start..];
        match &self.codes {
            Codes::Bytes(codes) if pays_for_pairs(rows.len(), table.len()) => {
                gather_pairs(&codes[rows], table, pairs, into);
            }
            codes => with_codes!(codes, |codes| gather_words(&codes[rows], table, into)),
        }
    }

    /// Calls `found` with the first of `rows` with each code that occurs in them, in ascending order
    /// of rows. `seen` is a buffer. Returns the number of rows that were read: reading ends when all
    /// codes were found.
    pub(crate) fn first_rows(
        &self,
        rows: Range<usize>,
        seen: &mut Vec<bool>,
        mut found: impl FnMut(usize, usize),
    ) -> usize {
        seen.clear();
        seen.resize(self.table_len(), false);
        let mut open = self.values + usize::from(self.has_nulls);
        with_codes!(&self.codes, |codes| {
            let (start, count) = (rows.start, rows.len());
            for (row, &code) in codes[rows].iter().enumerate() {
                let code = code as usize;
                if !seen[code] {
                    seen[code] = true;
                    found(start + row, code);
                    open -= 1;
                    if open == 0 {
                        return row + 1;
                    }
                }
            }
            count
        })
    }

    /// For each code the number of `rows` with it, and the last one of them.
    pub(crate) fn counts(&self, rows: Range<usize>) -> Vec<(usize, usize)> {
        let mut counts = vec![(0, 0); self.table_len()];
        with_codes!(&self.codes, |codes| {
            let start = rows.start;
            for (row, &code) in codes[rows].iter().enumerate() {
                let (count, last) = &mut counts[code as usize];
                *count += 1;
                *last = start + row;
            }
        });
        counts
    }
}

fn expanded<T: Copy>(ends: &[i32], numbers: &[u32], code: impl Fn(u32) -> T) -> Arc<[T]> {
    let rows = ends.last().map_or(0, |&end| end as usize);
    if rows == numbers.len() {
        return numbers.iter().map(|&number| code(number)).collect();
    }
    let mut codes = Vec::with_capacity(rows);
    for (&end, &number) in ends.iter().zip(numbers) {
        codes.resize(end as usize, code(number));
    }
    codes.into()
}

fn gather<T: Copy + Into<u32>>(codes: &[T], table: &[u32], into: &mut Vec<u32>) {
    into.extend(codes.iter().map(|&code| table[code.into() as usize]));
}

/// Like [`gather`], in bytes: as many words as codes.
fn gather_words<T: Copy + Into<u32>>(codes: &[T], table: &[u32], into: &mut [u8]) {
    let (words, _) = into.as_chunks_mut();
    for (word, &code) in words.iter_mut().zip(codes) {
        *word = table[code.into() as usize].to_le_bytes();
    }
}

/// Whether a table of pairs of codes takes less time to make than it saves.
fn pays_for_pairs(rows: usize, codes: usize) -> bool {
    codes <= MAX_PAIRED_CODES && rows >= 8 * codes * codes
}

/// Maximum number of codes that are looked up in pairs: their 256 pairs fit into the L1 cache.
const MAX_PAIRED_CODES: usize = 16;

/// Places of a table of pairs: the code of the second row stands in the bits from 8 on.
const PAIR_PLACES: usize = MAX_PAIRED_CODES << u8::BITS;

/// Two rows per look-up, in a table of all pairs of codes: a look-up per row would take most of the
/// time of a table.
fn gather_pairs(codes: &[u8], table: &[u32], pairs: &mut Vec<u64>, into: &mut [u8]) {
    let place = |pair: [u8; 2]| usize::from(u16::from_le_bytes(pair));
    pairs.resize(PAIR_PLACES, 0);
    for (second, &high) in (0..).zip(table) {
        for (first, &low) in (0..).zip(table) {
            pairs[place([first, second])] = u64::from(high) << u32::BITS | u64::from(low);
        }
    }
    let Some(pairs) = pairs.first_chunk::<PAIR_PLACES>() else { return };
    let (words, last) = into.as_chunks_mut();
    let (two, one) = codes.as_chunks();
    for (word, &pair) in words.iter_mut().zip(two) {
        // Every place is below the number of places: the remainder saves a comparison per pair.
        *word = pairs[place(pair) % PAIR_PLACES].to_le_bytes();
    }
    gather_words(one, table, last);
}

#[cfg(test)]
mod tests {
    use crate::index::KeyColumn;

    /// Bytes per code of this number of values, and null.
    fn width(values: i64) -> usize {
        match values {
            ..=255 => 1,
            256..=65_535 => 2,
            _ => 4,
        }
    }

    #[test]
    fn codes_of_every_width_give_each_row_the_number_of_its_value() {
        for values in [3_i64, 255, 256, 65_535, 65_536, 70_000] {
            let rows: Vec<Option<i64>> = (0..values * 2 + 5)
                .map(|row| (row % 7 != 3).then_some(row / 2 * 31 % values))
                .collect();
            let key: KeyColumn = rows.iter().copied().collect();
            let codes = key.codes();
            assert_eq!(codes.len(), rows.len());
            assert_eq!(key.codes_bytes(), (rows.len() * width(values)) as u64);
            let table: Vec<u32> = (0..codes.table_len() as u32).map(|code| code * 3).collect();
            let mut gathered = Vec::new();
            codes.gather(5..rows.len(), &table, &mut gathered);
            let (mut bytes, mut pairs) = (vec![7], Vec::new());
            codes.gather_bytes(5..rows.len(), &table, &mut pairs, &mut bytes);
            let words: Vec<u8> = gathered.iter().flat_map(|word| word.to_le_bytes()).collect();
            assert_eq!((bytes[0], &bytes[1..]), (7, &words[..]));
            for (row, found) in (5..).zip(gathered) {
                let value = (found as usize / 3 != codes.null())
                    .then(|| key.distinct(found as usize / 3).0);
                assert_eq!(value, key.value(row), "row {row} of {values} values");
            }
        }
    }

    #[test]
    fn rows_that_are_looked_up_by_pairs_have_the_values_of_the_table() {
        let mut pairs = Vec::new();
        for values in [1_i64, 2, 10, 15, 16, 40] {
            let rows: Vec<i64> = (0..20_001).map(|row: i64| row * row / 3 % values).collect();
            let key: KeyColumn = rows.iter().map(|&value| Some(value)).collect();
            let codes = key.codes();
            let table: Vec<u32> =
                (0..codes.table_len() as u32).map(|code| code.wrapping_mul(0x9E37_79B9)).collect();
            for range in [0..rows.len(), 1..rows.len(), 3..10, 5..5, 7..rows.len() - 1] {
                let (mut words, mut bytes) = (Vec::new(), Vec::new());
                codes.gather(range.clone(), &table, &mut words);
                codes.gather_bytes(range, &table, &mut pairs, &mut bytes);
                let expected: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
                assert_eq!(bytes, expected, "{values} values");
            }
        }
    }

    #[test]
    fn first_rows_and_counts_are_those_of_a_scan() {
        let rows = [None, Some(4), Some(4), Some(9), None, Some(4), Some(7)];
        let key: KeyColumn = rows.into_iter().collect();
        let codes = key.codes();
        let (mut seen, mut first) = (Vec::new(), Vec::new());
        let read = codes.first_rows(0..7, &mut seen, |row, code| first.push((row, code)));
        assert_eq!((read, &first[..]), (7, &[(0, 3), (1, 0), (3, 1), (6, 2)][..]));
        first.clear();
        codes.first_rows(2..6, &mut seen, |row, code| first.push((row, code)));
        assert_eq!(first, [(2, 0), (3, 1), (4, 3)]);
        assert_eq!(codes.counts(1..6), [(3, 5), (1, 3), (0, 0), (1, 4)]);
        // Reading ends when all codes were found.
        let key: KeyColumn = (0..1000).map(|row| Some(row % 4)).collect();
        assert_eq!(key.codes().first_rows(0..1000, &mut seen, |_, _| {}), 4);
    }
}
