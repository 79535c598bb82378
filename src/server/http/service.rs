//! The HTTP server: metrics, health, the status page.

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Bytes, Incoming};
use hyper::header::{
    ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue,
    REFERRER_POLICY, RETRY_AFTER, VARY, X_CONTENT_TYPE_OPTIONS,
};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::super::log::LogWriter;
use super::super::metrics;
use super::super::page::{self, Live};
use super::super::process;
use super::super::reloads::Reloads;
use super::exposition::MetricsFormat;
use super::progress::ProgressBody;
use super::visitors::{Visitor, Visitors};
use crate::cache::Cache;
use crate::escape::escape;
use crate::source::{Reachability, SourceHealth};
use crate::time_text;

/// Maximum concurrent connections, if the descriptors allow it.
pub(crate) const MAX_CONNECTIONS: usize = 128;
/// Longest time for a client to send the head of a request, or to leave a connection idle.
const HEAD_LIMIT: Duration = Duration::from_secs(10);
/// Longest head of a request.
const HEAD_BYTES: usize = 16 << 10;
/// Longest duration of a connection, busy or not.
const CONNECTION_LIMIT: Duration = Duration::from_secs(900);
/// Pause of accepting when the system has no more descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

type PageBody = UnsyncBoxBody<Bytes, Infallible>;

/// Whether the service takes requests, and if not, why.
#[derive(Debug, Clone, Default)]
pub(crate) struct Readiness(Arc<AtomicU8>);

impl Readiness {
    /// The service has not started yet: the initial state.
    const STARTING: u8 = 0;
    /// The service takes requests.
    pub(crate) const READY: u8 = 1;
    /// The service ends once running requests are answered.
    pub(crate) const STOPPING: u8 = 2;

    pub(crate) fn set(&self, state: u8) {
        self.0.store(state, Ordering::Release);
    }

    fn get(&self) -> u8 {
        self.0.load(Ordering::Acquire)
    }
}

/// Everything needed to serve the port.
#[derive(Debug)]
pub(crate) struct HttpOptions {
    pub(crate) cache: Cache,
    pub(crate) readiness: Readiness,
    /// The log writer, whose lost lines are a metric.
    pub(crate) log: Option<LogWriter>,
    pub(crate) reloads: Reloads,
    /// Maximum concurrent connections.
    pub(crate) connections: usize,
}

