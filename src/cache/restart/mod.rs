//! Warm restart: state that a descriptor store keeps for the next process.
//!
//! ```text
//!  this process                                 DescriptorStore (systemd)     next process
//!   segments (memfds, sealed) ──one name each──▶ keeps the descriptors ──▶ Inheritance
//!   ObjectLog: location of each object ────────▶                            │ InheritedObject:
//!   SavedTimelines: effective versions ────────▶                            │ header, CRC-32C?
//!                                                                           ▼
//!                                              copied into its own segments, with new generations
//! ```
//!
//! The object log is written as objects come and go: one record of 256 bytes each, with a checksum
//! of its own, so a process killed during a write leaves an invalid record. A record is erased
//! before its block is freed, so bytes in freed memory are never taken for an object, whatever they
//! contain. The timelines are saved a moment later, alternating between two files, so that one of
//! them is complete at any time.
//!
//! Sealed segments cannot be written any more, not even by this service. So the next process copies
//! the objects one by one, and releases each old segment when it is done. During that time the
//! memory is needed twice. Sessions, leases and timeframes are not taken over: clients reopen them.

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
