//! What this process leaves to its successor.

use std::fmt;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};

use super::object_log::ObjectLog;
use super::timelines::{SavedTimelines, TimelineFiles};
use crate::shm::Epoch;

/// What stands before the name of each descriptor that is kept.
pub(crate) const PREFIX: &str = "iovcache-";

/// Keeps descriptors for the process that comes after this one.
pub trait DescriptorStore: fmt::Debug + Send + Sync + 'static {
    /// Keeps a copy under a name, beside those that have it already.
    fn keep(&self, name: &str, file: BorrowedFd<'_>);

    /// Keeps those of this name no longer.
    fn forget(&self, name: &str);
}

/// What this process leaves to its successor.
#[derive(Debug)]
pub(crate) struct RestartState {
    pub(crate) object_log: Arc<ObjectLog>,
    notes: Mutex<TimelineFiles>,
}

impl RestartState {
    pub(crate) fn new(
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
    pub(crate) fn note(&self, saved_timelines: &SavedTimelines) {
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = notes.write(saved_timelines) {
            tracing::warn!(%error, "what is known is not written down for a successor");
        }
    }
}

/// The name under which a segment is kept.
pub(crate) fn segment_name(epoch: Epoch, id: u16) -> String {
    format!("{PREFIX}segment-{epoch}-{id}")
}
