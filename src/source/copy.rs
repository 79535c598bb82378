//! Copies versions from a source into a repository: a mirror, or an offline snapshot with the
//! versions that a run needs.
//!
//! ```text
//!  Selection ──▶ versions ──not there yet──▶ fetch ──▶ a file ──checked──▶ Destination
//!   lock file, or paths × range                 several at a time
//! ```
//!
//! Versions that the destination already has are not fetched, so an interrupted copy is resumed by
//! starting it again. Ids, intervals and creation times are kept: for the same timestamps, the copy
//! gives the same answers as the source.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use futures::StreamExt as _;

use super::claim::{ClaimError, select};
use super::repository::{
    BUCKET_SCHEMES, Batch, Bucket, Durability, NewVersion, RepositoryError, RepositoryOptions,
    RepositorySource, RepositoryWriter,
};
use super::repository::{IndexedVersion, Stage};
use super::{
    Body, BodyError, Problem, Source, SourceError, check_unlimited, folder_of, in_place, page_key,
};
use crate::error::{Coded as _, coded};
use crate::interval::{Timestamp, ValidityInterval};
use crate::object::{CreationLimits, ObjectId, ObjectInfo, ObjectPath, Query, VersionClaim};

/// Maximum number of look-ups per path, for a source that cannot list.
const MAX_LOOK_UPS: usize = 100_000;
/// Number of versions that are synced and acknowledged together.
const BATCH_VERSIONS: usize = 256;
/// Number of versions per page of a listing.
const PAGE_VERSIONS: usize = 10_000;
const BUFFER_BYTES: usize = 1 << 20;

/// Versions to copy.
#[derive(Debug, Clone)]
pub enum Selection {
    /// The versions that a lock file names, by path. Each must agree with the source's description.
    Locked(Vec<(ObjectPath, VersionClaim)>),
    /// All versions that are valid anywhere in a range.
    Range {
        /// Paths; paths below them are included. Empty: all paths.
        prefixes: Vec<String>,
        /// The range.
        range: ValidityInterval,
        /// Limits on the creation time.
        limits: CreationLimits,
        /// Distance of look-ups in ms, for a source that cannot list.
        step: Option<i64>,
    },
}

/// Destination of the copies.
#[derive(Debug)]
pub enum Destination {
    /// A repository in a local folder.
    Folder(Arc<RepositoryWriter>),
    /// A repository in an object store.
    Bucket(Bucket),
}

impl Destination {
    /// Opens `file:///dir` (created if it does not exist) or `s3://bucket/prefix` (also `gs`,
    /// `az`).
    ///
    /// # Errors
    /// [`SourceError::Configuration`] for another scheme, or if it cannot be opened.
    pub fn open(url: &str) -> Result<Self, SourceError> {
        let wrong = |reason: String| SourceError::Configuration { url: url.to_owned(), reason };
        check_unlimited(url).map_err(wrong)?;
        match url.split_once("://") {
            Some(("file", _)) => {
                let writer = RepositoryWriter::new(folder_of(url).map_err(wrong)?);
                let writer = writer.map_err(|error| wrong(error.message()))?;
                Ok(Self::Folder(Arc::new(writer.with_durability(Durability::Batch))))
            }
            Some((scheme, _)) if BUCKET_SCHEMES.contains(&scheme) => {
                Ok(Self::Bucket(Bucket::open(url)?))
            }
            Some(("http" | "https", _)) => Err(wrong(
                "a CCDB server gives its own ids and creation times to what is uploaded, so it \
                 cannot hold a copy; expected file:///dir or s3://bucket/prefix"
                    .to_owned(),
            )),
            _ => Err(wrong("expected file:///dir or s3://bucket/prefix (also gs, az)".to_owned())),
        }
    }

    /// Sets the durability of copies in a folder. Default: [`Durability::Batch`].
    #[must_use]
    pub fn with_durability(self, durability: Durability) -> Self {
        match self {
            Self::Folder(writer) => {
                let writer = Arc::unwrap_or_clone(writer).with_durability(durability);
                Self::Folder(Arc::new(writer))
            }
            Self::Bucket(bucket) => Self::Bucket(bucket),
        }
    }

    fn reader(&self) -> Result<RepositorySource, SourceError> {
        let options = RepositoryOptions::default();
        match self {
            Self::Folder(writer) => RepositorySource::open_folder(writer.folder(), options),
            Self::Bucket(bucket) => Ok(RepositorySource::new(bucket.clone(), options)),
        }
    }

