//! A request answered: its timestamps, its versions, their bytes, and who holds them.

use std::sync::Arc;
use std::time::Duration;

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use futures::future::try_join_all;
use tokio::time::{Instant, timeout_at};
use tracing::Instrument as _;

use super::Cache;
use super::catalog::Known;
use super::error::{CacheError, MissingColumn};
use super::form::{Common, Form, Key};
use super::gate::Gate;
use super::hand::InHand;
use super::lease::{Holder, HolderName, LeaseId, Owner, Terms};
use super::origin::Origin;
use super::plan::{Assembled, Handed, Plan, Spans};
use super::record::record;
use super::register::load_timeframe;
use super::resident::PinSet;
use super::timeframe::{Load, Registration, Timeframe};
use super::turns::Turns;
use super::versions::{VersionSet, Wanted};
use crate::budget::{Charge, ClientBudget};
use crate::index::Timestamps;
use crate::interval::ValidityInterval;
use crate::object::CreationLimits;
use crate::shm::Pool;
use crate::source::WhenMissing;
use crate::table::{
    BatchMessages, Batches, ColumnRequest, Columns, Content, EncodeError, Message, MessageWriter,
    Missing, Request, RequestError, Shown, View, When,
};

/// What is done between the source's answer and loading, as errors name it.
pub(super) const PLANNING: &str = "the decision which version serves which rows";

/// Who asks, beyond what stands in the request itself.
#[derive(Debug, Clone, Default)]
pub struct Asker {
    /// Whom the request comes from, as far as it is proven. Default: this process.
    pub origin: Origin,
    /// The number of the connection over which it came.
    pub connection: Option<u64>,
    /// The ticket under which the client can name the lease later.
    pub ticket: Option<Arc<[u8]>>,
    /// A lease that was opened for this request before.
    pub lease: Option<LeaseId>,
    /// The table is held by a stream, which ends its lease itself.
    pub of_stream: bool,
    /// The timeframe that the table of a stream is of.
    pub stream_timeframe: Option<u64>,
    /// When the client stops waiting, if that is sooner than the request's own `wait_ms`.
    pub patience: Option<Duration>,
    /// The table is to be there when it is asked for: nothing is delivered to anybody yet.
    pub in_advance: bool,
    /// The account to which the memory that the request takes beside the segments is charged.
    /// Default: without a limit.
    pub budget: ClientBudget,
}

/// A table whose objects are in shared memory and pinned.
///
/// It holds its pins itself too, until it is dropped. Its [`messages`](Self::messages) hold them as
/// long as its lease lasts: after that they end with an error.
#[derive(Debug)]
pub struct Answer {
    form: Arc<Form>,
    content: Content,
    timeframe: Option<u64>,
    lease: LeaseId,
    /// Ends what is being sent once the lease ends.
    gate: Arc<Gate>,
    /// It is one of many of a stream: its schema names neither its lease nor its timeframe.
    of_stream: bool,
    rows: u64,
    pins: Arc<InHand>,
    /// The timeframe's own table, whose encoded batches are kept.
    assembled: Option<Arc<Assembled>>,
    /// The memory of the table's timestamps and runs, as long as anything of it is sent.
    charges: Arc<[Arc<Charge>]>,
}

impl Answer {
    /// The lease that keeps the table's objects.
    pub fn lease(&self) -> &LeaseId {
        &self.lease
    }

    /// The table's schema.
    pub fn schema(&self) -> SchemaRef {
        let (timeframe, lease) = self.named();
        self.form.shape.schema_of(&self.form.schema, timeframe, lease)
    }

    /// What of it stands in its schema.
    fn named(&self) -> (Option<u64>, Option<&str>) {
        match self.of_stream {
            true => (None, None),
            false => (self.timeframe, Some(self.lease.as_str())),
        }
    }

    /// The first message: the schema.
    pub fn head(&self) -> Message {
        let (timeframe, lease) = self.named();
        let made = self.form.head.message(timeframe, lease);
        made.unwrap_or_else(|| MessageWriter::begin(&self.schema()).1)
    }

