//! Waits for changes of a path.
//!
//! ```text
//!  notice ─▶ look up, or ask ──another version──▶ changed
//!    ▲              │ the known one
//!    └── a change ◀─┴─ wait in shared memory; where the path is not published, pause and ask again
//! ```

use std::time::{Duration, Instant};

use super::path::{LocalPath, PlaneStep};
use crate::client::error::ClientError;
use crate::interval::Timestamp;
use crate::object::ObjectId;
use crate::shm::{AskReason, ChangeNotice, EventError, LOOK_AGAIN, PlaneEvent};

/// First pause of a wait for changes of a path that is not published; each pause is twice as long as
/// the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(1);

/// Longest part of a wait in a thread of its own, which a wait that is dropped leaves behind.
const WAIT_SLICE: Duration = Duration::from_secs(1);

/// A notice of changes, or the reason why there is none.
type Noticed = Result<ChangeNotice, AskReason>;

/// Result of one step of a wait for a change. See [`LocalPath::change_step`].
#[derive(Debug)]
pub enum ChangeStep {
    /// The object is another one.
    Changed,
    /// It is the known one until this event is readable.
    Event(PlaneEvent),
    /// It is the known one, and only the service tells of a change, for this reason: take the next
    /// step after a pause.
    Ask(AskReason),
}

