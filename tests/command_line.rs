//! The command line as a user sees it: times, hints, files of every kind, and errors that name what
//! is wrong.
#![cfg(feature = "cli")]

mod common;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Output, Stdio};

use common::{
    Service, Version, http_get, iovcache, new_version, put, run, run_well, signal, until,
};
use iovcache::source::repository::{Durability, RepositoryWriter};
use serde_json::Value;

const DRIFT: &str = "TPC/Calib/VDrift";
/// 2024-11-06T12:00:00Z.
const NOON: i64 = 1_730_894_400_000;
const HOUR: i64 = 3_600_000;

/// One version, valid for an hour from [`NOON`].
fn service(repository: &Path) -> Service {
    let version =
        Version { path: DRIFT, from: NOON, until: NOON + HOUR, created: 1, bytes: b"drift" };
    put(repository, &version);
    Service::over(repository, &[])
}

/// Runs a command with `input` as its stdin.
fn run_with(input: &[u8], arguments: &[&str]) -> Output {
    let mut child = iovcache()
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    child.wait_with_output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn times_are_taken_in_iso_8601_and_shown_so_unless_milliseconds_are_asked_for() {
    let repository = tempfile::tempdir().unwrap();
    let service = service(repository.path());
    let server = service.unix();
    for at in [
        "1730894400000",
        "2024-11-06T12:00:00Z",
        "2024-11-06T13:30+01:00",
        "2024-11-06T12Z",
        "20241106T120000,5Z",
        "2024-11-06 12:00:00 UTC",
        "2024-311T12:00z",
    ] {
        for name in ["cat", "get"] {
            assert_eq!(run_well(&[name, "--server", &server, DRIFT, "--at", at]), "drift");
        }
    }
    let column = format!("drift={DRIFT}");
    let table = |more: &[&str]| {
        run_well(&[&["table", "--server", &server, "--column", &column], more].concat())
    };
    let range = "2024-11-06T12:00Z:2024-11-06T13:00Z:30m";
    let shown = table(&["--range", range]);
    assert!(shown.contains("2024-11-06T12:30:00Z"), "{shown}");
    assert!(table(&["--range", range, "--ms"]).contains("1730896200000"));
    let json: Value = serde_json::from_str(&table(&["--range", range, "--json"])).unwrap();
    assert_eq!(json[1]["timestamp"], NOON + HOUR / 2);
    let line = run_well(&["timeline", "--server", &server, DRIFT]);
    assert!(line.starts_with("2024-11-06T12:00:00Z ─ 2024-11-06T13:00:00Z "), "{line}");
    let line = run_well(&["timeline", "--server", &server, DRIFT, "--ms"]);
    assert!(line.starts_with("1730894400000 ─ "), "{line}");
    let naive = run(&["cat", "--server", &server, DRIFT, "--at", "2024-11-06T12:00:00"]);
    assert_eq!(naive.status.code(), Some(2));
    assert!(said(&naive).contains("has no time zone"), "{}", said(&naive));
    // Lists that begin with a minus are accepted as lists.
    let at = ["--at", "-5,1730894400000", "--missing-as-null", "--output", "csv"];
    assert_eq!(table(&at).lines().count(), 3);
}

#[test]
fn an_unknown_name_is_reported_with_similar_ones() {
    let repository = tempfile::tempdir().unwrap();
    let service = service(repository.path());
    let told = |path: &str, at: &str| {
        let output = run(&["cat", "--server", &service.unix(), path, "--at", at]);
        assert_eq!(output.status.code(), Some(3), "{}", said(&output));
        said(&output)
    };
    let text = told("TPC/Calib/VDrfit", "2024-11-06T12:00:00Z");
    assert!(text.contains("did you mean TPC/Calib/VDrift?"), "{text}");
    let text = told(DRIFT, "2024-11-07");
    assert!(text.contains("its last interval is [2024-11-06T12:00:00Z, 2024-11-06T13:00:00Z)"));
    let text = told(DRIFT, "1730894400");
    assert!(text.contains("if seconds were meant, give 1730894400000"), "{text}");
    let text = told("VDrift", "2024-11-06T12:00:00Z");
    assert!(text.contains("did you mean TPC/Calib/VDrift?"), "{text}");
    let text = told("TPC/Calib", "2024-11-06T12:00:00Z");
    assert!(text.contains("it is a folder with TPC/Calib/VDrift"), "{text}");
    let unknown = run(&["timeline", "--server", &service.unix(), "tpc/calib/vdrift"]);
    assert!(said(&unknown).contains("did you mean TPC/Calib/VDrift?"), "{}", said(&unknown));
    let failed = |status, arguments: &[&str]| {
        let output = run(&[arguments, &["--server", &service.unix()]].concat());
        assert_eq!(output.status.code(), Some(status), "{arguments:?} {}", said(&output));
        said(&output)
    };
    let text = failed(2, &["cat", "/TPC//Calib/VDrift/", "--at", "0"]);
    assert!(text.contains("did you mean TPC/Calib/VDrift?"), "{text}");
    assert!(failed(3, &["ls", "TPC/Calb"]).contains("did you mean TPC/Calib/VDrift?"));
    let text = failed(3, &["timeline", DRIFT, "--from", "2025-01-01"]);
    assert!(text.contains("in [2025-01-01T00:00:00Z, inf)"), "{text}");
    assert!(text.contains("its last interval is [2024-11-06T12:00:00Z"), "{text}");
    let column = format!("drift={{\"path\": \"{DRIFT}\"}}");
    let table = |more: &[&str]| failed(3, &[&["table", "--column", &column], more].concat());
    let text = table(&["--range", "2024-11-06T12:30Z:2024-11-06T14:00Z:30m"]);
    assert!(text.contains("has no version at 2024-11-06T13:00:00Z"), "{text}");
    let text = failed(2, &["table", "--column", &column, "--range", "0:5"]);
    assert!(text.contains("--range: \"0:5\" has no step"), "{text}");
    let text = failed(3, &["table", "--table", "tpc", "--at", "0"]);
    assert!(text.contains("there are: none"), "{text}");
    // Without a server the error names the address.
    let nobody = run(&["status", "--server", &format!("grpc://{}", service.http())]);
    assert_eq!(nobody.status.code(), Some(4));
    assert!(said(&nobody).contains(&service.http()), "{}", said(&nobody));
}

/// Puts versions that follow each other, 10 ms each.
fn put_many(repository: &Path, path: &str, count: i64) {
    let writer = RepositoryWriter::new(repository).unwrap().with_durability(Durability::Batch);
    let mut batch = writer.batch();
    for n in 0..count {
        let version = new_version(path, 10 * n, 10 * n + 10, n);
        batch.put(&version, &mut format!("{n}").as_bytes()).unwrap();
    }
    batch.commit().unwrap();
}

#[test]
fn a_long_timeline_is_listed_in_parts_and_loads_nothing() {
    const COUNT: usize = 2_500;
    let repository = tempfile::tempdir().unwrap();
    put_many(repository.path(), "A/Long", COUNT as i64);
    let service = Service::over(repository.path(), &[]);
    let listed = |more: &[&str]| {
        let output = run(&[&["timeline", "--server", &service.unix(), "A/Long"], more].concat());
        assert!(output.status.success(), "{}", said(&output));
        let text = String::from_utf8(output.stdout.clone()).unwrap();
        (text.lines().map(str::to_owned).collect::<Vec<_>>(), said(&output))
    };
    let (chart, note) = listed(&[]);
    assert_eq!(chart.len(), 1_000);
    assert!(note.contains("more with --from=10000 or --limit=0"), "{note}");
    let (chart, note) = listed(&["--limit", "0"]);
    assert_eq!((chart.len(), note.as_str()), (COUNT, ""));
    let (chart, note) = listed(&["--from", "10000", "--limit=1500"]);
    assert_eq!((chart.len(), note.as_str()), (1_500, ""));
    let spans = |lines: &[String]| -> Vec<(i64, i64)> {
        let span = |line: &String| {
            let json: Value = serde_json::from_str(line).unwrap();
            (json["from"].as_i64().unwrap(), json["until"].as_i64().unwrap())
        };
        lines.iter().map(span).collect()
    };
    let expected: Vec<(i64, i64)> = (0..COUNT as i64).map(|n| (10 * n, 10 * n + 10)).collect();
    assert_eq!(spans(&listed(&["--json"]).0), expected);
    let (some, note) = listed(&["--json", "--limit", "3", "--from=15", "--until=1000"]);
    assert_eq!(spans(&some), [(15, 20), (20, 30), (30, 40)]);
    assert!(note.contains("--from=40"), "{note}");
    // A hint at the nearest intervals reads these alone.
    let missing = run(&["cat", "--server", &service.unix(), "A/Long", "--at", "99999999"]);
    assert!(said(&missing).contains("its last interval is ["), "{}", said(&missing));
    let status = run_well(&["status", "--server", &service.unix(), "--json"]);
    let status: Value = serde_json::from_str(&status).unwrap();
    assert_eq!((&status["loads"], &status["objects"]), (&0.into(), &0.into()), "{status}");
}

#[test]
fn a_time_in_seconds_is_noticed_by_every_command_that_takes_times() {
    let repository = tempfile::tempdir().unwrap();
    let service = service(repository.path());
    let (server, column) = (service.unix(), format!("drift={DRIFT}"));
    let folder = repository.path().to_str().unwrap();
    let file = repository.path().join("object");
    fs::write(&file, "x").unwrap();
    let file = file.to_str().unwrap();
    let of_table = ["table", "--server", &server, "--column", &column, "--missing-as-null"];
    let put = ["put", "--repository", folder, "A/B", file, "--from"];
    let noticed = |output: &Output| {
        let text = said(output);
        assert!(text.contains("if seconds were meant, give 1730894400000 (2024-11-06"), "{text}");
    };
    for command in [
        &[&of_table[..], &["--at", "1730894400"]].concat(),
        &[&of_table[..], &["--range", "1730894400:1730894401:1"]].concat(),
        &[&of_table[..], &["--at", "1730894400000", "--not-after", "1730894400"]].concat(),
        &[&put[..], &["1730894400"]].concat(),
        &vec!["timeline", "--server", &server, DRIFT, "--from", "1730894400"],
    ] {
        let output = run(command);
        assert!(output.status.success(), "{}", said(&output));
        noticed(&output);
    }
    noticed(&run_with(b"1730894400\n", &[&of_table[..], &["--timestamps", "-"]].concat()));
    let manifest = format!(
        "path,valid_from_ms,valid_until_ms,created_ms,file\nA/C,1730894400,{NOON},1,Cargo.toml\n"
    );
    let import = ["import", "--repository", folder, "-", "--json"];
    let imported = run_with(manifest.as_bytes(), &import);
    noticed(&imported);
    let json: Value = serde_json::from_slice(&imported.stdout).unwrap();
    assert_eq!(json["new"], 1, "{json}");
    let date = run(&[&of_table[..], &["--at", "20241106"]].concat());
    assert!(said(&date).contains("if a date was meant, give 2024-11-06"), "{}", said(&date));
    let right = run(&[&of_table[..], &["--at", "1730894400000,5"]].concat());
    assert_eq!(said(&right), "");
}

#[test]
fn texts_may_have_a_byte_order_mark_and_come_from_stdin() {
    let repository = tempfile::tempdir().unwrap();
    let service = service(repository.path());
    let (server, column) = (service.unix(), format!("drift={DRIFT}"));
    let table = ["table", "--server", &server, "--column", &column];
    let from_stdin = [&table[..], &["--timestamps", "-", "--output", "csv"]].concat();
    for times in
        ["\u{feff}1730894400000\r\n2024-11-06T12:30:00Z\r\n", "1730894400000\n1730894400001"]
    {
        let output = run_with(times.as_bytes(), &from_stdin);
        assert!(output.status.success(), "{}", said(&output));
        assert_eq!(String::from_utf8_lossy(&output.stdout).lines().count(), 3);
    }
    let utf16: Vec<u8> = "\u{feff}1\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let output = run_with(&utf16, &from_stdin);
    assert!(output.status.code() == Some(2) && said(&output).contains("UTF-16"));
    let manifest: Vec<u8> = "\u{feff}path".encode_utf16().flat_map(u16::to_be_bytes).collect();
    let folder = repository.path().to_str().unwrap();
    let output = run_with(&manifest, &["import", "--repository", folder, "-"]);
    assert!(output.status.code() == Some(1) && said(&output).contains("UTF-16"));
    let lock =
        run_well(&[&table[..], &["--at", "1730894400000", "--view", "objects", "--json"]].concat());
    let lock = format!("\u{feff}{lock}");
    let locked = [&table[..], &["--at", "1730894400000", "--lock", "-"]].concat();
    assert!(run_with(lock.as_bytes(), &locked).status.success());
    let folder = repository.path().to_str().unwrap();
    let put = ["put", "--repository", folder, "A/B", "-", "--from", "now-1h", "--json"];
    let put = run_with(b"of stdin", &put);
    let put: Value = serde_json::from_slice(&put.stdout).unwrap();
    assert_eq!(put["size"], 8);
}

#[test]
fn a_reader_that_has_enough_ends_a_command_quietly_and_a_full_disk_is_a_failure() {
    let repository = tempfile::tempdir().unwrap();
    let service = service(repository.path());
    let server = service.unix();
    let mut watch = iovcache()
        .args(["status", "--watch", "--json", "--server", &server])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = watch.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 10]).unwrap();
    drop(stdout);
    let status = until("the end of status --watch", || watch.try_wait().unwrap());
    assert!(status.success());
    let mut told = String::new();
    watch.stderr.take().unwrap().read_to_string(&mut told).unwrap();
    assert_eq!(told, "");
    for command in [
        &["config", "new"][..],
        &["cat", DRIFT, "--at", "1730894400000", "--server", &server],
        &["serve", "--help"],
        &["--version"],
    ] {
        let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let output = iovcache().args(command).stdout(full).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{command:?}");
        assert!(said(&output).contains("cannot write to stdout"), "{}", said(&output));
    }
    // The demo, with its processes: quietly where its reader is gone, and without a panic.
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    for (stdout, status) in [(Stdio::from(full), 1), (closed_pipe(), 0)] {
        let mut command = iovcache();
        let demo = command.args(["demo", "--timeframes", "2"]).stdout(stdout).output().unwrap();
        assert_eq!(demo.status.code(), Some(status), "{}", said(&demo));
        assert!(!said(&demo).contains("panicked"), "{}", said(&demo));
    }
    // A token that was not printed is not added: no client could use it, and its name were taken.
    let file = repository.path().join("keys.toml");
    let token = |stdout: Stdio| {
        let mut command = iovcache();
        command.args(["token", "shift", "--tokens", file.to_str().unwrap()]);
        let output = command.stdout(stdout).output().unwrap();
        (output.status.code(), said(&output))
    };
    for stdout in [closed_pipe(), fs::File::create("/dev/full").unwrap().into()] {
        let (status, told) = token(stdout);
        assert!(status == Some(1) && told.contains("and is not added"), "{told}");
        assert_eq!(fs::read_to_string(&file).unwrap(), "");
    }
    assert_eq!(token(Stdio::null()).0, Some(0));
    assert!(fs::read_to_string(&file).unwrap().contains("name = \"shift\""));
}

