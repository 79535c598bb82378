//! gRPC as bytes: a server that answers each call by a function, and a client for single calls.

use std::net::SocketAddr;
use std::sync::LazyLock;

use bytes::Bytes;
use h2::server::SendResponse;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

/// A call and its answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Call {
    pub(crate) path: String,
    #[serde(with = "hex")]
    pub(crate) request: Vec<u8>,
    pub(crate) answer: Answer,
}

/// An answer: its body, and the headers and trailers that begin with `grpc-`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Answer {
    headers: Vec<(String, String)>,
    #[serde(with = "hex")]
    pub(crate) body: Vec<u8>,
    trailers: Vec<(String, String)>,
}

impl Answer {
    pub(crate) fn unimplemented() -> Self {
        let status = ("grpc-status".to_owned(), "12".to_owned());
        Self { headers: vec![status], body: Vec::new(), trailers: Vec::new() }
    }

    pub(crate) fn unknown_action() -> Self {
        let message = "[IOV-1001] action is malformed: unknown action";
        let headers = [("grpc-status", "3"), ("grpc-message", message)];
        let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned()));
        Self { headers: headers.into(), body: Vec::new(), trailers: Vec::new() }
    }

    /// The gRPC status: in the trailers, or in the headers of an answer without a body.
    pub(crate) fn status(&self) -> &str {
        let all = self.trailers.iter().chain(&self.headers);
        all.into_iter().find(|(name, _)| name == "grpc-status").map_or("none", |(_, value)| value)
    }

    /// The messages of the body.
    pub(crate) fn messages(&self) -> Vec<Bytes> {
        let mut rest = Bytes::from(self.body.clone());
        let mut messages = Vec::new();
        while !rest.is_empty() {
            let head = rest.split_to(5);
            assert_eq!(head[0], 0, "a compressed message");
            let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
            messages.push(rest.split_to(length as usize));
        }
        messages
    }
}

/// The name of the action of a DoAction: the first field of its message.
pub(crate) fn action(request: &[u8]) -> &[u8] {
    let length = usize::from(request[6]);
    &request[7..7 + length]
}

/// Bytes as hexadecimal digits.
mod hex {
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        serializer.serialize_str(&text)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(from)?;
        let byte = |at: usize| u8::from_str_radix(&text[at..at + 2], 16);
        let bytes: Result<Vec<u8>, _> = (0..text.len()).step_by(2).map(byte).collect();
        bytes.map_err(serde::de::Error::custom)
    }
}

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().unwrap());

pub(crate) fn block_on<T>(work: impl Future<Output = T>) -> T {
    RUNTIME.block_on(work)
}

/// Starts a server; gives its URL. It runs until the process ends.
pub(crate) fn serve<F, A>(answer: F) -> String
where
    F: FnMut(String, Vec<u8>) -> A + Send + 'static,
    A: Future<Output = Answer> + Send + 'static,
{
    let listener = block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    let answer = std::sync::Arc::new(std::sync::Mutex::new(answer));
    RUNTIME.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let answer = answer.clone();
            tokio::spawn(async move {
                let Ok(mut connection) = h2::server::handshake(stream).await else { return };
                while let Some(Ok((request, respond))) = connection.accept().await {
                    let answer = answer.clone();
                    tokio::spawn(async move {
                        let path = request.uri().path().to_owned();
                        let (body, _) = collect(request.into_body()).await;
                        let answer = (answer.lock().unwrap())(path, body);
                        send(respond, answer.await);
                    });
                }
            });
        }
    });
    format!("grpc://{address}")
}

fn send(mut respond: SendResponse<Bytes>, answer: Answer) {
    let mut response = Response::new(());
    *response.headers_mut() = headers(&answer.headers);
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    let is_whole = answer.body.is_empty() && answer.trailers.is_empty();
    let Ok(mut stream) = respond.send_response(response, is_whole) else { return };
    if !is_whole {
        let _ = stream.send_data(answer.body.into(), false);
        let _ = stream.send_trailers(headers(&answer.trailers));
    }
}

/// Makes one call at the service at `address`.
pub(crate) async fn ask(address: &str, path: &str, request: &[u8]) -> Answer {
    let address: SocketAddr = address.parse().unwrap();
    let stream = TcpStream::connect(address).await.unwrap();
    let (client, connection) = h2::client::handshake(stream).await.unwrap();
    let connection = tokio::spawn(connection);
    let call = Request::post(format!("http://{address}{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .unwrap();
    let mut client = client.ready().await.unwrap();
    let (response, mut stream) = client.send_request(call, false).unwrap();
    stream.send_data(request.to_vec().into(), true).unwrap();
    let (head, body) = response.await.unwrap().into_parts();
    let (body, trailers) = collect(body).await;
    connection.abort();
    Answer { headers: of_grpc(&head.headers), body, trailers: of_grpc(&trailers) }
}

async fn collect(mut body: h2::RecvStream) -> (Vec<u8>, HeaderMap) {
    let mut bytes = Vec::new();
    while let Some(piece) = body.data().await {
        let Ok(piece) = piece else { break };
        let _ = body.flow_control().release_capacity(piece.len());
        bytes.extend_from_slice(&piece);
    }
    let trailers = body.trailers().await.ok().flatten().unwrap_or_default();
    (bytes, trailers)
}

fn of_grpc(headers: &HeaderMap) -> Vec<(String, String)> {
    let named = headers.iter().filter(|(name, _)| name.as_str().starts_with("grpc-status"));
    let text = |value: &HeaderValue| value.to_str().unwrap().to_owned();
    let details = headers.iter().filter(|(name, _)| {
        ["grpc-message", "grpc-status-details-bin"].contains(&name.as_str())
            || name.as_str().starts_with("iovcache")
    });
    named.chain(details).map(|(name, value)| (name.to_string(), text(value))).collect()
}

fn headers(pairs: &[(String, String)]) -> HeaderMap {
    let parse = |(name, value): &(String, String)| {
        let name: HeaderName = name.parse().unwrap();
        (name, HeaderValue::from_str(value).unwrap())
    };
    pairs.iter().map(parse).collect()
}

/// `bytes` with the first occurrence of `old` replaced by `new`, which is as long.
pub(crate) fn replaced(bytes: &[u8], old: &[u8], new: &[u8]) -> Vec<u8> {
    assert_eq!(old.len(), new.len());
    let mut bytes = bytes.to_vec();
    if let Some(at) = bytes.windows(old.len()).position(|window| window == old) {
        bytes[at..at + new.len()].copy_from_slice(new);
    }
    bytes
}
