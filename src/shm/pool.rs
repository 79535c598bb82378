//! The service's side: takes places from segments, makes segments and gives them back.
//!
//! ```text
//!  reserve ─▶ place in a segment? ──yes──────────────▶ Reservation
//!                 │ no                                     ▲
//!                 ▼                                        │
//!             budget left? ──▶ a new segment (empty ones ──┘
//!                 │ no          of other sizes give theirs)
//!                 ▼
//!              NoRoom
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::allocator::{AllocatedNode, Allocator};
use super::backing::{Backing, Maker};
use super::block::{Allocation, BlockLocation, Reservation, charge, fault_of_headers};
use super::layout::{
    BLOCK_OVERHEAD_BYTES, Epoch, GRANULE_BYTES, SEGMENT_HEADER_BYTES, SEGMENT_TAIL_BYTES,
    usable_bytes,
};
use super::local::{PageRegistry, QuarantinedPlace};
use super::region::Region;
use super::resolver::Mappings;
use super::segment::{Kind, Segment, SegmentMemory, SharedSegment};
use super::sync;
use crate::error::{Code, Coded, ErrorKind};

/// Sizes of segments are multiples of this.
const PAGE_BYTES: u64 = 4096;
/// A segment can have this much: its granules are counted in 32 bits.
const MAX_SEGMENT_BYTES: u64 = (u32::MAX as u64 - 1) * GRANULE_BYTES;

/// What a pool is made with.
#[derive(Debug)]
pub struct PoolOptions {
    /// All segments together have at most so many bytes. Ignored with a region, which has what it
    /// has.
    pub memory_bytes: u64,
    /// The size of a segment. An object that is larger gets one of its own.
    pub segment_bytes: u64,
    /// What segments are made of.
    pub backing: Backing,
    /// A region into which all blocks go, instead of segments.
    pub region: Option<Region>,
    /// The first generation; `None`: a random one, so that no two instances have any in common.
    pub first_generation: Option<u64>,
}

impl PoolOptions {
    /// Whether the segments are files without a name, which outlive us where somebody keeps them.
    #[cfg(feature = "cache")]
    pub(crate) fn can_be_kept(&self) -> bool {
        self.backing == Backing::Memfd && self.region.is_none()
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

/// Memory for blocks. Clones are the same pool.
#[derive(Clone)]
pub struct Pool(Arc<PoolInner>);

type SegmentListener = Arc<dyn Fn(&SharedSegment) + Send + Sync>;
/// Told of the id.
type RetiredHook = Arc<dyn Fn(u16) + Send + Sync>;

pub(super) struct PoolInner {
    memory_bytes: u64,
    segment_bytes: u64,
    maker: Maker,
    /// All is there from the start, and nothing is made or given back: a region, and segments that
    /// FairMQ knows by name. The most that one block can take.
    fixed_bytes: Option<u64>,
    epoch: Epoch,
    next_generation: AtomicU64,
    used_bytes: AtomicU64,
    /// Held while a segment is made, which takes long; taking and giving places goes on.
    growing: Mutex<()>,
    state: Mutex<PoolState>,
    listener: Mutex<Option<SegmentListener>>,
    farewell: Mutex<Option<RetiredHook>>,
    /// All stays as it lies, for a successor.
    left: AtomicBool,
    /// Which blocks consumers pin by themselves.
    pub(super) pages: PageRegistry,
}

struct PoolState {
    areas: BTreeMap<u16, SegmentSlot>,
    /// Bytes of all segments, and of those that are being made.
    area_bytes: u64,
    /// Segments that were given back while a consumer had their descriptor unread: the kernel keeps
    /// their memory until it is read.
    unread: Vec<Unread>,
    first_id: u16,
    next_id: u16,
}

struct SegmentSlot {
    segment: Arc<Segment>,
    allocator: Allocator,
    /// Messages with its descriptor that no consumer has read yet.
    in_flight: usize,
}

/// A segment that was given back, and the messages with its descriptor that are not read yet.
struct Unread {
    segment: Arc<Segment>,
    in_flight: usize,
}

/// A segment whose descriptor is in a message that its receiver has not read yet.
///
/// As long as this lives the kernel keeps the segment's memory, whatever becomes of the segment, so
/// the pool counts it: an empty segment is reused instead of given back, and one that was given back
/// counts against the memory.
pub struct InFlight {
    pool: Arc<PoolInner>,
    segment: Arc<Segment>,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.pool.landed(&self.segment);
    }
}

impl fmt::Debug for InFlight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} in flight", self.segment.kind, self.segment.id)
    }
}

