//! Consumers that are killed at any moment leave nothing behind.

use std::io::Read as _;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use iovcache::client::TableRequest;

use crate::common::until;
use crate::setup::{Consumer, at, service, until_local};

/// Number of the paths that the consumers look up.
pub(crate) const PATHS: usize = 8;
/// Names the service to the consumers that are killed.
const URL: &str = "IOVCACHE_KILLED_URL";
/// Number of consumers that are killed; a nightly run has more.
const KILLS: &str = "IOVCACHE_LOCAL_KILLS";
/// Number of consumers that look up at the same time.
const AT_ONCE: usize = 4;

/// A path of the consumers; its bytes end with `0 100 1`.
pub(crate) fn path(n: usize) -> String {
    format!("K/P{n}")
}

/// A consumer process, which looks up until it is killed: this test binary again.
pub(crate) fn consumer(url: &str) -> Child {
    consumer_with(url, "kills::the_consumer_that_is_killed", &[])
}

/// A consumer process that runs an ignored test of this binary, until it writes that it has begun.
fn consumer_with(url: &str, test: &str, environment: &[(&str, &str)]) -> Child {
    let program = std::env::current_exe().unwrap();
    let mut child = Command::new(program)
        .args(["--exact", test, "--ignored", "--nocapture"])
        .env(URL, url)
        .envs(environment.iter().copied())
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
    let kills: usize = std::env::var(KILLS).ok().and_then(|text| text.parse().ok()).unwrap_or(12);
    let names: Vec<String> = (0..PATHS).map(path).collect();
    let versions: Vec<_> = names.iter().map(|name| (name.as_str(), (0, 100), 1)).collect();
    let (service, _repository) = service(&versions, &[]);
    let observer = Consumer::new(&service.unix(), "observes");
    let path = observer.local().path(&names[0]).unwrap();
    until_local(&path, 50);
    let status = || observer.runtime.block_on(observer.client.status()).unwrap();
    let before = status().sessions.len();
    let (url, mut random) = (service.unix(), 0x9e37_79b9_7f4a_7c15_u64);
    let (mut slots_seen, mut killed) = (0, 0);
    while killed < kills {
        // They start at the same time, which takes longer than all else.
        let mut children: Vec<Child> = std::thread::scope(|scope| {
            let starts = [(); AT_ONCE].map(|()| scope.spawn(|| consumer(&url)));
            starts.into_iter().map(|start| start.join().unwrap()).collect()
        });
        slots_seen += status().sessions.iter().map(|session| session.slots).sum::<u64>();
        for child in &mut children {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            std::thread::sleep(Duration::from_micros(random % 5_000));
            child.kill().unwrap();
            child.wait().unwrap();
        }
        killed += AT_ONCE;
        until("the sessions have ended", || (status().sessions.len() == before).then_some(()));
        assert_eq!(status().sessions.iter().map(|session| session.slots).sum::<u64>(), 0);
    }
    assert!(slots_seen > 0, "no consumer was seen to pin anything");
    assert!(path.try_at(at(50)).is_ok());
    service.adds_up();
}

/// Names the point at which a consumer of timeframes is killed.
const POINT: &str = "IOVCACHE_KILLED_AT";
/// The timeframe that it takes.
const TIMEFRAME: u64 = 7;

/// Steps of a consumer from its timeframe to the report.
const POINTS: [&str; 3] = ["in hand", "read", "released"];

/// Not a test by itself: a consumer that is killed at a step.
#[test]
#[ignore = "a consumer of the other test in this file"]
fn the_consumer_that_is_killed_with_a_timeframe() {
    let (Ok(url), Ok(point)) = (std::env::var(URL), std::env::var(POINT)) else { return };
    let consumer = Consumer::with_local_tables(&url, "killed");
    let take =
        || consumer.runtime.block_on(consumer.client.timeframe(TIMEFRAME, "killed")).unwrap();
    let mut table = take();
    while !table.is_local() {
        table = take();
    }
    let stop = |at: &str| {
        if point == at {
            println!("!");
            std::thread::sleep(Duration::from_secs(600));
        }
    };
    stop("in hand");
    assert!(table.column("b").unwrap().get(0).unwrap().unwrap().ends_with(b" 0 100 1"));
    stop("read");
    drop(table);
    stop("released");
}

#[test]
fn a_consumer_that_is_killed_with_a_timeframe_leaves_no_pin_and_its_timeframe_in_flight() {
    let kills = std::env::var(KILLS).ok().and_then(|text| text.parse().ok()).unwrap_or(6);
    let (service, _repository) = service(&[("A/B", (0, 100), 1)], &[]);
    let observer = Consumer::new(&service.unix(), "observes");
    let status = || observer.runtime.block_on(observer.client.status()).unwrap();
    let column =
        iovcache::table::ColumnRequest::new("b", iovcache::object::ObjectPath::new("A/B").unwrap());
    let (mut slots_seen, columns) = (0, [column]);
    for kill in 0..kills {
        let names = ["killed".to_owned()];
        let put = observer.client.put_timeframe(TIMEFRAME, vec![Some(5)], &columns, &names);
        observer.runtime.block_on(put).unwrap();
        let mut child = consumer_with(
            &service.unix(),
            "kills::the_consumer_that_is_killed_with_a_timeframe",
            &[(POINT, POINTS[kill % POINTS.len()])],
        );
        slots_seen += status().sessions.iter().map(|session| session.slots).sum::<u64>();
        // It is dropped while the consumer has it, or not.
        let is_dropped = kill % 2 == 0;
        let drop_it = || {
            let body = serde_json::json!({"timeframe": TIMEFRAME});
            let dropped = observer.client.act::<serde_json::Value>("drop_timeframe", &body);
            observer.runtime.block_on(dropped).unwrap();
        };
        if is_dropped {
            drop_it();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let free = || {
            let status = status();
            let slots = status.sessions.iter().map(|session| session.slots).sum::<u64>();
            (slots == 0 && (!is_dropped || status.memory.pinned_bytes == 0)).then_some(())
        };
        until("its pins have ended", free);
        if !is_dropped {
            assert_eq!(status().timeframes.len(), 1, "no other consumer has reported it");
            drop_it();
        }
        until("its objects are free", || (status().memory.pinned_bytes == 0).then_some(()));
    }
    assert!(slots_seen > 0, "no consumer was seen to pin anything");
    service.adds_up();
}
