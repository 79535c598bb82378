//! The processes of a run: the service, its folder, and its resource use as the kernel counts it.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::demo::{Process, own_program};
use crate::failure::Failure;

/// Time limit for the start of a process.
const START_LIMIT: Duration = Duration::from_secs(30);

/// A temporary folder; dropping this removes it.
#[derive(Debug)]
pub(super) struct Folder(PathBuf);

impl Folder {
    pub(super) fn new() -> Result<Self, Failure> {
        let name = format!("iovcache-bench-{}", uuid::Uuid::new_v4().simple());
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).map_err(|error| Failure::io(path.display(), error))?;
        Ok(Self(path))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Starts this program as another process with piped stdin and stdout.
pub(super) fn spawn(prepare: impl FnOnce(&mut Command)) -> Result<Process, Failure> {
    let mut command = own_program()?;
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    // The environment's settings for a service must not apply to the processes of a run.
    for (name, _) in std::env::vars_os() {
        if name.as_encoded_bytes().starts_with(b"IOVCACHE_") {
            command.env_remove(name);
        }
    }
    prepare(&mut command);
    let child = command.spawn();
    child.map(Process).map_err(|error| Failure::io("cannot start a process of this program", error))
}

/// The first line of a process's output.
pub(super) fn first_line(child: &mut Child) -> Result<String, Failure> {
    let stdout = child.stdout.take().ok_or_else(|| Failure::failed("a process has no stdout"))?;
    let (sender, receiver) = mpsc::channel();
    // The thread ends after this line, or with the process.
    std::thread::spawn(move || {
        let mut line = String::new();
        let read = BufReader::new(stdout).read_line(&mut line);
        let _ = sender.send(read.map(|_| line));
    });
    match receiver.recv_timeout(START_LIMIT) {
        Ok(Ok(line)) if !line.is_empty() => Ok(line),
        Ok(Err(error)) => Err(Failure::io("a process cannot be read", error)),
        Ok(Ok(_)) => Err(Failure::failed("a process of this program ended at once")),
        Err(_) => Err(Failure::failed("a process of this program does not start")),
    }
}

/// The lines of stdin; a separate thread reads them.
pub(super) fn lines_of_stdin() -> tokio::sync::mpsc::UnboundedReceiver<String> {
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    receiver
}

/// The line that a service writes when it is ready.
#[derive(Debug, Deserialize)]
struct ReadyLine {
    flight: Vec<String>,
    #[serde(default)]
    ccdb: Option<String>,
    pid: u32,
}

/// A service in a process of its own; dropping this ends it.
pub(super) struct Service {
    _process: Option<Process>,
    /// URL of its Unix socket, or the given URL.
    pub(super) url: String,
    /// URL of its CCDB, if it has one.
    pub(super) ccdb: Option<String>,
    /// Process id, if it runs on this node.
    pub(super) pid: Option<u32>,
}

impl Service {
    /// Starts a service and waits until it is ready.
    pub(super) fn start(prepare: impl FnOnce(&mut Command)) -> Result<Self, Failure> {
        let mut process = spawn(prepare)?;
        let line = first_line(&mut process.0)?;
        let ready: ReadyLine = serde_json::from_str(&line)
            .map_err(|error| Failure::failed(format!("the service does not start: {error}")))?;
        let url = ready.flight.iter().find(|url| url.starts_with("grpc+unix"));
        let url = url.ok_or_else(|| Failure::failed("the service has no Unix socket"))?.clone();
        let (ccdb, pid) = (ready.ccdb, Some(ready.pid));
        Ok(Self { _process: Some(process), url, ccdb, pid })
    }

    /// A service that already runs.
    pub(super) fn running(url: &str, pid: Option<u32>) -> Self {
        Self { _process: None, url: url.to_owned(), ccdb: None, pid }
    }
}

/// Resources that a process uses, as the kernel counts them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Usage {
    /// User and system time since its start.
    pub(super) cpu_seconds: f64,
    /// Resident memory; the private and the shared part follow.
    pub(super) rss_bytes: u64,
    pub(super) private_bytes: u64,
    pub(super) shm_bytes: u64,
}

impl Usage {
    /// The use of a process on this node, from `/proc`.
    pub(super) fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        Self::parse(&stat, &status, rustix::param::clock_ticks_per_second())
    }

    fn parse(stat: &str, status: &str, ticks_per_second: u64) -> Option<Self> {
        // The second field is a name in brackets, which can contain any characters.
        let (_, rest) = stat.rsplit_once(')')?;
        let mut fields = rest.split_ascii_whitespace().skip(11);
        let ticks: u64 =
            fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?;
        let kibibytes = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim_start_matches(':').split_ascii_whitespace().next()?.parse::<u64>().ok()
        };
        Some(Self {
            cpu_seconds: ticks as f64 / ticks_per_second.max(1) as f64,
            rss_bytes: kibibytes("VmRSS")? << 10,
            private_bytes: kibibytes("RssAnon")? << 10,
            shm_bytes: kibibytes("RssShmem")? << 10,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_is_read_as_it_writes() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 0 0 0 250 50 0 0 20 0 4 0 99 1 2";
        let status = "Name:\ta\nVmRSS:\t    2048 kB\nRssAnon:\t 1024 kB\nRssShmem:\t 512 kB\n";
        let usage = Usage::parse(stat, status, 100).unwrap();
        let expected = Usage {
            cpu_seconds: 3.0,
            rss_bytes: 2 << 20,
            private_bytes: 1 << 20,
            shm_bytes: 512 << 10,
        };
        assert_eq!(usage, expected);
        assert_eq!(Usage::parse("", status, 100), None);
        let own = Usage::of(std::process::id()).unwrap();
        assert!(own.rss_bytes > 0 && own.rss_bytes >= own.private_bytes);
    }
}
