//! An object whose bytes are in shared memory, and the pins that keep it there.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use crate::cache::memory::pin_count;
use crate::cache::restart::LogEntry;
use crate::object::{Md5Sum, ObjectId, ObjectInfo, ObjectPath};
use crate::shm::{AHEAD, Block, MetaHeader, prefetch};

/// What keeps account of objects: the residency.
pub(crate) trait ObjectHome: Send + Sync {
    /// The last reference to the object is gone, and its block is free.
    fn forget(&self, id: ObjectId);

    /// The last pin of the object is gone: it can be evicted. The caller then reports its bytes with
    /// [`unpinned`](Self::unpinned).
    fn last_pin_gone(&self, object: &Arc<Resident>);

    /// Bytes that are no longer pinned.
    fn unpinned(&self, bytes: u64);
}

/// An object in shared memory. Its block is given up with the last `Arc`.
///
/// All that is looked at to pin it, to hand it out and to let go of it comes first: with the counts of
/// the `Arc` that is one line of the cache. To pin thousands is to wait for memory.
#[repr(C)]
pub(crate) struct Resident {
    pins: AtomicU32,
    /// The moment of the last touch that counted; 0: none.
    touched: AtomicU16,
    /// Whether it is a candidate, or was one before it was pinned again; written under the lock of the
    /// candidates.
    listed: AtomicBool,
    /// How often it was used, as far as that counts for the order in which candidates go.
    uses: AtomicU8,
    // What is written down for a successor is crossed out before the block is free, and that is so
    // before the farewell rings for room.
    block: Block,
    entry: Option<LogEntry>,
    farewell: FreedNotifier,
    /// Of its bytes, as far as it was verified.
    md5: OnceLock<Md5Sum>,
    /// The path under which it was loaded first.
    path: ObjectPath,
}

const _: () = assert!(std::mem::offset_of!(Resident, block) == 8);
// With the counts of the `Arc` and what malloc takes for itself these are 176 bytes per object.
const _: () = assert!(size_of::<Resident>() <= 144);

impl Drop for Resident {
    fn drop(&mut self) {
        self.entry = None;
    }
}

/// Tells the home of an object that it is gone.
struct FreedNotifier {
    id: ObjectId,
    home: Weak<dyn ObjectHome>,
}

impl Drop for FreedNotifier {
    fn drop(&mut self) {
        if let Some(home) = self.home.upgrade() {
            home.forget(self.id);
        }
    }
}

impl Resident {
    pub(crate) fn new(
        path: ObjectPath,
        md5: Option<Md5Sum>,
        entry: Option<LogEntry>,
        block: Block,
        home: Weak<dyn ObjectHome>,
    ) -> Arc<Self> {
        let farewell = FreedNotifier { id: block.id(), home };
        let (pins, touched, listed, uses) = Default::default();
        let md5 = md5.map_or_else(OnceLock::new, OnceLock::from);
        Arc::new(Self { pins, touched, listed, uses, block, entry, farewell, md5, path })
    }

    pub(crate) fn id(&self) -> ObjectId {
        self.farewell.id
    }

    pub(crate) fn path(&self) -> &ObjectPath {
        &self.path
    }

    pub(crate) fn md5(&self) -> Option<Md5Sum> {
        self.md5.get().copied()
    }

    /// Whether its bytes are those of `version`.
    pub(crate) fn likeness(&self, version: &ObjectInfo) -> Likeness {
        let bytes = self.block.size_bytes();
        if version.size_bytes.is_some_and(|expected| expected != bytes) {
            return Likeness::Other;
        }
        match (version.md5, self.md5()) {
            (None, _) => Likeness::Same,
            (Some(expected), Some(md5)) if expected == md5 => Likeness::Same,
            (Some(_), Some(_)) => Likeness::Other,
            (Some(_), None) => Likeness::Unverified,
        }
    }

    /// Whether the bytes of both are the same, as far as their digests say.
    pub(crate) fn has_bytes_of(&self, other: &Self) -> bool {
        let other_md5 = matches!((self.md5(), other.md5()), (Some(a), Some(b)) if a != b);
        !other_md5 && self.block.size_bytes() == other.block.size_bytes()
    }

    /// Computes the MD5 of its bytes where it is not known. Takes the time to read all of them.
    pub(crate) fn compute_md5(&self) -> Md5Sum {
        *self.md5.get_or_init(|| crate::cache::memory::publish::md5_of(self.block.payload()))
    }

    pub(crate) fn block(&self) -> &Block {
        &self.block
    }

    /// The bytes of memory that it takes, its header and rounding included.
    pub(crate) fn charged_bytes(&self) -> u64 {
        self.block.charged_bytes()
    }

    /// It is used in this moment.
    pub(crate) fn touch(&self, tick: u16) {
        const MOST_USES: u8 = 3;
        // Two at once may both count, or one of them not: so exact need it not be.
        if self.touched.load(Ordering::Relaxed) != tick {
            self.touched.store(tick, Ordering::Relaxed);
            self.set_uses(MOST_USES.min(self.uses() + 1));
        }
    }

    pub(crate) fn uses(&self) -> u8 {
        self.uses.load(Ordering::Relaxed)
    }

    pub(crate) fn set_uses(&self, uses: u8) {
        self.uses.store(uses, Ordering::Relaxed);
    }

    pub(crate) fn is_listed(&self) -> bool {
        self.listed.load(Ordering::Acquire)
    }

    pub(crate) fn set_listed(&self, listed: bool) {
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

/// Whether an object in memory is that of a version with the same id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Likeness {
    /// Its bytes are those that the source describes.
    Same,
    /// The source describes other bytes.
    Other,
    /// The source gives a digest, and that of the object was never computed.
    Unverified,
}

/// Keeps one object in shared memory for as long as it lives.
pub struct Pin {
    resident: Arc<Resident>,
    /// It pins no more, and is about to be dropped.
    ended: bool,
}

impl Pin {
    /// A pin, and the bytes that are pinned by it, if it is the first; its home has to be told before
    /// the pin is dropped.
    pub(crate) fn taken(resident: Arc<Resident>) -> (Self, u64) {
        let mut bytes = 0;
        pin_count::pin(&resident.pins, || bytes = resident.charged_bytes());
        (Self { resident, ended: false }, bytes)
    }

    /// Whether it is the object of `version`.
    pub(crate) fn likeness(&self, version: &ObjectInfo) -> Likeness {
        self.resident.likeness(version)
    }

    /// Ends it. The bytes that are pinned no more, if it was the last; its home has to be told.
    fn end(&mut self, home: &dyn ObjectHome) -> u64 {
        let mut bytes = 0;
        pin_count::unpin(&self.resident.pins, || {
            home.last_pin_gone(&self.resident);
            bytes = self.resident.charged_bytes();
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
        self.resident.charged_bytes()
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
                let bytes = self.end(&*home);
                home.unpinned(bytes);
            }
            None => pin_count::unpin(&self.resident.pins, || {}),
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
            let mut bytes = 0;
            let mut pins = self.pins.drain(..);
            while let Some(mut pin) = pins.next() {
                if let Some(next) = pins.as_slice().get(AHEAD) {
                    prefetch(Arc::as_ptr(&next.resident));
                }
                bytes += pin.end(&*home);
            }
            home.unpinned(bytes);
        }
    }
}
