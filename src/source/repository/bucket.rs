//! Repositories in object stores: `s3://bucket/prefix`, also `gs://` and `az://`.
//!
//! Credentials and endpoints come from the environment variables that the stores' own tools use
//! (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, `GOOGLE_…`, `AZURE_…`), never from the URL, which is
//! shown in logs and in `status`.

use std::path::Path as LocalPath;
use std::sync::Arc;

use md5::{Digest as _, Md5};
use object_store::buffered::BufWriter;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _};
use tokio::io::AsyncReadExt as _;

#[cfg(feature = "clouds")]
use super::clouds::open_store;
use super::crash_point::crash_point;
use super::entry::{self, PROPERTIES};
use super::index::{IndexRow, StoreIndex, StoreIndexWriter, row_of, store_stamp};
use super::properties::Properties;
use super::writer::{NewVersion, RepositoryError, Stored, UploadFacts, compared};
use crate::object::{Md5Sum, ObjectInfo};
use crate::source::{Details, SourceError};

/// Size of the pieces in which a file is read and uploaded; no store accepts parts below 5 MiB.
const PIECE_BYTES: usize = 8 << 20;

/// URL schemes of the supported stores.
pub(crate) const SCHEMES: [&str; 3] = ["s3", "gs", "az"];

/// Without the feature `clouds` no store can be opened.
#[cfg(not(feature = "clouds"))]
fn open_store(_scheme: &str, _bucket: &str) -> Result<Arc<dyn ObjectStore>, String> {
    Err("this program was built without object stores (the feature `clouds`)".to_owned())
}

/// A prefix in an object store.
#[derive(Debug, Clone)]
pub struct Bucket {
    pub(super) url: String,
    pub(super) store: Arc<dyn ObjectStore>,
    pub(super) prefix: Path,
}

/// A version in a store, as its row of the index describes it.
#[derive(Debug, Clone)]
pub(in crate::source) struct IndexedVersion {
    pub(super) info: ObjectInfo,
    /// State of its two objects; 0 if it is not known, or if the version was deleted.
    pub(super) stamp: u64,
    /// Facts about its upload.
    pub(super) details: Details,
}

impl Bucket {
    /// Whether `text` is a URL with the scheme of an object store.
    pub fn is_url(text: &str) -> bool {
        text.split_once("://").is_some_and(|(scheme, _)| SCHEMES.contains(&scheme))
    }

    /// Scheme, bucket and prefix of `scheme://bucket/prefix`.
    ///
    /// # Errors
    /// [`SourceError::Configuration`] if the URL is wrong.
    pub(in crate::source) fn check_url(url: &str) -> Result<(&str, &str, Path), SourceError> {
        let wrong = |reason: String| SourceError::Configuration { url: url.to_owned(), reason };
        let (scheme, rest) = url.split_once("://").unwrap_or((url, ""));
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        if bucket.is_empty() {
            return Err(wrong(format!("expected {scheme}://bucket/prefix")));
        }
        if bucket.contains('@') {
            let reason = "credentials do not belong into a URL; put them into the environment";
            // The error must not repeat the credentials.
            let url = format!("{scheme}://…");
            return Err(SourceError::Configuration { url, reason: reason.to_owned() });
        }
        let prefix = Path::parse(prefix).map_err(|error| wrong(error.to_string()))?;
        if !SCHEMES.contains(&scheme) {
            return Err(wrong(format!("expected one of {}", SCHEMES.join(", "))));
        }
        Ok((scheme, bucket, prefix))
    }

    /// Opens `scheme://bucket/prefix`. No request is sent yet.
    ///
    /// # Errors
    /// [`SourceError::Configuration`] if the URL or the environment is wrong.
    pub fn open(url: &str) -> Result<Self, SourceError> {
        let (scheme, bucket, prefix) = Self::check_url(url)?;
        let store = open_store(scheme, bucket)
            .map_err(|reason| SourceError::Configuration { url: url.to_owned(), reason })?;
        Ok(Self { url: url.to_owned(), store, prefix })
    }

    /// The prefix `prefix` in an open store, for example one in memory.
    pub fn of(url: String, store: Arc<dyn ObjectStore>, prefix: Path) -> Self {
        Self { url, store, prefix }
    }

