//! The report of readiness: a line of JSON on stdout for programs, a line in the log for people.

use std::io::Write as _;

use iovcache::Cache;
use iovcache::server::{Config, Listeners, LogFormat};
use serde_json::{Value, json};

/// Both lines.
#[derive(Debug)]
pub(super) struct Ready {
    line: Value,
    greeting: String,
    log_format: LogFormat,
}

impl Ready {
    /// `fairmq`: the segments to register with FairMQ, if there are any.
    pub(super) fn new(
        config: &Config,
        cache: &Cache,
        listeners: &Listeners,
        fairmq: Option<Value>,
    ) -> Self {
        let mut line = json!({
            "ready": true,
            "flight": listeners.flight_urls(),
            "attach": listeners.attach_path(),
            "http": listeners.http_url(),
            "epoch": cache.epoch().to_string(),
            "pid": std::process::id(),
        });
        if let Some(url) = listeners.ccdb_url() {
            line["ccdb"] = url.into();
        }
        if let Some(fairmq) = fairmq {
            line["fairmq"] = fairmq;
        }
        let greeting = greeting(config, cache, &line);
        Self { line, greeting, log_format: config.log_format }
    }

    /// Writes both lines; must be called within the runtime.
    pub(super) fn tell(self) {
        let Self { line, greeting, log_format } = self;
        crate::log::say_as(&greeting, log_format);
        // On a blocking thread: a full pipe blocks.
        tokio::task::spawn_blocking(move || {
            let mut out = std::io::stdout();
            let told = writeln!(out, "{line}").and_then(|()| out.flush());
            if let Err(error) = told {
                tracing::warn!(%error, "the ready line cannot be written to stdout");
            }
        });
    }
}

/// The line for people: version, sources, memory and addresses.
fn greeting(config: &Config, cache: &Cache, ready: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let flight: Vec<String> = ready["flight"].as_array().into_iter().flatten().map(text).collect();
    // URLs without credentials.
    let sources: Vec<String> = cache.sources().into_iter().map(|source| source.url).collect();
    format!(
        "iovcache {} (pid {}) serves {} over {} of memory at {}; its page is {}/",
        env!("CARGO_PKG_VERSION"),
        std::process::id(),
        sources.join(", "),
        config.memory,
        flight.join(" and "),
        text(&ready["http"]),
    )
}
