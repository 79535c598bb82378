//! Timeframes from shared memory in C and C++: a real service, and a slow source behind it.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout};
use std::time::{Duration, Instant};

use iovcache::object::ObjectPath;
use iovcache::table::{ColumnRequest, ConsumerState};
use serde_json::json;

use super::*;
use crate::common::{Service, until};
use crate::fake_ccdb::{Ask, FakeCcdb, Fault, Kind, Upload};

/// Objects whose bodies are sent slowly.
const SLOW: &str = "T/Slow";
const QUICK: &str = "T/Quick";

/// A service over a server whose slow objects take 1.2 s, and a client that registers timeframes.
struct Setup {
    server: FakeCcdb,
    service: Service,
    client: Client,
    folder: tempfile::TempDir,
    program: PathBuf,
}

impl Setup {
    async fn new(arguments: &[&str]) -> Self {
        let server = FakeCcdb::start(Kind::Local).await;
        for path in [SLOW, QUICK] {
            for from in [0, 10] {
                let bytes = format!("{path}-{from:02}");
                server.upload(Upload::new(path, from, from + 10).bytes(bytes));
            }
        }
        server.inject_for(SLOW, Ask::Body, Fault::SlowBody(Duration::from_millis(130)), 0);
        let url = server.url();
        let all: Vec<&str> = ["--source", &url].iter().chain(arguments).copied().collect();
        let service = Service::start(&all);
        let client = Client::connect(&service.unix()).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let options = with_library(&["-std=c++17", "-fno-exceptions"]);
        let program = compile(folder.path(), "c++", "tests/capi/programs/timeframes.cpp", &options);
        Self { server, service, client, folder, program }
    }

    /// Registers a timeframe with two columns, which take objects of `paths`, and 5 rows.
    async fn register(&self, id: u64, paths: [&str; 2], consumers: &[&str]) {
        let column =
            |(name, path): (&str, &str)| ColumnRequest::new(name, ObjectPath::new(path).unwrap());
        let columns = [column(("a", paths[0])), column(("b", paths[1]))];
        let times = vec![Some(5), Some(6), None, Some(15), Some(5)];
        let consumers: Vec<String> = consumers.iter().map(|name| (*name).to_owned()).collect();
        self.client.put_timeframe(id, times, &columns, &consumers).await.unwrap();
    }

    async fn consumers(&self, id: u64) -> Vec<(String, ConsumerState)> {
        let status = self.client.status().await.unwrap();
        let found = status.timeframes.into_iter().find(|one| one.timeframe == id);
        found.map(|one| one.consumers.into_iter().collect()).unwrap_or_default()
    }

    async fn drop_timeframe(&self, id: u64) {
        let body = json!({"timeframe": id});
        let _: serde_json::Value = self.client.act("drop_timeframe", &body).await.unwrap();
    }

    fn device(&self, name: &str) -> Device {
        Device::start(&self.program, &self.service.attach(), name)
    }
}

/// A consumer process, which answers each line by one line.
struct Device {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Device {
    fn start(program: &Path, socket: &Path, name: &str) -> Self {
        Self::start_by(&[], program, socket, name)
    }

    /// Starts the program by a command that executes it.
    fn start_by(by: &[&str], program: &Path, socket: &Path, name: &str) -> Self {
        let mut child = Command::new("timeout")
            .args(["--kill-after=5", "300"])
            .args(by)
            .arg(program)
            .arg(socket)
            .arg(name)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let mut device = Self { child, stdin, stdout };
        assert_eq!(device.said(), "ready");
        device
    }

