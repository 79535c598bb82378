//! The reasons why a pool cannot reserve memory.

use std::io;

use super::host::HostError;
use crate::error::coded;

/// Why memory cannot be reserved.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PoolError {
    /// There is no room now; it may be freed later.
    #[error(
        "no room for {needed_bytes} bytes: {free_bytes} are free, {largest_free_bytes} in one piece"
    )]
    NoRoom {
        /// Bytes needed.
        needed_bytes: u64,
        /// Bytes free in total.
        free_bytes: u64,
        /// Bytes free in one piece.
        largest_free_bytes: u64,
    },
    /// It can never fit.
    #[error("{needed_bytes} bytes can never fit: at most {limit_bytes} do, headers included")]
    NeverFits {
        /// Bytes needed.
        needed_bytes: u64,
        /// Bytes in total.
        limit_bytes: u64,
    },
    /// The names of segments cannot be used, or there is no random epoch.
    #[error("the backing of the segments cannot be used")]
    Backing(#[source] io::Error),
    /// The host's allocator returned an unusable buffer.
    #[error("the host's memory cannot be used")]
    Host(#[source] HostError),
    /// The system does not provide a segment.
    #[error("the system provides no segment of {bytes} bytes")]
    Segment {
        /// Bytes requested.
        bytes: u64,
        /// The error of the system.
        #[source]
        error: io::Error,
    },
}

coded! { PoolError {
    NoRoom => Unavailable 4001,
    NeverFits => ResourceExhausted 4002,
    Segment { error, .. } => (match error.kind() {
        // Another process has a file of that name.
        io::ErrorKind::AlreadyExists => ErrorKind::AlreadyExists,
        io::ErrorKind::PermissionDenied => ErrorKind::PermissionDenied,
        _ => ErrorKind::Unavailable,
    }) 4003,
    Backing(error) => (match error.kind() {
        io::ErrorKind::ResourceBusy | io::ErrorKind::AlreadyExists => ErrorKind::AlreadyExists,
        io::ErrorKind::PermissionDenied => ErrorKind::PermissionDenied,
        io::ErrorKind::InvalidInput => ErrorKind::InvalidArgument,
        _ => ErrorKind::Unavailable,
    }) 4004,
    Host(error) => error,
} }
