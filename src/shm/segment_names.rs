//! Names of segments: their owner, the leftovers of a dead instance, and files of other programs.
//!
//! ```text
//!  segment-<n>, fmq_<shmid>_m_<n>
//!     no file                      free
//!     our magic, our range         left by a dead instance: removed at the start
//!     our magic, another range     of another cache of the session: left alone, number skipped
//!     anything else                of another program: left alone, number skipped, or refused
//!                                  where it is the very number that was configured
//! ```

use std::fs::{self, DirBuilder, File, Metadata, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::OFlags;

use super::layout::SegmentHeader;
use super::numbers::NumberLog;

/// Folder of POSIX shared memory, where FairMQ has its segments.
pub(super) const SHM_FOLDER: &str = "/dev/shm";

/// The names of one pool's segments. Owned through a lock, until the last segment is dropped.
#[derive(Debug)]
pub(super) struct SegmentNames {
    folder: PathBuf,
    prefix: String,
    lock: Arc<NameLock>,
    /// Only for a FairMQ session.
    numbers: Option<NumberLog>,
}

impl SegmentNames {
    /// The names `segment-<n>` in a folder of this user. Removes the leftovers of a dead instance.
    ///
    /// # Errors
    /// [`io::ErrorKind::ResourceBusy`] if another running service has the folder,
    /// `PermissionDenied` if others may write to it.
    pub(super) fn in_folder(folder: &Path) -> io::Result<Self> {
        make_own_folder(folder)?;
        let lock = Arc::new(NameLock::take(folder.join("lock"))?);
        let prefix = "segment-".into();
        let names = Self { folder: folder.to_owned(), prefix, lock, numbers: None };
        names.remove_leftovers(|_, _| true)?;
        Ok(names)
    }

    /// The names of FairMQ's managed segments from number `first` on. Removes the leftovers of a
    /// dead instance, whose numbers count as used.
    ///
    /// # Errors
    /// [`io::ErrorKind::ResourceBusy`] if another running cache counts from `first` in this
    /// session, `AlreadyExists` if another program has that number, `InvalidInput` for an invalid
    /// shmid.
    pub(super) fn in_session(shmid: &str, first: u16) -> io::Result<Self> {
        if !(1..=32).contains(&shmid.len())
            || !shmid.bytes().all(|byte| byte.is_ascii_alphanumeric())
        {
            let message = format!("{shmid:?} is no shmid: 1 to 32 letters and digits");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let folder = PathBuf::from(SHM_FOLDER);
        let lock = folder.join(format!("iovcache_{shmid}.{first}.lock"));
        let lock = NameLock::take(lock).map_err(|error| match error.kind() {
            io::ErrorKind::ResourceBusy => io::Error::new(
                error.kind(),
                format!(
                    "{error}: it counts its segments from {first} in this FairMQ session; give \
                     each cache of a session a fairmq_segment of its own"
                ),
            ),
            _ => error,
        })?;
        let prefix = format!("fmq_{shmid}_m_");
        let numbers = NumberLog::open(&folder, shmid, first)?;
        let names = Self { folder, prefix, lock: Arc::new(lock), numbers: Some(numbers) };
        names.refuse_another_program(first)?;
        // FairMQ's own segments, and those of other caches, have such names, too. Earlier versions
        // stored no range.
        let left = names.remove_leftovers(|id, range| match range {
            0 => id >= first,
            range => range == u32::from(first) + 1,
        })?;
        if let (Some(last), Some(numbers)) = (left, &names.numbers) {
            numbers.used_to(last)?;
        }
        Ok(names)
    }

    pub(super) fn path(&self, id: u16) -> PathBuf {
        self.folder.join(format!("{}{id}", self.prefix))
    }

    /// The lock on the names, for each segment that has one.
    pub(super) fn lock(&self) -> Arc<NameLock> {
        Arc::clone(&self.lock)
    }

    /// The number from which the cache counts in a FairMQ session.
    pub(super) fn first(&self) -> Option<u16> {
        self.numbers.as_ref().map(NumberLog::first)
    }

    /// Whether no file has the name with this number. A file of another program is logged.
    pub(super) fn is_free(&self, id: u16) -> bool {
        let path = self.path(id);
        match fs::symlink_metadata(&path) {
            Err(error) => error.kind() == io::ErrorKind::NotFound,
            Ok(facts) => {
                if range_of(&path).is_none() {
                    let (file, kind) = (path.display(), kind_of(&facts));
                    tracing::warn!(
                        "segment number {id} is skipped: {file} ({kind}) is of another program"
                    );
                }
                false
            }
        }
    }

    /// Takes the next free number of a FairMQ session. `None`: there is no session.
    ///
    /// # Errors
    /// [`io::ErrorKind::QuotaExceeded`] if the session has no number left.
    pub(super) fn take_number(&self) -> io::Result<Option<u16>> {
        self.numbers.as_ref().map(|numbers| numbers.take(|id| self.is_free(id))).transpose()
    }

    /// Refuses to count from a number that another program has: two programs are configured to use
    /// the same number.
    fn refuse_another_program(&self, first: u16) -> io::Result<()> {
        let path = self.path(first);
        let facts = match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            facts => facts?,
        };
        if range_of(&path).is_some() {
            return Ok(());
        }
        let message = format!(
            "{} is {}, and no segment of this service: another program of the FairMQ session has \
             number {first}; count from another number (fairmq_segment), or remove the file if \
             nothing uses it",
            path.display(),
            kind_of(&facts)
        );
        Err(io::Error::new(io::ErrorKind::AlreadyExists, message))
    }

    /// Removes the segments of a dead instance for which `is_ours(number, range)` holds; returns
    /// the highest number among them. Files of other programs stay.
    fn remove_leftovers(&self, is_ours: impl Fn(u16, u32) -> bool) -> io::Result<Option<u16>> {
        let mut last = None;
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            let name = entry.file_name();
            let id = name.to_str().and_then(|name| name.strip_prefix(&self.prefix));
            let Some(id) = id.and_then(|id| id.parse::<u16>().ok()) else { continue };
            let path = entry.path();
            if range_of(&path).is_some_and(|range| is_ours(id, range)) {
                fs::remove_file(&path).map_err(|error| {
                    let message = format!(
                        "{} is left by a dead instance and cannot be removed: {error}",
                        path.display()
                    );
                    io::Error::new(error.kind(), message)
                })?;
                last = last.max(Some(id));
            }
        }
        Ok(last)
    }
}

