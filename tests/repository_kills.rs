//! Programs that write repositories, killed (SIGKILL) at named points between two steps.
//!
//! ```text
//!  put, import, copy, index ──IOVCACHE_CRASH_POINT──▶ SIGKILL
//!     └── then: every version is whole, none that was there is missing, the index changes no
//!         answer, and the same command completes the work
//! ```
#![cfg(all(feature = "cli", debug_assertions))]

mod common;
mod s3_server;

use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use common::new_version;
use iovcache::source::repository::{
    RepositoryOptions, RepositorySource, RepositoryWriter, index, verify,
};
use iovcache::source::{Source, VecBody};
use iovcache::{ObjectPath, Query};
use s3_server::S3Server;

const PATHS: [&str; 2] = ["TPC/Calib/VDrift", "ITS/Noise"];
/// Versions that exist before each kill, per path: seven index files, which the next one merges.
const BEFORE: i64 = 7;
/// Versions that the killed command adds, per path.
const ADDED: i64 = 6;

fn bytes(path: &str, from: i64) -> Vec<u8> {
    format!("{path} {from}").into_bytes()
}

/// A repository with an index of one file per version.
fn repository() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    index(folder.path(), false, |_, _| {}).unwrap();
    fs::create_dir_all(folder.path().join(".iovcache~")).unwrap();
    let writer = RepositoryWriter::new(folder.path()).unwrap();
    for path in PATHS {
        for n in 0..BEFORE {
            let from = n * 100;
            writer
                .put(&new_version(path, from, from + 100, 1), &mut &bytes(path, from)[..])
                .unwrap();
        }
    }
    folder
}

/// All versions that a source over the folder gives, by path and `from`; their bytes are compared.
async fn versions(folder: &Path) -> Vec<(&'static str, i64)> {
    let options = RepositoryOptions { refresh: Duration::from_secs(3600) };
    let source = RepositorySource::open_folder(folder, options).unwrap();
    let mut all = Vec::new();
    for path in PATHS {
        let query = Query::all(ObjectPath::new(path).unwrap());
        let page = source.list_page(&query, None, usize::MAX).await.unwrap();
        for version in page.versions {
            let from = version.validity.from().as_millis();
            let mut body = VecBody::default();
            source.fetch(&version, &mut body).await.unwrap();
            assert_eq!(body.bytes(), bytes(path, from));
            all.push((path, from));
        }
    }
    all.sort_unstable();
    all
}

/// Checks the folder after a kill. Returns the number of versions.
async fn is_whole(folder: &Path, point: &str) -> usize {
    let with_index = versions(folder).await;
    for path in PATHS {
        for n in 0..BEFORE {
            assert!(with_index.contains(&(path, n * 100)), "{point}: {path} {n} is missing");
        }
    }
    let (hidden, aside) = (folder.join(".iovcache~"), folder.join(".aside"));
    if hidden.exists() {
        fs::rename(&hidden, &aside).unwrap();
        assert_eq!(versions(folder).await, with_index, "{point}: the index changes the answer");
        fs::rename(&aside, &hidden).unwrap();
    }
    // The killed program leaves files under names that readers ignore, and properties whose bytes
    // were to follow.
    let is_left_over = |file: &Path| match file.extension().and_then(|end| end.to_str()) {
        Some("part") => true,
        Some("properties") => !file.with_extension("").exists(),
        _ => false,
    };
    let damaged = verify(folder, false).unwrap().damaged;
    let damaged: Vec<_> = damaged.iter().filter(|found| !is_left_over(&found.file)).collect();
    assert!(damaged.is_empty(), "{point}: {damaged:?}");
    with_index.len()
}

/// Runs the command, which must be killed at the point.
fn killed(mut command: Command, point: &str) {
    command.env("IOVCACHE_CRASH_POINT", point);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let status = command.status().unwrap();
    assert_eq!(status.signal(), Some(9), "{point} is not reached: {status}");
}

