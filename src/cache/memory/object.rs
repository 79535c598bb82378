//! Resident objects: their bytes in shared memory, and the pins that keep them there.

use std::fmt;
use std::sync::{Arc, OnceLock, Weak};

use crate::cache::memory::pin_count;
use crate::cache::memory::publish::Description;
use crate::cache::restart::LogEntry;
use crate::object::{Md5Sum, ObjectId, ObjectInfo, ObjectPath, VersionTimes};
use crate::shm::{AHEAD, Block, MetaHeader, prefetch};
use crate::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, Ordering};

/// Keeps account of objects; implemented by the residency.
pub(crate) trait ObjectHome: Send + Sync {
    /// Called when the last reference to the object is gone and its block is free.
    fn forget(&self, id: ObjectId);

    /// Called when the last pin of the object is gone, so that it can be evicted. The caller then
    /// reports its bytes with [`unpinned`](Self::unpinned).
    fn last_pin_gone(&self, object: &Arc<Resident>);

    /// Subtracts bytes that are no longer pinned.
    fn unpinned(&self, bytes: u64);
}

/// An object in shared memory. Its block is freed with the last `Arc`.
///
/// The fields for pinning, answering and unpinning come first: together with the counts of the
/// `Arc` they fill one cache line. Pinning thousands of objects is limited by memory latency.
#[repr(C)]
pub(crate) struct Resident {
    pins: AtomicU32,
    /// Tick of the last use that counted; 0: none.
    touched: AtomicU16,
    /// Whether it is in an eviction queue, which can also be so after it was pinned again. Written
    /// under the lock of the queues.
    listed: AtomicBool,
    /// Use count for the order of eviction, saturated.
    uses: AtomicU8,
    // The entry in the object log is erased before the block is freed, and the block is freed
    // before the notifier wakes tasks that wait for memory.
    block: Block,
    entry: Option<LogEntry>,
    freed_notifier: FreedNotifier,
    /// MD5 of its bytes, if it was verified.
    md5: OnceLock<Md5Sum>,
    /// The version of its first load.
    path: ObjectPath,
    /// Fingerprint of its times.
    times: u64,
}

// loom's atomics are larger.
#[cfg(not(all(test, feature = "loom")))]
const _: () = assert!(std::mem::offset_of!(Resident, block) == 8);
// With the counts of the `Arc` and the overhead of malloc these are 176 bytes per object.
#[cfg(not(all(test, feature = "loom")))]
const _: () = assert!(size_of::<Resident>() <= 152);

impl Drop for Resident {
    fn drop(&mut self) {
        self.entry = None;
    }
}

