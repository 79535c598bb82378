//! Tables from shared memory, without a request: the client joins the timestamps with the published
//! timelines, and pins each object by a slot.
//!
//! ```text
//!  request ─▶ PlaneRequest ─every column published, confirmed, in memory─▶ Table (slots)
//!                 │ not eligible: limits, lock, metadata, keys, …
//!                 └ one object is missing ─▶ the service (Client::table), which publishes the paths
//! ```
//!
//! The rows are those that the service would answer. The fields of the schema are those of an earlier
//! answer of the service with the same column: so the types are the same too, and a column that the
//! service would refuse is never answered here.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use arrow_array::types::Int32Type;
use arrow_array::{Array as _, ArrayRef, FixedSizeBinaryArray, Int32Array, RunArray};
use arrow_buffer::Buffer;
use arrow_data::ArrayData;
use arrow_schema::{ArrowError, Field, FieldRef, Schema, SchemaRef};

use super::cells::Cells;
use super::error::ClientError;
use super::known_timeframes::{KnownTimeframes, TimeframeRequest};
use super::plane_request::PlaneFields;
use super::table::{Hold, Table};
use crate::index::{Slot, Timestamps, join_steps};
use crate::object::ObjectPath;
use crate::shm::attach::{Attachment, PinnedBlocks};
use crate::shm::{
    AskReason, LineNumber, LocalPlane, Mappings, MetaHeader, PlanePath, SpanReading, SpanSteps,
    TablePins,
};
use crate::sync::Mutex;
use crate::table::{ColumnRequest, ColumnRuns, Encoding, Missing, TableRequest};

/// Columns that are remembered; beyond, all are forgotten and learned anew.
const MAX_COLUMNS: usize = 65_536;
/// Columns of a table from shared memory. Larger tables are requested.
const MAX_TABLE_COLUMNS: usize = 10_000;
/// Metadata of a schema that is the same for all tables of a service.
const OF_SERVICE: [&str; 3] = ["iovcache.version", "iovcache.epoch", "iovcache.attach"];

/// Tables that a client takes from shared memory.
#[derive(Debug, Default)]
pub(super) struct PlaneTables {
    state: Mutex<Known>,
}

/// Facts about one session that its tables share.
#[derive(Debug, Default)]
struct Known {
    plane: Option<Arc<LocalPlane>>,
    /// Entries of a schema's metadata.
    metadata: HashMap<String, String>,
    columns: HashMap<ColumnKey, FieldRef>,
    /// The schema of the last table, with its key.
    last: Option<(Vec<ColumnKey>, SchemaRef)>,
    /// Handles of paths that no table reads at the moment.
    paths: HashMap<ObjectPath, Vec<PlanePath>>,
    /// The mappings of the session at the last table.
    mappings: Weak<Mappings>,
    timeframes: KnownTimeframes,
    /// The last line that was sent, until the service is known to have taken it.
    line: Option<LineNumber>,
}

/// A column as the service has answered it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct ColumnKey {
    name: Arc<str>,
    path: ObjectPath,
    /// Whether the request allows null cells.
    nullable: bool,
}

/// A request that shared memory can answer.
struct PlaneRequest<'a> {
    timestamps: &'a Arc<Timestamps>,
    columns: Vec<ColumnKey>,
}

impl<'a> PlaneRequest<'a> {
    /// `None`: the service must be asked, even if all objects are in memory.
    fn of(request: &'a TableRequest) -> Option<Self> {
        let PlaneFields {
            columns: Some(columns),
            timeframe: None,
            timestamps: Some(timestamps),
            consumer: None,
            missing,
        } = PlaneFields::of(request)?
        else {
            return None;
        };
        if timestamps.is_empty() || columns.is_empty() || columns.len() > MAX_TABLE_COLUMNS {
            return None;
        }
        let nullable = missing == Some(Missing::Null) || timestamps.has_nulls();
        let column = |column: &ColumnRequest| {
            let path = column.plain_path().filter(|_| column.metadata.is_empty())?;
            Some(ColumnKey { name: Arc::clone(&column.name), path: path.clone(), nullable })
        };
        let columns = columns.iter().map(column).collect::<Option<_>>()?;
        Some(Self { timestamps, columns })
    }
}

