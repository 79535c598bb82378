//! The versions of one path, read from its folders and from the index.
//!
//! ```text
//!  check due ─▶ folder of the path changed? ─▶ new and removed folders ─┐
//!               folders of versions changed? ────────────────────────────┴▶ only these are read again
//! ```

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use super::beneath::Root;
use super::entry::{self, PROPERTIES};
use super::folder::{
    FolderVersions, LOCAL_SLACK, PathFolder, is_recent, read_all, read_properties,
};
use super::index::IndexSet;
use super::table::{PathTable, Row};
use super::watch::{PathWatch, Watcher};
use crate::interval::Timestamp;
use crate::object::{ObjectId, ObjectPath, VersionMetadata};
use crate::source::{PageKey, Problem};
use crate::sync::Mutex;

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
pub(super) struct CheckShared {
    pub(super) root: Root,
    pub(super) refresh: Duration,
    pub(super) index: Mutex<IndexSet>,
}

/// Data read for a path.
#[derive(Debug)]
pub(super) struct ReadPath {
    pub(super) path: ObjectPath,
    pub(super) table: PathTable,
    pub(super) problems: BTreeMap<i64, Vec<Problem>>,
    /// Change time (ns) of the path's folder when it was listed; `None`: it must be listed again.
    listed: Option<i64>,
    /// Folders in which a put is in progress.
    pending: BTreeSet<i64>,
    checked: Option<Instant>,
    /// Time of the last check of the folders of versions, and its duration.
    pub(super) swept: Option<(Instant, Duration)>,
    /// The folders of versions must be checked in the background, because there are many.
    pub(super) to_sweep: bool,
    watch: Option<Box<PathWatch>>,
    /// Inode of the watched folder.
    watched_inode: u64,
    /// Number of the file of the index that was read last.
    index_seen: u64,
}

impl ReadPath {
    pub(super) fn new(path: ObjectPath) -> Self {
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
            index_seen: 0,
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Self::new(self.path.clone());
    }

    /// Takes the contents of the folder of one `from`.
    fn take(&mut self, from: i64, found: FolderVersions) {
        let FolderVersions { read, kept, problems, pending, details: _ } = found;
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
    pub(super) fn check(
        &mut self,
        shared: &CheckShared,
        watcher: Option<&Watcher>,
    ) -> io::Result<()> {
        let began = Instant::now();
        let root = &shared.root;
        let first = self.checked.is_none();
        let Some(mut folder) = PathFolder::open(root, &self.path)? else {
            self.clear();
            self.checked = Some(began);
            return Ok(());
        };
        let mut changes = self.watch.as_deref().map(PathWatch::take).unwrap_or_default();
        let is_watched = self.watch.as_deref().is_some_and(PathWatch::is_alive);
        let watched = is_watched && self.watched_inode == folder.stamp.inode;
        if !watched || changes.all {
            self.watch = watcher.and_then(|watcher| watcher.watch(root, &self.path)).map(Box::new);
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
        } else {
            self.read_new_index_files(root, &shared.index, &mut again);
        }
        let fresh = first && self.table.len() == 0;
        if !self.is_listed(&folder) || changes.all {
            self.list(&folder, &mut again)?;
        }
        let complete = self.watch.as_deref().is_some_and(PathWatch::is_complete);
        let unseen = first || changes.all || !complete;
        if !fresh && unseen && (changes.all || self.is_sweep_due(shared.refresh)) {
            self.sweep_or_note(&folder, &mut again);
        }
        self.read(&folder, again, fresh)?;
        self.note_listed(&folder);
        self.checked = Some(began);
        Ok(())
    }

    /// Whether the folders of versions are known. While a folder is watched, it is listed only once.
    fn is_listed(&self, folder: &PathFolder) -> bool {
        match self.watch {
            Some(_) => self.listed.is_some(),
            None => self.listed == Some(folder.stamp.changed_nanos),
        }
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
        self.index_seen = index.latest();
        if index.is_empty() {
            return;
        }
        let mut rows = Vec::new();
        let mut listed = 0;
        let table = &mut self.table;
        index.for_path(self.path.as_str(), 0, |row| {
            listed = listed.max(row.listed);
            rows.extend(table.indexed(&row));
        });
        self.table.fill(rows);
        let folders = self.table.froms().count() as u64;
        // The links of a folder are its name, its `.`, and the `..` of each subfolder.
        let complete = listed == folder.stamp.changed_nanos && folder.links == folders + 2;
        self.listed = complete.then_some(listed);
    }

    /// Finds the folders of versions that were put since the index was read: also those that are
    /// not watched, because there are too many.
    fn read_new_index_files(
        &mut self,
        root: &Root,
        index: &Mutex<IndexSet>,
        again: &mut BTreeSet<i64>,
    ) {
        let mut index = index.lock();
        index.refresh(root);
        let table = &self.table;
        index.for_path(self.path.as_str(), self.index_seen, |row| {
            let known = table.find(row.from, row.id);
            if known.is_none_or(|known| row.stamp == 0 || known.stamp != row.stamp) {
                again.insert(row.from);
            }
        });
        self.index_seen = index.latest();
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
    pub(super) fn is_check_due(&self, refresh: Duration) -> bool {
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
    pub(super) fn sweep_slice(
        &mut self,
        root: &Root,
        after: Option<PageKey>,
    ) -> io::Result<Option<PageKey>> {
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

    /// Finds the folders whose files changed, or, of a path with many versions, notes that they must
    /// be checked in the background.
    fn sweep_or_note(&mut self, folder: &PathFolder, again: &mut BTreeSet<i64>) {
        match self.table.len() <= SWEPT_AT_ONCE {
            true => self.sweep(folder, again),
            false => self.to_sweep = true,
        }
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
        for (from, FolderVersions { read, kept, problems, pending, details: _ }) in read {
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
pub(super) fn read_metadata(
    root: &Root,
    path: &ObjectPath,
    row: &Row,
) -> io::Result<VersionMetadata> {
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
