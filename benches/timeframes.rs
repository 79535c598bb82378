//! Timeframes in flight: one registered and delivered to 20 open exchanges beside a bare exchange
//! of the same bytes, one taken from shared memory, ready or awaited, the cost of one with many others
//! in flight, and the release of one.
//!
//! `cargo bench --bench timeframes`.

mod beside;
#[path = "../tests/in_process/mod.rs"]
mod in_process;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow_flight::FlightData;
use beside::bare::Bare;
use beside::exchange::{Open, bytes_of, messages_of};
use beside::{beside, connect, wanted};
use in_process::gated::{Gate, Gated};
use in_process::steady::Steady;
use in_process::{serve, url_of};
use iovcache::cache::Caller;
use iovcache::client::{Client, ClientOptions};
use iovcache::index::Timestamps;
use iovcache::shm::PoolOptions;
use iovcache::source::{MemorySource, Source};
use iovcache::table::{ColumnRequest, Columns, Consumed, Register, Request};
use iovcache::{Cache, ObjectId, ObjectInfo, ObjectPath, Timestamp, ValidityInterval};
use tokio::runtime::Runtime;

const COLUMNS: usize = 100;
const CONSUMERS: usize = 20;
const TIMEOUT: Duration = Duration::from_secs(30);

fn path(column: usize) -> ObjectPath {
    ObjectPath::new(&format!("Bench/Column{column}/X")).unwrap()
}

fn objects(count: usize) -> MemorySource {
    let source = MemorySource::new();
    (0..count).for_each(|column| put(&source, column, (0, 1_000_000)));
    source
}

/// A version of the object of a column, valid between these times in ms.
fn put(source: &MemorySource, column: usize, (from, until): (i64, i64)) {
    let at = Timestamp::from_millis;
    let mut id = [1; 16];
    id[..8].copy_from_slice(&(column as u64).to_be_bytes());
    id[8..].copy_from_slice(&from.to_be_bytes());
    let info = ObjectInfo {
        path: path(column),
        id: ObjectId::from_bytes(id),
        validity: ValidityInterval::new(at(from), at(until)).unwrap(),
        created: at(1),
        size_bytes: None,
        md5: None,
        metadata: Default::default(),
    };
    source.put(info, vec![column as u8; 1_000]);
}

fn cache(count: usize) -> Cache {
    cache_over(Arc::new(Steady(objects(count))))
}

fn cache_over(source: Arc<dyn Source>) -> Cache {
    let memory =
        PoolOptions { memory_bytes: 64 << 20, segment_bytes: 64 << 20, ..PoolOptions::default() };
    Cache::builder().source(source).memory(memory).max_timeframes(2_000).build().unwrap()
}

fn register(objects: usize, consumers: &[String]) -> Register {
    let column = |n| ColumnRequest::new(format!("c{n}"), path(n));
    let columns = Columns::Own((0..objects).map(column).collect());
    Register { columns, consumers: consumers.to_vec() }
}

fn times() -> Timestamps {
    Timestamps::new(vec![5], None)
}

fn names() -> Vec<String> {
    (0..CONSUMERS).map(|n| format!("consumer{n}")).collect()
}

async fn all(open: &mut [Open], timeframe: u64, batch: &FlightData) -> Vec<Vec<FlightData>> {
    let turns = open.iter_mut().map(async |one| {
        let answer = one.turn(timeframe, batch).await;
        one.consumed(timeframe).await;
        answer
    });
    futures::future::join_all(turns).await
}

