//! Stores versions in a repository folder: input, result and errors.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::beneath::Root;
use super::entry::{
    CONTENT_MD5, CONTENT_TYPE, CREATE_TIME, FILE_NAME, FILE_SIZE, INITIAL_VALIDITY, LAST_MODIFIED,
    UPLOADED_FROM, VALID_UNTIL, is_system_key,
};
use super::properties::Properties;
use crate::error::{coded, kind_of_file};
use crate::interval::{Timestamp, ValidityInterval};
use crate::object::{Md5Sum, ObjectId, ObjectInfo, ObjectPath};
use crate::sync::Mutex;

/// A version to store.
#[derive(Debug, Clone)]
pub struct NewVersion {
    /// Path of the version.
    pub path: ObjectPath,
    /// Validity interval.
    pub validity: ValidityInterval,
    /// Creation time.
    pub created: Timestamp,
    /// Id. If it is no UUID, it is kept as metadata `source_id` and an id is derived; so is it for
    /// `None`, without that metadata.
    pub id: Option<String>,
    /// Name of the original file.
    pub file_name: String,
    /// The users' metadata.
    pub metadata: BTreeMap<String, String>,
}

/// Media type of files whose type is not known.
const ANY_BYTES: &str = "application/octet-stream";

/// Facts about an upload that are only stored.
#[derive(Debug, Clone, Default)]
pub(super) struct UploadFacts {
    pub(super) content_type: Option<String>,
    pub(super) uploaded_from: Option<String>,
}

/// Result of storing a version.
#[derive(Debug, Clone)]
pub struct Stored {
    /// Description of the stored version.
    pub info: ObjectInfo,
    /// Whether the version is new. If not, an identical one was already stored.
    pub new: bool,
}

/// Why a version was not stored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RepositoryError {
    /// A file or folder could not be read or written.
    #[error("{path}")]
    Io {
        /// Path of the file or folder.
        path: PathBuf,
        /// Error of the file system.
        #[source]
        error: io::Error,
    },
    /// An object store refused a request, or gave an unusable answer.
    #[error("{url}: {what}: {reason}")]
    Store {
        /// URL of the repository, without credentials.
        url: String,
        /// Name of the object in the store.
        what: String,
        /// Reason in words.
        reason: String,
    },
    /// Another version has the id.
    #[error("{path} has a version {id} already, with another {difference}")]
    Taken {
        /// Path of the version.
        path: ObjectPath,
        /// Id of the version.
        id: ObjectId,
        /// First field that differs.
        difference: &'static str,
    },
    /// A key of the metadata is empty, or reserved for the repository.
    #[error("metadata {key:?}: a key has at least one character and none of {reserved}")]
    Key {
        /// The key.
        key: String,
        /// Description of the reserved keys.
        reserved: &'static str,
    },
}

coded! { RepositoryError {
    Io { error, .. } => (kind_of_file(error)) 3020,
    Taken => AlreadyExists 3021,
    Key => InvalidArgument 3022,
    Store => Unavailable 3023,
} }

impl RepositoryError {
    /// Adds the name of the file that could not be read, which the copying code does not know.
    pub(super) fn of_file(self, file: &Path) -> Self {
        match self {
            Self::Io { path, error } if path.as_os_str().is_empty() => {
                Self::Io { path: file.to_owned(), error }
            }
            other => other,
        }
    }
}

impl NewVersion {
    /// Description of the version once it is stored with these bytes.
    pub(super) fn info(&self, size_bytes: u64, md5: Md5Sum) -> ObjectInfo {
        let Self { path, validity, created, id, mut metadata, .. } = self.clone();
        let derived = || ObjectId::derived(&path, validity, created, md5);
        let id = match id {
            None => derived(),
            Some(text) => ObjectId::parse(&text).unwrap_or_else(|| {
                metadata.insert("source_id".to_owned(), text);
                derived()
            }),
        };
        let (size_bytes, md5) = (Some(size_bytes), Some(md5));
        let metadata = metadata.into();
        ObjectInfo { path, id, validity, created, size_bytes, md5, metadata }
    }

    /// Whether the id is given, and not derived.
    pub(super) fn has_given_id(&self) -> bool {
        self.id.as_deref().is_some_and(|id| ObjectId::parse(id).is_some())
    }

