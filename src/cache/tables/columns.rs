//! The columns of a request, and the known timelines of their versions.
//!
//! ```text
//!  request ─▶ columns: its own, of a configured table, or of the timeframe
//!                │ each: path, metadata, limits
//!                ▼
//!  lock ─▶ object index ┬─▶ timeline known at the timestamps, or over the range
//!  else ─▶ catalog ─────┘
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::future::try_join_all;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use tokio::time::Instant;

use crate::budget::ClientBudget;
use crate::cache::deadline::{LOOK_UP, PLANNING, by_deadline};
use crate::cache::error::{CacheError, MissingColumn};
use crate::cache::tables::key_look_ups::{KeyTerms, KeyedLookUps, KeyedTimelines};
use crate::cache::tables::known_columns::{
    ColumnTimelines, KnownColumn, QueryOfColumn, RangeTimeline,
};
use crate::cache::tables::lock_selection::LockTarget;
use crate::cache::tables::plan::{Plan, PlannedIntervals};
use crate::cache::tables::run_information::RunInformation;
use crate::cache::versions::catalog::{Catalog, KnownTimeline};
use crate::cache::versions::object_index::ObjectIndex;
use crate::cache::versions::query_times::QueryTimes;
use crate::cache::yielder::WorkClock;
use crate::clock::Clock;
use crate::interval::ValidityInterval;
use crate::object::{CreationLimits, ObjectPath, Query};
use crate::source::{Policies, WhenMissing};
use crate::table::{
    ColumnRequest, Columns, KeyError, KeyLookUp, KeyUse, LockEntry, Missing, Request, RequestError,
    TableRows, View,
};

/// Finds the columns of a request and their timelines.
#[derive(Debug)]
pub(crate) struct ColumnLookUp {
    pub(crate) clock: Clock,
    pub(crate) catalog: Arc<Catalog>,
    pub(crate) objects: Arc<ObjectIndex>,
    /// Limits on the versions that the service sees, for every request.
    pub(crate) limits: CreationLimits,
    pub(crate) policies: Policies,
    /// Named sets of columns that requests may refer to.
    pub(crate) tables: BTreeMap<String, Vec<ColumnRequest>>,
    /// Maximum number of distinct values of a key for which a column may have one look-up each.
    pub(crate) max_key_values: usize,
    /// Maximum number of queries of one table, of all columns together.
    pub(crate) max_queries: usize,
    /// The objects with the times of runs.
    pub(crate) runs: RunInformation,
}

