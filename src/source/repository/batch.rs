//! Batches of versions: staged one by one, made visible and acknowledged together.
//!
//! ```text
//!  stage: from/.….part (bytes, MD5) ─┐
//!  stage: …                          ├─▶ sync ─▶ rename properties, then bytes ─▶ sync ─▶ index
//!  stage: …                          ┘
//! ```
//!
//! The properties are renamed first, because readers open the bytes of a version once its
//! properties exist. The cost per version does not depend on the number of versions of the path.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Read, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use md5::{Digest as _, Md5};
use rustix::fs::{
    AtFlags, Mode, OFlags, fstat, fsync, mkdirat, openat, renameat, statat, syncfs, unlinkat,
};
use rustix::io::Errno;

use super::beneath::{Root, Stamp, open_beneath};
use super::crash_point::crash_point;
use super::entry::{self, PROPERTIES};
use super::folder::{LOCAL_SLACK, PathFolder, is_absent, read_all, read_properties, stamp_of};
use super::index::{FOLDER, IndexRow, IndexWriter, row_of};
use super::writer::{
    Durability, NewVersion, RepositoryError, RepositoryWriter, Stored, UploadFacts, compared,
    failed,
};
use crate::object::{Md5Sum, ObjectId, ObjectInfo, ObjectPath};
use crate::source::Details;

const PIECE_BYTES: usize = 256 << 10;

/// Versions that are stored together. A batch that is dropped before its commit stores nothing.
#[derive(Debug)]
pub struct Batch<'a> {
    writer: &'a RepositoryWriter,
    staged: Vec<StagedBatch>,
    /// Index in `staged` of each version. No reader sees them yet.
    places: HashMap<(ObjectPath, ObjectId), usize>,
    /// Whether a missing index is begun.
    begins_index: bool,
}

/// A version whose bytes and properties are stored under names that readers ignore.
#[derive(Debug)]
pub(in crate::source) struct StagedBatch {
    info: ObjectInfo,
    given_id: bool,
    /// Name of the folder of its `from`, relative to the root.
    folder: String,
    root: Root,
    blob: String,
    properties: String,
    published: bool,
    details: Details,
}

/// Result of staging.
pub(in crate::source) enum Stage {
    New(Box<StagedBatch>),
    /// An identical version is already stored.
    There(ObjectInfo),
}

impl RepositoryWriter {
    /// Begins a batch of versions.
    pub fn batch(&self) -> Batch<'_> {
        Batch::new(self)
    }

    /// Stages the bytes of a file for a batch. Several threads may call it at the same time.
    pub(in crate::source) fn stage_file(
        &self,
        version: &NewVersion,
        expected: Option<(u64, Md5Sum)>,
        file: &Path,
    ) -> Result<Stage, RepositoryError> {
        let mut opened = File::open(file).map_err(failed(file))?;
        let new = NewBytes { version, facts: &UploadFacts::default(), expected };
        let staged = stage(&self.root, self.durability, &new, &mut opened);
        staged.map_err(|error| error.of_file(file))
    }

    /// Stores a version with the bytes of a file.
    ///
    /// # Errors
    /// [`RepositoryError::Key`] for a reserved metadata key, [`RepositoryError::Taken`] if another
    /// version has the id, [`RepositoryError::Io`] if a file cannot be read or written.
    pub fn put_file(&self, version: &NewVersion, file: &Path) -> Result<Stored, RepositoryError> {
        let mut opened = File::open(file).map_err(failed(file))?;
        self.put(version, &mut opened).map_err(|error| error.of_file(file))
    }

    /// Stores a version with all bytes of `bytes`.
    ///
    /// When it returns, the version is on the disk and visible to readers. Storing an identical
    /// version again changes nothing.
    ///
    /// # Errors
    /// [`RepositoryError::Key`] for a reserved metadata key, [`RepositoryError::Taken`] if another
    /// version has the id, [`RepositoryError::Io`] if a file cannot be read or written.
    pub fn put(
        &self,
        version: &NewVersion,
        bytes: &mut dyn Read,
    ) -> Result<Stored, RepositoryError> {
        self.put_described(version, &UploadFacts::default(), bytes)
    }

    /// Like [`put`](Self::put), with the facts about an upload.
    pub(super) fn put_described(
        &self,
        version: &NewVersion,
        facts: &UploadFacts,
        bytes: &mut dyn Read,
    ) -> Result<Stored, RepositoryError> {
        let mut batch = Batch::single(self);
        let stage = stage(&self.root, self.durability, &NewBytes::new(version, facts), bytes)?;
        let stored = batch.take(stage)?;
        batch.commit()?;
        Ok(stored)
    }
}

