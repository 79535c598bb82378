//! The connections of Flight: accepted, counted, and closed if the client does not send in time.
//!
//! ```text
//!  accept ─▶ too many, too many of this peer, or address cut recently? ─▶ closed
//!    │
//!    ▼ TLS handshake (TCP) ─▶ Connection ─▶ tonic
//!                               │ the first bytes of HTTP/2 must come in time
//!                               ▼ dropped: its permit is returned
//! ```

use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Sleep, sleep, timeout};
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

use super::auth::{Peer, PeerKey};
use super::client;
use super::limits::Limits;
use super::local_user::Loopback;
use super::reset_limit::ConnectionWatch;
use super::tls::{self, Tls};
use crate::budget::{Budget, ClientBudget};
use crate::cache::Cache;
use crate::shm::attach::PeerCredentials;
use crate::sync::{Mutex, MutexGuard};

/// Maximum connections ready for HTTP/2 and not yet taken by tonic.
const MAX_WAITING: usize = 64;
/// First bytes of HTTP/2: the preface, and the head of the first frame.
const FIRST_BYTES: usize = 24 + 9;
/// Pause of accepting when the system has no more descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// A listener of Flight.
#[derive(Debug)]
pub(super) enum Acceptor {
    Unix(UnixListener),
    Tcp(TcpListener, Option<Tls>),
}

/// Accepts until `stop`. The stream yields connections that are ready for HTTP/2.
pub(super) fn accept(
    acceptor: Acceptor,
    limits: &Limits,
    cache: &Cache,
    stop: CancellationToken,
) -> ReceiverStream<io::Result<Connection>> {
    let (ready, accepted) = mpsc::channel(MAX_WAITING);
    let slots = PeerSlots {
        taken: Arc::default(),
        connections: limits.connections,
        per_peer: limits.connections_per_peer,
    };
    let (handshake, resets) = (limits.handshake.duration(), limits.resets);
    let cache = cache.clone();
    tokio::spawn(async move {
        let mut handshakes = JoinSet::new();
        loop {
            let next = tokio::select! {
                next = acceptor.accept() => next,
                Some(_) = handshakes.join_next() => continue,
                () = stop.cancelled() => return,
                () = ready.closed() => return,
            };
            match next {
                Ok((raw, peer)) => match slots.take(peer.key()) {
                    Some(slot) => {
                        let tls = acceptor.tls().cloned();
                        let budget = cache.budget().clone();
                        let handshake = Handshake { raw, peer, tls, within: handshake, resets };
                        handshakes.spawn(handshake.finish(slot, budget, ready.clone()));
                    }
                    None => cache.counters().connections_refused.add(1),
                },
                Err(error) => {
                    // Most likely too many open files: wait before the next attempt.
                    tracing::warn!(%error, "accepting a connection failed");
                    sleep(PAUSE).await;
                }
            }
        }
    });
    ReceiverStream::new(accepted)
}

/// An accepted stream that is not yet ready for HTTP/2.
struct Handshake {
    raw: RawStream,
    peer: Peer,
    tls: Option<Tls>,
    within: Duration,
    resets: usize,
}

impl Handshake {
    /// Does the handshake and sends the connection to the server. Closes the stream if it fails.
    async fn finish(
        self,
        slot: SlotGuard,
        budget: Budget,
        ready: mpsc::Sender<io::Result<Connection>>,
    ) {
        let Self { raw, peer, tls, within, resets } = self;
        match enter(raw, peer, tls, within).await {
            Ok((socket, peer)) => {
                let line = Arc::new(ConnectionWatch::new(resets, socket.loopback()));
                let budget = budget.client(&client::name(&peer));
                let entered = PeerInfo { peer, line, budget };
                let first = FirstBytes::within(within);
                let connection = Connection { socket, entered, first, slot };
                drop(ready.send(Ok(connection)).await);
            }
            Err(error) => tracing::debug!(%error, "a connection failed"),
        }
    }
}

/// A connection that is accepted and not yet admitted.
enum RawStream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Acceptor {
    async fn accept(&self) -> io::Result<(RawStream, Peer)> {
        match self {
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                let peer = PeerCredentials::of(&stream)?;
                Ok((RawStream::Unix(stream), Peer::Process(peer)))
            }
            Self::Tcp(listener, _) => {
                let (stream, address) = listener.accept().await?;
                // Without this a small answer waits 40 ms for the client's acknowledgement.
                stream.set_nodelay(true)?;
                Ok((RawStream::Tcp(stream), Peer::Address { address, certificate: None }))
            }
        }
    }

    fn tls(&self) -> Option<&Tls> {
        match self {
            Self::Unix(_) => None,
            Self::Tcp(_, tls) => tls.as_ref(),
        }
    }
}

