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

use std::hash::BuildHasher as _;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use foldhash::quality::RandomState;

use super::catalog::Known;
use super::error::{CacheError, MissingColumn};
use super::form::Form;
use super::hand::InHand;
use super::loader::Pinned;
use super::resident::PinSet;
use super::versions::{Linked, VersionSet, Wanted as _};
use crate::budget::{Charge, ClientBudget, OverBudget};
use crate::index::{JoinedColumns, Run, Slot, Span, State, Timestamps};
use crate::interval::ValidityInterval;
use crate::object::{ObjectId, ObjectInfo};
use crate::shm::MetaHeader;
use crate::table::{
    BatchMessages, CacheState, Cell, CellKind, CellRun, Column, ColumnRequest, Content,
    EncodeError, Encoding, IntervalColumn, IntervalRow, Objects, Shown, View,
};

/// A table of so many columns is taken apart by somebody else than who lets go of it. To tell a thread
/// of it takes 20 µs, in which some hundred columns go.
const MANY_COLUMNS: usize = 256;
/// Encoded batches that are larger than this are made anew each time.
const MAX_ENCODED_BYTES: usize = 1 << 20;

/// The versions that a table needs, each id once.
#[derive(Debug)]
struct Distinct {
    timelines: Vec<Arc<Linked>>,
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
    /// At most so many versions will come.
    fn expecting(versions: usize) -> Self {
        Self {
            timelines: Vec::new(),
            places: Vec::with_capacity(versions),
            slots: vec![0; (versions * 2).next_power_of_two()],
            hasher: RandomState::default(),
            cells: Vec::with_capacity(versions),
            numbers: Vec::with_capacity(versions),
            first: 0,
        }
    }