/// Reports to the home of an object that the object is gone.
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
        description: Description,
        entry: Option<LogEntry>,
        block: Block,
        home: Weak<dyn ObjectHome>,
    ) -> Arc<Self> {
        let Description { path, times, md5, .. } = description;
        let freed_notifier = FreedNotifier { id: block.id(), home };
        let (pins, touched, listed, uses) = Default::default();
        let md5 = md5.map_or_else(OnceLock::new, OnceLock::from);
        Arc::new(Self {
            pins,
            touched,
            listed,
            uses,
            block,
            entry,
            freed_notifier,
            md5,
            path,
            times: times.fingerprint(),
        })
    }

    pub(crate) fn id(&self) -> ObjectId {
        self.freed_notifier.id
    }

    pub(crate) fn path(&self) -> &ObjectPath {
        &self.path
    }

    pub(crate) fn md5(&self) -> Option<Md5Sum> {
        self.md5.get().copied()
    }

    /// Whether its bytes are those of `version`.
    pub(crate) fn match_of(&self, version: &ObjectInfo) -> VersionMatch {
        self.match_with(version.size_bytes, version.md5, || VersionTimes::from(version))
    }

    /// Whether its bytes are those of a description.
    pub(crate) fn match_of_description(&self, description: &Description) -> VersionMatch {
        self.match_with(description.size_bytes, description.md5, || description.times)
    }

    fn match_with(
        &self,
        size_bytes: Option<u64>,
        md5: Option<Md5Sum>,
        times: impl Fn() -> VersionTimes,
    ) -> VersionMatch {
        if size_bytes.is_some_and(|expected| expected != self.block.size_bytes()) {
            return VersionMatch::Other;
        }
        match (md5, self.md5()) {
            (None, _) if self.times == times().fingerprint() => VersionMatch::Same,
            (None, _) | (Some(_), None) => VersionMatch::Unverified,
            (Some(expected), Some(md5)) if expected == md5 => VersionMatch::Same,
            (Some(_), Some(_)) => VersionMatch::Other,
        }
    }

    /// Whether it was loaded for the same version, with equal size and, if known, digest.
    pub(crate) fn has_bytes_of(&self, other: &Self) -> bool {
        let other_md5 = matches!((self.md5(), other.md5()), (Some(a), Some(b)) if a != b);
        let same_size = self.block.size_bytes() == other.block.size_bytes();
        !other_md5 && same_size && self.times == other.times
    }

    /// Computes the MD5 of its bytes if it is not known. Reads all of them.
    pub(crate) fn compute_md5(&self) -> Md5Sum {
        *self.md5.get_or_init(|| crate::cache::memory::publish::md5_of(self.block.payload()))
    }

    pub(crate) fn block(&self) -> &Block {
        &self.block
    }

    /// Whether it lies in a segment that was lost: it is not handed out any more.
    pub(crate) fn is_condemned(&self) -> bool {
        self.block.is_condemned()
    }

    /// The memory that it takes, header and rounding included.
    pub(crate) fn charged_bytes(&self) -> u64 {
        self.block.charged_bytes()
    }

    /// Counts a use, at most one per tick.
    pub(crate) fn touch(&self, tick: u16) {
        const MOST_USES: u8 = 3;
        // With two at once both may count, or one not: the count need not be exact.
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

    /// Number of pins.
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
pub(crate) enum VersionMatch {
    /// The bytes match the description of the source.
    Same,
    /// The bytes differ from the description of the source.
    Other,
    /// The source gives a digest, and that of the object is not computed yet; or the source gives
    /// none, and the object was loaded for another version.
    Unverified,
}

/// Keeps one object in shared memory until it is dropped.
pub struct Pin {
    resident: Arc<Resident>,
    /// Already unpinned; only the drop remains.
    ended: bool,
}

impl Pin {
    /// A new pin, and the bytes that it newly pins if it is the first. The caller must report these
    /// bytes to the home before the pin is dropped.
    pub(crate) fn taken(resident: Arc<Resident>) -> (Self, u64) {
        let mut bytes = 0;
        pin_count::pin(&resident.pins, || bytes = resident.charged_bytes());
        (Self { resident, ended: false }, bytes)
    }

    /// Whether it is the object of `version`.
    pub(crate) fn match_of(&self, version: &ObjectInfo) -> VersionMatch {
        self.resident.match_of(version)
    }

    /// Unpins. Returns the bytes no longer pinned, if it was the last; the caller reports them to
    /// the home.
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

    /// The location of the object in shared memory.
    pub fn meta_header(&self) -> MetaHeader {
        self.resident.block.meta_header()
    }

    /// The object's bytes.
    pub fn payload(&self) -> &[u8] {
        self.resident.block.payload()
    }

    /// The id of its version.
    pub fn id(&self) -> ObjectId {
        self.resident.id()
    }

    /// The memory that it takes, header and rounding included.
    pub fn charged_bytes(&self) -> u64 {
        self.resident.charged_bytes()
    }
}

impl Clone for Pin {
    fn clone(&self) -> Self {
        // The object is pinned already, so this is not the first pin.
        self.resident.pins.fetch_add(1, Ordering::AcqRel);
        Self { resident: Arc::clone(&self.resident), ended: false }
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        match self.resident.freed_notifier.home.upgrade() {
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

/// The pins of one table, shared by all its holders; unpinned when the last one is dropped.
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

    /// Whether one of its objects lies in a segment that was lost.
    pub(crate) fn is_condemned(&self) -> bool {
        self.pins.iter().any(|pin| pin.resident.is_condemned())
    }
}

impl Drop for PinSet {
    fn drop(&mut self) {
        // Like dropping each pin, but the home is found, and its count updated, once for all.
        let home = self.pins.first().and_then(|pin| pin.resident.freed_notifier.home.upgrade());
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
