//! Tables of timeframes from shared memory equal those of the service, and so do their errors.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use iovcache::Coded as _;
use iovcache::client::{ClientError, Table, TableRequest};
use iovcache::object::ObjectPath;
use iovcache::table::{ColumnRequest, ConsumerState, TimeframeState};

use crate::common::{PATIENCE, Service, http_get, until};
use crate::gated::{GatedService, gated_path};
use crate::setup::{Consumer, service, version};

/// Random numbers, the same in each run.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

fn column(name: &str, path: &str) -> ColumnRequest {
    ColumnRequest::new(name, ObjectPath::new(path).unwrap())
}

/// Registers a timeframe with column `b` of `A/B`.
fn register(consumer: &Consumer, timeframe: u64, times: &[i64], consumers: &[&str]) {
    register_columns(consumer, timeframe, times, &[column("b", "A/B")], consumers);
}

fn register_columns(
    consumer: &Consumer,
    timeframe: u64,
    times: &[i64],
    columns: &[ColumnRequest],
    consumers: &[&str],
) {
    let times = times.iter().map(|at| Some(*at)).collect();
    let consumers: Vec<String> = consumers.iter().map(|name| (*name).to_owned()).collect();
    let put = consumer.client.put_timeframe(timeframe, times, columns, &consumers);
    consumer.runtime.block_on(put).unwrap();
}

fn timeframe(consumer: &Consumer, id: u64, name: &str) -> Result<Table, ClientError> {
    consumer.runtime.block_on(consumer.client.timeframe(id, name))
}

fn consume(consumer: &Consumer, table: Table) -> Result<(), ClientError> {
    consumer.runtime.block_on(consumer.client.consume(table))
}

/// The id of the timeframe by which a client learns that the service answers for its consumers.
const FIRST: u64 = u64::MAX;

/// Takes a first timeframe, after which the client takes those of the same consumer from shared
/// memory.
fn learn(consumer: &Consumer, name: &str) {
    register(consumer, FIRST, &[5], &[name]);
    let table = timeframe(consumer, FIRST, name).unwrap();
    assert!(!table.is_local());
    consume(consumer, table).unwrap();
}

