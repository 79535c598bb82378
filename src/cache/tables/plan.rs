//! Which version serves which rows: decided before the first byte is loaded, and from then on
//! fixed.
//!
//! ```text
//!  columns × timestamps ──join──▶ Plan: runs of rows, each with its version (or none)
//!  columns × range      ──spans─▶ Spans: pieces of time, each with its version
//!                                   │ distinct ids
//!                                   ▼
//!                               pin_all ──▶ Assembled: the same with MetaHeaders, and the pins
//! ```

use std::collections::{BTreeMap, HashMap};
use std::hash::BuildHasher as _;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use foldhash::quality::RandomState;

use crate::budget::{Charge, ClientBudget};
use crate::cache::error::{CacheError, MissingColumn};
use crate::cache::memory::in_use::InUseGuard;
use crate::cache::memory::object::PinSet;
use crate::cache::memory::pin_request::PinRequest as _;
use crate::cache::tables::loader::PinnedVersions;
use crate::cache::tables::schema_cache::TableSchema;
use crate::cache::versions::catalog::KnownTimeline;
use crate::cache::versions::linked_timeline::{LinkedTimeline, VersionSet};
use crate::cache::yielder::Turns;
use crate::index::{JoinPieces, Run, Slot, State, Timestamps};
use crate::interval::{Timestamp, ValidityInterval};
use crate::object::{ObjectId, ObjectInfo, ObjectPath};
use crate::shm::MetaHeader;
use crate::source::in_place;
use crate::table::{
    BatchMessages, CacheState, Cell, CellKind, CellRun, Column, ColumnRequest, Content,
    EncodeError, Encoding, IntervalColumn, IntervalRow, Objects, TableBody, View,
};

/// A table of so many columns is taken apart by somebody else than who lets go of it. To tell a thread
/// of it takes 20 µs, in which some hundred columns go.
const MANY_COLUMNS: usize = 256;
/// From this number on, work over all entries of the timestamps, or all cells, does not keep others
/// from its thread.
const MANY_ENTRIES: usize = 1 << 16;
/// Room for at most this many versions is made before they come.
const EXPECTED_VERSIONS: usize = 1 << 16;
/// What a distinct version takes: its place, its slots, its pin, and how it came.
const VERSION_BYTES: u64 = 64;
/// What a cell takes in the plan and in the table.
const CELL_BYTES: u64 = (size_of::<Cell>() + size_of::<u32>()) as u64;
/// Encoded batches that are larger than this are made anew each time.
const MAX_ENCODED_BYTES: usize = 1 << 20;

/// The versions that a table needs, each id once.
#[derive(Debug)]
struct Distinct {
    timelines: Vec<Arc<LinkedTimeline>>,
    /// By version: which timeline, and its index there.
    places: Vec<(u32, u32)>,
    /// The numbers of versions plus 1, where their ids are looked for first, or behind that; 0: no
    /// more. A power of two, and never full.
    slots: Vec<u32>,
    hasher: RandomState,
    /// By version: the column that used it last, counted from 1, and its cell there.
    cells: Vec<(u32, u32)>,
    /// By cell, column after column: the number of its version.
    numbers: Vec<u32>,
    /// Where those of the column that came last begin.
    first: usize,
}

impl Distinct {
    /// Room for this many versions at first.
    fn with_capacity(versions: usize) -> Self {
        Self {
            timelines: Vec::new(),
            places: Vec::with_capacity(versions),
            slots: vec![0; (versions * 2).next_power_of_two().max(2)],
            hasher: RandomState::default(),
            cells: Vec::with_capacity(versions),
            numbers: Vec::with_capacity(versions),
            first: 0,
        }
    }

    /// The versions of one more column come.
    fn column(&mut self, timeline: &Arc<LinkedTimeline>) {
        self.timelines.push(Arc::clone(timeline));
        self.first = self.numbers.len();
    }

    /// Where the cells of the column that came last are among all.
    fn range(&self) -> Range<usize> {
        self.first..self.numbers.len()
    }

    fn id(&self, number: usize) -> ObjectId {
        let (timeline, index) = self.places[number];
        self.timelines[timeline as usize].id(index)
    }

