//! The index of a repository in an object store: requests, several writers, staleness, bad files.

mod common;
mod s3_server;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::new_version;
use iovcache::source::repository::{
    Bucket, Durability, RepositoryOptions, RepositorySource, RepositoryWriter, index_bucket,
};
use iovcache::source::{Destination, Selection, Source, VecBody, copy};
use iovcache::{CreationLimits, ObjectPath, Query, Timestamp, ValidityInterval};
use object_store::ObjectStore;
use object_store::aws::AmazonS3Builder;
use s3_server::S3Server;

const PATH: &str = "TPC/Calib/VDrift";
const FOLDER: &str = "repo/.iovcache~/";
const LIST: &str = "repo/.iovcache~/current";

fn bucket(server: &S3Server) -> Bucket {
    iovcache::source::install_crypto_provider();
    let store = AmazonS3Builder::new()
        .with_bucket_name("bucket")
        .with_region("us-east-1")
        .with_access_key_id("key")
        .with_secret_access_key("secret")
        .with_endpoint(format!("http://{}", server.address))
        .with_allow_http(true)
        .build()
        .unwrap();
    let store: Arc<dyn ObjectStore> = Arc::new(store);
    Bucket::of("s3://bucket/repo".to_owned(), store, "repo".into())
}

/// Copies versions with these `from` and a creation time into the bucket, through a folder.
async fn copied(server: &S3Server, froms: impl Iterator<Item = i64>, created: i64) {
    let folder = tempfile::tempdir().unwrap();
    let writer = RepositoryWriter::new(folder.path()).unwrap();
    let writer = writer.with_durability(Durability::Batch);
    let mut batch = writer.batch();
    for from in froms {
        let bytes = format!("{from} {created}").into_bytes();
        batch.put(&new_version(PATH, from, from + 100, created), &mut &bytes[..]).unwrap();
    }
    batch.commit().unwrap();
    let options = RepositoryOptions::default();
    let source = RepositorySource::open_folder(folder.path(), options).unwrap();
    let selection = Selection::Range {
        prefixes: Vec::new(),
        range: ValidityInterval::ALL,
        limits: CreationLimits::default(),
        step: None,
    };
    let destination = Destination::Bucket(bucket(server));
    let copied = copy(&source, &destination, &selection, 4, |_, _, _| {}).await.unwrap();
    assert!(copied.failed.is_empty(), "{:?}", copied.failed);
}

fn open(server: &S3Server, refresh: Duration) -> RepositorySource {
    RepositorySource::new(bucket(server), RepositoryOptions { refresh })
}

/// (from, until, created) of all versions that the source has.
async fn listed(source: &RepositorySource) -> Vec<(i64, i64, i64)> {
    let query = Query::all(ObjectPath::new(PATH).unwrap());
    let found = source.look_up(&query, Timestamp::from_millis(0), None).await.unwrap();
    let mut all: Vec<_> = found
        .versions
        .iter()
        .map(|info| {
            let [from, until] = [info.validity.from(), info.validity.until()];
            (from.as_millis(), until.as_millis(), info.created.as_millis())
        })
        .collect();
    all.sort_unstable();
    all
}

fn count(requests: &[String], part: &str) -> usize {
    requests.iter().filter(|request| request.contains(part)).count()
}

const SLOW: Duration = Duration::from_secs(3600);

