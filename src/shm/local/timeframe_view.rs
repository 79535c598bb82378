//! The table of a timeframe, as a consumer reads it.
#![allow(unsafe_code)]

use std::mem::{offset_of, size_of};
use std::sync::atomic::{AtomicU64, Ordering};

use super::super::layout::MetaHeader;
use super::timeframe_table::{
    ColumnRecord, ConsumerMark, ConsumerRecord, MAGIC, MANAGED, PartPlaces, TimeframeHeader,
    VERSION,
};

/// The parts of a table, checked to lie inside of its block.
#[derive(Debug, Clone, Copy)]
pub(super) struct TimeframeView {
    payload: *const u8,
    size: usize,
    columns: u32,
    consumers: u32,
    segments: u32,
    places: PartPlaces,
}

/// The arrays of one column.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ColumnArrays<'a> {
    pub(crate) runs: usize,
    /// The row after the last one of each run: i32, little endian.
    pub(crate) ends: &'a [u8],
    /// A MetaHeader for each run.
    pub(crate) cells: &'a [u8],
    /// A bit for each run, least significant first; `None`: no cell is null.
    pub(crate) validity: Option<&'a [u8]>,
    /// The validity interval of the version of each run, in milliseconds: two i64, little endian.
    /// `None`: an older service wrote none.
    #[cfg_attr(not(feature = "capi"), allow(dead_code, reason = "read by the C interface"))]
    pub(crate) intervals: Option<&'a [u8]>,
}

impl TimeframeView {
    /// The table of `size` bytes at `payload`; `None` if its records do not fit the size, as in a
    /// place that was reused.
    ///
    /// # Safety
    /// `payload` is a multiple of 64. The `size` bytes there stay mapped while the view is used,
    /// and only the service writes them.
    pub(super) unsafe fn new(payload: *const u8, size: usize) -> Option<Self> {
        if size < size_of::<TimeframeHeader>() {
            return None;
        }
        let places = PartPlaces::of_records(0, 0, 0)?;
        let bare = Self { payload, size, columns: 0, consumers: 0, segments: 0, places };
        let version = bare.u32_at(offset_of!(TimeframeHeader, version));
        if bare.u32_at(0) != MAGIC || version != VERSION {
            return None;
        }
        let count = |offset| bare.u32_at(offset);
        let columns = count(offset_of!(TimeframeHeader, columns));
        let consumers = count(offset_of!(TimeframeHeader, consumers));
        let segments = count(offset_of!(TimeframeHeader, segments));
        let (first, second) = (columns as usize, consumers as usize);
        let places = PartPlaces::of_records(first, second, segments as usize)?;
        let end = places.segments + segments as usize * size_of::<u32>();
        (end <= size).then_some(Self { columns, consumers, segments, places, ..bare })
    }

    fn word(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: every caller's offset is a multiple of 8 inside the `size` bytes of `new`.
        let place = unsafe { self.payload.add(offset) };
        // SAFETY: mapped and aligned by the contract of `new`; other processes access it by atomics.
        unsafe { AtomicU64::from_ptr(place.cast_mut().cast()) }
    }

    fn u64_at(&self, offset: usize) -> u64 {
        self.word(offset).load(Ordering::Relaxed)
    }

    fn u32_at(&self, offset: usize) -> u32 {
        (self.u64_at(offset & !7) >> (8 * (offset & 4))) as u32
    }

    pub(super) fn timeframe(&self) -> u64 {
        self.u64_at(offset_of!(TimeframeHeader, timeframe))
    }

    pub(super) fn registration(&self) -> u64 {
        self.u64_at(offset_of!(TimeframeHeader, registration))
    }

    pub(super) fn schema_number(&self) -> u64 {
        self.u64_at(offset_of!(TimeframeHeader, schema))
    }

    pub(super) fn rows(&self) -> u64 {
        self.u64_at(offset_of!(TimeframeHeader, rows))
    }

    /// Memory that a pin of the table keeps.
    pub(super) fn pinned_bytes(&self) -> u64 {
        self.u64_at(offset_of!(TimeframeHeader, pinned_bytes))
    }

    pub(super) fn columns(&self) -> usize {
        self.columns as usize
    }

