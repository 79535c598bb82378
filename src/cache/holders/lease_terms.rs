//! The terms under which a lease is opened: its owner, its holder, and its charges.

use std::sync::Arc;

use crate::budget::{Charge, ClientBudget};
use crate::cache::error::CacheError;
use crate::cache::holders::origin::Account;
use crate::cache::memory::object::Pin;

/// The owner of a lease, which decides when it ends by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LeaseOwner {
    /// A process on the node: ends with its attach socket.
    Session(String),
    /// A consumer of a timeframe: ends when the consumer has consumed it.
    Consumer,
    /// An exchange: ends with the stream.
    Stream,
    /// A client without a name: ends when its time runs out.
    Unnamed,
}

/// The holder that pays for pins with its quota: the consumer name that the client gives, and its
/// proven account, so that no other client can use up the quota by naming it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct HolderName {
    pub(crate) consumer: String,
    pub(crate) account: Account,
}

/// The consumer that holds the pins of a lease, for its quota.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LeaseHolder {
    pub(crate) name: HolderName,
    /// The timeframe that it reads, registered or of a stream.
    pub(crate) timeframe: Option<u64>,
}

/// Memory of an open lease: itself, and its entries in the maps.
const LEASE_BYTES: u64 = 1 << 10;

/// Charges the memory of a lease, and of `pins` pins that it does not share with a timeframe.
///
/// # Errors
/// [`CacheError::Budget`].
pub(crate) fn charge_lease(budget: &ClientBudget, pins: usize) -> Result<Charge, CacheError> {
    Ok(budget.charge(LEASE_BYTES + (pins * size_of::<Pin>()) as u64, "leases")?)
}

/// The terms under which a lease is opened.
#[derive(Debug, Clone)]
pub(crate) struct LeaseTerms {
    pub(crate) owner: LeaseOwner,
    /// The timeframe and the consumer that reads it.
    pub(crate) timeframe: Option<(u64, String)>,
    /// The ticket that names it for the client, and the connection of the ticket.
    pub(crate) ticket: Option<(Arc<[u8]>, Option<u64>)>,
    pub(crate) holder: Option<LeaseHolder>,
}
