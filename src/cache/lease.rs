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

use foldhash::fast::RandomState;
use uuid::Uuid;
use uuid::fmt::Simple;

use super::error::CacheError;
use super::resident::{PinSet, Resident};
use super::slow::{ConsumerLimits, Late};
use crate::clock::{Clock, Moment};
use crate::object::ObjectId;
use crate::table::SessionStatus;
use crate::telemetry::Counters;

/// The name of a lease; it cannot be guessed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LeaseId(Arc<str>);

impl LeaseId {
    fn new() -> Self {
        let mut text = [0; Simple::LENGTH];
        Self((*Uuid::new_v4().simple().encode_lower(&mut text)).into())
    }

    /// As it stands in messages.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for LeaseId {
    fn from(text: &str) -> Self {
        Self(text.into())
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
    limits: ConsumerLimits,
    counters: Arc<Counters>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    sessions: Map<String, Session>,
    leases: Map<LeaseId, Lease>,
    by_timeframe: Map<(u64, String), LeaseIds>,
    by_ticket: Map<Arc<[u8]>, LeaseIds>,
    by_consumer: Map<String, LeaseIds>,
}

/// Names of leases cannot be chosen, and tickets can be long: they hold the timestamps.
type Map<K, V> = HashMap<K, V, RandomState>;
type LeaseIds = HashSet<LeaseId, RandomState>;

#[derive(Debug)]
struct Session {
    info: SessionStatus,
    leases: LeaseIds,
    /// Its process is gone: nothing more is held for it.
    ending: bool,
}

#[derive(Debug)]
struct Lease {
    owner: Owner,
    timeframe: Option<(u64, String)>,
    ticket: Option<Arc<[u8]>>,
    expires: Option<Moment>,
    holder: Option<Holder>,
    /// When it began to hold something.
    since: Moment,
    /// Its holder was told that it is slow.
    slow: bool,
    pins: Vec<Arc<PinSet>>,
}

/// The consumer that holds the pins of a lease, for its quota.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Holder {
    pub(crate) consumer: String,
    /// The timeframe that it reads, registered or of a stream.
    pub(crate) timeframe: Option<u64>,
}

/// What a lease is opened for.
#[derive(Debug, Clone)]
pub(crate) struct Terms {
    pub(crate) owner: Owner,
    /// The timeframe and the consumer that reads it.
    pub(crate) timeframe: Option<(u64, String)>,
    /// The ticket under which a client can name it.
    pub(crate) ticket: Option<Arc<[u8]>>,
    pub(crate) holder: Option<Holder>,
}

