//! Loads that are slow, fail, or lose their consumers: a real consumer, a real slow server.

use std::time::Duration;

use iovcache::client::TableRequest;
use iovcache::error::{Coded as _, ErrorKind};
use iovcache::table::{Encoding, View};
use serde_json::json;

use crate::common::{Service, until};
use crate::consumer::Consumer;
use crate::consumers::{observer, session_ends};
use crate::data::{bytes_at, path};
use crate::fake_ccdb::{Ask, FakeCcdb, Fault, Kind, Upload};

/// A CCDB with path 0 and path 1, and a service in front of it.
async fn slow_server() -> (FakeCcdb, Service) {
    let server = FakeCcdb::start(Kind::Sql).await;
    for number in 0..2 {
        server.upload(Upload::new(&path(number), 0, 10).bytes(bytes_at(number, 5)));
    }
    let service = Service::start_sized("3MiB", "1MiB", &["--source", &server.url()]);
    (server, service)
}

fn one(number: u64) -> TableRequest {
    TableRequest::new().column("c", path(number)).timestamps([5])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_whose_consumer_dies_goes_on_for_the_other_waiters() {
    let (server, service) = slow_server().await;
    let client = observer(&service).await;
    server.habits().latency = Duration::from_millis(700);
    let mut leader = Consumer::start(&service.unix(), "leader");
    leader.tell(&json!({"take": [0], "at": 5}));
    until("the load to begin", || (server.counts().bodies > 0).then_some(()));
    let mut follower = Consumer::start(&service.unix(), "follower");
    follower.tell(&json!({"take": [0], "at": 5}));
    let both = || async {
        let status = client.status().await.unwrap();
        status.sessions.len() == 2
    };
    while !both().await {}
    let pid = leader.pid();
    leader.kill();
    session_ends(&client, pid).await;
    let said = follower.said();
    assert_eq!(said["taken"], bytes_at(0, 5).len());
    assert_eq!(server.counts().bodies_sent, 1, "no load was repeated");
    assert!(follower.end().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_without_waiters_ends_and_its_memory_is_free_again() {
    let (server, service) = slow_server().await;
    let client = observer(&service).await;
    // The load would take minutes.
    server.inject(Ask::Body, Fault::SlowBody(Duration::from_millis(2)), 0);
    for round in 1..=3 {
        let mut victim = Consumer::start(&service.unix(), "victim");
        victim.tell(&json!({"take": [0], "at": 5}));
        until("the load to begin", || (server.counts().bodies >= round).then_some(()));
        let mut reserved = false;
        for _ in 0..2_000 {
            reserved = client.status().await.unwrap().memory.used_bytes > 0;
            if reserved {
                break;
            }
        }
        assert!(reserved, "room is taken while it is loaded");
        let pid = victim.pid();
        victim.kill();
        session_ends(&client, pid).await;
        let deadline = std::time::Instant::now() + crate::common::PATIENCE;
        while client.status().await.unwrap().memory.used_bytes > 0 {
            assert!(std::time::Instant::now() < deadline, "the room is not given back");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        service.adds_up();
    }
    server.heal();
    let table = client.table(one(0)).await.unwrap();
    assert_eq!(table.column("c").unwrap().get(0).unwrap().unwrap(), bytes_at(0, 5));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_requests_for_one_absent_object_cause_one_look_up_also_when_it_fails() {
    let (server, service) = slow_server().await;
    let client = observer(&service).await;
    // The valid version is known in advance, so all requests need the body.
    let objects = one(1).view(View::Objects);
    server.inject(Ask::Body, Fault::HangUp, 0);
    let _ = client.batches(&objects.clone().wait(Duration::from_millis(500))).await;
    server.heal();
    server.habits().latency = Duration::from_millis(700);
    let asked = (0..1000).map(|_| {
        let client = client.clone();
        tokio::spawn(async move { client.batches(&one(0).encoding(Encoding::Plain)).await })
    });
    let asked: Vec<_> = asked.collect();
    for one in asked {
        assert_eq!(one.await.unwrap().unwrap()[0].num_rows(), 1);
    }
    assert_eq!(server.counts().bodies_sent, 1);

    // A load that fails is shared too: no request starts another while the first one tries (and
    // retries).
    let before = server.counts().bodies;
    server.inject(Ask::Body, Fault::Status(404), 0);
    let asked = (0..1000).map(|_| {
        let client = client.clone();
        tokio::spawn(async move { client.batches(&one(1)).await })
    });
    let asked: Vec<_> = asked.collect();
    for one in asked {
        let error = one.await.unwrap().expect_err("the body cannot be had");
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{}", error.message());
    }
    let bodies = server.counts().bodies - before;
    assert!(bodies < 50, "{bodies} requests for a thousand clients that waited together");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_is_down_names_path_and_time_and_what_is_known_is_served_stale() {
    let (server, service) = slow_server().await;
    let client = observer(&service).await;
    client.batches(&one(0)).await.unwrap();
    server.inject(Ask::LookUp, Fault::Status(503), 0);
    server.inject(Ask::Listing, Fault::Status(503), 0);
    server.inject(Ask::Body, Fault::Status(503), 0);
    let unknown = one(1).wait(Duration::from_millis(800));
    let error = client.batches(&unknown).await.expect_err("it is unknown");
    assert!(error.kind().is_transient(), "{}", error.message());
    assert!(error.message().contains(&path(1)), "{}", error.message());
    let table = client.table(one(0)).await.unwrap();
    assert_eq!(table.column("c").unwrap().get(0).unwrap().unwrap(), bytes_at(0, 5));
}
