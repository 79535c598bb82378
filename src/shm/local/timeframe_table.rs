//! The table of a timeframe in a block, as the service writes it.
//!
//! ```text
//!  0        96        columns × 32   consumers × 24   segments × 4
//!  ┌────────┬─────────┬──────────────┬───────────┬────────┬───────┬────────┬────────────┬─────────┐
//!  │ header │ columns │  consumers   │ segments  │ names  │schema │ batch  │ batch body │intervals│
//!  └────────┴─────────┴──────────────┴───────────┴────────┴───────┴────────┴────────────┴─────────┘
//!     where each array lies ──────────────────────────────────────────────────▲────────────▲
//! ```
//!
//! Schema and batch are the messages that the service sends for the same table. The column records
//! repeat where the arrays of a column lie, so a consumer reads a column without decoding the others.
//! The intervals are those of the versions, run by run, column after column.
//!
//! **A pin of the table pins its objects** (`SYNC(pin)` in [`protocol`](super::protocol)). A
//! timeframe pins its objects as long as it is in flight. When it is dropped its table is retired,
//! and the pins go into quarantine with the place of the table. So a consumer that has pinned the
//! table by one slot can read every object of it until it clears the slot.

use std::any::Any;
use std::mem::{offset_of, size_of};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::super::block::{Block, Reservation};
use super::super::block_location::BlockLocation;
use super::block_place::BlockPlace;
use crate::object::ObjectId;

/// The first bytes of a table.
#[repr(C)]
pub(super) struct TimeframeHeader {
    pub(super) magic: u32,
    pub(super) version: u32,
    pub(super) timeframe: u64,
    /// Number of the registration, unique within the epoch: an id can be registered again.
    pub(super) registration: u64,
    /// Number of the schema, unique within the epoch: equal numbers have equal schemas, but for the
    /// timeframe in their metadata.
    pub(super) schema: u64,
    pub(super) rows: u64,
    /// Memory that a pin of the table keeps: its own, and that of its objects.
    pub(super) pinned_bytes: u64,
    pub(super) columns: u32,
    pub(super) consumers: u32,
    pub(super) segments: u32,
    pub(super) schema_at: u32,
    pub(super) schema_bytes: u32,
    pub(super) message_at: u32,
    pub(super) message_bytes: u32,
    pub(super) body_at: u32,
    pub(super) body_bytes: u32,
    pub(super) reserved: [u32; 3],
}

/// Where the arrays of one column lie, as offsets from the start of the table.
#[repr(C)]
pub(super) struct ColumnRecord {
    pub(super) runs: u32,
    /// Runs whose cells are null.
    pub(super) nulls: u32,
    /// The row after the last one of each run: i32.
    pub(super) ends: u32,
    /// A MetaHeader for each run.
    pub(super) cells: u32,
    /// A bit for each run, 1 where the cell is not null; unused if `nulls` is 0.
    pub(super) validity: u32,
    /// The validity interval of the version of each run, 2 × i64; 0: an older service wrote none.
    pub(super) intervals: u32,
    pub(super) reserved: [u32; 2],
}

/// A consumer that the timeframe is registered for.
#[repr(C)]
pub(super) struct ConsumerRecord {
    /// A [`ConsumerMark`]. The service changes it.
    pub(super) state: u64,
    pub(super) name_at: u32,
    pub(super) name_bytes: u32,
    pub(super) reserved: u64,
}

const _: () = assert!(size_of::<TimeframeHeader>() == 96);
const _: () = assert!(offset_of!(TimeframeHeader, pinned_bytes) == 40);
const _: () = assert!(offset_of!(TimeframeHeader, columns) == 48);
const _: () = assert!(offset_of!(TimeframeHeader, body_bytes) == 80);
const _: () = assert!(size_of::<ColumnRecord>() == 32);
const _: () = assert!(offset_of!(ColumnRecord, intervals) == 20);
const _: () = assert!(size_of::<ConsumerRecord>() == 24);

pub(super) const MAGIC: u32 = u32::from_le_bytes(*b"IOVF");
pub(super) const VERSION: u32 = 1;
/// Alignment of the messages, and of the arrays in the body.
const ALIGNMENT: usize = 64;
/// Flag of a managed segment among the segments of a table; the id stands in the lower bits.
pub(super) const MANAGED: u32 = 1 << 16;
/// Largest table. Larger ones are requested.
const MAX_BYTES: usize = 16 << 20;

/// Progress of a consumer with a timeframe, as its record says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ConsumerMark {
    Waiting,
    Delivered,
    Consumed,
}

impl ConsumerMark {
    const ALL: [Self; 3] = [Self::Waiting, Self::Delivered, Self::Consumed];

    fn to_word(self) -> u64 {
        self as u64
    }

