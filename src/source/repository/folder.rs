//! Reads the folders of a path: one folder per `from`, each with pairs of bytes and properties.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, FileType, OFlags, fstat, statat};

use super::beneath::{EntryKind, Root, Stamp, for_each_entry, open_beneath, open_file};
use super::entry::{self, PROPERTIES};
use super::properties::Properties;
use super::table::Row;
use crate::interval::Timestamp;
use crate::object::{ObjectId, ObjectInfo, ObjectPath};
use crate::source::{Details, Problem};

/// Maximum size of a properties file.
pub(super) const MAX_PROPERTIES_BYTES: u64 = 1 << 20;
/// Number of threads that read the folders of one path.
const PARALLEL_READS: usize = 4;
/// Maximum number of folders that are read without further threads.
const FEW_FOLDERS: usize = 64;
/// A blob without properties counts as an unfinished put up to this age.
const PUT_LIMIT: Duration = Duration::from_secs(10);

/// Two changes closer together than this may have equal change times: resolution of the kernel's
/// clock, or of a file server's.
pub(super) const LOCAL_SLACK: Duration = Duration::from_millis(50);

/// The open folder of one path.
#[derive(Debug)]
pub(super) struct PathFolder {
    descriptor: OwnedFd,
    pub(super) stamp: Stamp,
    pub(super) links: u64,
    /// Whether the facts about uploads are read, too.
    pub(super) reads_details: bool,
}

/// Entries whose name is a `from` but which are no folder.
pub(super) type NonFolderProblems = Vec<(i64, Problem)>;

/// Contents of the folder of one `from`.
#[derive(Debug, Default)]
pub(super) struct FolderVersions {
    /// Versions that were read, each with its stamp.
    pub(super) read: Vec<(ObjectInfo, u64)>,
    /// Facts about the uploads of `read`, if they were to be read.
    pub(super) details: Vec<Details>,
    /// Known versions whose files did not change.
    pub(super) kept: Vec<Row>,
    pub(super) problems: Vec<Problem>,
    /// A put is in progress: the folder must be read again even if no change is seen.
    pub(super) pending: bool,
}

/// Identifies the state of a version: FNV-1a (64 bits) of the change times (ns) of its folder,
/// properties and blob, and of the blob's size, as little-endian i64; never 0.
pub(super) fn stamp_of(folder: &Stamp, properties: &Stamp, blob: &Stamp) -> u64 {
    let size = i64::try_from(blob.size_bytes).unwrap_or(i64::MAX);
    let words = [folder.changed_nanos, properties.changed_nanos, blob.changed_nanos, size];
    let hash = words
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
    hash.max(1)
}

/// Whether a change at `changed_nanos` is so recent that a later one may have an equal time.
pub(super) fn is_recent(changed_nanos: i64, slack: Duration) -> bool {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let age = i128::try_from(now.as_nanos()).unwrap_or(i128::MAX) - i128::from(changed_nanos);
    age < i128::try_from(slack.as_nanos()).unwrap_or(i128::MAX)
}

