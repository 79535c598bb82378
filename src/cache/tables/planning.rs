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
use crate::cache::yielder::WorkClock;
use crate::index::{ChoicePieces, ChoiceSource, JoinPieces, KeyColumn, Run, Slot, Timestamps};
use crate::interval::Timestamp;
use crate::object::ObjectPath;
use crate::table::{Cell, CellRows, CellRun, ColumnRequest};

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
    pub(super) rows: CellRows,
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
    pub(super) runs: Vec<CellRun>,
    charge: Charge,
    /// Bytes of the rows of all earlier columns.
    pub(super) row_bytes: u64,
    /// The keys whose codes are charged.
    coded_keys: Vec<KeyColumn>,
    pub(super) turns: WorkClock,
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
            row_bytes: 0,
            coded_keys: Vec::new(),
            turns: WorkClock::new(),
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
        let rows = self.finished_runs();
        let cells = self.distinct.range();
        let stale = StaleCells::All(known.stale);
        let known = ColumnTimelines::Plain(known);
        Ok(PlannedColumn { request, cells, rows, stale, key: None, known })
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
        let look_ups = &keyed.look_ups.look_ups;
        let sources: Vec<ChoiceSource<'_>> =
            look_ups.iter().map(|look_up| keyed.source_of(look_up)).collect();
        let mut plan = KeyedPlan::new(&request, &keyed, &sources, timelines);
        let rows = match self.coded_cells(&mut plan).await? {
            Some(rows) => rows,
            None => {
                self.keyed_runs(&mut plan).await?;
                self.finished_runs()
            }
        };
        let KeyedPlan { stale, gaps, .. } = plan;
        self.missing.extend(gaps.missing);
        self.unmatched.extend(gaps.unmatched);
        let cells = self.distinct.range();
        let (stale, key) = (StaleCells::Each(stale), Some(keyed.look_ups.key.clone()));
        drop(sources);
        let known = ColumnTimelines::Keyed(keyed);
        Ok(PlannedColumn { request, cells, rows, stale, key, known })
    }

    /// Joins the runs of a keyed column.
    async fn keyed_runs(&mut self, plan: &mut KeyedPlan<'_>) -> Result<(), CacheError> {
        self.runs.clear();
        let KeyedLookUps { rows, look_ups, times, .. } = &plan.keyed.look_ups;
        let query_of = |look_up: usize| look_ups[look_up].query.unwrap_or(0);
        let mut pieces = ChoicePieces::new(rows, plan.sources, times).merging(query_of);
        let mut piece = Vec::new();
        while pieces.next_into(&mut piece) {
            for run in &piece {
                let cell = match run.slot {
                    Slot::Version(index) => Some(self.cell_of(plan, run.choice, index)),
                    Slot::Null => None,
                    Slot::Absent | Slot::Unknown => {
                        let rows = run.end - run.start;
                        let missing = MissingRows { first: run.start, last: run.end - 1, rows };
                        plan.add_missing(run.choice, missing);
                        None
                    }
                };
                self.push(run.end, cell);
            }
            self.pay()?;
            self.turns.take(piece.len()).await;
        }
        Ok(())
    }

    /// The cell of a version of a look-up.
    pub(super) fn cell_of(&mut self, plan: &mut KeyedPlan<'_>, choice: u32, version: u32) -> u32 {
        let known = &mut plan.last[choice as usize];
        if let Some((last, cell)) = known
            && *last == version
        {
            return *cell;
        }
        let keyed = plan.keyed;
        let query = keyed.look_ups.look_ups[choice as usize].query.unwrap_or(0) as usize;
        let cell = self.distinct.cell(plan.timelines[query], version);
        if cell as usize == plan.stale.len() {
            plan.stale.push(keyed.known[query].stale);
        }
        *known = Some((version, cell));
        cell
    }

    /// The runs of the latest column, whose memory is counted.
    fn finished_runs(&mut self) -> CellRows {
        self.row_bytes += size_of_val(&self.runs[..]) as u64;
        CellRows::from(&self.runs[..])
    }

    /// Charges the codes of a key, once for all columns.
    pub(super) fn charge_codes(&mut self, key: &KeyColumn) -> Result<(), CacheError> {
        if self.coded_keys.iter().any(|known| known.is_same(key)) {
            return Ok(());
        }
        let bytes = key.codes_bytes();
        self.charge.grow(bytes)?;
        self.row_bytes += bytes;
        self.coded_keys.push(key.clone());
        Ok(())
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
    pub(super) fn pay(&mut self) -> Result<(), CacheError> {
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
        versions as u64 * VERSION_BYTES + cells as u64 * CELL_BYTES + self.row_bytes
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

/// The plan of one keyed column.
pub(super) struct KeyedPlan<'a> {
    request: &'a ColumnRequest,
    pub(super) keyed: &'a KeyedTimelines,
    /// By look-up.
    pub(super) sources: &'a [ChoiceSource<'a>],
    /// By query: the number of its timeline.
    timelines: Vec<usize>,
    /// For each look-up, the version of its last row, and its cell.
    last: Vec<Option<(u32, u32)>>,
    /// For each cell, whether its source did not confirm it in time.
    stale: Vec<bool>,
    gaps: KeyedGaps,
}

