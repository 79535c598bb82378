//! Pages of a timeline: the effective spans of one path, without its objects.

use tokio::time::Instant;

use super::handle::Cache;
use crate::cache::deadline::{LOOK_UP, by_deadline};
use crate::cache::error::CacheError;
use crate::cache::holders::caller::Caller;
use crate::cache::versions::span_pages::{PageRange, SpanPage, span_page};
use crate::object::{CreationLimits, Query};
use crate::table::{Request, TimelinePage, TimelineRequest, TimelineSpan};

/// Bytes of a span in memory and in the answer.
const SPAN_BYTES: u64 = 200;

impl Cache {
    /// A page of the effective spans of a path: at most 10,000, cut at the range of `request`, in
    /// ascending order. It loads no object, and does not keep the versions.
    ///
    /// # Errors
    /// [`CacheError::Request`] for an empty range, [`CacheError::Budget`], and, if no older answer is
    /// known, [`CacheError::LookUp`] and [`CacheError::DeadlineExceeded`].
    pub async fn timeline(
        &self,
        request: &TimelineRequest,
        caller: &Caller,
    ) -> Result<TimelinePage, CacheError> {
        self.check_open()?;
        let (range, limit) = (request.range()?, request.page_spans());
        let _charge = caller.budget.charge(limit as u64 * SPAN_BYTES, "a page of a timeline")?;
        let wait =
            caller.patience.map_or(Request::DEFAULT_WAIT, |wait| wait.min(Request::DEFAULT_WAIT));
        let limits: CreationLimits = self.0.columns.limits.narrowed_by(request.limits());
        let query = Query { limits, ..Query::all(request.path.clone()) };
        let part = PageRange { range, limit, latest: request.latest };
        let page = span_page(&self.0.catalog, &query, part);
        let page = by_deadline(LOOK_UP, Instant::now() + wait, page).await?;
        Ok(answer(page))
    }
}

fn answer(SpanPage { spans, next, stale }: SpanPage) -> TimelinePage {
    let spans = spans.into_iter().map(|span| TimelineSpan {
        from: span.interval.from().as_millis(),
        until: span.interval.until().as_millis(),
        object_id: span.id,
    });
    TimelinePage { spans: spans.collect(), next: next.map(|next| next.as_millis()), stale }
}
