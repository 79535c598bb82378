//! Adds to an index: one file per batch of versions, merged when there are many.
//!
//! A lock on the folder serialises writers. A file is renamed when it is complete, so readers see
//! it whole or not at all. A writer that is killed leaves at most a `.part` file, and versions
//! missing from the index: readers find those by the folders' change times.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::{Duration, Instant};

use rustix::fs::{
    AtFlags, FlockOperation, Mode, OFlags, flock, fstat, mkdirat, openat, renameat, statat,
    unlinkat,
};

use super::encode::encode;
use super::file::IndexFile;
use super::file_name::{FOLDER, FileName};
use super::row::IndexRow;
use super::set;
use crate::object::ObjectId;
use crate::source::repository::beneath::{EntryKind, Root, Stamp, for_each_entry, open_file};
use crate::source::repository::crash_point::crash_point;
use crate::source::repository::folder::is_recent;

/// Maximum time to wait for another writer.
const LOCK_PATIENCE: Duration = Duration::from_secs(30);
const LOCK_PAUSE: Duration = Duration::from_millis(2);
/// Number of files of one level that are merged, and ratio of sizes of neighbouring levels. Each
/// row is written once per level, and levels grow with the logarithm of the number of versions.
pub(super) const MERGED_FILES: usize = 8;
/// Maximum size of files of the lowest level.
const SMALL_BYTES: u64 = 8192;
/// Minimum age at which the file of a killed writer is removed.
const LEFTOVER_AGE: Duration = Duration::from_secs(3600);

/// The lock on an index. It is released on drop.
#[derive(Debug)]
pub(in crate::source::repository) struct IndexWriter {
    root_inode: u64,
    folder: OwnedFd,
    _lock: OwnedFd,
}