impl PathFolder {
    /// Opens the folder of a path; `None` if it does not exist, or is a link or a file.
    ///
    /// # Errors
    /// If the folder, or the root, cannot be opened.
    pub(super) fn open(root: &Root, path: &ObjectPath) -> io::Result<Option<Self>> {
        // The root is opened first: a missing root must not look as if no version were valid.
        let above = root.descriptor()?;
        let opened = open_beneath(above.as_fd(), path.as_str(), OFlags::RDONLY | OFlags::DIRECTORY);
        let descriptor = match opened {
            Ok(descriptor) => descriptor,
            Err(error) if is_absent(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        let stat = fstat(&descriptor)?;
        Ok(Some(Self {
            descriptor,
            stamp: Stamp::from(&stat),
            links: stat.st_nlink,
            reads_details: false,
        }))
    }

    /// The `from` of each folder of versions, ascending, and the entries that are no folder. A folder
    /// of a negative number that holds only paths is none of them.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub(super) fn froms(&self, path: &ObjectPath) -> io::Result<(Vec<i64>, NonFolderProblems)> {
        let (mut froms, mut negative, mut problems) = (Vec::new(), Vec::new(), Vec::new());
        for_each_entry(&self.descriptor, |name, kind| {
            let Some(from) = from_of(name) else { return };
            match kind {
                EntryKind::Folder if from < 0 => negative.push(from),
                EntryKind::Folder => froms.push(from),
                EntryKind::File => {}
                EntryKind::Other => {
                    let reason = "a link or special file stands here, and is not followed";
                    let entry = format!("{path}/{name}");
                    problems.push((from, Problem { entry, reason: reason.to_owned() }));
                }
            }
        })?;
        for from in negative {
            if NumberFolder::read(&self.descriptor, &from.to_string())?.has_versions {
                froms.push(from);
            }
        }
        froms.sort_unstable();
        Ok((froms, problems))
    }

    /// Reads the folder of one `from`. Rows in `known` whose files did not change are kept.
    ///
    /// # Errors
    /// If the folder cannot be read. A missing folder is no error.
    pub(super) fn versions(
        &self,
        path: &ObjectPath,
        from: i64,
        known: &[Row],
        slack: Duration,
    ) -> io::Result<FolderVersions> {
        let name = from.to_string();
        let mut found = FolderVersions::default();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let folder = match open_beneath(self.descriptor.as_fd(), &name, flags) {
            Ok(folder) => folder,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
            Err(error) if is_absent(&error) => {
                let entry = format!("{path}/{name}");
                found.problems.push(Problem { entry, reason: error.to_string() });
                return Ok(found);
            }
            Err(error) => return Err(error),
        };
        let stamp = Stamp::from(&fstat(&folder)?);
        let mut reading = FolderReading { folder: folder.as_fd(), path, from, stamp, slack, known };
        for (name, pair) in pairs(&folder)? {
            let entry = || format!("{path}/{from}/{name}");
            match reading.pair(&name, pair) {
                Ok(Pair::Read(read)) => {
                    found.read.push((read.info, read.stamp));
                    if self.reads_details {
                        found.details.push(entry::details(&read.properties));
                    }
                }
                Ok(Pair::Kept(row)) => found.kept.push(row),
                Ok(Pair::Pending) => found.pending = true,
                Err(EntryFault::Named(reason)) => {
                    found.problems.push(Problem { entry: entry(), reason });
                }
                Err(EntryFault::Failed(error)) => return Err(error),
            }
        }
        Ok(found)
    }

    /// The `from` of those rows whose files changed since they were read.
    pub(super) fn changed(&self, rows: &[Row]) -> BTreeSet<i64> {
        rows.iter().filter(|row| !self.is_unchanged(row)).map(|row| row.from).collect()
    }

    /// Whether the files of a version are unchanged since it was read.
    pub(super) fn is_unchanged(&self, row: &Row) -> bool {
        let (folder, name) = (row.from.to_string(), row.id);
        let stamp = |name: &str| {
            let stat = statat(&self.descriptor, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
            Some(Stamp::from(&stat))
        };
        let all = || {
            let blob = format!("{folder}/{name}");
            let properties = stamp(&format!("{blob}{PROPERTIES}"))?;
            let blob = stamp(&blob).filter(|blob| blob.size_bytes == row.size_bytes)?;
            Some(stamp_of(&stamp(&folder)?, &properties, &blob))
        };
        row.stamp != 0 && all() == Some(row.stamp)
    }
}

/// Reads folders of versions, one after the other.
///
/// # Errors
/// If a folder cannot be read.
pub(super) fn read_each<'a>(
    folder: &PathFolder,
    path: &ObjectPath,
    froms: &[i64],
    known: impl Fn(i64) -> &'a [Row],
    slack: Duration,
) -> io::Result<Vec<(i64, FolderVersions)>> {
    let one =
        |from: &i64| folder.versions(path, *from, known(*from), slack).map(|found| (*from, found));
    froms.iter().map(one).collect()
}

/// Reads folders of versions, in several threads if there are many.
///
/// # Errors
/// If a folder cannot be read.
pub(super) fn read_all<'a>(
    folder: &PathFolder,
    path: &ObjectPath,
    froms: &'a [i64],
    known: impl Fn(i64) -> &'a [Row] + Sync,
    slack: Duration,
) -> io::Result<Vec<(i64, FolderVersions)>> {
    if froms.len() <= FEW_FOLDERS {
        return read_each(folder, path, froms, known, slack);
    }
    let one =
        |from: &i64| folder.versions(path, *from, known(*from), slack).map(|found| (*from, found));
    let share = froms.len().div_ceil(PARALLEL_READS);
    let parts: Vec<io::Result<Vec<_>>> = std::thread::scope(|scope| {
        let one = &one;
        let read = |part: &'a [i64]| scope.spawn(move || part.iter().map(one).collect());
        let threads: Vec<_> = froms.chunks(share).map(read).collect();
        let ended = || Err(io::Error::other("a thread that read folders ended early"));
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| ended())).collect()
    });
    Ok(parts.into_iter().collect::<io::Result<Vec<_>>>()?.into_iter().flatten().collect())
}