impl ColumnLookUp {
    /// The columns that a request asks for; `registered` are those of its timeframe.
    ///
    /// # Errors
    /// [`CacheError::UnknownTable`].
    pub(crate) fn requested<'a>(
        &'a self,
        columns: &'a Columns,
        registered: Option<&'a [ColumnRequest]>,
    ) -> Result<&'a [ColumnRequest], CacheError> {
        match columns {
            Columns::Own(columns) => Ok(columns),
            Columns::Table(name) => match self.tables.get(name) {
                Some(columns) => Ok(columns),
                None => Err(CacheError::UnknownTable {
                    name: name.clone(),
                    known: self.tables.keys().cloned().collect(),
                }),
            },
            Columns::Registered => match registered {
                Some(columns) => Ok(columns),
                None => Err(RequestError::NoneOf { fields: "columns, table" }.into()),
            },
        }
    }

    /// # Errors
    /// [`CacheError::NoPath`] if values of a key are in no range of a column;
    /// [`CacheError::Missing`] with the columns that must not have gaps but do.
    pub(crate) fn check_missing(&self, plan: &Plan, request: &Request) -> Result<(), CacheError> {
        // A view without cells cannot show a null.
        let has_nulls = request.view != View::Chunks;
        let is_error = request.missing == Missing::Error || !has_nulls;
        if is_error && !plan.unmatched().is_empty() {
            return Err(CacheError::NoPath { columns: plan.unmatched().to_vec() });
        }
        let wrong = |column: &&MissingColumn| match self.policies.missing(&column.path) {
            Some(WhenMissing::Required) => true,
            Some(WhenMissing::Optional) => !has_nulls,
            None => is_error,
        };
        let columns: Vec<MissingColumn> = plan.missing().iter().filter(wrong).cloned().collect();
        if columns.is_empty() { Ok(()) } else { Err(CacheError::Missing { columns }) }
    }

    /// The known timeline of each column at the timestamps. Columns of a registered timeframe use
    /// the timelines known at its registration.
    ///
    /// # Errors
    /// [`CacheError`] if a timeline cannot be looked up.
    pub(crate) async fn known_at(
        &self,
        request: &Request,
        columns: &[ColumnRequest],
        rows: &TableRows,
        registered: Option<&Plan>,
        budget: &ClientBudget,
        deadline: Instant,
    ) -> Result<Vec<KnownColumn>, CacheError> {
        let limits = self.limits.narrowed_by(request.limits);
        let mut known: Vec<Option<ColumnTimelines>> = columns.iter().map(|_| None).collect();
        if let Some(lock) = &request.lock {
            return self.locked(lock, columns, rows, limits, budget, deadline).await;
        }
        if let Some(plan) = registered.filter(|_| request.limits == CreationLimits::default()) {
            let registered = plan.known_queries();
            for (known, column) in known.iter_mut().zip(columns) {
                *known = registered.get(&QueryOfColumn::new(column)).map(|known| (*known).clone());
            }
        }
        self.all_known(columns, known, limits, rows, budget, deadline).await
    }

    /// The known timeline of each column at the timestamps: the one in `known`, or else from the
    /// source.
    ///
    /// # Errors
    /// [`CacheError`] if a timeline cannot be looked up.
    pub(crate) async fn all_known(
        &self,
        columns: &[ColumnRequest],
        known: Vec<Option<ColumnTimelines>>,
        limits: CreationLimits,
        rows: &TableRows,
        budget: &ClientBudget,
        deadline: Instant,
    ) -> Result<Vec<KnownColumn>, CacheError> {
        let terms = KeyTerms { max_values: self.max_key_values, query_per_value: false, budget };
        let keyed = keyed_look_ups(columns, &known, rows, terms, deadline).await?;
        let mut asked = open_queries(columns, &known, &keyed, rows, limits);
        self.check_queries(asked.len())?;
        self.ask_all(&mut asked, rows.timestamps.entries(), deadline).await?;
        let answers: Vec<Option<KnownTimeline>> =
            asked.into_iter().map(|asked| asked.known).collect();
        let mut answers = answers.into_iter();
        let all =
            known.into_iter().zip(keyed).zip(columns).filter_map(|((known, keyed), column)| {
                let timelines = match (known, keyed) {
                    (Some(known), _) => known,
                    (None, Some(look_ups)) => {
                        let known =
                            answers.by_ref().take(look_ups.queries.len()).flatten().collect();
                        ColumnTimelines::Keyed(Arc::new(KeyedTimelines { look_ups, known }))
                    }
                    (None, None) => ColumnTimelines::Plain(answers.next()??),
                };
                Some(KnownColumn { request: column.clone(), timelines })
            });
        Ok(all.collect())
    }

    /// Looks up the timelines of all queries.
    async fn ask_all(
        &self,
        asked: &mut [KnownQuery<'_>],
        entries: usize,
        deadline: Instant,
    ) -> Result<(), CacheError> {
        let now = self.clock.now();
        let (mut turns, cost) = (WorkClock::new(), 4 + entries / 16);
        let look = async {
            for KnownQuery { query, times, known } in asked.iter_mut() {
                *known = self.catalog.known_now(query, times, now);
                let is_one = matches!(times, QueryTimes::All(times) if times.len() == 1);
                turns.take(if is_one { 4 } else { cost }).await;
            }
            Ok(())
        };
        by_deadline(PLANNING, deadline, look).await?;
        let open = asked.iter_mut().filter(|asked| asked.known.is_none());
        let look_ups = open.map(async |KnownQuery { query, times, known }| {
            *known = Some(self.catalog.known_at(query, times).await?);
            Ok::<_, CacheError>(())
        });
        let look_ups: Vec<_> = look_ups.collect();
        if look_ups.is_empty() {
            return Ok(());
        }
        let asked = stream::iter(look_ups).buffer_unordered(PARALLEL_QUERIES);
        by_deadline(LOOK_UP, deadline, asked.try_collect::<()>()).await
    }

    /// # Errors
    /// [`CacheError::TooManyQueries`].
    fn check_queries(&self, queries: usize) -> Result<(), CacheError> {
        let limit = self.max_queries;
        if queries > limit { Err(CacheError::TooManyQueries { queries, limit }) } else { Ok(()) }
    }

    /// The timeline of each column with only the versions of a lock.
    async fn locked(
        &self,
        lock: &[LockEntry],
        columns: &[ColumnRequest],
        rows: &TableRows,
        limits: CreationLimits,
        budget: &ClientBudget,
        deadline: Instant,
    ) -> Result<Vec<KnownColumn>, CacheError> {
        let terms = KeyTerms { max_values: self.max_key_values, query_per_value: true, budget };
        let keyed = keyed_look_ups(columns, &[], rows, terms, deadline).await?;
        let targets = columns.iter().zip(&keyed).flat_map(|(column, keyed)| {
            let name = &*column.name;
            let plain = column.plain_path();
            let plain = plain.map(|path| LockTarget { column: name, path, key: None });
            let queries = keyed.iter().flat_map(|keyed| &keyed.queries);
            plain.into_iter().chain(queries.map(move |query| LockTarget {
                column: name,
                path: &query.path,
                key: query.value.as_deref(),
            }))
        });
        let targets: Vec<LockTarget<'_>> = targets.collect();
        self.check_queries(targets.len())?;
        let known = self.objects.locked(lock, &targets, limits, budget, deadline).await?;
        let mut known = known.into_iter();
        let all = columns.iter().zip(keyed).filter_map(|(column, keyed)| {
            let timelines = match keyed {
                Some(look_ups) => {
                    let known = known.by_ref().take(look_ups.queries.len()).collect();
                    ColumnTimelines::Keyed(Arc::new(KeyedTimelines { look_ups, known }))
                }
                None => ColumnTimelines::Plain(known.next()?),
            };
            Some(KnownColumn { request: column.clone(), timelines })
        });
        Ok(all.collect())
    }

    /// The known timeline of each column over `range`.
    ///
    /// # Errors
    /// [`CacheError`].
    pub(crate) async fn known_over(
        &self,
        request: &Request,
        columns: &[ColumnRequest],
        range: ValidityInterval,
        budget: &ClientBudget,
        deadline: Instant,
    ) -> Result<Vec<RangeTimeline>, CacheError> {
        let limits = self.limits.narrowed_by(request.limits);
        let mut targets = Vec::with_capacity(columns.len());
        for column in columns {
            let path = column.plain_path().ok_or_else(|| no_rows(column, "the view intervals"))?;
            targets.push(LockTarget { column: &column.name, path, key: None });
        }
        let known = match &request.lock {
            Some(lock) => self.objects.locked(lock, &targets, limits, budget, deadline).await?,
            None => {
                let known = targets.iter().zip(columns).map(async |(target, column)| {
                    let query = plain_query(target.path, column, limits);
                    self.catalog.known_over(&query, range).await
                });
                by_deadline(LOOK_UP, deadline, try_join_all(known)).await?
            }
        };
        let known = columns.iter().zip(targets).zip(known).map(|((column, target), known)| {
            RangeTimeline { name: Arc::clone(&column.name), path: target.path.clone(), known }
        });
        Ok(known.collect())
    }

    /// The known timelines of columns over a range, with the service's own limits. A column whose
    /// path depends on a key is looked up at each of its paths.
    ///
    /// # Errors
    /// [`CacheError`] if a timeline cannot be looked up, or a column has no path of its own.
    pub(crate) async fn spans(
        &self,
        columns: &[ColumnRequest],
        range: ValidityInterval,
        budget: &ClientBudget,
    ) -> Result<PlannedIntervals, CacheError> {
        let mut known = Vec::with_capacity(columns.len());
        for column in columns {
            let by_time = |key: &KeyUse| key.look_up == KeyLookUp::AtTimestamp;
            if !column.key.as_ref().is_none_or(by_time) {
                return Err(no_rows(column, "a prefetch"));
            }
            for path in column.path.paths() {
                let query = plain_query(path, column, self.limits);
                let (name, path) = (Arc::clone(&column.name), path.clone());
                let known_path = self.catalog.known_over(&query, range).await?;
                known.push(RangeTimeline { name, path, known: known_path });
            }
        }
        PlannedIntervals::new(range, known, budget).await
    }
}

