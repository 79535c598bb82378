//! An object whose bytes are in shared memory, and the pins that keep it there.

use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};

use super::keep::Entry;
use super::pins;
use super::residency::Residency;
use crate::object::{Md5Sum, ObjectId, ObjectPath};
use crate::shm::{Block, MetaHeader};
use crate::table::Payload;

/// An object in shared memory. Its block is given up with the last `Arc`.
pub(crate) struct Resident {
    /// The path under which it was loaded first.
    path: ObjectPath,
    md5: Option<Md5Sum>,
    pins: AtomicU32,
    // The order of these matters: what is written down for a successor is crossed out before the
    // block is free, and that is so before the farewell rings for room.
    _entry: Option<Entry>,
    block: Block,
    farewell: Farewell,
}

/// Tells the residency that an object is gone.
struct Farewell {
    id: ObjectId,
    home: Weak<Residency>,
}

impl Drop for Farewell {
    fn drop(&mut self) {
        if let Some(home) = self.home.upgrade() {
            home.forget(self.id);
        }
    }
}

impl Resident {
    pub(super) fn new(
        path: ObjectPath,
        md5: Option<Md5Sum>,
        entry: Option<Entry>,
        block: Block,
        home: Weak<Residency>,
    ) -> Arc<Self> {
        let farewell = Farewell { id: block.id(), home };
        Arc::new(Self { path, md5, pins: AtomicU32::new(0), _entry: entry, block, farewell })
    }

    pub(crate) fn id(&self) -> ObjectId {
        self.farewell.id
    }

    pub(crate) fn path(&self) -> &ObjectPath {
        &self.path
    }

    pub(crate) fn md5(&self) -> Option<Md5Sum> {
        self.md5
    }

    pub(crate) fn block(&self) -> &Block {
        &self.block
    }

    /// How many pins keep it.
    pub(crate) fn pins(&self) -> u32 {
        self.pins.load(Ordering::Acquire)
    }
}

impl fmt::Debug for Resident {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Resident({} of {}, {} pins)", self.id(), self.path, self.pins())
    }
}

/// Keeps one object in shared memory for as long as it lives.
pub struct Pin(Arc<Resident>);

impl Pin {
    pub(super) fn new(resident: Arc<Resident>) -> Self {
        pins::pin(&resident.pins, || {
            if let Some(home) = resident.farewell.home.upgrade() {
                home.count_pinned(resident.block.charged_bytes());
            }
        });
        Self(resident)
    }

    pub(crate) fn resident(&self) -> &Arc<Resident> {
        &self.0
    }

    /// Where the object lies.
    pub fn meta_header(&self) -> MetaHeader {
        self.0.block.meta_header()
    }

    /// The object's bytes.
    pub fn payload(&self) -> &[u8] {
        self.0.block.payload()
    }

    /// The object's bytes, for those who keep them beyond a borrow. That is no pin: the object can
    /// become a candidate for eviction, but its memory is not taken anew before this is gone.
    pub(crate) fn bytes(&self) -> Payload {
        Arc::clone(&self.0) as Payload
    }

    /// Which version it is.
    pub fn id(&self) -> ObjectId {
        self.0.id()
    }

    /// The bytes of memory that it takes, its header and rounding included.
    pub fn charged_bytes(&self) -> u64 {
        self.0.block.charged_bytes()
    }
}

impl Clone for Pin {
    fn clone(&self) -> Self {
        Self::new(Arc::clone(&self.0))
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        pins::unpin(&self.0.pins, || {
            if let Some(home) = self.0.farewell.home.upgrade() {
                home.last_pin_gone(&self.0);
            }
        });
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pin({:?})", self.0)
    }
}

impl AsRef<[u8]> for Resident {
    fn as_ref(&self) -> &[u8] {
        self.block.payload()
    }
}

/// The pins of one table: shared by all who hold that table, gone with the last of them.
#[derive(Debug, Default)]
pub struct PinSet {
    pins: Vec<Pin>,
}

impl PinSet {
    pub(crate) fn new(pins: Vec<Pin>) -> Self {
        Self { pins }
    }

    /// The pins, one per distinct object.
    pub fn pins(&self) -> &[Pin] {
        &self.pins
    }
}
