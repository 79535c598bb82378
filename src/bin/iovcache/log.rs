//! What goes to stderr, and, where the program was built with `otel`, the spans that go to a
//! collector of traces.

use std::io::{self, IsTerminal as _};

use iovcache::server::LogFormat;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, fmt};

use crate::common::Failure;

/// Logs to stderr what `filter` lets through.
pub(crate) fn begin(filter: &str, format: LogFormat) -> Result<(), Failure> {
    let filter = EnvFilter::try_new(filter)
        .map_err(|error| Failure::usage(format!("--log {filter:?}: {error}")))?;
    let log = fmt::layer().with_writer(io::stderr);
    let log = match format {
        LogFormat::Text => log.with_ansi(io::stderr().is_terminal()).with_filter(filter).boxed(),
        LogFormat::Json => log.json().flatten_event(true).with_filter(filter).boxed(),
    };
    let all = tracing_subscriber::registry().with(log);
    #[cfg(feature = "otel")]
    let all = all.with(traces::layer()?);
    all.init();
    Ok(())
}

/// Sends the spans that have not gone out yet.
pub(crate) fn end() {
    #[cfg(feature = "otel")]
    traces::end();
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

    use crate::common::Failure;

    static PROVIDER: OnceLock<SdkTracerProvider> = OnceLock::new();

    /// The variables that name a collector, as OpenTelemetry has them.
    const ENDPOINTS: [&str; 2] =
        ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];

    /// Sends our own spans to the collector that the environment names, if it names one.
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
        // Not those of the libraries: the exporter's own would never end.
        let ours = filter_fn(|span| span.is_span() && span.target().starts_with("iovcache"));
        Ok(Some(tracing_opentelemetry::layer().with_tracer(tracer).with_filter(ours)))
    }

    pub(super) fn end() {
        if let Some(Err(error)) = PROVIDER.get().map(SdkTracerProvider::shutdown) {
            tracing::warn!(%error, "not all traces were sent");
        }
    }
}
