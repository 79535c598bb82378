//! The pins page: the only memory that a consumer writes, one per session.
//!
//! ```text
//!  0        64         128    512       7680      8192                        131072
//!  ┌────────┬──────────┬──────┬─────────┬─────────┬──────┬──────┬─────────────┐
//!  │ header │ counters │      │ samples │ watches │ slot │ slot │             │
//!  └────────┴──────────┴──────┴─────────┴─────────┴──────┴──────┴─────────────┘
//! ```
//!
//! The service trusts no word of it: slots are compared with its own generations, samples and
//! watches name a published path or are ignored, counters only describe the consumer itself.

use std::mem::{offset_of, size_of};
use std::os::fd::BorrowedFd;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
#[cfg(any(feature = "client", feature = "capi", test))]
use std::sync::atomic::AtomicU32;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::fs::SealFlags;

use super::super::mapping::{MapAccess, Mapping};
use super::barrier;
use super::byte_quota::ByteQuota;
use super::change_notice;
use super::protocol::{self, PinFence};
use super::sealed::{make_sealed, map_sealed};
use super::slot_chunks::{CHUNK_SLOTS, SlotChunks};

/// Header of a page. The consumer writes `high_water`, `hits` and `asks`, the service the others;
/// `taken` and `refused` change while the session lasts.
#[repr(C)]
pub(super) struct PageHeader {
    pub(super) magic: [u8; 8],
    pub(super) version: u32,
    pub(super) slots: u32,
    pub(super) size: u64,
    /// Slots from this index on were never used, and the service ignores them.
    pub(super) high_water: u64,
    /// Maximum number of bytes that the slots may pin; `u64::MAX`: no limit.
    pub(super) quota_bytes: u64,
    /// [`TABLES_ARE_REQUESTED`], [`TIMEFRAMES_ARE_REQUESTED`], [`PINS_WITHOUT_FENCE`].
    pub(super) flags: u64,
    /// Number of lines of the attach socket that the service has taken, modulo 2^32.
    pub(super) taken: u32,
    /// Number of reports of consumers among them that it has refused, modulo 2^32.
    pub(super) refused: u32,
    pub(super) reserved: u64,
    /// Number of look-ups answered from shared memory.
    pub(super) hits: u64,
    /// Number of look-ups for which the service had to be asked, by reason.
    pub(super) asks: [u64; REASONS],
}

/// Maximum accepted value of a counter: sums of many counters cannot overflow.
const MOST_COUNTED: u64 = 1 << 48;
/// Number of counted reasons, see [`AskReason`](super::ask_reason::AskReason).
pub(super) const REASONS: usize = 7;
/// Size of a page in bytes.
pub(super) const PAGE_BYTES: u64 = 128 << 10;
const SAMPLES_OFFSET: usize = 512;
/// Number of samples in a page, of two words each.
pub(super) const SAMPLES: usize = 448;
const SAMPLE_BYTES: usize = 2 * size_of::<u64>();
const WATCHES_OFFSET: usize = 7680;
/// Number of watches in a page: the maximum number of threads that wait for a change at a time.
const WATCHES: u32 = 64;
const SLOTS_OFFSET: usize = 8192;
/// Number of slots in a page: the maximum number of views at a time.
pub(super) const SLOTS: u32 = ((PAGE_BYTES as usize - SLOTS_OFFSET) / size_of::<u64>()) as u32;

const MAGIC: [u8; 8] = *b"IOVPINS\0";
const VERSION: u32 = 2;
/// Flag of a page: the service limits how long a consumer holds a table, so tables are requested
/// from it.
const TABLES_ARE_REQUESTED: u64 = 1;
/// Flag of a page: the service limits how many timeframes a consumer holds, or for how long, so their
/// tables are requested from it.
const TIMEFRAMES_ARE_REQUESTED: u64 = 2;
/// Flag of a page: the service executes a barrier in the registered processes before it looks at the
/// slots.
const PINS_WITHOUT_FENCE: u64 = 4;

