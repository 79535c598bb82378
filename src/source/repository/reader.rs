//! Reads a repository, in a local folder or in an object store.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, Read as _};
use std::path::{Path as LocalPath, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures::{StreamExt as _, TryStreamExt as _};
use md5::{Digest as _, Md5};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{GetResultPayload, ObjectMeta, ObjectStore, ObjectStoreExt as _};
use tokio::sync::Mutex;

use super::bucket::Bucket;
use super::change;
use super::entry::{self, PROPERTIES};
use super::properties::Properties;
use crate::interval::{Timestamp, ValidityInterval};
use crate::object::{Md5Sum, ObjectInfo, ObjectPath, Query};
use crate::source::{
    Body, BodyError, Change, Changed, Details, Knowledge, PathSummary, Problem, Source,
    SourceError, SourceHealth, SourceState, UploadBytes, WriteTarget, in_place, write_all,
};
use crate::telemetry::Histogram;

/// The listings of so many paths are kept.
const MAX_PATHS: u64 = 10_000;
/// So many folders and properties are read at a time.
const PARALLEL_READS: usize = 16;
/// Properties are not longer than this.
const MAX_PROPERTIES_BYTES: u64 = 1 << 20;
/// A blob without properties is a put under way until it is this old.
const PUT_LIMIT: Duration = Duration::from_secs(10);
/// Pieces in which a file is read.
const PIECE_BYTES: usize = 1 << 20;

/// How a repository is read.
#[derive(Debug, Clone, Copy)]
pub struct RepositoryOptions {
    /// What is put is seen within this. Default: 1 s.
    pub refresh: Duration,
}

impl Default for RepositoryOptions {
    fn default() -> Self {
        Self { refresh: Duration::from_secs(1) }
    }
}

/// A repository as a source.
pub struct RepositorySource {
    url: String,
    store: Arc<dyn ObjectStore>,
    /// Where in the store it lies.
    prefix: Path,
    /// Where the store is a local folder.
    root: Option<PathBuf>,
    options: RepositoryOptions,
    listings: moka::sync::Cache<ObjectPath, Arc<Mutex<Listing>>>,
    requests: AtomicU64,
    latency: Histogram,
    failures: AtomicU64,
    down: AtomicBool,
}

/// What was read of a path.
#[derive(Debug, Default)]
struct Listing {
    read_at: Option<Instant>,
    entries: HashMap<String, Entry>,
    versions: Vec<Arc<ObjectInfo>>,
    problems: Vec<Problem>,
}

/// One pair of files, as it was when it was read.
#[derive(Debug, Clone)]
struct Entry {
    stamp: (Stamp, Stamp),
    read: Result<Arc<ObjectInfo>, String>,
}

/// What changes when a file changes.
type Stamp = (i64, u64, Option<String>);

fn stamp(meta: &ObjectMeta) -> Stamp {
    let modified = meta.last_modified.timestamp_nanos_opt().unwrap_or(0);
    (modified, meta.size, meta.e_tag.clone())
}

impl fmt::Debug for RepositorySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RepositorySource({})", self.url)
    }
}

impl RepositorySource {
    /// In a local folder.
    ///
    /// # Errors
    /// [`SourceError::Configuration`] if it is not there.
    pub fn open_folder(
        folder: &LocalPath,
        options: RepositoryOptions,
    ) -> Result<Self, SourceError> {
        let url = format!("file://{}", folder.display());
        let wrong = |reason: String| SourceError::Configuration { url: url.clone(), reason };
        let root = folder.canonicalize().map_err(|error| wrong(error.to_string()))?;
        if !root.is_dir() {
            return Err(wrong("it is no folder".to_owned()));
        }
        let store =
            LocalFileSystem::new_with_prefix(&root).map_err(|error| wrong(error.to_string()))?;
        let bucket = Bucket::of(url.clone(), Arc::new(store), Path::default());
        let source = Self::new(bucket, options);
        Ok(Self { root: Some(root), ..source })
    }

    /// In an object store.
    pub fn new(bucket: Bucket, options: RepositoryOptions) -> Self {
        let Bucket { url, store, prefix } = bucket;
        Self {
            url,
            store,
            prefix,
            root: None,
            options,
            listings: moka::sync::Cache::new(MAX_PATHS),
            requests: AtomicU64::new(0),
            latency: Histogram::default(),
            failures: AtomicU64::new(0),
            down: AtomicBool::new(false),
        }
    }

