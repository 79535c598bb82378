//! Tables from shared memory equal those of the service.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use iovcache::client::{Client, ClientError, ClientOptions, Table, TableRequest};
use iovcache::index::Timestamps;
use iovcache::table::{CellKind, Encoding};

use crate::common::{PATIENCE, Random, Service, Version, http_get, put, until};
use crate::setup::{Consumer, REFRESH, service, version};

fn table(consumer: &Consumer, request: &TableRequest) -> Table {
    consumer.runtime.block_on(consumer.client.table(request.clone())).unwrap()
}

/// Requests a table until it is taken from shared memory.
fn local_table(consumer: &Consumer, request: &TableRequest) -> Table {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let table = table(consumer, request);
        if table.is_local() {
            return table;
        }
        assert!(Instant::now() < deadline, "the table is not taken from shared memory");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The bytes of each row of each column.
fn bytes(table: &Table) -> Vec<Vec<Option<Vec<u8>>>> {
    let column = |name| {
        let column = table.column(name).unwrap();
        (0..table.rows()).map(|row| column.get(row).unwrap().map(<[u8]>::to_vec)).collect()
    };
    table.columns().map(column).collect()
}

/// A number of the metrics of a service.
fn metric(service: &Service, begin: &str) -> u64 {
    let (_, text) = http_get(&service.http(), "/metrics");
    let line = text.lines().find(|line| line.starts_with(begin));
    let value = line.and_then(|line| line.rsplit(' ').next()).unwrap_or("0");
    value.parse::<f64>().unwrap() as u64
}

/// Versions of some paths: overlapping, without gaps in the first path, with gaps in the others.
fn random_versions(random: &mut Random, paths: u64) -> Vec<(String, (i64, i64), i64)> {
    let mut versions = Vec::new();
    for path in 0..paths {
        let name = format!("T/P{path}x");
        if path == 0 {
            versions.push((name.clone(), (-1_000, 2_000), 0));
        }
        for created in 1..12 {
            let from = random.below(1_000) as i64;
            let length = 1 + random.below(300) as i64;
            versions.push((name.clone(), (from, from + length), created));
        }
    }
    versions
}

/// Timestamps of any form: sorted or not, at borders, repeated, null, run-encoded by repetition.
fn random_times(random: &mut Random, borders: &[i64]) -> Vec<Option<i64>> {
    let most = if random.chance(4) { 2_000 } else { 20 };
    let rows = 1 + random.below(most);
    let nulls = random.chance(4);
    let mut times: Vec<Option<i64>> = (0..rows)
        .map(|_| {
            let border = borders[random.below(borders.len() as u64) as usize];
            match random.below(4) {
                _ if nulls && random.chance(5) => None,
                0 => Some(border),
                1 => Some(border - 1),
                2 => Some(border + 1),
                _ => Some(random.below(1_500) as i64 - 100),
            }
        })
        .collect();
    match random.below(3) {
        0 => times.sort_unstable(),
        1 => times.sort_unstable_by(|one, other| other.cmp(one)),
        _ => {}
    }
    times
}

#[test]
fn random_tables_are_cell_by_cell_those_of_the_service() {
    const PATHS: u64 = 5;
    let mut random = Random::new(0x9e37_79b9_7f4a_7c15);
    let versions = random_versions(&mut random, PATHS);
    let borrowed: Vec<_> =
        versions.iter().map(|(path, span, created)| (path.as_str(), *span, *created)).collect();
    let (service, _repository) = service(&borrowed, &[]);
    let (consumer, service_itself) = (
        Consumer::with_local_tables(&service.unix(), "one"),
        Consumer::new(&service.unix(), "other"),
    );
    let borders: Vec<i64> =
        versions.iter().flat_map(|(_, (from, until), _)| [*from, *until]).collect();
    let (mut local, mut gaps) = (0, 0);
    for round in 0..400 {
        let times = random_times(&mut random, &borders);
        let mut request = TableRequest::new();
        let columns = 1 + random.below(3);
        for column in 0..columns {
            let path = if random.chance(2) { 0 } else { random.below(PATHS) };
            request = request.column(format!("c{column}"), format!("T/P{path}x"));
        }
        let timestamps: Timestamps = times.iter().copied().collect();
        let mut request = request.shared_timestamps(Arc::new(timestamps));
        if random.chance(2) {
            request = request.missing_as_null();
        }
        let expected =
            service_itself.runtime.block_on(service_itself.client.table(request.clone()));
        let expected = match expected {
            Ok(expected) => expected,
            Err(error) => {
                let got = consumer.runtime.block_on(consumer.client.table(request)).unwrap_err();
                assert_eq!(got.to_string(), error.to_string(), "round {round}");
                gaps += 1;
                continue;
            }
        };
        assert!(!expected.is_local());
        for _ in 0..2 {
            let got = table(&consumer, &request);
            assert_eq!(got.rows(), expected.rows());
            assert_eq!(got.schema().fields(), expected.schema().fields(), "round {round}");
            let columns = |table: &Table| {
                let batches = table.batches().iter();
                batches.flat_map(|batch| batch.columns().to_vec()).collect::<Vec<_>>()
            };
            assert_eq!(columns(&got), columns(&expected), "round {round}: {times:?}");
            assert_eq!(bytes(&got), bytes(&expected), "round {round}");
            local += u64::from(got.is_local());
            if got.is_local() {
                let entry = |table: &Table, key: &str| table.schema().metadata().get(key).cloned();
                for key in ["iovcache.version", "iovcache.epoch", "iovcache.attach"] {
                    assert_eq!(entry(&got, key), entry(&expected, key));
                    assert!(entry(&got, key).is_some(), "{key}");
                }
                assert_eq!((got.lease(), entry(&got, "iovcache.lease")), (None, None));
            }
        }
    }
    assert!(local > 100 && gaps > 20, "{local} tables from shared memory, {gaps} with gaps");
    service.adds_up();
}

#[test]
fn a_table_from_shared_memory_makes_no_request_and_pins_its_objects_by_slots() {
    let versions = [("A/B", (0, 10), 1), ("A/B", (10, 20), 2), ("A/C", (0, 20), 3)];
    let (service, _repository) = service(&versions, &[]);
    let consumer = Consumer::with_local_tables(&service.unix(), "one");
    let request = TableRequest::new().column("b", "A/B").column("c", "A/C").timestamps([5, 7, 15]);
    let first = table(&consumer, &request);
    assert!(!first.is_local() && first.lease().is_some());
    drop(local_table(&consumer, &request));
    let before = metric(&service, "iovcache_tables_total");
    assert!(before > 0);
    let held = table(&consumer, &request);
    assert!(held.is_local() && held.is_mapped());
    assert_eq!(held.column("b").unwrap().ends(), [2, 3]);
    assert_eq!(held.column("b").unwrap().get(2).unwrap(), Some(&b"A/B 10 20 2"[..]));
    let header = held.column("c").unwrap().header(0).unwrap();
    assert!(held.is_live(&header));
    let status = || consumer.runtime.block_on(consumer.client.status()).unwrap();
    let slots = || status().sessions.iter().map(|session| session.slots).sum::<u64>();
    assert_eq!(slots(), 3);
    assert_eq!(metric(&service, "iovcache_tables_total"), before, "no request was made");
    service.adds_up();
    drop(held);
    assert_eq!(slots(), 0);
}

#[test]
fn a_request_with_more_than_paths_and_times_is_answered_by_the_service() {
    let (service, _repository) = service(&[("A/B", (0, 10), 1), ("A/B", (0, 10), 7)], &[]);
    let consumer = Consumer::with_local_tables(&service.unix(), "one");
    let plain = || TableRequest::new().column("b", "A/B").timestamps([5]);
    drop(local_table(&consumer, &plain()));
    let with_metadata = TableRequest::new()
        .column_with_metadata("b", "A/B", &[("k".to_owned(), "v".to_owned())].into())
        .missing_as_null()
        .timestamps([5]);
    let keyed = TableRequest::new()
        .column_json("b", r#"{"path": "A/B", "key": "k", "as": "timestamp"}"#)
        .timestamps([5])
        .key("k", [Some(5)].into_iter().collect());
    let excluded = [
        plain().not_after(3),
        plain().not_before(0),
        plain().lock(Vec::new()).missing_as_null(),
        plain().encoding(Encoding::Plain),
        plain().cell(CellKind::Payload),
        plain().timestamps_column(),
        plain().view(iovcache::table::View::Distinct),
        TableRequest::new().column("b", "A/B").range(0, 10, 1),
        with_metadata,
        keyed,
    ];
    for request in excluded {
        for _ in 0..3 {
            let got = consumer.runtime.block_on(consumer.client.table(request.clone()));
            if let Ok(got) = got {
                assert!(!got.is_local(), "{request:?}");
            }
        }
    }
    let older = table(&consumer, &plain().not_after(3));
    assert_eq!(older.column("b").unwrap().get(0).unwrap(), Some(&b"A/B 0 10 1"[..]));
    assert!(table(&consumer, &plain()).is_local());
}

#[test]
fn the_objects_view_describes_a_table_from_shared_memory_or_says_that_it_has_changed() {
    let (service, repository) = service(&[("A/B", (0, 10), 1), ("A/B", (10, 20), 2)], &[]);
    let consumer = Consumer::with_local_tables(&service.unix(), "one");
    let request = TableRequest::new().column("b", "A/B").timestamps([5, 15]);
    let held = local_table(&consumer, &request);
    let objects = || consumer.runtime.block_on(consumer.client.objects(&held));
    let (_, batches) = objects().unwrap();
    let rows: usize = batches.iter().map(|batch| batch.num_rows()).sum();
    assert_eq!(rows, 2);
    version(repository.path(), "A/B", (0, 10), 3);
    until("the newer version", || objects().is_err().then_some(()));
    let error = objects().unwrap_err();
    assert!(matches!(error, ClientError::Changed), "{error}");
    // Its own bytes stay.
    assert_eq!(held.column("b").unwrap().get(0).unwrap(), Some(&b"A/B 0 10 1"[..]));
}

#[test]
fn the_objects_view_of_cells_without_a_generation_describes_their_versions_or_says_so() {
    let (service, repository) = service(&[("A/B", (0, 10), 1), ("A/B", (10, 20), 2)], &[]);
    let consumer = Consumer::with_local_tables(&service.unix(), "one");
    let remote = ClientOptions { remote: true, ..ClientOptions::default() };
    let remote = consumer.runtime.block_on(Client::connect_with(&service.unix(), remote)).unwrap();
    let plain = TableRequest::new().column("b", "A/B").timestamps([5, 6, 15]);
    let requests = [
        (&remote, plain.clone()),
        (&remote, plain.clone().encoding(Encoding::Plain)),
        (&remote, plain.clone().encoding(Encoding::Dictionary)),
        (&consumer.client, plain.clone().cell(CellKind::Payload)),
        (&consumer.client, plain.clone().cell(CellKind::O2)),
        (&consumer.client, plain.clone().cell(CellKind::Struct)),
    ];
    let tables = requests.map(|(client, request)| {
        let table = consumer.runtime.block_on(client.table(request)).unwrap();
        (client, table)
    });
    let objects =
        |(client, table): &(&Client, Table)| consumer.runtime.block_on(client.objects(table));
    for table in &tables {
        let (_, batches) = objects(table).unwrap();
        assert_eq!(batches.iter().map(|batch| batch.num_rows()).sum::<usize>(), 2);
    }
    version(repository.path(), "A/B", (0, 10), 3);
    until("the newer version", || objects(&tables[0]).is_err().then_some(()));
    for table in &tables {
        let error = objects(table).unwrap_err();
        assert!(matches!(error, ClientError::Changed), "{error}");
        let column = table.1.column("b").unwrap();
        assert_eq!(column.get(1).unwrap(), Some(&b"A/B 0 10 1"[..]));
    }
}

#[test]
fn reasons_for_requests_are_counted() {
    let (service, _repository) = service(&[("A/B", (0, 10), 1), ("A/B", (20, 30), 2)], &[]);
    let consumer = Consumer::with_local_tables(&service.unix(), "one");
    let at = |times: &[i64]| {
        TableRequest::new().column("b", "A/B").timestamps(times.to_vec()).missing_as_null()
    };
    drop(local_table(&consumer, &at(&[5])));
    let uncovered = || metric(&service, "iovcache_local_asks_total{reason=\"uncovered\"}");
    let before = uncovered();
    let gap = table(&consumer, &at(&[5, 15]));
    assert!(!gap.is_local());
    assert_eq!(gap.column("b").unwrap().get(1).unwrap(), None);
    assert_eq!(uncovered(), before + 1);
}

#[test]
fn where_the_service_limits_how_long_tables_are_held_they_are_requested() {
    let (service, _repository) =
        service(&[("A/B", (0, 10), 1)], &["--slow-after", "1h", "--slow-consumer", "revoke"]);
    let consumer = Consumer::with_local_tables(&service.unix(), "one");
    let request = TableRequest::new().column("b", "A/B").timestamps([5]);
    for _ in 0..20 {
        assert!(!table(&consumer, &request).is_local());
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn slots_pin_no_more_bytes_than_the_quota_and_the_rest_is_requested() {
    let bytes = vec![7; 4_000];
    let repository = tempfile::tempdir().unwrap();
    for n in 0..4 {
        let path = format!("Q/N{n}");
        put(
            repository.path(),
            &Version { path: &path, from: 0, until: 100, created: 1, bytes: &bytes },
        );
    }
    let service = Service::over(repository.path(), &["--quota-bytes", "10kB"]);
    let consumer = Consumer::with_local_tables(&service.unix(), "one");
    let request = |n: usize| TableRequest::new().column("q", format!("Q/N{n}")).timestamps([5]);
    let held: Vec<Table> = (0..2).map(|n| local_table(&consumer, &request(n))).collect();
    for _ in 0..20 {
        let third = consumer.runtime.block_on(consumer.client.table(request(2)));
        assert!(third.is_err() || !third.unwrap().is_local());
    }
    assert!(metric(&service, "iovcache_local_asks_total{reason=\"no_slot\"}") > 0);
    drop(held);
    drop(local_table(&consumer, &request(2)));
}

#[test]
fn tables_outlive_the_service_and_go_on_with_its_successor() {
    let repository = tempfile::tempdir().unwrap();
    version(repository.path(), "A/B", (0, 100), 1);
    let first = Service::over(repository.path(), &[]);
    let sockets = first.folder.path().join("s").to_str().unwrap().to_owned();
    let consumer = Consumer::with_local_tables(&first.unix(), "one");
    let request = TableRequest::new().column("b", "A/B").timestamps([5, 50]);
    let held = local_table(&consumer, &request);
    let folder = first.kill();
    version(repository.path(), "A/B", (0, 10), 2);
    let _second = Service::over(repository.path(), &["--socket", &sockets]);
    // Nothing of the first service is answered for the second.
    until("the newer version", || {
        let got = table(&consumer, &request);
        let bytes = got.column("b").unwrap().get(0).unwrap().map(<[u8]>::to_vec);
        (bytes.as_deref() == Some(b"A/B 0 10 2")).then_some(())
    });
    let got = local_table(&consumer, &request);
    assert_eq!(got.column("b").unwrap().get(1).unwrap(), Some(&b"A/B 0 100 1"[..]));
    assert_ne!(
        got.schema().metadata()["iovcache.epoch"],
        held.schema().metadata()["iovcache.epoch"]
    );
    assert_eq!(held.column("b").unwrap().get(0).unwrap(), Some(&b"A/B 0 100 1"[..]));
    drop(folder);
}

/// Puts versions one after the other while tables are read; each row says which version it is.
#[test]
fn each_column_is_of_one_timeline_while_versions_are_published() {
    let (service, repository) = service(&[("A/B", (0, 1_000), 1), ("A/C", (0, 1_000), 1)], &[]);
    let (stop, newest) = (AtomicBool::new(false), AtomicU64::new(1));
    let mut seen_local = 0_u64;
    std::thread::scope(|scope| {
        let (stop, newest, repository) = (&stop, &newest, repository.path());
        scope.spawn(move || {
            for created in 2..20_u64 {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                // A reader may see it from here on.
                newest.store(created, Ordering::SeqCst);
                version(repository, "A/B", (0, 1_000), created as i64);
                std::thread::sleep(Duration::from_millis(150));
            }
        });
        let consumer = Consumer::with_local_tables(&service.unix(), "one");
        let request = TableRequest::new()
            .column("b", "A/B")
            .column("c", "A/C")
            .timestamps((0..2_000).map(|row| row % 1_000));
        let deadline = Instant::now() + Duration::from_secs(4);
        let mut last = 0;
        while Instant::now() < deadline {
            let got = table(&consumer, &request);
            seen_local += u64::from(got.is_local());
            let column = got.column("b").unwrap();
            assert_eq!(column.ends(), [2_000], "one version has all rows");
            let text = String::from_utf8(column.get(0).unwrap().unwrap().to_vec()).unwrap();
            let created: u64 = text.rsplit(' ').next().unwrap().parse().unwrap();
            assert!(created >= last, "{created} after {last}: an older version came back");
            assert!(created <= newest.load(Ordering::SeqCst));
            last = created;
        }
        stop.store(true, Ordering::Relaxed);
        assert!(last > 1, "no newer version was seen");
    });
    assert!(seen_local > 50, "{seen_local} tables came from shared memory");
    let late = Instant::now();
    let consumer = Consumer::with_local_tables(&service.unix(), "late");
    let expected = format!("A/B 0 1000 {}", newest.load(Ordering::SeqCst));
    let request = TableRequest::new().column("b", "A/B").timestamps([5]);
    until("the last version", || {
        let got = table(&consumer, &request);
        (got.column("b").unwrap().get(0).unwrap() == Some(expected.as_bytes())).then_some(())
    });
    assert!(late.elapsed() < REFRESH + Duration::from_secs(2));
    service.adds_up();
}

#[test]
fn tables_under_constant_eviction_have_no_wrong_byte() {
    const PATHS: usize = 32;
    const OBJECT_BYTES: usize = 64 << 10;
    let content = |path: usize| -> Vec<u8> {
        (0..OBJECT_BYTES).map(|n| (n * 31 + path * 7 + n / 251) as u8).collect()
    };
    let repository = tempfile::tempdir().unwrap();
    for path in 0..PATHS {
        let name = format!("P/{path}x");
        let one = Version { path: &name, from: 0, until: 100, created: 1, bytes: &content(path) };
        put(repository.path(), &one);
    }
    let source = format!("file://{}", repository.path().display());
    let arguments = ["--source", source.as_str(), "--refresh", "10s"];
    let memory = format!("{}KiB", PATHS * OBJECT_BYTES / 1024 / 3 + 64);
    let service = Service::start_sized(&memory, "512KiB", &arguments);
    let expected: Vec<Vec<u8>> = (0..PATHS).map(content).collect();
    let seconds = std::env::var("IOVCACHE_LOCAL_SECONDS").ok().and_then(|text| text.parse().ok());
    let end = Instant::now() + Duration::from_secs(seconds.unwrap_or(3));
    let all_local = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..2)
            .map(|reader| {
                let (url, expected, all_local) = (service.unix(), &expected, &all_local);
                scope.spawn(move || {
                    let consumer = Consumer::with_local_tables(&url, &format!("reads-{reader}"));
                    let mut random = Random::new(17 + reader);
                    let mut held = Vec::new();
                    // On a busy machine it takes a while until the first one is found.
                    let goes_on = || match all_local.load(Ordering::Relaxed) {
                        0 => Instant::now() < end + PATIENCE,
                        _ => Instant::now() < end,
                    };
                    while goes_on() {
                        // Most of them from few paths, so that some stay in memory.
                        let among = if random.chance(3) { PATHS } else { 4 };
                        let paths: Vec<usize> =
                            (0..2).map(|_| random.below(among as u64) as usize).collect();
                        let request = paths.iter().enumerate().fold(
                            TableRequest::new(),
                            |request, (n, path)| {
                                request.column(format!("c{n}"), format!("P/{path}x"))
                            },
                        );
                        let request = request.timestamps([1, 50, 99]);
                        let Ok(got) = consumer.runtime.block_on(consumer.client.table(request))
                        else {
                            held.clear();
                            continue;
                        };
                        all_local.fetch_add(u64::from(got.is_local()), Ordering::Relaxed);
                        held.push((paths, got));
                        for (paths, table) in &held {
                            for (n, path) in paths.iter().enumerate() {
                                let column = table.column(&format!("c{n}")).unwrap();
                                assert_eq!(column.get(1).unwrap(), Some(&expected[*path][..]));
                            }
                        }
                        if held.len() > 2 {
                            held.remove(0);
                        }
                    }
                })
            })
            .collect();
        readers.into_iter().for_each(|reader| reader.join().unwrap());
    });
    assert!(all_local.load(Ordering::Relaxed) > 0, "no table came from shared memory");
    service.adds_up();
}
