//! Limits of the transport, for one client and for all clients together.
//!
//! tonic passes an unset limit to hyper as 'no limit', so each is set here. Memory and time of a
//! request are bounded elsewhere: quotas of consumers, `wait_ms`, the pool itself.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::units::{ByteSize, TimeSpan};
use crate::budget::Budget;
use crate::table::RequestLimits;

/// What clients can take of the Flight ports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Memory beside `memory` that the requests of all clients may hold together; one client may have
    /// a quarter of it.
    pub request_memory: ByteSize,
    /// Connections at a time, of TCP and of the Unix socket each; one more is closed at once.
    pub connections: usize,
    /// Of these, connections of one address or one user. All of loopback is one address.
    pub connections_per_peer: usize,
    /// Processes that are attached at a time; at most half of the files that may be open.
    pub attached: usize,
    /// Of these, processes of one user.
    pub attached_per_peer: usize,
    /// Calls under way at a time, over all connections; one more is UNAVAILABLE.
    pub calls: usize,
    /// Calls under way of one connection; a client waits with further ones.
    pub streams: u32,
    /// Calls that one connection may break off at once, and in each second; then it is cut, and no
    /// further one is taken from that address for a second, if it is another node's (CVE-2023-44487).
    pub resets: usize,
    /// The headers of a call.
    pub headers: ByteSize,
    /// One message; a longer one is refused by its first five bytes.
    pub message: ByteSize,
    /// Registrations of timeframes that wait for their answer, over all clients; one more is
    /// RESOURCE_EXHAUSTED.
    pub registrations: usize,
    /// Columns of a request; at most 10,000.
    pub columns: usize,
    /// Consumers of a timeframe; at most 1,000.
    pub consumers: usize,
    /// Ranges of a key in the path of a column; at most 1,000.
    pub path_ranges: usize,
    /// Distinct values of a key for each of which a column has a look-up of its own; at most
    /// 10,000.
    pub key_values: usize,
    /// Entries of a lock; at most 100,000.
    pub lock_entries: usize,
    /// The name of a column, a table, a consumer or a session; at most 256B.
    pub name: ByteSize,
    /// The metadata of a column, all keys and values together; at most 64KiB.
    pub metadata: ByteSize,
    /// How long a client may take for the TLS handshake, and then for the first bytes of HTTP/2.
    pub handshake: TimeSpan,
    /// A client that is silent for so long is asked whether it is there, and has as long to answer.
    pub keepalive: TimeSpan,
    /// How long a client may pause between two messages of a timeframe.
    pub message_pause: TimeSpan,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            request_memory: ByteSize::new(Budget::DEFAULT_BYTES),
            connections: 8_192,
            connections_per_peer: 4_096,
            attached: 4_096,
            attached_per_peer: 3_072,
            calls: 16_384,
            streams: 1_024,
            resets: 256,
            headers: ByteSize::new(16 << 10),
            message: ByteSize::new(64 << 20),
            registrations: 4_096,
            columns: RequestLimits::MOST.columns,
            consumers: RequestLimits::MOST.consumers,
            path_ranges: RequestLimits::MOST.path_ranges,
            key_values: RequestLimits::MOST.key_values,
            lock_entries: RequestLimits::MOST.lock_entries,
            name: ByteSize::new(RequestLimits::MOST.name_bytes as u64),
            metadata: ByteSize::new(RequestLimits::MOST.metadata_bytes as u64),
            handshake: Duration::from_secs(10).into(),
            keepalive: Duration::from_secs(15).into(),
            message_pause: Duration::from_secs(60).into(),
        }
    }
}

impl Limits {
    /// How much of a stream, and of a connection, a client may send before we have read it.
    pub(super) const WINDOW_BYTES: u32 = 1 << 20;
    /// What one request may have.
    pub(super) fn requests(&self) -> RequestLimits {
        RequestLimits {
            columns: self.columns,
            consumers: self.consumers,
            path_ranges: self.path_ranges,
            key_values: self.key_values,
            lock_entries: self.lock_entries,
            name_bytes: in_memory(self.name),
            metadata_bytes: in_memory(self.metadata),
        }
    }

    /// The largest frame that is taken.
    pub(super) const FRAME_BYTES: u32 = 16 << 10;
}

/// A size as the `usize` that hyper and tokio take.
pub(super) fn in_memory(size: ByteSize) -> usize {
    usize::try_from(size.bytes()).unwrap_or(usize::MAX)
}
