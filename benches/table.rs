//! Tables beside their floors: the join, the encoding, and whole requests over a Unix socket.
//!
//! `cargo bench --bench table`; the results are in `benches/README.md`.

mod beside;
#[path = "../tests/in_process/mod.rs"]
mod in_process;

use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::{FlightData, Ticket};
use beside::bare::Bare;
use beside::exchange::{Open, bytes_of, messages_of};
use beside::{beside, beside_timed, connect, timed, wanted};
use criterion::{Criterion, Throughput};
use futures::stream::TryStreamExt as _;
use in_process::steady::Steady;
use iovcache::cache::Caller;
use iovcache::client::{Client, TableRequest};
use iovcache::index::{Timeline, Timestamps, join};
use iovcache::shm::PoolOptions;
use iovcache::source::MemorySource;
use iovcache::table::{ColumnRequest, Columns, Prefetch, Register, Request};
use iovcache::{Cache, Clock, ObjectId, ObjectInfo, ObjectPath, Timestamp, ValidityInterval};
use tokio::runtime::Runtime;
use tonic::transport::Channel;

const ROWS: i64 = 1_000_000;
const COLUMNS: usize = 50;
/// Versions per column.
const VERSIONS: i64 = 100;
/// Cells of one table, each a different object.
const CELLS: i64 = 10_000;

