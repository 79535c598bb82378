//! Repositories: objects in folders, in the layout of CCDB's local server, so that either can serve
//! the other's.
//!
//! ```text
//!  <root>/TPC/Calib/VDriftTgl/            the path
//!                  └─ 1730895294000/      where the interval begins (ms)
//!                       ├─ <uuid>             the bytes
//!                       └─ <uuid>.properties  ValidUntil, CreateTime, Content-MD5, metadata …
//! ```
//!
//! A version is there once both files are. Reading goes through the `object_store` crate, so the
//! same layout can lie in a bucket of an object store ([`Bucket`]).

mod batch;
mod beneath;
mod bucket;
mod carry;
mod change;
#[cfg(feature = "clouds")]
mod clouds;
mod entry;
mod folder;
mod index;
mod local;
mod manifest;
mod properties;
mod reader;
mod store;
mod table;
mod verify;
mod walk;
mod watch;
mod writer;

pub use batch::Batch;
pub(super) use batch::Stage;
pub use bucket::Bucket;
pub(crate) use bucket::SCHEMES as BUCKET_SCHEMES;
pub use index::{IndexReport, index};
pub use manifest::{ImportProgress, Imported, ManifestError, import};
pub use properties::{Properties, PropertiesError};
pub use reader::{RepositoryOptions, RepositorySource};
pub use verify::verify;
pub use writer::{Durability, NewVersion, RepositoryError, RepositoryWriter, Stored};
