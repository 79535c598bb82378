//! The status page: one self-contained document, and `/events`, which keeps it up to date.
//!
//! ```text
//!  GET /        ─▶ index.html with page.css and page.js in it, and a fresh nonce for these two
//!  GET /events  ─▶ Live: one snapshot a second for all listeners; none without listeners
//! ```
//!
//! The page loads nothing from other hosts, and its Content-Security-Policy forbids it.

mod document;
mod live;

pub(super) use self::document::document;
pub(super) use self::live::Live;
