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

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering, fence};
use std::time::{Duration, Instant};

use super::super::allocator::AllocatedNode;
use super::super::segment::Segment;
use super::pins_page::ServicePage;
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
    /// Dropped once no slot pins the block.
    pub(in crate::shm) kept: Option<Arc<dyn Any + Send + Sync>>,
}

/// The blocks that consumers of this service pin through their pages.
#[derive(Default)]
pub(in crate::shm) struct PageRegistry {
    /// Number of pages. Raised after a page is added.
    live: AtomicUsize,
    pages: RwLock<Vec<Arc<ServicePage>>>,
    quarantine: Mutex<Quarantine>,
    /// The slots in use as of a moment ago.
    recent: Mutex<Option<(Instant, Arc<[u64]>)>>,
}

/// Places that wait.
#[derive(Default)]
struct Quarantine {
    places: Vec<QuarantinedPlace>,
    /// How many came since the slots were looked at.
    unseen: usize,
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

    /// The generations in all slots, sorted: what is in use, unless it is garbage. A block that was
    /// [retired](super::protocol::retire) before this and is not among them is not pinned.
    pub(in crate::shm) fn used_slots(&self) -> Vec<u64> {
        if !self.has_pages() {
            return Vec::new();
        }
        let pages = self.pages.read();
        let mut used: Vec<u64> = pages.iter().flat_map(|page| page.used_slots()).collect();
        used.sort_unstable();
        used
    }

    /// As [`used_slots`](Self::used_slots), as of a moment ago: for guesses.
    pub(in crate::shm) fn recently_used_slots(&self) -> Arc<[u64]> {
        let mut recent = self.recent.lock();
        match &*recent {
            Some((seen, used)) if seen.elapsed() < RECENT => Arc::clone(used),
            _ => {
                let used: Arc<[u64]> = self.used_slots().into();
                *recent = Some((Instant::now(), Arc::clone(&used)));
                used
            }
        }
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
        let used = self.used_slots();
        let is_unused = |one: &mut QuarantinedPlace| used.binary_search(&one.generation).is_err();
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
    use super::super::super::{Pool, PoolOptions};
    use super::super::pins_page::{ConsumerPage, PageLimits};
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
        let page = Arc::new(ServicePage::new(PageLimits::default()).unwrap());
        pool.add_pins_page(&page);
        let consumer = ConsumerPage::open(page.file(), ServicePage::BYTES).unwrap();
        (page, consumer)
    }

    /// Pins the object of `header`, as a consumer in this process would.
    fn pin(pool: &Pool, consumer: &ConsumerPage, header: &super::super::super::MetaHeader) -> u32 {
        let mappings = pool.mappings();
        let block = mappings.live_block(header).unwrap();
        consumer.pin(0, block.generation(), header.hint, header.size).unwrap()
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
    fn what_a_page_pins_is_free_when_its_session_is_over() {
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
        consumer.pin(0, &other, block.generation() + 1, 1).unwrap();
        drop(block);
        assert_eq!(pool.usage().used_bytes, 0);
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
}
