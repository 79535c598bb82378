//! Reads a repository in a local folder.
//!
//! ```text
//!  look_up ─▶ path in memory? ──fresh──▶ one window of its table
//!                 │ check due
//!                 ▼
//!      folder of the path changed? ─▶ new and removed folders ─┐
//!      folders of versions changed? ───────────────────────────┴▶ only these are read again
//! ```

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use md5::{Digest as _, Md5};
use tokio::sync::Mutex as AsyncMutex;

use super::beneath::{Root, Stamp};
use super::entry::{self, PROPERTIES, names};
use super::fetch_check::FetchCheck;
use super::folder::{
    FolderVersions, LOCAL_SLACK, PathFolder, is_recent, read_all, read_properties,
};
use super::index::IndexSet;
use super::table::{Metadata, PathTable, Row};
use super::walk;
use super::watch::{PathWatch, Watcher};
use crate::interval::Timestamp;
use crate::object::{Md5Sum, ObjectId, ObjectInfo, ObjectPath, Query};
use crate::source::{
    Body, ChangeListener, Knowledge, PageKey, PathSummary, Problem, SourceError, VersionPage,
    in_place,
};
use crate::sync::Mutex;

/// Maximum number of versions in memory. Beyond it, paths are dropped, least recently used first.
const MAX_ROWS: usize = 4 << 20;
/// Maximum number of paths in memory.
const MAX_PATHS: usize = 100_000;
/// Tables with more rows are searched with `block_in_place`.
const FEW_ROWS: usize = 4096;
/// Maximum size of a read from a file.
const PIECE_BYTES: usize = 1 << 20;
/// Files up to this size are opened and read in one step.
const SMALL_BYTES: u64 = 256 << 10;
/// Maximum number of versions of a path whose files are checked while a request waits. Larger paths
/// are checked in the background.
const SWEPT_AT_ONCE: usize = 20_000;
/// Number of folders of a path that are watched first, the latest ones.
const NEWEST_WATCHED: usize = 4096;
/// Number of versions per step of a background check; between steps the path is unlocked.
const SWEEP_SLICE: usize = 2_000;
/// Pause after a check of all folders of a path, as a multiple of its duration.
const SWEEP_PAUSES: u32 = 10;

/// State shared by the checks of all paths.
#[derive(Debug)]
struct CheckShared {
    root: Root,
    refresh: Duration,
    index: Mutex<IndexSet>,
}

/// A repository in a local folder.
#[derive(Debug)]
pub(super) struct LocalRepository {
    url: String,
    shared: Arc<CheckShared>,
    watcher: Arc<Watcher>,
    paths: Mutex<HashMap<ObjectPath, Arc<PathSlot>>>,
    /// Number of rows of all paths in memory.
    rows: AtomicUsize,
}

/// One path in memory.
#[derive(Debug)]
struct PathSlot {
    used: Mutex<Instant>,
    rows: AtomicUsize,
    state: Arc<AsyncMutex<ReadPath>>,
}

/// Data read for a path.
#[derive(Debug)]
struct ReadPath {
    path: ObjectPath,
    table: PathTable,
    problems: BTreeMap<i64, Vec<Problem>>,
    /// Change time (ns) of the path's folder when it was listed; `None`: it must be listed again.
    listed: Option<i64>,
    /// Folders in which a put is in progress.
    pending: BTreeSet<i64>,
    checked: Option<Instant>,
    /// Time of the last check of the folders of versions, and its duration.
    swept: Option<(Instant, Duration)>,
    /// The folders of versions must be checked in the background, because there are many.
    to_sweep: bool,
    watch: Option<PathWatch>,
    /// Inode of the watched folder.
    watched_inode: u64,
}

impl ReadPath {
    fn new(path: ObjectPath) -> Self {
        Self {
            table: PathTable::new(path.clone()),
            path,
            problems: BTreeMap::new(),
            listed: None,
            pending: BTreeSet::new(),
            checked: None,
            swept: None,
            to_sweep: false,
            watch: None,
            watched_inode: 0,
        }
    }

    fn clear(&mut self) {
        *self = Self::new(self.path.clone());
    }

    /// Takes the contents of the folder of one `from`.
    fn take(&mut self, from: i64, found: FolderVersions) {
        let FolderVersions { read, kept, problems, pending } = found;
        let mut rows = kept;
        for (info, stamp) in read {
            rows.push(self.table.row(info, stamp));
        }
        self.table.replace_folder(from, rows);
        self.note(from, problems, pending);
    }

