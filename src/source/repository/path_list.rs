//! Lists the paths of a repository in ascending order, with their numbers of versions, in parts.
//!
//! ```text
//!  folders, sorted      A   A-B   A/C   …
//!                       │    │     │          both advance together: memory for one folder per
//!  counts of the index  A   A-B   A/C   …     level, and one batch of each file of the index
//!                       └─ folder unchanged since it was indexed? ─▶ its number of versions
//!                                                  │ no
//!                                                  └─▶ its folders are read
//! ```

use std::collections::HashMap;
use std::io;

use rustix::fs::{AtFlags, FileType, Stat, fstat, statat};

use super::beneath::{Root, Stamp};
use super::index::{IndexSet, PathCounts};
use super::walk::{count_versions, read_folder};
use crate::object::ObjectPath;
use crate::source::PathSummary;

/// Maximum number of paths of a part.
const PART_PATHS: usize = 512;

/// Facts about a folder, for comparison with the index.
#[derive(Debug, Clone, Copy)]
struct FolderFacts {
    changed_nanos: i64,
    links: u64,
}

impl FolderFacts {
    fn new(stat: &Stat) -> Option<Self> {
        let is_folder = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        let changed_nanos = Stamp::from(stat).changed_nanos;
        is_folder.then_some(Self { changed_nanos, links: stat.st_nlink })
    }
}

/// A folder that is to be listed.
#[derive(Debug)]
enum UnlistedFolder {
    /// Its own versions.
    Versions { name: String, facts: Option<FolderFacts> },
    /// The folders beneath it.
    Beneath { name: String },
}

impl UnlistedFolder {
    /// The place in the order of paths: those beneath `A` begin with `A/`.
    fn key(&self) -> (&str, &str) {
        match self {
            Self::Versions { name, .. } => (name, ""),
            Self::Beneath { name } => (name, "/"),
        }
    }
}

/// The paths that are not listed yet.
#[derive(Debug)]
pub(super) struct PathList {
    root: Root,
    counts: PathCounts,
    /// The next one is the last.
    open: Vec<UnlistedFolder>,
    /// Folders beneath those that were read for their own versions.
    beneath: HashMap<String, Vec<UnlistedFolder>>,
}

impl PathList {
    /// The paths at or below `prefix`. Uses the index of the repository.
    ///
    /// # Errors
    /// If the root cannot be read.
    pub(super) fn open(root: &Root, prefix: &str) -> io::Result<Self> {
        // A missing root must not look like a repository without paths.
        root.descriptor()?;
        // A reader of its own: it takes as long as its client.
        let mut index = IndexSet::default();
        index.refresh(root);
        let counts = PathCounts::new(index, prefix);
        let mut open = vec![UnlistedFolder::Beneath { name: prefix.to_owned() }];
        if !prefix.is_empty() {
            let folder = root.folder(prefix);
            let facts = folder.ok().and_then(|folder| FolderFacts::new(&fstat(folder).ok()?));
            open.push(UnlistedFolder::Versions { name: prefix.to_owned(), facts });
        }
        Ok(Self { root: root.clone(), counts, open, beneath: HashMap::new() })
    }

    /// The next paths; empty at the end.
    ///
    /// # Errors
    /// If a folder cannot be read.
    pub(super) fn next_part(&mut self) -> io::Result<Vec<PathSummary>> {
        let mut part = Vec::new();
        while part.len() < PART_PATHS {
            match self.open.pop() {
                None => break,
                Some(UnlistedFolder::Versions { name, facts }) => {
                    part.extend(self.path(name, facts)?)
                }
                Some(UnlistedFolder::Beneath { name }) => {
                    let beneath = match self.beneath.remove(&name) {
                        Some(beneath) => beneath,
                        None => self.read(&name)?.2,
                    };
                    self.open.extend(beneath);
                }
            }
        }
        Ok(part)
    }

    /// The path of a folder, if it has versions.
    fn path(
        &mut self,
        name: String,
        facts: Option<FolderFacts>,
    ) -> io::Result<Option<PathSummary>> {
        let Ok(path) = ObjectPath::new(&name) else { return Ok(None) };
        // Folders and versions of an unchanged folder.
        let mut uncounted = None;
        if let (Some(count), Some(facts)) = (self.counts.of(&name), facts)
            && facts.changed_nanos == count.listed
        {
            // The links of a folder: its name, its `.`, and the `..` of each subfolder. So it has
            // no other folders than those of versions; paths can only be beneath these.
            if facts.links == count.folders + 2 && !count.has_negative {
                self.beneath.insert(name, Vec::new());
                return Ok(Some(PathSummary { path, versions: count.versions }));
            }
            // Some file systems count no links, others not beyond 65,000.
            uncounted = (facts.links == 1).then_some((count.folders, count.versions));
        }
        let (folder, froms, beneath) = self.read(&name)?;
        self.beneath.insert(name, beneath);
        let Some(folder) = folder else { return Ok(None) };
        if let Some((folders, versions)) = uncounted
            && folders == froms.len() as u64
        {
            return Ok(Some(PathSummary { path, versions }));
        }
        let mut versions = 0;
        for from in froms {
            versions += count_versions(&folder, &from)?;
        }
        Ok((versions > 0).then_some(PathSummary { path, versions }))
    }

