//! Calls of the client to a service.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use arrow_array::cast::AsArray as _;
use arrow_array::types::{Int64Type, UInt64Type};
use arrow_array::{ArrayRef, Int64Array, RecordBatch};
use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::error::FlightError;
use arrow_flight::{Action, FlightData, FlightDescriptor, Ticket};
use arrow_schema::Schema;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::sync::{Mutex, mpsc};

use super::connect::{CONNECT_LIMIT, FlightClient, ServiceAddress, token};
use super::error::ClientError;
use super::local::LocalShared;
use super::local_join::LocalJoin;
use super::options::ClientOptions;
use super::plane_table::PlaneTables;
use super::retry;
use super::table::{Hold, Releases, Table};
use crate::error::{Coded as _, ErrorKind};
use crate::object::ObjectId;
use crate::shm::MetaHeader;
use crate::shm::attach::{Attachment, process_generation};
use crate::table::{
    CellKind, CheckAnswer, ColumnRequest, ConsumedAnswer, Encoding, MessageWriter, PutAnswer,
    Register, SegmentsAnswer, Status, TableRequest, View,
};

/// Time limit of a request for a table that gives none, as in the service.
const PATIENCE: Duration = Duration::from_secs(60);

/// A wait for a timeframe in shared memory that does not count against the time limit of a request.
const SHORT_WAIT: Duration = Duration::from_millis(100);

/// Extra time for an answer after the time limit.
const GRACE: Duration = Duration::from_secs(5);

/// A connection to a service. Clones share it.
#[derive(Debug, Clone)]
pub struct Client(pub(super) Arc<ClientInner>);

/// A connection and its session, shared by the clones of a client.
#[derive(Debug)]
pub(super) struct ClientInner {
    pub(super) address: ServiceAddress,
    url: String,
    pub(super) flight: FlightClient,
    /// Target of requests while the client is attached to a service that it reached over TCP.
    pub(super) near: ArcSwapOption<Near>,
    pub(super) options: ClientOptions,
    /// Session on this node, once it is known whether there can be one.
    pub(super) attached: Mutex<Attached>,
    /// Leases of dropped tables.
    releases: mpsc::UnboundedSender<String>,
    /// Whether the service has answered once: calls without an answer are then repeated. Before,
    /// the address may belong to another service, or to one that refuses clients without a
    /// certificate.
    answered: AtomicBool,
    /// The process that connected, distinct from its forks.
    process: u64,
    /// Whether the session looks up objects in shared memory.
    pub(super) looks_up: bool,
    /// Tables from shared memory; `None`: each table is requested.
    plane_tables: Option<PlaneTables>,
    /// Shared state of local look-ups, once they were used.
    local: crate::sync::Mutex<Option<Arc<LocalShared>>>,
    /// The runtime in which it connected.
    runtime: tokio::runtime::Handle,
}

/// Unix socket of a service on this node. Sessions are used over it alone, because the kernel
/// identifies the process of the client there.
#[derive(Debug)]
pub(super) struct Near {
    pub(super) flight: FlightClient,
    pub(super) attachment: Weak<Attachment>,
}

/// The look-ups in shared memory that a client makes by its session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PlaneUse {
    None,
    /// Of objects by path and time.
    Objects,
    /// Of whole tables.
    Tables,
}

/// Whether this process is attached to the shared memory of its service.
#[derive(Debug)]
pub(super) enum Attached {
    NotTried,
    /// The service of the session is gone.
    Lost,
    /// The service is on another node, or refuses to attach this process.
    Remote,
    Here(Arc<Attachment>),
}

impl Client {
    /// Connects to `grpc://host:port`, `grpc+tls://host:port` or `grpc+unix:///path/flight.sock`.
    ///
    /// # Errors
    /// [`ClientError::Address`] for another form of address, [`ClientError::Connect`] if no service
    /// answers.
    pub async fn connect(url: &str) -> Result<Self, ClientError> {
        Self::connect_with(url, ClientOptions::default()).await
    }