impl Known {
    /// Forgets the facts about another session.
    fn follow(&mut self, session: &Arc<Attachment>) {
        let is_known = |plane: &Arc<LocalPlane>| Arc::ptr_eq(plane.attachment(), session);
        if !self.plane.as_ref().is_some_and(is_known) {
            *self = Self { plane: LocalPlane::new(Arc::clone(session)), ..Self::default() };
        }
        // A handle keeps the mappings that it read last, and with them retired segments.
        let mappings = Arc::downgrade(&session.mappings());
        if !Weak::ptr_eq(&self.mappings, &mappings) {
            self.paths.clear();
            self.mappings = mappings;
        }
    }

    /// The schema of a table with these columns; `None`: one of them is not known.
    fn schema(&mut self, columns: &[ColumnKey]) -> Option<SchemaRef> {
        if let Some((known, schema)) = &self.last
            && known == columns
        {
            return Some(Arc::clone(schema));
        }
        let fields = columns.iter().map(|column| self.columns.get(column).map(Arc::clone));
        let fields: Vec<FieldRef> = fields.collect::<Option<_>>()?;
        let schema = Arc::new(Schema::new_with_metadata(fields, self.metadata.clone()));
        self.last = Some((columns.to_vec(), Arc::clone(&schema)));
        Some(schema)
    }
}

impl PlaneTables {
    /// The table, if shared memory has all of it.
    pub(super) fn table(&self, request: &TableRequest, session: &Arc<Attachment>) -> Option<Table> {
        let wanted = PlaneRequest::of(request)?;
        let (plane, schema) = {
            let mut known = self.state.lock();
            known.follow(session);
            let plane = known.plane.clone().filter(|plane| !plane.tables_are_requested())?;
            let schema = known.schema(&wanted.columns);
            (plane, schema)
        };
        let made = schema.ok_or(AskReason::Unpublished).and_then(|schema| {
            let (columns, pins) = self.columns(&plane, &wanted, &schema)?;
            Ok((schema, columns, pins))
        });
        match made {
            Ok((schema, columns, pins)) => {
                let hold = Hold::Pinned(PinnedBlocks::of_slots(pins));
                let request = request.clone().encoding(Encoding::RunEnd);
                let request = request.session(session.session());
                Some(Table::of_runs(schema, columns, wanted.timestamps.len(), hold, request))
            }
            Err(reason) => {
                plane.count_ask(reason);
                None
            }
        }
    }

    /// The plane for tables of timeframes that a consumer reads, if the service has answered for its
    /// name before.
    pub(super) fn plane_for(&self, consumer: &str) -> Option<Arc<LocalPlane>> {
        let known = self.state.lock();
        let is_accepted = |plane: &&Arc<LocalPlane>| {
            let is_own = plane.attachment().consumer() == consumer;
            known.timeframes.has_consumer(consumer, is_own, plane.claims())
        };
        let plane = known.plane.as_ref().filter(is_accepted)?;
        (!plane.timeframes_are_requested()).then(|| Arc::clone(plane))
    }

    /// The plane of a session.
    pub(super) fn plane_of(&self, session: &Arc<Attachment>) -> Option<Arc<LocalPlane>> {
        let mut known = self.state.lock();
        known.follow(session);
        known.plane.clone()
    }

    pub(super) fn with_timeframes<T>(&self, work: impl FnOnce(&mut KnownTimeframes) -> T) -> T {
        work(&mut self.state.lock().timeframes)
    }

    /// The next call to the service waits until this line was taken.
    pub(super) fn note_line(&self, line: LineNumber) {
        self.state.lock().line = Some(line);
    }

    /// The last line, if it may not have been taken yet.
    pub(super) fn take_line(&self) -> Option<LineNumber> {
        self.state.lock().line.take()
    }

    /// The count of claims of consumers' names, before a request for a timeframe in this session.
    pub(super) fn claims_before(
        &self,
        request: &TableRequest,
        session: &Arc<Attachment>,
    ) -> Option<u32> {
        TimeframeRequest::of(request)?;
        let mut known = self.state.lock();
        known.follow(session);
        known.plane.as_ref()?.claims()
    }

    /// Remembers that the service has answered for the consumer of a timeframe.
    fn learn_consumer(
        &self,
        wanted: TimeframeRequest<'_>,
        session: &Arc<Attachment>,
        claims: Option<u32>,
    ) {
        let mut known = self.state.lock();
        known.follow(session);
        if known.plane.is_some() {
            known.timeframes.add_consumer(wanted.consumer, claims);
        }
    }