    pub(super) fn from_word(word: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|mark| mark.to_word() == word)
    }
}

/// Where the arrays of a column lie in the body of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ColumnPart {
    pub(crate) runs: u32,
    pub(crate) nulls: u32,
    pub(crate) ends: u32,
    pub(crate) cells: u32,
    pub(crate) validity: u32,
}

/// Everything that the table of a timeframe consists of.
#[derive(Debug)]
pub(crate) struct TimeframeParts<'a> {
    pub(crate) timeframe: u64,
    pub(crate) registration: u64,
    pub(crate) schema: u64,
    pub(crate) rows: u64,
    /// Memory of its objects.
    pub(crate) objects_bytes: u64,
    pub(crate) columns: &'a [ColumnPart],
    pub(crate) consumers: &'a [String],
    /// The segments (`true`) and regions of its objects, each once.
    pub(crate) segments: &'a [(bool, u16)],
    pub(crate) schema_message: &'a [u8],
    pub(crate) batch_message: &'a [u8],
    pub(crate) body: &'a [u8],
    /// The validity interval of the version of each run in milliseconds, column after column.
    pub(crate) intervals: &'a [[i64; 2]],
}

/// Where the parts of a table lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PartPlaces {
    pub(super) consumers: usize,
    pub(super) segments: usize,
    names: usize,
    schema: usize,
    message: usize,
    body: usize,
    intervals: usize,
    size: usize,
}

impl PartPlaces {
    /// Places of the records; `None` if they exceed the largest table.
    pub(super) fn of_records(columns: usize, consumers: usize, segments: usize) -> Option<Self> {
        let add = |at: usize, count: usize, bytes: usize| {
            at.checked_add(count.checked_mul(bytes)?).filter(|end| *end <= MAX_BYTES)
        };
        let at = add(size_of::<TimeframeHeader>(), columns, size_of::<ColumnRecord>())?;
        let segments_at = add(at, consumers, size_of::<ConsumerRecord>())?;
        let names = add(segments_at, segments, size_of::<u32>())?;
        let (schema, message, body) = (names, names, names);
        let (intervals, size) = (names, names);
        let (consumers, segments) = (at, segments_at);
        Some(Self { consumers, segments, names, schema, message, body, intervals, size })
    }

    fn new(parts: &TimeframeParts<'_>) -> Option<Self> {
        let (columns, consumers) = (parts.columns.len(), parts.consumers.len());
        let places = Self::of_records(columns, consumers, parts.segments.len())?;
        let names: usize = parts.consumers.iter().map(String::len).sum();
        let schema = (places.names + names).next_multiple_of(ALIGNMENT);
        let message = (schema + parts.schema_message.len()).next_multiple_of(ALIGNMENT);
        let body = (message + parts.batch_message.len()).next_multiple_of(ALIGNMENT);
        let intervals = (body + parts.body.len()).next_multiple_of(ALIGNMENT);
        let size = intervals + size_of_val(parts.intervals);
        (size <= MAX_BYTES).then_some(Self { schema, message, body, intervals, size, ..places })
    }
}

/// Writes fields one after the other.
struct Fields<'a> {
    bytes: &'a mut [u8],
    at: usize,
}

impl Fields<'_> {
    fn put(&mut self, value: &[u8]) {
        self.bytes[self.at..self.at + value.len()].copy_from_slice(value);
        self.at += value.len();
    }

    fn u32(&mut self, value: u32) {
        self.put(&value.to_le_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.put(&value.to_le_bytes());
    }
}

/// The published table of a timeframe. Dropping it retires the block; the pins of its objects last
/// as long as a consumer pins it.
#[derive(Debug)]
pub(crate) struct PublishedTimeframe {
    /// `None` while it is dropped.
    block: Option<Block>,
    consumers_at: usize,
    consumers: u32,
    /// The pins of its objects.
    objects: Arc<dyn Any + Send + Sync>,
    /// As in the header.
    pinned_bytes: u64,
}

impl PublishedTimeframe {
    /// Size in bytes of such a table; `None` if it is too large.
    pub(crate) fn size_bytes(parts: &TimeframeParts<'_>) -> Option<u64> {
        Some(PartPlaces::new(parts)?.size as u64)
    }

