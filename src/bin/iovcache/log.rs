//! The log on stderr, and, if the program is built with `otel`, the spans that go to a collector of
//! traces.
//!
//! A service writes its log on a separate thread ([`LogWriter`]): a stderr that is not read must
//! not stop requests. Other commands write directly.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, IsTerminal as _};
use std::os::fd::AsFd as _;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use iovcache::escape::{EscapingWriter, escape, must_escape};
use iovcache::server::{LogFormat, LogWriter};
use iovcache::sync::Mutex;
use tracing::callsite::Identifier;
use tracing::{Level, Metadata};
use tracing_subscriber::field::MakeExt as _;
use tracing_subscriber::filter::{FilterExt as _, LevelFilter, dynamic_filter_fn};
use tracing_subscriber::fmt::format::{self, Writer};
use tracing_subscriber::fmt::time::{FormatTime as _, SystemTime};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, fmt, reload};

use crate::failure::Failure;
use crate::stderr;

/// Maximum bytes of queued log.
const QUEUE_BYTES: usize = 4 << 20;
/// Time limit for writing the queued log when the process ends.
const END_LIMIT: Duration = Duration::from_millis(500);

/// Sets the filter of the running log.
type SetFilter = Box<dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync>;
static FILTER: OnceLock<SetFilter> = OnceLock::new();

/// Logs to stderr the events that `filter` selects.
///
/// # Errors
/// [`Failure`] if `filter` is invalid, or the collector of traces cannot be used.
pub(crate) fn begin(filter: &str, format: LogFormat) -> Result<(), Failure> {
    start(filter, format, io::stderr)
}

/// Like [`begin`], with a thread that writes. Panics are logged too.
///
/// # Errors
/// As [`begin`], or if the thread cannot be started.
pub(crate) fn begin_queued(filter: &str, format: LogFormat) -> Result<LogWriter, Failure> {
    let failed = |error| Failure::io("cannot start the thread that writes the log", error);
    // Not `io::stderr()`: a blocked write holds its lock and would block all others.
    let out = File::from(io::stderr().as_fd().try_clone_to_owned().map_err(failed)?);
    let writer = LogWriter::start(out, QUEUE_BYTES, move |lost| notice(lost, format));
    let writer = writer.map_err(failed)?;
    let queue = writer.clone();
    start(filter, format, move || queue.clone())?;
    stderr::use_writer(writer.clone());
    std::panic::set_hook(Box::new(|panic| tracing::error!("{panic}")));
    Ok(writer)
}

fn start<W: io::Write + 'static>(
    filter: &str,
    format: LogFormat,
    writer: impl Fn() -> W + Send + Sync + 'static,
) -> Result<(), Failure> {
    let (filter, handle) = reload::Layer::new(parse(filter)?);
    let _ = FILTER.set(Box::new(move |filter| handle.reload(filter)));
    let seldom = Seldom::default();
    let limit = dynamic_filter_fn(move |event, _| seldom.allows(event));
    // Without this hint, events of all levels would be looked at.
    let filter = filter.and(limit.with_max_level_hint(LevelFilter::TRACE));
    let log = match format {
        LogFormat::Text => {
            let log = fmt::layer().with_writer(writer).with_ansi(io::stderr().is_terminal());
            log.fmt_fields(text_fields()).with_filter(filter).boxed()
        }
        LogFormat::Json => {
            let log = fmt::layer().with_writer(move || JsonLine(writer()));
            log.json().flatten_event(true).with_filter(filter).boxed()
        }
    };
    let all = tracing_subscriber::registry().with(log);
    #[cfg(feature = "otel")]
    let all = all.with(traces::layer()?);
    all.init();
    Ok(())
}

/// Limits the lines of libraries from `info` upwards, each of which a client may cause with every
/// connection: one per second from each place in their code.
#[derive(Debug, Default)]
struct Seldom(Mutex<HashMap<Identifier, Instant>>);

impl Seldom {
    const PAUSE: Duration = Duration::from_secs(1);

    fn allows(&self, event: &Metadata<'_>) -> bool {
        if *event.level() > Level::INFO || event.is_span() || event.target().starts_with("iovcache")
        {
            return true;
        }
        let now = Instant::now();
        let mut last = self.0.lock();
        let is_due = last.get(&event.callsite()).is_none_or(|&last| now - last >= Self::PAUSE);
        if is_due {
            last.insert(event.callsite(), now);
        }
        is_due
    }
}

/// Smallest Jaro-Winkler similarity (0 to 1) of a word that is a misspelled level.
const MIN_SIMILARITY: f64 = 0.85;

/// A part of `filter` that is a misspelled level, and the level. Such a word would select all lines
/// of a target of this name, and hide all others.
fn misspelled_level(filter: &str) -> Option<(&str, &'static str)> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    filter.split(',').map(str::trim).find_map(|word| {
        let lower = word.to_lowercase();
        let like = |level: &&str| strsim::jaro_winkler(&lower, level) >= MIN_SIMILARITY;
        let is_level = LEVELS.contains(&lower.as_str());
        LEVELS.into_iter().find(like).filter(|_| !is_level).map(|level| (word, level))
    })
}

fn parse(filter: &str) -> Result<EnvFilter, Failure> {
    if let Some((word, level)) = misspelled_level(filter) {
        let hint = format!("did you mean {level}? A target has its level: {word}=debug");
        return Err(Failure::usage(format!("log filter {filter:?}: {word:?} is no level; {hint}")));
    }
    let parsed = EnvFilter::try_new(filter);
    parsed.map_err(|error| Failure::usage(format!("log filter {filter:?}: {error}")))
}

/// A valid filter of the log.
pub(crate) struct LogFilter(EnvFilter);

