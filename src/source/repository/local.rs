//! Reads a repository in a local folder.
//!
//! ```text
//!  look_up ─▶ path in memory? ──fresh──▶ one window of its table
//!                 │ check due
//!                 ▼
//!             read_path: changed folders are read again
//!  fetch ───▶ blob: bytes and their digest
//! ```

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use futures::{StreamExt as _, stream};
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

use super::beneath::Root;
use super::blob::{BlobError, read_blob};
use super::change;
use super::fetch_check::FetchCheck;
use super::folders::FolderCache;
use super::index::IndexSet;
use super::newest;
use super::path_list::PathList;
use super::read_path::{CheckShared, ReadPath, read_metadata};
use super::sweep::Sweeper;
use super::table::Row;
use super::watch::Watcher;
use crate::interval::Timestamp;
use crate::object::{ObjectId, ObjectInfo, ObjectPath, Query};
use crate::source::{
    Body, ChangeListener, Details, Knowledge, PageKey, PathParts, Problem, SourceError,
    VersionPage, in_place,
};
use crate::sync::Mutex;

/// Number of versions of a path whose properties are read one after another, before the index is
/// read for further ones.
const READ_EACH: u32 = 32;

/// Bounds of the paths kept in memory. Dropped paths are read again when they are requested: the
/// index and the folders have them.
#[derive(Debug, Clone, Copy)]
struct KeptLimits {
    /// Maximum number of versions. Beyond it, paths are dropped, least recently used first.
    rows: usize,
    /// Maximum number of paths.
    paths: usize,
    /// A path without a request for this long is dropped, and its watches with it.
    unused: Duration,
}

impl KeptLimits {
    const DEFAULT: Self =
        Self { rows: 4 << 20, paths: 100_000, unused: Duration::from_secs(15 * 60) };
}

/// Tables with more rows are searched with `block_in_place`.
const FEW_ROWS: usize = 4096;

/// A repository in a local folder.
#[derive(Debug)]
pub(super) struct LocalRepository {
    url: String,
    shared: Arc<CheckShared>,
    folders: Arc<FolderCache>,
    watcher: Arc<Watcher>,
    sweeper: Arc<Sweeper>,
    paths: Mutex<HashMap<ObjectPath, Arc<PathSlot>>>,
    /// Number of rows of all paths in memory.
    rows: AtomicUsize,
    limits: KeptLimits,
    /// Time of the latest search for unused paths.
    searched: Mutex<Instant>,
    /// The path whose upload details were read last, and how many times in a row.
    described: Mutex<(Option<ObjectPath>, u32)>,
}

