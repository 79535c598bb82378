//! Answers a request: decides the versions of its rows, pins their objects, and opens the lease.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::time::Instant;
use tracing::Instrument as _;

use super::answer::{Answer, Described, TableObjects};
use super::handle::Cache;
use crate::budget::Charge;
use crate::cache::deadline::{PLANNING, by_deadline};
use crate::cache::error::CacheError;
use crate::cache::holders::caller::Caller;
use crate::cache::holders::gate::Gate;
use crate::cache::holders::lease::LeaseId;
use crate::cache::holders::lease_terms::{
    HolderName, LeaseHolder, LeaseOwner, LeaseTerms, charge_lease,
};
use crate::cache::holders::origin::Origin;
use crate::cache::holders::quota::RequestPermit;
use crate::cache::holders::timeframe::{Registration, Timeframe};
use crate::cache::holders::timeframe_load::assembled;
use crate::cache::memory::object::PinSet;
use crate::cache::memory::pin_request::PinRequest;
use crate::cache::tables::audit_log::{Requester, record};
use crate::cache::tables::column_sets::{
    ColumnSet, Instance, SchemaKey, StreamSchema, TableSchema,
};
use crate::cache::tables::plan::{Assembled, Plan, PlannedIntervals};
use crate::cache::versions::linked_timeline::VersionSet;
use crate::interval::ValidityInterval;
use crate::object::Query;
use crate::shm::Pool;
use crate::table::{
    ColumnRequest, Columns, Content, Request, RequestError, TableBody, TableMarks, TableRows,
    TimeframeMark, View, When, key_names,
};

/// The rows of a requested table.
enum RowSource {
    Timestamps(TableRows),
    Timeframe(Arc<Timeframe>),
    Range(ValidityInterval),
    /// Of a run, whose time is not looked up yet.
    Run,
}

impl RowSource {
    fn timeframe(&self) -> Option<TimeframeMark> {
        match self {
            Self::Timeframe(timeframe) => Some(timeframe.mark()),
            Self::Timestamps(_) | Self::Range(_) | Self::Run => None,
        }
    }

    fn rows(&self) -> Option<&TableRows> {
        match self {
            Self::Timestamps(rows) => Some(rows),
            Self::Timeframe(timeframe) => Some(timeframe.registration.plan.table_rows()),
            Self::Range(_) | Self::Run => None,
        }
    }

    fn has_nulls(&self) -> bool {
        self.rows().is_some_and(|rows| rows.timestamps.has_nulls())
    }

    /// The keys with null values.
    fn null_keys(&self) -> Vec<Arc<str>> {
        let keys = self.rows().into_iter().flat_map(|rows| rows.keys.iter());
        keys.filter(|(_, key)| key.has_nulls()).map(|(name, _)| Arc::clone(name)).collect()
    }

    /// Checks that the keys that `columns` depend on are given.
    ///
    /// # Errors
    /// [`KeyError`].
    fn check_keys(&self, columns: &[ColumnRequest]) -> Result<(), CacheError> {
        match self {
            Self::Timestamps(rows) => rows.keys.check(columns, rows.timestamps.len())?,
            Self::Timeframe(timeframe) => {
                timeframe.registration.plan.table_rows().keys.check_columns(columns)?;
            }
            // The columns of a range are checked when their timelines are looked up.
            Self::Range(_) | Self::Run => {}
        }
        Ok(())
    }
}

/// A pinned table that has no lease yet.
struct PinnedTable {
    body: TableBody,
    versions: Arc<VersionSet>,
    pins: Arc<PinSet>,
    /// The timeframe's own table.
    kept: Option<Arc<Assembled>>,
    /// Budget for the table's timestamps and runs.
    charges: Vec<Arc<Charge>>,
}

/// A request with its caller and deadline.
#[derive(Clone, Copy)]
struct TableWork<'a> {
    request: &'a Request,
    caller: &'a Caller,
    holder: Option<&'a LeaseHolder>,
    deadline: Instant,
}

