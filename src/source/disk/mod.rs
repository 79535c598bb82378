//! A disk tier before a source: objects and answers are available after a restart, and while the
//! source is down.
//!
//! ```text
//!  look_up ─▶ source ──answers──▶ logged with its span ─▶ answer
//!               └─ down, or silent for too long ─▶ logged answer for that time, marked stale
//!  fetch   ─▶ body on the disk, with this id, size, MD5 and a right CRC-32C ─▶ bytes
//!               └─ no such body ─▶ source ──written through──▶ body on the disk
//!
//!  DIR/lock                     one process at a time
//!     /bodies/<2 hex>/<uuid>    header, description of the version, bytes
//!     /answers/<2 hex>/<uuid>   a query, and its answers: spans, versions
//! ```
//!
//! A source that answers is always asked: the disk never decides which version is in effect while
//! the source can be reached. A logged answer is the source's last answer for that very time.
//!
//! Files are renamed when they are complete, and each has a checksum. A process that is killed
//! leaves at most a partial file, which readers ignore and the next process removes. Files are not
//! synced: after a power failure a damaged file is detected by its checksum, removed and fetched
//! again.

mod bodies;
mod file;
mod lookup_log;
mod lru_folder;
mod source;
#[cfg(test)]
mod tests;
mod verify;

pub(crate) use self::file::VersionRecord;
pub use self::source::DiskSource;
pub use self::verify::verify;