    /// Where the number of a version stands, or belongs; `is_it` tells whether a number is its.
    fn slot(&self, id: ObjectId, is_it: impl Fn(usize) -> bool) -> usize {
        let mask = self.slots.len() - 1;
        let mut slot = self.hasher.hash_one(id) as usize & mask;
        loop {
            match self.slots[slot] {
                0 => return slot,
                number if is_it(number as usize - 1) => return slot,
                _ => slot = (slot + 1) & mask,
            }
        }
    }

    /// Whether version `number` is that of the column that came last. Versions of one id of which
    /// the source describes other bytes are not one: that is found out where they are pinned.
    fn is(&self, number: usize, index: u32) -> bool {
        let (own, other) = (self.timelines.len() - 1, self.places[number]);
        if self.id(number) != self.timelines[own].id(index) {
            return false;
        }
        if other.0 as usize == own {
            return true;
        }
        let own = self.timelines[own].version(index);
        let other = self.timelines[other.0 as usize].version(other.1);
        let differ = own.size_bytes.zip(other.size_bytes).is_some_and(|(a, b)| a != b)
            || own.md5.zip(other.md5).is_some_and(|(a, b)| a != b);
        Arc::ptr_eq(own, other) || !differ
    }

    /// The number of a version of the column that came last.
    fn number(&mut self, index: u32) -> u32 {
        let timeline = self.timelines.len() - 1;
        let id = self.timelines[timeline].id(index);
        let slot = self.slot(id, |number| self.is(number, index));
        if self.slots[slot] > 0 {
            return self.slots[slot] - 1;
        }
        self.places.push((timeline as u32, index));
        self.cells.push((0, 0));
        self.slots[slot] = self.places.len() as u32;
        if self.places.len() * 2 > self.slots.len() {
            self.grow();
        }
        self.places.len() as u32 - 1
    }

    fn grow(&mut self) {
        self.slots = vec![0; self.slots.len() * 2];
        for number in 0..self.places.len() {
            let slot = self.slot(self.id(number), |_| false);
            self.slots[slot] = number as u32 + 1;
        }
    }

    /// How many versions there are, and how many cells.
    fn counts(&self) -> (usize, usize) {
        (self.places.len(), self.numbers.len())
    }

    /// The cell of a version in the column that came last.
    fn cell(&mut self, index: u32) -> u32 {
        let (column, number) = (self.timelines.len() as u32, self.number(index));
        let cell = &mut self.cells[number as usize];
        if cell.0 != column {
            *cell = (column, (self.numbers.len() - self.first) as u32);
            self.numbers.push(number);
        }
        cell.1
    }

    /// The versions, and by cell the number of its version.
    fn into_versions(self) -> (Arc<VersionSet>, Vec<u32>) {
        (Arc::new(VersionSet::new(self.timelines, self.places)), self.numbers)
    }
}

/// Which version serves which rows, for each column.
#[derive(Debug)]
pub(crate) struct Plan {
    timestamps: Arc<Timestamps>,
    versions: Arc<VersionSet>,
    columns: Vec<PlannedColumn>,
    /// By cell, column after column: the place of its version among those of the plan.
    places: Vec<u32>,
    missing: Vec<MissingColumn>,
    /// Pays for the plan, and for the table that is made of it.
    charge: Arc<Charge>,
}

#[derive(Debug)]
struct PlannedColumn {
    request: ColumnRequest,
    /// Where the places of its cells are.
    cells: Range<usize>,
    runs: Arc<[CellRun]>,
    known: KnownTimeline,
}

