//! Uploads into a repository in an object store.
//!
//! The properties of a version contain its MD5, and are stored before its bytes. An upload is
//! therefore written to a temporary file first, and put into the store from there.

use std::path::{Path, PathBuf};

use futures::StreamExt as _;
use tokio::fs::File;
use tokio::io::AsyncWriteExt as _;

use super::bucket::Bucket;
use super::change::{chain, new_version};
use crate::error::{Coded as _, ErrorKind};
use crate::source::{Change, Changed, SourceError, UploadBytes};

/// A file that is removed when it is dropped.
struct TemporaryFile(PathBuf);

impl TemporaryFile {
    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Stores an upload, and returns once the store has acknowledged it.
///
/// # Errors
/// [`SourceError`]. In that case readers see no version.
pub(super) async fn upload(
    bucket: &Bucket,
    url: &str,
    change: &Change,
    bytes: UploadBytes,
) -> Result<Changed, SourceError> {
    let what = format!("an upload to {}", change.path);
    let failed = |kind, reason| SourceError::of_change(kind, url, &what, reason);
    let Some((version, facts)) =
        new_version(change).map_err(|error| failed(error.kind(), error.to_string()))?
    else {
        return Ok(Changed::Unchanged);
    };
    let spooled = spool(bytes).await;
    let spooled = spooled.map_err(|error| failed(ErrorKind::Internal, error.to_string()))?;
    match bucket.put_described(&version, &facts, spooled.path()).await {
        Ok(stored) => Ok(Changed::Created(Box::new(stored.info))),
        Err(error) => Err(failed(error.kind(), chain(&error))),
    }
}

async fn spool(mut bytes: UploadBytes) -> std::io::Result<TemporaryFile> {
    let name = format!("iovcache-upload-{}", uuid::Uuid::new_v4().simple());
    let place = std::env::temp_dir().join(name);
    let mut options = File::options();
    // Only this user may read it.
    options.write(true).create_new(true).mode(0o600);
    let mut file = options.open(&place).await?;
    let spooled = TemporaryFile(place);
    while let Some(piece) = bytes.next().await {
        file.write_all(&piece?).await?;
    }
    file.flush().await?;
    Ok(spooled)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use bytes::Bytes;
    use futures::{StreamExt as _, stream};
    use object_store::memory::InMemory;

    use super::*;
    use crate::interval::Timestamp;
    use crate::object::{ObjectPath, Query};
    use crate::source::repository::{RepositoryOptions, RepositorySource, index_bucket};
    use crate::source::{ChangeKind, Source as _, VecBody, WriteTarget};

    fn source() -> RepositorySource {
        let bucket = Bucket::of("s3://here/x".into(), Arc::new(InMemory::new()), "x".into());
        RepositorySource::new(bucket, RepositoryOptions { refresh: Duration::from_secs(60) })
    }

    fn upload_of(from: i64) -> Change {
        Change {
            path: ObjectPath::new("A/One").unwrap(),
            at: Timestamp::from_millis(from),
            until: Some(Timestamp::from_millis(from + 100)),
            id: None,
            metadata: [("run".to_owned(), "7".to_owned())].into(),
            limits: Default::default(),
            kind: ChangeKind::Upload {
                file_name: "a.bin".into(),
                content_type: "a/b".into(),
                uploaded_from: Some("10.1.2.3".into()),
            },
        }
    }

    fn pieces(pieces: Vec<std::io::Result<Bytes>>) -> UploadBytes {
        stream::iter(pieces).boxed()
    }

    #[tokio::test]
    async fn an_upload_into_an_object_store_is_seen_at_once_with_its_bytes_and_metadata() {
        let source = source();
        let change = upload_of(1000);
        let query = Query::all(change.path.clone());
        assert!(source.look_up(&query, change.at, None).await.unwrap().versions.is_empty());
        assert!(matches!(source.write_target(&change.path), WriteTarget::Source { ccdb: None }));
        let sent = pieces(vec![Ok("one ".into()), Ok("two".into())]);
        let Changed::Created(created) = source.change(&change, Some(sent)).await.unwrap() else {
            panic!("not created");
        };
        let known = source.look_up(&query, change.at, None).await.unwrap();
        assert_eq!(known.versions.len(), 1);
        assert_eq!(
            (known.versions[0].id, known.versions[0].metadata.get("run")),
            (created.id, Some("7"))
        );
        let mut body = VecBody::default();
        source.fetch(&known.versions[0], &mut body).await.unwrap();
        assert_eq!(body.into_bytes(), b"one two");
    }

    #[tokio::test]
    async fn a_listing_knows_the_facts_about_uploads_with_an_index_and_without() {
        let store = Arc::new(InMemory::new());
        let bucket = || {
            let store: Arc<dyn object_store::ObjectStore> = Arc::clone(&store) as _;
            Bucket::of("s3://here/x".into(), store, "x".into())
        };
        let source = || RepositorySource::new(bucket(), RepositoryOptions::default());
        let known = async || {
            let source = source();
            let listed = source.list(&Query::all(upload_of(0).path)).await.unwrap().unwrap();
            let details = listed.iter().map(|version| source.known_details(version).unwrap());
            details.map(|one| (one.file_name, one.uploaded_from)).collect::<Vec<_>>()
        };
        let expected = (Some("a.bin".to_owned()), Some("10.1.2.3".to_owned()));
        source().change(&upload_of(1000), Some(pieces(vec![Ok("1".into())]))).await.unwrap();
        assert_eq!(known().await, std::slice::from_ref(&expected), "from the properties");
        index_bucket(&bucket(), false, |_, _| ()).await.unwrap();
        assert_eq!(known().await, std::slice::from_ref(&expected), "from an index that was made");
        source().change(&upload_of(2000), Some(pieces(vec![Ok("2".into())]))).await.unwrap();
        let mut update = upload_of(1000);
        (update.until, update.kind) =
            (None, ChangeKind::Update { set: vec![("run".into(), "8".into())] });
        source().change(&update, None).await.unwrap();
        assert_eq!(known().await, [expected.clone(), expected], "from one that was appended");
    }

    #[tokio::test]
    async fn an_upload_that_breaks_off_leaves_neither_a_version_nor_a_file() {
        let source = source();
        let change = upload_of(1000);
        let torn = pieces(vec![Ok("one".into()), Err(std::io::ErrorKind::TimedOut.into())]);
        assert!(matches!(
            source.change(&change, Some(torn)).await,
            Err(SourceError::Unusable { .. })
        ));
        let query = Query::all(change.path.clone());
        assert!(source.look_up(&query, change.at, None).await.unwrap().versions.is_empty());
    }
}
