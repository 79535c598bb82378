//! Opens files and folders beneath a root. No link leads out of the root.
//!
//! ```text
//!  root ──openat2(RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS)──▶ descriptor ──fstat──▶ regular file?
//!     └─ kernel without it: openat(O_NOFOLLOW) for each element of the name ──┘
//! ```
//!
//! The check and the opening are one step: the file that is read is the file that was checked, even
//! if the name is changed a moment later.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat, fstat, openat, openat2};
use rustix::io::Errno;

/// Maximum number of attempts of `openat2` for one file. It fails with EAGAIN while folders in the
/// name are renamed.
const OPEN_ATTEMPTS: usize = 8;

/// The root folder of a repository.
///
/// It is opened by its name for each use, so a folder that is replaced by another is noticed.
#[derive(Debug, Clone)]
pub(super) struct Root {
    path: PathBuf,
}

/// Identity, size and times of a file. It differs once the file was changed or replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) inode: u64,
    pub(super) changed_nanos: i64,
    pub(super) modified_nanos: i64,
    pub(super) size_bytes: u64,
}

impl From<&Stat> for Stamp {
    fn from(stat: &Stat) -> Self {
        let nanos = |seconds: i64, nanos: u64| {
            seconds.saturating_mul(1_000_000_000).saturating_add_unsigned(nanos)
        };
        Self {
            inode: stat.st_ino,
            changed_nanos: nanos(stat.st_ctime, stat.st_ctime_nsec),
            modified_nanos: nanos(stat.st_mtime, stat.st_mtime_nsec),
            size_bytes: u64::try_from(stat.st_size).unwrap_or(0),
        }
    }
}

/// Kind of an entry of a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EntryKind {
    File,
    Folder,
    /// A link, FIFO, socket or device: never opened.
    Other,
}

impl Root {
    /// Opens the folder `path`. Links in `path` itself are followed once, now.
    ///
    /// # Errors
    /// If it does not exist, or is no folder.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let path = path.canonicalize()?;
        if !path.is_dir() {
            return Err(io::Error::new(io::ErrorKind::NotADirectory, "it is no folder"));
        }
        Ok(Self { path })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// A descriptor of the current root folder.
    ///
    /// # Errors
    /// If it does not exist.
    pub(super) fn descriptor(&self) -> io::Result<OwnedFd> {
        let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
        Ok(rustix::fs::open(&self.path, flags, Mode::empty())?)
    }

    /// Opens the folder `name` beneath the root (`""`: the root itself) for reading.
    ///
    /// # Errors
    /// If it cannot be opened, or any part of `name` is a link.
    pub(super) fn folder(&self, name: &str) -> io::Result<OwnedFd> {
        let root = self.descriptor()?;
        let name = if name.is_empty() { "." } else { name };
        open_beneath(root.as_fd(), name, OFlags::RDONLY | OFlags::DIRECTORY)
    }

    /// Opens the regular file `name` beneath the root for reading.
    ///
    /// # Errors
    /// If it cannot be opened or is no regular file, or any part of `name` is a link.
    pub(super) fn file(&self, name: &str) -> io::Result<(File, Stamp)> {
        open_file(self.descriptor()?.as_fd(), name)
    }
}

/// Opens the regular file `name` beneath `folder` for reading.
///
/// # Errors
/// If it cannot be opened or is no regular file, or any part of `name` is a link.
pub(super) fn open_file(folder: BorrowedFd<'_>, name: &str) -> io::Result<(File, Stamp)> {
    // Without NONBLOCK, opening a FIFO waits for its writer.
    let file = open_beneath(folder, name, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)?;
    let stat = fstat(&file)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok((File::from(file), Stamp::from(&stat))),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "it is no regular file")),
    }
}

/// Opens `name` beneath `folder`. Links are followed nowhere in `name`.
pub(super) fn open_beneath(
    folder: BorrowedFd<'_>,
    name: &str,
    flags: OFlags,
) -> io::Result<OwnedFd> {
    static WITHOUT_OPENAT2: AtomicBool = AtomicBool::new(false);
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    if !WITHOUT_OPENAT2.load(Ordering::Relaxed) {
        let resolve =
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        for _ in 0..OPEN_ATTEMPTS {
            match openat2(folder, name, flags, Mode::empty(), resolve) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                // A kernel before 5.6, or a system call filter that does not know `openat2`.
                Err(Errno::NOSYS | Errno::PERM) => {
                    let here = openat2(folder, ".", OFlags::PATH, Mode::empty(), resolve);
                    let missing = matches!(here, Err(Errno::NOSYS | Errno::PERM));
                    WITHOUT_OPENAT2.fetch_or(missing, Ordering::Relaxed);
                    break;
                }
                opened => return opened.map_err(named),
            }
        }
    }
    open_step_by_step(folder, name, flags)
}

