//! The trait that every source implements, and the types of its answers.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};

use super::body::Body;
use super::change::{Change, Changed, UploadBytes, WriteTarget};
use super::details::Details;
use super::error::SourceError;
use super::scan::{NewestVersions, Scan, VersionStream};
use crate::interval::{Timestamp, ValidityInterval};
use crate::object::{CreationLimits, ObjectId, ObjectInfo, ObjectPath, Query};
use crate::telemetry::Timing;

/// Answer to a look-up: the versions of a path that decide in a span around a timestamp.
///
/// At a timestamp in `span`, the version in effect is the one created last among those of
/// `versions` whose interval contains it. If there is none, nothing is valid at that timestamp.
/// Versions that are in effect nowhere in `span` may be left out. The answer says nothing about
/// timestamps outside of `span`.
#[derive(Debug, Clone)]
pub struct Knowledge {
    /// Span in which the answer is complete. It contains the requested timestamp.
    pub span: ValidityInterval,
    /// All versions that match the query and are in effect anywhere in `span`, in any order.
    pub versions: Vec<Arc<ObjectInfo>>,
    /// Entries that could not be read and were skipped.
    pub problems: Vec<Problem>,
    /// The source could not be reached: this is an earlier answer.
    pub stale: bool,
}

/// An entry of a source that could not be used and was skipped.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Problem {
    /// Name of the entry: a file or a URL.
    pub entry: String,
    /// Description of the fault.
    pub reason: String,
}

/// A page of the versions of a path in order of (`from`, id). It includes versions that others hide
/// at every time.
#[derive(Debug, Clone, Default)]
pub struct VersionPage {
    /// The versions of this page.
    pub versions: Vec<Arc<ObjectInfo>>,
    /// Entries that could not be read and were skipped; only on the first page.
    pub problems: Vec<Problem>,
    /// Whether more versions follow the last one of this page.
    pub more: bool,
    /// Whether the source can list the path. If not, `versions` is empty.
    pub whole: bool,
}

impl VersionPage {
    /// The page after `after` of those of `versions` that match `query`. `versions` is in order of
    /// (`from`, id).
    pub(crate) fn of_sorted(
        versions: &[Arc<ObjectInfo>],
        query: &Query,
        after: Option<PageKey>,
        limit: usize,
    ) -> Self {
        let first = versions.partition_point(|version| Some(page_key(version)) <= after);
        let mut matching = versions[first..].iter().filter(|version| query.matches(version));
        let page = matching.by_ref().take(limit).map(Arc::clone).collect();
        let more = matching.next().is_some();
        Self { versions: page, problems: Vec::new(), more, whole: true }
    }

    /// The page after `after` of all `versions`, which may be in any order.
    pub(crate) fn of(
        mut versions: Vec<Arc<ObjectInfo>>,
        after: Option<PageKey>,
        limit: usize,
    ) -> Self {
        versions.sort_unstable_by_key(|version| page_key(version));
        let first = versions.partition_point(|version| Some(page_key(version)) <= after);
        let mut versions = versions.split_off(first);
        let more = versions.len() > limit;
        versions.truncate(limit);
        Self { versions, problems: Vec::new(), more, whole: true }
    }
}

/// Key of the end of a page: `from` and id of its last version.
pub type PageKey = (Timestamp, ObjectId);

/// Key of a version in a listing.
pub(crate) fn page_key(version: &ObjectInfo) -> PageKey {
    (version.validity.from(), version.id)
}

/// A path that a source knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathSummary {
    /// The path.
    pub path: ObjectPath,
    /// Number of versions.
    pub versions: u64,
}

/// Callback that gets the paths that changed in a source.
pub type ChangeListener = Arc<dyn Fn(&HashSet<ObjectPath>) + Send + Sync>;

/// Versions per page while all versions of a path are read.
const SCANNED_VERSIONS: usize = 4096;

