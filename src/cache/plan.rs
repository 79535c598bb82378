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

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, PoisonError};

use super::catalog::Known;
use super::error::MissingColumn;
use super::loader::Got;
use super::resident::PinSet;
use crate::index::{Slot, State, Timestamps, join};
use crate::interval::ValidityInterval;
use crate::object::{ObjectId, ObjectInfo};
use crate::table::{
    CacheState, Cell, CellKind, CellRun, Column, ColumnRequest, Content, EncodeError, Encoding,
    IntervalColumn, IntervalRow, Message, MessageWriter, Shape, View,
};

/// Encoded batches that are larger than this are made anew each time.
const MAX_ENCODED_BYTES: usize = 1 << 20;

/// The versions of one column, each once.
#[derive(Debug, Default)]
struct Distinct {
    versions: Vec<Arc<ObjectInfo>>,
    places: HashMap<ObjectId, u32>,
}

impl Distinct {
    fn place(&mut self, version: &Arc<ObjectInfo>) -> u32 {
        match self.places.entry(version.id) {
            Entry::Occupied(entry) => *entry.get(),
            Entry::Vacant(entry) => {
                let place = u32::try_from(self.versions.len()).unwrap_or(u32::MAX);
                self.versions.push(Arc::clone(version));
                *entry.insert(place)
            }
        }
    }
}

/// Which version serves which rows, for each column.
#[derive(Debug)]
pub(crate) struct Plan {
    timestamps: Arc<Timestamps>,
    columns: Vec<PlannedColumn>,
    missing: Vec<MissingColumn>,
}

#[derive(Debug)]
struct PlannedColumn {
    request: ColumnRequest,
    versions: Vec<Arc<ObjectInfo>>,
    /// `cell` is a place in `versions`.
    runs: Vec<CellRun>,
    known: Known,
}

