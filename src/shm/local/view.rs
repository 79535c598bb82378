//! Look-ups: from a path and a time to pinned bytes.
#![allow(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::fmt;
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use super::super::futex;
use super::super::layout::MetaHeader;
use super::super::resolver::{Mappings, RawBlock};
use super::super::sync;
use super::ask_reason::AskReason;
use super::block_place::BlockPlace;
use super::change_notice;
use super::directory::path_hash;
use super::monotonic::coarse_monotonic_millis;
use super::pins_page::UseSample;
use super::plane::LocalPlane;
use super::protocol::PinAttempt;
use super::snapshot::SnapshotView;
use crate::object::{ObjectId, ObjectPath};

/// Interval at which a path reports its use to the service, in milliseconds.
const SAMPLE_MILLIS: u64 = 256;
/// Time for which nothing is reported for the first time after the page had no room, in milliseconds.
/// The service makes room five times a second.
const FULL_MILLIS: u64 = 64;
/// Attempts to read a timeline that is being replaced.
const ATTEMPTS: usize = 4;

/// Time after which the answer for a path can have changed that the service does not refresh by
/// itself.
pub(crate) const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// A state of a path, which changes are told apart from. See [`PlanePath::notice`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChangeNotice {
    entry: u32,
    count: u32,
    is_refreshed: bool,
}

impl ChangeNotice {
    /// The entry of the path in the directory.
    pub(super) fn entry(&self) -> u32 {
        self.entry
    }

    /// The count of its changes.
    pub(super) fn count(&self) -> u32 {
        self.count
    }

    /// Whether the service refreshes the path by itself.
    pub(super) fn is_refreshed(&self) -> bool {
        self.is_refreshed
    }

    /// As two words, for other languages.
    #[cfg(feature = "capi")]
    pub(crate) fn to_words(self) -> [u64; 2] {
        [u64::from(self.entry) << 32 | u64::from(self.count), u64::from(self.is_refreshed)]
    }

    /// The notice of [`to_words`](Self::to_words). Other words name an entry that may not exist.
    #[cfg(feature = "capi")]
    pub(crate) fn from_words([place, refreshed]: [u64; 2]) -> Self {
        let (entry, count) = ((place >> 32) as u32, place as u32);
        Self { entry, count, is_refreshed: refreshed != 0 }
    }
}

/// A path of the local plane. It is used by one thread; a clone is cheap.
pub struct PlanePath {
    plane: Arc<LocalPlane>,
    path: ObjectPath,
    hash: u64,
    mappings: RefCell<Arc<Mappings>>,
    snapshot: Cell<Option<CachedSnapshot>>,
    /// Time of the next report to the service, in milliseconds of CLOCK_MONOTONIC.
    next_sample: Cell<u64>,
    /// Number of hits that are not yet added to the page.
    hits: Cell<u64>,
    /// One bit for each span of the cached snapshot: the service was told that it is used.
    reported: RefCell<Vec<u64>>,
    /// Until then no use is reported for the first time: the page had no room.
    full_until: Cell<u64>,
}

/// The snapshot that was read last. It lies in the path's mappings.
#[derive(Clone, Copy)]
pub(super) struct CachedSnapshot {
    pub(super) entry: u32,
    pub(super) generation: u64,
    pub(super) block: RawBlock,
    pub(super) view: SnapshotView,
}

impl Clone for PlanePath {
    fn clone(&self) -> Self {
        Self::new(Arc::clone(&self.plane), self.path.clone())
    }
}

impl fmt::Debug for PlanePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PlanePath({})", self.path)
    }
}

// SAFETY: the pointers of the cached snapshot lead into mappings that the path keeps; none of it is
// bound to a thread. It is not `Sync`, because of its cells.
unsafe impl Send for PlanePath {}

impl LocalPlane {
    /// A path to look up objects in. Does no I/O; the service need not know the path.
    pub fn path(self: &Arc<Self>, path: &ObjectPath) -> PlanePath {
        PlanePath::new(Arc::clone(self), path.clone())
    }
}

impl PlanePath {
    fn new(plane: Arc<LocalPlane>, path: ObjectPath) -> Self {
        let mappings = RefCell::new(plane.attachment().mappings());
        let hash = path_hash(path.as_str());
        let (snapshot, reported) = (Cell::new(None), RefCell::default());
        let [next_sample, hits, full_until] = [0; 3].map(Cell::new);
        Self { plane, path, hash, mappings, snapshot, next_sample, hits, reported, full_until }
    }

