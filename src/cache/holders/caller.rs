//! The sender of a request, and what it brings beyond the request itself.

use std::sync::Arc;
use std::time::Duration;

use crate::budget::ClientBudget;
use crate::cache::holders::lease::LeaseId;
use crate::cache::holders::origin::Origin;

/// Who asks, beyond what stands in the request itself.
#[derive(Debug, Clone, Default)]
pub struct Caller {
    /// Whom the request comes from, as far as it is proven. Default: this process.
    pub origin: Origin,
    /// The number of the connection over which it came.
    pub connection: Option<u64>,
    /// The ticket under which the client can name the lease later.
    pub ticket: Option<Arc<[u8]>>,
    /// A lease that was opened for this request before.
    pub lease: Option<LeaseId>,
    /// The table is held by a stream, which ends its lease itself.
    pub of_stream: bool,
    /// The timeframe that the table of a stream is of.
    pub stream_timeframe: Option<u64>,
    /// When the client stops waiting, if that is sooner than the request's own `wait_ms`.
    pub patience: Option<Duration>,
    /// The table is to be there when it is asked for: nothing is delivered to anybody yet.
    pub in_advance: bool,
    /// The account to which the memory that the request takes beside the segments is charged.
    /// Default: without a limit.
    pub budget: ClientBudget,
}
