//! What all handles of the local plane of one client share.

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use tokio::sync::mpsc::UnboundedSender;

use crate::client::error::ClientError;
use crate::object::{ObjectId, ObjectPath};
use crate::shm::LocalPlane;
use crate::shm::attach::LeasedBytes;

/// How much later than its limit an answer of the worker may come.
const GRACE: Duration = Duration::from_secs(10);

/// The bytes of an object that the service was asked for.
#[derive(Debug, Clone)]
pub(super) enum AskedBytes {
    /// In shared memory, pinned by a lease.
    Leased(Arc<LeasedBytes>),
    /// From a service on another node.
    Copied(Arc<[u8]>),
}

/// An object that the service was asked for.
#[derive(Debug, Clone)]
pub(super) struct AskedObject {
    pub(super) bytes: AskedBytes,
    pub(super) id: ObjectId,
    /// The version's own validity interval, in milliseconds.
    pub(super) validity: (i64, i64),
}

/// The objects of some times, in their order; `None`: nothing is valid.
pub(super) type AskedObjects = Result<Vec<Option<AskedObject>>, ClientError>;

/// A question to the worker.
pub(super) struct Question {
    pub(super) path: ObjectPath,
    pub(super) times: Vec<i64>,
    /// Hands the answer to the caller, which may have given up.
    pub(super) answer: Box<dyn FnOnce(AskedObjects) + Send>,
}

/// What all handles share.
#[derive(Debug)]
pub(in crate::client) struct LocalShared {
    /// That of the worker's session, as long as it has one.
    pub(super) plane: Arc<ArcSwapOption<LocalPlane>>,
    pub(super) questions: UnboundedSender<Question>,
    /// How long the worker may take for a question.
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
        answer: impl FnOnce(AskedObjects) + Send + 'static,
    ) -> Result<(), ClientError> {
        let question = Question { path: path.clone(), times, answer: Box::new(answer) };
        self.questions.send(question).map_err(|_| closed())
    }

    /// Time limit for an answer of the worker.
    fn limit(&self) -> Duration {
        self.patience.saturating_add(GRACE)
    }

    /// Has the worker ask the service. Blocks until it answers.
    pub(super) fn ask(&self, path: &ObjectPath, times: Vec<i64>) -> AskedObjects {
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

    /// Has the worker ask the service, for a caller in a runtime with a timer.
    pub(super) async fn ask_async(&self, path: &ObjectPath, times: Vec<i64>) -> AskedObjects {
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
