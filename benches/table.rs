//! Tables beside their floors: the join, the encoding, and the whole way over a Unix socket.
//!
//! `cargo bench --bench table`; what came of it stands in `benches/README.md`.

use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;

use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::flight_service_server::{FlightService, FlightServiceServer};
use arrow_flight::{
    Action, ActionType, Criteria, Empty, FlightData, FlightDescriptor, FlightInfo,
    HandshakeRequest, HandshakeResponse, PollInfo, PutResult, SchemaResult, Ticket,
};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use futures::stream::{self, Stream, TryStreamExt as _};
use hyper_util::rt::TokioIo;
use iovcache::index::{Timeline, Timestamps, join};
use iovcache::server::{ListenOptions, Listeners, ServeOptions};
use iovcache::shm::PoolOptions;
use iovcache::source::MemorySource;
use iovcache::table::{ColumnRequest, Columns, Register};
use iovcache::{Cache, Clock, ObjectId, ObjectInfo, ObjectPath, Timestamp, ValidityInterval};
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::Runtime;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Response, Status, Streaming};

const ROWS: i64 = 1_000_000;
const COLUMNS: usize = 50;

fn version(path: &str, n: i64, from: i64, until: i64) -> ObjectInfo {
    let [from, until, created] = [from, until, n].map(Timestamp::from_millis);
    let mut id = [0; 16];
    id[..8].copy_from_slice(&(path.len() as u64 * 1_000 + n as u64).to_be_bytes());
    id[8..].copy_from_slice(&path.bytes().fold(7_u64, |h, b| h * 31 + u64::from(b)).to_be_bytes());
    ObjectInfo {
        path: ObjectPath::new(path).unwrap(),
        id: ObjectId::from_bytes(id),
        validity: ValidityInterval::new(from, until).unwrap(),
        created,
        size_bytes: None,
        md5: None,
        metadata: Default::default(),
    }
}

fn joining(criterion: &mut Criterion) {
    let versions: Vec<Arc<ObjectInfo>> =
        (0..100).map(|n| Arc::new(version("A/B", n, n * 10_000, (n + 1) * 10_000))).collect();
    let timeline =
        Timeline::unknown().learn(ValidityInterval::ALL, &versions, Clock::system().now());
    let sorted: Vec<i64> = (0..ROWS).collect();
    let mut nearly = sorted.clone();
    nearly.chunks_exact_mut(16).for_each(|chunk| chunk.swap(2, 13));
    let mut random = sorted.clone();
    let mut state = 1_u64;
    for n in (1..random.len()).rev() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        random.swap(n, (state >> 33) as usize % (n + 1));
    }
    let mut group = criterion.benchmark_group("join 1,000,000 rows, one column");
    group.throughput(Throughput::Elements(ROWS as u64)).sample_size(20);
    for (name, values) in [("sorted", sorted), ("nearly sorted", nearly), ("random", random)] {
        let timestamps = Timestamps::new(values.clone(), None);
        // Their order is found out once for all columns.
        join(&timeline, &timestamps);
        group.bench_function(name, |bench| {
            bench.iter(|| join(black_box(&timeline), black_box(&timestamps)));
        });
        if name == "sorted" {
            group.bench_function("floor: reading every timestamp once", |bench| {
                bench.iter(|| black_box(&values).iter().fold(0_i64, |sum, at| sum ^ at));
            });
        }
    }
    group.finish();
}

/// A service that answers any ticket with messages that were made beforehand.
struct Prepared(Arc<Vec<FlightData>>);

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl FlightService for Prepared {
    type HandshakeStream = Answers<HandshakeResponse>;
    type ListFlightsStream = Answers<FlightInfo>;
    type DoGetStream = Answers<FlightData>;
    type DoPutStream = Answers<PutResult>;
    type DoExchangeStream = Answers<FlightData>;
    type DoActionStream = Answers<arrow_flight::Result>;
    type ListActionsStream = Answers<ActionType>;

    async fn do_get(
        &self,
        _request: Request<Ticket>,
    ) -> Result<Response<Self::DoGetStream>, Status> {
        let messages: Vec<_> = self.0.iter().cloned().map(Ok).collect();
        Ok(Response::new(Box::pin(stream::iter(messages))))
    }

    async fn handshake(
        &self,
        _request: Request<Streaming<HandshakeRequest>>,
    ) -> Result<Response<Self::HandshakeStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn list_flights(
        &self,
        _request: Request<Criteria>,
    ) -> Result<Response<Self::ListFlightsStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn get_flight_info(
        &self,
        _request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn poll_flight_info(
        &self,
        _request: Request<FlightDescriptor>,
    ) -> Result<Response<PollInfo>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn get_schema(
        &self,
        _request: Request<FlightDescriptor>,
    ) -> Result<Response<SchemaResult>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn do_put(
        &self,
        _request: Request<Streaming<FlightData>>,
    ) -> Result<Response<Self::DoPutStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn do_exchange(
        &self,
        _request: Request<Streaming<FlightData>>,
    ) -> Result<Response<Self::DoExchangeStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn do_action(
        &self,
        _request: Request<Action>,
    ) -> Result<Response<Self::DoActionStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn list_actions(
        &self,
        _request: Request<Empty>,
    ) -> Result<Response<Self::ListActionsStream>, Status> {
        Err(Status::unimplemented(""))
    }
}

async fn connect(socket: PathBuf) -> FlightServiceClient<Channel> {
    let channel = Endpoint::from_static("http://localhost")
        .connect_with_connector(tower::service_fn(move |_: Uri| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        }))
        .await
        .unwrap();
    FlightServiceClient::new(channel).max_decoding_message_size(usize::MAX)
}

