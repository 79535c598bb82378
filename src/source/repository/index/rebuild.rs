//! Makes the index of a repository anew, or compares it with the folders.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::append::{IndexWriter, key_of};
use super::file::IndexRow;
use super::set::IndexSet;
use crate::object::{ObjectInfo, ObjectPath};
use crate::source::Problem;
use crate::source::repository::beneath::Root;
use crate::source::repository::folder::{LOCAL_SLACK, PathFolder, read_all};
use crate::source::repository::walk;

/// What was found while an index was made or checked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct IndexReport {
    /// Paths with versions.
    pub paths: u64,
    /// Versions in the folders.
    pub versions: u64,
    /// Versions that the index did not know, or not as they are.
    pub missing: u64,
    /// Versions in the index that the folders do not have.
    pub surplus: u64,
    /// Index files that could not be used.
    pub unusable: Vec<String>,
    /// Entries of the folders that are no versions, each with the reason.
    pub problems: Vec<Problem>,
}

impl IndexReport {
    /// Whether the index was as the folders say.
    pub fn is_current(&self) -> bool {
        self.missing == 0 && self.surplus == 0 && self.unusable.is_empty()
    }
}

/// Reads all folders of the repository `folder` and compares its index with them; unless `check`,
/// it is made anew. `progress` is told the paths and versions that are done.
///
/// # Errors
/// If the folders cannot be read, or the index cannot be written.
pub fn index(
    folder: &Path,
    check: bool,
    mut progress: impl FnMut(u64, u64),
) -> io::Result<IndexReport> {
    let root = Root::open(folder)?;
    // Files that are appended from here on are kept: they may know more than this walk.
    let replaced = match check {
        true => Vec::new(),
        false => IndexWriter::lock(&root)?.names()?,
    };
    let mut set = IndexSet::default();
    set.refresh(&root);
    let mut known: BTreeMap<_, IndexRow> = BTreeMap::new();
    for (_, file) in set.files() {
        match file.all() {
            Ok(rows) => known.extend(rows.into_iter().map(|row| (key_of(&row), row))),
            Err(error) => tracing::warn!(%error, "an index file cannot be read"),
        }
    }
    let mut report = IndexReport { unusable: set.unusable().collect(), ..IndexReport::default() };
    let mut rows = Vec::new();
    for path in walk::paths(&root, "")? {
        let found = rows_of(&root, &path, &mut report.problems)?;
        report.paths += u64::from(!found.is_empty());
        report.versions += found.len() as u64;
        for row in &found {
            let same = |known: IndexRow| IndexRow { stamp: row.stamp, listed: row.listed, ..known };
            let known = known.remove(&key_of(row)).map(same);
            report.missing += u64::from(known.as_ref() != Some(row));
        }
        if !check {
            rows.extend(found);
        }
        progress(report.paths, report.versions);
    }
    report.surplus = known.len() as u64;
    if !check {
        IndexWriter::lock(&root)?.replace(rows, &replaced)?;
    }
    Ok(report)
}

fn rows_of(
    root: &Root,
    path: &ObjectPath,
    problems: &mut Vec<Problem>,
) -> io::Result<Vec<IndexRow>> {
    let Some(folder) = PathFolder::open(root, path)? else { return Ok(Vec::new()) };
    let (froms, odd) = folder.froms(path)?;
    problems.extend(odd.into_iter().map(|(_, problem)| problem));
    let name: Arc<str> = path.as_str().into();
    let mut rows: Vec<IndexRow> = Vec::new();
    for (_, found) in read_all(&folder, path, &froms, |_| &[], LOCAL_SLACK)? {
        // What stands beside and cannot be used is to be named by each reader.
        let is_whole = found.problems.is_empty();
        problems.extend(found.problems);
        for (info, stamp) in found.read {
            let stamp = if is_whole { stamp } else { 0 };
            let mut row = row_of(&name, info, stamp, folder.stamp.changed_nanos);
            if let Some(last) = rows.last().filter(|last| last.metadata == row.metadata) {
                row.metadata = Arc::clone(&last.metadata);
            }
            rows.push(row);
        }
    }
    Ok(rows)
}

/// A version as a row.
pub(in crate::source::repository) fn row_of(
    path: &Arc<str>,
    info: ObjectInfo,
    stamp: u64,
    listed: i64,
) -> IndexRow {
    IndexRow {
        path: Arc::clone(path),
        from: info.validity.from().as_millis(),
        until: info.validity.until().as_millis(),
        created: info.created.as_millis(),
        id: info.id,
        size_bytes: info.size_bytes.unwrap_or(0),
        md5: info.md5,
        metadata: Arc::new(info.metadata),
        stamp,
        listed,
    }
}