/// One path in memory.
#[derive(Debug)]
struct PathSlot {
    used: Mutex<Instant>,
    rows: AtomicUsize,
    state: Arc<AsyncMutex<ReadPath>>,
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
        let (paths, rows, sweeper) = Default::default();
        let (watcher, limits) = (Arc::new(watcher), KeptLimits::DEFAULT);
        let searched = Mutex::new(Instant::now());
        let (folders, described) = Default::default();
        Self { url, shared, folders, watcher, sweeper, paths, rows, limits, searched, described }
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
        let folders = Arc::clone(&self.folders);
        self.blocking(path, move || folders.subfolders(&root, &name)).await
    }

    fn failed(&self, what: &str, error: &io::Error) -> SourceError {
        failed(&self.url, &self.shared.root, what, error)
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

    /// Records the number of rows of a path, and drops paths that are not kept any more. A path without any version is not kept, because clients can ask for arbitrary
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
        let dropped = self.surplus(&mut paths, path);
        drop(paths);
        // Closing their watches takes time.
        drop(dropped);
    }

    /// Takes out the paths that are not kept any more; `path` is kept.
    fn surplus(
        &self,
        paths: &mut HashMap<ObjectPath, Arc<PathSlot>>,
        path: &ObjectPath,
    ) -> Vec<Arc<PathSlot>> {
        let KeptLimits { rows: most_rows, paths: most_paths, unused } = self.limits;
        let is_full = paths.len() > most_paths || self.rows.load(Relaxed) > most_rows;
        let is_search_due = {
            let mut searched = self.searched.lock();
            let is_due = searched.elapsed() >= unused / 4;
            if is_due {
                *searched = Instant::now();
            }
            is_due
        };
        if !is_full && !is_search_due {
            return Vec::new();
        }
        let by_use = paths.iter().map(|(path, slot)| (*slot.used.lock(), path));
        let by_use = by_use.filter(|(used, _)| is_full || used.elapsed() >= unused);
        let mut by_use: Vec<(Instant, ObjectPath)> =
            by_use.map(|(used, path)| (used, path.clone())).collect();
        by_use.sort_unstable();
        let mut dropped = Vec::new();
        for (used, oldest) in by_use.into_iter().filter(|(_, other)| other != path) {
            let fits =
                paths.len() <= most_paths * 3 / 4 && self.rows.load(Relaxed) <= most_rows * 3 / 4;
            if used.elapsed() < unused && (!is_full || fits) {
                break;
            }
            let Some(gone) = paths.remove(&oldest) else { continue };
            self.rows.fetch_sub(gone.rows.load(Relaxed), Relaxed);
            dropped.push(gone);
        }
        dropped
    }

    /// Calls `use_it` with the path's state, checked again if that is due.
    async fn with_path<T>(
        &self,
        path: &ObjectPath,
        use_it: impl FnOnce(&mut ReadPath) -> T,
    ) -> Result<T, SourceError> {
        let mut state = self.checked(path).await?;
        let blocks = state.table.reads_files() || state.is_unverified();
        match blocks || state.table.len() > FEW_ROWS {
            true => Ok(in_place(|| use_it(&mut state))),
            false => Ok(use_it(&mut state)),
        }
    }

    /// The path's state, checked again if that is due.
    async fn checked(&self, path: &ObjectPath) -> Result<OwnedMutexGuard<ReadPath>, SourceError> {
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
        Ok(state)
    }

    fn sweep_in_background(&self, slot: &PathSlot) {
        let (root, state) = (self.shared.root.clone(), Arc::downgrade(&slot.state));
        let sweeper = Arc::clone(&self.sweeper);
        tokio::spawn(async move { sweeper.sweep(&root, state).await });
    }

    pub(super) async fn look_up(
        &self,
        query: &Query,
        at: Timestamp,
    ) -> Result<Knowledge, SourceError> {
        let root = &self.shared.root;
        let found = self.with_path(&query.path, |state| {
            let read = |row: &Row| read_metadata(root, &query.path, row);
            let verified = state.verify_around(root, at.as_millis());
            let window = verified.and_then(|()| state.table.window(query, at.as_millis(), &read));
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

    /// The versions created last; see [`newest::newest`].
    pub(super) async fn newest(
        &self,
        query: &Query,
        at: Option<Timestamp>,
        limit: usize,
    ) -> Result<Vec<Arc<ObjectInfo>>, SourceError> {
        let root = &self.shared.root;
        let found = self.with_path(&query.path, |state| {
            let read = |row: &Row| read_metadata(root, &query.path, row);
            newest::newest(&state.table, query, at, limit, &read)
        });
        found.await?.map_err(|error| self.failed(query.path.as_str(), &error))
    }

    /// Facts about the upload of a version: from the index if those of many versions of a path are
    /// requested one after another, else from the properties.
    pub(super) fn details(&self, version: &ObjectInfo) -> Details {
        let is_one_of_many = {
            let mut described = self.described.lock();
            match described.0.as_ref() == Some(&version.path) {
                true => described.1 = described.1.saturating_add(1),
                false => *described = (Some(version.path.clone()), 0),
            }
            described.1 >= READ_EACH
        };
        let indexed = is_one_of_many.then(|| self.indexed_details(version)).flatten();
        indexed.unwrap_or_else(|| change::details(self.folder(), version))
    }

    /// The details in the index, if its row describes the version in its present state.
    fn indexed_details(&self, version: &ObjectInfo) -> Option<Details> {
        let slot = self.paths.lock().get(&version.path).cloned()?;
        let from = version.validity.from().as_millis();
        let stamp = slot.state.try_lock().ok()?.table.find(from, version.id)?.stamp;
        let mut index = self.shared.index.lock();
        index.details(version.path.as_str(), from, version.id, stamp)
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
            if let Err(error) = state.verify_around(root, from.as_millis()) {
                return Some(Err(error));
            }
            let row = state.table.find(from.as_millis(), id)?;
            state.table.info(row, &read).transpose()
        });
        found.await?.transpose().map_err(|error| self.failed(path.as_str(), &error))
    }

    /// The version as described by this repository, except that metadata not in memory are those of
    /// `version`. They only name the file of a version with a derived id, whose MD5 is always known.
    async fn own_description(
        &self,
        version: &ObjectInfo,
    ) -> Result<Option<ObjectInfo>, SourceError> {
        let state = self.checked(&version.path).await?;
        let row = state.table.find(version.validity.from().as_millis(), version.id);
        let own = row.map(|row| state.table.info(row, &|_| Ok(version.metadata.clone())));
        let own = own.transpose().map_err(|error| self.failed(version.path.as_str(), &error))?;
        Ok(own.flatten())
    }

    pub(super) async fn fetch(
        &self,
        version: &ObjectInfo,
        body: &mut dyn Body,
    ) -> Result<(), SourceError> {
        let fetch = FetchCheck { url: &self.url, version };
        let own = self.own_description(version).await?.ok_or_else(|| fetch.gone())?;
        fetch.check_same(&own)?;
        let read = read_blob(&self.shared.root, &own, body).await;
        read.map_err(|error| match error {
            BlobError::Io(error) => match error.kind() {
                io::ErrorKind::NotFound if self.shared.root.path().is_dir() => fetch.gone(),
                io::ErrorKind::InvalidData => fetch.unusable(error.to_string()),
                _ => self.failed(&fetch.what(), &error),
            },
            BlobError::Unusable(reason) => fetch.unusable(reason),
            BlobError::Body(error) => fetch.no_body(error),
        })
    }

    pub(super) async fn path_parts(&self, prefix: &str) -> Result<PathParts, SourceError> {
        let (root, start) = (self.shared.root.clone(), prefix.to_owned());
        let list = self.blocking(prefix, move || PathList::open(&root, &start)).await?;
        let (url, what, root) = (self.url.clone(), prefix.to_owned(), self.shared.root.clone());
        let parts = stream::try_unfold(list, move |mut list| {
            let read =
                tokio::task::spawn_blocking(move || list.next_part().map(|part| (part, list)));
            let (url, what, root) = (url.clone(), what.clone(), root.clone());
            async move {
                let read = read.await.unwrap_or_else(|error| Err(io::Error::other(error)));
                let (part, list) = read.map_err(|error| failed(&url, &root, &what, &error))?;
                Ok((!part.is_empty()).then_some((part, list)))
            }
        });
        Ok(parts.boxed())
    }
}

