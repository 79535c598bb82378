//! The folders beneath a folder, remembered until it changes.
//!
//! A path has one folder per beginning of an interval, so reading a folder to find the other
//! folders in it can take long.

use std::io;
use std::sync::Arc;

use rustix::fs::fstat;

use super::beneath::{Root, Stamp};
use super::folder::{LOCAL_SLACK, is_recent};
use super::walk::{self, Subfolders};
use crate::bounded_cache::BoundedCache;

/// Maximum number of folders in remembered listings.
const REMEMBERED_FOLDERS: u64 = 100_000;

/// Listings of folders, by the name of the folder.
#[derive(Debug)]
pub(super) struct FolderCache {
    known: BoundedCache<str, KnownFolders>,
}

#[derive(Debug)]
struct KnownFolders {
    /// State of the folder when it was read.
    stamp: Stamp,
    folders: Vec<String>,
}

impl Default for FolderCache {
    fn default() -> Self {
        let weight = |known: &KnownFolders| {
            let names: usize = known.folders.iter().map(String::len).sum();
            // In units of a short name; the name of the folder has at most 4 of them.
            u32::try_from(names / 64 + known.folders.len() + 5).unwrap_or(u32::MAX)
        };
        Self { known: BoundedCache::weighing(REMEMBERED_FOLDERS, weight) }
    }
}

impl FolderCache {
    /// The folders directly beneath `name` that can be, or contain, paths; sorted.
    ///
    /// # Errors
    /// If the folder cannot be read. A missing folder is no error, unless it is the root.
    pub(super) fn subfolders(&self, root: &Root, name: &str) -> io::Result<Vec<String>> {
        let stamp = match root.folder(name) {
            Ok(folder) => Some(Stamp::from(&fstat(&folder)?)),
            Err(_) => None,
        };
        let known = self.known.get(name);
        if let Some(known) = known.filter(|known| Some(known.stamp) == stamp) {
            return Ok(known.folders.clone());
        }
        let Subfolders { names: folders, follow_the_folder } = walk::subfolders(root, name)?;
        // A later change could have an equal time.
        let is_old = |stamp: &Stamp| !is_recent(stamp.changed_nanos, LOCAL_SLACK);
        if let Some(stamp) = stamp.filter(|stamp| follow_the_folder && is_old(stamp)) {
            let known = KnownFolders { stamp, folders: folders.clone() };
            self.known.insert(name, Arc::new(known));
        }
        Ok(folders)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_new_and_a_removed_folder_are_seen_at_once() {
        let place = tempfile::tempdir().unwrap();
        let (root, cache) = (Root::open(place.path()).unwrap(), FolderCache::default());
        fs::create_dir_all(place.path().join("A/One/17")).unwrap();
        fs::create_dir_all(place.path().join("A/1000")).unwrap();
        let folders = |name: &str| cache.subfolders(&root, name).unwrap();
        for _ in 0..3 {
            assert_eq!((folders(""), folders("A")), (vec!["A".into()], vec!["A/One".into()]));
            std::thread::sleep(LOCAL_SLACK);
        }
        assert!(folders("None").is_empty());
        fs::create_dir(place.path().join("A/Two")).unwrap();
        assert_eq!(folders("A"), ["A/One", "A/Two"]);
        fs::remove_dir_all(place.path().join("A/One")).unwrap();
        assert_eq!(folders("A"), ["A/Two"]);
        std::thread::sleep(LOCAL_SLACK * 2);
        assert_eq!((folders("A"), folders("A")), (vec!["A/Two".into()], vec!["A/Two".into()]));
        assert!(cache.known.contains_key("A"));
        fs::remove_dir_all(place.path().join("A")).unwrap();
        assert!(folders("A").is_empty());
    }

    #[test]
    fn a_folder_of_versions_from_before_1970_is_none_until_it_holds_folders() {
        let place = tempfile::tempdir().unwrap();
        let (root, cache) = (Root::open(place.path()).unwrap(), FolderCache::default());
        let folders = |name: &str| cache.subfolders(&root, name).unwrap();
        for versions in ["A/One/-5", "A/One/-07", "A/-1", "-3"] {
            fs::create_dir_all(place.path().join(versions)).unwrap();
        }
        fs::write(place.path().join("A/One/-5/blob"), "").unwrap();
        for _ in 0..2 {
            assert_eq!(folders(""), ["-3", "A"], "the root has no versions");
            assert_eq!(
                (folders("A"), folders("A/One")),
                (vec!["A/One".into()], vec!["A/One/-07".into()])
            );
            std::thread::sleep(LOCAL_SLACK * 2);
        }
        // A folder can stand for versions and for an element.
        fs::create_dir_all(place.path().join("A/One/-5/Two/17")).unwrap();
        assert_eq!(folders("A/One"), ["A/One/-07", "A/One/-5"]);
        fs::remove_dir_all(place.path().join("A/One/-5/Two")).unwrap();
        assert_eq!(folders("A/One"), ["A/One/-07"]);
    }
}
