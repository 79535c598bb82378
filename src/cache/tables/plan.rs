//! The plan of a table: assigns versions to rows before anything is loaded, and stays fixed from
//! then on.
//!
//! ```text
//!  columns × timestamps ──join──▶ Plan: runs of rows, each with its version (or none)
//!  columns × range      ──spans─▶ PlannedIntervals: spans of time, each with its version
//!                                   │ distinct ids
//!                                   ▼
//!                               pin_all ──▶ Assembled: with MetaHeaders, and the pins
//! ```

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;

use crate::budget::{Charge, ClientBudget};
use crate::cache::error::{CacheError, MissingColumn, UnmatchedColumn};
use crate::cache::memory::object::PinSet;
use crate::cache::tables::column_sets::TableSchema;
use crate::cache::tables::distinct::Distinct;
use crate::cache::tables::known_columns::{
    ColumnTimelines, KnownColumn, QueryOfColumn, RangeTimeline,
};
use crate::cache::tables::loader::PinnedVersions;
use crate::cache::tables::planning::{CELL_BYTES, Planned, PlannedColumn, Planning, VERSION_BYTES};
use crate::cache::versions::catalog::KnownTimeline;
use crate::cache::versions::linked_timeline::VersionSet;
use crate::cache::yielder::WorkClock;
use crate::index::{State, Timestamps};
use crate::interval::ValidityInterval;
use crate::object::ObjectPath;
use crate::shm::MetaHeader;
use crate::source::in_place;
use crate::sync::Mutex;
use crate::table::{
    BatchMessages, CacheState, Cell, CellKind, Column, Content, EncodeError, Encoding,
    IntervalColumn, IntervalRow, TableBody, TableRows, View,
};

/// Tables with at least this many columns are freed on a blocking thread. Starting one takes 20 µs,
/// the time to free some hundred columns.
const MANY_COLUMNS: usize = 256;
/// From this number on, work over all entries of the timestamps, or all cells, does not block other
/// tasks of the thread.
const MANY_ENTRIES: usize = 1 << 16;
/// Maximum number of versions for which capacity is allocated in advance.
const EXPECTED_VERSIONS: usize = 1 << 16;
/// Larger encoded batches are not cached.
const MAX_ENCODED_BYTES: usize = 1 << 20;

/// The versions that serve the rows of each column.
#[derive(Debug)]
pub(crate) struct Plan {
    rows: TableRows,
    versions: Arc<VersionSet>,
    columns: Vec<PlannedColumn>,
    /// By cell, column after column: the number of its version in the plan.
    places: Vec<u32>,
    missing: Vec<MissingColumn>,
    unmatched: Vec<UnmatchedColumn>,
    /// Budget for the plan and its table.
    charge: Arc<Charge>,
}

impl Plan {
    /// Assigns versions to rows. Yields if it takes long, so that a deadline can end it. The memory
    /// of the plan and its table is charged to `budget`.
    ///
    /// # Errors
    /// [`CacheError::Budget`].
    pub(crate) async fn new(
        rows: TableRows,
        known: Vec<KnownColumn>,
        budget: &ClientBudget,
    ) -> Result<Self, CacheError> {
        let timestamps = &rows.timestamps;
        let entries = timestamps.entries();
        if entries >= MANY_ENTRIES {
            // Examines each of them, once for all columns.
            in_place(|| timestamps.prepare());
        }
        let most = known.iter().map(|column| match &column.timelines {
            ColumnTimelines::Plain(known) => entries.min(known.timeline.versions()),
            ColumnTimelines::Keyed(keyed) => keyed.look_ups.look_ups.len(),
        });
        let expected = most.sum::<usize>().min(EXPECTED_VERSIONS);
        let mut planning = Planning::new(expected, budget.charge(0, "plan of a table")?);
        let mut columns = Vec::with_capacity(known.len());
        for KnownColumn { request, timelines } in known {
            columns.push(match timelines {
                ColumnTimelines::Plain(known) => {
                    planning.column(request, known, &rows.timestamps).await?
                }
                ColumnTimelines::Keyed(keyed) => planning.keyed_column(request, keyed).await?,
            });
        }
        let Planned { versions, places, missing, unmatched, charge } = planning.finish();
        Ok(Self { rows, versions, columns, places, missing, unmatched, charge: Arc::new(charge) })
    }