const _: () = assert!(offset_of!(PageHeader, version) == 8);
const _: () = assert!(offset_of!(PageHeader, slots) == 12);
const _: () = assert!(offset_of!(PageHeader, size) == 16);
const _: () = assert!(offset_of!(PageHeader, high_water) == 24);
const _: () = assert!(offset_of!(PageHeader, quota_bytes) == 32);
const _: () = assert!(offset_of!(PageHeader, flags) == 40);
const _: () = assert!(offset_of!(PageHeader, taken) == 48);
const _: () = assert!(offset_of!(PageHeader, refused) == 52);
const _: () = assert!(offset_of!(PageHeader, hits) == 64);
const _: () = assert!(offset_of!(PageHeader, asks) == 72);
const _: () = assert!(size_of::<PageHeader>() == 128);
const _: () = assert!(SAMPLES_OFFSET + SAMPLES * SAMPLE_BYTES == WATCHES_OFFSET);
const _: () = assert!(WATCHES_OFFSET + WATCHES as usize * size_of::<u64>() == SLOTS_OFFSET);
const _: () = assert!(SLOTS == 15_360);
const _: () = assert!(SLOTS.is_multiple_of(CHUNK_SLOTS));

/// An object that was used: where it is named, and the generation of its block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct UseSample {
    /// The entry of its path in the directory.
    pub(crate) entry: u32,
    /// The number of the span in the snapshot.
    pub(crate) span: u32,
    pub(crate) generation: u64,
}

#[inline]
fn slot(mapping: &Mapping, index: u32) -> &AtomicU64 {
    mapping.atomic_u64(SLOTS_OFFSET + index as usize * size_of::<u64>())
}

/// The two words of a sample: generation (0: taken), and entry and span.
fn sample(mapping: &Mapping, index: usize) -> [&AtomicU64; 2] {
    let at = SAMPLES_OFFSET + index % SAMPLES * SAMPLE_BYTES;
    [mapping.atomic_u64(at), mapping.atomic_u64(at + size_of::<u64>())]
}

fn watch(mapping: &Mapping, index: u32) -> &AtomicU64 {
    mapping.atomic_u64(WATCHES_OFFSET + index as usize * size_of::<u64>())
}

/// Limits that the service sets for the slots of a session.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct PageLimits {
    /// Maximum number of bytes that the slots may pin; `None`: no limit.
    pub(crate) quota_bytes: Option<u64>,
    /// Whether tables must be requested from the service.
    pub(crate) tables_are_requested: bool,
    /// Whether tables of timeframes must be requested from the service.
    pub(crate) timeframes_are_requested: bool,
    /// Whether the service executes a barrier in the registered processes before it looks at the
    /// slots.
    pub(crate) has_barriers: bool,
}

/// A page as mapped by its consumer.
#[derive(Debug)]
pub(super) struct ConsumerPage {
    mapping: Mapping,
    /// Index of the next sample.
    next_sample: AtomicU64,
    pub(super) quota: Option<ByteQuota>,
    flags: u64,
    pub(super) chunks: Arc<SlotChunks>,
    /// Whether the service executes the fences of pins.
    has_barriers: Arc<AtomicBool>,
}

impl ConsumerPage {
    /// Maps the page that the service sent.
    ///
    /// # Errors
    /// The reason in words why it cannot be used.
    pub(super) fn open(file: BorrowedFd<'_>, size: u64) -> Result<Self, String> {
        let mapping = map_sealed(file, size, MapAccess::ReadWrite)?;
        let word = |at: usize| mapping.atomic_u64(at).load(Ordering::Relaxed);
        let (version, slots) = (word(8) as u32, (word(8) >> 32) as u32);
        let right = word(offset_of!(PageHeader, magic)) == u64::from_le_bytes(MAGIC)
            && version == VERSION
            && size == PAGE_BYTES
            && slots == SLOTS;
        if !right {
            return Err(format!("a pins page of version {version} with {slots} slots"));
        }
        let limit = word(offset_of!(PageHeader, quota_bytes));
        let quota = (limit != u64::MAX).then(|| ByteQuota::new(limit, SLOTS));
        let flags = word(offset_of!(PageHeader, flags));
        let has_barriers = Arc::default();
        if flags & PINS_WITHOUT_FENCE != 0 {
            barrier::register_soon(&has_barriers);
        }
        let (next_sample, chunks) = (AtomicU64::new(0), SlotChunks::new(SLOTS));
        Ok(Self { mapping, next_sample, quota, flags, chunks, has_barriers })
    }

