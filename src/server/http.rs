//! What operators look at: the status page, `/metrics` (Prometheus), `/healthz` (it lives), `/readyz`
//! (it serves).
//!
//! Plain HTTP/1.1, read only, and told apart from the Flight port so that it can be opened to
//! others than the consumers.

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
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::metrics;
use super::page::{self, Live};
use crate::cache::Cache;

/// How many connections are served at a time; more wait to be accepted.
const MAX_CONNECTIONS: usize = 64;
/// How long a client may take to send its request's head, or leave a connection idle.
const HEAD_LIMIT: Duration = Duration::from_secs(10);
/// How long a connection may last, whatever is done on it: who stopped to read goes too.
const CONNECTION_LIMIT: Duration = Duration::from_secs(900);

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

/// Answers until `stop`.
pub(super) async fn serve(
    listener: TcpListener,
    cache: Cache,
    readiness: Readiness,
    stop: CancellationToken,
) {
    let live = Live::new(cache.clone());
    let site = Arc::new(Site { registry: metrics::registry(cache), readiness, live });
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
        let (site, stop) = (Arc::clone(&site), stop.clone());
        tokio::spawn(async move {
            let _place = place;
            let answer = service_fn(move |request| {
                let site = Arc::clone(&site);
                async move { Ok::<_, Infallible>(site.answer(&request)) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_LIMIT)
                .serve_connection(TokioIo::new(stream), answer);
            tokio::select! {
                // A client that breaks off is its own affair.
                _ = tokio::time::timeout(CONNECTION_LIMIT, connection) => {}
                () = stop.cancelled() => {}
            }
        });
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
