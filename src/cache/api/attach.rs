//! The attach socket: passes the segments to processes on the node, and detects their end.
//!
//! ```text
//!  client ── {"hello": 1, "consumer": …} ──▶            session opens
//!         ◀── {"session", "epoch", "segments"} + fds ──
//!         ◀── one more such line for new segments ──    once the previous one was read
//!         ── {"need": {"kind", "id"}} ──▶               that segment again, in such a line
//!         ── {"release" | "delivered" | "consumed"} ──▶ no answer
//!         ◀── {"kind", "error"}                         a wrong report, or a refusal
//!         hang-up (or death: the kernel hangs up)       session ends, its pins are released
//! ```
//!
//! Linux only: SCM_RIGHTS, SO_PEERCRED.

use std::collections::HashMap;
use std::io;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::handle::Cache;
use crate::budget::Charge;
use crate::cache::api::announcer::{Announcer, DescriptorsInFlight, refusal};
use crate::cache::error::CacheError;
use crate::cache::holders::lease::{LeaseId, SessionKey};
use crate::cache::holders::origin::Origin;
use crate::cache::holders::timeframe::Timeframe;
use crate::cache::tables::audit_log::{Requester, record, record_look_ups};
use crate::cache::versions::publisher::SessionPage;
use crate::error::{Coded, coded};
use crate::secret::Secret;
use crate::shm::attach::{
    ClientMessage, Done, LineReader, Need, PeerCredentials, WireError, parse_hello, parse_line,
    send,
};
use crate::shm::{PageLimits, ServicePage};
use crate::sync::Mutex;
use crate::table::Consumed;

/// Pins pages take at most one part in this many of the memory for requests.
const PAGES_SHARE: u64 = 4;

/// Time limit for the hello of a client.
const HELLO_LIMIT: Duration = Duration::from_secs(10);

/// Limits on the number of attached processes.
///
/// Both are lowered to half of the files that the service may open (RLIMIT_NOFILE). The other half
/// is for everything else, and for descriptors that are not read yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttachLimits {
    /// In total. Default: 4,096.
    pub attached: usize,
    /// Per user. Default: 3,072.
    pub attached_per_user: usize,
}

impl Default for AttachLimits {
    fn default() -> Self {
        Self { attached: 4_096, attached_per_user: 3_072 }
    }
}

impl AttachLimits {
    /// The limits, lowered for at most `files` open files.
    fn within(self, files: usize) -> Self {
        let attached = self.attached.min(files / 2).max(1);
        let share = if attached < self.attached { attached - attached / 4 } else { attached };
        Self { attached, attached_per_user: self.attached_per_user.min(share) }
    }
}

/// Maximum number of open files of the service (RLIMIT_NOFILE).
fn files_limit() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX))
}

/// Access control of the attach socket.
pub(crate) trait AttachGate: Send + Sync {
    /// Admits or refuses a process with the token that it sent. The result is its proven origin, to
    /// which its session belongs.
    ///
    /// # Errors
    /// The reason for the refusal; it is sent to the process.
    fn admit(
        &self,
        peer: &PeerCredentials,
        token: Option<&Secret>,
    ) -> Result<Origin, Box<dyn Coded + Send + Sync>>;
}

/// Access control by the user and groups that the kernel reports for the peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerPolicy {
    /// Users that may attach. Default: the service's own user and root.
    pub uids: Vec<u32>,
    /// Groups whose members may attach.
    pub gids: Vec<u32>,
}

impl Default for PeerPolicy {
    fn default() -> Self {
        let own = rustix::process::geteuid().as_raw();
        Self { uids: vec![own, 0], gids: Vec::new() }
    }
}

impl PeerPolicy {
    /// Whether a peer with this user and these groups may attach.
    pub fn admits(&self, uid: u32, gids: &[u32]) -> bool {
        self.uids.contains(&uid) || gids.iter().any(|gid| self.gids.contains(gid))
    }
}

impl AttachGate for PeerPolicy {
    fn admit(
        &self,
        peer: &PeerCredentials,
        _token: Option<&Secret>,
    ) -> Result<Origin, Box<dyn Coded + Send + Sync>> {
        match self.admits(peer.uid, &peer.gids) {
            true => Ok(Origin::process(peer.uid)),
            false => Err(Box::new(NotListed { uid: peer.uid, gids: peer.gids.clone() })),
        }
    }
}

/// Neither the user nor a group of the process is listed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("user {uid} (groups {gids:?}) is not allowed to connect here")]
pub struct NotListed {
    /// The user.
    pub uid: u32,
    /// Its groups.
    pub gids: Vec<u32>,
}

coded! { NotListed => PermissionDenied 6005 }