impl LogFilter {
    /// # Errors
    /// [`Failure`] if `filter` is invalid.
    pub(crate) fn parse(filter: &str) -> Result<Self, Failure> {
        parse(filter).map(Self)
    }

    /// Replaces the filter of the log.
    ///
    /// # Errors
    /// [`Failure`] if the log has ended.
    pub(crate) fn apply(self) -> Result<(), Failure> {
        // Unset only before the log begins.
        let Some(set) = FILTER.get() else { return Ok(()) };
        set(self.0).map_err(|error| Failure::failed(format!("the log filter: {error}")))
    }
}

/// Formats fields as `name=value`, and the message without its name. Each value is escaped: it may
/// come from a client and must stay within its line.
fn text_fields() -> impl for<'a> fmt::FormatFields<'a> + Send + Sync + 'static {
    let fields = format::debug_fn(|writer: &mut Writer<'_>, field, value| {
        use std::fmt::Write as _;
        match field.name() {
            "message" => write!(EscapingWriter(writer), "{value:?}"),
            name => write!(EscapingWriter(writer), "{name}={value:?}"),
        }
    });
    fields.delimited(" ")
}

/// Escapes characters that JSON permits in a line but that a terminal obeys: control characters
/// beyond ASCII, and characters that change the direction of text.
struct JsonLine<W>(W);

impl<W: io::Write> io::Write for JsonLine<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let is_escaped = |one: char| !one.is_ascii() && must_escape(one);
        match std::str::from_utf8(line) {
            Ok(text) if text.chars().any(is_escaped) => {
                let escaped: String = text
                    .chars()
                    .map(|one| match is_escaped(one) {
                        true => format!("\\u{:04x}", u32::from(one)),
                        false => one.to_string(),
                    })
                    .collect();
                self.0.write_all(escaped.as_bytes())?;
            }
            _ => self.0.write_all(line)?,
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// The line that reports `lost` lines.
fn notice(lost: u64, format: LogFormat) -> String {
    let message = format!("{lost} lines of the log were lost: stderr is not read fast enough");
    format!("{}\n", line_of("WARN", "iovcache::log", &message, format))
}

/// A line in the format of the log, past its filter.
fn line_of(level: &str, target: &str, message: &str, format: LogFormat) -> String {
    let mut time = String::new();
    let _ = SystemTime.format_time(&mut Writer::new(&mut time));
    match format {
        LogFormat::Text => format!("{time} {level:>5} {target}: {}", escape(message)),
        LogFormat::Json => serde_json::json!({
            "timestamp": time,
            "level": level,
            "message": message,
            "target": target,
        })
        .to_string(),
    }
}

/// Writes a line to the log, past its filter.
pub(crate) fn say_as(message: &str, format: LogFormat) {
    stderr::say(&line_of("INFO", "iovcache::serve", message, format));
}

/// Sends the queued spans and writes the queued log, for at most [`END_LIMIT`].
pub(crate) fn end() {
    #[cfg(feature = "otel")]
    traces::end();
    stderr::flush_within(END_LIMIT);
}

#[cfg(feature = "otel")]
mod traces {
    use std::sync::OnceLock;

    use opentelemetry::trace::TracerProvider as _;
    use opentelemetry_otlp::SpanExporter;
    use opentelemetry_sdk::Resource;
    use opentelemetry_sdk::trace::SdkTracerProvider;
    use tracing::Subscriber;
    use tracing_subscriber::Layer;
    use tracing_subscriber::filter::filter_fn;
    use tracing_subscriber::registry::LookupSpan;

    use crate::failure::Failure;

    static PROVIDER: OnceLock<SdkTracerProvider> = OnceLock::new();

    /// The variables that name a collector, as OpenTelemetry defines them.
    const ENDPOINTS: [&str; 2] =
        ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];

    /// Sends the spans of this crate to the collector that the environment names; `None` if it
    /// names none.
    pub(super) fn layer<S>() -> Result<Option<impl Layer<S>>, Failure>
    where
        S: Subscriber + for<'span> LookupSpan<'span>,
    {
        let named = ENDPOINTS.iter().any(|name| std::env::var_os(name).is_some());
        if !named || tokio::runtime::Handle::try_current().is_err() {
            return Ok(None);
        }
        let exporter = SpanExporter::builder().with_tonic().build().map_err(|error| {
            Failure::usage(format!("the collector of traces cannot be used: {error}"))
        })?;
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_resource(Resource::builder().with_service_name("iovcache").build())
            .build();
        let tracer = provider.tracer("iovcache");
        let _ = PROVIDER.set(provider);
        // Without the spans of libraries: the exporter would export its own without end.
        let ours = filter_fn(|span| span.is_span() && span.target().starts_with("iovcache"));
        Ok(Some(tracing_opentelemetry::layer().with_tracer(tracer).with_filter(ours)))
    }

    pub(super) fn end() {
        if let Some(Err(error)) = PROVIDER.get().map(SdkTracerProvider::shutdown) {
            tracing::warn!(%error, "not all traces were sent");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelled_level_is_named_with_the_level_that_was_meant() {
        for (filter, level) in [("warnn", "warn"), ("debug,inof", "info"), ("Eror", "error")] {
            let found = misspelled_level(filter).map(|(_, level)| level);
            assert_eq!(found, Some(level), "{filter}");
            assert!(parse(filter).is_err(), "{filter}");
        }
        for filter in ["", "off", "INFO", "warn,iovcache::table=info", "iovcache", "h2", "info,"] {
            assert_eq!(misspelled_level(filter), None, "{filter}");
            assert!(parse(filter).is_ok(), "{filter}");
        }
    }
}
