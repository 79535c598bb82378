//! Answers to look-ups: for each query, spans with the versions that decide there.
//!
//! A thread writes them with a short delay, so no request waits for the disk.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::file::{VersionRecord, read_head, write_json};
use super::lru_folder::LruFolder;
use crate::bounded_cache::BoundedCache;
use crate::interval::{Timestamp, ValidityInterval};
use crate::object::{ObjectInfo, ObjectPath, Query};
use crate::source::{Knowledge, PathSummary, in_place};
use crate::sync::{Condvar, Mutex};

/// Maximum number of answers per query, for a source that answers only for single times.
const MAX_PIECES: usize = 1_000;
/// Maximum number of queries whose answers are also kept in memory.
const MAX_QUERIES: u64 = 10_000;
/// Delay of writes, so that changes within it are written together.
const WRITE_DELAY: Duration = Duration::from_millis(20);

/// A span and the versions that decide in it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct LoggedSpan {
    span: ValidityInterval,
    versions: Vec<Arc<ObjectInfo>>,
}

/// Answers for a query, oldest first. Where spans overlap, the later answer counts.
#[derive(Debug, Default)]
struct QueryLog {
    pieces: Vec<LoggedSpan>,
}

impl QueryLog {
    /// Adds an answer. Returns `false` if it repeats the last one.
    fn learn(&mut self, knowledge: &Knowledge) -> bool {
        let mut versions = knowledge.versions.clone();
        versions.sort_by_key(|version| version.rank());
        let piece = LoggedSpan { span: knowledge.span, versions };
        if self.pieces.last() == Some(&piece) {
            return false;
        }
        let covers = |older: &LoggedSpan| piece.span.intersection(older.span) == Some(older.span);
        self.pieces.retain(|older| !covers(older));
        self.pieces.push(piece);
        if self.pieces.len() > MAX_PIECES {
            self.pieces.remove(0);
        }
        true
    }

    fn at(&self, at: Timestamp) -> Option<&LoggedSpan> {
        self.pieces.iter().rev().find(|piece| piece.span.contains(at))
    }

    /// The latest answer at `at`, with its span reduced to the part without a later answer.
    fn knowledge(&self, at: Timestamp) -> Option<Knowledge> {
        let piece = self.at(at)?;
        let (mut from, mut until) = (piece.span.from(), piece.span.until());
        for later in self.pieces.iter().rev().take_while(|later| *later != piece) {
            if later.span.until() <= at {
                from = from.max(later.span.until());
            } else if later.span.from() > at {
                until = until.min(later.span.from());
            }
        }
        Some(Knowledge {
            span: ValidityInterval::new(from, until).ok()?,
            versions: piece.versions.clone(),
            problems: Vec::new(),
            stale: true,
        })
    }
}

/// Stored form of a query and its answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredAnswers {
    source: String,
    path: ObjectPath,
    metadata: BTreeMap<String, String>,
    not_before: Option<Timestamp>,
    not_after: Option<Timestamp>,
    /// Each version once; the pieces hold indices.
    versions: Vec<VersionRecord>,
    pieces: Vec<(Timestamp, Timestamp, Vec<usize>)>,
}

impl StoredAnswers {
    fn of(source: &str, query: &Query, said: &QueryLog) -> Self {
        let mut places: HashMap<*const ObjectInfo, usize> = HashMap::new();
        let mut versions = Vec::new();
        let mut pieces = Vec::new();
        for piece in &said.pieces {
            let named = piece.versions.iter().map(|version| {
                *places.entry(Arc::as_ptr(version)).or_insert_with(|| {
                    versions.push(VersionRecord::from(&**version));
                    versions.len() - 1
                })
            });
            pieces.push((piece.span.from(), piece.span.until(), named.collect()));
        }
        Self {
            source: source.to_owned(),
            path: query.path.clone(),
            metadata: query.metadata.clone(),
            not_before: query.limits.not_before,
            not_after: query.limits.not_after,
            versions,
            pieces,
        }
    }

    fn name(&self) -> Uuid {
        let parts = (&self.source, &self.path, &self.metadata, self.not_before, self.not_after);
        // Serialisation of strings, a map of strings and numbers cannot fail.
        let text = serde_json::to_vec(&parts).unwrap_or_default();
        Uuid::new_v5(&Uuid::NAMESPACE_URL, &text)
    }

    fn is_of(&self, source: &str, query: &Query) -> bool {
        self.source == source
            && self.path == query.path
            && self.metadata == query.metadata
            && self.not_before == query.limits.not_before
            && self.not_after == query.limits.not_after
    }

    /// `None` if the stored form is not valid.
    fn said(self) -> Option<QueryLog> {
        let versions: Option<Vec<Arc<ObjectInfo>>> =
            self.versions.into_iter().map(|record| record.version().map(Arc::new)).collect();
        let versions = versions?;
        let pieces = self.pieces.into_iter().map(|(from, until, named)| {
            let span = ValidityInterval::new(from, until).ok()?;
            let versions = named.into_iter().map(|place| versions.get(place).cloned());
            Some(LoggedSpan { span, versions: versions.collect::<Option<_>>()? })
        });
        Some(QueryLog { pieces: pieces.collect::<Option<_>>()? })
    }
}

/// Name of the file that holds this JSON.
pub(super) fn name_in(json: &[u8]) -> Option<Uuid> {
    let written: StoredAnswers = serde_json::from_slice(json).ok()?;
    let name = written.name();
    written.said().map(|_| name)
}

/// Answers that are not yet written.
#[derive(Debug, Default)]
struct PendingWrites {
    queries: HashMap<Uuid, (Query, Arc<Mutex<QueryLog>>)>,
    writing: bool,
    closed: bool,
}

