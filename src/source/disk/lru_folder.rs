//! A folder of files by UUID with a limit on its size. The least recently used files are removed.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use uuid::Uuid;

use super::file::PART;
use crate::source::regular_file::open_regular_unlinked;
use crate::sync::{Mutex, MutexGuard};

/// Approximate disk space of a file beyond its bytes: the last block, the inode.
const FILE_BYTES: u64 = 4096;

/// Files in the order of their last use.
#[derive(Debug)]
pub(super) struct LruFolder {
    folder: PathBuf,
    limit_bytes: u64,
    held: Mutex<FolderState>,
}

/// The files of a folder, and their order of use.
#[derive(Debug, Default)]
struct FolderState {
    files: HashMap<Uuid, FileUse>,
    by_use: BTreeMap<u64, Uuid>,
    uses: u64,
    bytes: u64,
}

/// Size of a file in bytes, and the number of its last use.
#[derive(Debug, Clone, Copy)]
struct FileUse {
    bytes: u64,
    used: u64,
}

impl FolderState {
    fn take(&mut self, name: Uuid) -> Option<FileUse> {
        let place = self.files.remove(&name)?;
        self.by_use.remove(&place.used);
        self.bytes -= place.bytes;
        Some(place)
    }

    fn put(&mut self, name: Uuid, bytes: u64) {
        self.take(name);
        self.uses += 1;
        self.files.insert(name, FileUse { bytes, used: self.uses });
        self.by_use.insert(self.uses, name);
        self.bytes += bytes;
    }
}

impl LruFolder {
    /// Opens `folder` with the files of earlier processes, in the order of their last use. Partial
    /// files are removed.
    pub(super) fn open(folder: PathBuf, limit_bytes: u64) -> io::Result<Self> {
        fs::create_dir_all(&folder)?;
        let mut found: Vec<(SystemTime, Uuid, u64)> = Vec::new();
        for entry in entries(&folder)? {
            match entry {
                FolderEntry::Named(name, file) => {
                    let Ok(facts) = fs::symlink_metadata(&file) else { continue };
                    let used = facts.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                    found.push((used, name, facts.len()));
                }
                FolderEntry::PartialFile(file) => fs::remove_file(file)?,
                // The file belongs to another program.
                FolderEntry::Foreign(_) => {}
            }
        }
        found.sort_unstable();
        let mut held = FolderState::default();
        for (_, name, bytes) in found {
            held.put(name, bytes.saturating_add(FILE_BYTES));
        }
        let opened = Self { folder, limit_bytes, held: Mutex::new(held) };
        opened.shrink(0);
        Ok(opened)
    }

    fn held(&self) -> MutexGuard<'_, FolderState> {
        self.held.lock()
    }

    pub(super) fn place(&self, name: Uuid) -> PathBuf {
        place(&self.folder, name)
    }

    /// Opens a file, which counts as a use.
    pub(super) fn open_file(&self, name: Uuid) -> Option<File> {
        {
            let mut held = self.held();
            let FileUse { bytes, .. } = *held.files.get(&name)?;
            held.put(name, bytes);
        }
        match open_regular_unlinked(&self.place(name)) {
            Ok(file) => {
                // Tells the next process the order of use. An error is ignored.
                let _ = file.set_modified(SystemTime::now());
                Some(file)
            }
            Err(_) => {
                self.held().take(name);
                None
            }
        }
    }

    /// Whether a file of this size fits into the limit.
    pub(super) fn can_hold(&self, bytes: u64) -> bool {
        bytes.saturating_add(FILE_BYTES) <= self.limit_bytes
    }

    /// Removes the least recently used files until there is room for `bytes` more.
    pub(super) fn shrink(&self, bytes: u64) {
        let mut gone = Vec::new();
        {
            let mut held = self.held();
            while held.bytes.saturating_add(bytes) > self.limit_bytes {
                let Some((_, name)) = held.by_use.pop_first() else { break };
                held.take(name);
                gone.push(name);
            }
        }
        for name in gone {
            let _ = fs::remove_file(self.place(name));
        }
    }

    /// Records a published file, and removes others if the limit is exceeded.
    pub(super) fn note(&self, name: Uuid, bytes: u64) {
        self.held().put(name, bytes.saturating_add(FILE_BYTES));
        self.shrink(0);
    }

    /// Removes a file.
    pub(super) fn remove(&self, name: Uuid) {
        self.held().take(name);
        let _ = fs::remove_file(self.place(name));
    }

    pub(super) fn usage(&self) -> (usize, u64) {
        let held = self.held();
        (held.files.len(), held.bytes)
    }

    /// Names of all files.
    pub(super) fn names(&self) -> Vec<Uuid> {
        self.held().files.keys().copied().collect()
    }
}

/// An entry of a folder.
pub(super) enum FolderEntry {
    Named(Uuid, PathBuf),
    PartialFile(PathBuf),
    Foreign(PathBuf),
}

/// All files in the subfolders of a folder.
pub(super) fn entries(folder: &Path) -> io::Result<Vec<FolderEntry>> {
    let mut found = Vec::new();
    for below in fs::read_dir(folder)? {
        let below = below?.path();
        if !below.is_dir() {
            found.push(FolderEntry::Foreign(below));
            continue;
        }
        for file in fs::read_dir(&below)? {
            let file = file?.path();
            let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            found.push(match Uuid::try_parse(name) {
                Ok(name) if place(folder, name) == file => FolderEntry::Named(name, file),
                _ if name.ends_with(PART) => FolderEntry::PartialFile(file),
                _ => FolderEntry::Foreign(file),
            });
        }
    }
    Ok(found)
}

/// Path of a file in a folder: 256 subfolders, by the first two digits of the name.
fn place(folder: &Path, name: Uuid) -> PathBuf {
    let name = name.hyphenated().to_string();
    folder.join(&name[..2]).join(name)
}
