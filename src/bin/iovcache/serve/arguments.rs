//! The options of `serve`: the keys of the configuration as options.
//!
//! The options are serialised like a configuration file and override it. So each option is a field
//! here with the name of its key, and a key of [`Config`](iovcache::server::Config); `id` names a
//! key of a section. [`document_options`](crate::settings::document_options) adds the environment
//! variable and the default.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser as _};
use iovcache::cache::SlowConsumer;
use iovcache::server::{
    Answering, ByteSize, Config, LogFormat, RegionPath, SegmentBacking, SocketMode, SourceConfig,
    TimeSpan,
};
use iovcache::shm::SegmentCreation;
use iovcache::{ObjectPath, Timestamp};
use serde::Serialize;
use serde::de::DeserializeOwned;

#[derive(Debug, Args, Serialize)]
pub(crate) struct Arguments {
    /// Source of objects: http(s)://host:port (CCDB), file:///folder, s3://bucket/prefix, memory:
    /// (may be given several times: asked in order). URL#TPC,ITS/Calib: only for these paths.
    #[arg(id = "source", long = "source", value_name = "URL", value_parser = source)]
    #[serde(rename = "source", skip_serializing_if = "Vec::is_empty")]
    sources: Vec<SourceConfig>,
    /// TCP address of Flight; port 0 picks a free port.
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// The folder of flight.sock and attach.sock; by default a private one under $XDG_RUNTIME_DIR,
    /// else /tmp.
    #[arg(long, value_name = "FOLDER")]
    socket: Option<PathBuf>,
    /// The mode of both sockets, in octal; 0660 lets the folder's group reach them. --allow-uid and
    /// --allow-gid restrict access further.
    #[arg(long, value_name = "MODE")]
    socket_mode: Option<SocketMode>,
    /// TCP address of the status page, /metrics, /healthz and /readyz; port 0 picks a free port. By
    /// default port 50052 of localhost, or a free port if --listen picks one.
    #[arg(long, value_name = "ADDRESS")]
    http: Option<SocketAddr>,
    #[command(flatten)]
    ccdb_server: CcdbServerArguments,
    /// Total shared memory.
    #[arg(long, value_name = "BYTES")]
    memory: Option<ByteSize>,
    #[command(flatten)]
    limits: LimitsArguments,
    /// Shared memory of one segment.
    #[arg(long, value_name = "BYTES")]
    segment: Option<ByteSize>,
    /// Time within which the service sees new versions of a source.
    #[arg(long, value_name = "TIME")]
    refresh: Option<TimeSpan>,
    /// Only versions created at or before this time (ms, ISO 8601 with a zone, now-1h).
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = timestamp)]
    not_after: Option<Timestamp>,
    /// Only versions created at or after this time.
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = timestamp)]
    not_before: Option<Timestamp>,
    /// Backing of segments: memfd (sealed), or shm (named files in --shm-folder).
    #[arg(long, value_parser = PossibleValuesParser::new(["memfd", "shm"]).try_map(word::<SegmentBacking>))]
    backing: Option<SegmentBacking>,
    /// The folder of named segments.
    #[arg(long, value_name = "FOLDER")]
    shm_folder: Option<PathBuf>,
    /// Name segments as managed segments of this FairMQ session, so that its devices can read them:
    /// /dev/shm/fmq_<ID>_m_<N>. ID is 8 hexadecimal digits as in the names, or the decimal number
    /// that FairMQ's --shmid takes (one of 8 digits with a leading 0). All segments are made at the
    /// start, and must be registered with FairMQ before its devices start (--fairmq-register). Do
    /// not allocate in them or send their headers over a channel: the receiver would free memory
    /// that FairMQ does not manage.
    #[arg(long, value_name = "ID")]
    fairmq_shmid: Option<String>,
    /// Like --fairmq-shmid, by the name of the session (FairMQ's --session): its ID is the first 8
    /// hexadecimal digits of SHA-256 of effective user id and name, and is part of the line that
    /// reports readiness.
    #[arg(long, value_name = "NAME")]
    fairmq_session: Option<String>,
    /// The number of the first FairMQ segment; lower numbers belong to FairMQ (its
    /// --shm-segment-id). Each cache of a session needs another one.
    #[arg(long, value_name = "N")]
    fairmq_segment: Option<u16>,
    /// A program that registers the segments with FairMQ before the service is ready, and removes
    /// them from FairMQ's registry when it ends (examples/fairmq/register.cpp).
    #[arg(long, value_name = "PROGRAM")]
    fairmq_register: Option<PathBuf>,
    /// When they are made: start (all of them, before the service is ready), or needed (each one
    /// when the earlier ones are full; --fairmq-register registers it before it is used).
    #[arg(
        long,
        value_name = "WHEN",
        value_parser = PossibleValuesParser::new(["start", "needed"]).try_map(word::<SegmentCreation>)
    )]
    fairmq_create: Option<SegmentCreation>,
    /// Make a segment anew, under a fresh number, whose file another program has removed or
    /// overwritten. Its objects are loaded anew when they are requested.
    #[arg(long, num_args = 0..=1, default_missing_value = "true")]
    fairmq_renew: Option<bool>,
    /// Store all objects in an unmanaged region that another process has made, given by its id and
    /// file, e.g. 7=/dev/shm/fmq_<shmid>_rg_7. Its previous content is lost.
    #[arg(long, value_name = "ID=PATH")]
    region: Option<RegionPath>,
    /// The path of the objects with the times of runs; they are looked up at the run number.
    #[arg(long, value_name = "PATH")]
    run_information: Option<ObjectPath>,
    /// Metadata keys of these objects for the begin and the end of a run (may be given several
    /// times: the first pair that is present counts).
    #[arg(long, value_name = "BEGIN:END", value_delimiter = ',')]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    run_metadata: Vec<String>,
    /// A user that may connect to the Unix sockets, besides the service's own and root (may be
    /// given several times).
    #[arg(id = "allow_uids", long = "allow-uid", value_name = "UID", value_delimiter = ',')]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    allow_uids: Vec<u32>,
    /// A group whose members may connect to the Unix sockets (may be given several times).
    #[arg(id = "allow_gids", long = "allow-gid", value_name = "GID", value_delimiter = ',')]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    allow_gids: Vec<u32>,
    /// A file with the keys of clients that have access (`iovcache token` makes one); read again on
    /// SIGHUP. Its content can be given in $IOVCACHE_KEYS instead.
    #[arg(long, value_name = "FILE")]
    tokens: Option<PathBuf>,
    /// Let other nodes connect without TLS or keys.
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    insecure: bool,
    /// Do not let attached consumers look up in shared memory by themselves: each sends requests.
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    no_local: bool,
    #[command(flatten)]
    tls: TlsArguments,
    /// Maximum number of timeframes in flight; further registrations wait.
    #[arg(long, value_name = "N")]
    max_timeframes: Option<usize>,
    /// Keep a copy of the objects read in this folder: it is used after a restart, and while
    /// sources are down.
    #[arg(long, value_name = "FOLDER")]
    disk: Option<PathBuf>,
    /// Maximum size of this folder.
    #[arg(long, value_name = "BYTES")]
    disk_size: Option<ByteSize>,
    /// Maximum bytes that one consumer may pin.
    #[arg(long, value_name = "BYTES")]
    quota_bytes: Option<ByteSize>,
    /// Maximum number of timeframes that one consumer may hold.
    #[arg(long, value_name = "N")]
    quota_timeframes: Option<u64>,
    /// Maximum number of concurrent requests of one consumer.
    #[arg(long, value_name = "N")]
    quota_requests: Option<u64>,
    /// How long a consumer may hold a table, or leave a ready timeframe unread.
    #[arg(long, value_name = "TIME")]
    slow_after: Option<TimeSpan>,
    /// Reaction to a consumer that takes longer: warn (log and count it), refuse (its further
    /// requests), or revoke (its pins; the timeframe counts as consumed by it).
    #[arg(long, value_parser = PossibleValuesParser::new(["warn", "refuse", "revoke"]).try_map(word::<SlowConsumer>))]
    slow_consumer: Option<SlowConsumer>,
    /// A configuration in TOML; options override it.
    #[arg(long, value_name = "FILE", env = "IOVCACHE_CONFIG")]
    #[serde(skip)]
    pub(crate) config: Option<PathBuf>,
}

