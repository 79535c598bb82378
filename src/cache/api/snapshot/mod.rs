//! A picture of the cache for people who look at it: of bounded size however much there is, and
//! drawn without holding up anybody.
//!
//! ```text
//!  Residency ──shard by shard──▶ memory: what lies where, and by whom it is pinned
//!  Catalog ────timelines───────▶ paths: which version holds when, and whether it is there
//!  Timeframes, Leases, Source ─▶ the lists, their newest entries
//! ```

mod holders;
mod memory;
mod paths;
mod summary;

pub use self::memory::{SegmentPiece, SegmentSnapshot};
pub use self::paths::{PathSnapshot, SpanSnapshot, SpanState};
pub use self::summary::{SessionSnapshot, Snapshot, SourceSnapshot};
