//! `token`: makes a new token, and its entry for a service.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use clap::Args;
use iovcache::server::{Keys, Role, TimeSpan};
use iovcache::{Secret, Timestamp};

use crate::common::now;
use crate::failure::Failure;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Name of the client that gets the token.
    name: String,
    /// Role: read, register (also timeframes), or administer (everything).
    #[arg(long, default_value = "read", value_name = "ROLE")]
    role: Role,
    /// Lifetime, e.g. 90d or 8h; without it the token does not expire.
    #[arg(long = "for", value_name = "TIME")]
    lifetime: Option<TimeSpan>,
    /// The file to which the entry is added (see `serve --tokens`); by default the entry is printed
    /// on stderr.
    #[arg(long, value_name = "FILE")]
    tokens: Option<PathBuf>,
    /// Print one JSON object: token, name, role, expires (milliseconds or null) and entry.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let mut random = [0; 32];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
        .map_err(|error| Failure::io("the system gives no random numbers", error.into()))?;
    let token: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    let expires = arguments.lifetime.map(|lifetime| {
        let millis = i64::try_from(lifetime.duration().as_millis()).unwrap_or(i64::MAX);
        Timestamp::from_millis(now().as_millis().saturating_add(millis))
    });
    let entry = Keys::entry(&arguments.name, &Secret::from(&token[..]), arguments.role, expires);
    // An invalid name is reported now, not when the service reads the file.
    Keys::parse(&entry)?;
    let added = match &arguments.tokens {
        None if arguments.json => None,
        None => {
            entry.lines().for_each(crate::stderr::say);
            None
        }
        Some(file) => Some(add(file, &entry)?),
    };
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
    let mut stdout = io::stdout();
    let told = writeln!(stdout, "{text}").and_then(|()| stdout.flush());
    match (told, added) {
        (Ok(()), _) => Ok(()),
        (Err(error), None) => Err(Failure::stdout(error)),
        // The entry of a token that no client has would only block its name.
        (Err(error), Some(added)) => {
            added.undo();
            Err(Failure::io("the token cannot be written to stdout, and is not added", error))
        }
    }
}

/// An entry that was added to a file.
struct AddedEntry {
    file: File,
    /// The length of the file before.
    length: u64,
}

impl AddedEntry {
    /// Takes the entry away again.
    fn undo(self) {
        if let Err(error) = self.file.set_len(self.length) {
            tracing::error!(%error, "the entry of a token that was not printed stays in the file");
        }
    }
}

/// Adds an entry to a file of tokens. If it cannot be written as a whole, the file stays as it was.
fn add(file: &Path, entry: &str) -> Result<AddedEntry, Failure> {
    let failed = |error| Failure::io(file.display(), error);
    let is_special = std::fs::metadata(file).is_ok_and(|file| !file.is_file());
    if is_special {
        return Err(Failure::usage(format!("{}: not a regular file", file.display())));
    }
    let before = match std::fs::read(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        read => crate::input::as_text(read.map_err(failed)?, file)?,
    };
    // A duplicate name is reported now, not when the service reads the file.
    let gap = if before.is_empty() { "" } else { "\n" };
    let entry = format!("{gap}{entry}");
    Keys::parse(&format!("{before}{entry}"))?;
    let mut opened =
        OpenOptions::new().append(true).create(true).mode(0o600).open(file).map_err(failed)?;
    let length = opened.metadata().map_err(failed)?.len();
    let written = opened.write_all(entry.as_bytes()).and_then(|()| opened.sync_all());
    match written {
        Ok(()) => Ok(AddedEntry { file: opened, length }),
        Err(error) => {
            let _ = opened.set_len(length);
            Err(failed(error))
        }
    }
}