/// Takes a table until it comes from shared memory: it can be published a moment later.
fn local(consumer: &Consumer, id: u64, name: &str) -> Table {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let table = timeframe(consumer, id, name).unwrap();
        if table.is_local() {
            return table;
        }
        assert!(Instant::now() < deadline, "timeframe {id} does not come from shared memory");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn row(table: &Table, column: &str, row: usize) -> Option<Vec<u8>> {
    table.column(column).unwrap().get(row).unwrap().map(<[u8]>::to_vec)
}

fn metric(service: &Service, begin: &str) -> u64 {
    let (_, text) = http_get(&service.http(), "/metrics");
    let line = text.lines().find(|line| line.starts_with(begin));
    let value = line.and_then(|line| line.rsplit(' ').next()).unwrap_or("0");
    value.parse::<f64>().unwrap() as u64
}

fn same_error(ours: &ClientError, theirs: &ClientError) {
    assert_eq!(ours.to_string(), theirs.to_string());
    assert_eq!(format!("{ours:?}"), format!("{theirs:?}"));
}

#[test]
fn random_timeframes_from_shared_memory_equal_those_of_the_service_cell_by_cell() {
    const PATHS: u64 = 6;
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut versions = Vec::new();
    for path in 0..PATHS {
        let name = format!("T/P{path}x");
        versions.push((name.clone(), (-1_000, 2_000), 0));
        for created in 1..9 {
            let from = random.below(1_000) as i64;
            versions.push((name.clone(), (from, from + 1 + random.below(300) as i64), created));
        }
    }
    let borrowed: Vec<_> =
        versions.iter().map(|(path, span, at)| (path.as_str(), *span, *at)).collect();
    let (service, _repository) = service(&borrowed, &[]);
    let consumer = Consumer::with_local_tables(&service.unix(), "a");
    let other = Consumer::new(&service.unix(), "b");
    let first = [column("b", "T/P0x")];
    register_columns(&consumer, FIRST, &[5], &first, &["a"]);
    assert!(!timeframe(&consumer, FIRST, "a").unwrap().is_local());
    let rounds: u64 = match std::env::var("IOVCACHE_TIMEFRAMES") {
        Ok(text) => text.parse().unwrap(),
        Err(_) => 60,
    };
    for id in 0..rounds {
        let columns: Vec<_> = (0..1 + random.below(5))
            .map(|n| column(&format!("c{n}"), &format!("T/P{}x", random.below(PATHS))))
            .collect();
        let rows = random.below(if id % 4 == 0 { 2_000 } else { 20 });
        let times: Vec<Option<i64>> = (0..rows)
            .map(|row| match random.below(8) {
                0 => None,
                1 => Some(row as i64),
                _ => Some(random.below(1_500) as i64 - 200),
            })
            .collect();
        let names = ["a".to_owned(), "b".to_owned()];
        let put = consumer.client.put_timeframe(id, times, &columns, &names);
        consumer.runtime.block_on(put).unwrap();
        let got = local(&consumer, id, "a");
        let expected = timeframe(&other, id, "b").unwrap();
        assert!(!expected.is_local());
        assert_eq!(got.rows(), expected.rows());
        assert_eq!(got.schema().fields(), expected.schema().fields());
        let metadata = |table: &Table| {
            let mut all: std::collections::HashMap<_, _> = table.schema().metadata().clone().into();
            all.remove("iovcache.lease");
            all
        };
        assert_eq!(metadata(&got), metadata(&expected));
        assert_eq!(metadata(&got)["iovcache.timeframe"], id.to_string());
        let arrays = |table: &Table| -> Vec<_> {
            table.batches().iter().flat_map(|batch| batch.columns().to_vec()).collect()
        };
        assert_eq!(arrays(&got), arrays(&expected), "timeframe {id}");
        for name in expected.columns() {
            let runs = |table: &Table| -> Vec<_> {
                let column = table.column(name).unwrap();
                column
                    .runs()
                    .map(|run| run.map(|(rows, bytes)| (rows, bytes.map(<[u8]>::to_vec))))
                    .collect::<Result<_, _>>()
                    .unwrap()
            };
            assert_eq!(runs(&got), runs(&expected));
        }
        consume(&consumer, got).unwrap();
        consume(&other, expected).unwrap();
    }
    service.adds_up();
}

#[test]
fn a_timeframe_from_shared_memory_makes_no_request_and_is_reported_by_lines() {
    let (service, _repository) = service(&[("A/B", (0, 100), 1)], &[]);
    let consumer = Consumer::with_local_tables(&service.unix(), "a");
    learn(&consumer, "a");
    register(&consumer, 7, &[5, 50], &["a", "b"]);
    let before = metric(&service, "iovcache_tables_total");
    let table = local(&consumer, 7, "a");
    assert_eq!(metric(&service, "iovcache_tables_total"), before);
    assert_eq!((table.rows(), table.lease(), table.is_mapped()), (2, None, true));
    assert_eq!(row(&table, "b", 1).unwrap(), b"A/B 0 100 1");
    let status = || consumer.runtime.block_on(consumer.client.status()).unwrap();
    // The call comes after the line.
    let seen = status().timeframes;
    assert_eq!(seen[0].consumers["a"], ConsumerState::Delivered);
    assert_eq!(seen[0].state, TimeframeState::Ready);
    assert_eq!(metric(&service, "iovcache_local_timeframes_total"), 1);
    consume(&consumer, table).unwrap();
    assert_eq!(status().timeframes[0].consumers["a"], ConsumerState::Consumed);
    let other = Consumer::with_local_tables(&service.unix(), "b");
    let table = timeframe(&other, 7, "b").unwrap();
    consume(&other, table).unwrap();
    let status = status();
    assert_eq!((status.timeframes.len(), status.memory.pinned_bytes), (0, 0));
    service.adds_up();
}

#[test]
fn errors_of_a_timeframe_are_those_of_the_service() {
    let (service, _repository) = service(&[("A/B", (0, 100), 1)], &[]);
    let consumer = Consumer::with_local_tables(&service.unix(), "a");
    let asks = Consumer::new(&service.unix(), "asks");
    learn(&consumer, "a");
    let both = |id, name: &str| {
        let (ours, theirs) = (timeframe(&consumer, id, name), timeframe(&asks, id, name));
        same_error(&ours.unwrap_err(), &theirs.unwrap_err());
    };
    both(1, "a");
    register(&consumer, 1, &[5], &["a", "b"]);
    both(1, "c");
    let table = local(&consumer, 1, "a");
    consume(&consumer, table).unwrap();
    both(1, "a");
    // It has rows without an object.
    register(&consumer, 2, &[5, 500], &["a"]);
    both(2, "a");
    // Its name cannot be sent in a line.
    let odd = "a\tb".to_owned();
    register(&consumer, 3, &[5], &[&odd]);
    assert!(!timeframe(&consumer, 3, &odd).unwrap().is_local());
    assert!(!timeframe(&consumer, 3, &odd).unwrap().is_local());
    service.adds_up();
}

#[test]
fn a_request_for_more_than_the_registered_table_is_answered_by_the_service() {
    let (service, _repository) = service(&[("A/B", (0, 100), 1), ("A/C", (0, 100), 1)], &[]);
    let consumer = Consumer::with_local_tables(&service.unix(), "a");
    learn(&consumer, "a");
    register(&consumer, 1, &[5], &["a"]);
    drop(local(&consumer, 1, "a"));
    let plain = || TableRequest::new().timeframe(1).consumer("a");
    let excluded = [
        plain().column("c", "A/C"),
        plain().encoding(iovcache::table::Encoding::Plain),
        plain().cell(iovcache::table::CellKind::O2),
        plain().timestamps_column(),
        plain().missing_as_null(),
        plain().not_after(5),
        plain().view(iovcache::table::View::Distinct),
        plain().schema_metadata([("k".to_owned(), "v".to_owned())].into()),
        TableRequest::new().timeframe(1),
    ];
    for request in excluded {
        let got = consumer.runtime.block_on(consumer.client.table(request.clone()));
        assert!(!got.is_ok_and(|table| table.is_local()), "{request:?}");
    }
    // Without names the table could not tell the progress of its consumers.
    register(&consumer, 2, &[5], &[]);
    for _ in 0..3 {
        assert!(!timeframe(&consumer, 2, "a").unwrap().is_local());
    }
    assert!(local(&consumer, 1, "a").is_local());
}

#[test]
fn an_id_that_is_registered_again_is_another_timeframe() {
    let (service, _repository) = service(&[("A/B", (0, 10), 1), ("A/B", (10, 20), 2)], &[]);
    let consumer = Consumer::with_local_tables(&service.unix(), "a");
    learn(&consumer, "a");
    let drop_it = || {
        let body = serde_json::json!({"timeframe": 1});
        let dropped = consumer.client.act::<serde_json::Value>("drop_timeframe", &body);
        consumer.runtime.block_on(dropped).unwrap();
    };
    register(&consumer, 1, &[5], &["a"]);
    let held = local(&consumer, 1, "a");
    drop_it();
    let gone = timeframe(&consumer, 1, "a").unwrap_err();
    assert_eq!(gone.kind(), iovcache::error::ErrorKind::NotFound, "{gone}");
    register(&consumer, 1, &[15, 15], &["a"]);
    let next = local(&consumer, 1, "a");
    assert_eq!((next.rows(), row(&next, "b", 0).unwrap()), (2, b"A/B 10 20 2".to_vec()));
    assert_eq!((held.rows(), row(&held, "b", 0).unwrap()), (1, b"A/B 0 10 1".to_vec()));
    // The report of the earlier one does not consume the next one.
    let error = consume(&consumer, held).unwrap_err();
    assert!(matches!(error, ClientError::Dropped { timeframe: 1 }), "{error}");
    let status = consumer.runtime.block_on(consumer.client.status()).unwrap();
    assert_eq!(status.timeframes[0].consumers["a"], ConsumerState::Delivered);
    consume(&consumer, next).unwrap();
    // A report that comes after the drop gets the error of the service.
    register(&consumer, 1, &[5], &["a"]);
    let held = local(&consumer, 1, "a");
    drop_it();
    let error = consume(&consumer, held).unwrap_err();
    assert_eq!(error.kind(), iovcache::error::ErrorKind::NotFound, "{error}");
    service.adds_up();
}

#[test]
fn the_report_of_a_requested_table_does_not_consume_a_later_registration_of_its_id() {
    let (service, _repository) = service(&[("A/B", (0, 10), 1), ("A/B", (10, 20), 2)], &[]);
    for url in [service.unix(), service.tcp()] {
        let consumer = Consumer::new(&url, "a");
        let requested = || {
            let request = TableRequest::new().timeframe(1).consumer("a");
            let table = consumer.runtime.block_on(consumer.client.table(request)).unwrap();
            assert!(!table.is_local());
            table
        };
        register(&consumer, 1, &[5], &["a"]);
        let held = requested();
        let body = serde_json::json!({"timeframe": 1});
        let dropped = consumer.client.act::<serde_json::Value>("drop_timeframe", &body);
        consumer.runtime.block_on(dropped).unwrap();
        register(&consumer, 1, &[15], &["a"]);
        let error = consume(&consumer, held).unwrap_err();
        assert_eq!(error.kind(), iovcache::error::ErrorKind::NotFound, "{error}");
        let status = consumer.runtime.block_on(consumer.client.status()).unwrap();
        assert_eq!(status.timeframes[0].consumers["a"], ConsumerState::Waiting);
        consume(&consumer, requested()).unwrap();
        let status = consumer.runtime.block_on(consumer.client.status()).unwrap();
        assert!(status.timeframes.is_empty());
    }
    service.adds_up();
}

#[test]
fn a_table_in_hand_keeps_its_objects_though_its_timeframe_is_dropped() {
    let (service, _repository) = service(&[("A/B", (0, 100), 1), ("A/C", (0, 100), 1)], &[]);
    let consumer = Consumer::with_local_tables(&service.unix(), "a");
    learn(&consumer, "a");
    register_columns(&consumer, 1, &[5], &[column("b", "A/B"), column("c", "A/C")], &["a"]);
    let held = local(&consumer, 1, "a");
    let status = || consumer.runtime.block_on(consumer.client.status()).unwrap();
    let pinned = status().memory.pinned_bytes;
    assert!(pinned > 0);
    let slots = || status().sessions.iter().map(|session| session.slots).sum::<u64>();
    assert_eq!(slots(), 1, "one slot pins the table and all of its objects");
    let done = consumer.runtime.block_on(consumer.client.consumed(1, "a")).unwrap();
    assert_eq!(done.dropped, [1]);
    assert_eq!(status().memory.pinned_bytes, pinned, "its objects stay");
    service.adds_up();
    for name in ["b", "c"] {
        let header = held.column(name).unwrap().header(0).unwrap();
        assert!(held.is_live(&header));
    }
    assert_eq!(row(&held, "c", 0).unwrap(), b"A/C 0 100 1");
    drop(held);
    until("its objects are free", || (status().memory.pinned_bytes == 0).then_some(()));
    service.adds_up();
}

#[test]
fn consumers_that_wait_get_the_table_when_it_is_ready() {
    let service = GatedService::new(40);
    let consumers: Vec<_> = (0..4)
        .map(|n| (Consumer::with_local_tables(&service.url(), &format!("w{n}")), n))
        .collect();
    let names: Vec<String> = (0..4).map(|n| format!("w{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    service.set_open(true);
    let columns = |from: usize| -> Vec<_> {
        (from..from + 10).map(|n| column(&format!("c{n}"), &gated_path(n))).collect()
    };
    let first = &consumers[0].0;
    register_columns(first, FIRST, &[5], &columns(0), &names);
    for (consumer, n) in &consumers {
        let table = timeframe(consumer, FIRST, names[*n]).unwrap();
        consume(consumer, table).unwrap();
    }
    service.set_open(false);
    register_columns(first, 1, &[5, 6], &columns(10), &names);
    register_columns(first, 2, &[5, 6], &columns(20), &names);
    let tables = service.cache.counters().tables.get();
    let ready = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for (consumer, n) in &consumers {
            let (ready, name) = (&ready, names[*n]);
            scope.spawn(move || {
                let table = match n % 2 {
                    0 => timeframe(consumer, 1, name).unwrap(),
                    _ => consumer.client.timeframe_blocking(1, name).unwrap(),
                };
                ready.fetch_add(1, Ordering::SeqCst);
                assert!(table.is_local());
                assert_eq!(row(&table, "c12", 1).unwrap(), b"object 12");
                consume(consumer, table).unwrap();
            });
        }
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(ready.load(Ordering::SeqCst), 0, "it is not ready yet");
        service.set_open(true);
    });
    assert_eq!(service.cache.counters().tables.get(), tables, "no consumer made a request");
    assert_eq!(service.cache.counters().local_timeframes.get(), 4);
    let status = service.cache.status();
    assert_eq!(status.timeframes.len(), 1, "the first one was consumed by all");
}

#[test]
fn a_wait_ends_with_its_time_limit_its_timeframe_or_its_service() {
    let service = GatedService::new(4);
    let consumer = Consumer::with_local_tables(&service.url(), "a");
    service.set_open(true);
    register_columns(&consumer, FIRST, &[5], &[column("c", &gated_path(0))], &["a"]);
    let table = timeframe(&consumer, FIRST, "a").unwrap();
    consume(&consumer, table).unwrap();
    service.set_open(false);
    register_columns(&consumer, 1, &[5], &[column("c", &gated_path(1))], &["a"]);
    let began = Instant::now();
    let request = TableRequest::new().timeframe(1).consumer("a").wait(Duration::from_millis(300));
    let late = consumer.runtime.block_on(consumer.client.table(request)).unwrap_err();
    assert!(began.elapsed() < Duration::from_secs(5), "{late}");
    assert!(began.elapsed() >= Duration::from_millis(300), "{late}");
    // A call that is given up leaves no thread behind that waits: the runtime ends at once.
    let given_up = consumer.client.timeframe(1, "a");
    let given_up = tokio_timeout(&consumer, Duration::from_millis(50), given_up);
    assert!(given_up.is_none());
    // The timeframe is dropped while a consumer waits.
    let cache = service.cache.clone();
    let dropper = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(100));
        cache.drop_timeframe(1).unwrap();
    });
    let gone = timeframe(&consumer, 1, "a").unwrap_err();
    assert_eq!(gone.kind(), iovcache::error::ErrorKind::NotFound, "{gone}");
    dropper.join().unwrap();
    let began = Instant::now();
    drop(consumer);
    assert!(began.elapsed() < Duration::from_secs(3));
}

