//! Selection of the versions for `/browse` and `/latest`.
//!
//! ```text
//!  pieces ─▶ at most SHORT versions: sorted, with a length            FoundListing::Short
//!        └─▶ more: in the order of the pieces, while they are read    Listing::Long
//! ```
//!
//! The memory of a listing is charged to the CCDB side, and does not depend on the number of
//! versions.

use std::collections::HashMap;
use std::sync::Arc;

use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use tokio::sync::OwnedSemaphorePermit;

use super::front::{Front, MAX_WAIT};
use super::listing_stream::{
    ListedVersion, ListingPiece, ListingRequest, ListingStream, OpenedListing,
};
use super::order::PAGE;
use super::pattern::{Pattern, glob_matches};
use crate::budget::Charge;
use crate::cache::CacheError;
use crate::error::Coded as _;
use crate::object::{ObjectInfo, ObjectPath, Query};
use crate::source::{NewestVersions, PathSummary};

/// Maximum versions of a listing that is collected before the first byte is sent.
const SHORT: usize = PAGE;
/// Bytes charged for each collected version.
const VERSION_BYTES: u64 = 1024;
/// Bytes charged for each rank among the versions created last.
const RANK_BYTES: u64 = 64;
/// Versions between two charges.
const CHARGED_VERSIONS: usize = 256;
/// Bytes charged for a listing that is sent while it is read: pages, pieces and queues.
const LONG_BYTES: u64 = 8 << 20;
/// Above this number, only the ranks of the versions created last are collected, and the listing is
/// read twice.
const MAX_COLLECTED: usize = 8_192;
/// Maximum versions of a path shown in the chart of a page.
pub(super) const PICTURED: usize = 200;

/// The result of a listing.
#[derive(Debug, Default)]
pub(super) struct FolderListing {
    /// In the order of file-backed servers: path, from and UUID as one string.
    pub(super) versions: Vec<ListedVersion>,
    /// Whether there are more versions than requested.
    pub(super) is_cut: bool,
    /// Number of versions after which it was cut.
    cut_after: Option<usize>,
    /// Whether the versions are sent while they are read. Then `left_out` is complete at the end
    /// only, and versions of such paths may be included.
    pub(super) is_long: bool,
    /// The versions created last, for the chart, if not all are in `versions`.
    pub(super) pictured: Vec<Arc<ObjectInfo>>,
    /// The folders one level below a path; not listed for a pattern.
    pub(super) subfolders: Option<Vec<String>>,
    /// Contents of these folders, if a report was requested.
    pub(super) report: Option<Vec<FolderContents>>,
    /// Paths that the source cannot list completely: none of their versions is included.
    pub(super) left_out: Vec<String>,
    /// Whether the versions are of several sources, of which the first with a valid version decides,
    /// and not the time of creation.
    pub(super) of_several_sources: bool,
    /// Pays for the versions.
    pub(super) charge: Option<Charge>,
}

/// A listing that is sent while it is read.
pub(super) struct LongListing {
    /// Versions, the first ones included.
    pub(super) pieces: ListingStream,
    pub(super) charge: Charge,
    /// The number of listings of this kind at one time is limited.
    pub(super) place: OwnedSemaphorePermit,
}

/// A listing.
pub(super) struct FoundListing {
    /// All versions, or none if the listing is long.
    pub(super) found: FolderListing,
    pub(super) long: Option<LongListing>,
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

impl Front {
    /// The versions that `request` selects; with `longest` only the first ones.
    ///
    /// # Errors
    /// [`CacheError`] if the source fails before the first piece.
    pub(super) async fn find(
        &self,
        request: ListingRequest,
        longest: Option<usize>,
    ) -> Result<FoundListing, CacheError> {
        let request = Arc::new(request);
        let mut charge = self.budget.charge(0, "listing")?;
        // The ranks of so many versions take much memory.
        let mut place = match request.newest.is_some_and(|limit| limit > MAX_COLLECTED) {
            true => Some(self.long_place().await?),
            false => None,
        };
        let OpenedListing { mut pieces, is_costly, .. } =
            self.open_selected(&request, &mut charge).await?;
        let mut found = collect(&mut pieces, longest, &mut charge).await?;
        if !found.is_cut || longest.is_some() {
            found = in_order(found).await?;
            found.charge = Some(charge);
            return Ok(FoundListing { found, long: None });
        }
        let versions = std::mem::take(&mut found.versions);
        let first = stream::iter([Ok(ListingPiece { versions, ..ListingPiece::default() })]);
        let mut pieces = first.chain(pieces).boxed();
        if place.is_none() && !is_costly {
            // Nothing is held while it waits: the pages are read again.
            drop(std::mem::replace(&mut pieces, stream::empty().boxed()));
            charge.shrink_to(0);
            place = Some(self.long_place().await?);
            (pieces, found) =
                (self.open_selected(&request, &mut charge).await?.pieces, FolderListing::default());
        }
        let place = match place {
            Some(place) => place,
            None => self.long_place().await?,
        };
        charge.shrink_to(0);
        charge.grow(LONG_BYTES)?;
        (found.is_cut, found.is_long) = (false, true);
        Ok(FoundListing { found, long: Some(LongListing { pieces, charge, place }) })
    }