    fn note(&mut self, from: i64, problems: Vec<Problem>, pending: bool) {
        match problems.is_empty() {
            true => self.problems.remove(&from),
            false => self.problems.insert(from, problems),
        };
        match pending {
            true => self.pending.insert(from),
            false => self.pending.remove(&from),
        };
    }

    /// Reads all changes since the last check.
    fn check(&mut self, shared: &CheckShared, watcher: Option<&Watcher>) -> io::Result<()> {
        let began = Instant::now();
        let root = &shared.root;
        let first = self.checked.is_none();
        let Some(mut folder) = PathFolder::open(root, &self.path)? else {
            self.clear();
            self.checked = Some(began);
            return Ok(());
        };
        let mut changes = self.watch.as_ref().map(PathWatch::take).unwrap_or_default();
        let is_watched = self.watch.as_ref().is_some_and(PathWatch::is_alive);
        let watched = is_watched && self.watched_inode == folder.stamp.inode;
        if !watched || changes.all {
            self.watch = watcher.and_then(|watcher| watcher.watch(root, &self.path));
            // Changes between opening and watching are not reported: the folder is opened again.
            let Some(opened) = PathFolder::open(root, &self.path)? else {
                return self.check(shared, watcher);
            };
            folder = opened;
            self.watched_inode = folder.stamp.inode;
            changes.all |= !first && (is_watched || self.watch.is_some());
        }
        let mut again: BTreeSet<i64> = self.pending.clone();
        again.extend(changes.froms);
        if first {
            self.load(root, &shared.index, &folder);
            self.watch_newest();
        }
        let fresh = first && self.table.len() == 0;
        // While a folder is watched, it is listed only once.
        let listed = match self.watch {
            Some(_) => self.listed.is_some(),
            None => self.listed == Some(folder.stamp.changed_nanos),
        };
        if !listed || changes.all {
            self.list(&folder, &mut again)?;
        }
        let complete = self.watch.as_ref().is_some_and(PathWatch::is_complete);
        let unseen = first || changes.all || !complete;
        if !fresh && unseen && (changes.all || self.is_sweep_due(shared.refresh)) {
            match self.table.len() <= SWEPT_AT_ONCE {
                true => self.sweep(&folder, &mut again),
                false => self.to_sweep = true,
            }
        }
        self.read(&folder, again, fresh)?;
        self.note_listed(&folder);
        self.checked = Some(began);
        Ok(())
    }

    /// Notes that the folder was listed. Without a watch, it is listed again while a later change
    /// could have an equal time.
    fn note_listed(&mut self, folder: &PathFolder) {
        let changed = folder.stamp.changed_nanos;
        let settled = self.watch.is_some() || !is_recent(changed, LOCAL_SLACK);
        self.listed = settled.then_some(changed);
    }

    /// Takes the rows of the index. The path's folder need not be listed if its change time and its
    /// number of subfolders are those of the rows.
    fn load(&mut self, root: &Root, index: &Mutex<IndexSet>, folder: &PathFolder) {
        let mut index = index.lock();
        index.refresh(root);
        if index.is_empty() {
            return;
        }
        let mut rows = Vec::new();
        let mut listed = 0;
        let table = &mut self.table;
        index.for_path(self.path.as_str(), |row| {
            listed = listed.max(row.listed);
            rows.extend(table.indexed(&row));
        });
        self.table.fill(rows);
        let folders = self.table.froms().count() as u64;
        // The links of a folder are its name, its `.`, and the `..` of each subfolder.
        let complete = listed == folder.stamp.changed_nanos && folder.links == folders + 2;
        self.listed = complete.then_some(listed);
    }

    /// Compares the folders on the disk with those in memory.
    fn list(&mut self, folder: &PathFolder, again: &mut BTreeSet<i64>) -> io::Result<()> {
        let (there, odd) = folder.froms(&self.path)?;
        let known: Vec<i64> = self.table.froms().collect();
        let is_there = |from: &i64| there.binary_search(from).is_ok();
        for gone in known.iter().filter(|from| !is_there(from)) {
            self.table.replace_folder(*gone, Vec::new());
            if let Some(watch) = &mut self.watch {
                watch.forget(*gone);
            }
        }
        self.problems.retain(|from, _| is_there(from));
        self.pending.retain(is_there);
        again.retain(is_there);
        again.extend(there.iter().filter(|from| known.binary_search(from).is_err()));
        for (from, problem) in odd {
            self.problems.insert(from, vec![problem]);
        }
        Ok(())
    }

