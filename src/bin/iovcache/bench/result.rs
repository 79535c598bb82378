//! What came of a run: the JSON that is written, compared, and drawn.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::histogram::Latency;
use super::process::Usage;
use crate::failure::Failure;

/// The form of this JSON; another number is another form.
pub(super) const FORMAT: u32 = 1;

/// A run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct BenchResult {
    pub(super) iovcache_bench: u32,
    /// The program's version.
    pub(super) version: String,
    /// When it began, in ms since the Unix epoch.
    pub(super) began_ms: u64,
    pub(super) took_seconds: f64,
    pub(super) machine: Machine,
    pub(super) options: Options,
    pub(super) profiles: Vec<ProfileResult>,
    pub(super) curves: Vec<Curve>,
}

/// Where it ran.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Machine {
    pub(super) cpu: String,
    pub(super) cores: usize,
    pub(super) memory_bytes: u64,
    pub(super) kernel: String,
    /// A build without optimisation says nothing about speed.
    pub(super) optimised: bool,
}

impl Machine {
    pub(super) fn this() -> Self {
        let read = |file: &str| fs::read_to_string(file).unwrap_or_default();
        let (cpus, memory) = (read("/proc/cpuinfo"), read("/proc/meminfo"));
        let value = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let kibibytes = value(&memory, "MemTotal").unwrap_or_default();
        let kibibytes: u64 = kibibytes.trim_end_matches(" kB").parse().unwrap_or(0);
        Self {
            cpu: value(&cpus, "model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: kibibytes << 10,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            optimised: !cfg!(debug_assertions),
        }
    }
}

/// How it was called.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Options {
    pub(super) duration_seconds: f64,
    pub(super) memory_bytes: u64,
    pub(super) quick: bool,
    /// The service, where it was not one of our own.
    pub(super) server: Option<String>,
}

/// A profile, and what came of each of its phases.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct ProfileResult {
    pub(super) name: String,
    pub(super) about: String,
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) consumers: usize,
    pub(super) in_flight: u64,
    pub(super) versions: usize,
    pub(super) object_bytes: u64,
    pub(super) memory_bytes: u64,
    pub(super) phases: Vec<Phase>,
    /// What the source did, where it was made to fail: how often.
    pub(super) source_faults: BTreeMap<String, u64>,
    /// Bytes that were still pinned after all was reported as consumed.
    pub(super) left_pinned_bytes: u64,
    /// Timeframes that were still in flight then.
    pub(super) left_in_flight: u64,
}

/// A stretch of one rate.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Phase {
    /// `cold`: each timeframe needs objects that are not in shared memory. `warm`: all are there.
    pub(super) name: String,
    /// Timeframes per second, as intended.
    pub(super) rate: f64,
    /// From the first timeframe until the last table.
    pub(super) seconds: f64,
    /// Until the last timeframe was reported as consumed.
    pub(super) quiet_after_seconds: f64,
    pub(super) timeframes: u64,
    pub(super) tables: Tables,
    pub(super) throughput: Throughput,
    /// From when a timeframe was due until a consumer had resolved each cell of its table.
    pub(super) latency: Latency,
    /// By how much the load itself came late: part of the latency.
    pub(super) late: Latency,
    /// Registering a timeframe.
    pub(super) register: Latency,
    /// A table, from when it was asked for until each cell was resolved.
    pub(super) table: Latency,
    /// Reporting a timeframe as consumed.
    pub(super) consumed: Latency,
    /// What the service used, where it runs on this node.
    pub(super) service: Option<ServiceUse>,
    /// Latency over time, by when timeframes were due.
    pub(super) windows: Vec<Window>,
    /// Memory over time.
    pub(super) looks: Vec<Look>,
}

/// What became of the tables: `expected = done + failed + lost`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Tables {
    pub(super) expected: u64,
    pub(super) done: u64,
    pub(super) failed: u64,
    /// They died with their consumers.
    pub(super) lost: u64,
    /// Consumers that were killed.
    pub(super) deaths: u64,
    /// Cells whose bytes were checked.
    pub(super) cells_checked: u64,
    /// Cells whose bytes were not those that are right for their timestamp.
    pub(super) cells_wrong: u64,
    /// How often each kind of failure, with the first message of it.
    pub(super) failures: BTreeMap<String, FailureCount>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct FailureCount {
    pub(super) count: u64,
    pub(super) first: String,
}

