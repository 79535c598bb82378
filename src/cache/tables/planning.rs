//! A plan under construction: the join of each column, and its cells.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use super::distinct::Distinct;
use super::key_look_ups::{KeyedLookUps, KeyedTimelines};
use super::known_columns::ColumnTimelines;
use crate::budget::Charge;
use crate::cache::error::{CacheError, MissingColumn, UnmatchedColumn};
use crate::cache::versions::catalog::KnownTimeline;
use crate::cache::versions::linked_timeline::VersionSet;
use crate::cache::yielder::Turns;
use crate::index::{
    ChoicePieces, ChoiceRun, ChoiceSource, JoinPieces, KeyColumn, Run, Slot, Timestamps,
};
use crate::interval::Timestamp;
use crate::object::ObjectPath;
use crate::table::{Cell, CellRun, ColumnRequest};

/// Memory per cell, in the plan and in the table.
pub(super) const CELL_BYTES: u64 = (size_of::<Cell>() + size_of::<u32>()) as u64;
/// Memory per distinct version: its place, its slots, its pin, and how it was obtained.
pub(super) const VERSION_BYTES: u64 = 64;

/// A column, with the cells that serve its rows.
#[derive(Debug)]
pub(super) struct PlannedColumn {
    pub(super) request: ColumnRequest,
    /// The range of its cells in `places`.
    pub(super) cells: Range<usize>,
    pub(super) runs: Arc<[CellRun]>,
    pub(super) stale: StaleCells,
    pub(super) key: Option<KeyColumn>,
    pub(super) known: ColumnTimelines,
}

/// The cells of a column that its source did not confirm in time.
#[derive(Debug)]
pub(super) enum StaleCells {
    All(bool),
    /// For each cell.
    Each(Vec<bool>),
}

impl StaleCells {
    pub(super) fn contains(&self, place: usize) -> bool {
        match self {
            Self::All(stale) => *stale,
            Self::Each(stale) => stale.get(place).copied().unwrap_or(false),
        }
    }
}

/// A plan under construction.
pub(super) struct Planning {
    distinct: Distinct,
    missing: Vec<MissingColumn>,
    unmatched: Vec<UnmatchedColumn>,
    /// Runs of a part of a column.
    piece: Vec<Run>,
    /// Runs of the current column.
    runs: Vec<CellRun>,
    charge: Charge,
    /// Bytes of the runs of all earlier columns.
    run_bytes: u64,
    turns: Turns,
}

/// The parts of a finished plan.
pub(super) struct Planned {
    pub(super) versions: Arc<VersionSet>,
    pub(super) places: Vec<u32>,
    pub(super) missing: Vec<MissingColumn>,
    pub(super) unmatched: Vec<UnmatchedColumn>,
    pub(super) charge: Charge,
}

impl Planning {
    /// With initial capacity for this many versions.
    pub(super) fn new(expected: usize, charge: Charge) -> Self {
        Self {
            distinct: Distinct::with_capacity(expected),
            missing: Vec::new(),
            unmatched: Vec::new(),
            piece: Vec::new(),
            runs: Vec::new(),
            charge,
            run_bytes: 0,
            turns: Turns::new(),
        }
    }

    pub(super) fn finish(self) -> Planned {
        let bytes = self.bytes();
        let Self { distinct, missing, unmatched, mut charge, .. } = self;
        charge.shrink_to(bytes);
        let (versions, places) = distinct.into_versions();
        Planned { versions, places, missing, unmatched, charge }
    }

    pub(super) async fn column(
        &mut self,
        request: ColumnRequest,
        known: KnownTimeline,
        timestamps: &Timestamps,
    ) -> Result<PlannedColumn, CacheError> {
        self.distinct.begin_column();
        let own = self.distinct.add_timeline(&known.timeline);
        self.runs.clear();
        let mut gap: Option<MissingColumn> = None;
        let mut pieces = JoinPieces::new(&known.timeline, timestamps);
        while pieces.next_into(&mut self.piece) {
            let piece = std::mem::take(&mut self.piece);
            for run in &piece {
                let cell = match run.slot {
                    Slot::Version(index) => Some(self.distinct.cell(own, index)),
                    Slot::Null => None,
                    Slot::Absent | Slot::Unknown => {
                        if let Some(path) = request.plain_path() {
                            let rows = run.start..run.end;
                            gap.get_or_insert_with(|| {
                                MissingColumn::none(&request.name, path, None)
                            })
                            .add(timestamps.bounds_of(rows.clone()), rows.len());
                        }
                        None
                    }
                };
                self.push(run.end, cell);
            }
            self.pay()?;
            self.turns.take(piece.len()).await;
            self.piece = piece;
        }
        self.missing.extend(gap);
        self.run_bytes += size_of_val(&self.runs[..]) as u64;
        let (cells, runs) = (self.distinct.range(), Arc::from(&self.runs[..]));
        let stale = StaleCells::All(known.stale);
        let known = ColumnTimelines::Plain(known);
        Ok(PlannedColumn { request, cells, runs, stale, key: None, known })
    }

