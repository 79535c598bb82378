//! The backing of segments: creates their files, maps them and seals them.
//!
//! ```text
//!  Memfd   memfd_create ─▶ fallocate ─▶ map ─▶ head ─▶ seal       consumers get this file
//!  Folder  create 0640  ─▶ fallocate ─▶ map ─▶ head ─▶ open again, read-only, for consumers
//!  FairMq  like Folder, with a name that FairMQ's shmem opens
//! ```
//!
//! If the host gives huge pages only on advice, they are made through the mapping. fallocate then
//! follows for the remaining pages, and reports whether there was room.

use std::ffi::CString;
use std::fs::{self, DirBuilder, File, Metadata, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{
    FallocateFlags, MemfdFlags, OFlags, SealFlags, fallocate, fcntl_add_seals, fstatvfs, ftruncate,
    memfd_create,
};

use super::cgroup;
use super::host::HostMemory;
use super::huge_pages;
use super::layout::SegmentHeader;
use super::mapping::{MapAccess, Mapping};
use super::numbers::NumberLog;

/// Folder of POSIX shared memory, where FairMQ has its segments.
const SHM_FOLDER: &str = "/dev/shm";

/// The kind of files that back the segments.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Backing {
    /// Unnamed files that are sealed once they are mapped: consumers get them only through the
    /// attach socket, and can neither write nor truncate them.
    #[default]
    Memfd,
    /// Files (0640) with names in this folder (0750), for consumers that must open by name. They
    /// cannot be sealed: a process with write access to the file can corrupt it.
    Folder(PathBuf),
    /// Files (0640) with the names of FairMQ's managed segments, `/dev/shm/fmq_<shmid>_m_<n>`, so
    /// that an unmodified FairMQ consumer opens them. Not sealed either. FairMQ may read them but
    /// must not allocate in them, since it does not know their free places. All of them are made at
    /// the start and stay: FairMQ registers a segment before its devices start, and creates one
    /// itself if there is none with that name.
    FairMq {
        /// FairMQ's id of the session: the first 8 hexadecimal digits of SHA-256 of user and
        /// session.
        shmid: String,
        /// The lowest number of the service's segments; lower numbers are FairMQ's own. A number is
        /// never used twice in a session: `/dev/shm/iovcache_<shmid>.numbers` holds the next one,
        /// and outlives the service.
        first_segment: u16,
    },
    /// Memory that the surrounding program allocates, one buffer per object: no segment is created.
    Host(HostMemory),
}

impl Backing {
    /// FairMQ's id of the session, for a backing whose segments FairMQ knows by name before
    /// anything is loaded.
    pub fn fairmq_shmid(&self) -> Option<&str> {
        match self {
            Self::Memfd | Self::Folder(_) | Self::Host(_) => None,
            Self::FairMq { shmid, .. } => Some(shmid),
        }
    }
}

/// The names of segments.
#[derive(Debug)]
struct NamedFiles {
    folder: PathBuf,
    prefix: String,
    lock: Arc<NameLock>,
    /// Only for a FairMQ session.
    numbers: Option<NumberLog>,
}

impl NamedFiles {
    fn path(&self, segment_id: u16) -> PathBuf {
        self.folder.join(format!("{}{segment_id}", self.prefix))
    }
}

/// Makes the files of segments, and removes those with names.
#[derive(Debug)]
pub(crate) struct Maker(Option<NamedFiles>);

/// The file of one segment, mapped.
#[derive(Debug)]
pub(crate) struct Made {
    /// The file for consumers: sealed, or open for reading only.
    pub(crate) file: OwnedFd,
    pub(crate) mapping: Arc<Mapping>,
    /// The name is removed before the lock is released, since the next service may reuse it.
    name: Option<(PathBuf, Arc<NameLock>)>,
}

impl Made {
    /// The path of the file, if it has a name.
    pub(crate) fn path(&self) -> Option<&Path> {
        self.name.as_ref().map(|(path, _)| path.as_path())
    }

    /// Whether the file had a name that no longer refers to it.
    pub(crate) fn has_lost_its_name(&self) -> bool {
        let Some(path) = self.path() else { return false };
        let (here, ours) = (fs::symlink_metadata(path), rustix::fs::fstat(&self.file));
        match (here, ours) {
            (Ok(here), Ok(ours)) => (here.dev(), here.ino()) != (ours.st_dev, ours.st_ino),
            (Err(error), _) => error.kind() == io::ErrorKind::NotFound,
            (Ok(_), Err(_)) => false,
        }
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        // A file of another program under that name must not be removed.
        if let Some(path) = self.path().filter(|_| !self.has_lost_its_name()) {
            let _ = fs::remove_file(path);
        }
    }
}

