//! Who holds what: sessions of processes on the node, and leases, each on the pins of one table.
//!
//! ```text
//!  session (attach socket) ─┬─ lease ─ pins      until the socket hangs up, or released
//!  timeframe + consumer ────┼─ lease ─ pins      until consumed
//!  nobody named ────────────┴─ lease ─ pins      until its time runs out, or released
//! ```
//!
//! A lease ends once, in [`Leases::end_all`], whatever the cause: release, hang-up, expiry, consumed,
//! shutdown. Who comes second finds nothing.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use uuid::Uuid;

use super::error::CacheError;
use super::resident::PinSet;
use crate::clock::{Clock, Moment};
use crate::table::SessionStatus;
use crate::telemetry::Counters;

/// The name of a lease; it cannot be guessed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LeaseId(String);

impl LeaseId {
    fn new() -> Self {
        Self(Uuid::new_v4().simple().to_string())
    }

    /// As it stands in messages.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for LeaseId {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whose a lease is, which says when it ends by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Owner {
    /// A process on the node: ends with its attach socket.
    Session(String),
    /// A consumer of a timeframe: ends when it has consumed it.
    Consumer,
    /// An exchange: ends with the stream.
    Stream,
    /// Somebody who gave no name: ends when its time runs out.
    Nobody,
}

/// All sessions and leases.
#[derive(Debug)]
pub(crate) struct Leases {
    clock: Clock,
    time_limit: Duration,
    counters: Arc<Counters>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    sessions: HashMap<String, Session>,
    leases: HashMap<LeaseId, Lease>,
    by_timeframe: HashMap<(u64, String), HashSet<LeaseId>>,
    by_ticket: HashMap<Vec<u8>, HashSet<LeaseId>>,
}

#[derive(Debug)]
struct Session {
    info: SessionStatus,
    leases: HashSet<LeaseId>,
    /// Its process is gone: nothing more is held for it.
    ending: bool,
}

#[derive(Debug)]
struct Lease {
    owner: Owner,
    timeframe: Option<(u64, String)>,
    ticket: Option<Vec<u8>>,
    expires: Option<Moment>,
    pins: Vec<Arc<PinSet>>,
}

/// What a lease is opened for.
#[derive(Debug, Clone)]
pub(crate) struct Terms {
    pub(crate) owner: Owner,
    /// The timeframe and the consumer that reads it.
    pub(crate) timeframe: Option<(u64, String)>,
    /// The ticket under which a client can name it.
    pub(crate) ticket: Option<Vec<u8>>,
}

impl Leases {
    pub(crate) fn new(clock: Clock, time_limit: Duration, counters: Arc<Counters>) -> Self {
        Self { clock, time_limit, counters, state: Mutex::default() }
    }

