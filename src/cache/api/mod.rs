//! The public API of the cache: the only folder with `impl Cache`.
//!
//! ```text
//!  builder ─▶ handle (Cache)
//!  register, answer, exchange, progress, prefetch, objects,
//!  timeline                                                  requests of clients
//!  attach                                                    processes on the node
//!  leases, status, lifecycle, invariants, snapshot           operation
//! ```

mod announcer;
mod answer;
mod attach;
mod builder;
mod consumption;
mod exchange;
mod handle;
mod invariants;
mod leases;
mod lifecycle;
mod listings;
mod objects;
mod prefetch;
mod progress;
mod register;
mod snapshot;
mod status;
mod table;
#[cfg(test)]
mod tests;
mod timeline;

pub use self::answer::Answer;
pub(crate) use self::attach::AttachGate;
pub use self::attach::{AttachLimits, NotListed, PeerPolicy};
pub use self::builder::{BuildError, CacheBuilder};
pub use self::exchange::Exchange;
pub use self::handle::Cache;
pub use self::objects::HeldObject;
pub use self::progress::Progress;
pub(crate) use self::snapshot::Snapshot;
pub use self::status::SegmentRenewal;