impl PinnedTable {
    fn rows_of(plan: &Plan, assembled: &Assembled) -> Self {
        let (columns, timestamps) = (Arc::clone(&assembled.columns), Arc::clone(plan.timestamps()));
        let (versions, pins) = (Arc::clone(plan.versions()), Arc::clone(&assembled.pins));
        let charges = vec![Arc::clone(&assembled.charge)];
        Self { body: TableBody::Rows { columns, timestamps }, versions, pins, kept: None, charges }
    }

    fn kept(plan: &Plan, assembled: Arc<Assembled>) -> Self {
        Self { kept: Some(Arc::clone(&assembled)), ..Self::rows_of(plan, &assembled) }
    }

    fn rows(&self) -> u64 {
        match &self.body {
            TableBody::Rows { timestamps, .. } => timestamps.len() as u64,
            TableBody::Intervals(columns) => columns.iter().map(|one| one.rows.len() as u64).sum(),
        }
    }
}

/// # Errors
/// [`RequestError::Field`] if the view does not allow these columns.
fn check_columns(request: &Request, columns: &[ColumnRequest]) -> Result<(), RequestError> {
    if request.view == View::Chunks && columns.len() != 1 {
        let reason = "chunks needs exactly one column".to_owned();
        return Err(RequestError::Field { field: "view", reason });
    }
    Ok(())
}

/// When the caller, or the request, stops waiting.
fn deadline_of(request: &Request, caller: &Caller) -> Instant {
    let wait = caller.patience.map_or(request.wait, |patience| patience.min(request.wait));
    Instant::now() + wait.min(Duration::from_secs(86_400))
}

/// The times of a run were not looked up: an internal error.
fn no_times() -> CacheError {
    CacheError::Lost { what: "the look-up of the times of a run".to_owned() }
}

impl Cache {
    fn subject(&self, when: &When) -> Result<RowSource, CacheError> {
        Ok(match when {
            When::Timeframe(id) => RowSource::Timeframe(self.0.timeframes.get(*id)?),
            When::Timestamps(rows) => RowSource::Timestamps(rows.clone()),
            When::Range(range) => RowSource::Range(*range),
            When::Run(_) => RowSource::Run,
        })
    }

    /// Replaces a range that names a run by the times of the run.
    async fn with_times(
        &self,
        subject: RowSource,
        when: &When,
        request: &Request,
        deadline: Instant,
    ) -> Result<RowSource, CacheError> {
        let When::Run(run) = when else { return Ok(subject) };
        let columns = &self.0.columns;
        let when = columns.times_of_run(*run, request.view, request.limits, deadline).await?;
        self.subject(&when)
    }

    /// Names of the keys that the columns of a request depend on.
    ///
    /// # Errors
    /// [`CacheError::UnknownTable`].
    #[doc(hidden)]
    pub fn key_names(&self, columns: &Columns) -> Result<Vec<Arc<str>>, CacheError> {
        Ok(key_names(self.0.columns.requested(columns, None)?))
    }

    /// The schema of the table that `request` asks for, and the number of its rows where that is
    /// known without a look-up. Loads nothing and asks no source.
    ///
    /// # Errors
    /// [`CacheError::UnknownTimeframe`], [`CacheError::UnknownTable`], and [`CacheError::Request`] for
    /// columns and keys that do not go together.
    pub fn describe(&self, request: &Request) -> Result<Described, CacheError> {
        let subject = self.subject(&request.when)?;
        let (registered, rows) = match &subject {
            RowSource::Timestamps(rows) => (None, Some(rows.timestamps.len() as u64)),
            RowSource::Timeframe(timeframe) => (
                Some(&timeframe.registration.columns[..]),
                Some(timeframe.registration.plan.rows() as u64),
            ),
            RowSource::Range(_) | RowSource::Run => (None, None),
        };
        let columns = self.0.columns.requested(&request.columns, registered)?;
        check_columns(request, columns)?;
        subject.check_keys(columns)?;
        let timeframe = subject.timeframe();
        let key = SchemaKey::new(request, subject.has_nulls(), timeframe.is_some(), false);
        let key = key.with_null_keys(subject.null_keys());
        let table_schema = self.table_schema(key, &self.column_set(&subject, columns));
        let rows = rows.filter(|_| request.view == View::Rows);
        let marks = TableMarks { timeframe, ..TableMarks::default() };
        Ok(Described { schema: table_schema.layout.schema_of(&table_schema.schema, marks), rows })
    }

