//! The configuration of a run, which every device reads.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::Outcome;
use crate::columns::{CONFIGURATION, Row};

/// The number of the first run; the numbers repeat.
pub(crate) const FIRST_RUN: i64 = 544_123;
/// How many runs there are.
pub(crate) const RUNS: i64 = 3;
/// Rows at a change of run in which both runs take turns.
const SHARED_ROWS: i64 = 16;

/// Instances of one consumer: timeslice `t` goes to instance `t modulo pipeline`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Kind {
    pub(crate) name: String,
    pub(crate) pipeline: u64,
    pub(crate) work_millis: u64,
}

impl Kind {
    fn instance(&self, number: u64) -> String {
        match self.pipeline {
            1 => self.name.clone(),
            _ => format!("{}_t{number}", self.name),
        }
    }

    /// From `NAME=PIPELINE:MILLISECONDS`.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("{text:?}: expected NAME=INSTANCES:MILLISECONDS, as in tracker=3:12");
        let (name, numbers) = text.split_once('=').ok_or_else(wrong)?;
        let (pipeline, work) = numbers.split_once(':').ok_or_else(wrong)?;
        let [pipeline, work_millis] = [pipeline, work].map(|number| number.parse::<u64>().ok());
        let named = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
        match (pipeline, work_millis) {
            (Some(pipeline @ 1..=64), Some(work_millis)) if named => {
                Ok(Self { name: name.to_owned(), pipeline, work_millis })
            }
            _ => Err(wrong()),
        }
    }
}

/// One run of the workflow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// Folder of the sockets.
    pub(crate) folder: PathBuf,
    pub(crate) repository: PathBuf,
    /// Object paths that have a column each.
    pub(crate) columns: Vec<String>,
    pub(crate) timeframes: u64,
    /// Timestamps in one timeframe.
    pub(crate) rows: i64,
    /// Borders of the timeframes: timeframe `t` covers the time between the borders `t` and `t +
    /// 1`; after the last border the sequence repeats.
    pub(crate) borders_millis: Vec<i64>,
    /// Interval between timeframes, as far as the consumers keep up.
    pub(crate) every_micros: u64,
    /// Maximum number of timeframes sent and not yet consumed.
    pub(crate) in_flight: u64,
    pub(crate) memory_bytes: u64,
    pub(crate) segment_bytes: u64,
    pub(crate) kinds: Vec<Kind>,
}

/// One incarnation of a consumer: its name can be reused, its process cannot.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Seat {
    pub(crate) device: String,
    pub(crate) incarnation: u32,
}

impl Plan {
    const FILE: &str = "plan.json";

    pub(crate) fn read(folder: &Path) -> Outcome<Self> {
        Ok(serde_json::from_slice(&fs::read(folder.join(Self::FILE))?)?)
    }

    pub(crate) fn write(&self) -> Outcome<()> {
        Ok(fs::write(self.folder.join(Self::FILE), serde_json::to_vec(self)?)?)
    }

    /// The socket on which a device listens.
    pub(crate) fn socket(&self, device: &str) -> PathBuf {
        self.folder.join(format!("{device}.sock"))
    }

    /// The paths of all objects.
    pub(crate) fn paths(&self) -> Vec<String> {
        let all = self.columns.iter().cloned();
        all.chain([CONFIGURATION.to_owned()]).collect()
    }

    /// All consumers by name.
    pub(crate) fn instances(&self) -> Vec<String> {
        let all = self.kinds.iter();
        all.flat_map(|kind| (0..kind.pipeline).map(|number| kind.instance(number))).collect()
    }

    /// The consumers of one timeslice: one instance of each kind, in turn.
    pub(crate) fn instances_of(&self, timeslice: u64) -> Vec<String> {
        self.kinds.iter().map(|kind| kind.instance(timeslice % kind.pipeline)).collect()
    }

    /// Time that a consumer works on one timeframe, beyond checking it. Timeframes differ in
    /// content: some take a quarter of the usual time, others almost twice as much.
    pub(crate) fn work(&self, device: &str, timeslice: u64) -> Duration {
        let names = |kind: &&Kind| (0..kind.pipeline).any(|number| kind.instance(number) == device);
        let usual = self.kinds.iter().find(names).map_or(0, |kind| kind.work_millis);
        Duration::from_micros(usual * 250 * (1 + timeslice * 5 % 7))
    }

    /// The rows of one timeframe, by timestamp.
    pub(crate) fn rows_of(&self, timeslice: u64) -> Vec<Row> {
        let cycle = self.borders_millis.len().saturating_sub(1).max(1) as u64;
        let turn = (timeslice % cycle) as usize;
        let [first, last] = [turn, turn + 1].map(|n| self.borders_millis.get(n).copied());
        let (first, last) = (first.unwrap_or(0), last.unwrap_or(0));
        let at = |row: i64| first + (last - first) * row / self.rows;
        (0..self.rows).map(|row| (at(row), self.run_of(timeslice, row))).collect()
    }

    /// A run lasts two timeframes and a half, so that every other change of run lies inside of a
    /// timeframe. A row of no run stands between two runs; the last rows of one and the first of the
    /// next are interleaved.
    fn run_of(&self, timeslice: u64, row: i64) -> Option<i64> {
        let (timeslice, rows) = (i128::from(timeslice), i128::from(self.rows));
        let length = (rows * 5 / 2).max(1);
        let at = timeslice * rows + i128::from(row);
        let (run, place) = (at / length, at % length);
        let run = match place {
            0 if run > 0 => return None,
            1.. if run > 0 && place < i128::from(SHARED_ROWS) && place % 2 == 1 => run - 1,
            _ => run,
        };
        Some(FIRST_RUN + i64::try_from(run % i128::from(RUNS)).unwrap_or(0))
    }
}