    /// Whether the path's folder must be checked again.
    fn is_check_due(&self, refresh: Duration) -> bool {
        let Some(checked) = self.checked else { return true };
        match &self.watch {
            Some(watch) => watch.has_changes() || checked.elapsed() >= refresh / 2,
            None => checked.elapsed() >= refresh / 5,
        }
    }

    fn is_sweep_due(&self, refresh: Duration) -> bool {
        let due = |(at, took): (Instant, Duration)| {
            at.elapsed() >= refresh.max(took.saturating_mul(SWEEP_PAUSES))
        };
        self.swept.is_none_or(due)
    }

    /// Checks the versions after `after`, up to a limit. Returns the key of the last one if more
    /// follow.
    fn sweep_slice(&mut self, root: &Root, after: Option<PageKey>) -> io::Result<Option<PageKey>> {
        let Some(folder) = PathFolder::open(root, &self.path)? else { return Ok(None) };
        let after = after.map(|(from, id)| (from.as_millis(), id));
        let rows = self.table.rows_after(after, SWEEP_SLICE);
        self.watch_all(rows.iter().map(|row| row.from));
        let again = rows.iter().filter(|row| !folder.is_unchanged(row)).map(|row| row.from);
        let again: BTreeSet<i64> = again.collect();
        if !again.is_empty() {
            // A folder that lost a version may have another that the index did not know.
            self.listed = None;
            self.read(&folder, again, false)?;
        }
        let last = rows.last().filter(|_| rows.len() == SWEEP_SLICE);
        Ok(last.map(|row| (Timestamp::from_millis(row.from), row.id)))
    }

    /// Finds the folders whose files changed.
    fn sweep(&mut self, folder: &PathFolder, again: &mut BTreeSet<i64>) {
        let began = Instant::now();
        if self.watch.is_some() {
            self.watch_all(self.table.froms().collect::<Vec<_>>().into_iter());
        }
        let changed = self.table.iter().filter(|row| !folder.is_unchanged(row));
        again.extend(changed.map(|row| row.from));
        again.extend(self.problems.keys());
        self.swept = Some((began, began.elapsed()));
    }

    /// Watches the folders with the latest `from` before all others: most versions are put there,
    /// and the number of watches is limited.
    fn watch_newest(&mut self) {
        let froms: Vec<i64> = self.table.froms().collect();
        self.watch_all(froms.into_iter().rev().take(NEWEST_WATCHED));
    }

    fn watch_all(&mut self, froms: impl Iterator<Item = i64>) {
        if let Some(watch) = &mut self.watch {
            froms.for_each(|from| watch.watch_versions(from));
        }
    }

    /// Reads folders of versions.
    fn read(&mut self, folder: &PathFolder, again: BTreeSet<i64>, fresh: bool) -> io::Result<()> {
        let froms: Vec<i64> = again.into_iter().collect();
        self.watch_all(froms.iter().copied());
        let table = &self.table;
        let known = |from| table.folder(from);
        let read = read_all(folder, &self.path, &froms, known, LOCAL_SLACK)?;
        if !fresh {
            read.into_iter().for_each(|(from, found)| self.take(from, found));
            return Ok(());
        }
        let mut rows = Vec::with_capacity(read.len());
        for (from, FolderVersions { read, kept, problems, pending }) in read {
            rows.extend(kept);
            for (info, stamp) in read {
                rows.push(self.table.row(info, stamp));
            }
            self.note(from, problems, pending);
        }
        self.table.fill(rows);
        self.swept = Some((Instant::now(), Duration::ZERO));
        Ok(())
    }
}

/// The metadata of a version, read from its properties.
fn read_metadata(root: &Root, path: &ObjectPath, row: &Row) -> io::Result<Metadata> {
    let folder = root.folder(&format!("{path}/{}", row.from))?;
    let name = row.id.to_string();
    let read = read_properties(folder.as_fd(), &format!("{name}{PROPERTIES}"));
    let properties = match read {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // The file has another name: the whole folder is read.
            let path_folder = PathFolder::open(root, path)?;
            let found = path_folder.map(|open| open.versions(path, row.from, &[], LOCAL_SLACK));
            let found = found.transpose()?.unwrap_or_default();
            let mut read = found.read.into_iter();
            return match read.find(|(info, _)| info.id == row.id) {
                Some((info, _)) => Ok(info.metadata),
                None => Err(error),
            };
        }
        read => read?,
    };
    Ok(entry::metadata(&properties))
}

