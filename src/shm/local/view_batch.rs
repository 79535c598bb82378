//! Look-ups of many objects at a time.
//!
//! ```text
//!  times ─▶ spans (their objects are prefetched) ─▶ pins, in chunks of slots ─▶ views
//! ```
//!
//! The spans of a few times are searched before the first of their objects is pinned, so that the
//! processor gets all of them from memory at the same time.

use super::ask_reason::AskReason;
use super::monotonic::coarse_monotonic_millis;
use super::slot_batch::SlotBatch;
use super::view::{PinnedView, PlanePath};

/// Pins of many views, by slots beside each other.
pub(crate) struct ViewBatch<'a> {
    batch: Option<SlotBatch<'a>>,
    /// The time of the look-ups, in milliseconds of CLOCK_MONOTONIC.
    now: u64,
}

/// The span of a time, for [`PlanePath::at_ahead`].
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct SpanAhead {
    /// The generation of the snapshot; 0: the span is not known.
    generation: u64,
    number: u32,
}

impl Default for ViewBatch<'_> {
    fn default() -> Self {
        Self { batch: None, now: coarse_monotonic_millis() }
    }
}

impl ViewBatch<'_> {
    /// Number of objects that the processor gets from memory at the same time: that many spans are
    /// found before the first of their objects is pinned.
    pub(crate) const TOGETHER: usize = 16;

    /// The next views are those of this moment.
    pub(crate) fn renew(&mut self) {
        self.now = coarse_monotonic_millis();
    }
}

impl PlanePath {
    /// The span that contains a time, in milliseconds since the Unix epoch. Prefetches its object.
    #[inline]
    pub(crate) fn ahead(&self, at_millis: i64) -> SpanAhead {
        if self.plane().check().is_ok()
            && let Ok(snapshot) = self.snapshot()
            && let Some(number) = snapshot.view.number_at(at_millis)
        {
            self.prefetch(&snapshot, number);
            return SpanAhead { generation: snapshot.generation, number };
        }
        SpanAhead::default()
    }

    /// The object that is valid at a time, whose span was found shortly before. Like
    /// [`at`](Self::at).
    ///
    /// # Errors
    /// The reason why the service must be asked.
    #[inline(always)]
    pub(crate) fn at_ahead<'a>(
        &'a self,
        at_millis: i64,
        ahead: SpanAhead,
        batch: &mut ViewBatch<'a>,
    ) -> Result<PinnedView<'a>, AskReason> {
        match self.try_at_ahead(ahead, batch) {
            Ok(view) => Ok(view),
            Err(reason) => self.at_after_all(at_millis, reason).map(|view| *view),
        }
    }

    #[cold]
    #[inline(never)]
    fn at_after_all(&self, at: i64, reason: AskReason) -> Result<Box<PinnedView<'_>>, AskReason> {
        match reason {
            // The timeline may be another one now.
            AskReason::Unpublished | AskReason::Uncovered => self.at(at).map(Box::new),
            reason => self.at_again(at, reason),
        }
    }

    #[inline(always)]
    fn try_at_ahead<'a>(
        &'a self,
        ahead: SpanAhead,
        batch: &mut ViewBatch<'a>,
    ) -> Result<PinnedView<'a>, AskReason> {
        self.plane().check()?;
        let snapshot = self.snapshot()?;
        if snapshot.generation != ahead.generation {
            return Err(AskReason::Unpublished);
        }
        let page = &self.plane().files().page;
        let slots = match &mut batch.batch {
            Some(slots) if slots.is_of(page) => slots,
            // Of another session.
            other => other.insert(page.batch()),
        };
        self.view_of(&snapshot, ahead.number, batch.now, |block, generation, bytes| {
            slots.pin(block, generation, bytes)
        })
    }
}