fn version(path: &str, n: i64, from: i64, until: i64) -> ObjectInfo {
    let [from, until, created] = [from, until, n].map(Timestamp::from_millis);
    let mut id = [0; 16];
    id[..8].copy_from_slice(&(path.len() as u64 * 1_000_000 + n as u64).to_be_bytes());
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
        // Their order is determined once for all columns.
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

async fn get(client: &mut FlightServiceClient<Channel>, ticket: &str) -> Vec<FlightData> {
    let ticket = Ticket::new(ticket.to_owned());
    client.do_get(ticket).await.unwrap().into_inner().try_collect().await.unwrap()
}

fn path(column: usize) -> String {
    format!("Bench/Column{column}/X")
}

/// A path with a different object in each millisecond.
const EACH: &str = "Bench/Each/X";

/// A service over the objects that the tables need, and its socket.
async fn serve(folder: &Path) -> (Cache, PathBuf) {
    let source = MemorySource::new();
    for column in 0..COLUMNS {
        let path = path(column);
        let length = ROWS / VERSIONS;
        for n in 0..VERSIONS {
            source.put(version(&path, n, n * length, (n + 1) * length), vec![n as u8; 1_000]);
        }
    }
    for n in 0..CELLS {
        source.put(version(EACH, n, n, n + 1), vec![n as u8; 256]);
    }
    let memory =
        PoolOptions { memory_bytes: 64 << 20, segment_bytes: 64 << 20, ..PoolOptions::default() };
    let cache = Cache::builder().source(Arc::new(Steady(source))).memory(memory).build().unwrap();
    let socket = in_process::serve(cache.clone(), folder).await;
    (cache, socket)
}

fn columns(count: usize) -> Vec<ColumnRequest> {
    (0..count)
        .map(|column| {
            ColumnRequest::new(format!("c{column}"), ObjectPath::new(&path(column)).unwrap())
        })
        .collect()
}

/// `"columns": {…}` of a request.
fn list(count: usize) -> String {
    let one = |one: &ColumnRequest| format!("\"{}\":\"{}\"", one.name, one.path);
    let all: Vec<String> = columns(count).iter().map(one).collect();
    format!("\"columns\":{{{}}}", all.join(","))
}

/// The server's runtime, and the clients' runtime, which has one thread.
struct Sides {
    server: Runtime,
    client: Runtime,
    folder: tempfile::TempDir,
    cache: Cache,
    socket: PathBuf,
}

impl Sides {
    fn new() -> Self {
        let server = Runtime::new().unwrap();
        let client = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let (cache, socket) = server.block_on(serve(folder.path()));
        Self { server, client, folder, cache, socket }
    }

    fn register(&self, timeframe: u64, columns: Vec<ColumnRequest>, timestamps: Timestamps) {
        let consumers = vec!["bench".to_owned()];
        let register = Register { columns: Columns::Own(columns), consumers };
        let registered = self.cache.register(timeframe, timestamps, &register, None);
        self.server.block_on(registered).unwrap();
    }

    fn connect(&self) -> FlightServiceClient<Channel> {
        self.client.block_on(connect(self.socket.clone()))
    }

    /// A bare server that answers with `messages`, and a client connected to it.
    fn bare(&self, messages: Vec<FlightData>) -> FlightServiceClient<Channel> {
        let folder = self.folder.path();
        let socket = self.server.block_on(async { Bare::serve(folder, messages) });
        self.client.block_on(connect(socket))
    }

    /// A do_get beside a bare one of the same bytes. The objects held are released in between.
    fn get_beside(&self, name: &str, aim: f64, ticket: &str) {
        if !wanted(name) {
            return;
        }
        let mut ours = self.connect();
        let messages = self.client.block_on(get(&mut ours, ticket));
        let bytes = bytes_of(&messages);
        let mut bare = self.bare(messages);
        beside_timed(
            &format!("{name}, {bytes} bytes"),
            aim,
            || timed(&mut || drop(self.client.block_on(get(&mut bare, "")))),
            || {
                let took = timed(&mut || drop(self.client.block_on(get(&mut ours, ticket))));
                self.cache.release_ticket(ticket.as_bytes());
                took
            },
        );
    }
}

/// A table on an open exchange beside a bare exchange with the same bytes in both directions.
fn exchange_beside(sides: &Sides, name: &str, aim: f64, request: &str, timestamps: Vec<i64>) {
    if !wanted(name) {
        return;
    }
    let (schema, batch) = messages_of(timestamps);
    let open = |client| sides.client.block_on(Open::new(client, schema.clone(), request));
    let mut ours = open(sides.connect());
    // The first table brings the schema too; the comparison uses the tables after it.
    sides.client.block_on(ours.turn(1, &batch));
    let answer = sides.client.block_on(ours.turn(1, &batch));
    let bytes = bytes_of(&answer);
    let mut bare = open(sides.bare(answer));
    let turn = async |open: &mut Open| {
        open.turn(1, &batch).await;
        open.consumed(1).await;
    };
    beside(
        &format!("{name}, {} bytes there and {bytes} back", batch.data_body.len()),
        aim,
        || sides.client.block_on(turn(&mut bare)),
        || sides.client.block_on(turn(&mut ours)),
    );
}

fn over_the_socket() {
    let sides = Sides::new();
    let all: Vec<i64> = (0..ROWS).collect();
    sides.register(1, columns(COLUMNS), Timestamps::new(all.clone(), None));
    sides.register(2, columns(COLUMNS), Timestamps::new(vec![1], None));
    sides.register(3, columns(1), Timestamps::new(vec![1], None));
    let of = |id: u64| format!(r#"{{"timeframe":{id},"consumer":"bench","encoding":"run_end"}}"#);
    sides.get_beside("do_get of a timeframe, 1 row x 1 column", 1.2, &of(3));
    sides.get_beside("do_get of a timeframe, 1 row x 50 columns", 1.2, &of(2));
    sides.get_beside("do_get of a timeframe, 1,000,000 rows x 50 columns", 1.2, &of(1));
    let anew = |count| format!("{{{},\"timestamps\":[1],\"encoding\":\"run_end\"}}", list(count));
    sides.get_beside("do_get anew, 1 row x 1 column", 1.2, &anew(1));
    sides.get_beside("do_get anew, 1 row x 50 columns", 1.2, &anew(50));
    let request = format!("{{{},\"encoding\":\"run_end\"}}", list(1));
    // A registered timeframe would be answered from its registration.
    sides.cache.drop_timeframe(1).unwrap();
    exchange_beside(&sides, "ping-pong on an exchange, 1 row x 1 column", 1.2, &request, vec![1]);
    let request = format!("{{{},\"encoding\":\"run_end\"}}", list(COLUMNS));
    exchange_beside(&sides, "exchange, 1,000,000 rows x 50 columns", 1.2, &request, all.clone());
    local_join(&sides, all);
    distinct_cells(&sides);
    many_clients(&sides);
}

/// Several clients, each with its own connection and one request at a time.
fn many_clients(sides: &Sides) {
    const CLIENTS: usize = 64;
    let name = "64 clients, do_get of 1 row x 50 columns";
    if !wanted(name) {
        return;
    }
    let ticket = r#"{"timeframe":2,"consumer":"bench","encoding":"run_end"}"#;
    let mut one = sides.connect();
    let messages = sides.client.block_on(get(&mut one, ticket));
    let folder = sides.folder.path();
    let socket = sides.server.block_on(async { Bare::serve(folder, messages) });
    let all = |socket: &PathBuf| {
        let connected = (0..CLIENTS).map(|_| connect(socket.clone()));
        sides.client.block_on(futures::future::join_all(connected))
    };
    let (mut bare, mut ours) = (all(&socket), all(&sides.socket));
    let round = |clients: &mut Vec<FlightServiceClient<Channel>>, ticket: &str| {
        let each = clients.iter_mut().map(|client| get(client, ticket));
        drop(sides.client.block_on(futures::future::join_all(each)));
    };
    // 0.9 of the requests per second is 1.11 of the time.
    beside(
        name,
        1.11,
        || round(&mut bare, ""),
        || {
            round(&mut ours, ticket);
            sides.cache.release_ticket(ticket.as_bytes());
        },
    );
}

/// Timestamps held by the client, joined there with the intervals view.
fn local_join(sides: &Sides, timestamps: Vec<i64>) {
    let name = "timestamps that the client holds, 1,000,000 rows x 50 columns";
    if !wanted(name) {
        return;
    }
    let url = format!("grpc+unix://{}", sides.socket.display());
    let client = sides.client.block_on(Client::connect(&url)).unwrap();
    let request = columns(COLUMNS)
        .iter()
        .fold(TableRequest::new(), |request, one| request.column(&*one.name, one.path.to_string()));
    let request = request.timestamps(timestamps);
    // Size of the answer with a row per timestamp.
    let bytes = 240_000;
    let body = vec![7; bytes].into();
    let mut bare = sides.bare(vec![FlightData { data_body: body, ..Default::default() }]);
    beside(
        &format!("{name}, beside a do_get of {bytes} bytes"),
        1.5,
        || drop(sides.client.block_on(get(&mut bare, ""))),
        || {
            let table = sides.client.block_on(client.table(request.clone())).unwrap();
            assert_eq!(black_box(table.rows()), ROWS as usize);
        },
    );
}

/// Each cell is a different object: requested, answered, and resolved.
fn distinct_cells(sides: &Sides) {
    let name = "10,000 distinct cells";
    if !wanted(name) {
        return;
    }
    let url = format!("grpc+unix://{}", sides.socket.display());
    let client = sides.client.block_on(Client::connect(&url)).unwrap();
    let one = TableRequest::new().column("each", EACH).timestamps(0..CELLS);
    // A hundred columns of a hundred rows would need more distinct objects than one path has: so
    // columns in which each row is another version.
    let versions = VERSIONS * (CELLS / VERSIONS).min(COLUMNS as i64);
    let many = columns(COLUMNS)
        .iter()
        .fold(TableRequest::new(), |request, one| request.column(&*one.name, one.path.to_string()))
        .timestamps((0..VERSIONS).map(|n| n * (ROWS / VERSIONS)));
    for (shape, request, cells) in [
        ("1 column x 10,000 rows", one, CELLS),
        ("50 columns x 100 rows (5,000 cells)", many, versions),
    ] {
        let batches = sides.client.block_on(client.batches(&request)).unwrap();
        let bytes = batches.iter().map(arrow_array::RecordBatch::get_array_memory_size).sum();
        let body = vec![7; bytes].into();
        let mut bare = sides.bare(vec![FlightData { data_body: body, ..FlightData::default() }]);
        let measured = beside(
            &format!("{name} asked for, answered and resolved: {shape}, beside {bytes} bytes"),
            f64::INFINITY,
            || drop(sides.client.block_on(get(&mut bare, ""))),
            || {
                let table = sides.client.block_on(client.table(request.clone())).unwrap();
                let mut sum = 0;
                for name in table.columns() {
                    for run in table.column(name).unwrap().runs() {
                        sum += usize::from(run.unwrap().1.unwrap()[0]);
                    }
                }
                black_box(sum);
            },
        );
        if let Some(measured) = measured {
            let per_key = measured.ours.as_secs_f64() / cells as f64 * 1e6;
            println!("    {per_key:.3} µs per key, aim 0.3");
        }
    }
}

/// Requests for single random timestamps, all resident, for paths with few and many versions.
fn many_versions() {
    const RESIDENT: i64 = 1_000;
    let name = "an index with 1,000,000 versions";
    if !wanted(name) {
        return;
    }
    let runtime = Runtime::new().unwrap();
    let with = |versions: i64| {
        let all = (0..versions).map(|n| Arc::new(version("A/B", n, n * 10, (n + 1) * 10)));
        let all: Vec<Arc<ObjectInfo>> = all.collect();
        let timeline =
            Timeline::unknown().learn(ValidityInterval::ALL, &all, Clock::system().now());
        let source = MemorySource::new();
        for info in all {
            source.put(ObjectInfo::clone(&info), vec![1]);
        }
        let cache = runtime
            .block_on(async { Cache::builder().source(Arc::new(Steady(source))).build().unwrap() });
        let step = versions / RESIDENT * 10;
        (timeline, cache, step)
    };
    let (few, many) = (with(RESIDENT), with(1_000_000));
    let request = |at: i64| {
        let json = format!("{{\"columns\":{{\"a\":\"A/B\"}},\"timestamps\":[{at}]}}");
        Request::parse(json.as_bytes()).unwrap()
    };
    let mut state = 1_u64;
    let mut random = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) as i64 % RESIDENT
    };
    let order: Vec<i64> = (0..4_096).map(|_| random()).collect();
    let requests =
        |step: i64| -> Vec<Request> { order.iter().map(|n| request(n * step + 5)).collect() };
    let (of_few, of_many) = (requests(few.2), requests(many.2));
    let answer_all = |cache: &Cache, requests: &[Request]| {
        runtime.block_on(async {
            for request in requests {
                let answer = cache.answer(request, &Caller::default()).await.unwrap();
                cache.release(answer.lease());
            }
        });
    };
    beside(
        &format!("{name} beside one with 1,000: answers"),
        2.0,
        || answer_all(&few.1, &of_few[..64]),
        || answer_all(&many.1, &of_many[..64]),
    );
    let look_up = |timeline: &Timeline, step: i64| {
        for n in &order {
            black_box(timeline.version_at(Timestamp::from_millis(n * step + 5)));
        }
    };
    beside(
        &format!("{name} beside one with 1,000: look-ups alone"),
        2.0,
        || look_up(&few.0, few.2),
        || look_up(&many.0, many.2),
    );
}

