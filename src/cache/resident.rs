//! An object whose bytes are in shared memory, and the pins that keep it there.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Weak};

use super::keep::Entry;
use super::pins;
use super::residency::Residency;
use crate::object::{Md5Sum, ObjectId, ObjectPath};
use crate::shm::{Block, MetaHeader};

/// An object in shared memory. Its block is given up with the last `Arc`.
///
/// What is looked at to pin it comes first: beside the counts of the `Arc`, in one line of the cache,
/// then the block. To pin thousands is to wait for memory.
#[repr(C)]
pub(crate) struct Resident {
    pins: AtomicU32,
    /// The moment of the last touch that counted.
    touched: AtomicU32,
    /// Whether it is a candidate, or was one before it was pinned again; written under the lock of its place.
    listed: AtomicBool,
    md5: Option<Md5Sum>,
    // The order of these matters: what is written down for a successor is crossed out before the
    // block is free, and that is so before the farewell rings for room.
    _entry: Option<Entry>,
    block: Block,
    farewell: Farewell,
    /// The path under which it was loaded first.
    path: ObjectPath,
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
        let (pins, touched) = (AtomicU32::new(0), AtomicU32::new(u32::MAX));
        let listed = AtomicBool::new(false);
        Arc::new(Self { path, md5, pins, touched, listed, _entry: entry, block, farewell })
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

    /// Whether it was not touched in this moment before.
    pub(super) fn touch(&self, tick: u32) -> bool {
        // Two at once may both be told so: then it counts twice.
        let new = self.touched.load(Ordering::Relaxed) != tick;
        if new {
            self.touched.store(tick, Ordering::Relaxed);
        }
        new
    }

    pub(super) fn is_listed(&self) -> bool {
        self.listed.load(Ordering::Acquire)
    }

    pub(super) fn set_listed(&self, listed: bool) {
        self.listed.store(listed, Ordering::Release);
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
pub struct Pin {
    resident: Arc<Resident>,
    /// It pins no more, and is about to be dropped.
    ended: bool,
}

impl Pin {
    /// A pin of an object that lives in `home`.
    pub(super) fn taken(resident: Arc<Resident>, home: &Residency) -> Self {
        pins::pin(&resident.pins, || home.count_pinned(resident.block.charged_bytes()));
        Self { resident, ended: false }
    }

    /// Ends it. The bytes that are pinned no more, if it was the last; its home has to be told.
    fn end(&mut self, home: &Residency) -> u64 {
        let mut bytes = 0;
        pins::unpin(&self.resident.pins, || {
            home.last_pin_gone(&self.resident);
            bytes = self.resident.block.charged_bytes();
        });
        self.ended = true;
        bytes
    }

    pub(crate) fn resident(&self) -> &Arc<Resident> {
        &self.resident
    }

    /// Where the object lies.
    pub fn meta_header(&self) -> MetaHeader {
        self.resident.block.meta_header()
    }

    /// The object's bytes.
    pub fn payload(&self) -> &[u8] {
        self.resident.block.payload()
    }

    /// Which version it is.
    pub fn id(&self) -> ObjectId {
        self.resident.id()
    }

    /// The bytes of memory that it takes, its header and rounding included.
    pub fn charged_bytes(&self) -> u64 {
        self.resident.block.charged_bytes()
    }
}

impl Clone for Pin {
    fn clone(&self) -> Self {
        // It is pinned, so this is not the first one.
        self.resident.pins.fetch_add(1, Ordering::AcqRel);
        Self { resident: Arc::clone(&self.resident), ended: false }
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        match self.resident.farewell.home.upgrade() {
            Some(home) => {
                let bytes = self.end(&home);
                home.let_go(bytes);
            }
            None => pins::unpin(&self.resident.pins, || {}),
        }
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pin({:?})", self.resident)
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

impl Drop for PinSet {
    fn drop(&mut self) {
        // As if each were dropped, but what can be done once for all is done once: they have one home.
        let home = self.pins.first().and_then(|pin| pin.resident.farewell.home.upgrade());
        if let Some(home) = home {
            let bytes = self.pins.drain(..).map(|mut pin| pin.end(&home)).sum();
            home.let_go(bytes);
        }
    }
}