#[tokio::test(flavor = "multi_thread")]
async fn a_start_with_an_index_reads_no_properties_and_a_later_look_up_is_one_conditional_get() {
    let server = S3Server::start();
    copied(&server, (0..1200).map(|n| n * 100), 1).await;
    server.requests();
    let source = open(&server, Duration::from_millis(500));
    assert_eq!(listed(&source).await.len(), 1200);
    let start = server.requests();
    assert_eq!(count(&start, ".properties"), 0, "{start:?}");
    // The list, a few files, one page of folders, three pages of files.
    assert!(start.len() <= 16, "{} requests: {start:?}", start.len());
    eprintln!("{} requests at the start: {start:?}", start.len());
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(110)).await;
        assert_eq!(listed(&source).await.len(), 1200);
        assert_eq!(server.requests(), [format!("GET {LIST}"), format!("304 {LIST}")]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_of_another_writer_are_seen_within_refresh_and_only_their_folders_are_listed() {
    let server = S3Server::start();
    copied(&server, (0..40).map(|n| n * 100), 1).await;
    let source = open(&server, Duration::from_millis(500));
    assert_eq!(listed(&source).await.len(), 40);
    copied(&server, [300, 5000].into_iter(), 2).await;
    server.requests();
    tokio::time::sleep(Duration::from_millis(110)).await;
    let all = listed(&source).await;
    assert!(all.contains(&(300, 400, 2)) && all.contains(&(5000, 5100, 2)), "{all:?}");
    assert_eq!(all.len(), 42);
    let requests = server.requests();
    assert_eq!(count(&requests, "LIST"), 2, "{requests:?}");
    assert_eq!(count(&requests, ".properties"), 0, "{requests:?}");
}

/// Changes of the store that no index knows: a version is added, one is removed, one is changed.
fn change_without_index(server: &S3Server, other: &S3Server) {
    for key in other.keys("repo/TPC") {
        server.put(&key, other.object(&key));
    }
    for key in server.keys(&format!("repo/{PATH}/100/")) {
        server.remove(&key);
    }
    let keys = server.keys(&format!("repo/{PATH}/200/"));
    let properties = keys.iter().find(|key| key.ends_with(".properties")).unwrap();
    let text = String::from_utf8(server.object(properties)).unwrap();
    server.put(properties, text.replace("ValidUntil=300", "ValidUntil=299").into_bytes());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_index_never_hides_and_never_adds_a_version() {
    let (server, other) = (S3Server::start(), S3Server::start());
    copied(&server, (0..20).map(|n| n * 100), 1).await;
    copied(&other, [7000].into_iter(), 5).await;
    let running = open(&server, Duration::from_millis(50));
    assert_eq!(listed(&running).await.len(), 20);
    change_without_index(&server, &other);
    // At the start everything is compared with the store.
    let all = listed(&open(&server, SLOW)).await;
    assert_eq!(all.len(), 20, "one more, one less");
    let is_right = |all: &[(i64, i64, i64)]| {
        all.contains(&(7000, 7100, 5))
            && all.contains(&(200, 299, 1))
            && !all.contains(&(200, 300, 1))
            && !all.contains(&(100, 200, 1))
    };
    assert!(is_right(&all), "{all:?}");
    // A service that runs finds it with its next listing, after ten times `refresh` at most.
    let began = Instant::now();
    while !is_right(&listed(&running).await) {
        assert!(began.elapsed() < Duration::from_secs(5));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let report = index_bucket(&bucket(&server), true, |_, _| {}).await.unwrap();
    assert_eq!((report.missing, report.surplus), (2, 1), "{report:?}");
    index_bucket(&bucket(&server), false, |_, _| {}).await.unwrap();
    let report = index_bucket(&bucket(&server), true, |_, _| {}).await.unwrap();
    assert!(report.is_current() && report.versions == 20, "{report:?}");
    assert!(is_right(&listed(&open(&server, SLOW)).await));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_whose_bytes_are_gone_is_not_there_at_the_next_look_up() {
    let server = S3Server::start();
    copied(&server, [0, 100].into_iter(), 1).await;
    let source = open(&server, SLOW);
    let query = Query::all(ObjectPath::new(PATH).unwrap());
    let found = source.look_up(&query, Timestamp::from_millis(50), None).await.unwrap();
    let version = found.versions.iter().find(|info| info.validity.from().as_millis() == 0);
    for key in server.keys(&format!("repo/{PATH}/0/")) {
        server.remove(&key);
    }
    let error = source.fetch(version.unwrap(), &mut VecBody::default()).await.unwrap_err();
    assert!(matches!(error, iovcache::source::SourceError::NoSuchVersion { .. }), "{error}");
    assert_eq!(listed(&source).await, [(100, 200, 1)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_at_once_lose_none_of_each_others_versions() {
    let server = S3Server::start();
    copied(&server, [0].into_iter(), 1).await;
    let put = async |writer: i64| {
        let (bucket, folder) = (bucket(&server), tempfile::tempdir().unwrap());
        for n in 0..12 {
            let file = folder.path().join("bytes");
            fs::write(&file, format!("{writer} {n}")).unwrap();
            let from = 1000 + n * 100;
            let version = new_version(PATH, from, from + 100, 10 + writer);
            assert!(bucket.put_file(&version, &file).await.unwrap().new);
        }
    };
    tokio::join!(put(1), put(2), put(3), put(4));
    let requests = server.requests();
    assert!(count(&requests, "412") > 0, "the writers met");
    let report = index_bucket(&bucket(&server), true, |_, _| {}).await.unwrap();
    assert!(report.is_current() && report.versions == 49, "{report:?}");
    let files = server.keys(FOLDER).len();
    assert!(files < 24, "files are merged: {files}");
    assert_eq!(listed(&open(&server, SLOW)).await.len(), 49);
}

/// Breaks the index in one way, given its list and the keys of its files.
type Break = fn(&S3Server, &[String]);

const BREAKS: [(&str, Break); 9] = [
    ("a torn file", |server, files| {
        let bytes = server.object(&files[0]);
        server.put(&files[0], bytes[..bytes.len() / 2].to_vec());
    }),
    ("a missing file", |server, files| server.remove(&files[0])),
    ("an empty file", |server, files| server.put(&files[0], Vec::new())),
    ("a list that is none", |server, _| server.put(LIST, b"<html>".to_vec())),
    ("an empty list", |server, _| server.put(LIST, Vec::new())),
    ("a list of another version", |server, _| {
        let text = String::from_utf8(server.object(LIST)).unwrap();
        server
            .put(LIST, text.replace("\"iovcache.index\":\"1\"", "\"iovcache.index\":\"2\"").into());
    }),
    ("a list with a name that leads elsewhere", |server, _| {
        let list = r#"{"iovcache.index":"1","files":[{"name":"../../secret","bytes":1}]}"#;
        server.put(LIST, list.into());
    }),
    ("a list that is too large", |server, _| server.put(LIST, vec![b' '; 2 << 20])),
    ("the index of a local folder", |server, files| {
        let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/schemas/golden/repository-index.arrow");
        server.put(&files[0], fs::read(golden).unwrap());
    }),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_index_changes_no_answer_and_is_made_anew() {
    for (name, damage) in BREAKS {
        let server = S3Server::start();
        copied(&server, (0..30).map(|n| n * 100), 1).await;
        let right = listed(&open(&server, SLOW)).await;
        assert_eq!(right.len(), 30);
        let running = open(&server, Duration::from_millis(20));
        assert_eq!(listed(&running).await, right);
        let files: Vec<String> =
            server.keys(FOLDER).into_iter().filter(|key| key.ends_with(".arrow")).collect();
        damage(&server, &files);
        assert_eq!(listed(&open(&server, SLOW)).await, right, "{name}");
        tokio::time::sleep(Duration::from_millis(30)).await;
        assert_eq!(listed(&running).await, right, "{name}, while running");
        let check = index_bucket(&bucket(&server), true, |_, _| {}).await.unwrap();
        assert!(!check.is_current(), "{name}: {check:?}");
        index_bucket(&bucket(&server), false, |_, _| {}).await.unwrap();
        let check = index_bucket(&bucket(&server), true, |_, _| {}).await.unwrap();
        assert!(check.is_current(), "{name}: {check:?}");
        server.requests();
        assert_eq!(listed(&open(&server, SLOW)).await, right, "{name}, made anew");
        assert_eq!(count(&server.requests(), ".properties"), 0, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_without_conditional_requests_has_no_index_and_works() {
    let server = S3Server::start();
    server.refuse_conditions();
    copied(&server, (0..5).map(|n| n * 100), 1).await;
    assert!(!server.keys(FOLDER).contains(&LIST.to_owned()));
    assert_eq!(listed(&open(&server, SLOW)).await.len(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_program_copies_indexes_and_serves_a_bucket() {
    let server = S3Server::start();
    let folder = tempfile::tempdir().unwrap();
    let writer = RepositoryWriter::new(folder.path()).unwrap();
    for from in [0, 100] {
        let version = new_version(PATH, from, from + 100, 1);
        writer.put(&version, &mut format!("{from}").as_bytes()).unwrap();
    }
    let run = |arguments: &[&str]| {
        let mut command = common::iovcache();
        command.args(arguments).envs(server.environment()).output().unwrap()
    };
    let file = format!("file://{}", folder.path().display());
    let url = "s3://bucket/repo";
    assert!(run(&["copy", &file, url]).status.success());
    let checked = run(&["index", url, "--check", "--json"]);
    assert!(checked.status.success(), "{checked:?}");
    let report: serde_json::Value = serde_json::from_slice(&checked.stdout).unwrap();
    assert_eq!((&report["versions"], &report["current"]), (&2.into(), &true.into()), "{report}");
    server.remove(LIST);
    let checked = run(&["index", url, "--check"]);
    assert_eq!(checked.status.code(), Some(1), "{checked:?}");
    assert!(run(&["index", url]).status.success());
    assert!(run(&["index", url, "--check"]).status.success());
    let environment = server.environment();
    let environment: Vec<(&str, &str)> =
        environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let service = common::Service::start_with(&["--source", url], &environment);
    let client = iovcache::client::Client::connect(&service.unix()).await.unwrap();
    let request = iovcache::client::TableRequest::new().column("drift", PATH).timestamps([5, 150]);
    let table = client.table(request).await.unwrap();
    let column = table.column("drift").unwrap();
    assert_eq!(column.get(0).unwrap().unwrap(), b"0");
    assert_eq!(column.get(1).unwrap().unwrap(), b"100");
    assert!(Path::new(&service.folder.path()).exists());
}
