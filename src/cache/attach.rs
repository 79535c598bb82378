//! The attach socket: hands the segments to the processes on the node, and sees them die.
//!
//! ```text
//!  client ── {"hello": 1, "consumer": …} ──▶            session opens
//!         ◀── {"session", "epoch", "segments"} + fds ──
//!         ◀── one more such line for each new segment ──
//!         ── {"need": {"kind", "id"}} ──▶               the same line again
//!         ◀── {"kind", "error"}                         who may not is told why, and hung up on
//!         hang-up (or death: the kernel hangs up)       session ends, its pins are gone
//! ```
//!
//! Linux only: SCM_RIGHTS, SO_PEERCRED.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::Cache;
use crate::error::{Code, Coded, ErrorKind};
use crate::secret::Secret;
use crate::shm::attach::{
    Announcement, LineReader, MAX_DESCRIPTORS, Need, PeerCredentials, Refusal, SegmentEntry,
    WireError, parse_hello, parse_need, send,
};
use crate::shm::{Kind, SharedSegment};

/// How long a client may take to say hello.
const HELLO_LIMIT: Duration = Duration::from_secs(10);
/// How long a client may leave what we send unread.
const SEND_LIMIT: Duration = Duration::from_secs(30);

/// How many processes can be attached at a time.
const MAX_ATTACHED: usize = 4_096;

/// Decides who may attach.
pub trait AttachGate: Send + Sync {
    /// Whether this process may, with the token that it sent.
    ///
    /// # Errors
    /// Why it may not; it is told so.
    fn admit(
        &self,
        peer: &PeerCredentials,
        token: Option<&Secret>,
    ) -> Result<(), Box<dyn Coded + Send + Sync>>;
}

/// Who may attach, by what the kernel says of the peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerPolicy {
    /// Users that may; by default the service's own and root.
    pub uids: Vec<u32>,
    /// Groups whose members may.
    pub gids: Vec<u32>,
}

impl Default for PeerPolicy {
    fn default() -> Self {
        let own = rustix::process::geteuid().as_raw();
        Self { uids: vec![own, 0], gids: Vec::new() }
    }
}

impl PeerPolicy {
    /// Whether a peer with this user and these groups may.
    pub fn admits(&self, uid: u32, gids: &[u32]) -> bool {
        self.uids.contains(&uid) || gids.iter().any(|gid| self.gids.contains(gid))
    }
}

impl AttachGate for PeerPolicy {
    fn admit(
        &self,
        peer: &PeerCredentials,
        _token: Option<&Secret>,
    ) -> Result<(), Box<dyn Coded + Send + Sync>> {
        match self.admits(peer.uid, &peer.gids) {
            true => Ok(()),
            false => Err(Box::new(NotListed { uid: peer.uid, gids: peer.gids.clone() })),
        }
    }
}

/// The user of a process on the node is not listed, nor is any of its groups.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("user {uid} (groups {gids:?}) is none of those that may connect here")]
pub struct NotListed {
    /// The user.
    pub uid: u32,
    /// Its groups.
    pub gids: Vec<u32>,
}

impl Coded for NotListed {
    fn kind(&self) -> ErrorKind {
        ErrorKind::PermissionDenied
    }
    fn code(&self) -> Code {
        Code(6005)
    }
}

/// So many are attached that no more are let in.
#[derive(Debug, thiserror::Error)]
#[error("{MAX_ATTACHED} processes are attached, no more are let in")]
struct Full;

impl Coded for Full {
    fn kind(&self) -> ErrorKind {
        ErrorKind::Unavailable
    }
    fn code(&self) -> Code {
        Code(6011)
    }
}

/// Ends a session when its connection ends, however that ends.
struct Ending<'a> {
    cache: &'a Cache,
    session: String,
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.cache.0.leases.end_session(&self.session);
    }
}

impl Cache {
    /// Lets processes on the node attach, until `stop`: then their sessions end.
    pub async fn serve_attach(
        &self,
        listener: UnixListener,
        policy: PeerPolicy,
        stop: CancellationToken,
    ) {
        self.serve_attach_through(listener, Arc::new(policy), stop).await;
    }

    /// The same, for those whom a gate lets in.
    pub async fn serve_attach_through(
        &self,
        listener: UnixListener,
        gate: Arc<dyn AttachGate>,
        stop: CancellationToken,
    ) {
        self.tell_attach_path(&listener);
        let places = Arc::new(Semaphore::new(MAX_ATTACHED));
        let mut connections = tokio::task::JoinSet::new();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                Some(_) = connections.join_next() => continue,
                () = stop.cancelled() => break,
            };
            match accepted {
                Ok((stream, _)) => {
                    let (cache, gate, stop) = (self.clone(), Arc::clone(&gate), stop.clone());
                    let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                        // What fits into the socket goes at once, or it does not go.
                        let _ = send(stream.as_fd(), &refusal(&Full), &[]);
                        continue;
                    };
                    connections.spawn(async move {
                        let _place = place;
                        let ended = tokio::select! {
                            ended = cache.attend(&stream, &*gate) => ended,
                            () = stop.cancelled() => Ok(()),
                        };
                        match ended {
                            Ok(()) | Err(WireError::HungUp) => {}
                            Err(error) => tracing::info!("attach: {}", error.message()),
                        }
                    });
                }
                Err(error) => {
                    // Too many open files, most likely: the next try needs some time.
                    tracing::warn!(%error, "accepting on the attach socket failed");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
        while connections.join_next().await.is_some() {}
    }

