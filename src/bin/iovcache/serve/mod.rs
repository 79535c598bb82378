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
mod signals;
mod systemd;

use std::io::Write as _;

use iovcache::cache::Heritage;
use iovcache::server::Listeners;
use serde_json::json;

pub(crate) use self::arguments::{Arguments, LogArguments};
use self::signals::Signals;
use self::systemd::{notify, say_that_it_lives};
use crate::common::Failure;
use crate::settings::Given;

pub(crate) async fn run(given: &Given) -> Result<(), Failure> {
    let config = given.settings()?.config;
    crate::log::begin(&config.log, config.log_format)?;
    // Before anything is bound or loaded: who may not serve so is told at once.
    let options = assemble::serve_options(&config)?;
    open_many_files();
    compare_memory(config.memory.bytes());
    iovcache::server::hush_panics_of_decoding();
    // Sockets that listen already, and what a predecessor left.
    let (heritage, sockets) = Heritage::of(iovcache::shm::inherited_files());
    let (cache, fairmq) = assemble::cache(&config, heritage)?;
    let listeners = Listeners::bind_with(&assemble::listen_options(&config), sockets).await?;
    if !config.insecure {
        listeners.check_exposed(&options.access)?;
    }
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
        async move {
            signals.stop(hurry).await;
            notify(sd_notify::NotifyState::Stopping);
        }
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
    tokio::spawn(access::reload_on_hangup(config, options.access.clone(), options.tls.clone()));
    iovcache::server::run(listeners, cache, options, shutdown, tell).await?;
    Ok(())
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