/// How much there is of what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// What there can be in all.
    pub total_bytes: u64,
    /// What blocks and reservations take, their headers and rounding included.
    pub used_bytes: u64,
    /// The rest.
    pub free_bytes: u64,
    /// The largest payload that could be reserved now.
    pub largest_free_bytes: u64,
    /// How many segments there are.
    pub segments: usize,
}

/// What [`Pool::check`] looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolReport {
    /// Segments.
    pub segments: usize,
    /// Bytes that are taken in them.
    pub used_bytes: u64,
}

/// The places of a pool, as of one moment.
#[derive(Debug)]
pub(crate) struct Survey {
    pub(crate) faults: Vec<String>,
    /// Those that are taken, each with the generation of its block; 0: not published.
    #[cfg_attr(not(feature = "cache"), allow(dead_code, reason = "for who has the objects"))]
    pub(crate) taken: Vec<(BlockLocation, u64)>,
    pub(crate) report: PoolReport,
}

/// Why there is no memory.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PoolError {
    /// Not now: others have it.
    #[error(
        "no room for {needed_bytes} bytes: {free_bytes} are free, {largest_free_bytes} in one piece"
    )]
    NoRoom {
        /// What is needed.
        needed_bytes: u64,
        /// What is free in all.
        free_bytes: u64,
        /// What is free in one piece.
        largest_free_bytes: u64,
    },
    /// Never.
    #[error("{needed_bytes} bytes can never fit into a memory of {limit_bytes}")]
    NeverFits {
        /// What is needed.
        needed_bytes: u64,
        /// What there is.
        limit_bytes: u64,
    },
    /// The names under which segments should stand cannot be had, or no random epoch.
    #[error("the backing of the segments cannot be used")]
    Backing(#[source] io::Error),
    /// The system does not give it.
    #[error("the system gives no segment of {bytes} bytes")]
    Segment {
        /// What was asked for.
        bytes: u64,
        /// What it says.
        #[source]
        error: io::Error,
    },
}

