//! Changes of a repository in a local folder: the operations of CCDB's POST, PUT, DELETE and
//! truncate.
//!
//! They change the two files of a version in the same way as CCDB's file-backed server, so each
//! can change versions stored by the other.

use std::fs;
use std::io::{self, Read, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{Buf as _, Bytes};
use futures::StreamExt as _;
use tokio::runtime::Handle;

use super::entry::{self, LAST_MODIFIED, PROPERTIES, VALID_UNTIL, is_system_key, names};
use super::properties::Properties;
use super::writer::{NewVersion, RepositoryWriter, UploadFacts};
use crate::error::{Coded as _, ErrorKind};
use crate::interval::{EmptyInterval, Timestamp, ValidityInterval};
use crate::object::{ObjectInfo, Query};
use crate::source::{
    Change, ChangeKind, Changed, Details, NewestVersions, SourceError, UploadBytes,
};

/// Stores an upload in the repository at `root`.
///
/// # Errors
/// [`SourceError`]. In that case no version is stored.
pub(super) async fn upload(
    root: PathBuf,
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
    let runtime = Handle::current();
    let stored = tokio::task::spawn_blocking(move || {
        let writer = RepositoryWriter::new(&root)?;
        let mut reader = StreamedRead { runtime, bytes, piece: Bytes::new() };
        writer.put_described(&version, &facts, &mut reader)
    });
    match stored.await {
        Ok(Ok(stored)) => Ok(Changed::Created(Box::new(stored.info))),
        Ok(Err(error)) => Err(failed(error.kind(), chain(&error))),
        Err(_) => Err(failed(ErrorKind::Internal, "storing it failed".to_owned())),
    }
}

/// The version that an upload describes; `None` for other changes.
///
/// # Errors
/// If its interval is empty.
pub(super) fn new_version(
    change: &Change,
) -> Result<Option<(NewVersion, UploadFacts)>, EmptyInterval> {
    let ChangeKind::Upload { file_name, content_type, uploaded_from } = &change.kind else {
        return Ok(None);
    };
    let facts = UploadFacts {
        content_type: Some(content_type.clone()),
        uploaded_from: uploaded_from.clone(),
    };
    let until = change.until.unwrap_or(change.at);
    let validity = ValidityInterval::new(change.at, until)?;
    let version = NewVersion {
        path: change.path.clone(),
        validity,
        created: now(),
        id: change.id.map(|id| id.to_string()),
        file_name: file_name.clone(),
        metadata: change.metadata.clone(),
    };
    Ok(Some((version, facts)))
}

/// Changes or deletes versions in the repository at `root`. `versions` are all versions of the
/// path.
///
/// # Errors
/// [`SourceError`].
pub(super) async fn apply(
    root: PathBuf,
    url: &str,
    change: &Change,
    versions: Vec<Arc<ObjectInfo>>,
) -> Result<Changed, SourceError> {
    let what = format!("a change of {}", change.path);
    let failed = |kind, reason| SourceError::of_change(kind, url, &what, reason);
    let change = change.clone();
    let work = move || -> Result<Changed, UpdateError> {
        match &change.kind {
            ChangeKind::Upload { .. } => Ok(Changed::Unchanged),
            ChangeKind::Truncate { at, newest } => {
                let meant = truncated(&change, *at, *newest, &versions);
                meant.iter().try_for_each(|version| remove(&root, version))?;
                Ok(Changed::Deleted(meant.len() as u64))
            }
            ChangeKind::Delete => match meant(&change, &versions) {
                Some(version) => Ok(remove(&root, version).map(|()| Changed::Deleted(1))?),
                None => Ok(Changed::NotFound),
            },
            ChangeKind::Update { set: wanted } => match meant(&change, &versions) {
                Some(version) => update(&root, version, change.until, wanted),
                None => Ok(Changed::NotFound),
            },
        }
    };
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(changed)) => Ok(changed),
        Ok(Err(UpdateError::Interval(error))) => Err(failed(error.kind(), error.to_string())),
        Ok(Err(UpdateError::Io(error))) => Err(failed(ErrorKind::Internal, error.to_string())),
        Err(_) => Err(failed(ErrorKind::Internal, "changing it failed".to_owned())),
    }
}

