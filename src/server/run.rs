//! Starts the listeners of the service and serves until it is told to stop.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use arrow_flight::flight_service_server::FlightServiceServer;
use futures::future::BoxFuture;
use tokio::net::{TcpListener, UnixListener};
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Router;
use tonic_health::ServingStatus;
use tower::layer::util::{Identity as Bare, Stack};

use super::auth::Access;
use super::ccdb::{self, Answering};
use super::connection::{self, Acceptor};
use super::flight::Service;
use super::guard::GuardLayer;
use super::http::{self, HttpOptions, Readiness};
use super::limits::{Limits, in_memory};
use super::listen::Listeners;
use super::log::LogWriter;
use super::reloads::Reloads;
use super::tls::Tls;
use crate::cache::{AttachLimits, Cache};
use crate::error::coded;

/// The compiled descriptor of `schemas/flight.proto`, for reflection.
pub const FLIGHT_DESCRIPTOR: &[u8] = include_bytes!("../../schemas/flight.bin");

/// Options of a service.
#[derive(Debug, Clone)]
pub struct ServeOptions {
    /// Access control.
    pub access: Access,
    /// TLS for Flight over TCP. Default: none.
    pub tls: Option<Tls>,
    /// Limits of the transport per client and in total.
    pub limits: Limits,
    /// Longest wait for running requests after the stop signal. Default: 10 s.
    pub drain_limit: Duration,
    /// Ends the wait for running requests when cancelled.
    pub hurry: CancellationToken,
    /// How the CCDB side answers look-ups by time. Default: with a redirect.
    pub ccdb_answer: Answering,
    /// Maximum concurrent connections to the CCDB side. Default: 4,096.
    pub ccdb_connections: usize,
    /// Maximum concurrent connections to the HTTP port. A further connection ends the one that made
    /// no progress for the longest time. Default: 128.
    pub http_connections: usize,
    /// The log writer. If set, its lost lines are a metric. Default: none.
    pub log: Option<LogWriter>,
    /// Whether the CCDB side passes changes on to the sources. Default: read only.
    pub ccdb_writable: bool,
    /// Results of re-reading the configuration, as the status reports them.
    pub reloads: Reloads,
    /// The runtime that serves clients on TCP: Flight and the CCDB side. It waits for its own
    /// events, so a flood of them delays clients on the Unix sockets less. It must outlive [`run`].
    /// Default: the runtime in which [`run`] is called.
    pub network: Option<Handle>,
}

impl Default for ServeOptions {
    fn default() -> Self {
        Self {
            access: Access::default(),
            tls: None,
            limits: Limits::default(),
            drain_limit: Duration::from_secs(10),
            hurry: CancellationToken::new(),
            ccdb_answer: Answering::default(),
            ccdb_connections: ccdb::MAX_CONNECTIONS,
            http_connections: http::MAX_CONNECTIONS,
            log: None,
            ccdb_writable: false,
            reloads: Reloads::default(),
            network: None,
        }
    }
}

/// The service cannot run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// gRPC's reflection cannot be set up.
    #[error("reflection")]
    Reflection(#[source] tonic_reflection::server::Error),
    /// A server ended by itself.
    #[error("the Flight server ended")]
    Transport(#[source] tonic::transport::Error),
    /// A listening socket cannot be moved to the runtime of the network.
    #[error("the listening socket cannot be used")]
    Listener(#[source] io::Error),
}

coded! { ServeError {
    Reflection => Internal 9020,
    Transport => Internal 9021,
    Listener => Internal 9022,
} }

/// Serves until `shutdown`, then stops everything in order: no new work, then the end of running
/// calls, of sessions and of the segments. `ready` is called once all servers accept requests.
///
/// # Errors
/// [`ServeError`] if a server cannot start or ends by itself.
pub fn run<'a>(
    listeners: Listeners,
    cache: Cache,
    options: ServeOptions,
    shutdown: impl Future<Output = ()> + Send + 'a,
    ready: impl FnOnce() + Send + 'a,
) -> BoxFuture<'a, Result<(), ServeError>> {
    run_boxed(listeners, cache, options, Box::pin(shutdown), Box::new(ready))
}

