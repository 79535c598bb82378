//! Imports the objects of a manifest into a repository. Everything is checked before the first
//! write, so a wrong line leaves the repository unchanged.
//!
//! ```text
//!  lines ─▶ header, values, files, MD5 ─▶ ids: of other lines, of stored versions ─▶ all again: store
//!           1,024 lines at a time         24 bytes per line
//! ```

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Seek as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Component, Path, PathBuf};

use md5::{Digest as _, Md5};
use serde::Deserialize;

use super::writer::{NewVersion, RepositoryError, RepositoryWriter, compared};
use crate::error::{coded, kind_of_file};
use crate::interval::{Timestamp, ValidityInterval};
use crate::object::{Md5Sum, ObjectInfo, ObjectPath};
use crate::source::open_regular;

/// The byte order marks of UTF-16.
const UTF16_MARKS: [[u8; 2]; 2] = [[0xFF, 0xFE], [0xFE, 0xFF]];

/// The columns that a manifest must have.
const NEEDED_COLUMNS: [&str; 5] = ["path", "valid_from_ms", "valid_until_ms", "created_ms", "file"];
/// The columns that a manifest can have as well.
const OTHER_COLUMNS: [&str; 4] = ["id", "size", "md5", "note"];

/// One line: `path,valid_from_ms,valid_until_ms,created_ms,id,file,size,md5,note`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ManifestLine {
    path: String,
    valid_from_ms: i64,
    valid_until_ms: i64,
    created_ms: i64,
    #[serde(default)]
    id: Option<String>,
    file: PathBuf,
    #[serde(default)]
    size: Option<u64>,
    #[serde(default)]
    md5: Option<String>,
    #[serde(default)]
    note: Option<String>,
}

/// Result of an import.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Imported {
    /// Number of versions that were stored.
    pub new: u64,
    /// Number of versions that were already stored.
    pub unchanged: u64,
    /// Total size of both.
    pub bytes: u64,
    /// Begin of the validity in the first line.
    pub first_from: Option<Timestamp>,
}

/// A manifest: a CSV table, and the folder to which the paths of its files are relative.
#[derive(Debug)]
pub struct Manifest {
    name: PathBuf,
    folder: PathBuf,
    table: File,
}

impl Manifest {
    /// The manifest in a file. The paths in it are relative to the file's folder.
    ///
    /// # Errors
    /// [`ManifestError::Io`] if the file cannot be opened.
    pub fn open(path: &Path) -> Result<Self, ManifestError> {
        let folder = path.parent().unwrap_or(Path::new(".")).to_owned();
        let table = File::open(path);
        let table = table.map_err(|error| ManifestError::Io { path: path.to_owned(), error })?;
        Ok(Self { name: path.to_owned(), folder, table })
    }

    /// The manifest that `input` gives until its end. The paths in it are relative to the current
    /// folder. A manifest is read twice, so it is kept in memory.
    ///
    /// # Errors
    /// [`ManifestError::Io`] with `name` if `input` cannot be read.
    pub fn read(name: &str, input: &mut impl io::Read) -> Result<Self, ManifestError> {
        let mut kept = || {
            let table = rustix::fs::memfd_create("manifest", rustix::fs::MemfdFlags::CLOEXEC)?;
            let mut table = File::from(table);
            io::copy(input, &mut table)?;
            Ok(table)
        };
        let table = kept().map_err(|error| ManifestError::Io { path: name.into(), error })?;
        Ok(Self { name: name.into(), folder: PathBuf::from("."), table })
    }
}

/// Why an import failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// The manifest cannot be read.
    #[error("{path}")]
    Io {
        /// Path of the manifest.
        path: PathBuf,
        /// Error of the file system.
        #[source]
        error: io::Error,
    },
    /// The manifest is not a CSV table with the expected columns.
    #[error("{path}: {reason}")]
    Table {
        /// Path of the manifest.
        path: PathBuf,
        /// Line and fault.
        reason: String,
    },
    /// A line has an invalid value.
    #[error("line {line}, {column}: {reason}")]
    Line {
        /// Line number; 1 is the header.
        line: u64,
        /// Name of the column.
        column: &'static str,
        /// Fault: given and expected value.
        reason: String,
    },
    /// The version of a line cannot be stored.
    #[error("line {line}")]
    Put {
        /// Line number; 1 is the header.
        line: u64,
        /// Error of the repository.
        #[source]
        error: RepositoryError,
    },
}

