//! Body and answer of the action `check`.

use serde::{Deserialize, Serialize};

/// Body of `check`: verify the invariants of the service.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckRequest {
    /// Whether to read each object too, and to compare its CRC-32C.
    #[serde(default)]
    pub contents: bool,
}

/// Answer of `check`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckAnswer {
    /// The faults found, a sentence each.
    pub faults: Vec<String>,
    /// Number of attempts: 1 if the first found no fault.
    pub looks: u64,
    /// Number of segments of shared memory.
    pub segments: u64,
    /// Number of objects in the segments.
    pub objects: u64,
    /// Bytes of the occupied blocks.
    pub used_bytes: u64,
    /// Bytes of the pinned objects.
    pub pinned_bytes: u64,
    /// Number of attached processes.
    pub sessions: u64,
    /// Number of leases, those of sessions included.
    pub leases: u64,
    /// Number of timeframes in flight.
    pub timeframes: u64,
    /// Bytes of objects that were read; 0 unless `contents` was set.
    pub read_bytes: u64,
}
