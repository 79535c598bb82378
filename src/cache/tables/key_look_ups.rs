//! The look-ups of a column that depends on a key: the rows that each serves, and the queries to
//! the source.
//!
//! ```text
//!  key × paths by range, metadata, uniform ─▶ RowChoices: rows ─▶ look-up
//!                                                look-up ─▶ query (path, metadata), and its time
//!                                                             │ each query once
//!                                                             ▼
//!                                                          timeline
//! ```

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, OnceLock};

use arrow_buffer::NullBuffer;

use crate::budget::{Charge, ClientBudget};
use crate::cache::error::CacheError;
use crate::cache::versions::catalog::KnownTimeline;
use crate::cache::versions::query_times::QueryTimes;
use crate::cache::yielder::WorkClock;
use crate::index::{ChoiceSource, KeyColumn, KeyValue, RowChoices, RowRanges, Slot, Timestamps};
use crate::interval::Timestamp;
use crate::object::{CreationLimits, ObjectPath, Query};
use crate::source::in_place;
use crate::table::{ColumnPath, ColumnRequest, KeyError, KeyLookUp, KeyUse, TableRows};

/// Memory per query without its path and metadata.
const QUERY_BYTES: usize = 240;
/// Memory per look-up.
const LOOK_UP_BYTES: usize = size_of::<KeyedLookUp>() + 16;

/// Maximum number of distinct values of a key that are examined value by value where they need not
/// be; the time for more of them follows the rows.
const FEW_VALUES: usize = 1 << 12;

/// From this number of runs of a key on, the pass over them does not block other tasks of the thread.
const MANY_RUNS: usize = 1 << 16;

/// The look-ups of one column.
#[derive(Debug)]
pub(crate) struct KeyedLookUps {
    /// The look-up that serves each row.
    pub(crate) rows: RowChoices,
    /// By number.
    pub(crate) look_ups: Vec<KeyedLookUp>,
    pub(crate) queries: Vec<KeyedQuery>,
    /// The time of each row for look-ups without a time of their own: the timestamps, or the key.
    pub(crate) times: Arc<Timestamps>,
    pub(crate) key: KeyColumn,
    /// The rows of each query, computed on demand.
    ranges: OnceLock<RowRanges>,
    /// Budget for the look-ups.
    _charge: Charge,
}

/// One look-up of a column.
#[derive(Debug, Clone, Copy)]
pub(crate) struct KeyedLookUp {
    /// The query; `None` if there is no path for this value of the key.
    pub(crate) query: Option<u32>,
    /// The time for all its rows; `None` if each row has its own.
    pub(crate) at: Option<Timestamp>,
}

/// A query to the source.
#[derive(Debug)]
pub(crate) struct KeyedQuery {
    pub(crate) path: ObjectPath,
    pub(crate) metadata: BTreeMap<String, String>,
    /// The value of the key, if the query is only for that value.
    pub(crate) value: Option<String>,
    /// The times of its look-ups, ascending; `None`: the times of its rows.
    times: Option<Timestamps>,
}

/// The look-ups of a column, with the known timeline of each query.
#[derive(Debug)]
pub(crate) struct KeyedTimelines {
    pub(crate) look_ups: KeyedLookUps,
    /// By query.
    pub(crate) known: Vec<KnownTimeline>,
}

/// The rules by which look-ups are made from the values of a key.
#[derive(Debug, Clone, Copy)]
pub(crate) struct KeyTerms<'a> {
    /// Maximum number of distinct values for which a column may have one look-up each.
    pub(crate) max_values: usize,
    /// Each value has a query of its own even if other values have equal ones: with a lock, each
    /// value selects its own versions.
    pub(crate) query_per_value: bool,
    pub(crate) budget: &'a ClientBudget,
}

impl KeyedTimelines {
    /// The source of the cells of a look-up.
    pub(crate) fn source_of(&self, look_up: &KeyedLookUp) -> ChoiceSource<'_> {
        let timeline = look_up.query.map(|query| &self.known[query as usize].timeline);
        match (timeline, look_up.at) {
            (Some(timeline), Some(at)) => ChoiceSource::Fixed(timeline.at(at).state.into()),
            (Some(timeline), None) => ChoiceSource::Timeline(timeline),
            (None, _) => ChoiceSource::Fixed(Slot::Absent),
        }
    }
}

impl KeyedQuery {
    pub(crate) fn query(&self, limits: CreationLimits) -> Query {
        Query { path: self.path.clone(), metadata: self.metadata.clone(), limits }
    }
}