coded! { ManifestError {
    Io { error, .. } => (kind_of_file(error)) 3030,
    // The command is used correctly, but its input is wrong: a failure, not a usage error.
    Table => FailedPrecondition 3031,
    Line => FailedPrecondition 3032,
    Put { error, .. } => error,
} }

struct Checked {
    line: u64,
    version: NewVersion,
    file: PathBuf,
    bytes: u64,
    /// MD5 from the manifest.
    md5: Option<Md5Sum>,
}

/// Number of lines that are checked, or stored and synced, together.
const BATCH_LINES: usize = 1024;
/// Number of threads that read and hash files.
const PARALLEL_FILES: usize = 4;

/// Progress of an import.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImportProgress {
    /// `false`: versions are being checked. `true`: all are checked, and they are being stored.
    pub storing: bool,
    /// Number of finished versions.
    pub versions: u64,
    /// Number of versions of the manifest read so far.
    pub all: u64,
    /// Total size of the finished versions.
    pub bytes: u64,
}

/// Imports all objects of the file `manifest`; see [`import_manifest`].
///
/// # Errors
/// [`ManifestError`]. Unless it is `Put`, nothing was written.
pub fn import(
    manifest: &Path,
    writer: &RepositoryWriter,
    progress: impl FnMut(ImportProgress),
) -> Result<Imported, ManifestError> {
    import_manifest(&Manifest::open(manifest)?, writer, progress)
}

/// Imports all objects of `manifest` into the repository of `writer`.
///
/// To resume an interrupted import, start it again: versions already stored are unchanged.
///
/// # Errors
/// [`ManifestError`]. Unless it is `Put`, nothing was written.
pub fn import_manifest(
    manifest: &Manifest,
    writer: &RepositoryWriter,
    mut progress: impl FnMut(ImportProgress),
) -> Result<Imported, ManifestError> {
    let (all, first_from) = check_all(manifest, writer, &mut progress)?;
    let mut imported = Imported { first_from, ..Imported::default() };
    for_each_batch(manifest, |lines| {
        let staged = in_parallel(lines, |(number, line)| {
            let (checked, _) = check(number, line, &manifest.folder)?;
            let Checked { line, version, file, bytes, md5 } = &checked;
            let expected = md5.map(|md5| (*bytes, md5));
            let stage = writer.stage_file(version, expected, file);
            let stage = stage.map_err(|error| ManifestError::Put { line: *line, error })?;
            Ok((*line, *bytes, stage))
        })?;
        let mut batch = writer.batch();
        let mut last = 0;
        for (line, bytes, stage) in staged {
            let stored = batch.take(stage);
            let stored = stored.map_err(|error| ManifestError::Put { line, error })?;
            imported.new += u64::from(stored.new);
            imported.unchanged += u64::from(!stored.new);
            imported.bytes += bytes;
            last = line;
        }
        batch.commit().map_err(|error| ManifestError::Put { line: last, error })?;
        let versions = imported.new + imported.unchanged;
        progress(ImportProgress { storing: true, versions, all, bytes: imported.bytes });
        Ok(())
    })?;
    Ok(imported)
}

/// Checks all lines, and writes nothing. Returns their number, and the begin of the validity in the
/// first one.
fn check_all(
    manifest: &Manifest,
    writer: &RepositoryWriter,
    progress: &mut impl FnMut(ImportProgress),
) -> Result<(u64, Option<Timestamp>), ManifestError> {
    let (mut all, mut first_from) = (0, None);
    let mut ids = ManifestIds::default();
    let mut done = ImportProgress { storing: false, versions: 0, all, bytes: 0 };
    for_each_batch(manifest, |lines| {
        all += lines.len() as u64;
        let from = lines.first().map(|(_, line)| Timestamp::from_millis(line.valid_from_ms));
        first_from = first_from.or(from);
        let found = in_parallel(lines, |(number, line)| {
            let info = described(number, line, &manifest.folder, writer)?;
            Ok((number, info))
        })?;
        for (number, info) in found {
            ids.add(number, &info)?;
            done.versions += 1;
            done.bytes += info.size_bytes.unwrap_or(0);
        }
        progress(ImportProgress { all, ..done });
        Ok(())
    })?;
    Ok((all, first_from))
}

