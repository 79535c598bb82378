//! Look-ups for all rows of a table: the spans of a path as a step function, and one pin per object.
//!
//! ```text
//!  PlanePath ──read──▶ SpanReading ──steps, span_at──▶ join with the timestamps (by the caller)
//!                           │                                   │ the spans that rows are in
//!                           └──pin──▶ TablePins ◀───────────────┘
//! ```
//!
//! A reading refers to one snapshot. Numbers of spans from it are used with it only, and
//! [`SpanReading::pin`] checks that the snapshot was not replaced since: so the rows of a column are
//! those of one timeline.
#![allow(unsafe_code)]

use std::fmt;
use std::sync::{Arc, OnceLock};

use super::super::layout::MetaHeader;
use super::super::resolver::{Mappings, RawBlock};
use super::super::sync;
use super::ask_reason::AskReason;
use super::monotonic::coarse_monotonic_millis;
use super::plane::LocalPlane;
use super::protocol::PinAttempt;
use super::slot_batch::SlotBatch;
use super::snapshot::FoundSpan;
use super::view::{CachedSnapshot, PlanePath};
use crate::object::ObjectId;

/// Distance in spans at which a block is read ahead of its pin.
const AHEAD: usize = 8;

/// Objects of a table, each pinned by a slot until this is dropped.
pub(crate) struct TablePins {
    plane: Arc<LocalPlane>,
    mappings: Arc<Mappings>,
    /// The time of the table, in milliseconds of CLOCK_MONOTONIC: all spans are confirmed then.
    now: u64,
    pinned: Vec<PinnedBlock>,
    /// Places in `pinned` in the order of their generations, once a retired block was read. All pins
    /// are made before the table is read.
    by_generation: OnceLock<Vec<u32>>,
}

/// A block and its slot.
#[derive(Clone, Copy)]
struct PinnedBlock {
    slot: u32,
    block: RawBlock,
    size: usize,
    generation: u64,
}

// SAFETY: its bytes are not written while it lives, and it clears its slots by atomics.
unsafe impl Send for TablePins {}
// SAFETY: as above.
unsafe impl Sync for TablePins {}

impl fmt::Debug for TablePins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TablePins({})", self.pinned.len())
    }
}

impl TablePins {
    /// No pins yet, for a table as of now.
    ///
    /// # Errors
    /// The session has ended, or belongs to the parent process.
    pub(crate) fn begin(plane: &Arc<LocalPlane>) -> Result<Self, AskReason> {
        plane.check()?;
        let mappings = plane.attachment().mappings();
        let now = coarse_monotonic_millis();
        let (pinned, by_generation) = (Vec::new(), OnceLock::new());
        Ok(Self { plane: Arc::clone(plane), mappings, now, pinned, by_generation })
    }

    /// The plane of its session.
    pub(crate) fn plane(&self) -> &Arc<LocalPlane> {
        &self.plane
    }

    /// The mappings that contain its blocks.
    pub(crate) fn mappings(&self) -> &Arc<Mappings> {
        &self.mappings
    }

    /// The bytes of an object that it pins; `None` if it does not pin the block of `header`.
    pub(crate) fn bytes(&self, header: &MetaHeader) -> Option<&[u8]> {
        if self.plane.attachment().is_forked() {
            return None;
        }
        let PinnedBlock { block, size, .. } = self.pinned_block(header)?;
        // SAFETY: `size` bytes lie in the mapping, as `live_block` has checked, and `mappings` keeps
        // it. A pinned block is not written (SYNC(pin) in `protocol`) until `self` is dropped.
        Some(unsafe { std::slice::from_raw_parts(block.payload().as_ptr(), *size) })
    }

    /// The id of an object that it pins, as [`bytes`](Self::bytes).
    pub(crate) fn object_id(&self, header: &MetaHeader) -> Option<ObjectId> {
        if self.plane.attachment().is_forked() {
            return None;
        }
        Some(ObjectId::from_bytes(self.pinned_block(header)?.block.object_id()))
    }

    fn pinned_block(&self, header: &MetaHeader) -> Option<&PinnedBlock> {
        // A table of many objects is resolved cell by cell, so the order is made once.
        let order = self.by_generation.get_or_init(|| {
            let mut order: Vec<u32> = (0..self.pinned.len() as u32).collect();
            order.sort_unstable_by_key(|place| self.pinned[*place as usize].generation);
            order
        });
        let generation = |place: &u32| self.pinned[*place as usize].generation;
        let found = order.binary_search_by_key(&header.hint, generation).ok()?;
        let block = &self.pinned[order[found] as usize];
        (block.size as u64 == header.size).then_some(block)
    }

