//! What the action `check` asks, and what it answers.

use serde::{Deserialize, Serialize};

/// `check`: whether everything adds up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckRequest {
    /// Every object is read too, and its CRC-32C compared.
    #[serde(default)]
    pub contents: bool,
}

/// What `check` found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckAnswer {
    /// All that is wrong, each in a sentence.
    pub faults: Vec<String>,
    /// How often it was looked at: once where nothing seemed to be wrong.
    pub looks: u64,
    /// Segments of shared memory.
    pub segments: u64,
    /// Objects in them.
    pub objects: u64,
    /// Bytes of the places that are taken.
    pub used_bytes: u64,
    /// Bytes of the objects that are pinned.
    pub pinned_bytes: u64,
    /// Processes that are attached.
    pub sessions: u64,
    /// Leases, of sessions and others.
    pub leases: u64,
    /// Timeframes in flight.
    pub timeframes: u64,
    /// Bytes of objects that were read.
    pub read_bytes: u64,
}