impl Plan {
    /// Decides which version serves which rows. Yields while it takes long, so that a deadline ends
    /// it. What it and its table take is charged to `budget`.
    ///
    /// # Errors
    /// [`CacheError::Budget`].
    pub(crate) async fn new(
        timestamps: Arc<Timestamps>,
        known: Vec<(ColumnRequest, KnownTimeline)>,
        budget: &ClientBudget,
    ) -> Result<Self, CacheError> {
        let entries = timestamps.entries();
        if entries >= MANY_ENTRIES {
            // It looks at each of them, for all columns once.
            in_place(|| timestamps.prepare());
        }
        let most = known.iter().map(|(_, known)| entries.min(known.timeline.versions()));
        let mut planning = Planning {
            distinct: Distinct::with_capacity(most.sum::<usize>().min(EXPECTED_VERSIONS)),
            missing: Vec::new(),
            piece: Vec::new(),
            runs: Vec::new(),
            charge: budget.charge(0, "plan of a table")?,
            run_bytes: 0,
            turns: Turns::new(),
        };
        let mut columns = Vec::with_capacity(known.len());
        for (request, known) in known {
            columns.push(planning.column(request, known, &timestamps).await?);
        }
        let bytes = planning.bytes();
        let Planning { distinct, missing, mut charge, .. } = planning;
        charge.shrink_to(bytes);
        let (versions, places) = distinct.into_versions();
        Ok(Self { timestamps, versions, columns, places, missing, charge: Arc::new(charge) })
    }

    pub(crate) fn timestamps(&self) -> &Arc<Timestamps> {
        &self.timestamps
    }

    pub(crate) fn rows(&self) -> usize {
        self.timestamps.len()
    }

    /// What was known of each query when this was planned.
    pub(crate) fn known_queries(&self) -> HashMap<QueryOfColumn<'_>, &KnownTimeline> {
        let known = self.columns.iter().rev().map(|planned| {
            let ColumnRequest { path, metadata, .. } = &planned.request;
            ((path, metadata), &planned.known)
        });
        known.collect()
    }

    /// Each column, and what was known of it when this was planned.
    pub(crate) fn known_columns(&self) -> impl Iterator<Item = (&ColumnRequest, &KnownTimeline)> {
        self.columns.iter().map(|planned| (&planned.request, &planned.known))
    }

    /// The columns with rows for which nothing is valid.
    pub(crate) fn missing(&self) -> &[MissingColumn] {
        &self.missing
    }

    /// Every version that it needs, each id once.
    pub(crate) fn versions(&self) -> &Arc<VersionSet> {
        &self.versions
    }

    /// The table with the places in memory, from what was pinned for [`versions`](Self::versions).
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
                runs: Arc::clone(&column.runs),
                cells: cells(&self.places[column.cells.clone()], &got, column.known.stale),
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

/// Takes apart what nobody needs any more, and nobody waits for that.
fn later(rest: impl Send + 'static) {
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        drop(runtime.spawn_blocking(move || drop(rest)));
    }
}

/// A plan in the making.
struct Planning {
    distinct: Distinct,
    missing: Vec<MissingColumn>,
    /// Runs of a piece of a column.
    piece: Vec<Run>,
    /// Those of the column at hand.
    runs: Vec<CellRun>,
    charge: Charge,
    /// Bytes of all runs of the columns before.
    run_bytes: u64,
    turns: Turns,
}

impl Planning {
    async fn column(
        &mut self,
        request: ColumnRequest,
        known: KnownTimeline,
        timestamps: &Timestamps,
    ) -> Result<PlannedColumn, CacheError> {
        self.distinct.column(&known.timeline);
        self.runs.clear();
        let mut gap: Option<MissingColumn> = None;
        let mut pieces = JoinPieces::new(&known.timeline, timestamps);
        while pieces.next_into(&mut self.piece) {
            for run in &self.piece {
                let cell = match run.slot {
                    Slot::Version(index) => Some(self.distinct.cell(index)),
                    Slot::Null => None,
                    Slot::Absent | Slot::Unknown => {
                        widen(&mut gap, &request, timestamps, run);
                        None
                    }
                };
                let end = i32::try_from(run.end).unwrap_or(i32::MAX);
                match self.runs.last_mut() {
                    Some(last) if last.cell == cell => last.end = end,
                    _ => self.runs.push(CellRun { end, cell }),
                }
            }
            self.pay()?;
            self.turns.take(self.piece.len()).await;
        }
        self.missing.extend(gap);
        self.run_bytes += size_of_val(&self.runs[..]) as u64;
        let (cells, runs) = (self.distinct.range(), Arc::from(&self.runs[..]));
        Ok(PlannedColumn { request, cells, runs, known })
    }

