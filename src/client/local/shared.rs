//! State shared by all handles for local look-ups of one client.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;

use crate::client::error::ClientError;
use crate::object::{ObjectId, ObjectPath};
use crate::shm::LocalPlane;
use crate::shm::attach::LeasedBytes;

/// Extra time for an answer of the worker after its limit.
const GRACE: Duration = Duration::from_secs(10);

/// Bytes of an object requested from the service.
#[derive(Debug, Clone)]
pub(super) enum RequestedBytes {
    /// In shared memory, pinned by a lease.
    Leased(Arc<LeasedBytes>),
    /// A copy, from a service on another node.
    Copied(Arc<[u8]>),
}

/// An object requested from the service.
#[derive(Debug, Clone)]
pub(super) struct RequestedObject {
    pub(super) bytes: RequestedBytes,
    pub(super) id: ObjectId,
    /// The version's own validity interval, in milliseconds since the Unix epoch.
    pub(super) validity: (i64, i64),
}

/// Objects of several times, in the given order; `None`: no object is valid.
pub(super) type RequestedObjects = Result<Vec<Option<RequestedObject>>, ClientError>;

/// A question to the worker.
pub(super) struct Question {
    pub(super) path: ObjectPath,
    pub(super) times: Vec<i64>,
    /// Hands the answer to the caller, which may have given up.
    pub(super) answer: Box<dyn FnOnce(RequestedObjects) + Send>,
    /// Ends when the caller has given up.
    pub(super) asker: oneshot::Receiver<Infallible>,
}

/// State shared by all handles.
#[derive(Debug)]
pub(in crate::client) struct LocalShared {
    /// Plane of the worker's session, while it has one.
    pub(super) plane: Arc<ArcSwapOption<LocalPlane>>,
    pub(super) questions: UnboundedSender<Question>,
    /// Time limit of the worker for a question.
    pub(super) patience: Duration,
}

fn closed() -> ClientError {
    ClientError::Closed { what: "connection of the local plane" }
}

fn not_in_time(limit: Duration) -> ClientError {
    ClientError::NotInTime { limit_millis: limit.as_millis() }
}

impl LocalShared {
    /// Sends a question to the worker, which drops it with the returned sender.
    fn send(
        &self,
        path: &ObjectPath,
        times: Vec<i64>,
        answer: impl FnOnce(RequestedObjects) + Send + 'static,
    ) -> Result<oneshot::Sender<Infallible>, ClientError> {
        let (asks, asker) = oneshot::channel();
        let question = Question { path: path.clone(), times, answer: Box::new(answer), asker };
        self.questions.send(question).map_err(|_| closed())?;
        Ok(asks)
    }

    /// Time limit for an answer of the worker.
    fn limit(&self) -> Duration {
        self.patience.saturating_add(GRACE)
    }

    /// Asks the service by the worker, and waits for its answer until `deadline`.
    pub(super) fn ask(
        &self,
        path: &ObjectPath,
        times: Vec<i64>,
        deadline: Option<Instant>,
    ) -> RequestedObjects {
        let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        let limit = left.unwrap_or(Duration::MAX).min(self.limit());
        let (answer, answered) = sync_channel(1);
        let _asks = self.send(path, times, move |objects| {
            let _ = answer.send(objects);
        })?;
        match answered.recv_timeout(limit) {
            Ok(objects) => objects,
            Err(RecvTimeoutError::Disconnected) => Err(closed()),
            Err(RecvTimeoutError::Timeout) => Err(not_in_time(limit)),
        }
    }

    /// Like [`ask`](Self::ask), for a caller in a runtime with a timer.
    pub(super) async fn ask_async(&self, path: &ObjectPath, times: Vec<i64>) -> RequestedObjects {
        let (answer, answered) = oneshot::channel();
        let _asks = self.send(path, times, move |objects| {
            let _ = answer.send(objects);
        })?;
        match tokio::time::timeout(self.limit(), answered).await {
            Ok(Ok(objects)) => objects,
            Ok(Err(_)) => Err(closed()),
            Err(_) => Err(not_in_time(self.limit())),
        }
    }
}