    /// Remembers the columns of an answer of the service, or the consumer of its timeframe. `claims`
    /// is the result of [`claims_before`](Self::claims_before) the request.
    pub(super) fn learn(&self, request: &TableRequest, table: &Table, claims: Option<u32>) {
        if let (Some(wanted), Some(session)) = (TimeframeRequest::of(request), table.attachment()) {
            return self.learn_consumer(wanted, &session, claims);
        }
        let (Some(wanted), Some(session)) = (PlaneRequest::of(request), table.attachment()) else {
            return;
        };
        let schema = table.schema();
        if schema.fields().len() != wanted.columns.len() {
            return;
        }
        let mut known = self.state.lock();
        known.follow(&session);
        if known.plane.is_none() {
            return;
        }
        if known.metadata.is_empty() {
            let value =
                |key: &'static str| Some((key.to_owned(), schema.metadata().get(key)?.clone()));
            known.metadata = OF_SERVICE.into_iter().filter_map(value).collect();
        }
        if known.columns.len() + wanted.columns.len() > MAX_COLUMNS {
            (known.columns, known.last) = (HashMap::new(), None);
        }
        for (column, field) in wanted.columns.into_iter().zip(schema.fields()) {
            if field.name().as_str() == &*column.name {
                known.columns.entry(column).or_insert_with(|| Arc::clone(field));
            }
        }
    }

    /// The cells of all columns, pinned.
    fn columns(
        &self,
        plane: &Arc<LocalPlane>,
        wanted: &PlaneRequest<'_>,
        schema: &Schema,
    ) -> Result<(Vec<Cells>, TablePins), AskReason> {
        let mut pins = TablePins::begin(plane)?;
        let mut join = ColumnJoin::default();
        let mut columns = Vec::with_capacity(wanted.columns.len());
        for (column, field) in wanted.columns.iter().zip(schema.fields()) {
            let path = self.take_path(plane, &column.path);
            let joined = path.read(&pins).and_then(|reading| {
                let runs = join.runs(&reading, wanted.timestamps, &mut pins)?;
                column_runs(field, &runs, wanted.timestamps.len())
                    // The arrays are made here from checked parts.
                    .map_err(|_| AskReason::Uncovered)
            });
            self.give_back(plane, path);
            let name = column.name.to_string();
            columns.push(Cells { name, runs: joined? });
        }
        Ok((columns, pins))
    }

    /// A handle of a path, for one table at a time.
    fn take_path(&self, plane: &Arc<LocalPlane>, path: &ObjectPath) -> PlanePath {
        let kept = self.state.lock().paths.get_mut(path).and_then(Vec::pop);
        kept.unwrap_or_else(|| plane.path(path))
    }

    fn give_back(&self, plane: &Arc<LocalPlane>, path: PlanePath) {
        let mut known = self.state.lock();
        let is_current = known.plane.as_ref().is_some_and(|current| Arc::ptr_eq(current, plane));
        if !is_current {
            return;
        }
        if known.paths.len() >= MAX_COLUMNS {
            known.paths.clear();
        }
        match known.paths.get_mut(path.path()) {
            Some(handles) => handles.push(path),
            None => {
                known.paths.insert(path.path().clone(), vec![path]);
            }
        }
    }
}

/// Runs of rows: the row after the last one, and the cell; `None`: null.
type RowRuns = Vec<(usize, Option<MetaHeader>)>;

/// Joins columns with the timestamps of one table.
#[derive(Default)]
struct ColumnJoin {
    steps: SpanSteps,
    /// Numbers of the spans in use, each once.
    spans: Vec<u32>,
    /// For each run: the row after its last one, and an index into `spans`.
    runs: Vec<(usize, Option<usize>)>,
    headers: Vec<MetaHeader>,
    before: Option<JoinedSteps>,
}

/// Steps, and the runs that the timestamps make of them: neighbouring columns often have the same
/// borders.
struct JoinedSteps {
    starts: Vec<i64>,
    runs: Vec<(usize, Slot)>,
}