/// The look-ups of each column that depends on a key and is not `known`; `None` for the others.
async fn keyed_look_ups(
    columns: &[ColumnRequest],
    known: &[Option<ColumnTimelines>],
    rows: &TableRows,
    terms: KeyTerms<'_>,
    deadline: Instant,
) -> Result<Vec<Option<KeyedLookUps>>, CacheError> {
    let mut keyed = Vec::with_capacity(columns.len());
    let prepare = async {
        for (number, column) in columns.iter().enumerate() {
            let is_known = known.get(number).is_some_and(Option::is_some);
            keyed.push(match column.key.as_ref().filter(|_| !is_known) {
                Some(used) => Some(KeyedLookUps::new(column, used, rows, terms).await?),
                None => None,
            });
        }
        Ok(())
    };
    by_deadline(PLANNING, deadline, prepare).await?;
    Ok(keyed)
}

/// The queries of all columns that are not `known`, in the order of the columns.
fn open_queries<'a>(
    columns: &[ColumnRequest],
    known: &[Option<ColumnTimelines>],
    keyed: &'a [Option<KeyedLookUps>],
    rows: &'a TableRows,
    limits: CreationLimits,
) -> Vec<KnownQuery<'a>> {
    let mut asked = Vec::with_capacity(columns.len());
    for ((known, keyed), column) in known.iter().zip(keyed).zip(columns) {
        match (known, keyed, column.plain_path()) {
            (None, Some(look_ups), _) => {
                let queries = look_ups.queries.iter().enumerate();
                asked.extend(queries.map(|(number, query)| KnownQuery {
                    query: query.query(limits),
                    times: look_ups.times_of(number),
                    known: None,
                }));
            }
            (None, None, Some(path)) => asked.push(KnownQuery {
                query: plain_query(path, column, limits),
                times: QueryTimes::All(&rows.timestamps),
                known: None,
            }),
            _ => {}
        }
    }
    asked
}

fn no_rows(column: &ColumnRequest, what: &'static str) -> CacheError {
    let key = column.key.as_ref().map(|key| key.key.to_string()).unwrap_or_default();
    KeyError::NoRows { column: column.name.to_string(), key, what }.into()
}

fn plain_query(path: &ObjectPath, column: &ColumnRequest, limits: CreationLimits) -> Query {
    Query { path: path.clone(), metadata: column.metadata.clone(), limits }
}

/// Maximum number of parallel queries to the source.
const PARALLEL_QUERIES: usize = 10_000;

/// A query of a table, and its known timeline.
struct KnownQuery<'a> {
    query: Query,
    times: QueryTimes<'a>,
    known: Option<KnownTimeline>,
}
