//! The timestamps that need a look-up: those at whose step of the timeline something is missing.

use std::ops::Range;

use super::join::EntryRange;
use super::search::{before, search};
use super::timeline::{Step, Timeline};
use super::timestamps::{Order, Timestamps, millis};
use crate::interval::Timestamp;

/// This many steps are always checked at once, even for few timestamps.
const FEW_STEPS: usize = 16;

/// The first few timestamps at whose step `open` returns a value, with the value. Equal consecutive
/// timestamps count once.
///
/// The cost is that of a join. If no step between the first and the last timestamp is open, only
/// these steps are read.
#[doc(hidden)]
pub fn open_times<T>(
    timeline: &Timeline,
    timestamps: &Timestamps,
    limit: usize,
    open: impl Fn(&Step) -> Option<T>,
) -> Vec<(Timestamp, T)> {
    let entries = 0..timestamps.entries();
    match closed_between_bounds(timeline, timestamps, &open) {
        true => Vec::new(),
        false => open_times_of(timeline, timestamps, entries, limit, &open),
    }
}

/// Whether `open` returns no value for any step between the first and the last timestamp. It reads
/// no timestamps, and returns `false` at once if there are fewer entries than steps.
#[doc(hidden)]
pub fn closed_between_bounds<T>(
    timeline: &Timeline,
    timestamps: &Timestamps,
    open: impl Fn(&Step) -> Option<T>,
) -> bool {
    let Some((least, most)) = timestamps.bounds() else { return true };
    let (firsts, segments) = timeline.segments();
    let parts = search(firsts, least)..search(firsts, most) + 1;
    let steps: usize = segments[parts.clone()].iter().map(|segment| segment.steps.len()).sum();
    steps <= timestamps.entries().max(FEW_STEPS)
        && segments[parts].iter().all(|segment| {
            let range = search(&segment.starts, least)..search(&segment.starts, most) + 1;
            segment.steps[range].iter().all(|step| open(step).is_none())
        })
}

/// Like [`open_times`], for some entries of the timestamps. It always reads them.
fn open_times_of<T>(
    timeline: &Timeline,
    timestamps: &Timestamps,
    entries: EntryRange,
    limit: usize,
    open: &impl Fn(&Step) -> Option<T>,
) -> Vec<(Timestamp, T)> {
    let mut found = Vec::new();
    if let Some(pace) = timestamps.steps() {
        let mut entry = entries.start;
        while entry < entries.end && found.len() < limit {
            let at = Timestamp::from_millis(pace.value(entry));
            let (step, border) = timeline.step_at(at);
            match open(&step) {
                Some(told) => {
                    found.push((at, told));
                    entry += 1;
                }
                None if at.as_millis() < border => entry = pace.before(border),
                None => break,
            }
        }
        return found;
    }
    let sorted = matches!(timestamps.order(), Order::Sorted);
    for valid in timestamps.valid_within(entries) {
        let values = &timestamps.values()[..valid.end];
        let (mut entry, mut last) = (valid.start, None);
        while entry < values.len() {
            let at = millis(&values[entry]);
            let (step, border) = timeline.step_at(Timestamp::from_millis(at));
            match open(&step) {
                Some(told) if last != Some(at) => {
                    found.push((Timestamp::from_millis(at), told));
                    if found.len() == limit {
                        return found;
                    }
                    entry += 1;
                }
                None if sorted && at < border => {
                    entry += before(&values[entry..], millis, border);
                }
                None if sorted => break,
                _ => entry += 1,
            }
            last = Some(at);
        }
    }
    found
}

/// The first few timestamps in `ranges` of rows at whose step `open` returns a value: each
/// timestamp once, with the value.
pub(crate) fn open_times_within<T>(
    timeline: &Timeline,
    timestamps: &Timestamps,
    ranges: &[Range<u32>],
    limit: usize,
    open: impl Fn(&Step) -> Option<T>,
) -> Vec<(Timestamp, T)> {
    let mut found: Vec<(Timestamp, T)> = Vec::new();
    // Start and end of the last step without a value.
    let mut closed = (i64::MAX, i64::MIN);
    for rows in ranges {
        let first = timestamps.entry_of(rows.start as usize);
        let last = match rows.len() {
            1 => first,
            _ => timestamps.entry_of(rows.end as usize - 1),
        };
        if last > first {
            let more = open_times_of(timeline, timestamps, first..last + 1, limit, &open);
            let is_new = |at: &Timestamp| found.iter().all(|(known, _)| known != at);
            let more: Vec<_> = more.into_iter().filter(|(at, _)| is_new(at)).collect();
            found.extend(more);
        } else if let Some(at) = timestamps.entry(first) {
            let millis = at.as_millis();
            if closed.0 <= millis && millis < closed.1 {
                continue;
            }
            let (from, until, step) = timeline.step_around(at);
            match open(&step) {
                None => closed = (from, until),
                Some(told) if found.iter().all(|(known, _)| *known != at) => found.push((at, told)),
                Some(_) => {}
            }
        }
        if found.len() >= limit {
            found.truncate(limit);
            break;
        }
    }
    found
}
