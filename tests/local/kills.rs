//! Consumers that are killed at any moment leave nothing behind.

use std::io::Read as _;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use iovcache::client::TableRequest;

use crate::common::until;
use crate::setup::{Consumer, at, service, until_local};

const PATHS: usize = 8;
/// Names the service to the consumers that are killed.
const URL: &str = "IOVCACHE_KILLED_URL";
/// Number of consumers that are killed; a nightly run has more.
const KILLS: &str = "IOVCACHE_LOCAL_KILLS";

fn path(n: usize) -> String {
    format!("K/P{n}")
}

/// A consumer process, which looks up until it is killed: this test binary again.
fn consumer(url: &str) -> Child {
    let program = std::env::current_exe().unwrap();
    let mut child = Command::new(program)
        .args(["--exact", "kills::the_consumer_that_is_killed", "--ignored", "--nocapture"])
        .env(URL, url)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // The harness writes some bytes before the consumer writes this one.
    let stdout = child.stdout.as_mut().unwrap();
    let mut byte = [0];
    while byte[0] != b'!' {
        stdout.read_exact(&mut byte).unwrap();
    }
    child
}

/// Not a test by itself: see [`consumer`].
#[test]
#[ignore = "a consumer of the other test in this file"]
fn the_consumer_that_is_killed() {
    let Ok(url) = std::env::var(URL) else { return };
    let consumer = Consumer::new(&url, "killed");
    let local = consumer.local();
    let paths: Vec<_> = (0..PATHS).map(|n| local.path(&path(n)).unwrap()).collect();
    paths.iter().for_each(|path| until_local(path, 50));
    let tables = Consumer::with_local_tables(&url, "killed");
    let request = (0..PATHS).fold(TableRequest::new().timestamps([1, 50]), |request, n| {
        request.column(format!("c{n}"), path(n))
    });
    let table = || tables.runtime.block_on(tables.client.table(request.clone())).unwrap();
    while !table().is_local() {
        std::thread::sleep(Duration::from_millis(1));
    }
    println!("!");
    let mut held = std::collections::VecDeque::new();
    let mut held_tables = std::collections::VecDeque::new();
    for n in 0.. {
        if let Ok(view) = paths[n % PATHS].try_at(at(50)) {
            assert!(view.ends_with(b" 0 100 1"));
            held.push_back(view);
        }
        if held.len() > n % 97 {
            held.pop_front();
        }
        if n % 7 == 0 {
            let table = table();
            assert!(table.column("c3").unwrap().get(1).unwrap().unwrap().ends_with(b" 0 100 1"));
            held_tables.push_back(table);
        }
        if held_tables.len() > n % 13 {
            held_tables.pop_front();
        }
    }
}

#[test]
fn a_killed_consumer_leaves_no_session_slot_or_place_behind() {
    let kills = std::env::var(KILLS).ok().and_then(|text| text.parse().ok()).unwrap_or(12);
    let names: Vec<String> = (0..PATHS).map(path).collect();
    let versions: Vec<_> = names.iter().map(|name| (name.as_str(), (0, 100), 1)).collect();
    let (service, _repository) = service(&versions, &[]);
    let observer = Consumer::new(&service.unix(), "observes");
    let path = observer.local().path(&names[0]).unwrap();
    until_local(&path, 50);
    let status = || observer.runtime.block_on(observer.client.status()).unwrap();
    let before = status().sessions.len();
    let (url, mut random) = (service.unix(), 0x9e37_79b9_7f4a_7c15_u64);
    let mut slots_seen = 0;
    for _ in 0..kills {
        let mut child = consumer(&url);
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        std::thread::sleep(Duration::from_micros(random % 5_000));
        slots_seen += status().sessions.iter().map(|session| session.slots).sum::<u64>();
        child.kill().unwrap();
        child.wait().unwrap();
        until("the sessions have ended", || (status().sessions.len() == before).then_some(()));
        assert_eq!(status().sessions.iter().map(|session| session.slots).sum::<u64>(), 0);
    }
    assert!(slots_seen > 0, "no consumer was seen to pin anything");
    assert!(path.try_at(at(50)).is_ok());
    service.adds_up();
}