    fn location(&self, path: &str) -> Path {
        path.split('/').fold(self.prefix.clone(), |location, part| location.join(part))
    }

    /// Counts, and keeps in mind whether the store answers.
    fn note<T>(&self, answer: Result<T, SourceError>) -> Result<T, SourceError> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let down = matches!(answer, Err(SourceError::Down { .. }));
        self.failures.fetch_add(u64::from(answer.is_err()), Ordering::Relaxed);
        self.down.store(down, Ordering::Relaxed);
        answer
    }

    fn error(&self, what: &str, error: &object_store::Error) -> SourceError {
        let (url, what, mut reason) = (self.url.clone(), what.to_owned(), error.to_string());
        let mut cause = std::error::Error::source(error);
        while let Some(error) = cause {
            let more = error.to_string();
            if !reason.contains(&more) {
                reason = format!("{reason}: {more}");
            }
            cause = error.source();
        }
        match error {
            object_store::Error::PermissionDenied { .. }
            | object_store::Error::Unauthenticated { .. } => {
                SourceError::NotAllowed { url, what, reason }
            }
            _ => SourceError::Down { url, what, reason },
        }
    }

    /// That a folder is gone must not look as if nothing were valid any more.
    fn check_root(&self) -> Result<(), SourceError> {
        match &self.root {
            Some(root) if !root.is_dir() => Err(SourceError::Down {
                url: self.url.clone(),
                what: root.display().to_string(),
                reason: "the folder is not there".to_owned(),
            }),
            _ => Ok(()),
        }
    }

    /// Only regular files beneath the root are read: a FIFO would keep us waiting for ever, a link
    /// can lead anywhere.
    async fn check_file(&self, location: &Path) -> Result<(), String> {
        let Some(root) = &self.root else { return Ok(()) };
        let (root, file) = (root.clone(), root.join(location.as_ref()));
        let checked = tokio::task::spawn_blocking(move || {
            let facts = std::fs::symlink_metadata(&file).map_err(|error| error.to_string())?;
            if !facts.is_file() {
                return Err("it is no regular file".to_owned());
            }
            let folder = file.parent().unwrap_or(&root).canonicalize();
            match folder.map_err(|error| error.to_string())?.starts_with(&root) {
                true => Ok(()),
                false => Err("it lies outside of the repository".to_owned()),
            }
        });
        checked.await.unwrap_or_else(|error| Err(error.to_string()))
    }

    /// The files of the versions of a path: folders named by numbers, right beneath it.
    async fn files(&self, path: &ObjectPath) -> Result<Vec<ObjectMeta>, object_store::Error> {
        let location = self.location(path.as_str());
        let below = self.store.list_with_delimiter(Some(&location)).await?;
        let all = below.common_prefixes.len();
        let folders: Vec<Path> = below
            .common_prefixes
            .into_iter()
            .filter(|folder| folder.filename().is_some_and(|name| name.parse::<i64>().is_ok()))
            .collect();
        if folders.len() > PARALLEL_READS && folders.len() == all {
            // No other path lies below this one: one listing of everything is that of its versions.
            let depth = location.parts().count() + 2;
            let listed = self.store.list(Some(&location));
            let deep = listed
                .try_filter(|file| std::future::ready(file.location.parts().count() == depth));
            return deep.try_collect().await;
        }
        let listed = folders.into_iter().map(|folder| async move {
            let listed = self.store.list_with_delimiter(Some(&folder)).await?;
            Ok::<_, object_store::Error>(listed.objects)
        });
        let listed: Vec<Vec<ObjectMeta>> =
            futures::stream::iter(listed).buffer_unordered(PARALLEL_READS).try_collect().await?;
        Ok(listed.into_iter().flatten().collect())
    }

    /// Reads what has changed of a path.
    async fn read(&self, path: &ObjectPath, listing: &mut Listing) -> Result<(), SourceError> {
        self.check_root()?;
        let files = self.files(path).await.map_err(|error| self.error(path.as_str(), &error))?;
        let mut pairs: HashMap<Path, (Option<ObjectMeta>, Option<ObjectMeta>)> = HashMap::new();
        for file in files {
            if file.location.filename().is_some_and(|name| name.starts_with('.')) {
                continue;
            }
            let blob = file.location.as_ref().strip_suffix(PROPERTIES).map(Path::parse);
            match blob {
                Some(Ok(blob)) => pairs.entry(blob).or_default().1 = Some(file),
                Some(Err(_)) => {}
                None => {
                    let location = file.location.clone();
                    pairs.entry(location).or_default().0 = Some(file);
                }
            }
        }
        let mut problems = Vec::new();
        let mut fresh = Vec::new();
        let mut entries = HashMap::with_capacity(pairs.len());
        for (location, pair) in pairs {
            match pair {
                (Some(blob), Some(properties)) => {
                    let now = (stamp(&blob), stamp(&properties));
                    match listing.entries.get(location.as_ref()) {
                        Some(known) if known.stamp == now => {
                            entries.insert(location.to_string(), known.clone());
                        }
                        _ => fresh.push((location, blob, properties)),
                    }
                }
                (Some(blob), None) => {
                    let age = age_of(&blob);
                    if age.is_none_or(|age| age > PUT_LIMIT) {
                        let reason = format!("{PROPERTIES} is not there");
                        problems.push(Problem { entry: location.to_string(), reason });
                    }
                }
                // A put under way: properties come first.
                (None, _) => {}
            }
        }
        let read = fresh.into_iter().map(|(location, blob, properties)| async move {
            let read = self.read_pair(path, &blob, &properties).await?;
            let entry =
                Entry { stamp: (stamp(&blob), stamp(&properties)), read: read.map(Arc::new) };
            Ok::<_, SourceError>((location.to_string(), entry))
        });
        let read: Vec<(String, Entry)> =
            futures::stream::iter(read).buffer_unordered(PARALLEL_READS).try_collect().await?;
        entries.extend(read);
        listing.versions = entries.values().filter_map(|entry| entry.read.clone().ok()).collect();
        problems.extend(entries.iter().filter_map(|(location, entry)| {
            let reason = entry.read.clone().err()?;
            Some(Problem { entry: location.clone(), reason })
        }));
        listing.problems = problems;
        listing.entries = entries;
        Ok(())
    }

    /// What the two files of a version say; `Err` inside: what is wrong with them.
    async fn read_pair(
        &self,
        path: &ObjectPath,
        blob: &ObjectMeta,
        properties: &ObjectMeta,
    ) -> Result<Result<ObjectInfo, String>, SourceError> {
        for file in [blob, properties] {
            if let Err(reason) = self.check_file(&file.location).await {
                return Ok(Err(reason));
            }
        }
        if properties.size > MAX_PROPERTIES_BYTES {
            return Ok(Err(format!("{} bytes of properties are too many", properties.size)));
        }
        let got = async { self.store.get(&properties.location).await?.bytes().await };
        let bytes = match got.await {
            Ok(bytes) => bytes,
            // It went away between the listing and now.
            Err(object_store::Error::NotFound { .. }) => {
                return Ok(Err("it went away while it was read".to_owned()));
            }
            Err(error) => return Err(self.error(properties.location.as_ref(), &error)),
        };
        let read = Properties::parse(&bytes).map_err(|error| error.to_string());
        Ok(read.and_then(|properties| {
            let mut parts = blob.location.as_ref().rsplit('/');
            let name = parts.next().unwrap_or_default();
            let from = parts.next().and_then(|from| from.parse().ok());
            let from = from.map(Timestamp::from_millis).ok_or("its folder is no number")?;
            entry::version(path, from, name, blob.size, &properties)
        }))
    }

    async fn listing(&self, path: &ObjectPath) -> Result<Arc<Mutex<Listing>>, SourceError> {
        let listing = self.listings.get_with(path.clone(), Arc::default);
        let mut locked = listing.lock().await;
        // Others may have read it while we waited.
        let reuse = self.options.refresh / 5;
        if locked.read_at.is_none_or(|at| at.elapsed() >= reuse) {
            let began = Instant::now();
            let read = self.read(path, &mut locked).await;
            self.latency.observe(began.elapsed());
            self.note(read)?;
            locked.read_at = Some(began);
        }
        drop(locked);
        Ok(listing)
    }

    /// Where the bytes of a version lie. The name of the file is the id, or what it is derived from.
    fn blob(&self, version: &ObjectInfo) -> Path {
        let derived = version.metadata.get("source_id");
        let name = derived.cloned().unwrap_or_else(|| version.id.to_string());
        let folder = self.location(version.path.as_str());
        folder.join(version.validity.from().to_string()).join(name)
    }

    async fn try_fetch(
        &self,
        version: &ObjectInfo,
        body: &mut dyn Body,
    ) -> Result<(), SourceError> {
        let what = format!("{} {}", version.path, version.id);
        let unusable =
            |reason| SourceError::Unusable { url: self.url.clone(), what: what.clone(), reason };
        let gone = || SourceError::NoSuchVersion {
            url: self.url.clone(),
            path: version.path.clone(),
            id: version.id,
        };
        self.check_root()?;
        let mut location = self.blob(version);
        let mut got = self.get(&location).await;
        if matches!(&got, Err(Miss::Gone)) {
            // A repository of ours names the file by the id, even where that was derived.
            let folder = self.location(version.path.as_str());
            location =
                folder.join(version.validity.from().to_string()).join(version.id.to_string());
            got = self.get(&location).await;
        }
        let got = got.map_err(|miss| match miss {
            Miss::Gone => gone(),
            Miss::Odd(reason) => unusable(reason),
            Miss::Store(error) => self.error(&what, &error),
        })?;
        let size = got.meta.size;
        if let Some(expected) = version.size_bytes
            && expected != size
        {
            return Err(unusable(format!("it has {size} bytes, expected {expected}")));
        }
        let full = |error: BodyError| SourceError::Body { what: what.clone(), error };
        body.reserve(size).await.map_err(full)?;
        let mut digest = Md5::new();
        match got.payload {
            GetResultPayload::File(mut file, _) => {
                while !body.spare().is_empty() {
                    let read = in_place(|| {
                        let spare = body.spare();
                        let most = spare.len().min(PIECE_BYTES);
                        let count = file.read(&mut spare[..most])?;
                        digest.update(&spare[..count]);
                        Ok::<_, io::Error>(count)
                    });
                    match read {
                        Ok(0) => break,
                        Ok(count) => body.advance(count),
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                        Err(error) => {
                            let (url, reason) = (self.url.clone(), error.to_string());
                            return Err(SourceError::Down { url, what, reason });
                        }
                    }
                }
            }
            GetResultPayload::Stream(mut stream) => {
                while let Some(piece) = stream.next().await {
                    let piece = piece.map_err(|error| self.error(&what, &error))?;
                    digest.update(&piece);
                    if body.written_bytes() + piece.len() as u64 > size {
                        return Err(unusable(format!("more than the {size} bytes announced")));
                    }
                    write_all(body, &piece).await.map_err(full)?;
                }
            }
        }
        let written = body.written_bytes();
        if written != size {
            return Err(unusable(format!("{written} bytes came of {size}")));
        }
        let md5 = Md5Sum(digest.finalize().into());
        match version.md5 {
            Some(expected) if expected != md5 => {
                Err(unusable(format!("its MD5 is {md5}, expected {expected}")))
            }
            _ => {
                body.set_md5(md5);
                Ok(())
            }
        }
    }

    async fn get(&self, location: &Path) -> Result<object_store::GetResult, Miss> {
        if let (Err(reason), Some(root)) = (self.check_file(location).await, &self.root) {
            let there = root.join(location.as_ref()).symlink_metadata().is_ok();
            return Err(if there { Miss::Odd(reason) } else { Miss::Gone });
        }
        self.store.get(location).await.map_err(|error| match error {
            object_store::Error::NotFound { .. } => Miss::Gone,
            error => Miss::Store(error),
        })
    }
}