/// A pipe whose reader is gone.
fn closed_pipe() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

#[test]
fn stdin_is_read_for_one_file_and_metadata_are_given_once() {
    let folder = tempfile::tempdir().unwrap();
    let service = service(folder.path());
    let column = format!("v={DRIFT}");
    let server = service.unix();
    let both =
        ["table", "--server", &server, "--column", &column, "--timestamps", "-", "--lock", "-"];
    let output = run_with(b"1000\n", &both);
    assert_eq!(output.status.code(), Some(2));
    assert!(said(&output).contains("give - for one file only"), "{}", said(&output));
    let repository = folder.path().join("other");
    let repository = repository.to_str().unwrap();
    let put = ["put", "--repository", repository, "A/B", "-", "--from", "0"];
    let twice = [&put[..], &["--meta", "x=1", "--meta", "x=2"]].concat();
    let output = run_with(b"x", &twice);
    assert_eq!(output.status.code(), Some(2));
    assert!(said(&output).contains("\"x\" is given twice"), "{}", said(&output));
}

#[test]
fn an_empty_variable_counts_as_not_set_and_a_wrong_one_is_named() {
    let show = |value: &str| {
        iovcache().args(["config", "show"]).env("IOVCACHE_MEMORY", value).output().unwrap()
    };
    let empty = show("");
    assert!(empty.status.success(), "{}", said(&empty));
    assert!(String::from_utf8_lossy(&empty.stdout).contains("memory = \"4GiB\"  # default"));
    let wrong = show("much");
    assert_eq!(wrong.status.code(), Some(2));
    assert!(said(&wrong).contains("IOVCACHE_MEMORY"), "{}", said(&wrong));
    for (variable, value) in [
        ("IOVCACHE_SERVER", "nowhere"),
        ("IOVCACHE_SERVER", "grpc+unix:///no/such/socket"),
        ("IOVCACHE_CA", "/no/such/file"),
        ("IOVCACHE_LOG_FORMAT", "xml"),
    ] {
        let output = iovcache().args(["ls"]).env(variable, value).output().unwrap();
        assert!(!output.status.success());
        assert!(said(&output).contains(variable), "{variable}: {}", said(&output));
    }
    let wrong = iovcache().args(["config", "new"]).env("IOVCACHE_MEMROY", "1GiB").output().unwrap();
    assert_eq!(said(&wrong), {
        let hint = "did you mean IOVCACHE_MEMORY?";
        format!("note: no option reads the variable IOVCACHE_MEMROY; {hint}\n")
    });
    let level = run(&["--log", "warnn", "config", "new"]);
    assert_eq!(level.status.code(), Some(2));
    assert!(said(&level).contains("\"warnn\" is no level; did you mean warn?"), "{}", said(&level));
    let stdin = run_with(b"memroy = 1\n", &["config", "check", "-"]);
    assert!(said(&stdin).contains("] stdin:1: memroy: unknown field"), "{}", said(&stdin));
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    fs::write(&token, "\n").unwrap();
    let empty = run(&["ls", "--token-file", token.to_str().unwrap()]);
    assert_eq!(empty.status.code(), Some(2));
    assert!(said(&empty).contains("it is empty, expected a token"), "{}", said(&empty));
}

