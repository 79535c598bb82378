//! The trait that every source implements, and what its answers are made of.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::body::Body;
use super::change::{Change, Changed, UploadBytes, WriteTarget};
use super::details::Details;
use super::error::SourceError;
use crate::interval::{Timestamp, ValidityInterval};
use crate::object::{CreationLimits, ObjectId, ObjectInfo, ObjectPath, Query};
use crate::telemetry::Timing;

/// What a source knows of a path around a timestamp.
///
/// For every timestamp in `span`, the versions in `versions` that hold there, and no others,
/// decide (those created last win); where none of them holds, nothing is valid. Versions that win
/// nowhere in `span` may be left out. Outside of `span` nothing is said.
#[derive(Debug, Clone)]
pub struct Knowledge {
    /// Where this is all there is to know; it contains the timestamp that was asked for.
    pub span: ValidityInterval,
    /// All versions that match the query and decide anywhere in `span`, in any order.
    pub versions: Vec<Arc<ObjectInfo>>,
    /// What was passed over because it could not be read, each named.
    pub problems: Vec<Problem>,
    /// The source could not be asked, and this is what it said earlier.
    pub stale: bool,
}

/// An entry of a source that could not be used and was passed over.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Problem {
    /// Which entry: a file, a URL.
    pub entry: String,
    /// What is wrong with it.
    pub reason: String,
}

/// Versions of a path, those included that others hide at every time, in order of (from, id).
#[derive(Debug, Clone, Default)]
pub struct VersionPage {
    /// The versions of this page.
    pub versions: Vec<Arc<ObjectInfo>>,
    /// What was passed over because it could not be read; on the first page.
    pub problems: Vec<Problem>,
    /// Whether more versions follow the last one of this page.
    pub more: bool,
    /// Whether the source can list the path at all: if not, `versions` is empty.
    pub whole: bool,
}

impl VersionPage {
    /// The page behind `after` of all `versions`, which are in any order.
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

/// Where a page ends: `from` and id of its last version.
pub type PageKey = (Timestamp, ObjectId);

/// The place of a version in a listing.
pub fn page_key(version: &ObjectInfo) -> PageKey {
    (version.validity.from(), version.id)
}

/// A path that a source knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathSummary {
    /// The path.
    pub path: ObjectPath,
    /// How many versions it has.
    pub versions: u64,
}

/// Is told which paths changed in a source.
pub type ChangeListener = Arc<dyn Fn(&HashSet<ObjectPath>) + Send + Sync>;

/// A place from which versions of objects can be had.
#[async_trait]
pub trait Source: fmt::Debug + Send + Sync + 'static {
    /// The URL under which this source was configured, without credentials.
    fn url(&self) -> &str;

    /// The source that this one wraps, if it wraps one: it gets the calls that a wrapper does not
    /// implement itself and that have a default here, listings by page aside.
    fn inner(&self) -> Option<&dyn Source> {
        None
    }

    /// How long an answer of [`look_up`](Self::look_up) may be used before it is asked again.
    fn refresh(&self) -> Duration;

    /// The same for a single path.
    fn refresh_of(&self, path: &ObjectPath) -> Duration {
        self.inner().map_or_else(|| self.refresh(), |inner| inner.refresh_of(path))
    }

    /// Has `listener` told of changes, where the source gets to know of them by itself. It must be
    /// quick. By default nothing is told: what changes is seen when the source is asked.
    fn subscribe(&self, listener: ChangeListener) {
        if let Some(inner) = self.inner() {
            inner.subscribe(listener);
        }
    }

    /// Which versions decide at `at`, and in which span around it.
    ///
    /// `held` is the version that the caller has for `at` from an earlier answer, if any: a source
    /// that can ask conditionally spares itself the rest.
    ///
    /// # Errors
    /// [`SourceError`]. That nothing is valid is no error but an empty list of versions.
    async fn look_up(
        &self,
        query: &Query,
        at: Timestamp,
        held: Option<&Arc<ObjectInfo>>,
    ) -> Result<Knowledge, SourceError>;

    /// Every version that `query` matches, also those that others hide at every time; `None` where
    /// the source cannot tell all of them.
    ///
    /// # Errors
    /// [`SourceError`].
    async fn list(&self, query: &Query) -> Result<Option<Vec<Arc<ObjectInfo>>>, SourceError> {
        let knowledge = self.look_up(query, Timestamp::default(), None).await?;
        Ok((knowledge.span == ValidityInterval::ALL).then_some(knowledge.versions))
    }

    /// Versions that match `query`, hidden ones included, in order of (from, id): at most `limit`
    /// of those behind `after`.
    ///
    /// By default those of [`list`](Self::list).
    ///
    /// # Errors
    /// [`SourceError`].
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

    /// The version `id` of `path`, of which it is said where its interval begins and when it was
    /// created.
    ///
    /// By default, of the versions created in that millisecond, the one that decides at `from`.
    ///
    /// # Errors
    /// [`SourceError`].
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

    /// Writes the bytes of `version` into `body`, all of them, checked against size and MD5 as far
    /// as `version` or the source itself give them.
    ///
    /// After an error what `body` holds means nothing.
    ///
    /// # Errors
    /// [`SourceError`], also what `body` answered.
    async fn fetch(&self, version: &ObjectInfo, body: &mut dyn Body) -> Result<(), SourceError>;

    /// Drops what it remembers of `path`, so that the next look-up asks anew.
    fn forget(&self, path: &ObjectPath) {
        if let Some(inner) = self.inner() {
            inner.forget(path);
        }
    }

    /// How `version` was uploaded, as far as that is known without a question to a server.
    fn known_details(&self, version: &ObjectInfo) -> Option<Details> {
        self.inner()?.known_details(version)
    }

    /// How `version` was uploaded, as far as the source tells.
    ///
    /// # Errors
    /// [`SourceError`]. That it tells nothing is no error.
    async fn details(&self, version: &ObjectInfo) -> Result<Details, SourceError> {
        match self.inner() {
            Some(inner) => inner.details(version).await,
            None => Ok(self.known_details(version).unwrap_or_default()),
        }
    }

    /// The folders one level below `path` (`""`: at the top), as whole paths, sorted.
    ///
    /// By default those of [`paths`](Self::paths).
    ///
    /// # Errors
    /// [`SourceError`].
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

    /// Who takes changes of `path`.
    fn write_target(&self, path: &ObjectPath) -> WriteTarget {
        self.inner().map_or(WriteTarget::ReadOnly, |inner| inner.write_target(path))
    }

    /// Changes versions where they are kept; what it gives is true there by then. `bytes` are those
    /// of an upload.
    ///
    /// # Errors
    /// [`SourceError`].
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

    /// Whether it answers, host by host.
    fn health(&self) -> Vec<SourceHealth>;

    /// The paths that are `prefix` or lie below it (`""`: all), sorted.
    ///
    /// # Errors
    /// [`SourceError`].
    async fn paths(&self, prefix: &str) -> Result<Vec<PathSummary>, SourceError>;
}

/// Whether a source answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Reachability {
    /// Its last answer was one, or it was not asked yet.
    #[default]
    Up,
    /// It could not be reached.
    Down,
}

/// How a source, or one host of it, does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceHealth {
    /// Its URL, without credentials.
    pub url: String,
    /// Whether it answers.
    pub state: Reachability,
    /// What it was asked.
    pub requests: u64,
    /// What of that failed.
    pub failures: u64,
    /// How long its answers took: of a CCDB to the first byte, of a repository in full. Nothing where
    /// they come from memory.
    pub latency: Timing,
}