    /// Waits until every object of the table is in shared memory and pinned for the caller, at most
    /// for the time limit of the request.
    ///
    /// The pins belong to the session of the request, else to its timeframe and consumer, else to a
    /// lease of 60 s ([`CacheBuilder::lease_limit`](crate::cache::CacheBuilder::lease_limit)), and
    /// to the answer itself until it is dropped.
    ///
    /// # Errors
    /// [`CacheError::Missing`] and [`CacheError::NoPath`] if rows have no object and the request does
    /// not allow null cells; [`CacheError::LookUp`] and [`CacheError::Load`] with the error of the
    /// source; [`CacheError::MemoryPinned`], [`CacheError::NeverFits`] and
    /// [`CacheError::DeadlineExceeded`] for memory and time; the others for requests that are wrong or
    /// over a limit. On error nothing stays pinned.
    pub async fn answer(&self, request: &Request, caller: &Caller) -> Result<Answer, CacheError> {
        self.answer_for(request, &request.when, caller, None).await
    }

    /// Like [`answer`](Self::answer), with the times given separately. `stream_schema` is the state
    /// shared by all tables of a stream.
    pub(crate) async fn answer_for(
        &self,
        request: &Request,
        when: &When,
        caller: &Caller,
        stream_schema: Option<&StreamSchema>,
    ) -> Result<Answer, CacheError> {
        let asked = Instant::now();
        let timeframe = match when {
            When::Timeframe(id) => Some(*id),
            When::Timestamps(_) | When::Range(_) | When::Run(_) => None,
        };
        let consumer = request.consumer.as_deref();
        let span = tracing::info_span!("answer", timeframe, consumer);
        let answered = self.try_answer(request, when, caller, stream_schema).instrument(span).await;
        let counters = &self.0.counters;
        match &answered {
            Ok(answer) => {
                let took = asked.elapsed();
                counters.timings.answer.observe(took);
                let requester = Requester::of(request);
                record(answer.rows, &answer.pins, &answer.content, &requester, took);
                counters.tables.add(1);
                counters.rows.add(answer.rows);
                self.publish_for(request, when);
            }
            Err(_) => counters.errors.add(1),
        }
        answered
    }

    /// Publishes the paths of a table that was requested by a session with look-ups of its own: the
    /// next time it need not ask.
    fn publish_for(&self, request: &Request, when: &When) {
        let (Some(publisher), Some(session)) = (&self.0.publisher, &request.session) else {
            return;
        };
        if request.lock.is_some() || !publisher.is_read_by(session) {
            return;
        }
        let of_service = self.0.columns.limits;
        let timeframe = match when {
            When::Timeframe(id) => self.0.timeframes.get(*id).ok(),
            When::Timestamps(_) | When::Range(_) | When::Run(_) => None,
        };
        let registered = timeframe.as_ref().map(|timeframe| &timeframe.registration.columns[..]);
        let Ok(columns) = self.0.columns.requested(&request.columns, registered) else { return };
        if of_service.narrowed_by(request.limits) == of_service {
            let plain = columns.iter().filter(|column| column.metadata.is_empty());
            // A column with a key has no query by path and time.
            for path in plain.filter_map(|column| column.plain_path()) {
                let metadata = Default::default();
                let query = Query { path: path.clone(), metadata, limits: of_service };
                self.0.catalog.want_published(&query);
            }
        }
    }

