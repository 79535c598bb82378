//! Changes of a repository in an object store: PUT, DELETE and truncate of CCDB.
//!
//! ```text
//!  PUT:    properties read ─▶ new properties, if no writer has changed them since ─▶ acknowledged
//!  DELETE: properties read ─▶ a mark in their place, under the same condition
//!                          ─▶ the bytes are removed, then the mark ─▶ acknowledged
//!  condition not met ─▶ the path is listed again, and the change begins anew
//! ```
//!
//! The conditional request decides between two writers, so each change is applied to the state that
//! the other one left. A version whose properties are a mark exists no more. A writer that is
//! killed leaves the version as it was, or deleted.

use std::time::Duration;

use object_store::path::Path;
use object_store::{ObjectStoreExt as _, PutMode, PutOptions, UpdateVersion};

use super::bucket::IndexedVersion;
use super::change::{VersionUpdate, changed_properties, meant, now, truncated, update_of};
use super::crash_point::crash_point;
use super::entry::{self, DELETED, PROPERTIES, names};
use super::index::store_stamp;
use super::properties::Properties;
use super::store::StoreRepository;
use crate::error::Coded as _;
use crate::interval::Timestamp;
use crate::object::{ObjectInfo, Query};
use crate::source::{Change, ChangeKind, Changed, Details, SourceError};

/// Maximum attempts while other writers change the same versions.
const ATTEMPTS: u32 = 20;
/// Longest pause between two attempts.
const MAX_PAUSE: Duration = Duration::from_secs(1);

/// Result of one attempt.
enum Attempt {
    Done(Changed),
    /// Another writer was faster.
    Overtaken,
}

/// The two objects of a version, as read for a change.
struct OpenVersion {
    info: ObjectInfo,
    blob: Path,
    blob_tag: Option<String>,
    beside: Path,
    properties: Properties,
    /// State of the properties, for the condition.
    state: UpdateVersion,
}

/// Applies a change other than an upload. It returns when the store has it.
///
/// # Errors
/// [`SourceError`]; `NotAllowed` if the store has no conditional requests.
pub(super) async fn apply(
    store: &StoreRepository,
    change: &Change,
) -> Result<Changed, SourceError> {
    let mut deleted = 0;
    for attempt in 0..ATTEMPTS {
        store.forget(&change.path);
        let versions = store.look_up(&Query::all(change.path.clone())).await?.versions;
        let attempted = match &change.kind {
            ChangeKind::Upload { .. } => Attempt::Done(Changed::Unchanged),
            ChangeKind::Update { set } => match meant(change, &versions) {
                Some(version) => update(store, version, change.until, set).await?,
                None => Attempt::Done(Changed::NotFound),
            },
            ChangeKind::Delete => match meant(change, &versions) {
                Some(version) => delete(store, version).await?,
                None => Attempt::Done(Changed::NotFound),
            },
            ChangeKind::Truncate { at, newest } => {
                let left = newest.map(|newest| newest.saturating_sub(deleted));
                let meant = truncated(change, *at, left, &versions);
                truncate(store, &meant, &mut deleted).await?
            }
        };
        store.forget(&change.path);
        match attempted {
            Attempt::Done(changed) => return Ok(changed),
            Attempt::Overtaken => {
                // Writers that collided do not collide again.
                let random = u64::from(uuid::Uuid::new_v4().as_bytes()[0]) + 1;
                let pause = Duration::from_millis(random << attempt.min(3)).min(MAX_PAUSE);
                tokio::time::sleep(pause).await;
            }
        }
    }
    Err(SourceError::Down {
        url: store.url().to_owned(),
        what: format!("a change of {}", change.path),
        reason: format!("others changed the same versions in each of {ATTEMPTS} attempts"),
    })
}

/// Deletes versions. `deleted` counts them over all attempts.
async fn truncate(
    store: &StoreRepository,
    versions: &[&ObjectInfo],
    deleted: &mut usize,
) -> Result<Attempt, SourceError> {
    let mut is_overtaken = false;
    for version in versions {
        match delete(store, version).await? {
            Attempt::Done(_) => *deleted += 1,
            Attempt::Overtaken => is_overtaken = true,
        }
    }
    Ok(match is_overtaken {
        true => Attempt::Overtaken,
        false => Attempt::Done(Changed::Deleted(*deleted as u64)),
    })
}