/// The limit of attached processes is reached.
#[derive(Debug, thiserror::Error)]
enum AttachFull {
    #[error("{0} processes are attached, which is the limit (attached)")]
    All(usize),
    #[error("{0} processes of your user are attached, which is the limit (attached_per_peer)")]
    User(usize),
}

coded! { AttachFull => Unavailable 6011 }

/// Counts the attached processes by user.
#[derive(Debug)]
struct AttachedByUser {
    limits: AttachLimits,
    by_user: Mutex<HashMap<u32, usize>>,
}

impl AttachedByUser {
    fn new(limits: AttachLimits) -> Arc<Self> {
        Arc::new(Self { limits, by_user: Mutex::default() })
    }

    fn take(self: &Arc<Self>, uid: u32) -> Result<AttachSlot, AttachFull> {
        let mut by_user = self.by_user.lock();
        if by_user.values().sum::<usize>() >= self.limits.attached {
            return Err(AttachFull::All(self.limits.attached));
        }
        let count = by_user.entry(uid).or_insert(0);
        if *count >= self.limits.attached_per_user {
            return Err(AttachFull::User(self.limits.attached_per_user));
        }
        *count += 1;
        Ok(AttachSlot { places: Arc::clone(self), uid })
    }
}

/// The slot of one attached process; dropping it frees the slot.
#[derive(Debug)]
struct AttachSlot {
    places: Arc<AttachedByUser>,
    uid: u32,
}

impl Drop for AttachSlot {
    fn drop(&mut self) {
        let mut by_user = self.places.by_user.lock();
        if let Some(count) = by_user.get_mut(&self.uid) {
            *count -= 1;
            if *count == 0 {
                by_user.remove(&self.uid);
            }
        }
    }
}

/// A process that may attach.
struct Admitted {
    origin: Origin,
    /// Its name as a consumer.
    consumer: String,
    /// Whether it wants to look up by itself.
    local: bool,
}

/// Ends a session when its connection ends in any way.
struct Ending<'a> {
    cache: &'a Cache,
    session: &'a str,
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.cache.0.leases.end_session(self.session);
    }
}

/// A session that looks up by itself. At its end its look-ups are written to the audit log.
struct LocalSession {
    page: SessionPage,
    _charge: Charge,
    consumer: String,
    pid: i32,
}

impl Drop for LocalSession {
    fn drop(&mut self) {
        self.page.with_record(|look_ups, record| {
            record_look_ups(&self.consumer, self.pid, look_ups, record);
        });
    }
}

impl Cache {
    /// Lets processes on the node attach until `stop`, which ends their sessions.
    pub async fn serve_attach(
        &self,
        listener: UnixListener,
        policy: PeerPolicy,
        stop: CancellationToken,
    ) {
        let limits = AttachLimits::default();
        self.serve_attach_through(listener, Arc::new(policy), limits, stop).await;
    }

