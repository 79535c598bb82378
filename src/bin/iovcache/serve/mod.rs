//! `serve`: runs the service until SIGTERM or SIGINT.
//!
//! ```text
//!  options, environment, file ─▶ Settings ─▶ assemble: cache, listeners ─▶ server::run
//! ```

mod access;
mod arguments;
mod assemble;

use std::io::Write as _;

use iovcache::server::Listeners;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

pub(crate) use self::arguments::{Arguments, LogArguments};
use crate::common::Failure;
use crate::settings::Given;

pub(crate) async fn run(given: &Given) -> Result<(), Failure> {
    let config = given.settings()?.config;
    crate::log::begin(&config.log, config.log_format)?;
    // Before anything is bound or loaded: who may not serve so is told at once.
    let options = assemble::serve_options(&config)?;
    open_many_files();
    let (cache, fairmq) = assemble::cache(&config)?;
    let listeners = Listeners::bind(&assemble::listen_options(&config)).await?;
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
