//! What operators look at: the status page, `/metrics` (Prometheus), `/healthz` (it lives), `/readyz`
//! (it serves).
//!
//! Plain HTTP/1.1, read only, on a port of its own so that it can be opened to others than the
//! consumers. A new connection is always accepted: [`visitors`] ends another one for it.

mod visitors;

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Bytes, Incoming};
use hyper::header::{
    ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue, REFERRER_POLICY,
    RETRY_AFTER, X_CONTENT_TYPE_OPTIONS,
};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use self::visitors::{Visitor, Visitors};
use super::log::LogWriter;
use super::metrics;
use super::page::{self, Live};
use crate::cache::Cache;

/// How many connections are served at a time, where the descriptors allow it.
pub(super) const MAX_CONNECTIONS: usize = 128;
/// How long a client may take to send its request's head, or leave a connection idle.
const HEAD_LIMIT: Duration = Duration::from_secs(10);
/// Longest head of a request.
const HEAD_BYTES: usize = 16 << 10;
/// How long a connection may last, whatever is done on it.
const CONNECTION_LIMIT: Duration = Duration::from_secs(900);
/// How long accepting pauses when the system has no more descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

type Body = UnsyncBoxBody<Bytes, Infallible>;

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

/// What the port is served with.
#[derive(Debug)]
pub(super) struct HttpOptions {
    pub(super) cache: Cache,
    pub(super) readiness: Readiness,
    /// The writer of the log, whose losses are a metric.
    pub(super) log: Option<LogWriter>,
    /// Connections at a time.
    pub(super) connections: usize,
}

/// Answers until `stop`.
pub(super) async fn serve(listener: TcpListener, options: HttpOptions, stop: CancellationToken) {
    let HttpOptions { cache, readiness, log, connections } = options;
    let live = Live::new(cache.clone());
    let site = Arc::new(Site { registry: metrics::registry(cache, log), readiness, live });
    let visitors = Visitors::new(connections);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        match accepted {
            Ok((stream, _)) => {
                let visitor = visitors.enter();
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
    site: Arc<Site>,
    visitor: Arc<Visitor>,
    stop: CancellationToken,
) {
    let answer = service_fn({
        let visitor = Arc::clone(&visitor);
        move |request| {
            visitor.progressed();
            let (site, visitor) = (Arc::clone(&site), Arc::clone(&visitor));
            async move {
                let answer = site.answer(&request).map(|body| {
                    // A part is asked for once the one before it was sent.
                    let body = body.map_frame(move |frame| {
                        visitor.progressed();
                        frame
                    });
                    body.boxed_unsync()
                });
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
        // A client that breaks off is its own affair.
        _ = tokio::time::timeout(CONNECTION_LIMIT, connection) => {}
        () = visitor.ended() => {}
        () = stop.cancelled() => {}
    }
}

struct Site {
    registry: Registry,
    readiness: Readiness,
    live: Arc<Live>,
}

impl Site {
    fn answer(&self, request: &Request<Incoming>) -> Response<Body> {
        const METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
            response.headers_mut().insert(ALLOW, const { HeaderValue::from_static("GET, HEAD") });
            return response;
        }
        match request.uri().path() {
            "/" => document(),
            "/events" => self.events(),
            "/healthz" => plain(StatusCode::OK, "ok\n"),
            "/readyz" if self.readiness.get() => plain(StatusCode::OK, "ready\n"),
            "/readyz" => plain(StatusCode::SERVICE_UNAVAILABLE, "not ready\n"),
            "/metrics" => {
                let mut body = String::new();
                match text::encode(&mut body, &self.registry) {
                    Ok(()) => whole(StatusCode::OK, METRICS, body),
                    Err(fmt::Error) => {
                        let text = "the metrics could not be written\n";
                        plain(StatusCode::INTERNAL_SERVER_ERROR, text)
                    }
                }
            }
            _ => {
                let text = "there are /, /events, /metrics, /healthz and /readyz\n";
                plain(StatusCode::NOT_FOUND, text)
            }
        }
    }

    fn events(&self) -> Response<Body> {
        let Some(stream) = Arc::clone(&self.live).listen() else {
            let text = "too many listen already\n";
            let mut response = plain(StatusCode::SERVICE_UNAVAILABLE, text);
            response.headers_mut().insert(RETRY_AFTER, const { HeaderValue::from_static("10") });
            return response;
        };
        let body = StreamBody::new(stream).boxed_unsync();
        response(StatusCode::OK, "text/event-stream", body)
    }
}

fn document() -> Response<Body> {
    let (page, policy) = page::document();
    let mut response = whole(StatusCode::OK, "text/html; charset=utf-8", page);
    if let Ok(policy) = HeaderValue::try_from(policy) {
        response.headers_mut().insert(CONTENT_SECURITY_POLICY, policy);
    }
    let referrer = const { HeaderValue::from_static("no-referrer") };
    response.headers_mut().insert(REFERRER_POLICY, referrer);
    response
}

fn plain(status: StatusCode, text: &str) -> Response<Body> {
    whole(status, "text/plain; charset=utf-8", text.to_owned())
}

fn whole(status: StatusCode, kind: &'static str, body: String) -> Response<Body> {
    response(status, kind, Full::from(body).boxed_unsync())
}

fn response(status: StatusCode, kind: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, const { HeaderValue::from_static("no-store") });
    headers.insert(X_CONTENT_TYPE_OPTIONS, const { HeaderValue::from_static("nosniff") });
    response
}
