//! The program as a whole: a real service over a repository folder, used by real clients.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{Service, Version, http_get, put, run, run_well, shared, until};
use iovcache::client::{Client, ClientError, ClientOptions, TableRequest};
use iovcache::error::{Coded, ErrorKind};
use iovcache::table::{CellKind, ColumnRequest, Encoding, View};
use iovcache::{ObjectPath, Timestamp, ValidityInterval};

const DRIFT: &str = "TPC/Calib/VDrift";

fn version<'a>(path: &'a str, from: i64, until: i64, created: i64, bytes: &'a [u8]) -> Version<'a> {
    Version { path, from, until, created, bytes }
}

/// Two versions of one path; the second is created later and lies inside the first.
fn small(repository: &Path) {
    put(repository, &version(DRIFT, 1000, 9000, 1, b"drift 1"));
    put(repository, &version(DRIFT, 3000, 5000, 2, b"drift 2"));
}

fn at(times: &[i64]) -> TableRequest {
    TableRequest::new().column("drift", DRIFT).timestamps(times.iter().copied())
}

async fn cells(client: &Client, times: &[i64]) -> Vec<Vec<u8>> {
    let table = client.table(at(times)).await.unwrap();
    let column = table.column("drift").unwrap();
    (0..table.rows()).map(|row| column.get(row).unwrap().unwrap().to_vec()).collect()
}

fn kind(error: &ClientError) -> ErrorKind {
    error.kind()
}

fn drift_column() -> Vec<ColumnRequest> {
    let path = ObjectPath::new(DRIFT).unwrap();
    vec![ColumnRequest::new("drift", path)]
}

#[tokio::test(flavor = "multi_thread")]
async fn at_every_border_the_version_created_last_is_served_on_unix_tcp_and_over_the_wire() {
    let folder = tempfile::tempdir().unwrap();
    small(folder.path());
    let service = Service::over(folder.path(), &[]);
    let times = [1000, 2999, 3000, 4999, 5000, 8999, 4000, 1000];
    let right: Vec<&[u8]> = times
        .iter()
        .map(|at| if (3000..5000).contains(at) { &b"drift 2"[..] } else { b"drift 1" })
        .collect();
    for (url, remote) in [(service.unix(), false), (service.tcp(), false), (service.tcp(), true)] {
        let options = ClientOptions { remote, ..ClientOptions::default() };
        let client = Client::connect_with(&url, options).await.unwrap();
        assert_eq!(cells(&client, &times).await, right, "{url} remote: {remote}");
    }
}

/// One line of the manifest of the real objects.
struct Real {
    path: String,
    from: i64,
    until: i64,
    created: i64,
    id: String,
    file: String,
}