    pub(super) fn plane(&self) -> &Arc<LocalPlane> {
        &self.plane
    }

    /// The object path.
    pub fn path(&self) -> &ObjectPath {
        &self.path
    }

    /// The object that is valid at a time, in milliseconds since the Unix epoch: the same object
    /// that the service returns for a request without limits, metadata or lock. Makes no system
    /// call.
    ///
    /// # Errors
    /// The reason why the service must be asked.
    // A view that is made where it is used is not copied: a copy would wait for what was just stored.
    // Seldom used functions return a box, because they would have the others return by memory, too.
    #[inline(always)]
    pub fn at(&self, at_millis: i64) -> Result<PinnedView<'_>, AskReason> {
        match self.try_at(at_millis) {
            Ok(view) => Ok(view),
            Err(reason) => self.at_again(at_millis, reason).map(|view| *view),
        }
    }

    /// Second attempt: the first may have failed because of a new segment or a new timeline.
    #[cold]
    #[inline(never)]
    pub(super) fn at_again(
        &self,
        at: i64,
        mut reason: AskReason,
    ) -> Result<Box<PinnedView<'_>>, AskReason> {
        for _ in 0..ATTEMPTS {
            let again = match reason {
                AskReason::NotMapped | AskReason::NotResident => self.remap(),
                AskReason::Unpublished => self.snapshot.take().is_some(),
                _ => false,
            };
            if !again {
                break;
            }
            match self.try_at(at) {
                Ok(view) => return Ok(Box::new(view)),
                Err(next) => reason = next,
            }
        }
        self.plane.count_ask(reason);
        Err(reason)
    }

    #[inline(always)]
    fn try_at(&self, at: i64) -> Result<PinnedView<'_>, AskReason> {
        self.plane.check()?;
        let now = coarse_monotonic_millis();
        let snapshot = self.snapshot()?;
        let pin = |block: &AtomicU64, generation, bytes| {
            self.plane.files().page.pin(block, generation, bytes)
        };
        match snapshot.view.number_at(at) {
            Some(number) => self.view_of(&snapshot, number, now, pin),
            None => Err(self.reason_of_none(&snapshot)),
        }
    }

    /// Why no span contains a time.
    #[cold]
    pub(super) fn reason_of_none(&self, snapshot: &CachedSnapshot) -> AskReason {
        // SYNC(give-up): everything read since the entry was read belongs to the snapshot.
        match sync::seen_again(snapshot.block.generation()) == snapshot.generation {
            true => AskReason::Uncovered,
            false => AskReason::Unpublished,
        }
    }

    /// The object of a span, which is less than the number of spans and was found in `snapshot`. `pin`
    /// pins a block, given its generation word, generation and size.
    #[inline(always)]
    pub(super) fn view_of(
        &self,
        snapshot: &CachedSnapshot,
        number: u32,
        now: u64,
        pin: impl FnOnce(&AtomicU64, u64, u64) -> Result<u32, PinAttempt>,
    ) -> Result<PinnedView<'_>, AskReason> {
        let found = snapshot.view.span(number).ok_or(AskReason::Unpublished)?;
        // SYNC(give-up): everything read since the entry was read belongs to the snapshot.
        if sync::seen_again(snapshot.block.generation()) != snapshot.generation {
            return Err(AskReason::Unpublished);
        }
        if now >= found.confirmed_until {
            return Err(AskReason::Unconfirmed);
        }
        let Some(block) = self.mappings.borrow().live_block(&found.header) else {
            return Err(self.reason_of_no_block(&found.header));
        };
        let MetaHeader { hint: generation, size, .. } = found.header;
        let slot = match pin(block.generation(), generation, size) {
            Ok(slot) => slot,
            Err(PinAttempt::SlotTaken) => return Err(AskReason::NoSlot),
            Err(PinAttempt::Gone | PinAttempt::Pinned) => return Err(AskReason::NotResident),
        };
        self.used(now, snapshot.entry, number, generation);
        let (span, validity) = ((found.from, found.until), found.validity);
        let kind = PinnedKind::Slot;
        let bytes = PinnedBytes { kind, slot, block, generation, span, validity };
        Ok(PinnedView { plane: &self.plane, bytes })
    }

    /// Why a header names no block.
    #[cold]
    fn reason_of_no_block(&self, header: &MetaHeader) -> AskReason {
        match self.mappings.borrow().knows(header) {
            true => AskReason::NotResident,
            false => AskReason::NotMapped,
        }
    }

    /// Prefetches the object of a span.
    #[cfg(any(feature = "client", feature = "capi"))]
    #[inline]
    pub(super) fn prefetch(&self, snapshot: &CachedSnapshot, number: u32) {
        if let Some(found) = snapshot.view.span(number) {
            self.mappings.borrow().prefetch(&found.header);
        }
    }

    /// Counts the use of a span, and reports it to the service now and then.
    #[inline(always)]
    pub(super) fn used(&self, now: u64, entry: u32, span: u32, generation: u64) {
        self.hits.set(self.hits.get() + 1);
        let is_due = now >= self.next_sample.get();
        if is_due || (!self.is_reported(span) && now >= self.full_until.get()) {
            self.sample(now, UseSample { entry, span, generation });
        }
    }

    /// The snapshot to which the directory refers for the path.
    #[inline(always)]
    pub(super) fn snapshot(&self) -> Result<CachedSnapshot, AskReason> {
        if let Some(cached) = self.snapshot.get() {
            let (generation, _) = self.plane.files().directory.entry(cached.entry).load();
            if generation == cached.generation {
                return Ok(cached);
            }
        }
        self.find_snapshot()?;
        self.snapshot.get().ok_or(AskReason::Unpublished)
    }

    #[cold]
    #[inline(never)]
    fn find_snapshot(&self) -> Result<(), AskReason> {
        self.snapshot.set(None);
        let directory = &self.plane.files().directory;
        let mut unmapped = false;
        for entry in directory.find(self.hash) {
            let (generation, place) = directory.entry(entry).load();
            let place = BlockPlace::from_word(place);
            let mappings = self.mappings.borrow();
            let Some(block) = mappings.raw_block(place.managed, place.id, place.offset) else {
                unmapped = true;
                continue;
            };
            if let Some(cached) = self.read_snapshot(entry, generation, block) {
                self.snapshot.set(Some(cached));
                self.reported.borrow_mut().clear();
                return Ok(());
            }
            // Another segment with the same id may have replaced it.
            unmapped = true;
        }
        Err(if unmapped { AskReason::NotMapped } else { AskReason::Unpublished })
    }

    /// The snapshot in `block`, if the block has this generation and the snapshot is that of the
    /// path.
    fn read_snapshot(
        &self,
        entry: u32,
        generation: u64,
        block: RawBlock,
    ) -> Option<CachedSnapshot> {
        if generation == 0 || sync::seen(block.generation()) != generation {
            return None;
        }
        let size = block.size()?;
        // SAFETY: `size` bytes of payload at a multiple of 64 lie in the mapping, which `mappings`
        // keeps as long as the snapshot is cached; only the service writes there.
        let view = unsafe { SnapshotView::new(block.payload().as_ptr(), size) }?;
        let is_of_path = view.is_of(self.path.as_str());
        // SYNC(give-up): size and path belong to this generation.
        let seen_again = sync::seen_again(block.generation()) == generation;
        (is_of_path && seen_again).then_some(CachedSnapshot { entry, generation, block, view })
    }

    /// A notice for [`wait_change`](Self::wait_change). If it is taken before the answer is looked up,
    /// in shared memory or at the service, no change after that answer is missed.
    ///
    /// # Errors
    /// Why changes of the path cannot be waited for: a request that names the session has it
    /// published.
    pub fn notice(&self) -> Result<ChangeNotice, AskReason> {
        let mut reason = AskReason::Unpublished;
        for _ in 0..ATTEMPTS {
            self.plane.check()?;
            let known = match self.snapshot.get() {
                Some(known) => Ok(known),
                None => self.snapshot(),
            };
            let entry = match known {
                Ok(known) => known.entry,
                Err(AskReason::NotMapped) if self.remap() => continue,
                Err(other) => return Err(other),
            };
            let directory = &self.plane.files().directory;
            // SYNC(notice): before it is seen that the entry names a snapshot of the path.
            let count = change_notice::note(directory.changes(entry));
            match self.snapshot() {
                Ok(now) if now.entry == entry => {
                    let is_refreshed = now.view.is_refreshed();
                    return Ok(ChangeNotice { entry, count, is_refreshed });
                }
                Ok(_) => reason = AskReason::Unpublished,
                Err(AskReason::NotMapped) if self.remap() => {}
                Err(other) => return Err(other),
            }
        }
        Err(reason)
    }

    /// Waits until the answer for the path can be another one than when `notice` was taken, or until
    /// `deadline`; whether it can. Uses no CPU time meanwhile.
    ///
    /// A path that the service does not refresh by itself, since its source answers for single times,
    /// can have changed after a second.
    ///
    /// # Errors
    /// The session is over.
    pub fn wait_change(
        &self,
        notice: &ChangeNotice,
        deadline: Option<Instant>,
    ) -> Result<bool, AskReason> {
        // In a forked child the page is the parent's.
        self.plane.check()?;
        let files = self.plane.files();
        if !files.directory.has(notice.entry) {
            return Err(AskReason::Unpublished);
        }
        let (count, end) = (files.directory.changes(notice.entry), self.plane.attachment());
        let watch = Watch { plane: &self.plane, number: files.page.begin_watch(notice.entry) };
        let look_again = match watch.number {
            Some(_) if notice.is_refreshed => None,
            _ => Some(Instant::now() + LOOK_AGAIN),
        };
        loop {
            self.plane.check()?;
            if change_notice::note(count) != notice.count {
                return Ok(true);
            }
            let now = Instant::now();
            if look_again.is_some_and(|at| at <= now) {
                return Ok(true);
            }
            if deadline.is_some_and(|at| at <= now) {
                return Ok(false);
            }
            let until = deadline.into_iter().chain(look_again).min();
            futex::wait_either((count, end.end_word().word()), (notice.count, 0), until);
        }
    }

    /// Uses the newest mappings; returns whether they have changed.
    fn remap(&self) -> bool {
        self.use_mappings(&self.plane.attachment().mappings())
    }

    /// Uses these mappings; returns whether they are others than before.
    pub(super) fn use_mappings(&self, mappings: &Arc<Mappings>) -> bool {
        if Arc::ptr_eq(mappings, &self.mappings.borrow()) {
            return false;
        }
        self.snapshot.set(None);
        let before = self.mappings.replace(Arc::clone(mappings));
        // Views of this path may still read the old mappings.
        self.plane.retain(before);
        true
    }

    /// Whether the service was told that the object of a span of the snapshot is used.
    #[inline]
    fn is_reported(&self, span: u32) -> bool {
        let reported = self.reported.borrow();
        reported.get(span as usize / 64).is_some_and(|word| word >> (span % 64) & 1 == 1)
    }

    /// Reports to the service that the object of a span is used.
    #[cold]
    #[inline(never)]
    fn sample(&self, now: u64, used: UseSample) {
        let page = &self.plane.files().page;
        if page.sample(used) {
            let mut reported = self.reported.borrow_mut();
            let word = used.span as usize / 64;
            if reported.len() <= word {
                reported.resize(word + 1, 0);
            }
            reported[word] |= 1 << (used.span % 64);
        } else {
            self.full_until.set(now + FULL_MILLIS);
        }
        if now >= self.next_sample.get() {
            self.next_sample.set(now + SAMPLE_MILLIS);
            page.count_hits(self.hits.replace(0));
        }
    }
}

