//! State shared by all handles for local look-ups of one client.

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use tokio::sync::mpsc::UnboundedSender;

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

impl LocalShared {
    /// Sends a question to the worker.
    fn send(
        &self,
        path: &ObjectPath,
        times: Vec<i64>,
        answer: impl FnOnce(RequestedObjects) + Send + 'static,
    ) -> Result<(), ClientError> {
        let question = Question { path: path.clone(), times, answer: Box::new(answer) };
        self.questions.send(question).map_err(|_| closed())
    }

    /// Time limit for an answer of the worker.
    fn limit(&self) -> Duration {
        self.patience.saturating_add(GRACE)
    }

    /// Asks the service by the worker, and waits for its answer.
    pub(super) fn ask(&self, path: &ObjectPath, times: Vec<i64>) -> RequestedObjects {
        let (answer, answered) = sync_channel(1);
        self.send(path, times, move |objects| {
            let _ = answer.send(objects);
        })?;
        match answered.recv_timeout(self.limit()) {
            Ok(objects) => objects,
            Err(RecvTimeoutError::Disconnected) => Err(closed()),
            Err(RecvTimeoutError::Timeout) => Err(self.not_in_time()),
        }
    }

    /// Like [`ask`](Self::ask), for a caller in a runtime with a timer.
    pub(super) async fn ask_async(&self, path: &ObjectPath, times: Vec<i64>) -> RequestedObjects {
        let (answer, answered) = tokio::sync::oneshot::channel();
        self.send(path, times, move |objects| {
            let _ = answer.send(objects);
        })?;
        match tokio::time::timeout(self.limit(), answered).await {
            Ok(Ok(objects)) => objects,
            Ok(Err(_)) => Err(closed()),
            Err(_) => Err(self.not_in_time()),
        }
    }

    fn not_in_time(&self) -> ClientError {
        ClientError::NotInTime { limit_millis: self.limit().as_millis() }
    }
}
