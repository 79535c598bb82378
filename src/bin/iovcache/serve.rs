//! `serve`: runs the service until SIGTERM or SIGINT.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use iovcache::cache::{ConsumerLimits, PeerPolicy, SlowConsumer};
use iovcache::server::{
    Answering, Config, ListenOptions, Listeners, MissingConfig, PathConfig, RemapConfig,
    ServeOptions, SourceConfig,
};
use iovcache::source::{
    ChainSource, DiskSource, Link, PathPolicy, Policies, PolicySource, Remap, Source,
    SourceOptions, WhenMissing, split_prefixes,
};
use iovcache::{Cache, CreationLimits, Timestamp};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use crate::common::{Failure, parse_bytes, parse_duration, parse_mode};
use crate::memory::{MemoryArguments, size};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Where objects come from: http(s)://host:port (CCDB), file:///folder, memory: (may be given
    /// several times: asked in order). URL#TPC,ITS/Calib: only for these paths.
    #[arg(long = "source", value_name = "URL")]
    sources: Vec<String>,
    /// Where Flight listens on TCP; port 0 picks one.
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// The folder of flight.sock and attach.sock; by default one of its own under
    /// $XDG_RUNTIME_DIR, else /tmp.
    #[arg(long, value_name = "FOLDER")]
    socket: Option<PathBuf>,
    /// The mode of both sockets, in octal: 0660 lets the folder's group connect. Who may attach is
    /// decided by --allow-uid and --allow-gid too.
    #[arg(long, value_name = "MODE")]
    socket_mode: Option<String>,
    /// Where /metrics, /healthz and /readyz are; port 0 picks one.
    #[arg(long, value_name = "ADDRESS")]
    http: Option<SocketAddr>,
    /// Where it is a CCDB to clients that know nothing of us (plain HTTP, read only); port 0 picks
    /// one. Without this there is none.
    #[arg(long, value_name = "ADDRESS")]
    ccdb: Option<SocketAddr>,
    /// How it answers there which version holds at a time: redirect (303 to the version's own
    /// address), or body (200 with the bytes at once).
    #[arg(long, value_name = "HOW", value_parser = answering)]
    ccdb_answer: Option<Answering>,
    #[command(flatten)]
    memory: MemoryArguments,
    /// What is put into a repository is seen within this.
    #[arg(long, value_name = "TIME")]
    refresh: Option<String>,
    /// Only versions created at or before this are seen (ms).
    #[arg(long, value_name = "MS", allow_negative_numbers = true)]
    not_after: Option<i64>,
    /// Only versions created at or after this are seen (ms).
    #[arg(long, value_name = "MS", allow_negative_numbers = true)]
    not_before: Option<i64>,
    /// A user that may attach, beside one's own and root (may be given several times).
    #[arg(long = "allow-uid", value_name = "UID")]
    allow_uids: Vec<u32>,
    /// A group that may attach (may be given several times).
    #[arg(long = "allow-gid", value_name = "GID")]
    allow_gids: Vec<u32>,
    /// How many timeframes can be in flight; who registers one more waits.
    #[arg(long, value_name = "N", default_value_t = 4_096)]
    max_timeframes: usize,
    /// Keep what was read in this folder: it is there again after a restart, and when the sources are
    /// down.
    #[arg(long, value_name = "FOLDER")]
    disk: Option<PathBuf>,
    /// How much room the folder may take.
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes, requires = "disk")]
    disk_size: Option<u64>,
    /// Bytes that one consumer may pin.
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    quota_bytes: Option<u64>,
    /// Timeframes that one consumer may hold.
    #[arg(long, value_name = "N")]
    quota_timeframes: Option<u64>,
    /// For how long a consumer may hold a table, and leave a timeframe that is ready alone.
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    slow_after: Option<Duration>,
    /// What becomes of one that takes longer: warn (tell the log, and count), refuse (its further
    /// requests), or revoke (what it holds; the timeframe counts as consumed by it).
    #[arg(long, value_name = "POLICY", default_value = "warn", requires = "slow_after")]
    slow_consumer: SlowConsumer,
    /// A configuration in TOML; what stands on the command line counts more.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