    async fn stage(&self, version: NewVersion, file: PathBuf) -> Result<Staged, RepositoryError> {
        match self {
            Self::Bucket(bucket) => {
                let added = bucket.put_unindexed(&version, &file).await?;
                Ok(Staged::Put(added.map(Box::new)))
            }
            Self::Folder(writer) => {
                let writer = Arc::clone(writer);
                let stage = move || writer.stage_file(&version, None, &file);
                let staged = tokio::task::spawn_blocking(stage).await;
                let staged =
                    staged.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
                Ok(Staged::InFolder(Box::new(staged?)))
            }
        }
    }
}

/// State of a version before its batch is committed.
enum Staged {
    /// Stored in an object store, with what its index gets; `None`: it was there already.
    Put(Option<Box<IndexedVersion>>),
    InFolder(Box<Stage>),
}

/// Result of a copy.
#[derive(Debug, Default)]
pub struct Copied {
    /// Number of versions that are new in the destination.
    pub new: u64,
    /// Number of versions that were already there.
    pub unchanged: u64,
    /// Total size of the new versions.
    pub bytes: u64,
    /// Versions that were not copied, each with the reason.
    pub failed: Vec<(Arc<ObjectInfo>, CopyError)>,
}

/// Why versions were not copied.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CopyError {
    /// The source failed, or the listing of the destination.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The source describes a version differently from the lock file.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// The destination failed.
    #[error(transparent)]
    Destination(#[from] RepositoryError),
    /// The source cannot list all versions of a path.
    #[error(
        "{path}: the source answers only for single times; say how finely it is to be asked \
         (--step), or allow it to list more (ccdb.browse_limit)"
    )]
    OnlyByTime {
        /// The path.
        path: ObjectPath,
    },
    /// The source has no path of a selection.
    #[error("the source has no path that is {prefix} or below it")]
    UnknownPath {
        /// The path of the selection.
        prefix: String,
    },
    /// The batch of the version could not be committed: none of its versions is acknowledged.
    #[error("its batch was not committed: {reason}")]
    Batch {
        /// Reason in words.
        reason: String,
    },
    /// A temporary file between source and destination failed.
    #[error("{path}")]
    Io {
        /// Path of the file.
        path: PathBuf,
        /// Error of the file system.
        #[source]
        error: std::io::Error,
    },
}

coded! { CopyError {
    Source(error) => error,
    Claim(error) => error,
    Destination(error) => error,
    OnlyByTime => InvalidArgument 3040,
    Io => FailedPrecondition 3041,
    Batch => FailedPrecondition 3042,
    UnknownPath => NotFound 3043,
} }

/// Copies the versions of `selection`, `parallel` of them at a time. At the start and after each
/// batch it calls `progress` with the number of finished versions, the number of all, and the bytes
/// copied.
///
/// # Errors
/// [`CopyError`] if the versions to copy cannot be determined. A single version that fails is
/// listed in [`Copied::failed`] instead.
pub async fn copy(
    source: &dyn Source,
    destination: &Destination,
    selection: &Selection,
    parallel: usize,
    mut progress: impl FnMut(u64, u64, u64),
) -> Result<Copied, CopyError> {
    let versions = selected(source, selection).await?;
    let there = present(destination, &versions).await?;
    let all = versions.len() as u64;
    let mut copied = Copied::default();
    let (there, missing): (Vec<_>, Vec<_>) = versions
        .into_iter()
        .partition(|version| there.get(&version.id).is_some_and(|known| same(known, version)));
    copied.unchanged = there.len() as u64;
    progress(copied.unchanged, all, 0);
    let work = missing.into_iter().map(|version| async move {
        let done = one(source, destination, &version).await;
        (version, done)
    });
    let work = futures::stream::iter(work).buffer_unordered(parallel.max(1));
    let mut work = work.chunks(BATCH_VERSIONS);
    while let Some(done) = work.next().await {
        copied.take(destination, done).await;
        let failed = copied.failed.len() as u64;
        progress(copied.new + copied.unchanged + failed, all, copied.bytes);
    }
    Ok(copied)
}

