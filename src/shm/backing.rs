//! What segments are made of, and how one is made.

use std::ffi::CString;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags, fallocate, fcntl_add_seals, memfd_create};

use super::mapping::{Access, Mapping};

/// What segments are made of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Backing {
    /// Files without a name that are sealed once they are mapped: consumers get them through the
    /// attach socket only, and can neither write nor truncate them.
    #[default]
    Memfd,
    /// Files (0640) with names in this folder (0750), for consumers that must open by name. They
    /// cannot be sealed: whoever may write the file can spoil it.
    Folder(PathBuf),
}

/// Makes the files of segments, and takes away those with names.
#[derive(Debug)]
pub(crate) struct Maker {
    backing: Backing,
    /// Held as long as the folder is ours.
    _lock: Option<File>,
}

/// The file of one segment, mapped.
#[derive(Debug)]
pub(crate) struct Made {
    pub(crate) file: OwnedFd,
    pub(crate) mapping: Mapping,
    name: Option<PathBuf>,
}

impl Drop for Made {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            let _ = fs::remove_file(name);
        }
    }
}

impl Maker {
    /// Takes the folder, if one is named: what a dead service left in it is removed.
    ///
    /// # Errors
    /// [`io::ErrorKind::ResourceBusy`] if it belongs to another service that runs.
    pub(crate) fn new(backing: Backing) -> io::Result<Self> {
        let lock = match &backing {
            Backing::Memfd => None,
            Backing::Folder(folder) => Some(take_folder(folder)?),
        };
        Ok(Self { backing, _lock: lock })
    }

    /// Makes and maps a file of `bytes`, every page of it there.
    ///
    /// # Errors
    /// Of kind `StorageFull` where there is no memory for it; never a SIGBUS later.
    pub(crate) fn make(&self, segment_id: u16, bytes: u64) -> io::Result<Made> {
        let (file, name) = match &self.backing {
            Backing::Memfd => {
                let name = CString::new(format!("iovcache-{segment_id}"))?;
                let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
                (memfd_create(&name, flags)?, None)
            }
            Backing::Folder(folder) => {
                let name = folder.join(segment_name(segment_id));
                let mut options = OpenOptions::new();
                let file =
                    options.read(true).write(true).create_new(true).mode(0o640).open(&name)?;
                (OwnedFd::from(file), Some(name))
            }
        };
        let made = (|| {
            // Not ftruncate: a tmpfs that is short of memory says so here, not by a SIGBUS later.
            fallocate(&file, FallocateFlags::empty(), 0, bytes)?;
            let length = usize::try_from(bytes).map_err(|_| io::ErrorKind::OutOfMemory)?;
            Mapping::of_file(file.as_fd(), length, Access::ReadWrite)
        })();
        match made {
            Ok(mapping) => Ok(Made { file, mapping, name }),
            Err(error) => {
                if let Some(name) = name {
                    let _ = fs::remove_file(name);
                }
                Err(error)
            }
        }
    }

    /// From now on the file can be neither written nor resized through any other mapping.
    pub(crate) fn seal(&self, made: &Made) -> io::Result<()> {
        match self.backing {
            Backing::Memfd => {
                let seals =
                    SealFlags::SHRINK | SealFlags::GROW | SealFlags::FUTURE_WRITE | SealFlags::SEAL;
                Ok(fcntl_add_seals(&made.file, seals)?)
            }
            Backing::Folder(_) => Ok(()),
        }
    }
}

fn segment_name(segment_id: u16) -> String {
    format!("segment-{segment_id}")
}

fn take_folder(folder: &Path) -> io::Result<File> {
    DirBuilder::new().recursive(true).mode(0o750).create(folder)?;
    let mut options = OpenOptions::new();
    let mut lock = options
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o640)
        .open(folder.join("lock"))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            let _ = lock.read_to_string(&mut pid);
            let message = format!("{} belongs to the process {}", folder.display(), pid.trim());
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, message));
        }
        Err(TryLockError::Error(error)) => return Err(error),
    }
    lock.set_len(0)?;
    lock.rewind()?;
    writeln!(lock, "{}", std::process::id())?;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let id = name.to_str().and_then(|name| name.strip_prefix("segment-"));
        if id.is_some_and(|id| id.parse::<u16>().is_ok()) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(lock)
}