impl Leases {
    pub(crate) fn new(
        clock: Clock,
        time_limit: Duration,
        limits: ConsumerLimits,
        counters: Arc<Counters>,
    ) -> Self {
        Self { clock, time_limit, limits, counters, state: Mutex::default() }
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
            .insert(session.clone(), Session { info, leases: LeaseIds::default(), ending: false });
        self.counters.sessions_opened.add(1);
        session
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
    /// [`CacheError::UnknownSession`], [`CacheError::OverQuota`].
    pub(crate) fn open(&self, terms: Terms, pins: Vec<Arc<PinSet>>) -> Result<LeaseId, CacheError> {
        let lease = LeaseId::new();
        let mut guard = self.state();
        let state = &mut *guard;
        self.check_quota(state, terms.holder.as_ref(), &pins)?;
        let since = self.clock.now();
        let expires = match &terms.owner {
            Owner::Session(_) | Owner::Consumer | Owner::Stream => None,
            Owner::Nobody => Some(since.after(self.time_limit)),
        };
        let (Terms { owner, timeframe, ticket, holder }, slow) = (terms, false);
        state.insert(
            &lease,
            Lease { owner, timeframe, ticket, expires, holder, since, slow, pins },
        )?;
        Ok(lease)
    }

    /// Whether `holder` may hold `pins` too. Asked under the lock under which they are given to it,
    /// so that two of its requests cannot both take the last of it.
    fn check_quota(
        &self,
        state: &State,
        holder: Option<&Holder>,
        pins: &[Arc<PinSet>],
    ) -> Result<(), CacheError> {
        let Some(Holder { consumer, timeframe }) = holder else { return Ok(()) };
        let check = |what, wanted: u64, limit: Option<u64>| match limit {
            Some(limit) if wanted > limit => {
                self.counters.over_quota.add(1);
                let consumer = consumer.clone();
                Err(CacheError::OverQuota { consumer, what, wanted, limit })
            }
            _ => Ok(()),
        };
        if let (Some(_), Some(timeframe)) = (self.limits.quota_timeframes, timeframe) {
            let held = state.held_by(consumer).filter_map(|lease| lease.holder.as_ref());
            let mut held: HashSet<u64> = held.filter_map(|holder| holder.timeframe).collect();
            held.insert(*timeframe);
            check("timeframes", held.len() as u64, self.limits.quota_timeframes)?;
        }
        if self.limits.quota_bytes.is_some() {
            let held = state.held_by(consumer).flat_map(|lease| &lease.pins);
            check("bytes", bytes_of(held.chain(pins)), self.limits.quota_bytes)?;
        }
        Ok(())
    }

    /// Whether `holder` may hold objects of these ids and charged bytes too. Nothing is pinned yet:
    /// [`open`](Self::open) and [`add`](Self::add) decide.
    ///
    /// # Errors
    /// [`CacheError::OverQuota`].
    pub(crate) fn check_quota_of(
        &self,
        holder: &Holder,
        wanted: impl Iterator<Item = (ObjectId, u64)>,
    ) -> Result<(), CacheError> {
        self.check_quota(&self.state(), Some(holder), &[])?;
        let Some(limit) = self.limits.quota_bytes else { return Ok(()) };
        let sets: Vec<Arc<PinSet>> = {
            let state = self.state();
            let held = state.held_by(&holder.consumer);
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
        let consumer = holder.consumer.clone();
        Err(CacheError::OverQuota { consumer, what: "bytes", wanted: bytes, limit })
    }

    /// For how long `consumer` holds what it holds longest, timeframes that it reads aside.
    pub(crate) fn held_longest(&self, consumer: &str, now: Moment) -> Option<Duration> {
        let state = self.state();
        let held = state.held_by(consumer).filter(|lease| lease.is_of_a_table());
        held.map(|lease| now.since(lease.since)).max()
    }

    /// The leases that are held for `after` now, and were not before; timeframes look after those
    /// by which they are read.
    pub(crate) fn newly_slow(&self, now: Moment, after: Duration) -> Vec<(LeaseId, Late)> {
        let mut late = Vec::new();
        for (id, lease) in &mut self.state().leases {
            let held = now.since(lease.since);
            if lease.slow || held < after || !lease.is_of_a_table() {
                continue;
            }
            if let Some(Holder { consumer, timeframe }) = lease.holder.clone() {
                lease.slow = true;
                late.push((id.clone(), Late { consumer, timeframe, held }));
            }
        }
        late
    }

    /// Adds pins to a lease that is open, and renews it.
    ///
    /// # Errors
    /// [`CacheError::LeaseEnded`], [`CacheError::OverQuota`].
    pub(crate) fn add(
        &self,
        lease: &LeaseId,
        pins: Arc<PinSet>,
        holder: Option<Holder>,
    ) -> Result<(), CacheError> {
        let mut guard = self.state();
        let state = &mut *guard;
        if state.leases.contains_key(lease) {
            self.check_quota(state, holder.as_ref(), std::slice::from_ref(&pins))?;
        }
        let Some(entry) = state.leases.get_mut(lease) else {
            return Err(CacheError::LeaseEnded { lease: lease.to_string() });
        };
        entry.pins.push(pins);
        if let (None, Some(holder)) = (&entry.holder, holder) {
            let leases = state.by_consumer.entry(holder.consumer.clone()).or_default();
            leases.insert(lease.clone());
            (entry.holder, entry.since) = (Some(holder), self.clock.now());
        }
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
        // Only references are copied under the lock that every request takes.
        let held: Vec<(SessionStatus, Vec<Arc<PinSet>>)> = {
            let state = self.state();
            let held = state.sessions.values().map(|session| {
                let leases = session.leases.iter().filter_map(|lease| state.leases.get(lease));
                let sets = leases.flat_map(|lease| lease.pins.iter().map(Arc::clone));
                (session.info.clone(), sets.collect())
            });
            held.collect()
        };
        let sessions = held.into_iter().map(|(info, sets)| {
            let pinned_bytes = bytes_of(sets.iter());
            SessionStatus { pinned_bytes, ..info }
        });
        let mut sessions: Vec<SessionStatus> = sessions.collect();
        sessions.sort_by(|a, b| (&a.consumer, &a.session).cmp(&(&b.consumer, &b.session)));
        sessions
    }

    /// What each lease holds, and who holds it, as far as that has a name.
    pub(crate) fn holders(&self) -> Vec<(Option<String>, Vec<Arc<PinSet>>)> {
        let state = self.state();
        let held = state.leases.values().filter(|lease| !lease.pins.is_empty());
        held.map(|lease| {
            let attached = match &lease.owner {
                Owner::Session(session) => state.sessions.get(session),
                _ => None,
            };
            let holder = lease.holder.as_ref().map(|holder| &holder.consumer);
            let name = holder.or_else(|| attached.map(|session| &session.info.consumer));
            (name.cloned(), lease.pins.clone())
        })
        .collect()
    }

    /// How many sessions and leases there are.
    pub(super) fn counts(&self) -> (usize, usize) {
        let state = self.state();
        (state.sessions.len(), state.leases.len())
    }

    /// What is wrong with who is said to have which lease, if anything.
    pub(super) fn faults(&self) -> Vec<String> {
        let state = self.state();
        let mut faults = Vec::new();
        for (id, lease) in &state.leases {
            let holder = lease.holder.as_ref();
            let named = holder.map_or("nobody", |holder| holder.consumer.as_str());
            let mut must = |listed: bool, where_: &str| {
                if !listed {
                    faults.push(format!("a lease of {named} is missing {where_}"));
                }
            };
            if let Owner::Session(session) = &lease.owner {
                let session = state.sessions.get(session);
                must(session.is_some_and(|session| session.leases.contains(id)), "in its session");
            }
            must(listed(&state.by_timeframe, lease.timeframe.as_ref(), id), "at its timeframe");
            must(listed(&state.by_ticket, lease.ticket.as_ref(), id), "at its ticket");
            let consumer = holder.map(|holder| &holder.consumer);
            must(listed(&state.by_consumer, consumer, id), "at its consumer");
        }
        let sessions = state.sessions.values().map(|session| &session.leases);
        let by_timeframe = state.by_timeframe.values();
        let lists = sessions.chain(by_timeframe).chain(state.by_ticket.values());
        let gone = lists.chain(state.by_consumer.values()).flatten();
        let gone = gone.filter(|lease| !state.leases.contains_key(lease)).count();
        if gone > 0 {
            faults.push(format!("{gone} leases are listed that have ended"));
        }
        faults
    }

    /// The pins of all leases, for the invariants.
    pub(crate) fn pin_sets(&self) -> Vec<Arc<PinSet>> {
        let state = self.state();
        state.leases.values().flat_map(|lease| lease.pins.iter().map(Arc::clone)).collect()
    }
}

impl Lease {
    /// Whether it is on a table of its own, and not how a timeframe is read.
    fn is_of_a_table(&self) -> bool {
        self.timeframe.is_none() && !self.pins.is_empty()
    }
}

/// The bytes that these pin, each object counted once.
fn bytes_of<'a>(sets: impl Iterator<Item = &'a Arc<PinSet>>) -> u64 {
    let mut seen: HashSet<*const Resident, RandomState> = HashSet::default();
    let pins = sets.flat_map(|set| set.pins());
    let distinct = pins.filter(|pin| seen.insert(Arc::as_ptr(pin.resident())));
    distinct.map(|pin| pin.charged_bytes()).sum()
}

impl State {
    fn held_by(&self, consumer: &str) -> impl Iterator<Item = &Lease> {
        let leases = self.by_consumer.get(consumer).into_iter().flatten();
        leases.filter_map(|lease| self.leases.get(lease))
    }

