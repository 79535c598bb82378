//! Rebuilds the index of a repository, or compares it with the folders.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::append::{IndexWriter, Key, key_of};
use super::row::IndexRow;
use super::set::IndexSet;
use crate::object::{ObjectInfo, ObjectPath};
use crate::source::Problem;
use crate::source::repository::beneath::Root;
use crate::source::repository::folder::{LOCAL_SLACK, PathFolder, read_all};
use crate::source::repository::walk;

/// Result of rebuilding or checking an index.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct IndexReport {
    /// Number of paths with versions.
    pub paths: u64,
    /// Number of versions in the folders.
    pub versions: u64,
    /// Number of versions in the folders that the index lacks or describes differently.
    pub missing: u64,
    /// Number of versions in the index that the folders lack.
    pub surplus: u64,
    /// Names of index files that could not be used.
    pub unusable: Vec<String>,
    /// Entries of the folders that are not versions, each with the reason.
    pub problems: Vec<Problem>,
}

impl IndexReport {
    /// Whether the index agreed with the folders.
    pub fn is_current(&self) -> bool {
        self.missing == 0 && self.surplus == 0 && self.unusable.is_empty()
    }

    /// Counts a path with the versions `found`, and takes them out of the `known` rows of the index.
    /// `aligned` gives a known row the fields of the found one that do not count.
    pub(super) fn compare(
        &mut self,
        known: &mut BTreeMap<Key, IndexRow>,
        found: &[IndexRow],
        aligned: impl Fn(IndexRow, &IndexRow) -> IndexRow,
    ) {
        self.paths += u64::from(!found.is_empty());
        self.versions += found.len() as u64;
        for row in found {
            let known = known.remove(&key_of(row)).map(|known| aligned(known, row));
            self.missing += u64::from(known.as_ref() != Some(row));
        }
    }
}

/// Reads all folders of the repository `folder` and compares them with its index. Unless `check` is
/// set, the index is rebuilt. `progress` is called with the numbers of finished paths and versions.
///
/// # Errors
/// If the folders cannot be read, or the index cannot be written.
pub fn index(
    folder: &Path,
    check: bool,
    mut progress: impl FnMut(u64, u64),
) -> io::Result<IndexReport> {
    let root = Root::open(folder)?;
    // Files appended from here on are kept: they may have versions that this walk missed.
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
        report.compare(&mut known, &found, |known, row| IndexRow {
            stamp: row.stamp,
            listed: row.listed,
            // A file of the former version has none.
            details: known.details.or_else(|| row.details.clone()),
            ..known
        });
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
    let Some(mut folder) = PathFolder::open(root, path)? else { return Ok(Vec::new()) };
    folder.reads_details = true;
    let (froms, odd) = folder.froms(path)?;
    problems.extend(odd.into_iter().map(|(_, problem)| problem));
    let name: Arc<str> = path.as_str().into();
    let mut rows: Vec<IndexRow> = Vec::new();
    for (_, found) in read_all(&folder, path, &froms, |_| &[], LOCAL_SLACK)? {
        // Stamp 0 for folders with problems: every reader must read and report these.
        let is_whole = found.problems.is_empty();
        problems.extend(found.problems);
        for ((info, stamp), details) in found.read.into_iter().zip(found.details) {
            let stamp = if is_whole { stamp } else { 0 };
            let mut row = row_of(&name, info, stamp, folder.stamp.changed_nanos);
            row.details = Some(details);
            if let Some(last) = rows.last().filter(|last| last.metadata == row.metadata) {
                row.metadata = last.metadata.clone();
            }
            rows.push(row);
        }
    }
    Ok(rows)
}

/// The row of a version, without the facts about its upload.
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
        metadata: info.metadata,
        stamp,
        listed,
        details: None,
    }
}
