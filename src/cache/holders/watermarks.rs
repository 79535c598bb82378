//! Watermarks: per consumer, the id below which it has consumed all timeframes.

use std::collections::HashMap;

use crate::budget::{Charge, ClientBudget};
use crate::cache::error::CacheError;
use crate::clock::Moment;
use crate::table::RequestLimits;

/// Maximum number of watermarks kept for consumers whose clients are gone.
pub(super) const MAX_IDLE_WATERMARKS: usize = 10_000;
/// Bytes of a watermark without the consumer's name.
pub(super) const WATERMARK_BYTES: usize = 160;

/// All timeframes below `oldest` are consumed.
#[derive(Debug)]
struct Watermark {
    oldest: u64,
    set: Moment,
    /// Budget for its memory, charged to the client that set it first, as long as that is
    /// connected.
    charge: Charge,
}

/// The watermark of each consumer, by name. Only an administrator lowers one.
#[derive(Debug, Default)]
pub(super) struct Watermarks {
    marks: HashMap<String, Watermark>,
}

impl Watermarks {
    /// Whether the watermark of `consumer` says that it has consumed `timeframe`.
    pub(super) fn has_consumed(&self, consumer: &str, timeframe: u64) -> bool {
        self.marks.get(consumer).is_some_and(|mark| timeframe < mark.oldest)
    }

    /// Raises the watermark of a consumer to `oldest`; a new one is charged to `budget`.
    ///
    /// # Errors
    /// [`CacheError::Budget`].
    pub(super) fn raise(
        &mut self,
        consumer: &str,
        oldest: u64,
        budget: &ClientBudget,
        now: Moment,
    ) -> Result<(), CacheError> {
        // No timeframe can be registered for such a consumer, so there is nothing to keep.
        if consumer.len() > RequestLimits::MOST.name_bytes {
            return Ok(());
        }
        if let Some(mark) = self.marks.get_mut(consumer) {
            (mark.oldest, mark.set) = (oldest.max(mark.oldest), now);
            return Ok(());
        }
        let bytes = (consumer.len() + WATERMARK_BYTES) as u64;
        let charge = budget.charge(bytes, "the watermark of a consumer")?;
        self.marks.insert(consumer.to_owned(), Watermark { oldest, set: now, charge });
        Ok(())
    }

    /// Refunds the charges for watermarks of clients that are gone. Of these watermarks only the
    /// latest are kept.
    pub(super) fn sweep(&mut self) {
        let mut idle: Vec<Moment> = Vec::new();
        for mark in self.marks.values_mut().filter(|mark| mark.charge.client_is_gone()) {
            mark.charge.shrink_to(0);
            idle.push(mark.set);
        }
        if idle.len() > MAX_IDLE_WATERMARKS {
            idle.sort_unstable();
            let mut surplus = idle.len() - MAX_IDLE_WATERMARKS;
            let last = idle[surplus - 1];
            self.marks.retain(|_, mark| {
                let is_kept = !mark.charge.client_is_gone() || mark.set > last || surplus == 0;
                surplus -= usize::from(!is_kept);
                is_kept
            });
            self.marks.shrink_to_fit();
        }
    }

    /// Lowers the watermark of a consumer; at 0 it is removed.
    pub(super) fn lower(&mut self, consumer: &str, oldest: u64) {
        match self.marks.get_mut(consumer) {
            Some(mark) if oldest < mark.oldest && oldest > 0 => mark.oldest = oldest,
            Some(mark) if oldest < mark.oldest => drop(self.marks.remove(consumer)),
            _ => {}
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.marks.len()
    }

    #[cfg(test)]
    pub(super) fn contains(&self, consumer: &str) -> bool {
        self.marks.contains_key(consumer)
    }
}