/// Why a file was not got.
enum Miss {
    Gone,
    Odd(String),
    Store(object_store::Error),
}

fn age_of(meta: &ObjectMeta) -> Option<Duration> {
    let modified = std::time::SystemTime::from(meta.last_modified);
    // A time yet to come is the end of the validity: then it is no put under way.
    std::time::SystemTime::now().duration_since(modified).ok()
}

#[async_trait]
impl Source for RepositorySource {
    fn url(&self) -> &str {
        &self.url
    }

    fn refresh(&self) -> Duration {
        // What is read here can be a fifth of it old already.
        self.options.refresh.mul_f64(0.8)
    }

    async fn look_up(
        &self,
        query: &Query,
        _at: Timestamp,
        _held: Option<&Arc<ObjectInfo>>,
    ) -> Result<Knowledge, SourceError> {
        let listing = self.listing(&query.path).await?;
        let listing = listing.lock().await;
        let versions = listing.versions.iter().filter(|version| query.matches(version));
        Ok(Knowledge {
            span: ValidityInterval::ALL,
            versions: versions.map(Arc::clone).collect(),
            problems: listing.problems.clone(),
            stale: false,
        })
    }

    fn forget(&self, path: &ObjectPath) {
        self.listings.invalidate(path);
    }

    fn write_target(&self, _path: &ObjectPath) -> WriteTarget {
        match self.root {
            Some(_) => WriteTarget::Source { ccdb: None },
            None => WriteTarget::ReadOnly,
        }
    }

