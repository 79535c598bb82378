//! Reads a repository in a local folder.
//!
//! ```text
//!  look_up ─▶ path in memory? ──fresh──▶ one window of its table
//!                 │ to be checked
//!                 ▼
//!      folder of the path changed? ─▶ new and removed folders ─┐
//!      folders of versions changed? ───────────────────────────┴▶ these alone are read again
//! ```

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{self, Read as _};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use md5::{Digest as _, Md5};
use tokio::sync::Mutex as AsyncMutex;

use super::beneath::{EntryKind, Root, for_each_entry, open_beneath};
use super::entry::{self, PROPERTIES, difference, names};
use super::folder::{
    LOCAL_SLACK, PathFolder, Versions, from_of, is_absent, is_recent, read_properties,
};
use super::table::{Metadata, PathTable, Row};
use crate::interval::Timestamp;
use crate::object::{Md5Sum, ObjectInfo, ObjectPath, Query};
use crate::source::{
    Body, BodyError, Knowledge, Page, PageKey, PathSummary, Problem, SourceError, in_place,
};

/// Versions in memory before the paths that were asked for longest ago are given up.
const MAX_ROWS: usize = 4 << 20;
/// Paths in memory.
const MAX_PATHS: usize = 100_000;
/// Threads that read folders of one path.
const PARALLEL_READS: usize = 4;
/// Folders that one thread reads by itself.
const FEW_FOLDERS: usize = 64;
/// Pieces in which a file is read.
const PIECE_BYTES: usize = 1 << 20;
/// A check of all folders of a path pauses this many times as long as it took.
const SWEEP_PAUSES: u32 = 10;

/// A repository in a local folder.
#[derive(Debug)]
pub(super) struct LocalRepository {
    url: String,
    root: Root,
    refresh: Duration,
    paths: Mutex<HashMap<ObjectPath, Arc<PathSlot>>>,
}

/// One path in memory.
#[derive(Debug)]
struct PathSlot {
    used: Mutex<Instant>,
    rows: std::sync::atomic::AtomicUsize,
    state: Arc<AsyncMutex<PathState>>,
}

/// What was read of a path.
#[derive(Debug)]
struct PathState {
    path: ObjectPath,
    table: PathTable,
    problems: BTreeMap<i64, Vec<Problem>>,
    /// Change time of the path's folder when it was listed; none where it must be listed again.
    listed: Option<i64>,
    /// Folders in which a put is under way.
    pending: BTreeSet<i64>,
    checked: Option<Instant>,
    /// When the folders of versions were checked, and how long that took.
    swept: Option<(Instant, Duration)>,
}

impl PathState {
    fn new(path: ObjectPath) -> Self {
        Self {
            table: PathTable::new(path.clone()),
            path,
            problems: BTreeMap::new(),
            listed: None,
            pending: BTreeSet::new(),
            checked: None,
            swept: None,
        }
    }

    fn clear(&mut self) {
        *self = Self::new(self.path.clone());
    }

