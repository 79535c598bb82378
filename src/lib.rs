//! Keeps condition objects in shared memory for the time in which they are valid, and answers with
//! Arrow tables of their MetaHeaders.
//!
//! An *object path* has many *versions*, each valid in an interval `from <= t < until`; where they
//! overlap, the one created last wins. A [`Cache`] loads the versions that a table of timestamps
//! needs into sealed segments, each once, keeps them as long as somebody holds them, and answers
//! with one cell per timestamp: the [`MetaHeader`](shm::MetaHeader) of the block where the object
//! lies, which any process on the node resolves to a read-only slice.
//!
//! ```text
//!   bin ─▶ server ─▶ cache ─▶ source        client ─▶ table, shm
//!              ffi ─▶  │  └─▶ table ─▶ index, shm
//!                      └────▶ telemetry
//!   all ─▶ object ─▶ interval ─▶ error
//! ```
//!
//! | feature | gives |
//! |---|---|
//! | (none) | [`index`], [`shm`], [`table`]: timelines, shared memory, the form of tables |
//! | `cache` | [`Cache`]: a cache inside of one's own process, and [`source`]s |
//! | `server` | [`server`]: Arrow Flight over a cache |
//! | `client` | [`client`]: asks a service; links neither moka nor a server |
//! | `capi` | the C ABI: resolving, and a cache in a device of C or C++ |
//! | `cli` (default) | the program `iovcache` |
//! | `clouds` (default) | repositories in object stores |
//!
//! Linux only: memfd, SCM_RIGHTS, SO_PEERCRED.

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

#[cfg(feature = "cache")]
pub use cache::Cache;
pub use clock::Clock;
pub use error::{Code, Coded, ErrorKind};
pub use interval::{Timestamp, ValidityInterval};
pub use object::{CreationLimits, Md5Sum, ObjectId, ObjectInfo, ObjectPath, Query};
pub use secret::Secret;

/// The walks of the README are compiled with the documentation.
#[cfg(all(doctest, feature = "client"))]
#[doc = include_str!("../README.md")]
struct Readme;