#[derive(Debug, Args, Serialize)]
struct CcdbServerArguments {
    /// TCP address of an HTTP server that behaves like a CCDB (plain HTTP); port 0 picks a free
    /// port. By default there is none.
    #[arg(id = "ccdb_server.listen", long = "ccdb", value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// How that server answers a look-up: redirect (303 to the address of the version), or body
    /// (200 with the bytes).
    #[arg(
        id = "ccdb_server.answer",
        long = "ccdb-answer",
        value_name = "HOW",
        value_parser = PossibleValuesParser::new(["redirect", "body"]).try_map(word::<Answering>)
    )]
    answer: Option<Answering>,
    /// Pass uploads, changes and deletions on to the source that keeps the path; if there are
    /// tokens, only those of clients with the role administer. Only at an address of this node.
    #[arg(
        id = "ccdb_server.writable",
        long = "ccdb-writable",
        num_args = 0..=1,
        default_missing_value = "true"
    )]
    writable: Option<bool>,
}

#[derive(Debug, Args, Serialize)]
struct LimitsArguments {
    /// Memory besides --memory that the requests of all clients may hold together; one client may
    /// have a quarter of it.
    #[arg(id = "limits.request_memory", long = "request-memory", value_name = "BYTES")]
    request_memory: Option<ByteSize>,
    /// Maximum number of registrations of timeframes that wait for their answer, over all clients.
    #[arg(id = "limits.registrations", long = "limit-registrations", value_name = "N")]
    registrations: Option<usize>,
    /// Maximum number of columns of a request; at most 10,000.
    #[arg(id = "limits.columns", long = "limit-columns", value_name = "N")]
    columns: Option<usize>,
    /// Maximum number of consumers of a timeframe; at most 1,000.
    #[arg(id = "limits.consumers", long = "limit-consumers", value_name = "N")]
    consumers: Option<usize>,
    /// Maximum number of ranges of a key in the path of a column; at most 1,000.
    #[arg(id = "limits.path_ranges", long = "limit-path-ranges", value_name = "N")]
    path_ranges: Option<usize>,
    /// Maximum number of distinct values of a key for which a column has separate look-ups; at most
    /// 10,000.
    #[arg(id = "limits.key_values", long = "limit-key-values", value_name = "N")]
    key_values: Option<usize>,
    /// Queries of a table for its columns and keys, of all columns together; at most 200,000.
    #[arg(id = "limits.queries", long = "limit-queries", value_name = "N")]
    queries: Option<usize>,
    /// Maximum number of entries of a lock; at most 100,000.
    #[arg(id = "limits.lock_entries", long = "limit-lock-entries", value_name = "N")]
    lock_entries: Option<usize>,
    /// Maximum length of the name of a column, a table, a consumer or a session; at most 256B.
    #[arg(id = "limits.name", long = "limit-name", value_name = "BYTES")]
    name: Option<ByteSize>,
    /// Maximum size of the metadata of a column, all keys and values together; at most 64KiB.
    #[arg(id = "limits.metadata", long = "limit-metadata", value_name = "BYTES")]
    metadata: Option<ByteSize>,
}