fn answering(text: &str) -> Result<Answering, String> {
    match text {
        "redirect" => Ok(Answering::Redirect),
        "body" => Ok(Answering::Body),
        _ => Err("expected redirect or body".to_owned()),
    }
}

/// The default ports; a chosen one of Flight at 0 takes HTTP's with it.
const FLIGHT: ([u8; 4], u16) = ([127, 0, 0, 1], 50_051);
const HTTP: ([u8; 4], u16) = ([127, 0, 0, 1], 50_052);

/// The room of a disk tier, where nothing else is said.
const DISK_BYTES: u64 = 16 << 30;

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let config = match &arguments.config {
        None => Config::default(),
        Some(file) => crate::config::read(file)?,
    };
    let memory = arguments.memory.options(&config)?;
    let shmid = memory.backing.fairmq_shmid().map(str::to_owned);
    let millis = |given: Option<i64>, configured| given.map(Timestamp::from_millis).or(configured);
    let limits = CreationLimits {
        not_before: millis(arguments.not_before, config.not_before),
        not_after: millis(arguments.not_after, config.not_after),
    };
    let policies = policies(&config)?;
    let mut source = source(&arguments, &config)?;
    if let Some(folder) = arguments.disk.as_ref().or(config.disk.as_ref()) {
        let limit_bytes = size(arguments.disk_size, config.disk_size.as_ref(), DISK_BYTES)?;
        source = Arc::new(DiskSource::open(folder, limit_bytes, source)?);
    }
    if !config.paths.is_empty() {
        source = Arc::new(PolicySource::new(source, policies.clone()));
    }
    let cache = Cache::builder()
        .source(source)
        .memory(memory)
        .creation_limits(limits)
        .tables(config.columns())
        .policies(policies)
        .max_timeframes(arguments.max_timeframes)
        .consumer_limits(ConsumerLimits {
            quota_bytes: arguments.quota_bytes,
            quota_timeframes: arguments.quota_timeframes,
            slow_after: arguments.slow_after,
            slow_consumer: arguments.slow_consumer,
        })
        .build()?;

    let flight = arguments.listen.or(config.listen).unwrap_or_else(|| FLIGHT.into());
    let http = arguments.http.or(config.http).unwrap_or_else(|| {
        let (host, port) = HTTP;
        (host, if flight.port() == 0 { 0 } else { port }).into()
    });
    let listeners = Listeners::bind(&ListenOptions {
        flight: Some(flight),
        http: Some(http),
        ccdb: arguments.ccdb.or(config.ccdb_server.listen),
        socket_mode: match arguments.socket_mode.as_ref().or(config.socket_mode.as_ref()) {
            Some(mode) => parse_mode(mode).map_err(Failure::usage)?,
            None => ListenOptions::default().socket_mode,
        },
        socket_folder: arguments.socket.clone().or_else(|| config.socket.clone()),
    })
    .await?;
    let mut ready = json!({
        "ready": true,
        "flight": listeners.flight_urls(),
        "attach": listeners.attach_path(),
        "http": listeners.http_url(),
        "epoch": cache.epoch().to_string(),
        "pid": std::process::id(),
    });
    if let Some(url) = listeners.ccdb_url() {
        ready["ccdb"] = url.into();
    }
    if let Some(shmid) = shmid {
        ready["fairmq"] = json!({"shmid": shmid, "segments": cache.segments().segments});
    }
    let mut policy = PeerPolicy::default();
    policy.uids.extend(config.allow_uids.iter().chain(&arguments.allow_uids));
    policy.gids.extend(config.allow_gids.iter().chain(&arguments.allow_gids));

    let [mut terminate, mut interrupt] = [SignalKind::terminate(), SignalKind::interrupt()]
        .map(|kind| signal(kind).map_err(|error| Failure::io("cannot listen for signals", error)));
    let shutdown = async move {
        let terminated = async {
            match &mut terminate {
                Ok(signal) => signal.recv().await,
                Err(_) => std::future::pending().await,
            }
        };
        let interrupted = async {
            match &mut interrupt {
                Ok(signal) => signal.recv().await,
                Err(_) => std::future::pending().await,
            }
        };
        tokio::select! { _ = terminated => {}, _ = interrupted => {} }
        notify(sd_notify::NotifyState::Stopping);
    };
    if let Some(limit) = sd_notify::watchdog_enabled() {
        tokio::spawn(say_that_it_lives(limit));
    }
    let tell = || {
        let mut out = std::io::stdout();
        let told = writeln!(out, "{ready}").and_then(|()| out.flush());
        if let Err(error) = told {
            tracing::warn!(%error, "nobody reads that the service is ready");
        }
        notify(sd_notify::NotifyState::Ready);
    };
    let ccdb_answer = arguments.ccdb_answer.unwrap_or(config.ccdb_server.answer);
    let options = ServeOptions { policy, ccdb_answer, ..ServeOptions::default() };
    iovcache::server::run(listeners, cache, options, shutdown, tell).await?;
    Ok(())
}

