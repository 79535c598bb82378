//! The settings of a service.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::entries::{PathConfig, RemapConfig, SourceConfig};
use crate::cache::RunInformation;
use crate::cache::SlowConsumer;
use crate::interval::Timestamp;
use crate::object::ObjectPath;
use crate::server::ccdb::CcdbServerConfig;
use crate::server::limits::Limits;
use crate::server::units::{ByteSize, RegionPath, SocketMode, TimeSpan};
use crate::shm::SegmentCreation;
use crate::source::ccdb::CcdbOptions;
use crate::table::{ColumnList, ColumnRequest};

/// The configuration of a service. `iovcache config show` and the book print the comment of each
/// key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// TCP address of Flight; port 0 picks a free port.
    pub listen: SocketAddr,
    /// The folder of the Unix sockets flight.sock and attach.sock; by default a private one under
    /// `$XDG_RUNTIME_DIR`, else under `/tmp`.
    pub socket: Option<PathBuf>,
    /// The mode of the Unix sockets, in octal; `"0660"` lets the folder's group reach them.
    /// `allow_uids` and `allow_gids` restrict access further.
    pub socket_mode: SocketMode,
    /// TCP address of the status page, `/metrics`, `/healthz` and `/readyz`; by default port 50052
    /// of localhost, or a free port if `listen` picks one.
    pub http: Option<SocketAddr>,
    /// Total shared memory.
    pub memory: ByteSize,
    /// Shared memory of one segment.
    pub segment: ByteSize,
    /// Backing of segments: `"memfd"` (sealed; they end with the service), or `"shm"` (named files
    /// in `shm_folder`).
    pub backing: SegmentBacking,
    /// The folder of named segments.
    pub shm_folder: PathBuf,
    /// Name segments as managed segments of the FairMQ session with this id, so that its devices
    /// can read them: /dev/shm/fmq_ID_m_N. 8 hexadecimal digits as in the names, or the decimal
    /// number that FairMQ's --shmid takes (one of 8 digits with a leading 0). All segments are made
    /// at the start.
    pub fairmq_shmid: Option<String>,
    /// Like `fairmq_shmid`, by the name of the session: its id is the first 8 hexadecimal digits of
    /// SHA-256 of effective user id and name.
    pub fairmq_session: Option<String>,
    /// The number of the first FairMQ segment; lower numbers belong to FairMQ.
    pub fairmq_segment: Option<u16>,
    /// A program that registers the segments with FairMQ before the service is ready, and removes
    /// them from FairMQ's registry when it ends: `PROGRAM [--remove] SHMID NUMBER:BYTES…`
    /// (examples/fairmq/register.cpp).
    pub fairmq_register: Option<PathBuf>,
    /// When they are made: `"start"` (all of them, before the service is ready), or `"needed"` (each
    /// one when the earlier ones are full; `fairmq_register` registers it before it is used).
    pub fairmq_create: SegmentCreation,
    /// Make a segment anew, under a fresh number, whose file another program has removed or
    /// overwritten. Its objects are loaded anew when they are requested.
    pub fairmq_renew: bool,
    /// An unmanaged region that another process has made, by its id and file as `7=/dev/shm/file`:
    /// all objects are stored there, and its previous content is lost.
    pub region: Option<RegionPath>,
    /// A folder with a copy of the objects read: it is used after a restart, and while sources are
    /// down.
    pub disk: Option<PathBuf>,
    /// Maximum size of that folder.
    pub disk_size: ByteSize,
    /// Time within which the service sees new versions of a source; by default 1 s for a folder, 10
    /// s for object stores, and for a CCDB the settings of `[ccdb]`.
    pub refresh: Option<TimeSpan>,
    /// Only versions created at or before this time (ms since the epoch).
    #[schemars(with = "Option<i64>")]
    pub not_after: Option<Timestamp>,
    /// Only versions created at or after this time (ms since the epoch).
    #[schemars(with = "Option<i64>")]
    pub not_before: Option<Timestamp>,
    /// The path of the objects with the times of runs, for ranges that name a run; they are looked
    /// up at the run number.
    #[schemars(with = "String")]
    pub run_information: ObjectPath,
    /// Metadata keys of these objects for the begin and the end of a run (ms), as `BEGIN:END`; of
    /// several pairs the first that is present counts.
    pub run_metadata: Vec<String>,
    /// Users that may connect to the Unix sockets, besides the service's own and root.
    pub allow_uids: Vec<u32>,
    /// Groups whose members may connect to the Unix sockets.
    pub allow_gids: Vec<u32>,
    /// A file with the keys of clients that have access (`iovcache token` makes one); read again on
    /// SIGHUP. Its content can be given in `$IOVCACHE_KEYS` instead. Without keys every client that
    /// reaches a socket has full access.
    pub tokens: Option<PathBuf>,
    /// Let other nodes connect without TLS or keys.
    pub insecure: bool,
    /// Do not let attached consumers look up in shared memory by themselves: each sends requests.
    pub no_local: bool,
    /// Maximum number of timeframes in flight; further registrations wait.
    pub max_timeframes: usize,
    /// Maximum bytes that one consumer may pin; by default there is no limit.
    pub quota_bytes: Option<ByteSize>,
    /// Maximum number of timeframes that one consumer may hold; by default there is no limit.
    pub quota_timeframes: Option<u64>,
    /// Maximum number of concurrent requests of one consumer; by default there is no limit.
    pub quota_requests: Option<u64>,
    /// How long a consumer may hold a table, or leave a ready timeframe unread; by default there is
    /// no limit.
    pub slow_after: Option<TimeSpan>,
    /// Reaction to a consumer that takes longer: `"warn"` (log and count it), `"refuse"` (its
    /// further requests), or `"revoke"` (its pins; the timeframe counts as consumed by it).
    pub slow_consumer: SlowConsumer,
    /// Filter of the log on stderr: error, warn, info, debug, trace, or a filter such as
    /// `"warn,iovcache::table=info"`.
    pub log: String,
    /// Format of the log: `"text"` for people, `"json"` for programs (one object per line).
    pub log_format: LogFormat,
    /// Sources, asked in order: `[[source]]`.
    #[serde(rename = "source")]
    pub sources: Vec<SourceConfig>,
    /// Replacements of paths: `[[remap]]`.
    #[serde(rename = "remap")]
    pub remaps: Vec<RemapConfig>,
    /// Settings of single paths: `[[path]]`; the longest matching entry counts.
    #[serde(rename = "path")]
    pub paths: Vec<PathConfig>,
    /// TLS for Flight over TCP: `[tls]`.
    pub tls: TlsConfig,
    /// Limits on requests to the Flight ports: `[limits]`.
    pub limits: Limits,
    /// Settings for CCDB servers as sources: `[ccdb]`.
    pub ccdb: CcdbOptions,
    /// The service as a CCDB for other clients: `[ccdb_server]`.
    pub ccdb_server: CcdbServerConfig,
    /// Sets of columns that requests may name: `[tables.NAME]`, then `column = "path"`, or `column
    /// = { path = "path", metadata = { key = "value" } }`.
    #[schemars(with = "BTreeMap<String, BTreeMap<String, String>>")]
    pub tables: BTreeMap<String, ColumnList>,
}

