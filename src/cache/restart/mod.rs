//! What outlives this process, where somebody keeps descriptors for the next one: a warm restart.
//!
//! ```text
//!  this process                                   keeper (systemd)            its successor
//!   segments (memfds, sealed) ──one name each──▶  holds the descriptors ──▶  Heritage
//!   Ledger: which object lies where ───────────▶                              │ Relic: block header,
//!   Notes: which version decides when ─────────▶                              │ CRC-32C right?
//!                                                                             ▼
//!                                              copied into segments of its own, under new generations
//! ```
//!
//! The ledger is written as objects come and go: one record of 256 bytes each, with a checksum of its
//! own, so a process that is killed in the middle leaves a record that says nothing. It is crossed
//! out before the object's place is given back; what lies in a place that was given back is never
//! taken for an object, whatever its bytes look like. The notes are written a moment later, in turn
//! into two files, so that one of them is whole at any time.
//!
//! Sealed segments cannot be written any more, not even by us: so a successor copies what it takes
//! over, object by object, and gives each old segment back when it has all of it. For that moment
//! memory is needed twice. Sessions, leases and timeframes are not taken over: those who had them
//! come back by themselves.

mod inheritance;
mod object_log;
mod state;
mod timelines;

pub use inheritance::Inheritance;
pub(crate) use inheritance::{InheritRefusal, InheritedObject, InheritedObjects};
pub(crate) use object_log::{LogEntry, LogRecord, ObjectLog};
pub use state::DescriptorStore;
pub(crate) use state::{RestartState, segment_name};
pub(crate) use timelines::{SavedSeries, SavedTimelines};
