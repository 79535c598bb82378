//! Several hosts, one of them down; limits of concurrent requests.

use std::time::{Duration, Instant};

use iovcache::source::Reachability;

use super::fake_ccdb::{Ask, Fault, Upload};
use super::*;

/// An address without a listener.
fn closed_address() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

/// A server at this address that has no object at all.
async fn answer_not_found(address: &str) -> tokio::task::JoinHandle<()> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = tokio::net::TcpListener::bind(address).await.unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.read(&mut [0; 4096]).await;
            let _ = stream
                .write_all(b"HTTP/1.1 404 \r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                .await;
        }
    })
}

#[tokio::test]
async fn a_host_that_is_gone_is_stepped_over() {
    let server = FakeCcdb::start(Kind::Sql).await;
    let gone = closed_address();
    server.upload(Upload::new("A/One", 0, 100).bytes("hello"));
    let url = format!("http://{gone},{}", server.url());
    let source = CcdbSource::new(&url, short()).unwrap();
    let began = iovcache::Clock::system().wall();
    for _ in 0..10 {
        let version = version_at(&source, "A/One", 50).await;
        assert_eq!(bytes_of(&source, &version).await.unwrap(), b"hello");
    }
    let health = source.health();
    assert_eq!(health[0].url, format!("http://{gone}"));
    let Reachability::Down { since } = health[0].state else { panic!("{:?}", health[0]) };
    assert!(began <= since && since <= iovcache::Clock::system().wall(), "{began} {since}");
    assert_eq!(health[1].state, Reachability::Up);
    assert_eq!(health[0].requests, 1, "the host that answered is asked first then");
    assert_eq!((health[0].failures, health[1].failures), (1, 0));
    assert_eq!(health[1].requests, 12, "a listing, a miss, and the bodies");
}

#[tokio::test]
async fn an_answer_that_makes_no_sense_is_asked_for_at_the_next_host() {
    let wrong = FakeCcdb::start(Kind::Sql).await;
    let right = FakeCcdb::start(Kind::Sql).await;
    right.upload(Upload::new("A/One", 0, 100).bytes("hello"));
    wrong.inject(Ask::LookUp, Fault::Usage, 0);
    wrong.inject(Ask::Body, Fault::Usage, 0);
    let url = format!("{},{}", wrong.url(), right.url());
    let source = CcdbSource::new(&url, by_time()).unwrap();
    let version = version_at(&source, "A/One", 50).await;
    assert_eq!(bytes_of(&source, &version).await.unwrap(), b"hello");
}

#[tokio::test]
async fn refused_connections_open_the_breaker_and_a_probe_closes_it() {
    let address = closed_address();
    let options = CcdbOptions { retries: 3, breaker_failures: 3, ..by_time() };
    let source = CcdbSource::new(&format!("http://{address}"), options).unwrap();
    let error = look_up(&source, "A/One", 50).await.unwrap_err();
    assert!(matches!(error, SourceError::Down { .. }), "{error:?}");
    let requests = source.health()[0].requests;
    assert_eq!(requests, 3, "the fourth was held back");
    let started = Instant::now();
    let error = look_up(&source, "A/One", 50).await.unwrap_err();
    assert!(error.to_string().contains("left alone"), "{error}");
    assert!(started.elapsed() < Duration::from_millis(80));
    assert_eq!(source.health()[0].requests, requests);
    // The server is back, which the first probe detects.
    let answering = answer_not_found(&address).await;
    tokio::time::sleep(Duration::from_millis(120)).await;
    assert!(look_up(&source, "A/One", 50).await.unwrap().versions.is_empty());
    assert_eq!(source.health()[0].state, Reachability::Up);
    answering.abort();
}

