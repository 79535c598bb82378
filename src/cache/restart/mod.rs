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

/// Prefix of the name of each kept descriptor.
const PREFIX: &str = "iovcache-";

/// Keeps descriptors for the next process.
pub trait DescriptorStore: fmt::Debug + Send + Sync + 'static {
    /// Keeps a copy of a descriptor under a name, in addition to others with that name.
    fn keep(&self, name: &str, file: BorrowedFd<'_>);

    /// Drops the descriptors with this name.
    fn forget(&self, name: &str);
}

/// The state that this process saves for the next one.
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

    /// Saves the timelines if they have changed since the last save.
    pub(super) fn note(&self, saved_timelines: &SavedTimelines) {
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = notes.write(saved_timelines) {
            tracing::warn!(%error, "the timelines are not saved for the next process");
        }
    }
}

/// The name of a segment in the descriptor store.
pub(super) fn segment_name(epoch: Epoch, id: u16) -> String {
    format!("{PREFIX}segment-{epoch}-{id}")
}
