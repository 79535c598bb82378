//! Repositories: objects in folders, in the layout of CCDB's local server, so that iovcache and
//! that server can serve each other's folders.
//!
//! ```text
//!  <root>/TPC/Calib/VDriftTgl/            object path
//!                  └─ 1730895294000/      beginning of the validity interval (ms)
//!                       ├─ <uuid>             bytes
//!                       └─ <uuid>.properties  ValidUntil, CreateTime, Content-MD5, metadata …
//! ```
//!
//! A version exists once both of its files exist. The same layout can be stored in a bucket of an
//! object store ([`Bucket`]), which is read through the `object_store` crate.

mod batch;
mod beneath;
mod blob;
mod bucket;
mod carry;
mod change;
#[cfg(feature = "clouds")]
mod clouds;
mod crash_point;
mod entry;
mod fetch_check;
mod folder;
mod folders;
mod index;
mod local;
mod manifest;
mod newest;
mod path_list;
mod properties;
mod read_path;
mod reader;
mod spool;
mod store;
mod store_change;
mod store_listing;
mod sweep;
mod table;
mod verify;
mod walk;
mod watch;
mod writer;

pub use batch::Batch;
pub(super) use batch::Stage;
pub use bucket::Bucket;
pub(super) use bucket::IndexedVersion;
pub(crate) use bucket::SCHEMES as BUCKET_SCHEMES;
pub use index::{IndexReport, index, index_bucket};
pub use manifest::{ImportProgress, Imported, Manifest, ManifestError, import, import_manifest};
pub use properties::{Properties, PropertiesError};
pub use reader::{RepositoryOptions, RepositorySource};
pub use verify::verify;
pub use writer::{Durability, NewVersion, RepositoryError, RepositoryWriter, Stored};