impl Coded for PoolError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NoRoom { .. } => ErrorKind::Unavailable,
            Self::NeverFits { .. } => ErrorKind::ResourceExhausted,
            Self::Backing(error) => match error.kind() {
                io::ErrorKind::ResourceBusy => ErrorKind::AlreadyExists,
                io::ErrorKind::PermissionDenied => ErrorKind::PermissionDenied,
                io::ErrorKind::InvalidInput => ErrorKind::InvalidArgument,
                _ => ErrorKind::Unavailable,
            },
            Self::Segment { error, .. } => match error.kind() {
                // Somebody else has a file of that name.
                io::ErrorKind::AlreadyExists => ErrorKind::AlreadyExists,
                io::ErrorKind::PermissionDenied => ErrorKind::PermissionDenied,
                _ => ErrorKind::Unavailable,
            },
        }
    }

    fn code(&self) -> Code {
        Code(match self {
            Self::NoRoom { .. } => 4001,
            Self::NeverFits { .. } => 4002,
            Self::Segment { .. } => 4003,
            Self::Backing(_) => 4004,
        })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The least size of a segment in which blocks can take `bytes`.
fn segment_bytes_for(bytes: u64) -> u64 {
    (SEGMENT_HEADER_BYTES + bytes + SEGMENT_TAIL_BYTES).next_multiple_of(PAGE_BYTES)
}

fn random() -> io::Result<u64> {
    let mut bytes = [0; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(u64::from_le_bytes(bytes))
}

impl Pool {
    /// A pool without any segment yet; with those that FairMQ is to know by their names all are
    /// made here.
    ///
    /// # Errors
    /// [`PoolError::NeverFits`] if nothing can fit, [`PoolError::Backing`] if the folder of the
    /// backing cannot be had, [`PoolError::Segment`] if the system does not give what is made here.
    pub fn new(options: PoolOptions) -> Result<Self, PoolError> {
        let PoolOptions { memory_bytes, segment_bytes, backing, region, first_generation } =
            options;
        let least = SEGMENT_HEADER_BYTES + PAGE_BYTES;
        let memory_bytes = match &region {
            Some(region) => region.mapping.length() as u64,
            None if memory_bytes < least => {
                return Err(PoolError::NeverFits {
                    needed_bytes: least,
                    limit_bytes: memory_bytes,
                });
            }
            None => memory_bytes,
        };
        let all_at_once = backing.fairmq_shmid().is_some();
        let segment_bytes =
            segment_bytes.clamp(least, MAX_SEGMENT_BYTES).next_multiple_of(PAGE_BYTES);
        let maker = Maker::new(&backing).map_err(PoolError::Backing)?;
        let first_id = maker.first_number().map_err(PoolError::Backing)?;
        let areas = BTreeMap::new();
        let unread = Vec::new();
        let mut state = PoolState { areas, area_bytes: 0, unread, first_id, next_id: first_id };
        let epoch = Epoch(random().map_err(PoolError::Backing)?);
        let mut fixed_bytes = None;
        if let Some(region) = region {
            let id = region.id;
            let segment = Segment { kind: Kind::Region, id, memory: SegmentMemory::Region(region) };
            segment.forget_generations();
            fixed_bytes = Some(state.insert(Arc::new(segment)));
        } else if all_at_once {
            let mut most = 0;
            loop {
                let budget = (memory_bytes - state.area_bytes) / PAGE_BYTES * PAGE_BYTES;
                let bytes = segment_bytes.min(budget);
                let Some(id) = (bytes >= least).then(|| state.unused_id()).flatten() else { break };
                let segment = segment(&maker, epoch, id, bytes)?;
                state.area_bytes += bytes;
                most = most.max(state.insert(segment));
            }
            fixed_bytes = Some(most);
        }
        Ok(Self(Arc::new(PoolInner {
            memory_bytes,
            segment_bytes,
            maker,
            fixed_bytes,
            epoch,
            next_generation: AtomicU64::new(match first_generation {
                Some(first) => first,
                None => random().map_err(PoolError::Backing)?,
            }),
            used_bytes: AtomicU64::new(0),
            growing: Mutex::default(),
            state: Mutex::new(state),
            listener: Mutex::default(),
            farewell: Mutex::default(),
            left: AtomicBool::new(false),
            pages: PageRegistry::default(),
        })))
    }

    /// The instance: no other pool has it.
    pub fn epoch(&self) -> Epoch {
        self.0.epoch
    }

    /// What a payload takes of the memory: its header, and rounded up to 64 bytes.
    pub fn charge(size_bytes: u64) -> u64 {
        charge(size_bytes)
    }

    /// Calls `listener` for each segment that is made from now on, once it is listed; instead of
    /// the one that was called before. No lock is held meanwhile.
    pub fn on_new_segment(&self, listener: impl Fn(&SharedSegment) + Send + Sync + 'static) {
        *lock(&self.0.listener) = Some(Arc::new(listener));
    }

    /// Calls `farewell` with the id of each segment that is given back from now on, before its
    /// memory goes; instead of the one that was called before. No lock is held meanwhile.
    pub fn on_retired_segment(&self, farewell: impl Fn(u16) + Send + Sync + 'static) {
        *lock(&self.0.farewell) = Some(Arc::new(farewell));
    }

    /// Leaves everything as it lies: from now on no place is taken or given back, and no block given
    /// up, whatever is dropped. Whoever has the segments beyond the end of this process finds in them
    /// what was there at this moment.
    pub fn freeze(&self) {
        self.0.left.store(true, Ordering::Release);
    }

    /// Room for a payload.
    ///
    /// Takes well below a microsecond, but for when a segment has to be made: then as long as the
    /// kernel needs to clear that much memory.
    ///
    /// # Errors
    /// [`PoolError`].
    pub fn reserve(&self, size_bytes: u64) -> Result<Reservation, PoolError> {
        let needed_bytes = Self::charge(size_bytes);
        let limit_bytes = self.0.largest_payload_area();
        let granules = match u32::try_from(needed_bytes / GRANULE_BYTES) {
            Ok(granules) if needed_bytes <= limit_bytes => granules,
            _ => return Err(PoolError::NeverFits { needed_bytes, limit_bytes }),
        };
        let left = self.0.is_frozen();
        let mut taken = if left { None } else { lock(&self.0.state).take(granules) };
        if taken.is_none() && !left && self.0.reclaim() {
            taken = lock(&self.0.state).take(granules);
        }
        if taken.is_none() && !left && self.0.fixed_bytes.is_none() {
            taken = self.grow(granules)?;
        }
        let Some(taken) = taken else {
            let Usage { free_bytes, largest_free_bytes, .. } = self.usage();
            return Err(PoolError::NoRoom { needed_bytes, free_bytes, largest_free_bytes });
        };
        Ok(self.reservation(taken, size_bytes))
    }

    /// Like [`reserve`](Self::reserve), in the segments that are there: it takes no time.
    pub fn reserve_now(&self, size_bytes: u64) -> Option<Reservation> {
        let granules = u32::try_from(Self::charge(size_bytes) / GRANULE_BYTES).ok()?;
        if self.0.is_frozen() {
            return None;
        }
        let taken = lock(&self.0.state).take(granules)?;
        Some(self.reservation(taken, size_bytes))
    }

    fn reservation(&self, (segment, block, place): AllocatedBlock, size_bytes: u64) -> Reservation {
        self.0.used_bytes.fetch_add(Self::charge(size_bytes), Ordering::Relaxed);
        let pool = Arc::clone(&self.0);
        let size = size_bytes as usize;
        Reservation::new(Allocation { block, size, segment, pool, place: Some(place), crc32c: 0 })
    }

    /// Makes a segment in which `granules` have room, if the memory allows it, and takes them.
    fn grow(&self, granules: u32) -> Result<Option<AllocatedBlock>, PoolError> {
        let inner = &*self.0;
        let growing = lock(&inner.growing);
        let least = segment_bytes_for(u64::from(granules) * GRANULE_BYTES);
        let (id, bytes, retired) = {
            let mut state = lock(&inner.state);
            // Somebody may have made or emptied one while we waited.
            if let Some(taken) = state.take(granules) {
                return Ok(Some(taken));
            }
            let mut retired = Vec::new();
            let wanted = inner.segment_bytes.max(least);
            if inner.budget_without_empty(&state) < least {
                return Ok(None);
            }
            loop {
                let budget = inner.budget(&state);
                let bytes = wanted.min(budget / PAGE_BYTES * PAGE_BYTES);
                if bytes >= least {
                    let Some(id) = state.unused_id() else { return Ok(None) };
                    state.area_bytes += bytes;
                    break (id, bytes, retired);
                }
                // An empty segment of another size may hold what is missing.
                let Some(empty) = state.take_out_an_empty_one() else { return Ok(None) };
                retired.push(empty);
            }
        };
        retired.iter().for_each(|segment| inner.notify_retired(segment));
        drop(retired);
        let segment = segment(&inner.maker, inner.epoch, id, bytes)
            .inspect_err(|_| lock(&inner.state).area_bytes -= bytes)?;
        let shared = SharedSegment(Arc::clone(&segment));
        let taken = {
            let mut state = lock(&inner.state);
            state.insert(segment);
            state.take(granules)
        };
        drop(growing);
        // Told once it is listed, and before anything is published in it by us.
        let listener = lock(&inner.listener).clone();
        if let Some(listener) = listener {
            listener(&shared);
        }
        Ok(taken)
    }

    /// Whether payloads of these sizes can be here together, put in the largest first as long as
    /// nothing else is. What is left over at the end of a segment holds nothing.
    #[cfg(feature = "cache")]
    pub(crate) fn can_hold_together(&self, sizes_bytes: impl Iterator<Item = u64>) -> bool {
        let mut charges: Vec<u64> = sizes_bytes.map(charge).collect();
        let sum = charges.iter().fold(0, |sum: u64, charge| sum.saturating_add(*charge));
        if sum > self.0.memory_bytes {
            return false;
        }
        charges.sort_unstable_by_key(|charge| std::cmp::Reverse(*charge));
        let granules = |segment: &Segment| u64::from(segment.granules()) * GRANULE_BYTES;
        // What is left in each segment; without fixed ones they are made as they are needed.
        let (mut left, mut budget) = match self.0.fixed_bytes {
            Some(_) => {
                let state = lock(&self.0.state);
                (state.areas.values().map(|slot| granules(&slot.segment)).collect(), 0)
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

    /// Gives back what holds nothing: the next segments are made as large as they should be.
    #[cfg(feature = "cache")]
    pub(crate) fn give_back_empty_segments(&self) {
        if self.0.fixed_bytes.is_some() || self.0.is_frozen() {
            return;
        }
        let retired: Vec<_> = {
            let mut state = lock(&self.0.state);
            let empty = |slot: &SegmentSlot| slot.allocator.is_empty() && slot.in_flight == 0;
            let areas = state.areas.iter().filter(|(_, slot)| empty(slot));
            let ids: Vec<u16> = areas.map(|(id, _)| *id).collect();
            ids.into_iter().filter_map(|id| state.take_out(id)).collect()
        };
        retired.iter().for_each(|segment| self.0.notify_retired(segment));
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

    /// The generations that consumers have in the slots of their pages, sorted. They may be any.
    #[cfg(feature = "cache")]
    pub(crate) fn used_slots(&self) -> Vec<u64> {
        self.0.pages.used_slots()
    }

    /// Bytes of blocks that were given up and that a consumer still pins.
    #[cfg(feature = "cache")]
    pub(crate) fn quarantined_bytes(&self) -> u64 {
        self.0.pages.quarantined_bytes()
    }

    /// How much there is of what.
    pub fn usage(&self) -> Usage {
        self.0.reclaim();
        let state = lock(&self.0.state);
        let longest = state.areas.values().map(|slot| slot.allocator.largest_free()).max();
        let in_areas = u64::from(longest.unwrap_or(0)) * GRANULE_BYTES;
        let in_a_new_one = if self.0.fixed_bytes.is_some() {
            0
        } else {
            let budget = self.0.budget_without_empty(&state);
            let whole = (budget / PAGE_BYTES * PAGE_BYTES).min(MAX_SEGMENT_BYTES);
            usable_bytes(whole)
        };
        let total_bytes = self.0.memory_bytes;
        let used_bytes = self.used_bytes();
        Usage {
            total_bytes,
            used_bytes,
            free_bytes: total_bytes.saturating_sub(used_bytes),
            largest_free_bytes: in_areas.max(in_a_new_one).saturating_sub(BLOCK_OVERHEAD_BYTES),
            segments: state.areas.len(),
        }
    }

    /// What the pool can have in all.
    pub fn total_bytes(&self) -> u64 {
        self.0.memory_bytes
    }

    /// What blocks and reservations take; without a lock.
    pub fn used_bytes(&self) -> u64 {
        self.0.used_bytes.load(Ordering::Relaxed)
    }

    /// Counts a message with the descriptor of `segment` as unread, until what this returns is
    /// dropped. `None`: the segment has been given back, and its descriptor must not be sent.
    pub fn put_in_flight(&self, segment: &SharedSegment) -> Option<InFlight> {
        let mut state = lock(&self.0.state);
        let slot = state.areas.get_mut(&segment.id())?;
        if !Arc::ptr_eq(&slot.segment, &segment.0) {
            return None;
        }
        slot.in_flight += 1;
        Some(InFlight { pool: Arc::clone(&self.0), segment: Arc::clone(&segment.0) })
    }

    /// The memory of the segments that were made for single large objects and whose descriptors are
    /// unread, in bytes, if `segment` is announced too; 0 if it is none of those.
    pub fn large_in_flight_with(&self, segment: &SharedSegment) -> u64 {
        if segment.size_bytes() <= self.0.segment_bytes {
            // It is reused: it may always be announced.
            return 0;
        }
        let state = lock(&self.0.state);
        let others = state
            .areas
            .values()
            .filter(|slot| slot.in_flight > 0 && !Arc::ptr_eq(&slot.segment, &segment.0));
        let others = others.map(|slot| slot.segment.length());
        let large = others.filter(|bytes| *bytes > self.0.segment_bytes);
        let unread = state.unread.iter().map(|unread| unread.segment.length());
        large.chain(unread).sum::<u64>() + segment.size_bytes()
    }

    /// All segments and regions, as of now.
    pub fn segments(&self) -> Vec<SharedSegment> {
        let state = lock(&self.0.state);
        state.areas.values().map(|slot| SharedSegment(Arc::clone(&slot.segment))).collect()
    }

    /// All segments and regions, for resolving in this very process: nothing is mapped a second
    /// time, and what has no file (a range of memory) is there too.
    pub fn mappings(&self) -> Mappings {
        let state = lock(&self.0.state);
        state.areas.values().fold(Mappings::default(), |mappings, slot| {
            mappings.with_mapped(
                slot.segment.kind,
                slot.segment.id,
                Arc::clone(slot.segment.mapping()),
            )
        })
    }

    /// Looks whether places overlap, free neighbours are one, the bytes add up, and the headers of
    /// published blocks are those of their places.
    ///
    /// # Errors
    /// All that is wrong, each in a sentence. While others reserve and give back, that can be the
    /// sum alone.
    pub fn check(&self) -> Result<PoolReport, Vec<String>> {
        let Survey { faults, report, .. } = self.survey();
        if faults.is_empty() { Ok(report) } else { Err(faults) }
    }

    /// Everything that [`check`](Self::check) looks at, and the places that are taken.
    pub(crate) fn survey(&self) -> Survey {
        self.0.reclaim();
        let state = lock(&self.0.state);
        let mut faults = Vec::new();
        let mut taken = Vec::new();
        let mut granules = 0;
        for (id, SegmentSlot { segment, allocator, .. }) in &state.areas {
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
        let kept = state.area_bytes + self.0.counted_bytes(unread);
        if kept > self.0.memory_bytes {
            let limit = self.0.memory_bytes;
            faults.push(format!("segments keep {kept} bytes, and there are {limit}"));
        }
        let report = PoolReport { segments: state.areas.len(), used_bytes };
        Survey { faults, taken, report }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("epoch", &self.0.epoch).field("usage", &self.usage()).finish()
    }
}

impl PoolInner {
    /// The most that one block can take.
    fn largest_payload_area(&self) -> u64 {
        if let Some(bytes) = self.fixed_bytes {
            return bytes;
        }
        let whole = (self.memory_bytes / PAGE_BYTES * PAGE_BYTES).min(MAX_SEGMENT_BYTES);
        usable_bytes(whole)
    }

    /// The next generation; 0 stands for none.
    pub(super) fn generation(&self) -> u64 {
        loop {
            let generation = self.next_generation.fetch_add(1, Ordering::Relaxed);
            if generation != 0 {
                return generation;
            }
        }
    }

    /// Whether all stays as it lies.
    pub(super) fn is_frozen(&self) -> bool {
        self.left.load(Ordering::Acquire)
    }

    fn notify_retired(&self, segment: &Segment) {
        let farewell = lock(&self.farewell).clone();
        if let (Some(farewell), Kind::Segment) = (farewell, segment.kind) {
            farewell(segment.id);
        }
    }

    /// Keeps a place until no consumer pins the block that it had.
    pub(super) fn quarantine(&self, place: QuarantinedPlace) {
        self.pages.keep(place);
        // The page that named it may have gone meanwhile, and looked before it was kept.
        self.reclaim();
    }

    /// Gives places back that no consumer pins any more. Whether there were any.
    fn reclaim(&self) -> bool {
        if self.is_frozen() {
            return false;
        }
        let unused = self.pages.take_unused();
        let any = !unused.is_empty();
        for QuarantinedPlace { segment, place, bytes, .. } in unused {
            self.give(&segment, place, bytes);
        }
        any
    }

    pub(super) fn give(&self, segment: &Segment, place: AllocatedNode, bytes: u64) {
        if self.is_frozen() {
            return;
        }
        self.used_bytes.fetch_sub(bytes, Ordering::Relaxed);
        let retired = {
            let mut state = lock(&self.state);
            let Some(slot) = state.areas.get_mut(&segment.id) else { return };
            slot.allocator.give(place);
            self.take_out_if_useless(&mut state, segment)
        };
        if let Some(segment) = &retired {
            self.notify_retired(segment);
        }
        // Unmapping takes its time: not under the lock.
        drop(retired);
    }

    /// Takes out a segment that is not worth keeping empty. One empty segment is kept, so that an
    /// object that comes and goes does not make and unmake one each time; but none that was made for
    /// a single large object. A segment whose descriptor is unread is kept too: its memory would not
    /// become free.
    fn take_out_if_useless(
        &self,
        state: &mut PoolState,
        segment: &Segment,
    ) -> Option<Arc<Segment>> {
        let slot =
            state.areas.get(&segment.id).filter(|slot| std::ptr::eq(&*slot.segment, segment))?;
        let oversized = segment.mapping().length() as u64 > self.segment_bytes;
        let empty = |slot: &SegmentSlot| slot.allocator.is_empty();
        let useless = empty(slot)
            && slot.in_flight == 0
            && self.fixed_bytes.is_none()
            && (oversized || state.areas.values().filter(|slot| empty(slot)).count() > 1);
        if useless { state.take_out(segment.id) } else { None }
    }

    /// A message with the descriptor of this segment was read, or its socket is gone.
    fn landed(&self, segment: &Arc<Segment>) {
        let (retired, unread) = {
            let mut state = lock(&self.state);
            let listed = state.areas.get_mut(&segment.id);
            if let Some(slot) = listed.filter(|slot| Arc::ptr_eq(&slot.segment, segment)) {
                slot.in_flight -= 1;
                let left = self.is_frozen();
                (if left { None } else { self.take_out_if_useless(&mut state, segment) }, None)
            } else {
                (None, state.landed(segment))
            }
        };
        if let Some(segment) = &retired {
            self.notify_retired(segment);
        }
        // Unmapping takes its time: not under the lock.
        drop((retired, unread));
    }

    /// What new segments may take.
    fn budget(&self, state: &PoolState) -> u64 {
        let unread = state.unread.iter().map(|unread| unread.segment.length());
        let taken = state.area_bytes + self.counted_bytes(unread);
        self.memory_bytes.saturating_sub(taken)
    }

    /// The same if all empty segments were given back.
    fn budget_without_empty(&self, state: &PoolState) -> u64 {
        let in_flight = state.areas.values().filter(|slot| {
            slot.in_flight > 0 && slot.allocator.is_empty() && self.fixed_bytes.is_none()
        });
        let unread = state.unread.iter().map(|unread| unread.segment.length());
        let unread = unread.chain(in_flight.map(|slot| slot.segment.length()));
        let taken = state.area_bytes - state.empty_bytes() + self.counted_bytes(unread);
        self.memory_bytes.saturating_sub(taken)
    }

    /// The part of the memory of unread segments that counts against the pool. The memory of one
    /// segment, the largest of them, does not count: a consumer that stops reading costs nothing.
    fn counted_bytes(&self, unread: impl Iterator<Item = u64>) -> u64 {
        let (sum, largest) =
            unread.fold((0, 0), |(sum, largest): (u64, u64), one| (sum + one, largest.max(one)));
        sum.saturating_sub(largest.max(self.segment_bytes))
    }
}

/// Makes a segment, its head written, and sealed where that can be.
fn segment(maker: &Maker, epoch: Epoch, id: u16, bytes: u64) -> Result<Arc<Segment>, PoolError> {
    let make = || {
        let made = maker.make(id, bytes)?;
        let segment = Segment { kind: Kind::Segment, id, memory: SegmentMemory::Segment(made) };
        segment.write_segment_header(epoch);
        if let SegmentMemory::Segment(made) = &segment.memory {
            maker.seal(made)?;
        }
        Ok(Arc::new(segment))
    };
    make().map_err(|error| PoolError::Segment { bytes, error })
}

/// A place that was found: in what, where its block begins, and what gives it back.
type AllocatedBlock = (Arc<Segment>, usize, AllocatedNode);

impl PoolState {
    /// Lists an area, all of it free; the bytes that blocks can take there.
    fn insert(&mut self, segment: Arc<Segment>) -> u64 {
        let granules = segment.granules();
        let allocator = Allocator::new(granules);
        self.areas.insert(segment.id, SegmentSlot { segment, allocator, in_flight: 0 });
        u64::from(granules) * GRANULE_BYTES
    }

    fn take(&mut self, granules: u32) -> Option<AllocatedBlock> {
        self.areas.values_mut().find_map(|slot| {
            let (start, place) = slot.allocator.take(granules)?;
            let block = slot.segment.block_at(start);
            // What stood here before may look like a generation. Under the lock, so that a place
            // that is taken has none until its block is published.
            sync::claim(slot.segment.mapping().atomic_u64(block));
            Some((Arc::clone(&slot.segment), block, place))
        })
    }

    /// Ids ascend, so that a consumer does not soon see another segment under one that it knows.
    fn unused_id(&mut self) -> Option<u16> {
        (self.first_id..=u16::MAX).find_map(|_| {
            let id = self.next_id;
            self.next_id = id.checked_add(1).unwrap_or(self.first_id);
            (!self.areas.contains_key(&id)).then_some(id)
        })
    }

    /// What could be given back.
    fn empty_bytes(&self) -> u64 {
        let empty = self.areas.values().filter(|slot| slot.allocator.is_empty());
        empty.map(|slot| slot.segment.length()).sum()
    }

    /// Takes out an empty segment: one whose memory becomes free at once, if there is any.
    fn take_out_an_empty_one(&mut self) -> Option<Arc<Segment>> {
        let empty = self.areas.iter().filter(|(_, slot)| slot.allocator.is_empty());
        let id = empty.min_by_key(|(_, slot)| slot.in_flight > 0).map(|(id, _)| *id)?;
        self.take_out(id)
    }

    fn take_out(&mut self, id: u16) -> Option<Arc<Segment>> {
        let SegmentSlot { segment, in_flight, .. } = self.areas.remove(&id)?;
        self.area_bytes -= segment.length();
        segment.retire();
        if in_flight > 0 {
            self.unread.push(Unread { segment: Arc::clone(&segment), in_flight });
        }
        Some(segment)
    }

    /// One message less with the descriptor of a segment that was given back. Returns the segment if
    /// it was the last.
    fn landed(&mut self, segment: &Arc<Segment>) -> Option<Arc<Segment>> {
        let at = self.unread.iter().position(|unread| Arc::ptr_eq(&unread.segment, segment))?;
        self.unread[at].in_flight -= 1;
        (self.unread[at].in_flight == 0).then(|| self.unread.swap_remove(at).segment)
    }
}
