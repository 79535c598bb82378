//! A slow and failing source: an HTTP gateway between the service and a CCDB. It passes requests on
//! and injects faults of networks and servers.
//!
//! ```text
//!  service under load ──▶ gateway ──▶ another service, which is a CCDB over the repository
//!                           │ 503, hang-up, a second of silence, half a body, a flipped bit
//! ```

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::stream;
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::BoxBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use iovcache::sync::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::random::Random;
use crate::failure::Failure;

/// An injected fault. [`FAULTS`] gives its rate per 1,000 answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// Status 503.
    Unavailable,
    /// The connection ends without an answer.
    HangUp,
    /// The answer is a second late.
    Slow,
    /// The connection ends in the middle of the body.
    Torn,
    /// One bit of the body is flipped.
    FlippedBit,
}

const FAULTS: [(Fault, &str, usize); 5] = [
    (Fault::Unavailable, "503", 50),
    (Fault::HangUp, "hang-up", 20),
    (Fault::Slow, "1 s late", 20),
    (Fault::Torn, "half a body", 20),
    (Fault::FlippedBit, "a flipped bit", 10),
];
const LATE: Duration = Duration::from_secs(1);

type Body = BoxBody<Bytes, io::Error>;

/// The gateway; dropping this closes it.
pub(super) struct Gateway {
    url: String,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

struct Shared {
    upstream: String,
    client: reqwest::Client,
    random: Mutex<Random>,
    counts: Mutex<BTreeMap<String, u64>>,
}

impl Gateway {
    /// Opens a gateway to the CCDB at `upstream`.
    pub(super) async fn open(upstream: &str, seed: u64) -> Result<Self, Failure> {
        let no_socket = |error| Failure::io("cannot open the socket of the failing source", error);
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.map_err(no_socket)?;
        let url = format!("http://{}", listener.local_addr().map_err(no_socket)?);
        iovcache::source::install_crypto_provider();
        let client = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .build()
            .map_err(Failure::failed)?;
        let shared = Arc::new(Shared {
            upstream: upstream.trim_end_matches('/').to_owned(),
            client,
            random: Mutex::new(Random::new(seed)),
            counts: Mutex::default(),
        });
        let accepting = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Ok(Self { url, shared, accepting })
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// Number of requests, and of each fault.
    pub(super) fn counts(&self) -> BTreeMap<String, u64> {
        self.shared.counts.lock().clone()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        tokio::spawn(serve(stream, Arc::clone(&shared)));
    }
}

async fn serve(stream: TcpStream, shared: Arc<Shared>) {
    let answer = service_fn(move |request| {
        let shared = Arc::clone(&shared);
        async move { shared.answer(request).await }
    });
    let connection = hyper::server::conn::http1::Builder::new();
    // An injected fault ends the connection with an error.
    let _ = connection.serve_connection(TokioIo::new(stream), answer).await;
}

impl Shared {
    async fn answer(&self, request: Request<Incoming>) -> io::Result<Response<Body>> {
        let fault = self.fault();
        match fault {
            Some(Fault::Unavailable) => {
                let mut answer = Response::new(whole(Bytes::new()));
                *answer.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
                return Ok(answer);
            }
            Some(Fault::HangUp) => return Err(io::ErrorKind::ConnectionReset.into()),
            Some(Fault::Slow) => tokio::time::sleep(LATE).await,
            Some(Fault::Torn | Fault::FlippedBit) | None => {}
        }
        let place = request.uri().path_and_query().map_or("/", |place| place.as_str());
        let url = format!("{}{place}", self.upstream);
        let (head, _) = request.into_parts();
        let mut asked = self.client.request(head.method, url);
        for (name, value) in &head.headers {
            if name != hyper::header::HOST {
                asked = asked.header(name, value);
            }
        }
        let got = asked.send().await.map_err(io::Error::other)?;
        let mut answer = Response::builder().status(got.status());
        if let Some(headers) = answer.headers_mut() {
            *headers = got.headers().clone();
            headers.remove(hyper::header::CONNECTION);
        }
        let body = got.bytes().await.map_err(io::Error::other)?;
        let body = match fault {
            Some(Fault::Torn) if !body.is_empty() => half(&body),
            Some(Fault::FlippedBit) if !body.is_empty() => whole(flipped(&body)),
            _ => whole(body),
        };
        answer.body(body).map_err(io::Error::other)
    }

    /// The fault of the next answer, if any.
    fn fault(&self) -> Option<Fault> {
        let mut left = self.random.lock().below(1_000);
        let fault = FAULTS.iter().find(|(_, _, share)| {
            let hit = left < *share;
            left = left.wrapping_sub(*share);
            hit
        });
        let mut counts = self.counts.lock();
        *counts.entry("requests".to_owned()).or_default() += 1;
        let (fault, name, _) = fault?;
        *counts.entry((*name).to_owned()).or_default() += 1;
        Some(*fault)
    }
}

fn whole(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never: Infallible| match never {}).boxed()
}

/// The first half of the bytes, then an error.
fn half(bytes: &Bytes) -> Body {
    let first = Ok(Frame::data(bytes.slice(..bytes.len() / 2)));
    let broken = Err(io::ErrorKind::ConnectionReset.into());
    StreamBody::new(stream::iter([first, broken])).boxed()
}

fn flipped(bytes: &Bytes) -> Bytes {
    let mut bytes = bytes.to_vec();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    bytes.into()
}