#[test]
fn all_faults_of_a_configuration_are_told_at_once_with_those_of_files_and_ports() {
    let folder = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let file = folder.path().join("iovcache.toml");
    fs::write(
        &file,
        format!(
            "memroy = 1\nmemory = \"1GiB\"\nsegment = \"2GiB\"\nlisten = \"{address}\"\n\
             tokens = \"/no/such/keys\"\nhttp = \"127.0.0.1:0\"\n[ccdb]\nretries = \"x\"\n[[source]]\nurl = \"file:///no/such\"\n"
        ),
    )
    .unwrap();
    let output = run(&["config", "check", file.to_str().unwrap()]);
    let text = said(&output);
    assert_eq!(output.status.code(), Some(2), "{text}");
    for fault in [
        ":1: memroy: unknown field `memroy`; did you mean `memory`?",
        ":3: segment: a segment of 2GiB is larger than memory",
        ":4: listen: [IOV-8010] cannot listen on",
        ":5: tokens: /no/such/keys",
        ":8: ccdb.retries: invalid type",
        ":10: source[0].url: /no/such",
    ] {
        assert!(text.contains(fault), "{fault:?} in {text}");
    }
    let json = run(&["config", "check", "--json", file.to_str().unwrap()]);
    let json: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["faults"].as_array().unwrap().len(), 6, "{json}");
    fs::write(&file, "memory = \"4096TiB\"\nlisten = \"127.0.0.1:0\"\n").unwrap();
    let large = run(&["config", "check", file.to_str().unwrap()]);
    assert!(said(&large).contains("is more than this node has"), "{}", said(&large));
    fs::write(
        &file,
        "fairmq_register = \"./no/such\"\n[[path]]\npath = \"A\"\ndefault = \"/\"\n\
         [[source]]\nurl = \".\"\n",
    )
    .unwrap();
    let text = said(&run(&["config", "check", file.to_str().unwrap()]));
    for fault in [
        ":1: fairmq_register: ./no/such: No such file".to_owned(),
        ":4: path[0].default: /: it is no regular file".to_owned(),
        format!("write file://{}", std::env::current_dir().unwrap().display()),
    ] {
        assert!(text.contains(&fault), "{fault:?} in {text}");
    }
    fs::write(&file, "memory = \"1GiB\"\nlisten = \"127.0.0.1:0\"\n").unwrap();
    let right = run(&["config", "check", file.to_str().unwrap()]);
    assert!(right.status.success() && said(&right).contains("note: no [[source]]"));
}

