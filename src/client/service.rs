//! Calls of the client to a service.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use arrow_flight::Action;
use arrow_flight::error::FlightError;
use bytes::Bytes;
use futures::future::BoxFuture;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::sync::{Mutex, mpsc};

use super::connect::{CONNECT_LIMIT, FlightClient, ServiceAddress, token};
use super::error::ClientError;
use super::local::LocalShared;
use super::options::ClientOptions;
use super::plane_table::PlaneTables;
use super::retry;
use super::table::Releases;
use crate::shm::attach::{Attachment, process_generation};
use crate::table::{CheckAnswer, SegmentsAnswer, Status, TableRequest};

/// Time limit of a request for a table that gives none, as in the service.
const DEFAULT_WAIT: Duration = Duration::from_secs(60);

/// Extra time for an answer after the time limit.
pub(super) const GRACE: Duration = Duration::from_secs(5);

/// A call in progress. It is boxed where the code of gRPC begins, so that a program which awaits it
/// does not compile that code anew.
pub(super) type ClientCall<'a, T> = BoxFuture<'a, Result<T, ClientError>>;

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
    /// Connects to `grpc://host:port`, `grpc+tls://host:port` or `grpc+unix:///path/flight.sock`,
    /// within 10 s. The process attaches to the shared memory of a service on its node with the
    /// first request, not here.
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
    pub(super) fn connect_as(
        url: &str,
        options: ClientOptions,
        uses: PlaneUse,
    ) -> ClientCall<'_, Self> {
        Box::pin(Self::connect_within(url, options, uses))
    }

    async fn connect_within(
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

    /// Whether the service has answered once.
    pub(super) fn has_answered(&self) -> bool {
        self.0.answered.load(Ordering::Relaxed)
    }

    /// Notes that the service has answered, by whichever socket.
    pub(super) fn note_answer(&self) {
        self.0.answered.store(true, Ordering::Relaxed);
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
        let patience = || if self.has_answered() { limit } else { Duration::ZERO };
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
            self.note_answer();
        }
        answer.map_err(|error| match error {
            ClientError::Lost { reason } => {
                ClientError::Lost { reason: format!("{}: {reason}", self.0.url) }
            }
            other => other,
        })
    }

    pub(super) fn patience(&self) -> Duration {
        self.0.options.patience.unwrap_or(DEFAULT_WAIT)
    }

    pub(super) fn releases(&self) -> Releases {
        self.0.releases.clone()
    }

    /// A snapshot of the service's state: memory, counts since its start, timeframes in flight,
    /// sessions and sources.
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

    /// The segments of the service's shared memory, each with kind, id and size in bytes, and the
    /// path of the attach socket.
    ///
    /// # Errors
    /// [`ClientError`] if the service does not answer.
    pub async fn segments(&self) -> Result<SegmentsAnswer, ClientError> {
        self.act("segments", &json!({})).await
    }

    /// Calls any action ([`action_types`](crate::table::action_types)) with a body in JSON, and
    /// parses the JSON of its answer. While the service is down the call is repeated, except for
    /// actions whose repetition could not tell whether the first took effect.
    ///
    /// # Errors
    /// [`ClientError`], mostly [`Service`](ClientError::Service).
    pub async fn act<T: DeserializeOwned>(
        &self,
        name: &str,
        body: &serde_json::Value,
    ) -> Result<T, ClientError> {
        let result = self.result_of(Action::new(name, body.to_string())).await?;
        serde_json::from_slice(&result).map_err(|error| answer(&error.to_string()))
    }

    fn result_of(&self, action: Action) -> ClientCall<'_, Bytes> {
        let once = |action| async {
            let mut results = self.flight().do_action(action).await?.into_inner();
            let result = results.message().await?.ok_or_else(|| answer("no result came"))?;
            Ok(result.body)
        };
        Box::pin(async move {
            self.settle_reports().await;
            // These calls are not repeated: a second one cannot tell whether the first took effect. A
            // lease ends with its service anyway.
            match action.r#type.as_str() {
                "drop_timeframe" | "release" | "CancelFlightInfo" => once(action).await,
                _ => self.until_answered(self.patience(), |_| once(action.clone())).await,
            }
        })
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