    /// Contents of the properties file of `info`.
    pub(super) fn properties(
        &self,
        info: &ObjectInfo,
        md5: Md5Sum,
        facts: &UploadFacts,
    ) -> Properties {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let until = info.validity.until().to_string();
        let own = [
            (INITIAL_VALIDITY, until.clone()),
            (FILE_NAME, self.file_name.clone()),
            (CREATE_TIME, info.created.to_string()),
            (LAST_MODIFIED, now.as_millis().to_string()),
            (VALID_UNTIL, until),
            (CONTENT_TYPE, facts.content_type.clone().unwrap_or_else(|| ANY_BYTES.to_owned())),
            (FILE_SIZE, info.size_bytes.unwrap_or(0).to_string()),
            (CONTENT_MD5, md5.to_string()),
        ];
        let from = facts.uploaded_from.iter().map(|from| (UPLOADED_FROM, from.clone()));
        // CCDB's server shows the id in the place of a name that is not there.
        let is_told = |(key, value): &(&str, String)| *key != FILE_NAME || !value.is_empty();
        let own =
            own.into_iter().filter(is_told).chain(from).map(|(key, value)| (key.to_owned(), value));
        own.chain(info.metadata.to_map()).collect()
    }

    /// Checks the keys of the metadata.
    ///
    /// # Errors
    /// [`RepositoryError::Key`] if one is empty or reserved.
    pub(super) fn check_keys(&self) -> Result<(), RepositoryError> {
        const RESERVED: &str = "those that CCDB itself writes";
        let reserved = |key: &&String| key.is_empty() || is_system_key(key);
        match self.metadata.keys().find(reserved) {
            Some(key) => Err(RepositoryError::Key { key: key.clone(), reserved: RESERVED }),
            None => Ok(()),
        }
    }
}

/// Result of storing `wanted` where `there` has its id: unchanged if both are identical.
///
/// # Errors
/// [`RepositoryError::Taken`] if they differ.
pub(super) fn compared(there: ObjectInfo, wanted: ObjectInfo) -> Result<Stored, RepositoryError> {
    let difference = if there.md5 != wanted.md5 || there.size_bytes != wanted.size_bytes {
        "content"
    } else if there.validity != wanted.validity {
        "interval"
    } else if there.created != wanted.created {
        "creation time"
    } else if there.metadata != wanted.metadata {
        "metadata"
    } else {
        return Ok(Stored { info: there, new: false });
    };
    Err(RepositoryError::Taken { path: wanted.path, id: wanted.id, difference })
}

/// When stored versions are synced to the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// Each version is synced before the next is begun.
    #[default]
    Each,
    /// All versions of a batch are synced together, before any of them is acknowledged.
    Batch,
}

/// By path: `from` (ms) of each id.
pub(super) type KnownIds = HashMap<ObjectPath, HashMap<ObjectId, i64>>;

/// Stores versions in a repository in a local folder.
#[derive(Debug, Clone)]
pub struct RepositoryWriter {
    pub(super) root: Root,
    pub(super) durability: Durability,
    /// Known ids, for paths in which versions with given ids were stored.
    pub(super) ids: Arc<Mutex<KnownIds>>,
}

pub(super) fn failed(path: &Path) -> impl FnOnce(io::Error) -> RepositoryError {
    let path = path.to_owned();
    move |error| RepositoryError::Io { path, error }
}

impl RepositoryWriter {
    /// Opens the folder `root`, and creates it if it does not exist.
    ///
    /// # Errors
    /// [`RepositoryError::Io`] if it cannot be created or opened.
    pub fn new(root: impl Into<PathBuf>) -> Result<Self, RepositoryError> {
        let root = root.into();
        std::fs::create_dir_all(&root).map_err(failed(&root))?;
        let root = Root::open(&root).map_err(failed(&root))?;
        Ok(Self { root, durability: Durability::Each, ids: Arc::default() })
    }

    /// Sets the durability. Default: [`Durability::Each`].
    #[must_use]
    pub fn with_durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// The root folder.
    pub fn folder(&self) -> &Path {
        self.root.path()
    }
}

/// Stores a version of 10 ms with five bytes, for tests of this folder.
#[cfg(test)]
pub(super) fn put_for_test(root: &Path, path: &str, from: i64, created: i64) -> ObjectInfo {
    let [from, until, created] = [from, from + 10, created].map(Timestamp::from_millis);
    let version = NewVersion {
        path: ObjectPath::new(path).unwrap(),
        validity: ValidityInterval::new(from, until).unwrap(),
        created,
        id: None,
        file_name: String::new(),
        metadata: BTreeMap::new(),
    };
    RepositoryWriter::new(root).unwrap().put(&version, &mut &b"bytes"[..]).unwrap().info
}
