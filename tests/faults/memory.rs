//! Short memory: a real tmpfs or control group that is full, and segments that are half made when
//! their service is killed.

use std::fs::{self, OpenOptions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use iovcache::client::{Client, Table, TableRequest};
use iovcache::error::{Coded as _, ErrorKind};
use serde_json::Value;

use crate::common::{PATIENCE, Service, Version, iovcache, put};
use crate::consumers::observer;
use crate::data::{Chance, PATHS, VERSIONS, bytes_of, count_of, fill, path};

/// A service that can get less memory than it is configured for.
struct Confined {
    child: Child,
    url: String,
    folder: tempfile::TempDir,
}

impl Confined {
    /// Before the service starts, a shell (started by `before`) runs `confine`.
    fn start(repository: &Path, before: &[&str], confine: &str, arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let program = iovcache();
        let shell = ["sh", "-c", &format!("{confine} && exec \"$@\""), "sh"];
        let words = [before, &shell].concat();
        let mut child = Command::new(words[0])
            .args(&words[1..])
            .arg(program.get_program())
            .args(["serve", "--listen", "127.0.0.1:0"])
            .args(arguments)
            .arg("--socket")
            .arg(folder.path().join("s"))
            .arg("--source")
            .arg(format!("file://{}", repository.display()))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(fs::File::create(folder.path().join("log")).unwrap())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let ready: Value = serde_json::from_str(&line).expect("a line that it is ready");
        let url = ready["flight"][1].as_str().unwrap().to_owned();
        Self { child, url, folder }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    /// Requests the objects and keeps them until memory runs out. The error must contain each of
    /// `words`; the tables obtained stay right, and the service keeps running.
    async fn runs_short(&mut self, objects: &[Object], fit: usize, words: &[&str]) {
        let client = Client::connect(&self.url).await.unwrap();
        let mut held = Vec::new();
        let mut short = None;
        for object in objects {
            match client.table(object.request()).await {
                Ok(table) => held.push((object, table)),
                Err(error) => {
                    short = Some(error);
                    break;
                }
            }
        }
        let error = short.expect("it does not all fit");
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{}", error.message());
        for word in words {
            assert!(error.message().contains(word), "{word}: {}", error.message());
        }
        assert!(held.len() >= fit, "{} fit", held.len());
        let check = |held: &[(&Object, Table)]| {
            for (object, table) in held {
                let cell = table.column("c").unwrap().get(0).unwrap().unwrap();
                assert!(cell == object.bytes);
            }
        };
        check(&held);
        assert!(self.child.try_wait().unwrap().is_none());
        // There is room again once tables are released.
        for (_, table) in held.drain(..fit / 2) {
            client.release(table).await.unwrap();
        }
        let last = objects.last().unwrap();
        held.push((last, client.table(last.request()).await.unwrap()));
        check(&held);
        assert_eq!(client.check(true).await.unwrap().faults, [""; 0]);
        // A table that does not fit is refused only while its memory is in use: after the release
        // of all tables every object can be loaded, one after the other.
        for (_, table) in held.drain(..) {
            client.release(table).await.unwrap();
        }
        for object in objects {
            check(&[(object, client.table(object.request()).await.unwrap())]);
        }
        assert!(client.status().await.unwrap().evictions > 0);
    }
}

impl Drop for Confined {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
    }
}

/// An object, by its path and time.
struct Object {
    path: String,
    at: i64,
    bytes: Vec<u8>,
}

impl Object {
    fn request(&self) -> TableRequest {
        TableRequest::new().column("c", self.path.as_str()).timestamps([self.at])
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tmpfs_that_is_full_is_an_error_that_names_the_bytes_and_never_a_sigbus() {
    let allowed = Command::new("unshare").args(["-m", "true"]).stderr(Stdio::null()).status();
    if !allowed.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: no mount namespace can be had here (it takes root and unshare)");
        return;
    }
    let repository = tempfile::tempdir().unwrap();
    fill(repository.path());
    let small = tempfile::tempdir().unwrap();
    // Two segments fit; the configured memory would be thirty.
    let confine = format!("mount -t tmpfs -o size=5m,mode=0750 tmpfs {}", small.path().display());
    let segments = small.path().join("segments");
    let memory = ["--memory", "64MiB", "--segment", "2MiB", "--backing", "shm", "--shm-folder"];
    let arguments = [&memory[..], &[segments.to_str().unwrap()]].concat();
    let mut service = Confined::start(repository.path(), &["unshare", "-m"], &confine, &arguments);
    let all = (0..PATHS).flat_map(|number| (0..VERSIONS).map(move |version| (number, version)));
    let objects: Vec<Object> = all
        .map(|(number, version)| Object {
            path: path(number),
            at: version as i64 * 10 + 5,
            bytes: bytes_of(number, version),
        })
        .collect();
    service.runs_short(&objects, 20, &["[IOV-4003]", "2097152 bytes"]).await;
}

/// A control group with limited memory; dropped, it is removed after its processes have ended.
struct Group(PathBuf);

impl Group {
    /// `None` if this user may not create one.
    fn of(bytes: u64) -> Option<Self> {
        let versions =
            [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")];
        for (root, limit) in versions {
            // If both versions exist, the first controls memory.
            let is_root = Path::new(root).join("cgroup.procs").exists();
            let group = Path::new(root).join(format!("iovcache-test-{}", std::process::id()));
            if !is_root || fs::create_dir(&group).is_err() {
                continue;
            }
            let group = Self(group);
            let file = OpenOptions::new().write(true).open(group.0.join(limit));
            if file.is_ok_and(|mut file| file.write_all(bytes.to_string().as_bytes()).is_ok()) {
                return Some(group);
            }
        }
        eprintln!("SKIPPED: no control group with a limit can be had here (it takes root)");
        None
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while fs::remove_dir(&self.0).is_err() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_control_group_is_an_error_that_names_the_bytes_and_ends_no_process() {
    const LIMIT: u64 = 96 << 20;
    let Some(group) = Group::of(LIMIT) else { return };
    let repository = tempfile::tempdir().unwrap();
    let objects: Vec<Object> = (0..40)
        .map(|number| {
            let (path, bytes) = (path(number), vec![number as u8; 3_000_000]);
            put(
                repository.path(),
                &Version { path: &path, from: 0, until: 9, created: 1, bytes: &bytes },
            );
            Object { path, at: 5, bytes }
        })
        .collect();
    let confine = format!("echo $$ > {}/cgroup.procs", group.0.display());
    let arguments = ["--memory", "1GiB", "--segment", "16MiB"];
    let mut service = Confined::start(repository.path(), &[], &confine, &arguments);
    assert!(service.log().contains("the control group"), "told at the start: {}", service.log());
    let limit = LIMIT.to_string();
    // A segment gets its memory in pieces, so the bytes are those of the piece.
    service.runs_short(&objects, 5, &["[IOV-4003]", " bytes: of the ", &limit]).await;
}

/// Kills a service at random moments while it may be making a named segment. Its successor removes
/// the segments left behind, and its own are removed in the end.
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