    /// Bytes of a part that is never written again while the table is pinned.
    ///
    /// # Safety
    /// The table is pinned as long as the slice lives.
    unsafe fn bytes<'a>(&self, at: usize, length: usize) -> Option<&'a [u8]> {
        let end = at.checked_add(length)?;
        // The records before hold the consumers' marks, which the service writes.
        if at < self.places.segments || end > self.size {
            return None;
        }
        // SAFETY: inside the `size` bytes of `new`.
        let start = unsafe { self.payload.add(at) };
        // SAFETY: mapped by the contract of `new`, and not written by the contract of this function.
        Some(unsafe { std::slice::from_raw_parts(start, length) })
    }

    /// The arrays of a column; `None` if there is no such column, or they lie outside.
    ///
    /// # Safety
    /// The table is pinned as long as the slices live.
    pub(super) unsafe fn column<'a>(&self, number: usize) -> Option<ColumnArrays<'a>> {
        if number >= self.columns() {
            return None;
        }
        let record = size_of::<TimeframeHeader>() + number * size_of::<ColumnRecord>();
        let field = |offset: usize| self.u32_at(record + offset) as usize;
        let runs = field(offset_of!(ColumnRecord, runs));
        let nulls = field(offset_of!(ColumnRecord, nulls));
        let part = |offset: usize, length: usize| {
            // SAFETY: by the contract of this function.
            unsafe { self.bytes(field(offset), length) }
        };
        let ends = part(offset_of!(ColumnRecord, ends), runs.checked_mul(size_of::<i32>())?)?;
        let cells = part(offset_of!(ColumnRecord, cells), runs.checked_mul(MetaHeader::BYTES)?)?;
        let validity = match nulls {
            0 => None,
            _ => Some(part(offset_of!(ColumnRecord, validity), runs.div_ceil(8))?),
        };
        let intervals = match field(offset_of!(ColumnRecord, intervals)) {
            0 => None,
            _ => Some(part(
                offset_of!(ColumnRecord, intervals),
                runs.checked_mul(size_of::<[i64; 2]>())?,
            )?),
        };
        Some(ColumnArrays { runs, ends, cells, validity, intervals })
    }

    /// The encoded schema; `None` if it lies outside.
    ///
    /// # Safety
    /// The table is pinned as long as the slice lives.
    pub(super) unsafe fn schema<'a>(&self) -> Option<&'a [u8]> {
        let at = self.u32_at(offset_of!(TimeframeHeader, schema_at)) as usize;
        let length = self.u32_at(offset_of!(TimeframeHeader, schema_bytes)) as usize;
        // SAFETY: by the contract of this function.
        unsafe { self.bytes(at, length) }
    }

    /// The progress of a consumer; `None` if the timeframe is not registered for it.
    ///
    /// # Safety
    /// The table is pinned meanwhile.
    pub(super) unsafe fn consumer(&self, name: &str) -> Option<ConsumerMark> {
        let records = (0..self.consumers as usize)
            .map(|number| self.places.consumers + number * size_of::<ConsumerRecord>());
        for record in records {
            let length = self.u32_at(record + offset_of!(ConsumerRecord, name_bytes)) as usize;
            if length != name.len() {
                continue;
            }
            let at = self.u32_at(record + offset_of!(ConsumerRecord, name_at)) as usize;
            // SAFETY: by the contract of this function.
            if unsafe { self.bytes(at, length) } == Some(name.as_bytes()) {
                let state = self.word(record + offset_of!(ConsumerRecord, state));
                return ConsumerMark::from_word(state.load(Ordering::Acquire));
            }
        }
        None
    }

    /// The names of the consumers that it is registered for.
    ///
    /// # Safety
    /// The table is pinned as long as the slices live.
    #[cfg(feature = "capi")]
    pub(super) unsafe fn consumer_names<'a>(&self) -> Vec<&'a [u8]> {
        let records = (0..self.consumers as usize)
            .map(|number| self.places.consumers + number * size_of::<ConsumerRecord>());
        let name = |record: usize| {
            let length = self.u32_at(record + offset_of!(ConsumerRecord, name_bytes)) as usize;
            let at = self.u32_at(record + offset_of!(ConsumerRecord, name_at)) as usize;
            // SAFETY: by the contract of this function.
            unsafe { self.bytes(at, length) }
        };
        records.filter_map(name).collect()
    }

