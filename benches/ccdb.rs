//! The CCDB side beside its floors: a bare hyper service that sends the same bytes, and a loopback
//! socket.
//!
//! `cargo bench --bench ccdb`; the results are in `benches/README.md`. All share one client: it
//! writes a request and reads as many bytes as the first answer had.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use futures::future::join_all;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use iovcache::server::{Answering, ListenOptions, Listeners, ServeOptions};
use iovcache::shm::PoolOptions;
use iovcache::source::MemorySource;
use iovcache::{Cache, ObjectId, ObjectInfo, ObjectPath, Timestamp, ValidityInterval};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

const SMALL_BYTES: usize = 3_900;
const LARGE_BYTES: usize = 64 << 20;
const CONNECTIONS: usize = 8;
const REQUESTS: usize = 50;

fn version(n: u8) -> ObjectInfo {
    let at = Timestamp::from_millis;
    ObjectInfo {
        path: ObjectPath::new(&format!("A/B/o{n}")).unwrap(),
        id: ObjectId::from_bytes([n; 16]),
        validity: ValidityInterval::new(at(1_000), at(2_000)).unwrap(),
        created: at(1_795_421_839_444),
        size_bytes: None,
        md5: None,
        metadata: [("RunNumber", "42"), ("quality", "good")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into(),
    }
}

async fn service() -> SocketAddr {
    let source = MemorySource::new();
    for (n, size) in [(1, SMALL_BYTES), (2, LARGE_BYTES)] {
        let bytes = vec![n; size];
        source.put(version(n), bytes);
    }
    let memory = PoolOptions { memory_bytes: 256 << 20, ..PoolOptions::default() };
    let cache = Cache::builder().source(Arc::new(source)).memory(memory).build().unwrap();
    let ccdb = Some("127.0.0.1:0".parse().unwrap());
    let options = ListenOptions { ccdb, ..ListenOptions::default() };
    let listeners = Listeners::bind(&options).await.unwrap();
    let address = listeners.ccdb_url().unwrap()["http://".len()..].parse().unwrap();
    let options = ServeOptions { ccdb_answer: Answering::Body, ..ServeOptions::default() };
    let forever = std::future::pending();
    tokio::spawn(iovcache::server::run(listeners, cache, options, forever, || {}));
    address
}

/// The floor: the same headers and bytes, prepared in advance.
async fn bare_hyper(body: Bytes) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            stream.set_nodelay(true).unwrap();
            let body = body.clone();
            let answer = service_fn(move |_: Request<Incoming>| {
                let body = body.clone();
                async move {
                    let answer = Response::builder()
                        .header("Access-Control-Allow-Origin", "*")
                        .header("Access-Control-Allow-Headers", "range")
                        .header("Access-Control-Expose-Headers", "content-range,content-length")
                        .header("Access-Control-Allow-Methods", "HEAD,GET")
                        .header("Cache-Control", "no-cache")
                        .header("Valid-Until", "2000")
                        .header("Valid-From", "1000")
                        .header("Created", "1795421839444")
                        .header("ETag", "\"01010101-0101-0101-0101-010101010101\"")
                        .header("Last-Modified", "Mon, 23 Nov 2026 08:17:19 GMT")
                        .header("RunNumber", "42")
                        .header("quality", "good")
                        .header("Accept-Ranges", "bytes")
                        .header("Content-Disposition", "inline;filename=\"a.txt\"")
                        .header("Content-MD5", "a34a346122318ab0aeedc4bd18873255")
                        .header("Content-Type", "application/octet-stream");
                    Ok::<_, Infallible>(answer.body(Full::new(body)).unwrap())
                }
            });
            let http = hyper::server::conn::http1::Builder::new();
            tokio::spawn(http.serve_connection(TokioIo::new(stream), answer));
        }
    });
    address
}

/// The floor of large bodies: each byte received is answered with the whole body, from memory.
async fn bare_socket(body: Bytes) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let body = body.clone();
            tokio::spawn(async move {
                let mut asked = [0; 1024];
                while matches!(stream.read(&mut asked).await, Ok(1..)) {
                    stream.write_all(&body).await.unwrap();
                }
            });
        }
    });
    address
}

struct Connection {
    stream: TcpStream,
    request: String,
    answer_bytes: usize,
    buffer: Vec<u8>,
}

impl Connection {
    /// Sends one request to learn the length of the answers.
    async fn open(address: SocketAddr, target: &str, body_bytes: usize) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let request = format!("GET {target} HTTP/1.1\r\nHost: {address}\r\n\r\n");
        let buffer = vec![0; 1 << 20];
        let mut connection = Self { stream, request, answer_bytes: 0, buffer };
        connection.stream.write_all(connection.request.as_bytes()).await.unwrap();
        let mut first = Vec::new();
        let head = loop {
            connection.stream.read_buf(&mut first).await.unwrap();
            if first.starts_with(b"HTTP/") {
                if let Some(end) = first.windows(4).position(|four| four == b"\r\n\r\n") {
                    assert!(first.starts_with(b"HTTP/1.1 200"));
                    break end + 4;
                }
            } else {
                break 0;
            }
        };
        connection.answer_bytes = head + body_bytes;
        connection.read(head + body_bytes - first.len()).await;
        connection
    }

    async fn read(&mut self, mut left: usize) {
        while left > 0 {
            let most = left.min(self.buffer.len());
            let count = self.stream.read(&mut self.buffer[..most]).await.unwrap();
            assert!(count > 0);
            left -= count;
        }
    }

    async fn ask(&mut self) {
        self.stream.write_all(self.request.as_bytes()).await.unwrap();
        self.read(self.answer_bytes).await;
    }
}

fn bench(criterion: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let by_time = |n: u8| format!("/{}/1500", version(n).path);
    let by_id = |n: u8| format!("/{}/1000/{}", version(n).path, version(n).id);
    let ours = runtime.block_on(service());
    let hyper = runtime.block_on(bare_hyper(vec![1; SMALL_BYTES].into()));
    let socket = runtime.block_on(bare_socket(vec![2; LARGE_BYTES].into()));

    let mut group = criterion.benchmark_group("CCDB, 3.9 kB bodies, 8 connections");
    group.throughput(Throughput::Elements((CONNECTIONS * REQUESTS) as u64)).sample_size(50);
    for (name, address, target) in [
        ("floor: bare hyper", hyper, "/".to_owned()),
        ("by UUID", ours, by_id(1)),
        ("by time", ours, by_time(1)),
    ] {
        let opening = (0..CONNECTIONS).map(|_| Connection::open(address, &target, SMALL_BYTES));
        let mut connections = runtime.block_on(join_all(opening));
        group.bench_function(name, |bench| {
            bench.iter(|| {
                runtime.block_on(join_all(connections.iter_mut().map(async |connection| {
                    for _ in 0..REQUESTS {
                        connection.ask().await;
                    }
                })))
            });
        });
    }
    group.finish();

    let mut group = criterion.benchmark_group("CCDB, 64 MiB bodies, one connection");
    group.throughput(Throughput::Bytes(LARGE_BYTES as u64)).sample_size(20);
    for (name, address, target) in
        [("floor: loopback socket", socket, "/".to_owned()), ("by UUID", ours, by_id(2))]
    {
        let mut connection = runtime.block_on(Connection::open(address, &target, LARGE_BYTES));
        group.bench_function(name, |bench| bench.iter(|| runtime.block_on(connection.ask())));
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