impl<'a> Batch<'a> {
    pub(super) fn new(writer: &'a RepositoryWriter) -> Self {
        Self { writer, staged: Vec::new(), places: HashMap::new(), begins_index: true }
    }

    /// A batch for a single version: it is added to an existing index, but begins none.
    pub(super) fn single(writer: &'a RepositoryWriter) -> Self {
        Self { begins_index: false, ..Self::new(writer) }
    }

    /// Number of staged versions.
    pub fn len(&self) -> usize {
        self.staged.len()
    }

    /// Whether no version is staged.
    pub fn is_empty(&self) -> bool {
        self.staged.is_empty()
    }

    /// Stages a version with all bytes of `bytes`. Readers see it after [`commit`](Self::commit).
    ///
    /// # Errors
    /// [`RepositoryError::Key`] for a reserved metadata key, [`RepositoryError::Taken`] if another
    /// version has the id, [`RepositoryError::Io`] if a file cannot be read or written.
    /// The batch is then unchanged.
    pub fn put(
        &mut self,
        version: &NewVersion,
        bytes: &mut dyn Read,
    ) -> Result<Stored, RepositoryError> {
        let facts = UploadFacts::default();
        let new = NewBytes::new(version, &facts);
        self.take(stage(&self.writer.root, self.writer.durability, &new, bytes)?)
    }

    /// Stages a version with the bytes of a file.
    ///
    /// # Errors
    /// [`RepositoryError::Key`] for a reserved metadata key, [`RepositoryError::Taken`] if another
    /// version has the id, [`RepositoryError::Io`] if a file cannot be read or written.
    /// The batch is then unchanged.
    pub fn put_file(
        &mut self,
        version: &NewVersion,
        file: &Path,
    ) -> Result<Stored, RepositoryError> {
        let mut opened = File::open(file).map_err(failed(file))?;
        self.put(version, &mut opened).map_err(|error| error.of_file(file))
    }

    /// Adds a staged version to the batch, unless another version has its id.
    pub(in crate::source) fn take(&mut self, stage: Stage) -> Result<Stored, RepositoryError> {
        let staged = match stage {
            Stage::There(info) => return Ok(Stored { info, new: false }),
            Stage::New(staged) => *staged,
        };
        let info = staged.info.clone();
        let key = (info.path.clone(), info.id);
        if let Some(place) = self.places.get(&key) {
            return compared(self.staged[*place].info.clone(), info);
        }
        if staged.given_id
            && let Some(there) = self.writer.elsewhere(&info)?
        {
            return compared(there, info);
        }
        self.places.insert(key, self.staged.len());
        self.staged.push(staged);
        Ok(Stored { info, new: true })
    }

