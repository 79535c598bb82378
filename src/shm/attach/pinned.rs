//! Blocks that a lease pins: what hands out their bytes to safe code.
#![allow(unsafe_code)]

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use super::client::Attachment;
use crate::shm::layout::MetaHeader;
use crate::shm::resolver::{Location, Mappings, ResolveError};

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

/// The bytes of one block, and what pins it.
pub(crate) struct LeasedBytes {
    _blocks: Arc<PinnedBlocks>,
    location: Location,
}

// SAFETY: it only reads bytes that nobody writes as long as it lives.
unsafe impl Send for LeasedBytes {}
// SAFETY: as above.
unsafe impl Sync for LeasedBytes {}

impl LeasedBytes {
    /// The bytes of one of the blocks that a lease pins.
    ///
    /// # Errors
    /// [`ResolveError`], also if the block was given up.
    pub(crate) fn new(
        blocks: Arc<PinnedBlocks>,
        header: &MetaHeader,
    ) -> Result<Self, ResolveError> {
        let location = blocks.mappings.locate(header)?;
        Ok(Self { _blocks: blocks, location })
    }
}

impl Deref for LeasedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: inside of a mapping that `_blocks` keeps (`locate` has seen it), of a block that
        // its lease pins for as long.
        unsafe { std::slice::from_raw_parts(self.location.address, self.location.size) }
    }
}

impl fmt::Debug for LeasedBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LeasedBytes({} bytes)", self.location.size)
    }
}
