//! What one client, and all of them together, can take of the transport.
//!
//! tonic hands what is not set on to hyper as 'no limit', so each is set here. What a request may
//! take of memory and time is bounded elsewhere: quotas of consumers, `wait_ms`, the pool itself.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The limits of the Flight ports: `[limits]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Connections at a time, of TCP and of the Unix socket each; one more is closed at once.
    /// Default: 8,192.
    pub connections: usize,
    /// Of these, connections of one address or one user. Default: 4,096.
    pub connections_per_peer: usize,
    /// Calls under way at a time, over all connections; one more is UNAVAILABLE. Default: 16,384.
    pub calls: usize,
    /// Calls under way of one connection; a client waits with further ones. Default: 1,024.
    pub streams: u32,
    /// Calls that a client may break off at once before its connection is cut (CVE-2023-44487).
    /// Default: 256.
    pub resets: usize,
    /// Bytes of the headers of a call. Default: 16 KiB.
    pub header_bytes: u32,
    /// Bytes of one message that is taken; a longer one is refused by its first five bytes.
    /// Default: 64 MiB.
    pub message_bytes: usize,
    /// Bytes of timestamps that are taken in at a time, over all clients; beyond, they are told to
    /// come again. Default: 1 GiB.
    pub intake_bytes: usize,
    /// How long a client may take for the TLS handshake, and then for the first bytes of HTTP/2, in
    /// ms. Default: 10 s.
    pub handshake_ms: u64,
    /// A client that is silent for so long is asked whether it is there, and has as long to answer,
    /// in ms. Default: 15 s.
    pub keepalive_ms: u64,
    /// How long a client may pause between two messages of a timeframe, in ms. Default: 60 s.
    pub message_pause_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 8_192,
            connections_per_peer: 4_096,
            calls: 16_384,
            streams: 1_024,
            resets: 256,
            header_bytes: 16 << 10,
            message_bytes: 64 << 20,
            intake_bytes: 1 << 30,
            handshake_ms: 10_000,
            keepalive_ms: 15_000,
            message_pause_ms: 60_000,
        }
    }
}

impl Limits {
    /// How much of a stream, and of a connection, a client may send before we have read it.
    pub(super) const WINDOW_BYTES: u32 = 1 << 20;
    /// The largest frame that is taken.
    pub(super) const FRAME_BYTES: u32 = 16 << 10;

    pub(super) const fn handshake(&self) -> Duration {
        Duration::from_millis(self.handshake_ms)
    }

    pub(super) const fn keepalive(&self) -> Duration {
        Duration::from_millis(self.keepalive_ms)
    }

    pub(super) const fn message_pause(&self) -> Duration {
        Duration::from_millis(self.message_pause_ms)
    }
}
