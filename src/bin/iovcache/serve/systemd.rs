//! What passes between systemd and the service: how it does, and descriptors for its successor.

use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::time::Duration;

use iovcache::cache::Keeper;
use iovcache::shm::attach::send;
use sd_notify::NotifyState;

/// Tells systemd, where it listens.
pub(super) fn notify(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::debug!(%error, "systemd was not told");
    }
}

/// Feeds systemd's watchdog, until it is dropped: as a task among the others, so that it falls
/// silent when these do not run any more.
pub(super) async fn say_that_it_lives(limit: Duration) {
    loop {
        notify(NotifyState::Watchdog);
        tokio::time::sleep(limit / 3).await;
    }
}

/// systemd's store of descriptors (`FileDescriptorStoreMax=` of the unit): what is put there comes
/// to the process that is started next, also after this one was killed.
#[derive(Debug)]
struct DescriptorStore(UnixDatagram);

/// The store, where there may be one. systemd of before version 254 does not say whether there is;
/// it throws away what it does not keep.
pub(super) fn descriptor_store() -> Option<Arc<dyn Keeper>> {
    let path = std::env::var_os("NOTIFY_SOCKET")?;
    if std::env::var("FDSTORE").is_ok_and(|most| most == "0") {
        return None;
    }
    let connected = UnixDatagram::unbound().and_then(|socket| {
        socket.connect(path)?;
        // Nobody who waits for an object is to wait for systemd.
        socket.set_write_timeout(Some(Duration::from_secs(1)))?;
        Ok(socket)
    });
    match connected {
        Ok(socket) => Some(Arc::new(DescriptorStore(socket))),
        Err(error) => {
            tracing::warn!(%error, "nothing is kept for a successor");
            None
        }
    }
}

impl DescriptorStore {
    fn tell(&self, message: &str, files: &[BorrowedFd<'_>]) {
        if let Err(error) = send(self.0.as_fd(), message.as_bytes(), files) {
            tracing::warn!(%error, "systemd's store of descriptors was not told");
        }
    }
}

impl Keeper for DescriptorStore {
    fn keep(&self, name: &str, file: BorrowedFd<'_>) {
        // A memfd has no end that could be waited for.
        self.tell(&format!("FDSTORE=1\nFDNAME={name}\nFDPOLL=0\n"), &[file]);
    }

    fn forget(&self, name: &str) {
        self.tell(&format!("FDSTOREREMOVE=1\nFDNAME={name}\n"), &[]);
    }
}