    async fn try_answer(
        &self,
        request: &Request,
        when: &When,
        caller: &Caller,
        stream_schema: Option<&StreamSchema>,
    ) -> Result<Answer, CacheError> {
        self.check_open()?;
        if let Some(session) = &request.session {
            self.0.leases.check_session(session, &caller.origin)?;
        }
        let subject = self.subject(when)?;
        let reader = self.reader(request, &subject, &caller.origin)?;
        let holder = self.holder(request, caller, reader.as_ref());
        let _permit = self.permit(holder.as_ref())?;
        let deadline = deadline_of(request, caller);
        let subject = self.with_times(subject, when, request, deadline).await?;
        let registered = match &subject {
            RowSource::Timeframe(timeframe) => Some(&timeframe.registration.columns[..]),
            _ => None,
        };
        let columns = self.0.columns.requested(&request.columns, registered)?;
        // Checked before anything is loaded.
        check_columns(request, columns)?;
        subject.check_keys(columns)?;
        let asked = TableWork { request, caller, holder: holder.as_ref(), deadline };
        let found = match &subject {
            RowSource::Range(range) => self.intervals_of(asked, columns, *range).await?,
            RowSource::Run => return Err(no_times()),
            RowSource::Timestamps(rows) => {
                self.rows_of_timestamps(asked, stream_schema, columns, rows).await?
            }
            RowSource::Timeframe(timeframe) => {
                self.rows_of_timeframe(asked, columns, timeframe).await?
            }
        };
        let lease = self.lease_for(request, caller, reader.clone(), holder, &found)?;
        if let (RowSource::Timeframe(timeframe), Some((_, consumer))) = (&subject, &reader)
            && !caller.in_advance
        {
            timeframe.set_delivered(consumer);
        }
        let table_schema = self.table_schema_of(request, caller, stream_schema, &subject, columns);
        Ok(self.answer_of(found, table_schema, lease, subject.timeframe(), caller.of_stream))
    }

    /// The number of concurrent requests of the holder, raised by this one.
    fn permit(&self, holder: Option<&LeaseHolder>) -> Result<Option<RequestPermit>, CacheError> {
        let Some(holder) = holder else { return Ok(None) };
        self.0.quotas.admit(&holder.name)?;
        self.0.quotas.begin(&holder.name)
    }

    /// The answer with the table `found`, whose lease holds its objects.
    fn answer_of(
        &self,
        found: PinnedTable,
        table_schema: Arc<TableSchema>,
        lease: LeaseId,
        timeframe: Option<TimeframeMark>,
        of_stream: bool,
    ) -> Answer {
        let rows = found.rows();
        let gate = Gate::of(&self.0.leases, lease.clone(), of_stream);
        let pins = Arc::new(self.0.in_use.take(Arc::clone(&found.pins)));
        let charges: Arc<[Arc<Charge>]> = found.charges.into();
        let objects = Arc::new(TableObjects {
            versions: found.versions,
            pins: Arc::clone(&pins),
            gate: Arc::clone(&gate),
            _charges: Arc::clone(&charges),
        });
        let (content, assembled) = (Content { body: found.body, objects }, found.kept);
        Answer {
            table_schema,
            content,
            timeframe,
            lease,
            versions: OnceLock::new(),
            gate,
            of_stream,
            rows,
            pins,
            assembled,
            charges,
        }
    }

    /// The schema of the table of `subject`.
    fn table_schema_of(
        &self,
        request: &Request,
        caller: &Caller,
        stream_schema: Option<&StreamSchema>,
        subject: &RowSource,
        columns: &[ColumnRequest],
    ) -> Arc<TableSchema> {
        if let Some(stream_schema) = stream_schema {
            return Arc::clone(&stream_schema.table_schema);
        }
        if caller.of_stream {
            let columns = self.column_set(subject, columns);
            return self.table_schema(SchemaKey::of_stream(request), &columns);
        }
        let (nulls, timeframe) = (subject.has_nulls(), subject.timeframe());
        let key = SchemaKey::new(request, nulls, timeframe.is_some(), true);
        let key = key.with_null_keys(subject.null_keys());
        self.table_schema(key, &self.column_set(subject, columns))
    }

    /// The set of these columns; that of the timeframe, if they are its own.
    fn column_set(&self, subject: &RowSource, columns: &[ColumnRequest]) -> Arc<ColumnSet> {
        match subject {
            RowSource::Timeframe(timeframe) if timeframe.has_the(columns) => {
                Arc::clone(&timeframe.registration.columns)
            }
            _ => self.0.column_sets.intern(columns),
        }
    }