/// [`run`] without type parameters: it is compiled once here, and not in every program that calls it.
fn run_boxed<'a>(
    listeners: Listeners,
    cache: Cache,
    options: ServeOptions,
    shutdown: BoxFuture<'a, ()>,
    ready: Box<dyn FnOnce() + Send + 'a>,
) -> BoxFuture<'a, Result<(), ServeError>> {
    Box::pin(serve(listeners, cache, options, shutdown, ready))
}

async fn serve(
    listeners: Listeners,
    cache: Cache,
    options: ServeOptions,
    shutdown: BoxFuture<'_, ()>,
    ready: Box<dyn FnOnce() + Send + '_>,
) -> Result<(), ServeError> {
    let Listeners { flight, http, ccdb, flight_unix, attach, folder, .. } = listeners;
    let (stop_accepting, end_sessions) = (CancellationToken::new(), CancellationToken::new());
    let readiness = Readiness::default();
    let (health, router) = router(&cache, &options)?;
    let requests = Requests { router, cache: &cache, options: &options, stop: &stop_accepting };
    let mut servers = requests.serve(flight_unix, flight, ccdb)?;
    let mut others = JoinSet::new();
    others.spawn(serve_attach(attach, &cache, &options, end_sessions.clone()));
    if let Some(listener) = http {
        let http = HttpOptions {
            cache: cache.clone(),
            readiness: readiness.clone(),
            log: options.log,
            reloads: options.reloads,
            connections: options.http_connections,
        };
        others.spawn(http::serve(listener, http, end_sessions.clone()));
    }
    readiness.set(Readiness::READY);
    ready();

    let outcome = until_stopped(&mut servers, shutdown).await;
    tracing::info!("stopping");
    readiness.set(Readiness::STOPPING);
    for service in SERVICES {
        health.set_service_status(service, ServingStatus::NotServing).await;
    }
    cache.drain();
    stop_accepting.cancel();
    end_servers(servers, options.drain_limit, &options.hurry).await;
    end_sessions.cancel();
    while others.join_next().await.is_some() {}
    cache.leave();
    drop(folder);
    outcome
}

type Servers = JoinSet<Result<(), tonic::transport::Error>>;

/// Serves the requests of clients, on Flight and on the CCDB side.
struct Requests<'a> {
    router: GuardedRouter,
    cache: &'a Cache,
    options: &'a ServeOptions,
    stop: &'a CancellationToken,
}

impl Requests<'_> {
    /// Starts a server for each listener: on TCP in the runtime of the network.
    fn serve(
        &self,
        flight_unix: UnixListener,
        flight: Option<TcpListener>,
        ccdb: Option<TcpListener>,
    ) -> Result<Servers, ServeError> {
        let mut servers = JoinSet::new();
        self.serve_flight(Acceptor::Unix(flight_unix), &mut servers);
        let _entered = self.options.network.as_ref().map(Handle::enter);
        if let Some(listener) = flight {
            let acceptor = Acceptor::Tcp(listening_here(listener)?, self.options.tls.clone());
            self.serve_flight(acceptor, &mut servers);
        }
        if let Some(listener) = ccdb {
            let listener = listening_here(listener)?;
            servers.spawn(serve_ccdb(listener, self.cache, self.options, self.stop.clone()));
        }
        Ok(servers)
    }

    fn serve_flight(&self, acceptor: Acceptor, servers: &mut Servers) {
        let limits = &self.options.limits;
        let incoming = connection::accept(acceptor, limits, self.cache, self.stop.clone());
        let stopped = self.stop.clone().cancelled_owned();
        servers.spawn(self.router.clone().serve_with_incoming_shutdown(incoming, stopped));
    }
}

/// The listener, with its events on the runtime that is entered.
fn listening_here(listener: TcpListener) -> Result<TcpListener, ServeError> {
    listener.into_std().and_then(TcpListener::from_std).map_err(ServeError::Listener)
}

