//! Walks the folders of a repository to find its paths.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use rustix::fs::OFlags;

use super::beneath::{EntryKind, Root, for_each_entry, open_beneath};
use super::entry::PROPERTIES;
use super::folder::{NumberFolder, from_of, is_absent};
use crate::object::ObjectPath;

/// The folders directly beneath a folder that can be, or contain, paths.
#[derive(Debug, Default)]
pub(super) struct Subfolders {
    /// Names from the root on, sorted.
    pub(super) names: Vec<String>,
    /// Whether the folder's own state tells when these change. It does not if a folder of a negative
    /// number is there, whose contents decide whether it stands for versions.
    pub(super) follow_the_folder: bool,
}

/// The folders directly beneath `name` that can be, or contain, paths; folders of versions are
/// excluded.
///
/// # Errors
/// If a folder cannot be read. A missing folder is no error, unless it is the root.
pub(super) fn subfolders(root: &Root, name: &str) -> io::Result<Subfolders> {
    let folder = match root.folder(name) {
        Err(error) if is_absent(&error) && !name.is_empty() => return Ok(Subfolders::default()),
        opened => opened?,
    };
    let is_path = ObjectPath::new(name).is_ok();
    let (mut names, mut numbers) = (Vec::new(), Vec::new());
    for_each_entry(&folder, |entry, kind| {
        let child = child_of(name, entry).filter(|_| kind == EntryKind::Folder);
        match child {
            Some(_) if is_path && from_of(entry).is_some() => numbers.push(entry.to_owned()),
            child => names.extend(child),
        }
    })?;
    let follow_the_folder = numbers.is_empty();
    for number in numbers {
        if NumberFolder::read(&folder, &number)?.has_paths {
            names.extend(child_of(name, &number));
        }
    }
    names.sort_unstable();
    Ok(Subfolders { names, follow_the_folder })
}

/// The path of `entry` beneath `name`, if it is one.
fn child_of(name: &str, entry: &str) -> Option<String> {
    let child = if name.is_empty() { entry.to_owned() } else { format!("{name}/{entry}") };
    ObjectPath::new(&child).is_ok().then_some(child)
}

/// The paths at or below `prefix`, sorted.
///
/// # Errors
/// If a folder cannot be read.
pub(super) fn paths(root: &Root, prefix: &str) -> io::Result<Vec<ObjectPath>> {
    // A missing root must not look like a repository without paths.
    root.descriptor()?;
    let (mut paths, mut open) = (Vec::new(), vec![prefix.to_owned()]);
    while let Some(name) = open.pop() {
        let Some(folder) = read_folder(root, &name)? else { continue };
        if let (Ok(path), false) = (ObjectPath::new(&name), folder.froms.is_empty()) {
            paths.push(path);
        }
        open.extend(folder.children);
    }
    paths.sort_unstable();
    Ok(paths)
}

/// The contents of a folder.
#[derive(Debug)]
pub(super) struct FolderEntries {
    pub(super) folder: OwnedFd,
    /// Names of the folders of versions.
    pub(super) froms: Vec<String>,
    /// Names, from the root on, of the folders that can be, or contain, paths.
    pub(super) children: Vec<String>,
}

/// Reads a folder; `None` if it does not exist.
///
/// # Errors
/// If it cannot be read.
pub(super) fn read_folder(root: &Root, name: &str) -> io::Result<Option<FolderEntries>> {
    let folder = match root.folder(name) {
        Ok(folder) => folder,
        Err(error) if is_absent(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    let is_path = ObjectPath::new(name).is_ok();
    let (mut numbers, mut children) = (Vec::new(), Vec::new());
    for_each_entry(&folder, |entry, kind| {
        if kind != EntryKind::Folder {
            return;
        }
        match from_of(entry).is_some() && is_path {
            true => numbers.push(entry.to_owned()),
            false => children.extend(child_of(name, entry)),
        }
    })?;
    let mut froms = Vec::with_capacity(numbers.len());
    for number in numbers {
        let NumberFolder { has_versions, has_paths } = NumberFolder::read(&folder, &number)?;
        if has_paths {
            children.extend(child_of(name, &number));
        }
        if has_versions {
            froms.push(number);
        }
    }
    Ok(Some(FolderEntries { folder, froms, children }))
}

/// Number of versions in the folder `name` beneath `folder`.
///
/// # Errors
/// If it cannot be read. A missing folder has none.
pub(super) fn count_versions(folder: &OwnedFd, name: &str) -> io::Result<u64> {
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
