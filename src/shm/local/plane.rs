//! A consumer's local plane: directory and pins page of its session.

use std::sync::Arc;

use super::super::attach::Attachment;
use super::super::resolver::Mappings;
use super::ask_reason::AskReason;
use super::files::LocalFiles;
use super::pins_page::REASONS;
use crate::sync::Mutex;

/// How many look-ups a session made by itself, and for how many it had to ask the service.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LookUpCounts {
    /// Answered from shared memory.
    pub hits: u64,
    /// The service was to be asked.
    pub asks: u64,
}

/// The local plane of one session: look-ups in shared memory, without a call.
///
/// It keeps the session, and so every pin, alive. In a forked child every look-up says
/// [`AskReason::Forked`].
#[derive(Debug)]
pub struct LocalPlane {
    attachment: Arc<Attachment>,
    files: Arc<LocalFiles>,
    /// Mappings that views may read although their path uses newer ones.
    retained: Mutex<Vec<Arc<Mappings>>>,
}

impl LocalPlane {
    /// The local plane of a session; `None` where the service does not offer one that this version
    /// understands.
    pub fn new(attachment: Arc<Attachment>) -> Option<Arc<Self>> {
        let files = attachment.local_files()?;
        Some(Arc::new(Self { attachment, files, retained: Mutex::default() }))
    }

    /// What this session looked up so far. A path counts its hits in up to 256 ms.
    pub fn counts(&self) -> LookUpCounts {
        let (hits, asks) = self.files.page.counts();
        LookUpCounts { hits, asks: asks.iter().fold(0, |sum: u64, n| sum.saturating_add(*n)) }
    }

    /// The session.
    pub fn attachment(&self) -> &Arc<Attachment> {
        &self.attachment
    }

    #[inline]
    pub(super) fn files(&self) -> &LocalFiles {
        &self.files
    }

    /// Whether its session is there, and this process's own.
    #[inline]
    pub(super) fn check(&self) -> Result<(), AskReason> {
        if self.attachment.is_forked() {
            return Err(AskReason::Forked);
        }
        if self.attachment.has_ended() {
            return Err(AskReason::Ended);
        }
        Ok(())
    }

    pub(super) fn count_ask(&self, reason: AskReason) {
        if !matches!(reason, AskReason::Forked) {
            self.files.page.count_ask(reason.number().min(REASONS - 1));
        }
    }

    /// Keeps mappings that a view may still read. They go when nothing of the session is pinned.
    pub(super) fn retain(&self, mappings: Arc<Mappings>) {
        let mut retained = self.retained.lock();
        if !retained.iter().any(|one| Arc::ptr_eq(one, &mappings)) {
            retained.push(mappings);
        }
        // A view of any of them was pinned before they came here, so its slot is seen to be used.
        let unused = match self.files.page.is_unused() {
            true => std::mem::take(&mut *retained),
            false => Vec::new(),
        };
        drop(retained);
        // Unmapping takes its time: not under the lock.
        drop(unused);
    }
}