#[tokio::test]
async fn calls_that_wait_for_a_host_together_get_their_answers_though_it_was_left_alone() {
    const CALLS: u32 = 20;
    let address = closed_address();
    // It opens in the second round of the calls: each of them has been refused before.
    let options = CcdbOptions {
        look_up_total_millis: 60_000,
        retries: 500,
        breaker_failures: 2 * CALLS,
        backoff_cap_millis: 100,
        ..by_time()
    };
    let source = Arc::new(CcdbSource::new(&format!("http://{address}"), options).unwrap());
    let mut calls = tokio::task::JoinSet::new();
    for n in 0..CALLS {
        let source = Arc::clone(&source);
        calls.spawn(async move { look_up(&source, &format!("A/P{n}"), 50).await });
    }
    let deadline = Instant::now() + Duration::from_secs(60);
    while source.health()[0].state == Reachability::Up {
        assert!(Instant::now() < deadline, "{:?}", source.health());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // The calls find it left alone at least once.
    tokio::time::sleep(Duration::from_millis(150)).await;
    let answering = answer_not_found(&address).await;
    for found in calls.join_all().await {
        assert!(found.unwrap().versions.is_empty());
    }
    answering.abort();
}

#[tokio::test]
async fn failures_of_one_path_do_not_shut_out_the_others() {
    let server = FakeCcdb::start(Kind::Sql).await;
    server.upload(Upload::new("A/Good", 0, 100));
    server.inject_for("A/Bad", Ask::LookUp, Fault::Status(500), 0);
    let options = CcdbOptions { retries: 1, breaker_failures: 1, ..by_time() };
    let source = source(&server, options);
    for _ in 0..5 {
        assert!(matches!(look_up(&source, "A/Bad", 50).await, Err(SourceError::Down { .. })));
        version_at(&source, "A/Good", 50).await;
    }
    let health = &source.health()[0];
    assert_eq!((health.state, health.requests, health.failures), (Reachability::Up, 15, 10));
}

#[tokio::test]
async fn no_more_is_asked_at_once_than_is_allowed() {
    let server = FakeCcdb::start(Kind::Sql).await;
    server.habits().latency = Duration::from_millis(10);
    let source = Arc::new(source(&server, CcdbOptions { max_concurrent: 3, ..by_time() }));
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..20 {
        server.upload(Upload::new(&format!("A/P{n}"), 0, 100));
        let source = Arc::clone(&source);
        tasks.spawn(async move { version_at(&source, &format!("A/P{n}"), 50).await.id });
    }
    assert_eq!(tasks.join_all().await.len(), 20);
    assert!(server.busiest() <= 3, "{}", server.busiest());
    // A connection that is just being returned is missed by a request that looks for one. On a busy
    // machine a few more are opened than are used at once, but not one per request.
    assert!(server.counts().connections <= 10, "{}", server.counts().connections);
}

#[tokio::test]
async fn many_cold_objects_behind_a_slow_network_take_a_few_round_trips() {
    let server = FakeCcdb::start(Kind::Sql).await;
    server.habits().latency = Duration::from_millis(50);
    let source = Arc::new(source(&server, CcdbOptions { first_byte_millis: 5_000, ..short() }));
    for n in 0..100 {
        server.upload(Upload::new(&format!("A/P{n}"), 0, 100).bytes(vec![n as u8; 100_000]));
    }
    let started = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..100 {
        let source = Arc::clone(&source);
        tasks.spawn(async move {
            let version = version_at(&source, &format!("A/P{n}"), 50).await;
            bytes_of(&source, &version).await.unwrap().len()
        });
    }
    assert_eq!(tasks.join_all().await.iter().sum::<usize>(), 10_000_000);
    let took = started.elapsed();
    println!("100 objects of 100 kB behind 50 ms: {took:?}");
    // A quiet machine needs 0.6 s; one after another would take 10 s.
    assert!(took < Duration::from_secs(4), "{took:?}");
}

#[tokio::test]
async fn more_requests_than_a_connection_takes_are_no_failures() {
    let server = FakeCcdb::start(Kind::Sql).await;
    server.upload(Upload::new("A/One", 0, 3000));
    let source = source(&server, by_time());
    for millis in 0..1100 {
        version_at(&source, "A/One", millis).await;
    }
    assert_eq!(server.counts().connections, 2);
    assert_eq!(source.health()[0].failures, 0);
}

#[tokio::test]
async fn not_here_is_no_answer_while_another_host_could_not_be_asked() {
    let server = FakeCcdb::start(Kind::Sql).await;
    server.upload(Upload::new("A/One", 0, 100));
    let version = version_at(&source(&server, short()), "A/One", 50).await;
    let empty = FakeCcdb::start(Kind::Sql).await;
    for url in [
        format!("{},http://{}", empty.url(), closed_address()),
        format!("http://{},{}", closed_address(), empty.url()),
    ] {
        let source = CcdbSource::new(&url, CcdbOptions { retries: 1, ..short() }).unwrap();
        let error = bytes_of(&source, &version).await.unwrap_err();
        assert!(matches!(error, SourceError::Down { .. }), "{error:?}");
    }
}
