//! Blocks that a lease pins: what hands out their bytes to safe code.

use std::fmt;
use std::sync::Arc;

use super::client::Attachment;
use crate::shm::layout::MetaHeader;
use crate::shm::resolver::{Mappings, ResolveError};

/// Called with the id of a lease that the attach socket does not take.
pub(crate) type ReleaseLease = Box<dyn Fn(String) + Send + Sync>;

/// The blocks of one answer: pinned by its lease, which is released when this is dropped, and by the
/// session, which lives at least as long.
pub(crate) struct PinnedBlocks {
    mappings: Arc<Mappings>,
    attachment: Arc<Attachment>,
    lease: Option<String>,
    release: ReleaseLease,
}

impl fmt::Debug for PinnedBlocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pinned").field("mappings", &self.mappings.len()).finish_non_exhaustive()
    }
}

impl PinnedBlocks {
    /// What the lease of an answer to `attachment`'s session pins.
    pub(crate) fn new(
        attachment: Arc<Attachment>,
        lease: Option<String>,
        release: ReleaseLease,
    ) -> Self {
        Self { mappings: attachment.mappings(), attachment, lease, release }
    }

    /// Maps the segment or region of `header`, if the service announces it.
    pub(crate) fn map(&mut self, header: &MetaHeader) {
        if !self.mappings.knows(header) {
            self.mappings = self.attachment.mappings_for(header);
        }
    }

    /// The bytes of one of the pinned blocks.
    ///
    /// # Errors
    /// [`ResolveError`], also if `header` is none of the answer's and its block was given up.
    #[inline]
    pub(crate) fn resolve(&self, header: &MetaHeader) -> Result<&[u8], ResolveError> {
        self.mappings.resolve_pinned(header)
    }

    /// What is mapped for these blocks.
    pub(crate) fn mappings(&self) -> &Mappings {
        &self.mappings
    }

    /// The session.
    pub(crate) fn attachment(&self) -> &Arc<Attachment> {
        &self.attachment
    }

    /// The lease.
    pub(crate) fn lease(&self) -> Option<&str> {
        self.lease.as_deref()
    }

    /// The lease, for a caller that releases it.
    pub(crate) fn into_lease(mut self) -> Option<String> {
        self.lease.take()
    }
}

impl Drop for PinnedBlocks {
    fn drop(&mut self) {
        // In a forked child the lease is the parent's.
        if let Some(lease) = self.lease.take().filter(|_| !self.attachment.is_forked())
            && !self.attachment.release(&lease)
        {
            (self.release)(lease);
        }
    }
}
