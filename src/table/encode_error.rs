//! Reasons why a table cannot be encoded.

use crate::error::coded;

/// Why a table cannot be encoded as requested.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// The objects are too large to be cells.
    #[error(
        "column {column:?} ({path}) has {bytes} bytes of payload where {limit_bytes} are possible: \
         read large objects with \"view\": \"chunks\", or through shared memory"
    )]
    TooLarge {
        /// The column.
        column: String,
        /// Its path, or its paths by range.
        path: String,
        /// Bytes of payload in the column.
        bytes: u64,
        /// The limit in bytes.
        limit_bytes: u64,
    },
    /// The cell `o2` names a managed segment, but the objects lie in a region.
    #[error("the cell o2 needs managed segments, the objects lie in region {region}")]
    Unmanaged {
        /// Id of the region.
        region: u16,
    },
    /// The lease of the table ended while the table was being sent: its objects may have been
    /// evicted.
    #[error(
        "the lease of the table has ended before all of it was read: released, revoked, or its time \
         ran out"
    )]
    LeaseEnded,
    /// A bug in the encoder.
    #[error("the table cannot be encoded: {reason}")]
    Arrow {
        /// The error of Arrow.
        reason: String,
    },
}

coded! { EncodeError {
    TooLarge => ResourceExhausted 1020,
    Unmanaged => InvalidArgument 1021,
    LeaseEnded => FailedPrecondition 5003,
    Arrow => Internal 9010,
} }