    /// Makes all staged versions visible, and returns when they are on the disk.
    ///
    /// # Errors
    /// [`RepositoryError::Io`]. In that case none is acknowledged, but some may be stored.
    pub fn commit(mut self) -> Result<(), RepositoryError> {
        let root = &self.writer.root;
        let together = self.writer.durability == Durability::Batch;
        if self.staged.is_empty() {
            return Ok(());
        }
        crash_point("batch-staged");
        if together {
            sync_all(root)?;
        }
        let mut stamped = Vec::with_capacity(self.staged.len());
        for staged in &mut self.staged {
            stamped.push(staged.publish(together)?);
            crash_point("version-published");
        }
        if together {
            sync_all(root)?;
        }
        let mut ids = self.writer.ids.lock();
        for staged in &self.staged {
            if let Some(known) = ids.get_mut(&staged.info.path) {
                known.insert(staged.info.id, staged.info.validity.from().as_millis());
            }
        }
        drop(ids);
        let described = |staged: &StagedBatch| (staged.info.clone(), staged.details.clone());
        let infos = self.staged.iter().map(described).zip(stamped);
        crash_point("batch-published");
        let has_index = || root.folder(FOLDER).is_ok();
        if (self.begins_index || has_index())
            && let Err(error) = append_to_index(root, infos)
        {
            // The folders are complete without it: the index is only a shortcut.
            let folder = root.path().display();
            tracing::warn!(%folder, %error, "the index was not appended; iovcache index makes it anew");
        }
        Ok(())
    }
}

fn sync_all(root: &Root) -> Result<(), RepositoryError> {
    // A descriptor with `O_PATH` cannot be synced.
    let synced = root.folder("").and_then(|folder| Ok(syncfs(folder)?));
    synced.map_err(failed(root.path()))
}

/// Adds the versions of a batch to the index, each with the stamp of its files.
fn append_to_index(
    root: &Root,
    versions: impl Iterator<Item = ((ObjectInfo, Details), u64)>,
) -> io::Result<()> {
    let mut by_path: BTreeMap<ObjectPath, Vec<_>> = BTreeMap::new();
    for ((info, details), stamp) in versions {
        by_path.entry(info.path.clone()).or_default().push((info, details, stamp));
    }
    let writer = IndexWriter::lock(root)?;
    let mut rows: Vec<IndexRow> = Vec::new();
    for (path, versions) in by_path {
        let folder = PathFolder::open(root, &path)?;
        let listed = folder.map_or(0, |folder| folder.stamp.changed_nanos);
        let name: Arc<str> = path.as_str().into();
        rows.extend(versions.into_iter().map(|(info, details, stamp)| IndexRow {
            details: Some(details),
            ..row_of(&name, info, stamp, listed)
        }));
    }
    writer.append(rows)
}

/// A version to be staged.
pub(super) struct NewBytes<'a> {
    version: &'a NewVersion,
    facts: &'a UploadFacts,
    /// Size and MD5 of its bytes, if known.
    expected: Option<(u64, Md5Sum)>,
}

impl<'a> NewBytes<'a> {
    fn new(version: &'a NewVersion, facts: &'a UploadFacts) -> Self {
        Self { version, facts, expected: None }
    }
}

/// Writes bytes and properties of a version under names that readers ignore. If a stored version
/// has the expected size and MD5, nothing is read.
///
/// # Errors
/// [`RepositoryError`].
pub(super) fn stage(
    root: &Root,
    durability: Durability,
    new: &NewBytes<'_>,
    bytes: &mut dyn Read,
) -> Result<Stage, RepositoryError> {
    let NewBytes { version, facts, expected } = *new;
    version.check_keys()?;
    let name = format!("{}/{}", version.path, version.validity.from());
    let folder = make_folder(root, &name).map_err(failed(&root.path().join(&name)))?;
    if let Some((size_bytes, md5)) = expected {
        let info = version.info(size_bytes, md5);
        if let Some(there) = there(root, &folder, &info)? {
            return compared(there, info).map(|stored| Stage::There(stored.info));
        }
    }
    let each = durability == Durability::Each;
    let mut blob = UnfinishedFile::new(root, &name, &folder)?;
    let (size_bytes, md5) = blob.copy(bytes)?;
    let info = version.info(size_bytes, md5);
    if let Some(there) = there(root, &folder, &info)? {
        return compared(there, info).map(|stored| Stage::There(stored.info));
    }
    // CCDB's server also stores the end of validity as the modification time of the blob.
    if let Ok(until) = u64::try_from(info.validity.until().as_millis())
        && let Some(time) = UNIX_EPOCH.checked_add(Duration::from_millis(until))
    {
        // An error is ignored: the properties hold the time in any case.
        let _ = blob.file.set_modified(time);
    }
    crash_point("bytes-staged");
    let mut properties = UnfinishedFile::new(root, &name, &folder)?;
    let contents = version.properties(&info, md5, facts);
    properties.write(&contents.to_bytes())?;
    let (blob, properties) = (blob.close(each)?, properties.close(each)?);
    let root = root.clone();
    Ok(Stage::New(Box::new(StagedBatch {
        info,
        given_id: version.has_given_id(),
        folder: name,
        root,
        blob,
        properties,
        published: false,
        details: entry::details(&contents),
    })))
}

