//! Results of the loads that polls for the progress of a table have started.

use std::collections::HashMap;

use crate::cache::error::CacheError;
use crate::cache::holders::lease::LeaseId;

/// The state of a load that a poll has started.
#[derive(Debug)]
pub(crate) enum Polled {
    Loading,
    Done,
    Failed(CacheError),
}

/// By lease.
pub(crate) type Polls = HashMap<LeaseId, Polled>;
