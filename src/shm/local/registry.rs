//! The pages of all live sessions, and places that wait until no slot names their block.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use super::super::allocator::AllocatedNode;
use super::super::segment::Segment;
use super::pins_page::ServicePage;

/// A place whose block was given up while a slot named it.
pub(in crate::shm) struct QuarantinedPlace {
    pub(in crate::shm) generation: u64,
    /// Where the block begins in its segment.
    pub(in crate::shm) block: usize,
    pub(in crate::shm) segment: Arc<Segment>,
    pub(in crate::shm) place: AllocatedNode,
    pub(in crate::shm) bytes: u64,
}

/// Which blocks the consumers of this service pin by themselves.
#[derive(Default)]
pub(in crate::shm) struct PageRegistry {
    /// How many pages there are. Raised after a page is listed.
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
        self.quarantine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lists a page. Its descriptor is sent after this.
    pub(in crate::shm) fn add(&self, page: Arc<ServicePage>) {
        self.pages.write().unwrap_or_else(PoisonError::into_inner).push(page);
        self.live.fetch_add(1, Ordering::SeqCst);
        // SYNC(pin): a consumer that pins by this page sees every block that was given up before
        // somebody saw no page; pairs with the fence in `retire`.
        fence(Ordering::SeqCst);
    }

    /// The session of a page is over: it pins nothing any more.
    pub(in crate::shm) fn remove(&self, page: &Arc<ServicePage>) {
        let mut pages = self.pages.write().unwrap_or_else(PoisonError::into_inner);
        let before = pages.len();
        pages.retain(|one| !Arc::ptr_eq(one, page));
        self.live.fetch_sub(before - pages.len(), Ordering::SeqCst);
    }

    /// Whether a slot of any page names the block of `generation`, which was
    /// [retired](super::protocol::retire).
    pub(in crate::shm) fn names(&self, generation: u64) -> bool {
        // SYNC(pin): after the fence in `retire`; pairs with the fence in `add`.
        if self.live.load(Ordering::SeqCst) == 0 {
            return false;
        }
        let pages = self.pages.read().unwrap_or_else(PoisonError::into_inner);
        pages.iter().any(|page| page.names(generation))
    }

    /// The generations in all slots, as of now: what is in use, unless it is garbage.
    pub(in crate::shm) fn used_slots(&self) -> Vec<u64> {
        if self.live.load(Ordering::SeqCst) == 0 {
            return Vec::new();
        }
        let pages = self.pages.read().unwrap_or_else(PoisonError::into_inner);
        let mut used: Vec<u64> = pages.iter().flat_map(|page| page.used_slots()).collect();
        used.sort_unstable();
        used
    }

    /// Keeps a place until no slot names its block.
    pub(in crate::shm) fn keep(&self, place: QuarantinedPlace) {
        self.quarantine().push(place);
    }

    /// Places whose blocks no slot names any more.
    pub(in crate::shm) fn take_unused(&self) -> Vec<QuarantinedPlace> {
        let mut quarantine = self.quarantine();
        let unused = quarantine.extract_if(.., |one| !self.names(one.generation));
        unused.collect()
    }

    /// Bytes of the places that wait.
    pub(in crate::shm) fn quarantined_bytes(&self) -> u64 {
        self.quarantine().iter().map(|one| one.bytes).sum()
    }

    /// Whether the place of a segment waits in which a block begins at `block`.
    pub(in crate::shm) fn is_quarantined(&self, segment: &Segment, block: usize) -> bool {
        let quarantine = self.quarantine();
        quarantine.iter().any(|one| std::ptr::eq(&*one.segment, segment) && one.block == block)
    }
}
