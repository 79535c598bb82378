//! Consumers that die, stop, or release in every way at once.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use iovcache::cache::Caller;
use iovcache::client::{Client, ClientOptions, TableRequest};
use iovcache::error::Coded as _;
use iovcache::shm::PoolOptions;
use iovcache::shm::attach::Attachment;
use iovcache::source::repository::{RepositoryOptions, RepositorySource};
use iovcache::table::{Consumed, Encoding, Register, Request};
use iovcache::{Cache, Clock, Timestamp};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::common::{Service, http_get, until};
use crate::consumer::Consumer;
use crate::data::{Chance, fill, path};

/// A service over the objects, with so little memory that some must be evicted.
pub(crate) fn service(repository: &Path, arguments: &[&str]) -> Service {
    let source = format!("file://{}", repository.display());
    let all = [&["--source", source.as_str(), "--refresh", "200ms"], arguments].concat();
    Service::start_sized("3MiB", "1MiB", &all)
}

/// A client that observes a service without a session of its own.
pub(crate) async fn observer(service: &Service) -> Client {
    let options = ClientOptions { remote: true, ..ClientOptions::default() };
    Client::connect_with(&service.unix(), options).await.unwrap()
}

/// Waits until the session of a process is gone, and returns the duration.
pub(crate) async fn session_ends(client: &Client, pid: u32) -> Duration {
    let began = Instant::now();
    loop {
        let status = client.status().await.unwrap();
        if !status.sessions.iter().any(|session| session.pid.unsigned_abs() == pid) {
            return began.elapsed();
        }
        assert!(began.elapsed() < crate::common::PATIENCE, "the session of a dead process goes on");
    }
}