impl IndexWriter {
    /// Waits for other writers. The folder is created if it does not exist.
    ///
    /// # Errors
    /// If the folder cannot be written, or stays locked for more than 30 s.
    pub(in crate::source::repository) fn lock(root: &Root) -> io::Result<Self> {
        let above = root.descriptor()?;
        match mkdirat(&above, FOLDER, Mode::from_raw_mode(0o777)) {
            Err(rustix::io::Errno::EXIST) | Ok(()) => {}
            Err(error) => return Err(error.into()),
        }
        let folder = root.folder(FOLDER)?;
        let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let lock = openat(&folder, "lock", flags, Mode::from_raw_mode(0o666))?;
        let began = Instant::now();
        loop {
            match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(rustix::io::Errno::WOULDBLOCK) if began.elapsed() < LOCK_PATIENCE => {
                    std::thread::sleep(LOCK_PAUSE);
                }
                Err(error) => return Err(error.into()),
            }
        }
        let root_inode = fstat(&above)?.st_ino;
        Ok(Self { root_inode, folder, _lock: lock })
    }

    /// Adds a file with `rows`, and merges files if there are many.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(in crate::source::repository) fn append(&self, rows: Vec<IndexRow>) -> io::Result<()> {
        let names = set::list(&self.folder)?;
        let sequence = names.iter().map(|name| name.sequence).max().unwrap_or(0).saturating_add(1);
        self.write(rows, sequence)?;
        self.merge()
    }

    /// Writes all rows into a new file, and removes the files `replaced`.
    ///
    /// # Errors
    /// If the file cannot be written, or an old one cannot be removed.
    pub(super) fn replace(&self, rows: Vec<IndexRow>, replaced: &[String]) -> io::Result<()> {
        let names = set::list(&self.folder)?;
        let old = names.iter().filter(|name| replaced.contains(&name.to_string()));
        let sequence = old.map(|name| name.sequence).max().unwrap_or(0).saturating_add(1);
        if !rows.is_empty() {
            self.write(rows, sequence)?;
        }
        for name in replaced {
            self.remove(name)?;
            crash_point("index-file-removed");
        }
        self.clean()
    }

    /// Names of all index files, including unusable ones.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub(super) fn names(&self) -> io::Result<Vec<String>> {
        Ok(set::list(&self.folder)?.iter().map(FileName::to_string).collect())
    }

    fn write(&self, rows: Vec<IndexRow>, sequence: u64) -> io::Result<FileName> {
        let (bytes, crc32c) = encode(rows, self.root_inode)?;
        let unique = uuid::Uuid::new_v4().simple().to_string();
        let part = format!(".{unique}.part");
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        let file = openat(&self.folder, &part, flags, Mode::from_raw_mode(0o666))?;
        let name = FileName { sequence, unique, crc32c };
        // Not synced: a file damaged by a power failure is detected by its checksum.
        let (first, second) = bytes.split_at(bytes.len() / 2);
        let mut file = File::from(file);
        let written = file.write_all(first).and_then(|()| {
            crash_point("index-half-written");
            file.write_all(second)
        });
        crash_point("index-written");
        let renamed = written
            .and_then(|()| Ok(renameat(&self.folder, &part, &self.folder, name.to_string())?));
        if renamed.is_err() {
            let _ = unlinkat(&self.folder, &part, AtFlags::empty());
        }
        crash_point("index-renamed");
        renamed.map(|()| name)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        match unlinkat(&self.folder, name, AtFlags::empty()) {
            Err(rustix::io::Errno::NOENT) | Ok(()) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Merges the files of a level with all smaller ones, once the level has enough of them.
    fn merge(&self) -> io::Result<()> {
        let mut sized = Vec::new();
        for name in set::list(&self.folder)? {
            let stat = statat(&self.folder, name.to_string(), AtFlags::SYMLINK_NOFOLLOW)?;
            sized.push((level(u64::try_from(stat.st_size).unwrap_or(0)), name));
        }
        let full = |level: &u32| sized.iter().filter(|(of, _)| of == level).count() >= MERGED_FILES;
        let Some(level) = sized.iter().map(|(level, _)| *level).filter(full).max() else {
            return Ok(());
        };
        let mut merged: BTreeMap<Key, IndexRow> = BTreeMap::new();
        let mut replaced = Vec::new();
        let below = sized.into_iter().filter(|(of, _)| *of <= level).map(|(_, name)| name);
        for name in below {
            let rows = open_file(self.folder.as_fd(), &name.to_string())
                .and_then(|(file, _)| IndexFile::open(file, name.crc32c, self.root_inode))
                .and_then(|mut file| file.all());
            match rows {
                Ok(rows) => {
                    merged.extend(rows.into_iter().map(|row| (key_of(&row), row)));
                    replaced.push(name);
                }
                // The file may be of a later version: only `iovcache index` removes it.
                Err(error) => tracing::debug!(%name, %error, "not merged"),
            }
        }
        let sequence = replaced.iter().map(|name| name.sequence).max().unwrap_or(1);
        self.write(merged.into_values().collect(), sequence)?;
        for name in replaced {
            self.remove(&name.to_string())?;
            crash_point("index-file-removed");
        }
        self.clean()
    }

    /// Removes old files of killed writers.
    fn clean(&self) -> io::Result<()> {
        let mut left = Vec::new();
        for_each_entry(&self.folder, |name, kind| {
            if kind == EntryKind::File && name.starts_with('.') && name.ends_with(".part") {
                left.push(name.to_owned());
            }
        })?;
        for name in left {
            let stat = statat(&self.folder, &name, AtFlags::SYMLINK_NOFOLLOW);
            let old =
                stat.is_ok_and(|stat| !is_recent(Stamp::from(&stat).changed_nanos, LEFTOVER_AGE));
            if old {
                self.remove(&name)?;
            }
        }
        Ok(())
    }
}

pub(super) type Key = (std::sync::Arc<str>, i64, ObjectId);

pub(super) fn key_of(row: &IndexRow) -> Key {
    (std::sync::Arc::clone(&row.path), row.from, row.id)
}

pub(super) fn level(bytes: u64) -> u32 {
    (bytes / SMALL_BYTES).max(1).ilog(MERGED_FILES as u64)
}
