//! The options of `serve`: the configuration's keys in another spelling.
//!
//! Each option is written down as it would stand in a file, and put over it. So an option is a field
//! here with the name of its key, and a key of [`Config`](iovcache::server::Config); `id` names a key
//! that has a section. Its variable of the environment and its default are added to it in
//! [`document_options`](crate::settings::document_options).

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
    /// Where objects come from: http(s)://host:port (CCDB), file:///folder, s3://bucket/prefix,
    /// memory: (may be given several times: asked in order). URL#TPC,ITS/Calib: only for these
    /// paths.
    #[arg(id = "source", long = "source", value_name = "URL", value_parser = source)]
    #[serde(rename = "source", skip_serializing_if = "Vec::is_empty")]
    sources: Vec<SourceConfig>,
    /// Where Flight listens on TCP; port 0 picks one.
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// The folder of flight.sock and attach.sock; by default one of its own under
    /// $XDG_RUNTIME_DIR, else /tmp.
    #[arg(long, value_name = "FOLDER")]
    socket: Option<PathBuf>,
    /// The mode of both sockets, in octal; 0660 lets the folder's group reach them. Who may is decided
    /// by --allow-uid and --allow-gid too.
    #[arg(long, value_name = "MODE")]
    socket_mode: Option<SocketMode>,
    /// Where the status page, /metrics, /healthz and /readyz are; port 0 picks one. By default port
    /// 50052 of localhost, or a port that is picked where --listen has one picked.
    #[arg(long, value_name = "ADDRESS")]
    http: Option<SocketAddr>,
    #[command(flatten)]
    ccdb_server: CcdbServerArguments,
    /// Shared memory in all.
    #[arg(long, value_name = "BYTES")]
    memory: Option<ByteSize>,
    #[command(flatten)]
    limits: LimitsArguments,
    /// Shared memory of one segment.
    #[arg(long, value_name = "BYTES")]
    segment: Option<ByteSize>,
    /// What is put into a source is seen within this.
    #[arg(long, value_name = "TIME")]
    refresh: Option<TimeSpan>,
    /// Only versions created at or before this are seen (ms, ISO 8601 with a zone, now-1h).
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = timestamp)]
    not_after: Option<Timestamp>,
    /// Only versions created at or after this are seen.
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = timestamp)]
    not_before: Option<Timestamp>,
    /// What segments are made of: memfd (sealed), or shm (named files in --shm-folder).
    #[arg(long, value_parser = PossibleValuesParser::new(["memfd", "shm"]).try_map(word::<SegmentBacking>))]
    backing: Option<SegmentBacking>,
    /// The folder of named segments.
    #[arg(long, value_name = "FOLDER")]
    shm_folder: Option<PathBuf>,
    /// Name segments as managed segments of this FairMQ session, which its devices can then read:
    /// /dev/shm/fmq_<ID>_m_<N>. ID is 8 hexadecimal digits as in the names, or the decimal number
    /// that FairMQ's --shmid takes (one of 8 digits with a leading 0). All segments are made at the
    /// start, and are to be registered with FairMQ before its devices start (--fairmq-register). Do
    /// not allocate in them or send their headers over a channel: the receiver would free memory
    /// that is not FairMQ's.
    #[arg(long, value_name = "ID")]
    fairmq_shmid: Option<String>,
    /// The same, the session by its name (FairMQ's --session): its ID is the first 8 hexadecimal
    /// digits of SHA-256 of effective user id and name, and stands in the line that says ready.
    #[arg(long, value_name = "NAME")]
    fairmq_session: Option<String>,
    /// The number of the first of them; those below are FairMQ's own (its --shm-segment-id). Each
    /// cache of a session needs another one.
    #[arg(long, value_name = "N")]
    fairmq_segment: Option<u16>,
    /// A program that registers the segments with FairMQ before the service is ready, and takes them
    /// out of FairMQ's book when it ends (examples/fairmq/register.cpp).
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
    /// Place all objects into an unmanaged region that somebody else has made, given by its id and
    /// file, e.g. 7=/dev/shm/fmq_<shmid>_rg_7. What it held is lost.
    #[arg(long, value_name = "ID=PATH")]
    region: Option<RegionPath>,
    /// The path of the objects that tell when a run was: they are looked up at its number.
    #[arg(long, value_name = "PATH")]
    run_information: Option<ObjectPath>,
    /// Their metadata with the begin and the end of a run (may be given several times: the first pair
    /// that is there counts).
    #[arg(long, value_name = "BEGIN:END", value_delimiter = ',')]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    run_metadata: Vec<String>,
    /// A user that may connect to the Unix sockets, beside one's own and root (may be given several
    /// times).
    #[arg(id = "allow_uids", long = "allow-uid", value_name = "UID", value_delimiter = ',')]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    allow_uids: Vec<u32>,
    /// A group whose members may (may be given several times).
    #[arg(id = "allow_gids", long = "allow-gid", value_name = "GID", value_delimiter = ',')]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    allow_gids: Vec<u32>,
    /// A file with the keys of those who may (`iovcache token` makes one); read again on SIGHUP. What
    /// would stand in it can be in $IOVCACHE_KEYS instead.
    #[arg(long, value_name = "FILE")]
    tokens: Option<PathBuf>,
    /// Let others than this node connect without TLS or keys.
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    insecure: bool,
    /// Let no attached consumer look up in shared memory by itself: each asks.
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    no_local: bool,
    #[command(flatten)]
    tls: TlsArguments,
    /// How many timeframes can be in flight; who registers one more waits.
    #[arg(long, value_name = "N")]
    max_timeframes: Option<usize>,
    /// Keep what was read in this folder: it is there again after a restart, and when the sources are
    /// down.
    #[arg(long, value_name = "FOLDER")]
    disk: Option<PathBuf>,
    /// How much room the folder may take.
    #[arg(long, value_name = "BYTES")]
    disk_size: Option<ByteSize>,
    /// Bytes that one consumer may pin.
    #[arg(long, value_name = "BYTES")]
    quota_bytes: Option<ByteSize>,
    /// Timeframes that one consumer may hold.
    #[arg(long, value_name = "N")]
    quota_timeframes: Option<u64>,
    /// Requests of one consumer that are answered at a time.
    #[arg(long, value_name = "N")]
    quota_requests: Option<u64>,
    /// For how long a consumer may hold a table, and leave a timeframe that is ready alone.
    #[arg(long, value_name = "TIME")]
    slow_after: Option<TimeSpan>,
    /// What becomes of one that takes longer: warn (tell the log, and count), refuse (its further
    /// requests), or revoke (what it holds; the timeframe counts as consumed by it).
    #[arg(long, value_parser = PossibleValuesParser::new(["warn", "refuse", "revoke"]).try_map(word::<SlowConsumer>))]
    slow_consumer: Option<SlowConsumer>,
    /// A configuration in TOML; what stands on the command line counts more.
    #[arg(long, value_name = "FILE", env = "IOVCACHE_CONFIG")]
    #[serde(skip)]
    pub(crate) config: Option<PathBuf>,
}

