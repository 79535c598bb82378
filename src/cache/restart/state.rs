//! The state that this process saves for the next one.

use std::fmt;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::Arc;

use super::object_log::ObjectLog;
use super::timelines::{SavedTimelines, TimelineFiles};
use crate::shm::Epoch;
use crate::sync::Mutex;

/// Prefix of the name of each kept descriptor.
pub(crate) const PREFIX: &str = "iovcache-";

/// Keeps descriptors for the next process.
pub trait DescriptorStore: fmt::Debug + Send + Sync + 'static {
    /// Keeps a copy of a descriptor under a name, in addition to others with that name.
    fn keep(&self, name: &str, file: BorrowedFd<'_>);

    /// Drops the descriptors with this name.
    fn forget(&self, name: &str);
}

/// The state that this process saves for the next one.
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

    /// Saves the timelines if they have changed since the last save.
    pub(crate) fn note(&self, saved_timelines: &SavedTimelines) {
        let mut notes = self.notes.lock();
        if let Err(error) = notes.write(saved_timelines) {
            tracing::warn!(%error, "the timelines are not saved for the next process");
        }
    }
}

/// The name of a segment in the descriptor store.
pub(crate) fn segment_name(epoch: Epoch, id: u16) -> String {
    format!("{PREFIX}segment-{epoch}-{id}")
}