    /// Writes and publishes a table, whose consumers are all waiting. `objects` keeps its objects in
    /// place.
    ///
    /// # Panics
    /// If `room` is not of [`size_bytes`](Self::size_bytes), or there is no interval for each run.
    pub(crate) fn publish(
        mut room: Reservation,
        parts: &TimeframeParts<'_>,
        objects: Arc<dyn Any + Send + Sync>,
    ) -> Self {
        let places = PartPlaces::new(parts);
        let bytes = room.payload_mut();
        let places = places.filter(|places| places.size == bytes.len());
        let places = places.expect("the room has the size of the table");
        let runs: usize = parts.columns.iter().map(|column| column.runs as usize).sum();
        assert_eq!(parts.intervals.len(), runs, "one interval for each run");
        bytes.fill(0);
        write(bytes, parts, &places);
        // A table is no object: its id is never requested.
        let block = room.publish(ObjectId::from_bytes([0; 16]));
        block.enter_snapshot();
        let consumers = parts.consumers.len() as u32;
        let pinned_bytes = pinned_bytes(parts, &places);
        let consumers_at = places.consumers;
        Self { block: Some(block), consumers_at, consumers, objects, pinned_bytes }
    }

    fn block(&self) -> &Block {
        // Taken by the drop alone.
        self.block.as_ref().expect("the block is there until the drop")
    }

    /// Generation and place of the table, for its directory entry.
    pub(crate) fn name(&self) -> (u64, BlockPlace) {
        (self.block().generation(), BlockPlace::of(self.block()))
    }

    /// A copy of its bytes.
    #[cfg(test)]
    pub(super) fn payload_for_test(&self) -> Vec<u8> {
        self.block().payload().to_vec()
    }

    /// Memory charged for it, in bytes.
    pub(crate) fn charged_bytes(&self) -> u64 {
        self.block().charged_bytes()
    }

    /// Location of its block.
    pub(crate) fn location(&self) -> BlockLocation {
        self.block().location()
    }

    /// Records the progress of a consumer.
    ///
    /// # Panics
    /// If there is no such consumer.
    pub(crate) fn set_consumer(&self, number: usize, mark: ConsumerMark) {
        assert!(number < self.consumers as usize, "consumer {number} of {}", self.consumers);
        let record = self.consumers_at + number * size_of::<ConsumerRecord>();
        let word = self.block().payload_word(record + offset_of!(ConsumerRecord, state));
        word.store(mark.to_word(), Ordering::Release);
    }
}

impl Drop for PublishedTimeframe {
    fn drop(&mut self) {
        if let Some(block) = self.block.take() {
            block.retire_keeping(Arc::clone(&self.objects), self.pinned_bytes);
        }
    }
}

/// Memory that a pin of the table keeps: its own, and that of its objects.
fn pinned_bytes(parts: &TimeframeParts<'_>, places: &PartPlaces) -> u64 {
    parts.objects_bytes.saturating_add(places.size as u64)
}

fn write(bytes: &mut [u8], parts: &TimeframeParts<'_>, places: &PartPlaces) {
    let mut to = Fields { bytes, at: 0 };
    to.u32(MAGIC);
    to.u32(VERSION);
    for word in [parts.timeframe, parts.registration, parts.schema, parts.rows] {
        to.u64(word);
    }
    to.u64(pinned_bytes(parts, places));
    to.u32(parts.columns.len() as u32);
    to.u32(parts.consumers.len() as u32);
    to.u32(parts.segments.len() as u32);
    for (at, part) in [
        (places.schema, parts.schema_message),
        (places.message, parts.batch_message),
        (places.body, parts.body),
    ] {
        to.u32(at as u32);
        to.u32(part.len() as u32);
    }
    to.at = size_of::<TimeframeHeader>();
    write_records(&mut to, parts, places);
    parts.consumers.iter().for_each(|name| to.put(name.as_bytes()));
    for (at, part) in [
        (places.schema, parts.schema_message),
        (places.message, parts.batch_message),
        (places.body, parts.body),
    ] {
        to.at = at;
        to.put(part);
    }
    to.at = places.intervals;
    for [from, until] in parts.intervals {
        to.u64(from.cast_unsigned());
        to.u64(until.cast_unsigned());
    }
}

/// Writes the records of columns, consumers and segments.
fn write_records(to: &mut Fields<'_>, parts: &TimeframeParts<'_>, places: &PartPlaces) {
    let (body, mut intervals) = (places.body as u32, places.intervals);
    for column in parts.columns {
        to.u32(column.runs);
        to.u32(column.nulls);
        for offset in [column.ends, column.cells, column.validity] {
            to.u32(body + offset);
        }
        to.u32(intervals as u32);
        intervals += column.runs as usize * size_of::<[i64; 2]>();
        to.at += size_of::<[u32; 2]>();
    }
    let mut name_at = places.names;
    for name in parts.consumers {
        to.u64(ConsumerMark::Waiting.to_word());
        to.u32(name_at as u32);
        to.u32(name.len() as u32);
        to.u64(0);
        name_at += name.len();
    }
    for (managed, id) in parts.segments {
        to.u32(if *managed { MANAGED } else { 0 } | u32::from(*id));
    }
}