async fn update(
    store: &StoreRepository,
    version: &ObjectInfo,
    until: Option<Timestamp>,
    wanted: &[(String, String)],
) -> Result<Attempt, SourceError> {
    let Some(open) = open(store, version).await? else { return Ok(Attempt::Overtaken) };
    let updated = update_of(&open.info, until, wanted).map_err(|error| {
        let what = format!("a change of {}", version.path);
        SourceError::of_change(error.kind(), store.url(), &what, error.to_string())
    })?;
    let Some(VersionUpdate { version: info, properties }) = updated else {
        return Ok(Attempt::Done(Changed::Unchanged));
    };
    let properties = changed_properties(&open.properties, &properties);
    let details = entry::details(&properties);
    let bytes = properties.to_bytes();
    let size = bytes.len() as u64;
    let Some(tag) = replace(store, &open, bytes).await? else { return Ok(Attempt::Overtaken) };
    crash_point("store-properties-replaced");
    let blob = (open.blob_tag.as_deref(), info.size_bytes.unwrap_or(0));
    let stamp = store_stamp(blob, (tag.as_deref(), size));
    store.bucket().note_change(IndexedVersion { info: info.clone(), stamp, details }).await;
    Ok(Attempt::Done(Changed::Updated(Box::new(info))))
}

async fn delete(store: &StoreRepository, version: &ObjectInfo) -> Result<Attempt, SourceError> {
    let Some(open) = open(store, version).await? else { return Ok(Attempt::Overtaken) };
    let mark: Properties = [(DELETED.to_owned(), now().to_string())].into_iter().collect();
    if replace(store, &open, mark.to_bytes()).await?.is_none() {
        return Ok(Attempt::Overtaken);
    }
    crash_point("store-mark-put");
    // From here on the version is deleted: files that cannot be removed are only left over.
    for location in [&open.blob, &open.beside] {
        match store.store().delete(location).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
            Err(error) => {
                tracing::warn!(%location, %error, "an object of a deleted version is left over");
            }
        }
        crash_point("store-object-removed");
    }
    let details = Details::default();
    store.bucket().note_change(IndexedVersion { info: open.info, stamp: 0, details }).await;
    Ok(Attempt::Done(Changed::Deleted(1)))
}

/// Reads the objects of a version. `None` if it is not there as listed any more.
async fn open(
    store: &StoreRepository,
    version: &ObjectInfo,
) -> Result<Option<OpenVersion>, SourceError> {
    let failed = |location: &Path, error| store.error(location.as_ref(), &error);
    let folder = store.location(version.path.as_str()).join(version.validity.from().to_string());
    for name in names(version.id, &version.metadata) {
        let blob = folder.clone().join(&*name);
        let beside = folder.clone().join(format!("{name}{PROPERTIES}"));
        let got = match store.store().get(&beside).await {
            Err(object_store::Error::NotFound { .. }) => continue,
            got => got.map_err(|error| failed(&beside, error))?,
        };
        let state =
            UpdateVersion { e_tag: got.meta.e_tag.clone(), version: got.meta.version.clone() };
        let bytes = got.bytes().await.map_err(|error| failed(&beside, error))?;
        let meta = match store.store().head(&blob).await {
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            meta => meta.map_err(|error| failed(&blob, error))?,
        };
        let Ok(properties) = Properties::parse(&bytes) else { return Ok(None) };
        let from = version.validity.from();
        let info = entry::version(&version.path, from, &name, meta.size, &properties);
        let Some(info) = info.ok().filter(|info| info == version) else { return Ok(None) };
        let blob_tag = meta.e_tag;
        return Ok(Some(OpenVersion { info, blob, blob_tag, beside, properties, state }));
    }
    Ok(None)
}

