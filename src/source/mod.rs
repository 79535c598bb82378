//! Sources of objects: one trait, several implementations, and one suite that all of them pass.
//!
//! ```text
//!  cache ──look_up(query, at)──▶ Source ──▶ Knowledge: the versions that decide in a span
//!        ──fetch(version, body)─▶        ──▶ bytes, straight into the caller's memory
//!        ──paths(prefix)────────▶        ──▶ paths with their number of versions
//! ```
//!
//! The first two calls are separate on purpose: the version that decides at a timestamp is small
//! and changes, the bytes of a version are large and never change. A source does not know the
//! destination of the bytes: it writes into a [`Body`], which the cache implements over a block in
//! shared memory.

mod availability;
mod blocking;
mod body;
mod body_digest;
pub mod ccdb;
mod chain;
mod change;
mod claim;
mod contract;
mod copy;
mod crypto;
mod details;
pub mod disk;
mod error;
mod flat_headers;
mod memory;
mod open;
mod policy;
mod regular_file;
pub mod repository;
mod scan;
#[cfg(test)]
mod switch;
mod url_parts;
mod verify;

pub(crate) use blocking::in_place;
pub use body::{Body, ReadBytes, VecBody, write_all};
pub use chain::{ChainSource, Link, Remap};
pub use change::{Change, ChangeKind, Changed, UploadBytes, WriteTarget};
pub use claim::{ClaimError, select};
pub(crate) use contract::page_key;
pub use contract::{
    ChangeListener, Knowledge, PageKey, PathParts, PathSummary, Problem, Reachability, Source,
    SourceHealth, VersionPage,
};
pub use copy::{Copied, CopyError, Destination, Selection, copy};
#[doc(hidden)]
pub use crypto::install_crypto_provider;
pub use details::Details;
pub use disk::DiskSource;
pub(crate) use disk::VersionRecord;
pub use error::{BodyError, SourceError};
pub use flat_headers::HeaderSource;
pub use memory::MemorySource;
#[doc(hidden)]
pub use open::check_url;
pub use open::{SourceOptions, open};
pub use policy::{PathPolicy, Policies, PolicySource, WhenMissing};
pub(crate) use regular_file::open_regular;
pub(crate) use scan::NewestVersions;
pub use scan::{Scan, ScanPiece, ScannedVersion, VersionStream};
#[doc(hidden)]
pub use url_parts::{check_unlimited, folder_of, split_prefixes};
pub use verify::{Damage, RepairOutcome, VerifyReport};