fn real_objects(manifest: &Path) -> Vec<Real> {
    let mut reader = csv::Reader::from_path(manifest).unwrap();
    reader
        .records()
        .map(|record| {
            let record = record.unwrap();
            let number = |place: usize| record[place].parse().unwrap();
            Real {
                path: record[0].to_owned(),
                from: number(1),
                until: number(2),
                created: number(3),
                id: record[4].to_owned(),
                file: record[5].to_owned(),
            }
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn real_objects_with_their_real_intervals_are_right_at_every_border() {
    let Some(shared) = shared() else {
        eprintln!("the real objects are not here: skipped");
        return;
    };
    let folder = shared.join("data/alice-lhc24");
    let repository = tempfile::tempdir().unwrap();
    let manifest = folder.join("manifest.csv");
    let arguments = ["import", "--json", "--repository", repository.path().to_str().unwrap()];
    let imported = run_well(&[&arguments[..], &[manifest.to_str().unwrap()]].concat());
    assert!(imported.contains("\"new\":207"), "{imported}");
    let service = Service::over(repository.path(), &[]);
    let client = Client::connect(&service.unix()).await.unwrap();
    let all = real_objects(&manifest);
    let paths: BTreeSet<&str> = all.iter().map(|one| one.path.as_str()).collect();
    for path in paths {
        let versions: Vec<&Real> = all.iter().filter(|one| one.path == path).collect();
        let mut times: Vec<i64> = versions
            .iter()
            .flat_map(|one| [one.from - 1, one.from, one.from + 1, one.until - 1, one.until])
            .collect();
        times.sort_unstable();
        let right = |at: i64| {
            let valid = versions.iter().filter(|one| one.from <= at && at < one.until);
            valid.max_by_key(|one| (one.created, one.from, &one.id))
        };
        let request = TableRequest::new()
            .column("object", path)
            .timestamps(times.iter().copied())
            .missing_as_null();
        let table = client.table(request).await.unwrap();
        let column = table.column("object").unwrap();
        for (row, &time) in times.iter().enumerate() {
            let bytes = right(time).map(|one| fs::read(folder.join(&one.file)).unwrap());
            assert_eq!(column.get(row).unwrap(), bytes.as_deref(), "{path} at {time}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn new_versions_are_seen_in_time_and_a_timeframe_keeps_its_own() {
    let folder = tempfile::tempdir().unwrap();
    small(folder.path());
    let service = Service::over(folder.path(), &[]);
    let client = Client::connect(&service.unix()).await.unwrap();
    let consumers = ["reader".to_owned()];
    let times = vec![Some(2000), Some(4000)];
    client.put_timeframe(7, times, &drift_column(), &consumers).await.unwrap();
    let of_timeframe = || TableRequest::new().timeframe(7).consumer("reader");
    let before = client.table(of_timeframe()).await.unwrap();
    put(folder.path(), &version(DRIFT, 0, 9000, 3, b"drift 3"));
    let mut seen = false;
    for _ in 0..600 {
        seen = cells(&client, &[2000]).await == [b"drift 3"];
        if seen {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(seen, "the new version was never seen");
    let after = client.table(of_timeframe()).await.unwrap();
    for table in [before, after] {
        let column = table.column("drift").unwrap();
        assert_eq!(column.get(0).unwrap(), Some(&b"drift 1"[..]));
        assert_eq!(column.get(1).unwrap(), Some(&b"drift 2"[..]));
    }
}

/// Not a test of its own: the process of a consumer that holds a table until it is killed.
#[test]
fn a_consumer_that_holds_a_table() {
    let Ok(url) = std::env::var("IOVCACHE_TEST_CONSUMER_OF") else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = Client::connect(&url).await.unwrap();
        let _table = client.table(at(&[2000, 4000])).await.unwrap();
        println!("holding");
        std::future::pending::<()>().await;
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn pins_of_a_killed_process_are_released() {
    let folder = tempfile::tempdir().unwrap();
    small(folder.path());
    let service = Service::over(folder.path(), &[]);
    let mut consumer = Command::new(std::env::current_exe().unwrap())
        .args(["a_consumer_that_holds_a_table", "--exact", "--nocapture"])
        .env("IOVCACHE_TEST_CONSUMER_OF", service.unix())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let options = ClientOptions { remote: true, ..ClientOptions::default() };
    let client = Client::connect_with(&service.tcp(), options).await.unwrap();
    let mut held = 0;
    for _ in 0..3000 {
        let status = client.status().await.unwrap();
        held = status.sessions.first().map_or(0, |session| session.pinned_bytes);
        if held > 0 {
            assert_eq!(status.sessions[0].pid.unsigned_abs(), consumer.id());
            assert_eq!(status.memory.pinned_bytes, held);
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(held > 0, "the consumer never held an object");
    consumer.kill().unwrap();
    consumer.wait().unwrap();
    for _ in 0..3000 {
        let status = client.status().await.unwrap();
        // Its pins end just after the session.
        if status.sessions.is_empty() && status.memory.pinned_bytes == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("the session of a dead process goes on, or its pins");
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_that_is_pinned_is_waited_for_and_what_never_fits_is_refused_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = vec![7; 700 << 10];
    for (name, size) in [("Big/A", bytes.len()), ("Big/B", bytes.len()), ("Big/Huge", 0)] {
        let huge = vec![1; 3 << 20];
        let bytes = if size == 0 { &huge[..] } else { &bytes[..] };
        put(folder.path(), &version(name, 0, 10, 1, bytes));
    }
    let service = Service::over(folder.path(), &["--memory", "1MiB", "--segment", "1MiB"]);
    let client = Client::connect(&service.unix()).await.unwrap();
    let one = |path: &str| TableRequest::new().column("object", path).timestamps([5]);
    let error = client.table(one("Big/Huge")).await.unwrap_err();
    assert_eq!(kind(&error), ErrorKind::ResourceExhausted, "{error}");

    let held = client.table(one("Big/A")).await.unwrap();
    let short = one("Big/B").wait(Duration::from_millis(100));
    let error = client.table(short).await.unwrap_err();
    assert_eq!(kind(&error), ErrorKind::Unavailable, "{error}");
    assert!(error.message().contains("[IOV-4010]"), "{error}");
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { client.table(one("Big/B")).await }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(held.column("object").unwrap().get(0).unwrap(), Some(&bytes[..]));
    client.release(held).await.unwrap();
    let table = waiting.await.unwrap().unwrap();
    assert_eq!(table.column("object").unwrap().get(0).unwrap(), Some(&bytes[..]));
    let status = client.status().await.unwrap();
    assert!(status.evictions >= 1 && status.waits >= 2, "{status:?}");
    // A request that waits for memory does not query the source continuously.
    assert!(status.sources[0].requests < 60, "{status:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_named_and_passed_over_and_the_rest_is_served() {
    let folder = tempfile::tempdir().unwrap();
    small(folder.path());
    let path = folder.path().join(DRIFT);
    let id = |n: u8| format!("00000000-0000-0000-0000-0000000000{n:02}");
    let entry = |n: u8, properties: &str| {
        let inside = path.join("2000");
        fs::create_dir_all(&inside).unwrap();
        fs::write(inside.join(id(n)), "damaged").unwrap();
        fs::write(inside.join(format!("{}.properties", id(n))), properties).unwrap();
    };
    entry(1, "ValidUntil=noon\nCreateTime=9\n");
    entry(2, "ValidUntil=8000\n");
    entry(3, "ValidUntil=1\nCreateTime=9\n");
    entry(4, "ValidUntil=8000\nCreateTime=9\nFile-Size=8\n");
    entry(5, "ValidUntil=8000\\u12\nCreateTime=9\n");
    entry(6, "ValidUntil=8000\nCreateTime=9\nContent-MD5=short\n");
    // A link out of the repository, a FIFO: neither is read, and neither blocks.
    entry(7, "ValidUntil=8000\nCreateTime=9\n");
    fs::remove_file(path.join("2000").join(id(7))).unwrap();
    symlink("/etc/hostname", path.join("2000").join(id(7))).unwrap();
    entry(8, "");
    let properties = path.join("2000").join(format!("{}.properties", id(8)));
    fs::remove_file(&properties).unwrap();
    assert!(Command::new("mkfifo").arg(&properties).status().unwrap().success());

    let service = Service::over(folder.path(), &[]);
    let client = Client::connect(&service.unix()).await.unwrap();
    assert_eq!(cells(&client, &[2000, 4000]).await, [b"drift 1", b"drift 2"]);
    let (_, metrics) = http_get(&service.http(), "/metrics");
    assert!(metrics.contains("iovcache_problems_total 8"), "{metrics}");
    let (status, log) = service.stop();
    assert_eq!(status, Some(0));
    for n in 1..=8 {
        assert!(log.contains(&id(n)), "{n} is not named: {log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_not_those_of_the_md5_are_never_served() {
    let folder = tempfile::tempdir().unwrap();
    let id = put(folder.path(), &version(DRIFT, 0, 10, 1, b"right"));
    let blob = folder.path().join(DRIFT).join("0").join(id);
    fs::write(blob, b"wrong").unwrap();
    let service = Service::over(folder.path(), &[]);
    let client = Client::connect(&service.unix()).await.unwrap();
    let error = client.table(at(&[5])).await.unwrap_err();
    assert_eq!(kind(&error), ErrorKind::Unavailable);
    assert!(error.message().contains("MD5"), "{error}");
    let status = client.status().await.unwrap();
    assert_eq!((status.objects, status.memory.used_bytes), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_goes_away_is_unavailable_and_no_answer_of_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let repository = folder.path().join("repository");
    small(&repository);
    let service = Service::over(&repository, &[]);
    let client = Client::connect(&service.unix()).await.unwrap();
    assert_eq!(cells(&client, &[2000]).await, [b"drift 1"]);
    fs::rename(&repository, folder.path().join("gone")).unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    // Known versions are still served, marked as stale; an unknown path is an error, not an empty
    // answer.
    assert_eq!(cells(&client, &[2000]).await, [b"drift 1"]);
    let other = TableRequest::new().column("x", "Other/Path").timestamps([1]);
    let error = client.table(other).await.unwrap_err();
    assert_eq!(kind(&error), ErrorKind::Unavailable, "{error}");
    let objects = client.batches(&at(&[2000]).view(View::Objects)).await.unwrap();
    use arrow_array::cast::AsArray as _;
    let how = objects[0].column_by_name("cache").unwrap().as_string::<i32>().value(0).to_owned();
    assert_eq!(how, "stale");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_successor_takes_the_sockets_of_a_killed_service_and_old_cells_are_stale() {
    let folder = tempfile::tempdir().unwrap();
    small(folder.path());
    let sockets = tempfile::tempdir().unwrap();
    let sockets = sockets.path().to_str().unwrap().to_owned();
    let first = Service::over(folder.path(), &["--socket", &sockets]);
    let url = first.unix();
    let client = Client::connect(&url).await.unwrap();
    let old = client.table(at(&[2000])).await.unwrap();
    let taken =
        run(&["serve", "--source", "memory:", "--socket", &sockets, "--listen", "127.0.0.1:0"]);
    assert_eq!(taken.status.code(), Some(1));
    let text = String::from_utf8_lossy(&taken.stderr).into_owned();
    assert!(text.contains(&format!("pid {}", first.pid())), "{text}");
    let epoch = first.ready["epoch"].clone();
    drop(first.kill());
    let second = Service::over(folder.path(), &["--socket", &sockets]);
    assert_ne!(epoch, second.ready["epoch"]);
    let mut table = client.table(at(&[2000])).await;
    for _ in 0..200 {
        if table.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
        table = client.table(at(&[2000])).await;
    }
    let table = table.unwrap();
    assert_eq!(table.column("drift").unwrap().get(0).unwrap(), Some(&b"drift 1"[..]));
    // The successor never reuses the generation of the dead service's block.
    let old_header = old.column("drift").unwrap().header(0).unwrap();
    let new_header = table.column("drift").unwrap().header(0).unwrap();
    assert_ne!(old_header.hint, new_header.hint);
}

#[test]
fn a_stop_drains_removes_the_sockets_and_is_a_good_end() {
    let folder = tempfile::tempdir().unwrap();
    small(folder.path());
    let service = Service::over(folder.path(), &[]);
    let (attach, http) = (service.attach(), service.http());
    assert_eq!(http_get(&http, "/healthz").0, 200);
    assert_eq!(http_get(&http, "/readyz").0, 200);
    assert_eq!(http_get(&http, "/nothing").0, 404);
    let (status, metrics) = http_get(&http, "/metrics");
    assert_eq!(status, 200);
    for name in ["iovcache_memory_total_bytes", "iovcache_hits_total", "iovcache_sessions"] {
        assert!(metrics.contains(name), "{name}: {metrics}");
    }
    assert!(attach.exists());
    let (status, log) = service.stop();
    assert_eq!(status, Some(0), "{log}");
    assert!(!attach.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn health_and_reflection_answer() {
    let service = Service::start(&["--source", "memory:"]);
    let endpoint = service.tcp().replace("grpc://", "http://");
    let channel = tonic::transport::Endpoint::from_shared(endpoint).unwrap();
    let channel = channel.connect().await.unwrap();
    let mut health = tonic_health::pb::health_client::HealthClient::new(channel.clone());
    for name in ["", "arrow.flight.protocol.FlightService"] {
        let request = tonic_health::pb::HealthCheckRequest { service: name.to_owned() };
        let answer = health.check(request).await.unwrap().into_inner();
        assert_eq!(
            answer.status(),
            tonic_health::pb::health_check_response::ServingStatus::Serving
        );
    }
    use tonic_reflection::pb::v1::ServerReflectionRequest;
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
    let ask = MessageRequest::ListServices(String::new());
    let request = ServerReflectionRequest { host: String::new(), message_request: Some(ask) };
    let mut client = ServerReflectionClient::new(channel);
    let answers = client.server_reflection_info(tokio_stream::iter([request])).await.unwrap();
    let answer = answers.into_inner().message().await.unwrap().unwrap();
    let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
        panic!("{answer:?}");
    };
    let names: Vec<&str> = list.service.iter().map(|service| service.name.as_str()).collect();
    assert!(names.contains(&"arrow.flight.protocol.FlightService"), "{names:?}");
}

#[test]
fn commands_print_data_and_leave_with_the_status_that_says_why() {
    let folder = tempfile::tempdir().unwrap();
    small(folder.path());
    let service = Service::over(folder.path(), &[]);
    let server = service.unix();
    let of = |command: &str, rest: &[&str]| {
        let arguments = [&[command, "--server", &server][..], rest].concat();
        run(&arguments)
    };
    let good = |command: &str, rest: &[&str]| {
        let output = of(command, rest);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    assert_eq!(good("cat", &[DRIFT, "--at", "4000"]), b"drift 2");
    assert_eq!(good("cat", &[DRIFT, "--at", "4000", "--remote"]), b"drift 2");
    let listed = String::from_utf8(good("ls", &["--json"])).unwrap();
    assert_eq!(listed.trim(), r#"{"objects":2,"path":"TPC/Calib/VDrift"}"#);
    let timeline = String::from_utf8(good("timeline", &[DRIFT, "--json"])).unwrap();
    let borders: Vec<(i64, i64)> = timeline
        .lines()
        .map(|line| {
            let span: serde_json::Value = serde_json::from_str(line).unwrap();
            (span["from"].as_i64().unwrap(), span["until"].as_i64().unwrap())
        })
        .collect();
    assert_eq!(borders, [(1000, 3000), (3000, 5000), (5000, 9000)]);
    let status = good("status", &["--json"]);
    let status: serde_json::Value = serde_json::from_slice(&status).unwrap();
    assert_eq!(status["pid"], service.pid());

    let column = format!("drift={DRIFT}");
    let table = ["--column", column.as_str(), "--at", "2000"];
    let lock = good("table", &[&table[..], &["--view", "objects", "--output", "json"]].concat());
    let file = folder.path().join("lock.json");
    fs::write(&file, lock).unwrap();
    let locked = ["--column", column.as_str(), "--at", "4000", "--cell", "payload", "--lock"];
    let locked = [&locked[..], &[file.to_str().unwrap(), "--output", "csv"]].concat();
    let csv = String::from_utf8(good("table", &locked)).unwrap();
    assert!(csv.lines().next().unwrap().starts_with("timestamp,drift"), "{csv}");
    let hex: String = b"drift 1".iter().map(|byte| format!("{byte:02x}")).collect();
    assert!(csv.contains(&hex), "{csv}");
    assert!(!good("table", &[&table[..], &["--output", "arrow"]].concat()).is_empty());
    assert!(String::from_utf8(good("table", &table)).unwrap().contains("7 B in segment 0"));

    assert_eq!(of("cat", &[DRIFT, "--at", "1"]).status.code(), Some(3));
    assert_eq!(of("cat", &["TPC/12", "--at", "1"]).status.code(), Some(2));
    assert_eq!(of("table", &["--column", "nonsense", "--at", "1"]).status.code(), Some(2));
    assert_eq!(run(&["ls", "--server", "grpc://127.0.0.1:1"]).status.code(), Some(4));
    assert_eq!(run(&["frobnicate"]).status.code(), Some(2));
    assert_eq!(
        run(&["serve", "--source", "ftp://x", "--listen", "127.0.0.1:0"]).status.code(),
        Some(2)
    );
    assert!(run_well(&["man"]).contains(".TH"));
    assert!(run_well(&["completions", "bash"]).contains("iovcache"));
}

#[test]
fn a_manifest_with_a_wrong_line_is_named_and_nothing_of_it_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let repository = folder.path().join("repository");
    fs::write(folder.path().join("a"), "abc").unwrap();
    let head = "path,valid_from_ms,valid_until_ms,created_ms,id,file,size,md5,note\n";
    let good = "A/B,1,2,3,my-id,a,3,900150983cd24fb0d6963f7d28e17f72,hello\n";
    let manifest = folder.path().join("manifest.csv");
    let import = |lines: &str| {
        fs::write(&manifest, format!("{head}{good}{lines}")).unwrap();
        let repository = repository.to_str().unwrap();
        let output = run(&["import", "--repository", repository, manifest.to_str().unwrap()]);
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    for (line, word) in [
        ("A/B,1,2,3,x,a,4,,\n", "size"),
        ("A/B,1,2,3,x,a,3,900150983cd24fb0d6963f7d28e17f73,\n", "md5"),
        ("A/12,1,2,3,x,a,3,,\n", "path"),
        ("A/B,2,2,3,x,a,3,,\n", "valid_until_ms"),
        ("A/B,1,2,3,x,../a,3,,\n", "leads out"),
        ("A/B,1,2,3,x,missing,3,,\n", "missing"),
        ("A/B,one,2,3,x,a,3,,\n", "line"),
    ] {
        let (status, text) = import(line);
        assert_eq!(status, Some(1), "{line}: {text}");
        assert!(text.contains(word) && text.contains('3'), "{line}: {text}");
        assert!(!repository.join("A").exists(), "{line} left files");
    }
    assert_eq!(import("").0, Some(0));
    let service = Service::over(&repository, &[]);
    let server = service.unix();
    let table =
        ["table", "--server", &server, "--column", "b=A/B", "--at", "1", "--view", "objects"];
    let objects = run_well(&[&table[..], &["--output", "json"]].concat());
    let objects: serde_json::Value = serde_json::from_str(&objects).unwrap();
    assert_eq!(objects[0]["metadata"]["source_id"], "my-id");
    assert_eq!(objects[0]["metadata"]["note"], "hello");
    let validity =
        ValidityInterval::new(Timestamp::from_millis(1), Timestamp::from_millis(2)).unwrap();
    let md5 = iovcache::Md5Sum::parse("900150983cd24fb0d6963f7d28e17f72").unwrap();
    let path = ObjectPath::new("A/B").unwrap();
    let id = iovcache::ObjectId::derived(&path, validity, Timestamp::from_millis(3), md5);
    assert_eq!(objects[0]["object_id"], id.to_string());
}

#[test]
fn the_demo_ends_well() {
    let output = run(&["demo", "--timeframes", "10"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains(" 0 of them wrong"), "{text}");
}

#[test]
fn both_ready_addresses_are_there_when_the_line_is_printed() {
    let service = Service::start(&["--source", "memory:"]);
    assert_eq!(service.ready["ready"], true);
    assert_eq!(service.ready["pid"], service.pid());
    until("the attach socket", || service.attach().exists().then_some(()));
    assert!(
        service.tcp().starts_with("grpc://127.0.0.1:")
            && service.unix().starts_with("grpc+unix:///")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn named_segments_and_a_region_of_another_program_serve_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let repository = folder.path().join("repository");
    small(&repository);
    let segments = folder.path().join("segments");
    let region = folder.path().join("region");
    fs::write(&region, vec![0xAB; 4 << 20]).unwrap();
    let shmid = format!("{:08x}", std::process::id());
    let named = ["--backing", "shm", "--shm-folder", segments.to_str().unwrap()];
    let fairmq = ["--fairmq-shmid", shmid.as_str(), "--fairmq-segment", "3"];
    let region = format!("2000={}", region.display());
    let unmanaged = ["--region", region.as_str()];
    for (arguments, managed, id) in
        [(&named[..], 1, 0), (&fairmq[..], 1, 3), (&unmanaged[..], 0, 2000)]
    {
        let service = Service::over(&repository, arguments);
        let client = Client::connect(&service.unix()).await.unwrap();
        let table = client.table(at(&[2000, 4000])).await.unwrap();
        let column = table.column("drift").unwrap();
        assert_eq!(column.get(0).unwrap(), Some(&b"drift 1"[..]));
        assert_eq!(column.get(1).unwrap(), Some(&b"drift 2"[..]));
        let header = column.header(0).unwrap();
        let place = if managed == 1 { header.segment_id } else { header.region_id };
        assert_eq!((header.managed, place), (managed, id), "{arguments:?}");
        if managed == 0 {
            let o2 = at(&[2000]).cell(CellKind::O2).encoding(Encoding::Plain);
            let error = client.batches(&o2).await.unwrap_err();
            assert_eq!(kind(&error), ErrorKind::InvalidArgument, "{error}");
        }
        assert_eq!(service.stop().0, Some(0));
    }
    assert_eq!(fs::read_dir(&segments).unwrap().count(), 0);
    let left = fs::read_dir("/dev/shm").unwrap().filter_map(Result::ok);
    let left: Vec<_> =
        left.filter(|one| one.file_name().to_string_lossy().contains(&shmid)).collect();
    // Successors know the numbers already used.
    let names: Vec<_> = left.iter().map(|one| one.file_name()).collect();
    assert_eq!(names, [format!("iovcache_{shmid}.numbers").as_str()]);
    fs::remove_file(left[0].path()).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_names_sources_tables_and_paths_that_stand_for_others() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (folder.path().join("first"), folder.path().join("second"));
    small(&first);
    put(&second, &version("Only/Second", 0, 10_000, 1, b"second"));
    let file = folder.path().join("config.toml");
    let text = format!(
        "refresh = \"200ms\"\nmemory = \"32MiB\"\nlisten = \"127.0.0.1:0\"\n\
         [[source]]\nurl = \"file://{}\"\npaths = [\"TPC\"]\n\
         [[source]]\nurl = \"file://{}\"\n\
         [[remap]]\npath = \"Old/Name\"\nto = \"Only/Second\"\n\
         [tables.both]\ndrift = \"{DRIFT}\"\nold = \"Old/Name\"\n",
        first.display(),
        second.display()
    );
    fs::write(&file, &text).unwrap();
    let file = file.to_str().unwrap().to_owned();
    run_well(&["config", "check", &file]);
    assert!(run_well(&["config", "show", &file]).contains("Old/Name"));
    let service = Service::start(&["--config", &file]);
    let client = Client::connect(&service.unix()).await.unwrap();
    let request = TableRequest::new().table("both").timestamps([2000, 4000]);
    let table = client.table(request).await.unwrap();
    assert_eq!(table.column("drift").unwrap().get(1).unwrap(), Some(&b"drift 2"[..]));
    assert_eq!(table.column("old").unwrap().get(0).unwrap(), Some(&b"second"[..]));
    let status = client.status().await.unwrap();
    assert_eq!(status.sources.len(), 2);
    let unknown = TableRequest::new().table("neither").timestamps([1]);
    let error = client.table(unknown).await.unwrap_err();
    assert!(error.message().contains("both"), "{error}");
    fs::write(&file, text.replace("refresh", "refersh")).unwrap();
    let wrong = run(&["config", "check", &file]);
    assert_eq!(wrong.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("refersh"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_never_releases_is_refused_or_its_tables_are_revoked_as_configured() {
    let folder = tempfile::tempdir().unwrap();
    small(folder.path());
    let counted = |service: &Service, name: &str| {
        let (_, metrics) = http_get(&service.http(), "/metrics");
        let line = metrics.lines().find(|line| line.starts_with(&format!("{name} ")));
        line.and_then(|line| line.split(' ').nth(1)?.parse::<u64>().ok())
    };
    let consumers = ["idle".to_owned()];
    let fill = async |service: &Service| {
        let client = Client::connect(&service.unix()).await.unwrap();
        for timeframe in [1, 2, 3] {
            let times = vec![Some(2000 * timeframe as i64)];
            client.put_timeframe(timeframe, times, &drift_column(), &consumers).await.unwrap();
        }
        client
    };
    let of = |timeframe| TableRequest::new().timeframe(timeframe).consumer("idle");

    let service = Service::over(folder.path(), &["--quota-timeframes", "2"]);
    let client = fill(&service).await;
    let _held = (client.table(of(1)).await.unwrap(), client.table(of(2)).await.unwrap());
    let error = client.table(of(3)).await.unwrap_err();
    assert_eq!(kind(&error), ErrorKind::ResourceExhausted);
    assert_eq!(error.code().0, 5015);
    client.consumed(1, "idle").await.unwrap();
    client.table(of(3)).await.unwrap();
    drop(service);

    let service =
        Service::over(folder.path(), &["--slow-after", "300ms", "--slow-consumer", "refuse"]);
    let client = fill(&service).await;
    let _held = client.table(of(1)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(400)).await;
    let error = client.table(of(2)).await.unwrap_err();
    assert_eq!(kind(&error), ErrorKind::ResourceExhausted);
    assert_eq!(error.code().0, 5016);
    client.consumed(1, "idle").await.unwrap();
    client.table(of(2)).await.unwrap();
    drop(service);

    let service =
        Service::over(folder.path(), &["--slow-after", "300ms", "--slow-consumer", "revoke"]);
    let client = fill(&service).await;
    let _held = client.table(of(1)).await.unwrap();
    let until_released = async || {
        let status = client.status().await.unwrap();
        status.timeframes.is_empty() && status.memory.pinned_bytes == 0
    };
    for _ in 0..1000 {
        if until_released().await {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(until_released().await);
    assert_eq!(counted(&service, "iovcache_slow_revoked_total"), Some(3));
    let output = run(&["serve", "--source", "memory:", "--slow-consumer", "never"]);
    assert_eq!(output.status.code(), Some(2));
}