    /// From now on nothing more is held for a session. What it held is returned, once: `None` if
    /// there is no such session, or it ends already.
    #[must_use]
    fn begin_end(&mut self, session: &str) -> Option<Vec<Lease>> {
        let entry = self.sessions.get_mut(session).filter(|entry| !entry.ending)?;
        entry.ending = true;
        let leases = std::mem::take(&mut entry.leases);
        Some(self.end_all(leases))
    }

    /// Opens a lease.
    ///
    /// # Errors
    /// [`CacheError::UnknownSession`] if its session is not there, or ends.
    fn insert(&mut self, id: &LeaseId, lease: Lease) -> Result<(), CacheError> {
        if let Owner::Session(session) = &lease.owner {
            let entry = self.sessions.get_mut(session).filter(|entry| !entry.ending);
            let Some(entry) = entry else {
                return Err(CacheError::UnknownSession { session: session.clone() });
            };
            entry.leases.insert(id.clone());
        }
        if let Some(reader) = &lease.timeframe {
            self.by_timeframe.entry(reader.clone()).or_default().insert(id.clone());
        }
        if let Some(ticket) = &lease.ticket {
            self.by_ticket.entry(ticket.clone()).or_default().insert(id.clone());
        }
        if let Some(holder) = &lease.holder {
            self.by_consumer.entry(holder.consumer.clone()).or_default().insert(id.clone());
        }
        self.leases.insert(id.clone(), lease);
        Ok(())
    }

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
            let consumer = lease.holder.as_ref().map(|holder| &holder.consumer);
            forget(&mut self.by_consumer, consumer, &id);
            ended.push(lease);
        }
        ended
    }
}

