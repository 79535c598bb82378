//! The client that a call comes from, for the log: a refusal names address, key and consumer.
//!
//! The guard sets it for the duration of a call. Answers that are streamed after the call was
//! answered (DoExchange) name the consumer in the message itself.

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use super::auth::Peer;

tokio::task_local! {
    static CALL: CallOrigin;
}

/// The address of a client.
#[derive(Debug, Clone, Copy)]
enum ClientAddress {
    /// A process on this node, by the Unix socket; pid 0 if its container hides it.
    Process { uid: u32, pid: i32 },
    /// A client by TCP.
    Network(SocketAddr),
}

/// The client of the call that the current task serves.
#[derive(Debug, Default)]
pub(super) struct CallOrigin {
    address: Option<ClientAddress>,
    /// The name of its key; `None` where no key is needed.
    key: Option<Arc<str>>,
    consumer: OnceLock<String>,
}

impl CallOrigin {
    pub(super) fn new(peer: Option<&Peer>, key: Option<Arc<str>>) -> Self {
        let address = peer.map(|peer| match peer {
            Peer::Process(process) => ClientAddress::Process { uid: process.uid, pid: process.pid },
            Peer::Address { address, .. } => ClientAddress::Network(*address),
        });
        Self { address, key, consumer: OnceLock::new() }
    }

    /// Runs a future as a part of the call.
    pub(super) async fn scope<F: Future>(self, call: F) -> F::Output {
        CALL.scope(self, call).await
    }

    /// Runs a function as a part of the call.
    pub(super) fn sync_scope<R>(self, call: impl FnOnce() -> R) -> R {
        CALL.sync_scope(self, call)
    }
}

/// Notes the consumer that the current call names.
pub(super) fn set_consumer(consumer: &str) {
    // Outside of a call there is nothing to note.
    let _ = CALL.try_with(|call| call.consumer.set(consumer.to_owned()));
}

/// The client of the current call, e.g. `10.1.2.3:4000, key "shift", consumer "qc"`; `None` outside of
/// a call.
pub(super) fn described() -> Option<String> {
    CALL.try_with(|call| call.address.is_some().then(|| call.to_string())).ok().flatten()
}

impl fmt::Display for CallOrigin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(address) = self.address else { return Ok(()) };
        match address {
            ClientAddress::Process { uid, pid: 0 } => write!(formatter, "uid {uid}")?,
            ClientAddress::Process { uid, pid } => {
                write!(formatter, "uid {uid}, pid {pid}")?;
            }
            ClientAddress::Network(address) => write!(formatter, "{address}")?,
        }
        if let Some(key) = &self.key {
            write!(formatter, ", key {key:?}")?;
        }
        if let Some(consumer) = self.consumer.get() {
            write!(formatter, ", consumer {consumer:?}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_described_by_address_key_and_consumer() {
        let address = "10.1.2.3:4000".parse().unwrap();
        let peer = Peer::Address { address, certificate: None };
        let call = || CallOrigin::new(Some(&peer), Some("shift".into()));
        let plain = call().sync_scope(described);
        assert_eq!(plain.as_deref(), Some("10.1.2.3:4000, key \"shift\""));
        let told = call().sync_scope(|| {
            set_consumer("qc\n");
            described()
        });
        let expected = "10.1.2.3:4000, key \"shift\", consumer \"qc\\n\"";
        assert_eq!(told.as_deref(), Some(expected));
        assert_eq!(described(), None);
    }
}
