//! Who may, as `serve` is told: keys and TLS out of files, read again on SIGHUP.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use iovcache::cache::PeerPolicy;
use iovcache::server::{Access, Config, Keys, Tls, TlsConfig};
use iovcache::{Clock, ErrorKind};
use tokio::signal::unix::{SignalKind, signal};

use crate::common::Failure;

/// The keys in the environment, where no file is named.
const KEYS: &str = "IOVCACHE_KEYS";

/// Where everything is read from, at first and again.
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
            let message = format!("{name}: everybody can write it, and so let in whom they like");
            return Err(Failure::of_kind(ErrorKind::PermissionDenied, message));
        }
        let keys = Keys::parse(&fs::read_to_string(file).map_err(failed)?);
        let keys = keys.map_err(|error| of(&name, &error))?;
        // An empty file would open the service to everybody, and was hardly meant to.
        match keys.is_empty() {
            true => Err(Failure::usage(format!("{name}: there is no key in it"))),
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

/// Reads everything again on each SIGHUP. What cannot be read is told, and changes nothing.
pub(super) async fn reload_on_hangup(config: Config, access: Access, tls: Option<Tls>) {
    let mut hangup = match signal(SignalKind::hangup()) {
        Ok(hangup) => hangup,
        Err(error) => return tracing::warn!(%error, "SIGHUP cannot be listened for"),
    };
    let files = AccessFiles(&config);
    while hangup.recv().await.is_some() {
        match (files.keys(), files.tls()) {
            (Ok(keys), Ok(new_tls)) => {
                access.set_keys(keys);
                if let (Some(tls), Some(new_tls)) = (&tls, new_tls) {
                    tls.replace(&new_tls);
                }
                tracing::info!("keys and certificates were read again");
            }
            (Err(failure), _) | (_, Err(failure)) => {
                tracing::error!("SIGHUP changes nothing: {failure}");
            }
        }
    }
}

fn of(name: impl std::fmt::Display, error: &impl iovcache::Coded) -> Failure {
    Failure::of_kind(error.kind(), format!("{name}: {}", error.message()))
}
