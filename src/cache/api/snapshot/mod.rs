//! A snapshot of the cache for display. Its size is bounded for any number of objects, and it
//! blocks no request.
//!
//! ```text
//!  Residency ──shard by shard──▶ memory: place and holders of each object
//!  Catalog ────timelines───────▶ paths: the version at each time, and whether it is resident
//!  Timeframes, Leases, Source ─▶ the lists, newest entries
//! ```

mod holders;
mod memory;
mod paths;
mod summary;

pub(crate) use self::summary::Snapshot;
