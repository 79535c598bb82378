//! Where objects come from: one trait, several implementations, one suite that all of them pass.
//!
//! ```text
//!  cache ──look_up(query, at)──▶ Source ──▶ Knowledge: within this span, these versions decide
//!        ──fetch(version, body)─▶        ──▶ bytes, straight into the caller's memory
//!        ──paths(prefix)────────▶        ──▶ which paths there are
//! ```
//!
//! The two questions are kept apart on purpose: *which version at t* is small and changes, *the
//! bytes of a version* are large and never change. A source does not know where the bytes go: it
//! writes into a [`Body`] that the cache implements over a block in shared memory.

mod blocking;
mod body;
pub mod ccdb;
mod chain;
mod change;
mod claim;
mod contract;
mod copy;
mod details;
pub mod disk;
mod error;
mod flat_headers;
mod memory;
mod open;
mod policy;
pub mod repository;
mod verify;

pub(crate) use blocking::in_place;
pub use body::{Body, VecBody, write_all};
pub use chain::{ChainSource, Link, Remap};
pub use change::{Change, ChangeKind, Changed, UploadBytes, WriteTarget};
pub use claim::{ClaimError, select};
pub use contract::{
    ChangeListener, Knowledge, PageKey, PathSummary, Problem, Reachability, Source, SourceHealth,
    VersionPage, page_key,
};
pub use copy::{Copied, CopyError, Destination, Selection, copy};
pub use details::Details;
pub use disk::DiskSource;
pub(crate) use disk::VersionRecord;
pub use error::{BodyError, SourceError};
pub use flat_headers::HeaderSource;
pub use memory::MemorySource;
pub use open::{SourceOptions, check_url, open, split_prefixes};
pub use policy::{PathPolicy, Policies, PolicySource, WhenMissing};
pub use verify::{Damage, RepairOutcome, VerifyReport};