#[derive(Debug, Args, Serialize)]
struct CcdbServerArguments {
    /// Where it is a CCDB to clients that know nothing of us (plain HTTP); port 0 picks one. Without this there is none.
    #[arg(id = "ccdb_server.listen", long = "ccdb", value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// How it answers there which version holds at a time: redirect (303 to the version's own
    /// address), or body (200 with the bytes at once).
    #[arg(
        id = "ccdb_server.answer",
        long = "ccdb-answer",
        value_name = "HOW",
        value_parser = PossibleValuesParser::new(["redirect", "body"]).try_map(word::<Answering>)
    )]
    answer: Option<Answering>,
    /// Pass uploads, changes and deletions on to the source that keeps the path; where there are
    /// tokens, of those who may administer. Only at an address of this node alone.
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
    /// Memory beside --memory that the requests of all clients may hold together; one client may
    /// have a quarter of it.
    #[arg(id = "limits.request_memory", long = "request-memory", value_name = "BYTES")]
    request_memory: Option<ByteSize>,
    /// Registrations of timeframes that wait for their answer, over all clients.
    #[arg(id = "limits.registrations", long = "limit-registrations", value_name = "N")]
    registrations: Option<usize>,
    /// Columns of a request; at most 10,000.
    #[arg(id = "limits.columns", long = "limit-columns", value_name = "N")]
    columns: Option<usize>,
    /// Consumers of a timeframe; at most 1,000.
    #[arg(id = "limits.consumers", long = "limit-consumers", value_name = "N")]
    consumers: Option<usize>,
    /// Ranges of a key in the path of a column; at most 1,000.
    #[arg(id = "limits.path_ranges", long = "limit-path-ranges", value_name = "N")]
    path_ranges: Option<usize>,
    /// Distinct values of a key for each of which a column has a look-up of its own; at most
    /// 10,000.
    #[arg(id = "limits.key_values", long = "limit-key-values", value_name = "N")]
    key_values: Option<usize>,
    /// Entries of a lock; at most 100,000.
    #[arg(id = "limits.lock_entries", long = "limit-lock-entries", value_name = "N")]
    lock_entries: Option<usize>,
    /// The name of a column, a table, a consumer or a session; at most 256B.
    #[arg(id = "limits.name", long = "limit-name", value_name = "BYTES")]
    name: Option<ByteSize>,
    /// The metadata of a column, all keys and values together; at most 64KiB.
    #[arg(id = "limits.metadata", long = "limit-metadata", value_name = "BYTES")]
    metadata: Option<ByteSize>,
}

#[derive(Debug, Args, Serialize)]
struct TlsArguments {
    /// Speak TLS on TCP: the certificate and its chain (PEM); read again on SIGHUP.
    #[arg(id = "tls.certificate", long = "tls-cert", value_name = "FILE")]
    certificate: Option<PathBuf>,
    /// Its key (PEM).
    #[arg(id = "tls.key", long = "tls-key", value_name = "FILE")]
    key: Option<PathBuf>,
    /// The authority that signs clients' certificates (PEM); what their bearers may stands in
    /// --tokens.
    #[arg(id = "tls.client_ca", long = "tls-client-ca", value_name = "FILE")]
    client_ca: Option<PathBuf>,
}

/// What is logged: an option of every command, and of a service a key of its configuration.
#[derive(Debug, Args, Serialize)]
pub(crate) struct LogArguments {
    /// What is logged on stderr: error, warn, info, debug, trace, or a filter like
    /// `iovcache=debug`.
    #[arg(long, global = true, value_name = "FILTER")]
    log: Option<String>,
    /// As what it is logged: text, or json (one object per line).
    #[arg(
        long,
        global = true,
        value_parser = PossibleValuesParser::new(["text", "json"]).try_map(word::<LogFormat>)
    )]
    log_format: Option<LogFormat>,
}

impl LogArguments {
    /// What a command logs that has no configuration.
    pub(crate) fn filter(&self) -> String {
        self.log.clone().unwrap_or(Config::default().log)
    }

    /// And as what.
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

/// One of the words that a key can be.
fn word<T: DeserializeOwned>(text: String) -> Result<T, toml::de::Error> {
    toml::Value::String(text).try_into()
}
