//! Access control of `serve`: keys and TLS from files.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use iovcache::cache::PeerPolicy;
use iovcache::server::{Access, Config, Keys, Tls, TlsConfig};
use iovcache::{Clock, ErrorKind};

use crate::failure::Failure;

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
        let text = crate::input::as_text(fs::read(file).map_err(failed)?, file)?;
        let keys = Keys::parse(&text).map_err(|error| of(&name, &error))?;
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

fn of(name: impl std::fmt::Display, error: &impl iovcache::Coded) -> Failure {
    Failure::of_kind(error.kind(), format!("{name}: {}", error.message()))
}