    /// Like [`serve_attach`](Self::serve_attach), with the gate and the limits given.
    pub(crate) async fn serve_attach_through(
        &self,
        listener: UnixListener,
        gate: Arc<dyn AttachGate>,
        limits: AttachLimits,
        stop: CancellationToken,
    ) {
        self.tell_attach_path(&listener);
        let files = files_limit();
        let places = AttachedByUser::new(limits.within(files));
        let descriptors = Arc::new(DescriptorsInFlight::new(files / 2));
        let mut connections = tokio::task::JoinSet::new();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                Some(_) = connections.join_next() => continue,
                () = stop.cancelled() => break,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Most likely too many files are open: the pause gives others time to close
                    // some.
                    tracing::warn!(%error, "accepting on the attach socket failed");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let Ok(peer) = PeerCredentials::of(&stream) else { continue };
            let place = match places.take(peer.uid) {
                Ok(place) => place,
                Err(full) => {
                    // The refusal is sent at once if it fits into the socket, else dropped.
                    let _ = send(stream.as_fd(), &refusal(&full), &[]);
                    continue;
                }
            };
            let (cache, gate, stop) = (self.clone(), Arc::clone(&gate), stop.clone());
            let descriptors = Arc::clone(&descriptors);
            connections.spawn(async move {
                let _place = place;
                tokio::select! {
                    () = cache.attend(&stream, peer, &*gate, descriptors) => {}
                    () = stop.cancelled() => {}
                }
            });
        }
        while connections.join_next().await.is_some() {}
    }

    /// Serves one connection, from hello to hang-up.
    async fn attend(
        &self,
        stream: &UnixStream,
        peer: PeerCredentials,
        gate: &dyn AttachGate,
        descriptors: Arc<DescriptorsInFlight>,
    ) {
        let mut reader = LineReader::default();
        let ended = match self.admitted(stream, &mut reader, &peer, gate).await {
            Ok(Some(admitted)) => {
                self.serve_session(stream, reader, &peer, admitted, descriptors).await
            }
            Ok(None) => Ok(()),
            Err(error) => Err(error),
        };
        match ended {
            Ok(()) | Err(WireError::HungUp) => {}
            Err(error) => tracing::info!("attach: {}", error.message()),
        }
    }

    /// Reads the hello of a process and admits it; `None` if it was refused.
    async fn admitted(
        &self,
        stream: &UnixStream,
        reader: &mut LineReader,
        peer: &PeerCredentials,
        gate: &dyn AttachGate,
    ) -> Result<Option<Admitted>, WireError> {
        let line = timeout(HELLO_LIMIT, next_line(stream, reader));
        let line = line.await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        let hello = parse_hello(&line);
        let token = hello.as_ref().ok().and_then(|hello| hello.token.as_ref());
        let origin = match gate.admit(peer, token) {
            Ok(origin) => origin,
            Err(denied) => {
                self.0.counters.attach_refused.add(1);
                tracing::warn!(
                    pid = peer.pid,
                    uid = peer.uid,
                    consumer = hello.as_ref().ok().map(|hello| &*hello.consumer),
                    "cannot attach: {}",
                    denied.message()
                );
                // Nothing was sent before, so the refusal fits into the socket.
                let _ = send(stream.as_fd(), &refusal(&*denied), &[]);
                return Ok(None);
            }
        };
        match hello {
            Ok(hello) => {
                Ok(Some(Admitted { origin, consumer: hello.consumer, local: hello.local }))
            }
            Err(error) => {
                let _ = send(stream.as_fd(), &refusal(&error), &[]);
                Err(error)
            }
        }
    }

    /// Sends segments to a process and takes its reports until it hangs up.
    async fn serve_session(
        &self,
        stream: &UnixStream,
        mut reader: LineReader,
        peer: &PeerCredentials,
        admitted: Admitted,
        descriptors: Arc<DescriptorsInFlight>,
    ) -> Result<(), WireError> {
        let Admitted { origin, consumer, local } = admitted;
        // Subscribed before the segments are listed, so that none is missed in between.
        let mut grown = self.0.grown.subscribe();
        let session = self.0.leases.open_session(consumer, peer.pid, peer.uid, origin);
        if let Some(publisher) = &self.0.publisher {
            publisher.note_claim();
        }
        let _ending = Ending { cache: self, session: &session.id };
        let local = if local { self.local_page(&session, peer) } else { None };
        let page = local.as_ref().map(|local| &local.page);
        let mut announcer = Announcer::new(stream, &self.0.pool, &session.id, page, descriptors);
        let (mut taken, mut refused) = (0_u32, 0_u32);
        loop {
            tokio::select! {
                line = next_line(stream, &mut reader), if announcer.is_ready() => {
                    match parse_line(&line?) {
                        Ok(ClientMessage::Need(Need { kind, id })) => announcer.need(kind, id),
                        Ok(message) => {
                            let is_report = message.is_report();
                            if let Err(error) = self.take_line(&session, message) {
                                refused = refused.wrapping_add(u32::from(is_report));
                                announcer.tell(&error);
                            }
                        }
                        Err(error) => {
                            announcer.tell_at_once(&error);
                            return Err(error);
                        }
                    }
                    taken = taken.wrapping_add(1);
                    if let Some(page) = page {
                        page.page().tell_lines(taken, refused);
                    }
                }
                changed = grown.changed() => match changed {
                    Ok(()) => announcer.grown(),
                    Err(_) => return Ok(()),
                },
                ran = announcer.run() => ran?,
            }
        }
    }

    /// The pins page of a session that looks up by itself, with its charge. Without one, the
    /// process sends requests.
    fn local_page(&self, session: &SessionKey, peer: &PeerCredentials) -> Option<LocalSession> {
        let publisher = self.0.publisher.as_ref()?;
        let client = match peer.pid {
            0 => format!("uid {}", peer.uid),
            pid => format!("uid {}, pid {pid}", peer.uid),
        };
        let most = self.0.budget.limit_bytes() / PAGES_SHARE / ServicePage::BYTES;
        if publisher.pages() as u64 >= most {
            return None;
        }
        let charged = self.0.budget.client(&client).charge(ServicePage::BYTES, "pins page");
        let charge = charged.inspect_err(|error| tracing::info!("attach: {}", error.message()));
        let limits = &self.0.quotas.limits;
        // Tables from shared memory have no lease that could be revoked or counted.
        let limits = PageLimits {
            quota_bytes: limits.quota_bytes,
            tables_are_requested: limits.slow_after.is_some(),
            timeframes_are_requested: limits.slow_after.is_some()
                || limits.quota_timeframes.is_some(),
            has_barriers: crate::shm::are_barriers_supported(),
        };
        let (charge, page) = (charge.ok()?, publisher.open_page(&session.id, limits)?);
        let (consumer, pid) = (session.consumer.clone(), peer.pid);
        // Those that were registered while no session read the directory.
        let timeframes = Arc::clone(&self.0.timeframes);
        drop(tokio::task::spawn_blocking(move || timeframes.publish_all()));
        Some(LocalSession { page, _charge: charge, consumer, pid })
    }

    /// Handles the report of an attached process.
    fn take_line(&self, session: &SessionKey, message: ClientMessage) -> Result<(), CacheError> {
        let leases = &self.0.leases;
        // It may always use its own name; for other names the rules of its user or key apply.
        let name = |consumer: Option<String>| match consumer {
            Some(name) if name != session.consumer => {
                leases.check_consumer(&name, &session.origin).map(|()| name)
            }
            _ => Ok(session.consumer.clone()),
        };
        match message {
            ClientMessage::Need(_) => Ok(()),
            ClientMessage::Release { lease } => match leases.end(&LeaseId::from(lease.as_str())) {
                true => Ok(()),
                false => Err(CacheError::LeaseEnded),
            },
            ClientMessage::Delivered { timeframe: id, consumer, registration } => {
                let consumer = name(consumer)?;
                let timeframe = self.0.timeframes.get(id)?;
                if registration.is_some_and(|number| !timeframe.is_registration(number)) {
                    return Err(CacheError::UnknownTimeframe { timeframe: id });
                }
                timeframe.check_reader(&consumer)?;
                timeframe.set_delivered(&consumer);
                if registration.is_some() {
                    self.note_taken(&timeframe, &consumer);
                }
                Ok(())
            }
            ClientMessage::Consumed { done, consumer, registration } => {
                let consumer = name(consumer)?;
                let consumed = match done {
                    Done::One(timeframe) => Consumed::One { timeframe, consumer },
                    Done::Below { oldest_possible } => {
                        Consumed::Below { oldest_possible, consumer }
                    }
                };
                self.consumed_by_line(&consumed, registration).map(|_| ())
            }
        }
    }

    /// Counts and logs the table of a timeframe that a consumer took from shared memory.
    fn note_taken(&self, timeframe: &Timeframe, consumer: &str) {
        self.0.counters.local_timeframes.add(1);
        if let Some((content, pins)) = timeframe.content() {
            let request = Requester {
                timeframe: Some(timeframe.id()),
                consumer: Some(consumer),
                session: true,
            };
            let rows = timeframe.registration.plan.rows() as u64;
            record(rows, &pins, &content, &request, Duration::ZERO);
        }
    }
}