    /// Whether tables must be requested from the service.
    #[cfg(any(feature = "client", feature = "capi", test))]
    pub(super) fn tables_are_requested(&self) -> bool {
        self.flags & TABLES_ARE_REQUESTED != 0
    }

    /// Whether tables of timeframes must be requested from the service.
    #[cfg(any(feature = "client", feature = "capi", test))]
    pub(super) fn timeframes_are_requested(&self) -> bool {
        self.flags & TIMEFRAMES_ARE_REQUESTED != 0
    }

    /// The word with the number of lines that the service has taken, to wait for.
    #[cfg(any(feature = "client", feature = "capi", test))]
    pub(super) fn taken_word(&self) -> &AtomicU32 {
        self.mapping.atomic_u32(offset_of!(PageHeader, taken))
    }

    /// Numbers of lines that the service has taken and refused.
    #[cfg(any(feature = "client", feature = "capi", test))]
    pub(super) fn lines(&self) -> (u32, u32) {
        // SYNC(notice): the effects of the lines are visible with their number.
        let taken = change_notice::note(self.taken_word());
        let refused = self.mapping.atomic_u32(offset_of!(PageHeader, refused));
        (taken, refused.load(Ordering::Relaxed))
    }

    #[inline]
    fn high_water(&self) -> &AtomicU64 {
        self.mapping.atomic_u64(offset_of!(PageHeader, high_water))
    }

    /// The slot of an index from [`pin`](Self::pin).
    #[inline]
    pub(super) fn slot(&self, index: u32) -> &AtomicU64 {
        slot(&self.mapping, index)
    }

    /// The fence of a pin that begins now.
    #[inline]
    pub(super) fn fence(&self) -> PinFence {
        match self.has_barriers.load(Ordering::Acquire) {
            true => PinFence::OfService,
            false => PinFence::Own,
        }
    }

    /// Has the service look at the slots before `end`.
    #[inline]
    pub(super) fn raise_high_water(&self, end: u32) {
        // SYNC(pin): before the fence between a slot and the load behind it.
        if self.high_water().load(Ordering::SeqCst) < u64::from(end) {
            self.high_water().fetch_max(u64::from(end), Ordering::SeqCst);
        }
    }

    /// Ends the pin of a slot.
    #[inline]
    pub(super) fn unpin(&self, index: u32) {
        let Some(quota) = &self.quota else { return protocol::unpin(self.slot(index)) };
        // Read before the slot is free for another holder, and given back after that: the slots never
        // name more than the quota, or the service would ignore some.
        let bytes = quota.of_slots[index as usize].swap(0, Ordering::Relaxed);
        protocol::unpin(self.slot(index));
        quota.give_back(bytes);
    }

    /// Whether no block is pinned.
    pub(super) fn is_unused(&self) -> bool {
        let used = self.high_water().load(Ordering::SeqCst).min(u64::from(SLOTS)) as u32;
        (0..used).all(|index| self.slot(index).load(Ordering::SeqCst) == 0)
    }

    /// Reports a use to the service; returns whether the page had room for it.
    pub(super) fn sample(&self, used: UseSample) -> bool {
        let next = self.next_sample.fetch_add(1, Ordering::Relaxed) as usize;
        let [generation, place] = sample(&self.mapping, next);
        let has_room = generation.load(Ordering::Relaxed) == 0;
        if has_room {
            let word = (u64::from(used.entry) + 1) << 32 | u64::from(used.span);
            place.store(word, Ordering::Relaxed);
            // SYNC(sample): the service that sees the generation sees the place.
            generation.store(used.generation, Ordering::Release);
        }
        has_room
    }

