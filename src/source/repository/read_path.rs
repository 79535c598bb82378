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
    FolderVersions, LOCAL_SLACK, PathFolder, is_recent, read_all, read_each, read_properties,
};
use super::index::IndexSet;
use super::table::{Filling, PathTable, Row};
use super::watch::{Changes, PathWatch, Watcher};
use crate::object::{ObjectId, ObjectPath, VersionMetadata};
use crate::source::Problem;
use crate::sync::Mutex;

/// Maximum number of versions of a path whose files are checked while a request waits. Of a larger
/// path, the versions of the first answers are checked, and the others in the background.
const SWEPT_AT_ONCE: usize = 20_000;
/// Number of folders of a path that are watched first, the latest ones.
const NEWEST_WATCHED: usize = 4096;
/// Maximum number of times that the versions of an answer are read again because they changed.
const VERIFY_ATTEMPTS: usize = 3;
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
    /// While rows of the index were not all compared with their files: the chunks (by their start)
    /// that were.
    verified: Option<BTreeSet<i64>>,
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
            verified: None,
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
        let Some((folder, changes)) = self.watched_folder(root, watcher)? else {
            self.clear();
            self.checked = Some(began);
            return Ok(());
        };
        let mut again: BTreeSet<i64> = self.pending.clone();
        again.extend(changes.froms);
        let mut indexed = BTreeMap::new();
        if first {
            self.load(root, &shared.index, &folder);
        } else {
            indexed = self.read_new_index_files(root, &shared.index);
            again.extend(indexed.keys());
        }
        let fresh = first && self.table.len() == 0;
        if !self.is_listed(&folder) || changes.all {
            self.list(&folder, &mut again)?;
        }
        let complete = self.watch.as_deref().is_some_and(PathWatch::is_complete);
        let unseen = first || changes.all || !complete;
        if !fresh && unseen && (changes.all || self.is_sweep_due(shared.refresh)) {
            self.sweep_or_note(&folder, first, &mut again);
        }
        self.read(&folder, again, &indexed, fresh)?;
        self.note_listed(&folder);
        self.checked = Some(began);
        Ok(())
    }

    /// The path's folder, which is watched, and its changes since the last check. `None`: it does not
    /// exist.
    fn watched_folder(
        &mut self,
        root: &Root,
        watcher: Option<&Watcher>,
    ) -> io::Result<Option<(PathFolder, Changes)>> {
        let Some(folder) = PathFolder::open(root, &self.path)? else { return Ok(None) };
        let mut changes = self.watch.as_deref().map(PathWatch::take).unwrap_or_default();
        let was_watched = self.watch.as_deref().is_some_and(PathWatch::is_alive);
        if was_watched && self.watched_inode == folder.stamp.inode && !changes.all {
            return Ok(Some((folder, changes)));
        }
        self.watch = watcher.and_then(|watcher| watcher.watch(root, &self.path)).map(Box::new);
        // Changes between opening and watching are not reported: the folder is opened again.
        let Some(folder) = PathFolder::open(root, &self.path)? else { return Ok(None) };
        self.watched_inode = folder.stamp.inode;
        changes.all |= self.checked.is_some() && (was_watched || self.watch.is_some());
        Ok(Some((folder, changes)))
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
        let mut rows = Filling::default();
        let mut listed = 0;
        let table = &mut self.table;
        index.for_path(self.path.as_str(), 0, |row| {
            listed = listed.max(row.listed);
            if let Some(row) = table.indexed(&row) {
                rows.push(row);
            }
        });
        drop(index);
        let folders = rows.finish(&mut self.table);
        // The links of a folder are its name, its `.`, and the `..` of each subfolder.
        let complete = listed == folder.stamp.changed_nanos && folder.links == folders + 2;
        self.listed = complete.then_some(listed);
    }

    /// Finds the versions that were put since the index was read: also those in folders that are not
    /// watched, because there are too many. Returns the rows of their folders, by `from`: the new
    /// ones of the index, and those in memory.
    fn read_new_index_files(
        &mut self,
        root: &Root,
        index: &Mutex<IndexSet>,
    ) -> BTreeMap<i64, Vec<Row>> {
        let mut index = index.lock();
        index.refresh(root);
        let (table, mut found) = (&mut self.table, BTreeMap::<i64, Vec<Row>>::new());
        index.for_path(self.path.as_str(), self.index_seen, |row| {
            let known = table.find(row.from, row.id);
            if known.is_none_or(|known| row.stamp == 0 || known.stamp != row.stamp) {
                let rows = found.entry(row.from).or_default();
                rows.extend(table.indexed(&row));
            }
        });
        self.index_seen = index.latest();
        drop(index);
        for (from, rows) in &mut found {
            rows.extend(self.table.folder(*from));
        }
        found
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

    /// Finds the folders whose files changed, or, of a path with many versions, notes that they must
    /// be checked in the background.
    fn sweep_or_note(&mut self, folder: &PathFolder, first: bool, again: &mut BTreeSet<i64>) {
        if self.table.len() <= SWEPT_AT_ONCE {
            return self.sweep(folder, again);
        }
        self.to_sweep = true;
        if first {
            self.verified = Some(BTreeSet::new());
        }
    }

    /// Whether rows of the index were not compared with their files yet.
    pub(super) fn is_unverified(&self) -> bool {
        self.verified.is_some()
    }

    /// All rows have been compared with their files, in `took`.
    pub(super) fn note_swept(&mut self, took: Duration) {
        self.swept = Some((Instant::now(), took));
        self.verified = None;
    }

    /// Compares the versions that decide around `at` with their files, if that was not done yet.
    ///
    /// # Errors
    /// If a folder cannot be read.
    pub(super) fn verify_around(&mut self, root: &Root, at: i64) -> io::Result<()> {
        for _ in 0..VERIFY_ATTEMPTS {
            let Some(verified) = &mut self.verified else { return Ok(()) };
            let start = self.table.chunk_start(at);
            if verified.contains(&start) {
                return Ok(());
            }
            let rows = self.table.deciding_rows(at);
            let Some(folder) = PathFolder::open(root, &self.path)? else { return Ok(()) };
            let changed = folder.changed(&rows);
            if changed.is_empty() {
                verified.insert(start);
                return Ok(());
            }
            // A version that went away can have hidden an earlier one, which is compared next.
            self.read_changed(&folder, changed)?;
        }
        Ok(())
    }

    /// Reads the folders of these `from` again.
    ///
    /// # Errors
    /// If a folder cannot be read.
    pub(super) fn read_again(&mut self, root: &Root, changed: BTreeSet<i64>) -> io::Result<()> {
        match PathFolder::open(root, &self.path)? {
            Some(folder) => self.read_changed(&folder, changed),
            None => Ok(()),
        }
    }

    fn read_changed(&mut self, folder: &PathFolder, changed: BTreeSet<i64>) -> io::Result<()> {
        if changed.is_empty() {
            return Ok(());
        }
        // A folder that lost a version may have another that the index did not know.
        self.listed = None;
        self.read(folder, changed, &BTreeMap::new(), false)
    }

    /// Finds the folders whose files changed.
    fn sweep(&mut self, folder: &PathFolder, again: &mut BTreeSet<i64>) {
        let began = Instant::now();
        if self.watch.is_some() {
            let froms: Vec<i64> = self.table.froms().collect();
            self.watch_all(self.latest_froms().into_iter().chain(froms));
        }
        let changed = self.table.iter().filter(|row| !folder.is_unchanged(row));
        again.extend(changed.map(|row| row.from));
        again.extend(self.problems.keys());
        self.note_swept(began.elapsed());
    }

    /// The latest `from`, whose folders are watched before all others: most versions are put there,
    /// and the number of watches is limited.
    pub(super) fn latest_froms(&self) -> Vec<i64> {
        self.table.latest_froms(NEWEST_WATCHED)
    }

    pub(super) fn watch_all(&mut self, froms: impl Iterator<Item = i64>) {
        if let Some(watch) = &mut self.watch {
            froms.for_each(|from| watch.watch_versions(from));
        }
    }

    /// Reads folders of versions. Properties are not read of those versions that are in memory, or
    /// in the folder's rows of `indexed`, if their files did not change.
    fn read(
        &mut self,
        folder: &PathFolder,
        again: BTreeSet<i64>,
        indexed: &BTreeMap<i64, Vec<Row>>,
        fresh: bool,
    ) -> io::Result<()> {
        let froms: Vec<i64> = again.into_iter().collect();
        self.watch_all(froms.iter().copied());
        let table = &self.table;
        let known = |from| indexed.get(&from).map_or_else(|| table.folder(from), Vec::as_slice);
        if !fresh {
            // On this thread alone: requests need the other processors.
            let read = read_each(folder, &self.path, &froms, known, LOCAL_SLACK)?;
            read.into_iter().for_each(|(from, found)| self.take(from, found));
            return Ok(());
        }
        let read = read_all(folder, &self.path, &froms, known, LOCAL_SLACK)?;
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
