//! Watches the folders of paths in memory for changes (inotify).
//!
//! ```text
//!  folder of a path: a folder was created or removed ────────────▶ Changes: this `from`
//!  folder of a `from`: a file was created, removed or written ───▶ Changes: this `from`
//!  overflow, or the folder was moved or removed ─────────────────▶ Changes: all
//! ```
//!
//! Without changes there is no work. Where watches are not available (network file systems,
//! limits), folders are compared by their change times.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;

use super::beneath::Root;
use super::folder::from_of;
use crate::object::ObjectPath;
use crate::source::ChangeListener;
use crate::sync::Mutex;

/// Maximum number of watches per repository. Each takes about 1 KiB of kernel memory.
const MAX_WATCHES: usize = 16_384;
/// Divisor of the user's limit of watches: one repository takes at most this fraction.
const WATCHES_SHARE: usize = 4;
/// Maximum number of single changes kept per path. Beyond it, the whole path is compared.
const MAX_CHANGES: usize = 65_536;
/// Shortest pause between two notifications: changes in between are reported together.
const NOTIFY_PAUSE: Duration = Duration::from_millis(20);
/// The pause after a burst of changes. Versions that are put together then mostly stand in the index
/// when their folders are read, once instead of several times.
const BURST_PAUSE: Duration = Duration::from_millis(80);
/// Minimum number of events of a burst.
const BURST_EVENTS: usize = 256;
const BUFFER_BYTES: usize = 64 << 10;

/// File systems on which the kernel does not see changes made by other machines (`statfs`).
const NETWORK: [i64; 12] = [
    0x6969,      // NFS
    0x517b,      // SMB
    0xff53_4d42, // CIFS
    0xfe53_4d42, // SMB2
    0x6573_5546, // FUSE: sshfs, EOS, CVMFS, GlusterFS, …
    0x0bd0_0bd0, // Lustre
    0x4750_4653, // GPFS
    0x00c3_6400, // Ceph
    0x5346_414f, // AFS
    0x7461_636f, // OCFS2
    0x0102_1997, // 9P
    0x1980_0202, // BeeGFS
];

/// Changes of a path since the last call of [`PathWatch::take`].
#[derive(Debug, Default)]
pub(super) struct Changes {
    pub(super) froms: BTreeSet<i64>,
    /// The changes are not known in detail: the whole path must be compared.
    pub(super) all: bool,
}

/// A watched path, and its changes.
#[derive(Debug)]
struct WatchedPath {
    path: ObjectPath,
    changes: Mutex<Changes>,
}

/// All watches by their descriptor, in 25 B each: there are many.
#[derive(Debug, Default)]
struct WatchTable {
    /// Watches of the folders of paths.
    paths: HashMap<i32, Weak<WatchedPath>>,
    /// Watches of folders of versions, each with its `from`.
    versions: HashMap<i32, (Weak<WatchedPath>, i64)>,
}

impl WatchTable {
    fn len(&self) -> usize {
        self.paths.len() + self.versions.len()
    }

    /// The path of a watch, and the `from` if the watch is that of a folder of versions.
    fn get(&self, descriptor: i32) -> Option<(&Weak<WatchedPath>, Option<i64>)> {
        let of_versions = || {
            let (path, from) = self.versions.get(&descriptor)?;
            Some((path, Some(*from)))
        };
        of_versions().or_else(|| Some((self.paths.get(&descriptor)?, None)))
    }

    /// Adds a watch. The kernel gives a folder that is watched already its descriptor again.
    fn insert(&mut self, descriptor: i32, path: Weak<WatchedPath>, from: Option<i64>) {
        self.remove(descriptor);
        match from {
            Some(from) => drop(self.versions.insert(descriptor, (path, from))),
            None => drop(self.paths.insert(descriptor, path)),
        }
    }

