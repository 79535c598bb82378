//! The CCDB side: plain CCDB HTTP for unmodified CCDB clients, answered from the cache.
//!
//! ```text
//!  GET /path/t[/k=v]     ─▶ Cache::version_at ─▶ 303 to the version, or 200 with its bytes
//!  GET /path/from/uuid   ─▶ Cache::version_of ─┐
//!  GET /download/uuid    ─▶ Cache::version_known ─▶ Cache::hold ─▶ socket, out of shared memory
//!  GET /browse/… /latest/… ─▶ Cache::versions, Cache::paths ─▶ JSON or text
//!  GET /monitor/…        ─▶ counters
//! ```
//!
//! Header names go out as CCDB spells them (`ETag`, `Content-MD5`, metadata as uploaded), since
//! AliceO2's client looks them up case-sensitively: see [`spelling`]. POST, PUT and DELETE are
//! passed on to the source where that was allowed: see [`change`].
//!
//! **303 or 200.** Real servers do either, and clients have to accept both.
//! [`Answering::Redirect`], the default, is the behaviour of file-backed and SQL-backed servers: it
//! separates the two requests, so an HTTP cache in front can keep every body for ever by its
//! address. [`Answering::Body`] is the behaviour of an SQL-backed server with `local.copy.first`:
//! one request less.

mod address;
mod answer;
mod browse;
mod change;
mod config;
mod connection;
mod front;
mod guarded;
mod json;
mod listing;
mod listing_format;
mod listing_reply;
mod listing_stream;
mod monitor;
mod order;
mod page;
mod pattern;
mod people;
mod plain;
mod range;
mod reply;
mod request;
mod spelling;
mod version;

pub use config::{Answering, CcdbServerConfig};
pub(super) use connection::{MAX_CONNECTIONS, serve};
pub(super) use front::{Front, Writes};
