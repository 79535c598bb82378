//! Snapshot of a timeline in one block: which object is effective when, and where it lies.
//!
//! ```text
//!  0        64           64 + 8 n, rounded up to 64     + 64 n
//!  ┌────────┬────────────┬──────┬──────┬─── … ──────────┬──────┐
//!  │ header │ starts     │ cell │ cell │                │ path │
//!  └────────┴────────────┴──────┴──────┴─── … ──────────┴──────┘
//! ```
//!
//! The starts are sorted, so a look-up reads a few cache lines of them, and one line of the cells.
//! A time without a span (no object is valid, in memory or known) makes the consumer ask the
//! service.
#![allow(unsafe_code)]

use std::mem::{offset_of, size_of};
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering};

use super::super::block::{Block, Reservation};
use super::super::block_location::BlockLocation;
use super::super::layout::{GRANULE_BYTES, MetaHeader};
use super::block_place::BlockPlace;
use crate::object::ObjectId;

/// Header of a snapshot.
#[repr(C)]
pub(super) struct SnapshotHeader {
    pub(super) magic: u32,
    pub(super) version: u32,
    /// Time until which the whole snapshot is confirmed, in milliseconds of CLOCK_MONOTONIC; 0: see
    /// the cells. The service changes it.
    pub(super) confirmed_until: u64,
    pub(super) spans: u32,
    pub(super) path_bytes: u32,
    pub(super) reserved: [u64; 5],
}

/// The object that is effective from the start of its span on.
#[repr(C)]
pub(super) struct SpanCell {
    /// The fields of a [`MetaHeader`] without `shared`, which is -1.
    pub(super) size: u64,
    pub(super) generation: u64,
    pub(super) handle: i64,
    pub(super) region_id: u16,
    pub(super) segment_id: u16,
    pub(super) managed: u8,
    pub(super) pad: [u8; 3],
    /// End of the span, exclusive, in milliseconds.
    pub(super) until: i64,
    /// Time until which the span is confirmed, in milliseconds of CLOCK_MONOTONIC. The service
    /// changes it.
    pub(super) confirmed_until: u64,
    /// The version's own validity interval, in milliseconds.
    pub(super) valid_from: i64,
    pub(super) valid_until: i64,
}

const _: () = assert!(size_of::<SnapshotHeader>() == 64);
const _: () = assert!(offset_of!(SnapshotHeader, version) == 4);
const _: () = assert!(offset_of!(SnapshotHeader, confirmed_until) == 8);
const _: () = assert!(offset_of!(SnapshotHeader, spans) == 16);
const _: () = assert!(offset_of!(SnapshotHeader, path_bytes) == 20);
const _: () = assert!(size_of::<SpanCell>() == 64);
const _: () = assert!(offset_of!(SpanCell, generation) == 8);
const _: () = assert!(offset_of!(SpanCell, handle) == 16);
const _: () = assert!(offset_of!(SpanCell, region_id) == 24);
const _: () = assert!(offset_of!(SpanCell, segment_id) == 26);
const _: () = assert!(offset_of!(SpanCell, managed) == 28);
const _: () = assert!(offset_of!(SpanCell, until) == 32);
const _: () = assert!(offset_of!(SpanCell, confirmed_until) == 40);
const _: () = assert!(offset_of!(SpanCell, valid_from) == 48);
const _: () = assert!(offset_of!(SpanCell, valid_until) == 56);

const MAGIC: u32 = u32::from_le_bytes(*b"IOVT");
const VERSION: u32 = 1;
const HEADER_BYTES: usize = size_of::<SnapshotHeader>();

/// Offsets of the cells and of the path in a snapshot with this many spans.
fn parts(spans: u32) -> (usize, usize) {
    let starts_end = HEADER_BYTES + spans as usize * size_of::<i64>();
    let cells = starts_end.next_multiple_of(GRANULE_BYTES as usize);
    (cells, cells + spans as usize * size_of::<SpanCell>())
}

/// A span of a timeline with an object in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SnapshotSpan {
    /// Start of the span, inclusive, in milliseconds.
    pub(crate) from: i64,
    /// End of the span, exclusive, in milliseconds.
    pub(crate) until: i64,
    /// The version's own validity interval, in milliseconds.
    pub(crate) validity: (i64, i64),
    /// Location of the object.
    pub(crate) header: MetaHeader,
}

