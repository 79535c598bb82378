//! The CCDB side: plain CCDB HTTP for unmodified CCDB clients, answered from the cache.
//!
//! ```text
//!  GET /path/t[/k=v]     ─▶ Cache::version_at ─▶ 303 to the version, or 200 with its bytes
//!  GET /path/from/uuid   ─▶ Cache::version_of ─┐
//!  GET /download/uuid    ─▶ Cache::version_known ─▶ Cache::hold ─▶ socket, out of shared memory
//!  GET /browse/… /latest/… ─▶ Cache::versions, Cache::paths ─▶ JSON or text
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
mod connection;
mod guarded;
mod json;
mod listing;
mod page;
mod people;
mod plain;
mod range;
mod reply;
mod request;
mod spelling;
mod version;

use std::net::SocketAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub(super) use answer::Front;
pub(super) use change::Writes;
pub(super) use connection::{MAX_CONNECTIONS, serve};

/// How a question for a time is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Answering {
    /// 303 to `/path/from/uuid`, where the body is.
    #[default]
    Redirect,
    /// 200 with the body at once.
    Body,
}

/// The CCDB side of a service: `[ccdb_server]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CcdbServerConfig {
    /// Where it listens (plain HTTP), port 0 picks one; without this there is none.
    pub listen: Option<SocketAddr>,
    /// How a question for a time is answered: `"redirect"` (303 to the version's own address), or
    /// `"body"` (200 with the bytes at once).
    pub answer: Answering,
    /// Whether uploads, changes and deletions are passed on to the source that keeps the path; where
    /// there are tokens, of those who may administer. Only at an address of this node alone.
    pub writable: bool,
}