/// Reads the next piece of a file into the room of a body, without marking it as written.
fn read_piece(file: &mut File, body: &mut dyn Body, digest: Option<&mut Md5>) -> io::Result<usize> {
    let spare = body.spare();
    let most = spare.len().min(PIECE_BYTES);
    let count = file.read(&mut spare[..most])?;
    if let Some(digest) = digest {
        digest.update(&spare[..count]);
    }
    Ok(count)
}

impl LocalRepository {
    /// Opens the repository in `folder`.
    ///
    /// # Errors
    /// [`SourceError::Configuration`] if it does not exist or is no folder.
    pub(super) fn open(folder: &Path, refresh: Duration) -> Result<Self, SourceError> {
        let url = format!("file://{}", folder.display());
        let root = Root::open(folder).map_err(|error| SourceError::Configuration {
            url: url.clone(),
            reason: error.to_string(),
        })?;
        let watcher = Watcher::new(&root);
        Ok(Self::new(url, root, refresh, watcher))
    }

    fn new(url: String, root: Root, refresh: Duration, watcher: Watcher) -> Self {
        // Reads the index now rather than with the first request. Errors are logged.
        let mut index = IndexSet::default();
        index.refresh(&root);
        let shared = Arc::new(CheckShared { root, refresh, index: Mutex::new(index) });
        let (paths, rows) = (Mutex::default(), AtomicUsize::new(0));
        Self { url, shared, watcher: Arc::new(watcher), paths, rows }
    }

