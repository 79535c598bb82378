//! ListingSelection of the versions for `/browse` and `/latest`.

use std::cmp::Reverse;
use std::sync::Arc;

use futures::stream::{self, StreamExt as _, TryStreamExt as _};

use super::address::Wanted;
use super::front::{Front, PATIENCE};
use crate::cache::CacheError;
use crate::object::{CreationLimits, ObjectInfo, ObjectPath, Query};
use crate::source::PathSummary;

/// Maximum paths listed concurrently.
const PARALLEL_PATHS: usize = 16;

/// The result of a listing.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// In the order of file-backed servers: path, from and UUID as one string.
    pub(super) versions: Vec<Arc<ObjectInfo>>,
    /// The folders one level below a path; not listed for a pattern.
    pub(super) subfolders: Option<Vec<String>>,
    /// Contents of these folders, if a report was requested.
    pub(super) report: Option<Vec<FolderContents>>,
    /// Paths that the source cannot list completely: none of their versions is included.
    pub(super) left_out: Vec<ObjectPath>,
}

/// Contents of a folder.
#[derive(Debug, Default)]
pub(super) struct FolderContents {
    pub(super) name: String,
    /// Versions of the folder's own path, and their bytes.
    pub(super) own: (u64, u64),
    /// Versions of the paths below it, and their bytes.
    pub(super) below: (u64, u64),
}

/// Which versions of a listing are kept.
#[derive(Debug, Clone, Copy)]
pub(super) struct ListingSelection {
    /// Of each path only the version created last.
    pub(super) only_latest: bool,
    /// Of all only so many, those created last.
    pub(super) limit: Option<usize>,
    pub(super) with_subfolders: bool,
}

impl Front {
    /// The versions that `wanted` selects: those of all paths that its pattern matches.
    ///
    /// # Errors
    /// [`CacheError`] if a path cannot be listed.
    pub(super) async fn find(
        &self,
        wanted: &Wanted,
        limits: CreationLimits,
        selection: ListingSelection,
    ) -> Result<Found, CacheError> {
        let pattern = Pattern::new(&wanted.path);
        let paths = match (&pattern, ObjectPath::new(&wanted.path)) {
            (Pattern::Plain, Ok(path)) => vec![path],
            (Pattern::Plain, Err(_)) => Vec::new(),
            (Pattern::Wild { .. }, _) => {
                let paths = self.paths_of(&pattern).await?;
                paths.into_iter().map(|summary| summary.path).collect()
            }
        };
        let mut found = Found::default();
        let mut listings = stream::iter(paths)
            .map(|path| async {
                let versions = self.cache.versions(&path, PATIENCE).await?;
                Ok::<_, CacheError>((path, versions))
            })
            .buffer_unordered(PARALLEL_PATHS);
        while let Some((path, listing)) = listings.try_next().await? {
            if !listing.whole {
                found.left_out.push(path.clone());
            }
            let query = Query { path, metadata: wanted.metadata.clone(), limits };
            let matching = listing.versions.into_iter().filter(|version| {
                query.matches(version)
                    && wanted.at.is_none_or(|at| version.validity.contains(at))
                    && wanted.id.is_none_or(|id| version.id == id)
            });
            match selection.only_latest {
                true => found.versions.extend(matching.max_by_key(|version| version.rank())),
                false => found.versions.extend(matching),
            }
        }
        drop(listings);
        found.left_out.sort_unstable();
        let versions = std::mem::take(&mut found.versions);
        let in_order = move || in_order(versions, selection.limit);
        let sorted = tokio::task::spawn_blocking(in_order).await;
        found.versions = sorted.map_err(|_| CacheError::Lost { what: "a listing".into() })?;
        if matches!(pattern, Pattern::Plain) {
            let folders = match selection.with_subfolders {
                true => self.cache.subfolders(&wanted.path).await?,
                false => Vec::new(),
            };
            found.subfolders = Some(folders);
        }
        Ok(found)
    }

