//! Pages of all live sessions, and quarantined places: those that wait until no slot pins their
//! block.
//!
//! ```text
//!  block given up ─▶ quarantine ─┬─ SCAN_BATCH places, or no room for a new block
//!                                ▼
//!                  one pass over all slots ─▶ places that no slot names are free
//! ```
//!
//! The slots are not looked at for each block: one pass serves all places that wait. A block that no
//! snapshot has named cannot be pinned, and does not wait.
//!
//! A consumer counts the bytes that its slots pin, and keeps within the quota of its session. A page
//! that names more is not honest: its slots beyond the quota are ignored, so that it keeps no more memory
//! than its quota from others.

use std::any::Any;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering, fence};
use std::time::{Duration, Instant};

use super::super::allocator::AllocatedNode;
use super::super::segment::Segment;
use super::barrier;
use super::pins_page::ServicePage;
use super::protocol::{self, KernelBarrier};
use crate::sync::{Mutex, MutexGuard, RwLock};

/// A place whose block was retired while a slot pinned it.
pub(in crate::shm) struct QuarantinedPlace {
    pub(in crate::shm) generation: u64,
    /// Offset of the block in its segment.
    pub(in crate::shm) block: usize,
    pub(in crate::shm) segment: Arc<Segment>,
    /// `None`: the place is not used again anyway.
    pub(in crate::shm) place: Option<AllocatedNode>,
    pub(in crate::shm) bytes: u64,
    /// Bytes that a consumer counts for a pin of the block.
    pub(in crate::shm) pinned_bytes: u64,
    /// Dropped once no slot pins the block.
    pub(in crate::shm) kept: Option<Arc<dyn Any + Send + Sync>>,
}

/// The blocks in use by consumers, as of a moment ago.
#[derive(Debug, Default)]
pub(crate) struct SlotsInUse {
    /// Generations in the pages without a quota, sorted.
    unlimited: Vec<u64>,
    limited: Vec<LimitedSlots>,
}

/// The slots of one page with a quota.
#[derive(Debug)]
struct LimitedSlots {
    /// The generations, sorted.
    generations: Vec<u64>,
    /// Bytes that the slots can still keep.
    left: u64,
}

impl SlotsInUse {
    /// Bytes that each page with a quota can still keep.
    pub(crate) fn left(&self) -> SlotBytesLeft {
        SlotBytesLeft(self.limited.iter().map(|page| page.left).collect())
    }

    /// Whether a slot within its quota names the block with this generation and size.
    pub(crate) fn keep(&self, generation: u64, bytes: u64, left: &mut SlotBytesLeft) -> bool {
        if self.unlimited.binary_search(&generation).is_ok() {
            return true;
        }
        let mut pages = self.limited.iter().zip(&mut left.0);
        pages.any(|(page, left)| {
            let is_kept = *left >= bytes && page.generations.binary_search(&generation).is_ok();
            *left -= if is_kept { bytes } else { 0 };
            is_kept
        })
    }
}

/// Bytes that each page with a quota can still keep, see [`SlotsInUse::keep`].
#[derive(Debug)]
pub(crate) struct SlotBytesLeft(Vec<u64>);

/// The blocks that consumers of this service pin through their pages.
#[derive(Default)]
pub(in crate::shm) struct PageRegistry {
    /// Number of pages. Raised after a page is added.
    live: AtomicUsize,
    pages: RwLock<Vec<Arc<ServicePage>>>,
    quarantine: Mutex<Quarantine>,
    /// The slots in use as of a moment ago.
    recent: Mutex<Option<(Instant, Arc<SlotsInUse>)>>,
}

/// Places that wait.
#[derive(Default)]
struct Quarantine {
    places: Vec<QuarantinedPlace>,
    /// How many came since the slots were looked at.
    unseen: usize,
}

/// Blocks whose places wait, with the bytes of a pin, by generation.
struct WaitingPlaces(HashMap<u64, u64>);

impl WaitingPlaces {
    fn of(places: &[QuarantinedPlace]) -> Self {
        Self(places.iter().map(|one| (one.generation, one.pinned_bytes)).collect())
    }

