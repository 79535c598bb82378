//! Memory that is short: a real tmpfs that is full, segments that are half made when their service
//! is killed.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use iovcache::client::TableRequest;
use iovcache::error::{Coded as _, ErrorKind};
use serde_json::Value;

use crate::common::{Service, iovcache};
use crate::consumers::observer;
use crate::data::{Chance, PATHS, VERSIONS, bytes_at, count_of, fill, path};

/// A service whose named segments lie in a tmpfs of their own, in a mount namespace of its own.
struct OnTmpfs {
    child: Child,
    url: String,
    _folder: tempfile::TempDir,
}

impl OnTmpfs {
    /// `None` where nobody may mount.
    fn start(repository: &Path, size: &str) -> Option<Self> {
        let allowed = Command::new("unshare").args(["-m", "true"]).stderr(Stdio::null()).status();
        if !allowed.is_ok_and(|status| status.success()) {
            eprintln!("SKIPPED: no mount namespace can be had here (it takes root and unshare)");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let (small, sockets) = (folder.path().join("small"), folder.path().join("s"));
        fs::create_dir(&small).unwrap();
        let script = format!(
            "mount -t tmpfs -o size={size},mode=0750 tmpfs {small} && exec \"$@\"",
            small = small.display()
        );
        let program = iovcache();
        let mut child = Command::new("unshare")
            .args(["-m", "sh", "-c", &script, "sh"])
            .arg(program.get_program())
            .args(["serve", "--listen", "127.0.0.1:0", "--memory", "64MiB", "--segment", "2MiB"])
            .args(["--backing", "shm", "--shm-folder"])
            .arg(small.join("segments"))
            .arg("--socket")
            .arg(&sockets)
            .arg("--source")
            .arg(format!("file://{}", repository.display()))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let ready: Value = serde_json::from_str(&line).expect("a line that it is ready");
        let url = ready["flight"][1].as_str().unwrap().to_owned();
        Some(Self { child, url, _folder: folder })
    }
}

impl Drop for OnTmpfs {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tmpfs_that_is_full_is_an_error_that_names_the_bytes_and_never_a_sigbus() {
    let repository = tempfile::tempdir().unwrap();
    fill(repository.path());
    // Two segments fit; the memory that it was told it has would be thirty.
    let Some(mut service) = OnTmpfs::start(repository.path(), "5m") else { return };
    let client = iovcache::client::Client::connect(&service.url).await.unwrap();
    let one = |number: u64, version: u64| {
        TableRequest::new().column("c", path(number)).timestamps([version as i64 * 10 + 5])
    };
    let all = || (0..PATHS).flat_map(|number| (0..VERSIONS).map(move |version| (number, version)));
    let mut held = Vec::new();
    let mut short = None;
    for (number, version) in all() {
        match client.table(one(number, version)).await {
            Ok(table) => held.push((number, version, table)),
            Err(error) => {
                short = Some(error);
                break;
            }
        }
    }
    let error = short.expect("it does not all fit");
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{}", error.message());
    assert!(error.message().contains("[IOV-4003]"), "{}", error.message());
    assert!(error.message().contains("2097152 bytes"), "{}", error.message());
    assert!(held.len() > 20, "{} fit", held.len());
    // What is there is right, the service lives, and has room again once somebody lets go.
    let check = |held: &[(u64, u64, iovcache::client::Table)]| {
        for (number, version, table) in held {
            let cell = table.column("c").unwrap().get(0).unwrap().unwrap();
            assert!(cell == bytes_at(*number, *version as i64 * 10));
        }
    };
    check(&held);
    assert!(service.child.try_wait().unwrap().is_none());
    for (.., table) in held.drain(..10) {
        client.release(table).await.unwrap();
    }
    let (number, version) = all().last().unwrap();
    let table = client.table(one(number, version)).await.unwrap();
    held.push((number, version, table));
    check(&held);
    let found = client.check(true).await.unwrap();
    assert_eq!(found.faults, [""; 0]);
    // A table that no system could give memory for is refused as long as it is asked for, and no
    // longer: all are let go, and all of them come after each other.
    for (.., table) in held.drain(..) {
        client.release(table).await.unwrap();
    }
    for (number, version) in all() {
        let table = client.table(one(number, version)).await.unwrap();
        check(&[(number, version, table)]);
    }
    assert!(client.status().await.unwrap().evictions > 0);
}

/// Kills a service at any moment in which it may be making a segment with a name; what it leaves is
/// removed by its successor, and what that one has goes with it.
#[tokio::test(flavor = "multi_thread")]
async fn a_segment_that_is_half_made_when_its_service_is_killed_is_removed_by_the_next() {
    let repository = tempfile::tempdir().unwrap();
    fill(repository.path());
    let memory = tempfile::tempdir_in("/dev/shm").unwrap();
    let segments = memory.path().join("segments");
    let sockets = tempfile::tempdir().unwrap();
    let mut chance = Chance::of_the_test("half-made segments");
    let arguments = ["--backing", "shm", "--shm-folder", segments.to_str().unwrap(), "--socket"];
    let arguments = [&arguments[..], &[sockets.path().to_str().unwrap()]].concat();
    let source = format!("file://{}", repository.path().display());
    let start = || {
        let all = [&["--source", source.as_str()], &arguments[..]].concat();
        Service::start_sized("64MiB", "24MiB", &all)
    };
    let names = || -> Vec<String> {
        let entries = fs::read_dir(&segments).unwrap().map(|entry| entry.unwrap());
        let mut names: Vec<String> =
            entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    let (mut left, mut killed) = (0, 0);
    for _ in 0..count_of("IOVCACHE_SERVICE_KILLS", 8) {
        let service = start();
        assert_eq!(names(), ["lock"], "what the last one left is gone");
        let client = observer(&service).await;
        let asking = tokio::spawn(async move {
            let request = TableRequest::new().column("c", path(0)).timestamps([5]);
            let _ = client.table(request.wait(Duration::from_millis(100))).await;
        });
        tokio::time::sleep(Duration::from_micros(chance.below(30_000))).await;
        drop(service.kill());
        killed += 1;
        left += u64::from(names().len() > 1);
        asking.await.unwrap();
    }
    eprintln!("of {killed} that were killed {left} left a segment");
    let last = start();
    let (status, log) = last.stop();
    assert_eq!(status, Some(0), "{log}");
    assert_eq!(names(), [""; 0], "nothing is left");
}