/// Whether a lease that has a key is listed under it.
fn listed<K: Eq + std::hash::Hash>(
    index: &Map<K, LeaseIds>,
    key: Option<&K>,
    lease: &LeaseId,
) -> bool {
    key.is_none_or(|key| index.get(key).is_some_and(|leases| leases.contains(lease)))
}

fn forget<K: Eq + std::hash::Hash>(index: &mut Map<K, LeaseIds>, key: Option<&K>, lease: &LeaseId) {
    let Some(key) = key else { return };
    if let Some(leases) = index.get_mut(key) {
        leases.remove(lease);
        if leases.is_empty() {
            index.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use loom::sync::{Arc, Mutex};
    use loom::thread;

    use super::*;

    fn lease() -> Lease {
        Lease {
            owner: Owner::Session("s".to_owned()),
            timeframe: Some((1, "x".to_owned())),
            ticket: Some(vec![1].into()),
            expires: None,
            holder: Some(Holder { consumer: "x".to_owned(), timeframe: Some(1) }),
            since: Moment::default(),
            slow: false,
            pins: Vec::new(),
        }
    }

    fn with_a_session() -> State {
        let info = SessionStatus {
            session: "s".to_owned(),
            consumer: "x".to_owned(),
            pid: 1,
            uid: 1,
            pinned_bytes: 0,
        };
        let session = Session { info, leases: LeaseIds::default(), ending: false };
        let sessions = Map::from_iter([("s".to_owned(), session)]);
        State { sessions, ..State::default() }
    }

    /// The steps are those of [`Leases`]; only the lock around the state is another.
    #[test]
    fn a_lease_ends_once_whoever_comes_first_and_none_outlives_its_session() {
        loom::model(|| {
            let state = Arc::new(Mutex::new(with_a_session()));
            let first = LeaseId::from("first");
            state.lock().unwrap().insert(&first, lease()).unwrap();
            let released = thread::spawn({
                let (state, first) = (Arc::clone(&state), first.clone());
                move || state.lock().unwrap().end_all([first]).len()
            });
            // One more table for the session, while its process dies.
            let opened = thread::spawn({
                let state = Arc::clone(&state);
                move || state.lock().unwrap().insert(&LeaseId::from("second"), lease()).is_ok()
            });
            let hung_up = state.lock().unwrap().begin_end("s");
            let hung_up = hung_up.expect("only one ends it").len();
            state.lock().unwrap().sessions.remove("s");
            let ended = hung_up + released.join().unwrap();
            let opened = usize::from(opened.join().unwrap());
            assert_eq!(ended, 1 + opened, "each that was opened ended, and once");
            let state = state.lock().unwrap();
            assert!(state.leases.is_empty() && state.by_timeframe.is_empty());
            assert!(state.by_ticket.is_empty() && state.by_consumer.is_empty());
        });
    }
}
