//! A disk tier before a source: what was read once is there again after a restart, and when the
//! source is down.
//!
//! ```text
//!  look_up ─▶ source ──answers──▶ kept beside its span ─▶ answer
//!               └─ down, or silent for too long ─▶ the answer kept for that time, marked stale
//!  fetch   ─▶ body on the disk, of this id, size and MD5, CRC-32C right ─▶ bytes
//!               └─ not there ─▶ source ──written through──▶ body on the disk
//!
//!  DIR/lock                     one process at a time
//!     /bodies/<2 hex>/<uuid>    header, the version it is of, the bytes
//!     /answers/<2 hex>/<uuid>   a query, and what was said of it: span, versions
//! ```
//!
//! A source that answers is always asked: the disk never decides which version holds while there is
//! somebody who knows. What it says then is what the source last said of that very time. Files
//! appear whole, under their names, by a rename; each carries a checksum; so a process that is
//! killed leaves at most a file that nobody reads, which the next one removes. They are not synced:
//! after a power cut a damaged file is found by its checksum, thrown away and fetched again.

mod bodies;
mod file;
mod lookup_log;
mod lru_folder;
mod source;
#[cfg(test)]
mod tests;
mod verify;

pub(crate) use self::file::VersionRecord;
pub(super) use self::file::open_regular;
pub use self::source::DiskSource;
pub use self::verify::verify;
