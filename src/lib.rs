//! Keeps condition objects in shared memory and answers requests with Arrow tables of their
//! locations.
//!
//! An *object path* has many *versions*, each valid in an interval `from <= t < until`; where they
//! overlap, the version created last wins. A cache loads the versions that a table of timestamps
//! needs into sealed segments, each once, and answers with one cell per timestamp: the
//! [`MetaHeader`](shm::MetaHeader) of the object's block, which processes on the node resolve to
//! read-only bytes without a copy.
//!
//! ```toml
//! [dependencies]
//! iovcache = { version = "0.1", default-features = false, features = ["client"] }
//! ```
//!
//! A client asks a service, and reads in place (`iovcache demo --stay` starts a service to try):
//!
//! ```no_run
//! # #[cfg(feature = "client")]
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use iovcache::client::{Client, TableRequest};
//!
//! let client = Client::connect("grpc://127.0.0.1:50051").await?;
//! let request =
//!     TableRequest::new().column("drift", "TPC/Calib/VDriftTgl").timestamps([1_731_000_000_000]);
//! let table = client.table(request).await?;
//! let bytes: Option<&[u8]> = table.column("drift")?.get(0)?; // None where the cell is null
//! # Ok(())
//! # }
//! ```
//!
//! A process can also contain the cache (feature `cache`), with or without a server:
//!
//! ```
//! # #[cfg(feature = "cache")]
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::sync::Arc;
//!
//! use iovcache::Cache;
//! use iovcache::cache::Caller;
//! use iovcache::source::MemorySource;
//! use iovcache::table::TableRequest;
//!
//! let cache = Cache::builder().source(Arc::new(MemorySource::new())).build()?;
//! let request = TableRequest::new().column("drift", "TPC/Calib/VDriftTgl").timestamps([5]);
//! let request = request.missing_as_null().build()?;
//! let answer = cache.answer(&request, &Caller::default()).await?;
//! assert_eq!(answer.to_batches()?[0].num_rows(), 1);
//! # Ok(())
//! # }
//! # #[cfg(not(feature = "cache"))]
//! # fn main() {}
//! ```
//!
//! | feature | contents |
//! |---|---|
//! | (none) | [`index`], [`shm`], [`table`]: timelines, shared memory, the layout of tables |
//! | `cache` | [`Cache`]: a cache in one's own process, and [`source`]s |
//! | `server` | [`server`]: Arrow Flight over a cache |
//! | `client` | [`client`]: asks a service; links neither moka nor a server |
//! | `capi` | the C ABI: resolving, and a cache in a device of C or C++ |
//! | `cli` (default) | the program `iovcache` |
//! | `clouds` (default) | repositories in object stores |
//!
//! | term | meaning |
//! |---|---|
//! | object path, version, object id | the name of a condition, one of its states over time, and the UUID of that state |
//! | timeframe | a table of timestamps that is registered for named *consumers*; its objects stay in memory until each has reported it as consumed |
//! | segment, block | a sealed file of shared memory, and the place of one object in it |
//! | MetaHeader, generation | 40 bytes that name a block; the number that tells whether it still holds that object |
//! | pin, lease, session | a hold on an object, which stays in its place; the pins of a table; the pins of an attached process |
//! | source | the store of versions and their bytes: a CCDB, a repository, memory |
//!
//! Imports run downwards only:
//!
//! ```text
//!   bin ─▶ server ─▶ cache ─▶ source        client ─▶ table, shm
//!              ffi ─▶  │  └─▶ table ─▶ index, shm
//!                      └────▶ telemetry
//!   all ─▶ object ─▶ interval ─▶ error
//! ```
//!
//! Linux only: memfd, SCM_RIGHTS, SO_PEERCRED.

// Items of the lower rooms that only the server or only the client uses are compiled without it
// too.
#![cfg_attr(not(all(feature = "server", feature = "client")), allow(dead_code, unused_imports))]

#[cfg(feature = "cache")]
mod bounded_cache;
pub mod budget;
#[cfg(feature = "cache")]
pub mod cache;
#[cfg(feature = "client")]
pub mod client;
pub mod clock;
pub mod error;
pub mod escape;
#[cfg(feature = "capi")]
pub mod ffi;
pub mod index;
pub mod interval;
pub mod object;
pub mod secret;
#[cfg(feature = "server")]
pub mod server;
pub mod shm;
#[cfg(feature = "cache")]
pub mod source;
#[doc(hidden)]
pub mod sync;
pub mod table;
#[cfg(feature = "cache")]
pub mod telemetry;
pub mod time_text;

#[cfg(feature = "cache")]
pub use cache::Cache;
pub use clock::Clock;
pub use error::{Code, Coded, ErrorKind};
pub use interval::{Timestamp, ValidityInterval};
pub use object::{
    CreationLimits, Md5Sum, ObjectId, ObjectInfo, ObjectPath, Query, VersionMetadata,
};
pub use secret::Secret;

/// Compiles the examples of the README with the documentation tests.
#[cfg(all(doctest, feature = "client"))]
#[doc = include_str!("../README.md")]
struct Readme;

/// Compiles the Rust example of the page about look-ups.
#[cfg(all(doctest, feature = "client"))]
#[doc = include_str!("../docs/local.md")]
struct LookUpPage;
