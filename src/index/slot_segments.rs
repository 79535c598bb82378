//! Segments of rows in which each look-up of a keyed column has one slot.
//!
//! ```text
//!  timestamps (sorted) × a timeline per look-up
//!    look-up 0  ├── v1 ──────┬── v2 ─────────┤
//!    look-up 1  ├── v7 ──┬── v8 ─────────────┤
//!    segments   ├────────┼───┼───────────────┤      rows × slots: as many tables as borders,
//! ```                                               however often the key changes between them

use super::choices::ChoiceSource;
use super::join::{JoinPieces, Run, Slot};
use super::timeline::Timeline;
use super::timestamps::{Order, Timestamps};

/// Consecutive segments that cover all rows.
#[derive(Debug)]
pub(crate) struct SlotSegments {
    /// For each segment, the row after its last one.
    pub(crate) ends: Vec<usize>,
    /// By segment and look-up.
    slots: Vec<Slot>,
    look_ups: usize,
}

impl SlotSegments {
    /// The segments of look-ups with these sources. `None` if there are none, because timestamps
    /// that decide are not in order or null, or if they have more than `max_slots` slots.
    pub(crate) fn new(
        sources: &[ChoiceSource<'_>],
        timestamps: &Timestamps,
        max_slots: usize,
    ) -> Option<Self> {
        let (joined, places) = joined(sources, timestamps, max_slots)?;
        let mut ends: Vec<usize> = joined.iter().flatten().map(|run| run.end).collect();
        ends.push(timestamps.len());
        ends.sort_unstable();
        ends.dedup();
        let look_ups = sources.len();
        if ends.len().checked_mul(look_ups)? > max_slots {
            return None;
        }
        let mut next = vec![0; joined.len()];
        let mut slots = Vec::with_capacity(ends.len() * look_ups);
        for &end in &ends {
            for (runs, next) in joined.iter().zip(&mut next) {
                while runs[*next].end < end {
                    *next += 1;
                }
            }
            slots.extend(sources.iter().zip(&places).map(|(source, place)| match source {
                ChoiceSource::Fixed(slot) => *slot,
                ChoiceSource::Timeline(_) => joined[*place][next[*place]].slot,
            }));
        }
        Some(Self { ends, slots, look_ups })
    }

    /// The slots of all look-ups in a segment.
    pub(crate) fn slots_of(&self, segment: usize) -> &[Slot] {
        &self.slots[segment * self.look_ups..][..self.look_ups]
    }
}

/// The runs of each distinct timeline, and by look-up the place of its own; `None` if there is no
/// such join, or one with more than `max_runs` runs.
fn joined(
    sources: &[ChoiceSource<'_>],
    timestamps: &Timestamps,
    max_runs: usize,
) -> Option<(Vec<Vec<Run>>, Vec<usize>)> {
    let mut timelines: Vec<&Timeline> = Vec::new();
    let mut by_address = std::collections::HashMap::new();
    let mut places = Vec::with_capacity(sources.len());
    for source in sources {
        let ChoiceSource::Timeline(timeline) = *source else {
            places.push(0);
            continue;
        };
        let place = *by_address.entry(std::ptr::from_ref(timeline)).or_insert_with(|| {
            timelines.push(timeline);
            timelines.len() - 1
        });
        places.push(place);
    }
    let is_sorted = || !timestamps.has_nulls() && matches!(timestamps.order(), Order::Sorted);
    if !timelines.is_empty() && !is_sorted() {
        return None;
    }
    let (mut joined, mut total, mut piece) = (Vec::with_capacity(timelines.len()), 0, Vec::new());
    for timeline in timelines {
        let mut runs: Vec<Run> = Vec::new();
        let mut pieces = JoinPieces::new(timeline, timestamps);
        while pieces.next_into(&mut piece) {
            total += piece.len();
            if total > max_runs {
                return None;
            }
            runs.extend_from_slice(&piece);
        }
        joined.push(runs);
    }
    Some((joined, places))
}