/// Cost of one more object in the cache beyond its bytes and its header.
fn memory_per_object() {
    const OBJECTS: i64 = 100_000;
    let name = "memory per cached object";
    if !wanted(name) {
        return;
    }
    let runtime = Runtime::new().unwrap();
    let source = MemorySource::new();
    for n in 0..OBJECTS {
        source.put(version("A/B", n, n, n + 1), vec![1]);
    }
    let cache = runtime
        .block_on(async { Cache::builder().source(Arc::new(Steady(source))).build().unwrap() });
    let prefetch = |from: i64, until: i64| {
        let [from, until] = [from, until].map(Timestamp::from_millis);
        let path = ObjectPath::new("A/B").unwrap();
        let column = ColumnRequest::new("a", path);
        let range = ValidityInterval::new(from, until).unwrap();
        let prefetch = Prefetch { columns: Columns::Own(vec![column]), range };
        runtime.block_on(cache.prefetch(&prefetch, &Caller::default())).unwrap();
    };
    let private = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() * 1024.0
    };
    // The first request loads the index; the ones after it add objects alone.
    prefetch(0, OBJECTS / 10);
    let before = private();
    for part in 1..10 {
        prefetch(part * OBJECTS / 10, (part + 1) * OBJECTS / 10);
    }
    let per_object = (private() - before) / (OBJECTS as f64 * 0.9);
    println!("{name}\n    {per_object:.0} bytes beside its bytes and its header, aim 256");
}

fn main() {
    memory_per_object();
    over_the_socket();
    many_versions();
    if wanted("join") {
        let mut criterion = Criterion::default();
        joining(&mut criterion);
        criterion.final_summary();
    }
}