    /// The schema of tables with these columns in the form `key`.
    pub(super) fn table_schema(
        &self,
        key: SchemaKey,
        columns: &Arc<ColumnSet>,
    ) -> Arc<TableSchema> {
        let instance = Instance {
            epoch: self.epoch(),
            attach: self.attach_path(),
            policies: &self.0.columns.policies,
        };
        self.0.column_sets.table_schema(columns, key, &instance)
    }

    /// The effective spans of a range, pinned.
    async fn intervals_of(
        &self,
        asked: TableWork<'_>,
        columns: &[ColumnRequest],
        range: ValidityInterval,
    ) -> Result<PinnedTable, CacheError> {
        let TableWork { request, caller, holder, deadline } = asked;
        let spans = self.spans_of(request, caller, columns, range, deadline).await?;
        if let Some(gap) = request.gap {
            spans.check_length(range, gap)?;
        }
        let versions = Arc::clone(spans.versions());
        self.check_quota(holder, &*versions)?;
        let got = self.0.loader.pin_all(&*versions, deadline).await?;
        let charges = vec![Arc::clone(spans.charge())];
        let (columns, pins) = spans.assemble(got);
        let body = TableBody::Intervals(Arc::new(columns));
        Ok(PinnedTable { body, versions, pins, kept: None, charges })
    }

    async fn spans_of(
        &self,
        request: &Request,
        caller: &Caller,
        columns: &[ColumnRequest],
        range: ValidityInterval,
        deadline: Instant,
    ) -> Result<PlannedIntervals, CacheError> {
        let look_up = &self.0.columns;
        let known = look_up.known_over(request, columns, range, &caller.budget, deadline).await?;
        let planned = PlannedIntervals::new(range, known, &caller.budget);
        by_deadline(PLANNING, deadline, planned).await
    }

    /// The rows of timestamps, from a registered timeframe of the stream with the same timestamps,
    /// if any.
    async fn rows_of_timestamps(
        &self,
        asked: TableWork<'_>,
        stream_schema: Option<&StreamSchema>,
        columns: &[ColumnRequest],
        rows: &TableRows,
    ) -> Result<PinnedTable, CacheError> {
        if let Some(found) = self.registered_rows(asked, stream_schema, columns, rows).await? {
            return Ok(found);
        }
        let bytes = rows.memory_bytes() as u64;
        let charge = asked.caller.budget.charge(bytes, "the timestamps of a table")?;
        let mut found = self.rows_at(asked, columns, rows, None).await?;
        found.charges.push(Arc::new(charge));
        Ok(found)
    }

    /// Decides which version serves which timestamp. For timestamps of `timeframe` it uses the
    /// timelines as known at registration.
    async fn plan_of(
        &self,
        asked: TableWork<'_>,
        columns: &[ColumnRequest],
        rows: &TableRows,
        timeframe: Option<&Timeframe>,
    ) -> Result<Plan, CacheError> {
        let TableWork { request, caller, deadline, .. } = asked;
        let (registered, budget) = (timeframe.map(|one| &one.registration.plan), &caller.budget);
        let known =
            self.0.columns.known_at(request, columns, rows, registered, budget, deadline).await?;
        let planned = Plan::new(rows.clone(), known, &caller.budget);
        by_deadline(PLANNING, deadline, planned).await
    }

    /// The rows of timestamps; for those of `timeframe` with the timelines as known at
    /// registration.
    async fn rows_at(
        &self,
        asked: TableWork<'_>,
        columns: &[ColumnRequest],
        rows: &TableRows,
        timeframe: Option<&Timeframe>,
    ) -> Result<PinnedTable, CacheError> {
        let TableWork { request, caller, holder, deadline } = asked;
        let plan = self.plan_of(asked, columns, rows, timeframe).await?;
        // Requests for single tables come in no known order.
        if caller.of_stream && request.is_plain() {
            self.prefetch_next(&plan);
        }
        self.0.columns.check_missing(&plan, request)?;
        self.check_quota(holder, &**plan.versions())?;
        let got = self.0.loader.pin_all(&**plan.versions(), deadline).await?;
        Ok(PinnedTable::rows_of(&plan, &plan.assemble(got)))
    }