/// Why a version was not changed.
#[derive(Debug, thiserror::Error)]
enum UpdateError {
    #[error(transparent)]
    Interval(#[from] EmptyInterval),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Facts about the upload of a version, from its properties.
pub(super) fn details(root: &Path, version: &ObjectInfo) -> Details {
    match read(&properties_of(&blob_of(root, version))) {
        Ok(properties) => entry::details(&properties),
        Err(_) => Details::default(),
    }
}

/// Whether `version` matches the conditions of `change`, whatever the time.
fn is_meant(change: &Change, version: &ObjectInfo) -> bool {
    let query = Query {
        path: change.path.clone(),
        metadata: change.metadata.clone(),
        limits: change.limits,
    };
    query.matches(version) && change.id.is_none_or(|id| id == version.id)
}

/// The matching version that a look-up would find.
pub(super) fn meant<'a>(
    change: &Change,
    versions: &'a [Arc<ObjectInfo>],
) -> Option<&'a ObjectInfo> {
    let found = versions
        .iter()
        .filter(|version| version.validity.contains(change.at) && is_meant(change, version))
        .max_by_key(|version| version.rank());
    found.map(|version| &**version)
}

/// The versions that a truncation deletes: those valid at `at` that match, and of them the `newest`
/// ones that were created last.
pub(super) fn truncated<'a>(
    change: &Change,
    at: Option<Timestamp>,
    newest: Option<usize>,
    versions: &'a [Arc<ObjectInfo>],
) -> Vec<&'a ObjectInfo> {
    let mut meant = NewestVersions::new(newest.unwrap_or(usize::MAX));
    for version in versions {
        if at.is_none_or(|at| version.validity.contains(at)) && is_meant(change, version) {
            meant.add(version.rank(), &**version);
        }
    }
    meant.into_versions()
}

/// An update of a version: its new description, and the properties that change. An empty value
/// removes a property.
pub(super) struct VersionUpdate {
    pub(super) version: ObjectInfo,
    pub(super) properties: Vec<(String, String)>,
}

/// The update that sets the end of validity and metadata; `None` if that changes nothing.
///
/// # Errors
/// If the interval would be empty.
pub(super) fn update_of(
    version: &ObjectInfo,
    until: Option<Timestamp>,
    wanted: &[(String, String)],
) -> Result<Option<VersionUpdate>, EmptyInterval> {
    let mut properties: Vec<(String, String)> =
        wanted.iter().filter(|(key, _)| !key.is_empty() && !is_system_key(key)).cloned().collect();
    let mut changed = version.clone();
    if let Some(until) = until {
        changed.validity = ValidityInterval::new(version.validity.from(), until)?;
        properties.push((VALID_UNTIL.to_owned(), until.to_string()));
    }
    let mut metadata = version.metadata.to_map();
    for (key, value) in wanted.iter().filter(|(key, _)| !is_system_key(key)) {
        match value.trim() {
            "" => drop(metadata.remove(key)),
            _ => drop(metadata.insert(key.clone(), value.clone())),
        }
    }
    changed.metadata = metadata.into();
    Ok((changed != *version).then_some(VersionUpdate { version: changed, properties }))
}

/// Properties with changes, and the time of the change.
pub(super) fn changed_properties(known: &Properties, changes: &[(String, String)]) -> Properties {
    let is_changed = |key: &str| key == LAST_MODIFIED || changes.iter().any(|(k, _)| k == key);
    let kept = known.iter().filter(|(key, _)| !is_changed(key));
    let mut all: Vec<(String, String)> =
        kept.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    all.push((LAST_MODIFIED.to_owned(), now().to_string()));
    all.extend(changes.iter().filter(|(_, value)| !value.trim().is_empty()).cloned());
    all.into_iter().collect()
}

fn update(
    root: &Path,
    version: &ObjectInfo,
    until: Option<Timestamp>,
    wanted: &[(String, String)],
) -> Result<Changed, UpdateError> {
    let Some(updated) = update_of(version, until, wanted)? else {
        return Ok(Changed::Unchanged);
    };
    set(root, version, &updated.properties)?;
    if let Some(until) = until.and_then(|until| u64::try_from(until.as_millis()).ok())
        && let Some(time) = UNIX_EPOCH.checked_add(Duration::from_millis(until))
    {
        // CCDB's server also stores the end of validity as the modification time of the blob. An
        // error is ignored: the properties hold it in any case.
        let blob = blob_of(root, version);
        let _ = fs::File::options().write(true).open(blob).and_then(|file| file.set_modified(time));
    }
    Ok(Changed::Updated(Box::new(updated.version)))
}

