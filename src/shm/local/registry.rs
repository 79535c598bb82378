//! Pages of all live sessions, and quarantined places: those that wait until no slot pins their
//! block.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering, fence};

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
    pub(in crate::shm) place: AllocatedNode,
    pub(in crate::shm) bytes: u64,
}

/// The blocks that consumers of this service pin through their pages.
#[derive(Default)]
pub(in crate::shm) struct PageRegistry {
    /// Number of pages. Raised after a page is added.
    live: AtomicUsize,
    pages: RwLock<Vec<Arc<ServicePage>>>,
    quarantine: Mutex<Vec<QuarantinedPlace>>,
}

impl fmt::Debug for PageRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PageRegistry").field("live", &self.live).finish_non_exhaustive()
    }
}

impl PageRegistry {
    fn quarantine(&self) -> MutexGuard<'_, Vec<QuarantinedPlace>> {
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

    /// Whether a slot of any page pins the block of `generation`, which was
    /// [retired](super::protocol::retire) before.
    pub(in crate::shm) fn names(&self, generation: u64) -> bool {
        // SYNC(pin): after the fence in `retire`; pairs with the fence in `add`.
        if self.live.load(Ordering::SeqCst) == 0 {
            return false;
        }
        let pages = self.pages.read();
        pages.iter().any(|page| page.names(generation))
    }

    /// The generations in all slots at this moment; they are not trusted.
    pub(in crate::shm) fn used_slots(&self) -> Vec<u64> {
        if self.live.load(Ordering::SeqCst) == 0 {
            return Vec::new();
        }
        let pages = self.pages.read();
        let mut used: Vec<u64> = pages.iter().flat_map(|page| page.used_slots()).collect();
        used.sort_unstable();
        used
    }

    /// Keeps a place until no slot pins its block.
    pub(in crate::shm) fn keep(&self, place: QuarantinedPlace) {
        self.quarantine().push(place);
    }

    /// Takes the places whose blocks no slot pins any more.
    pub(in crate::shm) fn take_unused(&self) -> Vec<QuarantinedPlace> {
        let mut quarantine = self.quarantine();
        let unused = quarantine.extract_if(.., |one| !self.names(one.generation));
        unused.collect()
    }

    /// Bytes of the places in quarantine.
    pub(in crate::shm) fn quarantined_bytes(&self) -> u64 {
        self.quarantine().iter().map(|one| one.bytes).sum()
    }

    /// Whether the place of the block at offset `block` of a segment is in quarantine.
    pub(in crate::shm) fn is_quarantined(&self, segment: &Segment, block: usize) -> bool {
        let quarantine = self.quarantine();
        quarantine.iter().any(|one| std::ptr::eq(&*one.segment, segment) && one.block == block)
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::{Pool, PoolOptions};
    use super::super::pins_page::ConsumerPage;
    use super::*;
    use crate::object::ObjectId;

    fn pool() -> Pool {
        Pool::new(PoolOptions { memory_bytes: 16 << 10, ..PoolOptions::default() }).unwrap()
    }

    /// An object that takes more than half of the memory.
    fn object(pool: &Pool, byte: u8) -> Option<super::super::super::Block> {
        let mut room = pool.reserve(7_000).ok()?;
        room.fill(&[byte; 7_000]);
        Some(room.publish(ObjectId::from_bytes([byte; 16])))
    }

    fn attached(pool: &Pool) -> (Arc<ServicePage>, ConsumerPage) {
        let page = Arc::new(ServicePage::new().unwrap());
        pool.add_pins_page(&page);
        let consumer = ConsumerPage::open(page.file(), ServicePage::BYTES).unwrap();
        (page, consumer)
    }

    /// Pins the object of `header`, as a consumer in this process would.
    fn pin(pool: &Pool, consumer: &ConsumerPage, header: &super::super::super::MetaHeader) -> u32 {
        let mappings = pool.mappings();
        let block = mappings.live_block(header).unwrap();
        consumer.pin(0, block.generation(), header.hint).unwrap()
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
        consumer.pin(0, &other, block.generation() + 1).unwrap();
        drop(block);
        assert_eq!(pool.used_bytes(), 0);
    }
}
