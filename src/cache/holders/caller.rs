//! The caller of a request, and its data besides the request itself.

use std::sync::Arc;
use std::time::Duration;

use crate::budget::ClientBudget;
use crate::cache::holders::lease::LeaseId;
use crate::cache::holders::origin::Origin;

/// The caller of a request: origin, connection, limits and budget.
#[derive(Debug, Clone, Default)]
pub struct Caller {
    /// The origin, as far as it is proven. Default: this process.
    pub origin: Origin,
    /// Number of the connection.
    pub connection: Option<u64>,
    /// The ticket that names the lease for later commands of the client.
    pub ticket: Option<Arc<[u8]>>,
    /// A lease opened earlier for this request.
    pub lease: Option<LeaseId>,
    /// The table belongs to a stream, which ends its lease itself.
    pub of_stream: bool,
    /// The timeframe of a table of a stream.
    pub stream_timeframe: Option<u64>,
    /// Time until the client stops waiting, if shorter than the `wait_ms` of the request.
    pub patience: Option<Duration>,
    /// The table is only prepared: it does not count as delivered to a consumer.
    pub in_advance: bool,
    /// The budget for the memory that the request takes outside the segments. Default: no limit.
    pub budget: ClientBudget,
}