/// A snapshot in memory. Dropping it retires its block, so that it does not resolve any more.
///
/// The bytes of its block are never borrowed, because the service changes words in it.
#[derive(Debug)]
pub(crate) struct PublishedSnapshot {
    block: Block,
    spans: u32,
}

impl PublishedSnapshot {
    /// Size in bytes of a snapshot with this many spans; `None` if there are too many.
    pub(crate) fn size_bytes(spans: usize, path: &str) -> Option<u64> {
        /// Maximum number of spans; they take 72 MB.
        const MOST_SPANS: usize = 1_000_000;
        let spans = u32::try_from(spans).ok().filter(|spans| *spans as usize <= MOST_SPANS)?;
        Some((parts(spans).1 + path.len()) as u64)
    }

    /// Writes and publishes a snapshot. Neither the whole nor any span is confirmed until
    /// [`confirm`](Self::confirm) or [`confirm_span`](Self::confirm_span) is called.
    ///
    /// # Panics
    /// If `room` is not of [`size_bytes`](Self::size_bytes).
    pub(crate) fn publish(mut room: Reservation, path: &str, spans: &[SnapshotSpan]) -> Self {
        let count = spans.len() as u32;
        let (cells, path_at) = parts(count);
        let bytes = room.payload_mut();
        assert_eq!(bytes.len(), path_at + path.len(), "a snapshot of {count} spans");
        bytes[..path_at].fill(0);
        bytes[..4].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[4..8].copy_from_slice(&VERSION.to_le_bytes());
        bytes[16..20].copy_from_slice(&count.to_le_bytes());
        bytes[20..24].copy_from_slice(&(path.len() as u32).to_le_bytes());
        let starts = bytes[HEADER_BYTES..].chunks_exact_mut(size_of::<i64>());
        starts.zip(spans).for_each(|(to, span)| to.copy_from_slice(&span.from.to_le_bytes()));
        let all = bytes[cells..path_at].chunks_exact_mut(size_of::<SpanCell>());
        all.zip(spans).for_each(|(cell, span)| write_cell(cell, span));
        bytes[path_at..].copy_from_slice(path.as_bytes());
        // A snapshot is no object: its id is never requested.
        Self { block: room.publish(ObjectId::from_bytes([0; 16])), spans: count }
    }

    /// Generation and place of the snapshot, for its directory entry.
    pub(crate) fn name(&self) -> (u64, BlockPlace) {
        (self.block.generation(), BlockPlace::of(&self.block))
    }

    /// Memory charged for it, in bytes.
    pub(crate) fn charged_bytes(&self) -> u64 {
        self.block.charged_bytes()
    }

    /// Location of its block.
    pub(crate) fn location(&self) -> BlockLocation {
        self.block.location()
    }

    fn word(&self, offset: usize) -> &AtomicU64 {
        self.block.payload_word(offset)
    }

    /// Confirms the whole snapshot until this millisecond of CLOCK_MONOTONIC.
    pub(crate) fn confirm(&self, until: u64) {
        self.word(offset_of!(SnapshotHeader, confirmed_until)).store(until, Ordering::Relaxed);
    }

    /// Confirms one span until this millisecond of CLOCK_MONOTONIC.
    ///
    /// # Panics
    /// If there is no such span.
    pub(crate) fn confirm_span(&self, span: usize, until: u64) {
        assert!(span < self.spans as usize, "span {span} of {}", self.spans);
        let cell = parts(self.spans).0 + span * size_of::<SpanCell>();
        let word = self.word(cell + offset_of!(SpanCell, confirmed_until));
        word.store(until, Ordering::Relaxed);
    }
}

