//! File descriptors, divided at the start so that no use exhausts those of the others.
//!
//! ```text
//!  limit (RLIMIT_NOFILE)
//!   ├ in use at the start: listeners, epoll, standard streams
//!   ├ one per segment, one for the directory
//!   ├ an eighth: files and connections of sources
//!   └ the rest ─┬ an eighth: HTTP port (/healthz, /readyz, /metrics)
//!               ├ an eighth: CCDB side, if enabled
//!               ├ a half: attached consumers, two each (socket, pins page)
//!               └ Flight, the Unix socket and TCP each a half
//! ```

use std::io;

use super::limits::Limits;
use super::{ccdb, http};

/// Fewest descriptors for files and connections of sources.
const MIN_FILES: u64 = 12;
/// Most descriptors for files and connections of sources.
const MAX_FILES: u64 = 1_024;
/// Fewest connections of each kind, however low the limit is.
const MIN_CONNECTIONS: u64 = 4;

/// Descriptors of a segment's directory.
const DIRECTORY: u64 = 1;
/// Descriptors of an attached consumer: its socket, and the pins page that it is given.
const PER_ATTACHED: u64 = 2;

/// The number of descriptors, and the number already assigned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptors {
    /// The limit of the process.
    pub limit: u64,
    /// Number of descriptors open now.
    pub in_use: u64,
    /// Number of segments that will be made.
    pub segments: u64,
}

/// The connections of each kind that the descriptors allow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DescriptorShares {
    /// The configured limits, with connections reduced to the available descriptors.
    pub limits: Limits,
    /// Connections of the HTTP port.
    pub http_connections: usize,
    /// Connections of the CCDB side.
    pub ccdb_connections: usize,
}

impl Descriptors {
    /// The descriptors of this process. Call it when all listeners are open.
    ///
    /// # Errors
    /// [`io::Error`] if `/proc` cannot be read.
    pub fn of_this_process(segments: u64) -> io::Result<Self> {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let in_use = std::fs::read_dir("/proc/self/fd")?.count() as u64;
        Ok(Self { limit: limit.unwrap_or(u64::MAX), in_use, segments })
    }

    /// Divides the remaining descriptors.
    #[must_use]
    pub fn share(self, limits: &Limits, has_ccdb: bool) -> DescriptorShares {
        let files = (self.limit / 8).clamp(MIN_FILES, MAX_FILES);
        let taken =
            [self.segments, DIRECTORY, files].into_iter().fold(self.in_use, u64::saturating_add);
        let rest = self.limit.saturating_sub(taken);
        let most = |share: u64, configured: usize| {
            usize::try_from(share.max(MIN_CONNECTIONS)).unwrap_or(usize::MAX).min(configured)
        };
        let http_connections = most(rest / 8, http::MAX_CONNECTIONS);
        let ccdb_connections = most(rest / 8, ccdb::MAX_CONNECTIONS);
        let ccdb_share = if has_ccdb { ccdb_connections as u64 } else { 0 };
        let attached = most(rest / 2 / PER_ATTACHED, limits.attached);
        let others = http_connections as u64 + ccdb_share + PER_ATTACHED * attached as u64;
        let connections = most(rest.saturating_sub(others) / 2, limits.connections);
        DescriptorShares {
            limits: Limits {
                connections,
                connections_per_peer: limits.connections_per_peer.min(connections),
                attached,
                attached_per_peer: limits.attached_per_peer.min(attached),
                ..limits.clone()
            },
            http_connections,
            ccdb_connections,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_follow_the_limit_of_descriptors_and_leave_some_for_everything_else() {
        let limits = Limits::default();
        let share = |limit| Descriptors { limit, in_use: 30, segments: 8 }.share(&limits, true);
        for limit in [64, 80, 256, 1_024, 4_096, 20_000] {
            let shares = share(limit);
            let flight = 2 * shares.limits.connections as u64;
            let all = flight + (shares.http_connections + shares.ccdb_connections) as u64;
            assert!(shares.limits.connections >= 4 && shares.http_connections >= 4, "{limit}");
            let attached = shares.limits.attached as u64;
            let sessions = PER_ATTACHED * attached;
            // Files of sources have an eighth, up to their maximum.
            let files = (limit / 8).min(MAX_FILES);
            assert!(limit < 100 || 39 + all + sessions + files <= limit, "{limit}: {all}");
            assert!(shares.limits.attached_per_peer as u64 <= attached);
        }
        // The usual limit, on a node with dozens of processes.
        assert!(share(1_024).limits.attached >= 200);
        assert_eq!(share(1 << 20).limits, limits);
        assert_eq!(share(u64::MAX).http_connections, http::MAX_CONNECTIONS);
        let few = Limits { connections: 3, connections_per_peer: 9, ..Limits::default() };
        let shares = Descriptors { limit: 1 << 20, in_use: 30, segments: 8 }.share(&few, false);
        assert_eq!((shares.limits.connections, shares.limits.connections_per_peer), (3, 3));
    }
}