impl LocalPath {
    /// Waits until the object that is valid at `at` is another one than the version `known` (`None`:
    /// nothing is valid), or until `timeout` has passed; whether it is another one. A change before the
    /// call counts too, so none is missed between a look-up and the wait for the next version.
    ///
    /// Uses no CPU time while it waits, where the path lies in shared memory and the service refreshes
    /// it by itself; else the service is asked once a second. Blocks this thread, also for an answer of
    /// the service: `timeout` limits both.
    ///
    /// ```no_run
    /// # fn follow(path: iovcache::client::LocalPath) -> Result<(), iovcache::client::ClientError> {
    /// # let at = iovcache::Timestamp::from_millis(1_700_000_000_000);
    /// loop {
    ///     let drift = path.at(at)?;
    ///     // Rebuild what depends on it.
    ///     path.changed(at, drift.map(|view| view.id()), None)?;
    /// }
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`at`](Self::at).
    pub fn changed(
        &self,
        at: Timestamp,
        known: Option<ObjectId>,
        timeout: Option<Duration>,
    ) -> Result<bool, ClientError> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut pause = FIRST_PAUSE;
        loop {
            let (step, notice) = match self.unchanged(at, known, deadline) {
                Ok(Some(unchanged)) => unchanged,
                Ok(None) => return Ok(true),
                // The request was given up at the deadline.
                Err(ClientError::NotInTime { .. })
                    if deadline.is_some_and(|at| at <= Instant::now()) =>
                {
                    return Ok(false);
                }
                Err(error) => return Err(error),
            };
            let waited = notice.and_then(|notice| step.wait_change(&notice, deadline));
            match waited {
                Ok(true) => pause = FIRST_PAUSE,
                Ok(false) => return Ok(false),
                Err(AskReason::Forked) => return Err(ClientError::ForkedProcess),
                // The request that was just made has the path published, if that is possible.
                Err(_) => {
                    let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
                    if left.is_some_and(|left| left.is_zero()) {
                        return Ok(false);
                    }
                    std::thread::sleep(left.map_or(pause, |left| left.min(pause)));
                    pause = (pause * 2).min(LOOK_AGAIN);
                }
            }
        }
    }

    /// A descriptor that becomes readable when the object at `at` can be another one than `known`
    /// (`None`: no object is valid), for event loops. `None`: it is another one now. Blocks this thread
    /// only where the service must be asked. After the descriptor is readable, look the object up: it
    /// can be the same one.
    ///
    /// # Errors
    /// As [`at`](Self::at); [`ClientError::Event`] if the path does not lie in shared memory, or the
    /// system provides no descriptor or thread.
    pub fn change_event(
        &self,
        at: Timestamp,
        known: Option<ObjectId>,
    ) -> Result<Option<PlaneEvent>, ClientError> {
        let mut pause = FIRST_PAUSE;
        loop {
            let Some((step, notice)) = self.unchanged(at, known, None)? else { return Ok(None) };
            let event = notice.map_err(EventError::Ask);
            let event = event.and_then(|notice| step.change_event(&notice));
            match event {
                Err(EventError::Ask(AskReason::Forked)) => return Err(ClientError::ForkedProcess),
                // The request that was just made has the path published, if that is possible.
                Err(EventError::Ask(_)) if pause < LOOK_AGAIN => {
                    std::thread::sleep(pause);
                    pause *= 4;
                }
                made => return Ok(Some(made?)),
            }
        }
    }

    /// Like [`changed`](Self::changed), without blocking the thread. Dropping the future ends the wait.
    ///
    /// # Errors
    /// As [`at`](Self::at); [`ClientError::Event`] if the system provides no descriptor or thread.
    ///
    /// # Panics
    /// Outside of a tokio runtime with a timer.
    pub async fn changed_async(
        &mut self,
        at: Timestamp,
        known: Option<ObjectId>,
        timeout: Option<Duration>,
    ) -> Result<bool, ClientError> {
        let changed = self.until_changed(at, known);
        let Some(timeout) = timeout else { return changed.await.map(|()| true) };
        let in_time = tokio::time::timeout(timeout, changed).await;
        in_time.map_or(Ok(false), |changed| changed.map(|()| true))
    }

    async fn until_changed(
        &mut self,
        at: Timestamp,
        known: Option<ObjectId>,
    ) -> Result<(), ClientError> {
        let mut pause = FIRST_PAUSE;
        loop {
            let unchanged = self.unchanged_async(at, known).await?;
            let Some((step, notice)) = unchanged else { return Ok(()) };
            let waited = match notice {
                Ok(notice) => wait_change(step, notice).await?,
                Err(reason) => Err(reason),
            };
            match waited {
                Ok(()) => pause = FIRST_PAUSE,
                Err(AskReason::Forked) => return Err(ClientError::ForkedProcess),
                Err(_) => {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LOOK_AGAIN);
                }
            }
        }
    }

    /// One step of a wait until the object at `at` is another one than `known` (`None`: no object is
    /// valid), for callers that must not block their thread. Looks the object up, asks the service if
    /// it does not lie in shared memory, and tells what to wait for.
    ///
    /// # Errors
    /// As [`changed_async`](Self::changed_async).
    ///
    /// # Panics
    /// Outside of a tokio runtime with a timer.
    pub async fn change_step(
        &mut self,
        at: Timestamp,
        known: Option<ObjectId>,
    ) -> Result<ChangeStep, ClientError> {
        let unchanged = self.unchanged_async(at, known).await?;
        let Some((step, notice)) = unchanged else { return Ok(ChangeStep::Changed) };
        match notice.map_err(EventError::Ask).and_then(|notice| step.change_event(&notice)) {
            Ok(event) => Ok(ChangeStep::Event(event)),
            Err(EventError::Ask(AskReason::Forked)) => Err(ClientError::ForkedProcess),
            Err(EventError::Ask(reason)) => Ok(ChangeStep::Ask(reason)),
            Err(error) => Err(error.into()),
        }
    }

    /// Like [`unchanged`](Self::unchanged), without blocking the thread.
    async fn unchanged_async(
        &mut self,
        at: Timestamp,
        known: Option<ObjectId>,
    ) -> Result<Option<(PlaneStep, Noticed)>, ClientError> {
        let step = self.last().of_same_session(&self.path);
        let notice = step.notice();
        let found = match self.try_at(at).map(|view| view.id()) {
            Ok(id) => Some(id),
            Err(AskReason::Forked) => return Err(ClientError::ForkedProcess),
            Err(_) => {
                let asked = self.shared.ask_async(&self.path, vec![at.as_millis()]).await?;
                self.follow_session();
                asked.into_iter().next().flatten().map(|object| object.id)
            }
        };
        Ok((found == known).then_some((step, notice)))
    }

    /// The plane's step with a notice that was taken before the object at `at` was seen to be `known`
    /// still: no change after that is missed. `None`: it is another one.
    fn unchanged(
        &self,
        at: Timestamp,
        known: Option<ObjectId>,
        deadline: Option<Instant>,
    ) -> Result<Option<(&PlaneStep, Noticed)>, ClientError> {
        // Asking can change to a newer session, whose notices are others.
        let step = self.last();
        let notice = step.notice();
        let found = match self.try_at(at) {
            Ok(view) => Some(view.id()),
            Err(reason) => {
                let view = self.ask_one(at, reason, deadline).map_err(|error| *error)?;
                view.map(|view| view.id())
            }
        };
        Ok((found == known).then_some((step, notice)))
    }
}

/// Waits for a change in shared memory, without blocking the thread.
async fn wait_change(
    mut step: PlaneStep,
    notice: ChangeNotice,
) -> Result<Result<(), AskReason>, ClientError> {
    loop {
        let wait = move || {
            let changed = step.wait_change(&notice, Some(Instant::now() + WAIT_SLICE));
            (step, changed)
        };
        let waited = tokio::task::spawn_blocking(wait).await;
        let (same, changed) =
            waited.map_err(|_| ClientError::Closed { what: "wait for a change" })?;
        match changed {
            Ok(false) => step = same,
            Ok(true) => return Ok(Ok(())),
            Err(reason) => return Ok(Err(reason)),
        }
    }
}