async fn next_line(stream: &UnixStream, reader: &mut LineReader) -> Result<Vec<u8>, WireError> {
    loop {
        if let Some(line) = reader.line() {
            return Ok(line);
        }
        stream.readable().await?;
        let mut read = Ok(());
        let tried = stream.try_io(Interest::READABLE, || match reader.read(stream.as_fd()) {
            Err(WireError::Io(error)) => Err(error),
            other => {
                read = other;
                Ok(())
            }
        });
        match tried {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
            Ok(()) => read?,
        }
        if reader.descriptors() > 0 {
            // Unexpected files are closed, and so is the connection.
            let reason = "descriptors, which clients do not send".to_owned();
            return Err(WireError::Malformed { expected: "a line of JSON", reason });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_user_takes_all_places_and_each_is_given_back() {
        let places = AttachedByUser::new(AttachLimits { attached: 4, attached_per_user: 3 });
        let mut taken: Vec<AttachSlot> = (0..3).map(|_| places.take(1).unwrap()).collect();
        assert!(matches!(places.take(1), Err(AttachFull::User(3))));
        let other = places.take(2).unwrap();
        assert!(matches!(places.take(3), Err(AttachFull::All(4))));
        taken.pop();
        assert!(places.take(1).is_ok());
        drop((taken, other));
        assert!(places.by_user.lock().is_empty());
    }

    #[test]
    fn where_few_files_can_be_open_fewer_processes_attach() {
        let limits = AttachLimits::default();
        assert_eq!(limits.within(1 << 20), limits);
        let few = AttachLimits { attached: 512, attached_per_user: 384 };
        assert_eq!(limits.within(1_024), few);
        assert_eq!(limits.within(0).attached, 1);
    }
}