    fn remove(&mut self, descriptor: i32) {
        if self.versions.remove(&descriptor).is_none() {
            self.paths.remove(&descriptor);
        }
    }

    /// Each watched path.
    fn all_paths(&self) -> impl Iterator<Item = Arc<WatchedPath>> {
        let paths = self.paths.values().chain(self.versions.values().map(|(path, _)| path));
        paths.filter_map(Weak::upgrade)
    }
}

#[derive(Debug)]
struct WatchShared {
    inotify: OwnedFd,
    limit: usize,
    watched: Mutex<WatchTable>,
    listeners: Mutex<Vec<WatchListener>>,
    ended: AtomicBool,
}

struct WatchListener(ChangeListener);

impl fmt::Debug for WatchListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Listener")
    }
}

/// The watches of a repository.
#[derive(Debug)]
pub(super) struct Watcher {
    /// `None` if the kernel does not see all changes.
    shared: Option<Arc<WatchShared>>,
    started: OnceLock<()>,
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let Some(shared) = &self.shared else { return };
        shared.ended.store(true, Ordering::Release);
        // Removing a watch is an event, which wakes the thread.
        let watch = inotify::add_watch(&shared.inotify, "/", WatchFlags::DELETE_SELF);
        if let Ok(watch) = watch {
            let _ = inotify::remove_watch(&shared.inotify, watch);
        }
    }
}

impl Watcher {
    /// Watcher for a repository. It creates no watches on file systems where they are useless.
    pub(super) fn new(root: &Root) -> Self {
        let shared = Self::try_new(root).unwrap_or_else(|error| {
            tracing::info!(%error, "changes of a repository are found by comparing");
            None
        });
        Self { shared: shared.map(Arc::new), started: OnceLock::new() }
    }

    /// A watcher without watches.
    #[cfg(test)]
    pub(super) fn none() -> Self {
        Self { shared: None, started: OnceLock::new() }
    }

    /// A watcher with at most `limit` watches.
    #[cfg(test)]
    pub(super) fn limited(root: &Root, limit: usize) -> Self {
        let shared = Self::try_new(root).unwrap().map(|shared| WatchShared { limit, ..shared });
        Self { shared: shared.map(Arc::new), started: OnceLock::new() }
    }

    fn try_new(root: &Root) -> io::Result<Option<WatchShared>> {
        let kind = rustix::fs::fstatfs(root.descriptor()?)?.f_type;
        if NETWORK.contains(&kind) {
            return Ok(None);
        }
        let inotify = inotify::init(CreateFlags::CLOEXEC)?;
        let most = std::fs::read_to_string("/proc/sys/fs/inotify/max_user_watches");
        let most = most.ok().and_then(|text| text.trim().parse::<usize>().ok());
        let limit = most.map_or(MAX_WATCHES, |most| (most / WATCHES_SHARE).min(MAX_WATCHES));
        let (watched, listeners) = (Mutex::default(), Mutex::default());
        Ok(Some(WatchShared { inotify, limit, watched, listeners, ended: AtomicBool::new(false) }))
    }

    /// Registers `listener`, which is called with the paths that changed.
    pub(super) fn subscribe(&self, listener: ChangeListener) {
        if let Some(shared) = &self.shared {
            shared.listeners.lock().push(WatchListener(listener));
        }
    }

    /// Begins to watch a path; `None` if watches are not available.
    pub(super) fn watch(&self, root: &Root, path: &ObjectPath) -> Option<PathWatch> {
        let shared = self.shared.as_ref().filter(|shared| !shared.ended.load(Ordering::Acquire))?;
        let changes = Mutex::default();
        let mut watch = PathWatch {
            folder: root.path().join(path.as_str()),
            watched: Arc::new(WatchedPath { path: path.clone(), changes }),
            shared: Arc::clone(shared),
            own: None,
            versions: BTreeMap::new(),
            complete: true,
        };
        watch.own = Some(watch.add(None).ok()?);
        self.started.get_or_init(|| {
            let shared = Arc::clone(shared);
            let thread = std::thread::Builder::new().name("iovcache-watch".to_owned());
            let listening = thread.spawn(move || {
                if let Err(error) = listen(&shared) {
                    tracing::warn!(%error, "changes of a repository are not told any more");
                    shared.give_up();
                }
            });
            if let Err(error) = listening {
                self.shared.iter().for_each(|shared| shared.give_up());
                tracing::warn!(%error, "changes of a repository are found by comparing");
            }
        });
        Some(watch)
    }
}