    /// A place among the listings that are sent while they are read.
    async fn long_place(&self) -> Result<OwnedSemaphorePermit, CacheError> {
        let place = Arc::clone(&self.long_listings).acquire_owned();
        match tokio::time::timeout(MAX_WAIT, place).await {
            Ok(Ok(place)) => Ok(place),
            Ok(Err(_)) | Err(_) => Err(CacheError::DeadlineExceeded {
                what: "a place among the long listings".to_owned(),
                wait_ms: u64::try_from(MAX_WAIT.as_millis()).unwrap_or(u64::MAX),
            }),
        }
    }

    /// The pieces of a listing, with the selection by creation applied.
    async fn open_selected(
        &self,
        request: &Arc<ListingRequest>,
        charge: &mut Charge,
    ) -> Result<OpenedListing, CacheError> {
        let opened = match self.open_listing(request).await {
            Ok(opened) => opened,
            Err(error) => self.older_listing(request, error).await?,
        };
        match request.newest {
            Some(limit) => self.newest_of(opened, request, limit, charge).await,
            None if request.only_latest && !opened.is_reduced => latest_of(opened, charge).await,
            None => Ok(opened),
        }
    }

    /// The listing as of an earlier request, if the source does not answer.
    async fn older_listing(
        &self,
        request: &Arc<ListingRequest>,
        error: CacheError,
    ) -> Result<OpenedListing, CacheError> {
        let path = match (Pattern::new(&request.wanted.path), &request.wanted.path) {
            (Pattern::Plain, path) if error.kind().is_transient() => ObjectPath::new(path),
            _ => return Err(error),
        };
        let Ok(path) = path else { return Err(error) };
        let listed = self.cache.versions(&path, MAX_WAIT).await?;
        if !listed.whole {
            return Err(error);
        }
        let admitted = listed.versions.into_iter().filter(|version| request.admits(version));
        let versions = admitted.map(|info| ListedVersion { info, details: None }).collect();
        let piece = ListingPiece { versions, ..ListingPiece::default() };
        Ok(OpenedListing {
            pieces: stream::iter([Ok(piece)]).boxed(),
            is_reduced: !request.only_latest,
            is_costly: false,
        })
    }

    /// Of the pieces, the `limit` versions that were created last.
    async fn newest_of(
        &self,
        mut opened: OpenedListing,
        request: &Arc<ListingRequest>,
        limit: usize,
        charge: &mut Charge,
    ) -> Result<OpenedListing, CacheError> {
        if request.only_latest && !opened.is_reduced {
            opened = latest_of(opened, charge).await?;
        }
        if limit <= MAX_COLLECTED {
            let mut newest = NewestVersions::new(limit);
            let mut left_out = Vec::new();
            while let Some(piece) = opened.pieces.try_next().await? {
                left_out.extend(piece.left_out);
                for version in piece.versions {
                    newest.add(version.info.rank(), version);
                }
                pay(charge, newest.len(), VERSION_BYTES)?;
            }
            let mut versions = newest.into_versions();
            versions.sort_by_cached_key(|version| super::version::address(&version.info));
            let pieces =
                stream::iter([Ok(ListingPiece { versions, left_out, ..ListingPiece::default() })])
                    .boxed();
            return Ok(OpenedListing { pieces, is_reduced: true, is_costly: opened.is_costly });
        }
        let mut newest: NewestVersions<()> = NewestVersions::new(limit);
        while let Some(piece) = opened.pieces.try_next().await? {
            piece.versions.iter().for_each(|version| newest.add(version.info.rank(), ()));
            pay(charge, newest.len(), RANK_BYTES)?;
        }
        let least = newest.least().filter(|_| newest.len() == limit);
        drop(newest);
        charge.shrink_to(0);
        let mut again = self.open_listing(request).await?;
        if request.only_latest && !again.is_reduced {
            again = latest_of(again, charge).await?;
        }
        let pieces = again.pieces.map_ok(move |mut piece| {
            piece.versions.retain(|version| least.is_none_or(|least| version.info.rank() >= least));
            piece
        });
        Ok(OpenedListing { pieces: pieces.boxed(), is_reduced: true, is_costly: again.is_costly })
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
            let mut contents = FolderContents { name: folder.clone(), ..Default::default() };
            for summary in self.cache.paths(folder).await? {
                let is_own = summary.path.as_str() == folder;
                let sums = if is_own { &mut contents.own } else { &mut contents.below };
                let (count, bytes) = self.size_of(&summary).await?;
                *sums = (sums.0 + count, sums.1 + bytes);
            }
            all.push(contents);
        }
        Ok(all)
    }

