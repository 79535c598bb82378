//! Leases: each holds the pins of one table for a session, a consumer, a stream, or a time limit.
//!
//! ```text
//!  session (attach socket) ─┬─ lease ─ pins      until the socket hangs up, or released
//!  timeframe + consumer ────┼─ lease ─ pins      until consumed
//!  no name given ───────────┴─ lease ─ pins      until its time runs out, or released
//! ```
//!
//! A lease ends once, in [`LeaseState::end_all`], for every cause: release, hang-up, expiry, consumed,
//! shutdown. A second end finds no lease.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Weak};

use foldhash::fast::RandomState;
use uuid::Uuid;
use uuid::fmt::Simple;

use crate::budget::Charge;
use crate::cache::error::CacheError;
use crate::cache::holders::lease_terms::{HolderName, LeaseHolder, LeaseOwner};
use crate::cache::holders::origin::Origin;
use crate::cache::memory::object::{PinSet, Resident};
use crate::clock::Moment;
use crate::table::SessionStatus;

/// The id of a lease: a secret of the client that it was given to.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct LeaseId(Arc<str>);

impl LeaseId {
    pub(super) fn new() -> Self {
        let mut text = [0; Simple::LENGTH];
        Self((*Uuid::new_v4().simple().encode_lower(&mut text)).into())
    }

    /// The id as text, for messages to its owner.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for LeaseId {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl fmt::Debug for LeaseId {
    /// Does not print the id.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LeaseId")
    }
}

/// All sessions and leases, with the indexes by which they end: timeframe, ticket, consumer.
#[derive(Debug, Default)]
pub(super) struct LeaseState {
    pub(super) sessions: LeaseMap<String, Session>,
    pub(super) leases: LeaseMap<LeaseId, Lease>,
    pub(super) by_timeframe: LeaseMap<(u64, String), LeaseIds>,
    pub(super) by_ticket: LeaseMap<TicketKey, LeaseIds>,
    pub(super) by_consumer: LeaseMap<HolderName, LeaseIds>,
    /// The current sessions and streams, by the consumer name they use.
    pub(super) claims: LeaseMap<String, Vec<NameClaim>>,
    /// Number of the latest session or stream.
    pub(super) last_number: u64,
}

/// Hash of a ticket, which can be long.
pub(crate) type TicketKey = [u64; 2];

pub(super) type LeaseMap<K, V> = HashMap<K, V, RandomState>;
pub(super) type LeaseIds = HashSet<LeaseId, RandomState>;

/// Use of a consumer's name by a session or stream.
#[derive(Debug)]
pub(super) struct NameClaim {
    pub(super) number: u64,
    pub(super) origin: Origin,
}

/// The part of a session that its connection keeps.
pub(crate) struct SessionKey {
    pub(crate) id: String,
    pub(crate) consumer: String,
    pub(crate) origin: Origin,
}

/// An attached process, and the leases that end with it.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) info: SessionStatus,
    pub(super) origin: Origin,
    pub(super) leases: LeaseIds,
    /// Its process is gone: no new leases are opened for it.
    pub(super) ending: bool,
}

/// Pins with a common end: of their session, their timeframe, their ticket or their time.
#[derive(Debug)]
pub(super) struct Lease {
    pub(super) owner: LeaseOwner,
    pub(super) timeframe: Option<(u64, String)>,
    pub(super) ticket: Option<TicketKey>,
    /// The connection of the ticket.
    pub(super) connection: Option<u64>,
    pub(super) expires: Option<Moment>,
    pub(super) holder: Option<LeaseHolder>,
    /// The messages in transit under it.
    pub(super) gates: Vec<Weak<dyn OnEnd>>,
    /// The messages of long streams: these do not end with an ordinary end of the lease.
    pub(super) stream_gates: Vec<Weak<dyn OnEnd>>,
    /// When it got its first pins.
    pub(super) since: Moment,
    /// Its holder was reported as slow.
    pub(super) slow: bool,
    pub(super) pins: Vec<Arc<PinSet>>,
    /// Budget for the lease and its pins.
    pub(super) charges: Vec<Charge>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.gates.iter().filter_map(Weak::upgrade).for_each(|gate| gate.lease_ended());
    }
}

/// Callback for the end of a lease. Called without any lock.
pub(crate) trait OnEnd: fmt::Debug + Send + Sync {
    fn lease_ended(&self);
}

impl Lease {
    /// Whether it is for a table of its own, not for reading a timeframe.
    pub(super) fn is_of_a_table(&self) -> bool {
        self.timeframe.is_none() && !self.pins.is_empty()
    }
}