    /// Connects with options.
    ///
    /// # Errors
    /// [`ClientError::Address`] for another form of address, [`ClientError::Connect`] if no service
    /// answers, [`ClientError::Token`] if the token cannot be sent.
    pub async fn connect_with(url: &str, options: ClientOptions) -> Result<Self, ClientError> {
        let uses = if options.always_request { PlaneUse::None } else { PlaneUse::Tables };
        Self::connect_as(url, options, uses).await
    }

    /// Connects a client that uses shared memory like this.
    pub(super) async fn connect_as(
        url: &str,
        options: ClientOptions,
        uses: PlaneUse,
    ) -> Result<Self, ClientError> {
        let address = ServiceAddress::parse(url)?;
        let options = ClientOptions { token: token(options.token)?, ..options };
        let connecting = address.connect(url, &options);
        let flight = tokio::time::timeout(CONNECT_LIMIT, connecting).await;
        let flight = flight.map_err(|_| ClientError::Connect {
            url: url.to_owned(),
            reason: format!("no connection within {CONNECT_LIMIT:?}"),
        })??;
        let (releases, freed) = mpsc::unbounded_channel();
        tokio::spawn(release_leases(flight.clone(), freed));
        let attached = match options.remote {
            true => Attached::Remote,
            false => Attached::NotTried,
        };
        let (url, attached) = (url.to_owned(), Mutex::new(attached));
        let inner = ClientInner {
            address,
            url,
            flight,
            near: ArcSwapOption::empty(),
            options,
            attached,
            releases,
            answered: AtomicBool::new(false),
            process: process_generation(),
            looks_up: uses != PlaneUse::None,
            plane_tables: (uses == PlaneUse::Tables).then(PlaneTables::default),
            local: crate::sync::Mutex::default(),
            runtime: tokio::runtime::Handle::current(),
        };
        Ok(Self(Arc::new(inner)))
    }

    /// The process that connected, distinct from its forks.
    pub(super) fn process(&self) -> u64 {
        self.0.process
    }

    /// The runtime in which it connected.
    pub(super) fn runtime(&self) -> &tokio::runtime::Handle {
        &self.0.runtime
    }

    /// Tables from shared memory; `None`: each table is requested.
    pub(super) fn plane_tables(&self) -> Option<&PlaneTables> {
        self.0.plane_tables.as_ref()
    }

    pub(super) fn options(&self) -> &ClientOptions {
        &self.0.options
    }

    /// Shared state of local look-ups, once they were used.
    pub(super) fn local_shared(&self) -> &crate::sync::Mutex<Option<Arc<LocalShared>>> {
        &self.0.local
    }

    /// Session on this node, if there is one now.
    pub(super) async fn session(&self) -> Option<Arc<Attachment>> {
        match &*self.0.attached.lock().await {
            Attached::Here(attachment) => Some(Arc::clone(attachment)),
            Attached::NotTried | Attached::Lost | Attached::Remote => None,
        }
    }

    /// Attaches if the address is that of a Unix socket.
    pub(super) async fn attach_beside(&self) -> Result<(), ClientError> {
        if self.0.address.folder().is_some() && !self.0.options.remote {
            self.attachment(&TableRequest::new()).await?;
        }
        Ok(())
    }

    /// Flight client for the next request.
    pub(super) fn flight(&self) -> FlightClient {
        let near = self.0.near.load();
        let is_there = |near: &&Arc<Near>| {
            near.attachment.upgrade().is_some_and(|attachment| attachment.over().is_none())
        };
        match near.as_ref().filter(is_there) {
            Some(near) => near.flight.clone(),
            None => self.0.flight.clone(),
        }
    }

    /// Address of the service.
    pub fn url(&self) -> &str {
        &self.0.url
    }

