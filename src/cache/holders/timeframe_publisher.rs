//! Publishes the tables of timeframes for consumers that take them from shared memory.
//!
//! ```text
//!  registered ──▶ entry: loading ──▶ all objects pinned ──▶ table in a block ──▶ entry: ready
//!                                                                                    │ dropped
//!                 no consumer finds it (under the lock of the timeframes in flight) ◀┘
//!                 its table is retired; the pins of its objects stay until no slot names the table
//! ```
//!
//! Only while a session reads the directory, and only tables in the form that clients request by
//! default: run-end encoded MetaHeaders, in one batch, without missing objects. Consumers request all
//! others. A table lies in the memory for objects and is freed when objects need it; so a timeframe in
//! flight is never lost with its table.

use std::any::Any;
use std::collections::HashMap;
use std::fmt;
use std::mem::offset_of;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use foldhash::fast::RandomState;

use crate::cache::memory::object::{Pin, PinSet};
use crate::cache::memory::pin_request::PinRequest as _;
use crate::cache::memory::residency::Residency;
use crate::cache::tables::column_sets::TableSchema;
use crate::cache::tables::plan::{Assembled, Plan};
use crate::cache::tables::plan_objects::content_of;
use crate::cache::versions::publisher::Publisher;
use crate::shm::{
    BlockLocation, ColumnPart, ConsumerMark, MetaHeader, PublishedTimeframe, TimeframeEntry,
    TimeframeParts,
};
use crate::sync::{Mutex, MutexGuard};
use crate::table::{TableMarks, TimeframeMark, column_parts};

/// One part in this many of the memory can hold tables of timeframes.
const MEMORY_SHARE: u64 = 8;

/// Publishes the tables of all timeframes.
pub(crate) struct TimeframePublisher {
    publisher: Arc<Publisher>,
    residency: Arc<Residency>,
    /// Bytes of shared memory that all tables take.
    table_bytes: Arc<AtomicU64>,
    /// Pins of published tables, for the check of all pins: a slot can keep them after the drop.
    pins: Mutex<Vec<Weak<PinSet>>>,
}

impl fmt::Debug for TimeframePublisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TimeframePublisher").finish_non_exhaustive()
    }
}

/// A published table that counts towards the bytes of all tables.
#[derive(Debug)]
struct CountedTable {
    table: PublishedTimeframe,
    all_bytes: Arc<AtomicU64>,
}

impl Drop for CountedTable {
    fn drop(&mut self) {
        self.all_bytes.fetch_sub(self.table.charged_bytes(), Ordering::Relaxed);
    }
}

/// The content of the table of a timeframe.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TableContent<'a> {
    pub(crate) mark: TimeframeMark,
    pub(crate) consumers: &'a [String],
    pub(crate) plan: &'a Plan,
    pub(crate) schema: &'a Arc<TableSchema>,
    pub(crate) assembled: &'a Arc<Assembled>,
}

impl TimeframePublisher {
    pub(crate) fn new(publisher: Arc<Publisher>, residency: Arc<Residency>) -> Arc<Self> {
        Arc::new(Self { publisher, residency, table_bytes: Arc::default(), pins: Mutex::default() })
    }

    /// Bytes of shared memory that all tables take.
    pub(crate) fn table_bytes(&self) -> u64 {
        self.table_bytes.load(Ordering::Relaxed)
    }

    /// The pins of tables that consumers may still read.
    pub(crate) fn pin_sets(&self) -> Vec<Arc<PinSet>> {
        self.pins.lock().iter().filter_map(Weak::upgrade).collect()
    }

    fn note_pins(&self, set: &Arc<PinSet>) {
        let mut pins = self.pins.lock();
        if pins.len() == pins.capacity() {
            pins.retain(|known| known.strong_count() > 0);
        }
        pins.push(Arc::downgrade(set));
    }

    /// Writes a table; `None` if consumers must request it.
    fn table(&self, content: TableContent<'_>) -> Option<CountedTable> {
        let TableContent { mark, consumers, plan, schema, assembled } = content;
        // Without names the table could not tell the progress of its consumers.
        if consumers.is_empty() {
            return None;
        }
        let encoded = assembled.encoded(schema, &content_of(plan, assembled)).ok()??;
        let [batch] = &encoded[..] else { return None };
        let columns = column_parts(&batch.batch, assembled.columns.len())?;
        let marks = TableMarks { timeframe: Some(mark), ..TableMarks::default() };
        let schema_message = schema.schema_message.message(marks)?;
        let pins = assembled.pins.pins();
        let intervals = intervals_of(plan, pins, &columns, &batch.batch.body);
        let parts = TimeframeParts {
            timeframe: mark.timeframe,
            registration: mark.registration,
            schema: schema.number,
            rows: plan.rows() as u64,
            objects_bytes: pins.iter().map(Pin::charged_bytes).sum(),
            columns: &columns,
            consumers,
            segments: &segments_of(pins),
            schema_message: &schema_message.header,
            batch_message: &batch.batch.header,
            body: &batch.batch.body,
            intervals: &intervals,
        };
        let size = PublishedTimeframe::size_bytes(&parts)?;
        let limit = self.residency.pool().total_bytes() / MEMORY_SHARE;
        if self.table_bytes().saturating_add(size) > limit {
            return None;
        }
        let room = self.residency.reserve(size).ok()?;
        let objects: Arc<dyn Any + Send + Sync> = Arc::clone(&assembled.pins) as _;
        let table = PublishedTimeframe::publish(room, &parts, objects);
        self.note_pins(&assembled.pins);
        let all_bytes = Arc::clone(&self.table_bytes);
        all_bytes.fetch_add(table.charged_bytes(), Ordering::Relaxed);
        Some(CountedTable { table, all_bytes })
    }
}

