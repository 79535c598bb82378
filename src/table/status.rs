//! Answer of the action `status`: a snapshot of the whole service at one moment.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// State of the whole service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the program.
    pub version: String,
    /// Epoch of the instance. MetaHeaders of another epoch are stale.
    pub epoch: String,
    /// Process id.
    pub pid: u32,
    /// Time since the start, in milliseconds.
    pub uptime_ms: u64,
    /// Use of the memory.
    pub memory: MemoryStatus,
    /// Number of objects in shared memory.
    pub objects: u64,
    /// Number of cells answered from shared memory, one per distinct object of a table.
    pub hits: u64,
    /// Number of objects loaded from a source.
    pub loads: u64,
    /// Number of tables that had to wait for memory.
    pub waits: u64,
    /// Number of objects evicted.
    pub evictions: u64,
    /// Number of cells served although the source could not confirm them in time.
    pub stale: u64,
    /// Timeframes in flight, in ascending order of their ids.
    pub timeframes: Vec<TimeframeStatus>,
    /// Attached processes.
    pub sessions: Vec<SessionStatus>,
    /// Sources of the objects.
    pub sources: Vec<SourceStatus>,
    /// Named segments that another program removed or overwrote, a sentence each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lost_segments: Vec<String>,
    /// The configuration of the service. Left out by a cache without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub configuration: Option<ConfigurationStatus>,
}

/// State of a service's configuration, which it reads again on SIGHUP.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigurationStatus {
    /// Time at which the configuration in force was read, in milliseconds since the Unix epoch.
    pub read_ms: i64,
    /// Number of times it was read again and applied.
    pub applied: u64,
    /// Number of times it was refused.
    pub refused: u64,
    /// The last reading, if it was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusal: Option<ReloadRefusal>,
    /// Keys that were changed and take effect after a restart.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub restart: Vec<String>,
}

/// A configuration that was refused while the service ran. The earlier one stays in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadRefusal {
    /// Time of the refusal, in milliseconds since the Unix epoch.
    pub at_ms: i64,
    /// The reason.
    pub reason: String,
}

/// Use of the memory, in bytes. Objects that are used and not pinned can be evicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryStatus {
    /// Memory that the cache may use.
    pub total_bytes: u64,
    /// Memory of all objects, headers and rounding included.
    pub used_bytes: u64,
    /// Memory of pinned objects.
    pub pinned_bytes: u64,
    /// Memory without objects.
    pub free_bytes: u64,
    /// Size of the largest object that fits without an eviction.
    pub largest_free_bytes: u64,
}

/// State of a timeframe for one consumer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ConsumerState {
    /// The consumer has not asked yet.
    Waiting,
    /// The table was sent to the consumer.
    Delivered,
    /// The consumer has reported the timeframe as consumed.
    Consumed,
}

impl ConsumerState {
    /// Name in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Delivered => "delivered",
            Self::Consumed => "consumed",
        }
    }
}

/// State of a timeframe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TimeframeState {
    /// Some of its objects are not in shared memory yet.
    Loading,
    /// All of its objects are in shared memory and pinned.
    Ready,
    /// The table was also sent to each of its consumers.
    Delivered,
}

impl TimeframeState {
    /// Name in JSON.
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
    /// Id of the timeframe.
    pub timeframe: u64,
    /// State of the timeframe.
    pub state: TimeframeState,
    /// Number of its timestamps.
    pub rows: u64,
    /// Number of its distinct objects.
    pub objects: u64,
    /// Memory of these objects in bytes; 0 while loading.
    pub bytes: u64,
    /// State for each consumer, by name.
    pub consumers: BTreeMap<String, ConsumerState>,
}

/// A process on the node that is attached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionStatus {
    /// Number of the session in this instance. The id of a session is a secret of its process.
    pub number: u64,
    /// Name that the process gave.
    pub consumer: String,
    /// Process id, from the kernel.
    pub pid: i32,
    /// User id, from the kernel.
    pub uid: u32,
    /// Bytes that it pins; each object counts once.
    pub pinned_bytes: u64,
    /// Number of objects that it pins without a call, as its page of pins claims. Left out of the
    /// JSON if it is 0.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub slots: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it by reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Availability of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SourceState {
    /// Its last request was answered.
    Up,
    /// Its last request did not reach it.
    Down,
}

/// State of a source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceStatus {
    /// URL as configured, without credentials.
    pub url: String,
    /// Availability of the source.
    pub state: SourceState,
    /// If it is down: time of the first failed request since its last answer, in milliseconds
    /// since the Unix epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub down_since_ms: Option<i64>,
    /// Number of requests sent to it.
    pub requests: u64,
    /// Number of these that failed.
    pub failures: u64,
}
