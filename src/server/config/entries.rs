//! The repeated entries of a configuration: sources, paths, and remapped paths.

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
    /// Where it is: `http(s)://host:port` (CCDB), `file:///dir`, `s3://bucket/prefix`, `memory:`.
    pub url: String,
    /// It is asked only for these paths and those below them; empty: for all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<String>,
}

/// `URL`, or `URL#PREFIX,PREFIX`: a source for some paths only.
impl From<&str> for SourceConfig {
    fn from(text: &str) -> Self {
        let (url, paths) = split_prefixes(text);
        Self { url: url.to_owned(), paths }
    }
}

/// What holds for a path and those below it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PathConfig {
    /// The path.
    pub path: String,
    /// Where nothing is valid: `"required"` is an error, `"optional"` is null, whatever the request
    /// says; left out, the request decides.
    pub missing: Option<MissingConfig>,
    /// A file whose bytes are served where nothing is valid.
    pub default: Option<PathBuf>,
    /// How long the source may take for a look-up, and for a body, e.g. `"5s"`.
    pub timeout: Option<TimeSpan>,
    /// How long an answer may be used before it is asked again, e.g. `"10s"`.
    pub refresh: Option<TimeSpan>,
}

/// What a table gets where nothing is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MissingConfig {
    /// An error.
    Required,
    /// Null.
    Optional,
}

/// A path that stands for another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RemapConfig {
    /// What is asked for.
    #[schemars(with = "String")]
    pub path: ObjectPath,
    /// What is served; by default the same path, of another source.
    #[schemars(with = "Option<String>")]
    pub to: Option<ObjectPath>,
    /// The source from which it comes, if not from the usual ones.
    pub source: Option<String>,
}
