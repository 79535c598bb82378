//! Changes at a source: what CCDB's POST, PUT, DELETE and truncate do.

use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;

use bytes::Bytes;
use futures::Stream;

use crate::interval::Timestamp;
use crate::object::{CreationLimits, ObjectId, ObjectInfo, ObjectPath};

/// The bytes of an upload, as they come.
pub type UploadBytes = Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>;

/// What is to be changed.
#[derive(Debug, Clone)]
pub struct Change {
    /// Under which path.
    pub path: ObjectPath,
    /// The beginning of an upload; else the time at which the version is valid that is meant.
    pub at: Timestamp,
    /// The end of an upload (default: one millisecond after its beginning), or a new end.
    pub until: Option<Timestamp>,
    /// The id of an upload, or of the version that is meant.
    pub id: Option<ObjectId>,
    /// The metadata of an upload, or those that the version that is meant has.
    pub metadata: BTreeMap<String, String>,
    /// Limits on the creation time of the version that is meant.
    pub limits: CreationLimits,
    /// What is done.
    pub kind: ChangeKind,
}

/// What is done to a version.
#[derive(Debug, Clone)]
pub enum ChangeKind {
    /// A new version.
    Upload {
        /// The name of the file.
        file_name: String,
        /// Its media type.
        content_type: String,
    },
    /// Other metadata, or another end of validity; a key with an empty value is removed.
    Update {
        /// Metadata by key.
        set: Vec<(String, String)>,
    },
    /// The version that a look-up would find goes.
    Delete,
    /// Every version of the path goes.
    Truncate,
}

/// What came of a change.
#[derive(Debug, Clone)]
pub enum Changed {
    /// The version is there.
    Created(Box<ObjectInfo>),
    /// The version was changed.
    Updated(Box<ObjectInfo>),
    /// It is as it was before.
    Unchanged,
    /// This many versions are gone.
    Deleted(u64),
    /// There is no such version.
    NotFound,
}

/// Who takes changes of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WriteTarget {
    /// Nobody.
    ReadOnly,
    /// The source itself, by [`Source::change`](super::Source::change); where it is a CCDB, that
    /// can be asked at this address as well.
    Source {
        /// Its URL without credentials, and the path there.
        ccdb: Option<(String, ObjectPath)>,
    },
}
