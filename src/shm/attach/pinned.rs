//! Blocks pinned by a lease or by slots, with safe access to their bytes.
#![allow(unsafe_code)]

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use super::client::Attachment;
use crate::object::ObjectId;
use crate::shm::layout::MetaHeader;
use crate::shm::local::{PinnedTimeframe, TablePins};
use crate::shm::resolve_error::ResolveError;
use crate::shm::resolver::{Location, Mappings};

/// Called with the id of a lease that cannot be released through the attach socket.
pub(crate) type ReleaseLease = Box<dyn Fn(String) + Send + Sync>;

/// The blocks of one table. They are pinned by its lease or by slots, which are released when this
/// is dropped, and by the session, which lives at least as long.
pub(crate) struct PinnedBlocks {
    mappings: Arc<Mappings>,
    attachment: Arc<Attachment>,
    lease: Option<String>,
    release: ReleaseLease,
    slots: Option<HeldSlots>,
}

/// The slots that pin the blocks.
enum HeldSlots {
    /// One for each block.
    OfTable(TablePins),
    /// One for the table of a timeframe, which keeps its objects.
    OfTimeframe(PinnedTimeframe),
}

impl fmt::Debug for PinnedBlocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pinned").field("mappings", &self.mappings.len()).finish_non_exhaustive()
    }
}

impl PinnedBlocks {
    /// The blocks pinned by the lease of an answer to the session of `attachment`.
    pub(crate) fn new(
        attachment: Arc<Attachment>,
        lease: Option<String>,
        release: ReleaseLease,
    ) -> Self {
        Self { mappings: attachment.mappings(), attachment, lease, release, slots: None }
    }

    /// The blocks that slots pin.
    pub(crate) fn of_slots(slots: TablePins) -> Self {
        Self {
            mappings: Arc::clone(slots.mappings()),
            attachment: Arc::clone(slots.plane().attachment()),
            lease: None,
            release: Box::new(|_| ()),
            slots: Some(HeldSlots::OfTable(slots)),
        }
    }

    /// The objects of a timeframe, which the slot of its table pins.
    pub(crate) fn of_timeframe(pinned: PinnedTimeframe) -> Self {
        Self {
            mappings: Arc::clone(pinned.mappings()),
            attachment: Arc::clone(pinned.plane().attachment()),
            lease: None,
            release: Box::new(|_| ()),
            slots: Some(HeldSlots::OfTimeframe(pinned)),
        }
    }

    /// The table of a timeframe in shared memory.
    pub(crate) fn timeframe(&self) -> Option<&PinnedTimeframe> {
        match self.slots.as_ref()? {
            HeldSlots::OfTimeframe(pinned) => Some(pinned),
            HeldSlots::OfTable(_) => None,
        }
    }

    fn table_slots(&self) -> Option<&TablePins> {
        match self.slots.as_ref()? {
            HeldSlots::OfTable(slots) => Some(slots),
            HeldSlots::OfTimeframe(_) => None,
        }
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
    /// [`ResolveError`], also if `header` is not of this answer and its block was freed.
    #[inline]
    pub(crate) fn resolve(&self, header: &MetaHeader) -> Result<&[u8], ResolveError> {
        match self.mappings.resolve_pinned(header) {
            // A block that a slot pins can be retired. Its bytes stay.
            Err(error) => self.pinned_by_slot(header).ok_or(error),
            resolved => resolved,
        }
    }

    #[cold]
    fn pinned_by_slot(&self, header: &MetaHeader) -> Option<&[u8]> {
        self.table_slots()?.bytes(header)
    }

    /// Whether slots pin the blocks.
    pub(crate) fn has_slots(&self) -> bool {
        self.slots.is_some()
    }

    /// The id of the object in a block that a slot pins.
    pub(crate) fn id_by_slot(&self, header: &MetaHeader) -> Option<ObjectId> {
        self.table_slots()?.object_id(header)
    }

    /// Whether the bytes of one of the pinned blocks are those of the object.
    pub(crate) fn is_live(&self, header: &MetaHeader) -> bool {
        self.mappings.still_valid(header) || self.pinned_by_slot(header).is_some()
    }

    /// The mappings for these blocks.
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

    /// Returns the lease to a caller that releases it.
    pub(crate) fn into_lease(mut self) -> Option<String> {
        self.lease.take()
    }
}

impl Drop for PinnedBlocks {
    fn drop(&mut self) {
        // In a forked child the lease belongs to the parent.
        if let Some(lease) = self.lease.take().filter(|_| !self.attachment.is_forked())
            && !self.attachment.release(&lease)
        {
            (self.release)(lease);
        }
    }
}

/// The bytes of one block, and its pin.
pub(crate) struct LeasedBytes {
    blocks: Arc<PinnedBlocks>,
    header: MetaHeader,
    location: Location,
}

// SAFETY: it only reads bytes that no process writes while it lives.
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
        Ok(Self { blocks, header: *header, location })
    }

    /// Whether the block still holds the object. Its lease keeps it, but in a forked child, which has
    /// no part in the lease.
    pub(crate) fn is_live(&self) -> bool {
        self.blocks.mappings.locate(&self.header).is_ok()
    }
}

impl Deref for LeasedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: inside of a mapping that `blocks` keeps (`locate` has seen it), of a block that
        // its lease pins for as long.
        unsafe { std::slice::from_raw_parts(self.location.address, self.location.size) }
    }
}

impl fmt::Debug for LeasedBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LeasedBytes({} bytes)", self.location.size)
    }
}
