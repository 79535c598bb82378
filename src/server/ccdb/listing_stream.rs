//! The versions that a listing selects, piece by piece.
//!
//! ```text
//!  path, pattern ─▶ stream of the source: too many versions or paths to keep ─┐
//!              └──▶ pages of each path ───────────────────────────────────────┴▶ filtered here
//! ```

use std::sync::Arc;

use futures::stream::{self, BoxStream};
use futures::{StreamExt as _, TryStreamExt as _};

use super::address::ObjectAddress;
use super::front::Front;
use super::order::{OrderedPiece, OrderedVersions, PAGE};
use super::pattern::{Pattern, glob_matches};
use crate::cache::{Cache, CacheError};
use crate::error::Coded as _;
use crate::object::{CreationLimits, ObjectInfo, ObjectPath, Query};
use crate::source::{Details, Scan, ScanPiece};

/// Maximum paths whose first pages are read concurrently.
const PARALLEL_PATHS: usize = 4;
/// Maximum versions of a path that are selected by creation at once.
const SELECTED: usize = 4096;

/// A version of a listing.
#[derive(Debug, Clone)]
pub(super) struct ListedVersion {
    pub(super) info: Arc<ObjectInfo>,
    /// Facts about its upload, if the listing of the source has them.
    pub(super) details: Option<Details>,
}

/// A piece of a listing.
#[derive(Debug, Default)]
pub(super) struct ListingPiece {
    pub(super) versions: Vec<ListedVersion>,
    /// Paths that are not listed, or not completely.
    pub(super) left_out: Vec<String>,
    /// A path with many versions follows.
    pub(super) is_many: bool,
}

pub(super) type ListingStream = BoxStream<'static, Result<ListingPiece, CacheError>>;

/// Selection of versions for a listing.
#[derive(Debug)]
pub(super) struct ListingRequest {
    pub(super) wanted: ObjectAddress,
    pub(super) limits: CreationLimits,
    /// Of each path only the version created last.
    pub(super) only_latest: bool,
    /// Of all versions only so many, those created last.
    pub(super) newest: Option<usize>,
}

/// An open listing.
pub(super) struct OpenedListing {
    pub(super) pieces: ListingStream,
    /// Whether each path has at most one version, if only the latest are requested.
    pub(super) is_reduced: bool,
    /// Whether it is costly to begin again. Pages of one path are not.
    pub(super) is_costly: bool,
}

impl OpenedListing {
    fn nothing() -> Self {
        Self { pieces: stream::empty().boxed(), is_reduced: true, is_costly: false }
    }
}

impl ListingRequest {
    fn query(&self, path: ObjectPath) -> Query {
        Query { path, metadata: self.wanted.metadata.clone(), limits: self.limits }
    }

    pub(super) fn admits(&self, version: &ObjectInfo) -> bool {
        let wanted = &self.wanted;
        let metadata = &version.metadata;
        self.limits.admit(version.created)
            && wanted.metadata.iter().all(|(key, value)| metadata.get(key) == Some(value.as_str()))
            && wanted.at.is_none_or(|at| version.validity.contains(at))
            && wanted.id.is_none_or(|id| version.id == id)
    }

    /// The request to the source, with the versions that it may leave out. Its filters for metadata are not reliable.
    fn scan(&self, prefix: &str, below: bool) -> Scan {
        let may_select = self.wanted.metadata.is_empty() && self.wanted.id.is_none();
        Scan {
            prefix: prefix.to_owned(),
            below,
            at: self.wanted.at,
            only_latest: self.only_latest && may_select,
            newest: self.newest.filter(|_| may_select),
            limits: self.limits,
        }
    }
}

impl Front {
    /// The selected versions: those of all paths that the pattern matches.
    ///
    /// # Errors
    /// [`CacheError`] if nothing can be listed.
    pub(super) async fn open_listing(
        &self,
        request: &Arc<ListingRequest>,
    ) -> Result<OpenedListing, CacheError> {
        match (Pattern::new(&request.wanted.path), ObjectPath::new(&request.wanted.path)) {
            (Pattern::Plain, Ok(path)) => self.open_path(request, path).await,
            (Pattern::Plain, Err(_)) => Ok(OpenedListing::nothing()),
            (pattern @ Pattern::Wild { .. }, _) => self.open_pattern(request, pattern).await,
        }
    }

    async fn open_path(
        &self,
        request: &Arc<ListingRequest>,
        path: ObjectPath,
    ) -> Result<OpenedListing, CacheError> {
        let scan = request.scan(path.as_str(), false);
        if let Some(pieces) = self.cache.scan_versions(&scan).await? {
            let prefix = scan.prefix;
            return Ok(OpenedListing {
                pieces: scanned(pieces, Arc::clone(request), prefix, None),
                is_reduced: false,
                is_costly: true,
            });
        }
        let mut listing = PathPages::new(self.cache.clone(), Arc::clone(request), path);
        listing.is_kept = true;
        let pieces = listing.into_stream();
        Ok(OpenedListing { pieces, is_reduced: true, is_costly: false })
    }