fn write_cell(cell: &mut [u8], span: &SnapshotSpan) {
    let MetaHeader { size, hint, handle, region_id, segment_id, managed, .. } = span.header;
    let mut put = |offset: usize, bytes: &[u8]| {
        cell[offset..offset + bytes.len()].copy_from_slice(bytes);
    };
    put(offset_of!(SpanCell, size), &size.to_le_bytes());
    put(offset_of!(SpanCell, generation), &hint.to_le_bytes());
    put(offset_of!(SpanCell, handle), &handle.to_le_bytes());
    put(offset_of!(SpanCell, region_id), &region_id.to_le_bytes());
    put(offset_of!(SpanCell, segment_id), &segment_id.to_le_bytes());
    put(offset_of!(SpanCell, managed), &[managed]);
    put(offset_of!(SpanCell, until), &span.until.to_le_bytes());
    put(offset_of!(SpanCell, valid_from), &span.validity.0.to_le_bytes());
    put(offset_of!(SpanCell, valid_until), &span.validity.1.to_le_bytes());
}

/// A snapshot as read by a consumer without a pin: every word is read by an atomic, and nothing
/// counts until the block's generation was read again.
#[derive(Debug, Clone, Copy)]
pub(super) struct SnapshotView {
    payload: *const u8,
    cells: usize,
    path: usize,
    spans: u32,
    path_bytes: u32,
    guess: SpanGuess,
}

/// Guesses the span of a time as if all spans were of one length, as those of many timelines are.
#[derive(Debug, Clone, Copy, Default)]
struct SpanGuess {
    /// Start of the first span.
    first: i64,
    /// Spans per millisecond, in units of 2^-63.
    spans_per_milli: u64,
}

impl SpanGuess {
    fn new(first: i64, last: i64, spans: u32) -> Self {
        let length = u128::from(last.wrapping_sub(first).cast_unsigned());
        let steps = u128::from(spans.saturating_sub(1)) << 63;
        // Rounded up: a start belongs to its span.
        let rate = steps.checked_div(length).map_or(0, |rate| rate + 1);
        Self { first, spans_per_milli: u64::try_from(rate).unwrap_or(u64::MAX) }
    }

    /// The number of a span, which need not be that of `at` or exist.
    #[inline(always)]
    fn span(self, at: i64) -> usize {
        let ahead = at.wrapping_sub(self.first).cast_unsigned();
        ((u128::from(ahead) * u128::from(self.spans_per_milli)) >> 63) as usize
    }
}

/// Span of a snapshot, found for a time.
#[derive(Debug, Clone, Copy)]
pub(super) struct FoundSpan {
    pub(super) header: MetaHeader,
    pub(super) number: u32,
    pub(super) from: i64,
    pub(super) until: i64,
    pub(super) validity: (i64, i64),
    pub(super) confirmed_until: u64,
}

impl SnapshotView {
    /// A snapshot of `size` bytes at `payload`; `None` if its counts do not fit the size, as in a
    /// place that was reused.
    ///
    /// # Safety
    /// `payload` is a multiple of 64; the `size` bytes there stay mapped while the view is used,
    /// and only the service writes them.
    pub(super) unsafe fn new(payload: *const u8, size: usize) -> Option<Self> {
        if size < HEADER_BYTES {
            return None;
        }
        let (cells, path) = (0, 0);
        let guess = SpanGuess::default();
        let header = Self { payload, cells, path, spans: 0, path_bytes: 0, guess };
        if header.u32_at(0) != MAGIC || header.u32_at(4) != VERSION {
            return None;
        }
        let spans = header.u32_at(offset_of!(SnapshotHeader, spans));
        let path_bytes = header.u32_at(offset_of!(SnapshotHeader, path_bytes));
        if spans as usize > size / size_of::<SpanCell>() {
            return None;
        }
        let (cells, path) = parts(spans);
        let whole = path.checked_add(path_bytes as usize) == Some(size);
        let view = Self { payload, cells, path, spans, path_bytes, guess };
        whole.then(|| view.with_guess())
    }

    fn with_guess(self) -> Self {
        let Some(last) = (self.spans as usize).checked_sub(1) else { return self };
        Self { guess: SpanGuess::new(self.start(0), self.start(last), self.spans), ..self }
    }

    #[inline(always)]
    fn word(&self, offset: usize) -> u64 {
        // SAFETY: every caller's offset is a multiple of 8 inside the `size` bytes of `new`.
        let place = unsafe { self.payload.add(offset) };
        // SAFETY: mapped and aligned by the contract of `new`; other processes access it by atomics.
        let word = unsafe { AtomicU64::from_ptr(place.cast_mut().cast()) };
        word.load(Ordering::Relaxed)
    }