/// A thread that waits for a change, as the service knows of it.
struct Watch<'a> {
    plane: &'a LocalPlane,
    number: Option<u32>,
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        if let Some(number) = self.number
            && !self.plane.attachment().is_forked()
        {
            self.plane.files().page.end_watch(number);
        }
    }
}

impl Drop for PlanePath {
    fn drop(&mut self) {
        // In a forked child the page belongs to the parent.
        if self.plane.attachment().is_forked() {
            return;
        }
        self.plane.files().page.count_hits(self.hits.get());
        // Owned views may still read these mappings.
        self.plane.retain(Arc::clone(&self.mappings.borrow()));
    }
}

/// Bytes of a block that a slot pins.
#[derive(Clone, Copy)]
struct PinnedBytes {
    /// Its unused values tell other kinds of views apart, so that these are as small as this one.
    #[expect(dead_code, reason = "the compiler uses its unused values")]
    kind: PinnedKind,
    slot: u32,
    block: RawBlock,
    generation: u64,
    span: (i64, i64),
    validity: (i64, i64),
}

#[derive(Debug, Clone, Copy)]
#[repr(u8)]
enum PinnedKind {
    Slot = 0,
}

impl PinnedBytes {
    /// # Safety
    /// The slot pins the block, and its mapping exists, as long as the slice lives.
    #[inline]
    unsafe fn bytes<'a>(&self) -> &'a [u8] {
        let (first, size) = (self.block.payload().as_ptr(), self.block.room());
        // SAFETY: `size` bytes lie in the mapping, as `live_block` has checked. A pinned block is not
        // written (SYNC(pin) in `protocol`); both last by this function's contract.
        unsafe { std::slice::from_raw_parts(first, size) }
    }
}