impl KeyedLookUps {
    /// The look-ups of `column`, which depends on the key `used`. Yields if it takes long.
    ///
    /// # Errors
    /// [`KeyError`], [`CacheError::Budget`].
    pub(crate) async fn new(
        column: &ColumnRequest,
        used: &KeyUse,
        rows: &TableRows,
        terms: KeyTerms<'_>,
    ) -> Result<Self, CacheError> {
        let key = rows.keys.get(&used.key).ok_or_else(|| missing(column, used))?.clone();
        let at_key = used.look_up == KeyLookUp::AtKey;
        let with_metadata = matches!(used.look_up, KeyLookUp::WithMetadata(_));
        let bytes = key.run_count() * size_of::<u64>();
        let charge = terms.budget.charge(bytes as u64, "the look-ups of a key")?;
        let needs_values = used.uniform
            || used.look_up != KeyLookUp::AtTimestamp
            || matches!(column.path, ColumnPath::ByRange(_));
        if needs_values && key.run_count() >= MANY_RUNS {
            in_place(|| key.ids());
        }
        // A look-up at the key has one time per value. It is made once per value, as a uniform one,
        // unless there are too many values.
        let is_few = || key.ids().len() <= terms.max_values.min(FEW_VALUES);
        let by_value = with_metadata || (used.uniform && !at_key) || (at_key && is_few());
        let times = match at_key && !by_value {
            true => Arc::new(as_timestamps(&key)),
            false => Arc::clone(&rows.timestamps),
        };
        let builder =
            LookUpBuilder { column, used, rows, terms, key: &key, charge, turns: WorkClock::new() };
        let (choices, look_ups, queries, charge) = match by_value {
            true => builder.by_value().await?,
            false => builder.by_path().await?,
        };
        let ranges = OnceLock::new();
        Ok(Self { rows: choices, look_ups, queries, times, key, ranges, _charge: charge })
    }

    /// The times at which a query is looked up.
    pub(crate) fn times_of(&self, query: usize) -> QueryTimes<'_> {
        if let Some(times) = &self.queries[query].times {
            return QueryTimes::All(times);
        }
        let only = self.rows.only().and_then(|choice| self.look_ups.get(choice as usize));
        if only.is_some_and(|look_up| look_up.query == Some(query as u32)) {
            return QueryTimes::All(&self.times);
        }
        let ranges = Box::new(move || {
            let group = |look_up: u32| {
                let query = self.look_ups.get(look_up as usize)?.query?;
                Some(query as usize)
            };
            let all = self.ranges.get_or_init(|| self.rows.ranges(self.queries.len(), group));
            all.of_group(query)
        });
        QueryTimes::Rows(&self.times, ranges)
    }
}

fn missing(column: &ColumnRequest, used: &KeyUse) -> CacheError {
    let (column, key) = (column.name.to_string(), used.key.to_string());
    KeyError::Missing { column, key, known: Vec::new() }.into()
}

/// The path of a value; `starts` and `places` as [`ColumnPath::steps`] gives them.
fn place_of(starts: &[i64], places: &[Option<u32>], value: i64) -> Option<u32> {
    places[starts.partition_point(|start| *start <= value) - 1]
}

/// The values of a key as timestamps; texts were checked before, and are all null here.
fn as_timestamps(key: &KeyColumn) -> Timestamps {
    key.to_timestamps().unwrap_or_else(|| {
        let nulls = NullBuffer::new_null(key.len());
        Timestamps::new(vec![0; key.len()], Some(nulls))
    })
}

/// One look-up per distinct value of a key, under construction.
struct ValueLookUps {
    /// By value.
    look_ups: Vec<KeyedLookUp>,
    queries: Vec<KeyedQuery>,
    /// By query, the times of its look-ups (ms).
    times: Vec<Vec<i64>>,
    /// By path, its newest query.
    by_path: HashMap<u32, u32>,
}

impl ValueLookUps {
    fn new(values: usize) -> Self {
        let look_ups = Vec::with_capacity(values);
        Self { look_ups, queries: Vec::new(), times: Vec::new(), by_path: HashMap::new() }
    }

    fn add_query(&mut self, path: u32, query: KeyedQuery) -> u32 {
        let number = self.queries.len() as u32;
        self.queries.push(query);
        self.times.push(Vec::new());
        self.by_path.insert(path, number);
        number
    }

    fn add(&mut self, query: Option<u32>, at: Option<Timestamp>) {
        if let Some(query) = query {
            self.times[query as usize].extend(at.map(Timestamp::as_millis));
        }
        self.look_ups.push(KeyedLookUp { query, at });
    }

    /// Gives each query the times of its look-ups.
    fn set_times(&mut self) {
        for (query, mut times) in self.queries.iter_mut().zip(std::mem::take(&mut self.times)) {
            times.sort_unstable();
            times.dedup();
            query.times = Some(Timestamps::new(times, None));
        }
    }
}

type NewLookUps = (RowChoices, Vec<KeyedLookUp>, Vec<KeyedQuery>, Charge);

/// Look-ups under construction.
struct LookUpBuilder<'a> {
    column: &'a ColumnRequest,
    used: &'a KeyUse,
    rows: &'a TableRows,
    terms: KeyTerms<'a>,
    key: &'a KeyColumn,
    charge: Charge,
    turns: WorkClock,
}