    fn failed(&self, what: &Path, error: &object_store::Error) -> RepositoryError {
        let (url, what, reason) = (self.url.clone(), what.to_string(), error.to_string());
        RepositoryError::Store { url, what, reason }
    }

    /// Stores a version with the bytes of a file.
    ///
    /// The properties are written before the bytes, and the bytes appear at once, so readers see
    /// all of the version or none of it. Storing an identical version again changes nothing.
    /// Calling it again completes an interrupted put.
    ///
    /// # Errors
    /// [`RepositoryError::Key`] for a reserved metadata key, [`RepositoryError::Taken`] if another
    /// version has the id, [`RepositoryError::Io`] if the file cannot be read, and
    /// [`RepositoryError::Store`] if the store refuses a request.
    pub async fn put_file(
        &self,
        version: &NewVersion,
        file: &LocalPath,
    ) -> Result<Stored, RepositoryError> {
        self.put_described(version, &UploadFacts::default(), file).await
    }

    /// Like [`put_file`](Self::put_file), with the facts about an upload.
    pub(super) async fn put_described(
        &self,
        version: &NewVersion,
        facts: &UploadFacts,
        file: &LocalPath,
    ) -> Result<Stored, RepositoryError> {
        let (stored, added) = self.put_with(version, facts, file).await?;
        if let Some(added) = added {
            self.note_change(added).await;
        }
        Ok(stored)
    }

    async fn has_index(&self) -> bool {
        StoreIndex::new(Arc::clone(&self.store), &self.prefix).is_there().await
    }

    /// Adds versions to the index.
    pub(in crate::source) async fn add_to_index(&self, versions: Vec<IndexedVersion>) {
        let row = |IndexedVersion { info, stamp, details }| {
            let path: Arc<str> = info.path.as_str().into();
            IndexRow { details: Some(details), ..row_of(&path, info, stamp, 0) }
        };
        let rows: Vec<IndexRow> = versions.into_iter().map(row).collect();
        let writer = StoreIndexWriter::new(&*self.store, &self.prefix);
        if let Err(error) = writer.append(rows).await {
            // The store is complete without it: the index is only a shortcut.
            let url = &self.url;
            tracing::warn!(%url, %error, "the index was not appended; iovcache index makes it anew");
        }
    }

    /// Adds a new, changed or deleted version to the index, if there is one, so that other services
    /// list its folder again.
    pub(super) async fn note_change(&self, version: IndexedVersion) {
        if self.has_index().await {
            self.add_to_index(vec![version]).await;
        }
    }

    /// Like [`put_file`](Self::put_file), without adding to the index. Returns what is to be added;
    /// `None` if the version was there already.
    pub(in crate::source) async fn put_unindexed(
        &self,
        version: &NewVersion,
        file: &LocalPath,
    ) -> Result<Option<IndexedVersion>, RepositoryError> {
        let (_, added) = self.put_with(version, &UploadFacts::default(), file).await?;
        Ok(added)
    }

    async fn put_with(
        &self,
        version: &NewVersion,
        facts: &UploadFacts,
        file: &LocalPath,
    ) -> Result<(Stored, Option<IndexedVersion>), RepositoryError> {
        version.check_keys()?;
        let io = |error| RepositoryError::Io { path: file.to_owned(), error };
        let mut opened = tokio::fs::File::open(file).await.map_err(io)?;
        let mut piece = vec![0; PIECE_BYTES];
        let (mut digest, mut size_bytes) = (Md5::new(), 0);
        loop {
            let count = opened.read(&mut piece).await.map_err(io)?;
            if count == 0 {
                break;
            }
            digest.update(&piece[..count]);
            size_bytes += count as u64;
        }
        let md5 = Md5Sum(digest.finalize().into());
        let info = version.info(size_bytes, md5);
        let folder = info.path.as_str().split('/').fold(self.prefix.clone(), Path::join);
        let folder = folder.join(info.validity.from().to_string());
        let blob = folder.clone().join(info.id.to_string());
        let beside = folder.join(format!("{}{PROPERTIES}", info.id));
        if let Some(there) = self.there(&info, &blob, &beside).await? {
            return compared(there, info).map(|stored| (stored, None));
        }
        let properties = version.properties(&info, md5, facts);
        let details = entry::details(&properties);
        let properties = properties.to_bytes();
        let properties_bytes = properties.len() as u64;
        let stored = self.store.put(&beside, properties.into()).await;
        let beside_tag = stored.map_err(|error| self.failed(&beside, &error))?.e_tag;
        crash_point("store-properties-put");
        let blob_tag = self.upload(&blob, file, size_bytes).await?;
        crash_point("store-bytes-put");
        let stamp = store_stamp(
            (blob_tag.as_deref(), size_bytes),
            (beside_tag.as_deref(), properties_bytes),
        );
        let added = IndexedVersion { info: info.clone(), stamp, details };
        Ok((Stored { info, new: true }, Some(added)))
    }

