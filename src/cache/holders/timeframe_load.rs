//! Loads and pins the objects of a timeframe.

use std::sync::Arc;

use tokio::time::Instant;

use crate::cache::error::CacheError;
use crate::cache::holders::timeframe::{LoadState, Timeframe};
use crate::cache::tables::loader::Loader;
use crate::cache::tables::plan::Assembled;

/// Loads and pins all objects of a timeframe.
///
/// # Errors
/// [`CacheError`]. The timeframe then stays in the state loading.
pub(crate) async fn load_timeframe(
    loader: &Loader,
    timeframe: &Timeframe,
    deadline: Instant,
) -> Result<(), CacheError> {
    let plan = &timeframe.registration.plan;
    let got = loader.pin_all(&**plan.versions(), deadline).await?;
    timeframe.set_ready(Arc::new(plan.assemble(got)));
    Ok(())
}

/// The table of a timeframe. Waits for the task that loads its objects, and tries to load them
/// itself meanwhile.
///
/// # Errors
/// [`CacheError::UnknownTimeframe`] if the timeframe is dropped, else the error of the load.
pub(crate) async fn assembled(
    loader: &Loader,
    timeframe: &Arc<Timeframe>,
    deadline: Instant,
) -> Result<Arc<Assembled>, CacheError> {
    let gone = || CacheError::UnknownTimeframe { timeframe: timeframe.id() };
    let mut load = timeframe.load();
    match &*load.borrow() {
        LoadState::Ready(assembled) => return Ok(Arc::clone(assembled)),
        LoadState::Gone => return Err(gone()),
        LoadState::Loading => {}
    }
    tokio::select! {
        biased;
        changed = load.wait_for(|load| !matches!(load, LoadState::Loading)) => match changed.as_deref() {
            Ok(LoadState::Ready(assembled)) => Ok(Arc::clone(assembled)),
            _ => Err(gone()),
        },
        loaded = load_timeframe(loader, timeframe, deadline) => {
            loaded?;
            match &*timeframe.load().borrow() {
                LoadState::Ready(assembled) => Ok(Arc::clone(assembled)),
                LoadState::Loading | LoadState::Gone => Err(gone()),
            }
        }
    }
}
