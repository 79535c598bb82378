//! The pool: allocates blocks from segments, creates segments and retires them.
//!
//! ```text
//!  reserve ─▶ place in a segment? ──yes──────────────▶ Reservation
//!                 │ no                                     ▲
//!                 ▼                                        │
//!             budget left? ──▶ a new segment (may retire ──┘
//!                 │ no          empty ones of other sizes)
//!                 ▼
//!              NoRoom
//! ```

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::backing::{Backing, Maker};
use super::block::{Allocation, PayloadSize, Reservation};
use super::block_location::{BlockLocation, charge, fault_of_headers};
use super::host::HostError;
use super::host_blocks::{HostBlocks, HostSurvey};
use super::layout::{
    BLOCK_OVERHEAD_BYTES, Epoch, GRANULE_BYTES, SEGMENT_HEADER_BYTES, SEGMENT_TAIL_BYTES,
    SegmentHeader, usable_bytes,
};
use super::local::PageRegistry;
use super::pool_error::PoolError;
use super::pool_state::{
    AllocatedBlock, InFlight, LEAST_SEGMENT_BYTES, MAX_SEGMENT_BYTES, PAGE_BYTES, PoolInner,
    PoolState, SegmentSlot,
};
use super::region::Region;
use super::resolver::Mappings;
use super::segment::{Kind, LostSegment, Segment, SegmentMemory, SharedSegment};
use super::segment_creation::SegmentCreation;
use super::sync;
use crate::sync::Mutex;

/// Memory that a new segment has at least.
const FIRST_BYTES: u64 = 4 << 20;

/// The options of a pool.
#[derive(Debug)]
pub struct PoolOptions {
    /// Maximum size of all segments together. Ignored with a region, whose size is fixed.
    pub memory_bytes: u64,
    /// The size of a segment. A larger object gets a segment of its own.
    pub segment_bytes: u64,
    /// The backing of the segments.
    pub backing: Backing,
    /// A region for all blocks, instead of segments.
    pub region: Option<Region>,
    /// The first generation; `None`: a random one, so that instances have no generations in common.
    pub first_generation: Option<u64>,
}

impl PoolOptions {
    /// Whether the segments are unnamed files, which a descriptor store can keep beyond this
    /// process.
    #[cfg(feature = "cache")]
    pub(crate) fn can_be_kept(&self) -> bool {
        self.backing == Backing::Memfd && self.region.is_none()
    }
}

impl Backing {
    fn host_blocks(&self) -> Option<Arc<HostBlocks>> {
        match self {
            Self::Host(memory) => Some(Arc::new(HostBlocks::new(memory.clone()))),
            Self::Memfd | Self::Folder(_) | Self::FairMq { .. } => None,
        }
    }
}

impl PoolOptions {
    /// The size of the region, or else the configured size.
    fn total_bytes(&self) -> Result<u64, PoolError> {
        let (needed_bytes, limit_bytes) = (LEAST_SEGMENT_BYTES, self.memory_bytes);
        match &self.region {
            Some(region) => Ok(region.mapping.length() as u64),
            None if limit_bytes < needed_bytes && !matches!(self.backing, Backing::Host(_)) => {
                Err(PoolError::NeverFits { needed_bytes, limit_bytes })
            }
            None => Ok(limit_bytes),
        }
    }

    /// When segments of a FairMQ session are made; `None` for other memory.
    fn fairmq_creation(&self) -> Option<SegmentCreation> {
        match &self.backing {
            Backing::FairMq { creation, .. } if self.region.is_none() => Some(*creation),
            Backing::FairMq { .. } | Backing::Memfd | Backing::Folder(_) | Backing::Host(_) => None,
        }
    }
}

impl Default for PoolOptions {
    /// 4 GiB in segments of 512 MiB, memfds.
    fn default() -> Self {
        Self {
            memory_bytes: 4 << 30,
            segment_bytes: 512 << 20,
            backing: Backing::default(),
            region: None,
            first_generation: None,
        }
    }
}