/// The part of the log that its writer thread uses.
#[derive(Debug)]
struct LogShared {
    source: String,
    folder: LruFolder,
    waiting: Mutex<PendingWrites>,
    changed: Condvar,
}

impl LogShared {
    fn run(&self) {
        loop {
            let mut waiting = self.waiting.lock();
            while waiting.queries.is_empty() && !waiting.closed {
                waiting = self.changed.wait(waiting);
            }
            if waiting.queries.is_empty() {
                return;
            }
            if !waiting.closed {
                waiting = self.changed.wait_timeout(waiting, WRITE_DELAY);
            }
            let queries = std::mem::take(&mut waiting.queries);
            waiting.writing = true;
            drop(waiting);
            for (name, (query, said)) in queries {
                if let Err(error) = self.write(name, &query, &said) {
                    tracing::warn!(path = %query.path, %error, "an answer is not kept on the disk");
                }
            }
            self.waiting.lock().writing = false;
            self.changed.notify_all();
        }
    }

    fn write(&self, name: Uuid, query: &Query, said: &Mutex<QueryLog>) -> io::Result<()> {
        let written = StoredAnswers::of(&self.source, query, &said.lock());
        let json = serde_json::to_vec(&written)?;
        if !self.folder.can_hold(json.len() as u64) {
            // No answer is better than an old one.
            self.folder.remove(name);
            return Ok(());
        }
        let length = write_json(&self.folder.place(name), &json)?;
        self.folder.note(name, length);
        Ok(())
    }

    fn read(&self, name: Uuid) -> Option<StoredAnswers> {
        let mut file = self.folder.open_file(name)?;
        let read = read_head(&mut file).and_then(|(_, json)| {
            let written: StoredAnswers = serde_json::from_slice(&json)?;
            if written.name() == name { Ok(written) } else { Err(io::Error::other("another name")) }
        });
        read.map_err(|error| {
            tracing::warn!(file = %self.folder.place(name).display(), %error, "thrown out");
            self.folder.remove(name);
        })
        .ok()
    }
}

/// Answers for all queries.
#[derive(Debug)]
pub(super) struct LookupLog {
    shared: Arc<LogShared>,
    recent: BoundedCache<Uuid, Mutex<QueryLog>>,
    writer: Option<JoinHandle<()>>,
}

impl LookupLog {
    pub(super) fn open(folder: &Path, limit_bytes: u64, source: &str) -> io::Result<Self> {
        let shared = Arc::new(LogShared {
            source: source.to_owned(),
            folder: LruFolder::open(folder.join("answers"), limit_bytes)?,
            waiting: Mutex::default(),
            changed: Condvar::new(),
        });
        let writer = std::thread::Builder::new().name("iovcache-disk".to_owned()).spawn({
            let shared = Arc::clone(&shared);
            move || shared.run()
        })?;
        Ok(Self { shared, recent: BoundedCache::new(MAX_QUERIES), writer: Some(writer) })
    }

    pub(super) fn usage(&self) -> u64 {
        self.shared.folder.usage().1
    }

    fn name(&self, query: &Query) -> Uuid {
        StoredAnswers::of(&self.shared.source, query, &QueryLog::default()).name()
    }

    /// The answers for a query, read from the disk if they are not in memory.
    fn said(&self, query: &Query) -> (Uuid, Arc<Mutex<QueryLog>>) {
        let name = self.name(query);
        let said = self.recent.get_with(&name, || {
            let written = in_place(|| self.shared.read(name));
            let ours = written.filter(|written| written.is_of(&self.shared.source, query));
            Arc::new(Mutex::new(ours.and_then(StoredAnswers::said).unwrap_or_default()))
        });
        (name, said)
    }

    /// Stores an answer.
    pub(super) fn keep(&self, query: &Query, knowledge: &Knowledge) {
        let (name, said) = self.said(query);
        if !said.lock().learn(knowledge) {
            return;
        }
        let mut waiting = self.shared.waiting.lock();
        waiting.queries.insert(name, (query.clone(), said));
        self.shared.changed.notify_all();
    }

    /// The latest answer for this time.
    pub(super) fn find(&self, query: &Query, at: Timestamp) -> Option<Knowledge> {
        let (_, said) = self.said(query);
        let said = said.lock();
        said.knowledge(at)
    }

    /// The paths on the disk that equal `prefix` or lie below it.
    pub(super) async fn paths(&self, prefix: &str) -> Vec<PathSummary> {
        let shared = Arc::clone(&self.shared);
        let read = tokio::task::spawn_blocking(move || {
            let names = shared.folder.names();
            let written = names.into_iter().filter_map(|name| shared.read(name));
            written
                .filter(|written| written.source == shared.source)
                .map(|written| (written.path, written.versions.len() as u64))
                .collect::<Vec<_>>()
        });
        let mut counts: BTreeMap<ObjectPath, u64> = BTreeMap::new();
        for (path, versions) in read.await.unwrap_or_default() {
            if versions > 0 && path.starts_with(prefix.trim_matches('/')) {
                let count = counts.entry(path).or_default();
                *count = versions.max(*count);
            }
        }
        counts.into_iter().map(|(path, versions)| PathSummary { path, versions }).collect()
    }

    /// Waits until all answers are written.
    pub(super) fn flush(&self) {
        let mut waiting = self.shared.waiting.lock();
        while waiting.writing || !waiting.queries.is_empty() {
            waiting = self.shared.changed.wait(waiting);
        }
    }
}

impl Drop for LookupLog {
    fn drop(&mut self) {
        self.shared.waiting.lock().closed = true;
        self.shared.changed.notify_all();
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}