    pub(super) fn subscribe(&self, listener: ChangeListener) {
        self.watcher.subscribe(listener);
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// The root folder.
    pub(super) fn folder(&self) -> &Path {
        self.shared.root.path()
    }

    /// Drops the data read for `path`, so that the next look-up reads it again.
    pub(super) fn forget(&self, path: &ObjectPath) {
        let mut paths = self.paths.lock();
        let gone = paths.remove(path);
        self.rows.fetch_sub(gone.map_or(0, |slot| slot.rows.load(Relaxed)), Relaxed);
    }

    /// The folders directly beneath `path` (`""`: the root) that can be, or contain, paths; sorted.
    pub(super) async fn subfolders(&self, path: &str) -> Result<Vec<String>, SourceError> {
        let (root, name) = (self.shared.root.clone(), path.to_owned());
        self.blocking(path, move || walk::subfolders(&root, &name)).await
    }

    fn failed(&self, what: &str, error: &io::Error) -> SourceError {
        let (url, what, mut reason) = (self.url.clone(), what.to_owned(), error.to_string());
        if error.kind() == io::ErrorKind::PermissionDenied {
            return SourceError::NotAllowed { url, what, reason };
        }
        if !self.shared.root.path().is_dir() {
            reason = format!("the folder {} is not there", self.shared.root.path().display());
        }
        SourceError::Down { url, what, reason }
    }

    /// Runs blocking work on a blocking thread.
    async fn blocking<T: Send + 'static>(
        &self,
        what: &str,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> Result<T, SourceError> {
        let done = tokio::task::spawn_blocking(work).await;
        done.unwrap_or_else(|error| Err(io::Error::other(error)))
            .map_err(|error| self.failed(what, &error))
    }

    /// The state of a path, created if necessary.
    fn slot(&self, path: &ObjectPath) -> Arc<PathSlot> {
        let mut paths = self.paths.lock();
        let slot = paths.entry(path.clone()).or_insert_with(|| {
            Arc::new(PathSlot {
                used: Mutex::new(Instant::now()),
                rows: Default::default(),
                state: Arc::new(AsyncMutex::new(ReadPath::new(path.clone()))),
            })
        });
        *slot.used.lock() = Instant::now();
        Arc::clone(slot)
    }

    /// Records the number of rows of a path, and drops the least recently used paths if there are
    /// too many. A path without any version is not kept, because clients can ask for arbitrary
    /// paths.
    fn settle(&self, path: &ObjectPath, slot: &PathSlot, rows: usize) {
        let mut paths = self.paths.lock();
        // A path that was dropped in the meantime no longer counts.
        if !paths.get(path).is_some_and(|known| std::ptr::eq(&**known, slot)) {
            return;
        }
        let before = slot.rows.swap(rows, Relaxed);
        self.rows.fetch_add(rows, Relaxed);
        self.rows.fetch_sub(before, Relaxed);
        if rows == 0 {
            paths.remove(path);
            return;
        }
        if paths.len() <= MAX_PATHS && self.rows.load(Relaxed) <= MAX_ROWS {
            return;
        }
        let used = |slot: &PathSlot| *slot.used.lock();
        let mut by_use: Vec<(Instant, ObjectPath)> =
            paths.iter().map(|(path, slot)| (used(slot), path.clone())).collect();
        by_use.sort_unstable();
        for (_, oldest) in by_use.into_iter().filter(|(_, other)| other != path) {
            if paths.len() <= MAX_PATHS * 3 / 4 && self.rows.load(Relaxed) <= MAX_ROWS * 3 / 4 {
                break;
            }
            let gone = paths.remove(&oldest);
            self.rows.fetch_sub(gone.map_or(0, |slot| slot.rows.load(Relaxed)), Relaxed);
        }
    }

    /// Calls `use_it` with the path's state, checked again if that is due.
    async fn with_path<T>(
        &self,
        path: &ObjectPath,
        use_it: impl FnOnce(&mut ReadPath) -> T,
    ) -> Result<T, SourceError> {
        let slot = self.slot(path);
        let mut state = Arc::clone(&slot.state).lock_owned().await;
        // Another task may have checked it in the meantime.
        if state.is_check_due(self.shared.refresh) {
            let (shared, watcher) = (Arc::clone(&self.shared), Arc::clone(&self.watcher));
            let checked = self.blocking(path.as_str(), move || {
                let checked = state.check(&shared, Some(&watcher));
                Ok((state, checked))
            });
            let (checked_state, checked) = checked.await?;
            state = checked_state;
            if let Err(error) = checked {
                // Reported changes that were not read are not reported again: everything is read
                // anew.
                state.clear();
                self.settle(path, &slot, 0);
                return Err(self.failed(path.as_str(), &error));
            }
            let rows = state.table.len() + state.problems.len();
            self.settle(path, &slot, rows);
            if std::mem::take(&mut state.to_sweep) {
                // Prevents a second check until this one is finished.
                state.swept = Some((Instant::now(), Duration::MAX));
                self.sweep_in_background(&slot);
            }
        }
        match state.table.len() > FEW_ROWS || state.table.reads_files() {
            true => Ok(in_place(|| use_it(&mut state))),
            false => Ok(use_it(&mut state)),
        }
    }

    fn sweep_in_background(&self, slot: &PathSlot) {
        let (root, state) = (self.shared.root.clone(), Arc::downgrade(&slot.state));
        tokio::task::spawn_blocking(move || {
            let began = Instant::now();
            let mut after = None;
            loop {
                // A path that was dropped in the meantime need not be checked.
                let Some(state) = state.upgrade() else { return };
                let mut state = state.blocking_lock();
                match state.sweep_slice(&root, after) {
                    Ok(Some(last)) => after = Some(last),
                    done => {
                        if let Err(error) = done {
                            tracing::debug!(path = %state.path, %error, "not checked");
                        }
                        state.swept = Some((Instant::now(), began.elapsed()));
                        return;
                    }
                }
            }
        });
    }

    pub(super) async fn look_up(
        &self,
        query: &Query,
        at: Timestamp,
    ) -> Result<Knowledge, SourceError> {
        let root = &self.shared.root;
        let found = self.with_path(&query.path, |state| {
            let read = |row: &Row| read_metadata(root, &query.path, row);
            let window = state.table.window(query, at.as_millis(), &read);
            let problems = state.problems.values().flatten().cloned().collect();
            (window, problems)
        });
        let (window, problems) = found.await?;
        let window = window.map_err(|error| self.failed(query.path.as_str(), &error))?;
        Ok(Knowledge { span: window.span, versions: window.versions, problems, stale: false })
    }

    pub(super) async fn list_page(
        &self,
        query: &Query,
        after: Option<PageKey>,
        limit: usize,
    ) -> Result<VersionPage, SourceError> {
        let root = &self.shared.root;
        let key = after.map(|(from, id)| (from.as_millis(), id));
        let found = self.with_path(&query.path, |state| {
            let read = |row: &Row| read_metadata(root, &query.path, row);
            let page = state.table.page(query, key, limit, &read);
            let problems: Vec<Problem> = match key {
                None => state.problems.values().flatten().cloned().collect(),
                Some(_) => Vec::new(),
            };
            (page, problems)
        });
        let (page, problems) = found.await?;
        let page = page.map_err(|error| self.failed(query.path.as_str(), &error))?;
        let (versions, more) = page;
        Ok(VersionPage { versions, problems, more, whole: true })
    }

    /// The version as described by this repository.
    pub(super) async fn find(
        &self,
        path: &ObjectPath,
        from: Timestamp,
        id: ObjectId,
    ) -> Result<Option<ObjectInfo>, SourceError> {
        let root = &self.shared.root;
        let found = self.with_path(path, |state| {
            let read = |row: &Row| read_metadata(root, path, row);
            let row = state.table.find(from.as_millis(), id)?;
            state.table.info(row, &read).transpose()
        });
        found.await?.transpose().map_err(|error| self.failed(path.as_str(), &error))
    }

    /// Opens the bytes of a version.
    fn open_blob(&self, own: &ObjectInfo) -> io::Result<(File, Stamp)> {
        let folder = format!("{}/{}", own.path, own.validity.from());
        let mut opened = Err(io::Error::from(io::ErrorKind::NotFound));
        for name in names(own.id, &own.metadata) {
            opened = self.shared.root.file(&format!("{folder}/{name}"));
            if !matches!(&opened, Err(error) if error.kind() == io::ErrorKind::NotFound) {
                break;
            }
        }
        opened
    }

    pub(super) async fn fetch(
        &self,
        version: &ObjectInfo,
        body: &mut dyn Body,
    ) -> Result<(), SourceError> {
        let fetch = FetchCheck { url: &self.url, version };
        let own = self.find(&version.path, version.validity.from(), version.id);
        let own = own.await?.ok_or_else(|| fetch.gone())?;
        fetch.check_same(&own)?;
        let expected = own.size_bytes.unwrap_or(0);
        // Small files are opened and read in one step.
        let small = (1..=SMALL_BYTES).contains(&expected);
        if small {
            body.reserve(expected).await.map_err(|error| fetch.no_body(error))?;
        }
        // The digest of a small file can be computed by the body, together with others.
        let mut digest = (!small || !body.hashes()).then(Md5::new);
        let opened = in_place(|| {
            let (mut file, stamp) = self.open_blob(&own)?;
            let count = match small && stamp.size_bytes == expected {
                true => read_piece(&mut file, body, digest.as_mut())?,
                false => 0,
            };
            Ok((file, stamp.size_bytes, count))
        });
        let (mut file, size, count) = opened.map_err(|error| self.not_opened(&fetch, &error))?;
        if own.size_bytes != Some(size) {
            return Err(fetch.unusable(format!("it has {size} bytes, expected {expected}")));
        }
        if !small {
            body.reserve(size).await.map_err(|error| fetch.no_body(error))?;
        }
        body.advance(count);
        while !body.spare().is_empty() {
            match in_place(|| read_piece(&mut file, body, digest.as_mut())) {
                Ok(0) => break,
                Ok(count) => body.advance(count),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.failed(&fetch.what(), &error)),
            }
        }
        fetch.check_written(body, size)?;
        let md5 = match digest {
            Some(digest) => Some(Md5Sum(digest.finalize().into())),
            None => body.md5().await,
        };
        fetch.finish(body, &own, md5)
    }

