//! `serve`: runs the service until SIGTERM or SIGINT; the second of them does not wait for requests
//! under way.
//!
//! ```text
//!  options, environment, file ─▶ Settings ─▶ assemble: cache, listeners ─▶ server::run
//!  descriptors that systemd hands over ────────────┘
//! ```

mod access;
mod arguments;
mod assemble;
mod check;
mod signals;
mod systemd;

use std::io::Write as _;

use iovcache::Cache;
use iovcache::cache::Heritage;
use iovcache::server::{Config, Descriptors, Limits, Listeners, ServeOptions};
use serde_json::json;

pub(crate) use self::arguments::{Arguments, LogArguments};
pub(crate) use self::check::check;
use self::signals::Signals;
use self::systemd::Notifier;
use crate::common::Failure;
use crate::settings::Given;

/// Fewer connections than this are worth a warning.
const FEW_CONNECTIONS: usize = 1_024;

pub(crate) async fn run(given: &Given) -> Result<(), Failure> {
    let config = given.settings()?.config;
    let log = crate::log::begin_queued(&config.log, config.log_format)?;
    crate::threads::start_blocking_threads().await;
    let notifier = Notifier::from_environment();
    // Before anything is bound or loaded: who may not serve so is told at once.
    let mut options = assemble::serve_options(&config, log)?;
    open_many_files();
    compare_memory(config.memory.bytes());
    iovcache::server::hush_panics_of_decoding();
    // Sockets that listen already, and what a predecessor left.
    let (heritage, sockets) = Heritage::of(iovcache::shm::inherited_files());
    let (cache, fairmq) = assemble::cache(&config, heritage, notifier.descriptor_store())?;
    let listeners = Listeners::bind_with(&assemble::listen_options(&config), sockets).await?;
    if !config.insecure {
        listeners.check_exposed(&options.access)?;
    }
    share_descriptors(&config, &mut options);
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
    if let Some(fairmq) = fairmq {
        ready["fairmq"] = fairmq;
    }
    let shutdown = {
        let (signals, hurry) = (Signals::listen()?, options.hurry.clone());
        let notifier = notifier.clone();
        async move {
            signals.stop(hurry).await;
            notifier.tell("STOPPING=1");
        }
    };
    if let Some(limit) = sd_notify::watchdog_enabled() {
        tokio::spawn(notifier.clone().feed_watchdog(limit));
    }
    let greeting = greeting(&config, &cache, &ready);
    let log_format = config.log_format;
    let tell = || {
        crate::log::say_as(&greeting, log_format);
        // Beside the runtime's own threads: a full pipe blocks.
        tokio::task::spawn_blocking(move || {
            let mut out = std::io::stdout();
            let told = writeln!(out, "{ready}").and_then(|()| out.flush());
            if let Err(error) = told {
                tracing::warn!(%error, "the line that says ready cannot be written to stdout");
            }
        });
        notifier.tell("READY=1");
    };
    let (access, tls) = (options.access.clone(), options.tls.clone());
    tokio::spawn(access::reload_on_hangup(given.clone(), config, access, tls));
    let served = iovcache::server::run(listeners, cache, options, shutdown, tell).await;
    notifier.flush().await;
    Ok(served?)
}

/// As many descriptors as the system allows: each connection and segment has one, and the usual
/// limit of 1,024 is there for programs that use select(2).
fn open_many_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

/// One line for a person: what runs, where, and over what.
fn greeting(config: &Config, cache: &Cache, ready: &serde_json::Value) -> String {
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let flight: Vec<String> = ready["flight"].as_array().into_iter().flatten().map(text).collect();
    // Without credentials.
    let sources: Vec<String> = cache.sources().into_iter().map(|source| source.url).collect();
    format!(
        "iovcache {} (pid {}) serves {} over {} of memory at {}; its page is {}/",
        env!("CARGO_PKG_VERSION"),
        std::process::id(),
        sources.join(", "),
        config.memory,
        flight.join(" and "),
        text(&ready["http"]),
    )
}

/// Lowers the limits of connections to what the limit of open files allows.
fn share_descriptors(config: &Config, options: &mut ServeOptions) {
    let segments = config.memory.bytes().div_ceil(config.segment.bytes());
    let descriptors = match Descriptors::of_this_process(segments) {
        Ok(descriptors) => descriptors,
        Err(error) => return tracing::warn!(%error, "connections are limited as configured"),
    };
    let shares = descriptors.share(&options.limits, config.ccdb_server.listen.is_some());
    let (configured, connections) = (options.limits.connections, shares.limits.connections);
    let was_asked_for = configured != Limits::default().connections;
    if connections < configured && (was_asked_for || connections < FEW_CONNECTIONS) {
        tracing::warn!(
            open_files = descriptors.limit,
            configured,
            connections,
            "the limit of open files (ulimit -n, LimitNOFILE=) allows fewer connections than \
             `limits.connections`"
        );
    }
    options.limits = shares.limits;
    options.http_connections = shares.http_connections;
    options.ccdb_connections = shares.ccdb_connections;
}

/// Says at the start what would come out when the memory is needed.
fn compare_memory(memory_bytes: u64) {
    if let Some(allowed_bytes) = iovcache::shm::memory_allowed()
        && allowed_bytes < memory_bytes
    {
        tracing::warn!(
            memory_bytes,
            allowed_bytes,
            "the control group (MemoryMax, a container's limit) allows less memory than `memory`: \
             segments beyond that are not made"
        );
    }
}