impl Maker {
    /// Takes the lock on the names, if there are any, and removes files of a dead service.
    ///
    /// # Errors
    /// [`io::ErrorKind::ResourceBusy`] if another running service has the names, `PermissionDenied`
    /// if others may write the folder, `InvalidInput` for an invalid shmid.
    pub(crate) fn new(backing: &Backing) -> io::Result<Self> {
        match backing {
            Backing::Memfd | Backing::Host(_) => Ok(Self(None)),
            Backing::Folder(folder) => {
                make_own_folder(folder)?;
                let lock = Arc::new(NameLock::take(folder.join("lock"))?);
                let prefix = "segment-".into();
                let named = NamedFiles { folder: folder.clone(), prefix, lock, numbers: None };
                remove_leftovers(&named, |_, _| true)?;
                Ok(Self(Some(named)))
            }
            Backing::FairMq { shmid, first_segment } => {
                if !(1..=32).contains(&shmid.len())
                    || !shmid.bytes().all(|byte| byte.is_ascii_alphanumeric())
                {
                    let message = format!("{shmid:?} is no shmid: 1 to 32 letters and digits");
                    return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
                }
                let folder = PathBuf::from(SHM_FOLDER);
                let first = *first_segment;
                let lock = folder.join(format!("iovcache_{shmid}.{first}.lock"));
                let lock = NameLock::take(lock).map_err(|error| match error.kind() {
                    io::ErrorKind::ResourceBusy => io::Error::new(
                        error.kind(),
                        format!(
                            "{error}: it counts its segments from {first} in this FairMQ session; \
                             give each cache of a session a fairmq_segment of its own"
                        ),
                    ),
                    _ => error,
                })?;
                let prefix = format!("fmq_{shmid}_m_");
                let numbers = NumberLog::open(&folder, shmid, first)?;
                let (lock, numbers) = (Arc::new(lock), Some(numbers));
                let named = NamedFiles { folder, prefix, lock, numbers };
                // FairMQ's own segments, and those of other caches, have such names, too.
                let left = remove_leftovers(&named, |id, path| is_left_by(first, id, path))?;
                if let (Some(last), Some(numbers)) = (left, &named.numbers) {
                    numbers.used_to(last)?;
                }
                Ok(Self(Some(named)))
            }
        }
    }

    /// A number for the next segment that no cache of this FairMQ session has used, and that no
    /// file has. `None`: there is no session, so any number is allowed.
    ///
    /// # Errors
    /// [`io::ErrorKind::QuotaExceeded`] if the session has no number left.
    pub(crate) fn take_number(&self) -> io::Result<Option<u16>> {
        let Some(named) = &self.0 else { return Ok(None) };
        let take = |numbers: &NumberLog| numbers.take(|number| !named.path(number).exists());
        named.numbers.as_ref().map(take).transpose()
    }

    /// The value that marks the creator in the head of a segment: in a FairMQ session 1 more than
    /// the number from which the cache counts, else 0.
    pub(crate) fn range(&self) -> u32 {
        let numbers = self.0.as_ref().and_then(|named| named.numbers.as_ref());
        numbers.map_or(0, |numbers| u32::from(numbers.first()) + 1)
    }

    /// Creates and maps a file of `bytes`, with all its pages allocated.
    ///
    /// # Errors
    /// Of kind `StorageFull` if there is no memory for it; never a later SIGBUS.
    pub(crate) fn make(&self, segment_id: u16, bytes: u64) -> io::Result<Made> {
        let Some(named) = &self.0 else {
            let name = CString::new(format!("iovcache-{segment_id}"))?;
            let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
            let file = memfd_create(&name, flags)?;
            let mapping = Arc::new(allocated(&file, bytes, huge_pages::memfds_on_advice())?);
            return Ok(Made { file, mapping, name: None });
        };
        let path = named.path(segment_id);
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create_new(true).mode(0o640).open(&path);
        let file = file.map_err(|error| named_error(&path, &error))?;
        let on_advice = huge_pages::file_on_advice(file.as_fd());
        let made = || Ok((Arc::new(allocated(&file, bytes, on_advice)?), read_only(&path, &file)?));
        match made() {
            Ok((mapping, file)) => {
                Ok(Made { file, mapping, name: Some((path, Arc::clone(&named.lock))) })
            }
            Err(error) => {
                let _ = fs::remove_file(&path);
                Err(named_error(&path, &error))
            }
        }
    }

    /// Seals the file: it can no longer be written or resized through any other mapping.
    pub(crate) fn seal(&self, made: &Made) -> io::Result<()> {
        if self.0.is_none() {
            let seals =
                SealFlags::SHRINK | SealFlags::GROW | SealFlags::FUTURE_WRITE | SealFlags::SEAL;
            fcntl_add_seals(&made.file, seals)?;
        }
        Ok(())
    }
}