/// Like [`open_beneath`], for kernels without `openat2`: opens one element after the other.
fn open_step_by_step(folder: BorrowedFd<'_>, name: &str, flags: OFlags) -> io::Result<OwnedFd> {
    let on_the_way = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut at: Option<OwnedFd> = None;
    let mut elements = name.split('/').peekable();
    while let Some(element) = elements.next() {
        if element.is_empty() || element == ".." {
            return Err(named(Errno::XDEV));
        }
        let last = elements.peek().is_none();
        let flags = if last { flags } else { on_the_way };
        let from = at.as_ref().map_or(folder, AsFd::as_fd);
        at = Some(openat(from, element, flags, Mode::empty()).map_err(named)?);
    }
    at.ok_or_else(|| named(Errno::NOENT))
}

/// The error, with a clear message if a link is the cause.
fn named(error: Errno) -> io::Error {
    match error {
        Errno::LOOP => io::Error::new(
            io::ErrorKind::InvalidData,
            "a link stands in its name, and links are not followed",
        ),
        Errno::XDEV => {
            io::Error::new(io::ErrorKind::InvalidData, "it lies outside of the repository")
        }
        error => error.into(),
    }
}

/// Calls `each` for every entry of a folder except `.` and `..`. Names that are not UTF-8 are
/// skipped: no path, number or id is among them.
///
/// # Errors
/// If the folder cannot be read.
pub(super) fn for_each_entry(
    folder: &OwnedFd,
    mut each: impl FnMut(&str, EntryKind),
) -> io::Result<()> {
    let mut entries = rustix::fs::Dir::read_from(folder)?;
    while let Some(entry) = entries.read() {
        let entry = entry?;
        let Ok(name) = entry.file_name().to_str() else { continue };
        if name == "." || name == ".." {
            continue;
        }
        let kind = match entry.file_type() {
            FileType::Unknown => kind_of(folder, entry.file_name()),
            kind => entry_kind(kind),
        };
        each(name, kind);
    }
    Ok(())
}

/// Kind of an entry, for file systems whose folders do not give it.
fn kind_of(folder: &OwnedFd, name: &CStr) -> EntryKind {
    match rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => entry_kind(FileType::from_raw_mode(stat.st_mode)),
        Err(_) => EntryKind::Other,
    }
}

const fn entry_kind(kind: FileType) -> EntryKind {
    match kind {
        FileType::RegularFile => EntryKind::File,
        FileType::Directory => EntryKind::Folder,
        _ => EntryKind::Other,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Read as _;
    use std::os::unix::fs::symlink;

    use super::*;

    /// A root with `in/file` and links, and a file `outside` beside the root.
    fn folders() -> (tempfile::TempDir, Root) {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root");
        fs::create_dir_all(root.join("in")).unwrap();
        fs::write(root.join("in/file"), "inside").unwrap();
        fs::write(folder.path().join("outside"), "outside").unwrap();
        symlink(folder.path().join("outside"), root.join("in/link")).unwrap();
        symlink("in", root.join("through")).unwrap();
        symlink("..", root.join("up")).unwrap();
        let root = Root::open(&root).unwrap();
        (folder, root)
    }

    #[test]
    fn a_regular_file_beneath_the_root_is_read_and_no_link_is_followed() {
        let (_folder, root) = folders();
        let descriptor = root.descriptor().unwrap();
        let both = |name: &str| {
            let step_by_step = open_step_by_step(
                descriptor.as_fd(),
                name,
                OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            );
            [open_file(descriptor.as_fd(), name).map(|_| ()), step_by_step.map(|_| ())]
        };
        assert!(both("in/file").iter().all(Result::is_ok));
        let mut text = String::new();
        root.file("in/file").unwrap().0.read_to_string(&mut text).unwrap();
        assert_eq!(text, "inside");
        for name in ["in/link", "through/file", "up/outside", "../outside", "in/../../outside"] {
            assert!(both(name).iter().all(Result::is_err), "{name}");
        }
    }

    #[test]
    fn a_folder_a_fifo_and_a_missing_file_are_told_apart() {
        let (_folder, root) = folders();
        let fifo = root.path().join("in/fifo");
        assert!(std::process::Command::new("mkfifo").arg(fifo).status().unwrap().success());
        let kind = |name: &str| root.file(name).unwrap_err().kind();
        assert_eq!(kind("in/fifo"), io::ErrorKind::InvalidData);
        assert_eq!(kind("in"), io::ErrorKind::InvalidData);
        assert_eq!(kind("in/none"), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_file_that_is_swapped_for_a_link_all_the_time_is_never_read_through_it() {
        let (folder, root) = folders();
        let (name, spare) = (root.path().join("in/file"), root.path().join("in/spare"));
        let outside = folder.path().join("outside");
        let swap = std::thread::spawn(move || {
            for _ in 0..2_000 {
                symlink(&outside, &spare).unwrap();
                fs::rename(&spare, &name).unwrap();
                fs::write(&spare, "inside").unwrap();
                fs::rename(&spare, &name).unwrap();
            }
        });
        let mut reads = 0;
        while !swap.is_finished() {
            if let Ok((mut file, _)) = root.file("in/file") {
                let mut text = String::new();
                file.read_to_string(&mut text).unwrap();
                assert_eq!(text, "inside");
                reads += 1;
            }
        }
        swap.join().unwrap();
        assert!(reads > 0);
    }
}
