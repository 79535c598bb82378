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
//! use iovcache::cache::Asker;
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
//! let answer = cache.answer(&request, &Asker::default()).await?;
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
//! use iovcache::cache::{Asker, PeerPolicy};
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
//! let answer = cache.answer(&Request::parse(request.as_bytes())?, &Asker::default()).await?;
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

mod actions;
mod ahead;
mod announcer;
mod answer;
mod attach;
mod builder;
mod candidates;
mod catalog;
mod check;
mod error;
mod exchange;
mod flight;
mod form;
mod gate;
mod hand;
mod keep;
mod lease;
mod loader;
mod locked;
mod object;
mod origin;
mod picture;
mod pins;
mod places;
mod plan;
mod progress;
mod publication;
mod publish;
mod publisher;
mod record;
mod register;
mod residency;
mod resident;
#[cfg(test)]
mod samples;
mod slow;
#[cfg(test)]
mod tests;
mod timeframe;
mod turns;
mod versions;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use answer::{Answer, Asker, Described};
pub use attach::{AttachGate, AttachLimits, NotListed, PeerPolicy};
pub use builder::{BuildError, CacheBuilder};
pub use error::{CacheError, MissingColumn};
pub use exchange::Exchange;
pub use hand::InHand;
pub use keep::{Heritage, Keeper};
pub use lease::LeaseId;
pub use object::{Effective, Held, Versions};
pub use origin::Origin;
pub use picture::{
    PathPicture, Picture, Piece, SegmentPicture, SessionPicture, SourcePicture, SpanPicture,
    SpanState,
};
pub use progress::Progress;
pub use record::TARGET as TABLE_LOG;
pub use resident::{Pin, PinSet};
pub use slow::{ConsumerLimits, SlowConsumer};

use self::catalog::Catalog;
use self::lease::Leases;
use self::loader::Loader;
use self::residency::Residency;
use self::slow::SlowWatch;
use self::timeframe::Timeframes;
use crate::budget::Budget;
use crate::clock::{Clock, Moment};
use crate::object::CreationLimits;
use crate::shm::Pool;
use crate::source::Policies;
use crate::table::ColumnRequest;
use crate::telemetry::Counters;

/// Keeps condition objects in shared memory and answers with tables of their MetaHeaders.
///
/// Clones are the same cache. When the last one is dropped, its segments go; mappings of consumers
/// stay readable, but no MetaHeader resolves in them any more.
#[derive(Clone)]
pub struct Cache(Arc<Inner>);

struct Inner {
    clock: Clock,
    started: Moment,
    counters: Arc<Counters>,
    pool: Pool,
    residency: Arc<Residency>,
    catalog: Arc<Catalog>,
    policies: Policies,
    ahead: ahead::Ahead,
    forms: form::Forms,
    loader: Arc<Loader>,
    leases: Arc<Leases>,
    objects: object::Objects,
    hands: Arc<hand::Hands>,
    /// What is left to a successor, where anybody keeps it.
    kept: Option<Arc<keep::Kept>>,
    timeframes: Arc<Timeframes>,
    slow: Arc<SlowWatch>,
    /// So many can be in flight.
    max_timeframes: usize,
    /// Memory beside the segments that requests may hold.
    budget: Budget,
    /// Whose turn it is to wait for a place in flight.
    registering: tokio::sync::Mutex<()>,
    /// What is seen of the versions, for every request.
    limits: CreationLimits,
    /// Sets of columns that requests may name.
    tables: BTreeMap<String, Vec<ColumnRequest>>,
    /// What became of the loading that polls have started.
    polls: Arc<std::sync::Mutex<progress::Polls>>,
    attach_path: OnceLock<PathBuf>,
    /// Told of each new segment.
    grown: watch::Sender<()>,
    /// Set when no new work is taken.
    draining: CancellationToken,
    /// What consumers look up by themselves; `None` where that is turned off.
    publisher: Option<Arc<publisher::Publisher>>,
    /// The tasks that keep timelines fresh, let leases expire, load timeframes.
    tasks: std::sync::Mutex<JoinSet<()>>,
}

impl Cache {
    /// Starts to describe a cache.
    pub fn builder() -> CacheBuilder {
        CacheBuilder::default()
    }

    /// The memory beside the segments that requests may hold.
    pub fn budget(&self) -> &Budget {
        &self.0.budget
    }

    /// What it counted since its start.
    pub fn counters(&self) -> &Counters {
        &self.0.counters
    }
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache").field("residency", &self.0.residency).finish_non_exhaustive()
    }
}
