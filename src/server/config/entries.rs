//! The repeated entries of a configuration: sources, paths, and replacements of paths.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::object::ObjectPath;
use crate::server::units::TimeSpan;
use crate::source::split_prefixes;

/// One source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SourceConfig {
    /// URL: `http(s)://host:port` (CCDB), `file:///dir`, `s3://bucket/prefix`, `memory:`.
    pub url: String,
    /// Paths for which the source is asked, including the paths below them; empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<String>,
}

/// Parses `URL`, or `URL#PREFIX,PREFIX`: a source for these paths only.
impl From<&str> for SourceConfig {
    fn from(text: &str) -> Self {
        let (url, paths) = split_prefixes(text);
        Self { url: url.to_owned(), paths }
    }
}

/// Settings of a path and the paths below it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PathConfig {
    /// The path.
    pub path: String,
    /// Result where nothing is valid: `"required"` is an error, `"optional"` is null, for every
    /// request; by default the request decides.
    pub missing: Option<MissingConfig>,
    /// A file whose bytes are served where nothing is valid.
    pub default: Option<PathBuf>,
    /// Time limit of the source for a look-up, and for a body, e.g. `"5s"`.
    pub timeout: Option<TimeSpan>,
    /// How long an answer of the source is used before it is requested again, e.g. `"10s"`.
    pub refresh: Option<TimeSpan>,
}

/// Result of a table where nothing is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MissingConfig {
    /// An error.
    Required,
    /// Null.
    Optional,
}

/// A path that is replaced by another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RemapConfig {
    /// The requested path.
    #[schemars(with = "String")]
    pub path: ObjectPath,
    /// The path that is served; by default the requested path, from another source.
    #[schemars(with = "Option<String>")]
    pub to: Option<ObjectPath>,
    /// URL of the source; by default the configured sources.
    pub source: Option<String>,
}