    /// A table. All of its objects stay pinned until it is dropped. It is taken from shared memory
    /// where all of its objects lie there and the request has no limits, lock, metadata or keys; else
    /// it is requested from the service.
    ///
    /// # Errors
    /// [`ClientError`], mostly [`Service`](ClientError::Service) with the error of the service.
    pub async fn table(&self, request: TableRequest) -> Result<Table, ClientError> {
        if let Some(table) = self.plane_table(&request).await {
            return Ok(table);
        }
        let (limit, began) = (self.patience_of(&request), Instant::now());
        if request.fields().timeframe.is_some() {
            if let Some(table) = self.awaited_timeframe(&request, limit).await {
                return Ok(table);
            }
            let waited = began.elapsed();
            if waited > SHORT_WAIT {
                // The rest of the time is for the service.
                return self.small_table(&request.wait(limit.saturating_sub(waited))).await;
            }
        }
        match self.small_table(&request).await {
            // Cells and answers have a size limit; chunks have none.
            Err(error)
                if error.kind() == ErrorKind::ResourceExhausted
                    && request.fields().cell.is_none()
                    && request.fields().session.is_none()
                    && self.is_remote().await =>
            {
                self.large_table(request, limit + GRACE).await
            }
            answered => answered,
        }
    }

    /// The table from shared memory, if all of it lies there.
    async fn plane_table(&self, request: &TableRequest) -> Option<Table> {
        // Before any lock, which another thread may have held when this process was forked.
        let tables = self.0.plane_tables.as_ref();
        let tables = tables.filter(|_| self.0.process == process_generation())?;
        tables.table(request, &self.session().await?)
    }

    async fn small_table(&self, request: &TableRequest) -> Result<Table, ClientError> {
        self.until_answered(self.patience_of(request), |left| {
            let request = within(request, left);
            async move {
                match self.requested_table(request.clone()).await {
                    // The service was restarted and does not know the session: attach anew.
                    Err(error)
                        if error.is_unknown_session()
                            && request.fields().session.is_none()
                            && self.forget_lost_session().await =>
                    {
                        self.requested_table(request).await
                    }
                    other => other,
                }
            }
        })
        .await
    }

    /// Repeats `call` for at most `limit` while a service that has answered before does not answer.
    pub(super) async fn until_answered<T, F>(
        &self,
        limit: Duration,
        call: impl FnMut(Option<Duration>) -> F,
    ) -> Result<T, ClientError>
    where
        F: Future<Output = Result<T, ClientError>>,
    {
        if self.0.process != process_generation() {
            return Err(ClientError::ForkedProcess);
        }
        self.settle_reports().await;
        let known = self.0.answered.load(Ordering::Relaxed);
        let patience = if known { limit } else { Duration::ZERO };
        let mut call = call;
        let in_time = |left: Option<Duration>| {
            // The service keeps the limit itself; after the extra time no answer will come.
            let limit = left.unwrap_or(limit) + GRACE;
            let answer = tokio::time::timeout(limit, call(left));
            async move {
                let late = ClientError::NotInTime { limit_millis: limit.as_millis() };
                answer.await.unwrap_or(Err(late))
            }
        };
        let answer = retry::until_answered(patience, in_time).await;
        if !answer.as_ref().is_err_and(ClientError::is_no_answer) {
            self.0.answered.store(true, Ordering::Relaxed);
        }
        answer.map_err(|error| match error {
            ClientError::Lost { reason } => {
                ClientError::Lost { reason: format!("{}: {reason}", self.0.url) }
            }
            other => other,
        })
    }

    pub(super) fn patience(&self) -> Duration {
        self.0.options.patience.unwrap_or(PATIENCE)
    }

    fn patience_of(&self, request: &TableRequest) -> Duration {
        let wait = request.fields().wait_ms.map(Duration::from_millis);
        wait.unwrap_or_else(|| self.patience())
    }

