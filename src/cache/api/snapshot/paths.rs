//! Which version of which path holds when, and whether it is in shared memory.

use std::sync::Arc;

use serde::Serialize;

use crate::cache::memory::residency::Residency;
use crate::cache::versions::linked_timeline::LinkedTimeline;
use crate::index::{State, Timeline};
use crate::interval::ValidityInterval;
use crate::object::{ObjectId, Query};

/// How many spans are drawn in all.
const MAX_SPANS: usize = 2_048;
/// How many steps of a timeline are looked at.
const MAX_STEPS: usize = 10_000;
/// Times beyond the year 2100 and before 1970 say 'without end', and tell nothing of when
/// something is used.
const TOLD: std::ops::Range<i64> = 1..4_102_444_800_000;

/// A path as it was asked for.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PathSnapshot {
    /// The path, with the metadata and limits that were asked for, if any.
    pub path: String,
    /// What is known of it, in order; where there is none, nobody has asked.
    pub spans: Vec<SpanSnapshot>,
    /// It has more that is not drawn.
    pub cut: bool,
}

/// A piece of time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SpanSnapshot {
    /// From then (ms).
    pub from: i64,
    /// Until before then (ms).
    pub until: i64,
    /// What holds.
    pub state: SpanState,
    /// Which version, where one does.
    pub id: Option<ObjectId>,
    /// Its size, where that is known.
    pub size_bytes: Option<u64>,
}

/// What holds in a piece of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SpanState {
    /// Nothing: that is known.
    Absent,
    /// A version that is not in shared memory.
    Known,
    /// A version in shared memory that can be evicted.
    Resident,
    /// A version in shared memory that somebody pins.
    Pinned,
}

/// The paths by name, and the time in which most of what is resident lies.
pub(super) fn draw(
    asked: Vec<(Query, Arc<LinkedTimeline>)>,
    residency: &Residency,
) -> (Vec<PathSnapshot>, Option<(i64, i64)>) {
    let each = MAX_SPANS / asked.len().max(1);
    let mut paths: Vec<PathSnapshot> = asked
        .iter()
        .map(|(query, timeline)| {
            let (spans, cut) = spans(timeline, residency, each);
            PathSnapshot { path: name(query), spans, cut }
        })
        .collect();
    paths.sort_by(|a, b| a.path.cmp(&b.path));
    let window = window(&paths, |span| span.state >= SpanState::Resident)
        .or_else(|| window(&paths, |span| span.state == SpanState::Known));
    (paths, window)
}

fn name(query: &Query) -> String {
    let mut name = query.path.to_string();
    for (key, value) in &query.metadata {
        name += &format!(" {key}={value}");
    }
    for (word, limit) in
        [("not before", query.limits.not_before), ("not after", query.limits.not_after)]
    {
        if let Some(limit) = limit {
            name += &format!(" {word} {limit}");
        }
    }
    name
}

/// What is drawn of a timeline: all of it, or as much as there is room for around what is resident.
fn spans(timeline: &Timeline, residency: &Residency, room: usize) -> (Vec<SpanSnapshot>, bool) {
    let mut spans: Vec<SpanSnapshot> = Vec::new();
    let mut steps = timeline.steps(ValidityInterval::ALL);
    for step in steps.by_ref().take(MAX_STEPS) {
        let (state, id, size_bytes) = match step.state {
            State::Unknown => continue,
            State::Absent => (SpanState::Absent, None, None),
            State::Version(index) => {
                let version = timeline.version(index);
                let state = match residency.pins_of(version.id) {
                    None => SpanState::Known,
                    Some(0) => SpanState::Resident,
                    Some(_) => SpanState::Pinned,
                };
                (state, Some(version.id), version.size_bytes)
            }
        };
        let (from, until) = (step.interval.from().as_millis(), step.interval.until().as_millis());
        match spans.last_mut() {
            Some(last) if last.until == from && (last.state, last.id) == (state, id) => {
                last.until = until;
            }
            _ => spans.push(SpanSnapshot { from, until, state, id, size_bytes }),
        }
    }
    let mut cut = steps.next().is_some();
    if spans.len() > room {
        cut = true;
        let there = |span: &SpanSnapshot| span.state >= SpanState::Resident;
        let first = spans.iter().position(there).unwrap_or(spans.len());
        let begin = first.saturating_sub(room / 4).min(spans.len() - room);
        spans.drain(..begin);
        spans.truncate(room);
    }
    (spans, cut)
}

/// From the first tenth to the last of all borders of the spans that `which` picks, and some room
/// around.
fn window(paths: &[PathSnapshot], which: impl Fn(&SpanSnapshot) -> bool) -> Option<(i64, i64)> {
    let chosen = paths.iter().flat_map(|path| &path.spans).filter(|span| which(span));
    let borders = chosen.flat_map(|span| [span.from, span.until]);
    let mut borders: Vec<i64> = borders.filter(|at| TOLD.contains(at)).collect();
    borders.sort_unstable();
    let tenth = borders.len() / 10;
    let first = *borders.get(tenth)?;
    let last = borders[borders.len() - 1 - tenth];
    let room = ((last - first) / 20).max(1);
    Some((first - room, last + room))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(spans: &[(i64, i64, SpanState)]) -> PathSnapshot {
        let spans = spans.iter().map(|&(from, until, state)| SpanSnapshot {
            from,
            until,
            state,
            id: None,
            size_bytes: None,
        });
        PathSnapshot { path: "A".to_owned(), spans: spans.collect(), cut: false }
    }

    #[test]
    fn the_window_is_where_objects_are_whatever_else_is_known() {
        let endless = (i64::MIN, i64::MAX, SpanState::Pinned);
        let used = (1_000, 2_000, SpanState::Resident);
        let elsewhere = (500_000, 600_000, SpanState::Known);
        let paths = [path(&[endless]), path(&[used, elsewhere])];
        let resident = |span: &SpanSnapshot| span.state >= SpanState::Resident;
        assert_eq!(window(&paths, resident), Some((950, 2_050)));
        assert_eq!(window(&[path(&[endless])], resident), None);
    }
}
