//! Keeps condition objects in shared memory for the time in which they are valid.

pub mod clock;
pub mod error;
pub mod index;
pub mod interval;
pub mod object;
pub mod shm;
#[cfg(feature = "cache")]
pub mod source;
pub mod table;

pub use clock::Clock;
pub use error::{Code, Coded, ErrorKind};
pub use interval::{Timestamp, ValidityInterval};
pub use object::{CreationLimits, Md5Sum, ObjectId, ObjectInfo, ObjectPath, Query};
