//! The service: Arrow Flight over a cache, on TCP and on a Unix socket at the same time.
//!
//! ```text
//!  TCP, TLS ───┐                           ┌─▶ get      tables
//!  flight.sock ┴▶ connection ─▶ auth ──────┼─▶ put      timeframes come
//!                  (limits)   (access)      ├─▶ exchange the long stream of a consumer
//!                                │          └─▶ action   consumed, release, status …
//!                                ├─▶ health, reflection
//!  attach.sock ──────────────────┴─▶ Cache::serve_attach_through
//!  HTTP ─────────▶ page, /metrics /healthz /readyz
//!  CCDB ─────────▶ ccdb     plain HTTP for clients of a CCDB
//!
//!  runtimes: one for the Unix sockets and HTTP, one for Flight on TCP and for CCDB
//!  (`ServeOptions::network`): a flood over TCP delays clients on the Unix sockets less
//!  stop: not ready ─▶ stop accepting ─▶ drain ─▶ end sessions ─▶ drop segments
//! ```
//!
//! The program `iovcache serve` is this module with its configuration. Another program serves a cache
//! of its own:
//!
//! ```no_run
//! use iovcache::Cache;
//! use iovcache::server::{ListenOptions, Listeners, ServeOptions, run};
//! use iovcache::source::{SourceOptions, open};
//!
//! # async fn serve(shutdown: impl Future<Output = ()> + Send) -> Result<(), Box<dyn std::error::Error>> {
//! let source = open("file:///data/conditions", &SourceOptions::default())?;
//! let cache = Cache::builder().source(source).build()?;
//! let flight = Some("127.0.0.1:50051".parse()?);
//! let options = ListenOptions { flight, ..ListenOptions::default() };
//! let listeners = Listeners::bind(&options).await?;
//! run(listeners, cache, ServeOptions::default(), shutdown, || println!("ready")).await?;
//! # Ok(())
//! # }
//! ```

mod action;
mod auth;
mod call_origin;
mod ccdb;
mod client;
mod config;
mod connection;
mod descriptors;
mod do_get;
mod exchange;
mod flight;
mod guard;
mod http;
mod limits;
mod listen;
mod local_user;
mod log;
mod meter;
mod metrics;
mod outgoing;
mod page;
mod process;
mod put;
mod reloads;
mod reset_limit;
mod run;
mod status;
mod ticket;
mod tls;
mod units;
mod untrusted_ipc;

pub use auth::{Access, Denied, Identity, Keys, KeysError, Role, UnprotectedListener};
pub use ccdb::{Answering, CcdbServerConfig};
pub use config::{
    Config, ConfigError, ConfigFault, ConfigKey, Document, LogFormat, MissingConfig, Override,
    PathConfig, RemapConfig, Section, SectionForm, SegmentBacking, Settings, SourceConfig,
    TlsConfig, ValueOrigin, sections,
};
pub use descriptors::Descriptors;
pub use limits::Limits;
pub use listen::{Exposure, ListenError, ListenOptions, Listeners};
pub use log::LogWriter;
pub use reloads::Reloads;
pub use run::{FLIGHT_DESCRIPTOR, ServeError, ServeOptions, run};
pub use tls::{Tls, TlsError};
pub use units::{ByteSize, RegionPath, SocketMode, TimeSpan};
// For the program and the fuzz targets.
#[doc(hidden)]
pub use untrusted_ipc::{silence_decode_panics, timestamps_of_messages};