/// Replaces the properties, unless they were changed since they were read. Returns the new ETag;
/// `None` if they were.
async fn replace(
    store: &StoreRepository,
    open: &OpenVersion,
    bytes: Vec<u8>,
) -> Result<Option<Option<String>>, SourceError> {
    let not_allowed = |reason: &str| SourceError::NotAllowed {
        url: store.url().to_owned(),
        what: format!("a change of {}", open.info.path),
        reason: reason.to_owned(),
    };
    if open.state.e_tag.is_none() && open.state.version.is_none() {
        return Err(not_allowed("the store gives no ETags, so two writers could lose changes"));
    }
    let mode = PutMode::Update(open.state.clone());
    let options = PutOptions { mode, ..PutOptions::default() };
    match store.store().put_opts(&open.beside, bytes.into(), options).await {
        Ok(put) => Ok(Some(put.e_tag)),
        Err(
            object_store::Error::Precondition { .. }
            | object_store::Error::AlreadyExists { .. }
            | object_store::Error::NotFound { .. },
        ) => Ok(None),
        Err(
            object_store::Error::NotImplemented { .. } | object_store::Error::NotSupported { .. },
        ) => Err(not_allowed(
            "the store has no conditional requests, so two writers could lose changes",
        )),
        Err(error) => Err(store.error(open.beside.as_ref(), &error)),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use futures::{StreamExt as _, stream};
    use object_store::ObjectStore;
    use object_store::local::LocalFileSystem;
    use object_store::memory::InMemory;

    use super::*;
    use crate::object::{ObjectId, ObjectPath};
    use crate::source::Source as _;
    use crate::source::repository::{Bucket, RepositoryOptions, RepositorySource, index_bucket};

    fn bucket(store: Arc<dyn ObjectStore>) -> Bucket {
        Bucket::of("s3://here/x".into(), store, "x".into())
    }

    fn source(bucket: &Bucket) -> RepositorySource {
        let options = RepositoryOptions { refresh: Duration::from_millis(100) };
        RepositorySource::new(bucket.clone(), options)
    }

    fn change(kind: ChangeKind) -> Change {
        Change {
            path: ObjectPath::new("A/One").unwrap(),
            at: Timestamp::from_millis(1000),
            until: None,
            id: None,
            metadata: Default::default(),
            limits: Default::default(),
            kind,
        }
    }

    fn truncate_all() -> ChangeKind {
        ChangeKind::Truncate { at: None, newest: None }
    }

    fn set(key: &str, value: &str) -> ChangeKind {
        ChangeKind::Update { set: vec![(key.to_owned(), value.to_owned())] }
    }

    async fn upload(source: &RepositorySource) -> ObjectId {
        let kind = ChangeKind::Upload {
            file_name: "a".into(),
            content_type: "a/b".into(),
            uploaded_from: None,
        };
        let upload = Change { until: Some(Timestamp::from_millis(2000)), ..change(kind) };
        let bytes = stream::iter([Ok("bytes".into())]).boxed();
        // Equal uploads within one millisecond are one version.
        tokio::time::sleep(Duration::from_millis(2)).await;
        match source.change(&upload, Some(bytes)).await.unwrap() {
            Changed::Created(version) => version.id,
            other => panic!("{other:?}"),
        }
    }

    async fn versions(source: &RepositorySource) -> Vec<Arc<ObjectInfo>> {
        let query = Query::all(ObjectPath::new("A/One").unwrap());
        source.list_page(&query, None, 1000).await.unwrap().versions
    }

    /// Waits until a source that did not make the changes sees `expected` of them.
    async fn sees(source: &RepositorySource, expected: impl Fn(&[Arc<ObjectInfo>]) -> bool) {
        let began = std::time::Instant::now();
        loop {
            let found = versions(source).await;
            if expected(&found) {
                return;
            }
            assert!(began.elapsed() < Duration::from_millis(700), "{found:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    #[tokio::test]
    async fn updates_and_deletions_are_seen_at_once_and_by_others_within_their_refresh_time() {
        for has_index in [false, true] {
            let bucket = bucket(Arc::new(InMemory::new()));
            let (writer, reader) = (source(&bucket), source(&bucket));
            let first = upload(&writer).await;
            if has_index {
                index_bucket(&bucket, false, |_, _| {}).await.unwrap();
            }
            upload(&writer).await;
            sees(&reader, |found| found.len() == 2).await;
            let update = Change {
                id: Some(first),
                until: Some(Timestamp::from_millis(3000)),
                ..change(set("run", "7"))
            };
            let Changed::Updated(updated) = writer.change(&update, None).await.unwrap() else {
                panic!("not updated");
            };
            assert_eq!((updated.id, updated.metadata.get("run")), (first, Some("7")));
            let is_updated = |found: &[Arc<ObjectInfo>]| {
                found.iter().any(|v| **v == *updated && v.validity.until().as_millis() == 3000)
            };
            assert!(is_updated(&versions(&writer).await));
            sees(&reader, is_updated).await;
            let again = writer.change(&update, None).await.unwrap();
            assert!(matches!(again, Changed::Unchanged), "{again:?}");
            // The version that a look-up would find: the second one.
            let deleted = writer.change(&change(ChangeKind::Delete), None).await.unwrap();
            assert!(matches!(deleted, Changed::Deleted(1)), "{deleted:?}");
            assert_eq!(versions(&writer).await.len(), 1);
            sees(&reader, |found| found.len() == 1 && found[0].id == first).await;
            let truncated = writer.change(&change(truncate_all()), None).await.unwrap();
            assert!(matches!(truncated, Changed::Deleted(1)), "{truncated:?}");
            sees(&reader, <[_]>::is_empty).await;
            for kind in [ChangeKind::Delete, set("a", "b")] {
                let missing = writer.change(&change(kind), None).await.unwrap();
                assert!(matches!(missing, Changed::NotFound), "{missing:?}");
            }
            let left = bucket.store.list(Some(&Path::from("x/A"))).count().await;
            assert_eq!(left, 0, "no object is left over");
            index_bucket(&bucket, false, |_, _| {}).await.unwrap();
            let report = index_bucket(&bucket, true, |_, _| {}).await.unwrap();
            assert!(report.is_current() && report.problems.is_empty(), "{report:?}");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn of_many_writers_at_one_time_none_loses_anything() {
        const WRITERS: usize = 8;
        let bucket = bucket(Arc::new(InMemory::new()));
        let sources: Vec<_> = (0..WRITERS).map(|_| Arc::new(source(&bucket))).collect();
        for _ in 0..WRITERS {
            upload(&sources[0]).await;
        }
        let uploaded = versions(&sources[0]).await;
        assert_eq!(uploaded.len(), WRITERS);
        let newest = uploaded.into_iter().max_by_key(|v| v.rank()).unwrap();
        let all = |kind: fn(usize) -> ChangeKind| {
            let tasks = sources.iter().enumerate().map(|(n, source)| {
                let source = Arc::clone(source);
                tokio::spawn(async move { source.change(&change(kind(n)), None).await.unwrap() })
            });
            futures::future::join_all(tasks.collect::<Vec<_>>())
        };
        // Each sets a key of its own at the same version.
        for changed in all(|n| set(&format!("key{n}"), "set")).await {
            assert!(matches!(changed.unwrap(), Changed::Updated(_)));
        }
        let fresh = source(&bucket);
        let found = versions(&fresh).await.into_iter().find(|v| v.id == newest.id).unwrap();
        assert!(
            (0..WRITERS).all(|n| found.metadata.get(&format!("key{n}")) == Some("set")),
            "{found:?}"
        );
        // Each deletes the version that it finds: every one another.
        for changed in all(|_| ChangeKind::Delete).await {
            let changed = changed.unwrap();
            assert!(matches!(changed, Changed::Deleted(1)), "{changed:?}");
        }
        assert!(versions(&source(&bucket)).await.is_empty());
    }

    #[tokio::test]
    async fn a_store_without_conditional_requests_is_not_changed() {
        let folder = tempfile::tempdir().unwrap();
        let store = LocalFileSystem::new_with_prefix(folder.path()).unwrap();
        let bucket = bucket(Arc::new(store));
        let source = source(&bucket);
        upload(&source).await;
        for kind in [ChangeKind::Delete, truncate_all(), set("a", "b")] {
            let refused = source.change(&change(kind), None).await.unwrap_err();
            assert!(matches!(refused, SourceError::NotAllowed { .. }), "{refused}");
            assert!(refused.to_string().contains("conditional"), "{refused}");
        }
        assert_eq!(versions(&source).await.len(), 1);
    }

    #[tokio::test]
    async fn a_deletion_that_broke_off_is_none_and_its_id_can_be_stored_again() {
        let bucket = bucket(Arc::new(InMemory::new()));
        let source = source(&bucket);
        let id = upload(&source).await;
        let beside = Path::from(format!("x/A/One/1000/{id}.properties"));
        bucket.store.put(&beside, "Deleted=5\n".into()).await.unwrap();
        source.forget(&ObjectPath::new("A/One").unwrap());
        assert!(versions(&source).await.is_empty());
        let kind = ChangeKind::Upload {
            file_name: "a".into(),
            content_type: "a/b".into(),
            uploaded_from: None,
        };
        let until = Some(Timestamp::from_millis(2000));
        let again = Change { id: Some(id), until, ..change(kind) };
        let bytes = stream::iter([Ok("other".into())]).boxed();
        assert!(matches!(
            source.change(&again, Some(bytes)).await.unwrap(),
            Changed::Created(version) if version.id == id
        ));
        assert_eq!(versions(&source).await.len(), 1);
    }
}