/// TLS for Flight over TCP; without a certificate TCP is not encrypted. All files are PEM, and read
/// again on SIGHUP.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TlsConfig {
    /// The file with the certificate and its chain.
    pub certificate: Option<PathBuf>,
    /// The file with the certificate's private key.
    pub key: Option<PathBuf>,
    /// The file with the authority that signs clients' certificates; `tokens` defines their roles.
    pub client_ca: Option<PathBuf>,
}

/// Backing of segments.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum SegmentBacking {
    /// Sealed memfds.
    #[default]
    Memfd,
    /// Named files.
    Shm,
}

/// Format of the log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Lines for people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 50_051)),
            socket: None,
            socket_mode: SocketMode::new(0o660),
            http: None,
            memory: ByteSize::new(4 << 30),
            segment: ByteSize::new(512 << 20),
            backing: SegmentBacking::default(),
            shm_folder: PathBuf::from("/dev/shm/iovcache"),
            fairmq_shmid: None,
            fairmq_session: None,
            fairmq_segment: None,
            fairmq_register: None,
            fairmq_create: SegmentCreation::AtStart,
            fairmq_renew: false,
            region: None,
            disk: None,
            disk_size: ByteSize::new(16 << 30),
            refresh: None,
            not_after: None,
            not_before: None,
            run_information: RunInformation::default().path,
            run_metadata: RunInformation::default().pairs(),
            allow_uids: Vec::new(),
            allow_gids: Vec::new(),
            tokens: None,
            insecure: false,
            no_local: false,
            max_timeframes: 4_096,
            quota_bytes: None,
            quota_timeframes: None,
            quota_requests: None,
            slow_after: None,
            slow_consumer: SlowConsumer::default(),
            log: "warn".to_owned(),
            log_format: LogFormat::default(),
            sources: Vec::new(),
            remaps: Vec::new(),
            paths: Vec::new(),
            tls: TlsConfig::default(),
            limits: Limits::default(),
            ccdb: CcdbOptions::default(),
            ccdb_server: CcdbServerConfig::default(),
            tables: BTreeMap::new(),
        }
    }
}