/// An object in shared memory, pinned until the view is dropped.
pub struct PinnedView<'a> {
    plane: &'a Arc<LocalPlane>,
    bytes: PinnedBytes,
}

/// Like [`PinnedView`], without borrowing: it keeps the session alive.
pub struct OwnedPinnedView {
    plane: Arc<LocalPlane>,
    bytes: PinnedBytes,
}

// SAFETY: its bytes are not written while it lives, and it clears its slot by an atomic.
unsafe impl Send for PinnedView<'_> {}
// SAFETY: as above.
unsafe impl Sync for PinnedView<'_> {}
// SAFETY: as above.
unsafe impl Send for OwnedPinnedView {}
// SAFETY: as above.
unsafe impl Sync for OwnedPinnedView {}

impl<'a> PinnedView<'a> {
    /// Like `self`, without borrowing from the path.
    pub fn into_owned(self) -> OwnedPinnedView {
        let this = ManuallyDrop::new(self);
        OwnedPinnedView { plane: Arc::clone(this.plane), bytes: this.bytes }
    }
}

impl OwnedPinnedView {
    /// Its parts, for [`release_raw`](Self::release_raw). The bytes stay pinned until then.
    #[cfg(feature = "capi")]
    pub(crate) fn into_raw(self) -> (*const LocalPlane, u32) {
        let this = ManuallyDrop::new(self);
        // SAFETY: `this` is not used or dropped afterwards, so the plane is taken once.
        let plane = unsafe { std::ptr::read(&raw const this.plane) };
        (Arc::into_raw(plane), this.bytes.slot)
    }