    fn u32_at(&self, offset: usize) -> u32 {
        // SAFETY: inside the header, whose presence `new` has checked.
        let place = unsafe { self.payload.add(offset) };
        // SAFETY: as in `word`, at a multiple of 4.
        let word = unsafe { AtomicU32::from_ptr(place.cast_mut().cast()) };
        word.load(Ordering::Relaxed)
    }

    #[inline(always)]
    fn start(&self, span: usize) -> i64 {
        // SAFETY: `span` is less than `spans`, so the word is inside.
        let place = unsafe { self.payload.add(HEADER_BYTES + span * size_of::<i64>()) };
        // SAFETY: as in `word`.
        let word = unsafe { AtomicI64::from_ptr(place.cast_mut().cast()) };
        word.load(Ordering::Relaxed)
    }

    /// Whether the service refreshes all of it by itself. Else a span is confirmed when it is asked
    /// for.
    pub(super) fn is_refreshed(&self) -> bool {
        self.word(offset_of!(SnapshotHeader, confirmed_until)) != 0
    }

    /// Whether it is the snapshot of `path`.
    pub(super) fn is_of(&self, path: &str) -> bool {
        if self.path_bytes as usize != path.len() {
            return false;
        }
        let bytes = path.as_bytes();
        (0..bytes.len()).all(|index| {
            // SAFETY: the path's bytes are inside the `size` bytes of `new`.
            let place = unsafe { self.payload.add(self.path + index) };
            // SAFETY: mapped by the contract of `new`; a byte has no alignment.
            let byte = unsafe { std::sync::atomic::AtomicU8::from_ptr(place.cast_mut()) };
            byte.load(Ordering::Relaxed) == bytes[index]
        })
    }

    /// Number of spans that begin at `at` or before.
    #[inline(always)]
    pub(super) fn spans_begun(&self, at: i64) -> usize {
        let Some(last) = (self.spans as usize).checked_sub(1) else { return 0 };
        let guess = self.guess.span(at).min(last);
        if self.start(guess) <= at && (guess == last || at < self.start(guess + 1)) {
            return guess + 1;
        }
        self.search(at)
    }

    /// Like [`spans_begun`](Self::spans_begun), by a search.
    #[inline]
    fn search(&self, at: i64) -> usize {
        let (mut base, mut length) = (0_usize, self.spans as usize);
        if length == 0 {
            return 0;
        }
        let begun = |span: usize| usize::from(self.start(span) <= at);
        // Loads that do not wait for each other, and no branch that depends on random times: each
        // mispredicted one would cost as much as a step.
        while length >= 4 {
            let part = length / 4;
            let parts = begun(base + part) + begun(base + 2 * part) + begun(base + 3 * part);
            base += parts * part;
            length -= 3 * part;
        }
        base + (0..length).map(|span| begun(base + span)).sum::<usize>()
    }

    /// Number of the span that contains `at`, if its object was in memory when the snapshot was made.
    #[inline(always)]
    pub(super) fn number_at(&self, at: i64) -> Option<u32> {
        let number = self.spans_begun(at).checked_sub(1)?;
        let cell = self.cells + number * size_of::<SpanCell>();
        let until = self.word(cell + offset_of!(SpanCell, until)).cast_signed();
        (at < until).then_some(number as u32)
    }

    /// The span that contains `at`, if its object was in memory when the snapshot was made.
    #[cfg(test)]
    pub(super) fn find(&self, at: i64) -> Option<FoundSpan> {
        self.span(self.number_at(at)?)
    }

    /// Begin and end of a span.
    ///
    /// # Panics
    /// If there is no such span.
    pub(super) fn bounds(&self, number: usize) -> (i64, i64) {
        assert!(number < self.spans as usize, "span {number} of {}", self.spans);
        let until = self.cells + number * size_of::<SpanCell>() + offset_of!(SpanCell, until);
        (self.start(number), self.word(until).cast_signed())
    }

