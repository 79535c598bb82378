//! Walks the folders of a repository to find its paths.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{OFlags, fstat};

use super::beneath::{EntryKind, Root, Stamp, for_each_entry, open_beneath};
use super::entry::PROPERTIES;
use super::folder::{from_of, is_absent};
use super::index::VersionCount;
use crate::object::ObjectPath;
use crate::source::PathSummary;

/// Calls `each` for every path at or below `prefix` that has folders of versions, with the names of
/// these folders. A folder for which `known` returns `true` is skipped; it must have no subfolders
/// other than those of versions.
fn for_each_path(
    root: &Root,
    prefix: &str,
    known: impl Fn(&str, &OwnedFd) -> io::Result<bool>,
    mut each: impl FnMut(ObjectPath, &OwnedFd, Vec<String>) -> io::Result<()>,
) -> io::Result<()> {
    // A missing root must not look like a repository without paths.
    root.descriptor()?;
    let mut open = vec![prefix.to_owned()];
    while let Some(name) = open.pop() {
        let folder = match root.folder(&name) {
            Ok(folder) => folder,
            Err(error) if is_absent(&error) => continue,
            Err(error) => return Err(error),
        };
        if known(&name, &folder)? {
            continue;
        }
        let path = ObjectPath::new(&name);
        let mut froms = Vec::new();
        for_each_entry(&folder, |entry, kind| {
            if kind != EntryKind::Folder {
                return;
            }
            if from_of(entry).is_some() && path.is_ok() {
                froms.push(entry.to_owned());
                return;
            }
            let child = if name.is_empty() { entry.to_owned() } else { format!("{name}/{entry}") };
            if ObjectPath::new(&child).is_ok() {
                open.push(child);
            }
        })?;
        if let (Ok(path), false) = (path, froms.is_empty()) {
            each(path, &folder, froms)?;
        }
    }
    Ok(())
}

/// The folders directly beneath `name` that can be, or contain, paths; sorted. Folders of versions
/// are excluded, because their names are numbers.
///
/// # Errors
/// If the folder cannot be read. A missing folder is no error, unless it is the root.
pub(super) fn subfolders(root: &Root, name: &str) -> io::Result<Vec<String>> {
    let folder = match root.folder(name) {
        Err(error) if is_absent(&error) && !name.is_empty() => return Ok(Vec::new()),
        opened => opened?,
    };
    let mut found = Vec::new();
    for_each_entry(&folder, |entry, kind| {
        let child = if name.is_empty() { entry.to_owned() } else { format!("{name}/{entry}") };
        if kind == EntryKind::Folder && ObjectPath::new(&child).is_ok() {
            found.push(child);
        }
    })?;
    found.sort_unstable();
    Ok(found)
}

/// The paths at or below `prefix`, sorted.
///
/// # Errors
/// If a folder cannot be read.
pub(super) fn paths(root: &Root, prefix: &str) -> io::Result<Vec<ObjectPath>> {
    let mut paths = Vec::new();
    for_each_path(
        root,
        prefix,
        |_, _| Ok(false),
        |path, _, _| {
            paths.push(path);
            Ok(())
        },
    )?;
    paths.sort_unstable();
    Ok(paths)
}

/// The paths at or below `prefix` with their numbers of versions, sorted. The index gives the
/// number for a path whose folder did not change since it was indexed.
///
/// # Errors
/// If a folder cannot be read.
pub(super) fn summaries(
    root: &Root,
    prefix: &str,
    counts: &HashMap<String, VersionCount>,
) -> io::Result<Vec<PathSummary>> {
    let mut found: BTreeMap<ObjectPath, u64> = BTreeMap::new();
    let indexed = RefCell::new(Vec::new());
    let known = |name: &str, folder: &OwnedFd| {
        let Some(count) = counts.get(name) else { return Ok(false) };
        let stat = fstat(folder)?;
        // The links of a folder: its name, its `.`, and the `..` of each subfolder.
        let same =
            Stamp::from(&stat).changed_nanos == count.listed && stat.st_nlink == count.folders + 2;
        if same && let Ok(path) = ObjectPath::new(name) {
            indexed.borrow_mut().push((path, count.versions));
            return Ok(true);
        }
        Ok(false)
    };
    for_each_path(root, prefix, known, |path, folder, froms| {
        let mut versions = 0;
        for from in froms {
            versions += count_versions(folder, &from)?;
        }
        if versions > 0 {
            found.insert(path, versions);
        }
        Ok(())
    })?;
    found.extend(indexed.into_inner());
    Ok(found.into_iter().map(|(path, versions)| PathSummary { path, versions }).collect())
}

fn count_versions(folder: &OwnedFd, name: &str) -> io::Result<u64> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let folder = match open_beneath(folder.as_fd(), name, flags) {
        Ok(folder) => folder,
        Err(error) if is_absent(&error) => return Ok(0),
        Err(error) => return Err(error),
    };
    let mut versions = 0;
    for_each_entry(&folder, |name, _| {
        versions += u64::from(name.ends_with(PROPERTIES) && !name.starts_with('.'));
    })?;
    Ok(versions)
}