    /// The versions of one more column come.
    fn column(&mut self, timeline: &Arc<Linked>) {
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

    /// Where the number of `id` stands, or belongs.
    fn slot(&self, id: ObjectId) -> usize {
        let mask = self.slots.len() - 1;
        let mut slot = self.hasher.hash_one(id) as usize & mask;
        loop {
            match self.slots[slot] {
                0 => return slot,
                number if self.id(number as usize - 1) == id => return slot,
                _ => slot = (slot + 1) & mask,
            }
        }
    }

    /// The number of a version of the column that came last.
    fn number(&mut self, index: u32) -> u32 {
        let timeline = self.timelines.len() - 1;
        let slot = self.slot(self.timelines[timeline].id(index));
        if self.slots[slot] == 0 {
            self.places.push((timeline as u32, index));
            self.cells.push((0, 0));
            self.slots[slot] = self.places.len() as u32;
        }
        self.slots[slot] - 1
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
    /// The memory of the runs.
    charge: Arc<Charge>,
}

#[derive(Debug)]
struct PlannedColumn {
    request: ColumnRequest,
    /// Where the places of its cells are.
    cells: Range<usize>,
    runs: Arc<[CellRun]>,
    known: Known,
}

impl Plan {
    /// The runs are charged to `budget` before they are made.
    ///
    /// # Errors
    /// [`OverBudget`].
    pub(crate) fn new(
        timestamps: Arc<Timestamps>,
        known: Vec<(ColumnRequest, Known)>,
        budget: &ClientBudget,
    ) -> Result<Self, OverBudget> {
        let mut missing = Vec::new();
        let mut charge = budget.charge(0, "the runs of a table")?;
        let timelines = known.iter().map(|(_, known)| &**known.timeline);
        let joined = JoinedColumns::try_new(timelines, &timestamps, |bytes| {
            charge.grow((bytes as u64).saturating_sub(charge.bytes()))
        })?;
        let joined_bytes = charge.bytes();
        let all: usize = joined.iter().map(<[Run]>::len).sum();
        charge.grow((all * size_of::<CellRun>()) as u64)?;
        let most = |runs: &[Run], known: &Known| runs.len().min(known.timeline.versions());
        let all = joined.iter().zip(&known).map(|(runs, (_, known))| most(runs, known)).sum();
        let mut distinct = Distinct::expecting(all);
        let mut runs: Vec<CellRun> = Vec::new();
        let column = |((request, known), joined): ((ColumnRequest, Known), &[Run])| {
            distinct.column(&known.timeline);
            runs.clear();
            let mut gap: Option<MissingColumn> = None;
            for run in joined {
                let cell = match run.slot {
                    Slot::Version(index) => Some(distinct.cell(index)),
                    Slot::Null => None,
                    Slot::Absent | Slot::Unknown => {
                        widen(&mut gap, &request, &timestamps, run.start, run.end);
                        None
                    }
                };
                let end = i32::try_from(run.end).unwrap_or(i32::MAX);
                match runs.last_mut() {
                    Some(last) if last.cell == cell => last.end = end,
                    _ => runs.push(CellRun { end, cell }),
                }
            }
            missing.extend(gap);
            PlannedColumn { request, cells: distinct.range(), runs: Arc::from(&runs[..]), known }
        };
        let columns: Vec<PlannedColumn> =
            known.into_iter().zip(joined.iter()).map(column).collect();
        let (versions, places) = distinct.into_versions();
        drop(joined);
        charge.shrink_to(charge.bytes() - joined_bytes);
        let charge = Arc::new(charge);
        Ok(Self { timestamps, versions, columns, places, missing, charge })
    }

    pub(crate) fn timestamps(&self) -> &Arc<Timestamps> {
        &self.timestamps
    }

    pub(crate) fn rows(&self) -> usize {
        self.timestamps.len()
    }

    /// What was known of a column when this was planned, if it has one like that.
    pub(crate) fn known(&self, column: &ColumnRequest) -> Option<&Known> {
        let like = |planned: &&PlannedColumn| {
            planned.request.path == column.path && planned.request.metadata == column.metadata
        };
        self.columns.iter().find(like).map(|planned| &planned.known)
    }

    /// Each column, and what was known of it when this was planned.
    pub(crate) fn known_columns(&self) -> impl Iterator<Item = (&ColumnRequest, &Known)> {
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

    /// The same with the places in memory, from what was pinned for [`versions`](Self::versions).
    pub(crate) fn assemble(&self, got: Pinned) -> Assembled {
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

/// Adds the rows from `start` to `end` to those for which nothing is valid.
fn widen(
    gap: &mut Option<MissingColumn>,
    request: &ColumnRequest,
    timestamps: &Timestamps,
    start: usize,
    end: usize,
) {
    let Some((first, last, rows)) = timestamps.extent(start..end) else { return };
    let gap = gap.get_or_insert_with(|| MissingColumn {
        column: request.name.to_string(),
        path: request.path.clone(),
        first,
        last,
        rows: 0,
    });
    gap.first = gap.first.min(first);
    gap.last = gap.last.max(last);
    gap.rows += rows as u64;
}

fn cells(places: &[u32], got: &Pinned, stale: bool) -> Vec<Cell> {
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
    encoded: Mutex<Vec<(Encoded, Batches)>>,
    /// The memory of the runs.
    pub(crate) charge: Arc<Charge>,
}

/// What decides how batches are encoded, beside what they hold.
type Encoded = (Encoding, CellKind, bool);

/// The messages of each batch.
type Batches = Arc<Vec<BatchMessages>>;

impl Assembled {
    /// The messages of each batch in this form, if it is one that is kept: every consumer of a
    /// timeframe asks for the same.
    ///
    /// # Errors
    /// [`EncodeError`].
    pub(crate) fn encoded(
        &self,
        form: &Form,
        content: &Content,
    ) -> Result<Option<Batches>, EncodeError> {
        let shape = &form.shape;
        let key = (shape.encoding, shape.cell, shape.nullable);
        let rows = match &content.shown {
            Shown::Rows { timestamps, .. } => timestamps.len(),
            Shown::Intervals(_) => return Ok(None),
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
        let Some(Self { columns, pins, encoded, charge: _ }) = Arc::into_inner(assembled) else {
            return;
        };
        drop(pins);
        if columns.len() >= MANY_COLUMNS {
            later((columns, encoded));
        }
    }

    /// The bytes of memory that its objects take.
    pub(crate) fn charged_bytes(&self) -> u64 {
        self.pins.pins().iter().map(super::resident::Pin::charged_bytes).sum()
    }
}

/// What the cells of a table name, in somebody's hands.
#[derive(Debug)]
pub(crate) struct Handed {
    pub(crate) versions: Arc<VersionSet>,
    pub(crate) pins: Arc<InHand>,
}

impl Objects for Handed {
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
pub(crate) struct Spans {
    versions: Arc<VersionSet>,
    columns: Vec<PlannedSpans>,
    /// By cell, column after column: the place of its version among those of all.
    places: Vec<u32>,
}

#[derive(Debug)]
struct PlannedSpans {
    request: ColumnRequest,
    /// Where the places of its cells are.
    cells: Range<usize>,
    rows: Vec<IntervalRow>,
    stale: bool,
}

impl Spans {
    pub(crate) fn new(range: ValidityInterval, known: Vec<(ColumnRequest, Known)>) -> Self {
        let spans: Vec<_> = known.iter().map(|(_, known)| known.timeline.spans(range)).collect();
        let most = |spans: &[Span], known: &Known| spans.len().min(known.timeline.versions());
        let all = spans.iter().zip(&known).map(|(spans, (_, known))| most(spans, known));
        let mut distinct = Distinct::expecting(all.sum());
        let columns = known
            .into_iter()
            .zip(spans)
            .map(|((request, known), spans)| {
                distinct.column(&known.timeline);
                let mut rows = Vec::with_capacity(spans.len());
                for span in spans {
                    if let State::Version(index) = span.state {
                        let cell = distinct.cell(index);
                        rows.push(IntervalRow { interval: span.interval, cell });
                    }
                }
                PlannedSpans { request, cells: distinct.range(), rows, stale: known.stale }
            })
            .collect();
        let (versions, places) = distinct.into_versions();
        Self { versions, columns, places }
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

    /// Bytes of memory that the spans take.
    pub(crate) fn memory_bytes(&self) -> u64 {
        let rows: usize = self.columns.iter().map(|column| column.rows.len()).sum();
        (rows * size_of::<IntervalRow>() + self.places.len() * size_of::<u32>()) as u64
    }

    pub(crate) fn versions(&self) -> &Arc<VersionSet> {
        &self.versions
    }

    pub(crate) fn assemble(self, got: Pinned) -> (Vec<IntervalColumn>, Arc<PinSet>) {
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
