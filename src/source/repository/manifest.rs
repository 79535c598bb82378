//! Takes the objects of a manifest into a repository: everything is checked before anything is
//! written, so a wrong line loses nothing.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Component, Path, PathBuf};

use md5::{Digest as _, Md5};
use serde::Deserialize;

use super::writer::{NewVersion, RepositoryError, RepositoryWriter};
use crate::error::{Code, Coded, ErrorKind};
use crate::interval::{Timestamp, ValidityInterval};
use crate::object::{Md5Sum, ObjectPath};

/// One line: `path,valid_from_ms,valid_until_ms,created_ms,id,file,size,md5,note`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
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

/// What came of an import.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Imported {
    /// Versions that were put.
    pub new: u64,
    /// Versions that were there already.
    pub unchanged: u64,
    /// Bytes of all of them.
    pub bytes: u64,
}

/// Why a manifest is not taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// It cannot be read.
    #[error("{path}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// It is no such table.
    #[error("{path}: {reason}")]
    Table {
        /// Which file.
        path: PathBuf,
        /// Where and what.
        reason: String,
    },
    /// A line says something impossible.
    #[error("line {line}, {column}: {reason}")]
    Line {
        /// Which, counted from 1 for the header.
        line: u64,
        /// Which column.
        column: &'static str,
        /// What was got, what was expected.
        reason: String,
    },
    /// It cannot be stored.
    #[error("line {line}")]
    Put {
        /// Which, counted from 1 for the header.
        line: u64,
        /// Why.
        #[source]
        error: RepositoryError,
    },
}

impl Coded for ManifestError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Io { error, .. } => match error.kind() {
                io::ErrorKind::NotFound => ErrorKind::NotFound,
                io::ErrorKind::PermissionDenied => ErrorKind::PermissionDenied,
                _ => ErrorKind::FailedPrecondition,
            },
            // The command was right, its input is not: that is a failure, no wrong usage.
            Self::Table { .. } | Self::Line { .. } => ErrorKind::FailedPrecondition,
            Self::Put { error, .. } => error.kind(),
        }
    }

    fn code(&self) -> Code {
        match self {
            Self::Io { .. } => Code(3030),
            Self::Table { .. } => Code(3031),
            Self::Line { .. } => Code(3032),
            Self::Put { error, .. } => error.code(),
        }
    }
}

struct Checked {
    line: u64,
    version: NewVersion,
    file: PathBuf,
    bytes: u64,
}

/// Takes all objects of `manifest`, whose files lie relative to it. `progress` is told how many of
/// how many are done, first of the checking, then of the storing.
///
/// # Errors
/// [`ManifestError`]. Unless it is `Put`, nothing was written.
pub fn import(
    manifest: &Path,
    writer: &RepositoryWriter,
    mut progress: impl FnMut(&str, u64, u64),
) -> Result<Imported, ManifestError> {
    let folder = manifest.parent().unwrap_or(Path::new("."));
    let lines = lines(manifest)?;
    let all = lines.len() as u64;
    let mut checked = Vec::with_capacity(lines.len());
    for (number, line) in lines {
        checked.push(check(number, line, folder)?);
        progress("checking", checked.len() as u64, all);
    }
    let mut imported = Imported::default();
    for Checked { line, version, file, bytes } in checked {
        let stored = writer.put_file(&version, &file);
        let stored = stored.map_err(|error| ManifestError::Put { line, error })?;
        imported.new += u64::from(stored.new);
        imported.unchanged += u64::from(!stored.new);
        imported.bytes += bytes;
        progress("storing", imported.new + imported.unchanged, all);
    }
    Ok(imported)
}

fn lines(manifest: &Path) -> Result<Vec<(u64, Line)>, ManifestError> {
    let path = || manifest.to_owned();
    let file = File::open(manifest).map_err(|error| ManifestError::Io { path: path(), error })?;
    let table =
        |error: csv::Error| ManifestError::Table { path: path(), reason: error.to_string() };
    let mut reader = csv::Reader::from_reader(file);
    let headers = reader.headers().map_err(table)?.clone();
    let mut lines = Vec::new();
    let mut record = csv::StringRecord::new();
    while reader.read_record(&mut record).map_err(table)? {
        let number = record.position().map_or(0, csv::Position::line);
        let line = record.deserialize(Some(&headers)).map_err(table)?;
        lines.push((number, line));
    }
    Ok(lines)
}

fn check(number: u64, line: Line, folder: &Path) -> Result<Checked, ManifestError> {
    let wrong = |column, reason: String| ManifestError::Line { line: number, column, reason };
    let path = ObjectPath::new(&line.path).map_err(|error| wrong("path", error.to_string()))?;
    let [from, until] = [line.valid_from_ms, line.valid_until_ms].map(Timestamp::from_millis);
    let validity = ValidityInterval::new(from, until)
        .map_err(|error| wrong("valid_until_ms", error.to_string()))?;
    if !line.file.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
    {
        let reason = format!("{:?} leads out of the manifest's folder", line.file);
        return Err(wrong("file", reason));
    }
    let file = folder.join(&line.file);
    let unreadable = |error: io::Error| wrong("file", format!("{}: {error}", file.display()));
    let mut opened = File::open(&file).map_err(unreadable)?;
    let unreadable = |error: io::Error| wrong("file", format!("{}: {error}", file.display()));
    let facts = opened.metadata().map_err(unreadable)?;
    if !facts.is_file() {
        return Err(wrong("file", format!("{} is no regular file", file.display())));
    }
    if let Some(expected) = line.size
        && expected != facts.len()
    {
        let reason = format!("{} has {} bytes, expected {expected}", file.display(), facts.len());
        return Err(wrong("size", reason));
    }
    if let Some(text) = line.md5.filter(|text| !text.is_empty()) {
        let expected = Md5Sum::parse(&text)
            .ok_or_else(|| wrong("md5", format!("{text:?}, expected 32 hex digits")))?;
        let mut digest = Md5::new();
        io::copy(&mut opened, &mut Sink(&mut digest)).map_err(unreadable)?;
        let got = Md5Sum(digest.finalize().into());
        if got != expected {
            let reason = format!("{} has {got}, expected {expected}", file.display());
            return Err(wrong("md5", reason));
        }
    }
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
    Ok(Checked { line: number, version, file, bytes: facts.len() })
}

/// Hashes what is written.
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