/// Opens a folder beneath the root, and creates the missing parts. Links are not followed.
fn make_folder(root: &Root, name: &str) -> io::Result<OwnedFd> {
    let above = root.descriptor()?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    match open_beneath(above.as_fd(), name, flags) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        opened => return opened,
    }
    let mut at = above;
    for element in name.split('/') {
        match mkdirat(&at, element, Mode::from_raw_mode(0o777)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        at = open_beneath(at.as_fd(), element, flags)?;
    }
    Ok(at)
}

/// The stored version with the id and `from` of `wanted`.
fn there(
    root: &Root,
    folder: &OwnedFd,
    wanted: &ObjectInfo,
) -> Result<Option<ObjectInfo>, RepositoryError> {
    let name = wanted.id.to_string();
    let Ok(facts) = statat(folder, &name, AtFlags::SYMLINK_NOFOLLOW) else { return Ok(None) };
    let beside = format!("{name}{PROPERTIES}");
    let file = || root.path().join(format!("{}/{}/{beside}", wanted.path, wanted.validity.from()));
    let read = match read_properties(folder.as_fd(), &beside) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        read => read.map_err(failed(&file()))?,
    };
    let size = u64::try_from(facts.st_size).unwrap_or(0);
    let version = entry::version(&wanted.path, wanted.validity.from(), &name, size, &read);
    version
        .map(Some)
        .map_err(|reason| failed(&file())(io::Error::new(io::ErrorKind::InvalidData, reason)))
}

impl RepositoryWriter {
    /// The stored version with the path and id of `wanted`, which describes `version`. Writes
    /// nothing.
    pub(super) fn stored(
        &self,
        version: &NewVersion,
        wanted: &ObjectInfo,
    ) -> Result<Option<ObjectInfo>, RepositoryError> {
        let name = format!("{}/{}", wanted.path, wanted.validity.from());
        let found = match self.root.folder(&name) {
            Err(error) if is_absent(&error) => None,
            folder => {
                let folder = folder.map_err(failed(&self.root.path().join(&name)))?;
                there(&self.root, &folder, wanted)?
            }
        };
        match found {
            None if version.has_given_id() => self.elsewhere(wanted),
            found => Ok(found),
        }
    }

    /// A stored version with the path and id of `wanted`. It also finds one with another `from`.
    /// The ids of the path are read once.
    fn elsewhere(&self, wanted: &ObjectInfo) -> Result<Option<ObjectInfo>, RepositoryError> {
        let folder_of_path = self.root.path().join(wanted.path.as_str());
        let io = |error| failed(&folder_of_path)(error);
        let mut ids = self.ids.lock();
        if !ids.contains_key(&wanted.path) {
            let known = super::read_path::ids(&self.root, &wanted.path).map_err(io)?;
            ids.insert(wanted.path.clone(), known);
        }
        let from = ids.get(&wanted.path).and_then(|known| known.get(&wanted.id)).copied();
        drop(ids);
        let Some(from) = from else { return Ok(None) };
        let Some(folder) = PathFolder::open(&self.root, &wanted.path).map_err(io)? else {
            return Ok(None);
        };
        let found = read_all(&folder, &wanted.path, &[from], |_| &[], LOCAL_SLACK).map_err(io)?;
        let mut read = found.into_iter().flat_map(|(_, found)| found.read);
        Ok(read.find(|(info, _)| info.id == wanted.id).map(|(info, _)| info))
    }
}