impl LookUpBuilder<'_> {
    /// One look-up per path, at the times of its rows.
    async fn by_path(mut self) -> Result<NewLookUps, CacheError> {
        let (starts, places) = self.column.path.steps();
        let is_range = matches!(self.column.path, ColumnPath::ByRange(_));
        let choices = match is_range {
            true if self.key.ids().len() <= FEW_VALUES => {
                let of_value = |id| match self.key.distinct(id).0 {
                    KeyValue::Integer(value) => place_of(&starts, &places, value),
                    KeyValue::Text(_) => None,
                };
                let ids = 0..self.key.ids().len();
                let choices: Vec<u32> =
                    ids.map(|id| of_value(id).unwrap_or(RowChoices::NONE)).collect();
                RowChoices::of_values(self.key, &choices)
            }
            true => RowChoices::by_steps(&as_timestamps(self.key), &starts, |step| places[step]),
            false => RowChoices::where_valid(self.key),
        };
        self.turns.take(self.key.run_count() + starts.len()).await;
        let choices = choices.without_null_timestamps(&self.rows.timestamps);
        let mut queries = Vec::new();
        for path in self.column.path.paths() {
            queries.push(self.query(path, None)?);
        }
        let look_ups = (0..queries.len() as u32).map(|n| KeyedLookUp { query: Some(n), at: None });
        Ok((choices, look_ups.collect(), queries, self.charge))
    }

    /// One look-up per distinct value of the key.
    async fn by_value(mut self) -> Result<NewLookUps, CacheError> {
        let ids = self.key.ids();
        self.turns.take(self.key.run_count()).await;
        let (distinct, limit) = (ids.len(), self.terms.max_values);
        if distinct > limit {
            let (column, key) = (self.column.name.to_string(), self.used.key.to_string());
            return Err(KeyError::TooManyValues { column, key, distinct, limit }.into());
        }
        self.charge.grow((distinct * LOOK_UP_BYTES) as u64)?;
        let timestamps = &self.rows.timestamps;
        let choices = RowChoices::by_value(self.key).without_null_timestamps(timestamps);
        let first_rows = timestamps.has_nulls().then(|| choices.first_rows(distinct));
        let (starts, places) = self.column.path.steps();
        let paths = self.column.path.paths();
        let mut made = ValueLookUps::new(distinct);
        for id in 0..distinct {
            let (value, first_row) = self.key.distinct(id);
            let place = match value {
                KeyValue::Integer(value) => place_of(&starts, &places, value),
                KeyValue::Text(_) => places[0],
            };
            let first_row = match &first_rows {
                Some(first_rows) => first_rows[id],
                None => Some(first_row),
            };
            self.turns.take(4).await;
            let (Some(place), Some(first_row)) = (place, first_row) else {
                made.add(None, None);
                continue;
            };
            let query = self.query_of_value(value, place, paths[place as usize], &mut made)?;
            made.add(Some(query), self.time_of_value(value, first_row));
        }
        if self.used.uniform || self.used.look_up == KeyLookUp::AtKey {
            made.set_times();
        }
        Ok((choices, made.look_ups, made.queries, self.charge))
    }

    /// The query of a value: its own, or one that values with the same path share.
    fn query_of_value(
        &mut self,
        value: KeyValue<'_>,
        place: u32,
        path: &ObjectPath,
        made: &mut ValueLookUps,
    ) -> Result<u32, CacheError> {
        let shared = match (&self.used.look_up, self.terms.query_per_value) {
            (KeyLookUp::WithMetadata(_), _) | (_, true) => None,
            _ => made.by_path.get(&place).copied(),
        };
        match shared {
            Some(query) => Ok(query),
            None => Ok(made.add_query(place, self.query(path, Some(value))?)),
        }
    }

    /// The time at which a value is looked up; `None` if each row has its own.
    fn time_of_value(&self, value: KeyValue<'_>, first_row: usize) -> Option<Timestamp> {
        match (&self.used.look_up, value) {
            (KeyLookUp::AtKey, KeyValue::Integer(value)) => Some(Timestamp::from_millis(value)),
            _ if self.used.uniform => self.rows.timestamps.value(first_row),
            _ => None,
        }
    }

    fn query(
        &mut self,
        path: &ObjectPath,
        value: Option<KeyValue<'_>>,
    ) -> Result<KeyedQuery, CacheError> {
        let mut metadata = self.column.metadata.clone();
        let value = value.map(|value| value.to_string());
        if let (KeyLookUp::WithMetadata(name), Some(value)) = (&self.used.look_up, &value) {
            metadata.insert(name.to_string(), value.clone());
        }
        let texts: usize = metadata.iter().map(|(key, value)| key.len() + value.len() + 96).sum();
        let bytes = QUERY_BYTES + path.as_str().len() + 2 * texts;
        self.charge.grow(bytes as u64)?;
        Ok(KeyedQuery { path: path.clone(), metadata, value, times: None })
    }
}