/// Memory for blocks. Clones share one pool.
///
/// ```
/// use iovcache::ObjectId;
/// use iovcache::shm::{Pool, PoolOptions, ResolveError};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let pool = Pool::new(PoolOptions { memory_bytes: 1 << 20, ..PoolOptions::default() })?;
/// let mut reservation = pool.reserve(5)?;
/// reservation.fill(b"drift");
/// let block = reservation.publish(ObjectId::from_bytes([1; 16]));
/// let header = block.meta_header();
/// assert_eq!(pool.mappings().read(&header)?, b"drift");
/// // A block that is freed does not resolve any more, even when its memory is used again.
/// drop(block);
/// assert!(matches!(pool.mappings().read(&header), Err(ResolveError::Stale { .. })));
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Pool(pub(super) Arc<PoolInner>);

/// The use of the memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Bytes in total.
    pub total_bytes: u64,
    /// Bytes used by blocks and reservations, their headers and rounding included.
    pub used_bytes: u64,
    /// The remaining bytes, those set aside for the directory included.
    pub free_bytes: u64,
    /// The largest payload that could be reserved now.
    pub largest_free_bytes: u64,
    /// Number of segments.
    pub segments: usize,
}

/// The extent of a [`Pool::check`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolReport {
    /// Number of segments.
    pub segments: usize,
    /// Bytes used in them.
    pub used_bytes: u64,
}

/// The allocated places of a pool, with faults.
#[derive(Debug)]
pub(crate) struct Survey {
    pub(crate) faults: Vec<String>,
    /// The allocated places, each with the generation of its block; 0: not published.
    #[cfg_attr(not(feature = "cache"), allow(dead_code, reason = "read by the cache"))]
    pub(crate) taken: Vec<(BlockLocation, u64)>,
    pub(crate) report: PoolReport,
}

/// The smallest size of a segment with `bytes` for blocks.
fn segment_bytes_for(bytes: u64) -> u64 {
    (SEGMENT_HEADER_BYTES + bytes + SEGMENT_TAIL_BYTES).next_multiple_of(PAGE_BYTES)
}