/// Sets properties of a version; an empty value removes its property. The change is atomic for
/// readers.
fn set(root: &Path, version: &ObjectInfo, changes: &[(String, String)]) -> io::Result<()> {
    let place = properties_of(&blob_of(root, version));
    let properties = changed_properties(&read(&place)?, changes);
    let folder = place.parent().unwrap_or(root);
    let part = folder.join(format!(".{}.part", uuid::Uuid::new_v4().simple()));
    let written = (|| {
        let mut file = fs::File::create_new(&part)?;
        file.write_all(&properties.to_bytes())?;
        file.sync_all()?;
        fs::rename(&part, &place)?;
        fs::File::open(folder)?.sync_all()
    })();
    written.inspect_err(|_| drop(fs::remove_file(&part)))
}

/// Removes the bytes first: properties without bytes are no version.
fn remove(root: &Path, version: &ObjectInfo) -> io::Result<()> {
    let blob = blob_of(root, version);
    fs::remove_file(&blob)?;
    let properties = properties_of(&blob);
    match fs::remove_file(&properties) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    if let Some(folder) = blob.parent() {
        // Fails, as intended, if the folder is not empty.
        let _ = fs::remove_dir(folder);
    }
    Ok(())
}

/// The file with the bytes of a version, under the name that it has.
fn blob_of(root: &Path, version: &ObjectInfo) -> PathBuf {
    let folder = root.join(version.path.as_str()).join(version.validity.from().to_string());
    let mut places = names(version.id, &version.metadata).map(|name| folder.join(name));
    let found = places.find(|place| fs::symlink_metadata(place).is_ok());
    found.unwrap_or_else(|| folder.join(version.id.to_string()))
}

fn properties_of(blob: &Path) -> PathBuf {
    let mut name = blob.as_os_str().to_owned();
    name.push(PROPERTIES);
    name.into()
}

fn read(file: &Path) -> io::Result<Properties> {
    let bytes = fs::read(file)?;
    Properties::parse(&bytes)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))
}

pub(super) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_millis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// Text of an error with its causes.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Blocking reader of the bytes of an upload.
struct StreamedRead {
    runtime: Handle,
    bytes: UploadBytes,
    piece: Bytes,
}

impl Read for StreamedRead {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.runtime.block_on(self.bytes.next()) {
                None => return Ok(0),
                Some(piece) => self.piece = piece?,
            }
        }
        let count = self.piece.len().min(buffer.len());
        self.piece.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::object::ObjectPath;

    #[test]
    fn a_version_is_changed_and_removed_under_each_name_that_its_file_can_have() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let [from, until, later] = [10, 20, 30].map(Timestamp::from_millis);
        let put = |id: Option<&str>| {
            let version = NewVersion {
                path: ObjectPath::new("A/B").unwrap(),
                validity: ValidityInterval::new(from, until).unwrap(),
                created: from,
                id: id.map(str::to_owned),
                file_name: String::new(),
                metadata: BTreeMap::new(),
            };
            RepositoryWriter::new(root).unwrap().put(&version, &mut &b"bytes"[..]).unwrap().info
        };
        let rename = |version: &ObjectInfo, name: &str| {
            let blob = blob_of(root, version);
            fs::rename(properties_of(&blob), properties_of(&blob.with_file_name(name))).unwrap();
            fs::rename(&blob, blob.with_file_name(name)).unwrap();
        };
        let derived = put(None);
        remove(root, &derived).unwrap();
        // The file of an import has the derived id as its name, that of a CCDB its own one.
        for (id, name) in [
            (Some("etag-7"), None),
            (Some("etag-7"), Some("etag-7".to_owned())),
            (None, None),
            (None, Some(derived.id.to_string().to_uppercase())),
        ] {
            let version = put(id);
            if let Some(name) = &name {
                rename(&version, name);
            }
            let changed = update(root, &version, Some(later), &[]).unwrap();
            assert!(matches!(changed, Changed::Updated(_)), "{id:?} {name:?}");
            let Changed::Updated(changed) = changed else { return };
            assert_eq!(changed.validity.until(), later);
            remove(root, &changed).unwrap();
            assert!(!root.join("A/B/10").exists(), "{id:?} {name:?}");
        }
    }
}