#[test]
fn the_service_refuses_all_faults_at_once_and_a_single_one_with_its_own_status() {
    let folder = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let file = folder.path().join("iovcache.toml");
    let file = file.to_str().unwrap();
    fs::write(
        file,
        "memroy = 1\nsegment = \"2GiB\"\nslow_consumer = \"warn\"\ntokens = \"/no/such/keys\"\n",
    )
    .unwrap();
    // Without its variables, which the environment of this test may have.
    let serve = |more: &[&str]| {
        let output = iovcache().arg("serve").args(more).stdin(Stdio::null()).output().unwrap();
        (output.status.code(), said(&output))
    };
    let (status, text) = serve(&[
        "--config",
        file,
        "--memory",
        "63KiB",
        "--listen",
        &address,
        "--http",
        &address,
        "--tls-cert",
        "/no/such/chain",
    ]);
    assert_eq!(status, Some(2), "{text}");
    for fault in [
        format!("{file}:1: memroy: unknown field `memroy`; did you mean `memory`?"),
        "memory: 63KiB is too little, expected at least 64KiB (command line, --memory)".to_owned(),
        format!("{file}:4: tokens: /no/such/keys: No such file"),
        format!("listen: [IOV-8010] cannot listen on {address}"),
        format!("http: {address} is the address of listen too (command line, --http)"),
        "tls.certificate: tls.key is needed with it (command line, --tls-cert)".to_owned(),
        "source: no source: give --source".to_owned(),
    ] {
        assert!(text.contains(&fault), "{fault:?} in {text}");
    }
    assert_eq!(text.lines().count(), 7, "{text}");
    // A single fault has the exit status and the text that it has anywhere.
    let listen = ["--source", "memory:", "--listen", "127.0.0.1:0"];
    let gone = format!("file://{}", folder.path().join("gone").display());
    for (more, status, reason) in [
        (&["--http", &address][..], 1, "iovcache: [IOV-8010] cannot listen on"),
        (&["--tokens", "/no/such/keys"], 3, "iovcache: /no/such/keys: No such file"),
        (&["--segment", "4KiB"], 2, "segment: 4KiB is too little, expected at least 64KiB"),
        (&["--source", &gone], 3, "gone: No such file"),
        (&["--socket", &format!("{file}/s")], 1, "Not a directory"),
        (&["--socket", &"x".repeat(120)], 2, "[IOV-8013]"),
    ] {
        let (code, text) = serve(&[&listen[..], more].concat());
        assert!(text.contains(reason), "{more:?}: {text}");
        assert_eq!((code, text.lines().count()), (Some(status), 1), "{more:?}: {text}");
    }
    // Text that is no TOML has no further faults: those of the defaults would mislead.
    fs::write(file, "memory = \"1GiB\"\n[[source]\n").unwrap();
    let (status, text) = serve(&["--config", file]);
    assert!(status == Some(2) && text.lines().count() == 1, "{text}");
    assert!(text.contains(&format!("{file}:2: ")), "{text}");
    let check = run(&["config", "check", file]);
    assert_eq!((check.status.code(), said(&check)), (Some(2), text));
}