impl Tables {
    pub(super) fn fail(&mut self, kind: &str, message: &str, count: u64) {
        self.failed += count;
        let entry = self.failures.entry(kind.to_owned()).or_default();
        if entry.count == 0 {
            message.clone_into(&mut entry.first);
        }
        entry.count += count;
    }
}

/// Per second, over the seconds of the phase. Objects and their bytes are those that were handed
/// to consumers, which copies none of them.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Throughput {
    pub(super) tables: f64,
    pub(super) rows: f64,
    pub(super) cells: f64,
    pub(super) objects: f64,
    pub(super) bytes: f64,
    /// Objects that were loaded from the source.
    pub(super) loads: f64,
}

/// What a service used in a phase.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct ServiceUse {
    pub(super) cpu_seconds: f64,
    /// Processor time per table, registering and reporting its timeframe included.
    pub(super) cpu_us_per_table: f64,
    /// How many cores it kept busy.
    pub(super) cores: f64,
    /// At the end of the phase.
    pub(super) memory: Usage,
    /// Shared memory that objects took, at most, and what of it was pinned.
    pub(super) used_bytes: u64,
    pub(super) pinned_bytes: u64,
    pub(super) evictions: u64,
}

/// A piece of a phase.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(super) struct Window {
    /// Its begin, in seconds from that of the phase.
    pub(super) at: f64,
    pub(super) tables: u64,
    pub(super) p50_us: u64,
    pub(super) p99_us: u64,
    pub(super) max_us: u64,
}

/// What was seen at one look at the service.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Look {
    /// In seconds from the phase's begin.
    pub(super) at: f64,
    /// Timeframes in flight.
    pub(super) in_flight: u64,
    /// Shared memory that objects take, and what of it is pinned.
    pub(super) used_bytes: u64,
    pub(super) pinned_bytes: u64,
}

/// How one request's cost grows with something.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Curve {
    pub(super) name: String,
    pub(super) about: String,
    /// What grows.
    pub(super) of: String,
    pub(super) points: Vec<Point>,
}

/// A point of a curve.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Point {
    pub(super) x: u64,
    pub(super) requests_per_second: f64,
    pub(super) latency: Latency,
    /// The service's processor time per request, where it could be told.
    pub(super) cpu_us: Option<f64>,
}

impl BenchResult {
    /// Reads what an earlier run wrote.
    pub(super) fn read(file: &Path) -> Result<Self, Failure> {
        let text = fs::read(file).map_err(|error| Failure::io(file.display(), error))?;
        let wrong = |why: String| Failure::usage(format!("{}: {why}", file.display()));
        let result: Self = serde_json::from_slice(&text)
            .map_err(|error| wrong(format!("no result of iovcache bench: {error}")))?;
        match result.iovcache_bench {
            FORMAT => Ok(result),
            other => Err(wrong(format!("a result of form {other}, expected {FORMAT}"))),
        }
    }

    /// What must not be, in words; nothing: all is well.
    pub(super) fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        for profile in &self.profiles {
            let name = &profile.name;
            for phase in &profile.phases {
                let Tables { done, expected, cells_checked, cells_wrong, lost, deaths, .. } =
                    phase.tables;
                if cells_wrong > 0 {
                    faults.push(format!(
                        "{name}, {}: {cells_wrong} of {cells_checked} cells were wrong",
                        phase.name
                    ));
                }
                if done == 0 && expected > 0 {
                    let first = phase.tables.failures.values().next();
                    let first = first.map_or("", |failure| failure.first.as_str());
                    faults.push(format!("{name}, {}: no table came: {first}", phase.name));
                }
                if lost > 0 && deaths == 0 {
                    faults.push(format!("{name}, {}: {lost} tables never came", phase.name));
                }
            }
            if profile.left_pinned_bytes > 0 || profile.left_in_flight > 0 {
                faults.push(format!(
                    "{name}: {} bytes and {} timeframes are still held after the end",
                    profile.left_pinned_bytes, profile.left_in_flight
                ));
            }
        }
        faults
    }
}
