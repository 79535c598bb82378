//! What a service says when it is ready: a line of JSON on stdout for programs, a line in the log for
//! people.

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
    /// `fairmq`: what is to be registered with FairMQ, if anything is.
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

    /// Says both, within the runtime.
    pub(super) fn tell(self) {
        let Self { line, greeting, log_format } = self;
        crate::log::say_as(&greeting, log_format);
        // Beside the runtime's own threads: a full pipe blocks.
        tokio::task::spawn_blocking(move || {
            let mut out = std::io::stdout();
            let told = writeln!(out, "{line}").and_then(|()| out.flush());
            if let Err(error) = told {
                tracing::warn!(%error, "the line that says ready cannot be written to stdout");
            }
        });
    }
}

/// One line for a person: what runs, where, and over what.
fn greeting(config: &Config, cache: &Cache, ready: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let flight: Vec<String> = ready["flight"].as_array().into_iter().flatten().map(text).collect();
    // Without credentials.
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