    /// How many timestamps, or effective spans, it answers.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// The table as IPC messages, the schema first: each is made when it is asked for.
    ///
    /// # Errors
    /// [`EncodeError`].
    pub fn messages(
        &self,
    ) -> Result<impl Iterator<Item = Result<Message, EncodeError>> + Send + 'static, EncodeError>
    {
        // A batch that is taken apart here holds pins too, so all of it ends with the lease.
        let body = self.gate.guard(self.pinned_body()?.flat_map(|batch| {
            let (messages, error) = match batch {
                Ok(batch) => (Some(batch.into_messages()), None),
                Err(error) => (None, Some(error)),
            };
            messages.into_iter().flatten().map(Ok).chain(error.map(Err))
        }));
        Ok([Ok(self.head())].into_iter().chain(body))
    }

    /// The same without the schema, batch by batch.
    ///
    /// # Errors
    /// [`EncodeError`].
    pub fn body(
        &self,
    ) -> Result<
        impl Iterator<Item = Result<BatchMessages, EncodeError>> + Send + 'static,
        EncodeError,
    > {
        Ok(self.gate.guard(self.pinned_body()?))
    }

    /// The batches, which keep what they name pinned until the last of them is taken.
    fn pinned_body(
        &self,
    ) -> Result<
        impl Iterator<Item = Result<BatchMessages, EncodeError>> + Send + 'static,
        EncodeError,
    > {
        let kept = match &self.assembled {
            Some(assembled) => assembled.encoded(&self.form, &self.content)?,
            None => None,
        };
        let (kept, made) = match kept {
            Some(messages) => (Some(messages), None),
            None => {
                let dictionaries = Arc::clone(&self.form.dictionaries);
                let batches = self.encoded_batches();
                batches.check()?;
                (None, Some(batches.into_messages(dictionaries)))
            }
        };
        let kept = kept.map(|messages| (0..messages.len()).map(move |n| messages[n].clone()));
        let held = (self.hold(), Arc::clone(&self.charges));
        let batches = kept.into_iter().flatten().map(Ok).chain(made.into_iter().flatten());
        Ok(batches.inspect(move |_| {
            let _held = &held;
        }))
    }

    /// The batches for the wire, where their schema is that of the first message.
    fn encoded_batches(&self) -> Batches {
        self.content.batches_of(Arc::clone(&self.form.shape), Arc::clone(&self.form.schema))
    }

    /// The table's batches, made one after the other; at least one, if only an empty one.
    pub fn batches(&self) -> Batches {
        self.content.batches_of(Arc::clone(&self.form.shape), self.schema())
    }

    /// All batches at once.
    ///
    /// # Errors
    /// [`EncodeError`].
    pub fn to_batches(&self) -> Result<Vec<RecordBatch>, EncodeError> {
        self.batches().collect()
    }

    /// What is pinned for it, one pin per distinct object.
    pub fn pins(&self) -> &PinSet {
        &self.pins
    }

    /// Keeps all of it in shared memory for as long as that lives.
    pub fn hold(&self) -> Arc<InHand> {
        Arc::clone(&self.pins)
    }
}

/// What can be said of a table before anything is loaded.
#[derive(Debug, Clone)]
pub struct Described {
    /// The table's schema.
    pub schema: SchemaRef,
    /// Its rows, where they can be told without a look at the versions.
    pub rows: Option<u64>,
}

/// For which rows a table is asked.
enum Subject {
    Timestamps(Arc<Timestamps>),
    Timeframe(Arc<Timeframe>),
    Range(ValidityInterval),
}

impl Subject {
    fn timeframe(&self) -> Option<u64> {
        match self {
            Self::Timeframe(timeframe) => Some(timeframe.id()),
            Self::Timestamps(_) | Self::Range(_) => None,
        }
    }

    fn has_nulls(&self) -> bool {
        match self {
            Self::Timestamps(timestamps) => timestamps.has_nulls(),
            Self::Timeframe(timeframe) => timeframe.registration.plan.timestamps().has_nulls(),
            Self::Range(_) => false,
        }
    }
}

