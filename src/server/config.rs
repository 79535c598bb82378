//! What a service is configured with: a TOML file, every unknown key refused by name.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::ccdb::CcdbServerConfig;
use super::limits::Limits;
use crate::error::{Code, Coded, ErrorKind};
use crate::interval::Timestamp;
use crate::object::ObjectPath;
use crate::source::ccdb::CcdbOptions;
use crate::table::{ColumnList, ColumnRequest};

/// The configuration of a service. What is not set is left to the command line and its defaults.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where Flight listens on TCP.
    pub listen: Option<SocketAddr>,
    /// The folder of the Unix sockets.
    pub socket: Option<PathBuf>,
    /// The mode of the Unix sockets, in octal, e.g. `"0660"`: who of the folder's users connects.
    pub socket_mode: Option<String>,
    /// Where `/metrics`, `/healthz` and `/readyz` are.
    pub http: Option<SocketAddr>,
    /// Bytes of shared memory in all, e.g. `"4GiB"`.
    pub memory: Option<String>,
    /// Bytes of one segment, e.g. `"512MiB"`.
    pub segment: Option<String>,
    /// A folder in which what was read is kept for restarts and outages.
    pub disk: Option<PathBuf>,
    /// Bytes that the folder may take, e.g. `"16GiB"`.
    pub disk_size: Option<String>,
    /// What is put into a repository is seen within this, e.g. `"1s"`.
    pub refresh: Option<String>,
    /// Only versions created at or before this are seen (ms).
    pub not_after: Option<Timestamp>,
    /// Only versions created at or after this are seen (ms).
    pub not_before: Option<Timestamp>,
    /// Users that may connect to the Unix sockets, beside the service's own and root.
    pub allow_uids: Vec<u32>,
    /// Groups whose members may.
    pub allow_gids: Vec<u32>,
    /// The file with the keys of those who may.
    pub tokens: Option<PathBuf>,
    /// Whether others than this node may connect without TLS or keys.
    pub insecure: bool,
    /// Sources, asked in order.
    #[serde(rename = "source")]
    pub sources: Vec<SourceConfig>,
    /// Paths that stand for others: `[[remap]]`.
    #[serde(rename = "remap")]
    pub remaps: Vec<RemapConfig>,
    /// What holds for single paths: `[[path]]`; the longest that fits counts.
    #[serde(rename = "path")]
    pub paths: Vec<PathConfig>,
    /// TLS for Flight over TCP: `[tls]`.
    pub tls: Option<TlsConfig>,
    /// What clients can take of the transport: `[limits]`.
    pub limits: Limits,
    /// Limits and habits with CCDB servers: `[ccdb]`.
    pub ccdb: CcdbOptions,
    /// The service as a CCDB to its neighbours: `[ccdb_server]`.
    pub ccdb_server: CcdbServerConfig,
    /// Sets of columns that requests may name: `[tables.NAME]`, then `column = "path"`.
    pub tables: BTreeMap<String, ColumnList>,
}

/// One source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceConfig {
    /// Where it is: `http(s)://host:port`, `file:///dir`, `memory:`.
    pub url: String,
    /// It is asked only for these paths and those below them; empty: for all.
    #[serde(default)]
    pub paths: Vec<String>,
}

/// The files for TLS, all PEM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// The certificate and its chain.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The authority that signs clients' certificates.
    pub client_ca: Option<PathBuf>,
}

/// What holds for a path and those below it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
    pub timeout: Option<String>,
    /// How long an answer may be used before it is asked again, e.g. `"10s"`.
    pub refresh: Option<String>,
}

/// What a table gets where nothing is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MissingConfig {
    /// An error.
    Required,
    /// Null.
    Optional,
}

/// A path that stands for another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemapConfig {
    /// What is asked for.
    pub path: ObjectPath,
    /// What is served; by default the same path, of another source.
    pub to: Option<ObjectPath>,
    /// The source from which it comes, if not from the usual ones.
    pub source: Option<String>,
}

/// Why a configuration is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct ConfigError {
    /// Where and what.
    pub reason: String,
}

impl Coded for ConfigError {
    fn kind(&self) -> ErrorKind {
        ErrorKind::InvalidArgument
    }
    fn code(&self) -> Code {
        Code(8020)
    }
}

impl Config {
    /// From TOML.
    ///
    /// # Errors
    /// [`ConfigError`] names the line, and unknown keys.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        toml::from_str(text).map_err(|error| ConfigError { reason: error.to_string() })
    }

    /// The sets of columns.
    pub fn columns(&self) -> BTreeMap<String, Vec<ColumnRequest>> {
        let columns = |list: &ColumnList| list.0.clone();
        self.tables.iter().map(|(name, list)| (name.clone(), columns(list))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_is_read_and_what_is_unknown_is_named() {
        let config = Config::parse(
            "memory = \"1GiB\"\n[[source]]\nurl = \"file:///data\"\n\
             [tables.tpc]\nvdrift = \"TPC/Calib/VDriftTgl\"\n\
             noise = { path = \"TPC/Calib/Noise\", metadata = { run = \"1\" } }\n",
        )
        .unwrap();
        assert_eq!(config.sources[0].url, "file:///data");
        let tables = config.columns();
        assert_eq!(tables["tpc"].len(), 2);
        let error = Config::parse("memroy = \"1GiB\"").unwrap_err();
        assert!(error.to_string().contains("memroy"), "{error}");
        let error = Config::parse("[tables.tpc]\na = \"12\"").unwrap_err();
        assert!(error.to_string().contains("all digits"), "{error}");
    }
}