impl Copied {
    /// Commits staged versions as one batch, and counts them: all of them, or none.
    async fn take(&mut self, destination: &Destination, done: Vec<StagedVersion>) {
        let mut batch = match destination {
            Destination::Folder(writer) => Some(writer.batch()),
            Destination::Bucket(_) => None,
        };
        let (mut staged, mut added) = (Vec::new(), Vec::new());
        for (version, done) in done {
            let stored = done.and_then(|(stage, bytes)| match (stage, &mut batch) {
                (Staged::InFolder(stage), Some(batch)) => Ok((batch.take(*stage)?.new, bytes)),
                (Staged::Put(indexed), _) => {
                    let new = indexed.is_some();
                    added.extend(indexed.map(|indexed| *indexed));
                    Ok((new, bytes))
                }
                (Staged::InFolder(_), None) => Ok((false, bytes)),
            });
            match stored {
                Ok((new, bytes)) => staged.push((version, new, bytes)),
                Err(error) => self.failed.push((version, error)),
            }
        }
        if let Destination::Bucket(bucket) = destination {
            bucket.add_to_index(added).await;
        }
        let committed = in_place(|| batch.map_or(Ok(()), Batch::commit));
        if let Err(error) = committed {
            let reason = error.message();
            let failed = |(version, ..): (Arc<ObjectInfo>, bool, u64)| {
                let reason = reason.clone();
                (version, CopyError::Batch { reason })
            };
            self.failed.extend(staged.into_iter().map(failed));
            return;
        }
        for (_, new, bytes) in staged {
            self.new += u64::from(new);
            self.unchanged += u64::from(!new);
            self.bytes += if new { bytes } else { 0 };
        }
    }
}

/// Whether the destination's version equals the wanted one, as far as both sides know.
fn same(there: &ObjectInfo, wanted: &ObjectInfo) -> bool {
    there.path == wanted.path
        && there.validity == wanted.validity
        && there.created == wanted.created
        && wanted.md5.is_none_or(|md5| there.md5 == Some(md5))
        && wanted.size_bytes.is_none_or(|bytes| there.size_bytes == Some(bytes))
}

async fn selected(
    source: &dyn Source,
    selection: &Selection,
) -> Result<Vec<Arc<ObjectInfo>>, CopyError> {
    let mut versions: HashMap<ObjectId, Arc<ObjectInfo>> = HashMap::new();
    match selection {
        Selection::Locked(claims) => {
            let mut by_path: BTreeMap<&ObjectPath, Vec<VersionClaim>> = BTreeMap::new();
            claims.iter().for_each(|(path, claim)| by_path.entry(path).or_default().push(*claim));
            for (path, claims) in by_path {
                let listed = source.list(&Query::all(path.clone())).await?;
                let limits = CreationLimits::default();
                versions.extend(select(source, path, &claims, listed.as_deref(), limits).await?);
            }
        }
        Selection::Range { prefixes, range, limits, step } => {
            let mut paths = Vec::new();
            if prefixes.is_empty() {
                paths = source.paths("").await?;
            }
            for prefix in prefixes {
                let found = source.paths(prefix).await?;
                if found.is_empty() {
                    return Err(CopyError::UnknownPath { prefix: prefix.clone() });
                }
                paths.extend(found);
            }
            let mut paths: Vec<ObjectPath> = paths.into_iter().map(|found| found.path).collect();
            paths.sort();
            paths.dedup();
            for path in paths {
                let query = Query { limits: *limits, ..Query::all(path) };
                let found = versions_of(source, &query, *range, *step).await?;
                versions.extend(found.into_iter().map(|version| (version.id, version)));
            }
        }
    }
    let mut versions: Vec<_> = versions.into_values().collect();
    versions.sort_by(|a, b| {
        (&a.path, a.validity.from(), a.id).cmp(&(&b.path, b.validity.from(), b.id))
    });
    Ok(versions)
}

/// All versions of a path that are valid anywhere in `range`.
async fn versions_of(
    source: &dyn Source,
    query: &Query,
    range: ValidityInterval,
    step: Option<i64>,
) -> Result<Vec<Arc<ObjectInfo>>, CopyError> {
    let mut found = Vec::new();
    let inside = |version: &&Arc<ObjectInfo>| version.validity.intersection(range).is_some();
    let mut after = None;
    loop {
        let page = source.list_page(query, after, PAGE_VERSIONS).await?;
        found.extend(page.versions.iter().filter(inside).map(Arc::clone));
        page.problems.iter().for_each(tell);
        match page.versions.last() {
            _ if !page.whole => break,
            Some(last) if page.more => after = Some(page_key(last)),
            _ => return Ok(found),
        }
    }
    let mut at = range.from();
    for _ in 0..MAX_LOOK_UPS {
        let knowledge = source.look_up(query, at, None).await?;
        found.extend(knowledge.versions.iter().filter(inside).map(Arc::clone));
        knowledge.problems.iter().for_each(tell);
        let told = knowledge.span.until();
        if told >= range.until() {
            return Ok(found);
        }
        let moment = told.as_millis().saturating_sub(at.as_millis()) <= 1;
        at = match step {
            Some(step) => told.max(Timestamp::from_millis(at.as_millis().saturating_add(step))),
            None if moment => break,
            None => told,
        };
        if at >= range.until() {
            return Ok(found);
        }
    }
    Err(CopyError::OnlyByTime { path: query.path.clone() })
}

