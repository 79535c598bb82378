//! Events for event loops: a descriptor instead of a thread that waits.

use super::error::ClientError;
use super::service::Client;
use crate::shm::attach::process_generation;
use crate::shm::{EventError, PlaneEvent};
use crate::table::TableRequest;

impl Client {
    /// A descriptor that becomes readable when a timeframe is no longer being loaded, for event loops
    /// that do not await [`timeframe`](Self::timeframe). It is readable at the end of the session, too.
    /// `None`: there is nothing to wait for in shared memory. Then take the table, or request it.
    ///
    /// ```no_run
    /// # async fn walk(client: iovcache::client::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// while let Some(event) = client.timeframe_event(42).await? {
    ///     // An event loop waits until this is readable.
    ///     let _descriptor = std::os::fd::AsRawFd::as_raw_fd(&event);
    /// }
    /// let table = client.timeframe(42, "tracker").await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`ClientError::Event`] if the system provides no descriptor or thread; those of attaching;
    /// [`ClientError::ForkedProcess`].
    pub async fn timeframe_event(&self, timeframe: u64) -> Result<Option<PlaneEvent>, ClientError> {
        if self.process() != process_generation() {
            return Err(ClientError::ForkedProcess);
        }
        let Some(tables) = self.plane_tables() else { return Ok(None) };
        let session = match self.session().await {
            Some(session) => Some(session),
            None => self.attachment(&TableRequest::new()).await?,
        };
        let Some(plane) = session.and_then(|session| tables.plane_of(&session)) else {
            return Ok(None);
        };
        match plane.timeframe_event(timeframe) {
            Ok(event) => Ok(event),
            // The session is over: the next call opens another one.
            Err(EventError::Ask(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}
