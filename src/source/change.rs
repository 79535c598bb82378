//! Changes at a source: the operations of CCDB's POST, PUT, DELETE and truncate.

use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;

use bytes::Bytes;
use futures::Stream;

use crate::interval::Timestamp;
use crate::object::{CreationLimits, ObjectId, ObjectInfo, ObjectPath};

/// The bytes of an upload, piece by piece as they arrive.
pub type UploadBytes = Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>;

/// A request to change versions of one path.
#[derive(Debug, Clone)]
pub struct Change {
    /// Path of the versions.
    pub path: ObjectPath,
    /// Upload: beginning of the interval. Update, Delete: a time at which the version is valid.
    /// Truncate has its own.
    pub at: Timestamp,
    /// Upload: end of the interval (default: one millisecond after `at`). Update: new end.
    pub until: Option<Timestamp>,
    /// Upload: id of the new version. Other kinds: only the version with this id matches.
    pub id: Option<ObjectId>,
    /// Upload: metadata of the new version. Other kinds: metadata that the version must have.
    pub metadata: BTreeMap<String, String>,
    /// Limits on the creation time of the version to change.
    pub limits: CreationLimits,
    /// Operation to perform.
    pub kind: ChangeKind,
}

/// Operation on versions of a path.
#[derive(Debug, Clone)]
pub enum ChangeKind {
    /// Stores a new version.
    Upload {
        /// Name of the uploaded file; empty: it has none.
        file_name: String,
        /// Media type of the file.
        content_type: String,
        /// Network address of the uploader. A CCDB server records that of this service instead.
        uploaded_from: Option<String>,
    },
    /// Sets metadata, and the end of the validity interval if `until` is given.
    Update {
        /// Metadata as (key, value); an empty value removes the key.
        set: Vec<(String, String)>,
    },
    /// Deletes the version that a look-up would find.
    Delete,
    /// Deletes every version of the path that matches.
    Truncate {
        /// Only versions that are valid at this time match.
        at: Option<Timestamp>,
        /// Of the versions that match, only this many are deleted: those created last.
        newest: Option<usize>,
    },
}

/// Result of a [`Change`].
#[derive(Debug, Clone)]
pub enum Changed {
    /// The version was stored.
    Created(Box<ObjectInfo>),
    /// The version was changed; its new description.
    Updated(Box<ObjectInfo>),
    /// The version already was as requested.
    Unchanged,
    /// Number of deleted versions.
    Deleted(u64),
    /// No version matches.
    NotFound,
}

/// Where changes of a path are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WriteTarget {
    /// Nowhere: the path can only be read.
    ReadOnly,
    /// Into the source itself, by [`Source::change`](super::Source::change). A CCDB server also
    /// accepts them at its own address.
    Source {
        /// URL of the CCDB server without credentials, and the path there.
        ccdb: Option<(String, ObjectPath)>,
    },
}
