//! Access control of `serve`: keys and TLS from files.

use std::fs;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use iovcache::cache::PeerPolicy;
use iovcache::server::{Access, Config, Keys, Tls, TlsConfig};
use iovcache::{Clock, ErrorKind};

use crate::failure::Failure;

/// The environment variable with the keys, if no file is named. Empty, it counts as not set.
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
        let (name, bytes) = match &self.0.tokens {
            Some(file) => (file.as_path(), read_keys(file)?),
            None => match std::env::var_os(KEYS).filter(|text| !text.is_empty()) {
                Some(text) => (Path::new(KEYS), text.into_vec()),
                None => return Ok(Keys::default()),
            },
        };
        let keys = Keys::parse(&crate::input::as_text(bytes, name)?);
        let keys = keys.map_err(|error| of(name.display(), &error))?;
        // Keys without an entry would open the service to every client, and are hardly intended.
        match keys.is_empty() {
            true => Err(Failure::usage(format!("{}: it contains no key", name.display()))),
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

/// Reads a file of keys, which only trusted users may write.
fn read_keys(file: &Path) -> Result<Vec<u8>, Failure> {
    let failed = |error| Failure::io(file.display(), error);
    let mode = fs::metadata(file).map_err(failed)?.permissions().mode();
    if mode & 0o002 != 0 {
        let name = file.display();
        let message = format!("{name}: every user can write it, and give access to any client");
        return Err(Failure::of_kind(ErrorKind::PermissionDenied, message));
    }
    fs::read(file).map_err(failed)
}

fn of(name: impl std::fmt::Display, error: &impl iovcache::Coded) -> Failure {
    Failure::of_kind(error.kind(), format!("{name}: {}", error.message()))
}
