//! Services that are killed, stopped, or started twice.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use iovcache::client::{Client, TableRequest};
use serde_json::json;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::common::{PATIENCE, Service, run, until};
use crate::consumer::Consumer;
use crate::consumers::{observer, service};
use crate::data::{bytes_at, fill, path};
use crate::fake_ccdb::{Ask, FakeCcdb, Fault, Kind, Upload};

#[tokio::test(flavor = "multi_thread")]
async fn consumers_of_a_killed_service_read_on_and_come_back_by_themselves_and_old_headers_are_stale()
 {
    let folder = tempfile::tempdir().unwrap();
    fill(folder.path());
    let sockets = tempfile::tempdir().unwrap();
    let arguments = ["--socket", sockets.path().to_str().unwrap()];
    let first = service(folder.path(), &arguments);
    let mut consumers: Vec<Consumer> =
        ["one", "two"].map(|name| Consumer::start(&first.unix(), name)).into();
    for (place, consumer) in consumers.iter_mut().enumerate() {
        consumer.take(&[0, 1 + place as u64], 5);
        consumer.take(&[3], 15);
    }
    drop(first.kill());
    for consumer in &mut consumers {
        // No SIGBUS, and unchanged bytes.
        assert_eq!(consumer.verify(), json!({"right": 2, "stale": 0}));
        // A request while no service runs: it waits.
        consumer.tell(&json!({"take": [5], "at": 25}));
    }
    std::thread::sleep(Duration::from_millis(200));
    let second = service(folder.path(), &arguments);
    for consumer in &mut consumers {
        let said = consumer.said();
        assert_eq!(said["taken"], bytes_at(5, 25).len(), "{said}");
        assert_eq!(consumer.verify(), json!({"right": 3, "stale": 0}));
        // In the successor's segments: the first ones belonged to the dead service.
        let said = consumer.ask(&json!({"old": true}));
        let old: Vec<String> = serde_json::from_value(said["old"].clone()).unwrap();
        assert_eq!(old.len(), 4);
        assert!(old[..3].iter().all(|one| one == "IOV-4045" || one == "IOV-4040"), "{old:?}");
        assert_eq!(old[3], "right");
    }
    assert_eq!(second.adds_up()["sessions"], 2);
    assert!(consumers.into_iter().all(|consumer| consumer.end().success()));
    let (status, log) = second.stop();
    assert_eq!(status, Some(0), "{log}");
}

#[test]
fn a_second_service_of_one_name_ends_and_names_the_process_of_the_first() {
    let folder = tempfile::tempdir().unwrap();
    let (sockets, segments) = (folder.path().join("s"), folder.path().join("m"));
    let named = |sockets: &str, segments: &str| {
        let common = ["--source", "memory:", "--listen", "127.0.0.1:0", "--socket", sockets];
        [&common[..], &["--backing", "shm", "--shm-folder", segments]]
            .concat()
            .into_iter()
            .map(str::to_owned)
            .collect::<Vec<String>>()
    };
    let [sockets, segments] = [&sockets, &segments].map(|path| path.to_str().unwrap());
    let arguments = named(sockets, segments);
    let first: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let first = Service::start(&first);
    let other = folder.path().join("other");
    let other = other.to_str().unwrap();
    // Once with the first service's sockets, once with its segments.
    for (sockets, segments) in [(sockets, other), (other, segments)] {
        let arguments = named(sockets, segments);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let second = run(&[&["serve"], &arguments[..]].concat());
        let text = String::from_utf8_lossy(&second.stderr).into_owned();
        assert_eq!(second.status.code(), Some(1), "{text}");
        assert!(text.contains(&first.pid().to_string()), "{text}");
    }
    assert_eq!(first.stop().0, Some(0));
}

