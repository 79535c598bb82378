//! All sessions and leases: opened, renewed, and ended for every cause.

use std::collections::{HashMap, HashSet};
use std::hash::BuildHasher as _;
use std::sync::{Arc, Weak};
use std::time::Duration;

use foldhash::fast::RandomState;
use uuid::Uuid;

use crate::budget::Charge;
use crate::cache::error::CacheError;
use crate::cache::holders::lease::{
    Lease, LeaseId, LeaseIds, LeaseState, OnEnd, Session, SessionKey, TicketKey, bytes_of, listed,
    revoke_gates,
};
use crate::cache::holders::lease_terms::{HolderName, LeaseHolder, LeaseOwner, LeaseTerms};
use crate::cache::holders::limits::{ConsumerLimits, SlowHolder};
use crate::cache::holders::origin::Origin;
use crate::cache::memory::object::PinSet;
use crate::clock::{Clock, Moment};
use crate::object::ObjectId;
use crate::sync::{Mutex, MutexGuard};
use crate::table::SessionStatus;
use crate::telemetry::Counters;

/// All sessions and leases.
#[derive(Debug)]
pub(crate) struct Leases {
    clock: Clock,
    time_limit: Duration,
    limits: ConsumerLimits,
    counters: Arc<Counters>,
    /// Hash the tickets; random, so that clients cannot construct two tickets with one key.
    hashers: [RandomState; 2],
    state: Mutex<LeaseState>,
}

impl Leases {
    pub(crate) fn new(
        clock: Clock,
        time_limit: Duration,
        limits: ConsumerLimits,
        counters: Arc<Counters>,
    ) -> Self {
        let hashers = [RandomState::default(), RandomState::default()];
        Self { clock, time_limit, limits, counters, hashers, state: Mutex::default() }
    }

    /// Duration of a lease without an owner.
    pub(crate) const fn time_limit(&self) -> Duration {
        self.time_limit
    }

    pub(crate) fn now(&self) -> Moment {
        self.clock.now()
    }