fn delivered() {
    let name = "a timeframe of 100 columns x 1 timestamp";
    if !wanted(name) {
        return;
    }
    let server = Runtime::new().unwrap();
    let client = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (schema, batch) = messages_of(vec![5]);
    let (cache, socket) = server.block_on(async {
        let cache = cache(COLUMNS);
        let socket = serve(cache.clone(), folder.path()).await;
        (cache, socket)
    });
    let columns: Vec<String> = (0..COLUMNS).map(|n| format!(r#""c{n}": "{}""#, path(n))).collect();
    let register = register(COLUMNS, &names());
    for encoding in ["run_end", "dictionary"] {
        let columns = columns.join(", ");
        let request = format!(r#"{{"columns": {{{columns}}}, "encoding": "{encoding}"}}"#);
        let open = async |socket: &PathBuf| {
            let mut all = Vec::new();
            for _ in 0..CONSUMERS {
                let channel = connect(socket.clone()).await;
                all.push(Open::new(channel, schema.clone(), &request).await);
            }
            all
        };
        let mut ours = client.block_on(open(&socket));
        // The first table brings the schema too; the comparison uses the tables after it.
        client.block_on(all(&mut ours, 0, &batch));
        let answer = client.block_on(all(&mut ours, 1, &batch)).remove(0);
        let bytes = bytes_of(&answer);
        let bare = server.block_on(async { Bare::serve(folder.path(), answer) });
        let mut bare = client.block_on(open(&bare));
        let mut timeframe = 10;
        beside(
            &format!("{name}, {encoding}, to {CONSUMERS} exchanges, {bytes} bytes each"),
            1.3,
            || drop(client.block_on(all(&mut bare, 1, &batch))),
            || {
                timeframe += 1;
                let registered = cache.register(timeframe, times(), &register, Some(TIMEOUT));
                server.block_on(registered).unwrap();
                client.block_on(all(&mut ours, timeframe, &batch));
                cache.drop_timeframe(timeframe).unwrap();
            },
        );
    }
}

fn in_flight() {
    let name = "register, get and consume one of 100 columns";
    if !wanted(name) {
        return;
    }
    let runtime = Runtime::new().unwrap();
    let register = register(COLUMNS, &["bench".to_owned()]);
    let with = |others: u64| {
        runtime.block_on(async {
            let cache = cache(COLUMNS);
            for id in 0..others {
                cache.register(id, times(), &register, Some(TIMEOUT)).await.unwrap();
            }
            cache
        })
    };
    let (few, many) = (with(10), with(1_000));
    let (mut one, mut other) = (10_000, 10_000);
    beside(
        &format!("{name} with 1,000 in flight beside the same with 10"),
        1.1,
        || {
            one += 1;
            runtime.block_on(turn(&few, &register, one));
        },
        || {
            other += 1;
            runtime.block_on(turn(&many, &register, other));
        },
    );
}

async fn get(cache: &Cache, id: u64) {
    let request = format!(r#"{{"timeframe": {id}, "consumer": "bench"}}"#);
    let request = Request::parse(request.as_bytes()).unwrap();
    cache.answer(&request, &Caller::default()).await.unwrap();
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

fn releasing() {
    const OBJECTS: usize = 1_000;
    const ROUNDS: usize = 301;
    let name = "release of a timeframe with 1,000 objects";
    if !wanted(name) {
        return;
    }
    let runtime = Runtime::new().unwrap();
    // Within a runtime, as in a service.
    let _within = runtime.enter();
    let cache = runtime.block_on(async { cache(OBJECTS) });
    let register = register(OBJECTS, &["bench".to_owned()]);
    for (what, kept) in [("its objects are needed by another", true), ("the last one", false)] {
        if kept {
            runtime.block_on(async {
                cache.register(1, times(), &register, Some(TIMEOUT)).await.unwrap();
                get(&cache, 1).await;
            });
        }
        let mut took: Vec<Duration> = (10..10 + ROUNDS as u64)
            .map(|id| {
                runtime.block_on(async {
                    cache.register(id, times(), &register, Some(TIMEOUT)).await.unwrap();
                    get(&cache, id).await;
                });
                let began = Instant::now();
                done(&cache, id);
                began.elapsed()
            })
            .collect();
        took.sort_unstable();
        println!("{name}, {what}\n    {:?}, aim 50 µs", took[ROUNDS / 2]);
        if kept {
            done(&cache, 1);
        }
    }
}

/// A service with a gate before its objects, and attached consumers.
struct Local {
    server: Runtime,
    client: Runtime,
    cache: Cache,
    gate: Gate,
    clients: Vec<Client>,
    socket: PathBuf,
    folder: tempfile::TempDir,
}

/// Rounds of the wait for a timeframe; each loads another version of the last column.
const WAITS: usize = 101;
/// Versions of the last column between two rounds: the cache loads the next version ahead.
const STEP: i64 = 4;
/// Validity of a version of the last column.
const VERSION_MS: i64 = 10;

impl Local {
    fn new() -> Self {
        let server = Runtime::new().unwrap();
        let client = Runtime::new().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let objects = objects(COLUMNS - 1);
        for version in 0..=WAITS as i64 * STEP {
            let from = version * VERSION_MS;
            put(&objects, COLUMNS - 1, (from, from + VERSION_MS));
        }
        let (source, gate) = Gated::new(objects, true);
        let (cache, socket) = server.block_on(async {
            let cache = cache_over(Arc::new(source));
            let socket = serve(cache.clone(), folder.path()).await;
            (cache, socket)
        });
        let url = url_of(&socket);
        let register = register(COLUMNS, &names());
        server.block_on(cache.register(0, times(), &register, Some(TIMEOUT))).unwrap();
        let clients = names().into_iter().map(|name| {
            let options =
                ClientOptions { consumer: Some(name.clone()), ..ClientOptions::default() };
            client.block_on(async {
                let one = Client::connect_with(&url, options).await.unwrap();
                // The service has answered for the name.
                drop(one.timeframe(0, &name).await.unwrap());
                one
            })
        });
        let clients = clients.collect();
        Self { clients, server, client, cache, gate, socket, folder }
    }
}

fn ready() {
    const ROUNDS: usize = 2_001;
    let name = "a timeframe of 100 columns that is ready, table in hand";
    if !wanted(name) {
        return;
    }
    let local = Local::new();
    let register = register(COLUMNS, &names());
    for id in 1..=100 {
        let registered = local.cache.register(id, times(), &register, Some(TIMEOUT));
        local.server.block_on(registered).unwrap();
    }
    let (one, consumer) = (&local.clients[0], &names()[0]);
    let take = |round: usize| {
        let began = Instant::now();
        let table = one.timeframe_blocking(1 + round as u64 % 100, consumer).unwrap();
        let in_hand = began.elapsed();
        for column in 0..COLUMNS {
            let column = table.column(&format!("c{column}")).unwrap();
            std::hint::black_box(column.get(0).unwrap().unwrap()[0]);
        }
        assert!(table.is_local());
        (in_hand, began.elapsed())
    };
    let (mut in_hand, mut read): (Vec<_>, Vec<_>) = (0..ROUNDS).map(take).unzip();
    in_hand.sort_unstable();
    read.sort_unstable();
    let quarters = |all: &[Duration]| [all[ROUNDS / 4], all[ROUNDS / 2], all[ROUNDS * 3 / 4]];
    println!("{name}\n    {:?}, aim 5 µs", quarters(&in_hand));
    println!("    with the first byte of each column: {:?}", quarters(&read));
}

fn awaited() {
    let name = "a timeframe of 100 columns to 20 consumers that wait for it";
    if !wanted(name) {
        return;
    }
    let local = Local::new();
    let (schema, batch) = messages_of(vec![5]);
    let columns: Vec<String> = (0..COLUMNS).map(|n| format!(r#""c{n}": "{}""#, path(n))).collect();
    let columns = columns.join(", ");
    let request = format!(r#"{{"columns": {{{columns}}}, "encoding": "run_end"}}"#);
    let open = async |socket: &PathBuf| {
        let mut all = Vec::new();
        for _ in 0..CONSUMERS {
            let channel = connect(socket.clone()).await;
            all.push(Open::new(channel, schema.clone(), &request).await);
        }
        all
    };
    let client = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut ours = client.block_on(open(&local.socket));
    let answer = client.block_on(all(&mut ours, 1, &batch)).remove(0);
    drop(ours);
    let bare = local.server.block_on(async { Bare::serve(local.folder.path(), answer) });
    let mut bare = client.block_on(open(&bare));
    let mut ratios = Vec::new();
    for round in 0..WAITS {
        let began = Instant::now();
        drop(client.block_on(all(&mut bare, 1, &batch)));
        let exchange = began.elapsed();
        ratios.push((awaited_once(&local, round), exchange));
    }
    let mut waits: Vec<Duration> = ratios.iter().map(|(wait, _)| *wait).collect();
    let mut exchanges: Vec<Duration> = ratios.iter().map(|(_, exchange)| *exchange).collect();
    let mut ratios: Vec<f64> =
        ratios.iter().map(|(wait, bare)| wait.as_secs_f64() / bare.as_secs_f64()).collect();
    ratios.sort_unstable_by(f64::total_cmp);
    waits.sort_unstable();
    exchanges.sort_unstable();
    println!(
        "{name}, one object loaded meanwhile\n    {:?} beside a bare exchange {:?}: {:.2} ×, aim 0.3 ×",
        waits[WAITS / 2],
        exchanges[WAITS / 2],
        ratios[WAITS / 2],
    );
}

/// From the moment when the last object can be loaded until all consumers have the table.
fn awaited_once(local: &Local, round: usize) -> Duration {
    let id = 1_000 + round as u64;
    local.gate.send_replace(false);
    // At this time the last column has a version that is not in memory.
    let times = Timestamps::new(vec![(round as i64 + 1) * STEP * VERSION_MS], None);
    let register = register(COLUMNS, &names());
    let registered = local.cache.register(id, times, &register, Some(TIMEOUT));
    local.server.block_on(registered).unwrap();
    let (began, names) = (std::sync::OnceLock::<Instant>::new(), names());
    std::thread::scope(|scope| {
        let waits: Vec<_> = local
            .clients
            .iter()
            .zip(&names)
            .map(|(client, name)| {
                let began = &began;
                scope.spawn(move || {
                    let table = client.timeframe_blocking(id, name).unwrap();
                    let took = began.get().unwrap().elapsed();
                    assert!(table.is_local());
                    (took, table)
                })
            })
            .collect();
        std::thread::sleep(Duration::from_millis(20));
        began.set(Instant::now()).unwrap();
        local.gate.send_replace(true);
        let taken: Vec<_> = waits.into_iter().map(|wait| wait.join().unwrap()).collect();
        let last = taken.iter().map(|(took, _)| *took).max().unwrap();
        for ((_, table), client) in taken.into_iter().zip(&local.clients) {
            local.client.block_on(client.consume(table)).unwrap();
        }
        last
    })
}

fn main() {
    ready();
    awaited();
    delivered();
    in_flight();
    releasing();
}