    /// Pins the object of a span by a slot of `batch`.
    fn pin(&mut self, found: &FoundSpan, batch: &mut SlotBatch<'_>) -> Result<(), AskReason> {
        let MetaHeader { hint: generation, size, .. } = found.header;
        let block = match self.mappings.live_block(&found.header) {
            Some(block) => block,
            None if self.mappings.knows(&found.header) => return Err(AskReason::NotResident),
            None => return Err(AskReason::NotMapped),
        };
        let slot = match batch.pin(block.generation(), generation, size) {
            Ok(slot) => slot,
            Err(PinAttempt::SlotTaken) => return Err(AskReason::NoSlot),
            Err(PinAttempt::Gone | PinAttempt::Pinned) => return Err(AskReason::NotResident),
        };
        self.by_generation.take();
        self.pinned.push(PinnedBlock { slot, block, size: size as usize, generation });
        Ok(())
    }
}

impl Drop for TablePins {
    fn drop(&mut self) {
        if self.plane.attachment().is_forked() {
            return;
        }
        let page = &self.plane.files().page;
        self.pinned.iter().for_each(|one| page.unpin(one.slot));
    }
}

/// Spans of a path, as a step function of time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct SpanSteps {
    /// Start of each step, ascending; the first one is the lowest timestamp.
    pub(crate) starts: Vec<i64>,
    /// The span of each step; `None`: nothing is known there.
    pub(crate) spans: Vec<Option<u32>>,
}

/// The spans of a path, as of one snapshot.
pub(crate) struct SpanReading<'a> {
    path: &'a PlanePath,
    snapshot: CachedSnapshot,
}

impl PlanePath {
    /// The spans of the path, for a table with these pins.
    ///
    /// # Errors
    /// The reason why the service must be asked.
    pub(crate) fn read<'a>(&'a self, pins: &TablePins) -> Result<SpanReading<'a>, AskReason> {
        self.use_mappings(&pins.mappings);
        let snapshot = self.snapshot().or_else(|_| self.snapshot())?;
        Ok(SpanReading { path: self, snapshot })
    }
}

impl SpanReading<'_> {
    /// The number of spans that begin before or at `last` and end after `first`, at most.
    pub(crate) fn spans_between(&self, first: i64, last: i64) -> usize {
        let view = &self.snapshot.view;
        let begin = view.spans_begun(first).saturating_sub(1);
        view.spans_begun(last).saturating_sub(begin)
    }

    /// The spans that begin before or at `last` and end after `first`.
    pub(crate) fn steps(&self, first: i64, last: i64, steps: &mut SpanSteps) {
        let view = &self.snapshot.view;
        steps.starts.clear();
        steps.spans.clear();
        steps.starts.push(i64::MIN);
        steps.spans.push(None);
        let begin = view.spans_begun(first).saturating_sub(1);
        for number in begin..view.spans_begun(last) {
            let (from, until) = view.bounds(number);
            let end = steps.starts.last().copied().unwrap_or(i64::MIN);
            // Only in a place that was reused meanwhile, which `pin` notices.
            if from < end || from >= until {
                continue;
            }
            if from == end {
                // It begins where the one before ends.
                steps.starts.pop();
                steps.spans.pop();
            }
            steps.starts.extend([from, until]);
            steps.spans.extend([Some(number as u32), None]);
        }
    }

    /// The span that contains `at`.
    pub(crate) fn span_at(&self, at: i64) -> Option<u32> {
        self.snapshot.view.number_at(at)
    }

    /// Pins the objects of `spans`, and appends their headers to `headers` in this order.
    ///
    /// # Errors
    /// The reason why the service must be asked. Then the spans must not be used, and neither must
    /// those of an earlier call with this reading.
    pub(crate) fn pin(
        &self,
        spans: &[u32],
        pins: &mut TablePins,
        headers: &mut Vec<MetaHeader>,
    ) -> Result<(), AskReason> {
        let view = &self.snapshot.view;
        let files = Arc::clone(pins.plane.shared_files());
        let mut batch = files.page.batch();
        let mut ahead = spans.iter().skip(AHEAD);
        for number in spans {
            if let Some(found) = ahead.next().and_then(|next| view.span(*next)) {
                pins.mappings.prefetch(&found.header);
            }
            let found = view.span(*number).ok_or(AskReason::Unpublished)?;
            // SYNC(give-up): everything read since the entry was read belongs to the snapshot.
            if sync::seen_again(self.snapshot.block.generation()) != self.snapshot.generation {
                return Err(AskReason::Unpublished);
            }
            if pins.now >= found.confirmed_until {
                return Err(AskReason::Unconfirmed);
            }
            pins.pin(&found, &mut batch)?;
            headers.push(found.header);
            self.path.used(pins.now, self.snapshot.entry, found.number, found.header.hint);
        }
        // SYNC(give-up): the steps that the caller has joined belong to the snapshot too.
        match sync::seen_again(self.snapshot.block.generation()) == self.snapshot.generation {
            true => Ok(()),
            false => Err(AskReason::Unpublished),
        }
    }
}