fn tell(problem: &Problem) {
    tracing::warn!(entry = %problem.entry, reason = %problem.reason, "passed over");
}

/// A version, and the result of staging it with its size in bytes.
type StagedVersion = (Arc<ObjectInfo>, Result<(Staged, u64), CopyError>);

/// The versions in the destination, by id, of all paths that occur in `versions`.
async fn present(
    destination: &Destination,
    versions: &[Arc<ObjectInfo>],
) -> Result<HashMap<ObjectId, Arc<ObjectInfo>>, CopyError> {
    let reader = destination.reader()?;
    let mut paths: Vec<&ObjectPath> = versions.iter().map(|version| &version.path).collect();
    paths.dedup();
    let mut there = HashMap::new();
    for path in paths {
        let query = Query::all(path.clone());
        let mut after = None;
        loop {
            let page = reader.list_page(&query, after, PAGE_VERSIONS).await?;
            after = page.versions.last().map(|version| page_key(version));
            there.extend(page.versions.into_iter().map(|version| (version.id, version)));
            if !page.more {
                break;
            }
        }
    }
    Ok(there)
}

async fn one(
    source: &dyn Source,
    destination: &Destination,
    version: &Arc<ObjectInfo>,
) -> Result<(Staged, u64), CopyError> {
    let mut body = FileBody::new()?;
    source.fetch(version, &mut body).await?;
    let bytes = body.written_bytes();
    let file = body.finish()?;
    let new = NewVersion {
        path: version.path.clone(),
        validity: version.validity,
        created: version.created,
        id: Some(version.id.to_string()),
        file_name: version.id.to_string(),
        metadata: version.metadata.to_map(),
    };
    Ok((destination.stage(new, file.0.clone()).await?, bytes))
}

/// A file that is removed on drop.
#[derive(Debug)]
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A body that writes into a temporary file. Only a buffer is in memory.
#[derive(Debug)]
struct FileBody {
    file: File,
    name: Temporary,
    buffer: Vec<u8>,
    filled: usize,
    written: u64,
    room: u64,
    failure: Option<std::io::Error>,
}

impl FileBody {
    fn new() -> Result<Self, CopyError> {
        let name = format!("iovcache-copy-{}", uuid::Uuid::new_v4().simple());
        let path = std::env::temp_dir().join(name);
        let file =
            File::create_new(&path).map_err(|error| CopyError::Io { path: path.clone(), error })?;
        let buffer = vec![0; BUFFER_BYTES];
        let name = Temporary(path);
        Ok(Self { file, name, buffer, filled: 0, written: 0, room: 0, failure: None })
    }

    fn flush(&mut self) {
        if self.failure.is_none()
            && let Err(error) = self.file.write_all(&self.buffer[..self.filled])
        {
            self.failure = Some(error);
        }
        self.filled = 0;
    }

    fn finish(mut self) -> Result<Temporary, CopyError> {
        self.flush();
        match self.failure.take() {
            Some(error) => Err(self.failed(error)),
            None => Ok(self.name),
        }
    }

    fn failed(&self, error: std::io::Error) -> CopyError {
        CopyError::Io { path: Path::new(&self.name.0).to_owned(), error }
    }
}

#[async_trait]
impl Body for FileBody {
    async fn reserve(&mut self, size_bytes: u64) -> Result<(), BodyError> {
        self.room = size_bytes.max(self.written);
        match &self.failure {
            Some(error) => Err(BodyError::NoRoom { size_bytes, reason: error.to_string() }),
            None => Ok(()),
        }
    }

    fn spare(&mut self) -> &mut [u8] {
        let left = usize::try_from(self.room - self.written).unwrap_or(usize::MAX);
        let end = self.filled.saturating_add(left).min(self.buffer.len());
        &mut self.buffer[self.filled..end]
    }

    fn advance(&mut self, count: usize) {
        let spare = self.spare().len();
        assert!(count <= spare, "advanced by {count} bytes where {spare} were spare");
        self.filled += count;
        self.written += count as u64;
        if self.filled == self.buffer.len() {
            self.flush();
        }
    }

    fn written_bytes(&self) -> u64 {
        self.written
    }
}
