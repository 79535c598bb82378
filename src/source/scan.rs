//! Listings of any length: the versions of a path, or of all paths below one, piece by piece.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;

use super::details::Details;
use super::error::SourceError;
use crate::interval::Timestamp;
use crate::object::{CreationLimits, ObjectId, ObjectInfo};

/// The versions to list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scan {
    /// A path, or with `below` a prefix (`""`: all paths).
    pub prefix: String,
    /// Whether to list the paths below `prefix` instead of `prefix` itself.
    pub below: bool,
    /// The caller uses only versions that are valid then; others may be left out.
    pub at: Option<Timestamp>,
    /// The caller uses only the version of each path that was created last; others may be left
    /// out.
    pub only_latest: bool,
    /// The caller uses only this number of versions, those created last; others may be left out.
    pub newest: Option<usize>,
    /// Limits on creation times.
    pub limits: CreationLimits,
}

/// A version as listed, with the facts about its upload.
#[derive(Debug, Clone)]
pub struct ScannedVersion {
    /// The version.
    pub info: Arc<ObjectInfo>,
    /// Facts about its upload.
    pub details: Details,
}

/// A piece of a listing.
#[derive(Debug, Clone, Default)]
pub struct ScanPiece {
    /// Versions, in the order of the source.
    pub versions: Vec<ScannedVersion>,
    /// Paths with an entry that is in doubt: their listing is incomplete.
    pub in_doubt: Vec<String>,
}

/// A listing that is read from the source while it is used. After an error it ends.
pub type VersionStream = Pin<Box<dyn Stream<Item = Result<ScanPiece, SourceError>> + Send>>;

/// Rank of a version among those created last; see [`ObjectInfo::rank`].
type Rank = (Timestamp, Timestamp, ObjectId);

/// Collects the versions created last, at most `limit`.
#[derive(Debug)]
pub(crate) struct NewestVersions<T> {
    limit: usize,
    heap: BinaryHeap<Reverse<Ranked<T>>>,
}

#[derive(Debug)]
struct Ranked<T>(Rank, T);

impl<T> PartialEq for Ranked<T> {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl<T> Eq for Ranked<T> {}

impl<T> PartialOrd for Ranked<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Ranked<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.cmp(&other.0)
    }
}

impl<T> NewestVersions<T> {
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, heap: BinaryHeap::new() }
    }

    /// Whether a version with this rank would be kept.
    pub(crate) fn admits(&self, rank: Rank) -> bool {
        self.heap.len() < self.limit
            || self.heap.peek().is_some_and(|Reverse(Ranked(least, _))| rank > *least)
    }

    /// Adds a version, and drops the one created first if there are too many.
    pub(crate) fn add(&mut self, rank: Rank, version: T) {
        if !self.admits(rank) {
            return;
        }
        self.heap.push(Reverse(Ranked(rank, version)));
        if self.heap.len() > self.limit {
            self.heap.pop();
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.heap.len()
    }

    /// The lowest rank that is kept.
    pub(crate) fn least(&self) -> Option<Rank> {
        self.heap.peek().map(|Reverse(Ranked(rank, _))| *rank)
    }

    /// The versions, in no particular order.
    pub(crate) fn into_versions(self) -> Vec<T> {
        self.heap.into_iter().map(|Reverse(Ranked(_, version))| version).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_versions_created_last_are_kept_whatever_their_order() {
        let rank = |created: i64| {
            let at = Timestamp::from_millis;
            (at(created), at(0), ObjectId::from_bytes([0; 16]))
        };
        let mut newest = NewestVersions::new(3);
        for created in [5, 1, 9, 7, 2, 8] {
            newest.add(rank(created), created);
        }
        assert_eq!((newest.len(), newest.least()), (3, Some(rank(7))));
        assert!(newest.admits(rank(8)) && !newest.admits(rank(6)));
        let mut kept = newest.into_versions();
        kept.sort_unstable();
        assert_eq!(kept, [7, 8, 9]);
        let mut none = NewestVersions::new(0);
        none.add(rank(1), 1);
        assert!(none.into_versions().is_empty());
    }
}
