//! The backing of segments: creates their files, maps them and seals them.
//!
//! ```text
//!  Memfd   memfd_create ─▶ fallocate of a part ─▶ map ─▶ head ─▶ seal     consumers get this file
//!  Folder  create 0640  ─▶ fallocate ─▶ map ─▶ head ─▶ name ─▶ open again, read-only, for consumers
//!  FairMq  like Folder, with a name that FairMQ's shmem opens
//! ```
//!
//! If the host gives huge pages only on advice, they are made through the mapping. fallocate then
//! follows for the remaining pages, and reports whether there was room.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{
    AtFlags, CWD, FallocateFlags, MemfdFlags, OFlags, SealFlags, fallocate, fcntl_add_seals,
    fstatvfs, ftruncate, linkat, memfd_create,
};

use super::cgroup;
use super::host::HostMemory;
use super::huge_pages;
use super::mapping::{MapAccess, Mapping};
use super::segment_creation::SegmentCreation;
use super::segment_names::{NameLock, SegmentNames, same_file};

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
    /// must not allocate in them, since it does not know their free places. FairMQ opens a segment
    /// only if it is registered in the session, and creates one itself if there is none with that
    /// name.
    FairMq {
        /// FairMQ's id of the session: the first 8 hexadecimal digits of SHA-256 of user and
        /// session.
        shmid: String,
        /// The lowest number of the service's segments; lower numbers are FairMQ's own. A number is
        /// never used twice in a session: `/dev/shm/iovcache_<shmid>.numbers` holds the next one,
        /// and outlives the service.
        first_segment: u16,
        /// When they are created.
        creation: SegmentCreation,
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

/// Makes the files of segments, and removes those with names.
#[derive(Debug)]
pub(crate) struct Maker(Option<SegmentNames>);

/// The file of one segment, mapped.
#[derive(Debug)]
pub(crate) struct Made {
    /// The file for consumers: sealed, or open for reading only.
    pub(crate) file: OwnedFd,
    pub(crate) mapping: Arc<Mapping>,
    /// The first bytes of the file that have memory; the rest gets it by [`allocate`].
    pub(crate) allocated_bytes: u64,
    /// The name is removed before the lock is released, since the next service may reuse it.
    name: Option<(PathBuf, Arc<NameLock>)>,
}

impl Made {
    /// The path of the file, if it has a name.
    pub(crate) fn path(&self) -> Option<&Path> {
        self.name.as_ref().map(|(path, _)| path.as_path())
    }

    /// Removes the name, if it still refers to this file.
    pub(crate) fn remove_name(&self) {
        if let Some(path) = self.path().filter(|_| !self.has_lost_its_name()) {
            let _ = fs::remove_file(path);
        }
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
        // A file of another program under that name stays.
        self.remove_name();
    }
}

impl Maker {
    /// Takes the lock on the names, if there are any, and removes files of a dead service.
    ///
    /// # Errors
    /// [`io::ErrorKind::ResourceBusy`] if another running service has the names, `AlreadyExists` if
    /// another program has the first number of a FairMQ session, `PermissionDenied` if others may
    /// write the folder, `InvalidInput` for an invalid shmid.
    pub(crate) fn new(backing: &Backing) -> io::Result<Self> {
        match backing {
            Backing::Memfd | Backing::Host(_) => Ok(Self(None)),
            Backing::Folder(folder) => Ok(Self(Some(SegmentNames::in_folder(folder)?))),
            Backing::FairMq { shmid, first_segment, .. } => {
                Ok(Self(Some(SegmentNames::in_session(shmid, *first_segment)?)))
            }
        }
    }

    /// A number for the next segment that no cache of this FairMQ session has used, and that no
    /// file has. `None`: there is no session, so any number is allowed.
    ///
    /// # Errors
    /// [`io::ErrorKind::QuotaExceeded`] if the session has no number left.
    pub(crate) fn take_number(&self) -> io::Result<Option<u16>> {
        self.0.as_ref().map_or(Ok(None), SegmentNames::take_number)
    }

    /// Whether a segment can get this number: no file has its name.
    pub(crate) fn is_free(&self, segment_id: u16) -> bool {
        self.0.as_ref().is_none_or(|names| names.is_free(segment_id))
    }

    /// The value that marks the creator in the head of a segment: in a FairMQ session 1 more than
    /// the number from which the cache counts, else 0.
    pub(crate) fn range(&self) -> u32 {
        let first = self.0.as_ref().and_then(SegmentNames::first);
        first.map_or(0, |first| u32::from(first) + 1)
    }

    /// Creates and maps a file of `bytes` that begins with `head`. At least its `first_bytes` have
    /// memory; a file with a name, or of huge pages, has all of it. A name appears only with the
    /// complete head, so a file without one is never a leftover of a killed service.
    ///
    /// # Errors
    /// Of kind `StorageFull` if there is no memory for it, never a later SIGBUS; `AlreadyExists` if
    /// the name exists.
    pub(crate) fn make(
        &self,
        segment_id: u16,
        bytes: u64,
        first_bytes: u64,
        head: &[u8],
    ) -> io::Result<Made> {
        let Some(names) = &self.0 else {
            let name = CString::new(format!("iovcache-{segment_id}"))?;
            let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
            let file = File::from(memfd_create(&name, flags)?);
            let on_advice = huge_pages::memfds_on_advice();
            let first_bytes = if on_advice { bytes } else { first_bytes.min(bytes) };
            let mapping = Arc::new(match first_bytes < bytes {
                true => begun(&file, bytes, first_bytes)?,
                false => allocated(&file, bytes, on_advice)?,
            });
            file.write_all_at(head, 0)?;
            let file = file.into();
            return Ok(Made { file, mapping, allocated_bytes: first_bytes, name: None });
        };
        let path = names.path(segment_id);
        let (file, is_named) = create(&path, head).map_err(|error| named_error(&path, &error))?;
        let on_advice = huge_pages::file_on_advice(file.as_fd());
        let mut is_ours = is_named;
        let mut made = || {
            let mapping = Arc::new(allocated(&file, bytes, on_advice)?);
            if !is_named {
                // Not earlier: a page written before would be none of the huge ones.
                file.write_all_at(head, 0)?;
                let unnamed = format!("/proc/self/fd/{}", file.as_raw_fd());
                linkat(CWD, unnamed, CWD, &path, AtFlags::SYMLINK_FOLLOW)?;
                is_ours = true;
            }
            Ok((mapping, read_only(&path, &file)?))
        };
        match made() {
            Ok((mapping, file)) => {
                let name = Some((path, names.lock()));
                Ok(Made { file, mapping, allocated_bytes: bytes, name })
            }
            Err(error) => {
                if is_ours {
                    let _ = fs::remove_file(&path);
                }
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

/// Creates a file: an empty one without a name yet, or `path` itself, which begins with `head`, where
/// the file system has none without names. The flag tells whether it has its name.
fn create(path: &Path, head: &[u8]) -> io::Result<(File, bool)> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o640);
    let folder = path.parent().unwrap_or(path);
    let unnamed = options.clone().custom_flags(OFlags::TMPFILE.bits().cast_signed()).open(folder);
    if let Ok(file) = unnamed {
        return Ok((file, false));
    }
    let file = options.create_new(true).open(path)?;
    file.write_all_at(head, 0)?;
    Ok((file, true))
}

/// Gives an empty file `bytes` and maps it. `on_advice`: advise the kernel to use huge pages.
fn allocated(file: impl AsFd, bytes: u64, on_advice: bool) -> io::Result<Mapping> {
    cgroup::check_room(bytes)?;
    let length = usize::try_from(bytes).map_err(|_| io::ErrorKind::OutOfMemory)?;
    let map = || Mapping::of_file(file.as_fd(), length, MapAccess::ReadWrite);
    // Not without enough room: the advice would use up memory that others write to.
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

/// Gives an empty file the size `bytes`, of which the first ones have memory, and maps it.
fn begun(file: impl AsFd, bytes: u64, first_bytes: u64) -> io::Result<Mapping> {
    let length = usize::try_from(bytes).map_err(|_| io::ErrorKind::OutOfMemory)?;
    ftruncate(&file, bytes)?;
    allocate_part(&file, 0, first_bytes)?;
    let mapping = Mapping::of_file(file.as_fd(), length, MapAccess::ReadWrite)?;
    #[cfg(feature = "cache")]
    mapping.map_pages(0, first_bytes as usize);
    Ok(mapping)
}

/// Allocates the pages of a part of a file, if the process may use that much memory.
pub(super) fn allocate_part(file: impl AsFd, start: u64, bytes: u64) -> io::Result<()> {
    cgroup::check_room(bytes)?;
    allocate_pieces(file, start, start.saturating_add(bytes))
}

/// Allocates the pages from `start` to `end`. A signal makes the kernel undo the work of one call,
/// so pieces are allocated, each retried.
fn allocate_pieces(file: impl AsFd, mut start: u64, end: u64) -> io::Result<()> {
    const PIECE_BYTES: u64 = 32 << 20;
    while start < end {
        let length = PIECE_BYTES.min(end - start);
        rustix::io::retry_on_intr(|| fallocate(&file, FallocateFlags::empty(), start, length))?;
        start += length;
    }
    Ok(())
}

/// Free bytes of the file system, if it has a limit: that of memfds has none.
fn free_bytes(file: impl AsFd) -> io::Result<u64> {
    let facts = fstatvfs(file)?;
    Ok(if facts.f_blocks == 0 { u64::MAX } else { facts.f_bavail.saturating_mul(facts.f_frsize) })
}

/// Allocates the pages of the first `bytes` of a file. Unlike ftruncate, this reports a tmpfs that
/// is short of memory here, instead of a later SIGBUS.
pub(super) fn allocate(file: impl AsFd, bytes: u64) -> io::Result<()> {
    match fallocate(&file, FallocateFlags::empty(), 0, bytes) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::INTR) => allocate_pieces(file, 0, bytes),
        Err(error) => Err(error.into()),
    }
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

/// Adds the file and a remedy to an error.
fn named_error(path: &Path, error: &io::Error) -> io::Error {
    let folder = path.parent().unwrap_or(path).display();
    let remedy = match error.kind() {
        io::ErrorKind::AlreadyExists => {
            "another program made it: remove it if nothing uses it".to_owned()
        }
        io::ErrorKind::StorageFull | io::ErrorKind::OutOfMemory => {
            format!("{folder} has no room for it: make `memory` smaller, or the file system larger")
        }
        io::ErrorKind::PermissionDenied => format!("{folder} has to be writable for this user"),
        _ => return io::Error::new(error.kind(), format!("{}: {error}", path.display())),
    };
    io::Error::new(error.kind(), format!("{}: {error}; {remedy}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::super::layout::{Epoch, SegmentHeader};
    use super::super::segment_names::SHM_FOLDER;
    use super::*;

    fn made_in(folder: &Path) -> io::Result<Maker> {
        Maker::new(&Backing::Folder(folder.to_owned()))
    }

    #[test]
    fn a_second_service_in_one_folder_is_told_the_process_of_the_first() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("segments");
        let first = made_in(&folder).unwrap();
        let error = made_in(&folder).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ResourceBusy);
        assert!(error.to_string().contains(&std::process::id().to_string()), "{error}");
        // The folder stays locked until the last segment is gone.
        let segment = first.make(0, 8192, 8192, &[]).unwrap();
        drop(first);
        assert!(made_in(&folder).is_err());
        drop(segment);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
        made_in(&folder).unwrap();
    }

    #[test]
    fn files_of_a_dead_service_are_removed_and_no_others() {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o750))
            .unwrap();
        let head = SegmentHeader::new(Epoch(7), 0, 0, 8192).to_bytes();
        for name in ["segment-0", "segment-65535", "segment-x", "else", "lock"] {
            fs::write(folder.path().join(name), head).unwrap();
        }
        fs::write(folder.path().join("segment-1"), "of another program").unwrap();
        let maker = made_in(folder.path()).unwrap();
        assert!(maker.is_free(0) && !maker.is_free(1));
        let mut left: Vec<_> =
            fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["else", "lock", "segment-1", "segment-x"]);
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
        let made = maker.make(7, 8192, 8192, &[]).unwrap();
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
        let shmid = new_shmid(0);
        let name = |id: u16| Path::new(SHM_FOLDER).join(format!("fmq_{shmid}_m_{id}"));
        // FairMQ's own segment must stay; one left by a dead service is removed.
        fs::write(name(0), vec![0; 4096]).unwrap();
        let mut left = vec![0; 4096];
        left[SegmentHeader::MAGIC_OFFSET..][..8].copy_from_slice(&SegmentHeader::MAGIC);
        fs::write(name(6), left).unwrap();
        let maker = in_session(&shmid, 5).unwrap();
        assert!(name(0).exists() && !name(6).exists());
        // 6 was used and may still be mapped, so the next one is 7.
        assert_eq!(maker.take_number().unwrap(), Some(7));
        let made = maker.make(7, 8192, 8192, &[]).unwrap();
        assert!(name(7).exists());
        drop((made, maker));
        assert!(!name(7).exists());
        let numbers = Path::new(SHM_FOLDER).join(format!("iovcache_{shmid}.numbers"));
        assert_eq!(fs::read_to_string(&numbers).unwrap(), "8\n");
        // The next service starts after it, and skips names in use.
        fs::write(name(8), "of another program").unwrap();
        assert_eq!(in_session(&shmid, 5).unwrap().take_number().unwrap(), Some(9));
        fs::write(&numbers, "65536").unwrap();
        let error = in_session(&shmid, 5).unwrap().take_number().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::QuotaExceeded);
        assert!(error.to_string().contains(numbers.to_str().unwrap()), "{error}");
        fs::write(&numbers, "many").unwrap();
        assert_eq!(in_session(&shmid, 5).unwrap_err().kind(), io::ErrorKind::InvalidData);
        for file in [name(0), name(8), numbers] {
            fs::remove_file(file).unwrap();
        }
        for wrong in ["", "../x", "a b"] {
            let error = in_session(wrong, 0).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{wrong:?}");
        }
    }

    /// A shmid that no other test uses.
    fn new_shmid(number: u8) -> String {
        format!("{number:02x}{:06x}", std::process::id())
    }

    fn in_session(shmid: &str, first_segment: u16) -> io::Result<Maker> {
        Maker::new(&Backing::FairMq {
            shmid: shmid.to_owned(),
            first_segment,
            creation: SegmentCreation::AtStart,
        })
    }

    #[test]
    fn a_first_number_that_another_program_has_is_refused_with_file_and_remedy_and_stays() {
        let shmid = new_shmid(1);
        let name = |id: u16| Path::new(SHM_FOLDER).join(format!("fmq_{shmid}_m_{id}"));
        let numbers = Path::new(SHM_FOLDER).join(format!("iovcache_{shmid}.numbers"));
        let check = |kind: &str| {
            let error = in_session(&shmid, 3).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::AlreadyExists, "{kind}");
            let text = error.to_string();
            for part in [name(3).to_str().unwrap(), kind, "fairmq_segment", "remove the file"] {
                assert!(text.contains(part), "{part}: {text}");
            }
            assert!(fs::symlink_metadata(name(3)).is_ok(), "{kind} stays");
        };
        for content in [&b""[..], b"short", &[0; 4096], &[7; 8192]] {
            fs::write(name(3), content).unwrap();
            check("a file of");
            assert_eq!(fs::read(name(3)).unwrap(), content);
            fs::remove_file(name(3)).unwrap();
        }
        fs::create_dir(name(3)).unwrap();
        check("a folder");
        fs::remove_dir(name(3)).unwrap();
        // A link to a segment of this service, too: links are not followed.
        let left = SegmentHeader::new(Epoch(7), 4, 4, 8192).to_bytes();
        for target in [name(9), Path::new("/dev/shm/nowhere").to_owned()] {
            fs::write(name(9), left).unwrap();
            symlink(&target, name(3)).unwrap();
            check("a symbolic link");
            fs::remove_file(name(3)).unwrap();
        }
        // Nothing was taken or removed by the refused ones.
        assert!(name(9).exists());
        // A segment of another cache of this session under that number is no conflict.
        fs::write(name(3), SegmentHeader::new(Epoch(7), 3, 2, 8192).to_bytes()).unwrap();
        let maker = in_session(&shmid, 3).unwrap();
        assert!(name(3).exists() && !name(9).exists(), "range 4 is that from number 3 on");
        // Later numbers of other programs are skipped, links that lead nowhere included.
        symlink("/dev/shm/nowhere", name(10)).unwrap();
        fs::create_dir(name(11)).unwrap();
        fs::write(name(12), "of another program").unwrap();
        assert_eq!(maker.take_number().unwrap(), Some(13));
        let link = fs::symlink_metadata(name(10)).unwrap();
        assert!(link.is_symlink() && name(11).is_dir() && name(12).exists());
        fs::remove_dir(name(11)).unwrap();
        for file in [name(3), name(10), name(12), numbers] {
            fs::remove_file(file).unwrap();
        }
    }

    #[test]
    fn a_name_appears_with_its_head_and_never_over_a_file_of_another_program() {
        let folder = tempfile::tempdir_in(SHM_FOLDER).unwrap();
        let folder = folder.path().join("segments");
        let maker = made_in(&folder).unwrap();
        fs::write(folder.join("segment-4"), "of another program").unwrap();
        let error = maker.make(4, 8192, 8192, b"head").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert!(error.to_string().contains("segment-4"), "{error}");
        assert_eq!(fs::read(folder.join("segment-4")).unwrap(), b"of another program");
        let made = maker.make(5, 8192, 8192, b"head").unwrap();
        assert!(fs::read(folder.join("segment-5")).unwrap().starts_with(b"head\0"));
        assert_eq!(fs::metadata(folder.join("segment-5")).unwrap().nlink(), 1);
        drop(made);
        let (file, is_named) = create(&folder.join("segment-6"), b"head").unwrap();
        assert!(!is_named && !folder.join("segment-6").exists());
        assert_eq!(file.metadata().unwrap().nlink(), 0);
    }

    #[test]
    fn a_file_system_that_is_full_says_so_before_anything_is_mapped() {
        let folder = tempfile::tempdir_in(SHM_FOLDER).unwrap();
        let maker = made_in(&folder.path().join("segments")).unwrap();
        let facts = rustix::fs::statvfs(SHM_FOLDER).unwrap();
        let bytes = (facts.f_blocks + 1) * facts.f_frsize;
        let error = maker.make(0, bytes, 4096, &[]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert!(!folder.path().join("segments/segment-0").exists());
    }
}
