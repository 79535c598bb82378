//! Reasons why a source, or a body, does not do what it was asked for.

use crate::error::coded;
use crate::object::{ObjectId, ObjectPath};

/// Why a [`Body`](super::Body) takes no bytes.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum BodyError {
    /// It can never fit.
    #[error("{size_bytes} bytes can never fit: {limit_bytes} is the limit")]
    TooLarge {
        /// What was asked for.
        size_bytes: u64,
        /// What could be had at most.
        limit_bytes: u64,
    },
    /// There is no room now.
    #[error("no room for {size_bytes} bytes now: {reason}")]
    NoRoom {
        /// What was asked for.
        size_bytes: u64,
        /// Why.
        reason: String,
    },
}

/// Why a source did not answer.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// It could not be reached, or not in time, or said 5xx.
    #[error("{url} did not answer for {what}: {reason}")]
    Down {
        /// The source.
        url: String,
        /// The path, version or URL that was asked for.
        what: String,
        /// What happened.
        reason: String,
    },
    /// It answered something that cannot be used: no ETag, a wrong length, a wrong MD5.
    #[error("{url} gave an unusable answer for {what}: {reason}")]
    Unusable {
        /// The source.
        url: String,
        /// The path, version or URL that was asked for.
        what: String,
        /// What is wrong with it: what was expected, what was got.
        reason: String,
    },
    /// It has no such version (any more).
    #[error("{url} has no version {id} of {path}")]
    NoSuchVersion {
        /// The source.
        url: String,
        /// The path.
        path: ObjectPath,
        /// The version.
        id: ObjectId,
    },
    /// It refuses us.
    #[error("{url} does not let us read {what}: {reason}")]
    NotAllowed {
        /// The source.
        url: String,
        /// What was asked for.
        what: String,
        /// What it said.
        reason: String,
    },
    /// The configuration of the source is wrong.
    #[error("source {url:?}: {reason}")]
    Configuration {
        /// As configured.
        url: String,
        /// What is wrong, and what is expected.
        reason: String,
    },
    /// The bytes cannot be taken.
    #[error("{what} cannot be stored")]
    Body {
        /// The path and version.
        what: String,
        /// Why.
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
