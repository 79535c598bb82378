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

/// Limits on requests to the Flight ports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Memory besides `memory` that the requests of all clients may hold together; one client may
    /// have a quarter of it.
    pub request_memory: ByteSize,
    /// Concurrent connections, of TCP and of the Unix socket each; further ones are closed at once.
    pub connections: usize,
    /// Maximum number of these from one address or one user. All of loopback is one address.
    pub connections_per_peer: usize,
    /// Concurrently attached processes. Each takes two files, and together they use at most half of
    /// the files that may still be open at the start.
    pub attached: usize,
    /// Maximum number of these of one user.
    pub attached_per_peer: usize,
    /// Concurrent calls, over all connections; further ones are UNAVAILABLE.
    pub calls: usize,
    /// Concurrent calls of one connection; the client delays further ones.
    pub streams: u32,
    /// Calls that one connection may cancel at once, and in each second; of calls that the service
    /// has not begun, at most 20 at once. Beyond this the connection is cut; from another node's
    /// address no connection is accepted for a second (CVE-2023-44487).
    pub resets: usize,
    /// Size of the headers of a call.
    pub headers: ByteSize,
    /// Size of one message; a longer one is refused by its first five bytes.
    pub message: ByteSize,
    /// Registrations of timeframes that wait for their answer, over all clients; further ones are
    /// RESOURCE_EXHAUSTED.
    pub registrations: usize,
    /// Columns of a request; at most 10,000.
    pub columns: usize,
    /// Consumers of a timeframe; at most 1,000.
    pub consumers: usize,
    /// Ranges of a key in the path of a column; at most 1,000.
    pub path_ranges: usize,
    /// Distinct values of a key for which a column has separate look-ups; at most 10,000.
    pub key_values: usize,
    /// Queries of a table for its columns and keys, of all columns together; at most 200,000.
    pub queries: usize,
    /// Entries of a lock; at most 100,000.
    pub lock_entries: usize,
    /// Length of the name of a column, a table, a consumer or a session; at most 256B.
    pub name: ByteSize,
    /// Size of the metadata of a column, all keys and values together; at most 64KiB.
    pub metadata: ByteSize,
    /// Time limit of a client for the TLS handshake, and then for the first bytes of HTTP/2.
    pub handshake: TimeSpan,
    /// After this time without data the service pings the client, and waits as long for the answer.
    pub keepalive: TimeSpan,
    /// Longest pause of a client between two messages of a timeframe.
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
            queries: RequestLimits::MOST.queries,
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
    /// Bytes of a stream, and of a connection, that a client may send ahead of the service's reads.
    pub(super) const WINDOW_BYTES: u32 = 1 << 20;
    /// The limits of one request.
    pub(super) fn requests(&self) -> RequestLimits {
        RequestLimits {
            columns: self.columns,
            consumers: self.consumers,
            path_ranges: self.path_ranges,
            key_values: self.key_values,
            queries: self.queries,
            lock_entries: self.lock_entries,
            name_bytes: in_memory(self.name),
            metadata_bytes: in_memory(self.metadata),
        }
    }

    /// Cancelled calls of a connection that the service has not begun: the default of `h2`. They
    /// arrive together with their cancellation, so a flood is cut before any of it is a call.
    pub(super) const PENDING_RESETS: usize = 20;
    /// The largest HTTP/2 frame that is accepted.
    pub(super) const FRAME_BYTES: u32 = 16 << 10;
}

/// A size in bytes as a `usize`, for hyper and tokio.
pub(super) fn in_memory(size: ByteSize) -> usize {
    usize::try_from(size.bytes()).unwrap_or(usize::MAX)
}