    /// Takes what was read of one folder.
    fn take(&mut self, from: i64, found: Versions) {
        let Versions { read, kept, problems, pending } = found;
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

    /// Reads what has changed since the last time.
    fn check(&mut self, root: &Root, refresh: Duration) -> io::Result<()> {
        let began = Instant::now();
        let Some(folder) = PathFolder::open(root, &self.path)? else {
            self.clear();
            self.checked = Some(began);
            return Ok(());
        };
        let mut again: BTreeSet<i64> = self.pending.clone();
        let mut fresh = false;
        if self.listed != Some(folder.stamp.changed_nanos) {
            fresh = self.listed.is_none() && self.table.len() == 0;
            self.list(&folder, &mut again)?;
        }
        if !fresh && self.is_sweep_due(refresh) {
            self.sweep(&folder, &mut again);
        }
        self.read(&folder, again, fresh)?;
        // It is listed again as long as a later change could bear the same time.
        let changed = folder.stamp.changed_nanos;
        self.listed = (!is_recent(changed, LOCAL_SLACK)).then_some(changed);
        self.checked = Some(began);
        Ok(())
    }

    /// Compares the folders that are there with those in memory.
    fn list(&mut self, folder: &PathFolder, again: &mut BTreeSet<i64>) -> io::Result<()> {
        let (there, odd) = folder.froms(&self.path)?;
        let known: Vec<i64> = self.table.froms().collect();
        let is_there = |from: &i64| there.binary_search(from).is_ok();
        for gone in known.iter().filter(|from| !is_there(from)) {
            self.table.replace_folder(*gone, Vec::new());
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

    fn is_sweep_due(&self, refresh: Duration) -> bool {
        let due = |(at, took): (Instant, Duration)| {
            at.elapsed() >= refresh.max(took.saturating_mul(SWEEP_PAUSES))
        };
        self.swept.is_none_or(due)
    }

    /// Finds the folders whose files changed.
    fn sweep(&mut self, folder: &PathFolder, again: &mut BTreeSet<i64>) {
        let began = Instant::now();
        let changed = self.table.iter().filter(|row| !folder.is_unchanged(row));
        again.extend(changed.map(|row| row.from));
        again.extend(self.problems.keys());
        self.swept = Some((began, began.elapsed()));
    }

    /// Reads folders of versions.
    fn read(&mut self, folder: &PathFolder, again: BTreeSet<i64>, fresh: bool) -> io::Result<()> {
        let froms: Vec<i64> = again.into_iter().collect();
        let table = &self.table;
        let one = |from: &i64| {
            let known = table.folder(*from);
            let found = folder.versions(&self.path, *from, known, LOCAL_SLACK);
            found.map(|found| (*from, found))
        };
        let read: Vec<(i64, Versions)> = if froms.len() <= FEW_FOLDERS {
            froms.iter().map(one).collect::<io::Result<_>>()?
        } else {
            let share = froms.len().div_ceil(PARALLEL_READS);
            let parts: Vec<io::Result<Vec<_>>> = std::thread::scope(|scope| {
                let parts = froms.chunks(share);
                let threads: Vec<_> = parts
                    .map(|part| scope.spawn(|| part.iter().map(one).collect::<io::Result<_>>()))
                    .collect();
                threads
                    .into_iter()
                    .map(|thread| {
                        thread
                            .join()
                            .unwrap_or_else(|_| Err(io::Error::other("a thread ended early")))
                    })
                    .collect()
            });
            parts.into_iter().collect::<io::Result<Vec<_>>>()?.into_iter().flatten().collect()
        };
        if !fresh {
            read.into_iter().for_each(|(from, found)| self.take(from, found));
            return Ok(());
        }
        let mut rows = Vec::with_capacity(read.len());
        for (from, Versions { read, kept, problems, pending }) in read {
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

/// The metadata of a version as its properties have it.
fn read_metadata(root: &Root, path: &ObjectPath, row: &Row) -> io::Result<Metadata> {
    let folder = root.folder(&format!("{path}/{}", row.from))?;
    let name = row.id.to_string();
    let read = read_properties(folder.as_fd(), &format!("{name}{PROPERTIES}"));
    let properties = match read {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // Its file has another name: all of the folder is read.
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

impl LocalRepository {
    /// The folder `folder`.
    ///
    /// # Errors
    /// [`SourceError::Configuration`] if it is not there.
    pub(super) fn open(folder: &Path, refresh: Duration) -> Result<Self, SourceError> {
        let url = format!("file://{}", folder.display());
        let root = Root::open(folder).map_err(|error| SourceError::Configuration {
            url: url.clone(),
            reason: error.to_string(),
        })?;
        Ok(Self { url, root, refresh, paths: Mutex::default() })
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    fn failed(&self, what: &str, error: &io::Error) -> SourceError {
        let (url, what, mut reason) = (self.url.clone(), what.to_owned(), error.to_string());
        if error.kind() == io::ErrorKind::PermissionDenied {
            return SourceError::NotAllowed { url, what, reason };
        }
        if !self.root.path().is_dir() {
            reason = format!("the folder {} is not there", self.root.path().display());
        }
        SourceError::Down { url, what, reason }
    }

    /// Runs what blocks, away from the threads of the runtime.
    async fn blocking<T: Send + 'static>(
        &self,
        what: &str,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> Result<T, SourceError> {
        let done = tokio::task::spawn_blocking(work).await;
        done.unwrap_or_else(|error| Err(io::Error::other(error)))
            .map_err(|error| self.failed(what, &error))
    }

    /// The state of a path; made if it is not there.
    fn slot(&self, path: &ObjectPath) -> Arc<PathSlot> {
        let mut paths = self.paths.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = paths.entry(path.clone()).or_insert_with(|| {
            Arc::new(PathSlot {
                used: Mutex::new(Instant::now()),
                rows: Default::default(),
                state: Arc::new(AsyncMutex::new(PathState::new(path.clone()))),
            })
        });
        *slot.used.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        Arc::clone(slot)
    }

    /// Notes how many rows a path has, and gives up the paths that were asked for longest ago where
    /// there are too many. A path without any version is not kept: anybody can ask for any.
    fn settle(&self, path: &ObjectPath, slot: &PathSlot, rows: usize) {
        use std::sync::atomic::Ordering::Relaxed;
        slot.rows.store(rows, Relaxed);
        let mut paths = self.paths.lock().unwrap_or_else(PoisonError::into_inner);
        if rows == 0 {
            paths.remove(path);
            return;
        }
        let total = |paths: &HashMap<ObjectPath, Arc<PathSlot>>| -> usize {
            paths.values().map(|slot| slot.rows.load(Relaxed)).sum()
        };
        if paths.len() <= MAX_PATHS && total(&paths) <= MAX_ROWS {
            return;
        }
        let used = |slot: &PathSlot| *slot.used.lock().unwrap_or_else(PoisonError::into_inner);
        let mut by_use: Vec<(Instant, ObjectPath)> =
            paths.iter().map(|(path, slot)| (used(slot), path.clone())).collect();
        by_use.sort_unstable();
        let mut left = total(&paths);
        for (_, oldest) in by_use.into_iter().filter(|(_, other)| other != path) {
            if paths.len() <= MAX_PATHS * 3 / 4 && left <= MAX_ROWS * 3 / 4 {
                break;
            }
            let gone = paths.remove(&oldest);
            left -= gone.map_or(0, |slot| slot.rows.load(Relaxed));
        }
    }

    /// Calls `use_it` with the path's state, checked as far as it is time.
    async fn with_path<T>(
        &self,
        path: &ObjectPath,
        use_it: impl FnOnce(&mut PathState) -> T,
    ) -> Result<T, SourceError> {
        let slot = self.slot(path);
        let mut state = Arc::clone(&slot.state).lock_owned().await;
        // Others may have checked it while we waited.
        if state.checked.is_none_or(|at| at.elapsed() >= self.refresh / 5) {
            let (root, refresh) = (self.root.clone(), self.refresh);
            let checked = self.blocking(path.as_str(), move || {
                let checked = state.check(&root, refresh);
                Ok((state, checked))
            });
            let (checked_state, checked) = checked.await?;
            state = checked_state;
            if let Err(error) = checked {
                self.settle(path, &slot, state.table.len());
                return Err(self.failed(path.as_str(), &error));
            }
            let rows = state.table.len() + state.problems.len();
            self.settle(path, &slot, rows);
        }
        Ok(use_it(&mut state))
    }

    pub(super) async fn look_up(
        &self,
        query: &Query,
        at: Timestamp,
    ) -> Result<Knowledge, SourceError> {
        let root = &self.root;
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

    pub(super) async fn list(
        &self,
        query: &Query,
        after: Option<PageKey>,
        limit: usize,
    ) -> Result<Page, SourceError> {
        let root = &self.root;
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
        Ok(Page { versions, problems, more, whole: true })
    }

    /// The version as this repository itself describes it.
    async fn own(&self, wanted: &ObjectInfo) -> Result<Option<ObjectInfo>, SourceError> {
        let root = &self.root;
        let found = self.with_path(&wanted.path, |state| {
            let read = |row: &Row| read_metadata(root, &wanted.path, row);
            let row = state.table.find(wanted.validity.from().as_millis(), wanted.id)?;
            state.table.info(row, &read).transpose()
        });
        found.await?.transpose().map_err(|error| self.failed(wanted.path.as_str(), &error))
    }

    pub(super) async fn fetch(
        &self,
        version: &ObjectInfo,
        body: &mut dyn Body,
    ) -> Result<(), SourceError> {
        let what = format!("{} {}", version.path, version.id);
        let unusable =
            |reason| SourceError::Unusable { url: self.url.clone(), what: what.clone(), reason };
        let gone = || SourceError::NoSuchVersion {
            url: self.url.clone(),
            path: version.path.clone(),
            id: version.id,
        };
        let own = self.own(version).await?.ok_or_else(gone)?;
        if let Some(difference) = difference(&own, version) {
            return Err(unusable(format!("the repository has another {difference} for it")));
        }
        let folder = format!("{}/{}", own.path, own.validity.from());
        let mut opened = Err(io::Error::from(io::ErrorKind::NotFound));
        for name in names(own.id, &own.metadata) {
            opened = in_place(|| self.root.file(&format!("{folder}/{name}")));
            if !matches!(&opened, Err(error) if error.kind() == io::ErrorKind::NotFound) {
                break;
            }
        }
        let (mut file, stamp) = opened.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound if self.root.path().is_dir() => gone(),
            io::ErrorKind::InvalidData => unusable(error.to_string()),
            _ => self.failed(&what, &error),
        })?;
        let size = stamp.size_bytes;
        if own.size_bytes != Some(size) {
            let expected = own.size_bytes.unwrap_or(0);
            return Err(unusable(format!("it has {size} bytes, expected {expected}")));
        }
        let full = |error: BodyError| SourceError::Body { what: what.clone(), error };
        body.reserve(size).await.map_err(full)?;
        let mut digest = Md5::new();
        while !body.spare().is_empty() {
            let read = in_place(|| {
                let spare = body.spare();
                let most = spare.len().min(PIECE_BYTES);
                let count = file.read(&mut spare[..most])?;
                digest.update(&spare[..count]);
                Ok::<_, io::Error>(count)
            });
            match read {
                Ok(0) => break,
                Ok(count) => body.advance(count),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.failed(&what, &error)),
            }
        }
        let written = body.written_bytes();
        if written != size {
            return Err(unusable(format!("{written} bytes came of {size}")));
        }
        let md5 = Md5Sum(digest.finalize().into());
        match own.md5 {
            Some(expected) if expected != md5 => {
                Err(unusable(format!("its MD5 is {md5}, expected {expected}")))
            }
            _ => Ok(()),
        }
    }

    pub(super) async fn paths(&self, prefix: &str) -> Result<Vec<PathSummary>, SourceError> {
        let (root, start) = (self.root.clone(), prefix.to_owned());
        self.blocking(prefix, move || walk(&root, &start)).await
    }
}

/// The paths at or below `prefix` and how many versions they have, sorted.
fn walk(root: &Root, prefix: &str) -> io::Result<Vec<PathSummary>> {
    // That the root is gone must not look as if there were no paths.
    root.descriptor()?;
    let mut found: BTreeMap<ObjectPath, u64> = BTreeMap::new();
    let mut open = vec![prefix.to_owned()];
    while let Some(name) = open.pop() {
        let folder = match root.folder(&name) {
            Ok(folder) => folder,
            Err(error) if is_absent(&error) => continue,
            Err(error) => return Err(error),
        };
        let path = ObjectPath::new(&name);
        let mut versions = 0;
        let mut below = Vec::new();
        for_each_entry(&folder, |entry, kind| {
            if kind != EntryKind::Folder {
                return;
            }
            match (from_of(entry), &path) {
                (Some(_), Ok(_)) => below.push((entry.to_owned(), true)),
                _ => below.push((entry.to_owned(), false)),
            }
        })?;
        for (entry, is_from) in below {
            if is_from {
                versions += count_versions(&folder, &entry)?;
                continue;
            }
            let child = if name.is_empty() { entry } else { format!("{name}/{entry}") };
            if ObjectPath::new(&child).is_ok() {
                open.push(child);
            }
        }
        if let (Ok(path), 1..) = (path, versions) {
            found.insert(path, versions);
        }
    }
    Ok(found.into_iter().map(|(path, versions)| PathSummary { path, versions }).collect())
}

fn count_versions(folder: &impl std::os::fd::AsFd, name: &str) -> io::Result<u64> {
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY;
    let folder = match open_beneath(folder.as_fd(), name, flags) {
        Ok(folder) => folder,
        Err(error) if is_absent(&error) => return Ok(0),
        Err(error) => return Err(error),
    };
    let mut versions = 0;
    for_each_entry(&folder, |name, _| {
        versions += u64::from(name.ends_with(PROPERTIES) && !name.starts_with('.'));
    })?;
    Ok(versions)
}
