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
mod reload;
mod signals;
mod system;
mod systemd;

use iovcache::cache::Inheritance;
use iovcache::server::Listeners;

pub(crate) use self::arguments::{Arguments, LogArguments};
pub(crate) use self::check::{Occasion, check};
use self::fairmq::NamedSegments;
use self::ready::Ready;
use self::reload::Reloader;
use self::signals::Signals;
use self::system::{compare_memory, open_many_files, share_descriptors};
use self::systemd::Notifier;
use crate::failure::Failure;
use crate::settings::CommandLine;
use crate::threads::{NetworkRuntime, start_blocking_threads};

pub(crate) async fn run(given: &CommandLine) -> Result<(), Failure> {
    // Before anything else: until then SIGHUP would end the process.
    let hangup = signals::hangup()?;
    // Listening sockets, and the descriptors that a predecessor left.
    let (inheritance, sockets) = Inheritance::of(iovcache::shm::inherited_files());
    // Checked before anything is bound or loaded, so that all refusals are reported at once.
    let passed = sockets.iter().map(|(name, _)| name.clone()).collect();
    let config = check::settings_to_start(given, passed)?.config;
    let log = crate::log::begin_queued(&config.log, config.log_format)?;
    start_blocking_threads().await;
    let (_network, network) = NetworkRuntime::start().await?;
    let notifier = Notifier::from_environment();
    let mut options = assemble::serve_options(&config, log)?;
    options.network = Some(network);
    open_many_files();
    compare_memory(&config);
    iovcache::server::silence_decode_panics();
    let (cache, registration) = assemble::cache(&config, inheritance, notifier.descriptor_store())?;
    let listeners = Listeners::bind_with(&assemble::listen_options(&config), sockets).await?;
    let exposure = listeners.exposure();
    if !config.insecure {
        exposure.check(&options.access, config.ccdb_server.writable)?;
    }
    share_descriptors(&config, &mut options);
    let is_named = registration.is_some();
    let registrar = assemble::registrar(&config);
    let names = NamedSegments::start(&cache, is_named, registrar, config.fairmq_renew).await?;
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
    let reloader = Reloader::new(given.clone(), config, &options, exposure);
    tokio::spawn(reloader.run(hangup));
    let served = iovcache::server::run(listeners, cache, options, shutdown, tell).await;
    names.end().await;
    notifier.flush().await;
    Ok(served?)
}