impl Plan {
    pub(crate) fn new(timestamps: Arc<Timestamps>, known: Vec<(ColumnRequest, Known)>) -> Self {
        let mut missing = Vec::new();
        let columns = known
            .into_iter()
            .map(|(request, known)| {
                let mut distinct = Distinct::default();
                let mut runs: Vec<CellRun> = Vec::new();
                let mut gap: Option<MissingColumn> = None;
                for run in join(&known.timeline, &timestamps).iter() {
                    let cell = match run.slot {
                        Slot::Version(index) => Some(distinct.place(known.timeline.version(index))),
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
                PlannedColumn { request, versions: distinct.versions, runs, known }
            })
            .collect();
        Self { timestamps, columns, missing }
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
    pub(crate) fn versions(&self) -> Vec<Arc<ObjectInfo>> {
        distinct(self.columns.iter().flat_map(|column| &column.versions))
    }

    /// The same with the places in memory, from what was pinned for [`versions`](Self::versions).
    pub(crate) fn assemble(&self, got: HashMap<ObjectId, Got>) -> Assembled {
        let columns = self
            .columns
            .iter()
            .map(|column| Column {
                name: column.request.name.clone(),
                path: column.request.path.clone(),
                runs: column.runs.clone(),
                cells: cells(&column.versions, &got, column.known.stale),
            })
            .collect();
        Assembled { columns: Arc::new(columns), pins: pins(got), encoded: Mutex::default() }
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
    for at in (start..end).filter_map(|row| timestamps.value(row)) {
        let gap = gap.get_or_insert_with(|| MissingColumn {
            column: request.name.clone(),
            path: request.path.clone(),
            first: at,
            last: at,
            rows: 0,
        });
        gap.first = gap.first.min(at);
        gap.last = gap.last.max(at);
        gap.rows += 1;
    }
}

fn distinct<'a>(versions: impl Iterator<Item = &'a Arc<ObjectInfo>>) -> Vec<Arc<ObjectInfo>> {
    let mut distinct = Distinct::default();
    for version in versions {
        distinct.place(version);
    }
    distinct.versions
}

fn cells(versions: &[Arc<ObjectInfo>], got: &HashMap<ObjectId, Got>, stale: bool) -> Vec<Cell> {
    let cell = |version: &Arc<ObjectInfo>| {
        let got = got.get(&version.id)?;
        Some(Cell {
            header: got.pin.meta_header(),
            version: Arc::clone(version),
            cache: if stale { CacheState::Stale } else { got.how },
            payload: got.pin.bytes(),
        })
    };
    let cells: Vec<Cell> = versions.iter().filter_map(cell).collect();
    debug_assert_eq!(cells.len(), versions.len(), "everything that was planned is pinned");
    cells
}

fn pins(got: HashMap<ObjectId, Got>) -> Arc<PinSet> {
    Arc::new(PinSet::new(got.into_values().map(|got| got.pin).collect()))
}

/// A plan whose objects are in shared memory and pinned.
#[derive(Debug)]
pub(crate) struct Assembled {
    pub(crate) columns: Arc<Vec<Column>>,
    pub(crate) pins: Arc<PinSet>,
    /// The batches as they cross the wire, in the forms in which they were asked for.
    encoded: Mutex<Vec<(Form, Arc<Vec<Message>>)>>,
}

/// What decides how batches are encoded, beside what they hold.
type Form = (Encoding, CellKind, bool, bool);

impl Assembled {
    /// The batches in the form of `shape`, if it is one that is kept: every consumer of a timeframe
    /// asks for the same.
    ///
    /// # Errors
    /// [`EncodeError`].
    pub(crate) fn encoded(
        &self,
        shape: &Shape,
        content: &Content,
    ) -> Result<Option<Arc<Vec<Message>>>, EncodeError> {
        let form = (shape.encoding, shape.cell, shape.timestamps_column, shape.nullable);
        // Run-end encoded they are small, however many rows there are.
        let kept = shape.view == View::Rows
            && shape.encoding == Encoding::RunEnd
            && shape.cell != CellKind::Payload
            && !shape.timestamps_column;
        if !kept {
            return Ok(None);
        }
        let known = {
            let encoded = self.encoded.lock().unwrap_or_else(PoisonError::into_inner);
            encoded.iter().find(|(known, _)| *known == form).map(|(_, kept)| Arc::clone(kept))
        };
        if known.is_some() {
            return Ok(known);
        }
        let batches = content.batches(shape);
        let (mut writer, _) = MessageWriter::begin(&batches.schema());
        let mut messages = Vec::new();
        for batch in batches {
            messages.extend(writer.write(&batch?)?);
        }
        let messages = Arc::new(messages);
        let bytes: usize = messages.iter().map(|one| one.header.len() + one.body.len()).sum();
        if bytes <= MAX_ENCODED_BYTES {
            let mut encoded = self.encoded.lock().unwrap_or_else(PoisonError::into_inner);
            encoded.push((form, Arc::clone(&messages)));
        }
        Ok(Some(messages))
    }

    /// The bytes of memory that its objects take.
    pub(crate) fn charged_bytes(&self) -> u64 {
        self.pins.pins().iter().map(super::resident::Pin::charged_bytes).sum()
    }
}

/// Which version is effective when, for each column, all over a range.
#[derive(Debug)]
pub(crate) struct Spans {
    columns: Vec<PlannedSpans>,
}

#[derive(Debug)]
struct PlannedSpans {
    request: ColumnRequest,
    versions: Vec<Arc<ObjectInfo>>,
    pieces: Vec<(ValidityInterval, u32)>,
    stale: bool,
}

impl Spans {
    pub(crate) fn new(range: ValidityInterval, known: Vec<(ColumnRequest, Known)>) -> Self {
        let columns = known
            .into_iter()
            .map(|(request, known)| {
                let mut distinct = Distinct::default();
                let mut pieces = Vec::new();
                for span in known.timeline.spans(range) {
                    if let State::Version(index) = span.state {
                        let place = distinct.place(known.timeline.version(index));
                        pieces.push((span.interval, place));
                    }
                }
                PlannedSpans { request, versions: distinct.versions, pieces, stale: known.stale }
            })
            .collect();
        Self { columns }
    }

    pub(crate) fn versions(&self) -> Vec<Arc<ObjectInfo>> {
        distinct(self.columns.iter().flat_map(|column| &column.versions))
    }

    pub(crate) fn assemble(
        &self,
        got: HashMap<ObjectId, Got>,
    ) -> (Vec<IntervalColumn>, Arc<PinSet>) {
        let columns = self
            .columns
            .iter()
            .map(|column| IntervalColumn {
                name: column.request.name.clone(),
                path: column.request.path.clone(),
                rows: column
                    .pieces
                    .iter()
                    .map(|&(interval, cell)| IntervalRow { interval, cell })
                    .collect(),
                cells: cells(&column.versions, &got, column.stale),
            })
            .collect();
        (columns, pins(got))
    }
}