/// Whether the error means that a name has no usable entry: none at all, a link, or a file.
pub(super) fn is_absent(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidData, NotADirectory, NotFound};
    matches!(error.kind(), NotFound | InvalidData | NotADirectory)
}

/// The `from` that a folder's name stands for. Only the canonical form of the number is accepted.
pub(super) fn from_of(name: &str) -> Option<i64> {
    let from: i64 = name.parse().ok()?;
    (from.to_string() == name).then_some(from)
}

/// Contents of a folder whose name is a `from`. A negative number can be an element of a path as
/// well, so the contents decide what the folder stands for; it can stand for both.
#[derive(Debug, Clone, Copy)]
pub(super) struct NumberFolder {
    /// It is a folder of versions: it holds files, or nothing yet.
    pub(super) has_versions: bool,
    /// It is an element of paths: it holds folders.
    pub(super) has_paths: bool,
}

impl NumberFolder {
    /// Reads the folder `name` beneath `above`; only that of a negative number is opened.
    ///
    /// # Errors
    /// If the folder cannot be read. A missing folder is no error.
    pub(super) fn read(above: &OwnedFd, name: &str) -> io::Result<Self> {
        let of_versions = Self { has_versions: true, has_paths: false };
        if !name.starts_with('-') {
            return Ok(of_versions);
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let folder = match open_beneath(above.as_fd(), name, flags) {
            Ok(folder) => folder,
            Err(error) if is_absent(&error) => return Ok(of_versions),
            Err(error) => return Err(error),
        };
        let (mut files, mut folders) = (false, false);
        for_each_entry(&folder, |_, kind| match kind {
            EntryKind::Folder => folders = true,
            EntryKind::File | EntryKind::Other => files = true,
        })?;
        Ok(Self { has_versions: files || !folders, has_paths: folders })
    }
}

/// Kinds of the blob and of the properties of a version.
type Kinds = (Option<EntryKind>, Option<EntryKind>);

fn pairs(folder: &OwnedFd) -> io::Result<BTreeMap<String, Kinds>> {
    let mut pairs: BTreeMap<String, Kinds> = BTreeMap::new();
    for_each_entry(folder, |name, kind| {
        if name.starts_with('.') {
            return;
        }
        match name.strip_suffix(PROPERTIES) {
            Some(blob) => pairs.entry(blob.to_owned()).or_default().1 = Some(kind),
            None if kind == EntryKind::Folder => {}
            None => pairs.entry(name.to_owned()).or_default().0 = Some(kind),
        }
    })?;
    Ok(pairs)
}

enum Pair {
    Read(Box<ReadPair>),
    Kept(Row),
    Pending,
}

struct ReadPair {
    info: ObjectInfo,
    stamp: u64,
    properties: Properties,
}

enum EntryFault {
    /// Reason why the version cannot be used.
    Named(String),
    /// Failure of the file system.
    Failed(io::Error),
}

impl From<io::Error> for EntryFault {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Self::Named("it went away while it was read".to_owned()),
            io::ErrorKind::InvalidData => Self::Named(error.to_string()),
            _ => Self::Failed(error),
        }
    }
}

