//! Metrics of the process, under the names that Prometheus' own clients use.

use std::fmt;
use std::fs;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

/// The registry of these metrics, without the `iovcache` prefix.
pub(super) fn registry() -> Registry {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(ProcessFigures));
    registry
}

/// Metrics read from `/proc` on each scrape. Those that cannot be read are left out.
#[derive(Debug)]
struct ProcessFigures;

impl Collector for ProcessFigures {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let Some(process) = Process::read() else { return Ok(()) };
        let counter = ConstCounter::new(process.cpu_seconds);
        let place = encoder.encode_descriptor(
            "process_cpu",
            "User and system time of the process.",
            Some(&Unit::Seconds),
            counter.metric_type(),
        )?;
        counter.encode(place)?;
        let started = ConstGauge::new(process.start_seconds);
        let place = encoder.encode_descriptor(
            "process_start_time",
            "When the process started, since the Unix epoch.",
            Some(&Unit::Seconds),
            started.metric_type(),
        )?;
        started.encode(place)?;
        let bytes = Some(&Unit::Bytes);
        for (name, help, unit, value) in [
            (
                "process_resident_memory",
                "Resident memory, shared memory included.",
                bytes,
                process.resident_bytes,
            ),
            ("process_virtual_memory", "Virtual memory.", bytes, process.virtual_bytes),
            ("process_open_fds", "Open file descriptors.", None, process.open_files),
            ("process_max_fds", "Limit of open file descriptors.", None, process.max_files),
            ("process_threads", "Threads.", None, process.threads),
        ] {
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            let place = encoder.encode_descriptor(name, help, unit, gauge.metric_type())?;
            gauge.encode(place)?;
        }
        Ok(())
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Process {
    cpu_seconds: f64,
    start_seconds: f64,
    resident_bytes: u64,
    virtual_bytes: u64,
    open_files: u64,
    max_files: u64,
    threads: u64,
}

impl Process {
    fn read() -> Option<Self> {
        let stat = fs::read_to_string("/proc/self/stat").ok()?;
        // The program's name is in brackets and may hold any characters.
        let fields: Vec<u64> = stat
            .rsplit_once(')')?
            .1
            .split_whitespace()
            .skip(1)
            .map(|field| field.parse().unwrap_or(0))
            .collect();
        // Numbered as in proc_pid_stat(5), from 4 on.
        let field = |number: usize| fields.get(number - 4).copied();
        let ticks = rustix::param::clock_ticks_per_second() as f64;
        let boot = fs::read_to_string("/proc/stat").ok()?;
        let boot = boot.lines().find_map(|line| line.strip_prefix("btime "))?;
        let boot_seconds: f64 = boot.trim().parse().ok()?;
        let max_files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        Some(Self {
            cpu_seconds: (field(14)? + field(15)?) as f64 / ticks,
            start_seconds: boot_seconds + field(22)? as f64 / ticks,
            resident_bytes: field(24)? * rustix::param::page_size() as u64,
            virtual_bytes: field(23)?,
            open_files: fs::read_dir("/proc/self/fd").ok()?.count() as u64,
            max_files: max_files.unwrap_or(u64::MAX),
            threads: field(20)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;

    #[test]
    fn the_figures_are_those_of_this_process() {
        let process = Process::read().unwrap();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let age = now.as_secs_f64() - process.start_seconds;
        assert!((-5.0..Duration::from_secs(86_400).as_secs_f64()).contains(&age), "{process:?}");
        assert!((1 << 20..1 << 40).contains(&process.resident_bytes), "{process:?}");
        assert!(process.virtual_bytes >= process.resident_bytes && process.threads >= 1);
        assert!((3..process.max_files).contains(&process.open_files), "{process:?}");
    }
}
