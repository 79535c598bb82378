//! What the action `status` answers: one picture of the whole service, drawn at one moment.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The whole service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The version of the program.
    pub version: String,
    /// The instance: MetaHeaders of another epoch are stale.
    pub epoch: String,
    /// Its process.
    pub pid: u32,
    /// How long it runs, in milliseconds.
    pub uptime_ms: u64,
    /// Where the memory is.
    pub memory: MemoryStatus,
    /// Objects in shared memory.
    pub objects: u64,
    /// Cells that were answered from shared memory, one per distinct object of a table.
    pub hits: u64,
    /// Objects that were loaded from a source.
    pub loads: u64,
    /// Tables that had to wait for memory.
    pub waits: u64,
    /// Objects that were thrown out to make room.
    pub evictions: u64,
    /// Cells that were served although the source could not confirm them in time.
    pub stale: u64,
    /// The timeframes in flight, by id.
    pub timeframes: Vec<TimeframeStatus>,
    /// The processes that are attached.
    pub sessions: Vec<SessionStatus>,
    /// Where objects come from.
    pub sources: Vec<SourceStatus>,
    /// Segments with names that another program removed or wrote over, each in a sentence.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lost_segments: Vec<String>,
}

/// Where the memory is; `used = pinned + candidates for eviction`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryStatus {
    /// What the cache may use in all.
    pub total_bytes: u64,
    /// What objects take, their headers and rounding included.
    pub used_bytes: u64,
    /// What pinned objects take.
    pub pinned_bytes: u64,
    /// What no object takes.
    pub free_bytes: u64,
    /// The largest object that fits without throwing another out.
    pub largest_free_bytes: u64,
}

/// How far a consumer is with a timeframe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ConsumerState {
    /// It has not asked yet.
    Waiting,
    /// Its table was sent.
    Delivered,
    /// It has reported the timeframe as consumed.
    Consumed,
}

impl ConsumerState {
    /// As it crosses the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Delivered => "delivered",
            Self::Consumed => "consumed",
        }
    }
}

/// How far a timeframe is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TimeframeState {
    /// Not all of its objects are in shared memory yet.
    Loading,
    /// All of its objects are in shared memory and pinned.
    Ready,
    /// And each of its consumers was sent its table.
    Delivered,
}

impl TimeframeState {
    /// As it crosses the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Loading => "loading",
            Self::Ready => "ready",
            Self::Delivered => "delivered",
        }
    }
}

/// A timeframe in flight.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimeframeStatus {
    /// The id.
    pub timeframe: u64,
    /// How far it is.
    pub state: TimeframeState,
    /// Its timestamps.
    pub rows: u64,
    /// Its distinct objects.
    pub objects: u64,
    /// The bytes of memory that these take; 0 while loading.
    pub bytes: u64,
    /// How far each consumer is.
    pub consumers: BTreeMap<String, ConsumerState>,
}

/// A process on the node that is attached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionStatus {
    /// A number among the sessions of this instance. The id of a session is a secret of its process.
    pub number: u64,
    /// What it calls itself.
    pub consumer: String,
    /// Its process, as the kernel says.
    pub pid: i32,
    /// Its user, as the kernel says.
    pub uid: u32,
    /// Bytes that it pins, each object counted once.
    pub pinned_bytes: u64,
    /// Objects that it pins by itself, without a call, as it says.
    #[serde(default)]
    pub slots: u64,
}

/// Whether a source answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SourceState {
    /// Its last answer was one.
    Up,
    /// It could not be reached.
    Down,
}

/// A source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceStatus {
    /// As configured, without credentials.
    pub url: String,
    /// Whether it answers.
    pub state: SourceState,
    /// What it was asked.
    pub requests: u64,
    /// What of that failed.
    pub failures: u64,
}
