//! Puts versions into a repository folder, so that no reader ever sees half of one.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use md5::{Digest as _, Md5};

use super::entry::{
    self, CONTENT_MD5, CONTENT_TYPE, CREATE_TIME, FILE_NAME, FILE_SIZE, INITIAL_VALIDITY,
    LAST_MODIFIED, PROPERTIES, VALID_UNTIL, is_system_key,
};
use super::properties::Properties;
use crate::error::{Code, Coded, ErrorKind};
use crate::interval::{Timestamp, ValidityInterval};
use crate::object::{Md5Sum, ObjectId, ObjectInfo, ObjectPath};

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

impl Coded for RepositoryError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Io { error, .. } => match error.kind() {
                io::ErrorKind::NotFound => ErrorKind::NotFound,
                io::ErrorKind::PermissionDenied => ErrorKind::PermissionDenied,
                _ => ErrorKind::FailedPrecondition,
            },
            Self::Store { .. } => ErrorKind::Unavailable,
            Self::Taken { .. } => ErrorKind::AlreadyExists,
            Self::Key { .. } => ErrorKind::InvalidArgument,
        }
    }

    fn code(&self) -> Code {
        Code(match self {
            Self::Io { .. } => 3020,
            Self::Taken { .. } => 3021,
            Self::Key { .. } => 3022,
            Self::Store { .. } => 3023,
        })
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

/// Puts versions into a local folder.
#[derive(Debug)]
pub struct RepositoryWriter {
    root: PathBuf,
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> RepositoryError {
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
        fs::create_dir_all(&root).map_err(failed(&root))?;
        Ok(Self { root })
    }

    /// Puts the bytes of a file.
    ///
    /// # Errors
    /// [`RepositoryError`].
    pub fn put_file(&self, version: &NewVersion, file: &Path) -> Result<Stored, RepositoryError> {
        let mut opened = File::open(file).map_err(failed(file))?;
        self.put(version, &mut opened).map_err(|error| match error {
            // That of the file, not of the copy, is of use.
            RepositoryError::Io { path, error } if path.as_os_str().is_empty() => {
                RepositoryError::Io { path: file.to_owned(), error }
            }
            other => other,
        })
    }

    /// Puts what `bytes` gives.
    ///
    /// The version is seen by readers once all of it is on the disk. Put again, the very same
    /// changes nothing.
    ///
    /// # Errors
    /// [`RepositoryError`].
    pub fn put(
        &self,
        version: &NewVersion,
        bytes: &mut dyn Read,
    ) -> Result<Stored, RepositoryError> {
        version.check_keys()?;
        let mut folder = self.root.join(version.path.as_str());
        folder.push(version.validity.from().to_string());
        fs::create_dir_all(&folder).map_err(failed(&folder))?;
        let mut blob = Part::new(&folder)?;
        let (size_bytes, md5) = blob.copy(bytes)?;
        let info = version.info(size_bytes, md5);
        if let Some(there) = self.there(&folder, &info)? {
            return compared(there, info);
        }
        let mut properties = Part::new(&folder)?;
        properties.copy(&mut &version.properties(&info, md5).to_bytes()[..])?;
        // A reader takes a blob for a version once its properties are there: so these come first.
        properties.publish(&folder.join(format!("{}{PROPERTIES}", info.id)))?;
        // CCDB's server keeps the end of validity as the time of the blob too.
        if let Ok(until) = u64::try_from(info.validity.until().as_millis())
            && let Some(time) = UNIX_EPOCH.checked_add(Duration::from_millis(until))
        {
            blob.set_time(time);
        }
        blob.publish(&folder.join(info.id.to_string()))?;
        Ok(Stored { info, new: true })
    }

    /// The version of this id that is there already: in the folder of its own interval, or of
    /// another.
    fn there(
        &self,
        folder: &Path,
        wanted: &ObjectInfo,
    ) -> Result<Option<ObjectInfo>, RepositoryError> {
        let name = wanted.id.to_string();
        let siblings = folder.parent().map(fs::read_dir).transpose().map_err(failed(folder))?;
        let siblings = siblings.into_iter().flatten().filter_map(Result::ok);
        for sibling in siblings {
            let from = sibling.file_name().to_str().and_then(|name| name.parse().ok());
            let Some(from) = from.map(Timestamp::from_millis) else { continue };
            let blob = sibling.path().join(&name);
            let Ok(facts) = fs::symlink_metadata(&blob) else { continue };
            let file = sibling.path().join(format!("{name}{PROPERTIES}"));
            let bytes = match fs::read(&file) {
                Ok(bytes) => bytes,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(failed(&file)(error)),
            };
            let read = Properties::parse(&bytes).map_err(|error| error.to_string()).and_then(
                |properties| entry::version(&wanted.path, from, &name, facts.len(), &properties),
            );
            match read {
                Ok(info) => return Ok(Some(info)),
                Err(reason) => {
                    let error = io::Error::new(io::ErrorKind::InvalidData, reason);
                    return Err(failed(&file)(error));
                }
            }
        }
        Ok(None)
    }
}

/// A file that is being written under a name that no reader looks at; dropped, it is gone.
struct Part {
    file: File,
    name: PathBuf,
    published: bool,
}

impl Part {
    fn new(folder: &Path) -> Result<Self, RepositoryError> {
        let name = folder.join(format!(".{}.part", uuid::Uuid::new_v4().simple()));
        let file = File::create_new(&name).map_err(failed(&name))?;
        Ok(Self { file, name, published: false })
    }

    fn copy(&mut self, bytes: &mut dyn Read) -> Result<(u64, Md5Sum), RepositoryError> {
        let mut digest = Md5::new();
        let mut piece = vec![0; 1 << 20];
        let mut size_bytes = 0;
        loop {
            let count = match bytes.read(&mut piece) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(failed(Path::new(""))(error)),
            };
            digest.update(&piece[..count]);
            self.file.write_all(&piece[..count]).map_err(failed(&self.name))?;
            size_bytes += count as u64;
        }
        Ok((size_bytes, Md5Sum(digest.finalize().into())))
    }

    fn set_time(&self, time: SystemTime) {
        // A file system that cannot hold this time still holds the properties.
        let _ = self.file.set_modified(time);
    }

    fn publish(mut self, name: &Path) -> Result<(), RepositoryError> {
        self.file.sync_all().map_err(failed(&self.name))?;
        fs::rename(&self.name, name).map_err(failed(name))?;
        self.published = true;
        let folder = name.parent().unwrap_or(Path::new("."));
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed(folder))
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.published {
            let _ = fs::remove_file(&self.name);
        }
    }
}
