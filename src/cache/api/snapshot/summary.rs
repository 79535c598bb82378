//! The snapshot as a whole: counters, and lists with their newest entries.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::super::handle::Cache;
use super::holders::Holders;
use super::memory::{self, SegmentSnapshot};
use super::paths::{self, PathSnapshot};
use crate::source::{Reachability, SourceHealth};
use crate::table::{MemoryStatus, SessionStatus, TimeframeStatus};

/// Maximum number of entries in a list; further ones are only counted.
const MAX_ENTRIES: usize = 64;

/// The cache as of one moment.
#[derive(Debug, Clone, Serialize)]
pub struct Snapshot {
    /// The version of the program.
    pub version: &'static str,
    /// The instance.
    pub epoch: String,
    /// Its process.
    pub pid: u32,
    /// Time since the start, in milliseconds.
    pub uptime_ms: u64,
    /// Use of the memory.
    pub memory: MemoryStatus,
    /// Objects in shared memory.
    pub objects: u64,
    /// Every counter by its name.
    pub counters: BTreeMap<&'static str, u64>,
    /// Recent durations, in milliseconds.
    pub recent_ms: BTreeMap<&'static str, f64>,
    /// Names of the holders of pins; pieces and spans refer to them by position.
    pub holders: Vec<String>,
    /// The segments, by id.
    pub segments: Vec<SegmentSnapshot>,
    /// Number of segments left out.
    pub more_segments: usize,
    /// The paths requested last, by name.
    pub paths: Vec<PathSnapshot>,
    /// Number of paths left out.
    pub more_paths: usize,
    /// The time range of most resident objects, if there is one: from, until.
    pub window: Option<(i64, i64)>,
    /// The newest timeframes in flight, by id.
    pub timeframes: Vec<TimeframeStatus>,
    /// Number of timeframes left out.
    pub more_timeframes: usize,
    /// The attached processes.
    pub sessions: Vec<SessionSnapshot>,
    /// Number of sessions left out.
    pub more_sessions: usize,
    /// The sources of objects.
    pub sources: Vec<SourceSnapshot>,
}

/// An attached process. The id of its session is a secret and left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SessionSnapshot {
    /// Its name as a consumer.
    pub consumer: String,
    /// Process id.
    pub pid: i32,
    /// User id.
    pub uid: u32,
    /// Bytes pinned.
    pub pinned_bytes: u64,
    /// Objects that it pins by itself, without a call, as it says.
    pub slots: u64,
}

/// A source, or one host of a source.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SourceSnapshot {
    /// As configured, without credentials.
    pub url: String,
    /// Whether it is reachable.
    pub up: bool,
    /// If not: time of the first failed request since its last answer, in milliseconds.
    pub down_since: Option<i64>,
    /// Number of requests.
    pub requests: u64,
    /// Number of failed requests.
    pub failures: u64,
    /// Recent latency, in milliseconds.
    pub latency_ms: Option<f64>,
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

impl From<SessionStatus> for SessionSnapshot {
    fn from(session: SessionStatus) -> Self {
        let SessionStatus { consumer, pid, uid, pinned_bytes, slots, .. } = session;
        Self { consumer, pid, uid, pinned_bytes, slots }
    }
}

impl From<SourceHealth> for SourceSnapshot {
    fn from(source: SourceHealth) -> Self {
        Self {
            up: source.state == Reachability::Up,
            down_since: match source.state {
                Reachability::Up => None,
                Reachability::Down { since } => Some(since.as_millis()),
            },
            requests: source.requests,
            failures: source.failures,
            latency_ms: source.latency.recent.map(millis),
            url: source.url,
        }
    }
}

impl Cache {
    /// A snapshot for display. It takes about 50 ns per object; do not call it on a thread that
    /// other tasks need.
    pub fn snapshot(&self) -> Snapshot {
        let inner = &*self.0;
        let holders = Holders::new(&inner.leases, &inner.timeframes, inner.in_use.pin_sets());
        let (segments, more_segments) = memory::draw(&inner.pool, &inner.residency, &holders);
        let (asked, all) = inner.catalog.asked_last(MAX_ENTRIES);
        let more_paths = all - asked.len();
        let (paths, window) = paths::draw(asked, &inner.residency);
        let (timeframes, more_timeframes) = self.newest_timeframes();
        let (sessions, more_sessions) = self.some_sessions();
        let counters = inner.counters.all().into_iter();
        let sources = inner.catalog.source().health().into_iter().take(MAX_ENTRIES);
        Snapshot {
            version: env!("CARGO_PKG_VERSION"),
            epoch: self.epoch().to_string(),
            pid: std::process::id(),
            uptime_ms: u64::try_from(inner.clock.now().since(inner.started).as_millis())
                .unwrap_or(u64::MAX),
            memory: self.memory(),
            objects: inner.residency.objects() as u64,
            counters: counters.map(|(name, _, value)| (name, value)).collect(),
            recent_ms: self.recent_ms(),
            holders: holders.names().to_vec(),
            segments,
            more_segments,
            paths,
            more_paths,
            window,
            timeframes,
            more_timeframes,
            sessions,
            more_sessions,
            sources: sources.map(SourceSnapshot::from).collect(),
        }
    }

    /// The recent value of each timing that has one, in milliseconds.
    fn recent_ms(&self) -> BTreeMap<&'static str, f64> {
        let timings = self.0.counters.timings.all().into_iter();
        timings.filter_map(|(name, _, timing)| Some((name, millis(timing.recent?)))).collect()
    }

    /// The newest timeframes in flight by id, and the number of those left out.
    fn newest_timeframes(&self) -> (Vec<TimeframeStatus>, usize) {
        let timeframes = self.0.timeframes.latest(MAX_ENTRIES);
        let more = self.0.timeframes.len().saturating_sub(timeframes.len());
        let oldest_first = timeframes.iter().rev();
        (oldest_first.filter_map(|timeframe| timeframe.status()).collect(), more)
    }

    /// As many sessions as fit into a list, and the number of those left out.
    fn some_sessions(&self) -> (Vec<SessionSnapshot>, usize) {
        let slots = self.0.publisher.as_ref().map(|publisher| publisher.slots());
        let sessions = self.0.leases.sessions(&slots.unwrap_or_default());
        let more = sessions.len().saturating_sub(MAX_ENTRIES);
        (sessions.into_iter().take(MAX_ENTRIES).map(SessionSnapshot::from).collect(), more)
    }
}
