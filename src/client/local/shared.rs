//! State shared by all handles for local look-ups of one client.

use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
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
pub(super) enum AskedBytes {
    /// In shared memory, pinned by a lease.
    Leased(Arc<LeasedBytes>),
    /// A copy, from a service on another node.
    Copied(Arc<[u8]>),
}

/// An object requested from the service.
#[derive(Debug, Clone)]
pub(super) struct AskedObject {
    pub(super) bytes: AskedBytes,
    pub(super) id: ObjectId,
    /// The version's own validity interval, in milliseconds since the Unix epoch.
    pub(super) validity: (i64, i64),
}

/// Objects of several times, in the given order; `None`: no object is valid.
pub(super) type AskedObjects = Result<Vec<Option<AskedObject>>, ClientError>;

/// A question to the worker.
#[derive(Debug)]
pub(super) struct Question {
    pub(super) path: ObjectPath,
    pub(super) times: Vec<i64>,
    pub(super) answer: SyncSender<AskedObjects>,
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

impl LocalShared {
    /// Asks the service by the worker, and waits for its answer.
    pub(super) fn ask(&self, path: &ObjectPath, times: Vec<i64>) -> AskedObjects {
        let (answer, answered) = sync_channel(1);
        let question = Question { path: path.clone(), times, answer };
        let gone = || ClientError::Closed { what: "connection of the local plane" };
        self.questions.send(question).map_err(|_| gone())?;
        let limit = self.patience.saturating_add(GRACE);
        match answered.recv_timeout(limit) {
            Ok(objects) => objects,
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => Err(gone()),
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {
                Err(ClientError::NotInTime { limit_millis: limit.as_millis() })
            }
        }
    }
}
