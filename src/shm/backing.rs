//! What segments are made of, and how one is made.
//!
//! ```text
//!  Memfd   memfd_create ─▶ fallocate ─▶ map ─▶ head ─▶ seal       consumers get this very file
//!  Folder  create 0640  ─▶ fallocate ─▶ map ─▶ head ─▶ open again, read-only, for consumers
//!  FairMq  the same, under a name that FairMQ's shmem opens
//! ```
//!
//! Where the host gives huge pages on advice only, they are made through the mapping, and fallocate
//! comes after it for what is left and to say whether there was room.

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
use super::huge_pages;
use super::layout::SegmentHeader;
use super::mapping::{MapAccess, Mapping};

/// Where POSIX shared memory has its names, and so FairMQ's segments.
const SHM_FOLDER: &str = "/dev/shm";

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
    /// Files (0640) with the names of FairMQ's managed segments, `/dev/shm/fmq_<shmid>_m_<n>`, so
    /// that an unmodified FairMQ consumer opens them. Not sealed either. FairMQ may read there;
    /// it must not allocate in them, since their free places are not known to it. All of them are
    /// made at the start and stay: FairMQ registers a segment before its devices start, and makes
    /// one of its own where there is none of that name.
    FairMq {
        /// FairMQ's id of the session: the first 8 hexadecimal digits of SHA-256 of user and
        /// session.
        shmid: String,
        /// The least number of our segments; those below are FairMQ's own. A number is never used
        /// twice in a session: `/dev/shm/iovcache_<shmid>.numbers` holds the next one, and outlives
        /// the service.
        first_segment: u16,
    },
}

impl Backing {
    /// FairMQ's id of the session, if FairMQ is to know the segments: then it looks for their names
    /// before anything is loaded.
    pub fn fairmq_shmid(&self) -> Option<&str> {
        match self {
            Self::Memfd | Self::Folder(_) => None,
            Self::FairMq { shmid, .. } => Some(shmid),
        }
    }
}

/// Where segments with names have them.
#[derive(Debug)]
struct NamedFiles {
    folder: PathBuf,
    prefix: String,
    lock: Arc<NameLock>,
    /// Of a FairMQ session alone.
    numbers: Option<NumberLog>,
}

impl NamedFiles {
    fn path(&self, segment_id: u16) -> PathBuf {
        self.folder.join(format!("{}{segment_id}", self.prefix))
    }
}

/// Makes the files of segments, and takes away those with names.
#[derive(Debug)]
pub(crate) struct Maker(Option<NamedFiles>);

/// The file of one segment, mapped.
#[derive(Debug)]
pub(crate) struct Made {
    /// What consumers get: sealed, or open for reading only.
    pub(crate) file: OwnedFd,
    pub(crate) mapping: Arc<Mapping>,
    /// Its name goes before the lock does: a successor may take the name.
    name: Option<(PathBuf, Arc<NameLock>)>,
}

impl Drop for Made {
    fn drop(&mut self) {
        if let Some((path, _)) = &self.name {
            let _ = fs::remove_file(path);
        }
    }
}

impl Maker {
    /// Takes the names, if there are any: what a dead service left under them is removed.
    ///
    /// # Errors
    /// [`io::ErrorKind::ResourceBusy`] if they belong to another service that runs,
    /// `PermissionDenied` if others may write the folder, `InvalidInput` for a shmid that is none.
    pub(crate) fn new(backing: &Backing) -> io::Result<Self> {
        match backing {
            Backing::Memfd => Ok(Self(None)),
            Backing::Folder(folder) => {
                make_own_folder(folder)?;
                let lock = Arc::new(NameLock::take(folder.join("lock"))?);
                let prefix = "segment-".into();
                let named = NamedFiles { folder: folder.clone(), prefix, lock, numbers: None };
                remove_leftovers(&named, |_| true)?;
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
                let lock = NameLock::take(folder.join(format!("iovcache_{shmid}.lock")))?;
                let prefix = format!("fmq_{shmid}_m_");
                let log = folder.join(format!("iovcache_{shmid}.numbers"));
                let mut named = NamedFiles { folder, prefix, lock: Arc::new(lock), numbers: None };
                // FairMQ's own segments have such names too.
                let left = remove_leftovers(&named, is_segment_of_ours)?;
                let after = left.map_or(0, |last| u32::from(last) + 1);
                named.numbers = Some(NumberLog::open(log, after.max(u32::from(*first_segment)))?);
                Ok(Self(Some(named)))
            }
        }
    }