/// Waits for `shutdown`, or for the end of one of the servers, which is an error of the transport.
async fn until_stopped(
    servers: &mut Servers,
    shutdown: BoxFuture<'_, ()>,
) -> Result<(), ServeError> {
    tokio::select! {
        () = shutdown => Ok(()),
        Some(ended) = servers.join_next() => match ended {
            Ok(Err(error)) => Err(ServeError::Transport(error)),
            Ok(Ok(())) | Err(_) => Ok(()),
        },
    }
}

fn serve_ccdb(
    listener: TcpListener,
    cache: &Cache,
    options: &ServeOptions,
    stop: CancellationToken,
) -> impl Future<Output = Result<(), tonic::transport::Error>> + use<> {
    let writes = ccdb::Writes { enabled: options.ccdb_writable, access: options.access.clone() };
    let front = ccdb::Front::new(cache.clone(), options.ccdb_answer, writes);
    let connections = options.ccdb_connections;
    async move {
        ccdb::serve(listener, front, connections, stop).await;
        Ok(())
    }
}

fn serve_attach(
    listener: UnixListener,
    cache: &Cache,
    options: &ServeOptions,
    stop: CancellationToken,
) -> impl Future<Output = ()> + use<> {
    let (cache, access) = (cache.clone(), Arc::new(options.access.clone()));
    let limits = AttachLimits {
        attached: options.limits.attached,
        attached_per_user: options.limits.attached_per_peer,
    };
    cache.tell_attach_path(&listener);
    async move { cache.serve_attach_through(listener, access, limits, stop).await }
}

/// Waits for the requests in progress, for at most `limit` or until `hurry`.
async fn end_servers<T: 'static>(
    mut servers: JoinSet<T>,
    limit: Duration,
    hurry: &CancellationToken,
) {
    let drained = async { while servers.join_next().await.is_some() {} };
    let drained = tokio::select! {
        drained = tokio::time::timeout(limit, drained) => drained.is_ok(),
        () = hurry.cancelled() => false,
    };
    if !drained {
        tracing::warn!("running requests are cancelled");
        servers.shutdown().await;
    }
}

/// The names under which health is reported. The empty name is the service as a whole.
const SERVICES: [&str; 2] = ["", "arrow.flight.protocol.FlightService"];

type GuardedRouter = Router<Stack<GuardLayer, Bare>>;

fn router(
    cache: &Cache,
    options: &ServeOptions,
) -> Result<(tonic_health::server::HealthReporter, GuardedRouter), ServeError> {
    let limits = &options.limits;
    let (health, health_service) = tonic_health::server::health_reporter();
    for service in SERVICES {
        // The reporter's lock is free at this point: the future completes without waiting.
        let told = health.set_service_status(service, ServingStatus::Serving);
        futures::executor::block_on(told);
    }
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(FLIGHT_DESCRIPTOR)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let reflection_v1 = reflection().build_v1().map_err(ServeError::Reflection)?;
    let reflection_v1alpha = reflection().build_v1alpha().map_err(ServeError::Reflection)?;
    let flight =
        FlightServiceServer::new(Service::new(cache.clone(), limits, options.reloads.clone()))
            .max_decoding_message_size(in_memory(limits.message))
            .max_encoding_message_size(usize::MAX);
    let guard = GuardLayer::new(options.access.clone(), cache.clone(), limits.calls);
    let router = tonic::transport::Server::builder()
        .max_concurrent_streams(Some(limits.streams))
        .http2_max_pending_accept_reset_streams(Some(limits.resets.min(Limits::PENDING_RESETS)))
        .http2_max_local_error_reset_streams(Some(limits.resets))
        .http2_max_header_list_size(u32::try_from(limits.headers.bytes()).unwrap_or(u32::MAX))
        .max_frame_size(Some(Limits::FRAME_BYTES))
        .initial_stream_window_size(Some(Limits::WINDOW_BYTES))
        .initial_connection_window_size(Some(Limits::WINDOW_BYTES))
        .http2_keepalive_interval(Some(limits.keepalive.duration()))
        .http2_keepalive_timeout(Some(limits.keepalive.duration()))
        .layer(guard)
        .add_service(flight)
        .add_service(health_service)
        .add_service(reflection_v1)
        .add_service(reflection_v1alpha);
    Ok((health, router))
}