async fn enter(
    raw: RawStream,
    peer: Peer,
    tls: Option<Tls>,
    handshake: Duration,
) -> io::Result<(Socket, Peer)> {
    Ok(match (raw, tls) {
        (RawStream::Unix(stream), _) => (Socket::Unix(stream), peer),
        (RawStream::Tcp(stream), None) => (Socket::Tcp(stream), peer),
        (RawStream::Tcp(stream), Some(tls)) => {
            let stream = timeout(handshake, tls.accept(stream)).await??;
            let peer = match peer {
                Peer::Address { address, .. } => {
                    Peer::Address { address, certificate: tls::names(&stream) }
                }
                Peer::Process(_) => peer,
            };
            (Socket::Tls(Box::new(stream)), peer)
        }
    })
}

/// The number of connections, in total and per peer.
#[derive(Debug, Clone)]
struct PeerSlots {
    taken: Arc<Mutex<SlotCounts>>,
    connections: usize,
    per_peer: usize,
}

/// Number of connections in total and by peer.
#[derive(Debug, Default)]
struct SlotCounts {
    all: usize,
    of: HashMap<PeerKey, usize>,
    /// Addresses of other nodes with a cut connection, and the time of the cut.
    cut: HashMap<PeerKey, Instant>,
}

/// Time during which no connection is accepted from another node after one of its connections was
/// cut. Otherwise a flood of cancelled calls continues over the next connection. On this node only
/// the connection is cut, because local clients cannot be told apart.
const CUT_LIMIT: Duration = Duration::from_secs(1);
/// Number of cut addresses kept before expired ones are removed.
const MAX_CUT_ADDRESSES: usize = 1_024;

impl PeerSlots {
    fn taken(&self) -> MutexGuard<'_, SlotCounts> {
        self.taken.lock()
    }

    fn take(&self, key: PeerKey) -> Option<SlotGuard> {
        let mut taken = self.taken();
        let rests = taken.cut.get(&key).is_some_and(|at| at.elapsed() < CUT_LIMIT);
        if taken.all >= self.connections || rests {
            return None;
        }
        let of_peer = taken.of.entry(key).or_insert(0);
        if *of_peer >= self.per_peer {
            return None;
        }
        *of_peer += 1;
        taken.all += 1;
        drop(taken);
        Some(SlotGuard { slots: self.clone(), key })
    }

    /// A connection of this peer was cut.
    fn cut(&self, key: PeerKey) {
        let PeerKey::Address(_) = key else { return };
        let mut taken = self.taken();
        if taken.cut.len() >= MAX_CUT_ADDRESSES {
            taken.cut.retain(|_, at| at.elapsed() < CUT_LIMIT);
        }
        taken.cut.insert(key, Instant::now());
    }
}

/// The permit of one connection.
#[derive(Debug)]
struct SlotGuard {
    slots: PeerSlots,
    key: PeerKey,
}

impl Drop for SlotGuard {
    fn drop(&mut self) {
        let mut taken = self.slots.taken();
        taken.all -= 1;
        if let Some(of_peer) = taken.of.get_mut(&self.key) {
            *of_peer -= 1;
            if *of_peer == 0 {
                taken.of.remove(&self.key);
            }
        }
    }
}

