//! The cache: owns the objects, knows who is valid when, and who holds what.
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
//!                     Leases: sessions, timeframes, time ◀───┘ hold them
//! ```
//!
//! A timeframe in flight claims its memory before it is let in (`places`).
//!
//! A [`Cache`] needs no server: it can be embedded into a process that registers timeframes, takes
//! the tables as record batches, and hands the attach socket to its consumers.
//!
//! ```
//! use std::sync::Arc;
//!
//! use iovcache::cache::Caller;
//! use iovcache::index::Timestamps;
//! use iovcache::shm::PoolOptions;
//! use iovcache::source::MemorySource;
//! use iovcache::table::{Consumed, Register, Request};
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
//! // A timeframe is loaded when it is registered, and kept until its consumers are done with it.
//! let columns = br#"{"columns": {"drift": "TPC/Calib/VDrift"}, "consumers": ["tracker"]}"#;
//! let times = Timestamps::new(vec![5, 15, 25], None);
//! cache.register(42, times, &Register::parse(columns)?, None).await?;
//!
//! let request = Request::parse(br#"{"timeframe": 42, "consumer": "tracker"}"#)?;
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
//! Its consumers are processes of their own. They get the tables by whatever way the workflow has,
//! and the memory through the attach socket; what is asked for in the name of their session is held
//! as long as they live:
//!
//! ```
//! # use std::sync::Arc;
//! #
//! use iovcache::Cache;
//! use iovcache::cache::{Caller, PeerPolicy};
//! use iovcache::shm::MetaHeader;
//! use iovcache::shm::attach::Attachment;
//! use iovcache::table::Request;
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
//! // A consumer, in its own process: it attaches, and says in whose name it is to be held.
//! let consumer = path.clone();
//! let consumer = tokio::task::spawn_blocking(move || Attachment::open(&consumer, "tracker", None));
//! let consumer = consumer.await??;
//! let session = consumer.session();
//!
//! // The device again: the table, whose cells it hands on.
//! let request = format!(
//!     r#"{{"columns": {{"drift": "TPC/Calib/VDrift"}}, "timestamps": [5], "session": "{session}"}}"#
//! );
//! let answer = cache.answer(&Request::parse(request.as_bytes())?, &Caller::default()).await?;
//! let cell: MetaHeader = answer.pins().pins()[0].meta_header();
//!
//! // And the consumer reads where the object lies, without a copy.
//! assert_eq!(consumer.mappings_for(&cell).read(&cell)?, b"drift");
//! drop(consumer); // So its session ends, and what was held for it is let go.
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
mod versions;
mod yielder;

pub use self::api::{
    Answer, AttachGate, AttachLimits, BuildError, Cache, CacheBuilder, Described, Exchange,
    HeldObject, NotListed, PathSnapshot, PeerPolicy, Progress, SegmentPiece, SegmentSnapshot,
    SessionSnapshot, Snapshot, SourceSnapshot, SpanSnapshot, SpanState,
};
pub use self::error::{CacheError, MissingColumn};
pub use self::holders::caller::Caller;
pub use self::holders::lease::LeaseId;
pub use self::holders::limits::{ConsumerLimits, SlowConsumer};
pub use self::holders::origin::Origin;
pub use self::memory::in_use::InUseGuard;
pub use self::memory::object::{Pin, PinSet};
pub use self::restart::{DescriptorStore, Inheritance};
pub use self::tables::audit_log::TARGET as TABLE_LOG;
pub use self::versions::object_index::{Effective, Versions};
pub use self::versions::publisher::{LocalFigures, LookUpSums};