fn metric(service: &Service, name: &str) -> u64 {
    let (_, text) = http_get(&service.http(), "/metrics");
    let line = text.lines().find(|line| line.starts_with(name)).unwrap();
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_consumer_releases_its_pins_and_the_bytes_of_others_stay() {
    let folder = tempfile::tempdir().unwrap();
    fill(folder.path());
    let service = service(folder.path(), &[]);
    let client = observer(&service).await;
    let mut survivor = Consumer::start(&service.unix(), "survivor");
    survivor.take(&[0, 1], 5);
    let held = client.status().await.unwrap().memory.pinned_bytes;
    let mut longest = Duration::ZERO;
    for round in 1..=5 {
        let mut victim = Consumer::start(&service.unix(), "victim");
        // One object that the survivor holds too, and others that it does not hold.
        victim.take(&[1, 2, 3], 5);
        assert!(client.status().await.unwrap().memory.pinned_bytes > held);
        let pid = victim.pid();
        victim.kill();
        longest = longest.max(session_ends(&client, pid).await);
        assert_eq!(client.status().await.unwrap().memory.pinned_bytes, held);
        assert_eq!(metric(&service, "iovcache_sessions_ended_holding_total"), round);
        assert_eq!(survivor.verify(), json!({"right": 1, "stale": 0}));
        service.adds_up();
    }
    eprintln!("the pins of a killed consumer were gone after {longest:?} at most");
    // Room for new objects is made from those of the dead, never from those of the living.
    for at in (5..80).step_by(10) {
        let mut other = Consumer::start(&service.unix(), "other");
        other.take(&[4, 5, 6, 7, 8, 9, 10, 11], at);
    }
    assert!(client.status().await.unwrap().evictions > 0);
    assert_eq!(survivor.verify(), json!({"right": 1, "stale": 0}));
    assert!(survivor.end().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_sent_and_not_yet_received_are_pinned_until_the_session_ends() {
    let folder = tempfile::tempdir().unwrap();
    fill(folder.path());
    let service = service(folder.path(), &[]);
    let client = observer(&service).await;
    for _ in 0..5 {
        let mut victim = Consumer::start(&service.unix(), "victim");
        let request = json!({"columns": {"a": path(0), "b": path(1)}, "timestamps": [5]});
        assert_eq!(victim.ask(&json!({"send": request})), json!({"sent": true}));
        let status = client.status().await.unwrap();
        let of_victim = |session: &&iovcache::table::SessionStatus| {
            session.pid.unsigned_abs() == victim.pid() && session.pinned_bytes > 0
        };
        let held = status.sessions.iter().find(of_victim).expect("a session that pins it");
        assert_eq!(held.pinned_bytes, status.memory.pinned_bytes);
        let pid = victim.pid();
        victim.kill();
        session_ends(&client, pid).await;
        assert_eq!(client.status().await.unwrap().memory.pinned_bytes, 0);
        service.adds_up();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_consumer_is_not_dead_and_what_it_holds_is_there_when_it_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    fill(folder.path());
    let service = service(folder.path(), &[]);
    let client = observer(&service).await;
    let mut sleeper = Consumer::start(&service.unix(), "sleeper");
    sleeper.take(&[0, 1, 2], 5);
    let held = client.status().await.unwrap().memory.pinned_bytes;
    sleeper.signal("STOP");
    // Meanwhile other consumers need all of the memory, several times over.
    let mut busy = Consumer::start(&service.unix(), "busy");
    for round in 0..40 {
        busy.take(&[3 + round % 9, 3 + (round + 1) % 9], (round as i64 * 7) % 80);
        busy.ask(&json!({"drop": true}));
    }
    let status = client.status().await.unwrap();
    assert!(status.evictions > 0, "{status:?}");
    assert_eq!(status.memory.pinned_bytes, held);
    assert_eq!(service.adds_up()["sessions"], 2);
    sleeper.signal("CONT");
    assert_eq!(sleeper.verify(), json!({"right": 1, "stale": 0}));
    sleeper.take(&[4], 15);
    assert!(sleeper.end().success());
    until("its pins to go", || (service.adds_up()["pinned_bytes"] == 0).then_some(()));
}

/// A lease that is released while its session hangs up, its time expires and its timeframe is
/// consumed and dropped, all at the same moment, ends exactly once.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn release_hang_up_expiry_and_consumed_at_once_are_one_end() {
    let folder = tempfile::tempdir().unwrap();
    fill(folder.path());
    let source =
        RepositorySource::open_folder(folder.path(), RepositoryOptions::default()).unwrap();
    let clock = Clock::manual(Timestamp::from_millis(0));
    let memory =
        PoolOptions { memory_bytes: 2 << 20, segment_bytes: 1 << 20, ..PoolOptions::default() };
    let cache = Cache::builder()
        .source(Arc::new(source))
        .memory(memory)
        .clock(clock.clone())
        .lease_limit(Duration::from_millis(100))
        .build()
        .unwrap();
    let sockets = tempfile::tempdir().unwrap();
    let attach = sockets.path().join("attach.sock");
    let listener = tokio::net::UnixListener::bind(&attach).unwrap();
    let (stop, serving) = (CancellationToken::new(), cache.clone());
    let attending = tokio::spawn({
        let stop = stop.clone();
        async move { serving.serve_attach(listener, Default::default(), stop).await }
    });
    let mut chance = Chance::of_the_test("one end");
    let parsed = |json: String| Request::parse(json.as_bytes()).unwrap();
    for round in 0..100_u64 {
        let at = attach.clone();
        let attachment = tokio::task::spawn_blocking(move || Attachment::open(&at, "x", None));
        let attachment = attachment.await.unwrap().unwrap();
        let session = attachment.session();
        let columns = format!(r#"{{"a": "{}", "b": "{}"}}"#, path(0), path(chance.below(6)));
        let register = format!(r#"{{"columns": {columns}, "consumers": ["x"]}}"#);
        let register = Register::parse(register.as_bytes()).unwrap();
        let times: iovcache::index::Timestamps = [Some(5)].into_iter().collect();
        cache.register(round, times, &register, None).await.unwrap();
        let requests = [
            parsed(format!(r#"{{"timeframe": {round}, "consumer": "x", "session": "{session}"}}"#)),
            parsed(format!(
                r#"{{"columns": {columns}, "timestamps": [5], "session": "{session}"}}"#
            )),
            parsed(format!(r#"{{"columns": {columns}, "timestamps": [5]}}"#)),
        ];
        let mut leases = Vec::new();
        for request in &requests {
            let answer = cache.answer(request, &Caller::default()).await.unwrap();
            leases.push(answer.lease().clone());
        }
        let mut ends: Vec<Box<dyn FnOnce() + Send>> = vec![
            Box::new(move || drop(attachment)),
            Box::new({
                let clock = clock.clone();
                move || clock.advance(Duration::from_millis(200))
            }),
            Box::new({
                let cache = cache.clone();
                let one = Consumed::One { timeframe: round, consumer: "x".to_owned() };
                move || drop(cache.consumed(&one))
            }),
            Box::new({
                let cache = cache.clone();
                move || drop(cache.drop_timeframe(round))
            }),
        ];
        for lease in leases.into_iter().flat_map(|lease| [lease.clone(), lease]) {
            let cache = cache.clone();
            ends.push(Box::new(move || {
                cache.release(&lease);
            }));
        }
        // In random order, and all at once.
        for place in (1..ends.len()).rev() {
            ends.swap(place, chance.below(place as u64 + 1) as usize);
        }
        let ends: Vec<_> = ends.into_iter().map(std::thread::spawn).collect();
        ends.into_iter().for_each(|end| end.join().unwrap());
        until("all to be released", || {
            let status = cache.status();
            (status.memory.pinned_bytes == 0 && status.sessions.is_empty()).then_some(())
        });
        cache.check().unwrap();
    }
    stop.cancel();
    attending.await.unwrap();
}

/// A remote consumer holds leases. A consumer stopped for longer than a lease lasts has lost it,
/// and gets an error that says so.
#[tokio::test(flavor = "multi_thread")]
async fn a_remote_consumer_that_sleeps_too_long_is_told_that_its_lease_has_ended() {
    if std::env::var_os("IOVCACHE_NIGHTLY").is_none() {
        eprintln!("it takes the minute that a lease lasts: only with IOVCACHE_NIGHTLY");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    fill(folder.path());
    let service = service(folder.path(), &[]);
    let client = observer(&service).await;
    let request = TableRequest::new().column("a", path(0)).timestamps([5]).consumer("far");
    let batches = client.batches(&request.clone().encoding(Encoding::Plain)).await.unwrap();
    let lease = batches[0].schema().metadata()["iovcache.lease"].clone();
    tokio::time::sleep(Duration::from_secs(63)).await;
    let error = client
        .act::<serde_json::Value>("release", &json!({"lease": lease}))
        .await
        .expect_err("it has ended");
    assert!(error.message().contains("IOV-5002"), "{}", error.message());
    assert_eq!(service.adds_up()["pinned_bytes"], 0);
}