    /// Tells the service that a thread waits for a change of the path in an entry, so that it keeps
    /// the path fresh. A number for [`end_watch`](Self::end_watch); `None` if too many wait.
    pub(super) fn begin_watch(&self, entry: u32) -> Option<u32> {
        // Relaxed: the service reads it now and then.
        let claimed = |index: &u32| {
            let word = watch(&self.mapping, *index);
            let value = u64::from(entry) + 1;
            word.compare_exchange(0, value, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        };
        (0..WATCHES).find(claimed)
    }

    /// The thread does not wait any more.
    pub(super) fn end_watch(&self, index: u32) {
        watch(&self.mapping, index).store(0, Ordering::Relaxed);
    }

    pub(super) fn count_hits(&self, hits: u64) {
        let word = self.mapping.atomic_u64(offset_of!(PageHeader, hits));
        word.fetch_add(hits, Ordering::Relaxed);
    }

    pub(super) fn count_ask(&self, reason: usize) {
        let offset = offset_of!(PageHeader, asks) + reason.min(REASONS - 1) * size_of::<u64>();
        self.mapping.atomic_u64(offset).fetch_add(1, Ordering::Relaxed);
    }

    /// The counters: hits, and asks by reason.
    pub(super) fn counts(&self) -> (u64, [u64; REASONS]) {
        counts(&self.mapping)
    }
}

fn counts(mapping: &Mapping) -> (u64, [u64; REASONS]) {
    let word = |offset: usize| mapping.atomic_u64(offset).load(Ordering::Relaxed);
    let hits = word(offset_of!(PageHeader, hits));
    let ask = |reason| word(offset_of!(PageHeader, asks) + reason * size_of::<u64>());
    (hits, std::array::from_fn(ask))
}

/// A page as read by the service, which writes only the header.
#[derive(Debug)]
pub(crate) struct ServicePage {
    file: OwnedFd,
    mapping: Mapping,
    /// The consumer can change the copy in the page.
    quota_bytes: Option<u64>,
}

impl ServicePage {
    /// Memory of a page in bytes, once all of it was used.
    pub(crate) const BYTES: u64 = PAGE_BYTES;

    /// A new page. It takes no memory until it is written.
    ///
    /// # Errors
    /// The error of the system.
    pub(crate) fn new(limits: PageLimits) -> std::io::Result<Self> {
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        let (file, mapping) = make_sealed(c"iovcache-pins", PAGE_BYTES, seals)?;
        let put = |offset: usize, value: u64| {
            mapping.atomic_u64(offset).store(value, Ordering::Relaxed);
        };
        put(offset_of!(PageHeader, magic), u64::from_le_bytes(MAGIC));
        put(offset_of!(PageHeader, version), u64::from(SLOTS) << 32 | u64::from(VERSION));
        put(offset_of!(PageHeader, size), PAGE_BYTES);
        put(offset_of!(PageHeader, quota_bytes), limits.quota_bytes.unwrap_or(u64::MAX));
        let flag = |is_set, flag| if is_set { flag } else { 0 };
        let flags = flag(limits.tables_are_requested, TABLES_ARE_REQUESTED)
            | flag(limits.timeframes_are_requested, TIMEFRAMES_ARE_REQUESTED)
            | flag(limits.has_barriers, PINS_WITHOUT_FENCE);
        put(offset_of!(PageHeader, flags), flags);
        Ok(Self { file, mapping, quota_bytes: limits.quota_bytes })
    }

    /// Maximum number of bytes that the slots may pin; `None`: no limit.
    pub(in crate::shm) fn quota_bytes(&self) -> Option<u64> {
        self.quota_bytes
    }

