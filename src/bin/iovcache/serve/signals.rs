//! SIGTERM and SIGINT: the first ends the service in order, the second ends it without waiting for
//! running requests.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::failure::Failure;

/// SIGHUP.
pub(super) fn hangup() -> Result<Signal, Failure> {
    signal(SignalKind::hangup()).map_err(|error| Failure::io("cannot listen for SIGHUP", error))
}

/// SIGTERM and SIGINT.
pub(super) struct Signals([Signal; 2]);

impl Signals {
    pub(super) fn listen() -> Result<Self, Failure> {
        let listen =
            |kind| signal(kind).map_err(|error| Failure::io("cannot listen for signals", error));
        Ok(Self([listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?]))
    }

    /// Waits for the first signal; the second cancels `hurry`.
    pub(super) async fn stop(mut self, hurry: CancellationToken) {
        self.next().await;
        tokio::spawn(async move {
            self.next().await;
            hurry.cancel();
        });
    }

    async fn next(&mut self) {
        let [terminate, interrupt] = &mut self.0;
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
    }
}
