//! Communication with systemd: the state of the service, and descriptors for its successor.
//!
//! ```text
//!  any thread ── message ──▶ queue ──▶ task ── when the socket has room ──▶ $NOTIFY_SOCKET
//! ```
//!
//! Sending never blocks a caller: a systemd that does not read fills its socket, and the messages
//! are queued here.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram as StdDatagram};
use std::time::Duration;

use iovcache::cache::DescriptorStore;
use iovcache::shm::attach::send;
use tokio::io::Interest;
use tokio::net::UnixDatagram;
use tokio::sync::{mpsc, oneshot};

/// Maximum number of queued messages. A service has fewer segments.
const MAX_QUEUED: usize = 4_096;
/// Time limit for sending the last messages when the service ends.
const END_LIMIT: Duration = Duration::from_secs(1);
/// Pause before a message is sent again to a socket that refused it.
const RETRY: Duration = Duration::from_millis(200);
/// Attempts to send one message to a socket that refuses it.
const ATTEMPTS: usize = 5;

/// Reports the state of the service to the socket of `$NOTIFY_SOCKET`. Clones share one queue.
#[derive(Debug, Clone)]
pub(super) struct Notifier {
    queue: Option<mpsc::Sender<Message>>,
}

#[derive(Debug)]
enum Message {
    Text(String, Option<OwnedFd>),
    /// Answered when all earlier messages are sent.
    Flush(oneshot::Sender<()>),
}

impl Notifier {
    /// Connects to the socket that the environment names; must be called within the runtime.
    pub(super) fn from_environment() -> Self {
        let Some(name) = std::env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else {
            return Self { queue: None };
        };
        match address(name.as_bytes()).and_then(|address| Ok((connect(&address)?, address))) {
            Ok((socket, address)) => Self::over(socket, address),
            Err(error) => {
                tracing::warn!(%error, socket = ?name, "the service's state is not sent to systemd");
                Self { queue: None }
            }
        }
    }

    fn over(socket: UnixDatagram, address: SocketAddr) -> Self {
        let (queue, messages) = mpsc::channel(MAX_QUEUED);
        tokio::spawn(deliver(socket, address, messages));
        Self { queue: Some(queue) }
    }

    /// Queues a state such as `READY=1`.
    pub(super) fn tell(&self, state: &str) {
        self.push(Message::Text(format!("{state}\n"), None));
    }

    fn push(&self, message: Message) {
        if let Some(queue) = &self.queue
            && let Err(error) = queue.try_send(message)
        {
            tracing::warn!(%error, "a message for systemd is lost");
        }
    }

    /// Feeds systemd's watchdog until dropped. It runs as a task on the runtime, so that it stops
    /// when the runtime's tasks do not run any more.
    pub(super) async fn feed_watchdog(self, limit: Duration) {
        let Some(queue) = &self.queue else { return };
        loop {
            // A queued message is enough.
            if queue.capacity() == queue.max_capacity() {
                self.tell("WATCHDOG=1");
            }
            tokio::time::sleep(limit / 3).await;
        }
    }

    /// Waits at most [`END_LIMIT`] until all messages are sent.
    pub(super) async fn flush(&self) {
        let (sent, all_sent) = oneshot::channel();
        if self.queue.is_some() {
            self.push(Message::Flush(sent));
            let _ = tokio::time::timeout(END_LIMIT, all_sent).await;
        }
    }

    /// systemd's store of descriptors (`FileDescriptorStoreMax=` of the unit), if there may be one.
    /// The next process gets the descriptors stored there, also after this one was killed. Versions
    /// of systemd before 254 do not report whether there is a store; they discard descriptors that
    /// they do not keep.
    pub(super) fn descriptor_store(&self) -> Option<SystemdStore> {
        let is_off = std::env::var("FDSTORE").is_ok_and(|most| most == "0");
        (self.queue.is_some() && !is_off).then(|| SystemdStore(self.clone()))
    }
}