/// The stream of an admitted connection.
#[derive(Debug)]
enum Socket {
    Unix(UnixStream),
    Tcp(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Socket {
    fn loopback(&self) -> Option<Loopback> {
        let tcp = match self {
            Self::Unix(_) => return None,
            Self::Tcp(tcp) => tcp,
            Self::Tls(tls) => tls.get_ref().0,
        };
        Loopback::new(tcp.local_addr().ok()?, tcp.peer_addr().ok()?)
    }
}

/// The first bytes, and the deadline for them.
#[derive(Debug)]
struct FirstBytes {
    missing: usize,
    limit: Pin<Box<Sleep>>,
}

impl FirstBytes {
    fn within(limit: Duration) -> Option<Self> {
        Some(Self { missing: FIRST_BYTES, limit: Box::pin(sleep(limit)) })
    }
}

/// The client of a connection, as its calls see it.
#[derive(Debug, Clone)]
pub(super) struct PeerInfo {
    /// The other end.
    pub(super) peer: Peer,
    /// The connection's count of cancelled calls.
    pub(super) line: Arc<ConnectionWatch>,
    /// The account to which the memory of its requests is charged.
    pub(super) budget: ClientBudget,
}

impl PeerInfo {
    /// The account of the client that sent a request.
    pub(super) fn budget<T>(request: &tonic::Request<T>) -> ClientBudget {
        let entered = request.extensions().get::<Self>();
        entered.map(|entered| entered.budget.clone()).unwrap_or_default()
    }
}

/// A connection with the identity of its peer.
#[derive(Debug)]
pub(super) struct Connection {
    socket: Socket,
    entered: PeerInfo,
    first: Option<FirstBytes>,
    slot: SlotGuard,
}

impl Drop for Connection {
    fn drop(&mut self) {
        if self.entered.line.is_cut() {
            self.slot.slots.cut(self.slot.key);
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = PeerInfo;

    fn connect_info(&self) -> PeerInfo {
        self.entered.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.entered.line.is_cut() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        let (before, room) = (buffer.filled().len(), buffer.remaining());
        let read = match &mut self.socket {
            Socket::Unix(socket) => Pin::new(socket).poll_read(context, buffer),
            Socket::Tcp(socket) => Pin::new(socket).poll_read(context, buffer),
            Socket::Tls(socket) => Pin::new(socket).poll_read(context, buffer),
        };
        let is_over = match &read {
            Poll::Ready(Ok(())) => buffer.filled().len() == before && room > 0,
            Poll::Ready(Err(_)) => true,
            Poll::Pending => false,
        };
        if is_over {
            self.entered.line.set_over();
        }
        let Some(first) = &mut self.first else { return read };
        match read {
            Poll::Ready(Ok(())) => {
                let count = buffer.filled().len() - before;
                match first.missing.checked_sub(count).filter(|&missing| missing > 0) {
                    Some(missing) => first.missing = missing,
                    None => self.first = None,
                }
                read
            }
            Poll::Ready(Err(_)) => read,
            Poll::Pending => match first.limit.as_mut().poll(context) {
                Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
                Poll::Pending => Poll::Pending,
            },
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.socket {
            Socket::Unix(socket) => Pin::new(socket).poll_write(context, bytes),
            Socket::Tcp(socket) => Pin::new(socket).poll_write(context, bytes),
            Socket::Tls(socket) => Pin::new(socket).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.socket {
            Socket::Unix(socket) => Pin::new(socket).poll_write_vectored(context, slices),
            Socket::Tcp(socket) => Pin::new(socket).poll_write_vectored(context, slices),
            Socket::Tls(socket) => Pin::new(socket).poll_write_vectored(context, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.socket {
            Socket::Unix(socket) => socket.is_write_vectored(),
            Socket::Tcp(socket) => socket.is_write_vectored(),
            Socket::Tls(socket) => socket.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.socket {
            Socket::Unix(socket) => Pin::new(socket).poll_flush(context),
            Socket::Tcp(socket) => Pin::new(socket).poll_flush(context),
            Socket::Tls(socket) => Pin::new(socket).poll_flush(context),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.socket {
            Socket::Unix(socket) => Pin::new(socket).poll_shutdown(context),
            Socket::Tcp(socket) => Pin::new(socket).poll_shutdown(context),
            Socket::Tls(socket) => Pin::new(socket).poll_shutdown(context),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_counted_in_all_and_for_each_peer() {
        let (connections, per_peer) = (3, 2);
        let slots = PeerSlots { taken: Arc::default(), connections, per_peer };
        let first = slots.take(PeerKey::Uid(1)).unwrap();
        let _second = slots.take(PeerKey::Uid(1)).unwrap();
        assert!(slots.take(PeerKey::Uid(1)).is_none());
        let third = slots.take(PeerKey::Uid(2)).unwrap();
        assert!(slots.take(PeerKey::Uid(3)).is_none());
        drop(first);
        assert!(slots.take(PeerKey::Uid(1)).is_some());
        drop(third);
        assert_eq!(slots.taken().all, 1);
        assert_eq!(slots.taken().of[&PeerKey::Uid(1)], 1);
        assert!(!slots.taken().of.contains_key(&PeerKey::Uid(2)));
    }

    #[test]
    fn after_a_cut_another_node_rests_and_clients_of_this_node_do_not() {
        let (connections, per_peer) = (3, 2);
        let slots = PeerSlots { taken: Arc::default(), connections, per_peer };
        let far = PeerKey::Address([192, 0, 2, 1].into());
        for key in [far, PeerKey::Uid(1), PeerKey::Loopback] {
            slots.cut(key);
        }
        assert!(slots.take(far).is_none());
        assert!(slots.take(PeerKey::Address([192, 0, 2, 2].into())).is_some());
        assert!(slots.take(PeerKey::Uid(1)).is_some());
        assert!(slots.take(PeerKey::Loopback).is_some());
    }
}