/// The error of the source for an error of the file system.
fn failed(url: &str, root: &Root, what: &str, error: &io::Error) -> SourceError {
    let (url, what, mut reason) = (url.to_owned(), what.to_owned(), error.to_string());
    if error.kind() == io::ErrorKind::PermissionDenied {
        return SourceError::NotAllowed { url, what, reason };
    }
    if !root.path().is_dir() {
        reason = format!("the folder {} is not there", root.path().display());
    }
    SourceError::Down { url, what, reason }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::source::repository::writer::put_for_test;

    const REFRESH: Duration = Duration::from_millis(200);

    fn path() -> ObjectPath {
        ObjectPath::new("A/B").unwrap()
    }

    fn put(root: &Path, from: i64, created: i64) -> ObjectInfo {
        put_for_test(root, "A/B", from, created)
    }

    /// A repository with an index, 30 folders of versions, and too few watches for them.
    async fn with_few_watches(root: &Path, refresh: Duration) -> LocalRepository {
        crate::source::repository::index(root, false, |_, _| {}).unwrap();
        for n in 0..30 {
            put(root, n * 100, 1);
        }
        let root = Root::open(root).unwrap();
        let watcher = Watcher::limited(&root, 10);
        let repository = LocalRepository::new(String::new(), root, refresh, watcher);
        assert_eq!(listed(&repository).await.len(), 30);
        repository
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
        let never = Duration::from_secs(3600);
        let repository = with_few_watches(folder.path(), never).await;
        put(folder.path(), 2800, 2);
        let began = Instant::now();
        while listed(&repository).await.len() != 31 {
            assert!(began.elapsed() < Duration::from_secs(5), "it is not seen");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Too few watches, and a comparison that is not repeated.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_version_in_a_folder_without_a_watch_is_found_by_the_index() {
        let folder = tempfile::tempdir().unwrap();
        let repository = with_few_watches(folder.path(), Duration::from_millis(400)).await;
        {
            let slot = repository.slot(&path());
            slot.state.lock().await.swept = Some((Instant::now(), Duration::MAX));
        }
        put(folder.path(), 0, 2);
        let began = Instant::now();
        while listed(&repository).await.len() != 31 {
            assert!(began.elapsed() < Duration::from_secs(5), "it is not found");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_versions_of_a_long_path_are_compared_with_their_files_in_the_background() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        // Their bytes and properties are those of one version in folders of other times.
        let first = put(root, 0, 1).id;
        for n in 1..2_100 {
            let other = root.join(format!("A/B/{}", n * 100));
            fs::create_dir(&other).unwrap();
            for end in ["", ".properties"] {
                let text = fs::read_to_string(root.join(format!("A/B/0/{first}{end}"))).unwrap();
                let until = format!("ValidUntil={}", n * 100 + 10);
                fs::write(
                    other.join(format!("{first}{end}")),
                    text.replace("ValidUntil=10", &until),
                )
                .unwrap();
            }
        }
        std::thread::sleep(Duration::from_millis(60));
        crate::source::repository::index(root, false, |_, _| {}).unwrap();
        let place = root.join("A/B/150000").join(format!("{first}.properties"));
        let text = fs::read_to_string(&place).unwrap();
        fs::write(&place, text.replace("ValidUntil=150010", "ValidUntil=150007")).unwrap();
        let root = Root::open(root).unwrap();
        let watcher = Watcher::none();
        let never = Duration::from_secs(3600);
        let repository = LocalRepository::new(String::new(), root, never, watcher);
        let at = Timestamp::from_millis(5);
        let found = repository.look_up(&Query::all(path()), at).await.unwrap();
        assert!(found.versions.iter().any(|info| info.validity.contains(at)));
        let until = async || {
            let slot = repository.slot(&path());
            let state = slot.state.lock().await;
            let row = state.table.find(150_000, first).unwrap();
            (row.until, state.is_unverified())
        };
        let began = Instant::now();
        while until().await != (150_007, false) {
            assert!(began.elapsed() < Duration::from_secs(20), "it is not found");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn versions_of(repository: &LocalRepository, path: &str) -> usize {
        let query = Query::all(ObjectPath::new(path).unwrap());
        repository.list_page(&query, None, usize::MAX).await.unwrap().versions.len()
    }

    fn kept(repository: &LocalRepository) -> Vec<String> {
        let paths = repository.paths.lock();
        let mut kept: Vec<String> = paths.keys().map(ToString::to_string).collect();
        kept.sort_unstable();
        let rows: usize = paths.values().map(|slot| slot.rows.load(Relaxed)).sum();
        assert_eq!(repository.rows.load(Relaxed), rows, "the count is that of the kept paths");
        kept
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn paths_beyond_the_limits_are_dropped_least_recently_used_first_and_read_again() {
        let folder = tempfile::tempdir().unwrap();
        for path in ["A/P1", "A/P2", "A/P3", "A/P4", "A/P5"] {
            put_for_test(folder.path(), path, 0, 1);
            put_for_test(folder.path(), path, 100, 1);
        }
        let unused = Duration::from_secs(3600);
        let limited = |limits: KeptLimits| {
            let root = Root::open(folder.path()).unwrap();
            let watcher = Watcher::new(&root);
            let repository = LocalRepository::new(String::new(), root, REFRESH, watcher);
            LocalRepository { limits, ..repository }
        };
        let by_paths = limited(KeptLimits { rows: 100, paths: 4, unused });
        let by_rows = limited(KeptLimits { rows: 8, paths: 100, unused });
        for repository in [by_paths, by_rows] {
            for path in ["A/P1", "A/P2", "A/P3", "A/P4", "A/P1", "A/P5"] {
                assert_eq!(versions_of(&repository, path).await, 2);
            }
            assert_eq!(kept(&repository), ["A/P1", "A/P4", "A/P5"]);
            put_for_test(folder.path(), "A/P2", 200, 1);
            assert_eq!(versions_of(&repository, "A/P2").await, 3, "a dropped path is read again");
            fs::remove_dir_all(folder.path().join("A/P2/200")).unwrap();
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_path_that_is_not_requested_any_more_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        put_for_test(folder.path(), "A/P1", 0, 1);
        put_for_test(folder.path(), "A/P2", 0, 1);
        let root = Root::open(folder.path()).unwrap();
        let repository = LocalRepository::new(String::new(), root, REFRESH, Watcher::none());
        let limits = KeptLimits { unused: Duration::from_millis(200), ..KeptLimits::DEFAULT };
        let repository = LocalRepository { limits, ..repository };
        assert_eq!(versions_of(&repository, "A/P1").await, 1);
        let began = Instant::now();
        while kept(&repository) != ["A/P2"] {
            assert_eq!(versions_of(&repository, "A/P2").await, 1);
            assert!(began.elapsed() < Duration::from_secs(10), "A/P1 is kept");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(versions_of(&repository, "A/P1").await, 1);
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