/// The range in the head of a segment of this service, see [`SegmentHeader`]. `None` for everything
/// else, unreadable files and symbolic links included.
fn range_of(path: &Path) -> Option<u32> {
    let mut head = [0; size_of::<SegmentHeader>()];
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).ok()?;
    file.read_exact_at(&mut head, 0).ok()?;
    SegmentHeader::range_of(&head)
}

fn kind_of(facts: &Metadata) -> String {
    let kind = facts.file_type();
    if kind.is_file() {
        format!("a file of {} bytes of user {}", facts.len(), facts.uid())
    } else if kind.is_dir() {
        "a folder".to_owned()
    } else if kind.is_symlink() {
        "a symbolic link".to_owned()
    } else {
        "no regular file".to_owned()
    }
}

pub(super) fn same_file(one: &Metadata, other: &Metadata) -> bool {
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

/// Creates the folder, or checks its owner and mode: if others can write to it, they could replace
/// a segment by another file.
fn make_own_folder(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o750).create(folder)?;
    let facts = fs::metadata(folder)?;
    if facts.uid() != rustix::process::geteuid().as_raw() || facts.mode() & 0o022 != 0 {
        let message = format!(
            "{} belongs to user {} with mode {:03o}: segments need a folder that only we can write",
            folder.display(),
            facts.uid(),
            facts.mode() & 0o777,
        );
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, message));
    }
    Ok(())
}

/// Ownership of names by a file lock, which ends with the process in any case.
#[derive(Debug)]
pub(super) struct NameLock {
    path: PathBuf,
    _file: File,
}

impl NameLock {
    fn take(path: PathBuf) -> io::Result<Self> {
        loop {
            let mut file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o640)
                .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
                .open(&path)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    let mut pid = String::new();
                    let _ = file.read_to_string(&mut pid);
                    let message = format!("{} is held by process {}", path.display(), pid.trim());
                    return Err(io::Error::new(io::ErrorKind::ResourceBusy, message));
                }
                Err(TryLockError::Error(error)) => return Err(error),
            }
            // The previous owner may have removed the file between open and lock.
            let here = fs::metadata(&path).and_then(|here| Ok(same_file(&here, &file.metadata()?)));
            match here {
                Ok(true) => {}
                Ok(false) => continue,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            }
            file.set_len(0)?;
            file.rewind()?;
            writeln!(file, "{}", std::process::id())?;
            return Ok(Self { path, _file: file });
        }
    }
}

impl Drop for NameLock {
    fn drop(&mut self) {
        // Removed while it is locked, so no other process can take it.
        let _ = fs::remove_file(&self.path);
    }
}
