//! Timeframes in flight: one registered and delivered to 20 open exchanges beside a bare exchange of
//! the same bytes, the cost of one with many others in flight, and letting one go.
//!
//! `cargo bench --bench timeframes`.

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::{FlightData, FlightDescriptor};
use bytes::Bytes;
use criterion::{Criterion, criterion_group, criterion_main};
use futures::StreamExt as _;
use futures::stream::Stream;
use hyper_util::rt::TokioIo;
use iovcache::cache::Asker;
use iovcache::index::Timestamps;
use iovcache::server::{ListenOptions, Listeners, ServeOptions};
use iovcache::shm::PoolOptions;
use iovcache::source::MemorySource;
use iovcache::table::{ColumnRequest, Columns, Consumed, MessageWriter, Register, Request};
use iovcache::{Cache, ObjectId, ObjectInfo, ObjectPath, Timestamp, ValidityInterval};
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Status, Streaming};
use tonic_prost::ProstCodec;

const COLUMNS: usize = 100;
const CONSUMERS: usize = 20;
const TIMEOUT: Duration = Duration::from_secs(30);

fn path(column: usize) -> ObjectPath {
    ObjectPath::new(&format!("Bench/Column{column}/X")).unwrap()
}

fn cache(objects: usize) -> Cache {
    let source = MemorySource::new();
    let at = Timestamp::from_millis;
    for column in 0..objects {
        let mut id = [1; 16];
        id[..8].copy_from_slice(&(column as u64).to_be_bytes());
        let info = ObjectInfo {
            path: path(column),
            id: ObjectId::from_bytes(id),
            validity: ValidityInterval::new(at(0), at(1_000_000)).unwrap(),
            created: at(1),
            size_bytes: None,
            md5: None,
            metadata: Default::default(),
        };
        source.put(info, vec![column as u8; 1_000]);
    }
    let memory =
        PoolOptions { memory_bytes: 64 << 20, segment_bytes: 64 << 20, ..PoolOptions::default() };
    Cache::builder().source(Arc::new(source)).memory(memory).build().unwrap()
}

fn register(objects: usize, consumers: &[String]) -> Register {
    let column =
        |n| ColumnRequest { name: format!("c{n}"), path: path(n), metadata: Default::default() };
    let columns = Columns::Own((0..objects).map(column).collect());
    Register { columns, consumers: consumers.to_vec() }
}

fn times() -> Timestamps {
    Timestamps::new(vec![5], None)
}

async fn connect(socket: PathBuf) -> Channel {
    Endpoint::from_static("http://localhost")
        .connect_with_connector(tower::service_fn(move |_: Uri| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        }))
        .await
        .unwrap()
}

/// One open exchange: what goes out, and what comes back.
struct Open {
    out: mpsc::Sender<FlightData>,
    back: Streaming<FlightData>,
}

impl Open {
    async fn new(channel: Channel, first: Vec<FlightData>) -> Self {
        let (out, sent) = mpsc::channel(64);
        for message in first {
            out.send(message).await.unwrap();
        }
        let mut client = FlightServiceClient::new(channel);
        let back = client.do_exchange(ReceiverStream::new(sent)).await.unwrap().into_inner();
        Self { out, back }
    }

