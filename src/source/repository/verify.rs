//! Verifies every file of a repository folder: names, properties, sizes, MD5.
//!
//! ```text
//!  folder ─┬─ path/from/<name> + <name>.properties ──▶ size and MD5 right? ──no──▶ set aside
//!          ├─ .….part, properties without bytes ─────▶ interrupted put ──────────▶ removed
//!          └─ link, FIFO, other kinds ───────────────▶ reported, not opened, left alone
//! ```

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use md5::{Digest as _, Md5};

use super::entry::{self, PROPERTIES};
use super::folder::from_of;
use super::index::FOLDER as INDEX_FOLDER;
use super::properties::Properties;
use crate::interval::Timestamp;
use crate::object::{Md5Sum, ObjectPath};
use crate::source::regular_file::open_regular_unlinked;
use crate::source::verify::{RepairOutcome, VerifyReport};

/// Younger files can belong to a put in progress.
const PUT_LIMIT: Duration = Duration::from_secs(10);
/// Maximum size of a properties file.
const MAX_PROPERTIES_BYTES: u64 = 1 << 20;

/// Reads and verifies every version of the repository in `folder`. With `repair`, files of
/// interrupted puts are removed, and damaged versions are set aside.
///
/// # Errors
/// If the folder cannot be read.
pub fn verify(folder: &Path, repair: bool) -> io::Result<VerifyReport> {
    let mut walk = Walk { repair, verified: VerifyReport::default() };
    walk.folder(folder, &mut Vec::new())?;
    walk.verified.damaged.sort_by(|a, b| a.file.cmp(&b.file));
    Ok(walk.verified)
}

struct Walk {
    repair: bool,
    verified: VerifyReport,
}

fn name_of(file: &Path) -> String {
    file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn is_young(file: &Path) -> bool {
    let modified = fs::symlink_metadata(file).and_then(|facts| facts.modified());
    // A time in the future is the end of validity: the file is complete.
    let age = modified.ok().and_then(|at| SystemTime::now().duration_since(at).ok());
    age.is_some_and(|age| age < PUT_LIMIT)
}

impl Walk {
    /// Verifies a folder; `elements` are the parts of its path.
    fn folder(&mut self, folder: &Path, elements: &mut Vec<String>) -> io::Result<()> {
        let (mut files, mut folders) = (BTreeSet::new(), BTreeSet::new());
        for entry in fs::read_dir(folder)? {
            let file = entry?.path();
            let kind = fs::symlink_metadata(&file)?.file_type();
            match () {
                // The index is verified by `iovcache index --check`.
                () if kind.is_dir() && elements.is_empty() && name_of(&file) == INDEX_FOLDER => {}
                () if kind.is_dir() => {
                    folders.insert(file);
                }
                () if kind.is_file() => {
                    files.insert(file);
                }
                () if kind.is_symlink() => {
                    self.verified.wrong(
                        file,
                        "it is a link, and not followed",
                        RepairOutcome::LeftAlone,
                    );
                }
                () => {
                    let reason = "it is neither a file nor a folder";
                    self.verified.wrong(file, reason, RepairOutcome::LeftAlone);
                }
            }
        }
        let from = elements.last().and_then(|name| from_of(name));
        let path = ObjectPath::new(&elements[..elements.len().saturating_sub(1)].join("/"));
        match (from, path) {
            (Some(from), Ok(path)) => {
                self.versions(&path, Timestamp::from_millis(from), &files);
            }
            _ => files.into_iter().for_each(|file| self.stray(file)),
        }
        for folder in folders {
            elements.push(name_of(&folder));
            self.folder(&folder, elements)?;
            elements.pop();
        }
        Ok(())
    }

    fn stray(&mut self, file: PathBuf) {
        if name_of(&file).starts_with('.') && name_of(&file).ends_with(".part") {
            self.half(file, "it was left half-written");
        } else {
            let reason = "it does not belong to a repository: versions lie in PATH/FROM/";
            self.verified.wrong(file, reason, RepairOutcome::LeftAlone);
        }
    }

    /// Handles a file left by an interrupted put.
    fn half(&mut self, file: PathBuf, reason: &str) {
        if is_young(&file) {
            return;
        }
        let removed = self.repair && fs::remove_file(&file).is_ok();
        let done = if removed { RepairOutcome::Removed } else { RepairOutcome::LeftAlone };
        self.verified.wrong(file, reason, done);
    }

    fn versions(&mut self, path: &ObjectPath, from: Timestamp, files: &BTreeSet<PathBuf>) {
        for file in files {
            let name = name_of(file);
            if name.starts_with('.') {
                if !name.ends_with(".damaged") {
                    self.stray(file.clone());
                }
                continue;
            }
            if let Some(blob) = name.strip_suffix(PROPERTIES) {
                if !files.contains(&file.with_file_name(blob)) {
                    self.half(file.clone(), "its bytes are not there: half of a put");
                }
                continue;
            }
            let properties = file.with_file_name(format!("{name}{PROPERTIES}"));
            if !files.contains(&properties) {
                if !is_young(file) {
                    let reason = format!("{PROPERTIES} is not there");
                    self.verified.wrong(file.clone(), reason, RepairOutcome::LeftAlone);
                }
                continue;
            }
            match check(path, from, file, &properties) {
                Ok(bytes) => {
                    self.verified.files += 1;
                    self.verified.bytes += bytes;
                }
                Err(reason) => {
                    let aside = self.repair && set_aside(file) && set_aside(&properties);
                    let done =
                        if aside { RepairOutcome::SetAside } else { RepairOutcome::LeftAlone };
                    self.verified.wrong(file.clone(), reason, done);
                }
            }
        }
    }
}

fn set_aside(file: &Path) -> bool {
    let aside = file.with_file_name(format!(".{}.damaged", name_of(file)));
    !aside.exists() && fs::rename(file, aside).is_ok()
}

/// Size of a version in bytes, or its fault in words.
fn check(
    path: &ObjectPath,
    from: Timestamp,
    file: &Path,
    properties: &Path,
) -> Result<u64, String> {
    let failed = |error: io::Error| error.to_string();
    let mut text = Vec::new();
    let read = open_regular_unlinked(properties)
        .map_err(failed)?
        .take(MAX_PROPERTIES_BYTES + 1)
        .read_to_end(&mut text);
    if read.map_err(failed)? as u64 > MAX_PROPERTIES_BYTES {
        return Err(format!("{PROPERTIES} has more than {MAX_PROPERTIES_BYTES} bytes"));
    }
    let properties = Properties::parse(&text).map_err(|error| error.to_string())?;
    let mut blob = open_regular_unlinked(file).map_err(failed)?;
    let bytes = blob.metadata().map_err(failed)?.len();
    let version = entry::version(path, from, &name_of(file), bytes, &properties)?;
    let (mut digest, mut piece) = (Md5::new(), vec![0; 1 << 20]);
    loop {
        match blob.read(&mut piece).map_err(failed)? {
            0 => break,
            count => digest.update(&piece[..count]),
        }
    }
    let found = Md5Sum(digest.finalize().into());
    match version.md5 {
        Some(expected) if expected != found => {
            Err(format!("its MD5 is {found}, expected {expected}"))
        }
        _ => Ok(bytes),
    }
}
