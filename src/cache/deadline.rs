//! Deadlines of the steps of a request, and what errors call these steps.

use tokio::time::{Instant, timeout_at};

use crate::cache::error::CacheError;

/// The step between the answer of the source and loading.
pub(crate) const PLANNING: &str = "the decision which version serves which rows";
/// The step that asks the source for versions.
pub(crate) const LOOK_UP: &str = "the source to say which versions hold";

/// Runs `work` until `deadline`; `what` names the step in the error.
///
/// # Errors
/// What `work` says, or [`CacheError::DeadlineExceeded`].
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
