//! Reasons why a table cannot be encoded.

use crate::error::{Code, Coded, ErrorKind};
use crate::object::ObjectPath;

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
        /// Its path.
        path: ObjectPath,
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

impl Coded for EncodeError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::TooLarge { .. } => ErrorKind::ResourceExhausted,
            Self::Unmanaged { .. } => ErrorKind::InvalidArgument,
            Self::LeaseEnded => ErrorKind::FailedPrecondition,
            Self::Arrow { .. } => ErrorKind::Internal,
        }
    }

    fn code(&self) -> Code {
        Code(match self {
            Self::TooLarge { .. } => 1020,
            Self::Unmanaged { .. } => 1021,
            Self::LeaseEnded => 5003,
            Self::Arrow { .. } => 9010,
        })
    }
}