/// Applies `work` to each of `items`, in several threads. Results are in order; the first error
/// wins.
fn in_parallel<T: Send, R: Send>(
    items: Vec<T>,
    work: impl Fn(T) -> Result<R, ManifestError> + Sync,
) -> Result<Vec<R>, ManifestError> {
    let share = items.len().div_ceil(PARALLEL_FILES).max(1);
    let mut items = items.into_iter();
    let parts = std::iter::from_fn(|| {
        let part: Vec<T> = items.by_ref().take(share).collect();
        (!part.is_empty()).then_some(part)
    });
    let work = &work;
    let done: Vec<std::thread::Result<Result<Vec<R>, ManifestError>>> =
        std::thread::scope(|scope| {
            let threads: Vec<_> = parts
                .map(|part| scope.spawn(move || part.into_iter().map(work).collect()))
                .collect();
            threads.into_iter().map(|thread| thread.join()).collect()
        });
    let mut all = Vec::new();
    for part in done {
        all.extend(part.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
    }
    Ok(all)
}

/// Reads a manifest in batches of lines, so memory is bounded for any length.
fn for_each_batch(
    manifest: &Manifest,
    mut each: impl FnMut(Vec<(u64, ManifestLine)>) -> Result<(), ManifestError>,
) -> Result<(), ManifestError> {
    let path = || manifest.name.clone();
    let table =
        |error: csv::Error| ManifestError::Table { path: path(), reason: error.to_string() };
    let mut file = &manifest.table;
    let io = |error: io::Error| ManifestError::Io { path: path(), error };
    file.rewind().map_err(io)?;
    let mut mark = [0; 2];
    if file.read_at(&mut mark, 0).map_err(io)? == 2 && UTF16_MARKS.contains(&mark) {
        let reason = "it is UTF-16, expected UTF-8".to_owned();
        return Err(ManifestError::Table { path: path(), reason });
    }
    let mut reader = csv::Reader::from_reader(file);
    let headers = reader.headers().map_err(table)?.clone();
    if let Some(fault) = header_fault(&headers) {
        let (needed, others) = (NEEDED_COLUMNS.join(", "), OTHER_COLUMNS.join(", "));
        let reason = format!(
            "line 1 is no header: {fault}; expected the columns {needed}, and as needed {others}"
        );
        return Err(ManifestError::Table { path: path(), reason });
    }
    let mut lines = Vec::new();
    let mut record = csv::StringRecord::new();
    while reader.read_record(&mut record).map_err(table)? {
        let number = record.position().map_or(0, csv::Position::line);
        let line = record.deserialize(Some(&headers)).map_err(table)?;
        lines.push((number, line));
        if lines.len() == BATCH_LINES {
            each(std::mem::take(&mut lines))?;
        }
    }
    if lines.is_empty() { Ok(()) } else { each(lines) }
}

/// Why the first line does not name the columns.
fn header_fault(headers: &csv::StringRecord) -> Option<String> {
    let all = || NEEDED_COLUMNS.into_iter().chain(OTHER_COLUMNS);
    let count = |name: &str| headers.iter().filter(|header| *header == name).count();
    if let Some(other) = headers.iter().find(|header| all().all(|name| name != *header)) {
        return Some(format!("{other:?} is no column"));
    }
    if let Some(twice) = all().find(|name| count(name) > 1) {
        return Some(format!("{twice} stands in it twice"));
    }
    let missing: Vec<&str> = NEEDED_COLUMNS.into_iter().filter(|name| count(name) == 0).collect();
    (!missing.is_empty()).then(|| format!("without {}", missing.join(", ")))
}

/// The ids of the lines that were checked, each with a digest of its version.
#[derive(Debug, Default)]
struct ManifestIds(HashMap<[u8; 16], [u8; 8]>);

impl ManifestIds {
    /// Adds the version of a line.
    ///
    /// # Errors
    /// [`ManifestError::Line`] if an earlier line has its path and id, but describes another version.
    fn add(&mut self, line: u64, info: &ObjectInfo) -> Result<(), ManifestError> {
        let ObjectInfo { path, id, validity, created, size_bytes, md5, metadata } = info;
        let key = Md5::new().chain_update(path.as_str()).chain_update([0]);
        let key = key.chain_update(id.as_bytes()).finalize().into();
        let rest =
            format!("{validity:?} {created:?} {size_bytes:?} {md5:?} {:?}", metadata.to_map());
        let [rest @ .., _, _, _, _, _, _, _, _]: [u8; 16] = Md5::digest(rest).into();
        match self.0.entry(key) {
            Entry::Occupied(earlier) if *earlier.get() != rest => {
                let reason = format!(
                    "{path} has the id {id} in an earlier line, with another interval, creation \
                     time, content or note; an id names one version"
                );
                Err(ManifestError::Line { line, column: "id", reason })
            }
            Entry::Occupied(_) => Ok(()),
            Entry::Vacant(place) => {
                place.insert(rest);
                Ok(())
            }
        }
    }
}

/// The column of a line that is wrong, and the reason.
type ColumnFault = (&'static str, String);

/// The version of a line, whose file is read. It is compared with the stored version of its id.
fn described(
    number: u64,
    line: ManifestLine,
    folder: &Path,
    writer: &RepositoryWriter,
) -> Result<ObjectInfo, ManifestError> {
    let (checked, mut opened) = check(number, line, folder)?;
    let md5 = md5_of(&checked, &mut opened).map_err(of_line(number))?;
    let info = checked.version.info(checked.bytes, md5);
    let stored = writer.stored(&checked.version, &info).and_then(|stored| match stored {
        Some(there) => compared(there, info.clone()).map(drop),
        None => Ok(()),
    });
    stored.map_err(|error| ManifestError::Put { line: number, error })?;
    Ok(info)
}

/// The fault of a column as an error of the line.
fn of_line(line: u64) -> impl Fn(ColumnFault) -> ManifestError {
    move |(column, reason)| ManifestError::Line { line, column, reason }
}

/// Checks the values of a line, and opens its file.
fn check(number: u64, line: ManifestLine, folder: &Path) -> Result<(Checked, File), ManifestError> {
    check_columns(number, line, folder).map_err(of_line(number))
}

fn check_columns(
    number: u64,
    line: ManifestLine,
    folder: &Path,
) -> Result<(Checked, File), ColumnFault> {
    let path = ObjectPath::new(&line.path).map_err(|error| ("path", error.to_string()))?;
    let [from, until] = [line.valid_from_ms, line.valid_until_ms].map(Timestamp::from_millis);
    let validity = ValidityInterval::new(from, until)
        .map_err(|error| ("valid_until_ms", error.to_string()))?;
    let (file, opened, bytes) = open_listed(&line, folder)?;
    let md5 = line.md5.as_deref().filter(|text| !text.is_empty()).map(parse_md5).transpose()?;
    let file_name = line.file.file_name().map(|name| name.to_string_lossy().into_owned());
    let note = line.note.filter(|note| !note.is_empty());
    let metadata: BTreeMap<String, String> =
        note.into_iter().map(|note| ("note".to_owned(), note)).collect();
    let version = NewVersion {
        path,
        validity,
        created: Timestamp::from_millis(line.created_ms),
        id: line.id.filter(|id| !id.is_empty()),
        file_name: file_name.unwrap_or_default(),
        metadata,
    };
    Ok((Checked { line: number, version, file, bytes, md5 }, opened))
}

fn unreadable(file: &Path, error: &io::Error) -> ColumnFault {
    ("file", format!("{}: {error}", file.display()))
}

/// Opens the file of a line, which is beneath `folder` and has the size of the line. Returns its
/// path and its size in bytes as well.
fn open_listed(line: &ManifestLine, folder: &Path) -> Result<(PathBuf, File, u64), ColumnFault> {
    if !line.file.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
    {
        return Err(("file", format!("{:?} leads out of the manifest's folder", line.file)));
    }
    let file = folder.join(&line.file);
    let opened = open_regular(&file).map_err(|error| unreadable(&file, &error))?;
    let facts = opened.metadata().map_err(|error| unreadable(&file, &error))?;
    match line.size {
        Some(expected) if expected != facts.len() => {
            let (name, bytes) = (file.display(), facts.len());
            Err(("size", format!("{name} has {bytes} bytes, expected {expected}")))
        }
        _ => Ok((file, opened, facts.len())),
    }
}

fn parse_md5(text: &str) -> Result<Md5Sum, ColumnFault> {
    Md5Sum::parse(text).ok_or_else(|| ("md5", format!("{text:?}, expected 32 hex digits")))
}

/// The MD5 of an opened file, which is that of its line if the line has one.
fn md5_of(checked: &Checked, opened: &mut File) -> Result<Md5Sum, ColumnFault> {
    let Checked { file, md5, .. } = checked;
    let mut digest = Md5::new();
    io::copy(opened, &mut Sink(&mut digest)).map_err(|error| unreadable(file, &error))?;
    let got = Md5Sum(digest.finalize().into());
    match md5 {
        Some(expected) if *expected != got => {
            Err(("md5", format!("{} has {got}, expected {expected}", file.display())))
        }
        _ => Ok(got),
    }
}

/// Hashes all bytes written to it.
struct Sink<'a>(&'a mut Md5);

impl io::Write for Sink<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