    /// Writes a slot as a consumer can that ignores its quota.
    #[cfg(test)]
    pub(super) fn write_slot_for_test(&self, index: u32, generation: u64) {
        let high_water = self.mapping.atomic_u64(offset_of!(PageHeader, high_water));
        high_water.fetch_max(u64::from(index) + 1, Ordering::SeqCst);
        slot(&self.mapping, index).store(generation, Ordering::SeqCst);
    }

    /// Descriptor of the file, for its consumer.
    pub(crate) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Tells the consumer how many of its lines were taken, and how many of these were refused. What
    /// they have changed is visible before this.
    pub(crate) fn tell_lines(&self, taken: u32, refused: u32) {
        let word = |offset| self.mapping.atomic_u32(offset);
        word(offset_of!(PageHeader, refused)).store(refused, Ordering::Relaxed);
        change_notice::tell(word(offset_of!(PageHeader, taken)), taken);
    }

    /// The slots that the consumer has used, according to the page.
    fn slots(&self) -> impl Iterator<Item = &AtomicU64> {
        let high_water = self.mapping.atomic_u64(offset_of!(PageHeader, high_water));
        // SYNC(pin): after the fence in `retire`.
        let used = high_water.load(Ordering::SeqCst).min(u64::from(SLOTS)) as u32;
        (0..used).map(|index| slot(&self.mapping, index))
    }

    /// The words of its slots that are not 0 at this moment.
    pub(crate) fn used_slots(&self) -> impl Iterator<Item = u64> {
        self.slots().map(protocol::named).filter(|word| *word != 0)
    }

    /// Takes the samples since the last call, which are not trusted.
    pub(crate) fn take_samples(&self, mut each: impl FnMut(UseSample)) {
        for index in 0..SAMPLES {
            let [generation, place] = sample(&self.mapping, index);
            // SYNC(sample): pairs with the Release store in `sample`. A look first: a page that is not
            // used is not written.
            let taken = generation.load(Ordering::Acquire);
            if taken == 0 {
                continue;
            }
            let word = place.load(Ordering::Relaxed);
            generation.store(0, Ordering::Relaxed);
            if let Some(entry) = (word >> 32).checked_sub(1) {
                each(UseSample { entry: entry as u32, span: word as u32, generation: taken });
            }
        }
    }

    /// The entries that threads watch, which are not trusted.
    pub(crate) fn watched(&self) -> impl Iterator<Item = u32> {
        let words = (0..WATCHES).map(|index| watch(&self.mapping, index).load(Ordering::Relaxed));
        words.filter_map(|word| u32::try_from(word.checked_sub(1)?).ok())
    }

