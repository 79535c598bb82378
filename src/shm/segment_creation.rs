//! The time at which segments with names are created, and their registration.

use std::io;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// When the segments of a FairMQ session are created.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(schemars::JsonSchema))]
pub enum SegmentCreation {
    /// All of them at the start, so that they can be registered before the devices start.
    #[default]
    #[serde(rename = "start")]
    AtStart,
    /// Each one when the earlier ones are full. None is ever retired.
    #[serde(rename = "needed")]
    WhenNeeded,
}

/// A [`SegmentRegistrar`] for the time of a call.
pub(crate) type RegisterSegment<'a> = &'a dyn Fn(u16, u64) -> io::Result<()>;

/// Registers a new segment, given by number and size, with the programs that find it by name.
/// Called before anything is placed in it; may block.
pub(crate) type SegmentRegistrar = Arc<dyn Fn(u16, u64) -> io::Result<()> + Send + Sync>;