    async fn change(
        &self,
        change: &Change,
        bytes: Option<UploadBytes>,
    ) -> Result<Changed, SourceError> {
        let Some(root) = self.root.clone() else {
            let (url, what) = (self.url.clone(), change.path.to_string());
            let reason = "a repository in an object store is changed with `iovcache put`".into();
            return Err(SourceError::NotAllowed { url, what, reason });
        };
        let changed = match bytes {
            Some(bytes) => change::upload(root, &self.url, change, bytes).await,
            None => {
                self.forget(&change.path);
                let query = Query::all(change.path.clone());
                let known = self.look_up(&query, change.at, None).await?;
                change::apply(root, &self.url, change, known.versions).await
            }
        };
        self.forget(&change.path);
        changed
    }

    fn known_details(&self, version: &ObjectInfo) -> Option<Details> {
        let root = self.root.as_ref()?;
        Some(crate::source::in_place(|| change::details(root, version)))
    }

    async fn subfolders(&self, path: &str) -> Result<Vec<String>, SourceError> {
        if !path.is_empty() && ObjectPath::new(path).is_err() {
            return Ok(Vec::new());
        }
        let location = match path {
            "" => self.prefix.clone(),
            path => self.location(path),
        };
        let listed = self.store.list_with_delimiter(Some(&location)).await;
        let listed = self.note(listed.map_err(|error| self.error(path, &error)))?;
        let names = listed.common_prefixes.iter().filter_map(|folder| folder.filename());
        let folders = names.map(|name| match path {
            "" => name.to_owned(),
            path => format!("{path}/{name}"),
        });
        // What is no path of ours holds the versions of this one, or nothing of ours.
        let mut folders: Vec<String> =
            folders.filter(|folder| ObjectPath::new(folder).is_ok()).collect();
        folders.sort_unstable();
        Ok(folders)
    }

