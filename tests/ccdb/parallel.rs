//! How many requests are sent to a host at one time.

use std::time::Duration;

use futures::future::join_all;

use super::fake_ccdb::Upload;
use super::*;

const OBJECTS: usize = 100;

fn path(number: usize) -> String {
    format!("A/Obj{number}")
}

async fn server() -> FakeCcdb {
    let server = FakeCcdb::start(Kind::Local).await;
    for number in 0..OBJECTS {
        server.upload(Upload::new(&path(number), 0, 100).bytes(path(number).into_bytes()));
    }
    server
}

/// Looks up and loads all objects at once.
async fn load_all(source: &CcdbSource) {
    let loads = (0..OBJECTS).map(|number| async move {
        let version = version_at(source, &path(number), 50).await;
        assert_eq!(bytes_of(source, &version).await.unwrap(), path(number).into_bytes());
    });
    join_all(loads).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_cold_objects_are_requested_in_parallel_and_each_with_two_requests() {
    let server = server().await;
    server.habits().latency = Duration::from_millis(200);
    let patient = CcdbOptions { first_byte_millis: 10_000, ..CcdbOptions::default() };
    let source = source(&server, patient);
    load_all(&source).await;
    assert!(server.busiest() >= 32, "at most {} requests at one time", server.busiest());
    let counts = server.counts();
    assert_eq!((counts.listings, counts.bodies), (OBJECTS, OBJECTS));
    // Whether the server forwards look-ups without a result is asked once.
    assert!(counts.look_ups <= 1, "{counts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_bears_few_requests_gets_few_at_one_time_and_all_objects_arrive() {
    const BEARS: usize = 8;
    let server = server().await;
    server.habits().latency = Duration::from_millis(20);
    server.habits().bears = Some(BEARS);
    let patient = CcdbOptions { retries: 20, ..CcdbOptions::default() };
    let source = source(&server, patient);
    load_all(&source).await;
    let first = server.counts().overload;
    for number in 0..OBJECTS {
        source.forget(&ObjectPath::new(&path(number)).unwrap());
    }
    load_all(&source).await;
    // The limits are known now: they rise by one per 16 answers, to see whether the host bears more.
    let second = server.counts().overload - first;
    assert!(second * 2 < first, "{first}, then {second} were too many");
}