impl<'a> KeyedPlan<'a> {
    fn new(
        request: &'a ColumnRequest,
        keyed: &'a KeyedTimelines,
        sources: &'a [ChoiceSource<'a>],
        timelines: Vec<usize>,
    ) -> Self {
        let (last, stale) = (vec![None; sources.len()], Vec::new());
        Self { request, keyed, sources, timelines, last, stale, gaps: KeyedGaps::default() }
    }

    /// Adds rows of the look-up `choice` without an object: all from the first to the last one, or,
    /// if the timestamps are sorted, some of them.
    pub(super) fn add_missing(&mut self, choice: u32, missing: MissingRows) {
        self.gaps.add(self.request, self.keyed, choice, missing);
    }
}

/// Rows of one look-up without an object.
#[derive(Debug, Clone, Copy)]
pub(super) struct MissingRows {
    pub(super) first: usize,
    pub(super) last: usize,
    /// Number of rows.
    pub(super) rows: usize,
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
    fn add(
        &mut self,
        request: &ColumnRequest,
        keyed: &KeyedTimelines,
        choice: u32,
        missing: MissingRows,
    ) {
        let KeyedLookUps { look_ups, queries, times, key, .. } = &keyed.look_ups;
        let Some(used) = &request.key else { return };
        let MissingRows { first, last, rows } = missing;
        let value = || key.value(first).map(|value| value.to_string()).unwrap_or_default();
        let look_up = look_ups.get(choice as usize);
        let Some((look_up, query)) = look_up.and_then(|one| Some((one, one.query?))) else {
            let unmatched = self.unmatched.get_or_insert_with(|| UnmatchedColumn {
                column: request.name.to_string(),
                key: used.key.to_string(),
                value: value(),
                row: first,
                rows: 0,
            });
            unmatched.rows += rows as u64;
            return;
        };
        let path = &queries[query as usize].path;
        let bounds = match look_up.at {
            Some(at) => Some((at.as_millis(), at.as_millis())),
            None => times.bounds_of(first..last + 1),
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
        self.missing[place].add(bounds, rows);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::budget::Budget;
    use crate::cache::tables::key_look_ups::KeyTerms;
    use crate::cache::versions::linked_timeline::LinkedTimeline;
    use crate::clock::Moment;
    use crate::index::Timeline;
    use crate::interval::ValidityInterval;
    use crate::object::{ObjectId, ObjectInfo};
    use crate::table::{ColumnList, TableRows};

    /// A timeline with these versions, known from `known` on.
    fn timeline(path: &ObjectPath, number: usize, versions: &[(i64, i64)], known: i64) -> Timeline {
        let at = Timestamp::from_millis;
        let version = |(n, &(from, length)): (usize, &(i64, i64))| {
            Arc::new(ObjectInfo {
                path: path.clone(),
                id: ObjectId::from_bytes([(number * 16 + n) as u8; 16]),
                validity: ValidityInterval::new(at(from), at(from + length)).unwrap(),
                created: at(n as i64),
                size_bytes: None,
                md5: None,
                metadata: Default::default(),
            })
        };
        let versions: Vec<_> = versions.iter().enumerate().map(version).collect();
        let span = ValidityInterval::new(at(known), Timestamp::MAX).unwrap();
        Timeline::unknown().learn(span, &versions, Moment::from_millis(5))
    }

    /// Everything that a column adds to a plan.
    #[derive(Debug, PartialEq)]
    struct Found {
        runs: Vec<CellRun>,
        /// The numbers of the cells' versions.
        cells: Vec<u32>,
        stale: Vec<bool>,
        missing: Vec<MissingColumn>,
        unmatched: Option<UnmatchedColumn>,
    }

    /// The column by codes, if it can be coded, or by runs.
    async fn found(
        request: &ColumnRequest,
        keyed: &KeyedTimelines,
        by_codes: bool,
    ) -> Option<Found> {
        let charge = Budget::unlimited().client("test").charge(0, "a plan").unwrap();
        let mut planning = Planning::new(16, charge);
        planning.distinct.begin_column();
        let add = |known: &KnownTimeline| planning.distinct.add_timeline(&known.timeline);
        let timelines = keyed.known.iter().map(add).collect();
        let look_ups = &keyed.look_ups.look_ups;
        let sources: Vec<_> = look_ups.iter().map(|one| keyed.source_of(one)).collect();
        let mut plan = KeyedPlan::new(request, keyed, &sources, timelines);
        let rows = match by_codes {
            true => planning.coded_cells(&mut plan).await.unwrap()?,
            false => {
                planning.keyed_runs(&mut plan).await.unwrap();
                planning.finished_runs()
            }
        };
        let runs = rows.runs_within(0..rows.len()).into_owned();
        let KeyedPlan { stale, gaps: KeyedGaps { missing, unmatched, .. }, .. } = plan;
        let (versions, places) = planning.distinct.into_versions();
        let id = |place: &u32| versions.infos().nth(*place as usize).unwrap().id;
        let ids: Vec<_> = places.iter().map(id).collect();
        assert!((1..ids.len()).all(|n| !ids[..n].contains(&ids[n])), "a cell occurs twice");
        Some(Found { runs, cells: places, stale, missing, unmatched })
    }

    const COLUMNS: [&str; 6] = [
        r#"{"path": "A", "key": "run"}"#,
        r#"{"path": "A", "key": "run", "uniform": true}"#,
        r#"{"path": "A", "key": "run", "as": "timestamp"}"#,
        r#"{"path": "A", "key": "run", "as": "metadata:run"}"#,
        r#"{"path": [{"until": 0, "path": "A"}, {"from": 3, "path": "B"}], "key": "run"}"#,
        r#"{"path": [{"from": 1, "until": 2, "path": "A"}, {"path": "B"}], "key": "run"}"#,
    ];

    proptest! {
        #[test]
        fn codes_and_runs_of_a_key_are_the_same_plan(
            key in proptest::collection::vec(proptest::option::weighted(0.95, -1_i64..5), 200..500),
            versions in proptest::collection::vec(
                proptest::collection::vec((-40_i64..600, 1_i64..300), 0..4), 8),
            known in -50_i64..300,
            column in 0..COLUMNS.len(),
            sorted in proptest::bool::weighted(0.8),
        ) {
            let json = format!(r#"{{"c": {}}}"#, COLUMNS[column]);
            let ColumnList(columns) = serde_json::from_str(&json).unwrap();
            let request = &columns[0];
            let count = key.len() as i64;
            let times: Timestamps =
                (0..count).map(|row| Some(if sorted { row } else { row * 7 % count })).collect();
            let keys = [(Arc::from("run"), key.into_iter().collect())].into_iter().collect();
            let rows = TableRows { timestamps: Arc::new(times), keys };
            let budget = Budget::unlimited().client("test");
            let terms = KeyTerms { max_values: 1000, query_per_value: false, budget: &budget };
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let (by_codes, by_runs) = runtime.block_on(async {
                let used = request.key.as_ref().unwrap();
                let look_ups = KeyedLookUps::new(request, used, &rows, terms).await.unwrap();
                let known_of = |(n, query): (usize, &super::super::key_look_ups::KeyedQuery)| {
                    let timeline = timeline(&query.path, n, &versions[n % 8], known);
                    let timeline = Arc::new(LinkedTimeline::new(timeline));
                    KnownTimeline { timeline, stale: n % 2 == 1, pace: None, charge: None }
                };
                let known = look_ups.queries.iter().enumerate().map(known_of).collect();
                let keyed = KeyedTimelines { look_ups, known };
                (found(request, &keyed, true).await, found(request, &keyed, false).await)
            });
            // Look-ups at one time need no order; one path for all rows needs no codes.
            let is_fixed = (1..3).contains(&column);
            prop_assert!(by_codes.is_some() || !is_fixed);
            prop_assert!(by_codes.is_none() || is_fixed || (sorted && column != 0));
            if let Some(by_codes) = by_codes {
                prop_assert_eq!(by_codes, by_runs.unwrap());
            }
        }
    }
}
