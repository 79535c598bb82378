//! Timeframes in flight: one registered and delivered to 20 open exchanges beside a bare exchange
//! of the same bytes, the cost of one with many others in flight, and the release of one.
//!
//! `cargo bench --bench timeframes`.

mod beside;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow_flight::FlightData;
use beside::bare::Bare;
use beside::exchange::{Open, bytes_of, messages_of};
use beside::steady::Steady;
use beside::{beside, connect, wanted};
use iovcache::cache::Caller;
use iovcache::index::Timestamps;
use iovcache::server::{ListenOptions, Listeners, ServeOptions};
use iovcache::shm::PoolOptions;
use iovcache::source::MemorySource;
use iovcache::table::{ColumnRequest, Columns, Consumed, Register, Request};
use iovcache::{Cache, ObjectId, ObjectInfo, ObjectPath, Timestamp, ValidityInterval};
use tokio::runtime::Runtime;

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
    let source = Arc::new(Steady(source));
    Cache::builder().source(source).memory(memory).max_timeframes(2_000).build().unwrap()
}

fn register(objects: usize, consumers: &[String]) -> Register {
    let column = |n| ColumnRequest {
        name: format!("c{n}").into(),
        path: path(n),
        metadata: Default::default(),
    };
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
        let sockets = folder.path().join("sockets");
        let options =
            ListenOptions { socket_folder: Some(sockets.clone()), ..ListenOptions::default() };
        let listeners = Listeners::bind(&options).await.unwrap();
        let (forever, options) = (std::future::pending(), ServeOptions::default());
        tokio::spawn(iovcache::server::run(listeners, cache.clone(), options, forever, || ()));
        (cache, sockets.join("flight.sock"))
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

fn letting_go() {
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

fn main() {
    delivered();
    in_flight();
    letting_go();
}