/// Drops the messages in transit under these leases.
pub(super) fn revoke_gates(ended: &[Lease]) {
    let gates = ended.iter().flat_map(|lease| lease.gates.iter().chain(&lease.stream_gates));
    gates.filter_map(Weak::upgrade).for_each(|gate| gate.lease_ended());
}

/// The bytes pinned by these sets, each object counted once.
pub(super) fn bytes_of<'a>(sets: impl Iterator<Item = &'a Arc<PinSet>>) -> u64 {
    let mut seen: HashSet<*const Resident, RandomState> = HashSet::default();
    let pins = sets.flat_map(|set| set.pins());
    let distinct = pins.filter(|pin| seen.insert(Arc::as_ptr(pin.resident())));
    distinct.map(|pin| pin.charged_bytes()).sum()
}

impl LeaseState {
    pub(super) fn claim(&mut self, consumer: &str, origin: Origin) -> u64 {
        self.last_number += 1;
        let number = self.last_number;
        self.claims.entry(consumer.to_owned()).or_default().push(NameClaim { number, origin });
        number
    }

    pub(super) fn end_claim(&mut self, consumer: &str, number: u64) {
        if let Some(claims) = self.claims.get_mut(consumer) {
            claims.retain(|claim| claim.number != number);
            if claims.is_empty() {
                self.claims.remove(consumer);
            }
        }
    }

    pub(super) fn held_by(&self, name: &HolderName) -> impl Iterator<Item = &Lease> {
        let leases = self.by_consumer.get(name).into_iter().flatten();
        leases.filter_map(|lease| self.leases.get(lease))
    }

    /// Marks a session as ending, so that no new leases are opened for it, and ends its leases.
    /// `None` if there is no such session, or it is already ending.
    #[must_use]
    pub(super) fn begin_end(&mut self, session: &str) -> Option<Vec<Lease>> {
        let entry = self.sessions.get_mut(session).filter(|entry| !entry.ending)?;
        entry.ending = true;
        let leases = std::mem::take(&mut entry.leases);
        Some(self.end_all(leases))
    }

    /// Opens a lease.
    ///
    /// # Errors
    /// [`CacheError::UnknownSession`] if its session is unknown or ending.
    pub(super) fn insert(&mut self, id: &LeaseId, lease: Lease) -> Result<(), CacheError> {
        if let LeaseOwner::Session(session) = &lease.owner {
            let entry = self.sessions.get_mut(session).filter(|entry| !entry.ending);
            let Some(entry) = entry else {
                return Err(CacheError::UnknownSession);
            };
            entry.leases.insert(id.clone());
        }
        if let Some(reader) = &lease.timeframe {
            self.by_timeframe.entry(reader.clone()).or_default().insert(id.clone());
        }
        if let Some(ticket) = &lease.ticket {
            self.by_ticket.entry(*ticket).or_default().insert(id.clone());
        }
        if let Some(holder) = &lease.holder {
            self.by_consumer.entry(holder.name.clone()).or_default().insert(id.clone());
        }
        self.leases.insert(id.clone(), lease);
        Ok(())
    }

    /// The only function that ends leases. Returns them, so that their pins are dropped without the
    /// lock.
    #[must_use]
    pub(super) fn end_all(&mut self, leases: impl IntoIterator<Item = LeaseId>) -> Vec<Lease> {
        let mut ended = Vec::new();
        for id in leases {
            let Some(lease) = self.leases.remove(&id) else { continue };
            if let LeaseOwner::Session(session) = &lease.owner
                && let Some(session) = self.sessions.get_mut(session)
            {
                session.leases.remove(&id);
            }
            forget(&mut self.by_timeframe, lease.timeframe.as_ref(), &id);
            forget(&mut self.by_ticket, lease.ticket.as_ref(), &id);
            let consumer = lease.holder.as_ref().map(|holder| &holder.name);
            forget(&mut self.by_consumer, consumer, &id);
            ended.push(lease);
        }
        ended
    }
}

/// Whether a lease with a key is listed under that key.
pub(super) fn listed<K: Eq + std::hash::Hash>(
    index: &LeaseMap<K, LeaseIds>,
    key: Option<&K>,
    lease: &LeaseId,
) -> bool {
    key.is_none_or(|key| index.get(key).is_some_and(|leases| leases.contains(lease)))
}

fn forget<K: Eq + std::hash::Hash>(
    index: &mut LeaseMap<K, LeaseIds>,
    key: Option<&K>,
    lease: &LeaseId,
) {
    let Some(key) = key else { return };
    if let Some(leases) = index.get_mut(key) {
        leases.remove(lease);
        if leases.is_empty() {
            index.remove(key);
        }
    }
}
