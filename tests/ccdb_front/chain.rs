//! One service as the source of another: equal tables for every kind of request by the second.

use iovcache::client::{Client, TableRequest};

use super::common::{Random, Service, run_well};
use super::fake_ccdb::{FakeCcdb, Kind, Upload};
use super::{address, before};

const PATHS: [&str; 3] = ["A/One", "A/Two", "B"];

/// Per path and timestamp: the id and the bytes.
async fn rows(service: &Service, times: &[i64]) -> Vec<Option<(String, Vec<u8>)>> {
    let client = Client::connect(&service.unix()).await.unwrap();
    let mut all = Vec::new();
    for path in PATHS {
        let request = TableRequest::new().column("x", path).timestamps(times.iter().copied());
        let table = client.table(request.missing_as_null()).await.unwrap();
        let column = table.column("x").unwrap();
        all.extend((0..table.rows()).map(|row| {
            let bytes = column.get(row).unwrap()?;
            // The bytes name the version.
            Some((String::from_utf8_lossy(bytes).into_owned(), bytes.to_vec()))
        }));
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_over_another_gives_equal_tables_for_random_timestamps() {
    let seed = std::process::id() as u64 * 7919 + 1;
    println!("seed {seed}");
    let mut random = Random::new(seed);
    let server = FakeCcdb::start(Kind::Local).await;
    for n in 0..40 {
        let path = PATHS[random.below(3) as usize];
        let from = 1 + random.below(1000) as i64;
        let upload = Upload::new(path, from, from + 1 + random.below(300) as i64).created(1 + n);
        server.upload(upload.metadata("RunNumber", &n.to_string()));
    }
    let first = before(&server, &[]);
    let first_with_body = before(&server, &["--ccdb-answer", "body"]);
    let folder = tempfile::tempdir().unwrap();
    let by_time = folder.path().join("by-time.toml");
    std::fs::write(&by_time, "[ccdb]\nbrowse_limit = 0\n").unwrap();
    let by_time = by_time.to_str().unwrap();
    let over = |service: &Service, more: &[&str]| {
        let source = format!("http://{}", address(service));
        let mut all = vec!["--source", source.as_str(), "--refresh", "10s"];
        all.extend_from_slice(more);
        Service::start(&all)
    };
    let seconds = [
        ("listed", over(&first, &[])),
        ("redirected", over(&first, &["--config", by_time])),
        ("at once", over(&first_with_body, &["--config", by_time])),
    ];
    let times: Vec<i64> = (0..60).map(|_| random.below(1400) as i64).collect();
    let expected = rows(&first, &times).await;
    assert!(expected.iter().any(Option::is_some) && expected.iter().any(Option::is_none));
    for (how, second) in &seconds {
        assert_eq!(rows(second, &times).await, expected, "{how}, seed {seed}");
    }
    // Paths and limits are passed through as well.
    let client = Client::connect(&seconds[0].1.unix()).await.unwrap();
    let paths: Vec<String> = client.paths("").await.unwrap().into_iter().map(|p| p.path).collect();
    assert_eq!(paths, PATHS);
}

/// Of several sources the first with a valid version decides, whenever it was created; a listing
/// does not tell which version is of which source.
#[tokio::test(flavor = "multi_thread")]
async fn a_service_over_one_with_several_sources_serves_the_versions_of_its_first_source() {
    let folder = tempfile::tempdir().unwrap();
    let object = folder.path().join("object");
    let sources: Vec<String> = (0..2)
        .map(|n| {
            let repository = folder.path().join(n.to_string());
            std::fs::create_dir(&repository).unwrap();
            // In the second source the versions were created later.
            for (path, from, until) in
                [("A/One", 100, 300), ("A/One", 500, 600), ("A/Two", 0, 1000), ("B", 200, 400)]
            {
                let (from, until) = (from + 50 * n, until + 50 * n);
                std::fs::write(&object, format!("{path} {from} of {n}")).unwrap();
                let times = [("--from", from), ("--until", until), ("--created", 1 + n)];
                let times = times.map(|(name, time)| format!("{name}={time}"));
                let [repository, object] = [&repository, &object].map(|p| p.to_str().unwrap());
                let mut all = vec!["put", "--repository", repository, path, object];
                all.extend(times.iter().map(String::as_str));
                run_well(&all);
            }
            format!("file://{}", repository.display())
        })
        .collect();
    let first = Service::start(&[
        "--source",
        &sources[0],
        "--source",
        &sources[1],
        "--ccdb",
        "127.0.0.1:0",
    ]);
    let source = format!("http://{}", address(&first));
    let second = Service::start(&["--source", &source, "--refresh", "10s"]);
    // Not far outside of the intervals: a path that is asked by time is given up after many times
    // without a version.
    let times: Vec<i64> = (9..68).flat_map(|n| [10 * n - 1, 10 * n]).collect();
    let expected = rows(&first, &times).await;
    assert!(expected.iter().flatten().any(|(bytes, _)| bytes.ends_with("of 0")));
    assert!(expected.iter().flatten().any(|(bytes, _)| bytes.ends_with("of 1")));
    assert_eq!(rows(&second, &times).await, expected);
}