/// A service with a request that its source does not answer for minutes.
async fn asked_for_what_does_not_come() -> (FakeCcdb, Service, Client) {
    let server = FakeCcdb::start(Kind::Sql).await;
    server.upload(Upload::new(&path(0), 0, 10).bytes(bytes_at(0, 5)));
    server.inject(Ask::Body, Fault::SlowBody(Duration::from_millis(2)), 0);
    let service = Service::start(&["--source", &server.url()]);
    let client = observer(&service).await;
    tokio::spawn({
        let client = client.clone();
        async move {
            let request = TableRequest::new().column("c", path(0)).timestamps([5]);
            let _ = client.batches(&request).await;
        }
    });
    until("the load to begin", || (server.counts().bodies > 0).then_some(()));
    (server, service, client)
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_says_not_serving_drains_for_a_bounded_time_and_is_a_good_end() {
    let (_server, service, _client) = asked_for_what_does_not_come().await;
    let endpoint = service.tcp().replace("grpc://", "http://");
    let channel = tonic::transport::Endpoint::from_shared(endpoint).unwrap();
    let mut health = HealthClient::new(channel.connect().await.unwrap());
    let request = HealthCheckRequest { service: String::new() };
    let mut watch = health.watch(request).await.unwrap().into_inner();
    let serving = watch.message().await.unwrap().unwrap();
    assert_eq!(serving.status(), ServingStatus::Serving);
    let attach = service.attach();
    service.signal("TERM");
    // The change is announced before any call is cut off.
    let stopping = tokio::time::timeout(PATIENCE, watch.message()).await.unwrap();
    assert_eq!(stopping.unwrap().unwrap().status(), ServingStatus::NotServing);
    // The running request would take minutes: it gets its time limit, and no more.
    let began = Instant::now();
    let (status, log) = service.wait();
    assert_eq!(status, Some(0), "{log}");
    assert!(began.elapsed() > Duration::from_secs(5), "requests under way get their time");
    assert!(!attach.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_sigterm_does_not_wait_for_what_is_under_way() {
    let (_server, service, _client) = asked_for_what_does_not_come().await;
    let attach = service.attach();
    service.signal("TERM");
    std::thread::sleep(Duration::from_millis(300));
    let began = Instant::now();
    service.signal("TERM");
    let (status, log) = service.wait();
    assert_eq!(status, Some(0), "{log}");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert!(!attach.exists(), "it still leaves in order");
}

/// A service that pauses for a while (a debugger, a node that swaps) is slow, not dead.
#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_is_stopped_for_a_while_answers_when_it_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    fill(folder.path());
    let service = service(folder.path(), &[]);
    let mut consumer = Consumer::start(&service.unix(), "patient");
    consumer.take(&[0], 5);
    service.signal("STOP");
    consumer.tell(&json!({"take": [1], "at": 5}));
    std::thread::sleep(Duration::from_millis(500));
    assert!(consumer.last_said().is_none());
    service.signal("CONT");
    assert_eq!(consumer.said()["taken"], bytes_at(1, 5).len());
    assert_eq!(consumer.verify(), json!({"right": 2, "stale": 0}));
    let status = Command::new("kill")
        .args(["-0", &service.pid().to_string()])
        .stderr(Stdio::null())
        .status();
    assert!(status.unwrap().success());
}

/// The answer to a client's first call is awaited like any other: the client is attached already, so
/// the service is the right one.
#[tokio::test(flavor = "multi_thread")]
async fn a_first_table_waits_for_a_service_that_is_stopped_for_longer_than_pings_take() {
    let server = FakeCcdb::start(Kind::Sql).await;
    server.upload(Upload::new(&path(0), 0, 10).bytes(bytes_at(0, 5)));
    let service = Service::start(&["--source", &server.url()]);
    server.habits().latency = Duration::from_millis(500);
    let client = Client::connect(&service.unix()).await.unwrap();
    let waiting = tokio::spawn(async move {
        let request = TableRequest::new().column("c", path(0)).timestamps([5]);
        client.table(request.wait(PATIENCE)).await
    });
    until("the load to begin", || (server.counts().bodies > 0).then_some(()));
    service.signal("STOP");
    tokio::time::sleep(Duration::from_secs(11)).await;
    assert!(!waiting.is_finished());
    service.signal("CONT");
    let table = waiting.await.unwrap().unwrap();
    let column = table.column("c").unwrap();
    assert_eq!(column.get(0).unwrap().unwrap(), bytes_at(0, 5));
}