    /// Ends a pin.
    ///
    /// # Safety
    /// [`into_raw`](Self::into_raw) returned both, and they were not released yet.
    #[cfg(feature = "capi")]
    pub(crate) unsafe fn release_raw(plane: *const LocalPlane, slot: u32) {
        // SAFETY: it came from `Arc::into_raw`, and is taken back once.
        let plane = unsafe { Arc::from_raw(plane) };
        unpin(&plane, slot);
    }
}

/// Ends the pin of a slot. In a forked child the slot belongs to the parent.
#[inline]
fn unpin(plane: &LocalPlane, slot: u32) {
    if !plane.attachment().is_forked() {
        plane.files().page.unpin(slot);
    }
}

impl Drop for PinnedView<'_> {
    #[inline]
    fn drop(&mut self) {
        unpin(self.plane, self.bytes.slot);
    }
}

impl Drop for OwnedPinnedView {
    fn drop(&mut self) {
        unpin(&self.plane, self.bytes.slot);
    }
}

macro_rules! pinned_view {
    ($view:ty) => {
        impl Deref for $view {
            type Target = [u8];

            #[inline]
            fn deref(&self) -> &[u8] {
                // SAFETY: the slot is cleared when the view is dropped, and the plane keeps each
                // mapping as long as a slot is used (`LocalPlane::retain`) or the path has it.
                unsafe { self.bytes.bytes() }
            }
        }

        impl $view {
            /// Id of the version.
            pub fn id(&self) -> ObjectId {
                // Pinned, so its header stays too.
                ObjectId::from_bytes(self.bytes.block.object_id())
            }

            /// Whether its bytes are those of the object. Always true in the process that looked it
            /// up. A forked child has no part in the pin: there the block can be given up.
            pub fn is_live(&self) -> bool {
                !self.plane.attachment().is_forked()
                    || sync::seen(self.bytes.block.generation()) == self.bytes.generation
            }

            /// The version's own validity interval in milliseconds since the Unix epoch: from, and
            /// until.
            pub fn validity_millis(&self) -> (i64, i64) {
                self.bytes.validity
            }

            /// The effective span around the requested time, in milliseconds since the Unix epoch:
            /// from, and until. It is a part of the validity interval.
            pub fn span_millis(&self) -> (i64, i64) {
                self.bytes.span
            }
        }

        impl fmt::Debug for $view {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "PinnedView({} bytes of {})", self.bytes.block.room(), self.id())
            }
        }
    };
}

pinned_view!(PinnedView<'_>);
pinned_view!(OwnedPinnedView);