    /// A table of the service, whose columns are remembered for tables from shared memory.
    async fn requested_table(&self, request: TableRequest) -> Result<Table, ClientError> {
        let Some(tables) = &self.0.plane_tables else { return self.try_table(request).await };
        let fields = request.fields();
        let session = match (fields.timeframe, &fields.session) {
            (Some(_), None) => self.attachment(&request).await?,
            _ => None,
        };
        let claims = session.and_then(|session| tables.claims_before(&request, &session));
        let table = self.try_table(request.clone()).await?;
        tables.learn(&request, &table, claims);
        Ok(table)
    }

    async fn try_table(&self, request: TableRequest) -> Result<Table, ClientError> {
        let attachment = match &request.fields().session {
            Some(_) => None,
            None => self.attachment(&request).await?,
        };
        let request = request.with(|fields| {
            fields.encoding.get_or_insert(Encoding::RunEnd);
        });
        let request = match &attachment {
            Some(attachment) => request.session(attachment.session()),
            // A request with a session resolves its cells by that session.
            None if request.fields().session.is_some() => request,
            None => request.with(|fields| {
                fields.cell.get_or_insert(CellKind::Payload);
            }),
        };
        if let Some(attachment) = &attachment
            && let Some(held) = LocalJoin::of(&request)
            && let Some(table) = self.joined(held, &request, attachment).await?
        {
            return Ok(table);
        }
        let (schema, batches) = self.get(&request).await?;
        let hold = self.hold(attachment, &schema);
        if request.fields().cell == Some(CellKind::Payload) {
            // The payloads are in the batches already.
            drop(hold);
            return Table::new(&schema, batches, Hold::new(None, None, self.releases()), request);
        }
        Table::new(&schema, batches, hold, request)?.mapped().await
    }

    /// Holds the objects of an answer with this schema.
    pub(super) fn hold(&self, attachment: Option<Arc<Attachment>>, schema: &Schema) -> Hold {
        let lease = schema.metadata().get("iovcache.lease").cloned();
        Hold::new(attachment, lease, self.releases())
    }

    pub(super) fn releases(&self) -> Releases {
        self.0.releases.clone()
    }

    /// Whether objects are sent over the network: the service is on another node, or the options
    /// say so.
    async fn is_remote(&self) -> bool {
        matches!(&*self.0.attached.lock().await, Attached::Remote)
    }

    /// The objects view of `table`: which versions serve which rows (`schemas/tables.md`).
    ///
    /// # Errors
    /// [`ClientError::Changed`] if other versions serve it by now.
    pub async fn objects(
        &self,
        table: &Table,
    ) -> Result<(Arc<Schema>, Vec<RecordBatch>), ClientError> {
        let request = table.request().clone().objects_view();
        let limit = self.patience_of(&request);
        let objects = self.until_answered(limit, |left| {
            let request = within(&request, left);
            async move { self.get(&request).await }
        });
        let (schema, batches) = objects.await?;
        drop(self.hold(table.attachment(), &schema));
        match describes(&batches, table)? {
            true => Ok((schema, batches)),
            false => Err(ClientError::Changed),
        }
    }

