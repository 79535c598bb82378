//! Cost of one client: requests from the grammar of every call, of every size, by clients that read
//! slowly, stop, or send half a message, each against a small service in its own process.
//!
//! After each of them the process has grown by no more than the client's budget allows, all of the
//! budget is returned within two seconds after the client is gone, and a well-behaved client beside
//! it gets the right bytes in time.
//!
//! Every run has the same requests; `IOVCACHE_SEED=N` gives others. With `IOVCACHE_NIGHTLY=1` the
//! seed is random and the run takes some minutes.

#[path = "../common/mod.rs"]
mod common;
mod grammar;
mod wire;

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use iovcache::client::{Client, ClientOptions, TableRequest};

use crate::common::{Service, Version, http_get, put, run_well};
use crate::grammar::{Grammar, PATHS};

/// Default seed of the requests.
const SEED: u64 = 1_795_848_789_062_837_289;
/// Memory of all requests; one client may use a quarter of it.
const REQUEST_MEMORY: u64 = 64 << 20;
/// Growth of the process that is allowed beyond that: buffers of HTTP/2 and of the allocator.
const SLACK_BYTES: u64 = 24 << 20;
/// Time within which everything is returned after the client is gone. Without optimisation the work
/// still running then takes many times as long.
const RETURN_TIME: Duration = Duration::from_secs(if cfg!(debug_assertions) { 12 } else { 2 });
/// Hard limit of the service's private memory; an allocation beyond it ends the process.
const DATA_LIMIT_KIB: u64 = 1 << 20;

/// Bytes of the process's private memory, without the segments.
fn own_memory_bytes(service: &Service) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", service.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// Bytes charged to clients.
fn charged_bytes(service: &Service) -> u64 {
    let (_, metrics) = http_get(&service.http(), "/metrics");
    let name = "iovcache_request_memory_bytes ";
    let line = metrics.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap_or_else(|| panic!("no {name}in {metrics}")).parse().unwrap()
}

/// Upper bound of the memory of a lease and its pins.
const LEASE_BYTES: u64 = 4 << 10;

/// Number of open leases.
fn leases(service: &Service) -> u64 {
    let told = run_well(&["status", "--check", "--json", "--server", &service.unix()]);
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    told["leases"].as_u64().unwrap()
}

/// Maximum private memory of a process during some work.
struct Peak {
    over: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<u64>,
}

impl Peak {
    fn watch(service: &Arc<Service>) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let (service, end) = (Arc::clone(service), Arc::clone(&over));
        let thread = std::thread::spawn(move || {
            let mut most = 0;
            while !end.load(Ordering::Relaxed) {
                most = most.max(own_memory_bytes(&service));
                std::thread::sleep(Duration::from_millis(5));
            }
            most
        });
        Self { over, thread }
    }

    fn bytes(self) -> u64 {
        self.over.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// A well-behaved client: the times that its tables took.
struct Behaved {
    over: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<Vec<Duration>>,
}

impl Behaved {
    fn start(client: &Client) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let (client, end) = (client.clone(), Arc::clone(&over));
        let task = tokio::spawn(async move {
            let mut took = Vec::new();
            while !end.load(Ordering::Relaxed) {
                let began = Instant::now();
                let request = TableRequest::new().column("c", PATHS[0]).timestamps([5]);
                let table = client.table(request).await.expect("a client that behaves is served");
                let cell = table.column("c").unwrap().get(0).unwrap();
                assert_eq!(cell, Some(&grammar::payload(0)[..]), "its bytes are the right ones");
                drop(table);
                took.push(began.elapsed());
                tokio::time::sleep(Duration::from_millis(4)).await;
            }
            took
        });
        Self { over, task }
    }

    async fn stop(self) -> Vec<Duration> {
        self.over.store(true, Ordering::Relaxed);
        self.task.await.unwrap()
    }
}

fn p99(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() * 99 / 100]
}

fn start(folder: &std::path::Path) -> Service {
    let repository = folder.join("repository");
    for (number, path) in PATHS.iter().enumerate() {
        let bytes = grammar::payload(number);
        for version in 0..2 {
            let (from, until) = (version * 1_000, version * 1_000 + 1_000);
            put(&repository, &Version { path, from, until, created: 1 + version, bytes: &bytes });
        }
    }
    let mut program = Command::new("/bin/sh");
    let limited = format!("ulimit -d {DATA_LIMIT_KIB}; exec \"$0\" \"$@\"");
    program.args(["-c", &limited, env!("CARGO_BIN_EXE_iovcache")]);
    let source = format!("file://{}", repository.display());
    let memory = REQUEST_MEMORY.to_string();
    let arguments = ["--source", &source, "--refresh", "1s", "--request-memory", &memory];
    Service::start_by(program, "64MiB", "16MiB", &arguments)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_costs_more_than_its_budget_and_others_notice_nothing() {
    let seed = std::env::var("IOVCACHE_SEED").ok().and_then(|seed| seed.parse().ok());
    let nightly = std::env::var_os("IOVCACHE_NIGHTLY").is_some();
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
    let seed = seed.unwrap_or_else(|| if nightly { now() } else { SEED });
    println!("IOVCACHE_SEED={seed}");
    let time = Duration::from_secs(if nightly { 300 } else { 40 });
    let folder = tempfile::tempdir().unwrap();
    let service = Arc::new(start(folder.path()));
    let options = ClientOptions { remote: true, ..ClientOptions::default() };
    let client = Client::connect_with(&service.unix(), options).await.unwrap();
    let (mut quiet, mut beside) = (Vec::new(), Vec::new());
    let mut grammar = Grammar::new(seed);
    // Threads, arenas and caches of the first requests belong to no single request.
    for _ in 0..20 {
        wire::send(&service, &grammar.request()).await;
    }
    let (began, mut requests) = (Instant::now(), 0);
    while began.elapsed() < time {
        let alone = Behaved::start(&client);
        tokio::time::sleep(Duration::from_millis(300)).await;
        quiet.extend(alone.stop().await);
        for _ in 0..8 {
            let request = grammar.request();
            let before = own_memory_bytes(&service);
            let (peak, behaved) = (Peak::watch(&service), Behaved::start(&client));
            wire::send(&service, &request).await;
            beside.extend(behaved.stop().await);
            let grown = peak.bytes().saturating_sub(before);
            let allowed = REQUEST_MEMORY / 4 + SLACK_BYTES;
            assert!(grown <= allowed, "seed {seed}: {grown} bytes for {request:?}");
            assert_returned(&service, seed, &request).await;
            requests += 1;
        }
        service.adds_up();
    }
    let (quiet, beside) = (p99(&mut quiet), p99(&mut beside));
    println!(
        "{requests} requests; p99 of a client that behaves: {quiet:?} alone, {beside:?} beside"
    );
    // Without optimisation all work of the service takes many times as long.
    let slack = Duration::from_millis(if cfg!(debug_assertions) { 150 } else { 20 });
    assert!(beside <= quiet * 2 + slack, "seed {seed}: {quiet:?} alone, {beside:?} beside");
}

async fn assert_returned(service: &Service, seed: u64, request: &grammar::Sent) {
    let gone = Instant::now();
    loop {
        let charged = charged_bytes(service);
        // A request without session and consumer leaves a lease of 60 s, which is charged.
        if charged == 0 || charged <= leases(service) * LEASE_BYTES {
            return;
        }
        let late = gone.elapsed() > RETURN_TIME;
        assert!(!late, "seed {seed}: {charged} bytes are still charged after {request:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
