//! Events of the local plane: for a timeframe that is being loaded, and for a change of a path.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use super::super::attach::process_generation;
use super::ask_reason::AskReason;
use super::change_notice;
use super::notifier::{EventRequest, PlaneEvent, SeenWord, WordPlace};
use super::plane::LocalPlane;
use super::timeframe_entry::EntryState;
use super::view::{ChangeNotice, LOOK_AGAIN, PlanePath};
use crate::error::{ErrorKind, coded};

/// Why no event can be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EventError {
    /// The session has ended or is the parent's, or the path is not published.
    #[error("no event can be made: {0:?}")]
    Ask(AskReason),
    /// The system provides no descriptor or thread.
    #[error("no descriptor or thread for an event: {0}")]
    System(#[from] io::Error),
}

coded! { EventError {
    Ask(reason) => (kind_of(*reason)) 4070,
    System => ResourceExhausted 4071,
} }

fn kind_of(reason: AskReason) -> ErrorKind {
    match reason {
        AskReason::Ended | AskReason::Forked => ErrorKind::FailedPrecondition,
        AskReason::NoSlot => ErrorKind::ResourceExhausted,
        AskReason::Unpublished
        | AskReason::Uncovered
        | AskReason::Unconfirmed
        | AskReason::NotResident
        | AskReason::NotMapped => ErrorKind::Unavailable,
    }
}

#[cfg(feature = "capi")]
impl PlaneEvent {
    /// An event that has happened.
    ///
    /// # Errors
    /// The system provides no descriptor.
    pub(crate) fn readable() -> Result<Self, EventError> {
        Ok(Self::readable_now()?)
    }
}

impl LocalPlane {
    /// An event for a timeframe that is being loaded: it is readable when that is no longer so, and at
    /// the end of the session. Then the table can be taken, or the service must be asked. `None`: that
    /// is so now.
    ///
    /// # Errors
    /// [`EventError`].
    pub fn timeframe_event(&self, timeframe: u64) -> Result<Option<PlaneEvent>, EventError> {
        self.check().map_err(EventError::Ask)?;
        for (entry, words) in self.files().directory.entries_of(timeframe) {
            // SYNC(notice): before the state.
            let seen = change_notice::note(words.changes());
            match words.read(timeframe).0 {
                EntryState::Loading => {
                    let word = SeenWord { place: WordPlace::Timeframe(entry), seen };
                    return Ok(Some(self.event(word, None, None)?));
                }
                EntryState::Ready | EntryState::Ask => return Ok(None),
                EntryState::Free => {}
            }
        }
        Ok(None)
    }

    fn event(
        &self,
        word: SeenWord,
        at: Option<Instant>,
        watch: Option<u32>,
    ) -> io::Result<PlaneEvent> {
        let (files, process) = (Arc::clone(self.shared_files()), process_generation());
        self.attachment().events().event(EventRequest { files, word, at, watch, process })
    }
}

impl PlanePath {
    /// An event for a change: it is readable when the answer for the path can be another one than when
    /// `notice` was taken, and at the end of the session. Like [`wait_change`](Self::wait_change): a
    /// path that the service does not refresh by itself can have changed after a second.
    ///
    /// # Errors
    /// [`EventError`].
    pub fn change_event(&self, notice: &ChangeNotice) -> Result<PlaneEvent, EventError> {
        let plane = self.plane();
        plane.check().map_err(EventError::Ask)?;
        let (entry, seen) = (notice.entry(), notice.count());
        if !plane.files().directory.has(entry) {
            return Err(EventError::Ask(AskReason::Unpublished));
        }
        let watch = plane.files().page.begin_watch(entry);
        let at = match watch {
            Some(_) if notice.is_refreshed() => None,
            _ => Some(Instant::now() + LOOK_AGAIN),
        };
        let made = plane.event(SeenWord { place: WordPlace::Path(entry), seen }, at, watch);
        if let (Err(_), Some(watch)) = (&made, watch) {
            plane.files().page.end_watch(watch);
        }
        Ok(made?)
    }
}
