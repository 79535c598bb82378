//! Where objects come from: one trait, several implementations, one suite that all of them pass.
//!
//! ```text
//!  cache ──look_up(query, at)──▶ Source ──▶ Knowledge: within this span, these versions decide
//!        ──fetch(version, body)─▶        ──▶ bytes, straight into the caller's memory
//!        ──paths(prefix)────────▶        ──▶ which paths there are
//! ```
//!
//! The two questions are kept apart on purpose: *which version at t* is small and changes, *the
//! bytes of a version* are large and never change. A source does not know where the bytes go: it
//! writes into a [`Body`] that the cache implements over a block in shared memory.

mod body;
pub mod ccdb;
mod chain;
mod change;
mod claim;
mod copy;
mod details;
pub mod disk;
mod memory;
mod open;
mod policy;
pub mod repository;
mod verify;

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::error::{Code, Coded, ErrorKind};
use crate::interval::{Timestamp, ValidityInterval};
use crate::object::{
    ClaimDiffers, CreationLimits, Md5Sum, ObjectId, ObjectInfo, ObjectPath, Query, VersionClaim,
};
use crate::telemetry::Timing;

pub use body::VecBody;
pub use chain::{ChainSource, Link, Remap};
pub use change::{Change, ChangeKind, Changed, UploadBytes, WriteTarget};
pub use claim::{ClaimError, select};
pub use copy::{Copied, CopyError, Destination, Selection, copy};
pub use details::Details;
pub use disk::DiskSource;
pub(crate) use disk::VersionRecord;
pub use memory::MemorySource;
pub use open::{SourceOptions, check_url, open, split_prefixes};
pub use policy::{PathPolicy, Policies, PolicySource, WhenMissing};
pub use verify::{Damage, RepairOutcome, VerifyReport};

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

    /// How long an answer of [`look_up`](Self::look_up) may be used before it is asked again.
    fn refresh(&self) -> Duration;

    /// The same for a single path.
    fn refresh_of(&self, path: &ObjectPath) -> Duration {
        let _ = path;
        self.refresh()
    }

    /// Has `listener` told of changes, where the source gets to know of them by itself. It must be
    /// quick. By default nothing is told: what changes is seen when the source is asked.
    fn subscribe(&self, listener: ChangeListener) {
        drop(listener);
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
        let _ = path;
    }

    /// How `version` was uploaded, as far as that is known without a question to a server.
    fn known_details(&self, version: &ObjectInfo) -> Option<Details> {
        let _ = version;
        None
    }

    /// How `version` was uploaded, as far as the source tells.
    ///
    /// # Errors
    /// [`SourceError`]. That it tells nothing is no error.
    async fn details(&self, version: &ObjectInfo) -> Result<Details, SourceError> {
        Ok(self.known_details(version).unwrap_or_default())
    }

    /// The folders one level below `path` (`""`: at the top), as whole paths, sorted.
    ///
    /// By default those of [`paths`](Self::paths).
    ///
    /// # Errors
    /// [`SourceError`].
    async fn subfolders(&self, path: &str) -> Result<Vec<String>, SourceError> {
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
        let _ = path;
        WriteTarget::ReadOnly
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
        drop(bytes);
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

/// Where the bytes of an object go: a block in shared memory, or a buffer in a test.
#[async_trait]
pub trait Body: Send {
    /// Makes room for `size_bytes` in all; keeps what was written before.
    ///
    /// Called before the first byte with the size as announced; again, with a larger size, only
    /// where the source did not know it.
    ///
    /// # Errors
    /// [`BodyError`] if so much cannot be had.
    async fn reserve(&mut self, size_bytes: u64) -> Result<(), BodyError>;

    /// The room that is reserved and not yet written.
    fn spare(&mut self) -> &mut [u8];

    /// Says that the first `count` bytes of [`spare`](Self::spare) are now written.
    ///
    /// # Panics
    /// If `count` is more than the spare room.
    fn advance(&mut self, count: usize);

    /// How many bytes were written so far.
    fn written_bytes(&self) -> u64;

    /// Gives the MD5 of all bytes written so far, where the source has computed it from these very
    /// bytes. A body that checks what it holds then need not compute it again.
    fn set_md5(&mut self, md5: Md5Sum) {
        let _ = md5;
    }
}

/// Writes all of `bytes`; where `body` has no more room, it is asked for.
///
/// # Errors
/// [`BodyError`] if there is none.
pub async fn write_all(body: &mut dyn Body, mut bytes: &[u8]) -> Result<(), BodyError> {
    while !bytes.is_empty() {
        if body.spare().is_empty() {
            let more = (bytes.len() as u64).max(body.written_bytes());
            body.reserve(body.written_bytes().saturating_add(more)).await?;
        }
        let spare = body.spare();
        let count = spare.len().min(bytes.len());
        spare[..count].copy_from_slice(&bytes[..count]);
        body.advance(count);
        bytes = &bytes[count..];
    }
    Ok(())
}

/// Runs what blocks for a moment, without keeping others from this thread where that can be had.
pub(crate) fn in_place<T>(work: impl FnOnce() -> T) -> T {
    match tokio::runtime::Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
        Ok(tokio::runtime::RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}

/// Why a [`Body`] takes no bytes.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum BodyError {
    /// It can never fit.
    #[error("{size_bytes} bytes can never fit: {limit_bytes} is the limit")]
    TooLarge {
        /// What was asked for.
        size_bytes: u64,
        /// What could be had at most.
        limit_bytes: u64,
    },
    /// There is no room now.
    #[error("no room for {size_bytes} bytes now: {reason}")]
    NoRoom {
        /// What was asked for.
        size_bytes: u64,
        /// Why.
        reason: String,
    },
}

/// Why a source did not answer.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// It could not be reached, or not in time, or said 5xx.
    #[error("{url} did not answer for {what}: {reason}")]
    Down {
        /// The source.
        url: String,
        /// The path, version or URL that was asked for.
        what: String,
        /// What happened.
        reason: String,
    },
    /// It answered something that cannot be used: no ETag, a wrong length, a wrong MD5.
    #[error("{url} gave an unusable answer for {what}: {reason}")]
    Unusable {
        /// The source.
        url: String,
        /// The path, version or URL that was asked for.
        what: String,
        /// What is wrong with it: what was expected, what was got.
        reason: String,
    },
    /// It has no such version (any more).
    #[error("{url} has no version {id} of {path}")]
    NoSuchVersion {
        /// The source.
        url: String,
        /// The path.
        path: ObjectPath,
        /// The version.
        id: ObjectId,
    },
    /// It refuses us.
    #[error("{url} does not let us read {what}: {reason}")]
    NotAllowed {
        /// The source.
        url: String,
        /// What was asked for.
        what: String,
        /// What it said.
        reason: String,
    },
    /// The configuration of the source is wrong.
    #[error("source {url:?}: {reason}")]
    Configuration {
        /// As configured.
        url: String,
        /// What is wrong, and what is expected.
        reason: String,
    },
    /// The bytes cannot be taken.
    #[error("{what} cannot be stored")]
    Body {
        /// The path and version.
        what: String,
        /// Why.
        #[source]
        error: BodyError,
    },
}

impl Coded for SourceError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Down { .. } | Self::Unusable { .. } | Self::NoSuchVersion { .. } => {
                ErrorKind::Unavailable
            }
            Self::NotAllowed { .. } => ErrorKind::PermissionDenied,
            Self::Configuration { .. } => ErrorKind::InvalidArgument,
            Self::Body { error: BodyError::TooLarge { .. }, .. } => ErrorKind::ResourceExhausted,
            Self::Body { error: BodyError::NoRoom { .. }, .. } => ErrorKind::Unavailable,
        }
    }

    fn code(&self) -> Code {
        Code(match self {
            Self::Down { .. } => 3001,
            Self::Unusable { .. } => 3002,
            Self::NoSuchVersion { .. } => 3003,
            Self::NotAllowed { .. } => 3004,
            Self::Configuration { .. } => 3005,
            Self::Body { .. } => 3006,
        })
    }
}
