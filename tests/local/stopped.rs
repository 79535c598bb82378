//! SIGSTOP while a consumer waits for a timeframe or looks up: of the consumer, and of the service.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use iovcache::Coded as _;
use iovcache::client::TableRequest;
use iovcache::error::ErrorKind;
use iovcache::object::ObjectPath;
use iovcache::table::ColumnRequest;

use crate::common::{Service, signal, until};
use crate::fake_ccdb::{Ask, FakeCcdb, Fault, Kind, Upload};
use crate::kills;
use crate::pressure::Churn;
use crate::setup::Consumer;

/// Names the service to the consumer that is stopped.
const URL: &str = "IOVCACHE_STOPPED_URL";
/// The timeframe by which a client learns that the service answers for its consumer.
const FIRST: u64 = u64::MAX;
/// The timeframe that is being loaded.
const SLOW: u64 = 7;
/// Time in which the objects of [`SLOW`] are sent.
const LOADING: Duration = Duration::from_millis(2_400);

/// A service in front of a server that sends the object of `S/Slow` in [`LOADING`].
struct SlowSource {
    runtime: tokio::runtime::Runtime,
    _server: FakeCcdb,
    service: Service,
}

impl SlowSource {
    fn new() -> Self {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let server = runtime.block_on(FakeCcdb::start(Kind::Local));
        for path in ["S/Slow", "S/Quick"] {
            server.upload(Upload::new(path, 0, 100).bytes(format!("bytes of {path}")));
        }
        let bytes = "bytes of S/Slow".len() as u32;
        server.inject_for("S/Slow", Ask::Body, Fault::SlowBody(LOADING / bytes), 0);
        let service = Service::start(&["--source", &server.url()]);
        Self { runtime, _server: server, service }
    }

    /// Registers a timeframe with a column of `path`.
    fn register(&self, consumer: &Consumer, id: u64, path: &str, consumers: &[&str]) {
        let columns = [ColumnRequest::new("c", ObjectPath::new(path).unwrap())];
        let consumers: Vec<String> = consumers.iter().map(|name| (*name).to_owned()).collect();
        let put = consumer.client.put_timeframe(id, vec![Some(5)], &columns, &consumers);
        consumer.runtime.block_on(put).unwrap();
    }

    /// A consumer that takes its timeframes from shared memory.
    fn consumer(&self, name: &str) -> Consumer {
        Consumer::with_local_tables(&self.service.unix(), name)
    }
}

/// Takes and reports a timeframe; its bytes, and whether it came from shared memory.
fn read(consumer: &Consumer, id: u64, name: &str) -> (Vec<u8>, bool) {
    let table = consumer.runtime.block_on(consumer.client.timeframe(id, name)).unwrap();
    let bytes = table.column("c").unwrap().get(0).unwrap().unwrap().to_vec();
    let is_local = table.is_local();
    consumer.runtime.block_on(consumer.client.consume(table)).unwrap();
    (bytes, is_local)
}

/// A consumer process that waits for [`SLOW`]: this test binary again. It writes a line before it
/// waits, and one for each result.
struct Waiting {
    child: Child,
    stdout: BufReader<ChildStdout>,
}

impl Waiting {
    fn start(url: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "stopped::the_consumer_that_is_stopped", "--ignored", "--nocapture"])
            .env(URL, url)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let mut waiting = Self { child, stdout };
        assert_eq!(waiting.said(), "waits");
        waiting
    }

    /// The rest of the next line with a colon: the harness writes other lines, too.
    fn said(&mut self) -> String {
        let mut line = String::new();
        while self.stdout.read_line(&mut line).unwrap() > 0 {
            if let Some((_, said)) = line.trim_end().split_once("said: ") {
                return said.to_owned();
            }
            line.clear();
        }
        panic!("the consumer has ended");
    }

    fn signal(&self, name: &str) {
        signal(self.child.id(), name);
    }

    fn end(mut self) {
        assert!(self.child.wait().unwrap().success());
    }
}

/// Not a test by itself: see [`Waiting`].
#[test]
#[ignore = "a consumer of the other test in this file"]
fn the_consumer_that_is_stopped() {
    let Ok(url) = std::env::var(URL) else { return };
    let consumer = Consumer::with_local_tables(&url, "stopped");
    read(&consumer, FIRST, "stopped");
    println!("said: waits");
    let (bytes, is_local) = read(&consumer, SLOW, "stopped");
    println!("said: {} {is_local}", String::from_utf8(bytes).unwrap());
    let (bytes, _) = read(&consumer, SLOW + 1, "stopped");
    println!("said: {}", String::from_utf8(bytes).unwrap());
}

#[test]
fn a_consumer_that_is_stopped_while_it_waits_gets_its_table_and_delays_no_other() {
    let source = SlowSource::new();
    let other = source.consumer("other");
    source.register(&other, FIRST, "S/Quick", &["other", "stopped"]);
    read(&other, FIRST, "other");
    let mut waiting = {
        // The timeframe is registered first, so that the process finds it being loaded.
        source.register(&other, SLOW, "S/Slow", &["other", "stopped"]);
        source.register(&other, SLOW + 1, "S/Quick", &["other", "stopped"]);
        Waiting::start(&source.service.unix())
    };
    // It sleeps by now, or is about to.
    std::thread::sleep(Duration::from_millis(100));
    waiting.signal("STOP");
    let began = Instant::now();
    assert_eq!(read(&other, SLOW, "other"), (b"bytes of S/Slow".to_vec(), true));
    assert!(began.elapsed() < LOADING + Duration::from_secs(3), "{:?}", began.elapsed());
    // The service answers others meanwhile, without a delay.
    for id in 100..150 {
        let began = Instant::now();
        source.register(&other, id, "S/Quick", &["other"]);
        assert_eq!(read(&other, id, "other").0, b"bytes of S/Quick");
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    }
    let status = other.runtime.block_on(other.client.status()).unwrap();
    let left: Vec<u64> = status.timeframes.iter().map(|one| one.timeframe).collect();
    assert!(left.contains(&SLOW), "its other consumer has not read it: {left:?}");
    waiting.signal("CONT");
    assert_eq!(waiting.said(), "bytes of S/Slow true");
    assert_eq!(waiting.said(), "bytes of S/Quick");
    waiting.end();
    read(&other, SLOW + 1, "other");
    until("all are consumed by both", || {
        let status = other.runtime.block_on(other.client.status()).unwrap();
        status.timeframes.is_empty().then_some(())
    });
    source.service.adds_up();
}

