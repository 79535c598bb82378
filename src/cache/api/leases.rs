//! Leases by id and by ticket, and access to sessions.

use std::time::Duration;

use super::handle::Cache;
use crate::budget::ClientBudget;
use crate::cache::error::CacheError;
use crate::cache::holders::lease::LeaseId;
use crate::cache::holders::lease_terms::{LeaseOwner, LeaseTerms, charge_lease};
use crate::cache::holders::origin::Origin;

impl Cache {
    /// Ends a lease; false if there was none.
    pub fn release(&self, lease: &LeaseId) -> bool {
        self.0.leases.end(lease)
    }

    /// Ends all leases that were opened under a ticket, and returns their number.
    pub fn release_ticket(&self, ticket: &[u8]) -> usize {
        self.release_ticket_of(ticket, &Origin::Embedded, None)
    }

    /// Ends the leases that were opened under a ticket and belong to the client: those opened over
    /// this connection, and those of its sessions. Returns their number.
    pub fn release_ticket_of(
        &self,
        ticket: &[u8],
        origin: &Origin,
        connection: Option<u64>,
    ) -> usize {
        let leases = self.0.leases.of_ticket_and_client(ticket, origin, connection);
        leases.iter().filter(|lease| self.0.leases.end(lease)).count()
    }

    /// Renews a lease. Returns its new duration, or `None` if it does not expire.
    ///
    /// # Errors
    /// [`CacheError::LeaseEnded`].
    pub fn renew(&self, lease: &LeaseId) -> Result<Option<Duration>, CacheError> {
        self.0.leases.renew(lease)
    }

    /// Renews all leases that were opened under a ticket.
    ///
    /// # Errors
    /// [`CacheError::LeaseEnded`] if there is none.
    pub fn renew_ticket(&self, ticket: &[u8]) -> Result<Option<Duration>, CacheError> {
        let leases = self.0.leases.of_ticket(ticket);
        let mut shortest = None;
        let mut renewed = 0;
        for lease in &leases {
            let Ok(time) = self.0.leases.renew(lease) else { continue };
            renewed += 1;
            shortest = match (shortest, time) {
                (Some(a), Some(b)) => Some(Duration::min(a, b)),
                (a, b) => a.or(b),
            };
        }
        match renewed {
            0 => Err(CacheError::LeaseEnded),
            _ => Ok(shortest),
        }
    }

    /// Opens a lease for a request whose table is to be fetched later, and returns its duration. It
    /// pins nothing yet. Its memory is charged to `budget`.
    ///
    /// # Errors
    /// [`CacheError::Draining`], [`CacheError::Budget`].
    pub fn open_lease(&self, budget: &ClientBudget) -> Result<(LeaseId, Duration), CacheError> {
        self.check_open()?;
        let terms =
            LeaseTerms { owner: LeaseOwner::Unnamed, timeframe: None, ticket: None, holder: None };
        let lease = self.0.leases.open(terms, Vec::new(), charge_lease(budget, 0)?)?;
        Ok((lease, self.0.leases.time_limit()))
    }

    /// Checks that a process is attached under this id, and that the client may use its session.
    ///
    /// # Errors
    /// [`CacheError::UnknownSession`].
    pub fn check_session(&self, session: &str, origin: &Origin) -> Result<(), CacheError> {
        self.0.leases.check_session(session, origin)
    }

    /// The consumer that a session belongs to, for the log.
    #[cfg(feature = "server")]
    pub(crate) fn consumer_of_session(&self, session: &str) -> Option<String> {
        self.0.leases.holder_of(session).map(|holder| holder.consumer)
    }
}
