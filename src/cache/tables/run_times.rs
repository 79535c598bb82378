//! The times of a run: the object with them is looked up at the run number instead of a timestamp.
//! Its metadata have the first and the last millisecond.

use tokio::time::Instant;

use super::columns::ColumnLookUp;
use super::run_information::RunInformation;
use crate::cache::deadline::{LOOK_UP, by_deadline};
use crate::cache::error::CacheError;
use crate::cache::versions::query_times::QueryTimes;
use crate::index::Timestamps;
use crate::interval::Timestamp;
use crate::object::{CreationLimits, Query};
use crate::table::{RangeRequest, RunRange, View, When};

impl ColumnLookUp {
    /// The times of a run: the timestamps of its steps, or for the view intervals its whole range.
    ///
    /// # Errors
    /// [`CacheError::UnknownRun`], or the error of the source.
    pub(crate) async fn times_of_run(
        &self,
        run: RunRange,
        view: View,
        limits: CreationLimits,
        deadline: Instant,
    ) -> Result<When, CacheError> {
        let RunInformation { path, .. } = &self.runs;
        let unknown =
            |reason: String| CacheError::UnknownRun { run: run.run, path: path.clone(), reason };
        let limits = self.limits.narrowed_by(limits);
        let query = Query { limits, ..Query::all(path.clone()) };
        let at = Timestamps::new(vec![run.run], None);
        let times = QueryTimes::All(&at);
        let known = by_deadline(LOOK_UP, deadline, self.catalog.known_at(&query, &times)).await?;
        let version = known.timeline.version_at(Timestamp::from_millis(run.run));
        let version = version.ok_or_else(|| unknown("no version is for it".to_owned()))?;
        let interval = self.runs.interval(version).map_err(unknown)?;
        if view == View::Intervals {
            return Ok(When::Range(interval));
        }
        let (from, until) = (interval.from(), interval.until());
        let range = RangeRequest { from, until, step: run.step, gap: None };
        let timestamps = range.timestamps().map_err(|error| unknown(error.reason))?;
        Ok(When::Timestamps(timestamps.into()))
    }
}
