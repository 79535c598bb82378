//! Failures of commands: lines for a person, an exit status for a program.

use std::fmt;
use std::io;
use std::process::ExitCode;
use std::sync::OnceLock;

use iovcache::error::{Coded, ErrorKind};
use iovcache::escape::escape;

/// URL of the service that this command uses.
static SERVICE: OnceLock<String> = OnceLock::new();

/// Sets the URL that messages name: errors of the transport do not name it.
pub(crate) fn name_service(url: &str) {
    let _ = SERVICE.set(url.to_owned());
}

/// Why a command failed: one or more lines for a person, an exit status for a program.
#[derive(Debug)]
pub(crate) struct Failure {
    status: u8,
    message: String,
    /// Further faults, one per line.
    more: Vec<String>,
}

impl Failure {
    fn new(status: u8, message: impl fmt::Display) -> Self {
        Self { status, message: message.to_string(), more: Vec::new() }
    }

    /// `what` could not be read or written.
    pub(crate) fn io(what: impl fmt::Display, error: io::Error) -> Self {
        let status = match error.kind() {
            io::ErrorKind::NotFound => ErrorKind::NotFound.exit_status(),
            io::ErrorKind::PermissionDenied => ErrorKind::PermissionDenied.exit_status(),
            _ => 1,
        };
        Self::new(status, format_args!("{what}: {error}"))
    }

    /// Writing to stdout failed. A closed reader (`| head`) ends the command quietly.
    pub(crate) fn stdout(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::new(0, ""),
            _ => Self::io("cannot write to stdout", error),
        }
    }

    /// The arguments are invalid.
    pub(crate) fn usage(message: impl fmt::Display) -> Self {
        Self::new(ErrorKind::InvalidArgument.exit_status(), message)
    }

    /// The requested object or path does not exist.
    pub(crate) fn not_found(message: impl fmt::Display) -> Self {
        Self::new(ErrorKind::NotFound.exit_status(), message)
    }

    /// A failure with the exit status of `kind`.
    pub(crate) fn of_kind(kind: ErrorKind, message: impl fmt::Display) -> Self {
        Self::new(kind.exit_status(), message)
    }

    /// Any other failure: exit status 1.
    pub(crate) fn failed(message: impl fmt::Display) -> Self {
        Self::new(1, message)
    }

    /// `count` items failed, the first of them with the error `first`.
    pub(crate) fn of_many(count: usize, what: &str, first: &impl Coded) -> Self {
        let message = format!("{count} {what}, the first: {}", first.message());
        Self::new(first.kind().exit_status(), message)
    }

    /// Adds the place of the fault, before the message.
    pub(crate) fn at(self, place: impl fmt::Display) -> Self {
        Self { message: format!("{place}: {}", self.message), ..self }
    }

    /// Adds further lines.
    pub(crate) fn with_more(self, more: Vec<String>) -> Self {
        Self { more, ..self }
    }

    /// Writes the failure to stderr and ends the process.
    pub(crate) fn exit(self) -> ! {
        let status = self.status;
        self.tell();
        std::process::exit(status.into())
    }

    /// Writes the failure to stderr and gives the exit status.
    pub(crate) fn tell(self) -> ExitCode {
        if self.status != 0 {
            crate::stderr::say(&format!("iovcache: {}", escape(&self.message)));
        }
        for line in &self.more {
            crate::stderr::say(&escape(line));
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