    /// A span by its number; `None` if there is no such span.
    #[inline(always)]
    pub(super) fn span(&self, number: u32) -> Option<FoundSpan> {
        (number < self.spans).then(|| self.span_of(number as usize))
    }

    /// The span `number`, which must be less than `spans`.
    #[inline(always)]
    fn span_of(&self, number: usize) -> FoundSpan {
        let cell = self.cells + number * size_of::<SpanCell>();
        let word = |field: usize| self.word(cell + field);
        let place = word(offset_of!(SpanCell, region_id));
        let (size, generation) =
            (word(offset_of!(SpanCell, size)), word(offset_of!(SpanCell, generation)));
        let handle = word(offset_of!(SpanCell, handle)).cast_signed();
        let header = match (place >> 32) as u8 {
            1 => MetaHeader::managed((place >> 16) as u16, handle, size, generation),
            _ => MetaHeader::unmanaged(place as u16, handle, size, generation),
        };
        let whole = self.word(offset_of!(SnapshotHeader, confirmed_until));
        FoundSpan {
            header,
            number: number as u32,
            from: self.start(number),
            until: word(offset_of!(SpanCell, until)).cast_signed(),
            validity: (
                word(offset_of!(SpanCell, valid_from)).cast_signed(),
                word(offset_of!(SpanCell, valid_until)).cast_signed(),
            ),
            confirmed_until: whole.max(word(offset_of!(SpanCell, confirmed_until))),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::super::{Pool, PoolOptions};
    use super::*;

    fn pool() -> Pool {
        Pool::new(PoolOptions { memory_bytes: 1 << 20, ..PoolOptions::default() }).unwrap()
    }

    fn span(from: i64, until: i64, generation: u64) -> SnapshotSpan {
        let header = MetaHeader::managed(3, 4144, 9, generation);
        SnapshotSpan { from, until, validity: (from - 1, until + 1), header }
    }

    fn span_between(from: i64, until: i64) -> SnapshotSpan {
        SnapshotSpan { from, until, ..span(0, 1, 1) }
    }

    fn published(pool: &Pool, path: &str, spans: &[SnapshotSpan]) -> PublishedSnapshot {
        let size = PublishedSnapshot::size_bytes(spans.len(), path).unwrap();
        PublishedSnapshot::publish(pool.reserve(size).unwrap(), path, spans)
    }

    fn view(pool: &Pool, snapshot: &PublishedSnapshot) -> SnapshotView {
        let location = pool.mappings().locate(&snapshot.block.meta_header()).unwrap();
        // SAFETY: the pool keeps its segments, and so their mappings, while the test runs.
        unsafe { SnapshotView::new(location.address, location.size) }.unwrap()
    }

    #[test]
    fn borders_belong_to_the_span_that_begins_there() {
        let pool = pool();
        let spans = [span(0, 10, 1), span(10, 20, 2), span(30, 40, 3)];
        let snapshot = published(&pool, "A/B", &spans);
        let view = view(&pool, &snapshot);
        let generation = |at| view.find(at).map(|found| found.header.hint);
        for (at, expected) in [
            (i64::MIN, None),
            (-1, None),
            (0, Some(1)),
            (9, Some(1)),
            (10, Some(2)),
            (19, Some(2)),
            (20, None),
            (29, None),
            (30, Some(3)),
            (39, Some(3)),
            (40, None),
            (i64::MAX, None),
        ] {
            assert_eq!(generation(at), expected, "{at}");
        }
        let found = view.find(15).unwrap();
        assert_eq!(found.header, MetaHeader::managed(3, 4144, 9, 2));
        assert_eq!((found.from, found.until, found.validity), (10, 20, (9, 21)));
        assert!(view.is_of("A/B") && !view.is_of("A/C") && !view.is_of("A/BB"));
    }

    #[test]
    fn a_span_is_confirmed_by_itself_or_with_the_whole() {
        let pool = pool();
        let snapshot = published(&pool, "A", &[span(0, 10, 1), span(10, 20, 2)]);
        let view = view(&pool, &snapshot);
        let confirmed = || [5, 15].map(|at| view.find(at).unwrap().confirmed_until);
        assert_eq!(confirmed(), [0, 0]);
        snapshot.confirm_span(1, 7);
        assert_eq!(confirmed(), [0, 7]);
        snapshot.confirm(5);
        assert_eq!(confirmed(), [5, 7]);
    }

    #[test]
    fn bytes_that_are_no_snapshot_are_not_read_as_one() {
        let pool = pool();
        let snapshot = published(&pool, "A", &[span(0, 10, 1)]);
        let location = pool.mappings().locate(&snapshot.block.meta_header()).unwrap();
        for size in [0, 63, 64, location.size - 1, location.size + 1] {
            // SAFETY: as in `view`; after the payload there is room in the segment.
            let view = unsafe { SnapshotView::new(location.address, size) };
            assert!(view.is_none(), "{size}");
        }
    }

    /// The times at and beside all borders of these spans.
    fn borders(spans: &[SnapshotSpan]) -> Vec<i64> {
        let beside = |at: i64| [at.saturating_sub(1), at, at.saturating_add(1)];
        let ends = spans.iter().flat_map(|span| [span.from, span.until]);
        ends.chain([i64::MIN, 0, i64::MAX]).flat_map(beside).collect()
    }

    #[test]
    fn spans_of_one_length_and_of_very_different_ones_are_found() {
        let pool =
            Pool::new(PoolOptions { memory_bytes: 8 << 20, ..PoolOptions::default() }).unwrap();
        let regular = |count: i64, length: i64| -> Vec<i64> {
            (0..=count).map(|n| 1_700_000_000_000 + n * length).collect()
        };
        // Each one twice as long as the one before, around the epoch, and from end to end.
        let doubled = (0..62).map(|n| (1_i64 << n) - 9).collect();
        let mirrored = (0..62).rev().map(|n| -(1_i64 << n)).chain([0, 5, 6]).collect();
        let extreme = vec![i64::MIN, -1, 0, 7, i64::MAX - 1, i64::MAX];
        let timelines: [Vec<i64>; 9] = [
            regular(1, 1),
            regular(2, 5),
            regular(1_000, 1),
            regular(999, 60_000),
            regular(4_096, 7),
            doubled,
            mirrored,
            extreme,
            (0..3_000).map(|n: i64| n * n * n / 11 + n).collect(),
        ];
        for starts in timelines {
            let spans: Vec<_> =
                starts.windows(2).map(|ends| span_between(ends[0], ends[1])).collect();
            let snapshot = published(&pool, "A", &spans);
            let view = view(&pool, &snapshot);
            for at in borders(&spans) {
                let begun = spans.partition_point(|span| span.from <= at);
                assert_eq!(
                    view.spans_begun(at),
                    begun,
                    "{at} of {} from {}",
                    spans.len(),
                    starts[0]
                );
                assert_eq!(view.search(at), begun, "{at} of {} from {}", spans.len(), starts[0]);
            }
        }
    }

    #[test]
    fn a_guess_from_words_that_are_no_starts_does_no_harm() {
        for (first, last) in [(5, -5), (i64::MIN, i64::MAX), (i64::MAX, i64::MIN), (7, 7), (7, 8)] {
            for spans in [0, 1, 2, 1_000, u32::MAX] {
                let guess = SpanGuess::new(first, last, spans);
                for at in [i64::MIN, -1, 0, 7, 8, i64::MAX] {
                    let _ = guess.span(at);
                }
            }
        }
    }

    proptest! {
        #[test]
        fn a_snapshot_says_what_a_linear_scan_says(
            mut borders in proptest::collection::btree_set(-50_i64..50, 0..20),
            at in -60_i64..60,
        ) {
            if borders.len() % 2 == 1 {
                borders.pop_last();
            }
            let borders: Vec<i64> = borders.into_iter().collect();
            let pairs = borders.chunks(2).enumerate();
            let spans: Vec<_> = pairs.map(|(n, b)| span(b[0], b[1], n as u64 + 1)).collect();
            let expected = spans.iter().find(|span| (span.from..span.until).contains(&at));
            let pool = pool();
            let snapshot = published(&pool, "A/B/C", &spans);
            let found = view(&pool, &snapshot).find(at).map(|found| found.header);
            prop_assert_eq!(found, expected.map(|span| span.header));
        }
    }
}