fn tokio_timeout<T>(
    consumer: &Consumer,
    limit: Duration,
    call: impl Future<Output = T>,
) -> Option<T> {
    consumer.runtime.block_on(async { tokio::time::timeout(limit, call).await.ok() })
}

#[test]
fn a_service_that_drains_hands_out_no_table() {
    let service = GatedService::new(2);
    service.set_open(true);
    let consumer = Consumer::with_local_tables(&service.url(), "a");
    for id in [FIRST, 1] {
        register_columns(&consumer, id, &[5], &[column("c", &gated_path(0))], &["a"]);
    }
    let table = timeframe(&consumer, FIRST, "a").unwrap();
    consume(&consumer, table).unwrap();
    let held = local(&consumer, 1, "a");
    service.cache.drain();
    let request = TableRequest::new().timeframe(1).consumer("a").wait(Duration::from_millis(200));
    let error = consumer.runtime.block_on(consumer.client.table(request)).unwrap_err();
    assert_eq!(error.kind(), iovcache::error::ErrorKind::Unavailable, "{error}");
    assert_eq!(row(&held, "c", 0).unwrap(), b"object 0");
    consume(&consumer, held).unwrap();
    assert!(service.cache.status().timeframes.is_empty());
}

#[test]
fn a_stopped_service_hands_out_ready_timeframes() {
    let (service, _repository) = service(&[("A/B", (0, 100), 1)], &[]);
    let consumer = Consumer::with_local_tables(&service.unix(), "a");
    learn(&consumer, "a");
    register(&consumer, 1, &[5], &["a"]);
    drop(local(&consumer, 1, "a"));
    service.signal("STOP");
    let began = Instant::now();
    let table = timeframe(&consumer, 1, "a").unwrap();
    assert!(table.is_local() && began.elapsed() < Duration::from_millis(500));
    assert_eq!(row(&table, "b", 0).unwrap(), b"A/B 0 100 1");
    service.signal("CONT");
    consume(&consumer, table).unwrap();
    let status = consumer.runtime.block_on(consumer.client.status()).unwrap();
    assert!(status.timeframes.is_empty());
    service.adds_up();
}

