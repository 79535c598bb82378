//! Deadlines for the steps of a request, and the names of these steps in errors.

use tokio::time::{Instant, timeout_at};

use crate::cache::error::CacheError;

/// Name of the step that assigns versions to rows, between look-up and loading.
pub(crate) const PLANNING: &str = "the assignment of versions to rows";
/// Name of the step that asks the source for versions.
pub(crate) const LOOK_UP: &str = "the look-up of versions at the source";

/// Runs `work` until `deadline`; `what` names the step in the error.
///
/// # Errors
/// The error of `work`, or [`CacheError::DeadlineExceeded`].
pub(crate) async fn by_deadline<T>(
    what: &str,
    deadline: Instant,
    work: impl Future<Output = Result<T, CacheError>>,
) -> Result<T, CacheError> {
    let began = Instant::now();
    match timeout_at(deadline, work).await {
        Ok(done) => done,
        Err(_) => Err(CacheError::DeadlineExceeded {
            what: what.to_owned(),
            wait_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
        }),
    }
}