    /// The number of the first segment: one that no earlier instance in this FairMQ session had, and
    /// that no file has.
    ///
    /// # Errors
    /// [`io::ErrorKind::QuotaExceeded`] if the session has no number left.
    pub(crate) fn first_number(&self) -> io::Result<u16> {
        let Some((named, numbers)) =
            self.0.as_ref().and_then(|named| Some((named, named.numbers.as_ref()?)))
        else {
            return Ok(0);
        };
        let free =
            (numbers.next..=u32::from(u16::MAX)).filter_map(|number| u16::try_from(number).ok());
        free.into_iter()
            .find(|number| !named.path(*number).exists())
            .ok_or_else(|| numbers.used_up())
    }

    /// Makes and maps a file of `bytes`, every page of it there.
    ///
    /// # Errors
    /// Of kind `StorageFull` where there is no memory for it; never a SIGBUS later.
    pub(crate) fn make(&self, segment_id: u16, bytes: u64) -> io::Result<Made> {
        let Some(named) = &self.0 else {
            let name = CString::new(format!("iovcache-{segment_id}"))?;
            let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
            let file = memfd_create(&name, flags)?;
            let mapping = Arc::new(allocated(&file, bytes, huge_pages::memfds_on_advice())?);
            return Ok(Made { file, mapping, name: None });
        };
        let path = named.path(segment_id);
        if let Some(numbers) = &named.numbers {
            numbers.write(u32::from(segment_id) + 1)?;
        }
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create_new(true).mode(0o640).open(&path)?;
        let on_advice = huge_pages::file_on_advice(file.as_fd());
        let made = || Ok((Arc::new(allocated(&file, bytes, on_advice)?), read_only(&path, &file)?));
        match made() {
            Ok((mapping, file)) => {
                Ok(Made { file, mapping, name: Some((path, Arc::clone(&named.lock))) })
            }
            Err(error) => {
                let _ = fs::remove_file(&path);
                Err(error)
            }
        }
    }

    /// From now on the file can be neither written nor resized through any other mapping.
    pub(crate) fn seal(&self, made: &Made) -> io::Result<()> {
        if self.0.is_none() {
            let seals =
                SealFlags::SHRINK | SealFlags::GROW | SealFlags::FUTURE_WRITE | SealFlags::SEAL;
            fcntl_add_seals(&made.file, seals)?;
        }
        Ok(())
    }
}