/// A table that is pinned, before anybody has it in hand.
struct Found {
    shown: Shown,
    versions: Arc<VersionSet>,
    pins: Arc<PinSet>,
    /// The timeframe's own table.
    kept: Option<Arc<Assembled>>,
    /// The memory of the table's timestamps and runs.
    charges: Vec<Arc<Charge>>,
}

/// A request, and who asks until when.
#[derive(Clone, Copy)]
struct Asked<'a> {
    request: &'a Request,
    asker: &'a Asker,
    holder: Option<&'a Holder>,
    deadline: Instant,
}

impl Found {
    fn rows_of(plan: &Plan, assembled: &Assembled) -> Self {
        let (columns, timestamps) = (Arc::clone(&assembled.columns), Arc::clone(plan.timestamps()));
        let (versions, pins) = (Arc::clone(plan.versions()), Arc::clone(&assembled.pins));
        let charges = vec![Arc::clone(&assembled.charge)];
        Self { shown: Shown::Rows { columns, timestamps }, versions, pins, kept: None, charges }
    }

    fn kept(plan: &Plan, assembled: Arc<Assembled>) -> Self {
        Self { kept: Some(Arc::clone(&assembled)), ..Self::rows_of(plan, &assembled) }
    }

    fn rows(&self) -> u64 {
        match &self.shown {
            Shown::Rows { timestamps, .. } => timestamps.len() as u64,
            Shown::Intervals(columns) => columns.iter().map(|one| one.rows.len() as u64).sum(),
        }
    }
}

/// # Errors
/// [`RequestError::Field`] if there are other columns than the view can have.
fn check_columns(request: &Request, columns: &[ColumnRequest]) -> Result<(), RequestError> {
    if request.view == View::Chunks && columns.len() != 1 {
        let reason = "chunks needs exactly one column".to_owned();
        return Err(RequestError::Field { field: "view", reason });
    }
    Ok(())
}

