//! The versions of each path over time, and whether they are in shared memory.

use std::sync::Arc;

use serde::Serialize;

use crate::cache::memory::residency::Residency;
use crate::cache::versions::linked_timeline::LinkedTimeline;
use crate::index::{State, Timeline};
use crate::interval::ValidityInterval;
use crate::object::{ObjectId, Query};

/// Maximum number of spans in total.
const MAX_SPANS: usize = 2_048;
/// Maximum number of steps of a timeline that are examined.
const MAX_STEPS: usize = 10_000;
/// Times before 1970 and after 2100 mean "without end", and are ignored for the time range.
const DRAWN_MILLIS: std::ops::Range<i64> = 1..4_102_444_800_000;

/// A requested path.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PathSnapshot {
    /// The path, with the metadata and limits of the request, if any.
    pub path: String,
    /// The known spans, in order; gaps have never been looked up.
    pub spans: Vec<SpanSnapshot>,
    /// Whether spans were left out.
    pub cut: bool,
}

/// A span of time with one state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SpanSnapshot {
    /// First millisecond.
    pub from: i64,
    /// End in milliseconds, exclusive.
    pub until: i64,
    /// State of the span.
    pub state: SpanState,
    /// The valid version, if there is one.
    pub id: Option<ObjectId>,
    /// Size of the object, if known.
    pub size_bytes: Option<u64>,
}

/// State of a span.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SpanState {
    /// No version is valid.
    Absent,
    /// A version that is not in shared memory.
    Known,
    /// A version in shared memory that can be evicted.
    Resident,
    /// A version in shared memory that is pinned.
    Pinned,
}

/// The paths by name, and the time range of most resident objects.
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

/// The spans of a timeline: all, or those around the resident ones if there are too many.
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

/// The range from the first tenth to the last tenth of all ends of the spans that `which` selects,
/// plus a margin.
fn window(paths: &[PathSnapshot], which: impl Fn(&SpanSnapshot) -> bool) -> Option<(i64, i64)> {
    let chosen = paths.iter().flat_map(|path| &path.spans).filter(|span| which(span));
    let borders = chosen.flat_map(|span| [span.from, span.until]);
    let mut borders: Vec<i64> = borders.filter(|at| DRAWN_MILLIS.contains(at)).collect();
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
