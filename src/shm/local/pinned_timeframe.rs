//! Timeframes for a consumer: the table is found in the directory, pinned by one slot, or awaited.
//!
//! ```text
//!  LocalPlane::timeframe ─┬─▶ Ready(PinnedTimeframe)   one slot pins the table and its objects
//!                         ├─▶ Loading(TimeframeWait)   sleeps until the entry changes
//!                         └─▶ Ask                      the service answers
//! ```
#![allow(unsafe_code)]

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::attach::ClientMessage;
use super::super::futex::{self, EndWord};
use super::super::layout::MetaHeader;
use super::super::resolver::{Mappings, RawBlock};
use super::super::sync;
use super::ask_reason::AskReason;
use super::block_place::BlockPlace;
use super::change_notice;
use super::plane::LocalPlane;
use super::protocol::PinAttempt;
use super::timeframe_entry::{EntryState, TimeframeWords};
use super::timeframe_table::ConsumerMark;
use super::timeframe_view::{ColumnArrays, TimeframeView};

/// Attempts to read an entry that is changing.
const ATTEMPTS: usize = 4;
/// Time for which a wait looks at its word before it sleeps: falling asleep and being woken takes
/// about as long.
const SPIN: Duration = Duration::from_micros(5);

/// A timeframe as a consumer finds it.
#[derive(Debug)]
pub(crate) enum TimeframeLook {
    Ready(PinnedTimeframe),
    /// Its objects are being loaded.
    Loading(TimeframeWait),
    /// The segment or region of this header is not mapped yet.
    Unmapped(MetaHeader),
    /// The service must be asked.
    Ask(AskReason),
}

impl LocalPlane {
    /// The timeframe with this id, as the directory says.
    pub(crate) fn timeframe(self: &Arc<Self>, timeframe: u64) -> TimeframeLook {
        let mut reason = AskReason::Unpublished;
        for _ in 0..ATTEMPTS {
            if let Err(reason) = self.check() {
                return TimeframeLook::Ask(reason);
            }
            match self.look_for(timeframe) {
                // Its entry has changed.
                TimeframeLook::Ask(again @ AskReason::NotResident) => reason = again,
                found => return found,
            }
        }
        TimeframeLook::Ask(reason)
    }

    fn look_for(self: &Arc<Self>, timeframe: u64) -> TimeframeLook {
        for (entry, words) in self.files().directory.entries_of(timeframe) {
            // SYNC(notice): before the state.
            let seen = change_notice::note(words.changes());
            match words.read(timeframe) {
                (EntryState::Free, ..) => {}
                (EntryState::Ask, ..) => return TimeframeLook::Ask(AskReason::Unpublished),
                (EntryState::Loading, ..) => {
                    let plane = Arc::clone(self);
                    let cancelled = Arc::default();
                    return TimeframeLook::Loading(TimeframeWait { plane, entry, seen, cancelled });
                }
                (EntryState::Ready, generation, place) => {
                    let place = BlockPlace::from_word(place);
                    return self.pin_table(timeframe, generation, place);
                }
            }
        }
        TimeframeLook::Ask(AskReason::Unpublished)
    }

    /// Pins the table in the block at `place`, if that has this generation.
    fn pin_table(
        self: &Arc<Self>,
        timeframe: u64,
        generation: u64,
        place: BlockPlace,
    ) -> TimeframeLook {
        let mappings = self.attachment().mappings();
        let Some(block) = mappings.raw_block(place.managed, place.id, place.offset) else {
            return TimeframeLook::Unmapped(header_in((place.managed, place.id)));
        };
        let pinned = match self.pin_block(mappings, block, generation) {
            Ok(pinned) => pinned,
            Err(reason) => return TimeframeLook::Ask(reason),
        };
        if pinned.view.timeframe() != timeframe {
            return TimeframeLook::Ask(AskReason::NotResident);
        }
        let is_unmapped = |segment: &(bool, u16)| !pinned.mappings.knows(&header_in(*segment));
        let unmapped = pinned.view.segments().find(is_unmapped);
        match unmapped {
            None => TimeframeLook::Ready(pinned),
            Some(segment) => TimeframeLook::Unmapped(header_in(segment)),
        }
    }

