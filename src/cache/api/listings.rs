//! Listings of any length for the CCDB side: page by page, or as a stream from the source.

use std::sync::Arc;

use super::handle::Cache;
use crate::budget::ClientBudget;
use crate::cache::error::CacheError;
use crate::clock::Moment;
use crate::interval::Timestamp;
use crate::object::{CreationLimits, ObjectId, ObjectInfo, ObjectPath, Query};
use crate::source::{PageKey, Scan, SourceError, VersionPage, VersionStream};

/// Versions read at once that begin at the same time.
const NEIGHBOURS: usize = 64;

impl Cache {
    /// A page of the versions of a path that match `query` and the limits of the service, in order
    /// of (`from`, id).
    ///
    /// # Errors
    /// [`CacheError`].
    pub(crate) async fn version_page(
        &self,
        query: &Query,
        after: Option<PageKey>,
        limit: usize,
    ) -> Result<VersionPage, CacheError> {
        self.check_open()?;
        let query = self.limited(query);
        let page = self.0.catalog.source().list_page(&query, after, limit).await;
        page.map_err(|error| failed(&query.path, error))
    }

    /// The version `id` of a path whose validity begins at `from`, also if others hide it.
    ///
    /// # Errors
    /// [`CacheError`].
    pub(super) async fn version_beginning_at(
        &self,
        path: &ObjectPath,
        from: Timestamp,
        id: ObjectId,
    ) -> Result<Option<Arc<ObjectInfo>>, CacheError> {
        let query = Query::all(path.clone());
        let before = from.as_millis().checked_sub(1).map(Timestamp::from_millis);
        let mut after = before.map(|before| (before, ObjectId::from_bytes([0xff; 16])));
        loop {
            let page = self.version_page(&query, after, NEIGHBOURS).await?;
            let begins_there = |version: &&Arc<ObjectInfo>| version.validity.from() == from;
            let mut there = page.versions.iter().take_while(begins_there);
            if let Some(version) = there.find(|version| version.id == id) {
                return Ok(Some(Arc::clone(version)));
            }
            let last = page.versions.last();
            after = last.map(|version| (version.validity.from(), version.id));
            if !page.more || !last.as_ref().is_some_and(begins_there) {
                return Ok(None);
            }
        }
    }

    /// The versions of a path that were created last, among those that match `query` and the limits
    /// of the service and, with `at`, are valid then. `None` if the source cannot tell.
    ///
    /// # Errors
    /// [`CacheError`].
    pub(crate) async fn newest_versions(
        &self,
        query: &Query,
        at: Option<Timestamp>,
        limit: usize,
    ) -> Result<Option<Vec<Arc<ObjectInfo>>>, CacheError> {
        self.check_open()?;
        let query = self.limited(query);
        let newest = self.0.catalog.source().newest(&query, at, limit).await;
        newest.map_err(|error| failed(&query.path, error))
    }

    /// A listing that is read from the source while it is used; see
    /// [`Source::scan`](crate::source::Source::scan).
    ///
    /// # Errors
    /// [`CacheError`].
    pub(crate) async fn scan_versions(
        &self,
        scan: &Scan,
    ) -> Result<Option<VersionStream>, CacheError> {
        self.check_open()?;
        let limits = self.service_limits().narrowed_by(scan.limits);
        let scan = Scan { limits, ..scan.clone() };
        let opened = self.0.catalog.source().scan(&scan).await;
        opened.map_err(|error| CacheError::Paths { prefix: scan.prefix, error })
    }

    /// The present time of the cache.
    pub(crate) fn now(&self) -> Moment {
        self.0.clock.now()
    }

    /// Keeps the listing of a path that was requested at `asked`, for a time in which the source
    /// does not answer.
    pub(crate) fn keep_listing(
        &self,
        path: &ObjectPath,
        versions: &[Arc<ObjectInfo>],
        asked: Moment,
    ) {
        self.0.objects.keep_listing(path, versions, asked);
    }

    /// The account of a client for the memory of its requests.
    pub(crate) fn client_budget(&self, client: &str) -> ClientBudget {
        self.0.budget.client(client)
    }

    /// The limits on creation times of the whole service.
    fn service_limits(&self) -> CreationLimits {
        self.0.columns.limits
    }

    fn limited(&self, query: &Query) -> Query {
        Query { limits: self.service_limits().narrowed_by(query.limits), ..query.clone() }
    }
}

fn failed(path: &ObjectPath, error: SourceError) -> CacheError {
    CacheError::Paths { prefix: path.to_string(), error }
}
