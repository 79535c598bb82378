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
mod timelines;

use std::fmt;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};

use crate::shm::Epoch;

pub use inheritance::Inheritance;
pub(crate) use inheritance::{InheritRefusal, InheritedObject, InheritedObjects};
pub(crate) use object_log::{LogEntry, LogRecord, ObjectLog};
use timelines::TimelineFiles;
pub(crate) use timelines::{SavedSeries, SavedTimelines};

/// What stands before the name of each descriptor that is kept.
const PREFIX: &str = "iovcache-";

/// Keeps descriptors for the process that comes after this one.
pub trait DescriptorStore: fmt::Debug + Send + Sync + 'static {
    /// Keeps a copy under a name, beside those that have it already.
    fn keep(&self, name: &str, file: BorrowedFd<'_>);

    /// Keeps those of this name no longer.
    fn forget(&self, name: &str);
}

/// What this process leaves to its successor.
#[derive(Debug)]
pub(super) struct RestartState {
    pub(super) object_log: Arc<ObjectLog>,
    notes: Mutex<TimelineFiles>,
}

impl RestartState {
    pub(super) fn new(
        descriptor_store: &dyn DescriptorStore,
        epoch: Epoch,
    ) -> std::io::Result<Self> {
        let (object_log, notes) = (Arc::new(ObjectLog::new()?), TimelineFiles::new()?);
        descriptor_store.keep(&format!("{PREFIX}ledger-{epoch}"), object_log.file());
        for (letter, file) in ["a", "b"].into_iter().zip(notes.files()) {
            descriptor_store.keep(&format!("{PREFIX}notes-{epoch}-{letter}"), file.as_fd());
        }
        Ok(Self { object_log, notes: Mutex::new(notes) })
    }

    /// Writes down what is known, if it is not what was written last.
    pub(super) fn note(&self, saved_timelines: &SavedTimelines) {
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = notes.write(saved_timelines) {
            tracing::warn!(%error, "what is known is not written down for a successor");
        }
    }
}

/// The name under which a segment is kept.
pub(super) fn segment_name(epoch: Epoch, id: u16) -> String {
    format!("{PREFIX}segment-{epoch}-{id}")
}