    fn tell(&mut self, line: &str) {
        self.stdin.write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    fn said(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn ask(&mut self, line: &str) -> String {
        self.tell(line);
        self.said()
    }

    /// Takes a table that is in shared memory or comes there.
    fn take(&mut self, line: &str) -> String {
        until("the table in shared memory", || {
            let said = self.ask(line);
            (!said.contains("[IOV-7160]")).then_some(said)
        })
    }

    /// Ends the program, whose sanitizers must have found nothing.
    fn end(self) {
        let Self { mut child, stdin, stdout } = self;
        drop((stdin, stdout));
        assert!(child.wait().unwrap().success());
    }
}

/// The line for a table with columns of `paths`.
fn cells(paths: [&str; 2]) -> String {
    let column = |path: &str| format!("4={path}-00,{path}-00,null,{path}-10,{path}-00");
    format!("taken 5x2 a:{} b:{}", column(paths[0]), column(paths[1]))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ready_timeframe_is_taken_and_its_objects_outlive_everything() {
    let setup = Setup::new(&[]).await;
    let mut device = setup.device("cpp");
    setup.register(1, [QUICK, QUICK], &["cpp", "other"]).await;
    assert_eq!(device.take("take 1 - 5000"), cells([QUICK, QUICK]));
    let state =
        |state| vec![("cpp".to_owned(), state), ("other".to_owned(), ConsumerState::Waiting)];
    until_state(&setup, 1, &state(ConsumerState::Delivered)).await;
    assert_eq!(device.ask("views 1"), format!("views{}", " 0-10 0-10 10-20 0-10".repeat(2)));
    assert_eq!(device.ask("consumed 1"), "consumed");
    assert_eq!(device.ask("consumed 1"), "consumed");
    assert_eq!(setup.consumers(1).await, state(ConsumerState::Consumed));
    // A table in hand is readable after the report; another one is not handed out.
    assert!(device.ask("take 1 - 5000").contains("[IOV-5012]"));
    assert_eq!(device.ask("release 1"), "released");
    setup.drop_timeframe(1).await;
    let bytes = [0, 0, 10, 0].map(|from| format!(" {QUICK}-{from:02}")).concat().repeat(2);
    assert_eq!(device.ask("bytes 1"), format!("bytes{bytes}"));
    let pinned = || async { setup.client.status().await.unwrap().memory.pinned_bytes };
    assert!(pinned().await > 0, "the views pin the objects");
    setup.service.adds_up();
    // The session lives as long as a view of it.
    assert_eq!(device.ask("close"), "closed");
    assert_eq!(device.ask("bytes 1"), format!("bytes{bytes}"));
    assert_eq!(device.ask("forget 1"), "forgotten");
    let deadline = Instant::now() + common::PATIENCE;
    while pinned().await > 0 {
        assert!(Instant::now() < deadline, "the objects stay pinned");
    }
    device.end();
    setup.service.adds_up();
}

async fn until_state(setup: &Setup, id: u64, state: &[(String, ConsumerState)]) {
    let deadline = Instant::now() + common::PATIENCE;
    while setup.consumers(id).await != state {
        assert!(Instant::now() < deadline, "{:?}", setup.consumers(id).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timeframe_that_is_being_loaded_is_awaited_until_it_is_ready_or_the_deadline() {
    let setup = Setup::new(&[]).await;
    let mut device = setup.device("cpp");
    setup.register(1, [SLOW, QUICK], &["cpp"]).await;
    let began = Instant::now();
    let said = device.ask("take 1 - 0");
    assert!(said.starts_with("failed deadline exceeded: [IOV-7162]"), "{said}");
    let said = device.ask("take 1 - 100");
    assert!(said.contains("[IOV-7162]"), "{said}");
    assert!(began.elapsed() >= Duration::from_millis(100));
    assert_eq!(device.ask("event 1"), "event");
    assert_eq!(device.ask("poll 1 0"), "not readable");
    assert_eq!(device.ask("take 1 - 60000"), cells([SLOW, QUICK]));
    assert!(began.elapsed() >= Duration::from_millis(900), "{:?}", began.elapsed());
    assert_eq!(device.ask("poll 1 5000"), "readable");
    assert_eq!(device.ask("consumed 1"), "consumed");
    device.end();
    setup.service.adds_up();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_is_readable_when_the_table_is_ready_and_its_descriptor_closes_with_it() {
    let setup = Setup::new(&[]).await;
    let mut device = setup.device("cpp");
    setup.register(1, [SLOW, QUICK], &["cpp"]).await;
    let before = device.ask("descriptors");
    assert_eq!(device.ask("event 1"), "event");
    assert_ne!(device.ask("descriptors"), before);
    assert_eq!(device.ask("poll 1 20000"), "readable");
    assert_eq!(device.ask("take 1 - 0"), cells([SLOW, QUICK]));
    // It stays readable, and closing it closes its descriptor.
    assert_eq!(device.ask("poll 1 0"), "readable");
    assert_eq!(device.ask("close-event 1"), "closed");
    assert_eq!(device.ask("descriptors"), before);
    // Ready or unknown: there is nothing to wait for.
    for id in [1, 99] {
        assert_eq!(device.ask(&format!("event {id}")), "event");
        assert_eq!(device.ask(&format!("poll {id} 0")), "readable");
    }
    device.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_timeframes_and_consumers_are_errors_with_their_codes() {
    let setup = Setup::new(&[]).await;
    let mut device = setup.device("cpp");
    let said = device.ask("take 5 - 5000");
    assert!(said.starts_with("failed unavailable") && said.contains("[IOV-7160]"), "{said}");
    setup.register(1, [QUICK, QUICK], &["tracker", "qc"]).await;
    let said = device.take("take 1 - 5000");
    assert!(said.starts_with("failed not found: [IOV-5011]"), "{said}");
    assert!(said.contains("tracker, qc"), "{said}");
    let long = "x".repeat(300);
    let said = device.ask(&format!("take 1 {long} 5000"));
    assert!(said.starts_with("failed invalid argument: [IOV-7161]"), "{said}");
    // A name that no session has is accepted by the service, once and then again.
    assert_eq!(device.take("take 1 tracker 5000"), cells([QUICK, QUICK]));
    assert_eq!(device.take("take 1 tracker 5000"), cells([QUICK, QUICK]));
    // A dropped timeframe can be neither taken nor reported.
    setup.drop_timeframe(1).await;
    let said = device.ask("consumed 1");
    assert!(said.starts_with("failed not found: [IOV-5010]"), "{said}");
    assert!(device.ask("take 1 tracker 0").contains("[IOV-7160]"));
    device.end();
    setup.service.adds_up();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_dies_ends_the_wait_and_leaves_what_is_in_hand() {
    let setup = Setup::new(&[]).await;
    let mut device = setup.device("cpp");
    setup.register(1, [QUICK, QUICK], &["cpp"]).await;
    let table = device.take("take 1 - 5000");
    device.ask("views 1");
    setup.register(2, [SLOW, SLOW], &["cpp"]).await;
    assert_eq!(device.ask("event 2"), "event");
    device.tell("take 2 - 60000");
    tokio::time::sleep(Duration::from_millis(200)).await;
    let began = Instant::now();
    let Setup { service, server, folder, .. } = setup;
    let sockets = service.kill();
    let said = device.said();
    assert!(said.starts_with("failed stale") && said.contains("[IOV-7160]"), "{said}");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(device.ask("poll 2 5000"), "readable");
    assert_eq!(device.ask("alive"), "gone");
    assert!(device.ask("take 1 - 0").contains("[IOV-7160]"));
    assert!(device.ask("event 1").starts_with("failed stale"));
    assert!(device.ask("consumed 1").starts_with("failed"));
    let bytes = [0, 0, 10, 0].map(|from| format!(" {QUICK}-{from:02}")).concat().repeat(2);
    assert_eq!(device.ask("bytes 1"), format!("bytes{bytes}"));
    assert_eq!(device.ask("release 1"), "released");
    assert_eq!(device.ask("bytes 1"), format!("bytes{bytes}"));
    assert_eq!(table, cells([QUICK, QUICK]));
    device.end();
    drop((server, folder, sockets));
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_service_limits_timeframes_a_program_is_sent_to_it() {
    let setup = Setup::new(&["--quota-timeframes", "5"]).await;
    let mut device = setup.device("cpp");
    setup.register(1, [QUICK, QUICK], &["cpp"]).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let said = device.ask("take 1 - 5000");
    assert!(said.starts_with("failed unavailable") && said.contains("[IOV-7160]"), "{said}");
    device.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_another_user_begins_to_use_is_refused_before_the_next_table() {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    if fs::metadata("/proc/self").unwrap().uid() != 0 {
        eprintln!("skipped: only root can become another user");
        return;
    }
    let allowed = ["--socket-mode", "0666", "--allow-uid", "65534", "--allow-uid", "0"];
    let setup = Setup::new(&allowed).await;
    let sockets = setup.service.folder.path().join("s");
    for path in [setup.service.folder.path(), &sockets, setup.folder.path()] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let other = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    let mut device = Device::start_by(&other, &setup.program, &setup.service.attach(), "stranger");
    for id in [1, 2] {
        setup.register(id, [QUICK, QUICK], &["x", "stranger"]).await;
    }
    assert_eq!(device.take("take 1 x 5000"), cells([QUICK, QUICK]));
    assert_eq!(device.take("take 2 x 5000"), cells([QUICK, QUICK]));
    let owner = iovcache::client::Attachment::open_local(&setup.service.attach(), "x", None);
    let said = device.ask("take 2 x 5000");
    assert!(said.starts_with("failed permission denied: [IOV-5017]"), "{said}");
    let said = device.ask("consumed 1");
    assert!(said.starts_with("failed permission denied: [IOV-5017]"), "{said}");
    // Its own name is its own.
    assert_eq!(device.take("take 2 - 5000"), cells([QUICK, QUICK]));
    drop(owner);
    device.end();
}
