//! Puts versions into a repository folder: what is put, and what comes of it.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::beneath::Root;
use super::entry::{
    CONTENT_MD5, CONTENT_TYPE, CREATE_TIME, FILE_NAME, FILE_SIZE, INITIAL_VALIDITY, LAST_MODIFIED,
    VALID_UNTIL, is_system_key,
};
use super::properties::Properties;
use crate::error::{coded, kind_of_file};
use crate::interval::{Timestamp, ValidityInterval};
use crate::object::{Md5Sum, ObjectId, ObjectInfo, ObjectPath};
use crate::sync::Mutex;

/// A version that is to be put.
#[derive(Debug, Clone)]
pub struct NewVersion {
    /// Under which path.
    pub path: ObjectPath,
    /// When it holds.
    pub validity: ValidityInterval,
    /// When it was created.
    pub created: Timestamp,
    /// Its id; what is no UUID is kept as metadata `source_id`, and the id derived.
    pub id: Option<String>,
    /// The name of the file that it came from.
    pub file_name: String,
    /// What its maker says of it.
    pub metadata: BTreeMap<String, String>,
}

/// What came of a put.
#[derive(Debug, Clone)]
pub struct Stored {
    /// The version.
    pub info: ObjectInfo,
    /// Whether it is new; if not, the very same was there already.
    pub new: bool,
}

/// Why a version was not put.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RepositoryError {
    /// Something could not be read or written.
    #[error("{path}")]
    Io {
        /// Which file or folder.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// An object store did not take something, or did not say what it has.
    #[error("{url}: {what}: {reason}")]
    Store {
        /// The repository, without credentials.
        url: String,
        /// The object in the store.
        what: String,
        /// Why.
        reason: String,
    },
    /// The id is taken by another version.
    #[error("{path} has a version {id} already, with another {difference}")]
    Taken {
        /// The path.
        path: ObjectPath,
        /// The id.
        id: ObjectId,
        /// What differs.
        difference: &'static str,
    },
    /// A key of the metadata is one that the repository needs itself.
    #[error("metadata {key:?}: a key has at least one character and none of {reserved}")]
    Key {
        /// Which.
        key: String,
        /// Those that are not free.
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
    /// With the name of the file whose bytes could not be read, which the copy does not know.
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
    /// The version as it will be found: with these bytes.
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
        ObjectInfo { path, id, validity, created, size_bytes, md5, metadata }
    }

    /// What stands beside the bytes of `info`.
    pub(super) fn properties(&self, info: &ObjectInfo, md5: Md5Sum) -> Properties {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let until = info.validity.until().to_string();
        let own = [
            (INITIAL_VALIDITY, until.clone()),
            (FILE_NAME, self.file_name.clone()),
            (CREATE_TIME, info.created.to_string()),
            (LAST_MODIFIED, now.as_millis().to_string()),
            (VALID_UNTIL, until),
            (CONTENT_TYPE, "application/octet-stream".to_owned()),
            (FILE_SIZE, info.size_bytes.unwrap_or(0).to_string()),
            (CONTENT_MD5, md5.to_string()),
        ];
        let own = own.into_iter().map(|(key, value)| (key.to_owned(), value));
        own.chain(info.metadata.clone()).collect()
    }

    /// # Errors
    /// [`RepositoryError::Key`] if a key of the metadata is one that the repository needs itself.
    pub(super) fn check_keys(&self) -> Result<(), RepositoryError> {
        const RESERVED: &str = "those that CCDB itself writes";
        let reserved = |key: &&String| key.is_empty() || is_system_key(key);
        match self.metadata.keys().find(reserved) {
            Some(key) => Err(RepositoryError::Key { key: key.clone(), reserved: RESERVED }),
            None => Ok(()),
        }
    }
}

/// What comes of a put where `there` stands already: the very same, or one that has the id.
///
/// # Errors
/// [`RepositoryError::Taken`].
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

/// When what was put is on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// Each version is synced before the next is begun.
    #[default]
    Each,
    /// All versions of a batch are synced together, before any of them is acknowledged.
    Batch,
}

/// By path: the `from` of each id.
pub(super) type KnownIds = HashMap<ObjectPath, HashMap<ObjectId, i64>>;

/// Puts versions into a local folder.
#[derive(Debug, Clone)]
pub struct RepositoryWriter {
    pub(super) root: Root,
    pub(super) durability: Durability,
    /// Ids that are taken, of paths where versions with ids of their own were put.
    pub(super) ids: Arc<Mutex<KnownIds>>,
}

pub(super) fn failed(path: &Path) -> impl FnOnce(io::Error) -> RepositoryError {
    let path = path.to_owned();
    move |error| RepositoryError::Io { path, error }
}

impl RepositoryWriter {
    /// For the folder `root`, which is made if it is not there.
    ///
    /// # Errors
    /// [`RepositoryError::Io`].
    pub fn new(root: impl Into<PathBuf>) -> Result<Self, RepositoryError> {
        let root = root.into();
        std::fs::create_dir_all(&root).map_err(failed(&root))?;
        let root = Root::open(&root).map_err(failed(&root))?;
        Ok(Self { root, durability: Durability::Each, ids: Arc::default() })
    }

    /// With another durability. Default: [`Durability::Each`].
    #[must_use]
    pub fn with_durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        self.root.path()
    }
}