/// The validity interval of the version of each run, column after column; 0 to 0 for a null cell.
fn intervals_of(plan: &Plan, pins: &[Pin], columns: &[ColumnPart], body: &[u8]) -> Vec<[i64; 2]> {
    let generation = |pin: &Pin| pin.meta_header().hint;
    let numbers: HashMap<u64, usize, RandomState> =
        pins.iter().enumerate().map(|(number, pin)| (generation(pin), number)).collect();
    let interval = |cell: &[u8]| {
        let hint = cell.get(offset_of!(MetaHeader, hint)..).and_then(|rest| rest.first_chunk());
        let number = hint.and_then(|hint| numbers.get(&u64::from_le_bytes(*hint)));
        number.map_or([0; 2], |number| {
            let validity = plan.versions().info(*number).validity;
            [validity.from().as_millis(), validity.until().as_millis()]
        })
    };
    let cells = columns.iter().flat_map(|column| {
        let (first, runs) = (column.cells as usize, column.runs as usize);
        let cells = body.get(first..first + runs * MetaHeader::BYTES).unwrap_or_default();
        cells.chunks_exact(MetaHeader::BYTES)
    });
    cells.map(interval).collect()
}

/// The segments (`true`) and regions of objects, each once.
fn segments_of(pins: &[Pin]) -> Vec<(bool, u16)> {
    let mut segments: Vec<(bool, u16)> = Vec::new();
    for pin in pins {
        let header = pin.meta_header();
        let segment = match header.managed {
            1 => (true, header.segment_id),
            _ => (false, header.region_id),
        };
        if segments.last() != Some(&segment) && !segments.contains(&segment) {
            segments.push(segment);
        }
    }
    segments
}

/// One timeframe in the directory.
#[derive(Debug)]
pub(crate) struct TimeframePublication {
    publisher: Arc<TimeframePublisher>,
    timeframe: u64,
    state: Mutex<PublicationState>,
}

#[derive(Debug, Default)]
struct PublicationState {
    entry: Option<TimeframeEntry>,
    table: Option<CountedTable>,
    /// No consumer may find it any more.
    is_gone: bool,
}

impl TimeframePublication {
    pub(crate) fn new(publisher: &Arc<TimeframePublisher>, timeframe: u64) -> Self {
        Self { publisher: Arc::clone(publisher), timeframe, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, PublicationState> {
        self.state.lock()
    }

    /// Takes an entry of the directory, if a session reads it. Whether a table is still to be made.
    pub(crate) fn enter(&self) -> bool {
        let Some(directory) = self.publisher.publisher.directory_of_readers() else { return false };
        let mut state = self.state();
        if state.is_gone {
            return false;
        }
        if state.entry.is_none() {
            state.entry = directory.take_timeframe(self.timeframe);
        }
        state.entry.is_some() && state.table.is_none()
    }

    /// Writes the table. Takes no lock.
    pub(crate) fn make(&self, content: TableContent<'_>) -> Option<PublicationDraft> {
        self.publisher.table(content).map(PublicationDraft)
    }

    /// Names a table with the progress of its consumers, in their order; `None`: consumers are to
    /// request it. Returns a draft that is not used, to be dropped without locks.
    pub(crate) fn name(
        &self,
        draft: Option<PublicationDraft>,
        marks: impl Iterator<Item = ConsumerMark>,
    ) -> Option<PublicationDraft> {
        let mut state = self.state();
        let PublicationState { entry: Some(entry), table: table @ None, is_gone: false } =
            &mut *state
        else {
            return draft;
        };
        let Some(PublicationDraft(draft)) = draft else {
            entry.set_ask();
            return None;
        };
        marks.enumerate().for_each(|(number, mark)| draft.table.set_consumer(number, mark));
        entry.set_ready(draft.table.name());
        *table = Some(draft);
        None
    }

    /// Records the progress of a consumer.
    pub(crate) fn set_consumer(&self, number: usize, mark: ConsumerMark) {
        if let Some(table) = &self.state().table {
            table.table.set_consumer(number, mark);
        }
    }

    /// Withdraws the table. Consumers wait if it `is_loading` again, else they ask the service.
    pub(crate) fn withdraw(&self, is_loading: bool) {
        let table = {
            let mut state = self.state();
            match &state.entry {
                Some(entry) if is_loading => entry.set_loading(),
                Some(entry) => entry.set_ask(),
                None => {}
            }
            state.table.take()
        };
        // Retiring a block can take time, so it is done without the lock.
        drop(table);
    }

    /// No consumer finds it from now on.
    pub(crate) fn leave(&self) {
        let mut state = self.state();
        state.is_gone = true;
        state.entry = None;
    }

    /// Retires the table of a timeframe that has [left](Self::leave).
    pub(crate) fn release(&self) {
        let table = self.state().table.take();
        drop(table);
    }

    /// Location of the table.
    pub(crate) fn location(&self) -> Option<BlockLocation> {
        Some(self.state().table.as_ref()?.table.location())
    }
}

/// A table that no consumer sees yet.
#[derive(Debug)]
pub(crate) struct PublicationDraft(CountedTable);
