//! Reasons to refuse a client.

use std::sync::Arc;

use super::role::Role;
use crate::cache::NotListed;
use crate::error::coded;
use crate::interval::Timestamp;

/// A call or a process is refused. No message reveals the presented credentials.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Denied {
    /// No credentials were presented.
    #[error(
        "this service asks for a token (`authorization: Bearer TOKEN`, or `token` on attaching)"
    )]
    NoCredentials,
    /// The token is unknown.
    #[error("the token is unknown")]
    UnknownToken,
    /// The token has expired.
    #[error("the token {name:?} has expired at {expired}")]
    Expired {
        /// The name of the token.
        name: Arc<str>,
        /// The expiry time.
        expired: Timestamp,
    },
    /// The authorization header cannot be read.
    #[error("the authorization header is not `Bearer TOKEN`")]
    Malformed,
    /// The user of a process on the node is not listed.
    #[error(transparent)]
    Peer(#[from] NotListed),
    /// The certificate is valid, but has no role.
    #[error("the certificate of {} has no role here", names.join(", "))]
    Certificate {
        /// The names in it.
        names: Vec<String>,
    },
    /// The client is identified, but its role does not permit the call.
    #[error("{name:?} has the role {has}, and {what} needs {needs}")]
    Role {
        /// The name of the client.
        name: Arc<str>,
        /// The client's role.
        has: Role,
        /// The call.
        what: String,
        /// The role needed.
        needs: Role,
    },
    /// The maximum number of concurrent calls is reached.
    #[error("{limit} calls are running, which is the limit (calls)")]
    TooManyCalls {
        /// The maximum number of concurrent calls.
        limit: usize,
    },
}

coded! { Denied {
    NoCredentials => Unauthenticated 6001,
    UnknownToken => Unauthenticated 6002,
    Expired => Unauthenticated 6003,
    Malformed => Unauthenticated 6004,
    Peer(error) => error,
    Certificate => PermissionDenied 6006,
    Role => PermissionDenied 6007,
    TooManyCalls => Unavailable 6010,
} }
