//! Reasons why a MetaHeader does not resolve, and why a segment cannot be mapped.

use std::io;

use super::segment::Kind;
use crate::error::coded;

/// Why a MetaHeader does not resolve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ResolveError {
    /// The segment is not mapped (not yet, or no longer).
    #[error("segment {id} is not mapped")]
    UnknownSegment {
        /// The segment.
        id: u16,
    },
    /// The region is not mapped.
    #[error("region {id} is not mapped")]
    UnknownRegion {
        /// The region.
        id: u16,
    },
    /// `managed` is neither 0 nor 1.
    #[error("managed is {got}, which is neither 0 nor 1")]
    BadManagedFlag {
        /// Its value.
        got: u8,
    },
    /// No payload can begin at the handle.
    #[error("no payload can begin at handle {handle}")]
    Misaligned {
        /// The handle.
        handle: i64,
    },
    /// The block would reach beyond the segment.
    #[error("{size} bytes at handle {handle} reach beyond the {length} bytes of the segment")]
    OutOfBounds {
        /// The handle.
        handle: i64,
        /// The size in the header.
        size: u64,
        /// The length of the segment.
        length: u64,
    },
    /// The block was freed, and possibly reused.
    #[error("stale: the block has generation {found}, expected {expected}")]
    Stale {
        /// The generation in the header.
        expected: u64,
        /// The generation of the block; 0: freed.
        found: u64,
    },
    /// The generation matches, but the size does not.
    #[error("the block has {found} bytes, the header says {expected}")]
    WrongSize {
        /// The size in the header.
        expected: u64,
        /// The size of the block.
        found: u64,
    },
}

coded! { ResolveError {
    UnknownSegment => FailedPrecondition 4040,
    UnknownRegion => FailedPrecondition 4041,
    BadManagedFlag => InvalidArgument 4042,
    Misaligned => InvalidArgument 4043,
    OutOfBounds => InvalidArgument 4044,
    Stale => FailedPrecondition 4045,
    WrongSize => InvalidArgument 4046,
} }

/// Why a segment cannot be mapped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MapError {
    /// The mapping failed.
    #[error("cannot map {kind} {id}")]
    Map {
        /// Segment or region.
        kind: Kind,
        /// Its id.
        id: u16,
        /// The error of the system.
        #[source]
        error: io::Error,
    },
    /// The file differs from its announcement.
    #[error("{kind} {id} is not as announced: {what} is {got}, expected {expected}")]
    Unlike {
        /// Segment or region.
        kind: Kind,
        /// Its id.
        id: u16,
        /// The field that differs.
        what: &'static str,
        /// The value found.
        got: u64,
        /// The value expected.
        expected: u64,
    },
    /// The service retired the segment before it was mapped: nothing in it resolves.
    #[error("segment {id} was retired meanwhile")]
    Retired {
        /// Its id.
        id: u16,
    },
    /// The file could be truncated while it is mapped.
    #[error("segment {id} is not sealed: truncating it would kill its readers")]
    NotSealed {
        /// Its id.
        id: u16,
    },
}

coded! { MapError {
    Map => FailedPrecondition 4050,
    Unlike => FailedPrecondition 4051,
    NotSealed => FailedPrecondition 4052,
    Retired => FailedPrecondition 4053,
} }