    /// One connection, from hello to hang-up.
    async fn attend(&self, stream: &UnixStream, gate: &dyn AttachGate) -> Result<(), WireError> {
        let peer = PeerCredentials::of(stream)?;
        let mut reader = LineReader::default();
        let line = timeout(HELLO_LIMIT, next_line(stream, &mut reader));
        let line = line.await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        let hello = parse_hello(&line);
        let admitted =
            gate.admit(&peer, hello.as_ref().ok().and_then(|hello| hello.token.as_ref()));
        if let Err(denied) = admitted {
            self.0.counters.attach_refused.add(1);
            tracing::warn!(pid = peer.pid, uid = peer.uid, "may not attach: {}", denied.message());
            timeout(SEND_LIMIT, send_all(stream, &refusal(&*denied), &[])).await.ok();
            return Ok(());
        }
        let consumer = match hello {
            Ok(hello) => hello.consumer,
            Err(error) => {
                timeout(SEND_LIMIT, send_all(stream, &refusal(&error), &[])).await.ok();
                return Err(error);
            }
        };
        // Watched before the segments are listed, so that none is missed in between.
        let mut grown = self.0.grown.subscribe();
        let session = self.0.leases.open_session(consumer, peer.pid, peer.uid);
        let _ending = Ending { cache: self, session: session.clone() };
        let mut told = HashSet::new();
        self.announce(stream, &session, &mut told, true).await?;
        loop {
            let asked = tokio::select! {
                line = next_line(stream, &mut reader) => {
                    let Need { kind, id } = parse_need(&line?)?;
                    told.remove(&(kind, id));
                    true
                }
                changed = grown.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    false
                }
            };
            // Who asks gets an answer, if only that there is no such segment.
            self.announce(stream, &session, &mut told, asked).await?;
        }
    }

    /// Sends what is not told yet; `even_nothing`: a line without any segment too.
    async fn announce(
        &self,
        stream: &UnixStream,
        session: &str,
        told: &mut HashSet<(Kind, u16)>,
        even_nothing: bool,
    ) -> Result<(), WireError> {
        let all: Vec<SharedSegment> = self.0.pool.segments();
        // An id that is gone can come back as another segment.
        told.retain(|(kind, id)| all.iter().any(|one| (one.kind(), one.id()) == (*kind, *id)));
        let fresh: Vec<&SharedSegment> = all
            .iter()
            .filter(|one| one.file().is_some() && !told.contains(&(one.kind(), one.id())))
            .collect();
        let mut parts: Vec<&[&SharedSegment]> = fresh.chunks(MAX_DESCRIPTORS).collect();
        if parts.is_empty() && even_nothing {
            parts.push(&[]);
        }
        for part in parts {
            let segments = part.iter().map(|one| SegmentEntry::from(*one)).collect();
            let epoch = self.0.pool.epoch().to_string();
            let message = Announcement { session: session.to_owned(), epoch, segments };
            let mut line = serde_json::to_vec(&message).map_err(io::Error::from)?;
            line.push(b'\n');
            let files: Vec<BorrowedFd<'_>> = part.iter().filter_map(|one| one.file()).collect();
            let sent = timeout(SEND_LIMIT, send_all(stream, &line, &files)).await;
            sent.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
            told.extend(part.iter().map(|one| (one.kind(), one.id())));
        }
        Ok(())
    }
}

/// The line for who is not let in.
fn refusal(error: &(dyn Coded + Send + Sync)) -> Vec<u8> {
    let refusal = Refusal { kind: error.kind().name().to_owned(), error: error.message() };
    let mut line = serde_json::to_vec(&refusal).unwrap_or_default();
    line.push(b'\n');
    line
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
            // Nobody asked for files: they are closed, and so is the connection.
            let reason = "descriptors, which a client does not send".to_owned();
            return Err(WireError::Malformed { expected: "a line of JSON", reason });
        }
    }
}

async fn send_all(stream: &UnixStream, line: &[u8], files: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut sent = 0;
    while sent < line.len() {
        stream.writable().await?;
        // The files go with the first byte, once.
        let files = if sent == 0 { files } else { &[] };
        let tried =
            stream.try_io(Interest::WRITABLE, || send(stream.as_fd(), &line[sent..], files));
        match tried {
            Ok(count) => sent += count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