    /// A column whose key chooses the look-up of each row.
    pub(super) async fn keyed_column(
        &mut self,
        request: ColumnRequest,
        keyed: Arc<KeyedTimelines>,
    ) -> Result<PlannedColumn, CacheError> {
        self.distinct.begin_column();
        let timelines = keyed.known.iter().map(|known| self.distinct.add_timeline(&known.timeline));
        let timelines: Vec<usize> = timelines.collect();
        self.runs.clear();
        let KeyedLookUps { rows, look_ups, times, .. } = &keyed.look_ups;
        let sources: Vec<ChoiceSource<'_>> =
            look_ups.iter().map(|look_up| keyed.source_of(look_up)).collect();
        let mut gaps = KeyedGaps::default();
        let mut stale = Vec::new();
        // For each look-up, the version of its last row, and its cell.
        let mut last: Vec<Option<(u32, u32)>> = vec![None; look_ups.len()];
        let query_of = |look_up: usize| look_ups[look_up].query.unwrap_or(0);
        let mut pieces = ChoicePieces::new(rows, &sources, times).merging(query_of);
        let mut piece = Vec::new();
        while pieces.next_into(&mut piece) {
            for run in &piece {
                let cell = match run.slot {
                    Slot::Version(index) => {
                        let known = &mut last[run.choice as usize];
                        match known {
                            Some((version, cell)) if *version == index => Some(*cell),
                            _ => {
                                let query = look_ups[run.choice as usize].query.unwrap_or(0);
                                let cell = self.distinct.cell(timelines[query as usize], index);
                                if cell as usize == stale.len() {
                                    stale.push(keyed.known[query as usize].stale);
                                }
                                *known = Some((index, cell));
                                Some(cell)
                            }
                        }
                    }
                    Slot::Null => None,
                    Slot::Absent | Slot::Unknown => {
                        gaps.add(&request, &keyed, run);
                        None
                    }
                };
                self.push(run.end, cell);
            }
            self.pay()?;
            self.turns.take(piece.len()).await;
        }
        self.missing.extend(gaps.missing);
        self.unmatched.extend(gaps.unmatched);
        self.run_bytes += size_of_val(&self.runs[..]) as u64;
        let (cells, runs) = (self.distinct.range(), Arc::from(&self.runs[..]));
        let (stale, key) = (StaleCells::Each(stale), Some(keyed.look_ups.key.clone()));
        let known = ColumnTimelines::Keyed(keyed);
        Ok(PlannedColumn { request, cells, runs, stale, key, known })
    }

    /// Appends the rows up to `end` with their cell.
    fn push(&mut self, end: usize, cell: Option<u32>) {
        let end = i32::try_from(end).unwrap_or(i32::MAX);
        match self.runs.last_mut() {
            Some(last) if last.cell == cell => last.end = end,
            _ => self.runs.push(CellRun { end, cell }),
        }
    }

    /// Charges the current size.
    fn pay(&mut self) -> Result<(), CacheError> {
        // The runs of the current column exist twice for a moment.
        let bytes = self.bytes() + 2 * size_of_val(&self.runs[..]) as u64;
        match bytes.saturating_sub(self.charge.bytes()) {
            0 => Ok(()),
            more => Ok(self.charge.grow(more)?),
        }
    }

    /// Bytes of versions, cells and the runs of earlier columns.
    fn bytes(&self) -> u64 {
        let (versions, cells) = self.distinct.counts();
        versions as u64 * VERSION_BYTES + cells as u64 * CELL_BYTES + self.run_bytes
    }
}

impl MissingColumn {
    /// A column without missing rows so far.
    fn none(column: &str, path: &ObjectPath, key: Option<String>) -> Self {
        let (column, path) = (column.to_owned(), path.clone());
        Self { column, path, first: Timestamp::MAX, last: Timestamp::MIN, rows: 0, key }
    }

    /// Adds rows without an object; `bounds`: their first and last timestamp.
    fn add(&mut self, bounds: Option<(i64, i64)>, rows: usize) {
        let Some((first, last)) = bounds else { return };
        self.first = self.first.min(Timestamp::from_millis(first));
        self.last = self.last.max(Timestamp::from_millis(last));
        self.rows += rows as u64;
    }
}

/// The rows of a keyed column without an object.
#[derive(Default)]
struct KeyedGaps {
    /// One per path.
    missing: Vec<MissingColumn>,
    by_path: HashMap<ObjectPath, usize>,
    unmatched: Option<UnmatchedColumn>,
}

impl KeyedGaps {
    fn add(&mut self, request: &ColumnRequest, keyed: &KeyedTimelines, run: &ChoiceRun) {
        let KeyedLookUps { look_ups, queries, times, key, .. } = &keyed.look_ups;
        let Some(used) = &request.key else { return };
        let value = || key.value(run.start).map(|value| value.to_string()).unwrap_or_default();
        let look_up = look_ups.get(run.choice as usize);
        let rows = run.start..run.end;
        let Some((look_up, query)) = look_up.and_then(|one| Some((one, one.query?))) else {
            let unmatched = self.unmatched.get_or_insert_with(|| UnmatchedColumn {
                column: request.name.to_string(),
                key: used.key.to_string(),
                value: value(),
                row: run.start,
                rows: 0,
            });
            unmatched.rows += rows.len() as u64;
            return;
        };
        let path = &queries[query as usize].path;
        let bounds = match look_up.at {
            Some(at) => Some((at.as_millis(), at.as_millis())),
            None => times.bounds_of(rows.clone()),
        };
        let place = match self.by_path.get(path) {
            Some(place) => *place,
            None => {
                let key = Some(format!("{}={}", used.key, value()));
                self.missing.push(MissingColumn::none(&request.name, path, key));
                self.by_path.insert(path.clone(), self.missing.len() - 1);
                self.missing.len() - 1
            }
        };
        self.missing[place].add(bounds, rows.len());
    }
}
