//! All files of an index, as seen by a reader.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::num::NonZero;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use rustix::fs::fstat;

use super::file::IndexFile;
use super::file_name::{FOLDER, FileName};
use super::row::RowRef;
use crate::object::ObjectId;
use crate::source::Details;
use crate::source::repository::beneath::{EntryKind, Root, Stamp, for_each_entry, open_file};
use crate::source::repository::folder::{LOCAL_SLACK, is_recent};

/// The usable files of an index.
#[derive(Debug, Default)]
pub(in crate::source::repository) struct IndexSet {
    /// Files in the order in which they were written.
    files: BTreeMap<FileName, IndexFile>,
    /// Files that cannot be used: reported once, and not opened again.
    unusable: BTreeSet<FileName>,
    /// Change time (ns) of the folder when it was listed.
    listed: Option<i64>,
    /// By file: its number in the order in which this reader opened them, from 1 on.
    opened: BTreeMap<FileName, u64>,
    /// The number of the file that was opened last.
    latest: u64,
}

/// Maximum number of listings, repeated if files are merged and removed while they are opened.
const ATTEMPTS: usize = 5;

impl IndexSet {
    /// Reads the changes since the last call.
    pub(in crate::source::repository) fn refresh(&mut self, root: &Root) {
        for _ in 0..ATTEMPTS {
            match self.try_refresh(root) {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    // The numbers go on: callers remember the latest one.
                    *self = Self { latest: self.latest, ..Self::default() };
                    return;
                }
                Err(error) => {
                    tracing::warn!(folder = FOLDER, %error, "the index cannot be read");
                    return;
                }
            }
        }
    }

    /// Returns `false` if a file was removed between listing and opening.
    fn try_refresh(&mut self, root: &Root) -> io::Result<bool> {
        let root_inode = fstat(root.descriptor()?)?.st_ino;
        let folder = root.folder(FOLDER)?;
        let changed = Stamp::from(&fstat(&folder)?).changed_nanos;
        if self.listed == Some(changed) {
            return Ok(true);
        }
        let names = list(&folder)?;
        self.files.retain(|name, _| names.contains(name));
        self.opened.retain(|name, _| names.contains(name));
        self.unusable.retain(|name| names.contains(name));
        let is_new =
            |name: &FileName| !self.files.contains_key(name) && !self.unusable.contains(name);
        let new: Vec<FileName> = names.into_iter().filter(is_new).collect();
        let opened = open_all(folder.as_fd(), &new, root_inode);
        let mut all = true;
        for (name, opened) in new.into_iter().zip(opened) {
            match opened {
                Ok(file) => {
                    self.latest += 1;
                    self.opened.insert(name.clone(), self.latest);
                    self.files.insert(name, file);
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => all = false,
                Err(error) => {
                    tracing::warn!(file = %format!("{FOLDER}/{name}"), %error, "an index file is not used; iovcache index makes a new one");
                    self.unusable.insert(name);
                }
            }
        }
        // A file added within the same clock tick is seen at the next listing.
        self.listed = (all && !is_recent(changed, LOCAL_SLACK)).then_some(changed);
        Ok(all)
    }

    pub(in crate::source::repository) fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Names of files that cannot be used.
    pub(super) fn unusable(&self) -> impl Iterator<Item = String> {
        self.unusable.iter().map(FileName::to_string)
    }

    pub(super) fn files(&mut self) -> impl Iterator<Item = (&FileName, &mut IndexFile)> {
        self.files.iter_mut()
    }

    /// The files in the order in which they were written.
    pub(super) fn into_files(self) -> impl Iterator<Item = IndexFile> {
        self.files.into_values()
    }

    /// The number of the file that was opened last, for [`for_path`](Self::for_path).
    pub(in crate::source::repository) fn latest(&self) -> u64 {
        self.latest
    }

    /// The facts about the upload of a version in the state that `stamp` describes.
    pub(in crate::source::repository) fn details(
        &mut self,
        path: &str,
        from: i64,
        id: ObjectId,
        stamp: u64,
    ) -> Option<Details> {
        self.files.iter_mut().rev().find_map(|(name, file)| {
            file.details(path, from, id, stamp).unwrap_or_else(|error| {
                tracing::debug!(file = %format!("{FOLDER}/{name}"), %error, "read from properties");
                None
            })
        })
    }

    /// Calls `each` for the rows of a path in the files that were opened after the file number
    /// `after`, in the order in which they were written. If a version occurs twice, its last row
    /// counts.
    pub(in crate::source::repository) fn for_path(
        &mut self,
        path: &str,
        after: u64,
        mut each: impl FnMut(RowRef<'_>),
    ) {
        let mut broken = Vec::new();
        let opened = &self.opened;
        let is_asked = |name: &FileName| opened.get(name).is_none_or(|number| *number > after);
        for (name, file) in self.files.iter_mut().filter(|(name, _)| is_asked(name)) {
            if let Err(error) = file.for_path(path, &mut each) {
                tracing::warn!(file = %format!("{FOLDER}/{name}"), %error, "an index file is not used; iovcache index makes a new one");
                broken.push(name.clone());
            }
        }
        for name in broken {
            self.files.remove(&name);
            self.unusable.insert(name);
        }
    }
}

/// Opens files of the index on all processors, because each is read once to check it.
fn open_all(
    folder: BorrowedFd<'_>,
    names: &[FileName],
    root_inode: u64,
) -> Vec<io::Result<IndexFile>> {
    let next = AtomicUsize::new(0);
    let open_some = || {
        let mut opened = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(name) = names.get(number) else { return opened };
            let file = open_file(folder, &name.to_string());
            let file = file.and_then(|(file, _)| IndexFile::open(file, name.crc32c, root_inode));
            opened.push((number, file));
        }
    };
    // The number of processors is read from files; mostly there is one new file.
    let threads = match names.len() {
        0 | 1 => 1,
        many => thread::available_parallelism().map_or(1, NonZero::get).min(many),
    };
    let mut opened = thread::scope(|scope| {
        let start = |_| {
            let thread = thread::Builder::new().name("iovcache-index".to_owned());
            thread.spawn_scoped(scope, open_some).ok()
        };
        let others: Vec<_> = (1..threads).filter_map(start).collect();
        let mut opened = open_some();
        for other in others {
            opened.extend(other.join().unwrap_or_else(|panic| resume_unwind(panic)));
        }
        opened
    });
    opened.sort_by_key(|(number, _)| *number);
    opened.into_iter().map(|(_, file)| file).collect()
}

/// Names of the index files in a folder.
pub(super) fn list(folder: &std::os::fd::OwnedFd) -> io::Result<BTreeSet<FileName>> {
    let mut names = BTreeSet::new();
    for_each_entry(folder, |name, kind| {
        if kind == EntryKind::File
            && let Some(name) = FileName::parse(name)
        {
            names.insert(name);
        }
    })?;
    Ok(names)
}