#[test]
fn a_service_that_is_stopped_while_consumers_wait_goes_on_and_delays_no_limit() {
    let source = SlowSource::new();
    let consumers = ["a", "b"].map(|name| (source.consumer(name), name));
    source.register(&consumers[0].0, FIRST, "S/Quick", &["a", "b"]);
    for (consumer, name) in &consumers {
        read(consumer, FIRST, name);
    }
    source.register(&consumers[0].0, SLOW, "S/Slow", &["a", "b"]);
    std::thread::scope(|scope| {
        let [(patient, a), (hasty, b)] = &consumers;
        // One waits until it is ready, and one for less than the stop lasts.
        let patient = scope.spawn(move || read(patient, SLOW, a));
        let limit = Duration::from_millis(700);
        let hasty = scope.spawn(move || {
            let request = TableRequest::new().timeframe(SLOW).consumer(*b).wait(limit);
            let began = Instant::now();
            let late = hasty.runtime.block_on(hasty.client.table(request));
            (late.map(|_| ()), began.elapsed())
        });
        std::thread::sleep(Duration::from_millis(200));
        source.service.signal("STOP");

        // A client waits some seconds longer than its limit for the word of the service.
        let stopped = Instant::now();
        while !hasty.is_finished() && stopped.elapsed() < Duration::from_secs(30) {
            std::thread::sleep(Duration::from_millis(10));
        }
        source.service.signal("CONT");
        let (late, took) = hasty.join().unwrap();
        let late = late.unwrap_err();
        assert!(
            matches!(late.kind(), ErrorKind::DeadlineExceeded | ErrorKind::Unavailable),
            "{late}"
        );
        assert!(took >= limit && took < limit + Duration::from_secs(15), "{took:?}: {late}");
        assert_eq!(patient.join().unwrap(), (b"bytes of S/Slow".to_vec(), true));
    });
    // The one that gave up takes it now.
    let (consumer, name) = &consumers[1];
    assert_eq!(read(consumer, SLOW, name).0, b"bytes of S/Slow");
    let _ = &source.runtime;
    source.service.adds_up();
}

/// Number of times that a process is stopped; a long run has more.
fn stops() -> usize {
    std::env::var("IOVCACHE_LOCAL_STOPS").ok().and_then(|text| text.parse().ok()).unwrap_or(5)
}

/// Processor time of a process, in ticks.
fn ticks(process: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let fields = stat.rsplit(')').next().unwrap().split_ascii_whitespace();
    fields.skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum()
}

#[test]
fn a_consumer_that_is_stopped_while_it_looks_up_delays_no_other_and_goes_on() {
    let names: Vec<String> = (0..kills::PATHS).map(kills::path).collect();
    let versions: Vec<_> = names.iter().map(|name| (name.as_str(), (0, 100), 1)).collect();
    let (service, _repository) = crate::setup::service(&versions, &[]);
    let other = Consumer::new(&service.unix(), "other");
    let mut looks = kills::consumer(&service.unix());
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    for stop in 0..stops() {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        std::thread::sleep(Duration::from_micros(random % 5_000));
        signal(looks.id(), "STOP");
        // The service replaces the timeline and answers others without waiting for it.
        let began = Instant::now();
        let body = serde_json::json!({"path": names[stop % names.len()]});
        let invalidated = other.client.act::<serde_json::Value>("invalidate", &body);
        other.runtime.block_on(invalidated).unwrap();
        let asked = other.asked(&names[stop % names.len()], 50).unwrap();
        assert!(asked.ends_with(b" 0 100 1"));
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
        let before = ticks(looks.id());
        signal(looks.id(), "CONT");
        until("the consumer to go on", || (ticks(looks.id()) > before).then_some(()));
        // It ends with its first wrong byte.
        assert_eq!(looks.try_wait().unwrap(), None);
    }
    looks.kill().unwrap();
    looks.wait().unwrap();
    service.adds_up();
}

#[test]
fn a_service_that_is_stopped_while_objects_are_evicted_serves_no_wrong_byte() {
    let churn = Churn::new();
    let (url, done) = (churn.service.unix(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let looks = [0, 1].map(|seed| {
            let (churn, url, done) = (&churn, &url, &done);
            let goes_on = move |_| !done.load(Ordering::Relaxed);
            scope.spawn(move || churn.look_up(url, seed, goes_on))
        });
        for stop in 0..stops() {
            std::thread::sleep(Duration::from_millis(20 + stop as u64 % 7 * 10));
            churn.service.signal("STOP");
            std::thread::sleep(Duration::from_millis(stop as u64 % 5 * 10));
            churn.service.signal("CONT");
        }
        std::thread::sleep(Duration::from_millis(100));
        done.store(true, Ordering::Relaxed);
        let found = looks.map(|look| look.join().unwrap());
        assert!(found.iter().sum::<u64>() > 0, "nothing was found in shared memory");
    });
    churn.service.adds_up();
}
