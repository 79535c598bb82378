//! Configuration of the CCDB side.

use std::net::SocketAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Form of the answer to a look-up by time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Answering {
    /// 303 to `/path/from/uuid`, the address of the body.
    #[default]
    Redirect,
    /// 200 with the body.
    Body,
}

/// The CCDB side of a service: `[ccdb_server]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CcdbServerConfig {
    /// TCP address (plain HTTP); port 0 picks a free port. By default there is no CCDB side.
    pub listen: Option<SocketAddr>,
    /// Form of the answer to a look-up by time: `"redirect"` (303 to the address of the version),
    /// or `"body"` (200 with the bytes).
    pub answer: Answering,
    /// Whether uploads, changes and deletions are passed on to the source that keeps the path; if
    /// there are tokens, only those of clients with the role administer. Only at an address of this
    /// node.
    pub writable: bool,
}