    /// The contents of folders. Sizes that the source does not list count as 0.
    ///
    /// # Errors
    /// The error of the source.
    pub(super) async fn contents_of(
        &self,
        folders: &[String],
    ) -> Result<Vec<FolderContents>, CacheError> {
        let mut all = Vec::with_capacity(folders.len());
        for folder in folders {
            let paths = self.cache.paths(folder).await?;
            let mut contents = FolderContents { name: folder.clone(), ..Default::default() };
            let mut sizes = stream::iter(paths)
                .map(|summary| async move {
                    let listing = self.cache.versions(&summary.path, PATIENCE).await?;
                    let sizes = listing.versions.iter().filter_map(|version| version.size_bytes);
                    let count = match listing.whole {
                        true => listing.versions.len() as u64,
                        false => summary.versions,
                    };
                    Ok::<_, CacheError>((summary.path, count, sizes.sum::<u64>()))
                })
                .buffer_unordered(PARALLEL_PATHS);
            while let Some((path, count, bytes)) = sizes.try_next().await? {
                let is_own = path.as_str() == folder;
                let sums = if is_own { &mut contents.own } else { &mut contents.below };
                *sums = (sums.0 + count, sums.1 + bytes);
            }
            drop(sizes);
            all.push(contents);
        }
        Ok(all)
    }

    /// The paths that a pattern matches, sorted.
    ///
    /// # Errors
    /// The error of the source.
    pub(super) async fn paths_of(&self, pattern: &Pattern) -> Result<Vec<PathSummary>, CacheError> {
        let Pattern::Wild { prefix, glob } = pattern else { return Ok(Vec::new()) };
        let mut paths = self.cache.paths(prefix).await?;
        paths.retain(|summary| glob_matches(glob, summary.path.as_str()));
        Ok(paths)
    }
}

/// The `limit` versions that were created last, sorted by path, from and id as one string.
fn in_order(mut versions: Vec<Arc<ObjectInfo>>, limit: Option<usize>) -> Vec<Arc<ObjectInfo>> {
    if let Some(limit) = limit.filter(|limit| *limit < versions.len()) {
        versions.sort_unstable_by_key(|version| Reverse(version.rank()));
        versions.truncate(limit);
    }
    versions.sort_by_cached_key(|version| super::version::address(version));
    versions
}

/// A path, or a pattern for several.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Pattern {
    Plain,
    Wild {
        /// Every match is this path or lies below it.
        prefix: String,
        /// `*` for any characters; paths below a match also match.
        glob: String,
    },
}

impl Pattern {
    /// `.*`, `*` and `%` each match any characters, as at both kinds of server.
    pub(super) fn new(path: &str) -> Self {
        let glob = path.replace(".*", "*").replace('%', "*");
        let Some((before, _)) = glob.split_once('*') else { return Self::Plain };
        let prefix = before.rsplit_once('/').map_or("", |(prefix, _)| prefix).to_owned();
        Self::Wild { prefix, glob }
    }
}

/// Whether `glob` matches `path` or a folder above it.
fn glob_matches(glob: &str, path: &str) -> bool {
    let borders = path.match_indices('/').map(|(place, _)| place).chain([path.len()]);
    borders.into_iter().any(|end| matches_whole(glob.as_bytes(), &path.as_bytes()[..end]))
}

pub(super) fn matches_whole(glob: &[u8], text: &[u8]) -> bool {
    let (mut g, mut t) = (0, 0);
    // The position to resume from if the text after the last star does not match.
    let mut star = None;
    loop {
        match (glob.get(g), text.get(t)) {
            (Some(b'*'), _) => {
                star = Some((g + 1, t));
                g += 1;
            }
            (Some(a), Some(b)) if a == b => (g, t) = (g + 1, t + 1),
            (None, None) => return true,
            _ => match star {
                Some((after, from)) if from < text.len() => {
                    star = Some((after, from + 1));
                    (g, t) = (after, from + 1);
                }
                _ => return false,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_what_both_kinds_of_server_agree_on() {
        let matches = |pattern: &str, path: &str| match Pattern::new(pattern) {
            Pattern::Wild { glob, prefix } => {
                path.starts_with(&prefix) && glob_matches(&glob, path)
            }
            Pattern::Plain => panic!("{pattern} is a pattern"),
        };
        for (pattern, path) in [
            ("A/.*", "A/One"),
            ("A/*", "A/Two/Deep"),
            ("A/%", "A/One"),
            (".*", "A"),
            ("A/T*", "A/Two/Deep"),
            ("A/T.*o", "A/Two/Deep"),
            ("*/One", "A/One/Below"),
        ] {
            assert!(matches(pattern, path), "{pattern} {path}");
        }
        for (pattern, path) in
            [("A/.*", "A"), ("A/.*", "AB/One"), ("A/T*", "A/One"), ("*/One", "One")]
        {
            assert!(!matches(pattern, path), "{pattern} {path}");
        }
        assert_eq!(Pattern::new("A/B.c"), Pattern::Plain);
    }
}