    /// How long a lease lasts that belongs to nobody.
    pub(crate) const fn time_limit(&self) -> Duration {
        self.time_limit
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn open_session(&self, consumer: String, pid: i32, uid: u32) -> String {
        let session = Uuid::new_v4().simple().to_string();
        let info = SessionStatus { session: session.clone(), consumer, pid, uid, pinned_bytes: 0 };
        self.state()
            .sessions
            .insert(session.clone(), Session { info, leases: HashSet::new(), ending: false });
        self.counters.sessions_opened.add(1);
        session
    }

    /// Ends a session and all of its leases.
    pub(crate) fn end_session(&self, session: &str) {
        let ended = {
            let mut state = self.state();
            let Some(entry) = state.sessions.get_mut(session) else { return };
            entry.ending = true;
            let leases = std::mem::take(&mut entry.leases);
            state.end_all(leases)
        };
        self.counters.sessions_ended.add(1);
        if !ended.is_empty() {
            self.counters.sessions_ended_holding.add(1);
        }
        // It is listed until all that it held is let go.
        drop(ended);
        self.state().sessions.remove(session);
    }

    /// # Errors
    /// [`CacheError::UnknownSession`].
    pub(crate) fn check_session(&self, session: &str) -> Result<(), CacheError> {
        match self.state().sessions.get(session).is_some_and(|entry| !entry.ending) {
            true => Ok(()),
            false => Err(CacheError::UnknownSession { session: session.to_owned() }),
        }
    }

    /// What the process of a session calls itself.
    pub(crate) fn consumer_of(&self, session: &str) -> Option<String> {
        Some(self.state().sessions.get(session)?.info.consumer.clone())
    }

    /// # Errors
    /// [`CacheError::UnknownSession`].
    pub(crate) fn open(&self, terms: Terms, pins: Vec<Arc<PinSet>>) -> Result<LeaseId, CacheError> {
        let lease = LeaseId::new();
        let mut guard = self.state();
        let state = &mut *guard;
        let expires = match &terms.owner {
            Owner::Session(session) => {
                let entry = state.sessions.get_mut(session).filter(|entry| !entry.ending);
                let Some(entry) = entry else {
                    return Err(CacheError::UnknownSession { session: session.clone() });
                };
                entry.leases.insert(lease.clone());
                None
            }
            Owner::Consumer | Owner::Stream => None,
            Owner::Nobody => Some(self.clock.now().after(self.time_limit)),
        };
        let Terms { owner, timeframe, ticket } = terms;
        if let Some(reader) = &timeframe {
            state.by_timeframe.entry(reader.clone()).or_default().insert(lease.clone());
        }
        if let Some(ticket) = &ticket {
            state.by_ticket.entry(ticket.clone()).or_default().insert(lease.clone());
        }
        state.leases.insert(lease.clone(), Lease { owner, timeframe, ticket, expires, pins });
        Ok(lease)
    }

    /// Adds pins to a lease that is open, and renews it.
    ///
    /// # Errors
    /// [`CacheError::LeaseEnded`].
    pub(crate) fn add(&self, lease: &LeaseId, pins: Arc<PinSet>) -> Result<(), CacheError> {
        let mut state = self.state();
        let Some(entry) = state.leases.get_mut(lease) else {
            return Err(CacheError::LeaseEnded { lease: lease.to_string() });
        };
        entry.pins.push(pins);
        if entry.expires.is_some() {
            entry.expires = Some(self.clock.now().after(self.time_limit));
        }
        Ok(())
    }

    /// Gives a lease its time anew; `None`: it does not run out.
    ///
    /// # Errors
    /// [`CacheError::LeaseEnded`].
    pub(crate) fn renew(&self, lease: &LeaseId) -> Result<Option<Duration>, CacheError> {
        let mut state = self.state();
        let Some(entry) = state.leases.get_mut(lease) else {
            return Err(CacheError::LeaseEnded { lease: lease.to_string() });
        };
        if entry.expires.is_none() {
            return Ok(None);
        }
        entry.expires = Some(self.clock.now().after(self.time_limit));
        Ok(Some(self.time_limit))
    }

    /// Whether it has not ended.
    pub(crate) fn is_open(&self, lease: &LeaseId) -> bool {
        self.state().leases.contains_key(lease)
    }

    /// The leases that were opened under a ticket.
    pub(crate) fn of_ticket(&self, ticket: &[u8]) -> Vec<LeaseId> {
        let state = self.state();
        state.by_ticket.get(ticket).map(|set| set.iter().cloned().collect()).unwrap_or_default()
    }

    /// Ends one lease; whether there was any.
    pub(crate) fn end(&self, lease: &LeaseId) -> bool {
        let ended = self.state().end_all([lease.clone()]);
        !ended.is_empty()
    }

    /// Ends all leases by which `consumer` reads `timeframe`.
    pub(crate) fn end_reader(&self, timeframe: u64, consumer: &str) {
        let ended = {
            let mut state = self.state();
            let leases = state.by_timeframe.remove(&(timeframe, consumer.to_owned()));
            leases.map(|leases| state.end_all(leases))
        };
        drop(ended);
    }

    /// Ends the leases whose time has run out.
    pub(crate) fn expire(&self) {
        let now = self.clock.now();
        let ended = {
            let mut state = self.state();
            let over = |lease: &Lease| lease.expires.is_some_and(|at| at <= now);
            let over: Vec<LeaseId> = state
                .leases
                .iter()
                .filter(|(_, lease)| over(lease))
                .map(|(id, _)| id.clone())
                .collect();
            state.end_all(over)
        };
        self.counters.leases_expired.add(ended.len() as u64);
    }

    /// Ends everything.
    pub(crate) fn end_everything(&self) {
        let ended = std::mem::take(&mut *self.state());
        drop(ended);
    }

    pub(crate) fn sessions(&self) -> Vec<SessionStatus> {
        let state = self.state();
        let mut sessions: Vec<SessionStatus> = state
            .sessions
            .values()
            .map(|session| {
                let leases = session.leases.iter().filter_map(|lease| state.leases.get(lease));
                let sets = leases.flat_map(|lease| &lease.pins);
                let mut seen = HashSet::new();
                let pinned_bytes = sets
                    .flat_map(|set| set.pins())
                    .filter(|pin| seen.insert(Arc::as_ptr(pin.resident())))
                    .map(|pin| pin.charged_bytes())
                    .sum();
                SessionStatus { pinned_bytes, ..session.info.clone() }
            })
            .collect();
        drop(state);
        sessions.sort_by(|a, b| (&a.consumer, &a.session).cmp(&(&b.consumer, &b.session)));
        sessions
    }

    /// The pins of all leases, for the invariants.
    pub(crate) fn pin_sets(&self) -> Vec<Arc<PinSet>> {
        let state = self.state();
        state.leases.values().flat_map(|lease| lease.pins.iter().map(Arc::clone)).collect()
    }
}

impl State {
    /// The one way in which leases end. Their pins are returned, to be dropped outside of the lock.
    #[must_use]
    fn end_all(&mut self, leases: impl IntoIterator<Item = LeaseId>) -> Vec<Lease> {
        let mut ended = Vec::new();
        for id in leases {
            let Some(lease) = self.leases.remove(&id) else { continue };
            if let Owner::Session(session) = &lease.owner
                && let Some(session) = self.sessions.get_mut(session)
            {
                session.leases.remove(&id);
            }
            forget(&mut self.by_timeframe, lease.timeframe.as_ref(), &id);
            forget(&mut self.by_ticket, lease.ticket.as_ref(), &id);
            ended.push(lease);
        }
        ended
    }
}

fn forget<K: Eq + std::hash::Hash>(
    index: &mut HashMap<K, HashSet<LeaseId>>,
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