    /// The segments (`true`) and regions of the objects.
    pub(super) fn segments(&self) -> impl Iterator<Item = (bool, u16)> {
        (0..self.segments as usize).map(|number| {
            let word = self.u32_at(self.places.segments + number * size_of::<u32>());
            (word & MANAGED != 0, word as u16)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::super::{Pool, PoolOptions};
    use super::super::timeframe_table::{ColumnPart, PublishedTimeframe, TimeframeParts};
    use super::*;

    /// The bytes of a table with one column, in memory of this process.
    fn table() -> Vec<u64> {
        let pool = Pool::new(PoolOptions { memory_bytes: 1 << 20, ..PoolOptions::default() });
        let pool = pool.unwrap();
        let parts = TimeframeParts {
            timeframe: 1,
            registration: 2,
            schema: 3,
            rows: 4,
            objects_bytes: 5,
            columns: &[ColumnPart { runs: 2, nulls: 1, ends: 0, cells: 64, validity: 192 }],
            consumers: &["a".to_owned(), "bc".to_owned()],
            segments: &[(true, 7)],
            schema_message: b"schema",
            batch_message: b"batch",
            body: &[9; 200],
            intervals: &[[-5, 6], [0, 0]],
        };
        let size = PublishedTimeframe::size_bytes(&parts).unwrap();
        let room = pool.reserve(size).unwrap();
        let table = PublishedTimeframe::publish(room, &parts, Arc::new(()));
        table.set_consumer(1, ConsumerMark::Consumed);
        let bytes = table.payload_for_test();
        bytes
            .chunks(8)
            .map(|word| {
                let mut whole = [0; 8];
                whole[..word.len()].copy_from_slice(word);
                u64::from_le_bytes(whole)
            })
            .collect()
    }

    #[test]
    fn a_table_is_read_as_it_was_written() {
        let words = table();
        // SAFETY: the words live as long as the view, and nothing writes them.
        let view = unsafe { TimeframeView::new(words.as_ptr().cast(), words.len() * 8) }.unwrap();
        assert_eq!((view.timeframe(), view.registration(), view.schema_number()), (1, 2, 3));
        assert_eq!((view.rows(), view.columns()), (4, 1));
        assert_eq!(view.segments().collect::<Vec<_>>(), [(true, 7)]);
        // SAFETY: as above.
        let column = unsafe { view.column(0) }.unwrap();
        // SAFETY: as above.
        let schema = unsafe { view.schema() }.unwrap();
        assert_eq!((column.runs, column.ends, schema), (2, &[9; 8][..], &b"schema"[..]));
        assert_eq!((column.cells.len(), column.validity), (80, Some(&[9][..])));
        let intervals: Vec<u8> = [-5_i64, 6, 0, 0].iter().flat_map(|at| at.to_le_bytes()).collect();
        assert_eq!(column.intervals, Some(&intervals[..]));
        for (name, mark) in [
            ("a", Some(ConsumerMark::Waiting)),
            ("bc", Some(ConsumerMark::Consumed)),
            ("b", None),
            ("", None),
        ] {
            // SAFETY: as above.
            assert_eq!(unsafe { view.consumer(name) }, mark, "{name:?}");
        }
    }

    #[test]
    fn any_bytes_in_the_place_of_a_table_are_read_within_its_size() {
        let whole = table();
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        for _ in 0..100_000 {
            let mut words = whole.clone();
            for _ in 0..4 {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                // Not the magic and the version, without which nothing else is read.
                let at = 1 + (random >> 32) as usize % 23;
                words[at] = if random.is_multiple_of(3) { random & 0xff } else { random };
            }
            let size = words.len() * 8 - random as usize % 64;
            // SAFETY: the words live as long as the view, and nothing writes them.
            let view = unsafe { TimeframeView::new(words.as_ptr().cast(), size) };
            let Some(view) = view else { continue };
            for number in 0..view.columns().min(4) {
                // SAFETY: as above.
                if let Some(column) = unsafe { view.column(number) } {
                    let intervals = column.intervals.unwrap_or_default();
                    let all = column.ends.iter().chain(column.cells).chain(intervals);
                    let ends = all.map(|byte| u64::from(*byte));
                    std::hint::black_box(ends.sum::<u64>());
                }
            }
            // SAFETY: as above.
            std::hint::black_box(unsafe { view.consumer("bc") });
            // SAFETY: as above.
            std::hint::black_box(unsafe { view.schema() });
            std::hint::black_box(view.segments().count());
        }
    }
}
