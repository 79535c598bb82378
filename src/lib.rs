//! Keeps condition objects in shared memory for the time in which they are valid.

#[cfg(feature = "cache")]
pub mod cache;
#[cfg(feature = "client")]
pub mod client;
pub mod clock;
pub mod error;
pub mod index;
pub mod interval;
pub mod object;
#[cfg(feature = "server")]
pub mod server;
pub mod shm;
#[cfg(feature = "cache")]
pub mod source;
pub mod table;
#[cfg(feature = "cache")]
pub mod telemetry;

#[cfg(feature = "cache")]
pub use cache::Cache;
pub use clock::Clock;
pub use error::{Code, Coded, ErrorKind};
pub use interval::{Timestamp, ValidityInterval};
pub use object::{CreationLimits, Md5Sum, ObjectId, ObjectInfo, ObjectPath, Query};