    /// Sends the timestamps of a timeframe, waits for its table (the message with the metadata),
    /// and says that it is consumed.
    async fn turn(&mut self, timeframe: u64, batch: &FlightData) -> usize {
        let about = format!(r#"{{"timeframe": {timeframe}}}"#);
        let message = FlightData { app_metadata: about.into(), ..batch.clone() };
        self.out.send(message).await.unwrap();
        let mut bytes = 0;
        loop {
            let message = self.back.message().await.unwrap().unwrap();
            bytes += message.data_body.len();
            if !message.app_metadata.is_empty() {
                break;
            }
        }
        let about = format!(r#"{{"consumed": [{timeframe}]}}"#);
        let message = FlightData { app_metadata: about.into(), ..FlightData::default() };
        self.out.send(message).await.unwrap();
        bytes
    }
}

/// The timestamps of one timeframe as messages: schema and batch.
fn timestamps() -> (FlightData, FlightData) {
    use arrow_array::{ArrayRef, Int64Array, RecordBatch};
    let at: ArrayRef = Arc::new(Int64Array::from(vec![5]));
    let batch = RecordBatch::try_from_iter([("timestamp", at)]).unwrap();
    let (mut writer, schema) = MessageWriter::begin(&batch.schema());
    let batch = writer.write(&batch).unwrap().pop().unwrap();
    let data = |message: iovcache::table::Message| FlightData {
        data_header: message.header,
        data_body: message.body,
        ..FlightData::default()
    };
    (data(schema), data(batch))
}

/// A server that answers each message that has a body with one that was made beforehand.
#[derive(Clone)]
struct Bare(FlightData);

type Answers = Pin<Box<dyn Stream<Item = Result<FlightData, Status>> + Send>>;

impl tonic::server::StreamingService<FlightData> for Bare {
    type Response = FlightData;
    type ResponseStream = Answers;
    type Future = std::future::Ready<Result<tonic::Response<Answers>, Status>>;

    fn call(&mut self, request: tonic::Request<Streaming<FlightData>>) -> Self::Future {
        let answer = self.0.clone();
        let asked = request.into_inner().filter(|message| {
            let is_batch = message.as_ref().is_ok_and(|message| !message.data_body.is_empty());
            std::future::ready(is_batch)
        });
        let answers: Answers = Box::pin(asked.map(move |_| Ok(answer.clone())));
        std::future::ready(Ok(tonic::Response::new(answers)))
    }
}

impl tower::Service<http_body_util_request::Request> for Bare {
    type Response = http_body_util_request::Response;
    type Error = std::convert::Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(
        &mut self,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), Self::Error>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http_body_util_request::Request) -> Self::Future {
        let service = self.clone();
        Box::pin(async move {
            let codec = ProstCodec::<FlightData, FlightData>::default();
            Ok(tonic::server::Grpc::new(codec).streaming(service, request).await)
        })
    }
}

/// The types of a bare gRPC call, as tonic's router has them.
mod http_body_util_request {
    pub(crate) type Request = tonic::codegen::http::Request<tonic::body::Body>;
    pub(crate) type Response = tonic::codegen::http::Response<tonic::body::Body>;
}

impl tonic::server::NamedService for Bare {
    const NAME: &'static str = "arrow.flight.protocol.FlightService";
}

fn names() -> Vec<String> {
    (0..CONSUMERS).map(|n| format!("consumer{n}")).collect()
}

async fn all(open: &mut [Open], timeframe: u64, batch: &FlightData) -> usize {
    let turns = open.iter_mut().map(|one| one.turn(timeframe, batch));
    futures::future::join_all(turns).await.into_iter().sum()
}

fn delivered(criterion: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (schema, batch) = timestamps();
    let (cache, mut ours, mut bare, bytes) = runtime.block_on(async {
        let cache = cache(COLUMNS);
        let sockets = folder.path().join("sockets");
        let options =
            ListenOptions { socket_folder: Some(sockets.clone()), ..ListenOptions::default() };
        let listeners = Listeners::bind(&options).await.unwrap();
        let (forever, options) = (std::future::pending(), ServeOptions::default());
        tokio::spawn(iovcache::server::run(listeners, cache.clone(), options, forever, || ()));
        let columns: Vec<String> =
            (0..COLUMNS).map(|n| format!(r#""c{n}": "{}""#, path(n))).collect();
        let request = format!(r#"{{"columns": {{{}}}}}"#, columns.join(", "));
        let descriptor = FlightDescriptor::new_cmd(request);
        let first = FlightData { flight_descriptor: Some(descriptor), ..schema.clone() };
        let mut ours = Vec::new();
        for _ in 0..CONSUMERS {
            let channel = connect(sockets.join("flight.sock")).await;
            ours.push(Open::new(channel, vec![first.clone()]).await);
        }
        // The first table brings the schema too; what one after it takes is what is compared.
        all(&mut ours, 0, &batch).await;
        let bytes = all(&mut ours, 1, &batch).await / CONSUMERS;
        let answer = FlightData {
            data_header: Bytes::from(vec![0; bytes / 4]),
            data_body: Bytes::from(vec![0; bytes]),
            app_metadata: "{}".into(),
            ..FlightData::default()
        };
        let path = folder.path().join("bare.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let router = tonic::transport::Server::builder().add_service(Bare(answer));
        tokio::spawn(router.serve_with_incoming(UnixListenerStream::new(listener)));
        let mut bare = Vec::new();
        for _ in 0..CONSUMERS {
            bare.push(Open::new(connect(path.clone()).await, vec![first.clone()]).await);
        }
        (cache, ours, bare, bytes)
    });
    let mut group = criterion.benchmark_group(format!(
        "a timeframe of {COLUMNS} columns x 1 timestamp to {CONSUMERS} exchanges, {bytes} bytes each"
    ));
    group.sample_size(30);
    group.bench_function("floor: bare tonic exchange of the same bytes", |bench| {
        bench.iter(|| runtime.block_on(all(&mut bare, 1, &batch)));
    });
    let register = register(COLUMNS, &names());
    let mut timeframe = 10;
    group.bench_function("registered, delivered, consumed", |bench| {
        bench.iter(|| {
            timeframe += 1;
            runtime.block_on(async {
                cache.register(timeframe, times(), &register, Some(TIMEOUT)).await.unwrap();
                all(&mut ours, timeframe, &batch).await;
                cache.drop_timeframe(timeframe).unwrap();
            });
        });
    });
    group.finish();
}

fn in_flight(criterion: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let mut group =
        criterion.benchmark_group("register, get and consume one of 100 columns, others in flight");
    group.sample_size(30);
    for others in [10, 1_000] {
        let cache = runtime.block_on(async { cache(COLUMNS) });
        let register = register(COLUMNS, &["bench".to_owned()]);
        runtime.block_on(async {
            for id in 0..others {
                cache.register(id, times(), &register, Some(TIMEOUT)).await.unwrap();
            }
        });
        let mut id = 10_000;
        group.bench_function(format!("{others} in flight"), |bench| {
            bench.iter(|| {
                id += 1;
                runtime.block_on(turn(&cache, &register, id));
            });
        });
    }
    group.finish();
}

async fn get(cache: &Cache, id: u64) {
    let request = format!(r#"{{"timeframe": {id}, "consumer": "bench"}}"#);
    let request = Request::parse(request.as_bytes()).unwrap();
    cache.answer(&request, &Asker::default()).await.unwrap();
}

fn done(cache: &Cache, id: u64) {
    let consumed = Consumed::One { timeframe: id, consumer: "bench".to_owned() };
    assert_eq!(cache.consumed(&consumed).unwrap().dropped, [id]);
}

async fn turn(cache: &Cache, register: &Register, id: u64) {
    cache.register(id, times(), register, Some(TIMEOUT)).await.unwrap();
    get(cache, id).await;
    done(cache, id);
}

fn letting_go(criterion: &mut Criterion) {
    const OBJECTS: usize = 1_000;
    let runtime = Runtime::new().unwrap();
    let cache = runtime.block_on(async { cache(OBJECTS) });
    let register = register(OBJECTS, &["bench".to_owned()]);
    let mut group = criterion.benchmark_group("release of a timeframe with 1,000 objects");
    group.sample_size(30);
    for (name, kept) in [("its objects are needed by another", true), ("the last one", false)] {
        if kept {
            runtime.block_on(async {
                cache.register(1, times(), &register, Some(TIMEOUT)).await.unwrap();
                get(&cache, 1).await;
            });
        }
        let mut id = 10;
        group.bench_function(name, |bench| {
            bench.iter_custom(|rounds| {
                let mut took = Duration::ZERO;
                for _ in 0..rounds {
                    id += 1;
                    runtime.block_on(async {
                        cache.register(id, times(), &register, Some(TIMEOUT)).await.unwrap();
                        get(&cache, id).await;
                    });
                    let began = Instant::now();
                    done(&cache, id);
                    took += began.elapsed();
                }
                took
            });
        });
        if kept {
            done(&cache, 1);
        }
    }
    group.finish();
}

criterion_group!(benches, delivered, in_flight, letting_go);
criterion_main!(benches);
