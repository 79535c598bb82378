//! The attach socket: passes segments to the processes that read them.
//!
//! ```text
//!  client ── {"hello": 1, "consumer": "…"} ──────────────▶ service
//!         ◀── {"session", "epoch", "segments": […]} + fds ──
//!         ◀── the same message for each new segment ──────── once the previous line was read
//!         ── {"need": {"kind", "id"}} ───────────────────▶ that segment is sent again
//!         ── {"release"}, {"delivered"}, {"consumed"} ───▶ no answer, or {"error"}
//!  refused: ◀── {"kind", "error"} ──
//!  hang-up: the session ends, and everything it held is released
//! ```
//!
//! One line of JSON per message. The descriptors of the segments in a line come with it as
//! SCM_RIGHTS, in the same order, at most 253 at a time (the kernel's limit). Linux only.

mod client;
mod fork;
mod outbox;
#[cfg(feature = "client")]
mod pinned;
mod wire;

#[cfg(any(feature = "client", feature = "capi"))]
pub(crate) use client::process_name;
pub use client::{AttachError, Attachment};
pub use fork::process_generation;
#[cfg(feature = "client")]
pub(crate) use pinned::{LeasedBytes, PinnedBlocks};
#[cfg(any(feature = "client", feature = "capi"))]
pub(crate) use wire::check_consumer;
#[doc(hidden)]
pub use wire::is_all_read;
pub use wire::{
    Announcement, AttachRefusal, Done, Hello, LineReader, SegmentEntry, WireError, parse_hello,
    parse_line, send,
};
pub(crate) use wire::{ClientMessage, MAX_DESCRIPTORS, Need, PeerCredentials, SharedKind};