    /// Number and bytes of the versions of a path.
    async fn size_of(&self, summary: &PathSummary) -> Result<(u64, u64), CacheError> {
        let query = Query::all(summary.path.clone());
        let (mut count, mut bytes, mut after) = (0, 0, None);
        loop {
            let page = self.cache.version_page(&query, after, SHORT).await?;
            if !page.whole {
                return Ok((summary.versions, 0));
            }
            count += page.versions.len() as u64;
            bytes += page.versions.iter().filter_map(|version| version.size_bytes).sum::<u64>();
            after = page.versions.last().map(|version| (version.validity.from(), version.id));
            if !page.more || after.is_none() {
                return Ok((count, bytes));
            }
        }
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

/// Of the pieces, the version of each path that was created last.
async fn latest_of(
    mut opened: OpenedListing,
    charge: &mut Charge,
) -> Result<OpenedListing, CacheError> {
    let mut latest: HashMap<ObjectPath, ListedVersion> = HashMap::new();
    let mut left_out = Vec::new();
    while let Some(piece) = opened.pieces.try_next().await? {
        left_out.extend(piece.left_out);
        for version in piece.versions {
            match latest.get_mut(&version.info.path) {
                Some(known) if known.info.rank() >= version.info.rank() => {}
                Some(known) => *known = version,
                None => drop(latest.insert(version.info.path.clone(), version)),
            }
        }
        pay(charge, latest.len(), VERSION_BYTES)?;
    }
    let mut versions: Vec<ListedVersion> = latest.into_values().collect();
    versions.sort_by_cached_key(|version| super::version::address(&version.info));
    let pieces =
        stream::iter([Ok(ListingPiece { versions, left_out, ..ListingPiece::default() })]).boxed();
    Ok(OpenedListing { pieces, is_reduced: true, is_costly: opened.is_costly })
}

/// Collects the pieces, as long as there are at most `longest` versions, or few.
async fn collect(
    pieces: &mut ListingStream,
    longest: Option<usize>,
    charge: &mut Charge,
) -> Result<FolderListing, CacheError> {
    let mut found = FolderListing::default();
    let most = longest.unwrap_or(SHORT);
    while let Some(piece) = pieces.try_next().await? {
        found.left_out.extend(piece.left_out);
        found.versions.extend(piece.versions);
        pay(charge, found.versions.len(), VERSION_BYTES)?;
        let is_long = piece.is_many && longest.is_none();
        if is_long || found.versions.len() > most {
            found.cut_after = Some(most);
            found.is_cut = true;
            break;
        }
    }
    found.left_out.sort_unstable();
    found.left_out.dedup();
    Ok(found)
}

/// Sorts collected versions, without those of paths that are not listed completely.
async fn in_order(mut found: FolderListing) -> Result<FolderListing, CacheError> {
    let sorted = tokio::task::spawn_blocking(move || {
        let left_out = std::mem::take(&mut found.left_out);
        let is_left_out = |path: &str| left_out.binary_search_by(|one| one.as_str().cmp(path));
        found.versions.retain(|version| is_left_out(version.info.path.as_str()).is_err());
        found.left_out = left_out;
        found.versions.sort_by_cached_key(|version| super::version::address(&version.info));
        if let Some(most) = found.cut_after {
            found.versions.truncate(most);
        }
        found
    });
    sorted.await.map_err(|_| CacheError::Lost { what: "a listing".into() })
}

/// Charges for `count` versions, if that was not done before.
fn pay(charge: &mut Charge, count: usize, each_bytes: u64) -> Result<(), CacheError> {
    let wanted = count.next_multiple_of(CHARGED_VERSIONS) as u64 * each_bytes;
    charge.grow(wanted.saturating_sub(charge.bytes()))?;
    Ok(())
}