    /// Charges what there is by now.
    fn pay(&mut self) -> Result<(), CacheError> {
        // The runs at hand are there twice for a moment.
        let bytes = self.bytes() + 2 * size_of_val(&self.runs[..]) as u64;
        match bytes.saturating_sub(self.charge.bytes()) {
            0 => Ok(()),
            more => Ok(self.charge.grow(more)?),
        }
    }

    /// What versions, cells and the runs of the columns before take.
    fn bytes(&self) -> u64 {
        let (versions, cells) = self.distinct.counts();
        versions as u64 * VERSION_BYTES + cells as u64 * CELL_BYTES + self.run_bytes
    }
}

/// Adds the rows of a run without an object to those for which nothing is valid.
fn widen(
    gap: &mut Option<MissingColumn>,
    request: &ColumnRequest,
    timestamps: &Timestamps,
    run: &Run,
) {
    let Some((first, last)) = timestamps.bounds_of(run.start..run.end) else { return };
    let [first, last] = [first, last].map(Timestamp::from_millis);
    let gap = gap.get_or_insert_with(|| MissingColumn {
        column: request.name.to_string(),
        path: request.path.clone(),
        first,
        last,
        rows: 0,
    });
    gap.first = gap.first.min(first);
    gap.last = gap.last.max(last);
    gap.rows += (run.end - run.start) as u64;
}

fn cells(places: &[u32], got: &PinnedVersions, stale: bool) -> Vec<Cell> {
    let cell = |&object: &u32| {
        let number = object as usize;
        let header = got.pins.pins()[number].meta_header();
        Cell { header, object, cache: if stale { CacheState::Stale } else { got.how[number] } }
    };
    places.iter().map(cell).collect()
}

/// A plan whose objects are in shared memory and pinned.
#[derive(Debug)]
pub(crate) struct Assembled {
    pub(crate) columns: Arc<Vec<Column>>,
    pub(crate) pins: Arc<PinSet>,
    /// The batches as they cross the wire, in the forms in which they were asked for.
    encoded: Mutex<Vec<(EncodedKey, EncodedBatches)>>,
    /// Pays for it.
    pub(crate) charge: Arc<Charge>,
}

/// What decides how batches are encoded, beside what they hold.
type EncodedKey = (Encoding, CellKind, bool);

/// What two columns have in common if they ask for the same.
pub(crate) type QueryOfColumn<'a> = (&'a ObjectPath, &'a BTreeMap<String, String>);

/// The messages of each batch.
type EncodedBatches = Arc<Vec<BatchMessages>>;

impl Assembled {
    /// The messages of each batch in this form, if it is one that is kept: every consumer of a
    /// timeframe asks for the same.
    ///
    /// # Errors
    /// [`EncodeError`].
    pub(crate) fn encoded(
        &self,
        form: &TableSchema,
        content: &Content,
    ) -> Result<Option<EncodedBatches>, EncodeError> {
        let shape = &form.shape;
        let key = (shape.encoding, shape.cell, shape.nullable);
        let rows = match &content.shown {
            TableBody::Rows { timestamps, .. } => timestamps.len(),
            TableBody::Intervals(_) => return Ok(None),
        };
        // Run-end encoded they are small, however many rows there are.
        let bytes_per_row = match shape.encoding {
            Encoding::RunEnd => 0,
            Encoding::Dictionary => size_of::<i32>(),
            Encoding::Plain => MetaHeader::BYTES,
        };
        let bytes = rows.saturating_mul(self.columns.len()).saturating_mul(bytes_per_row);
        let kept = shape.view == View::Rows
            && bytes <= MAX_ENCODED_BYTES
            && shape.cell != CellKind::Payload
            && !shape.timestamps_column;
        if !kept {
            return Ok(None);
        }
        let known = {
            let encoded = self.encoded.lock().unwrap_or_else(PoisonError::into_inner);
            encoded.iter().find(|(known, _)| *known == key).map(|(_, kept)| Arc::clone(kept))
        };
        if known.is_some() {
            return Ok(known);
        }
        let batches = content.batches_of(Arc::clone(shape), Arc::clone(&form.schema));
        let batches = batches.into_messages(Arc::clone(&form.dictionaries));
        let batches = Arc::new(batches.collect::<Result<Vec<_>, EncodeError>>()?);
        if batches.iter().map(BatchMessages::bytes).sum::<usize>() <= MAX_ENCODED_BYTES {
            let mut encoded = self.encoded.lock().unwrap_or_else(PoisonError::into_inner);
            encoded.push((key, Arc::clone(&batches)));
        }
        Ok(Some(batches))
    }

