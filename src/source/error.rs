//! Errors of sources and bodies.

use crate::error::coded;
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
} }
