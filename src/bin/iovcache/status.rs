//! `status`: shows the state of a service, once or repeatedly; `--check` checks its consistency.

use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::time::Duration;

use clap::Args;
use iovcache::client::Client;
use iovcache::escape::escape;
use iovcache::table::{
    ConfigurationStatus, SessionStatus, SourceState, SourceStatus, Status, TimeframeStatus,
};

use crate::common::{Server, out, show_bytes};
use crate::failure::Failure;
use crate::text_chart::gauge;
use crate::time;

/// Maximum number of timeframes that are shown, the oldest first.
const MAX_TIMEFRAMES: usize = 8;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    server: Server,
    /// Repeat every second.
    #[arg(long)]
    watch: bool,
    /// Check whether pins, blocks and bytes of the running service are consistent; if not, print
    /// the faults and exit with status 1.
    #[arg(long, conflicts_with = "watch")]
    check: bool,
    /// With --check: the service also reads every object and compares its CRC-32C.
    #[arg(long, requires = "check")]
    contents: bool,
    /// Print the service's JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let client = arguments.server.connect().await?;
    if arguments.check {
        return check(&client, &arguments).await;
    }
    loop {
        let status = client.status().await?;
        let text = match arguments.json {
            true => format!("{}\n", serde_json::json!(status)),
            false => show(&status),
        };
        if arguments.watch && !arguments.json && std::io::stdout().is_terminal() {
            // Moves the cursor to the top left and clears the screen.
            out(b"\x1b[H\x1b[J")?;
        }
        out(text.as_bytes())?;
        if !arguments.watch {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

async fn check(client: &Client, arguments: &Arguments) -> Result<(), Failure> {
    let found = client.check(arguments.contents).await?;
    if arguments.json {
        out(format!("{}\n", serde_json::json!(found)).as_bytes())?;
    } else {
        let (objects, segments) = (found.objects, found.segments);
        let (used, pinned) = (show_bytes(found.used_bytes), show_bytes(found.pinned_bytes));
        let mut text = format!("{objects} objects in {segments} segments: {used}, {pinned} pinned");
        let (sessions, leases, timeframes) = (found.sessions, found.leases, found.timeframes);
        let _ = write!(
            text,
            "; {sessions} sessions, {leases} leases, {timeframes} timeframes in flight"
        );
        if arguments.contents {
            let _ = write!(text, "; {} read", show_bytes(found.read_bytes));
        }
        text.push('\n');
        for fault in &found.faults {
            let _ = writeln!(text, "wrong: {}", escape(fault));
        }
        out(text.as_bytes())?;
    }
    match found.faults.len() {
        0 => Ok(()),
        count => Err(Failure::failed(format!("{count} figures do not add up"))),
    }
}

/// The status as text for a terminal.
pub(crate) fn show(status: &Status) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write_status(&mut text, status);
    text
}

fn write_status(text: &mut String, status: &Status) -> std::fmt::Result {
    write_memory(text, status)?;
    for source in &status.sources {
        write_source(text, source)?;
    }
    if let Some(configuration) = &status.configuration {
        write_configuration(text, configuration)?;
    }
    for session in &status.sessions {
        write_session(text, session)?;
    }
    for timeframe in status.timeframes.iter().take(MAX_TIMEFRAMES) {
        write_timeframe(text, timeframe)?;
    }
    match status.timeframes.len().saturating_sub(MAX_TIMEFRAMES) {
        0 => Ok(()),
        more => writeln!(text, "          and {more} more timeframes"),
    }
}

/// Writes the service, the use of its memory, and the counters of its objects.
fn write_memory(text: &mut String, status: &Status) -> std::fmt::Result {
    let Status { pid, memory, .. } = status;
    let (version, epoch) = (escape(&status.version), escape(&status.epoch));
    let uptime = Duration::from_millis(status.uptime_ms).as_secs();
    writeln!(text, "iovcache {version}, pid {pid}, epoch {epoch}, up {uptime} s")?;
    let candidates = memory.used_bytes.saturating_sub(memory.pinned_bytes);
    let picture = gauge(&[(memory.pinned_bytes, '█'), (candidates, '▒')], memory.total_bytes, 50);
    writeln!(
        text,
        "memory   {picture}  {} pinned █, {} evictable ▒, {} in all",
        show_bytes(memory.pinned_bytes),
        show_bytes(candidates),
        show_bytes(memory.total_bytes)
    )?;
    let Status { objects, hits, loads, waits, evictions, stale, .. } = status;
    writeln!(
        text,
        "objects  {objects} in memory: {hits} hits, {loads} loads, {evictions} evictions, {waits} \
         waits, {stale} stale"
    )
}

fn write_source(text: &mut String, source: &SourceStatus) -> std::fmt::Result {
    let state = match source.state {
        SourceState::Up => "up",
        SourceState::Down => "down",
    };
    let (requests, failures) = (source.requests, source.failures);
    write!(
        text,
        "source   {state:<5} {} ({requests} requests, {failures} failed)",
        escape(&source.url)
    )?;
    match source.down_since_ms {
        Some(since) => writeln!(text, ", down since {}", time::show(since)),
        None => writeln!(text),
    }
}

/// Writes the configuration if it was refused, or if some of its changes need a restart.
fn write_configuration(text: &mut String, configuration: &ConfigurationStatus) -> std::fmt::Result {
    if let Some(refusal) = &configuration.refusal {
        let (at, reason) = (time::show(refusal.at_ms), escape(&refusal.reason));
        writeln!(text, "config   refused at {at}, the earlier one is in force: {reason}")?;
    }
    match &configuration.restart[..] {
        [] => Ok(()),
        keys => {
            let keys = escape(&keys.join(", ")).into_owned();
            writeln!(text, "config   changes take effect after a restart: {keys}")
        }
    }
}

fn write_session(text: &mut String, session: &SessionStatus) -> std::fmt::Result {
    let (number, pid) = (session.number, session.pid);
    let consumer = escape(&session.consumer);
    let pinned = show_bytes(session.pinned_bytes);
    write!(text, "session {number:<3} {consumer:<16} pid {pid:<8} {pinned} pinned")?;
    match session.slots {
        0 => writeln!(text),
        slots => writeln!(text, ", {slots} by itself"),
    }
}

fn write_timeframe(text: &mut String, timeframe: &TimeframeStatus) -> std::fmt::Result {
    let consumers: Vec<String> = timeframe
        .consumers
        .iter()
        .map(|(consumer, state)| format!("{} {}", escape(consumer), state.name()))
        .collect();
    writeln!(
        text,
        "timeframe {:<8} {:<9} {} rows, {} objects, {}; {}",
        timeframe.timeframe,
        timeframe.state.name(),
        timeframe.rows,
        timeframe.objects,
        show_bytes(timeframe.bytes),
        consumers.join(", ")
    )
}