    async fn open_pattern(
        &self,
        request: &Arc<ListingRequest>,
        pattern: Pattern,
    ) -> Result<OpenedListing, CacheError> {
        let Pattern::Wild { prefix, glob } = &pattern else {
            return Ok(OpenedListing::nothing());
        };
        match self.cache.scan_versions(&request.scan(prefix, true)).await {
            Ok(Some(pieces)) => {
                let (prefix, glob) = (prefix.clone(), Some(glob.clone()));
                return Ok(OpenedListing {
                    pieces: scanned(pieces, Arc::clone(request), prefix, glob),
                    is_reduced: false,
                    is_costly: true,
                });
            }
            // The paths may be known without the source.
            Err(error) if error.kind().is_transient() => {
                tracing::debug!(%prefix, %error, "listed path by path");
            }
            Err(error) => return Err(error),
            Ok(None) => {}
        }
        let mut paths: Vec<ObjectPath> =
            self.paths_of(&pattern).await?.into_iter().map(|summary| summary.path).collect();
        // As in the order of the versions' addresses.
        paths.sort_by_cached_key(|path| format!("{path}/"));
        let (cache, request) = (self.cache.clone(), Arc::clone(request));
        let listings = stream::iter(paths).map(move |path| {
            let mut pieces =
                PathPages::new(cache.clone(), Arc::clone(&request), path).into_stream();
            async move {
                let first = pieces.try_next().await?;
                Ok::<_, CacheError>(stream::iter(first.map(Ok)).chain(pieces))
            }
        });
        let pieces = listings.buffered(PARALLEL_PATHS).try_flatten().boxed();
        Ok(OpenedListing { pieces, is_reduced: true, is_costly: true })
    }
}

/// The pieces of a listing of the source, filtered.
fn scanned(
    pieces: crate::source::VersionStream,
    request: Arc<ListingRequest>,
    prefix: String,
    glob: Option<String>,
) -> ListingStream {
    let failed = move |error| CacheError::Paths { prefix: prefix.clone(), error };
    let matches = move |path: &str| glob.as_ref().is_none_or(|glob| glob_matches(glob, path));
    let filtered = move |piece: ScanPiece| {
        let versions = piece
            .versions
            .into_iter()
            .filter(|version| request.admits(&version.info) && matches(version.info.path.as_str()));
        ListingPiece {
            versions: versions
                .map(|version| ListedVersion { info: version.info, details: Some(version.details) })
                .collect(),
            left_out: piece.in_doubt,
            is_many: false,
        }
    };
    pieces.map_ok(filtered).map_err(failed).boxed()
}

/// The listing of one path from pages.
struct PathPages {
    cache: Cache,
    request: Arc<ListingRequest>,
    query: Query,
    /// Whether a short listing is kept, for times without an answer of the source.
    is_kept: bool,
    state: PathState,
}

enum PathState {
    Begin,
    Pages(OrderedVersions),
    End,
}

impl PathPages {
    fn new(cache: Cache, request: Arc<ListingRequest>, path: ObjectPath) -> Self {
        let query = request.query(path);
        Self { cache, request, query, is_kept: false, state: PathState::Begin }
    }

    fn into_stream(self) -> ListingStream {
        let next = |mut listing: Self| async move {
            Ok(listing.next().await?.map(|piece| (piece, listing)))
        };
        stream::try_unfold(self, next).boxed()
    }

    async fn next(&mut self) -> Result<Option<ListingPiece>, CacheError> {
        match &mut self.state {
            PathState::Begin => {
                if let Some(selected) = self.select().await? {
                    self.state = PathState::End;
                    return Ok(Some(self.piece(selected)));
                }
                let (cache, query) = (self.cache.clone(), self.query.clone());
                let pages = OrderedVersions::new(cache, query, self.is_kept);
                self.state = PathState::Pages(pages);
                Box::pin(self.next()).await
            }
            PathState::Pages(pages) => match pages.next().await? {
                None => Ok(None),
                Some(OrderedPiece::Versions(versions)) => Ok(Some(self.piece(versions))),
                Some(OrderedPiece::Many) => {
                    Ok(Some(ListingPiece { is_many: true, ..ListingPiece::default() }))
                }
                Some(OrderedPiece::NotListed) => {
                    let left_out = vec![self.query.path.to_string()];
                    Ok(Some(ListingPiece { left_out, ..ListingPiece::default() }))
                }
            },
            PathState::End => Ok(None),
        }
    }

    fn piece(&self, versions: Vec<Arc<ObjectInfo>>) -> ListingPiece {
        let admitted = versions.into_iter().filter(|version| self.request.admits(version));
        let versions = admitted.map(|info| ListedVersion { info, details: None }).collect();
        ListingPiece { versions, ..ListingPiece::default() }
    }

    /// The versions of the path, if there are few: those created last, or valid at a time. `None`:
    /// all have to be read.
    async fn select(&self) -> Result<Option<Vec<Arc<ObjectInfo>>>, CacheError> {
        let request = &self.request;
        let (at, few) = (request.wanted.at, request.newest.filter(|limit| *limit <= SELECTED));
        let limit = match (request.only_latest, few) {
            (true, _) => 1,
            (false, Some(limit)) => limit,
            (false, None) if at.is_some() => PAGE + 1,
            (false, None) => return Ok(None),
        };
        if request.wanted.id.is_some() {
            return Ok(None);
        }
        let newest = self.cache.newest_versions(&self.query, at, limit).await?;
        let is_all = request.only_latest || few.is_some();
        let selected = newest.filter(|versions| is_all || versions.len() < limit);
        Ok(selected.map(|mut versions| {
            versions.sort_by_cached_key(|version| super::version::address(version));
            versions
        }))
    }
}
