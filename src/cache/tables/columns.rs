//! The columns of a request, and what is known of the versions of each.
//!
//! ```text
//!  request ─▶ columns: its own, of a configured table, or of the timeframe
//!                │ each: path, metadata, limits
//!                ▼
//!  lock ─▶ object index ┬─▶ timeline that is known at the timestamps, or over the range
//!  else ─▶ catalog ─────┘
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::future::try_join_all;
use tokio::time::Instant;

use crate::budget::ClientBudget;
use crate::cache::deadline::{LOOK_UP, PLANNING, by_deadline};
use crate::cache::error::{CacheError, MissingColumn};
use crate::cache::tables::plan::{Plan, PlannedIntervals};
use crate::cache::versions::catalog::{Catalog, KnownTimeline};
use crate::cache::versions::object_index::ObjectIndex;
use crate::cache::yielder::Turns;
use crate::clock::Clock;
use crate::index::Timestamps;
use crate::interval::ValidityInterval;
use crate::object::CreationLimits;
use crate::source::{Policies, WhenMissing};
use crate::table::{ColumnRequest, Columns, Missing, Request, RequestError};

/// Finds the columns of a request, and their versions.
#[derive(Debug)]
pub(crate) struct ColumnLookUp {
    pub(crate) clock: Clock,
    pub(crate) catalog: Arc<Catalog>,
    pub(crate) objects: Arc<ObjectIndex>,
    /// What the service sees of the versions, for every request.
    pub(crate) limits: CreationLimits,
    pub(crate) policies: Policies,
    /// Sets of columns that requests may name.
    pub(crate) tables: BTreeMap<String, Vec<ColumnRequest>>,
}

impl ColumnLookUp {
    /// The columns that a message asks for; `registered` is what a timeframe has.
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
    /// [`CacheError::Missing`] with the columns that must not have gaps, and have some.
    pub(crate) fn check_missing(&self, plan: &Plan, request: &Request) -> Result<(), CacheError> {
        let wrong = |column: &&MissingColumn| match self.policies.missing(&column.path) {
            Some(WhenMissing::Required) => true,
            Some(WhenMissing::Optional) => false,
            None => request.missing == Missing::Error,
        };
        let columns: Vec<MissingColumn> = plan.missing().iter().filter(wrong).cloned().collect();
        if columns.is_empty() { Ok(()) } else { Err(CacheError::Missing { columns }) }
    }

    /// What is known of each column at the timestamps; of those that a timeframe was registered
    /// with, what was known then.
    pub(crate) async fn known_at(
        &self,
        request: &Request,
        columns: &[ColumnRequest],
        timestamps: &Timestamps,
        registered: Option<&Plan>,
        budget: &ClientBudget,
        deadline: Instant,
    ) -> Result<Vec<(ColumnRequest, KnownTimeline)>, CacheError> {
        let limits = self.limits.narrowed_by(request.limits);
        if let Some(lock) = &request.lock {
            let known = self.objects.locked(lock, columns, limits, budget, deadline).await?;
            return Ok(columns.iter().cloned().zip(known).collect());
        }
        let registered = registered
            .filter(|_| request.limits == CreationLimits::default())
            .map(Plan::known_queries)
            .unwrap_or_default();
        let known = |column: &ColumnRequest| {
            registered.get(&(&column.path, &column.metadata)).map(|known| (*known).clone())
        };
        let known = columns.iter().map(known).collect();
        self.all_known(columns, known, limits, timestamps, deadline).await
    }

    /// What is known of each column at the timestamps: as given, else the source is asked.
    pub(crate) async fn all_known(
        &self,
        columns: &[ColumnRequest],
        mut known: Vec<Option<KnownTimeline>>,
        limits: CreationLimits,
        timestamps: &Timestamps,
        deadline: Instant,
    ) -> Result<Vec<(ColumnRequest, KnownTimeline)>, CacheError> {
        let now = self.clock.now();
        let (mut turns, cost) = (Turns::new(), 4 + timestamps.entries() / 16);
        let look = async {
            for (known, column) in known.iter_mut().zip(columns) {
                if known.is_none() {
                    let query = column.query(limits);
                    *known = self.catalog.known_now(&query, timestamps, now);
                    turns.take(cost).await;
                }
            }
            Ok(())
        };
        by_deadline(PLANNING, deadline, look).await?;
        if known.iter().any(Option::is_none) {
            let open = known.iter_mut().zip(columns).filter(|(known, _)| known.is_none());
            let asked = open.map(async |(known, column)| {
                let query = column.query(limits);
                *known = Some(self.catalog.known_at(&query, timestamps).await?);
                Ok::<_, CacheError>(())
            });
            by_deadline(LOOK_UP, deadline, try_join_all(asked)).await?;
        }
        let known = columns.iter().zip(known);
        Ok(known.filter_map(|(column, known)| Some((column.clone(), known?))).collect())
    }

    /// What is known of each column over `range`.
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
    ) -> Result<Vec<(ColumnRequest, KnownTimeline)>, CacheError> {
        let limits = self.limits.narrowed_by(request.limits);
        if let Some(lock) = &request.lock {
            let known = self.objects.locked(lock, columns, limits, budget, deadline).await?;
            return Ok(columns.iter().cloned().zip(known).collect());
        }
        let known = columns.iter().map(async |column| {
            let known = self.catalog.known_over(&column.query(limits), range).await?;
            Ok::<_, CacheError>((column.clone(), known))
        });
        by_deadline(LOOK_UP, deadline, try_join_all(known)).await
    }

    /// What is known of columns over a range, for the service's own limits.
    pub(crate) async fn spans(
        &self,
        columns: &[ColumnRequest],
        range: ValidityInterval,
        budget: &ClientBudget,
    ) -> Result<PlannedIntervals, CacheError> {
        let mut known = Vec::with_capacity(columns.len());
        for column in columns {
            let query = column.query(self.limits);
            known.push((column.clone(), self.catalog.known_over(&query, range).await?));
        }
        PlannedIntervals::new(range, known, budget).await
    }
}
