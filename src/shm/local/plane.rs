//! The local plane of a consumer: directory and pins page of its session.

use std::sync::Arc;

use super::super::attach::Attachment;
use super::super::resolver::Mappings;
use super::ask_reason::AskReason;
use super::files::LocalFiles;
use super::pins_page::REASONS;
use crate::sync::Mutex;

/// Numbers of look-ups of a session.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LookUpCounts {
    /// Look-ups answered from shared memory.
    pub hits: u64,
    /// Look-ups for which the service had to be asked.
    pub asks: u64,
}

/// The local plane of one session: look-ups in shared memory, without a request.
///
/// It keeps the session alive, and so every pin. In a forked child, look-ups fail with
/// [`AskReason::Forked`].
#[derive(Debug)]
pub struct LocalPlane {
    attachment: Arc<Attachment>,
    files: Arc<LocalFiles>,
    /// Mappings that views may still read although their path uses newer ones.
    retained: Mutex<Vec<Arc<Mappings>>>,
}

impl LocalPlane {
    /// The local plane of a session; `None` if the service offers none that this version
    /// understands.
    pub fn new(attachment: Arc<Attachment>) -> Option<Arc<Self>> {
        let files = attachment.local_files()?;
        Some(Arc::new(Self { attachment, files, retained: Mutex::default() }))
    }

    /// Counts of look-ups of this session. Paths add their hits every 256 ms.
    pub fn counts(&self) -> LookUpCounts {
        let (hits, asks) = self.files.page.counts();
        LookUpCounts { hits, asks: asks.iter().fold(0, |sum: u64, n| sum.saturating_add(*n)) }
    }

    /// The session.
    #[inline]
    pub fn attachment(&self) -> &Arc<Attachment> {
        &self.attachment
    }

    #[inline]
    pub(super) fn files(&self) -> &LocalFiles {
        &self.files
    }

    pub(super) fn shared_files(&self) -> &Arc<LocalFiles> {
        &self.files
    }

    /// Checks that the session has not ended and belongs to this process.
    #[inline]
    pub(crate) fn check(&self) -> Result<(), AskReason> {
        if self.attachment.is_forked() {
            return Err(AskReason::Forked);
        }
        if self.attachment.has_ended() {
            return Err(AskReason::Ended);
        }
        Ok(())
    }

    /// Whether tables must be requested from the service, which limits how long they are held.
    #[cfg(feature = "client")]
    pub(crate) fn tables_are_requested(&self) -> bool {
        self.files.page.tables_are_requested()
    }

    /// Whether tables of timeframes must be requested from the service.
    #[cfg(any(feature = "client", feature = "capi"))]
    pub(crate) fn timeframes_are_requested(&self) -> bool {
        self.files.directory.timeframes() == 0 || self.files.page.timeframes_are_requested()
    }

    /// The count of claims of consumers' names: the service has accepted the use of a name if it has
    /// done so while the count was the same. `None`: the service does not tell it.
    #[cfg(any(feature = "client", feature = "capi"))]
    pub(crate) fn claims(&self) -> Option<u32> {
        self.files.directory.claims()
    }

    /// Counts the table of a timeframe that was taken from shared memory.
    #[cfg(any(feature = "client", feature = "capi"))]
    pub(crate) fn count_timeframe(&self) {
        self.files.page.count_hits(1);
    }

    /// Counts a look-up for which the service must be asked.
    pub(crate) fn count_ask(&self, reason: AskReason) {
        if !matches!(reason, AskReason::Forked) {
            self.files.page.count_ask(reason.number().min(REASONS - 1));
        }
    }

    /// Keeps mappings that a view may still read. They are dropped when the session pins no block.
    pub(super) fn retain(&self, mappings: Arc<Mappings>) {
        let mut retained = self.retained.lock();
        if !retained.iter().any(|one| Arc::ptr_eq(one, &mappings)) {
            retained.push(mappings);
        }
        // A view of any of them was pinned before they were retained, so its slot counts as used.
        let unused = match self.files.page.is_unused() {
            true => std::mem::take(&mut *retained),
            false => Vec::new(),
        };
        drop(retained);
        // Unmapping is slow, so it runs without the lock.
        drop(unused);
    }
}
