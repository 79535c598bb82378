//! Shared by the commands: access to a service, output, sizes and times.

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::builder::{OsStringValueParser, TypedValueParser};
use indicatif::{ProgressBar, ProgressStyle};
use iovcache::client::{Client, ClientOptions, TlsFiles};
use iovcache::source::folder_of;
use iovcache::source::repository::Durability;
use iovcache::{Clock, Coded as _, ErrorKind, Secret, Timestamp};

use crate::failure::Failure;

/// The address of a service that was started with the defaults.
const DEFAULT_SERVER: &str = "grpc://127.0.0.1:50051";

/// The service to connect to.
#[derive(Debug, clap::Args)]
pub(crate) struct Server {
    /// URL of the service: grpc://host:port, grpc+tls://host:port or grpc+unix:///path/flight.sock.
    #[arg(
        long = "server",
        value_name = "URL",
        env = "IOVCACHE_SERVER",
        default_value = DEFAULT_SERVER
    )]
    url: String,
    #[command(flatten)]
    access: Access,
}

/// Credentials of the client: token, certificate and authority.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct Access {
    /// The token, if the service requires one. The list of processes shows it: prefer the
    /// environment or a file.
    #[arg(long, value_name = "TOKEN", env = "IOVCACHE_TOKEN", hide_env_values = true)]
    #[arg(value_parser = secret)]
    token: Option<Secret>,
    /// File with the token.
    #[arg(long, value_name = "FILE", conflicts_with = "token")]
    token_file: Option<PathBuf>,
    /// The authority that signed the service's certificate (PEM), for grpc+tls://; by default the
    /// system's.
    #[arg(long, value_name = "FILE", env = "IOVCACHE_CA")]
    ca: Option<PathBuf>,
    /// The certificate of the client (PEM).
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,
    /// Private key of the client's certificate (PEM).
    #[arg(long = "cert-key", value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    /// Send the token over plain TCP to another node too, where others can read it.
    #[arg(long)]
    insecure: bool,
}

/// The token in a file.
fn token_of(file: &Path) -> Result<Secret, Failure> {
    let text = crate::input::text(file)?;
    match text.trim() {
        "" => {
            let name = crate::input::name(file);
            Err(Failure::usage(format!("--token-file {name}: it is empty, expected a token")))
        }
        token => Ok(Secret::from(token)),
    }
}

fn secret(text: &str) -> Result<Secret, String> {
    Ok(Secret::from(text))
}

impl Server {
    pub(crate) async fn connect(&self) -> Result<Client, Failure> {
        self.connect_with(ClientOptions::default()).await
    }

    pub(crate) async fn connect_with(&self, options: ClientOptions) -> Result<Client, Failure> {
        self.access.connect(&self.url, options).await
    }
}

impl Access {
    /// Connects to the service at `url` with these credentials.
    ///
    /// # Errors
    /// [`Failure`] if a file cannot be read or the service cannot be reached.
    pub(crate) async fn connect(
        &self,
        url: &str,
        options: ClientOptions,
    ) -> Result<Client, Failure> {
        let named = |option: &str, file: &Path, error| {
            Failure::io(format_args!("{option} {}", file.display()), error)
        };
        let read =
            |option: &str, file: &Path| fs::read(file).map_err(|error| named(option, file, error));
        let text = crate::input::text;
        let token = match &self.token_file {
            Some(file) => Some(token_of(file)?),
            None => self.token.clone(),
        };
        let identity = match (&self.cert, &self.key) {
            (Some(cert), Some(key)) => Some((read("--cert", cert)?, Secret::from(text(key)?))),
            _ => None,
        };
        let authority = self.ca.as_deref().map(|file| read("--ca (IOVCACHE_CA)", file));
        let authority = authority.transpose()?;
        let tls = TlsFiles { authority, identity, domain: None };
        let options = ClientOptions { token, tls, insecure: self.insecure, ..options };
        crate::failure::name_service(url);
        Client::connect_with(url, options).await.map_err(|error| {
            let is_wrong = error.kind() == ErrorKind::InvalidArgument;
            let is_unreachable = error.kind() == ErrorKind::Unavailable;
            let set = std::env::var("IOVCACHE_SERVER").unwrap_or_default();
            let hint = if url == set && (is_wrong || is_unreachable) {
                Some("the address is that of the environment variable IOVCACHE_SERVER")
            } else if url == DEFAULT_SERVER && is_unreachable {
                Some("this is the default address; --server or IOVCACHE_SERVER name another one")
            } else {
                None
            };
            Failure::from(error).with_more(hint.map(str::to_owned).into_iter().collect())
        })
    }

    /// Passes these credentials to another process of this program. The token goes through the
    /// environment, which other users cannot read.
    pub(crate) fn hand_on(&self, command: &mut Command) {
        let Self { token, token_file, ca, cert, key, insecure } = self;
        if let Some(token) = token {
            command.env("IOVCACHE_TOKEN", token.reveal());
        }
        let files =
            [("--token-file", token_file), ("--ca", ca), ("--cert", cert), ("--cert-key", key)];
        for (name, file) in files {
            if let Some(file) = file {
                command.arg(name).arg(file);
            }
        }
        if *insecure {
            command.arg("--insecure");
        }
    }
}

/// Parses an option that names a folder: a path, or `file:///dir`.
pub(crate) fn folder() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().try_map(folder_in)
}

/// The folder that an argument names.
///
/// # Errors
/// The reason, if it is the URL of something else.
pub(crate) fn folder_in(text: OsString) -> Result<PathBuf, String> {
    match text.to_str() {
        Some(text) => folder_of(text),
        None => Ok(text.into()),
    }
}

/// When versions are synced to disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Durable {
    /// Each version is synced before the next one is written.
    Each,
    /// Several versions are synced together, before any of them is acknowledged.
    Batch,
}

impl From<Durable> for Durability {
    fn from(durable: Durable) -> Self {
        match durable {
            Durable::Each => Self::Each,
            Durable::Batch => Self::Batch,
        }
    }
}

/// The current time of day.
pub(crate) fn now() -> Timestamp {
    Clock::system().wall()
}

/// Memory of this node, if the system tells it.
pub(crate) fn node_memory_bytes() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    total.trim().trim_end_matches(" kB").parse::<u64>().ok()?.checked_mul(1024)
}

/// Writes to stdout and flushes it.
pub(crate) fn out(text: &[u8]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(text).and_then(|()| out.flush()).map_err(Failure::stdout)
}

/// Writes a line to stdout.
pub(crate) fn out_line(line: impl fmt::Display) -> Result<(), Failure> {
    out(format!("{line}\n").as_bytes())
}

/// A number of bytes in a readable unit, e.g. `1.5 MiB`.
pub(crate) fn show_bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// A progress bar on stderr; hidden where stderr is no terminal.
pub(crate) fn progress(what: &str, length: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg} [{bar:40}] {pos}/{len} {eta}");
    let bar = match style {
        Ok(style) => ProgressBar::new(length).with_style(style.progress_chars("=> ")),
        Err(_) => ProgressBar::new(length),
    };
    bar.with_message(what.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_shown_for_people() {
        assert_eq!(show_bytes(512), "512 B");
        assert_eq!(show_bytes(3 << 19), "1.5 MiB");
    }
}