async fn get(client: &mut FlightServiceClient<Channel>, ticket: &str) -> Vec<FlightData> {
    let ticket = Ticket::new(ticket.to_owned());
    client.do_get(ticket).await.unwrap().into_inner().try_collect().await.unwrap()
}

/// A service over objects that a table needs, and its socket.
async fn serve(folder: &Path) -> (Cache, PathBuf) {
    let source = MemorySource::new();
    for column in 0..COLUMNS {
        let path = format!("Bench/Column{column}/X");
        for n in 0..5 {
            source.put(version(&path, n, n * ROWS / 5, (n + 1) * ROWS / 5), vec![n as u8; 1_000]);
        }
    }
    let memory =
        PoolOptions { memory_bytes: 64 << 20, segment_bytes: 64 << 20, ..PoolOptions::default() };
    let cache = Cache::builder().source(Arc::new(source)).memory(memory).build().unwrap();
    let sockets = folder.join("sockets");
    let options =
        ListenOptions { socket_folder: Some(sockets.clone()), ..ListenOptions::default() };
    let listeners = Listeners::bind(&options).await.unwrap();
    let forever = std::future::pending();
    let run =
        iovcache::server::run(listeners, cache.clone(), ServeOptions::default(), forever, || ());
    tokio::spawn(run);
    (cache, sockets.join("flight.sock"))
}

fn columns() -> Vec<ColumnRequest> {
    (0..COLUMNS)
        .map(|column| ColumnRequest {
            name: format!("c{column}"),
            path: ObjectPath::new(&format!("Bench/Column{column}/X")).unwrap(),
            metadata: Default::default(),
        })
        .collect()
}

fn over_the_socket(criterion: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (_cache, mut service, mut prepared, bytes, small) = runtime.block_on(async {
        let (cache, socket) = serve(folder.path()).await;
        let register =
            Register { columns: Columns::Own(columns()), consumers: vec!["bench".to_owned()] };
        let timestamps = Timestamps::new((0..ROWS).collect::<Vec<i64>>(), None);
        cache.register(1, timestamps, &register, None).await.unwrap();
        let small = Timestamps::new(vec![1], None);
        cache.register(2, small, &register, None).await.unwrap();
        let mut service = connect(socket).await;
        let messages = get(&mut service, LARGE).await;
        let bytes: usize =
            messages.iter().map(|one| one.data_header.len() + one.data_body.len()).sum();
        let small = get(&mut service, SMALL).await;
        let bare = |name: &str, messages: Vec<FlightData>| {
            let path = folder.path().join(name);
            let listener = UnixListener::bind(&path).unwrap();
            let server = FlightServiceServer::new(Prepared(Arc::new(messages)));
            let router = tonic::transport::Server::builder().add_service(server);
            tokio::spawn(router.serve_with_incoming(UnixListenerStream::new(listener)));
            connect(path)
        };
        let (large, small) = (bare("large", messages).await, bare("small", small).await);
        (cache, service, large, bytes, small)
    });
    let mut small_prepared = small;
    let mut group = criterion.benchmark_group(format!(
        "a cached run-end table of 1,000,000 rows x 50 columns over a Unix socket, {bytes} bytes"
    ));
    group.sample_size(60);
    group.bench_function("floor: tonic do_get of the same bytes, prepared", |bench| {
        bench.iter(|| runtime.block_on(get(&mut prepared, "")));
    });
    group.bench_function("a timeframe's table", |bench| {
        bench.iter(|| runtime.block_on(get(&mut service, LARGE)));
    });
    group.bench_function("the same for a range, joined anew", |bench| {
        let names = columns();
        let list: Vec<String> =
            names.iter().map(|one| format!("\"{}\":\"{}\"", one.name, one.path)).collect();
        let range = format!("{{\"from\":0,\"until\":{ROWS},\"step\":1}}");
        let list = list.join(",");
        let request = format!(
            "{{\"columns\":{{{list}}},\"range\":{range},\"encoding\":\"run_end\",\"wait_ms\":50000}}"
        );
        bench.iter(|| runtime.block_on(get(&mut service, &request)));
    });
    group.finish();
    let mut group = criterion.benchmark_group("a table of one row x 50 columns");
    group.sample_size(60);
    group.bench_function("floor: tonic do_get of the same bytes, prepared", |bench| {
        bench.iter(|| runtime.block_on(get(&mut small_prepared, "")));
    });
    group.bench_function("a timeframe's table", |bench| {
        bench.iter(|| runtime.block_on(get(&mut service, SMALL)));
    });
    group.finish();
}

const LARGE: &str = r#"{"timeframe":1,"consumer":"bench","encoding":"run_end"}"#;
const SMALL: &str = r#"{"timeframe":2,"consumer":"bench","encoding":"run_end"}"#;

criterion_group!(benches, joining, over_the_socket);
criterion_main!(benches);