    /// Calls `pinned` with each of them that the slots of a page pin within `quota`, and returns their
    /// bytes. An honest page is never over its quota.
    fn pinned_by(&self, page: &ServicePage, quota: u64, mut pinned: impl FnMut(u64)) -> u64 {
        if self.0.is_empty() {
            return 0;
        }
        let (mut bytes, mut counted) = (0_u64, HashSet::new());
        for generation in page.used_slots() {
            let Some(size) = self.0.get(&generation) else { continue };
            if !counted.insert(generation) {
                continue;
            }
            match bytes.checked_add(*size).filter(|sum| *sum <= quota) {
                Some(sum) => bytes = sum,
                None => continue,
            }
            pinned(generation);
        }
        bytes
    }
}

/// Places that wait before the slots are looked at; sooner if there is no room for a new block.
const SCAN_BATCH: usize = 64;
/// Time for which the slots in use count as known where a mistake only delays the reuse of memory.
const RECENT: Duration = Duration::from_millis(5);

impl fmt::Debug for PageRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PageRegistry").field("live", &self.live).finish_non_exhaustive()
    }
}

impl PageRegistry {
    fn quarantine(&self) -> MutexGuard<'_, Quarantine> {
        self.quarantine.lock()
    }

    /// Adds a page. Its descriptor is sent afterwards.
    pub(in crate::shm) fn add(&self, page: Arc<ServicePage>) {
        self.pages.write().push(page);
        self.live.fetch_add(1, Ordering::SeqCst);
        // SYNC(pin): a consumer that pins by this page sees every block that was retired before a
        // service thread found no page; pairs with the fence in `retire`.
        fence(Ordering::SeqCst);
    }

    /// Removes the page of an ended session, which pins no block any more.
    pub(in crate::shm) fn remove(&self, page: &Arc<ServicePage>) {
        let mut pages = self.pages.write();
        let before = pages.len();
        pages.retain(|one| !Arc::ptr_eq(one, page));
        self.live.fetch_sub(before - pages.len(), Ordering::SeqCst);
    }

    /// Number of pages.
    pub(in crate::shm) fn pages(&self) -> usize {
        self.pages.read().len()
    }

    /// Whether a consumer can have pinned a block that was [retired](super::protocol::retire) just
    /// now.
    pub(in crate::shm) fn has_pages(&self) -> bool {
        // SYNC(pin): after the fence in `retire`; pairs with the fence in `add`.
        self.live.load(Ordering::SeqCst) != 0
    }

    /// The blocks in use, as of a moment ago: for guesses.
    pub(in crate::shm) fn recently_used_slots(&self) -> Arc<SlotsInUse> {
        let mut recent = self.recent.lock();
        match &*recent {
            Some((seen, used)) if seen.elapsed() < RECENT => Arc::clone(used),
            _ => {
                let used = Arc::new(self.slots_in_use());
                *recent = Some((Instant::now(), Arc::clone(&used)));
                used
            }
        }
    }

    fn slots_in_use(&self) -> SlotsInUse {
        let mut used = SlotsInUse::default();
        if !self.has_pages() {
            return used;
        }
        let waiting = WaitingPlaces::of(&self.quarantine().places);
        for page in self.pages.read().iter() {
            match page.quota_bytes() {
                None => used.unlimited.extend(page.used_slots()),
                Some(quota) => {
                    let mut generations: Vec<u64> = page.used_slots().collect();
                    generations.sort_unstable();
                    let left = quota - waiting.pinned_by(page, quota, |_| ());
                    used.limited.push(LimitedSlots { generations, left });
                }
            }
        }
        used.unlimited.sort_unstable();
        used
    }

    /// Keeps a place until no slot names its block. Whether the slots are to be looked at now.
    pub(in crate::shm) fn keep(&self, place: QuarantinedPlace) -> bool {
        let mut quarantine = self.quarantine();
        let is_urgent = place.kept.is_some();
        quarantine.places.push(place);
        quarantine.unseen += 1;
        is_urgent || quarantine.unseen >= SCAN_BATCH
    }

    /// Whether a place in quarantine keeps anything beside its memory.
    #[cfg_attr(not(feature = "cache"), allow(dead_code, reason = "the service's side"))]
    pub(in crate::shm) fn keeps_any(&self) -> bool {
        self.quarantine().places.iter().any(|one| one.kept.is_some())
    }

    /// Places whose blocks no slot names any more. Looks at each slot once.
    pub(in crate::shm) fn take_unused(&self) -> Vec<QuarantinedPlace> {
        let mut quarantine = self.quarantine();
        if quarantine.places.is_empty() {
            return Vec::new();
        }
        quarantine.unseen = 0;
        // After the lock: every place in quarantine was retired before.
        if self.has_pages() && barrier::is_supported() && !protocol::look_at_slots(&KernelBarrier) {
            return Vec::new();
        }
        let waiting = WaitingPlaces::of(&quarantine.places);
        let mut used: HashSet<u64> = HashSet::new();
        if self.has_pages() {
            for page in self.pages.read().iter() {
                let quota = page.quota_bytes().unwrap_or(u64::MAX);
                waiting.pinned_by(page, quota, |generation| {
                    used.insert(generation);
                });
            }
        }
        let is_unused = |one: &mut QuarantinedPlace| !used.contains(&one.generation);
        quarantine.places.extract_if(.., is_unused).collect()
    }

    /// Bytes of the places in quarantine.
    pub(in crate::shm) fn quarantined_bytes(&self) -> u64 {
        self.quarantine().places.iter().map(|one| one.bytes).sum()
    }

    /// Whether the place of the block at offset `block` of a segment is in quarantine.
    pub(in crate::shm) fn is_quarantined(&self, segment: &Segment, block: usize) -> bool {
        let places = &self.quarantine().places;
        places.iter().any(|one| std::ptr::eq(&*one.segment, segment) && one.block == block)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU64};

    use super::super::super::mapping::MapAccess;
    use super::super::super::{Pool, PoolOptions};
    use super::super::pins_page::{ConsumerPage, PageLimits};
    use super::super::sealed::map_sealed;
    use super::*;
    use crate::object::ObjectId;

    fn pool() -> Pool {
        Pool::new(PoolOptions { memory_bytes: 16 << 10, ..PoolOptions::default() }).unwrap()
    }

    /// An object that takes more than half of the memory.
    fn object(pool: &Pool, byte: u8) -> Option<super::super::super::Block> {
        let mut room = pool.reserve(7_000).ok()?;
        room.fill(&[byte; 7_000]);
        let block = room.publish(ObjectId::from_bytes([byte; 16]));
        block.enter_snapshot();
        Some(block)
    }

    fn attached(pool: &Pool) -> (Arc<ServicePage>, ConsumerPage) {
        let limits = PageLimits { has_barriers: barrier::is_supported(), ..PageLimits::default() };
        let page = Arc::new(ServicePage::new(limits).unwrap());
        pool.add_pins_page(&page);
        let consumer = ConsumerPage::open(page.file(), ServicePage::BYTES).unwrap();
        (page, consumer)
    }

    /// Pins the object of `header`, as a consumer in this process would.
    fn pin(pool: &Pool, consumer: &ConsumerPage, header: &super::super::super::MetaHeader) -> u32 {
        let mappings = pool.mappings();
        let block = mappings.live_block(header).unwrap();
        consumer.pin_from(0, block.generation(), header.hint, header.size).unwrap()
    }

    #[test]
    fn a_place_is_not_used_again_while_a_slot_names_its_block() {
        let pool = pool();
        let (_page, consumer) = attached(&pool);
        let block = object(&pool, 7).unwrap();
        let header = block.meta_header();
        let slot = pin(&pool, &consumer, &header);
        let location = pool.mappings().locate(&header).unwrap();
        drop(block);
        assert!(pool.mappings().locate(&header).is_err(), "no client can pin it any more");
        assert!(pool.quarantined_bytes() > 7_000);
        assert!(object(&pool, 8).is_none(), "its place is not free");
        assert!(pool.survey().faults.is_empty() && pool.survey().taken.is_empty());
        consumer.unpin(slot);
        let next = object(&pool, 8).unwrap();
        let taken = pool.mappings().locate(&next.meta_header()).unwrap();
        assert_eq!((taken, pool.quarantined_bytes()), (location, 0), "the very same place");
    }

    #[test]
    fn pins_of_a_page_end_with_its_session() {
        let pool = pool();
        let (page, consumer) = attached(&pool);
        let block = object(&pool, 7).unwrap();
        let _slot = pin(&pool, &consumer, &block.meta_header());
        drop(block);
        assert!(pool.used_bytes() > 7_000);
        pool.remove_pins_page(&page);
        assert_eq!((pool.used_bytes(), pool.quarantined_bytes()), (0, 0));
        assert!(object(&pool, 8).is_some());
    }

    #[test]
    fn a_slot_that_names_another_block_keeps_nothing() {
        let pool = pool();
        let (_page, consumer) = attached(&pool);
        let block = object(&pool, 7).unwrap();
        let other = std::sync::atomic::AtomicU64::new(block.generation() + 1);
        consumer.pin_from(0, &other, block.generation() + 1, 1).unwrap();
        drop(block);
        assert_eq!(pool.usage().used_bytes, 0);
    }

    #[test]
    fn a_page_that_names_more_than_its_quota_keeps_no_more_than_that() {
        let pool = Pool::new(PoolOptions { memory_bytes: 1 << 20, ..PoolOptions::default() });
        let pool = pool.unwrap();
        let limits = PageLimits { quota_bytes: Some(20_000), ..PageLimits::default() };
        let page = Arc::new(ServicePage::new(limits).unwrap());
        pool.add_pins_page(&page);
        let blocks: Vec<_> = (0..10).map(|n| object(&pool, n).unwrap()).collect();
        let each = blocks[0].charged_bytes();
        let generations: Vec<u64> = blocks.iter().map(|block| block.generation()).collect();
        // Written past the count of the consumer's side, with each generation twice.
        for (slot, generation) in generations.iter().chain(&generations).enumerate() {
            page.write_slot_for_test(slot as u32, *generation);
        }
        let used = pool.recently_used_slots();
        let mut left = used.left();
        let kept = generations.iter().filter(|one| used.keep(**one, 7_000, &mut left)).count();
        assert_eq!(kept, 2, "objects in memory that are not evicted for its sake");
        drop(blocks);
        assert_eq!(pool.quarantined_bytes(), 2 * each, "20,000 bytes are two of 7,000");
        assert!(pool.survey().faults.is_empty());
        // Its bytes in quarantine reduce the memory that is not evicted for its sake.
        let block = object(&pool, 99).unwrap();
        page.write_slot_for_test(30, block.generation());
        std::thread::sleep(2 * RECENT);
        let used = pool.recently_used_slots();
        assert!(!used.keep(block.generation(), 7_000, &mut used.left()));
        assert!(used.keep(block.generation(), 6_000, &mut used.left()));
        pool.remove_pins_page(&page);
        assert_eq!(pool.quarantined_bytes(), 0);
    }

    #[test]
    fn a_block_that_no_snapshot_has_named_is_free_at_once_whatever_slots_say() {
        let pool = pool();
        let (_page, consumer) = attached(&pool);
        let mut room = pool.reserve(7_000).unwrap();
        room.fill(&[7; 7_000]);
        let block = room.publish(ObjectId::from_bytes([7; 16]));
        let _slot = pin(&pool, &consumer, &block.meta_header());
        drop(block);
        assert_eq!((pool.used_bytes(), pool.quarantined_bytes()), (0, 0));
    }

    #[test]
    fn many_blocks_that_are_given_up_are_looked_for_in_one_pass() {
        let pool = Pool::new(PoolOptions { memory_bytes: 1 << 20, ..PoolOptions::default() });
        let pool = pool.unwrap();
        let (_page, consumer) = attached(&pool);
        let blocks: Vec<_> = (0..3 * SCAN_BATCH)
            .map(|n| {
                let mut room = pool.reserve(64).unwrap();
                room.fill(&[n as u8; 64]);
                let block = room.publish(ObjectId::from_bytes([n as u8; 16]));
                block.enter_snapshot();
                block
            })
            .collect();
        let each = blocks[0].charged_bytes();
        let _slot = pin(&pool, &consumer, &blocks[7].meta_header());
        let mut waiting = Vec::new();
        for block in blocks {
            drop(block);
            waiting.push(pool.used_bytes());
        }
        let all = 3 * SCAN_BATCH as u64 * each;
        assert_eq!(waiting[0], all, "the first one waits for others");
        let batch = SCAN_BATCH as u64 * each;
        assert_eq!(waiting[SCAN_BATCH - 1], all - batch + each, "all but the pinned one are free");
        assert_eq!(*waiting.last().unwrap(), each);
    }

    /// Writes words to a page until it has written as often as wanted: random ones, and generations of
    /// blocks in use.
    fn write_words(page: &ServicePage, used: &[AtomicU64], is_over: &AtomicBool) {
        let mapping = map_sealed(page.file(), ServicePage::BYTES, MapAccess::ReadWrite).unwrap();
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        // 16,384 words each; a long run writes 10^8.
        let rounds = std::env::var("IOVCACHE_PAGE_ROUNDS").ok().and_then(|text| text.parse().ok());
        for _ in 0..rounds.unwrap_or(50) {
            for offset in (0..ServicePage::BYTES as usize).step_by(8) {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                let word = match random % 5 {
                    0 => u64::MAX,
                    1 => 0,
                    2 => used[(random >> 32) as usize % used.len()].load(Ordering::Relaxed),
                    _ => random,
                };
                mapping.atomic_u64(offset).store(word, Ordering::Relaxed);
            }
        }
        is_over.store(true, Ordering::Relaxed);
    }

    #[test]
    fn random_words_in_a_page_take_no_place_from_an_honest_pin_and_keep_nothing_after_its_end() {
        let pool = Pool::new(PoolOptions { memory_bytes: 512 << 10, ..PoolOptions::default() });
        let pool = pool.unwrap();
        let (page, honest) = attached(&pool);
        let limits = PageLimits { quota_bytes: Some(64 << 10), ..PageLimits::default() };
        let hostile = Arc::new(ServicePage::new(limits).unwrap());
        pool.add_pins_page(&hostile);
        let used: Vec<AtomicU64> = (0..16).map(|_| AtomicU64::new(0)).collect();
        let (is_over, mut rounds) = (AtomicBool::new(false), 0_u64);
        std::thread::scope(|scope| {
            scope.spawn(|| write_words(&hostile, &used, &is_over));
            let mut blocks = std::collections::VecDeque::new();
            while !is_over.load(Ordering::Relaxed) {
                let block =
                    object(&pool, 7).expect("a quota of an eighth of the memory leaves room");
                let (header, mappings) = (block.meta_header(), pool.mappings());
                let slot = pin(&pool, &honest, &header);
                let pinned = mappings.locate(&header).unwrap();
                drop(block);
                // Its place is not used again, whatever comes and goes.
                for byte in 0..8_u8 {
                    let next = object(&pool, byte).expect("there is room");
                    let place = pool.mappings().locate(&next.meta_header()).unwrap();
                    assert_ne!(place.address, pinned.address);
                    used[byte as usize].store(next.generation(), Ordering::Relaxed);
                    blocks.push_back(next);
                    blocks.drain(..blocks.len().saturating_sub(16));
                }
                honest.unpin(slot);
                rounds += 1;
            }
        });
        assert!(rounds > 0 && pool.survey().faults.is_empty());
        pool.remove_pins_page(&hostile);
        pool.remove_pins_page(&page);
        assert_eq!((pool.used_bytes(), pool.quarantined_bytes()), (0, 0));
    }
}