fn runs(mut command: Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A manifest of the added versions of both paths, in a folder of its own.
fn manifest(folder: &Path) -> PathBuf {
    let mut text =
        "path,valid_from_ms,valid_until_ms,created_ms,id,file,size,md5,note\n".to_owned();
    for (place, path) in PATHS.iter().enumerate() {
        for n in BEFORE..BEFORE + ADDED {
            let (from, name) = (n * 100, format!("{place}-{n}"));
            fs::write(folder.join(&name), bytes(path, from)).unwrap();
            text += &format!("{path},{from},{},1,,{name},,,\n", from + 100);
        }
    }
    let manifest = folder.join("manifest.csv");
    fs::write(&manifest, text).unwrap();
    manifest
}

/// Points on the way of a batch of versions into a folder with an index.
const BATCH_POINTS: [&str; 13] = [
    "bytes-staged",
    "bytes-staged:3",
    "batch-staged",
    "properties-renamed",
    "properties-renamed:5",
    "version-published",
    "version-published:7",
    "batch-published",
    "index-half-written",
    "index-written",
    "index-renamed",
    // The files before are merged with the new one.
    "index-file-removed",
    "index-file-removed:4",
];

async fn import_or_copy(command: impl Fn(&Path) -> Command) {
    for point in BATCH_POINTS {
        let folder = repository();
        killed(command(folder.path()), point);
        is_whole(folder.path(), point).await;
        runs(command(folder.path()));
        let all = is_whole(folder.path(), point).await;
        assert_eq!(all, PATHS.len() * (BEFORE + ADDED) as usize, "{point}");
        index(folder.path(), false, |_, _| {}).unwrap();
        let report = index(folder.path(), true, |_, _| {}).unwrap();
        assert!(report.is_current(), "{point}: {report:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_killed_at_any_point_leaves_whole_versions_and_is_completed_by_the_next() {
    let objects = tempfile::tempdir().unwrap();
    let manifest = manifest(objects.path());
    import_or_copy(|folder| {
        let mut command = common::iovcache();
        command.arg("import").arg("--repository").arg(folder).arg(&manifest);
        command
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_killed_at_any_point_leaves_whole_versions_and_is_completed_by_the_next() {
    let source = repository();
    let writer = RepositoryWriter::new(source.path()).unwrap();
    for path in PATHS {
        for n in BEFORE..BEFORE + ADDED {
            let from = n * 100;
            writer
                .put(&new_version(path, from, from + 100, 1), &mut &bytes(path, from)[..])
                .unwrap();
        }
    }
    import_or_copy(|folder| {
        let url = |folder: &Path| format!("file://{}", folder.display());
        let mut command = common::iovcache();
        command.arg("copy").arg(url(source.path())).arg(url(folder));
        command
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_put_killed_at_any_point_leaves_a_whole_version_or_none() {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), bytes(PATHS[0], 9000)).unwrap();
    let points = [
        ("bytes-staged", false),
        ("batch-staged", false),
        ("properties-renamed", false),
        ("version-published", true),
        ("batch-published", true),
        ("index-half-written", true),
        ("index-written", true),
        ("index-renamed", true),
    ];
    for (point, stored) in points {
        let folder = repository();
        let put = || {
            let mut command = common::iovcache();
            command.arg("put").arg("--repository").arg(folder.path()).arg(PATHS[0]);
            command.arg(file.path()).args(["--from=9000", "--until=9100", "--created=1"]);
            command
        };
        killed(put(), point);
        let before = PATHS.len() * BEFORE as usize;
        assert_eq!(is_whole(folder.path(), point).await, before + usize::from(stored), "{point}");
        runs(put());
        assert_eq!(is_whole(folder.path(), point).await, before + 1, "{point}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuilding_of_the_index_killed_at_any_point_leaves_a_usable_index() {
    let points = [
        "index-half-written",
        "index-written",
        "index-renamed",
        "index-file-removed",
        "index-file-removed:2",
    ];
    for point in points {
        let folder = repository();
        let rebuild = || {
            let mut command = common::iovcache();
            command.arg("index").arg(folder.path());
            command
        };
        killed(rebuild(), point);
        assert_eq!(is_whole(folder.path(), point).await, PATHS.len() * BEFORE as usize);
        runs(rebuild());
        assert!(index(folder.path(), true, |_, _| {}).unwrap().is_current(), "{point}");
    }
}

#[test]
fn a_copy_into_a_store_killed_at_any_point_is_completed_by_the_next() {
    let source = repository();
    let points = [
        "store-properties-put",
        "store-properties-put:4",
        "store-bytes-put",
        "store-bytes-put:10",
        "store-index-written",
        "store-list-replaced",
    ];
    for point in points {
        let server = S3Server::start();
        let program = |arguments: &[&str]| {
            let mut command = common::iovcache();
            command.args(arguments).envs(server.environment());
            command
        };
        let file = format!("file://{}", source.path().display());
        let url = "s3://bucket/repo";
        killed(program(&["copy", &file, url]), point);
        runs(program(&["copy", &file, url]));
        runs(program(&["index", url]));
        let checked = program(&["index", url, "--check", "--json"]).output().unwrap();
        let report: serde_json::Value = serde_json::from_slice(&checked.stdout).unwrap();
        assert_eq!(report["versions"], PATHS.len() as i64 * BEFORE, "{point}: {report}");
        assert_eq!(report["current"], true, "{point}: {report}");
    }
}

/// A service that accepts changes of a repository in an object store.
fn writable(server: &S3Server, more: &[(&str, &str)]) -> common::Service {
    let environment = server.environment();
    let mut environment: Vec<(&str, &str)> =
        environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
    environment.extend(more);
    let arguments = ["--source", "s3://bucket/repo", "--ccdb", "127.0.0.1:0", "--ccdb-writable"];
    common::Service::start_with(&arguments, &environment)
}

/// The status of an answer; `None` if the service ended without one.
fn asked(service: &common::Service, method: &str, target: &str) -> Option<u16> {
    use std::io::{Read as _, Write as _};
    let address = service.ready["ccdb"].as_str().unwrap().trim_start_matches("http://").to_owned();
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(common::PATIENCE)).unwrap();
    let body = match method {
        "POST" => "--B\r\nContent-Disposition: form-data; name=\"send\"\r\n\r\nbytes\r\n--B--\r\n",
        _ => "",
    };
    let head = format!(
        "{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
         Content-Type: multipart/form-data; boundary=B\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    let mut all = Vec::new();
    let _ = stream.read_to_end(&mut all);
    String::from_utf8_lossy(&all).get(9..12)?.parse().ok()
}

/// Each change, the point of the kill, and the status of a look-up by metadata afterwards. The
/// version with metadata `state=old` is there before.
const STORE_CHANGES: [(&str, &str, &str, u16); 5] = [
    ("PUT", "/A/B/50?state=new", "store-properties-replaced", 303),
    ("DELETE", "/A/B/50", "store-mark-put", 404),
    ("DELETE", "/A/B/50", "store-object-removed", 404),
    ("DELETE", "/A/B/50", "store-object-removed:2", 404),
    ("GET", "/truncate/A/B", "store-mark-put", 404),
];

#[test]
fn a_change_in_a_store_killed_at_any_point_is_not_acknowledged_and_done_or_not_done() {
    for (method, target, point, status) in STORE_CHANGES {
        let server = S3Server::start();
        let service = writable(&server, &[]);
        for target in ["/A/B/0/100/state=old", "/A/Other/0/100/state=other"] {
            assert_eq!(asked(&service, "POST", target), Some(201));
        }
        drop(service);
        let service = writable(&server, &[("IOVCACHE_CRASH_POINT", point)]);
        assert_eq!(asked(&service, "GET", "/A/B/50/state=old"), Some(303), "{point}");
        assert_eq!(asked(&service, method, target), None, "{point}: acknowledged");
        let ended = service.kill();
        drop(ended);
        let service = writable(&server, &[]);
        let wanted = if status == 303 { "/A/B/50/state=new" } else { "/A/B/50" };
        assert_eq!(asked(&service, "GET", wanted), Some(status), "{point}");
        assert_eq!(asked(&service, "GET", "/A/B/50/state=old"), Some(404), "{point}");
        assert_eq!(asked(&service, "GET", "/A/Other/50/state=other"), Some(303), "{point}");
        // The next writer is not hindered.
        let expected = if status == 303 { 204 } else { 404 };
        assert_eq!(asked(&service, "DELETE", "/A/B/50"), Some(expected), "{point}");
        assert_eq!(asked(&service, "GET", "/A/B/50"), Some(404), "{point}");
        assert_eq!(asked(&service, "DELETE", "/A/Other/50"), Some(204), "{point}");
    }
}