/// Answers until `stop`.
pub(crate) async fn serve(listener: TcpListener, options: HttpOptions, stop: CancellationToken) {
    let HttpOptions { cache, readiness, log, reloads, connections } = options;
    let live = Live::new(cache.clone(), reloads.clone());
    let registries = [metrics::registry(cache.clone(), log, reloads.clone()), process::registry()];
    let site = Arc::new(HttpPages { cache, registries, readiness, live, reloads });
    let visitors = Visitors::new(connections);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        match accepted {
            Ok((stream, _)) => {
                let visitor = visitors.enter().await;
                tokio::spawn(attend(stream, Arc::clone(&site), visitor, stop.clone()));
            }
            Err(error) => {
                tracing::warn!(%error, "accepting on the HTTP port failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Serves one connection.
async fn attend(
    stream: TcpStream,
    site: Arc<HttpPages>,
    visitor: Arc<Visitor>,
    stop: CancellationToken,
) {
    let answer = service_fn({
        let visitor = Arc::clone(&visitor);
        move |request| {
            visitor.progressed();
            let (site, visitor) = (Arc::clone(&site), Arc::clone(&visitor));
            async move {
                let answer = site.answer(&request).map(|body| ProgressBody::new(body, visitor));
                Ok::<_, Infallible>(answer)
            }
        }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_LIMIT)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), answer);
    tokio::select! {
        // A client that disconnects is no error of the service.
        _ = tokio::time::timeout(CONNECTION_LIMIT, connection) => {}
        () = visitor.ended() => {}
        () = stop.cancelled() => {}
    }
}

/// The pages of the HTTP port, with their contents: metrics of the cache and of the process.
struct HttpPages {
    cache: Cache,
    registries: [Registry; 2],
    readiness: Readiness,
    live: Arc<Live>,
    reloads: Reloads,
}

impl HttpPages {
    fn answer(&self, request: &Request<Incoming>) -> Response<PageBody> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
            response.headers_mut().insert(ALLOW, const { HeaderValue::from_static("GET, HEAD") });
            return response;
        }
        match request.uri().path() {
            "/" => document(),
            "/events" => self.events(),
            "/healthz" => plain(StatusCode::OK, "ok\n"),
            "/readyz" => self.readyz(),
            "/metrics" => self.metrics(request),
            _ => {
                let text = "there are /, /events, /metrics, /healthz and /readyz\n";
                plain(StatusCode::NOT_FOUND, text)
            }
        }
    }

    /// 200 with a list of problems if the service takes requests; else 503 with the reason.
    fn readyz(&self) -> Response<PageBody> {
        let reason = match self.readiness.get() {
            Readiness::READY => {
                let lost = self.cache.lost_segments();
                if !lost.is_empty() {
                    let lost = lost.iter().map(|lost| format!("{}\n", escape(&lost.to_string())));
                    let lost: String = lost.collect();
                    return plain(StatusCode::SERVICE_UNAVAILABLE, &format!("not ready: {lost}"));
                }
                let notes: String = self.notes().iter().map(|note| format!("{note}\n")).collect();
                return plain(StatusCode::OK, &format!("ready\n{notes}"));
            }
            Readiness::STARTING => "the service is starting",
            _ => "the service is stopping: running requests are answered, new ones are refused",
        };
        plain(StatusCode::SERVICE_UNAVAILABLE, &format!("not ready: {reason}\n"))
    }

    /// Problems that hinder some requests while the service is ready.
    fn notes(&self) -> Vec<String> {
        let health = self.cache.sources();
        let note = |source: &SourceHealth| match source.state {
            Reachability::Up => None,
            Reachability::Down { since } => {
                let (url, since) = (escape(&source.url), time_text::show(since.as_millis()));
                let what = format!("note: source {url} does not answer since {since}");
                Some(format!("{what}; objects in memory are served"))
            }
        };
        let mut notes: Vec<String> = health.iter().filter_map(note).collect();
        let memory = self.cache.status().memory;
        if memory.total_bytes > 0 && memory.pinned_bytes > memory.total_bytes / 20 * 19 {
            let (pinned, total) = (memory.pinned_bytes, memory.total_bytes);
            notes.push(format!(
                "note: {pinned} of {total} bytes of memory are pinned; loads may have to wait"
            ));
        }
        notes.extend(self.reloads.notes().into_iter().map(|note| format!("note: {note}")));
        notes
    }

    fn metrics(&self, request: &Request<Incoming>) -> Response<PageBody> {
        // A header may occur several times.
        let accept: Vec<&str> =
            request.headers().get_all(ACCEPT).iter().filter_map(|one| one.to_str().ok()).collect();
        let accept = (!accept.is_empty()).then(|| accept.join(","));
        let format = MetricsFormat::accepted(accept.as_deref());
        let mut body = String::new();
        let encoded = self
            .registries
            .iter()
            .try_for_each(|registry| text::encode_registry(&mut body, registry))
            .and_then(|()| text::encode_eof(&mut body));
        match encoded {
            Ok(()) => {
                let body = format.of_open_metrics(body);
                let mut response = whole(StatusCode::OK, format.media_type(), body);
                let vary = const { HeaderValue::from_static("accept") };
                response.headers_mut().insert(VARY, vary);
                response
            }
            Err(fmt::Error) => {
                let text = "the metrics could not be written\n";
                plain(StatusCode::INTERNAL_SERVER_ERROR, text)
            }
        }
    }

    fn events(&self) -> Response<PageBody> {
        let Some(stream) = Arc::clone(&self.live).listen() else {
            let text = "too many listeners\n";
            let mut response = plain(StatusCode::SERVICE_UNAVAILABLE, text);
            response.headers_mut().insert(RETRY_AFTER, const { HeaderValue::from_static("10") });
            return response;
        };
        let body = StreamBody::new(stream).boxed_unsync();
        response(StatusCode::OK, "text/event-stream", body)
    }
}

fn document() -> Response<PageBody> {
    let (page, policy) = page::document();
    let mut response = whole(StatusCode::OK, "text/html; charset=utf-8", page);
    if let Ok(policy) = HeaderValue::try_from(policy) {
        response.headers_mut().insert(CONTENT_SECURITY_POLICY, policy);
    }
    let referrer = const { HeaderValue::from_static("no-referrer") };
    response.headers_mut().insert(REFERRER_POLICY, referrer);
    response
}

fn plain(status: StatusCode, text: &str) -> Response<PageBody> {
    whole(status, "text/plain; charset=utf-8", text.to_owned())
}

fn whole(status: StatusCode, kind: &'static str, body: String) -> Response<PageBody> {
    response(status, kind, Full::from(body).boxed_unsync())
}

fn response(status: StatusCode, kind: &'static str, body: PageBody) -> Response<PageBody> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, const { HeaderValue::from_static("no-store") });
    headers.insert(X_CONTENT_TYPE_OPTIONS, const { HeaderValue::from_static("nosniff") });
    response
}
