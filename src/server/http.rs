//! What operators look at: `/metrics` (Prometheus), `/healthz` (it lives), `/readyz` (it serves).
//!
//! Plain HTTP/1.1, read only, and told apart from the Flight port so that it can be opened to
//! others than the consumers.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, text};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::cache::Cache;
use crate::table::SourceState;

/// How many connections are served at a time; more wait to be accepted.
const MAX_CONNECTIONS: usize = 64;
/// How long a client may take to send its request's head, or leave a connection idle.
const HEAD_LIMIT: Duration = Duration::from_secs(10);

/// Whether the service takes requests.
#[derive(Debug, Clone, Default)]
pub(super) struct Readiness(Arc<AtomicBool>);

impl Readiness {
    pub(super) fn set(&self, ready: bool) {
        self.0.store(ready, Ordering::Release);
    }

    fn get(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// Answers until `stop`.
pub(super) async fn serve(
    listener: TcpListener,
    cache: Cache,
    readiness: Readiness,
    stop: CancellationToken,
) {
    let mut registry = Registry::with_prefix("iovcache");
    registry.register_collector(Box::new(Figures(cache)));
    let page = Arc::new(Page { registry, readiness });
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let accepted = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (listener.accept().await, place)
        };
        let (accepted, place) = tokio::select! {
            accepted = accepted => accepted,
            () = stop.cancelled() => return,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "accepting on the HTTP port failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (page, stop) = (Arc::clone(&page), stop.clone());
        tokio::spawn(async move {
            let _place = place;
            let answer = service_fn(move |request| {
                let page = Arc::clone(&page);
                async move { Ok::<_, std::convert::Infallible>(page.answer(&request)) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_LIMIT)
                .serve_connection(TokioIo::new(stream), answer);
            tokio::select! {
                // A client that breaks off is its own affair.
                _ = connection => {}
                () = stop.cancelled() => {}
            }
        });
    }
}

struct Page {
    registry: Registry,
    readiness: Readiness,
}

impl Page {
    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        const PLAIN: &str = "text/plain; charset=utf-8";
        const METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
        let (status, kind, body) = match request.uri().path() {
            _ if !matches!(*request.method(), Method::GET | Method::HEAD) => {
                (StatusCode::METHOD_NOT_ALLOWED, PLAIN, "only GET and HEAD\n".to_owned())
            }
            "/healthz" => (StatusCode::OK, PLAIN, "ok\n".to_owned()),
            "/readyz" if self.readiness.get() => (StatusCode::OK, PLAIN, "ready\n".to_owned()),
            "/readyz" => (StatusCode::SERVICE_UNAVAILABLE, PLAIN, "not ready\n".to_owned()),
            "/metrics" => {
                let mut body = String::new();
                match text::encode(&mut body, &self.registry) {
                    Ok(()) => (StatusCode::OK, METRICS, body),
                    Err(fmt::Error) => {
                        let body = "the metrics could not be written\n".to_owned();
                        (StatusCode::INTERNAL_SERVER_ERROR, PLAIN, body)
                    }
                }
            }
            _ => {
                let body = "there are /metrics, /healthz and /readyz\n".to_owned();
                (StatusCode::NOT_FOUND, PLAIN, body)
            }
        };
        let mut response = Response::builder()
            .status(status)
            .header(CONTENT_TYPE, kind)
            .header(CACHE_CONTROL, "no-store");
        if status == StatusCode::METHOD_NOT_ALLOWED {
            response = response.header(ALLOW, "GET, HEAD");
        }
        response.body(Full::from(body)).unwrap_or_default()
    }
}

/// All figures of a cache, read when they are asked for.
#[derive(Debug)]
struct Figures(Cache);

impl Collector for Figures {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        for (name, help, value) in self.0.counters().all() {
            let counter = ConstCounter::new(value);
            let unit = name.ends_with("_bytes").then_some(&Unit::Bytes);
            let name = name.trim_end_matches("_bytes");
            let place = encoder.encode_descriptor(name, help, unit, counter.metric_type())?;
            counter.encode(place)?;
        }
        let status = self.0.status();
        let memory = &status.memory;
        let gauges = [
            ("memory_total", "Memory that the cache may use.", memory.total_bytes),
            ("memory_used", "Memory that objects take, pinned or not.", memory.used_bytes),
            ("memory_pinned", "Memory that pinned objects take.", memory.pinned_bytes),
            ("memory_free", "Memory that no object takes.", memory.free_bytes),
            (
                "memory_largest_free",
                "The largest object that fits without throwing another out.",
                memory.largest_free_bytes,
            ),
        ];
        let figure = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        for (name, help, value) in gauges {
            let gauge = ConstGauge::new(figure(value));
            let place =
                encoder.encode_descriptor(name, help, Some(&Unit::Bytes), gauge.metric_type())?;
            gauge.encode(place)?;
        }
        let gauges = [
            ("objects", "Objects in shared memory.", status.objects),
            ("timeframes", "Timeframes in flight.", status.timeframes.len() as u64),
            ("sessions", "Processes that are attached.", status.sessions.len() as u64),
            (
                "sources_up",
                "Sources that answer.",
                status.sources.iter().filter(|source| source.state == SourceState::Up).count()
                    as u64,
            ),
        ];
        for (name, help, value) in gauges {
            let gauge = ConstGauge::new(figure(value));
            let place = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
            gauge.encode(place)?;
        }
        Ok(())
    }
}