    pub(crate) fn timestamps(&self) -> &Arc<Timestamps> {
        &self.rows.timestamps
    }

    /// The timestamps and keys.
    pub(crate) fn table_rows(&self) -> &TableRows {
        &self.rows
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows.timestamps.len()
    }

    /// The timelines of each column as known when this was planned.
    pub(crate) fn known_queries(&self) -> HashMap<QueryOfColumn<'_>, &ColumnTimelines> {
        let known = self.columns.iter().rev();
        known.map(|planned| (QueryOfColumn::new(&planned.request), &planned.known)).collect()
    }

    /// Path and metadata of each column without a key, with its timeline as known when this was
    /// planned.
    pub(crate) fn plain_queries(&self) -> impl Iterator<Item = (PlainQuery<'_>, &KnownTimeline)> {
        self.columns.iter().filter_map(|planned| match &planned.known {
            ColumnTimelines::Plain(known) => {
                let path = planned.request.plain_path()?;
                Some(((path, &planned.request.metadata), known))
            }
            ColumnTimelines::Keyed(_) => None,
        })
    }

    /// The columns without a path for some values of their key.
    pub(crate) fn unmatched(&self) -> &[UnmatchedColumn] {
        &self.unmatched
    }

    /// The columns with rows without a valid object.
    pub(crate) fn missing(&self) -> &[MissingColumn] {
        &self.missing
    }

    /// Every version that it needs, each id once.
    pub(crate) fn versions(&self) -> &Arc<VersionSet> {
        &self.versions
    }

    /// The table with the locations in memory, from the pins of [`versions`](Self::versions).
    pub(crate) fn assemble(&self, got: PinnedVersions) -> Assembled {
        match self.places.len() {
            0..MANY_ENTRIES => self.assemble_here(got),
            _ => in_place(|| self.assemble_here(got)),
        }
    }

    fn assemble_here(&self, got: PinnedVersions) -> Assembled {
        let columns = self
            .columns
            .iter()
            .map(|column| Column {
                name: column.request.name.clone(),
                path: column.request.path.clone(),
                rows: column.rows.clone(),
                cells: cells(&self.places[column.cells.clone()], &got, |place| {
                    column.stale.contains(place)
                }),
                key: column.key.clone(),
            })
            .collect();
        Assembled {
            columns: Arc::new(columns),
            pins: Arc::new(got.pins),
            encoded: Mutex::default(),
            charge: Arc::clone(&self.charge),
        }
    }
}

impl Drop for Plan {
    fn drop(&mut self) {
        if self.columns.len() >= MANY_COLUMNS {
            let columns = std::mem::take(&mut self.columns);
            later((columns, std::mem::take(&mut self.versions)));
        }
    }
}

/// Frees a value on a blocking thread, without waiting for it.
fn later(rest: impl Send + 'static) {
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        drop(runtime.spawn_blocking(move || drop(rest)));
    }
}

fn cells(places: &[u32], got: &PinnedVersions, stale: impl Fn(usize) -> bool) -> Vec<Cell> {
    let cell = |(place, &object): (usize, &u32)| {
        let number = object as usize;
        let header = got.pins.pins()[number].meta_header();
        Cell {
            header,
            object,
            cache: if stale(place) { CacheState::Stale } else { got.how[number] },
        }
    };
    places.iter().enumerate().map(cell).collect()
}