/// Maps a file that has nothing yet, once it has `bytes`. `on_advice`: of huge pages, if there are
/// some for who asks.
fn allocated(file: impl AsFd, bytes: u64, on_advice: bool) -> io::Result<Mapping> {
    cgroup::check_room(bytes)?;
    let length = usize::try_from(bytes).map_err(|_| io::ErrorKind::OutOfMemory)?;
    let map = || Mapping::of_file(file.as_fd(), length, MapAccess::ReadWrite);
    // Not if there is no room anyway: they would fill what others write to.
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

/// What the file's system has left, if it says so: that of memfds has no limit.
fn free_bytes(file: impl AsFd) -> io::Result<u64> {
    let facts = fstatvfs(file)?;
    Ok(if facts.f_blocks == 0 { u64::MAX } else { facts.f_bavail.saturating_mul(facts.f_frsize) })
}

/// Gives the first `bytes` of a file their pages. Not ftruncate: a tmpfs that is short of memory
/// says so here, not by a SIGBUS later.
pub(super) fn allocate(file: impl AsFd, bytes: u64) -> io::Result<()> {
    const PIECE_BYTES: u64 = 32 << 20;
    match fallocate(&file, FallocateFlags::empty(), 0, bytes) {
        Ok(()) => return Ok(()),
        // A signal makes the kernel undo all that one call did; so short ones, each done again.
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

/// The file again, for those who may only read it: a descriptor that can write would give more to
/// a consumer than the mode of the file does.
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

/// Makes the folder, or finds that it is ours: in one that others can write they could put another
/// file in place of a segment.
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

/// Whether a file begins as a segment of ours does.
fn is_segment_of_ours(path: &Path) -> bool {
    let mut magic = [0; 8];
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path);
    file.and_then(|file| file.read_exact_at(&mut magic, SegmentHeader::MAGIC_OFFSET as u64))
        .is_ok_and(|()| magic == SegmentHeader::MAGIC)
}

/// Removes the files of a dead instance; gives the greatest number of one.
fn remove_leftovers(
    named: &NamedFiles,
    is_ours: impl Fn(&Path) -> bool,
) -> io::Result<Option<u16>> {
    let mut last = None;
    for entry in fs::read_dir(&named.folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let id = name.to_str().and_then(|name| name.strip_prefix(&named.prefix));
        let Some(id) = id.and_then(|id| id.parse::<u16>().ok()) else { continue };
        if is_ours(&entry.path()) {
            fs::remove_file(entry.path())?;
            last = last.max(Some(id));
        }
    }
    Ok(last)
}

/// Which numbers of segments a FairMQ session has used. A device keeps its mapping of a number, and
/// would read other bytes under the old MetaHeaders if the number came back: so none does, and this
/// file outlives the service. It holds the next number in decimal digits.
#[derive(Debug)]
struct NumberLog {
    path: PathBuf,
    next: u32,
}

impl NumberLog {
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] if the file holds no number.
    fn open(path: PathBuf, at_least: u32) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let flags = OFlags::NOFOLLOW.bits().cast_signed();
        let next = match options.read(true).custom_flags(flags).open(&path) {
            Ok(file) => {
                let mut text = String::new();
                file.take(16).read_to_string(&mut text)?;
                text.trim().parse::<u32>().map_err(|_| {
                    let message = format!(
                        "{} holds {text:?}, expected the next number of a segment: remove it when \
                         no device of the session runs",
                        path.display()
                    );
                    io::Error::new(io::ErrorKind::InvalidData, message)
                })?
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(error),
        };
        Ok(Self { path, next: next.max(at_least) })
    }

    /// Numbers below `next` are used. Written before the segment is there, and whole at any time.
    fn write(&self, next: u32) -> io::Result<()> {
        let new = self.path.with_extension("numbers.new");
        let _ = fs::remove_file(&new);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o640).open(&new)?;
        writeln!(file, "{next}")?;
        fs::rename(&new, &self.path)
    }

    fn used_up(&self) -> io::Error {
        let message = format!(
            "every number of a segment from {} on was used in this FairMQ session: use a new \
             session, or remove {} when no device of this one runs",
            self.next,
            self.path.display()
        );
        io::Error::new(io::ErrorKind::QuotaExceeded, message)
    }
}

/// The right to names, held by a file lock: it ends with the process, however that ends.
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
            // Its last holder may have removed the file between our opening and our locking it.
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
        // Removed while it is locked: nobody else can take it for theirs.
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
        // The folder stays taken until the last segment is gone.
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
        // What the umask leaves of 0640 and 0750.
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
        // FairMQ's own, which is not ours to remove; and one that a dead service of ours left.
        fs::write(name(0), vec![0; 4096]).unwrap();
        let mut left = vec![0; 4096];
        left[SegmentHeader::MAGIC_OFFSET..][..8].copy_from_slice(&SegmentHeader::MAGIC);
        fs::write(name(6), left).unwrap();
        let maker = Maker::new(&backing).unwrap();
        assert!(name(0).exists() && !name(6).exists());
        // 6 was used, and whatever is mapped of it stays mapped: the next one is 7.
        assert_eq!(maker.first_number().unwrap(), 7);
        let made = maker.make(7, 8192).unwrap();
        assert!(name(7).exists());
        drop((made, maker));
        assert!(!name(7).exists());
        let numbers = Path::new(SHM_FOLDER).join(format!("iovcache_{shmid}.numbers"));
        assert_eq!(fs::read_to_string(&numbers).unwrap(), "8\n");
        // A successor begins behind, and leaves out what has a name already.
        fs::write(name(8), "of another program").unwrap();
        assert_eq!(Maker::new(&backing).unwrap().first_number().unwrap(), 9);
        fs::write(&numbers, "65536").unwrap();
        let error = Maker::new(&backing).unwrap().first_number().unwrap_err();
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
