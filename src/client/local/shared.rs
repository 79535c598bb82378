//! What all handles of the local plane of one client share.

use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
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
#[derive(Debug)]
pub(super) struct Question {
    pub(super) path: ObjectPath,
    pub(super) times: Vec<i64>,
    pub(super) answer: SyncSender<AskedObjects>,
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

impl LocalShared {
    /// Has the worker ask the service. Waits for its answer.
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
