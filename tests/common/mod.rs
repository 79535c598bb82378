//! Shared by the tests of the program: a real service in its own process, and a repository.
//!
//! Every wait is bounded, every process is ended by its pid.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Output, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use iovcache::source::repository::NewVersion;
use iovcache::{ObjectPath, Timestamp, ValidityInterval};
use serde_json::Value;

/// Longer than any step takes on a slow and busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The program under test.
pub fn iovcache() -> Command {
    Command::new(env!("CARGO_BIN_EXE_iovcache"))
}

/// Cargo, as from a shell.
///
/// `cargo test` sets variables of the package for its tests. Build scripts that read them (ring's)
/// would run again, and all that depends on them be compiled anew: here, and in the next build
/// outside of a test.
pub fn cargo() -> Command {
    const OF_PACKAGE: [&str; 5] =
        ["CARGO_BIN_", "CARGO_CRATE_", "CARGO_MANIFEST_", "CARGO_PKG_", "CARGO_PRIMARY_"];
    let mut cargo = Command::new(env!("CARGO"));
    for (name, _) in std::env::vars_os() {
        if OF_PACKAGE.iter().any(|prefix| name.as_encoded_bytes().starts_with(prefix.as_bytes())) {
            cargo.env_remove(name);
        }
    }
    cargo
}

/// Random numbers (xorshift), equal for equal seeds. A test prints its seed.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        // From 0 only zeros would follow.
        Self(seed.max(1))
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }

    pub fn chance(&mut self, one_in: u64) -> bool {
        self.below(one_in) == 0
    }
}

/// A version to be put into a repository.
pub fn new_version(path: &str, from: i64, until: i64, created: i64) -> NewVersion {
    let at = Timestamp::from_millis;
    NewVersion {
        path: ObjectPath::new(path).unwrap(),
        validity: ValidityInterval::new(at(from), at(until)).unwrap(),
        created: at(created),
        id: None,
        file_name: "file".to_owned(),
        metadata: [("by".to_owned(), "test".to_owned())].into(),
    }
}

/// Runs the program to its end.
pub fn run(arguments: &[&str]) -> Output {
    iovcache().args(arguments).stdin(Stdio::null()).output().unwrap()
}

