//! The timelines that a process saves for its successor.

use std::collections::HashMap;
use std::sync::Arc;

use crate::cache::restart::{SavedSeries, SavedTimelines};
use crate::cache::versions::catalog::Catalog;
use crate::cache::versions::linked_timeline::LinkedTimeline;
use crate::clock::Moment;
use crate::index::{State, Timeline};
use crate::interval::ValidityInterval;
use crate::object::{CreationLimits, ObjectId, ObjectInfo, Query};
use crate::source::VersionRecord;

impl Catalog {
    /// The known timelines, restricted to versions whose objects are resident according to
    /// `resident`.
    pub(crate) fn saved_timelines(&self, resident: impl Fn(ObjectId) -> bool) -> SavedTimelines {
        let all: Vec<(Query, Arc<LinkedTimeline>)> = {
            let series = self.series.read();
            series.iter().map(|(query, one)| (query.clone(), one.timeline.load_full())).collect()
        };
        let mut places: HashMap<*const ObjectInfo, usize> = HashMap::new();
        let (mut versions, mut series) = (Vec::new(), Vec::new());
        for (query, timeline) in &all {
            let mut pieces = Vec::new();
            for span in timeline.spans(ValidityInterval::ALL) {
                let State::Version(index) = span.state else { continue };
                let version = timeline.version(index);
                if resident(version.id) {
                    let place = *places.entry(Arc::as_ptr(version)).or_insert_with(|| {
                        versions.push(VersionRecord::from(&**version));
                        versions.len() - 1
                    });
                    pieces.push((span.interval.from(), span.interval.until(), place));
                }
            }
            if pieces.is_empty() {
                continue;
            }
            let Query { path, metadata, limits } = query.clone();
            let (not_before, not_after) = (limits.not_before, limits.not_after);
            series.push(SavedSeries { path, metadata, not_before, not_after, pieces });
        }
        series.sort_by(|a, b| (&a.path, &a.metadata).cmp(&(&b.path, &b.metadata)));
        SavedTimelines { source: self.source.url().to_owned(), versions, series }
    }

    /// Adds the timelines of the previous process. They count only until the source says otherwise,
    /// since they are not confirmed.
    pub(crate) fn remember(&self, saved_timelines: SavedTimelines) {
        if saved_timelines.source != self.source.url() {
            return;
        }
        let versions: Vec<Option<Arc<ObjectInfo>>> = saved_timelines
            .versions
            .into_iter()
            .map(|record| record.version().map(Arc::new))
            .collect();
        for SavedSeries { path, metadata, not_before, not_after, pieces } in saved_timelines.series
        {
            let query = Query { path, metadata, limits: CreationLimits { not_before, not_after } };
            let series = self.series(&query, self.clock.now());
            let mut timeline = Timeline::clone(&**series.timeline.load());
            for (from, until, place) in pieces {
                let version = versions.get(place).and_then(Option::as_ref);
                let span = ValidityInterval::new(from, until);
                if let (Ok(span), Some(version)) = (span, version) {
                    timeline =
                        timeline.learn(span, std::slice::from_ref(version), Moment::default());
                }
            }
            series.timeline.store(Arc::new(LinkedTimeline::new(timeline)));
        }
    }
}
