//! Compares the versions of long paths with their files, in the background.
//!
//! ```text
//!  task    rows of the path ─▶ files of these rows changed? ─yes─▶ their folders are read again
//!          (path locked)         (thread of low priority,            (path locked)
//!                                 path not locked)
//! ```

use std::collections::BTreeSet;
use std::io;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{OnceLock, Weak};
use std::time::Instant;

use tokio::sync::{Mutex as AsyncMutex, oneshot};

use super::beneath::Root;
use super::folder::PathFolder;
use super::read_path::ReadPath;
use super::table::Row;
use crate::object::{ObjectId, ObjectPath};
use crate::source::in_place;

/// Number of versions that are compared at a time.
const SLICE_ROWS: usize = 512;
/// Priority of the thread that compares, as of `nice`: it gives way to all others.
const PRIORITY: i32 = 19;

/// Compares paths with their folders.
#[derive(Debug, Default)]
pub(super) struct Sweeper {
    /// To the thread that compares, once it is needed. `None`: the system allows no thread.
    slices: OnceLock<Option<Sender<Slice>>>,
}

/// Rows whose files are to be compared.
#[derive(Debug)]
struct Slice {
    root: Root,
    path: ObjectPath,
    rows: Vec<Row>,
    changed: oneshot::Sender<io::Result<BTreeSet<i64>>>,
}

impl Slice {
    fn compare(self) {
        let folder = PathFolder::open(&self.root, &self.path);
        let changed = folder.map(|folder| match folder {
            Some(folder) => folder.changed(&self.rows),
            None => BTreeSet::new(),
        });
        // The repository may be closed by now.
        let _ = self.changed.send(changed);
    }
}

fn compare_all(slices: &Receiver<Slice>) {
    if let Err(error) = rustix::process::setpriority_process(None, PRIORITY) {
        tracing::debug!(%error, "folders are compared with normal priority");
    }
    slices.iter().for_each(Slice::compare);
}

impl Sweeper {
    fn thread(&self) -> Option<&Sender<Slice>> {
        let started = self.slices.get_or_init(|| {
            let (sender, slices) = mpsc::channel();
            let thread = std::thread::Builder::new().name("iovcache-sweep".to_owned());
            let started = thread.spawn(move || compare_all(&slices));
            if let Err(error) = &started {
                tracing::warn!(%error, "folders are compared with normal priority");
            }
            started.is_ok().then_some(sender)
        });
        started.as_ref()
    }

    /// The `from` of those rows whose files changed.
    async fn changed(
        &self,
        root: &Root,
        path: &ObjectPath,
        rows: Vec<Row>,
    ) -> io::Result<BTreeSet<i64>> {
        let (changed, answer) = oneshot::channel();
        let slice = Slice { root: root.clone(), path: path.clone(), rows, changed };
        match self.thread() {
            // The slice comes back if the thread has ended.
            Some(thread) => {
                if let Err(mpsc::SendError(slice)) = thread.send(slice) {
                    in_place(|| slice.compare());
                }
            }
            None => in_place(|| slice.compare()),
        }
        answer.await.unwrap_or_else(|_| Err(io::Error::other("the comparison was given up")))
    }

    /// Compares all versions of a path, as long as it is kept in memory.
    pub(super) async fn sweep(&self, root: &Root, state: Weak<AsyncMutex<ReadPath>>) {
        let began = Instant::now();
        let result = self.sweep_all(root, &state).await;
        // A path that was dropped in the meantime need not be compared.
        let Some(state) = state.upgrade() else { return };
        let mut state = state.lock().await;
        match result {
            Ok(()) => state.note_swept(began.elapsed()),
            Err(error) => {
                tracing::debug!(path = %state.path, %error, "not compared with its folders");
                state.swept = Some((Instant::now(), began.elapsed()));
            }
        }
    }

    async fn sweep_all(&self, root: &Root, state: &Weak<AsyncMutex<ReadPath>>) -> io::Result<()> {
        let Some(path) = watch_latest(state).await else { return Ok(()) };
        let mut after: Option<(i64, ObjectId)> = None;
        loop {
            let Some(locked) = lock(state).await else { return Ok(()) };
            let rows = in_place(move || {
                let mut state = locked;
                let rows = state.table.rows_after(after, SLICE_ROWS);
                state.watch_all(rows.iter().map(|row| row.from));
                rows
            });
            let Some(last) = rows.last() else { return Ok(()) };
            after = Some((last.from, last.id));
            let changed = self.changed(root, &path, rows).await?;
            if changed.is_empty() {
                continue;
            }
            let Some(mut locked) = lock(state).await else { return Ok(()) };
            let root = root.clone();
            let read = tokio::task::spawn_blocking(move || locked.read_again(&root, changed));
            read.await.unwrap_or_else(|error| Err(io::Error::other(error)))?;
        }
    }
}

/// Locks a path; `None` if it was dropped.
async fn lock(
    state: &Weak<AsyncMutex<ReadPath>>,
) -> Option<tokio::sync::OwnedMutexGuard<ReadPath>> {
    Some(AsyncMutex::lock_owned(state.upgrade()?).await)
}

/// Watches the latest folders of a path. Returns the path, unless it was dropped.
async fn watch_latest(state: &Weak<AsyncMutex<ReadPath>>) -> Option<ObjectPath> {
    let (path, latest) = {
        let state = lock(state).await?;
        (state.path.clone(), state.latest_froms())
    };
    for froms in latest.chunks(SLICE_ROWS) {
        let mut state = lock(state).await?;
        in_place(move || state.watch_all(froms.iter().copied()));
    }
    Some(path)
}