/// A plan whose objects are in shared memory and pinned.
#[derive(Debug)]
pub(crate) struct Assembled {
    pub(crate) columns: Arc<Vec<Column>>,
    pub(crate) pins: Arc<PinSet>,
    /// The encoded batches, by the encodings requested so far.
    encoded: Mutex<Vec<CachedBatches>>,
    /// Budget for the table.
    pub(crate) charge: Arc<Charge>,
}

/// Everything that determines the encoding of batches, beside their content.
type EncodedKey = (Encoding, CellKind, bool);

/// Path and metadata of a column.
pub(crate) type PlainQuery<'a> = (&'a ObjectPath, &'a BTreeMap<String, String>);

/// The messages of each batch.
type EncodedBatches = Arc<Vec<BatchMessages>>;

/// The batches in one encoding.
#[derive(Debug)]
struct CachedBatches {
    key: EncodedKey,
    batches: EncodedBatches,
    /// Budget of the client that registered the timeframe.
    _charge: Charge,
}

impl Assembled {
    /// The messages of each batch in this encoding, if it is cached: all consumers of a timeframe
    /// ask for the same table.
    ///
    /// # Errors
    /// [`EncodeError`].
    pub(crate) fn encoded(
        &self,
        table_schema: &TableSchema,
        content: &Content,
    ) -> Result<Option<EncodedBatches>, EncodeError> {
        let layout = &table_schema.layout;
        let key = (layout.encoding, layout.cell, layout.nullable);
        let rows = match &content.body {
            TableBody::Rows { timestamps, .. } => timestamps.len(),
            TableBody::Intervals(_) => return Ok(None),
        };
        let is_cached = layout.view == View::Rows
            && layout.cell != CellKind::Payload
            && !layout.timestamps_column;
        let bytes = self.encoded_bytes(layout.encoding, rows);
        if !is_cached || bytes > MAX_ENCODED_BYTES {
            return Ok(None);
        }
        if let Some(known) = self.known_batches(&key) {
            return Ok(Some(known));
        }
        // Without room the batches are made one at a time, for each consumer anew.
        let charge = self.charge.sibling(bytes as u64, "encoded batches of a timeframe");
        let Ok(charge) = charge else { return Ok(None) };
        let batches = content.batches_of(Arc::clone(layout), Arc::clone(&table_schema.schema));
        let batches = batches.into_messages(Arc::clone(&table_schema.dictionaries));
        let batches = Arc::new(batches.collect::<Result<Vec<_>, EncodeError>>()?);
        let kept = CachedBatches { key, batches: Arc::clone(&batches), _charge: charge };
        self.encoded.lock().push(kept);
        Ok(Some(batches))
    }

    fn known_batches(&self, key: &EncodedKey) -> Option<EncodedBatches> {
        let encoded = self.encoded.lock();
        encoded.iter().find(|kept| kept.key == *key).map(|kept| Arc::clone(&kept.batches))
    }

    /// Approximate size of all batches of this number of rows, with MetaHeaders as cells.
    fn encoded_bytes(&self, encoding: Encoding, rows: usize) -> usize {
        let of_column = |column: &Column| match encoding {
            Encoding::RunEnd => column.rows.run_count() * (size_of::<i32>() + MetaHeader::BYTES),
            Encoding::Dictionary => {
                rows * size_of::<i32>() + column.cells.len() * MetaHeader::BYTES
            }
            Encoding::Plain => rows * MetaHeader::BYTES,
        };
        let per_column = 512;
        self.columns.iter().map(|column| per_column + of_column(column)).sum()
    }

    /// Unpins the objects, unless there are other holders.
    pub(crate) fn release(assembled: Arc<Self>) {
        let Some(Self { columns, pins, encoded, .. }) = Arc::into_inner(assembled) else { return };
        drop(pins);
        if columns.len() >= MANY_COLUMNS {
            later((columns, encoded));
        }
    }

