//! Limits of the system, and clients that do not read: none of them stops a service.
#![cfg(feature = "cli")]

mod common;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{PATIENCE, Service, Version, http_get, iovcache, put, signal, until};
use iovcache::client::{Client, ClientOptions, TableRequest};
use serde_json::Value;

const DRIFT: &str = "TPC/Calib/VDrift";

fn repository() -> tempfile::TempDir {
    let repository = tempfile::tempdir().unwrap();
    for (from, bytes) in [(0, b"first"), (1_000, b"other")] {
        let version = Version { path: DRIFT, from, until: from + 1_000, created: 1, bytes };
        put(repository.path(), &version);
    }
    repository
}

/// The program, started by a shell after `limits`.
fn limited(limits: &str) -> Command {
    let mut shell = Command::new("sh");
    let script = format!("{limits}; exec \"$0\" \"$@\"");
    shell.args(["-c", &script, env!("CARGO_BIN_EXE_iovcache")]);
    shell
}

async fn reads(client: &Client, at: i64, right: &[u8]) {
    let request = TableRequest::new().column("drift", DRIFT).timestamps([at]);
    let table = client.table(request).await.unwrap();
    assert_eq!(table.column("drift").unwrap().get(0).unwrap(), Some(right));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_is_not_read_stops_neither_requests_nor_the_end_and_its_losses_are_counted() {
    let repository = repository();
    let folder = tempfile::tempdir().unwrap();
    let mut child = iovcache()
        .args(["serve", "--listen", "127.0.0.1:0", "--memory", "32MiB", "--segment", "16MiB"])
        .args(["--log", "info,iovcache::table=info", "--source"])
        .arg(format!("file://{}", repository.path().display()))
        .arg("--socket")
        .arg(folder.path().join("s"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut ready = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut ready).unwrap();
    let ready: Value = serde_json::from_str(&ready).unwrap();
    let options = ClientOptions { always_request: true, ..ClientOptions::default() };
    let flight = ready["flight"][1].as_str().unwrap();
    let client = Client::connect_with(flight, options).await.unwrap();
    let http = ready["http"].as_str().unwrap().trim_start_matches("http://");
    let lost = || {
        let metrics = http_get(http, "/metrics").1;
        let line = metrics.lines().find(|line| line.starts_with("iovcache_log_lines_lost_total "));
        line.unwrap().split(' ').nth(1).unwrap().parse::<u64>().unwrap()
    };
    // Each table writes a line to the log, here of a megabyte.
    let columns = |request: TableRequest| {
        (0..2_000).fold(request, |request, number| request.column(format!("c{number}"), DRIFT))
    };
    let began = Instant::now();
    while lost() == 0 {
        let request = columns(TableRequest::new()).timestamps([1]);
        drop(client.table(request).await.unwrap());
        assert!(began.elapsed() < PATIENCE, "the queue of the log does not fill");
    }
    reads(&client, 1_500, b"other").await;
    assert_eq!(http_get(http, "/healthz").0, 200);
    drop(client);
    signal(child.id(), "TERM");
    let status = until("the end", || child.try_wait().unwrap());
    assert_eq!(status.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn with_few_descriptors_a_crowd_of_connections_leaves_room_for_objects_and_health() {
    let repository = repository();
    let source = format!("file://{}", repository.path().display());
    let limited = limited("ulimit -n 80");
    let service = Service::start_by(limited, "64MiB", "16MiB", &["--source", &source]);
    let client = Client::connect(&service.unix()).await.unwrap();
    reads(&client, 500, b"first").await;
    let flight = service.tcp();
    let addresses = [flight.trim_start_matches("grpc://"), &service.http()].map(str::to_owned);
    let crowd: Vec<TcpStream> =
        (0..160).filter_map(|number| TcpStream::connect(&addresses[number % 2]).ok()).collect();
    assert!(crowd.len() > 100);
    reads(&client, 1_500, b"other").await;
    assert_eq!(http_get(&service.http(), "/readyz").0, 200);
    drop(crowd);
    drop(client);
    let log = service.stop().1;
    assert!(log.contains("open_files=80"), "{log}");
}

#[test]
fn the_health_page_has_room_beside_any_number_of_slow_clients() {
    let service = Service::start(&["--source", "memory:"]);
    let drip = || {
        let mut stream = TcpStream::connect(service.http()).unwrap();
        stream.write_all(b"GET /healthz HTTP/1.1\r\nX-").unwrap();
        stream
    };
    let mut crowd: Vec<TcpStream> = (0..300).map(|_| drip()).collect();
    for page in ["/healthz", "/readyz", "/metrics"] {
        let began = Instant::now();
        assert_eq!(http_get(&service.http(), page).0, 200);
        assert!(began.elapsed() < Duration::from_secs(5), "{page}");
        crowd.iter_mut().for_each(|stream| _ = stream.write_all(b"x"));
    }
    // The first connection of the crowd was closed to make room.
    let first = &mut crowd[0];
    first.set_read_timeout(Some(PATIENCE)).unwrap();
    assert!(matches!(first.read(&mut [0; 64]), Ok(0) | Err(_)));
}

#[test]
fn a_file_beyond_the_limit_of_its_size_is_an_error_and_not_the_end_by_a_signal() {
    let folder = tempfile::tempdir().unwrap();
    let object = folder.path().join("object");
    std::fs::write(&object, vec![7; 1 << 20]).unwrap();
    let output = limited("ulimit -f 64")
        .args(["put", "--repository"])
        .arg(folder.path().join("repository"))
        .arg(DRIFT)
        .arg(&object)
        .arg("--from=0")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("File too large"), "{said}");
}

#[test]
fn too_few_threads_are_an_error_at_the_start() {
    // Root has no limit of threads, so the service runs as another user.
    let is_root = rustix::process::geteuid().is_root();
    let program = |arguments: &[&str], threads: u32| {
        let mut command = Command::new("timeout");
        command.arg("20");
        if is_root {
            command.args(["setpriv", "--reuid=65531", "--regid=65531", "--clear-groups"]);
        }
        command.arg("prlimit").arg(format!("--nproc={threads}"));
        command.arg(env!("CARGO_BIN_EXE_iovcache")).args(arguments).stdin(Stdio::null());
        command.output()
    };
    if !program(&["--version"], 100).is_ok_and(|output| output.status.success()) {
        eprintln!("SKIPPED: the program cannot be run as another user");
        return;
    }
    let serve = ["serve", "--source", "memory:", "--listen", "127.0.0.1:0", "--memory", "16MiB"];
    let output = program(&serve, 1).unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("threads") && !said.contains("panicked"), "{said}");
}