impl ColumnJoin {
    /// The runs of a column, with all objects pinned.
    ///
    /// # Errors
    /// The reason why the service must be asked.
    fn runs(
        &mut self,
        reading: &SpanReading<'_>,
        timestamps: &Timestamps,
        pins: &mut TablePins,
    ) -> Result<RowRuns, AskReason> {
        self.spans.clear();
        self.runs.clear();
        self.headers.clear();
        match timestamps.bounds() {
            None => self.runs.push((timestamps.len(), None)),
            Some((first, last)) => {
                if reading.spans_between(first, last) > timestamps.entries() {
                    self.look_up_each(reading, timestamps)?;
                } else {
                    self.join(reading, timestamps, (first, last))?;
                }
            }
        }
        reading.pin(&self.spans, pins, &mut self.headers)?;
        let mut runs: RowRuns = Vec::with_capacity(self.runs.len());
        for (end, span) in &self.runs {
            let cell = span.map(|span| self.headers[span]);
            match runs.last_mut() {
                Some((last, known)) if *known == cell => *last = *end,
                _ => runs.push((*end, cell)),
            }
        }
        Ok(runs)
    }

    /// Looks up each timestamp: there are fewer than spans.
    fn look_up_each(
        &mut self,
        reading: &SpanReading<'_>,
        timestamps: &Timestamps,
    ) -> Result<(), AskReason> {
        let mut places: HashMap<u32, usize> = HashMap::new();
        for (end, at) in timestamps.runs() {
            let span = match at {
                None => None,
                Some(at) => {
                    let number = reading.span_at(at.as_millis()).ok_or(AskReason::Uncovered)?;
                    let place = *places.entry(number).or_insert(self.spans.len());
                    if place == self.spans.len() {
                        self.spans.push(number);
                    }
                    Some(place)
                }
            };
            self.runs.push((end, span));
        }
        Ok(())
    }

    /// Joins the timestamps with all spans between the first and the last one.
    fn join(
        &mut self,
        reading: &SpanReading<'_>,
        timestamps: &Timestamps,
        (first, last): (i64, i64),
    ) -> Result<(), AskReason> {
        reading.steps(first, last, &mut self.steps);
        let joined = match self.before.take().filter(|one| one.starts == self.steps.starts) {
            Some(same) => same,
            None => {
                let slot = |step: usize| Slot::Version(step as u32);
                let runs = join_steps(&self.steps.starts, slot, timestamps);
                let runs = runs.iter().map(|run| (run.end, run.slot)).collect();
                JoinedSteps { starts: self.steps.starts.clone(), runs }
            }
        };
        let joined = self.before.insert(joined);
        // Index into `spans` of each step.
        let mut places: Vec<usize> = vec![usize::MAX; self.steps.starts.len()];
        for (end, slot) in &joined.runs {
            let span = match slot {
                Slot::Null => None,
                Slot::Version(step) => {
                    let step = *step as usize;
                    let span = self.steps.spans.get(step).copied().flatten();
                    let number = span.ok_or(AskReason::Uncovered)?;
                    if places[step] == usize::MAX {
                        places[step] = self.spans.len();
                        self.spans.push(number);
                    }
                    Some(places[step])
                }
                Slot::Absent | Slot::Unknown => return Err(AskReason::Uncovered),
            };
            self.runs.push((*end, span));
        }
        Ok(())
    }
}

/// The runs of a column in Arrow's arrays, of the type of `field`.
fn column_runs(field: &Field, runs: &RowRuns, rows: usize) -> Result<ColumnRuns, ClientError> {
    let array = run_array(field, runs, rows);
    let array = array.map_err(|error| ClientError::Answer { reason: error.to_string() })?;
    let mut columns = ColumnRuns::default();
    columns.extend(&*array)?;
    Ok(columns)
}

fn run_array(field: &Field, runs: &RowRuns, rows: usize) -> Result<ArrayRef, ArrowError> {
    let ends = Int32Array::from_iter_values(runs.iter().map(|(end, _)| *end as i32));
    let mut bytes = Vec::with_capacity(runs.len() * MetaHeader::BYTES);
    let headers = runs.iter().map(|(_, cell)| cell.unwrap_or(MetaHeader::NOTHING));
    headers.for_each(|header| bytes.extend_from_slice(&header.to_bytes()));
    let has_nulls = runs.iter().any(|(_, cell)| cell.is_none());
    let nulls = has_nulls.then(|| runs.iter().map(|(_, cell)| cell.is_some()).collect());
    let size = MetaHeader::BYTES as i32;
    let values =
        FixedSizeBinaryArray::try_new_with_len(size, Buffer::from_vec(bytes), nulls, runs.len())?;
    let data = ArrayData::builder(field.data_type().clone())
        .len(rows)
        .add_child_data(ends.into_data())
        .add_child_data(values.into_data())
        .build()?;
    Ok(Arc::new(RunArray::<Int32Type>::from(data)))
}