    /// The memory that its objects take.
    pub(crate) fn charged_bytes(&self) -> u64 {
        self.pins.pins().iter().map(crate::cache::memory::object::Pin::charged_bytes).sum()
    }
}

/// The effective version of each column over a range.
#[derive(Debug)]
pub(crate) struct PlannedIntervals {
    versions: Arc<VersionSet>,
    columns: Vec<PlannedIntervalColumn>,
    /// By cell, column after column: the number of its version.
    places: Vec<u32>,
    charge: Arc<Charge>,
}

/// The rows of one column of the view intervals, and its part of the cells.
#[derive(Debug)]
struct PlannedIntervalColumn {
    name: Arc<str>,
    path: ObjectPath,
    /// The range of its cells in `places`.
    cells: Range<usize>,
    rows: Vec<IntervalRow>,
    stale: bool,
}

impl PlannedIntervals {
    /// Determines the effective versions. Yields and charges like [`Plan::new`].
    ///
    /// # Errors
    /// [`CacheError::Budget`].
    pub(crate) async fn new(
        range: ValidityInterval,
        known: Vec<RangeTimeline>,
        budget: &ClientBudget,
    ) -> Result<Self, CacheError> {
        let mut charge = budget.charge(0, "plan of a table")?;
        let mut turns = WorkClock::new();
        let versions = known.iter().map(|one| one.known.timeline.versions());
        let mut distinct = Distinct::with_capacity(versions.sum::<usize>().min(EXPECTED_VERSIONS));
        let mut columns = Vec::with_capacity(known.len());
        for RangeTimeline { name, path, known } in known {
            let spans = known.timeline.spans(range);
            distinct.begin_column();
            let own = distinct.add_timeline(&known.timeline);
            let mut rows = Vec::with_capacity(spans.len());
            for span in &spans {
                if let State::Version(index) = span.state {
                    let cell = distinct.cell(own, index);
                    rows.push(IntervalRow { interval: span.interval, cell });
                }
            }
            let cells = distinct.range();
            charge.grow(
                size_of_val(&rows[..]) as u64 + cells.len() as u64 * (CELL_BYTES + VERSION_BYTES),
            )?;
            turns.take(1 + spans.len()).await;
            columns.push(PlannedIntervalColumn { name, path, cells, rows, stale: known.stale });
        }
        let (versions, places) = distinct.into_versions();
        Ok(Self { versions, columns, places, charge: Arc::new(charge) })
    }

    /// The budget for the plan and its table.
    pub(crate) fn charge(&self) -> &Arc<Charge> {
        &self.charge
    }

    /// # Errors
    /// [`CacheError::ShortSpan`] if a span may lie between two timestamps that are `gap` ms apart.
    /// The first and the last millisecond of the range are timestamps.
    pub(crate) fn check_length(&self, range: ValidityInterval, gap: i64) -> Result<(), CacheError> {
        let inside =
            |span: &ValidityInterval| range.from() < span.from() && span.until() < range.until();
        for column in &self.columns {
            let spans = column.rows.iter().map(|row| row.interval).filter(inside);
            let lengths =
                spans.map(|span| span.until().as_millis().abs_diff(span.from().as_millis()));
            if let Some(span_ms) = lengths.min().filter(|length| *length < gap.unsigned_abs()) {
                let column = column.name.to_string();
                return Err(CacheError::ShortSpan { column, span_ms, gap_ms: gap });
            }
        }
        Ok(())
    }

    pub(crate) fn versions(&self) -> &Arc<VersionSet> {
        &self.versions
    }

    pub(crate) fn assemble(self, got: PinnedVersions) -> (Vec<IntervalColumn>, Arc<PinSet>) {
        let columns = self.columns.into_iter().map(|column| IntervalColumn {
            name: column.name,
            path: column.path,
            rows: column.rows,
            cells: cells(&self.places[column.cells], &got, |_| column.stale),
        });
        let columns = columns.collect();
        (columns, Arc::new(got.pins))
    }
}