    /// Lets go of the objects, if nobody else has them.
    pub(crate) fn let_go(assembled: Arc<Self>) {
        let Some(Self { columns, pins, encoded, .. }) = Arc::into_inner(assembled) else { return };
        drop(pins);
        if columns.len() >= MANY_COLUMNS {
            later((columns, encoded));
        }
    }

    /// The bytes of memory that its objects take.
    pub(crate) fn charged_bytes(&self) -> u64 {
        self.pins.pins().iter().map(crate::cache::memory::object::Pin::charged_bytes).sum()
    }
}

/// What the cells of a table name, in somebody's hands.
#[derive(Debug)]
pub(crate) struct TableObjects {
    pub(crate) versions: Arc<VersionSet>,
    pub(crate) pins: Arc<InUseGuard>,
    /// Pays for the table, as long as it is being sent.
    pub(crate) _charges: Arc<[Arc<Charge>]>,
}

impl Objects for TableObjects {
    fn id(&self, number: u32) -> ObjectId {
        self.versions.id(number as usize)
    }

    fn version(&self, number: u32) -> &ObjectInfo {
        self.versions.info(number as usize)
    }

    fn bytes(&self, number: u32) -> &[u8] {
        self.pins.pins()[number as usize].payload()
    }
}

/// Which version is effective when, for each column, all over a range.
#[derive(Debug)]
pub(crate) struct PlannedIntervals {
    versions: Arc<VersionSet>,
    columns: Vec<PlannedIntervalColumn>,
    /// By cell, column after column: the place of its version among those of all.
    places: Vec<u32>,
    charge: Arc<Charge>,
}

#[derive(Debug)]
struct PlannedIntervalColumn {
    request: ColumnRequest,
    /// Where the places of its cells are.
    cells: Range<usize>,
    rows: Vec<IntervalRow>,
    stale: bool,
}

impl PlannedIntervals {
    /// Decides which version is effective when. Yields and charges like [`Plan::new`].
    ///
    /// # Errors
    /// [`CacheError::Budget`].
    pub(crate) async fn new(
        range: ValidityInterval,
        known: Vec<(ColumnRequest, KnownTimeline)>,
        budget: &ClientBudget,
    ) -> Result<Self, CacheError> {
        let mut charge = budget.charge(0, "plan of a table")?;
        let mut turns = Turns::new();
        let versions = known.iter().map(|(_, known)| known.timeline.versions());
        let mut distinct = Distinct::with_capacity(versions.sum::<usize>().min(EXPECTED_VERSIONS));
        let mut columns = Vec::with_capacity(known.len());
        for (request, known) in known {
            let spans = known.timeline.spans(range);
            distinct.column(&known.timeline);
            let mut rows = Vec::with_capacity(spans.len());
            for span in &spans {
                if let State::Version(index) = span.state {
                    let cell = distinct.cell(index);
                    rows.push(IntervalRow { interval: span.interval, cell });
                }
            }
            let cells = distinct.range();
            charge.grow(
                size_of_val(&rows[..]) as u64 + cells.len() as u64 * (CELL_BYTES + VERSION_BYTES),
            )?;
            turns.take(1 + spans.len()).await;
            columns.push(PlannedIntervalColumn { request, cells, rows, stale: known.stale });
        }
        let (versions, places) = distinct.into_versions();
        Ok(Self { versions, columns, places, charge: Arc::new(charge) })
    }

    /// What pays for it, and for the table that is made of it.
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
                let column = column.request.name.to_string();
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
            name: column.request.name,
            path: column.request.path,
            rows: column.rows,
            cells: cells(&self.places[column.cells], &got, column.stale),
        });
        let columns = columns.collect();
        (columns, Arc::new(got.pins))
    }
}