    async fn fetch(&self, version: &ObjectInfo, body: &mut dyn Body) -> Result<(), SourceError> {
        let began = Instant::now();
        let fetched = self.try_fetch(version, body).await;
        self.latency.observe(began.elapsed());
        self.note(fetched)
    }

    fn health(&self) -> Vec<SourceHealth> {
        vec![SourceHealth {
            url: self.url.clone(),
            state: match self.down.load(Ordering::Relaxed) {
                true => SourceState::Down,
                false => SourceState::Up,
            },
            requests: self.requests.load(Ordering::Relaxed),
            failures: self.failures.load(Ordering::Relaxed),
            latency: self.latency.timing(),
        }]
    }

    async fn paths(&self, prefix: &str) -> Result<Vec<PathSummary>, SourceError> {
        self.check_root()?;
        let prefix = prefix.trim_matches('/');
        if !prefix.is_empty() && ObjectPath::new(prefix).is_err() {
            return Ok(Vec::new());
        }
        let location = match prefix {
            "" => self.prefix.clone(),
            prefix => self.location(prefix),
        };
        let skip = self.prefix.parts().count();
        let mut counts: HashMap<ObjectPath, u64> = HashMap::new();
        let mut files = self.store.list(Some(&location));
        while let Some(file) = files.next().await {
            let file = file.map_err(|error| self.error(prefix, &error));
            let file = self.note(file)?;
            // path…/from/name.properties
            let mut parts: Vec<String> =
                file.location.parts().skip(skip).map(|part| part.as_ref().to_owned()).collect();
            let (name, from) = (parts.pop().unwrap_or_default(), parts.pop().unwrap_or_default());
            let properties = name.ends_with(PROPERTIES) && !name.starts_with('.');
            if properties
                && from.parse::<i64>().is_ok()
                && let Ok(path) = ObjectPath::new(&parts.join("/"))
            {
                *counts.entry(path).or_default() += 1;
            }
        }
        let mut paths: Vec<PathSummary> =
            counts.into_iter().map(|(path, versions)| PathSummary { path, versions }).collect();
        paths.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(paths)
    }
}
