//! The state of the CCDB side: its cache, and its options.

use std::time::Duration;

use super::config::Answering;
use super::request::CcdbRequest;
use crate::cache::Cache;
use crate::interval::Timestamp;
use crate::object::CreationLimits;
use crate::server::auth::Access;

/// Longest wait of a client for the source and for memory.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
/// Whether the CCDB side accepts changes, and from which clients.
#[derive(Debug, Clone)]
pub(in crate::server) struct Writes {
    pub(in crate::server) enabled: bool,
    pub(in crate::server) access: Access,
}

/// The CCDB side of a cache.
#[derive(Debug, Clone)]
pub(in crate::server) struct Front {
    pub(super) cache: Cache,
    pub(super) answering: Answering,
    pub(super) writes: Writes,
}

impl Front {
    pub(in crate::server) fn new(cache: Cache, answering: Answering, writes: Writes) -> Self {
        Self { cache, answering, writes }
    }
}

/// The limits on creation times that a request sets.
pub(super) fn limits(request: &CcdbRequest) -> CreationLimits {
    CreationLimits {
        not_before: request.if_not_before.map(Timestamp::from_millis),
        not_after: request.if_not_after.map(Timestamp::from_millis),
    }
}
