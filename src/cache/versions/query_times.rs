//! The times at which a query is looked up, and those of them that are unknown or too old.

use std::ops::Range;

use crate::clock::Moment;
use crate::index::{
    State, Step, Timeline, Timestamps, closed_between_bounds, open_times, open_times_within,
};
use crate::interval::Timestamp;

/// Maximum number of parallel look-ups if each answer covers a single time.
pub(super) const PARALLEL_LOOK_UPS: usize = 16;

/// The times at which a query is looked up.
pub(crate) enum QueryTimes<'a> {
    /// All of these timestamps.
    All(&'a Timestamps),
    /// The timestamps of some ranges of rows, which are computed on demand.
    Rows(&'a Timestamps, Box<dyn Fn() -> &'a [Range<u32>] + Send + Sync + 'a>),
}

impl QueryTimes<'_> {
    /// The first time that can have an object: in the last millisecond of the time range nothing is
    /// ever valid, so the source is not asked for it.
    fn first(&self) -> Option<Timestamp> {
        let is_possible = |at: &Timestamp| *at != Timestamp::MAX;
        match self {
            Self::All(timestamps) => timestamps.runs().filter_map(|(_, at)| at).find(is_possible),
            Self::Rows(timestamps, ranges) => {
                let rows = ranges().iter().flat_map(|rows| rows.clone());
                rows.filter_map(|row| timestamps.value(row as usize)).find(is_possible)
            }
        }
    }
}

/// The first timestamps where the timeline is unknown or too old, each with whether it is unknown.
pub(super) fn open_at(
    timeline: &Timeline,
    times: &QueryTimes<'_>,
    oldest: Moment,
) -> Vec<(Timestamp, bool)> {
    let open = |step: &Step| {
        let unknown = step.state == State::Unknown;
        (unknown || step.learned < oldest).then_some(unknown)
    };
    // Everything was learned at once, so one timestamp stands for all.
    if timeline.is_whole() {
        let known = match times {
            QueryTimes::All(_) => None,
            // Freshness is the same at all times, so the rows are not needed.
            QueryTimes::Rows(..) => Some(open(&timeline.at(Timestamp::default())).is_none()),
        };
        if known == Some(true) {
            return Vec::new();
        }
        return times
            .first()
            .and_then(|at| Some((at, open(&timeline.at(at))?)))
            .into_iter()
            .collect();
    }
    match times {
        QueryTimes::All(timestamps) => {
            open_times(timeline, timestamps, PARALLEL_LOOK_UPS + 1, open)
        }
        QueryTimes::Rows(timestamps, _) if closed_between_bounds(timeline, timestamps, open) => {
            Vec::new()
        }
        QueryTimes::Rows(timestamps, ranges) => {
            open_times_within(timeline, timestamps, ranges(), PARALLEL_LOOK_UPS + 1, open)
        }
    }
}