/// A store of versions of objects.
///
/// An implementation needs [`url`](Self::url), [`refresh`](Self::refresh),
/// [`look_up`](Self::look_up), [`fetch`](Self::fetch), [`health`](Self::health) and
/// [`paths`](Self::paths). All others have a default that is right for every source, and may be
/// slower than what the source can do. The cache calls the methods from many tasks at a time, and
/// drops the future of a call that no request waits for any more.
///
/// A source with one object that is always valid:
///
/// ```
/// use std::sync::Arc;
/// use std::time::Duration;
///
/// use iovcache::source::{
///     Body, Knowledge, PathSummary, Source, SourceError, SourceHealth, write_all,
/// };
/// use iovcache::{ObjectInfo, ObjectPath, Query, Timestamp, ValidityInterval};
///
/// #[derive(Debug)]
/// struct One(Arc<ObjectInfo>);
///
/// #[async_trait::async_trait]
/// impl Source for One {
///     fn url(&self) -> &str {
///         "one:"
///     }
///     fn refresh(&self) -> Duration {
///         Duration::from_secs(1)
///     }
///     async fn look_up(
///         &self,
///         query: &Query,
///         _at: Timestamp,
///         _held: Option<&Arc<ObjectInfo>>,
///     ) -> Result<Knowledge, SourceError> {
///         let versions = Vec::from_iter(query.matches(&self.0).then(|| Arc::clone(&self.0)));
///         // The answer holds for all of time: the cache does not ask again before `refresh`.
///         let span = ValidityInterval::ALL;
///         Ok(Knowledge { span, versions, problems: Vec::new(), stale: false })
///     }
///     async fn fetch(
///         &self,
///         version: &ObjectInfo,
///         body: &mut dyn Body,
///     ) -> Result<(), SourceError> {
///         let what = format!("version {} of {}", version.id, version.path);
///         let written = write_all(body, b"drift").await;
///         written.map_err(|error| SourceError::Body { what, error })
///     }
///     fn health(&self) -> Vec<SourceHealth> {
///         Vec::new()
///     }
///     async fn paths(&self, prefix: &str) -> Result<Vec<PathSummary>, SourceError> {
///         let path: ObjectPath = self.0.path.clone();
///         let found = path.starts_with(prefix).then_some(PathSummary { path, versions: 1 });
///         Ok(Vec::from_iter(found))
///     }
/// }
/// ```
#[async_trait]
pub trait Source: fmt::Debug + Send + Sync + 'static {
    /// URL under which this source was configured, without credentials.
    fn url(&self) -> &str;

    /// The wrapped source, if this source is a wrapper.
    ///
    /// The default implementations of [`refresh_of`](Self::refresh_of),
    /// [`subscribe`](Self::subscribe), [`forget`](Self::forget),
    /// [`known_details`](Self::known_details), [`details`](Self::details),
    /// [`subfolders`](Self::subfolders), [`write_target`](Self::write_target),
    /// [`change`](Self::change), [`decides_by_creation`](Self::decides_by_creation) and
    /// [`places`](Self::places) forward to it. Those of [`list`](Self::list),
    /// [`list_page`](Self::list_page), [`newest`](Self::newest) and [`describe`](Self::describe)
    /// use the wrapper's own look-ups.
    fn inner(&self) -> Option<&dyn Source> {
        None
    }

    /// Lifetime of an answer of [`look_up`](Self::look_up): a change at the source is seen within
    /// this time. Zero: an answer is never used twice.
    fn refresh(&self) -> Duration;

    /// Lifetime of an answer for `path`. Default: [`refresh`](Self::refresh) for every path.
    fn refresh_of(&self, path: &ObjectPath) -> Duration {
        self.inner().map_or_else(|| self.refresh(), |inner| inner.refresh_of(path))
    }

    /// Registers `listener`, which the source calls when it learns of changes by itself. The
    /// listener must return quickly. By default it is never called: changes are seen at the next
    /// look-up.
    fn subscribe(&self, listener: ChangeListener) {
        if let Some(inner) = self.inner() {
            inner.subscribe(listener);
        }
    }

    /// The versions that decide at `at`, and the span around it in which they do.
    ///
    /// `held` is the version that the caller got for `at` in an earlier answer, if any. A source
    /// that can ask conditionally uses it to avoid a full answer.
    ///
    /// # Errors
    /// [`SourceError`]. If nothing is valid, the list of versions is empty: that is no error.
    async fn look_up(
        &self,
        query: &Query,
        at: Timestamp,
        held: Option<&Arc<ObjectInfo>>,
    ) -> Result<Knowledge, SourceError>;

    /// Every version that `query` matches, including those that others hide at every time; `None`
    /// if the source cannot list all of them.
    ///
    /// # Errors
    /// [`SourceError`] if the source gives no usable answer.
    async fn list(&self, query: &Query) -> Result<Option<Vec<Arc<ObjectInfo>>>, SourceError> {
        let knowledge = self.look_up(query, Timestamp::default(), None).await?;
        Ok((knowledge.span == ValidityInterval::ALL).then_some(knowledge.versions))
    }

    /// Page of at most `limit` versions that match `query`, including hidden ones, in order of
    /// (`from`, id). It begins after `after`, or with the first version.
    ///
    /// The default is cut from [`list`](Self::list).
    ///
    /// # Errors
    /// [`SourceError`] if the source gives no usable answer.
    async fn list_page(
        &self,
        query: &Query,
        after: Option<PageKey>,
        limit: usize,
    ) -> Result<VersionPage, SourceError> {
        let listed = self.list(query).await?;
        Ok(listed
            .map_or_else(VersionPage::default, |versions| VersionPage::of(versions, after, limit)))
    }

    /// At most `limit` versions that match `query`, those created last, in no particular order.
    /// With `at`, only those that are valid then. `None` if the source cannot tell.
    ///
    /// The default reads all pages.
    ///
    /// # Errors
    /// [`SourceError`] if the source gives no usable answer.
    async fn newest(
        &self,
        query: &Query,
        at: Option<Timestamp>,
        limit: usize,
    ) -> Result<Option<Vec<Arc<ObjectInfo>>>, SourceError> {
        let mut newest = NewestVersions::new(limit);
        let mut after = None;
        loop {
            let page = self.list_page(query, after, SCANNED_VERSIONS).await?;
            if !page.whole {
                return Ok(None);
            }
            after = page.versions.last().map(|version| page_key(version));
            for version in page.versions {
                if at.is_none_or(|at| version.validity.contains(at)) {
                    newest.add(version.rank(), version);
                }
            }
            // Versions of later pages are not valid yet.
            let is_past = at.zip(after).is_some_and(|(at, (from, _))| from > at);
            if !page.more || after.is_none() || is_past {
                return Ok(Some(newest.into_versions()));
            }
        }
    }

    /// A listing that is read while it is used, for paths with too many versions for
    /// [`list`](Self::list), and for many paths. It may contain versions that the request excludes.
    /// `None` if the source has no such listing.
    ///
    /// # Errors
    /// [`SourceError`] if the source gives no usable answer.
    async fn scan(&self, _scan: &Scan) -> Result<Option<VersionStream>, SourceError> {
        Ok(None)
    }

    /// The version `id` of `path`, whose validity begins at `from` and which was created at
    /// `created`. `None` if there is none.
    ///
    /// The default finds it only if it is in effect at `from` among the versions created in that
    /// millisecond.
    ///
    /// # Errors
    /// [`SourceError`] if the source gives no usable answer.
    async fn describe(
        &self,
        path: &ObjectPath,
        from: Timestamp,
        created: Timestamp,
        id: ObjectId,
    ) -> Result<Option<Arc<ObjectInfo>>, SourceError> {
        let limits = CreationLimits { not_before: Some(created), not_after: Some(created) };
        let query = Query { limits, ..Query::all(path.clone()) };
        let knowledge = self.look_up(&query, from, None).await?;
        Ok(knowledge.versions.into_iter().find(|version| version.id == id))
    }

    /// Writes all bytes of `version` into `body`. Size and MD5 are verified if `version` or the
    /// source gives them.
    ///
    /// After an error the bytes in `body` are meaningless.
    ///
    /// # Errors
    /// [`SourceError`], which includes errors of `body`.
    async fn fetch(&self, version: &ObjectInfo, body: &mut dyn Body) -> Result<(), SourceError>;

    /// Whether of all versions of `path` that are valid at a time, the one created last is in effect.
    /// `false`: they are of several sources, of which the first with a valid one decides.
    fn decides_by_creation(&self, path: &ObjectPath) -> bool {
        self.inner().is_none_or(|inner| inner.decides_by_creation(path))
    }

    /// For each of `versions` of `path`, the place of its source among those that serve the path: a
    /// version with a smaller place is in effect before all with a greater one. The greatest `usize`
    /// for a version that none of them has.
    ///
    /// # Errors
    /// [`SourceError`] if one of the sources gives no usable answer.
    async fn places(
        &self,
        path: &ObjectPath,
        versions: &[Arc<ObjectInfo>],
    ) -> Result<Vec<usize>, SourceError> {
        match self.inner() {
            Some(inner) => inner.places(path, versions).await,
            None => Ok(vec![0; versions.len()]),
        }
    }

    /// Drops remembered answers for `path`, so that the next look-up asks the source again. Makes
    /// no request.
    fn forget(&self, path: &ObjectPath) {
        if let Some(inner) = self.inner() {
            inner.forget(path);
        }
    }

    /// Facts about the upload of `version`, if they are known without a request to a server.
    fn known_details(&self, version: &ObjectInfo) -> Option<Details> {
        self.inner()?.known_details(version)
    }

    /// Facts about the upload of `version`. Fields that the source does not know are `None`.
    ///
    /// # Errors
    /// [`SourceError`] if the source gives no usable answer.
    async fn details(&self, version: &ObjectInfo) -> Result<Details, SourceError> {
        match self.inner() {
            Some(inner) => inner.details(version).await,
            None => Ok(self.known_details(version).unwrap_or_default()),
        }
    }

    /// The folders one level below `path` (`""`: the root), as whole paths, sorted.
    ///
    /// The default is derived from [`paths`](Self::paths).
    ///
    /// # Errors
    /// [`SourceError`] if the source gives no usable answer.
    async fn subfolders(&self, path: &str) -> Result<Vec<String>, SourceError> {
        if let Some(inner) = self.inner() {
            return inner.subfolders(path).await;
        }
        let below = self.paths(path).await?;
        let mut folders: Vec<String> = below
            .iter()
            .filter_map(|summary| {
                let rest = match path {
                    "" => summary.path.as_str(),
                    path => summary.path.as_str().strip_prefix(path)?.strip_prefix('/')?,
                };
                let child = rest.split('/').next()?;
                Some(if path.is_empty() { child.to_owned() } else { format!("{path}/{child}") })
            })
            .collect();
        folders.dedup();
        Ok(folders)
    }

    /// Where changes of `path` are written. Default: [`WriteTarget::ReadOnly`].
    fn write_target(&self, path: &ObjectPath) -> WriteTarget {
        self.inner().map_or(WriteTarget::ReadOnly, |inner| inner.write_target(path))
    }

    /// Changes versions in the source. When it returns, the result is in effect there. `bytes` are
    /// the contents of an upload.
    ///
    /// # Errors
    /// [`SourceError`]. By default [`SourceError::NotAllowed`].
    async fn change(
        &self,
        change: &Change,
        bytes: Option<UploadBytes>,
    ) -> Result<Changed, SourceError> {
        if let Some(inner) = self.inner() {
            return inner.change(change, bytes).await;
        }
        Err(SourceError::NotAllowed {
            url: self.url().to_owned(),
            what: change.path.to_string(),
            reason: "this source only reads".to_owned(),
        })
    }

    /// Reachability and statistics of each host, since the start. Makes no request.
    fn health(&self) -> Vec<SourceHealth>;

    /// The paths that equal `prefix` or lie below it (`""`: all), sorted.
    ///
    /// # Errors
    /// [`SourceError`] if the source gives no usable answer.
    async fn paths(&self, prefix: &str) -> Result<Vec<PathSummary>, SourceError>;

    /// Like [`paths`](Self::paths), in parts of ascending order. The default has all paths in one
    /// part. A wrapper does not forward it unless its own [`paths`](Self::paths) are those of the
    /// wrapped source.
    ///
    /// # Errors
    /// [`SourceError`] if the source gives no usable answer; also within the parts.
    async fn path_parts(&self, prefix: &str) -> Result<PathParts, SourceError> {
        let paths = self.paths(prefix).await?;
        Ok(stream::once(async { Ok(paths) }).boxed())
    }
}

/// Paths in parts.
pub type PathParts = BoxStream<'static, Result<Vec<PathSummary>, SourceError>>;

/// Whether a source answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Reachability {
    /// The last request was answered, or there was none yet.
    #[default]
    Up,
    /// The source could not be reached.
    Down {
        /// Time of the first failed request since the last answer.
        since: Timestamp,
    },
}

impl Reachability {
    /// The state of two parts of a source together: down since the first of them is down.
    pub(crate) fn worse(self, other: Self) -> Self {
        match (self, other) {
            (Self::Down { since }, Self::Down { since: other }) => {
                Self::Down { since: since.min(other) }
            }
            (down @ Self::Down { .. }, Self::Up) | (Self::Up, down) => down,
        }
    }
}

/// State of a source, or of one of its hosts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceHealth {
    /// URL without credentials.
    pub url: String,
    /// Whether it answers.
    pub state: Reachability,
    /// Number of requests.
    pub requests: u64,
    /// Number of failed requests.
    pub failures: u64,
    /// Response times: to the first byte for CCDB, to the last one for a repository. Empty for a
    /// source in memory.
    pub latency: Timing,
}