#[derive(Debug, Args, Serialize)]
struct TlsArguments {
    /// Use TLS on TCP: the certificate and its chain (PEM); read again on SIGHUP.
    #[arg(id = "tls.certificate", long = "tls-cert", value_name = "FILE")]
    certificate: Option<PathBuf>,
    /// Private key of the certificate (PEM).
    #[arg(id = "tls.key", long = "tls-key", value_name = "FILE")]
    key: Option<PathBuf>,
    /// The authority that signs clients' certificates (PEM); --tokens defines their roles.
    #[arg(id = "tls.client_ca", long = "tls-client-ca", value_name = "FILE")]
    client_ca: Option<PathBuf>,
}

/// Options of the log: options of every command, and keys of a service's configuration.
#[derive(Debug, Args, Serialize)]
pub(crate) struct LogArguments {
    /// Filter of the log on stderr: error, warn, info, debug, trace, or a filter like
    /// `iovcache=debug`.
    #[arg(long, global = true, value_name = "FILTER")]
    log: Option<String>,
    /// Format of the log: text, or json (one object per line).
    #[arg(
        long,
        global = true,
        value_parser = PossibleValuesParser::new(["text", "json"]).try_map(word::<LogFormat>)
    )]
    log_format: Option<LogFormat>,
}

impl LogArguments {
    /// The filter of a command that has no configuration.
    pub(crate) fn filter(&self) -> String {
        self.log.clone().unwrap_or(Config::default().log)
    }

    /// The format of a command that has no configuration.
    pub(crate) fn format(&self) -> LogFormat {
        self.log_format.unwrap_or_default()
    }
}

fn source(text: &str) -> Result<SourceConfig, String> {
    Ok(text.into())
}

fn timestamp(text: &str) -> Result<Timestamp, String> {
    crate::time::parse(text).map(Timestamp::from_millis)
}

/// Parses one of the words of a key.
fn word<T: DeserializeOwned>(text: String) -> Result<T, toml::de::Error> {
    toml::Value::String(text).try_into()
}
