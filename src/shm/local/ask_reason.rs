//! Reasons why a look-up cannot be answered from shared memory.

use super::pins_page::REASONS;

/// Why a look-up cannot be answered from shared memory, so that the service must be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum AskReason {
    /// The service has not published the path, or is replacing its timeline at this moment.
    Unpublished,
    /// No object is published for this time: none is valid, or none was in memory.
    Uncovered,
    /// The service has not confirmed the answer within the path's refresh time.
    Unconfirmed,
    /// The object was evicted.
    NotResident,
    /// The object's segment is not mapped yet.
    NotMapped,
    /// All slots of the session are in use, each by a pinned object.
    NoSlot,
    /// The session has ended.
    Ended,
    /// This process is a fork of the process that attached.
    Forked,
}

const _: () = assert!(AskReason::Ended as usize == REASONS - 1);

impl AskReason {
    /// Names of the counted reasons in metrics, in the order of the counters of a pins page.
    #[cfg(feature = "cache")]
    pub(crate) const COUNTED: [&str; REASONS] =
        ["unpublished", "uncovered", "unconfirmed", "evicted", "unmapped", "no_slot", "ended"];

    /// Index among the counters of a pins page.
    pub(super) fn number(self) -> usize {
        self as usize
    }
}