/// Tells systemd, where it listens.
fn notify(state: sd_notify::NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::debug!(%error, "systemd was not told");
    }
}

/// Feeds systemd's watchdog, until it is dropped: as a task among the others, so that it falls
/// silent when these do not run any more.
async fn say_that_it_lives(limit: std::time::Duration) {
    loop {
        notify(sd_notify::NotifyState::Watchdog);
        tokio::time::sleep(limit / 3).await;
    }
}

/// The sources in order, each limited to its paths; one alone needs no chain.
fn source(arguments: &Arguments, config: &Config) -> Result<Arc<dyn Source>, Failure> {
    let named: Vec<SourceConfig> = match arguments.sources.is_empty() {
        true => config.sources.clone(),
        false => arguments.sources.iter().map(|text| with_prefixes(text)).collect(),
    };
    let refresh = arguments.refresh.as_ref().or(config.refresh.as_ref());
    let refresh = refresh.map(|text| parse_duration(text)).transpose().map_err(Failure::usage)?;
    let options = SourceOptions { refresh, ccdb: config.ccdb.clone() };
    let open = |url: &str| iovcache::source::open(url, &options);
    let mut links = Vec::new();
    for SourceConfig { url, paths } in named {
        links.push(Link { source: open(&url)?, prefixes: paths });
    }
    let mut remaps = Vec::new();
    for remap in &config.remaps {
        let RemapConfig { path, to, source } = remap.clone();
        let source = source.map(|url| open(&url)).transpose()?;
        let to = to.unwrap_or_else(|| path.clone());
        remaps.push(Remap { path, to, source });
    }
    match &links[..] {
        [] => {
            Err(Failure::usage("no source: give --source file:///folder, or name one in --config"))
        }
        [only] if only.prefixes.is_empty() && remaps.is_empty() => Ok(Arc::clone(&only.source)),
        _ => Ok(Arc::new(ChainSource::new(links, remaps))),
    }
}

/// What the configuration says of single paths.
fn policies(config: &Config) -> Result<Policies, Failure> {
    let policy = |path: &PathConfig| {
        let time = |text: &Option<String>| {
            text.as_ref().map(|text| parse_duration(text)).transpose().map_err(Failure::usage)
        };
        let policy = PathPolicy {
            prefix: path.path.clone(),
            missing: path.missing.map(|missing| match missing {
                MissingConfig::Required => WhenMissing::Required,
                MissingConfig::Optional => WhenMissing::Optional,
            }),
            default: None,
            timeout: time(&path.timeout)?,
            refresh: time(&path.refresh)?,
        };
        match &path.default {
            None => Ok(policy),
            Some(file) => policy
                .with_default_file(file)
                .map_err(|error| Failure::io(format!("the default of {}", path.path), error)),
        }
    };
    config.paths.iter().map(policy).collect()
}

/// `URL#PREFIX,PREFIX`: a source for some paths only.
fn with_prefixes(text: &str) -> SourceConfig {
    let (url, paths) = split_prefixes(text);
    SourceConfig { url: url.to_owned(), paths }
}
