//! The processes that are measured.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use iovcache::client::Client;

/// The program.
pub(crate) fn program() -> Command {
    match std::env::var_os("IOVCACHE_BIN") {
        Some(program) => Command::new(program),
        None => Command::new(env!("CARGO_BIN_EXE_iovcache")),
    }
}

/// Seconds that a command takes.
pub(crate) fn timed(command: &mut Command) -> f64 {
    let began = Instant::now();
    let output = command.stdin(Stdio::null()).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {error}");
    began.elapsed().as_secs_f64()
}

/// A service over a repository; dropping it kills the process.
pub(crate) struct Service {
    child: Child,
    flight: String,
    _socket: tempfile::TempDir,
}

impl Service {
    /// Starts a service over the folder `repository`.
    pub(crate) fn start(repository: &Path) -> Self {
        Self::start_over(&format!("file://{}", repository.display()), &[])
    }

    /// Starts a service over a source, with these environment variables.
    pub(crate) fn start_over(source: &str, environment: &[(&'static str, String)]) -> Self {
        let socket = tempfile::tempdir().unwrap();
        let mut command = program();
        command.args(["serve", "--source", source]);
        command.envs(environment.iter().map(|(name, value)| (name, value)));
        command.arg("--socket").arg(socket.path());
        command.args(["--listen", "127.0.0.1:0", "--memory", "64MiB", "--segment", "16MiB"]);
        command.stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let ready: serde_json::Value = serde_json::from_str(&line).unwrap();
        let flight = ready["flight"][1].as_str().unwrap().to_owned();
        Self { child, flight, _socket: socket }
    }

    pub(crate) async fn connect(&self) -> Client {
        Client::connect(&self.flight).await.unwrap()
    }

    /// Processor time used so far.
    pub(crate) fn cpu_seconds(&self) -> f64 {
        let text = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<&str> = text.rsplit(')').next().unwrap().split_whitespace().collect();
        // utime and stime, in hundredths of a second.
        let ticks: f64 = fields[11..13].iter().map(|field| field.parse::<f64>().unwrap()).sum();
        ticks / 100.0
    }

    /// Waits until the background work after the start is done: three seconds, each with at most
    /// 5 % of a processor. An idle debug build on a slow machine takes up to 2.5 %.
    pub(crate) async fn settle(&self) {
        let began = Instant::now();
        let mut quiet_seconds = 0;
        while quiet_seconds < 3 {
            let busy = self.cpu_seconds();
            tokio::time::sleep(Duration::from_secs(1)).await;
            let is_quiet = self.cpu_seconds() - busy <= 0.05;
            quiet_seconds = if is_quiet { quiet_seconds + 1 } else { 0 };
            assert!(began.elapsed() < Duration::from_secs(600), "the service is not idle");
        }
    }

    /// The address for commands.
    pub(crate) fn url(&self) -> &str {
        &self.flight
    }

    /// Begins a new measurement of [`peak_bytes`](Self::peak_bytes). Returns the present memory.
    pub(crate) fn begin_peak_bytes(&self) -> f64 {
        fs::write(format!("/proc/{}/clear_refs", self.child.id()), "5").unwrap();
        self.kib("VmRSS:")
    }

    /// The most memory at a time since then, shared memory included.
    pub(crate) fn peak_bytes(&self) -> f64 {
        self.kib("VmHWM:")
    }

    /// Private memory: memory shared with consumers does not count.
    pub(crate) fn memory_bytes(&self) -> f64 {
        self.kib("RssAnon:")
    }

    /// A number of KiB of the process, in bytes.
    fn kib(&self, name: &str) -> f64 {
        let text = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        let kib: f64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        kib * 1024.0
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
