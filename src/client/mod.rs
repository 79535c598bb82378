//! The client: requests tables from a service, and resolves their cells.
//!
//! ```text
//!  Client ──request──▶ service ──table of MetaHeaders──▶ Table ──get(row)──▶ &[u8]
//!     └── attach socket ──▶ segments, mapped read-only ────┘
//! ```
//!
//! On the node of the service, objects are read in shared memory. Elsewhere each object is sent
//! once, and the tables look alike.
//!
//! A service that stops is mostly restarted. Calls that can safely be repeated are repeated, with
//! growing pauses, until the time limit of the caller (the request's `wait`, else
//! [`ClientOptions::patience`]). Earlier tables stay readable meanwhile.
//!
//! ```no_run
//! use iovcache::client::{Client, TableRequest};
//!
//! # async fn walk() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::connect("grpc+unix:///run/iovcache/flight.sock").await?;
//! let request = TableRequest::new()
//!     .column("vdrift", "TPC/Calib/VDriftTgl")
//!     .timestamps([1_000, 3_000, 4_000]);
//! let table = client.table(request).await?;
//! for run in table.column("vdrift")?.runs() {
//!     let (rows, bytes) = run?;
//!     println!("rows {rows:?}: {} bytes", bytes.map_or(0, <[u8]>::len));
//! }
//! # Ok(())
//! # }
//! ```

mod cells;
mod connect;
mod consumption;
mod error;
mod events;
mod fetch;
mod known_timeframes;
mod large;
mod listing;
mod local;
mod local_join;
mod options;
mod plane_request;
mod plane_table;
mod plane_timeframe;
mod registration;
mod retry;
mod service;
mod session;
mod table;
mod table_columns;
mod timeframe;
mod timeframe_columns;
mod tls_files;

pub use consumption::Consumption;
pub use error::ClientError;
pub use listing::{PathEntry, PathStream};
pub use local::{ChangeStep, Local, LocalPath, View};
pub use options::ClientOptions;
pub use service::Client;
pub use table::{Column, ObjectRun, Table};
pub use tls_files::TlsFiles;

pub use crate::shm::Mappings as Resolver;
pub use crate::shm::PlaneEvent;
pub use crate::shm::attach::Attachment;
pub use crate::table::TableRequest;
