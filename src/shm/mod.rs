//! Shared memory: blocks in sealed segments, written by one process and read by many.
//!
//! ```text
//!  segment (a memfd, sealed: consumers can neither write nor truncate it)
//!  ┌────────────┬──────────────────────────┬──────────────────────┬──────────
//!  │ 4 KiB head │ block                    │ block                │ free …
//!  └────────────┼────────┬───────┬─────────┼──────────────────────┴──────────
//!               │ header │ chunk │ payload │
//!               │ 48 B   │ 16 B  │ size B  │  rounded up to 64 B
//!               └────────┴───────┴─────────┘
//!                        ▲       ▲
//!       MetaHeader.handle┘       └ result of resolving
//!
//!  service:   Pool ─reserve─▶ Reservation ─publish─▶ Block ─drop─▶ free
//!  consumer:  attach socket ─▶ Mappings ─locate(MetaHeader)─▶ address, size
//!             with a lease: PinnedBlocks ─resolve(MetaHeader)─▶ &[u8]
//! ```
//!
//! Only the service writes. Its records of free and used places are outside the segments, so no
//! action of a consumer can harm it, and no lock is shared between processes. Only this folder and
//! `ffi` have unsafe code.
//!
//! Linux only: memfd, seals, SCM_RIGHTS.

mod allocator;
pub mod attach;
mod backing;
mod block;
mod block_location;
mod cgroup;
mod commit;
#[cfg(test)]
mod conformance;
#[cfg(feature = "cache")]
mod fairmq;
mod futex;
#[cfg(test)]
mod golden;
#[cfg(feature = "cache")]
mod heap;
mod host;
#[cfg(test)]
mod host_arena;
mod host_blocks;
mod huge_pages;
mod inherited_fds;
mod layout;
mod local;
mod mapping;
#[cfg(feature = "cache")]
mod md5_lanes;
mod numbers;
mod pool;
mod pool_error;
mod pool_state;
mod prefetch;
mod region;
mod renewal;
mod resolve_error;
mod resolver;
mod segment;
mod segment_creation;
mod segment_names;
mod sync;

pub use backing::Backing;
pub use block::Block;
pub(crate) use block::Reservation;
#[cfg(feature = "cache")]
pub(crate) use block_location::BlockLocation;
pub use cgroup::memory_allowed;
#[cfg(feature = "cache")]
pub use fairmq::{shmid_of_session, shmid_of_text};
#[cfg(feature = "cache")]
pub(crate) use heap::{HeapTrim, KEPT_FREE_BYTES};
pub use host::{HostAllocator, HostBuffer, HostError, HostMemory};
pub use inherited_fds::inherited_files;
pub use layout::{Epoch, MetaHeader, NotAMetaHeader};
#[cfg(any(feature = "cache", feature = "client"))]
pub(crate) use local::ConsumerMark;
#[cfg(feature = "client")]
pub(crate) use local::LOOK_AGAIN;
pub use local::{
    AskReason, ChangeNotice, EventError, LocalPlane, LookUpCounts, OwnedPinnedView, PinnedView,
    PlaneEvent, PlanePath,
};
#[cfg(any(feature = "client", feature = "capi"))]
pub(crate) use local::{
    ColumnArrays, LineNumber, PinnedTimeframe, SpanAhead, TimeframeLook, ViewBatch,
};
#[cfg(feature = "cache")]
pub(crate) use local::{
    ColumnPart, Directory, DirectoryEntry, EntryCounts, PageLimits, PublishedSnapshot,
    PublishedTimeframe, ServicePage, SnapshotSpan, TimeframeEntry, TimeframeParts, UseSample,
    are_barriers_supported, monotonic_millis,
};
#[cfg(feature = "client")]
pub(crate) use local::{SpanReading, SpanSteps, TablePins, TimeframeWait};
#[cfg(feature = "cache")]
pub(crate) use md5_lanes::{MANY_LANES, md5_of_each};
pub use pool::{Pool, PoolOptions, Usage};
pub use pool_error::PoolError;
pub(crate) use pool_state::InFlight;
#[cfg(any(feature = "cache", feature = "client"))]
pub(crate) use prefetch::AHEAD;
#[cfg(feature = "cache")]
pub(crate) use prefetch::prefetch;
pub use region::{Region, RegionError};
pub use resolve_error::{MapError, ResolveError};
pub use resolver::{Location, Mappings};
pub(crate) use segment::SharedSegment;
pub use segment::{Kind, LostSegment, SegmentLoss};
#[cfg(feature = "capi")]
pub(crate) use segment_creation::RegisterSegment;
pub use segment_creation::SegmentCreation;
pub(crate) use segment_creation::SegmentRegistrar;
