//! The log: as text or JSON, and the line per table that records which version served which rows.
#![cfg(feature = "cli")]

mod common;

use common::{Service, Version, put};
use iovcache::client::{Client, TableRequest};
use iovcache::table::ColumnRequest;
use iovcache::{ObjectPath, cache::TABLE_LOG};
use serde_json::Value;

const DRIFT: &str = "TPC/Calib/VDrift";

#[tokio::test(flavor = "multi_thread")]
async fn each_table_leaves_a_line_that_proves_which_version_served_what() {
    let repository = tempfile::tempdir().unwrap();
    let version =
        |from, until, created, bytes| Version { path: DRIFT, from, until, created, bytes };
    let first = put(repository.path(), &version(1_000, 9_000, 1, b"drift 1"));
    let second = put(repository.path(), &version(3_000, 5_000, 2, b"the second drift"));
    let filter = format!("warn,{TABLE_LOG}=info");
    let arguments = ["--log", &filter, "--log-format", "json"];
    let service = Service::over(repository.path(), &arguments);
    let client = Client::connect(&service.unix()).await.unwrap();
    let path = ObjectPath::new(DRIFT).unwrap();
    let column = ColumnRequest::new("drift", path);
    let times = [1_500, 2_500, 3_500, 8_500].map(Some).to_vec();
    client.put_timeframe(42, times, &[column], &["tracker".to_owned()]).await.unwrap();
    drop(client.table(TableRequest::new().timeframe(42).consumer("tracker")).await.unwrap());
    drop(client);
    let (status, log) = service.stop();
    assert_eq!(status, Some(0));
    // Every line is one JSON object.
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let tables: Vec<&Value> = lines.iter().filter(|line| line["target"] == TABLE_LOG).collect();
    let [table] = tables[..] else { panic!("{log}") };
    for (field, value) in [
        ("level", Value::from("INFO")),
        ("timeframe", 42.into()),
        ("consumer", "tracker".into()),
        ("rows", 4.into()),
        ("first", 1_500.into()),
        ("last", 8_500.into()),
        ("objects", 2.into()),
        ("bytes", 23.into()),
    ] {
        assert_eq!(table[field], value, "{field} of {table}");
    }
    assert!(table["took_micros"].as_u64().unwrap() > 0 && table["timestamp"].is_string());
    let versions: Value = serde_json::from_str(table["versions"].as_str().unwrap()).unwrap();
    let served = |place: usize, field: &str| versions[place][field].clone();
    for (place, id, size, rows) in [(0, first, 7, 3), (1, second, 16, 1)] {
        assert_eq!(served(place, "object_id"), id);
        assert_eq!(
            (served(place, "path"), served(place, "column")),
            (DRIFT.into(), "drift".into())
        );
        assert_eq!((served(place, "size"), served(place, "rows")), (size.into(), rows.into()));
    }
    assert_eq!((served(1, "valid_from"), served(1, "valid_until")), (3_000.into(), 5_000.into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn as_text_it_is_for_people_and_without_the_filter_no_table_is_in_it() {
    let repository = tempfile::tempdir().unwrap();
    put(
        repository.path(),
        &Version { path: DRIFT, from: 0, until: 9, created: 1, bytes: b"drift" },
    );
    let table = || TableRequest::new().column("drift", DRIFT).timestamps([1]);
    for (filter, expected) in [("warn", false), ("warn,iovcache::table=info", true)] {
        let service = Service::over(repository.path(), &["--log", filter]);
        let client = Client::connect(&service.unix()).await.unwrap();
        drop(client.table(table()).await.unwrap());
        drop(client);
        let log = service.stop().1;
        assert_eq!(log.contains("iovcache::table: table"), expected, "{log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn names_from_outside_neither_forge_lines_nor_send_control_characters_to_a_terminal() {
    let repository = tempfile::tempdir().unwrap();
    put(
        repository.path(),
        &Version { path: DRIFT, from: 0, until: 9, created: 1, bytes: b"drift" },
    );
    let evil = "x\n2026-01-01T00:00:00Z ERROR forged\u{1b}]0;title\u{7}\u{202e}\u{9b}2J";
    for format in ["text", "json"] {
        let arguments = ["--log", "info,iovcache::table=info", "--log-format", format];
        let service = Service::over(repository.path(), &arguments);
        let client = Client::connect(&service.unix()).await.unwrap();
        let request = TableRequest::new().column(evil, DRIFT).timestamps([1]).consumer(evil);
        drop(client.table(request).await.unwrap());
        let status = common::run_well(&["status", "--server", &service.unix()]);
        drop(client);
        let log = service.stop().1;
        let line = log.lines().find(|line| line.contains("forged")).unwrap();
        assert!(line.contains(TABLE_LOG), "{log}");
        for text in [&log, &status] {
            assert!(!text.lines().any(|line| line.starts_with("2026-01-01")), "{text}");
            assert!(!text.chars().any(|one| one.is_control() && one != '\n'), "{text:?}");
        }
        assert!(!log.contains('\u{202e}'), "{log:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_names_the_address_the_key_and_the_consumer() {
    let folder = tempfile::tempdir().unwrap();
    let keys = folder.path().join("keys.toml");
    let new = ["token", "shift", "--json", "--tokens", keys.to_str().unwrap()];
    let token: Value = serde_json::from_str(&common::run_well(&new)).unwrap();
    let service = Service::over(
        folder.path(),
        &["--log", "info", "--log-format", "json", "--tokens", keys.to_str().unwrap()],
    );
    let ask = async |token: &str, request: TableRequest| {
        let token = Some(token.into());
        let consumer = Some("qc".to_owned());
        let options = iovcache::client::ClientOptions { token, consumer, ..Default::default() };
        let client = Client::connect_with(&service.tcp(), options).await;
        client.unwrap().table(request).await.map(drop).unwrap_err()
    };
    let request = || TableRequest::new().column("x", "No/Such/Path").timestamps([1]);
    ask("another", request()).await;
    ask(token["token"].as_str().unwrap(), request()).await;
    let attach = iovcache::shm::attach::Attachment::open(&service.attach(), "qc", Some("another"));
    assert!(attach.is_err());
    let pid = std::process::id();
    let (_, log) = service.stop();
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let client_of = |code: &str| {
        let has = |line: &&Value| line["message"].as_str().is_some_and(|text| text.contains(code));
        let line = lines.iter().find(|line| has(line) && line["client"].is_string());
        line.unwrap_or_else(|| panic!("{code}: {log}"))["client"].as_str().unwrap().to_owned()
    };
    assert!(client_of("[IOV-6002]").starts_with("127.0.0.1:"), "{log}");
    // A client on this node goes on over the Unix socket.
    let refused = client_of("[IOV-2010]");
    assert!(refused.contains(&format!("pid {pid}")) || refused.contains("127.0.0.1:"), "{log}");
    assert!(refused.ends_with(", key \"shift\", consumer \"qc\""), "{refused}");
    let attach = lines.iter().find(|line| line.to_string().contains("cannot attach")).unwrap();
    assert_eq!((&attach["consumer"], &attach["pid"]), (&"qc".into(), &pid.into()), "{log}");
}
