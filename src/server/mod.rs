//! The service: Arrow Flight over a cache, on TCP and on a Unix socket at once.
//!
//! ```text
//!  TCP ────────┐                        ┌─▶ get      tables
//!  flight.sock ┴▶ FlightService ────────┼─▶ put      timeframes come
//!                    │                  ├─▶ exchange the long stream of a consumer
//!                    │                  └─▶ action   consumed, release, status …
//!                    └▶ health, reflection
//!  attach.sock ──▶ Cache::serve_attach
//!  HTTP ─────────▶ page, /metrics /healthz /readyz
//!  CCDB ─────────▶ ccdb     plain HTTP for clients of a CCDB
//!
//!  stop: not ready any more ─▶ accept nothing ─▶ drain ─▶ end sessions ─▶ drop segments
//! ```

mod action;
mod ccdb;
mod config;
mod exchange;
mod flight;
mod get;
mod http;
mod listen;
mod metrics;
mod page;
mod put;
mod status;
mod ticket;

use std::time::Duration;

use arrow_flight::flight_service_server::FlightServiceServer;
use tokio::task::JoinSet;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::{Router, TcpIncoming};
use tonic_health::ServingStatus;

pub use ccdb::{Answering, CcdbServerConfig};
pub use config::{
    ByteSize, Config, ConfigError, ConfigFault, Document, Key, LogFormat, MissingConfig, Origin,
    PathConfig, RemapConfig, Said, Section, SectionForm, SegmentBacking, Settings, SocketMode,
    SourceConfig, TimeSpan, sections,
};
pub use listen::{ListenError, ListenOptions, Listeners};

use self::flight::Service;
use self::http::Readiness;
use crate::cache::{Cache, PeerPolicy};
use crate::error::{Code, Coded, ErrorKind};

/// The largest message that is taken.
const MAX_MESSAGE_BYTES: usize = 64 << 20;
/// Streams of one connection at a time.
const MAX_STREAMS: u32 = 1_024;
/// Streams that a client may break off before its connection is cut (CVE-2023-44487).
const MAX_RESETS: usize = 256;
/// After so much silence a client is asked whether it is still there.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// The compiled descriptor of `schemas/flight.proto`, for reflection.
pub const FLIGHT_DESCRIPTOR: &[u8] = include_bytes!("../../schemas/flight.bin");

/// How a service runs.
#[derive(Debug, Clone)]
pub struct ServeOptions {
    /// Who may attach.
    pub policy: PeerPolicy,
    /// How long requests under way may take once it stops. Default: 10 s.
    pub drain_limit: Duration,
    /// How the CCDB side answers questions for a time. Default: with a redirect.
    pub ccdb_answer: Answering,
}

impl Default for ServeOptions {
    fn default() -> Self {
        Self {
            policy: PeerPolicy::default(),
            drain_limit: Duration::from_secs(10),
            ccdb_answer: Answering::default(),
        }
    }
}

/// Why a service does not run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// gRPC's reflection cannot be set up.
    #[error("reflection")]
    Reflection(#[source] tonic_reflection::server::Error),
    /// A server ended by itself.
    #[error("the Flight server ended")]
    Transport(#[source] tonic::transport::Error),
}

impl Coded for ServeError {
    fn kind(&self) -> ErrorKind {
        ErrorKind::Internal
    }
    fn code(&self) -> Code {
        Code(match self {
            Self::Reflection(_) => 9020,
            Self::Transport(_) => 9021,
        })
    }
}

/// Serves until `shutdown`, then ends everything in order. `ready` is called once all of it is up.
///
/// # Errors
/// [`ServeError`].
pub async fn run(
    listeners: Listeners,
    cache: Cache,
    options: ServeOptions,
    shutdown: impl Future<Output = ()>,
    ready: impl FnOnce(),
) -> Result<(), ServeError> {
    let Listeners { flight, http, ccdb, flight_unix, attach, folder } = listeners;
    let (stop_accepting, end_sessions) = (CancellationToken::new(), CancellationToken::new());
    let readiness = Readiness::default();
    let (health, router) = router(&cache)?;

    let mut servers = JoinSet::new();
    let unix = UnixListenerStream::new(flight_unix);
    let stopped = stop_accepting.clone().cancelled_owned();
    servers.spawn(router.clone().serve_with_incoming_shutdown(unix, stopped));
    if let Some(listener) = flight {
        // Without nodelay a small answer waits 40 ms for the client's acknowledgement.
        let tcp = TcpIncoming::from(listener).with_nodelay(Some(true));
        let stopped = stop_accepting.clone().cancelled_owned();
        servers.spawn(router.serve_with_incoming_shutdown(tcp, stopped));
    }
    if let Some(listener) = ccdb {
        let front = ccdb::Front::new(cache.clone(), options.ccdb_answer);
        let stopped = stop_accepting.clone();
        servers.spawn(async move {
            ccdb::serve(listener, front, stopped).await;
            Ok(())
        });
    }
    let mut rest = JoinSet::new();
    rest.spawn({
        let (cache, stop) = (cache.clone(), end_sessions.clone());
        let policy = options.policy;
        cache.tell_attach_path(&attach);
        async move { cache.serve_attach(attach, policy, stop).await }
    });
    if let Some(listener) = http {
        let (cache, stop) = (cache.clone(), end_sessions.clone());
        rest.spawn(http::serve(listener, cache, readiness.clone(), stop));
    }
    readiness.set(true);
    ready();

    let failure = tokio::select! {
        () = shutdown => None,
        Some(ended) = servers.join_next() => match ended {
            Ok(Err(error)) => Some(ServeError::Transport(error)),
            Ok(Ok(())) | Err(_) => None,
        },
    };
    tracing::info!("stopping");
    readiness.set(false);
    for service in SERVICES {
        health.set_service_status(service, ServingStatus::NotServing).await;
    }
    cache.drain();
    stop_accepting.cancel();
    let drained = async { while servers.join_next().await.is_some() {} };
    if tokio::time::timeout(options.drain_limit, drained).await.is_err() {
        tracing::warn!("requests under way are broken off");
        servers.shutdown().await;
    }
    end_sessions.cancel();
    while rest.join_next().await.is_some() {}
    cache.close();
    drop(folder);
    match failure {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

/// The names under which health is told; the empty one is the service as a whole.
const SERVICES: [&str; 2] = ["", "arrow.flight.protocol.FlightService"];

fn router(cache: &Cache) -> Result<(tonic_health::server::HealthReporter, Router), ServeError> {
    let (health, health_service) = tonic_health::server::health_reporter();
    for service in SERVICES {
        // Nobody holds the reporter's lock yet: this is done at once.
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
    let flight = FlightServiceServer::new(Service::new(cache.clone()))
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(usize::MAX);
    // tonic hands what is not set on as 'no limit'.
    let router = tonic::transport::Server::builder()
        .max_concurrent_streams(Some(MAX_STREAMS))
        .http2_max_pending_accept_reset_streams(Some(MAX_RESETS))
        .http2_max_local_error_reset_streams(Some(MAX_RESETS))
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .add_service(flight)
        .add_service(health_service)
        .add_service(reflection_v1)
        .add_service(reflection_v1alpha);
    Ok((health, router))
}
