//! What the commands share: how they fail, how they log, how they read sizes and times.

use std::fmt;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::OnceLock;

use indicatif::{ProgressBar, ProgressStyle};
use iovcache::client::{Client, ClientOptions, TlsFiles};
use iovcache::error::{Coded, ErrorKind};
use iovcache::escape::escape;
use iovcache::source::repository::Durability;
use iovcache::{Clock, Secret, Timestamp};

/// Why a command failed: a line or several for a person, a status for a program.
#[derive(Debug)]
pub(crate) struct Failure {
    status: u8,
    message: String,
    /// What else is wrong, a line each.
    more: Vec<String>,
}

impl Failure {
    fn new(status: u8, message: impl fmt::Display) -> Self {
        Self { status, message: message.to_string(), more: Vec::new() }
    }

    /// Something could not be read or written.
    pub(crate) fn io(what: impl fmt::Display, error: io::Error) -> Self {
        let status = match error.kind() {
            io::ErrorKind::NotFound => ErrorKind::NotFound.exit_status(),
            io::ErrorKind::PermissionDenied => ErrorKind::PermissionDenied.exit_status(),
            _ => 1,
        };
        Self::new(status, format_args!("{what}: {error}"))
    }

    /// stdout takes no more. A reader that has enough (`| head`) ends the command quietly.
    pub(crate) fn stdout(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::new(0, ""),
            _ => Self::io("cannot write to stdout", error),
        }
    }

    /// What was asked for makes no sense.
    pub(crate) fn usage(message: impl fmt::Display) -> Self {
        Self::new(ErrorKind::InvalidArgument.exit_status(), message)
    }

    /// There is no such thing.
    pub(crate) fn not_found(message: impl fmt::Display) -> Self {
        Self::new(ErrorKind::NotFound.exit_status(), message)
    }

    /// What a caller can do about it is known.
    pub(crate) fn of_kind(kind: ErrorKind, message: impl fmt::Display) -> Self {
        Self::new(kind.exit_status(), message)
    }

    /// It did not work.
    pub(crate) fn failed(message: impl fmt::Display) -> Self {
        Self::new(1, message)
    }

    /// Some of many things did not work, the first of them for this reason.
    pub(crate) fn of_many(count: usize, what: &str, first: &impl Coded) -> Self {
        let message = format!("{count} {what}, the first: {}", first.message());
        Self::new(first.kind().exit_status(), message)
    }

    /// The same with further lines.
    pub(crate) fn with_more(self, more: Vec<String>) -> Self {
        Self { more, ..self }
    }

    /// Says it on stderr, and with which status to leave.
    pub(crate) fn tell(self) -> ExitCode {
        if self.status != 0 {
            crate::log::say(&format!("iovcache: {}", escape(&self.message)));
        }
        for line in &self.more {
            crate::log::say(&escape(line));
        }
        ExitCode::from(self.status)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        self.more.iter().try_for_each(|line| write!(f, "; {line}"))
    }
}

impl<E: Coded> From<E> for Failure {
    fn from(error: E) -> Self {
        let mut message = error.message();
        // A transport error does not name the address of the service.
        if let (ErrorKind::Unavailable, Some(url)) = (error.kind(), SERVICE.get())
            && !message.contains(url.as_str())
        {
            message = format!("{message} (service: {url})");
        }
        Self::new(error.kind().exit_status(), message)
    }
}

/// The service that this command asks.
static SERVICE: OnceLock<String> = OnceLock::new();

/// Which service.
#[derive(Debug, clap::Args)]
pub(crate) struct Server {
    /// The service: grpc://host:port, grpc+tls://host:port or grpc+unix:///path/flight.sock.
    #[arg(
        long = "server",
        value_name = "URL",
        env = "IOVCACHE_SERVER",
        default_value = "grpc://127.0.0.1:50051"
    )]
    url: String,
    #[command(flatten)]
    access: Access,
}

/// What lets us in.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct Access {
    /// What lets us in, where the service asks for it. It can be seen in the list of processes:
    /// better in the environment, or in a file.
    #[arg(long, value_name = "TOKEN", env = "IOVCACHE_TOKEN", hide_env_values = true)]
    #[arg(value_parser = secret)]
    token: Option<Secret>,
    /// A file with the token.
    #[arg(long, value_name = "FILE", conflicts_with = "token")]
    token_file: Option<PathBuf>,
    /// The authority that signed the service's certificate (PEM), for grpc+tls://; by default the
    /// system's.
    #[arg(long, value_name = "FILE", env = "IOVCACHE_CA")]
    ca: Option<PathBuf>,
    /// The certificate by which the service knows us (PEM).
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,
    /// Its key (PEM).
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    /// Send the token even over plain TCP to another node, where it can be read on the way.
    #[arg(long)]
    insecure: bool,
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
    /// Connects with this to a service.
    pub(crate) async fn connect(
        &self,
        url: &str,
        options: ClientOptions,
    ) -> Result<Client, Failure> {
        let read = |file: &Path| fs::read(file).map_err(|error| Failure::io(file.display(), error));
        let text = crate::input::text;
        let token = match &self.token_file {
            Some(file) => Some(Secret::from(text(file)?.trim())),
            None => self.token.clone(),
        };
        let identity = match (&self.cert, &self.key) {
            (Some(cert), Some(key)) => Some((read(cert)?, Secret::from(text(key)?))),
            _ => None,
        };
        let authority = self.ca.as_deref().map(read).transpose()?;
        let tls = TlsFiles { authority, identity, domain: None };
        let options = ClientOptions { token, tls, insecure: self.insecure, ..options };
        let _ = SERVICE.set(url.to_owned());
        Ok(Client::connect_with(url, options).await?)
    }

    /// Gives the same to another process of this program. The token goes through its environment,
    /// which others do not see.
    pub(crate) fn hand_on(&self, command: &mut Command) {
        let Self { token, token_file, ca, cert, key, insecure } = self;
        if let Some(token) = token {
            command.env("IOVCACHE_TOKEN", token.reveal());
        }
        let files = [("--token-file", token_file), ("--ca", ca), ("--cert", cert), ("--key", key)];
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

/// When versions are synced to the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Durable {
    /// Each version before the next.
    Each,
    /// Some together, before any of them is acknowledged.
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

/// The time of day.
pub(crate) fn now() -> Timestamp {
    Clock::system().wall()
}

/// Writes to stdout.
pub(crate) fn out(text: &[u8]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(text).and_then(|()| out.flush()).map_err(Failure::stdout)
}

/// Writes a line to stdout.
pub(crate) fn out_line(line: impl fmt::Display) -> Result<(), Failure> {
    out(format!("{line}\n").as_bytes())
}

/// Bytes as a person reads them.
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

/// A bar of progress on stderr, shown only where a person looks.
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
