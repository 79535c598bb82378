//! Configuration of the CCDB side.

use std::net::SocketAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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
