//! The result of a run, for people and for programs.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::columns::Column;
use crate::conditions::CacheReport;
use crate::device::MemoryPoint;
use crate::plan::Plan;
use crate::sink::SinkReport;

/// Maximum points of the memory curve that are kept.
const POINTS: usize = 200;
/// Maximum points that are drawn.
const DRAWN: usize = 60;

#[derive(Debug, Default, Serialize)]
pub(crate) struct Report {
    pub(crate) timeframes: u64,
    pub(crate) rows: u64,
    pub(crate) bytes: u64,
    pub(crate) wrong_rows: u64,
    pub(crate) wrong_bytes: u64,
    pub(crate) gone: u64,
    pub(crate) pins_left_bytes: u64,
    pub(crate) took_millis: u64,
    pub(crate) killed: Vec<String>,
    pub(crate) sink: SinkReport,
    pub(crate) cache: CacheReport,
    pub(crate) memory: Vec<MemoryPoint>,
    /// Failed checks; if empty, the run passed.
    pub(crate) failures: Vec<String>,
}

impl Report {
    /// Adds up all counters, and records every failed check.
    pub(crate) fn fill(
        &mut self,
        plan: &Plan,
        sink: SinkReport,
        cache: CacheReport,
        memory: Vec<MemoryPoint>,
        took: Duration,
    ) {
        let devices = || sink.devices.values();
        self.timeframes = sink.timeframes;
        self.rows = devices().map(|device| device.rows).sum();
        self.bytes = devices().map(|device| device.bytes).sum();
        self.wrong_rows = devices().map(|device| device.wrong_rows).sum();
        self.wrong_bytes = devices().map(|device| device.wrong_bytes).sum();
        self.gone = devices().map(|device| device.gone).sum();
        self.pins_left_bytes = cache.pinned_bytes;
        self.took_millis = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        let done: u64 = devices().map(|device| device.timeframes).sum();
        let due = plan.kinds.len() as u64 * sink.timeframes;
        let cells = plan.rows.unsigned_abs() * Column::all(plan).len() as u64;
        let mut expect = |what: &str, got: u64, expected: u64| {
            if got != expected {
                self.failures.push(format!("{what}: {got}, expected {expected}"));
            }
        };
        expect("wrong rows", self.wrong_rows, 0);
        expect("wrong bytes", self.wrong_bytes, 0);
        expect("bytes pinned in the end", cache.pinned_bytes, 0);
        expect("timeframes in flight in the end", cache.in_flight, 0);
        expect("sessions in the end", cache.sessions, 0);
        expect("timeframes done or gone, by consumer", done + self.gone, due);
        expect("rows checked", self.rows, done * cells);
        if self.killed.is_empty() {
            expect("timeframes gone", self.gone, 0);
        }
        if plan.timeframes != u64::MAX {
            expect("timeframes", sink.timeframes, plan.timeframes);
        }
        self.failures.extend(cache.faults.iter().chain(&cache.errors).cloned());
        let step = memory.len().div_ceil(POINTS).max(1);
        self.memory = memory.into_iter().step_by(step).collect();
        (self.sink, self.cache) = (sink, cache);
    }
}

/// The quantile `share` of `sorted`.
fn quantile(sorted: &[u64], share: f64) -> u64 {
    let last = sorted.len().saturating_sub(1);
    sorted.get((last as f64 * share) as usize).copied().unwrap_or(0)
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// A curve from 0 to `top`, one character per point.
fn curve(points: &[MemoryPoint], top: u64, value: impl Fn(&MemoryPoint) -> u64) -> String {
    const BARS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let step = points.len().div_ceil(DRAWN).max(1);
    let highest = points.chunks(step).map(|some| some.iter().map(&value).max().unwrap_or(0));
    highest
        .map(|value| BARS[(value.saturating_mul(8).div_ceil(top.max(1)) as usize).min(8)])
        .collect()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.took_millis as f64 / 1e3;
        writeln!(f, "{} timeframes in {seconds:.1} s", self.timeframes)?;
        writeln!(f, "{} of them were whole before an earlier one was\n", self.sink.out_of_order)?;
        writeln!(
            f,
            "{:<14} {:>10} {:>5} {:>9} {:>7} {:>6} {:>10}   waited for conditions",
            "consumer", "timeframes", "gone", "rows", "null", "wrong", "read, MiB"
        )?;
        for (name, device) in &self.sink.devices {
            writeln!(
                f,
                "{name:<14} {:>10} {:>5} {:>9} {:>7} {:>6} {:>10.1}   median {:.1} ms, 99 % {:.1} ms",
                device.timeframes,
                device.gone,
                device.rows,
                device.nulls,
                device.wrong_rows,
                mebibytes(device.bytes),
                quantile(&device.waits_micros, 0.5) as f64 / 1e3,
                quantile(&device.waits_micros, 0.99) as f64 / 1e3,
            )?;
        }
        let total = self.memory.first().map_or(0, |point| point.total_bytes);
        let most =
            |value: fn(&MemoryPoint) -> u64| self.memory.iter().map(value).max().unwrap_or(0);
        let flying = most(|point| point.in_flight);
        writeln!(f, "\nover time, of {:.0} MiB", mebibytes(total))?;
        for (name, value, top, highest) in [
            (
                "used",
                (|point: &MemoryPoint| point.used_bytes) as fn(&MemoryPoint) -> u64,
                total,
                format!("at most {:.1} MiB", mebibytes(most(|point| point.used_bytes))),
            ),
            (
                "pinned",
                |point| point.pinned_bytes,
                total,
                format!("at most {:.1} MiB", mebibytes(most(|point| point.pinned_bytes))),
            ),
            ("in flight", |point| point.in_flight, flying, format!("at most {flying}")),
        ] {
            writeln!(f, "{name:<14} {}  {highest}", curve(&self.memory, top, value))?;
        }
        let CacheReport { loads, hits, evictions, ended_holding, undelivered, .. } = &self.cache;
        writeln!(f, "cache          {loads} loads, {hits} hits, {evictions} evictions")?;
        for killed in &self.killed {
            writeln!(f, "killed         {killed}")?;
        }
        if !self.killed.is_empty() {
            writeln!(
                f,
                "the dead       {ended_holding} held objects, which were released; {undelivered} \
                 tables came too late for them"
            )?;
        }
        writeln!(
            f,
            "\n{} rows checked, {} wrong; {:.1} MiB read, {} bytes wrong; {} bytes left pinned",
            self.rows,
            self.wrong_rows,
            mebibytes(self.bytes),
            self.wrong_bytes,
            self.pins_left_bytes,
        )?;
        for failure in &self.failures {
            writeln!(f, "WRONG          {failure}")?;
        }
        Ok(())
    }
}