    /// Pins the table in a block, if the block has this generation.
    fn pin_block(
        self: &Arc<Self>,
        mappings: Arc<Mappings>,
        block: RawBlock,
        generation: u64,
    ) -> Result<PinnedTimeframe, AskReason> {
        if generation == 0 || sync::seen(block.generation()) != generation {
            return Err(AskReason::NotResident);
        }
        let size = block.size().ok_or(AskReason::NotResident)?;
        // SAFETY: `size` bytes of payload at a multiple of 64 lie in the mapping, which the result
        // keeps; only the service writes there.
        let view = unsafe { TimeframeView::new(block.payload().as_ptr(), size) };
        let view = view.ok_or(AskReason::NotResident)?;
        let bytes = view.pinned_bytes();
        // SYNC(give-up): everything read so far belongs to this generation.
        if sync::seen_again(block.generation()) != generation {
            return Err(AskReason::NotResident);
        }
        let page = &self.files().page;
        let slot = match page.pin(block.generation(), generation, bytes) {
            Ok(slot) => slot,
            Err(PinAttempt::SlotTaken) => return Err(AskReason::NoSlot),
            Err(PinAttempt::Gone | PinAttempt::Pinned) => return Err(AskReason::NotResident),
        };
        Ok(PinnedTimeframe { plane: Arc::clone(self), mappings, slot, view })
    }
}

/// A header in a segment (`true`) or region.
fn header_in((managed, id): (bool, u16)) -> MetaHeader {
    match managed {
        true => MetaHeader::managed(id, 0, 0, 0),
        false => MetaHeader::unmanaged(id, 0, 0, 0),
    }
}

/// The table of a timeframe and its objects, pinned by one slot until this is dropped.
pub(crate) struct PinnedTimeframe {
    plane: Arc<LocalPlane>,
    mappings: Arc<Mappings>,
    slot: u32,
    view: TimeframeView,
}

// SAFETY: its bytes are not written while it lives, but for marks that are read by atomics, and it
// clears its slot by an atomic.
unsafe impl Send for PinnedTimeframe {}
// SAFETY: as above.
unsafe impl Sync for PinnedTimeframe {}

impl fmt::Debug for PinnedTimeframe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PinnedTimeframe({} columns)", self.columns())
    }
}

impl PinnedTimeframe {
    /// The plane of its session.
    pub(crate) fn plane(&self) -> &Arc<LocalPlane> {
        &self.plane
    }

    /// The mappings that contain the table and its objects.
    pub(crate) fn mappings(&self) -> &Arc<Mappings> {
        &self.mappings
    }

    /// Whether this process has the pin: it belongs to the parent of a fork.
    fn is_held(&self) -> bool {
        !self.plane.attachment().is_forked()
    }

    /// Number of the registration, unique within the epoch.
    pub(crate) fn registration(&self) -> u64 {
        self.view.registration()
    }

    /// Number of the schema, unique within the epoch.
    pub(crate) fn schema_number(&self) -> u64 {
        self.view.schema_number()
    }

    pub(crate) fn rows(&self) -> usize {
        usize::try_from(self.view.rows()).unwrap_or(usize::MAX)
    }

    pub(crate) fn columns(&self) -> usize {
        self.view.columns()
    }

    /// The encoded schema; `None` in a forked child.
    pub(crate) fn schema(&self) -> Option<&[u8]> {
        // SAFETY: pinned until `self` is dropped.
        self.is_held().then(|| unsafe { self.view.schema() }).flatten()
    }

    /// The arrays of a column; `None` if there is no such column, and in a forked child.
    pub(crate) fn column(&self, number: usize) -> Option<ColumnArrays<'_>> {
        // SAFETY: pinned until `self` is dropped.
        self.is_held().then(|| unsafe { self.view.column(number) }).flatten()
    }

    /// The names of the consumers that the timeframe is registered for.
    #[cfg(feature = "capi")]
    pub(crate) fn consumer_names(&self) -> Vec<String> {
        let names = match self.is_held() {
            // SAFETY: pinned until `self` is dropped.
            true => unsafe { self.view.consumer_names() },
            false => Vec::new(),
        };
        names.into_iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect()
    }

    /// The progress of a consumer; `None` if the timeframe is not registered for it.
    pub(crate) fn consumer(&self, name: &str) -> Option<ConsumerMark> {
        // SAFETY: pinned until `self` is dropped.
        self.is_held().then(|| unsafe { self.view.consumer(name) }).flatten()
    }
}

impl Drop for PinnedTimeframe {
    fn drop(&mut self) {
        // In a forked child the slot belongs to the parent.
        if self.is_held() {
            self.plane.files().page.unpin(self.slot);
        }
    }
}

