//! Errors of sources and bodies.

use crate::error::{ErrorKind, coded};
use crate::object::{ObjectId, ObjectPath};

/// Why a [`Body`](super::Body) cannot store bytes.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum BodyError {
    /// The bytes never fit.
    #[error("{size_bytes} bytes can never fit: {limit_bytes} is the limit")]
    TooLarge {
        /// Requested size.
        size_bytes: u64,
        /// Maximum size.
        limit_bytes: u64,
    },
    /// There is no room at the moment.
    #[error("no room for {size_bytes} bytes now: {reason}")]
    NoRoom {
        /// Requested size.
        size_bytes: u64,
        /// Reason in words.
        reason: String,
    },
}

/// Why a source gave no usable answer.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// The source could not be reached, did not answer in time, or answered with status 5xx.
    #[error("{url} did not answer for {what}: {reason}")]
    Down {
        /// URL of the source, without credentials.
        url: String,
        /// Requested path, version or URL.
        what: String,
        /// Description of the failure.
        reason: String,
    },
    /// The answer cannot be used: an ETag is missing, or the length or MD5 is wrong.
    #[error("{url} gave an unusable answer for {what}: {reason}")]
    Unusable {
        /// URL of the source, without credentials.
        url: String,
        /// Requested path, version or URL.
        what: String,
        /// Fault of the answer: expected and received value.
        reason: String,
    },
    /// The source has no such version, or has it no longer.
    #[error("{url} has no version {id} of {path}")]
    NoSuchVersion {
        /// URL of the source, without credentials.
        url: String,
        /// Path of the version.
        path: ObjectPath,
        /// Id of the version.
        id: ObjectId,
    },
    /// The source denies access.
    #[error("{url} does not let us read {what}: {reason}")]
    NotAllowed {
        /// URL of the source, without credentials.
        url: String,
        /// Requested path, version or URL.
        what: String,
        /// Answer of the source.
        reason: String,
    },
    /// The configuration of the source is wrong.
    #[error("source {url:?}: {reason}")]
    Configuration {
        /// URL as configured.
        url: String,
        /// The mistake, and the expected form.
        reason: String,
    },
    /// A change that the source does not accept: an end that is not after the beginning, or metadata
    /// that it reserves for itself. Nothing was changed.
    #[error("{url} refuses {what}: {reason}")]
    Refused {
        /// URL of the source, without credentials.
        url: String,
        /// The change and its path.
        what: String,
        /// The fault of the change.
        reason: String,
    },
    /// An upload has the id of another version. Nothing was stored.
    #[error("{url} does not take {what}: {reason}")]
    Exists {
        /// URL of the source, without credentials.
        url: String,
        /// The upload and its path.
        what: String,
        /// The version that has the id.
        reason: String,
    },
    /// The body cannot store the bytes.
    #[error("{what} cannot be stored")]
    Body {
        /// Path and version.
        what: String,
        /// Error of the body.
        #[source]
        error: BodyError,
    },
}

coded! { SourceError {
    Down => Unavailable 3001,
    Unusable => Unavailable 3002,
    NoSuchVersion => Unavailable 3003,
    NotAllowed => PermissionDenied 3004,
    Configuration => InvalidArgument 3005,
    Body { error, .. } => (match error {
        BodyError::TooLarge { .. } => ErrorKind::ResourceExhausted,
        BodyError::NoRoom { .. } => ErrorKind::Unavailable,
    }) 3006,
    Refused => InvalidArgument 3007,
    Exists => AlreadyExists 3008,
} }

impl SourceError {
    /// The error of a source at `url` about a change, by the kind of its cause.
    pub(crate) fn of_change(kind: ErrorKind, url: &str, what: &str, reason: String) -> Self {
        let (url, what) = (url.to_owned(), what.to_owned());
        match kind {
            ErrorKind::InvalidArgument => Self::Refused { url, what, reason },
            ErrorKind::AlreadyExists => Self::Exists { url, what, reason },
            ErrorKind::Unavailable | ErrorKind::DeadlineExceeded => {
                Self::Down { url, what, reason }
            }
            _ => Self::Unusable { url, what, reason },
        }
    }
}