/// The watches of one path. They are removed on drop.
#[derive(Debug)]
pub(super) struct PathWatch {
    folder: std::path::PathBuf,
    watched: Arc<WatchedPath>,
    shared: Arc<WatchShared>,
    own: Option<i32>,
    versions: BTreeMap<i64, i32>,
    /// Whether the folder of every `from` is watched.
    complete: bool,
}

impl Drop for PathWatch {
    fn drop(&mut self) {
        let versions = self.versions.iter().map(|(from, descriptor)| (Some(*from), *descriptor));
        for (from, descriptor) in self.own.map(|own| (None, own)).into_iter().chain(versions) {
            self.remove(from, descriptor);
        }
    }
}

impl PathWatch {
    fn add(&self, from: Option<i64>) -> io::Result<i32> {
        let mut watched = self.shared.watched.lock();
        if watched.len() >= self.shared.limit {
            return Err(Errno::NOSPC.into());
        }
        let flags = WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::ONLYDIR
            | WatchFlags::DONT_FOLLOW
            | WatchFlags::EXCL_UNLINK;
        let (folder, flags) = match from {
            None => (self.folder.clone(), flags),
            Some(from) => (self.folder.join(from.to_string()), flags | WatchFlags::CLOSE_WRITE),
        };
        let folder: &Path = &folder;
        let descriptor = inotify::add_watch(&self.shared.inotify, folder, flags)?;
        watched.insert(descriptor, Arc::downgrade(&self.watched), from);
        Ok(descriptor)
    }

    /// Whether a watch is that of this folder. A folder has only one watch, which belongs to the place
    /// where it was found last.
    fn is_of(&self, watched: &WatchTable, descriptor: i32, from: Option<i64>) -> bool {
        let is_own = |path: &Weak<WatchedPath>| std::ptr::eq(path.as_ptr(), &*self.watched);
        watched.get(descriptor).is_some_and(|(path, of)| is_own(path) && of == from)
    }

    /// Removes the watch of a folder, unless it belongs to another one by now.
    fn remove(&self, from: Option<i64>, descriptor: i32) {
        let mut watched = self.shared.watched.lock();
        if self.is_of(&watched, descriptor, from) {
            watched.remove(descriptor);
            let _ = inotify::remove_watch(&self.shared.inotify, descriptor);
        }
    }