#[test]
fn a_folder_of_sockets_that_another_service_has_is_refused_with_its_process() {
    let service = Service::start(&["--source", "memory:"]);
    let folder = service.folder.path().join("s");
    let output = run(&[
        "serve",
        "--source",
        "memory:",
        "--listen",
        "127.0.0.1:0",
        "--socket",
        folder.to_str().unwrap(),
    ]);
    let text = said(&output);
    assert!(text.contains("[IOV-8011]"), "{text}");
    assert!(text.contains(&format!("(pid {})", service.pid())), "{text}");
}

#[test]
fn a_hangup_reads_the_filter_of_the_log_again_and_names_what_takes_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("iovcache.toml");
    fs::write(&file, "log = \"warn\"\n").unwrap();
    let arguments = ["--source", "memory:", "--config", file.to_str().unwrap()];
    let service = Service::start(&arguments);
    fs::write(&file, "log = \"info\"\nmax_timeframes = 7\n").unwrap();
    service.signal("HUP");
    std::thread::sleep(std::time::Duration::from_millis(500));
    let log = service.stop().1;
    assert!(log.lines().next().unwrap().contains("serves memory:"), "{log}");
    assert!(log.contains("keys=\"max_timeframes\""), "{log}");
    // A line of level info, which the new filter passes.
    assert!(log.contains("stopping"), "{log}");
}

