//! A warm restart: a small stand-in for systemd keeps descriptors, and passes them to the next
//! process.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use iovcache::client::{Client, ClientOptions, TableRequest};
use iovcache::error::Coded as _;
use iovcache::shm::attach::LineReader;
use iovcache::table::View;
use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};
use serde_json::{Value, json};

use crate::common::{PATIENCE, iovcache, signal, until};
use crate::consumer::Consumer;
use crate::data::{Chance, bytes_of, count_of, fill, path};

/// The kept descriptors by name.
type Store = Arc<Mutex<BTreeMap<String, Arc<OwnedFd>>>>;

/// A stand-in for systemd: stores and removes descriptors on request, and passes them to the
/// services it starts; and the repository of the service.
struct Manager {
    folder: tempfile::TempDir,
    repository: PathBuf,
    store: Store,
    /// Its own listening sockets, by name.
    sockets: Vec<(String, OwnedFd)>,
}

impl Manager {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let repository = folder.path().join("repository");
        fill(&repository);
        let socket = UnixDatagram::bind(folder.path().join("notify")).unwrap();
        let store = Store::default();
        std::thread::spawn({
            let store = Arc::clone(&store);
            move || listen(&socket, &store)
        });
        Self { folder, repository, store, sockets: Vec::new() }
    }

    fn kept(&self) -> Vec<String> {
        self.store.lock().unwrap().keys().cloned().collect()
    }

    fn kept_segments(&self) -> usize {
        self.kept().iter().filter(|name| name.contains("segment")).count()
    }

    /// Starts the service with all kept descriptors.
    fn start(&self) -> Managed {
        let store = self.store.lock().unwrap().clone();
        let kept = store.iter().map(|(name, file)| (name.as_str(), file.as_fd()));
        let sockets = self.sockets.iter().map(|(name, file)| (name.as_str(), file.as_fd()));
        // Above 3, 4, …, and kept open across exec.
        let given: Vec<(&str, OwnedFd)> = sockets
            .chain(kept)
            .map(|(name, file)| {
                let file = fcntl_dupfd_cloexec(file, 100).unwrap();
                fcntl_setfd(&file, FdFlags::empty()).unwrap();
                (name, file)
            })
            .collect();
        let mut script = String::new();
        for (place, (_, file)) in given.iter().enumerate() {
            let number = file.as_raw_fd();
            script += &format!("exec {}<&{number} {number}<&-\n", place + 3);
        }
        script += "export LISTEN_PID=$$; exec \"$@\"";
        let names: Vec<&str> = given.iter().map(|(name, _)| *name).collect();
        let mut child = Command::new("bash")
            .args(["-c", &script, "bash"])
            .arg(iovcache().get_program())
            .args(["serve", "--listen", "127.0.0.1:0", "--memory", "16MiB", "--segment", "2MiB"])
            .args(["--refresh", "200ms", "--socket"])
            .arg(self.folder.path().join("s"))
            .arg("--source")
            .arg(format!("file://{}", self.repository.display()))
            .env("NOTIFY_SOCKET", self.folder.path().join("notify"))
            .env("FDSTORE", "1000")
            .env("LISTEN_FDS", given.len().to_string())
            .env("LISTEN_FDNAMES", names.join(":"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        drop(given);
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let ready: Value = serde_json::from_str(&line).expect("a line that it is ready");
        Managed { child, ready }
    }

    /// Starts it, and requests this version of the first `paths` paths.
    async fn start_with(&self, paths: u64, version: u64) -> Managed {
        let service = self.start();
        let client = service.client().await;
        for number in 0..paths {
            read(&client, number, version).await;
        }
        service
    }
}

fn listen(socket: &UnixDatagram, store: &Store) {
    let mut reader = LineReader::default();
    loop {
        if reader.read(socket).is_err() {
            return;
        }
        // One datagram is one message; those of the service are short.
        let lines: Vec<String> = std::iter::from_fn(|| reader.line())
            .map(|line| String::from_utf8_lossy(&line).trim().to_owned())
            .collect();
        let name = lines.iter().find_map(|line| line.strip_prefix("FDNAME="));
        let file = reader.descriptor();
        let Some(name) = name.map(str::to_owned) else { continue };
        let mut store = store.lock().unwrap();
        if lines.iter().any(|line| line == "FDSTOREREMOVE=1") {
            store.remove(&name);
        } else if let Some(file) = file {
            store.insert(name, Arc::new(file));
        }
    }
}

struct Managed {
    child: Child,
    ready: Value,
}

impl Managed {
    fn unix(&self) -> String {
        self.ready["flight"][1].as_str().unwrap().to_owned()
    }

    async fn client(&self) -> Client {
        let options = ClientOptions { remote: true, ..ClientOptions::default() };
        Client::connect_with(&self.unix(), options).await.unwrap()
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Stops with SIGTERM.
    fn stop(mut self) {
        signal(self.child.id(), "TERM");
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Managed {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn one(number: u64, version: u64) -> TableRequest {
    TableRequest::new().column("c", path(number)).timestamps([version as i64 * 10 + 5])
}

async fn read(client: &Client, number: u64, version: u64) {
    let table = client.table(one(number, version)).await.unwrap();
    let cell = table.column("c").unwrap().get(0).unwrap().unwrap();
    assert!(cell == bytes_of(number, version), "other bytes of {number}, {version}");
}

/// Waits until the given number of objects is resident.
async fn objects(client: &Client, count: u64) {
    for _ in 0..10_000 {
        if client.status().await.unwrap().objects == count {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("{count} objects never came: {:?}", client.status().await);
}

async fn adds_up(client: &Client) {
    let found = client.check(true).await.unwrap();
    assert_eq!(found.faults, [""; 0], "{found:?}");
}

/// Waits until the state is written, which happens a moment later.
fn noted() {
    std::thread::sleep(Duration::from_millis(1_500));
}

fn moved_away(repository: &Path) -> PathBuf {
    let elsewhere = repository.with_extension("away");
    std::fs::rename(repository, &elsewhere).unwrap();
    elsewhere
}

#[tokio::test(flavor = "multi_thread")]
async fn resident_objects_are_resident_again_after_a_kill_and_after_a_stop() {
    let manager = Manager::new();
    let mut service = manager.start_with(6, 1).await;
    noted();
    let mut consumer = Consumer::start(&service.unix(), "attached");
    consumer.take(&[0, 1], 15);
    for kill in [true, false, true] {
        let epoch = service.ready["epoch"].clone();
        if kill {
            service.kill()
        } else {
            service.stop()
        }
        assert!(manager.kept_segments() >= 1, "{:?}", manager.kept());
        assert_eq!(consumer.verify()["stale"], 0, "they are mapped still");
        service = manager.start();
        assert_ne!(service.ready["epoch"], epoch);
        let client = service.client().await;
        objects(&client, 6).await;
        adds_up(&client).await;
        for number in 0..6 {
            read(&client, number, 1).await;
        }
        // None of them was fetched from the source.
        assert_eq!(client.status().await.unwrap().loads, 0, "after a kill: {kill}");
        // The service gives back all descriptors of its predecessors, and keeps its own.
        let of_now = service.ready["epoch"].as_str().unwrap().to_owned();
        until("the old ones to be given back", || {
            manager.kept().iter().all(|name| name.contains(&of_now)).then_some(())
        });
        // Old headers do not resolve to the new blocks, although the objects are the same.
        let old = consumer.ask(&json!({"old": true}));
        let old: Vec<String> = serde_json::from_value(old["old"].clone()).unwrap();
        assert!(old.iter().all(|one| one == "IOV-4045" || one == "IOV-4040"), "{old:?}");
        consumer.ask(&json!({"drop": true}));
        consumer.take(&[0, 1], 15);
        noted();
    }
    assert!(consumer.end().success());
    service.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_successor_whose_source_is_down_serves_what_is_known_and_says_that_it_is_stale() {
    let manager = Manager::new();
    let service = manager.start_with(3, 2).await;
    noted();
    service.kill();
    let away = moved_away(&manager.repository);
    std::fs::create_dir(&manager.repository).unwrap();
    let service = manager.start();
    std::fs::remove_dir(&manager.repository).unwrap();
    let client = service.client().await;
    objects(&client, 3).await;
    for number in 0..3 {
        read(&client, number, 2).await;
    }
    use arrow_array::cast::AsArray as _;
    let batches = client.batches(&one(0, 2).view(View::Objects)).await.unwrap();
    let how = batches[0].column_by_name("cache").unwrap().as_string::<i32>().value(0).to_owned();
    assert_eq!(how, "stale");
    // A version that was never requested is unknown: a transient error, not an empty answer.
    let error = client.table(one(7, 2).wait(Duration::from_secs(1))).await.unwrap_err();
    assert!(error.kind().is_transient(), "{}", error.message());
    std::fs::rename(&away, &manager.repository).unwrap();
    read(&client, 7, 2).await;
    adds_up(&client).await;
    service.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_moment_nothing_wrong_is_taken_over() {
    let mut chance = Chance::of_the_test("warm restarts");
    let manager = Manager::new();
    let (mut taken_over, kills) = (0, count_of("IOVCACHE_SERVICE_KILLS", 6));
    for _ in 0..kills {
        let service = manager.start();
        let client = service.client().await;
        let before = client.status().await.unwrap();
        taken_over += before.objects;
        let working: Vec<_> = (0..3)
            .map(|_| {
                let (client, mut chance) = (client.clone(), Chance::new(chance.next()));
                tokio::spawn(async move {
                    loop {
                        let (number, version) = (chance.below(8), chance.below(8));
                        let request = one(number, version).wait(Duration::from_secs(5));
                        let Ok(table) = client.table(request).await else { return };
                        let cell = table.column("c").unwrap().get(0).unwrap().unwrap();
                        assert!(cell == bytes_of(number, version));
                    }
                })
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(20 + chance.below(150))).await;
        adds_up(&client).await;
        service.kill();
        for one in working {
            one.abort();
            assert!(one.await.err().is_none_or(|error| error.is_cancelled()));
        }
    }
    // Killed at any moment of writing: every object present is right.
    let service = manager.start();
    let client = service.client().await;
    adds_up(&client).await;
    for number in 0..8 {
        for version in 0..8 {
            read(&client, number, version).await;
        }
    }
    eprintln!("{kills} killed; {taken_over} objects were there at once");
    service.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_state_of_a_predecessor_is_not_taken_over() {
    let manager = Manager::new();
    let service = manager.start_with(3, 1).await;
    service.kill();
    // Sealed segments cannot be damaged; so the ledger is damaged, and describes them wrongly.
    let ledger = {
        let store = manager.store.lock().unwrap();
        let (_, ledger) = store.iter().find(|(name, _)| name.contains("ledger")).unwrap();
        Arc::clone(ledger)
    };
    let mut record = [0; 256];
    rustix::io::pread(&*ledger, &mut record[..], 256).unwrap();
    record[56] ^= 1;
    let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, &record[..252]) as u32;
    record[252..].copy_from_slice(&crc.to_le_bytes());
    rustix::io::pwrite(&*ledger, &record, 256).unwrap();
    // A ledger with a torn record, and descriptors with foreign names.
    rustix::io::pwrite(&*ledger, &[0xff; 100], 512 + 80).unwrap();
    let null = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
    for name in ["iovcache-segment-0123456789abcdef-0", "iovcache-notes-0123456789abcdef-a", "x"] {
        let file = Arc::new(null.try_clone().unwrap());
        manager.store.lock().unwrap().insert(name.to_owned(), file);
    }
    let service = manager.start();
    let client = service.client().await;
    until("the old ones to be given back", || {
        let of_now = service.ready["epoch"].as_str().unwrap();
        let kept = manager.kept();
        kept.iter().all(|name| name.contains(of_now) || name == "x").then_some(())
    });
    assert_eq!(client.status().await.unwrap().objects, 1);
    for number in 0..3 {
        read(&client, number, 1).await;
    }
    assert_eq!(client.status().await.unwrap().loads, 2);
    adds_up(&client).await;
    service.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn sockets_that_systemd_holds_outlive_the_service_and_clients_wait_in_them() {
    let mut manager = Manager::new();
    let sockets = manager.folder.path().join("s");
    std::fs::create_dir(&sockets).unwrap();
    std::fs::set_permissions(&sockets, std::os::unix::fs::PermissionsExt::from_mode(0o750))
        .unwrap();
    for name in ["flight.sock", "attach.sock"] {
        let socket = UnixListener::bind(sockets.join(name)).unwrap();
        manager.sockets.push(("iovcache.socket".to_owned(), socket.into()));
    }
    let http = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = http.local_addr().unwrap();
    manager.sockets.push(("http".to_owned(), http.into()));
    let service = manager.start();
    assert_eq!(service.ready["http"], format!("http://{address}"));
    assert_eq!(service.ready["attach"].as_str(), sockets.join("attach.sock").to_str());
    let mut consumer = Consumer::start(&service.unix(), "waits");
    consumer.take(&[0], 5);
    service.stop();
    assert!(sockets.join("flight.sock").exists(), "they are not the service's to remove");
    // No service runs; a client that connects now waits, and the next service answers it.
    consumer.tell(&json!({"take": [1], "at": 5}));
    std::thread::sleep(Duration::from_millis(300));
    assert!(consumer.last_said().is_none());
    let service = manager.start();
    assert!(consumer.said()["taken"].is_u64());
    assert!(consumer.end().success());
    assert!(PATIENCE > Duration::ZERO);
    service.stop();
}