/// Runs the program to its end, which must be successful, and returns its stdout.
pub fn run_well(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert!(
        output.status.success(),
        "iovcache {arguments:?}: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// A service in its own process.
pub struct Service {
    child: Child,
    /// Reads the service's stderr: an unread pipe would block it.
    log: Option<JoinHandle<String>>,
    /// The line printed when it was ready.
    pub ready: Value,
    pub folder: tempfile::TempDir,
}

impl Service {
    /// Starts `iovcache serve` with Unix sockets in a temporary folder and TCP on a free port.
    pub fn start(arguments: &[&str]) -> Self {
        Self::start_sized("64MiB", "16MiB", arguments)
    }

    /// Like [`start`](Self::start), with the given memory and segment size.
    pub fn start_sized(memory: &str, segment: &str, arguments: &[&str]) -> Self {
        Self::start_by(iovcache(), memory, segment, arguments)
    }

    /// Like [`start`](Self::start), with additional environment variables.
    pub fn start_with(arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut program = iovcache();
        program.envs(environment.iter().copied());
        Self::start_by(program, "64MiB", "16MiB", arguments)
    }

    /// Starts it through `program`: the program itself, or one that executes it (`ip netns exec
    /// …`).
    pub fn start_by(mut program: Command, memory: &str, segment: &str, arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let sockets = folder.path().join("s");
        let mut child = program
            .arg("serve")
            .args(["--listen", "127.0.0.1:0", "--memory", memory, "--segment", segment])
            .arg("--socket")
            .arg(&sockets)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = child.stdout.take().unwrap();
        let stderr = child.stderr.take().unwrap();
        let log = std::thread::spawn(move || read_all(stderr));
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || {
            let mut line = String::new();
            let _ = BufReader::new(stdout).read_line(&mut line);
            let _ = sender.send(line);
        });
        let line = receiver.recv_timeout(PATIENCE).unwrap_or_default();
        let Ok(ready) = serde_json::from_str(&line) else {
            let _ = child.kill();
            let _ = child.wait();
            panic!("no ready line but {line:?}; {}", log.join().unwrap());
        };
        Self { child, log: Some(log), ready, folder }
    }

    /// A service over a repository folder, which sees changes within 0.2 s.
    pub fn over(repository: &Path, arguments: &[&str]) -> Self {
        let source = format!("file://{}", repository.display());
        let mut all = vec!["--source", source.as_str(), "--refresh", "200ms"];
        all.extend_from_slice(arguments);
        Self::start(&all)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn tcp(&self) -> String {
        self.ready["flight"][0].as_str().unwrap().to_owned()
    }

    pub fn unix(&self) -> String {
        self.ready["flight"][1].as_str().unwrap().to_owned()
    }

    pub fn attach(&self) -> PathBuf {
        self.ready["attach"].as_str().unwrap().into()
    }

    pub fn http(&self) -> String {
        self.ready["http"].as_str().unwrap().trim_start_matches("http://").to_owned()
    }

    /// Checks by `iovcache status --check` that pins, places and bytes add up, and that every
    /// object is as it was published; panics otherwise.
    pub fn adds_up(&self) -> Value {
        let told = self.check();
        assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
        serde_json::from_slice(&told.stdout).unwrap()
    }

    fn check(&self) -> Output {
        let told = run(&["status", "--check", "--contents", "--json", "--server", &self.unix()]);
        let text = String::from_utf8_lossy(&told.stdout);
        assert!(!String::from_utf8_lossy(&told.stderr).contains("do not add up"), "{text}");
        told
    }

    /// Sends SIGTERM and waits for the end; returns the exit status and the text on stderr.
    pub fn stop(self) -> (Option<i32>, String) {
        self.signal("TERM");
        self.wait()
    }

    /// Waits until it ends by itself; returns the exit status and the text on stderr.
    pub fn wait(mut self) -> (Option<i32>, String) {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().unwrap() {
                let log = self.log.take().map(|log| log.join().unwrap());
                return (status.code(), log.unwrap_or_default());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("the service did not stop");
    }

    pub fn signal(&self, name: &str) {
        signal(self.child.id(), name);
    }

    /// Kills with SIGKILL.
    pub fn kill(mut self) -> tempfile::TempDir {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        std::mem::replace(&mut self.folder, tempfile::tempdir().unwrap())
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // After every test everything must add up, if the service still answers.
        if !std::thread::panicking() && matches!(self.child.try_wait(), Ok(None)) {
            self.check();
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn read_all(mut stderr: ChildStderr) -> String {
    let mut text = Vec::new();
    let _ = stderr.read_to_end(&mut text);
    String::from_utf8_lossy(&text).into_owned()
}

/// Sends a signal to a process. After `STOP` all of its threads have stopped.
pub fn signal(process: u32, name: &str) {
    let status = Command::new("kill").args(["-s", name, &process.to_string()]).status();
    assert!(status.unwrap().success());
    if name == "STOP" {
        until("the process to stop", || is_stopped(process).then_some(()));
    }
}

/// Whether all threads of a process are stopped.
fn is_stopped(process: u32) -> bool {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).unwrap();
    tasks.flatten().all(|task| {
        let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T'))
    })
}

/// Waits until `condition` returns a value.
pub fn until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "in vain waited for: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A version to put into a repository.
pub struct Version<'a> {
    pub path: &'a str,
    pub from: i64,
    pub until: i64,
    pub created: i64,
    pub bytes: &'a [u8],
}

/// Puts a version by running the program, as a user would; returns its id.
pub fn put(repository: &Path, version: &Version<'_>) -> String {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), version.bytes).unwrap();
    let [from, until, created] =
        [version.from, version.until, version.created].map(|millis| millis.to_string());
    let told = run_well(&[
        "put",
        "--json",
        "--repository",
        repository.to_str().unwrap(),
        version.path,
        file.path().to_str().unwrap(),
        &format!("--from={from}"),
        &format!("--until={until}"),
        &format!("--created={created}"),
    ]);
    let told: Value = serde_json::from_str(&told).unwrap();
    told["id"].as_str().unwrap().to_owned()
}

/// The folder of the real objects, if it exists.
pub fn shared() -> Option<PathBuf> {
    let folder = match std::env::var_os("IOVCACHE_SHARED") {
        Some(folder) => PathBuf::from(folder),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared"),
    };
    folder.join("data/alice-lhc24/manifest.csv").exists().then_some(folder)
}

/// One plain GET.
pub fn http_get(address: &str, path: &str) -> (u16, String) {
    use std::io::Write as _;
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, body.to_owned())
}