    /// The consumer's counters, which are not trusted: hits, and asks by reason.
    pub(crate) fn counts(&self) -> (u64, [u64; REASONS]) {
        let (hits, asks) = counts(&self.mapping);
        (hits.min(MOST_COUNTED), asks.map(|count| count.min(MOST_COUNTED)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::protocol::PinAttempt;
    use super::*;

    fn pair() -> (ServicePage, ConsumerPage) {
        let service = ServicePage::new(PageLimits::default()).unwrap();
        let consumer = ConsumerPage::open(service.file(), PAGE_BYTES).unwrap();
        (service, consumer)
    }

    #[test]
    fn a_pin_is_seen_by_the_service_until_it_ends() {
        let (service, consumer) = pair();
        let block = AtomicU64::new(7);
        let slot = consumer.pin_from(5, &block, 7, 1).unwrap();
        assert_eq!(slot, 5);
        assert_eq!(service.used_slots().collect::<Vec<_>>(), [7]);
        assert!(!consumer.is_unused());
        consumer.unpin(slot);
        assert!(service.used_slots().next().is_none() && consumer.is_unused());
    }

    #[test]
    fn a_thread_pins_by_the_slots_of_its_lane_first() {
        for has_barriers in [false, barrier::is_supported()] {
            let limits = PageLimits { has_barriers, ..PageLimits::default() };
            let service = ServicePage::new(limits).unwrap();
            let consumer = ConsumerPage::open(service.file(), PAGE_BYTES).unwrap();
            let expected = if has_barriers { PinFence::OfService } else { PinFence::Own };
            while consumer.fence() != expected {
                std::thread::yield_now();
            }
            let block = AtomicU64::new(7);
            let in_lane: Vec<u32> =
                (0..CHUNK_SLOTS).map(|_| consumer.pin(&block, 7, 1).unwrap()).collect();
            assert_eq!(in_lane, (0..CHUNK_SLOTS).collect::<Vec<_>>());
            let beside = consumer.pin(&block, 7, 1).unwrap();
            assert!(beside >= CHUNK_SLOTS, "{beside}");
            assert_eq!(service.used_slots().count(), CHUNK_SLOTS as usize + 1);
            consumer.unpin(3);
            assert_eq!(consumer.pin(&block, 7, 1), Ok(3));
            assert_eq!(consumer.pin(&AtomicU64::new(0), 7, 1), Err(PinAttempt::Gone));
            // Another thread has another lane.
            std::thread::scope(|scope| {
                let other = scope.spawn(|| consumer.pin(&block, 7, 1).unwrap());
                let other = other.join().unwrap();
                assert!(other >= CHUNK_SLOTS && other != beside, "{other}");
            });
            in_lane.into_iter().chain([beside]).for_each(|slot| consumer.unpin(slot));
            assert_eq!(service.used_slots().count(), 1);
        }
    }

    #[test]
    fn the_pins_of_a_batch_that_have_ended_make_room_for_the_next_one() {
        let (service, consumer) = pair();
        let block = AtomicU64::new(7);
        let pinned = || -> Vec<u32> {
            let mut batch = consumer.batch();
            (0..100).map(|_| batch.pin(&block, 7, 1).unwrap()).collect()
        };
        let first = pinned();
        assert_eq!(service.used_slots().count(), 100);
        first.iter().for_each(|slot| consumer.unpin(*slot));
        assert_eq!(pinned(), first, "the same slots");
    }

    #[test]
    fn a_block_that_was_given_up_is_not_pinned() {
        let (service, consumer) = pair();
        assert_eq!(consumer.pin_from(0, &AtomicU64::new(0), 7, 1), Err(PinAttempt::Gone));
        assert_eq!(service.used_slots().count(), 0);
    }

    #[test]
    fn as_many_views_as_there_are_slots_are_pinned_at_a_time() {
        let (service, consumer) = pair();
        let block = AtomicU64::new(7);
        let mut taken: Vec<u32> =
            (0..SLOTS).map(|_| consumer.pin_from(9, &block, 7, 1).unwrap()).collect();
        assert_eq!(consumer.pin_from(9, &block, 7, 1), Err(PinAttempt::SlotTaken));
        assert_eq!(service.used_slots().count(), SLOTS as usize);
        let free = taken.swap_remove(1_000);
        consumer.unpin(free);
        assert_eq!(consumer.pin_from(9, &block, 7, 1), Ok(free));
    }

    #[test]
    fn the_slots_pin_at_most_the_bytes_of_the_quota() {
        let limits = PageLimits { quota_bytes: Some(100), ..PageLimits::default() };
        let service = ServicePage::new(limits).unwrap();
        let consumer = ConsumerPage::open(service.file(), PAGE_BYTES).unwrap();
        let block = AtomicU64::new(7);
        let first = consumer.pin_from(0, &block, 7, 60).unwrap();
        assert_eq!(consumer.pin_from(0, &block, 7, 41), Err(PinAttempt::SlotTaken));
        assert_eq!(consumer.pin_from(0, &block, 7, u64::MAX), Err(PinAttempt::SlotTaken));
        // An attempt that fails takes nothing.
        assert_eq!(consumer.pin_from(0, &AtomicU64::new(0), 7, 40), Err(PinAttempt::Gone));
        let second = consumer.pin_from(0, &block, 7, 40).unwrap();
        assert_eq!(consumer.pin_from(0, &block, 7, 1), Err(PinAttempt::SlotTaken));
        consumer.unpin(first);
        consumer.unpin(second);
        assert!(consumer.pin_from(0, &block, 7, 100).is_ok());
    }

    #[test]
    fn a_consumer_knows_which_tables_must_be_requested() {
        for (tables_are_requested, timeframes_are_requested) in
            [(false, false), (true, false), (false, true), (true, true)]
        {
            let limits = PageLimits {
                tables_are_requested,
                timeframes_are_requested,
                ..PageLimits::default()
            };
            let service = ServicePage::new(limits).unwrap();
            let consumer = ConsumerPage::open(service.file(), PAGE_BYTES).unwrap();
            assert_eq!(consumer.tables_are_requested(), tables_are_requested);
            assert_eq!(consumer.timeframes_are_requested(), timeframes_are_requested);
        }
    }

    #[test]
    fn a_consumer_sees_how_many_of_its_lines_were_taken_and_refused() {
        let (service, consumer) = pair();
        assert_eq!(consumer.lines(), (0, 0));
        service.tell_lines(7, 2);
        assert_eq!(consumer.lines(), (7, 2));
    }

    #[test]
    fn any_bytes_in_a_page_do_no_harm_to_the_service() {
        let service = ServicePage::new(PageLimits::default()).unwrap();
        let mapping = map_sealed(service.file(), PAGE_BYTES, MapAccess::ReadWrite).unwrap();
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        // 16,384 words each; a nightly run writes 10^8.
        let rounds = std::env::var("IOVCACHE_PAGE_ROUNDS").ok().and_then(|text| text.parse().ok());
        for _ in 0..rounds.unwrap_or(100) {
            for offset in (0..PAGE_BYTES as usize).step_by(8) {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                let word = if random.is_multiple_of(5) { u64::MAX } else { random };
                mapping.atomic_u64(offset).store(word, Ordering::Relaxed);
            }
            assert!(service.used_slots().count() <= SLOTS as usize);
            let mut samples = 0;
            service.take_samples(|_| samples += 1);
            assert!(samples <= SAMPLES);
            assert!(service.watched().count() <= WATCHES as usize);
            let _ = service.counts();
        }
    }

    #[test]
    fn samples_are_taken_once() {
        let (service, consumer) = pair();
        let used = |entry, span| UseSample { entry, span, generation: 9 };
        let last = used(u32::MAX - 1, u32::MAX);
        assert!(consumer.sample(used(0, 3)) && consumer.sample(last));
        let mut taken = Vec::new();
        service.take_samples(|sample| taken.push(sample));
        assert_eq!(taken, [used(0, 3), last]);
        service.take_samples(|_| panic!("once"));
        let room = (0..2 * SAMPLES).filter(|_| consumer.sample(last)).count();
        assert_eq!(room, SAMPLES, "what the service has not taken is not overwritten");
    }

    #[test]
    fn watches_are_seen_until_they_end() {
        let (service, consumer) = pair();
        assert_eq!(service.watched().count(), 0);
        let taken: Vec<u32> =
            (0..WATCHES).map(|entry| consumer.begin_watch(entry).unwrap()).collect();
        assert_eq!(consumer.begin_watch(7), None);
        assert_eq!(service.watched().collect::<Vec<_>>(), (0..WATCHES).collect::<Vec<_>>());
        consumer.end_watch(taken[3]);
        assert_eq!(consumer.begin_watch(u32::MAX), Some(taken[3]));
        assert!(service.watched().any(|entry| entry == u32::MAX));
    }

    #[test]
    fn a_consumer_cannot_change_the_size_of_its_page() {
        let (service, _) = pair();
        let file = std::fs::File::from(service.file().try_clone_to_owned().unwrap());
        assert!(file.set_len(0).is_err() && file.set_len(1 << 20).is_err());
    }
}