impl StagedBatch {
    fn place(&self, name: &str) -> PathBuf {
        self.root.path().join(&self.folder).join(name)
    }

    /// Renames both files to their final names. Returns the stamp that readers will compute.
    fn publish(&mut self, synced_together: bool) -> Result<u64, RepositoryError> {
        let folder = self.root.folder(&self.folder).map_err(failed(&self.place("")))?;
        let name = self.info.id.to_string();
        let beside = format!("{name}{PROPERTIES}");
        let rename = |from: &str, to: &str| {
            renameat(&folder, from, &folder, to)
                .and_then(|()| if synced_together { Ok(()) } else { fsync(&folder) })
                .map_err(|error| failed(&self.place(to))(error.into()))
        };
        rename(&self.properties, &beside)?;
        crash_point("properties-renamed");
        rename(&self.blob, &name)?;
        self.published = true;
        let stamp = |name: &str| -> io::Result<Stamp> {
            Ok(Stamp::from(&statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW)?))
        };
        let all = || -> io::Result<u64> {
            let folder = Stamp::from(&fstat(&folder)?);
            Ok(stamp_of(&folder, &stamp(&beside)?, &stamp(&name)?))
        };
        // 0: readers read the version again.
        Ok(all().unwrap_or(0))
    }
}

impl Drop for StagedBatch {
    fn drop(&mut self) {
        if !self.published
            && let Ok(folder) = self.root.folder(&self.folder)
        {
            let _ = unlinkat(&folder, &self.properties, AtFlags::empty());
            let _ = unlinkat(&folder, &self.blob, AtFlags::empty());
        }
    }
}

/// A file that is written under a name that readers ignore. It is removed on drop unless closed.
struct UnfinishedFile<'a> {
    folder: &'a OwnedFd,
    file: File,
    name: String,
    path: PathBuf,
    closed: bool,
}

impl<'a> UnfinishedFile<'a> {
    fn new(root: &Root, below: &str, folder: &'a OwnedFd) -> Result<Self, RepositoryError> {
        let name = format!(".{}.part", uuid::Uuid::new_v4().simple());
        let path = root.path().join(below).join(&name);
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        let file = openat(folder, &name, flags, Mode::from_raw_mode(0o666));
        let file = file.map_err(|error| failed(&path)(error.into()))?;
        Ok(Self { folder, file: File::from(file), name, path, closed: false })
    }

    fn copy(&mut self, bytes: &mut dyn Read) -> Result<(u64, Md5Sum), RepositoryError> {
        let mut digest = Md5::new();
        let mut piece = vec![0; PIECE_BYTES];
        let mut size_bytes = 0;
        loop {
            let count = match bytes.read(&mut piece) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(failed(Path::new(""))(error)),
            };
            digest.update(&piece[..count]);
            self.write(&piece[..count])?;
            size_bytes += count as u64;
        }
        Ok((size_bytes, Md5Sum(digest.finalize().into())))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), RepositoryError> {
        self.file.write_all(bytes).map_err(failed(&self.path))
    }

    /// Finishes the file, and returns its name.
    fn close(mut self, sync: bool) -> Result<String, RepositoryError> {
        if sync {
            self.file.sync_all().map_err(failed(&self.path))?;
        }
        self.closed = true;
        Ok(std::mem::take(&mut self.name))
    }
}

impl Drop for UnfinishedFile<'_> {
    fn drop(&mut self) {
        if !self.closed {
            let _ = unlinkat(self.folder, &self.name, AtFlags::empty());
        }
    }
}