    fn state(&self) -> MutexGuard<'_, LeaseState> {
        self.state.lock()
    }

    fn key_of(&self, ticket: &[u8]) -> TicketKey {
        [self.hashers[0].hash_one(ticket), self.hashers[1].hash_one(ticket)]
    }

    pub(crate) fn open_session(
        &self,
        consumer: String,
        pid: i32,
        uid: u32,
        origin: Origin,
    ) -> SessionKey {
        let id = Uuid::new_v4().simple().to_string();
        let key = SessionKey { id, consumer, origin };
        let mut state = self.state();
        let number = state.claim(&key.consumer, key.origin.clone());
        let consumer = key.consumer.clone();
        let info = SessionStatus { number, consumer, pid, uid, pinned_bytes: 0, slots: 0 };
        let (origin, leases) = (key.origin.clone(), LeaseIds::default());
        state.sessions.insert(key.id.clone(), Session { info, origin, leases, ending: false });
        drop(state);
        self.counters.sessions_opened.add(1);
        key
    }

    /// Claims the name of a consumer for a stream, until [`end_claim`](Self::end_claim) is called
    /// with the returned number.
    pub(crate) fn claim(&self, consumer: &str, origin: Origin) -> u64 {
        self.state().claim(consumer, origin)
    }

    pub(crate) fn end_claim(&self, consumer: &str, number: u64) {
        self.state().end_claim(consumer, number);
    }

    /// Checks that a client may report and read in the name of a consumer. While sessions or
    /// streams use that name, only their user or key may, and clients that may administer.
    ///
    /// # Errors
    /// [`CacheError::ForeignConsumer`].
    pub(crate) fn check_consumer(&self, consumer: &str, origin: &Origin) -> Result<(), CacheError> {
        let state = self.state();
        let claims = state.claims.get(consumer);
        match claims.is_none_or(|all| all.iter().any(|one| origin.may_act_for(&one.origin))) {
            true => Ok(()),
            false => Err(CacheError::ForeignConsumer { consumer: consumer.to_owned() }),
        }
    }

    /// Ends a session and all of its leases.
    pub(crate) fn end_session(&self, session: &str) {
        let ended = {
            let mut state = self.state();
            match state.begin_end(session) {
                Some(ended) => ended,
                None => return,
            }
        };
        self.counters.sessions_ended.add(1);
        if !ended.is_empty() {
            self.counters.sessions_ended_holding.add(1);
        }
        // The session stays listed until everything it held is released.
        revoke_gates(&ended);
        drop(ended);
        let mut state = self.state();
        if let Some(Session { info, .. }) = state.sessions.remove(session) {
            state.end_claim(&info.consumer, info.number);
        }
    }

    /// Checks that the session exists and that the client may use it: a process of its user on this
    /// node.
    ///
    /// # Errors
    /// [`CacheError::UnknownSession`] in both cases.
    pub(crate) fn check_session(&self, session: &str, origin: &Origin) -> Result<(), CacheError> {
        let state = self.state();
        let found = state.sessions.get(session).filter(|entry| !entry.ending);
        match found.is_some_and(|entry| origin.is_user(entry.origin.uid())) {
            true => Ok(()),
            false => Err(CacheError::UnknownSession),
        }
    }

    /// The holder that pays for the pins of a session with its quota.
    pub(crate) fn holder_of(&self, session: &str) -> Option<HolderName> {
        let state = self.state();
        let session = state.sessions.get(session)?;
        let consumer = session.info.consumer.clone();
        Some(HolderName { consumer, account: session.origin.account() })
    }

    /// Opens a lease, with the budget for it and its pins.
    ///
    /// # Errors
    /// [`CacheError::UnknownSession`], [`CacheError::OverQuota`].
    pub(crate) fn open(
        &self,
        terms: LeaseTerms,
        pins: Vec<Arc<PinSet>>,
        charge: Charge,
    ) -> Result<LeaseId, CacheError> {
        let lease = LeaseId::new();
        let mut guard = self.state();
        let state = &mut *guard;
        self.check_quota(state, terms.holder.as_ref(), &pins)?;
        let since = self.clock.now();
        let expires = match &terms.owner {
            LeaseOwner::Session(_) | LeaseOwner::Consumer | LeaseOwner::Stream => None,
            LeaseOwner::Unnamed => Some(since.after(self.time_limit)),
        };
        let LeaseTerms { owner, timeframe, ticket, holder } = terms;
        let connection = ticket.as_ref().and_then(|(_, connection)| *connection);
        let (ticket, slow) = (ticket.map(|(ticket, _)| self.key_of(&ticket)), false);
        let (gates, stream_gates) = (Vec::new(), Vec::new());
        let opened = Lease {
            owner,
            timeframe,
            ticket,
            connection,
            expires,
            holder,
            gates,
            stream_gates,
            since,
            slow,
            pins,
            charges: vec![charge],
        };
        state.insert(&lease, opened)?;
        Ok(lease)
    }

    /// Whether `holder` may hold `pins`, too. Called under the lock under which they are added, so
    /// that two of its requests cannot both use the rest of the quota.
    fn check_quota(
        &self,
        state: &LeaseState,
        holder: Option<&LeaseHolder>,
        pins: &[Arc<PinSet>],
    ) -> Result<(), CacheError> {
        let Some(LeaseHolder { name, timeframe }) = holder else { return Ok(()) };
        let check = |what, wanted: u64, limit: Option<u64>| match limit {
            Some(limit) if wanted > limit => {
                self.counters.over_quota.add(1);
                let consumer = name.consumer.clone();
                Err(CacheError::OverQuota { consumer, what, wanted, limit })
            }
            _ => Ok(()),
        };
        if let (Some(_), Some(timeframe)) = (self.limits.quota_timeframes, timeframe) {
            let held = state.held_by(name).filter_map(|lease| lease.holder.as_ref());
            let mut held: HashSet<u64> = held.filter_map(|holder| holder.timeframe).collect();
            held.insert(*timeframe);
            check("timeframes", held.len() as u64, self.limits.quota_timeframes)?;
        }
        if self.limits.quota_bytes.is_some() {
            let held = state.held_by(name).flat_map(|lease| &lease.pins);
            check("bytes", bytes_of(held.chain(pins)), self.limits.quota_bytes)?;
        }
        Ok(())
    }

    /// Whether `holder` may hold objects with these ids and charged bytes, too. Nothing is pinned
    /// yet: the decision is made in [`open`](Self::open) and [`add`](Self::add).
    ///
    /// # Errors
    /// [`CacheError::OverQuota`].
    pub(crate) fn check_quota_of(
        &self,
        holder: &LeaseHolder,
        wanted: impl Iterator<Item = (ObjectId, u64)>,
    ) -> Result<(), CacheError> {
        self.check_quota(&self.state(), Some(holder), &[])?;
        let Some(limit) = self.limits.quota_bytes else { return Ok(()) };
        let sets: Vec<Arc<PinSet>> = {
            let state = self.state();
            let held = state.held_by(&holder.name);
            held.flat_map(|lease| lease.pins.iter().map(Arc::clone)).collect()
        };
        let held = sets.iter().flat_map(|set| set.pins());
        let held = held.map(|pin| (pin.id(), pin.charged_bytes()));
        let all: HashMap<ObjectId, u64, RandomState> = wanted.chain(held).collect();
        let bytes = all.into_values().fold(0, u64::saturating_add);
        if bytes <= limit {
            return Ok(());
        }
        self.counters.over_quota.add(1);
        let consumer = holder.name.consumer.clone();
        Err(CacheError::OverQuota { consumer, what: "bytes", wanted: bytes, limit })
    }

    /// How long a consumer has held its oldest table. Timeframes that it reads do not count.
    pub(crate) fn held_longest(&self, name: &HolderName, now: Moment) -> Option<Duration> {
        let state = self.state();
        let held = state.held_by(name).filter(|lease| lease.is_of_a_table());
        held.map(|lease| now.since(lease.since)).max()
    }

    /// The leases that have now been held for `after`, each returned once. Leases by which a
    /// timeframe is read are left out: `Timeframes::newly_slow` covers them.
    pub(crate) fn newly_slow(&self, now: Moment, after: Duration) -> Vec<(LeaseId, SlowHolder)> {
        let mut late = Vec::new();
        for (id, lease) in &mut self.state().leases {
            let held = now.since(lease.since);
            if lease.slow || held < after || !lease.is_of_a_table() {
                continue;
            }
            if let Some(LeaseHolder { name, timeframe }) = lease.holder.clone() {
                lease.slow = true;
                let consumer = name.consumer;
                late.push((id.clone(), SlowHolder { consumer, timeframe, held }));
            }
        }
        late
    }

    /// Adds pins, with the budget for them, to a lease that is open, and renews it.
    ///
    /// # Errors
    /// [`CacheError::LeaseEnded`], [`CacheError::OverQuota`].
    pub(crate) fn add(
        &self,
        lease: &LeaseId,
        pins: Arc<PinSet>,
        holder: Option<LeaseHolder>,
        charge: Charge,
    ) -> Result<(), CacheError> {
        let mut guard = self.state();
        let state = &mut *guard;
        if state.leases.contains_key(lease) {
            self.check_quota(state, holder.as_ref(), std::slice::from_ref(&pins))?;
        }
        let Some(entry) = state.leases.get_mut(lease) else {
            return Err(CacheError::LeaseEnded);
        };
        entry.pins.push(pins);
        entry.charges.push(charge);
        if let (None, Some(holder)) = (&entry.holder, holder) {
            let leases = state.by_consumer.entry(holder.name.clone()).or_default();
            leases.insert(lease.clone());
            (entry.holder, entry.since) = (Some(holder), self.clock.now());
        }
        if entry.expires.is_some() {
            entry.expires = Some(self.clock.now().after(self.time_limit));
        }
        Ok(())
    }

    /// Renews a lease and returns its new duration; `None` if it does not expire.
    ///
    /// # Errors
    /// [`CacheError::LeaseEnded`].
    pub(crate) fn renew(&self, lease: &LeaseId) -> Result<Option<Duration>, CacheError> {
        let mut state = self.state();
        let Some(entry) = state.leases.get_mut(lease) else {
            return Err(CacheError::LeaseEnded);
        };
        if entry.expires.is_none() {
            return Ok(None);
        }
        entry.expires = Some(self.clock.now().after(self.time_limit));
        Ok(Some(self.time_limit))
    }

    /// Whether the lease has not ended.
    pub(crate) fn is_open(&self, lease: &LeaseId) -> bool {
        self.state().leases.contains_key(lease)
    }

    /// The leases that were opened under a ticket.
    pub(crate) fn of_ticket(&self, ticket: &[u8]) -> Vec<LeaseId> {
        let key = self.key_of(ticket);
        let state = self.state();
        state.by_ticket.get(&key).map(|set| set.iter().cloned().collect()).unwrap_or_default()
    }

    /// The leases that were opened under a ticket and belong to a client: those opened over its
    /// connection, and those of sessions that it may use. Other clients can have sent the same
    /// request, so its text alone does not suffice.
    pub(crate) fn of_ticket_and_client(
        &self,
        ticket: &[u8],
        origin: &Origin,
        connection: Option<u64>,
    ) -> Vec<LeaseId> {
        let all = self.of_ticket(ticket);
        let state = self.state();
        let is_its = |lease: &Lease| match (&lease.owner, origin) {
            (_, Origin::Embedded) => true,
            (LeaseOwner::Session(session), _) => {
                let session = state.sessions.get(session);
                session.is_some_and(|session| origin.is_user(session.origin.uid()))
            }
            (LeaseOwner::Consumer | LeaseOwner::Stream | LeaseOwner::Unnamed, _) => {
                connection.is_some() && lease.connection == connection
            }
        };
        all.into_iter().filter(|id| state.leases.get(id).is_some_and(is_its)).collect()
    }

    /// Ends one lease; false if there was none.
    pub(crate) fn end(&self, lease: &LeaseId) -> bool {
        let ended = self.state().end_all([lease.clone()]);
        !ended.is_empty()
    }

    /// Ends one lease and the messages in transit under it, long streams included; false if there
    /// was none.
    pub(crate) fn revoke(&self, lease: &LeaseId) -> bool {
        let ended = self.state().end_all([lease.clone()]);
        revoke_gates(&ended);
        !ended.is_empty()
    }

    /// Registers messages in transit, to be dropped when the lease ends. Those of a long stream
    /// (`of_stream`) are dropped only when it is revoked or expires. False if there is no lease.
    pub(crate) fn add_gate(&self, lease: &LeaseId, gate: Weak<dyn OnEnd>, of_stream: bool) -> bool {
        let mut state = self.state();
        let Some(lease) = state.leases.get_mut(lease) else { return false };
        let gates = if of_stream { &mut lease.stream_gates } else { &mut lease.gates };
        gates.retain(|gate| gate.strong_count() > 0);
        gates.push(gate);
        true
    }

    /// Ends all leases by which `consumer` reads `timeframe`, and the messages in transit under
    /// them.
    pub(crate) fn revoke_reader(&self, timeframe: u64, consumer: &str) {
        let ended = {
            let mut state = self.state();
            let leases = state.by_timeframe.remove(&(timeframe, consumer.to_owned()));
            leases.map(|leases| state.end_all(leases)).unwrap_or_default()
        };
        revoke_gates(&ended);
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

    /// Ends the leases that have expired.
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
        revoke_gates(&ended);
        self.counters.leases_expired.add(ended.len() as u64);
    }

    /// Ends all sessions and leases.
    pub(crate) fn end_everything(&self) {
        let ended = std::mem::take(&mut *self.state());
        drop(ended);
    }

    /// The sessions; `slots` gives those in use by the id of the session.
    pub(crate) fn sessions(&self, slots: &HashMap<String, u64>) -> Vec<SessionStatus> {
        // Only references are copied under the lock, which every request takes.
        let held: Vec<(SessionStatus, Vec<Arc<PinSet>>)> = {
            let state = self.state();
            let held = state.sessions.iter().map(|(id, session)| {
                let leases = session.leases.iter().filter_map(|lease| state.leases.get(lease));
                let sets = leases.flat_map(|lease| lease.pins.iter().map(Arc::clone));
                let slots = slots.get(id).copied().unwrap_or(0);
                (SessionStatus { slots, ..session.info.clone() }, sets.collect())
            });
            held.collect()
        };
        let sessions = held.into_iter().map(|(info, sets)| {
            let pinned_bytes = bytes_of(sets.iter());
            SessionStatus { pinned_bytes, ..info }
        });
        let mut sessions: Vec<SessionStatus> = sessions.collect();
        sessions.sort_by(|a, b| (&a.consumer, a.number).cmp(&(&b.consumer, b.number)));
        sessions
    }

    /// The pins of each lease, and the name of its holder, if it has one.
    pub(crate) fn holders(&self) -> Vec<(Option<String>, Vec<Arc<PinSet>>)> {
        let state = self.state();
        let held = state.leases.values().filter(|lease| !lease.pins.is_empty());
        held.map(|lease| {
            let attached = match &lease.owner {
                LeaseOwner::Session(session) => state.sessions.get(session),
                _ => None,
            };
            let holder = lease.holder.as_ref().map(|holder| &holder.name.consumer);
            let name = holder.or_else(|| attached.map(|session| &session.info.consumer));
            (name.cloned(), lease.pins.clone())
        })
        .collect()
    }

    /// Whether there is a session of this id.
    pub(crate) fn has_session(&self, id: &str) -> bool {
        self.state().sessions.contains_key(id)
    }

    /// Number of sessions and leases.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let state = self.state();
        (state.sessions.len(), state.leases.len())
    }

    /// Faults in the indexes of the leases.
    pub(crate) fn faults(&self) -> Vec<String> {
        let state = self.state();
        let mut faults = Vec::new();
        for (id, lease) in &state.leases {
            let holder = lease.holder.as_ref();
            let named = holder.map_or("no consumer", |holder| holder.name.consumer.as_str());
            let mut must = |listed: bool, where_: &str| {
                if !listed {
                    faults.push(format!("a lease of {named} is not listed {where_}"));
                }
            };
            if let LeaseOwner::Session(session) = &lease.owner {
                let session = state.sessions.get(session);
                must(session.is_some_and(|session| session.leases.contains(id)), "in its session");
            }
            must(listed(&state.by_timeframe, lease.timeframe.as_ref(), id), "at its timeframe");
            must(listed(&state.by_ticket, lease.ticket.as_ref(), id), "at its ticket");
            let consumer = holder.map(|holder| &holder.name);
            must(listed(&state.by_consumer, consumer, id), "at its consumer");
        }
        let sessions = state.sessions.values().map(|session| &session.leases);
        let by_timeframe = state.by_timeframe.values();
        let lists = sessions.chain(by_timeframe).chain(state.by_ticket.values());
        let gone = lists.chain(state.by_consumer.values()).flatten();
        let gone = gone.filter(|lease| !state.leases.contains_key(lease)).count();
        if gone > 0 {
            faults.push(format!("{gone} ended leases are still listed"));
        }
        faults
    }

    /// The pins of all leases, for the invariants.
    pub(crate) fn pin_sets(&self) -> Vec<Arc<PinSet>> {
        let state = self.state();
        state.leases.values().flat_map(|lease| lease.pins.iter().map(Arc::clone)).collect()
    }
}
