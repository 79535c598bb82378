//! Access control of `serve`: keys and TLS from files, read again on SIGHUP.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use iovcache::cache::PeerPolicy;
use iovcache::server::{Access, Config, Keys, Tls, TlsConfig};
use iovcache::{Clock, ErrorKind};
use tokio::signal::unix::Signal;

use crate::failure::Failure;
use crate::settings::CommandLine;

/// The environment variable with the keys, if no file is named.
const KEYS: &str = "IOVCACHE_KEYS";

/// The files of keys and certificates, which are read at the start and on SIGHUP.
#[derive(Debug)]
pub(super) struct AccessFiles<'a>(pub(super) &'a Config);

impl AccessFiles<'_> {
    pub(super) fn access(&self) -> Result<Access, Failure> {
        let mut policy = PeerPolicy::default();
        policy.uids.extend(&self.0.allow_uids);
        policy.gids.extend(&self.0.allow_gids);
        Ok(Access::new(policy, self.keys()?, Clock::system()))
    }

    fn keys(&self) -> Result<Keys, Failure> {
        let Some(file) = &self.0.tokens else {
            let text = std::env::var(KEYS).unwrap_or_default();
            return Keys::parse(&text).map_err(|error| of(KEYS, &error));
        };
        let name = file.display();
        let failed = |error| Failure::io(&name, error);
        let mode = fs::metadata(file).map_err(failed)?.permissions().mode();
        if mode & 0o002 != 0 {
            let message = format!("{name}: every user can write it, and give access to any client");
            return Err(Failure::of_kind(ErrorKind::PermissionDenied, message));
        }
        let keys = Keys::parse(&fs::read_to_string(file).map_err(failed)?);
        let keys = keys.map_err(|error| of(&name, &error))?;
        // An empty file would open the service to every client, and is hardly intended.
        match keys.is_empty() {
            true => Err(Failure::usage(format!("{name}: the file contains no key"))),
            false => Ok(keys),
        }
    }

    pub(super) fn tls(&self) -> Result<Option<Tls>, Failure> {
        let TlsConfig { certificate: Some(certificate), key: Some(key), client_ca } = &self.0.tls
        else {
            return Ok(None);
        };
        let read = |file: &Path| fs::read(file).map_err(|error| Failure::io(file.display(), error));
        let client_ca = client_ca.as_deref().map(read).transpose()?;
        let tls = Tls::from_pem(&read(certificate)?, &read(key)?, client_ca.as_deref());
        tls.map(Some).map_err(|error| of(certificate.display(), &error))
    }
}

/// Reads configuration, keys, certificates and the log's filter again on each SIGHUP. If one of
/// them cannot be read, that is logged and nothing changes. Changes that need a restart are logged.
pub(super) async fn reload_on_hangup(
    mut hangup: Signal,
    given: CommandLine,
    started_with: Config,
    access: Access,
    tls: Option<Tls>,
) {
    while hangup.recv().await.is_some() {
        let given = given.clone();
        // Reading files may block.
        let read = tokio::task::spawn_blocking(move || {
            let config = given.settings()?.config;
            let files = AccessFiles(&config);
            let (keys, tls) = (files.keys()?, files.tls()?);
            Ok::<_, Failure>((config, keys, tls))
        });
        let (config, keys, new_tls) = match read.await {
            Ok(Ok(read)) => read,
            Ok(Err(failure)) => {
                tracing::error!("SIGHUP changes nothing: {failure}");
                continue;
            }
            Err(_) => continue,
        };
        if let Err(failure) = crate::log::set_filter(&config.log) {
            tracing::error!("SIGHUP changes nothing: {failure}");
            continue;
        }
        access.set_keys(keys);
        if let (Some(tls), Some(new_tls)) = (&tls, new_tls) {
            tls.replace(&new_tls);
        }
        tracing::info!("keys, certificates and the filter of the log were read again");
        let waiting = need_a_restart(&started_with, &config);
        if !waiting.is_empty() {
            let keys = waiting.join(", ");
            tracing::warn!(keys, "the configuration has changes that take effect after a restart");
        }
    }
}

/// The keys that differ and are not read again, without the keys of their sections.
fn need_a_restart(old: &Config, new: &Config) -> Vec<String> {
    let table = |config: &Config| toml::Table::try_from(config).unwrap_or_default();
    let (old, new) = (table(old), table(new));
    let keys: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let differ = keys.into_iter().filter(|key| old.get(*key) != new.get(*key));
    differ.filter(|key| !READ_AGAIN.contains(&key.as_str())).cloned().collect()
}

/// Keys that SIGHUP reads again. SIGHUP cannot turn TLS on or off; the files of TLS can change.
const READ_AGAIN: [&str; 2] = ["log", "tokens"];

fn of(name: impl std::fmt::Display, error: &impl iovcache::Coded) -> Failure {
    Failure::of_kind(error.kind(), format!("{name}: {}", error.message()))
}