    /// Watches the folder of a `from`. Call it before reading the folder.
    pub(super) fn watch_versions(&mut self, from: i64) {
        // A watch ends with its folder, or when that is moved. A new folder of this name needs a new
        // watch.
        let is_alive = |known: &i32| self.is_of(&self.shared.watched.lock(), *known, Some(from));
        if self.versions.get(&from).is_some_and(is_alive) {
            return;
        }
        match self.add(Some(from)) {
            Ok(descriptor) => drop(self.versions.insert(from, descriptor)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(_) => self.complete = false,
        }
    }

    /// Removes the watch of the folder of a `from` that no longer exists.
    pub(super) fn forget(&mut self, from: i64) {
        if let Some(descriptor) = self.versions.remove(&from) {
            self.remove(Some(from), descriptor);
        }
    }

    /// Whether changes are reported.
    pub(super) fn is_alive(&self) -> bool {
        !self.shared.ended.load(Ordering::Acquire)
    }

    /// Whether the folder of every `from` is watched.
    pub(super) fn is_complete(&self) -> bool {
        self.complete
    }

    /// Takes the changes since the last call.
    pub(super) fn take(&self) -> Changes {
        std::mem::take(&mut *self.watched.changes.lock())
    }

    /// Whether there were changes since the last [`take`](Self::take).
    pub(super) fn has_changes(&self) -> bool {
        let changes = self.watched.changes.lock();
        changes.all || !changes.froms.is_empty()
    }
}

/// Reads events until the watcher is dropped.
fn listen(shared: &WatchShared) -> io::Result<()> {
    let mut buffer = vec![MaybeUninit::<u8>::uninit(); BUFFER_BYTES];
    let mut reader = Reader::new(shared.inotify.as_fd(), &mut buffer);
    loop {
        let mut changed = HashSet::new();
        let mut events = 0;
        loop {
            match reader.next() {
                Ok(event) => {
                    events += 1;
                    let name = event.file_name().and_then(|name| name.to_str().ok());
                    shared.take(event.wd(), event.events(), name, &mut changed);
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            if reader.is_buffer_empty() {
                break;
            }
        }
        if shared.ended.load(Ordering::Acquire) {
            return Ok(());
        }
        if !changed.is_empty() {
            let listeners: Vec<ChangeListener> =
                shared.listeners.lock().iter().map(|listener| Arc::clone(&listener.0)).collect();
            listeners.iter().for_each(|listener| listener(&changed));
            // Events during the pause are read together.
            std::thread::sleep(if events < BURST_EVENTS { NOTIFY_PAUSE } else { BURST_PAUSE });
        }
    }
}

impl WatchShared {
    /// Marks all paths as changed, and ends the watching.
    fn give_up(&self) {
        self.ended.store(true, Ordering::Release);
        for path in self.watched.lock().all_paths() {
            path.changes.lock().all = true;
        }
    }

    /// Handles one event.
    fn take(
        &self,
        descriptor: i32,
        events: ReadFlags,
        name: Option<&str>,
        changed: &mut HashSet<ObjectPath>,
    ) {
        let mut watched = self.watched.lock();
        if events.contains(ReadFlags::QUEUE_OVERFLOW) {
            for path in watched.all_paths() {
                path.note(changed, |changes| changes.all = true);
            }
            return;
        }
        let Some((path, from)) = watched.get(descriptor) else { return };
        let gone =
            ReadFlags::IGNORED | ReadFlags::UNMOUNT | ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF;
        if let Some(path) = path.upgrade() {
            match from {
                // Unfinished files have names with a dot, which readers ignore.
                Some(_) if name.is_some_and(|name| name.starts_with('.')) => {}
                Some(from) => path.note(changed, |changes| changes.note(from)),
                None if events.intersects(gone) => path.note(changed, |changes| changes.all = true),
                None => {
                    if let Some(from) = name.and_then(from_of) {
                        path.note(changed, |changes| changes.note(from));
                    }
                }
            }
        }
        // The watch of a folder moves with it. What its name stands for later needs one of its own.
        let is_moved = from.is_some() && events.contains(ReadFlags::MOVE_SELF);
        if is_moved {
            let _ = inotify::remove_watch(&self.inotify, descriptor);
        }
        if is_moved || events.contains(ReadFlags::IGNORED) {
            watched.remove(descriptor);
        }
    }
}

impl Changes {
    fn note(&mut self, from: i64) {
        self.froms.insert(from);
        if self.froms.len() > MAX_CHANGES {
            self.froms.clear();
            self.all = true;
        }
    }
}

impl WatchedPath {
    /// Notes a change, and adds the path to `changed`.
    fn note(&self, changed: &mut HashSet<ObjectPath>, note: impl FnOnce(&mut Changes)) {
        note(&mut self.changes.lock());
        if !changed.contains(&self.path) {
            changed.insert(self.path.clone());
        }
    }
}