/// The address of a notification socket: a path, or `@name` in the abstract namespace.
fn address(name: &[u8]) -> io::Result<SocketAddr> {
    match name {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        [b'/', ..] => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(name)),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "expected an absolute path, or @name in the abstract namespace",
        )),
    }
}

fn connect(address: &SocketAddr) -> io::Result<UnixDatagram> {
    let socket = StdDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.connect_addr(address)?;
    UnixDatagram::from_std(socket)
}

/// Sends the messages in order.
async fn deliver(
    mut socket: UnixDatagram,
    address: SocketAddr,
    mut messages: mpsc::Receiver<Message>,
) {
    while let Some(message) = messages.recv().await {
        let (text, file) = match message {
            Message::Text(text, file) => (text, file),
            Message::Flush(sent) => {
                let _ = sent.send(());
                continue;
            }
        };
        let files: Vec<BorrowedFd<'_>> = file.iter().map(|file| file.as_fd()).collect();
        for attempt in 1.. {
            let sent = socket
                .async_io(Interest::WRITABLE, || send(socket.as_fd(), text.as_bytes(), &files));
            let Err(error) = sent.await else { break };
            if attempt == ATTEMPTS {
                tracing::warn!(%error, "not sent to systemd: {:?}", text.trim_end());
                break;
            }
            // A socket that was made anew (by another manager) needs a new connection.
            tokio::time::sleep(RETRY).await;
            if let Ok(again) = connect(&address) {
                socket = again;
            }
        }
    }
}

/// systemd's store of descriptors.
#[derive(Debug)]
pub(super) struct SystemdStore(Notifier);

impl DescriptorStore for SystemdStore {
    fn keep(&self, name: &str, file: BorrowedFd<'_>) {
        match file.try_clone_to_owned() {
            // A memfd has no hang-up to poll for.
            Ok(file) => {
                let text = format!("FDSTORE=1\nFDNAME={name}\nFDPOLL=0\n");
                self.0.push(Message::Text(text, Some(file)));
            }
            Err(error) => tracing::warn!(%error, name, "not kept for the next process"),
        }
    }

    fn forget(&self, name: &str) {
        self.0.push(Message::Text(format!("FDSTOREREMOVE=1\nFDNAME={name}\n"), None));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn told(inbox: &UnixDatagram) -> String {
        let mut message = [0; 256];
        let read = tokio::time::timeout(Duration::from_secs(20), inbox.recv(&mut message));
        let length = read.await.unwrap().unwrap();
        String::from_utf8_lossy(&message[..length]).into_owned()
    }

    #[tokio::test]
    async fn a_socket_that_is_full_holds_up_no_caller_and_gets_all_messages_in_order_later() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let inbox = UnixDatagram::bind(&path).unwrap();
        let address = address(path.as_os_str().as_bytes()).unwrap();
        let notifier = Notifier::over(connect(&address).unwrap(), address);
        let began = std::time::Instant::now();
        (0..2_000).for_each(|number| notifier.tell(&format!("STATUS={number}")));
        assert!(began.elapsed() < Duration::from_secs(5));
        // Waits until the socket's queue is full.
        tokio::time::sleep(Duration::from_millis(50)).await;
        for number in 0..2_000 {
            assert_eq!(told(&inbox).await, format!("STATUS={number}\n"));
        }
        notifier.flush().await;
    }

    #[tokio::test]
    async fn an_abstract_name_is_reached_and_one_that_is_no_address_is_refused() {
        let name = format!("iovcache-test-{}", uuid::Uuid::new_v4().simple());
        let inbox =
            StdDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        inbox.set_nonblocking(true).unwrap();
        let inbox = UnixDatagram::from_std(inbox).unwrap();
        let address = address(format!("@{name}").as_bytes()).unwrap();
        let notifier = Notifier::over(connect(&address).unwrap(), address);
        notifier.tell("READY=1");
        assert_eq!(told(&inbox).await, "READY=1\n");
        assert!(super::address(b"relative/name").is_err());
    }
}
