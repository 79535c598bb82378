//! Who may, as `serve` is told: keys and TLS out of files, read again on SIGHUP.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use iovcache::cache::PeerPolicy;
use iovcache::server::{Access, Config, Keys, Tls, TlsConfig};
use iovcache::{Clock, ErrorKind};
use tokio::signal::unix::{SignalKind, signal};

use crate::common::Failure;

/// The keys in the environment, where no file is named.
const TOKENS: &str = "IOVCACHE_TOKENS";

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct AccessArguments {
    /// A user that may connect to the Unix sockets, beside one's own and root (may be given several
    /// times).
    #[arg(long = "allow-uid", value_name = "UID")]
    allow_uids: Vec<u32>,
    /// A group whose members may (may be given several times).
    #[arg(long = "allow-gid", value_name = "GID")]
    allow_gids: Vec<u32>,
    /// A file with the keys of those who may (`iovcache token` makes one); read again on SIGHUP. What
    /// would stand in it can be in $IOVCACHE_TOKENS instead.
    #[arg(long, value_name = "FILE")]
    tokens: Option<PathBuf>,
    /// Speak TLS on TCP: the certificate and its chain (PEM); read again on SIGHUP.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Its key (PEM).
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// The authority that signs clients' certificates (PEM); what their bearers may stands in
    /// --tokens.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_client_ca: Option<PathBuf>,
    /// Let others than this node connect without TLS or keys.
    #[arg(long)]
    insecure: bool,
}

/// Where everything is read from, at first and again.
#[derive(Debug)]
pub(crate) struct AccessFiles {
    policy: PeerPolicy,
    tokens: Option<PathBuf>,
    tls: Option<TlsConfig>,
    pub(crate) insecure: bool,
}

impl AccessArguments {
    pub(crate) fn files(&self, config: &Config) -> AccessFiles {
        let mut policy = PeerPolicy::default();
        policy.uids.extend(config.allow_uids.iter().chain(&self.allow_uids));
        policy.gids.extend(config.allow_gids.iter().chain(&self.allow_gids));
        let tls = match (&self.tls_cert, &self.tls_key) {
            (Some(certificate), Some(key)) => Some(TlsConfig {
                certificate: certificate.clone(),
                key: key.clone(),
                client_ca: self.tls_client_ca.clone(),
            }),
            _ => config.tls.clone(),
        };
        let tokens = self.tokens.clone().or_else(|| config.tokens.clone());
        AccessFiles { policy, tokens, tls, insecure: self.insecure || config.insecure }
    }
}

impl AccessFiles {
    pub(crate) fn access(&self) -> Result<Access, Failure> {
        Ok(Access::new(self.policy.clone(), self.keys()?, Clock::system()))
    }

    fn keys(&self) -> Result<Keys, Failure> {
        let Some(file) = &self.tokens else {
            let text = std::env::var(TOKENS).unwrap_or_default();
            return Keys::parse(&text).map_err(|error| of(TOKENS, &error));
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

    pub(crate) fn tls(&self) -> Result<Option<Tls>, Failure> {
        let Some(TlsConfig { certificate, key, client_ca }) = &self.tls else { return Ok(None) };
        let read = |file: &Path| fs::read(file).map_err(|error| Failure::io(file.display(), error));
        let client_ca = client_ca.as_deref().map(read).transpose()?;
        let tls = Tls::from_pem(&read(certificate)?, &read(key)?, client_ca.as_deref());
        tls.map(Some).map_err(|error| of(certificate.display(), &error))
    }

    /// Reads everything again on each SIGHUP. What cannot be read is told, and changes nothing.
    pub(crate) async fn reload_on_hangup(self, access: Access, tls: Option<Tls>) {
        let mut hangup = match signal(SignalKind::hangup()) {
            Ok(hangup) => hangup,
            Err(error) => return tracing::warn!(%error, "SIGHUP cannot be listened for"),
        };
        while hangup.recv().await.is_some() {
            match (self.keys(), self.tls()) {
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
}

fn of(name: impl std::fmt::Display, error: &impl iovcache::Coded) -> Failure {
    Failure::of_kind(error.kind(), format!("{name}: {}", error.message()))
}
