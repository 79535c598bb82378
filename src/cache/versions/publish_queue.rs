//! Which timelines get a snapshot in shared memory next.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use super::publication::Publication;
use super::series::Series;
use crate::clock::Moment;
use crate::object::Query;

/// Series whose snapshots are to be made, in the order in which they were queued.
#[derive(Debug, Default)]
pub(super) struct PublishQueue {
    /// Consumers find no snapshot of these. They come first, however long the other list is.
    absent: Vec<(Query, Weak<Series>)>,
    /// Their snapshots may get more spans.
    present: Vec<(Query, Weak<Series>)>,
}

impl PublishQueue {
    pub(super) fn is_empty(&self) -> bool {
        self.absent.is_empty() && self.present.is_empty()
    }

    /// Adds a series. `is_present` is [`is_present`] of it: its lock is never taken under that of the
    /// queue.
    pub(super) fn add(&mut self, query: &Query, series: &Arc<Series>, is_present: bool) {
        let queue = if is_present { &mut self.present } else { &mut self.absent };
        queue.push((query.clone(), Arc::downgrade(series)));
    }

    /// Takes at most `limit` series whose snapshots are due at `now`, or that are forgotten.
    pub(super) fn take(&mut self, now: Moment, limit: usize) -> Vec<(Query, Weak<Series>)> {
        let is_due = |(_, series): &mut (Query, Weak<Series>)| {
            series.upgrade().is_none_or(|series| {
                Moment::from_millis(series.publish_after.load(Ordering::Relaxed)) <= now
            })
        };
        let due = self.absent.extract_if(.., is_due).chain(self.present.extract_if(.., is_due));
        due.take(limit).collect()
    }
}

/// Whether consumers find a snapshot of a series.
pub(super) fn is_present(series: &Series) -> bool {
    series.with_publication(Publication::is_named) == Some(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::ObjectPath;

    #[test]
    fn series_without_a_snapshot_come_first_and_those_that_are_not_due_stay() {
        let query = |n: usize| Query::all(ObjectPath::new(&format!("A/P{n}")).unwrap());
        let series: Vec<_> = (0..6).map(|_| Arc::new(Series::new(0))).collect();
        let mut queue = PublishQueue::default();
        series.iter().enumerate().for_each(|(n, one)| queue.add(&query(n), one, n < 3));
        series[4].publish_after.store(7, Ordering::Relaxed);
        let mut taken = |now, limit| {
            let taken = queue.take(Moment::from_millis(now), limit).into_iter();
            taken.map(|(query, _)| query.path.as_str().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(taken(6, 3), ["A/P3", "A/P5", "A/P0"]);
        assert_eq!(taken(6, 3), ["A/P1", "A/P2"]);
        assert_eq!(taken(6, 3), [] as [&str; 0]);
        assert_eq!(taken(7, 3), ["A/P4"]);
        assert!(queue.is_empty());
    }
}