impl Config {
    /// Address of the status page and the metrics.
    pub fn http(&self) -> SocketAddr {
        let port = if self.listen.port() == 0 { 0 } else { 50_052 };
        self.http.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], port)))
    }

    /// The configured sets of columns, by name.
    pub fn columns(&self) -> BTreeMap<String, Vec<ColumnRequest>> {
        let columns = |list: &ColumnList| list.0.clone();
        self.tables.iter().map(|(name, list)| (name.clone(), columns(list))).collect()
    }

    /// The objects and metadata keys with the times of runs.
    pub fn runs(&self) -> RunInformation {
        let pairs = self.run_metadata.iter().filter_map(|pair| pair.split_once(':'));
        let bounds = pairs.map(|(from, until)| (from.to_owned(), until.to_owned())).collect();
        RunInformation { path: self.run_information.clone(), bounds }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_is_read_and_what_does_not_fit_together_is_named() {
        let config = Config::parse(
            "memory = \"1GiB\"\n[[source]]\nurl = \"file:///data\"\n\
             [tables.tpc]\nvdrift = \"TPC/Calib/VDriftTgl\"\n\
             noise = { path = \"TPC/Calib/Noise\", metadata = { run = \"1\" } }\n",
        )
        .unwrap();
        assert_eq!(config.sources[0].url, "file:///data");
        assert_eq!(config.columns()["tpc"].len(), 2);
        assert_eq!(config.memory, ByteSize::new(1 << 30));

        let error = Config::parse(
            "fairmq_segment = 7\nslow_consumer = \"refuse\"\n[[source]]\nurl = \"gopher://x\"\n\
             [ccdb]\nmax_redirects = 9\n[[path]]\npath = \"A\"\ndefault = \"/no/such/file\"\n",
        )
        .unwrap_err();
        let found: Vec<_> =
            error.faults.iter().map(|fault| (fault.line.unwrap(), fault.key.as_str())).collect();
        let right = [
            (1, "fairmq_segment"),
            (2, "slow_consumer"),
            (6, "ccdb.max_redirects"),
            (4, "source[0].url"),
            (9, "path[0].default"),
        ];
        assert_eq!(found, right, "{error}");
    }

    #[test]
    fn the_port_of_the_page_is_picked_where_that_of_flight_is() {
        assert_eq!(Config::default().http().port(), 50_052);
        let picked = Config::parse("listen = \"127.0.0.1:0\"").unwrap();
        assert_eq!(picked.http().port(), 0);
    }
}
