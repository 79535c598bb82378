//! The attach socket: hands the segments to the processes on the node, and sees them die.
//!
//! ```text
//!  client ── {"hello": 1, "consumer": …} ──▶            session opens
//!         ◀── {"session", "epoch", "segments"} + fds ──
//!         ◀── one more such line for each new segment ──
//!         ── {"need": {"kind", "id"}} ──▶               the same line again
//!         hang-up (or death: the kernel hangs up)       session ends, its pins are gone
//! ```
//!
//! Linux only: SCM_RIGHTS, SO_PEERCRED.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::Cache;
use crate::error::Coded as _;
use crate::shm::attach::{
    Announcement, Hello, LineReader, MAX_DESCRIPTORS, Need, PeerCredentials, SegmentEntry,
    WireError, parse_hello, parse_need, send,
};
use crate::shm::{Kind, SharedSegment};

/// How long a client may take to say hello.
const HELLO_LIMIT: Duration = Duration::from_secs(10);
/// How long a client may leave what we send unread.
const SEND_LIMIT: Duration = Duration::from_secs(30);

/// Who may attach, by what the kernel says of the peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerPolicy {
    /// Users that may; by default the service's own and root.
    pub uids: Vec<u32>,
    /// Groups that may.
    pub gids: Vec<u32>,
}

impl Default for PeerPolicy {
    fn default() -> Self {
        let own = rustix::process::geteuid().as_raw();
        Self { uids: vec![own, 0], gids: Vec::new() }
    }
}

impl PeerPolicy {
    /// Whether a peer with this user and group may.
    pub fn admits(&self, uid: u32, gid: u32) -> bool {
        self.uids.contains(&uid) || self.gids.contains(&gid)
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
        self.tell_attach_path(&listener);
        let mut connections = tokio::task::JoinSet::new();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                Some(_) = connections.join_next() => continue,
                () = stop.cancelled() => break,
            };
            match accepted {
                Ok((stream, _)) => {
                    let (cache, policy, stop) = (self.clone(), policy.clone(), stop.clone());
                    connections.spawn(async move {
                        let ended = tokio::select! {
                            ended = cache.attend(&stream, &policy) => ended,
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
    async fn attend(&self, stream: &UnixStream, policy: &PeerPolicy) -> Result<(), WireError> {
        let peer = PeerCredentials::of(stream)?;
        if !policy.admits(peer.uid, peer.gid) {
            tracing::warn!(pid = peer.pid, uid = peer.uid, gid = peer.gid, "may not attach");
            return Ok(());
        }
        let mut reader = LineReader::default();
        let line = timeout(HELLO_LIMIT, next_line(stream, &mut reader));
        let line = line.await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        let Hello { consumer, .. } = parse_hello(&line)?;
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