#[test]
fn timeframes_go_on_with_the_successor_of_a_service() {
    let repository = tempfile::tempdir().unwrap();
    version(repository.path(), "A/B", (0, 100), 1);
    let first = Service::over(repository.path(), &[]);
    let sockets = first.folder.path().join("s").to_str().unwrap().to_owned();
    let consumer = Consumer::with_local_tables(&first.unix(), "a");
    learn(&consumer, "a");
    register(&consumer, 1, &[5], &["a"]);
    let held = local(&consumer, 1, "a");
    let folder = first.kill();
    let _second = Service::over(repository.path(), &["--socket", &sockets]);
    until("an answer of the second service", || {
        let answer = timeframe(&consumer, 1, "a");
        let unknown = |error: &ClientError| error.kind() == iovcache::error::ErrorKind::NotFound;
        answer.is_err_and(|error| unknown(&error)).then_some(())
    });
    assert_eq!(row(&held, "b", 0).unwrap(), b"A/B 0 100 1");
    register(&consumer, 1, &[50, 50], &["a"]);
    let next = local(&consumer, 1, "a");
    assert_eq!((next.rows(), row(&next, "b", 1).unwrap()), (2, b"A/B 0 100 1".to_vec()));
    consume(&consumer, next).unwrap();
    drop(folder);
}

#[test]
fn timeframes_are_requested_where_the_service_limits_their_holders() {
    for limit in [["--quota-timeframes", "5"], ["--slow-after", "1h"]] {
        let (service, _repository) = service(&[("A/B", (0, 100), 1)], &limit);
        let consumer = Consumer::with_local_tables(&service.unix(), "a");
        learn(&consumer, "a");
        register(&consumer, 1, &[5], &["a"]);
        for _ in 0..5 {
            assert!(!timeframe(&consumer, 1, "a").unwrap().is_local());
        }
    }
}

#[test]
fn timeframes_registered_before_a_consumer_attached_are_published_for_it() {
    let (service, _repository) = service(&[("A/B", (0, 100), 1)], &[]);
    let registers = Consumer::new(&service.tcp(), "registers");
    for id in 1..20 {
        register(&registers, id, &[5], &["a"]);
    }
    let consumer = Consumer::with_local_tables(&service.unix(), "a");
    learn(&consumer, "a");
    for id in 1..20 {
        let table = local(&consumer, id, "a");
        consume(&consumer, table).unwrap();
    }
    service.adds_up();
}
