//! `serve`: runs the service until SIGTERM or SIGINT. The second signal ends it without waiting for
//! running requests.
//!
//! ```text
//!  options, environment, file ─▶ Settings ─▶ assemble: cache, listeners ─▶ server::run
//!  descriptors that systemd hands over ────────────┘
//! ```

mod access;
pub(crate) mod arguments;
mod assemble;
mod check;
mod fairmq;
mod ready;
mod signals;
mod system;
mod systemd;

use std::os::fd::OwnedFd;

use iovcache::cache::Inheritance;
use iovcache::server::{Access, Config, Listeners};

pub(crate) use self::arguments::{Arguments, LogArguments};
pub(crate) use self::check::check;
use self::ready::Ready;
use self::signals::Signals;
use self::system::{compare_memory, open_many_files, share_descriptors};
use self::systemd::Notifier;
use crate::failure::Failure;
use crate::settings::CommandLine;

pub(crate) async fn run(given: &CommandLine) -> Result<(), Failure> {
    let config = given.settings()?.config;
    let log = crate::log::begin_queued(&config.log, config.log_format)?;
    crate::threads::start_blocking_threads().await;
    let notifier = Notifier::from_environment();
    // Checked before anything is bound or loaded, so that a refusal is reported at once.
    let mut options = assemble::serve_options(&config, log)?;
    open_many_files();
    compare_memory(config.memory.bytes());
    iovcache::server::silence_decode_panics();
    // Listening sockets, and the descriptors that a predecessor left.
    let (inheritance, sockets) = Inheritance::of(iovcache::shm::inherited_files());
    let (cache, registration) = assemble::cache(&config, inheritance, notifier.descriptor_store())?;
    let listeners = listeners(&config, &options.access, sockets).await?;
    share_descriptors(&config, &mut options);
    let registrar = assemble::registrar(&config);
    if let Some(registrar) = &registrar {
        registrar.register(&cache).await?;
    }
    // Held until the segments are removed from FairMQ's registry.
    let named = registration.is_some().then(|| cache.clone());
    if let Some(cache) = named.clone() {
        tokio::spawn(fairmq::keep_names(cache, registrar.clone(), config.fairmq_renew));
    }
    let ready = Ready::new(&config, &cache, &listeners, registration);
    let (signals, hurry) = (Signals::listen()?, options.hurry.clone());
    let shutdown = async {
        signals.stop(hurry).await;
        notifier.tell("STOPPING=1");
    };
    if let Some(limit) = sd_notify::watchdog_enabled() {
        tokio::spawn(notifier.clone().feed_watchdog(limit));
    }
    let tell = || {
        ready.tell();
        notifier.tell("READY=1");
    };
    let (access, tls) = (options.access.clone(), options.tls.clone());
    // Installed early: until then SIGHUP would end the process.
    let hangup = signals::hangup()?;
    tokio::spawn(access::reload_on_hangup(hangup, given.clone(), config, access, tls));
    let served = iovcache::server::run(listeners, cache, options, shutdown, tell).await;
    if let (Some(registrar), Some(cache)) = (registrar, &named) {
        registrar.unregister(cache).await;
    }
    drop(named);
    notifier.flush().await;
    Ok(served?)
}

/// Binds the sockets. Those that are open to other nodes need access control, unless the
/// configuration allows insecure ones.
async fn listeners(
    config: &Config,
    access: &Access,
    sockets: Vec<(String, OwnedFd)>,
) -> Result<Listeners, Failure> {
    let listeners = Listeners::bind_with(&assemble::listen_options(config), sockets).await?;
    if !config.insecure {
        listeners.check_exposed(access)?;
    }
    Ok(listeners)
}