/// How far a deadline is, in the words of errors.
fn wait_ms(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

impl Cache {
    /// The columns that a message asks for; `registered` is what a timeframe has.
    ///
    /// # Errors
    /// [`CacheError::UnknownTable`].
    pub(crate) fn columns<'a>(
        &'a self,
        columns: &'a Columns,
        registered: Option<&'a [ColumnRequest]>,
    ) -> Result<&'a [ColumnRequest], CacheError> {
        match columns {
            Columns::Own(columns) => Ok(columns),
            Columns::Table(name) => match self.0.tables.get(name) {
                Some(columns) => Ok(columns),
                None => Err(CacheError::UnknownTable {
                    name: name.clone(),
                    known: self.0.tables.keys().cloned().collect(),
                }),
            },
            Columns::Registered => match registered {
                Some(columns) => Ok(columns),
                None => Err(RequestError::NoneOf { fields: "columns, table" }.into()),
            },
        }
    }

    fn subject(&self, when: &When) -> Result<Subject, CacheError> {
        Ok(match when {
            When::Timeframe(id) => Subject::Timeframe(self.0.timeframes.get(*id)?),
            When::Timestamps(timestamps) => Subject::Timestamps(Arc::new(timestamps.clone())),
            When::Range(range) => Subject::Range(*range),
        })
    }

    /// The schema of the table that `request` asks for. Loads nothing, asks no source.
    ///
    /// # Errors
    /// [`CacheError`].
    pub fn describe(&self, request: &Request) -> Result<Described, CacheError> {
        let subject = self.subject(&request.when)?;
        let (registered, rows) = match &subject {
            Subject::Timestamps(timestamps) => (None, Some(timestamps.len() as u64)),
            Subject::Timeframe(timeframe) => (
                Some(&timeframe.registration.columns[..]),
                Some(timeframe.registration.plan.rows() as u64),
            ),
            Subject::Range(_) => (None, None),
        };
        let columns = self.columns(&request.columns, registered)?;
        check_columns(request, columns)?;
        let timeframe = subject.timeframe();
        let key = Key::new(request, subject.has_nulls(), timeframe.is_some(), false);
        let form = self.form(key, columns);
        let rows = rows.filter(|_| request.view == View::Rows);
        Ok(Described { schema: form.shape.schema_of(&form.schema, timeframe, None), rows })
    }

    /// Waits until every object of the table is in shared memory and pinned for who asks.
    ///
    /// # Errors
    /// [`CacheError`]. After one, nothing is held.
    pub async fn answer(&self, request: &Request, asker: &Asker) -> Result<Answer, CacheError> {
        self.answer_for(request, &request.when, asker, None).await
    }

    /// The same for other times than those of the request; `common`: what is known of all tables of
    /// its stream.
    pub(super) async fn answer_for(
        &self,
        request: &Request,
        when: &When,
        asker: &Asker,
        common: Option<&Common>,
    ) -> Result<Answer, CacheError> {
        let asked = Instant::now();
        let timeframe = match when {
            When::Timeframe(id) => Some(*id),
            When::Timestamps(_) | When::Range(_) => None,
        };
        let consumer = request.consumer.as_deref();
        let span = tracing::info_span!("answer", timeframe, consumer);
        let answered = self.try_answer(request, when, asker, common).instrument(span).await;
        let counters = &self.0.counters;
        match &answered {
            Ok(answer) => {
                let took = asked.elapsed();
                counters.timings.answer.observe(took);
                record(answer, &answer.content, request, took);
                counters.tables.add(1);
                counters.rows.add(answer.rows);
                self.publish_for(request, when);
            }
            Err(_) => counters.errors.add(1),
        }
        answered
    }

    /// Has the paths of a table published, if a session asked for it that looks up by itself: next
    /// time it need not ask.
    fn publish_for(&self, request: &Request, when: &When) {
        let (Some(publisher), Some(session)) = (&self.0.publisher, &request.session) else {
            return;
        };
        if request.lock.is_some() || !publisher.is_read_by(session) {
            return;
        }
        let limits = self.0.limits.narrowed_by(request.limits);
        let timeframe = match when {
            When::Timeframe(id) => self.0.timeframes.get(*id).ok(),
            When::Timestamps(_) | When::Range(_) => None,
        };
        let registered = timeframe.as_ref().map(|timeframe| &timeframe.registration.columns[..]);
        let Ok(columns) = self.columns(&request.columns, registered) else { return };
        if limits == self.0.limits {
            let plain = columns.iter().filter(|column| column.metadata.is_empty());
            plain.for_each(|column| self.0.catalog.want_published(&column.query(limits)));
        }
    }

    async fn try_answer(
        &self,
        request: &Request,
        when: &When,
        asker: &Asker,
        common: Option<&Common>,
    ) -> Result<Answer, CacheError> {
        self.check_open()?;
        if let Some(session) = &request.session {
            self.0.leases.check_session(session, &asker.origin)?;
        }
        let subject = self.subject(when)?;
        let reader = self.reader(request, &subject, &asker.origin)?;
        let holder = self.holder(request, asker, reader.as_ref());
        let _asking = match &holder {
            Some(holder) => {
                self.0.slow.admit(&holder.name)?;
                self.0.slow.begin(&holder.name)?
            }
            None => None,
        };
        let wait = asker.patience.map_or(request.wait, |patience| patience.min(request.wait));
        let deadline = Instant::now() + wait.min(Duration::from_secs(86_400));
        let registered = match &subject {
            Subject::Timeframe(timeframe) => Some(&timeframe.registration.columns[..]),
            _ => None,
        };
        let columns = self.columns(&request.columns, registered)?;
        // Before anything is loaded: what cannot be sent need not be.
        check_columns(request, columns)?;
        let found = match &subject {
            Subject::Range(range) => {
                let known = self.known_over(request, columns, *range, asker, deadline).await?;
                let planned = Spans::new(*range, known, &asker.budget);
                let spans = by_deadline(PLANNING, deadline, planned).await?;
                if let Some(gap) = request.gap {
                    spans.check_length(*range, gap)?;
                }
                let versions = Arc::clone(spans.versions());
                self.check_quota(holder.as_ref(), &*versions)?;
                let got = self.0.loader.pin_all(&*versions, deadline).await?;
                let charge = Arc::clone(spans.charge());
                let (columns, pins) = spans.assemble(got);
                let charges = vec![charge];
                let shown = Shown::Intervals(Arc::new(columns));
                Found { shown, versions, pins, kept: None, charges }
            }
            Subject::Timestamps(timestamps) => {
                match self
                    .registered_rows(request, asker, common, columns, timestamps, deadline)
                    .await?
                {
                    Some(found) => found,
                    None => {
                        let asked = Asked { request, asker, holder: holder.as_ref(), deadline };
                        let bytes = timestamps.memory_bytes() as u64;
                        let charge = asker.budget.charge(bytes, "the timestamps of a table")?;
                        let mut found = self.rows_at(asked, columns, timestamps, None).await?;
                        found.charges.push(Arc::new(charge));
                        found
                    }
                }
            }
            Subject::Timeframe(timeframe) => {
                let asked = Asked { request, asker, holder: holder.as_ref(), deadline };
                self.rows_of_timeframe(asked, columns, timeframe).await?
            }
        };
        let lease = self.lease_for(request, asker, reader.clone(), holder, &found.pins)?;
        if let (Subject::Timeframe(timeframe), Some((_, consumer))) = (&subject, &reader)
            && !asker.in_advance
        {
            timeframe.set_delivered(consumer);
        }
        let timeframe = subject.timeframe();
        let form = match common {
            Some(common) => Arc::clone(&common.form),
            None if asker.of_stream => self.form(Key::of_stream(request), columns),
            None => {
                let nulls = subject.has_nulls();
                let key = Key::new(request, nulls, timeframe.is_some(), true);
                match &subject {
                    Subject::Timeframe(timeframe) if timeframe.has_the(columns) => {
                        timeframe.form(key, || self.form(key, columns))
                    }
                    _ => self.form(key, columns),
                }
            }
        };
        let (of_stream, rows) = (asker.of_stream, found.rows());
        let gate = Gate::of(&self.0.leases, lease.clone(), of_stream);
        let pins = Arc::new(self.0.hands.take(Arc::clone(&found.pins)));
        let charges: Arc<[Arc<Charge>]> = found.charges.into();
        let (versions, _charges) = (found.versions, Arc::clone(&charges));
        let objects = Arc::new(Handed { versions, pins: Arc::clone(&pins), _charges });
        let (content, assembled) = (Content { shown: found.shown, objects }, found.kept);
        Ok(Answer {
            form,
            content,
            timeframe,
            lease,
            gate,
            of_stream,
            rows,
            pins,
            assembled,
            charges,
        })
    }

    /// The rows of timestamps; of those of `timeframe` what was known when it was registered.
    async fn rows_at(
        &self,
        asked: Asked<'_>,
        columns: &[ColumnRequest],
        timestamps: &Arc<Timestamps>,
        timeframe: Option<&Timeframe>,
    ) -> Result<Found, CacheError> {
        let Asked { request, asker, holder, deadline } = asked;
        let known = self.known_at(asked, columns, timestamps, timeframe).await?;
        let planned = Plan::new(Arc::clone(timestamps), known, &asker.budget);
        let plan = by_deadline(PLANNING, deadline, planned).await?;
        // Of those who ask for single tables nobody knows in which order they will.
        if asker.of_stream && request.is_plain() {
            self.look_ahead(&plan);
        }
        self.check_missing(&plan, request)?;
        self.check_quota(holder, &**plan.versions())?;
        let got = self.0.loader.pin_all(&**plan.versions(), deadline).await?;
        Ok(Found::rows_of(&plan, &plan.assemble(got)))
    }

    /// Whether `holder` may hold `versions` too, asked before any of them is pinned or waited for.
    ///
    /// # Errors
    /// [`CacheError::OverQuota`].
    fn check_quota(
        &self,
        holder: Option<&Holder>,
        versions: &impl Wanted,
    ) -> Result<(), CacheError> {
        let Some(holder) = holder else { return Ok(()) };
        let wanted = (0..versions.len()).map(|number| {
            let version = versions.info(number);
            let resident = || self.0.residency.size_of(version.id);
            (version.id, Pool::charge(version.size_bytes.or_else(resident).unwrap_or(0)))
        });
        self.0.leases.check_quota_of(holder, wanted)
    }

    /// The rows of a stream's timeframe that is registered with the same columns and timestamps: who
    /// reads it so gets what all others get.
    async fn registered_rows(
        &self,
        request: &Request,
        asker: &Asker,
        common: Option<&Common>,
        columns: &[ColumnRequest],
        timestamps: &Timestamps,
        deadline: Instant,
    ) -> Result<Option<Found>, CacheError> {
        let Some(id) = asker.stream_timeframe.filter(|_| request.is_plain()) else {
            return Ok(None);
        };
        let Ok(timeframe) = self.0.timeframes.get(id) else { return Ok(None) };
        let Registration { plan, columns: registered, .. } = &timeframe.registration;
        let same_columns = match common {
            Some(common) => common.has(columns, registered),
            None => *columns == **registered,
        };
        if !same_columns || !plan.timestamps().same_rows(timestamps) {
            return Ok(None);
        }
        self.check_missing(plan, request)?;
        match self.assembled(&timeframe, deadline).await {
            Ok(assembled) => Ok(Some(Found::kept(plan, assembled))),
            // It was dropped meanwhile, which does not end what a stream asks for.
            Err(CacheError::UnknownTimeframe { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// # Errors
    /// [`CacheError::Missing`] with the columns that must not have gaps, and have some.
    fn check_missing(&self, plan: &Plan, request: &Request) -> Result<(), CacheError> {
        let wrong = |column: &&MissingColumn| match self.0.policies.missing(&column.path) {
            Some(WhenMissing::Required) => true,
            Some(WhenMissing::Optional) => false,
            None => request.missing == Missing::Error,
        };
        let columns: Vec<MissingColumn> = plan.missing().iter().filter(wrong).cloned().collect();
        if columns.is_empty() { Ok(()) } else { Err(CacheError::Missing { columns }) }
    }

    /// The timeframe and the consumer that reads it, if anybody can be said to.
    fn reader(
        &self,
        request: &Request,
        subject: &Subject,
        origin: &Origin,
    ) -> Result<Option<(u64, String)>, CacheError> {
        let Subject::Timeframe(timeframe) = subject else { return Ok(None) };
        if let Some(consumer) = &request.consumer {
            self.0.leases.check_consumer(consumer, origin)?;
            timeframe.check_reader(consumer)?;
            return Ok(Some((timeframe.id(), consumer.clone())));
        }
        // A session that does not say for whom it reads is the consumer that it attached as, if
        // the timeframe waits for that one.
        let session = request.session.as_ref();
        let consumer = session.and_then(|session| self.0.leases.holder_of(session));
        Ok(consumer
            .map(|name| name.consumer)
            .filter(|consumer| timeframe.check_reader(consumer).is_ok())
            .map(|consumer| (timeframe.id(), consumer)))
    }

    /// Who holds the table, if anybody has a name, and the timeframe that counts for it.
    fn holder(
        &self,
        request: &Request,
        asker: &Asker,
        reader: Option<&(u64, String)>,
    ) -> Option<Holder> {
        let session = request.session.as_ref();
        let attached = session.and_then(|session| self.0.leases.holder_of(session));
        // Over TCP a session is no proof that its own process asks, so its quota is not used up.
        let account = match (&attached, &asker.origin) {
            (Some(name), Origin::Embedded) => name.account.clone(),
            (_, origin) => origin.account(),
        };
        if let Some((timeframe, consumer)) = reader {
            let name = HolderName { consumer: consumer.clone(), account };
            return Some(Holder { name, timeframe: Some(*timeframe) });
        }
        let name = match &request.consumer {
            Some(consumer) => HolderName { consumer: consumer.clone(), account },
            None => HolderName { consumer: attached?.consumer, account },
        };
        Some(Holder { name, timeframe: asker.stream_timeframe })
    }

    fn lease_for(
        &self,
        request: &Request,
        asker: &Asker,
        reader: Option<(u64, String)>,
        holder: Option<Holder>,
        pins: &Arc<PinSet>,
    ) -> Result<LeaseId, CacheError> {
        if let Some(lease) = &asker.lease {
            self.0.leases.add(lease, Arc::clone(pins), holder)?;
            return Ok(lease.clone());
        }
        let owner = match &request.session {
            Some(session) => Owner::Session(session.clone()),
            None if reader.is_some() => Owner::Consumer,
            None if asker.of_stream => Owner::Stream,
            None => Owner::Nobody,
        };
        let ticket = asker.ticket.clone().map(|ticket| (ticket, asker.connection));
        let terms = Terms { owner, timeframe: reader, ticket, holder };
        self.0.leases.open(terms, vec![Arc::clone(pins)])
    }

    /// What a timeframe was registered with, or other columns for its timestamps.
    async fn rows_of_timeframe(
        &self,
        asked: Asked<'_>,
        columns: &[ColumnRequest],
        timeframe: &Arc<Timeframe>,
    ) -> Result<Found, CacheError> {
        let Asked { request, holder, deadline, .. } = asked;
        let plan = &timeframe.registration.plan;
        if request.is_plain()
            && (timeframe.has_the(columns) || *columns == *timeframe.registration.columns)
        {
            self.check_missing(plan, request)?;
            self.check_quota(holder, &**plan.versions())?;
            return Ok(Found::kept(plan, self.assembled(timeframe, deadline).await?));
        }
        self.rows_at(asked, columns, plan.timestamps(), Some(timeframe)).await
    }

    /// The objects of a timeframe: waits for who loads them, and tries itself meanwhile.
    async fn assembled(
        &self,
        timeframe: &Arc<Timeframe>,
        deadline: Instant,
    ) -> Result<Arc<Assembled>, CacheError> {
        let gone = || CacheError::UnknownTimeframe { timeframe: timeframe.id() };
        let mut load = timeframe.load();
        match &*load.borrow() {
            Load::Ready(assembled) => return Ok(Arc::clone(assembled)),
            Load::Gone => return Err(gone()),
            Load::Loading => {}
        }
        tokio::select! {
            biased;
            changed = load.wait_for(|load| !matches!(load, Load::Loading)) => match changed.as_deref() {
                Ok(Load::Ready(assembled)) => Ok(Arc::clone(assembled)),
                _ => Err(gone()),
            },
            loaded = load_timeframe(&self.0.loader, timeframe, deadline) => {
                loaded?;
                match &*timeframe.load().borrow() {
                    Load::Ready(assembled) => Ok(Arc::clone(assembled)),
                    Load::Loading | Load::Gone => Err(gone()),
                }
            }
        }
    }

    /// What is known of each column at the timestamps; of those that a timeframe was registered
    /// with, what was known then.
    async fn known_at(
        &self,
        asked: Asked<'_>,
        columns: &[ColumnRequest],
        timestamps: &Timestamps,
        timeframe: Option<&Timeframe>,
    ) -> Result<Vec<(ColumnRequest, Known)>, CacheError> {
        let Asked { request, asker, deadline, .. } = asked;
        let limits = self.0.limits.narrowed_by(request.limits);
        if let Some(lock) = &request.lock {
            let known = self.locked(lock, columns, limits, &asker.budget, deadline).await?;
            return Ok(columns.iter().cloned().zip(known).collect());
        }
        let registered = timeframe
            .filter(|_| request.limits == CreationLimits::default())
            .map(|timeframe| timeframe.registration.plan.known_queries())
            .unwrap_or_default();
        let known = |column: &ColumnRequest| {
            registered.get(&(&column.path, &column.metadata)).map(|known| (*known).clone())
        };
        let known = columns.iter().map(known).collect();
        self.all_known(columns, known, limits, timestamps, deadline).await
    }

    /// The versions of a table that is to be loaded for a lease, and who will hold it.
    ///
    /// # Errors
    /// As [`answer`](Self::answer), before anything is loaded.
    pub(super) async fn versions_for(
        &self,
        request: &Request,
        asker: &Asker,
        deadline: Instant,
    ) -> Result<(Arc<VersionSet>, Option<Holder>), CacheError> {
        let subject = self.subject(&request.when)?;
        let reader = self.reader(request, &subject, &asker.origin)?;
        let holder = self.holder(request, asker, reader.as_ref());
        let asked = Asked { request, asker, holder: holder.as_ref(), deadline };
        let (timestamps, timeframe) = match &subject {
            Subject::Range(range) => {
                let columns = self.columns(&request.columns, None)?;
                let known = self.known_over(request, columns, *range, asker, deadline).await?;
                let planned = Spans::new(*range, known, &asker.budget);
                let spans = by_deadline(PLANNING, deadline, planned).await?;
                self.check_quota(asked.holder, &**spans.versions())?;
                return Ok((Arc::clone(spans.versions()), holder));
            }
            Subject::Timestamps(timestamps) => (timestamps, None),
            Subject::Timeframe(timeframe) => {
                (timeframe.registration.plan.timestamps(), Some(&**timeframe))
            }
        };
        let registered = timeframe.map(|timeframe| &timeframe.registration.columns[..]);
        let columns = self.columns(&request.columns, registered)?;
        let known = self.known_at(asked, columns, timestamps, timeframe).await?;
        let planned = Plan::new(Arc::clone(timestamps), known, &asker.budget);
        let plan = by_deadline(PLANNING, deadline, planned).await?;
        self.check_missing(&plan, request)?;
        self.check_quota(asked.holder, &**plan.versions())?;
        Ok((Arc::clone(plan.versions()), holder))
    }

    /// What is known of each column at the timestamps: as given, else the source is asked.
    pub(super) async fn all_known(
        &self,
        columns: &[ColumnRequest],
        mut known: Vec<Option<Known>>,
        limits: CreationLimits,
        timestamps: &Timestamps,
        deadline: Instant,
    ) -> Result<Vec<(ColumnRequest, Known)>, CacheError> {
        let now = self.0.clock.now();
        let (mut turns, cost) = (Turns::new(), 4 + timestamps.entries() / 16);
        let look = async {
            for (known, column) in known.iter_mut().zip(columns) {
                if known.is_none() {
                    let query = column.query(limits);
                    *known = self.0.catalog.known_now(&query, timestamps, now);
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
                *known = Some(self.0.catalog.known_at(&query, timestamps).await?);
                Ok::<_, CacheError>(())
            });
            let what = "the source to say which versions hold";
            by_deadline(what, deadline, try_join_all(asked)).await?;
        }
        let known = columns.iter().zip(known);
        Ok(known.filter_map(|(column, known)| Some((column.clone(), known?))).collect())
    }

    async fn known_over(
        &self,
        request: &Request,
        columns: &[ColumnRequest],
        range: ValidityInterval,
        asker: &Asker,
        deadline: Instant,
    ) -> Result<Vec<(ColumnRequest, Known)>, CacheError> {
        let limits = self.0.limits.narrowed_by(request.limits);
        if let Some(lock) = &request.lock {
            let known = self.locked(lock, columns, limits, &asker.budget, deadline).await?;
            return Ok(columns.iter().cloned().zip(known).collect());
        }
        let known = columns.iter().map(async |column| {
            let known = self.0.catalog.known_over(&column.query(limits), range).await?;
            Ok::<_, CacheError>((column.clone(), known))
        });
        by_deadline("the source to say which versions hold", deadline, try_join_all(known)).await
    }

    /// What is known of columns over a range, for the service's own limits.
    pub(super) async fn spans(
        &self,
        columns: &[ColumnRequest],
        range: ValidityInterval,
        budget: &ClientBudget,
    ) -> Result<Spans, CacheError> {
        let mut known = Vec::with_capacity(columns.len());
        for column in columns {
            let query = column.query(self.0.limits);
            known.push((column.clone(), self.0.catalog.known_over(&query, range).await?));
        }
        Spans::new(range, known, budget).await
    }
}

/// # Errors
/// What `work` says, or [`CacheError::DeadlineExceeded`].
pub(super) async fn by_deadline<T>(
    what: &str,
    deadline: Instant,
    work: impl Future<Output = Result<T, CacheError>>,
) -> Result<T, CacheError> {
    let began = Instant::now();
    match timeout_at(deadline, work).await {
        Ok(done) => done,
        Err(_) => {
            Err(CacheError::DeadlineExceeded { what: what.to_owned(), wait_ms: wait_ms(began) })
        }
    }
}