    /// A folder, the names of its folders of versions, and the folders beneath it, the last first.
    #[allow(clippy::type_complexity, reason = "three parts of one folder, used at once")]
    fn read(
        &self,
        name: &str,
    ) -> io::Result<(Option<std::os::fd::OwnedFd>, Vec<String>, Vec<UnlistedFolder>)> {
        let Some(entries) = read_folder(&self.root, name)? else {
            return Ok((None, Vec::new(), Vec::new()));
        };
        let indexed = !self.counts.is_over();
        let mut beneath = Vec::with_capacity(2 * entries.children.len());
        for child in entries.children {
            let entry = child.rsplit('/').next().unwrap_or(&child);
            // One call, instead of three for a folder that is opened.
            let stat = || statat(&entries.folder, entry, AtFlags::SYMLINK_NOFOLLOW).ok();
            let facts =
                if indexed { stat().and_then(|stat| FolderFacts::new(&stat)) } else { None };
            beneath.push(UnlistedFolder::Versions { name: child.clone(), facts });
            beneath.push(UnlistedFolder::Beneath { name: child });
        }
        let bytes = |entry: &UnlistedFolder| {
            let (name, end) = entry.key();
            [name, end].concat()
        };
        beneath.sort_by_cached_key(|entry| std::cmp::Reverse(bytes(entry)));
        Ok((Some(entries.folder), entries.froms, beneath))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::source::repository::writer::put_for_test;

    fn put(root: &Path, path: &str, from: i64) {
        put_for_test(root, path, from, 1);
    }

    fn listed(root: &Path, prefix: &str) -> Vec<(String, u64)> {
        let mut list = PathList::open(&Root::open(root).unwrap(), prefix).unwrap();
        let mut all = Vec::new();
        loop {
            let part = list.next_part().unwrap();
            if part.is_empty() {
                assert!(list.beneath.is_empty(), "nothing is kept of what was listed");
                return all;
            }
            all.extend(part.into_iter().map(|one| (one.path.to_string(), one.versions)));
        }
    }

    #[test]
    fn paths_come_in_order_with_their_versions_whatever_the_index_knows() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let names = ["A", "A-B", "A-B/x", "A.x/y", "A/B", "A/B/C", "A/b", "AB", "B/1a", "B/Z"];
        for (n, name) in names.iter().enumerate() {
            (0..=n as i64).for_each(|from| put(root, name, from * 100));
        }
        let check = |changed: &[(&str, u64)]| {
            let mut expected: BTreeMap<String, u64> = names
                .iter()
                .enumerate()
                .map(|(n, name)| ((*name).to_owned(), n as u64 + 1))
                .collect();
            for (name, count) in changed {
                expected.insert((*name).to_owned(), *count);
            }
            expected.retain(|_, count| *count > 0);
            let all: Vec<_> = expected.clone().into_iter().collect();
            assert_eq!(listed(root, ""), all);
            for prefix in ["A", "A/B", "B", "A-B", "C", "B/1a"] {
                let below = format!("{prefix}/");
                let is_below = |name: &String| name == prefix || name.starts_with(&below);
                let some: Vec<_> = all.iter().filter(|(name, _)| is_below(name)).cloned().collect();
                assert_eq!(listed(root, prefix), some, "{prefix}");
            }
        };
        check(&[]);
        crate::source::repository::index(root, false, |_, _| {}).unwrap();
        check(&[]);
        // Rows in a second file of the index, a version that the index does not know, a removed one.
        put(root, "A/B", 9_000);
        fs::create_dir(root.join("A/7777")).unwrap();
        let copied = |name: &str| {
            let from = root.join("AB/100");
            let end = name.trim_start_matches('.');
            for entry in fs::read_dir(from).unwrap() {
                let entry = entry.unwrap();
                if entry.file_name().to_string_lossy().ends_with(end) {
                    fs::copy(entry.path(), root.join("A/7777").join(entry.file_name())).unwrap();
                }
            }
        };
        copied("");
        fs::remove_dir_all(root.join("B/Z")).unwrap();
        check(&[("A/B", 6), ("A", 2), ("B/Z", 0)]);
    }

    #[test]
    fn a_version_in_several_files_of_the_index_counts_once() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        put(root, "A/B", 0);
        put(root, "A/B", 100);
        crate::source::repository::index(root, false, |_, _| {}).unwrap();
        // Equal rows in a later file.
        let hidden = root.join(".iovcache~");
        let names: Vec<_> =
            fs::read_dir(&hidden).unwrap().map(|entry| entry.unwrap().path()).collect();
        let file = names.iter().find(|name| name.extension().is_some_and(|end| end == "arrow"));
        let file = file.unwrap();
        let name = file.file_name().unwrap().to_str().unwrap();
        let later = format!("{:016x}{}", 99, &name[16..]);
        fs::copy(file, hidden.join(later)).unwrap();
        assert_eq!(listed(root, ""), [("A/B".to_owned(), 2)]);
    }
}
