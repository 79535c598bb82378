//! The cache: keeps objects in shared memory, decides which version is valid at which timestamp,
//! and records which client holds which object.
//!
//! ```text
//!  request ─▶ Catalog: which version at which timestamp ─▶ Plan (runs of rows)
//!                 │ unknown: one look-up per (query, t)
//!                 ▼
//!               Source
//!                 ▲
//!                 │ absent: one load per object
//!  Plan ─▶ Loader ┴▶ Residency: objects in shared memory ─▶ pins ─▶ Assembled
//!                                                            │
//!                     Leases: sessions, timeframes, time ◀───┘ keep them pinned
//! ```
//!
//! A timeframe reserves its memory before it is registered (`memory::reservations`).
//!
//! A [`Cache`] needs no server. It can be embedded into a process that registers timeframes, takes
//! the tables as record batches, and serves the attach socket to its consumers.
//!
//! ```
//! use std::sync::Arc;
//!
//! use iovcache::cache::Caller;
//! use iovcache::index::Timestamps;
//! use iovcache::shm::PoolOptions;
//! use iovcache::source::MemorySource;
//! use iovcache::table::{ColumnRequest, Consumed, Register, TableRequest};
//! use iovcache::{Cache, ObjectId, ObjectInfo, ObjectPath, Timestamp, ValidityInterval};
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let source = MemorySource::new();
//! let at = Timestamp::from_millis;
//! let drift = ObjectInfo {
//!     path: ObjectPath::new("TPC/Calib/VDrift")?,
//!     id: ObjectId::from_bytes([1; 16]),
//!     validity: ValidityInterval::new(at(0), at(100))?,
//!     created: at(1),
//!     size_bytes: None,
//!     md5: None,
//!     metadata: Default::default(),
//! };
//! source.put(drift, &b"drift"[..]);
//! let memory = PoolOptions { memory_bytes: 4 << 20, ..PoolOptions::default() };
//! let cache = Cache::builder().source(Arc::new(source)).memory(memory).build()?;
//!
//! // A timeframe is loaded on registration and kept until all its consumers report it consumed.
//! let column = ColumnRequest::new("drift", ObjectPath::new("TPC/Calib/VDrift")?);
//! let times = Timestamps::new(vec![5, 15, 25], None);
//! cache.register(42, times, &Register::new([column], ["tracker"]), None).await?;
//!
//! let request = TableRequest::new().timeframe(42).consumer("tracker").build()?;
//! let answer = cache.answer(&request, &Caller::default()).await?;
//! let batches = answer.to_batches()?;
//! assert_eq!(batches[0].num_rows(), 3);
//! assert_eq!(answer.pins().pins()[0].payload(), b"drift");
//!
//! let done = Consumed::One { timeframe: 42, consumer: "tracker".to_owned() };
//! assert_eq!(cache.consumed(&done)?.dropped, [42]);
//! # Ok(())
//! # }
//! ```
//!
//! The consumers are separate processes. They get the tables by any transport of the workflow, and
//! the memory through the attach socket. Objects requested for a session stay pinned as long as the
//! process of the session lives:
//!
//! ```
//! # use std::sync::Arc;
//! #
//! use iovcache::Cache;
//! use iovcache::cache::{Caller, PeerPolicy};
//! use iovcache::shm::MetaHeader;
//! use iovcache::shm::attach::Attachment;
//! use iovcache::table::TableRequest;
//! use tokio::net::UnixListener;
//! use tokio_util::sync::CancellationToken;
//! # use iovcache::shm::PoolOptions;
//! # use iovcache::source::MemorySource;
//! # use iovcache::{ObjectId, ObjectInfo, ObjectPath, ValidityInterval};
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let source = MemorySource::new();
//! # let drift = ObjectInfo {
//! #     path: ObjectPath::new("TPC/Calib/VDrift")?,
//! #     id: ObjectId::from_bytes([1; 16]),
//! #     validity: ValidityInterval::ALL,
//! #     created: iovcache::Timestamp::from_millis(1),
//! #     size_bytes: None,
//! #     md5: None,
//! #     metadata: Default::default(),
//! # };
//! # source.put(drift, &b"drift"[..]);
//! # let memory = PoolOptions { memory_bytes: 4 << 20, ..PoolOptions::default() };
//! # let cache = Cache::builder().source(Arc::new(source)).memory(memory).build()?;
//! # let folder = tempfile::tempdir()?;
//! # let path = folder.path().join("attach.sock");
//! // The device with the cache:
//! let (listener, stop) = (UnixListener::bind(&path)?, CancellationToken::new());
//! let attach = {
//!     let (cache, stop) = (cache.clone(), stop.clone());
//!     async move { cache.serve_attach(listener, PeerPolicy::default(), stop).await }
//! };
//! let attach = tokio::spawn(attach);
//!
//! // A consumer, in its own process: it attaches under its name and gets a session.
//! let consumer = path.clone();
//! let consumer = tokio::task::spawn_blocking(move || {
//!     Attachment::open(&consumer, "tracker", None)
//! });
//! let consumer = consumer.await??;
//! let session = consumer.session();
//!
//! // The device again: it makes the table and forwards the cells to the consumer.
//! let request = TableRequest::new().column("drift", "TPC/Calib/VDrift").timestamps([5]);
//! let answer = cache.answer(&request.session(session).build()?, &Caller::default()).await?;
//! let cell: MetaHeader = answer.pins().pins()[0].meta_header();
//!
//! // The consumer reads the object in place, without a copy.
//! assert_eq!(consumer.mappings_for(&cell).read(&cell)?, b"drift");
//! drop(consumer); // This ends its session and releases its pins.
//! stop.cancel();
//! attach.await?;
//! # Ok(())
//! # }
//! ```

mod api;
mod deadline;
mod error;
mod holders;
mod memory;
mod restart;
mod single_flight;
mod tables;
mod ticks;
mod versions;
mod yielder;

pub use self::api::{
    Answer, AttachLimits, BuildError, Cache, CacheBuilder, Exchange, HeldObject, NotListed,
    PeerPolicy, Progress, SegmentRenewal,
};
pub(crate) use self::api::{AttachGate, Snapshot};
pub use self::error::{CacheError, MissingColumn};
pub use self::holders::caller::Caller;
pub use self::holders::lease::LeaseId;
pub use self::holders::limits::{ConsumerLimits, SlowConsumer};
pub use self::holders::origin::Origin;
pub use self::memory::object::Pin;
pub use self::restart::{DescriptorStore, Inheritance};
pub use self::tables::audit_log::TARGET as TABLE_LOG;
pub use self::tables::run_information::RunInformation;
pub use self::versions::object_index::Versions;
pub(crate) use self::versions::publisher::{LocalFigures, LookUpSums};