fn random() -> io::Result<u64> {
    let mut bytes = [0; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(u64::from_le_bytes(bytes))
}

impl Pool {
    /// Creates a pool. It has no segment yet, except for those of
    /// [`SegmentCreation::AtStart`](super::SegmentCreation::AtStart), which are created here.
    ///
    /// # Errors
    /// [`PoolError::NeverFits`] if nothing can fit, [`PoolError::Backing`] if the folder of the
    /// backing cannot be used, [`PoolError::Segment`] if the system does not provide a segment.
    pub fn new(options: PoolOptions) -> Result<Self, PoolError> {
        let memory_bytes = options.total_bytes()?;
        let creation = options.fairmq_creation();
        let PoolOptions { segment_bytes, backing, region, first_generation, .. } = options;
        let host = backing.host_blocks();
        let segment_bytes = segment_bytes
            .clamp(LEAST_SEGMENT_BYTES, MAX_SEGMENT_BYTES)
            .next_multiple_of(PAGE_BYTES);
        let maker = Maker::new(&backing).map_err(PoolError::Backing)?;
        let mut state = PoolState::default();
        let epoch = Epoch(random().map_err(PoolError::Backing)?);
        let mut fixed_bytes = None;
        if let Some(region) = region {
            let id = region.id;
            let segment = Segment::new(Kind::Region, id, SegmentMemory::Region(region));
            segment.forget_generations();
            fixed_bytes = Some(state.insert(Arc::new(segment)));
        } else if creation.is_some() {
            let largest = segment_bytes.min(memory_bytes / PAGE_BYTES * PAGE_BYTES);
            fixed_bytes = Some(usable_bytes(largest) / GRANULE_BYTES * GRANULE_BYTES);
        }
        let pool = Self(Arc::new(PoolInner {
            memory_bytes,
            aside_bytes: AtomicU64::new(0),
            segment_bytes,
            maker,
            fixed_bytes,
            host,
            epoch,
            next_generation: AtomicU64::new(match first_generation {
                Some(first) => first,
                None => random().map_err(PoolError::Backing)?,
            }),
            used_bytes: AtomicU64::new(0),
            growing: Mutex::default(),
            state: Mutex::new(state),
            listener: Mutex::default(),
            retired_hook: Mutex::default(),
            left: AtomicBool::new(false),
            pages: PageRegistry::default(),
            committing: AtomicBool::new(false),
            creation,
            registrar: Mutex::default(),
        }));
        match pool.0.make_missing(&|id, bytes| pool.0.register(id, bytes)) {
            (_, None) => Ok(pool),
            (_, Some(error)) => Err(error),
        }
    }

    /// The epoch, unique to this pool.
    pub fn epoch(&self) -> Epoch {
        self.0.epoch
    }

    /// The memory that a payload of `size_bytes` takes, in bytes: with 64 bytes of headers, rounded
    /// up to a multiple of 64.
    pub fn charge(size_bytes: u64) -> u64 {
        charge(size_bytes)
    }

    /// Calls `listener` for each segment created from now on, once it is listed. Replaces the
    /// previous listener. Called without a lock.
    pub(crate) fn on_new_segment(&self, listener: impl Fn(&SharedSegment) + Send + Sync + 'static) {
        *self.0.listener.lock() = Some(Arc::new(listener));
    }

    /// Calls `retired_hook` with the id of each segment retired from now on, before its memory is
    /// freed. Replaces the previous hook. Called without a lock.
    pub(crate) fn on_retired_segment(&self, retired_hook: impl Fn(u16) + Send + Sync + 'static) {
        *self.0.retired_hook.lock() = Some(Arc::new(retired_hook));
    }

    /// Freezes the pool: from now on no block is allocated or freed, even if it is dropped. A
    /// process that keeps the segments beyond the end of this one finds them as they were at this
    /// moment.
    pub fn freeze(&self) {
        self.0.left.store(true, Ordering::Release);
    }

    /// Reserves memory for a payload.
    ///
    /// Takes well below a microsecond, unless a segment needs memory: then as long as the kernel
    /// needs to clear that much.
    ///
    /// # Errors
    /// [`PoolError::NeverFits`] if no segment can hold the payload, [`PoolError::NoRoom`] if there is no
    /// free place for it now, [`PoolError::Segment`] if the system does not provide a segment.
    pub fn reserve(&self, size_bytes: u64) -> Result<Reservation, PoolError> {
        if let Some(host) = &self.0.host {
            return self.reserve_in_host(host, size_bytes);
        }
        let needed_bytes = Self::charge(size_bytes);
        let limit_bytes = self.0.largest_payload_area();
        let granules = match u32::try_from(needed_bytes / GRANULE_BYTES) {
            Ok(granules) if needed_bytes <= limit_bytes => granules,
            _ => return Err(PoolError::NeverFits { needed_bytes, limit_bytes }),
        };
        let left = self.0.is_frozen();
        let mut taken = if left { None } else { self.0.take(granules) };
        if taken.is_none() && !left && self.0.reclaim() {
            taken = self.0.take(granules);
        }
        if taken.is_none() && !left && self.0.can_grow() {
            taken = self.grow(granules)?;
        }
        let Some(taken) = taken else {
            let Usage { free_bytes, largest_free_bytes, .. } = self.usage();
            return Err(PoolError::NoRoom { needed_bytes, free_bytes, largest_free_bytes });
        };
        Ok(self.reservation(taken, size_bytes))
    }

    fn reserve_in_host(
        &self,
        host: &HostBlocks,
        size_bytes: u64,
    ) -> Result<Reservation, PoolError> {
        let (needed_bytes, limit_bytes) = (Self::charge(size_bytes), self.0.memory_bytes);
        if needed_bytes > limit_bytes {
            return Err(PoolError::NeverFits { needed_bytes, limit_bytes });
        }
        let no_room = || {
            let Usage { free_bytes, largest_free_bytes, .. } = self.usage();
            PoolError::NoRoom { needed_bytes, free_bytes, largest_free_bytes }
        };
        let used = &self.0.used_bytes;
        let fits = |used: u64| used.checked_add(needed_bytes).filter(|used| *used <= limit_bytes);
        used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).map_err(|_| no_room())?;
        match host.take(size_bytes) {
            Ok((segment, block)) => {
                let (size, pool) = (size_bytes as usize, Arc::clone(&self.0));
                Ok(Reservation::new(Allocation {
                    block,
                    size: PayloadSize::new(size),
                    segment,
                    pool,
                    place: None,
                    crc32c: 0,
                }))
            }
            Err(error) => {
                used.fetch_sub(needed_bytes, Ordering::Relaxed);
                Err(match error {
                    HostError::NoMemory => no_room(),
                    error => PoolError::Host(error),
                })
            }
        }
    }

    /// Like [`reserve`](Self::reserve), but only in segments that have the memory, which takes no
    /// time. Never in a host's memory, whose allocator may block.
    pub(crate) fn reserve_now(&self, size_bytes: u64) -> Option<Reservation> {
        let granules = u32::try_from(Self::charge(size_bytes) / GRANULE_BYTES).ok()?;
        if self.0.is_frozen() {
            return None;
        }
        let taken = self.0.take(granules)?;
        Some(self.reservation(taken, size_bytes))
    }

    fn reservation(&self, (segment, block, place): AllocatedBlock, size_bytes: u64) -> Reservation {
        self.0.used_bytes.fetch_add(Self::charge(size_bytes), Ordering::Relaxed);
        let pool = Arc::clone(&self.0);
        let size = size_bytes as usize;
        Reservation::new(Allocation {
            block,
            size: PayloadSize::new(size),
            segment,
            pool,
            place: Some(place),
            crc32c: 0,
        })
    }

    /// Gives a segment memory for `granules`, or creates one if the memory allows it, and allocates
    /// them.
    fn grow(&self, granules: u32) -> Result<Option<AllocatedBlock>, PoolError> {
        let inner = &*self.0;
        let growing = inner.growing.lock();
        loop {
            // Another task may have allocated memory during the wait.
            if let Some(taken) = self.0.take(granules) {
                return Ok(Some(taken));
            }
            if !inner.commit(granules)? {
                break;
            }
        }
        let least = segment_bytes_for(u64::from(granules) * GRANULE_BYTES);
        let (bytes, retired) = {
            let mut state = inner.state.lock();
            // Another task may have emptied one meanwhile.
            if let Some(taken) = state.take(granules) {
                return Ok(Some(taken));
            }
            let Some(budget) = inner.take_budget(&mut state, least) else { return Ok(None) };
            budget
        };
        retired.iter().for_each(|segment| inner.notify_retired(segment));
        drop(retired);
        let give_back = || inner.state.lock().segment_bytes_in_all -= bytes;
        let Some(segment) = inner
            .make(bytes, least, &|id, bytes| inner.register(id, bytes))
            .inspect_err(|_| give_back())?
        else {
            give_back();
            return Ok(None);
        };
        let shared = SharedSegment(Arc::clone(&segment));
        let taken = {
            let mut state = inner.state.lock();
            state.insert(segment);
            state.take(granules)
        };
        drop(growing);
        inner.announce(&shared);
        self.0.commit_ahead();
        Ok(taken)
    }

    /// Whether payloads of these sizes fit together into an empty pool, the largest first. The rest
    /// at the end of a segment holds nothing.
    #[cfg(feature = "cache")]
    pub(crate) fn can_hold_together(&self, sizes_bytes: impl Iterator<Item = u64>) -> bool {
        let mut charges: Vec<u64> = sizes_bytes.map(charge).collect();
        let sum = charges.iter().fold(0, |sum: u64, charge| sum.saturating_add(*charge));
        if sum > self.0.memory_bytes {
            return false;
        }
        if self.0.host.is_some() {
            return true;
        }
        charges.sort_unstable_by_key(|charge| std::cmp::Reverse(*charge));
        let granules = |segment: &Segment| u64::from(segment.granules()) * GRANULE_BYTES;
        // The remaining bytes of each segment; without fixed ones they are created on demand.
        let (mut left, mut budget) = match self.0.fixed_bytes {
            Some(_) => {
                let state = self.0.state.lock();
                let left = state.segments.values().map(|slot| granules(&slot.segment)).collect();
                let budget = if self.0.can_grow() { self.0.budget(&state) } else { 0 };
                (left, budget / PAGE_BYTES * PAGE_BYTES)
            }
            None => (Vec::new(), self.0.memory_bytes / PAGE_BYTES * PAGE_BYTES),
        };
        charges.into_iter().all(|charge| {
            if let Some(room) = left.iter_mut().find(|room| **room >= charge) {
                *room -= charge;
                return true;
            }
            let least = segment_bytes_for(charge);
            let bytes = self.0.segment_bytes.max(least).min(budget);
            if bytes < least {
                return false;
            }
            budget -= bytes;
            left.push(usable_bytes(bytes) - charge);
            true
        })
    }

    /// Retires empty segments, so that new ones get the regular size.
    #[cfg(feature = "cache")]
    pub(crate) fn give_back_empty_segments(&self) {
        if self.0.fixed_bytes.is_some() || self.0.is_frozen() {
            return;
        }
        self.0.reclaim();
        let retired: Vec<_> = {
            let mut state = self.0.state.lock();
            let empty = |slot: &SegmentSlot| slot.allocator.is_empty() && slot.in_flight == 0;
            let segments = state.segments.iter().filter(|(_, slot)| empty(slot));
            let ids: Vec<u16> = segments.map(|(id, _)| *id).collect();
            ids.into_iter().filter_map(|id| state.take_out(id)).collect()
        };
        retired.iter().for_each(|segment| self.0.notify_retired(segment));
    }

    /// Whether the blocks are in a host's memory instead of in segments.
    #[cfg(feature = "cache")]
    pub(crate) fn is_of_host(&self) -> bool {
        self.0.host.is_some()
    }

    /// Looks for pins in the page of a session before a place is handed out again. The page's
    /// descriptor is to be sent after this.
    #[cfg(feature = "cache")]
    pub(crate) fn add_pins_page(&self, page: &Arc<super::local::ServicePage>) {
        self.0.pages.add(Arc::clone(page));
    }

    /// The session of a page is over: it pins nothing any more.
    #[cfg(feature = "cache")]
    pub(crate) fn remove_pins_page(&self, page: &Arc<super::local::ServicePage>) {
        self.0.pages.remove(page);
        self.0.reclaim();
    }

    /// Number of pins pages that are looked at.
    #[cfg(feature = "cache")]
    pub(crate) fn pins_pages(&self) -> usize {
        self.0.pages.pages()
    }

    /// The blocks that the slots of consumers named a moment ago, each session within its quota.
    #[cfg(feature = "cache")]
    pub(crate) fn recently_used_slots(&self) -> Arc<super::local::SlotsInUse> {
        self.0.pages.recently_used_slots()
    }

    /// Uses a part of the memory beside the segments. To be called before there are any; a region
    /// and segments that FairMQ knows by name keep their size.
    #[cfg(feature = "cache")]
    pub(crate) fn set_aside(&self, bytes: u64) {
        if self.0.fixed_bytes.is_none() {
            self.0.aside_bytes.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// Drops the records of retired blocks, once no consumer pins them any more.
    #[cfg(feature = "cache")]
    pub(crate) fn release_kept(&self) {
        if self.0.pages.keeps_any() {
            self.0.reclaim();
        }
    }

    /// Bytes of blocks that were given up and that a consumer still pins.
    #[cfg(feature = "cache")]
    pub(crate) fn quarantined_bytes(&self) -> u64 {
        self.0.reclaim();
        self.0.pages.quarantined_bytes()
    }

    /// The use of the memory.
    pub fn usage(&self) -> Usage {
        self.0.reclaim();
        if let Some(host) = &self.0.host {
            let (total_bytes, used_bytes) = (self.0.memory_bytes, self.used_bytes());
            let free_bytes = total_bytes.saturating_sub(used_bytes);
            let largest_free_bytes = host.largest_free(free_bytes);
            return Usage { total_bytes, used_bytes, free_bytes, largest_free_bytes, segments: 0 };
        }
        let state = self.0.state.lock();
        let longest = state.segments.values().map(|slot| slot.allocator.largest_free()).max();
        let in_areas = u64::from(longest.unwrap_or(0)) * GRANULE_BYTES;
        let in_a_new_one = if self.0.can_grow() {
            let budget = self.0.budget_without_empty(&state);
            let most = if self.0.creation.is_some() { self.0.segment_bytes } else { u64::MAX };
            usable_bytes((budget / PAGE_BYTES * PAGE_BYTES).min(MAX_SEGMENT_BYTES).min(most))
        } else {
            0
        };
        let total_bytes = self.0.memory_bytes;
        let used_bytes = self.used_bytes();
        Usage {
            total_bytes,
            used_bytes,
            free_bytes: total_bytes.saturating_sub(used_bytes),
            largest_free_bytes: in_areas.max(in_a_new_one).saturating_sub(BLOCK_OVERHEAD_BYTES),
            segments: state.segments.len(),
        }
    }

    /// Size of the memory.
    pub fn total_bytes(&self) -> u64 {
        self.0.memory_bytes
    }

    /// Bytes used by blocks and reservations. Takes no lock.
    pub fn used_bytes(&self) -> u64 {
        self.0.used_bytes.load(Ordering::Relaxed)
    }

    /// Counts a message with the descriptor of `segment` as unread until the returned value is
    /// dropped. `None`: the segment is retired, and its descriptor must not be sent.
    pub(crate) fn put_in_flight(&self, segment: &SharedSegment) -> Option<InFlight> {
        let mut state = self.0.state.lock();
        let slot = state.segments.get_mut(&segment.id())?;
        if !Arc::ptr_eq(&slot.segment, &segment.0) {
            return None;
        }
        slot.in_flight += 1;
        Some(InFlight { pool: Arc::clone(&self.0), segment: Arc::clone(&segment.0) })
    }

    /// The size, in bytes, of all segments of single large objects with unread descriptors, if
    /// `segment` is announced, too; 0 if `segment` is not one of them.
    pub(crate) fn large_in_flight_with(&self, segment: &SharedSegment) -> u64 {
        if segment.size_bytes() <= self.0.segment_bytes {
            // It will be reused, so it may always be announced.
            return 0;
        }
        let state = self.0.state.lock();
        let others = state
            .segments
            .values()
            .filter(|slot| slot.in_flight > 0 && !Arc::ptr_eq(&slot.segment, &segment.0));
        let others = others.map(|slot| slot.segment.length());
        let large = others.filter(|bytes| *bytes > self.0.segment_bytes);
        let unread = state.unread.iter().map(|unread| unread.segment.length());
        large.chain(unread).sum::<u64>() + segment.size_bytes()
    }

    /// All current segments and regions.
    pub fn segments(&self) -> Vec<SharedSegment> {
        let state = self.0.state.lock();
        state.segments.values().map(|slot| SharedSegment(Arc::clone(&slot.segment))).collect()
    }

    /// Segments with names that another program has removed or overwritten, without the condemned
    /// ones, which are being replaced.
    pub fn lost_segments(&self) -> Vec<LostSegment> {
        let (epoch, range) = (self.0.epoch, self.0.maker.range());
        let segments = self.segments();
        let kept = segments.iter().filter(|shared| !shared.0.is_condemned());
        kept.filter_map(|shared| shared.0.loss(epoch, range)).collect()
    }

    /// All segments and regions, for resolving in this process: nothing is mapped a second time,
    /// and memory without a file (a range) is included.
    pub fn mappings(&self) -> Mappings {
        if let Some(host) = &self.0.host {
            return Mappings::of_host(Arc::clone(host) as _);
        }
        let state = self.0.state.lock();
        state.segments.values().fold(Mappings::default(), |mappings, slot| {
            mappings.with_mapped(
                slot.segment.kind,
                slot.segment.id,
                Arc::clone(slot.segment.mapping()),
            )
        })
    }

    /// Checks that places do not overlap, free neighbours are merged, byte counts add up, and the
    /// headers of published blocks match their places.
    ///
    /// # Errors
    /// All faults, one sentence each. While other threads allocate and free, only the byte count
    /// can be wrong.
    pub fn check(&self) -> Result<PoolReport, Vec<String>> {
        let Survey { faults, report, .. } = self.survey();
        if faults.is_empty() { Ok(report) } else { Err(faults) }
    }

    /// Everything that [`check`](Self::check) examines, and the allocated places.
    pub(crate) fn survey(&self) -> Survey {
        self.0.reclaim();
        if let Some(host) = &self.0.host {
            let HostSurvey { mut faults, taken, used_bytes } = host.survey();
            if used_bytes != self.used_bytes() {
                let counted = self.used_bytes();
                faults.push(format!("{used_bytes} bytes are taken, {counted} are counted"));
            }
            return Survey { faults, taken, report: PoolReport { segments: 0, used_bytes } };
        }
        let state = self.0.state.lock();
        let mut faults = Vec::new();
        let mut taken = Vec::new();
        let mut granules = 0;
        for (id, SegmentSlot { segment, allocator, .. }) in &state.segments {
            let named = |why| format!("{} {id}: {why}", segment.kind);
            faults.extend(allocator.faults().into_iter().map(named));
            for (start, length) in allocator.taken_places() {
                let bytes = u64::from(length) * GRANULE_BYTES;
                let offset = segment.block_at(start);
                faults.extend(fault_of_headers(segment, offset, bytes).map(named));
                let generation = sync::seen(segment.mapping().atomic_u64(offset));
                // Of a block that was given up and that a consumer still pins.
                if !self.0.pages.is_quarantined(segment, offset) {
                    let location = BlockLocation { kind: segment.kind, id: *id, offset };
                    taken.push((location, generation));
                }
                granules += u64::from(length);
            }
        }
        let used_bytes = granules * GRANULE_BYTES;
        if used_bytes != self.used_bytes() {
            faults.push(format!("{used_bytes} bytes are taken, {} are counted", self.used_bytes()));
        }
        let unread = state.unread.iter().map(|unread| unread.segment.length());
        let kept = state.segment_bytes_in_all + self.0.counted_bytes(unread);
        let limit = self.0.segments_limit();
        if kept > limit {
            faults.push(format!("segments keep {kept} bytes, and there are {limit}"));
        }
        let report = PoolReport { segments: state.segments.len(), used_bytes };
        Survey { faults, taken, report }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("epoch", &self.0.epoch).field("usage", &self.usage()).finish()
    }
}

/// Creates a segment with its head, and seals it if its backing allows it. At least its
/// `least_bytes` have memory.
pub(super) fn segment(
    maker: &Maker,
    epoch: Epoch,
    id: u16,
    bytes: u64,
    least_bytes: u64,
) -> Result<Arc<Segment>, PoolError> {
    let make = || {
        let head = SegmentHeader::new(epoch, id, maker.range(), bytes).to_bytes();
        let made = maker.make(id, bytes, least_bytes.max(FIRST_BYTES), &head)?;
        maker.seal(&made)?;
        let memory = SegmentMemory::Segment(made);
        Ok(Arc::new(Segment::new(Kind::Segment, id, memory)))
    };
    make().map_err(|error| PoolError::Segment { bytes, error })
}