/// A timeframe that is being loaded, to wait for.
#[derive(Debug, Clone)]
pub(crate) struct TimeframeWait {
    plane: Arc<LocalPlane>,
    entry: u32,
    /// The word of the entry before its state was read.
    seen: u32,
    /// Set when nothing waits any more.
    cancelled: Arc<EndWord>,
}

/// Ends a wait when it is dropped.
#[derive(Debug)]
pub(crate) struct CancelWait(Arc<EndWord>);

impl Drop for CancelWait {
    fn drop(&mut self) {
        self.0.set();
    }
}

impl TimeframeWait {
    fn words(&self) -> TimeframeWords<'_> {
        self.plane.files().directory.words_of(self.entry)
    }

    fn is_over(&self) -> bool {
        change_notice::note(self.words().changes()) != self.seen || self.plane.check().is_err()
    }

    /// Waits a few microseconds; whether the entry has changed, or the session is over.
    pub(crate) fn spin(&self) -> bool {
        spin(|| self.is_over())
    }

    /// A guard that ends [`wait`](Self::wait) when it is dropped.
    pub(crate) fn cancel_on_drop(&self) -> CancelWait {
        CancelWait(Arc::clone(&self.cancelled))
    }

    /// Waits until the entry has changed, the session is over, or `until`; whether one of the first
    /// two happened. Uses no CPU time, and blocks the thread.
    pub(crate) fn wait(&self, until: Instant) -> bool {
        let own = [self.plane.attachment().end_word().word(), self.cancelled.word()];
        loop {
            if self.is_over() {
                return true;
            }
            if self.cancelled.is_set() || Instant::now() >= until {
                return false;
            }
            futex::wait_any((self.words().changes(), self.seen), &own, Some(until));
        }
    }
}

fn spin(is_over: impl Fn() -> bool) -> bool {
    let until = Instant::now() + SPIN;
    loop {
        if is_over() {
            return true;
        }
        if Instant::now() >= until {
            return false;
        }
        std::hint::spin_loop();
    }
}

/// A line that was sent through the attach socket, to wait until the service has taken it.
#[derive(Debug, Clone)]
pub(crate) struct LineNumber {
    plane: Arc<LocalPlane>,
    number: u32,
    /// Number of refused lines before it was sent.
    refused_before: u32,
}

impl LineNumber {
    /// Sends a line, after those that wait; `None` if that is not possible without waiting.
    pub(crate) fn sent(plane: &Arc<LocalPlane>, line: &ClientMessage) -> Option<Self> {
        Self::of(plane, || plane.attachment().try_report(line))
    }

    /// Like [`sent`](Self::sent), but the line may wait a moment for the next one.
    pub(crate) fn sent_later(plane: &Arc<LocalPlane>, line: &ClientMessage) -> Option<Self> {
        Self::of(plane, || plane.attachment().report_later(line))
    }

    fn of(plane: &Arc<LocalPlane>, send: impl FnOnce() -> Option<u32>) -> Option<Self> {
        plane.check().ok()?;
        let (_, refused_before) = plane.files().page.lines();
        Some(Self { plane: Arc::clone(plane), number: send()?, refused_before })
    }

    /// Whether the service has taken it; then whether it has accepted all lines since this one.
    pub(crate) fn is_accepted(&self) -> Option<bool> {
        let (taken, refused) = self.plane.files().page.lines();
        let is_taken = taken.wrapping_sub(self.number).cast_signed() >= 0;
        is_taken.then_some(refused == self.refused_before)
    }

    /// Whether the service can still take it.
    #[cfg(feature = "client")]
    pub(crate) fn is_pending(&self) -> bool {
        !self.is_over()
    }

    fn is_over(&self) -> bool {
        self.is_accepted().is_some() || self.plane.check().is_err()
    }

    /// Waits a few microseconds; whether it was taken, or the session is over.
    pub(crate) fn spin(&self) -> bool {
        self.plane.attachment().flush();
        spin(|| self.is_over())
    }

    /// Waits until it was taken, the session is over, or `until`. Whether it was taken, and no line
    /// was refused since. Blocks the thread.
    pub(crate) fn wait(&self, until: Instant) -> bool {
        let end = self.plane.attachment();
        end.flush();
        loop {
            let (taken, _) = self.plane.files().page.lines();
            if self.is_over() || Instant::now() >= until {
                return self.is_accepted() == Some(true);
            }
            let words = (self.plane.files().page.taken_word(), end.end_word().word());
            futex::wait_either(words, (taken, 0), Some(until));
        }
    }
}