    /// The table with rows made by the client from the spans; `None` if the timestamps must be sent
    /// to the service.
    async fn joined(
        &self,
        held: LocalJoin,
        request: &TableRequest,
        attachment: &Arc<Attachment>,
    ) -> Result<Option<Table>, ClientError> {
        let (schema, batches) = match self.get(&held.request).await {
            Ok(spans) => spans,
            Err(error) if LocalJoin::is_refused(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        let joined = held.join(&schema, &batches)?;
        let gaps = joined.gaps;
        let hold = self.hold(Some(Arc::clone(attachment)), &schema);
        let table = Table::joined(joined, hold, request.clone());
        // The service treats gaps, column by column.
        if gaps {
            return Ok(None);
        }
        Ok(Some(table.mapped().await?))
    }

    /// Releases the objects of a table and waits for the service to confirm it. Dropping the table
    /// releases them too, without waiting.
    ///
    /// # Errors
    /// [`ClientError`] if the service does not confirm.
    pub async fn release(&self, table: Table) -> Result<(), ClientError> {
        match table.into_lease() {
            None => Ok(()),
            Some(lease) => {
                let _: serde_json::Value = self.act("release", &json!({"lease": lease})).await?;
                Ok(())
            }
        }
    }

    /// The batches of a table as received. Every field of the request is sent as given.
    ///
    /// Without a session or consumer in the request, the objects are not pinned after the answer,
    /// and its MetaHeaders may soon be stale.
    ///
    /// # Errors
    /// [`ClientError`], mostly [`Service`](ClientError::Service).
    pub async fn batches(&self, request: &TableRequest) -> Result<Vec<RecordBatch>, ClientError> {
        let patience = self.patience_of(request);
        let got = self.until_answered(patience, |left| {
            let request = within(request, left);
            async move { self.get(&request).await }
        });
        let (schema, batches) = got.await?;
        if request.fields().session.is_none() && request.fields().consumer.is_none() {
            self.end_lease(&schema).await?;
        }
        Ok(batches)
    }

    async fn end_lease(&self, schema: &Schema) -> Result<(), ClientError> {
        match schema.metadata().get("iovcache.lease") {
            None => Ok(()),
            Some(lease) => {
                let _: serde_json::Value = self.act("release", &json!({"lease": lease})).await?;
                Ok(())
            }
        }
    }

    pub(super) async fn get(
        &self,
        request: &TableRequest,
    ) -> Result<(Arc<Schema>, Vec<RecordBatch>), ClientError> {
        let mut stream = self.stream(request).await?;
        let mut batches = Vec::new();
        while let Some(batch) = stream.next().await {
            batches.push(batch.map_err(|error| of_flight(&error))?);
        }
        let schema = stream.schema().cloned();
        let schema = schema.ok_or_else(|| answer("no schema came"))?;
        Ok((schema, batches))
    }

    pub(super) async fn stream(
        &self,
        request: &TableRequest,
    ) -> Result<FlightRecordBatchStream, ClientError> {
        let ticket = Ticket::new(request.to_json()?);
        let stream = self.flight().do_get(ticket).await?.into_inner();
        let stream = stream.map_err(|status| FlightError::Tonic(Box::new(status)));
        Ok(FlightRecordBatchStream::new_from_flight_data(stream))
    }

    /// The bytes of the object of `path` at `at`, sent in chunks over the network.
    ///
    /// # Errors
    /// [`ClientError`], or the error of `take`.
    pub async fn chunks(
        &self,
        path: &str,
        at: i64,
        mut take: impl FnMut(&[u8]) -> std::io::Result<()>,
    ) -> Result<(), ClientError> {
        let request =
            TableRequest::new().column("object", path).timestamps([at]).view(View::Chunks);
        // Chunks that were passed on cannot be taken back, so only the beginning is repeated.
        let mut stream = self.until_answered(self.patience(), |_| self.stream(&request)).await?;
        while let Some(batch) = stream.next().await {
            let batch = batch.map_err(|error| of_flight(&error))?;
            let bytes = batch.column_by_name("bytes");
            let bytes = bytes
                .and_then(|column| column.as_any().downcast_ref::<arrow_array::BinaryArray>())
                .ok_or_else(|| answer("no column of bytes came"))?;
            for piece in bytes.iter().flatten() {
                take(piece).map_err(|error| ClientError::Io {
                    what: "cannot write the object".to_owned(),
                    error,
                })?;
            }
        }
        match stream.schema().cloned() {
            Some(schema) => self.end_lease(&schema).await,
            None => Err(answer("no schema came")),
        }
    }

    /// Registers a timeframe with its timestamps (milliseconds since the Unix epoch; `None`: null)
    /// for these consumers.
    ///
    /// # Errors
    /// [`ClientError`], mostly [`Service`](ClientError::Service).
    pub async fn put_timeframe(
        &self,
        timeframe: u64,
        timestamps: Vec<Option<i64>>,
        columns: &[ColumnRequest],
        consumers: &[String],
    ) -> Result<PutAnswer, ClientError> {
        let about = Register::new(columns.to_vec(), consumers.to_vec()).to_json();
        self.register(timeframe, Arc::new(Int64Array::from(timestamps)), about).await
    }

    /// Registers a timeframe: timestamps of any Arrow type that the service accepts, and a
    /// description as in `schemas/register-timeframe.schema.json`.
    ///
    /// # Errors
    /// [`ClientError`], mostly [`Service`](ClientError::Service).
    pub async fn register(
        &self,
        timeframe: u64,
        timestamps: ArrayRef,
        about: String,
    ) -> Result<PutAnswer, ClientError> {
        // Timestamps of every type can be null.
        let batch = RecordBatch::try_from_iter_with_nullable([("timestamp", timestamps, true)])
            .map_err(|error| answer(&error.to_string()))?;
        self.register_rows(timeframe, &batch, about).await
    }

    /// Registers a timeframe like [`register`](Self::register), with a batch of rows: a column of
    /// timestamps, and one column for each key on which its columns depend.
    ///
    /// # Errors
    /// [`ClientError`], mostly [`Service`](ClientError::Service).
    pub async fn register_rows(
        &self,
        timeframe: u64,
        batch: &RecordBatch,
        about: String,
    ) -> Result<PutAnswer, ClientError> {
        let (mut writer, schema) = MessageWriter::begin(&batch.schema());
        let batch = writer.write(batch).map_err(|error| answer(&error.to_string()))?;
        let path = vec!["timeframe".to_owned(), timeframe.to_string()];
        let first = FlightData {
            flight_descriptor: Some(FlightDescriptor::new_path(path)),
            data_header: schema.header,
            app_metadata: about.into(),
            ..FlightData::default()
        };
        let rest = batch.into_messages().map(|message| FlightData {
            data_header: message.header,
            data_body: message.body,
            ..FlightData::default()
        });
        let messages: Vec<FlightData> = [first].into_iter().chain(rest).collect();
        // Registering the same content again gives the same answer.
        self.until_answered(self.patience(), |_| self.put(messages.clone())).await
    }

    async fn put(&self, messages: Vec<FlightData>) -> Result<PutAnswer, ClientError> {
        let put = self.flight().do_put(stream::iter(messages)).await?;
        let result = put.into_inner().message().await?;
        let result = result.ok_or_else(|| answer("no result came"))?;
        serde_json::from_slice(&result.app_metadata).map_err(|error| answer(&error.to_string()))
    }

    /// Reports that `consumer` has finished with a timeframe.
    ///
    /// # Errors
    /// [`ClientError`], mostly [`Service`](ClientError::Service).
    pub async fn consumed(
        &self,
        timeframe: u64,
        consumer: &str,
    ) -> Result<ConsumedAnswer, ClientError> {
        let body = json!({"timeframe": timeframe, "consumer": consumer});
        self.act("consumed", &body).await
    }

    /// Reports that `consumer` has finished with all timeframes below `oldest`.
    ///
    /// # Errors
    /// [`ClientError`], mostly [`Service`](ClientError::Service).
    pub async fn oldest_possible(
        &self,
        consumer: &str,
        oldest: u64,
    ) -> Result<ConsumedAnswer, ClientError> {
        let body = json!({"consumer": consumer, "oldest_possible": oldest});
        self.act("consumed", &body).await
    }

    /// A snapshot of the service's state.
    ///
    /// # Errors
    /// [`ClientError`] if the service does not answer.
    pub async fn status(&self) -> Result<Status, ClientError> {
        self.act("status", &json!({})).await
    }

    /// Verifies the invariants of the service: pins, blocks and bytes; `contents`: also reads every
    /// object.
    ///
    /// # Errors
    /// [`ClientError`] if the service does not answer.
    pub async fn check(&self, contents: bool) -> Result<CheckAnswer, ClientError> {
        self.act("check", &json!({"contents": contents})).await
    }

    /// The segments of the service's shared memory.
    ///
    /// # Errors
    /// [`ClientError`] if the service does not answer.
    pub async fn segments(&self) -> Result<SegmentsAnswer, ClientError> {
        self.act("segments", &json!({})).await
    }

    /// Calls any action with a body in JSON.
    ///
    /// # Errors
    /// [`ClientError`], mostly [`Service`](ClientError::Service).
    pub async fn act<T: DeserializeOwned>(
        &self,
        name: &str,
        body: &serde_json::Value,
    ) -> Result<T, ClientError> {
        self.settle_reports().await;
        // These calls are not repeated: a second one cannot tell whether the first took effect. A
        // lease ends with its service anyway.
        match name {
            "drop_timeframe" | "release" | "CancelFlightInfo" => self.act_once(name, body).await,
            _ => self.until_answered(self.patience(), |_| self.act_once(name, body)).await,
        }
    }

    async fn act_once<T: DeserializeOwned>(
        &self,
        name: &str,
        body: &serde_json::Value,
    ) -> Result<T, ClientError> {
        let action = Action::new(name, body.to_string());
        let mut results = self.flight().do_action(action).await?.into_inner();
        let result = results.message().await?.ok_or_else(|| answer("no result came"))?;
        serde_json::from_slice(&result.body).map_err(|error| answer(&error.to_string()))
    }
}

/// Whether an objects view describes the objects of `table`. Their blocks have the same generations,
/// but where a slot pins the object and the service has loaded it again.
fn describes(objects: &[RecordBatch], table: &Table) -> Result<bool, ClientError> {
    let mut told: HashMap<String, Vec<(usize, u64, Option<ObjectId>)>> = HashMap::new();
    for batch in objects {
        let column = |name| batch.column_by_name(name);
        let text = |name| column(name).and_then(|texts| texts.as_string_opt::<i32>());
        let starts = column("row_start").and_then(|one| one.as_primitive_opt::<Int64Type>());
        let generations = column("generation").and_then(|one| one.as_primitive_opt::<UInt64Type>());
        let (Some(names), Some(ids), Some(starts), Some(generations)) =
            (text("column"), text("object_id"), starts, generations)
        else {
            return Err(answer("no objects view came"));
        };
        for row in 0..batch.num_rows() {
            let start = usize::try_from(starts.value(row)).unwrap_or(usize::MAX);
            let runs = told.entry(names.value(row).to_owned()).or_default();
            runs.push((start, generations.value(row), ObjectId::parse(ids.value(row))));
        }
    }
    let is_told = |(start, header): &(usize, MetaHeader), told: &(usize, u64, Option<ObjectId>)| {
        let (told_start, generation, id) = *told;
        *start == told_start
            && (header.hint == generation || (id.is_some() && table.id_by_slot(header) == id))
    };
    let mut columns = table.headers();
    Ok(columns.all(|(name, seen)| match told.get(name) {
        None => seen.is_empty(),
        Some(told) => {
            seen.len() == told.len()
                && seen.iter().zip(told).all(|(seen, told)| is_told(seen, told))
        }
    }))
}

/// The request with its time limited to the time left; unchanged the first time.
fn within(request: &TableRequest, left: Option<Duration>) -> TableRequest {
    match left {
        None => request.clone(),
        Some(left) => request.clone().wait(left),
    }
}

pub(super) fn answer(reason: &str) -> ClientError {
    ClientError::Answer { reason: reason.to_owned() }
}

pub(super) fn of_flight(error: &FlightError) -> ClientError {
    match error {
        FlightError::Tonic(status) => ClientError::of(status),
        other => answer(&other.to_string()),
    }
}

/// Ends the leases of dropped tables in the background, until the last sender is dropped.
async fn release_leases(mut flight: FlightClient, mut freed: mpsc::UnboundedReceiver<String>) {
    while let Some(lease) = freed.recv().await {
        let action = Action::new("release", json!({"lease": lease}).to_string());
        // If the call fails, the service ends the lease with the session, or when its time is over.
        let _ = flight.do_action(action).await;
    }
}
