//! Reasons why a table cannot be encoded.

use crate::error::coded;

/// Why a table has no such Arrow form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// Objects are too large to be cells.
    #[error(
        "column {column:?} ({path}) has {bytes} bytes of payload where {limit_bytes} are possible: \
         read large objects with \"view\": \"chunks\", or through shared memory"
    )]
    TooLarge {
        /// The column.
        column: String,
        /// Its path, or its paths by range.
        path: String,
        /// What it has.
        bytes: u64,
        /// What is possible.
        limit_bytes: u64,
    },
    /// AliceO2's cell names a managed segment, and the objects lie in a region.
    #[error("the cell o2 needs managed segments, the objects lie in region {region}")]
    Unmanaged {
        /// The region.
        region: u16,
    },
    /// The lease of the table has ended while it was being sent: what it names may be gone.
    #[error(
        "the lease of the table has ended before all of it was read: released, revoked, or its time \
         ran out"
    )]
    LeaseEnded,
    /// A bug of ours.
    #[error("the table cannot be put together: {reason}")]
    Arrow {
        /// What Arrow says.
        reason: String,
    },
}

coded! { EncodeError {
    TooLarge => ResourceExhausted 1020,
    Unmanaged => InvalidArgument 1021,
    LeaseEnded => FailedPrecondition 5003,
    Arrow => Internal 9010,
} }