/// Gives an empty file `bytes` and maps it. `on_advice`: advise the kernel to use huge pages.
fn allocated(file: impl AsFd, bytes: u64, on_advice: bool) -> io::Result<Mapping> {
    cgroup::check_room(bytes)?;
    let length = usize::try_from(bytes).map_err(|_| io::ErrorKind::OutOfMemory)?;
    let map = || Mapping::of_file(file.as_fd(), length, MapAccess::ReadWrite);
    // Not without enough room: the advice would use up what others write to.
    if on_advice && bytes <= free_bytes(&file)? {
        ftruncate(&file, bytes)?;
        let mapping = map()?;
        mapping.make_huge_pages();
        allocate(&file, bytes)?;
        return Ok(mapping);
    }
    allocate(&file, bytes)?;
    map()
}

/// Free bytes of the file system, if it has a limit: that of memfds has none.
fn free_bytes(file: impl AsFd) -> io::Result<u64> {
    let facts = fstatvfs(file)?;
    Ok(if facts.f_blocks == 0 { u64::MAX } else { facts.f_bavail.saturating_mul(facts.f_frsize) })
}

/// Allocates the pages of the first `bytes` of a file. Unlike ftruncate, this reports a tmpfs that
/// is short of memory here, instead of a later SIGBUS.
pub(super) fn allocate(file: impl AsFd, bytes: u64) -> io::Result<()> {
    const PIECE_BYTES: u64 = 32 << 20;
    match fallocate(&file, FallocateFlags::empty(), 0, bytes) {
        Ok(()) => return Ok(()),
        // A signal makes the kernel undo the work of one call, so pieces are allocated, each
        // retried.
        Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    let mut start = 0;
    while start < bytes {
        let length = PIECE_BYTES.min(bytes - start);
        rustix::io::retry_on_intr(|| fallocate(&file, FallocateFlags::empty(), start, length))?;
        start += length;
    }
    Ok(())
}

/// Opens the file again for reading only: a writable descriptor would give a consumer more access
/// than the mode of the file does.
pub(super) fn read_only(path: &Path, file: &File) -> io::Result<OwnedFd> {
    let again = OpenOptions::new()
        .read(true)
        .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
        .open(path)?;
    if same_file(&again.metadata()?, &file.metadata()?) {
        Ok(again.into())
    } else {
        let message = format!("{} was replaced meanwhile", path.display());
        Err(io::Error::new(io::ErrorKind::ResourceBusy, message))
    }
}

fn same_file(one: &Metadata, other: &Metadata) -> bool {
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

/// Adds the file and a remedy to an error.
fn named_error(path: &Path, error: &io::Error) -> io::Error {
    let folder = path.parent().unwrap_or(path).display();
    let remedy = match error.kind() {
        io::ErrorKind::AlreadyExists => {
            "another program made it: count from another number (fairmq_segment), or remove it if \
             nothing uses it"
                .to_owned()
        }
        io::ErrorKind::StorageFull | io::ErrorKind::OutOfMemory => {
            format!("{folder} has no room for it: make `memory` smaller, or the file system larger")
        }
        io::ErrorKind::PermissionDenied => format!("{folder} has to be writable for this user"),
        _ => return io::Error::new(error.kind(), format!("{}: {error}", path.display())),
    };
    io::Error::new(error.kind(), format!("{}: {error}; {remedy}", path.display()))
}

/// Whether the cache that counts from `first` left this file in its session: its head has the magic
/// of this service and that range. (Earlier versions stored no range.)
fn is_left_by(first: u16, id: u16, path: &Path) -> bool {
    let mut head = [0; size_of::<SegmentHeader>()];
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path);
    let is_read = file.and_then(|file| file.read_exact_at(&mut head, 0)).is_ok();
    match SegmentHeader::range_of(&head).filter(|_| is_read) {
        Some(0) => id >= first,
        Some(range) => range == u32::from(first) + 1,
        None => false,
    }
}

/// Removes the files of a dead instance; returns the highest number among them.
fn remove_leftovers(
    named: &NamedFiles,
    is_ours: impl Fn(u16, &Path) -> bool,
) -> io::Result<Option<u16>> {
    let mut last = None;
    for entry in fs::read_dir(&named.folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let id = name.to_str().and_then(|name| name.strip_prefix(&named.prefix));
        let Some(id) = id.and_then(|id| id.parse::<u16>().ok()) else { continue };
        if is_ours(id, &entry.path()) {
            fs::remove_file(entry.path())?;
            last = last.max(Some(id));
        }
    }
    Ok(last)
}

/// Ownership of names by a file lock, which ends with the process in any case.
#[derive(Debug)]
struct NameLock {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn made_in(folder: &Path) -> io::Result<Maker> {
        Maker::new(&Backing::Folder(folder.to_owned()))
    }

    #[test]
    fn a_second_service_in_one_folder_is_told_who_has_it() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("segments");
        let first = made_in(&folder).unwrap();
        let error = made_in(&folder).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ResourceBusy);
        assert!(error.to_string().contains(&std::process::id().to_string()), "{error}");
        // The folder stays locked until the last segment is gone.
        let segment = first.make(0, 8192).unwrap();
        drop(first);
        assert!(made_in(&folder).is_err());
        drop(segment);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
        made_in(&folder).unwrap();
    }

    #[test]
    fn what_a_dead_service_left_is_removed_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o750))
            .unwrap();
        for name in ["segment-0", "segment-65535", "segment-x", "else", "lock"] {
            fs::write(folder.path().join(name), "left").unwrap();
        }
        let _maker = made_in(folder.path()).unwrap();
        let mut left: Vec<_> =
            fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["else", "lock", "segment-x"]);
    }

    #[test]
    fn a_folder_that_others_can_write_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777))
            .unwrap();
        let error = made_in(folder.path()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        assert!(error.to_string().contains("777"), "{error}");
    }

    #[test]
    fn names_and_modes_are_those_of_the_contract_and_consumers_get_no_right_to_write() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("segments");
        let maker = made_in(&folder).unwrap();
        let made = maker.make(7, 8192).unwrap();
        let path = folder.join("segment-7");
        let facts = fs::metadata(&path).unwrap();
        assert_eq!(facts.len(), 8192);
        // The modes 0640 and 0750 minus the umask.
        assert_eq!(facts.mode() & 0o777 & !0o640, 0);
        assert_eq!(fs::metadata(&folder).unwrap().mode() & 0o777 & !0o750, 0);
        assert!(rustix::io::pwrite(&made.file, b"spoilt", 0).is_err());
        assert!(rustix::fs::ftruncate(&made.file, 0).is_err());
        assert!(Mapping::of_file(made.file.as_fd(), 8192, MapAccess::ReadWrite).is_err());
        drop(made);
        assert!(!path.exists());
    }

    #[test]
    fn fairmq_finds_its_names_and_keeps_its_own_segments() {
        let shmid = format!("{:08x}", std::process::id());
        let backing = Backing::FairMq { shmid: shmid.clone(), first_segment: 5 };
        let name = |id: u16| Path::new(SHM_FOLDER).join(format!("fmq_{shmid}_m_{id}"));
        // FairMQ's own segment must stay; one left by a dead service is removed.
        fs::write(name(0), vec![0; 4096]).unwrap();
        let mut left = vec![0; 4096];
        left[SegmentHeader::MAGIC_OFFSET..][..8].copy_from_slice(&SegmentHeader::MAGIC);
        fs::write(name(6), left).unwrap();
        let maker = Maker::new(&backing).unwrap();
        assert!(name(0).exists() && !name(6).exists());
        // 6 was used and may still be mapped, so the next one is 7.
        assert_eq!(maker.take_number().unwrap(), Some(7));
        let made = maker.make(7, 8192).unwrap();
        assert!(name(7).exists());
        drop((made, maker));
        assert!(!name(7).exists());
        let numbers = Path::new(SHM_FOLDER).join(format!("iovcache_{shmid}.numbers"));
        assert_eq!(fs::read_to_string(&numbers).unwrap(), "8\n");
        // The next service starts after it, and skips names in use.
        fs::write(name(8), "of another program").unwrap();
        assert_eq!(Maker::new(&backing).unwrap().take_number().unwrap(), Some(9));
        fs::write(&numbers, "65536").unwrap();
        let error = Maker::new(&backing).unwrap().take_number().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::QuotaExceeded);
        assert!(error.to_string().contains(numbers.to_str().unwrap()), "{error}");
        fs::write(&numbers, "many").unwrap();
        assert_eq!(Maker::new(&backing).unwrap_err().kind(), io::ErrorKind::InvalidData);
        for file in [name(0), name(8), numbers] {
            fs::remove_file(file).unwrap();
        }
        for wrong in ["", "../x", "a b"] {
            let backing = Backing::FairMq { shmid: wrong.into(), first_segment: 0 };
            let error = Maker::new(&backing).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{wrong:?}");
        }
    }

    #[test]
    fn a_file_system_that_is_full_says_so_before_anything_is_mapped() {
        let folder = tempfile::tempdir_in(SHM_FOLDER).unwrap();
        let maker = made_in(&folder.path().join("segments")).unwrap();
        let facts = rustix::fs::statvfs(SHM_FOLDER).unwrap();
        let error = maker.make(0, (facts.f_blocks + 1) * facts.f_frsize).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert!(!folder.path().join("segments/segment-0").exists());
    }
}
