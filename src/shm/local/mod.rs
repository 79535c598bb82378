//! The local plane: from (path, time) to pinned bytes without a system call.
//!
//! ```text
//!  directory (sealed, read-only)    snapshot (a block)           object (a block)
//!   hash of path ─▶ generation ───▶ starts │ cells ────────────▶ generation │ payload
//!                   and place                                        ▲
//!  pins page (one per session, written by its consumer)              │ same word
//!   slots: generations of the blocks in use ─────────────────────────┘
//! ```
//!
//! `schemas/directory.md` specifies the bytes, and [`protocol`] the synchronisation. The service
//! writes directory and snapshots and reads the pages. A consumer reads directory and snapshots and
//! writes its own page. Consumers check everything that they read, so corrupt bytes make them ask
//! the service. The service compares the words of a page with its own generations, so corrupt words
//! can only delay the reuse of memory.
#![cfg_attr(
    not(feature = "cache"),
    allow(dead_code, unused_imports, reason = "the service's side")
)]

mod ask_reason;
mod barrier;
mod block_place;
mod byte_quota;
mod change_notice;
mod directory;
mod files;
#[cfg(test)]
mod golden;
mod monotonic;
mod notifier;
#[cfg(any(feature = "client", feature = "capi"))]
mod pinned_timeframe;
mod pins_page;
mod plane;
mod plane_event;
mod protocol;
mod registry;
mod sealed;
mod slot_batch;
mod slot_chunks;
mod snapshot;
#[cfg(feature = "client")]
mod table_pins;
mod timeframe_entry;
mod timeframe_table;
#[cfg(any(feature = "client", feature = "capi", test))]
mod timeframe_view;
mod view;
#[cfg(any(feature = "client", feature = "capi"))]
mod view_batch;

pub use ask_reason::AskReason;
#[cfg_attr(not(feature = "cache"), allow(unused_imports, reason = "the service's side"))]
pub(crate) use barrier::is_supported as are_barriers_supported;
pub(crate) use directory::{Directory, DirectoryEntry, EntryCounts};
pub(super) use files::LocalFiles;
pub(crate) use monotonic::monotonic_millis;
pub(in crate::shm) use notifier::Notifier;
pub use notifier::PlaneEvent;
#[cfg(any(feature = "client", feature = "capi"))]
pub(crate) use pinned_timeframe::{LineNumber, PinnedTimeframe, TimeframeLook, TimeframeWait};
pub(crate) use pins_page::{PageLimits, ServicePage, UseSample};
pub use plane::{LocalPlane, LookUpCounts};
pub use plane_event::EventError;
pub(super) use protocol::retire;
pub(crate) use registry::SlotsInUse;
pub(super) use registry::{PageRegistry, QuarantinedPlace};
pub(crate) use snapshot::{PublishedSnapshot, SnapshotSpan};
#[cfg(feature = "client")]
pub(crate) use table_pins::{SpanReading, SpanSteps, TablePins};
pub(crate) use timeframe_entry::TimeframeEntry;
pub(crate) use timeframe_table::{ColumnPart, ConsumerMark, PublishedTimeframe, TimeframeParts};
#[cfg(any(feature = "client", feature = "capi"))]
pub(crate) use timeframe_view::ColumnArrays;
#[cfg(feature = "client")]
pub(crate) use view::LOOK_AGAIN;
pub use view::{ChangeNotice, OwnedPinnedView, PinnedView, PlanePath};
#[cfg(any(feature = "client", feature = "capi"))]
pub(crate) use view_batch::{SpanAhead, ViewBatch};
