//! The state of the CCDB side: its cache, and its options.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use super::config::Answering;
use super::request::CcdbRequest;
use crate::budget::ClientBudget;
use crate::cache::Cache;
use crate::interval::Timestamp;
use crate::object::CreationLimits;
use crate::server::auth::Access;

/// Longest wait of a client for the source and for memory.
pub(super) const MAX_WAIT: Duration = Duration::from_secs(60);
/// Maximum number of listings at one time that are sent while they are read.
const LONG_LISTINGS: usize = 4;
/// Maximum number of texts of listings that are written at one time.
const LISTING_WRITERS: usize = 2;

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
    /// Account for the memory of listings.
    pub(super) budget: ClientBudget,
    pub(super) long_listings: Arc<Semaphore>,
    pub(super) listing_writers: Arc<Semaphore>,
}

impl Front {
    pub(in crate::server) fn new(cache: Cache, answering: Answering, writes: Writes) -> Self {
        let budget = cache.client_budget("the CCDB side");
        let places = |count| Arc::new(Semaphore::new(count));
        let (long_listings, listing_writers) = (places(LONG_LISTINGS), places(LISTING_WRITERS));
        Self { cache, answering, writes, budget, long_listings, listing_writers }
    }
}

/// The limits on creation times that a request sets.
pub(super) fn limits(request: &CcdbRequest) -> CreationLimits {
    CreationLimits {
        not_before: request.if_not_before.map(Timestamp::from_millis),
        not_after: request.if_not_after.map(Timestamp::from_millis),
    }
}