/// State while the folder of one `from` is read.
struct FolderReading<'a> {
    folder: BorrowedFd<'a>,
    path: &'a ObjectPath,
    from: i64,
    stamp: Stamp,
    slack: Duration,
    known: &'a [Row],
}

impl FolderReading<'_> {
    fn stat(&self, name: &str) -> Result<(Stamp, FileType), EntryFault> {
        let stat = statat(self.folder, name, AtFlags::SYMLINK_NOFOLLOW).map_err(io::Error::from)?;
        Ok((Stamp::from(&stat), FileType::from_raw_mode(stat.st_mode)))
    }

    fn pair(&mut self, name: &str, kinds: Kinds) -> Result<Pair, EntryFault> {
        let irregular = || EntryFault::Named("it is no regular file".to_owned());
        match kinds {
            (Some(_), Some(_)) => {}
            (Some(_), None) => {
                let (blob, _) = self.stat(name)?;
                // A time in the future is the end of validity: the blob is complete.
                let now = SystemTime::now();
                let modified = u64::try_from(blob.modified_nanos).ok().map(Duration::from_nanos);
                let age = modified.and_then(|at| now.duration_since(UNIX_EPOCH + at).ok());
                if age.is_none_or(|age| age > PUT_LIMIT) {
                    return Err(EntryFault::Named(format!("{PROPERTIES} is not there")));
                }
                return Ok(Pair::Pending);
            }
            // Properties are renamed first: the blob will follow.
            (None, _) => return Ok(Pair::Pending),
        }
        let (blob, kind) = self.stat(name)?;
        if kind != FileType::RegularFile {
            return Err(irregular());
        }
        let beside = format!("{name}{PROPERTIES}");
        let (properties, kind) = self.stat(&beside)?;
        if kind != FileType::RegularFile {
            return Err(irregular());
        }
        let stamp = stamp_of(&self.stamp, &properties, &blob);
        // Names that are not the id itself cannot be compared with rows. They are read each time.
        let id = ObjectId::parse(name).filter(|id| id.to_string() == name);
        let is_known = |row: &&Row| {
            Some(row.id) == id && row.stamp == stamp && row.size_bytes == blob.size_bytes
        };
        if let Some(row) = self.known.iter().find(is_known) {
            return Ok(Pair::Kept(*row));
        }
        let recent = [&self.stamp, &properties, &blob];
        let recent = recent.iter().any(|stamp| is_recent(stamp.changed_nanos, self.slack));
        let comparable = id.is_some() && !recent;
        let read = read_properties(self.folder, &beside)?;
        let from = Timestamp::from_millis(self.from);
        let info = entry::version(self.path, from, name, blob.size_bytes, &read);
        let info = info.map_err(EntryFault::Named)?;
        let stamp = if comparable { stamp } else { 0 };
        Ok(Pair::Read(Box::new(ReadPair { info, stamp, properties: read })))
    }
}

/// Reads a properties file in `folder`.
///
/// # Errors
/// With kind `InvalidData` if it is no properties file, or larger than [`MAX_PROPERTIES_BYTES`].
pub(super) fn read_properties(folder: BorrowedFd<'_>, name: &str) -> io::Result<Properties> {
    let wrong = |reason: String| io::Error::new(io::ErrorKind::InvalidData, reason);
    let (file, stamp) = open_file(folder, name)?;
    let mut bytes =
        Vec::with_capacity(usize::try_from(stamp.size_bytes.min(64 << 10)).unwrap_or(0));
    let read = file.take(MAX_PROPERTIES_BYTES + 1).read_to_end(&mut bytes)?;
    if read as u64 > MAX_PROPERTIES_BYTES {
        return Err(wrong(format!("{} bytes of properties are too many", stamp.size_bytes)));
    }
    Properties::parse(&bytes).map_err(|error| wrong(error.to_string()))
}