    /// Stores the bytes of a file. They appear at once. Returns their ETag.
    async fn upload(
        &self,
        blob: &Path,
        file: &LocalPath,
        size_bytes: u64,
    ) -> Result<Option<String>, RepositoryError> {
        let io = |error| RepositoryError::Io { path: file.to_owned(), error };
        if size_bytes <= PIECE_BYTES as u64 {
            let bytes = tokio::fs::read(file).await.map_err(io)?;
            if bytes.len() as u64 != size_bytes {
                let reason = "it was changed while it was read";
                return Err(io(std::io::Error::new(std::io::ErrorKind::InvalidData, reason)));
            }
            let put = self.store.put(blob, bytes.into()).await;
            return Ok(put.map_err(|error| self.failed(blob, &error))?.e_tag);
        }
        let mut piece = vec![0; PIECE_BYTES];
        let mut writer =
            BufWriter::with_capacity(Arc::clone(&self.store), blob.clone(), PIECE_BYTES);
        let mut opened = tokio::fs::File::open(file).await.map_err(io)?;
        loop {
            let count = opened.read(&mut piece).await.map_err(io)?;
            if count == 0 {
                break;
            }
            let piece = bytes::Bytes::copy_from_slice(&piece[..count]);
            writer.put(piece).await.map_err(|error| self.failed(blob, &error))?;
        }
        let written = tokio::io::AsyncWriteExt::shutdown(&mut writer).await;
        written.map_err(|error| RepositoryError::Store {
            url: self.url.clone(),
            what: blob.to_string(),
            reason: error.to_string(),
        })?;
        let meta = self.store.head(blob).await.map_err(|error| self.failed(blob, &error))?;
        Ok(meta.e_tag.filter(|_| meta.size == size_bytes))
    }

    /// The stored version with the path, `from` and id of `wanted`.
    async fn there(
        &self,
        wanted: &ObjectInfo,
        blob: &Path,
        beside: &Path,
    ) -> Result<Option<ObjectInfo>, RepositoryError> {
        let size = if_there(self.store.head(blob).await);
        let Some(size) = size.map_err(|error| self.failed(blob, &error))? else {
            return Ok(None);
        };
        let got = async { self.store.get(beside).await?.bytes().await };
        let bytes = if_there(got.await);
        let Some(bytes) = bytes.map_err(|error| self.failed(beside, &error))? else {
            return Ok(None);
        };
        let name = wanted.id.to_string();
        let from = wanted.validity.from();
        let read = Properties::parse(&bytes).map_err(|error| error.to_string());
        if read.as_ref().is_ok_and(entry::is_deleted) {
            return Ok(None);
        }
        let read = read.and_then(|properties| {
            entry::version(&wanted.path, from, &name, size.size, &properties)
        });
        read.map(Some).map_err(|reason| RepositoryError::Store {
            url: self.url.clone(),
            what: beside.to_string(),
            reason,
        })
    }
}

fn if_there<T>(got: Result<T, object_store::Error>) -> Result<Option<T>, object_store::Error> {
    match got {
        Ok(got) => Ok(Some(got)),
        Err(object_store::Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_that_is_none_is_refused_and_secrets_in_it_are_not_repeated() {
        for url in ["s3://", "s3:///prefix", "ftp://host/x"] {
            assert!(matches!(Bucket::open(url), Err(SourceError::Configuration { .. })), "{url}");
        }
        let error = Bucket::open("s3://key:secret@bucket/prefix").unwrap_err();
        assert!(!error.to_string().contains("secret"), "{error}");
        assert!(error.to_string().contains("environment"), "{error}");
    }
}