#[test]
fn metrics_come_in_the_format_that_is_asked_for_and_readiness_with_what_is_wrong() {
    let service = Service::start(&["--source", "http://127.0.0.1:9", "--source", "memory:"]);
    let get = |accept: &str| {
        let address = service.http();
        let mut stream = std::net::TcpStream::connect(&address).unwrap();
        let head = format!("Host: {address}\r\nConnection: close\r\nAccept: {accept}");
        write!(stream, "GET /metrics HTTP/1.1\r\n{head}\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    let open = get("application/openmetrics-text;version=1.0.0,text/plain;q=0.5");
    assert!(open.contains("application/openmetrics-text") && open.trim_end().ends_with("# EOF"));
    assert!(open.contains("# TYPE iovcache_hits counter"));
    let text = get("text/plain;version=0.0.4;q=1,*/*;q=0.1");
    assert!(text.contains("text/plain; version=0.0.4") && !text.contains("# EOF"));
    assert!(text.contains("# TYPE iovcache_hits_total counter"));
    // The buckets that quantiles are computed from end with an unbounded one.
    assert!(text.contains("iovcache_answer_seconds_bucket{le=\"+Inf\"} "), "{text}");
    for name in ["iovcache_build_info{version=", "process_cpu_seconds_total ", "process_open_fds "]
    {
        assert!([&open, &text].iter().all(|text| text.contains(&format!("\n{name}"))), "{name}");
    }
    assert_eq!(http_get(&service.http(), "/readyz"), (200, "ready\n".to_owned()));
    let _ = run(&["cat", "A/B", "--at", "1", "--server", &service.unix()]);
    let (status, told) = http_get(&service.http(), "/readyz");
    assert_eq!(status, 200);
    assert!(told.contains("note: source http://127.0.0.1:9 does not answer"), "{told}");
}

#[test]
fn the_demo_that_stays_shows_its_page_and_a_snippet_until_it_is_told_to_end() {
    let mut child = iovcache()
        .args(["demo", "--stay", "--timeframes", "8"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut text = String::new();
    let mut stdout = child.stdout.take().unwrap();
    let mut piece = [0; 4096];
    while !text.contains("print(start, end, bytes(view[:40]))") {
        let count = stdout.read(&mut piece).unwrap();
        assert!(count > 0, "it ended: {text}");
        text += &String::from_utf8_lossy(&piece[..count]);
    }
    let word = |before: &str| {
        let rest = text.split_once(before).unwrap_or_else(|| panic!("{before}: {text}")).1;
        rest.split_whitespace().next().unwrap().to_owned()
    };
    let page = word("status page ");
    assert_eq!(
        http_get(page.trim_start_matches("http://").trim_end_matches('/'), "/healthz").0,
        200
    );
    let server = word("export IOVCACHE_SERVER=");
    let status = run_well(&["timeline", "Demo/Calib/Drift", "--server", &server]);
    assert!(status.contains('█'), "{status}");
    // Nothing stays when it ends.
    let pid = child.id();
    signal(pid, "TERM");
    assert!(child.wait().unwrap().success());
    let folder = std::env::temp_dir().join(format!("iovcache-demo-{pid}"));
    until("its folder is gone", || (!folder.exists()).then_some(()));
    assert_eq!(run(&["status", "--server", &server]).status.code(), Some(4));
}

#[test]
fn the_demo_fits_a_screen_of_eighty_columns_but_for_addresses() {
    // script gives it a terminal.
    let program = env!("CARGO_BIN_EXE_iovcache");
    let command = format!("stty cols 80 rows 24; {program} demo --timeframes 8 2> /dev/null");
    let output = std::process::Command::new("script")
        .args(["--quiet", "--return", "--command", &command, "/dev/null"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).replace('\r', "");
    assert!(output.status.success() && text.contains("0 of them wrong"), "{text}");
    for line in text.lines().filter(|line| !line.contains("://")) {
        assert!(line.chars().count() <= 80, "{} columns: {line:?}", line.chars().count());
    }
}

#[test]
fn a_token_as_json_has_what_its_file_has() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.toml");
    let file = file.to_str().unwrap();
    let new = ["token", "shift", "--role", "register", "--for", "8h", "--json", "--tokens", file];
    let token: Value = serde_json::from_str(&run_well(&new)).unwrap();
    assert_eq!((&token["name"], &token["role"]), (&"shift".into(), &"register".into()));
    assert_eq!(fs::read_to_string(file).unwrap(), token["entry"].as_str().unwrap());
    assert!(token["expires"].as_i64().unwrap() > NOON && token["token"].is_string());
    // An entry that the service would refuse is not written.
    for wrong in [["token", "", "--tokens", file], ["token", "shift", "--tokens", file]] {
        assert_eq!(run(&wrong).status.code(), Some(2));
        assert_eq!(fs::read_to_string(file).unwrap(), token["entry"].as_str().unwrap());
    }
    assert_eq!(run(&["token", "new", "--tokens", "/dev/full"]).status.code(), Some(2));
    let forever: Value = serde_json::from_str(&run_well(&["token", "x", "--json"])).unwrap();
    assert!(forever["expires"].is_null(), "{forever}");
}