    fn not_opened(&self, fetch: &FetchCheck<'_>, error: &io::Error) -> SourceError {
        match error.kind() {
            io::ErrorKind::NotFound if self.shared.root.path().is_dir() => fetch.gone(),
            io::ErrorKind::InvalidData => fetch.unusable(error.to_string()),
            _ => self.failed(&fetch.what(), error),
        }
    }

    pub(super) async fn paths(&self, prefix: &str) -> Result<Vec<PathSummary>, SourceError> {
        let (shared, start) = (Arc::clone(&self.shared), prefix.to_owned());
        let counted = self.blocking(prefix, move || {
            let counts = {
                let mut index = shared.index.lock();
                index.refresh(&shared.root);
                index.counts(&start)
            };
            walk::summaries(&shared.root, &start, &counts)
        });
        counted.await
    }
}

/// The ids of all versions of a path, each with its `from` (ms).
///
/// # Errors
/// If the folders cannot be read.
pub(super) fn ids(root: &Root, path: &ObjectPath) -> io::Result<HashMap<ObjectId, i64>> {
    let mut state = ReadPath::new(path.clone());
    let (root, index) = (root.clone(), Mutex::default());
    state.check(&CheckShared { root, refresh: Duration::ZERO, index }, None)?;
    Ok(state.table.iter().map(|row| (row.id, row.from)).collect())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::interval::ValidityInterval;
    use crate::source::repository::{NewVersion, RepositoryWriter};

    const REFRESH: Duration = Duration::from_millis(200);

    fn path() -> ObjectPath {
        ObjectPath::new("A/B").unwrap()
    }

    fn put(root: &Path, from: i64, created: i64) -> ObjectInfo {
        let [from, until, created] = [from, from + 10, created].map(Timestamp::from_millis);
        let version = NewVersion {
            path: path(),
            validity: ValidityInterval::new(from, until).unwrap(),
            created,
            id: None,
            file_name: String::new(),
            metadata: BTreeMap::new(),
        };
        let writer = RepositoryWriter::new(root).unwrap();
        writer.put(&version, &mut &b"bytes"[..]).unwrap().info
    }

    async fn listed(repository: &LocalRepository) -> Vec<(i64, i64, i64)> {
        let page = repository.list_page(&Query::all(path()), None, usize::MAX).await.unwrap();
        let versions = page.versions.iter().map(|info| {
            let [from, until] = [info.validity.from(), info.validity.until()];
            (from.as_millis(), until.as_millis(), info.created.as_millis())
        });
        let mut all: Vec<_> = versions.collect();
        all.sort_unstable();
        all
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn with_few_watches_a_change_of_the_latest_folders_is_seen_at_once() {
        let folder = tempfile::tempdir().unwrap();
        crate::source::repository::index(folder.path(), false, |_, _| {}).unwrap();
        for n in 0..30 {
            put(folder.path(), n * 100, 1);
        }
        let root = Root::open(folder.path()).unwrap();
        let watcher = Watcher::limited(&root, 10);
        let never = Duration::from_secs(3600);
        let repository = LocalRepository::new(String::new(), root, never, watcher);
        assert_eq!(listed(&repository).await.len(), 30);
        put(folder.path(), 2800, 2);
        let began = Instant::now();
        while listed(&repository).await.len() != 31 {
            assert!(began.elapsed() < Duration::from_secs(5), "it is not seen");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// As on a network file system, on which the kernel does not see the changes of others.
    #[tokio::test(flavor = "multi_thread")]
    async fn without_watches_each_kind_of_change_is_found_within_refresh() {
        let folder = tempfile::tempdir().unwrap();
        put(folder.path(), 0, 1);
        let root = Root::open(folder.path()).unwrap();
        let repository = LocalRepository::new(String::new(), root, REFRESH, Watcher::none());
        assert_eq!(listed(&repository).await, [(0, 10, 1)]);
        let is_found = async |expected: &[(i64, i64, i64)], what: &str| {
            let began = Instant::now();
            while listed(&repository).await != expected {
                assert!(began.elapsed() < REFRESH + Duration::from_secs(1), "{what}");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let other = put(folder.path(), 100, 2);
        is_found(&[(0, 10, 1), (100, 110, 2)], "a new folder").await;
        put(folder.path(), 0, 3);
        is_found(&[(0, 10, 1), (0, 10, 3), (100, 110, 2)], "a version in a known folder").await;
        let place = folder.path().join("A/B/100").join(format!("{}.properties", other.id));
        let text = fs::read_to_string(&place).unwrap();
        fs::write(&place, text.replace("ValidUntil=110", "ValidUntil=109")).unwrap();
        is_found(&[(0, 10, 1), (0, 10, 3), (100, 109, 2)], "changed properties").await;
        fs::remove_dir_all(folder.path().join("A/B/100")).unwrap();
        is_found(&[(0, 10, 1), (0, 10, 3)], "a removed folder").await;
        fs::rename(folder.path().join("A/B"), folder.path().join("A/C")).unwrap();
        is_found(&[], "a path that was renamed").await;
    }
}
