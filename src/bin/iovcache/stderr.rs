//! Lines on stderr. A service writes them on the thread that writes its log.

use std::io::{self, Write as _};
use std::sync::OnceLock;
use std::time::Duration;

use iovcache::server::LogWriter;

/// The writer of a service's log.
static WRITER: OnceLock<LogWriter> = OnceLock::new();

/// Sends all further lines to `writer`.
pub(crate) fn use_writer(writer: LogWriter) {
    let _ = WRITER.set(writer);
}

/// Waits at most `limit` until the queued lines are written.
pub(crate) fn flush_within(limit: Duration) {
    if let Some(writer) = WRITER.get() {
        writer.flush_within(limit);
    }
}

/// Writes a line to stderr; in a service, on the log's thread.
pub(crate) fn say(line: &str) {
    let line = format!("{line}\n");
    // A closed stderr is no reason to panic, as `eprintln!` would.
    let _ = match WRITER.get() {
        Some(writer) => writer.clone().write_all(line.as_bytes()),
        None => io::stderr().write_all(line.as_bytes()),
    };
}
