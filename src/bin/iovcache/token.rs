//! `token`: makes a new token, and its entry for a service.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use iovcache::server::{Keys, Role, TimeSpan};
use iovcache::{Secret, Timestamp};

use crate::common::{now, out};
use crate::failure::Failure;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Name of the client that gets the token.
    name: String,
    /// Role: read, register (also timeframes), or administer (everything).
    #[arg(long, default_value = "read", value_name = "ROLE")]
    role: Role,
    /// Lifetime, e.g. 90d or 8h; without it the token does not expire.
    #[arg(long = "for", value_name = "TIME", value_parser = days)]
    lifetime: Option<Duration>,
    /// The file to which the entry is added (see `serve --tokens`); by default the entry is printed
    /// on stderr.
    #[arg(long, value_name = "FILE")]
    tokens: Option<PathBuf>,
    /// Print one JSON object: token, name, role, expires (milliseconds or null) and entry.
    #[arg(long)]
    json: bool,
}

fn days(text: &str) -> Result<Duration, String> {
    match text.strip_suffix('d').map(str::parse::<u32>) {
        Some(Ok(days)) => Ok(Duration::from_secs(u64::from(days) * 86_400)),
        _ => text.parse().map(TimeSpan::duration),
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let mut random = [0; 32];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
        .map_err(|error| Failure::io("the system gives no random numbers", error.into()))?;
    let token: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    let expires = arguments.lifetime.map(|lifetime| {
        let millis = i64::try_from(lifetime.as_millis()).unwrap_or(i64::MAX);
        Timestamp::from_millis(now().as_millis().saturating_add(millis))
    });
    let entry = Keys::entry(&arguments.name, &Secret::from(&token[..]), arguments.role, expires);
    match &arguments.tokens {
        None if arguments.json => {}
        None => entry.lines().for_each(crate::stderr::say),
        Some(file) => {
            let failed = |error| Failure::io(file.display(), error);
            let before = match std::fs::read_to_string(file) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
                other => other.map_err(failed)?,
            };
            // A duplicate name is reported now, not when the service reads the file.
            let gap = if before.is_empty() { "" } else { "\n" };
            Keys::parse(&format!("{before}{gap}{entry}"))?;
            let mut opened = OpenOptions::new()
                .append(true)
                .create(true)
                .mode(0o600)
                .open(file)
                .map_err(failed)?;
            write!(opened, "{gap}{entry}").map_err(failed)?;
        }
    }
    let text = match arguments.json {
        false => token,
        true => serde_json::json!({
            "token": token,
            "name": arguments.name,
            "role": arguments.role,
            "expires": expires.map(Timestamp::as_millis),
            "entry": entry,
        })
        .to_string(),
    };
    out(format!("{text}\n").as_bytes())
}
