//! The result of a run: JSON that is written, compared, and drawn.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::histogram::Latency;
use super::process::Usage;
use crate::failure::Failure;

/// Version of this JSON format.
pub(super) const FORMAT: u32 = 1;

/// The result of a run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct BenchResult {
    pub(super) iovcache_bench: u32,
    /// Version of the program.
    pub(super) version: String,
    /// Begin, in ms since the Unix epoch.
    pub(super) began_ms: u64,
    pub(super) took_seconds: f64,
    pub(super) machine: Machine,
    pub(super) options: Options,
    pub(super) profiles: Vec<ProfileResult>,
    pub(super) curves: Vec<Curve>,
}

/// The machine of the run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Machine {
    pub(super) cpu: String,
    pub(super) cores: usize,
    pub(super) memory_bytes: u64,
    pub(super) kernel: String,
    /// Whether the build is optimised: without optimisation its figures say nothing about speed.
    pub(super) optimised: bool,
}

impl Machine {
    pub(super) fn this() -> Self {
        let read = |file: &str| fs::read_to_string(file).unwrap_or_default();
        let cpus = read("/proc/cpuinfo");
        let value = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        Self {
            cpu: value(&cpus, "model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: crate::common::node_memory_bytes().unwrap_or(0),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            optimised: !cfg!(debug_assertions),
        }
    }
}

/// The options of the run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Options {
    pub(super) duration_seconds: f64,
    pub(super) memory_bytes: u64,
    pub(super) quick: bool,
    /// URL of the service, if the run did not start it.
    pub(super) server: Option<String>,
}

/// A profile with the results of its phases.
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
    /// Number of each injected fault of the source.
    pub(super) source_faults: BTreeMap<String, u64>,
    /// Bytes still pinned after all timeframes were reported as consumed.
    pub(super) left_pinned_bytes: u64,
    /// Timeframes still in flight then.
    pub(super) left_in_flight: u64,
}

/// A part of a profile with one rate.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Phase {
    /// `cold`: each timeframe needs objects that are not in shared memory. `warm`: all are
    /// resident.
    pub(super) name: String,
    /// Intended timeframes per second.
    pub(super) rate: f64,
    /// Seconds from the first timeframe until the last table.
    pub(super) seconds: f64,
    /// Seconds until the last timeframe was reported as consumed.
    pub(super) quiet_after_seconds: f64,
    pub(super) timeframes: u64,
    pub(super) tables: Tables,
    pub(super) throughput: Throughput,
    /// From the due time of a timeframe until a consumer had resolved each cell of its table.
    pub(super) latency: Latency,
    /// Delay of the load itself, which is part of the latency.
    pub(super) late: Latency,
    /// The registration of a timeframe.
    pub(super) register: Latency,
    /// From the request for a table until each cell was resolved.
    pub(super) table: Latency,
    /// The call that reports a timeframe as consumed.
    pub(super) consumed: Latency,
    /// Resources of the service, if it runs on this node.
    pub(super) service: Option<ServiceUse>,
    /// Latency over time, by the due time of the timeframes.
    pub(super) windows: Vec<Window>,
    /// Memory over time.
    pub(super) looks: Vec<StatusSample>,
}

/// Counts of tables: `expected = done + failed + lost`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Tables {
    pub(super) expected: u64,
    pub(super) done: u64,
    pub(super) failed: u64,
    /// Tables of consumers that were killed.
    pub(super) lost: u64,
    /// Consumers that were killed.
    pub(super) deaths: u64,
    /// Cells whose bytes were compared.
    pub(super) cells_checked: u64,
    /// Cells whose bytes differ from the expected ones of their timestamp.
    pub(super) cells_wrong: u64,
    /// Count and first message of each kind of failure.
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

/// Rates per second over the phase. Objects and their bytes are those handed to consumers, without
/// copies.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Throughput {
    pub(super) tables: f64,
    pub(super) rows: f64,
    pub(super) cells: f64,
    pub(super) objects: f64,
    pub(super) bytes: f64,
    /// Objects loaded from the source.
    pub(super) loads: f64,
}

/// Resources of a service in a phase.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct ServiceUse {
    pub(super) cpu_seconds: f64,
    /// Processor time in microseconds per table, including the registration and the report of its
    /// timeframe.
    pub(super) cpu_us_per_table: f64,
    /// Average number of busy cores.
    pub(super) cores: f64,
    /// Memory of the process at the end of the phase.
    pub(super) memory: Usage,
    /// Maximum of the shared memory used by objects; the pinned part follows.
    pub(super) used_bytes: u64,
    pub(super) pinned_bytes: u64,
    pub(super) evictions: u64,
}

/// A time window of a phase.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(super) struct Window {
    /// Begin in seconds from the begin of the phase.
    pub(super) at: f64,
    pub(super) tables: u64,
    pub(super) p50_us: u64,
    pub(super) p99_us: u64,
    pub(super) max_us: u64,
}

/// One sample of the service's status.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct StatusSample {
    /// Seconds from the begin of the phase.
    pub(super) at: f64,
    /// Timeframes in flight.
    pub(super) in_flight: u64,
    /// Shared memory used by objects; the pinned part follows.
    pub(super) used_bytes: u64,
    pub(super) pinned_bytes: u64,
}

/// The cost of one request over a growing quantity.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Curve {
    pub(super) name: String,
    pub(super) about: String,
    /// The growing quantity.
    pub(super) of: String,
    pub(super) points: Vec<Point>,
}

/// A point of a curve.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Point {
    pub(super) x: u64,
    pub(super) requests_per_second: f64,
    pub(super) latency: Latency,
    /// The service's processor time per request in microseconds, if it is known.
    pub(super) cpu_us: Option<f64>,
}

impl BenchResult {
    /// Reads the result of an earlier run.
    pub(super) fn read(file: &Path) -> Result<Self, Failure> {
        let text = crate::input::bytes(file)?;
        let wrong = |why: String| Failure::usage(format!("{}: {why}", file.display()));
        let result: Self = serde_json::from_slice(&text)
            .map_err(|error| wrong(format!("no result of iovcache bench: {error}")))?;
        match result.iovcache_bench {
            FORMAT => Ok(result),
            other => Err(wrong(format!("a result of form {other}, expected {FORMAT}"))),
        }
    }

    /// The faults of the run, one sentence each; empty if there are none.
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
                    faults.push(format!("{name}, {}: no table arrived: {first}", phase.name));
                }
                if lost > 0 && deaths == 0 {
                    faults.push(format!("{name}, {}: {lost} tables never arrived", phase.name));
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
