//! Why a look-up has no answer of its own.

use super::pins_page::REASONS;

/// Why a look-up has no answer, and the service is to be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum AskReason {
    /// The service has not published the path, or is just replacing its timeline.
    Unpublished,
    /// Nothing is published for this time: no object is valid, or none was in memory.
    Uncovered,
    /// The service has not confirmed the answer for as long as the path's refresh time allows.
    Unconfirmed,
    /// The object was evicted.
    NotResident,
    /// The object's segment is not mapped yet.
    NotMapped,
    /// As many objects are pinned as the session has slots.
    NoSlot,
    /// The session is over.
    Ended,
    /// This process is a fork of the one that attached.
    Forked,
}

const _: () = assert!(AskReason::Ended as usize == REASONS - 1);

impl AskReason {
    /// The reasons that are counted, in the order of the counters of a pins page, as metrics name
    /// them.
    #[cfg(feature = "cache")]
    pub(crate) const COUNTED: [&str; REASONS] =
        ["unpublished", "uncovered", "unconfirmed", "evicted", "unmapped", "no_slot", "ended"];

    /// Its place among the counters of a pins page.
    pub(super) fn number(self) -> usize {
        self as usize
    }
}