    /// Whether `holder` may hold `versions`, too. Checked before any of them is pinned or awaited.
    ///
    /// # Errors
    /// [`CacheError::OverQuota`].
    fn check_quota(
        &self,
        holder: Option<&LeaseHolder>,
        versions: &impl PinRequest,
    ) -> Result<(), CacheError> {
        let Some(holder) = holder else { return Ok(()) };
        let wanted = (0..versions.len()).map(|number| {
            let version = versions.info(number);
            let resident = || self.0.residency.size_of(version.id);
            (version.id, Pool::charge(version.size_bytes.or_else(resident).unwrap_or(0)))
        });
        self.0.leases.check_quota_of(holder, wanted)
    }

    /// The rows of a stream's timeframe that is registered with the same columns and timestamps.
    /// All readers of such a timeframe get the same table.
    async fn registered_rows(
        &self,
        asked: TableWork<'_>,
        stream_schema: Option<&StreamSchema>,
        columns: &[ColumnRequest],
        rows: &TableRows,
    ) -> Result<Option<PinnedTable>, CacheError> {
        let TableWork { request, caller, deadline, .. } = asked;
        let Some(id) = caller.stream_timeframe.filter(|_| request.is_plain()) else {
            return Ok(None);
        };
        let Ok(timeframe) = self.0.timeframes.get(id) else { return Ok(None) };
        let Registration { plan, columns: registered, .. } = &timeframe.registration;
        let same_columns = match stream_schema {
            Some(stream_schema) => stream_schema.columns.equals(registered),
            None => *columns == ***registered,
        };
        if !same_columns || !plan.table_rows().same_rows(rows) {
            return Ok(None);
        }
        self.0.columns.check_missing(plan, request)?;
        match assembled(&self.0.loader, &timeframe, deadline).await {
            Ok(assembled) => Ok(Some(PinnedTable::kept(plan, assembled))),
            // The timeframe was dropped meanwhile, which does not end a request of a stream.
            Err(CacheError::UnknownTimeframe { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The timeframe and the consumer that reads it, if they are known.
    fn reader(
        &self,
        request: &Request,
        subject: &RowSource,
        origin: &Origin,
    ) -> Result<Option<(u64, String)>, CacheError> {
        let RowSource::Timeframe(timeframe) = subject else { return Ok(None) };
        if let Some(consumer) = &request.consumer {
            self.0.leases.check_consumer(consumer, origin)?;
            timeframe.check_reader(consumer)?;
            return Ok(Some((timeframe.id(), consumer.clone())));
        }
        // A session without a named consumer reads as the consumer of its attach, if the timeframe
        // is registered for that consumer.
        let session = request.session.as_ref();
        let consumer = session.and_then(|session| self.0.leases.holder_of(session));
        Ok(consumer
            .map(|name| name.consumer)
            .filter(|consumer| timeframe.check_reader(consumer).is_ok())
            .map(|consumer| (timeframe.id(), consumer)))
    }

    /// The holder of the table, if it has a name, and the timeframe of the table.
    fn holder(
        &self,
        request: &Request,
        caller: &Caller,
        reader: Option<&(u64, String)>,
    ) -> Option<LeaseHolder> {
        let session = request.session.as_ref();
        let attached = session.and_then(|session| self.0.leases.holder_of(session));
        // Over TCP a session does not prove that its own process asks, so its quota is not used.
        let account = match (&attached, &caller.origin) {
            (Some(name), Origin::Embedded) => name.account.clone(),
            (_, origin) => origin.account(),
        };
        if let Some((timeframe, consumer)) = reader {
            let name = HolderName { consumer: consumer.clone(), account };
            return Some(LeaseHolder { name, timeframe: Some(*timeframe) });
        }
        let name = match &request.consumer {
            Some(consumer) => HolderName { consumer: consumer.clone(), account },
            None => HolderName { consumer: attached?.consumer, account },
        };
        Some(LeaseHolder { name, timeframe: caller.stream_timeframe })
    }

    fn lease_for(
        &self,
        request: &Request,
        caller: &Caller,
        reader: Option<(u64, String)>,
        holder: Option<LeaseHolder>,
        found: &PinnedTable,
    ) -> Result<LeaseId, CacheError> {
        // The pins of a timeframe are charged to the timeframe, for any reader.
        let own_pins = if found.kept.is_some() { 0 } else { found.pins.pins().len() };
        let charge = charge_lease(&caller.budget, own_pins)?;
        let pins = Arc::clone(&found.pins);
        if let Some(lease) = &caller.lease {
            self.0.leases.add(lease, pins, holder, charge)?;
            return Ok(lease.clone());
        }
        let owner = match &request.session {
            Some(session) => LeaseOwner::Session(session.clone()),
            None if reader.is_some() => LeaseOwner::Consumer,
            None if caller.of_stream => LeaseOwner::Stream,
            None => LeaseOwner::Unnamed,
        };
        let ticket = caller.ticket.clone().map(|ticket| (ticket, caller.connection));
        let terms = LeaseTerms { owner, timeframe: reader, ticket, holder };
        self.0.leases.open(terms, vec![pins], charge)
    }

    /// The rows of a registered timeframe, with its own or with other columns.
    async fn rows_of_timeframe(
        &self,
        asked: TableWork<'_>,
        columns: &[ColumnRequest],
        timeframe: &Arc<Timeframe>,
    ) -> Result<PinnedTable, CacheError> {
        let TableWork { request, holder, deadline, .. } = asked;
        let plan = &timeframe.registration.plan;
        if request.is_plain()
            && (timeframe.has_the(columns) || *columns == **timeframe.registration.columns)
        {
            self.0.columns.check_missing(plan, request)?;
            self.check_quota(holder, &**plan.versions())?;
            return Ok(PinnedTable::kept(
                plan,
                assembled(&self.0.loader, timeframe, deadline).await?,
            ));
        }
        self.rows_at(asked, columns, plan.table_rows(), Some(timeframe)).await
    }

    /// The versions of a table that is to be loaded for a lease, and the future holder.
    ///
    /// # Errors
    /// As [`answer`](Self::answer), up to the load.
    pub(crate) async fn versions_for(
        &self,
        request: &Request,
        caller: &Caller,
        deadline: Instant,
    ) -> Result<(Arc<VersionSet>, Option<LeaseHolder>), CacheError> {
        let subject = self.subject(&request.when)?;
        let reader = self.reader(request, &subject, &caller.origin)?;
        let holder = self.holder(request, caller, reader.as_ref());
        let subject = self.with_times(subject, &request.when, request, deadline).await?;
        let asked = TableWork { request, caller, holder: holder.as_ref(), deadline };
        let (rows, timeframe) = match &subject {
            RowSource::Range(range) => {
                let columns = self.0.columns.requested(&request.columns, None)?;
                let spans = self.spans_of(request, caller, columns, *range, deadline).await?;
                self.check_quota(asked.holder, &**spans.versions())?;
                return Ok((Arc::clone(spans.versions()), holder));
            }
            RowSource::Timestamps(rows) => (rows, None),
            RowSource::Run => return Err(no_times()),
            RowSource::Timeframe(timeframe) => {
                (timeframe.registration.plan.table_rows(), Some(&**timeframe))
            }
        };
        let registered = timeframe.map(|timeframe| &timeframe.registration.columns[..]);
        let columns = self.0.columns.requested(&request.columns, registered)?;
        subject.check_keys(columns)?;
        let plan = self.plan_of(asked, columns, rows, timeframe).await?;
        self.0.columns.check_missing(&plan, request)?;
        self.check_quota(asked.holder, &**plan.versions())?;
        Ok((Arc::clone(plan.versions()), holder))
    }
}
