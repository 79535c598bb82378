//! The profiles of a load: the versions, the timeframes that need them, and the number of
//! consumers.
//!
//! A profile is deterministic for a given memory size. Its timeframes are numbered; after the last
//! one they repeat.

use serde::{Deserialize, Serialize};

use super::random::Random;

/// The parts of a run, in the order in which they run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(super) enum Part {
    /// Reconstruction: one timestamp per timeframe, 100 paths of which 15 change often, 64
    /// timeframes in flight, 20 consumers.
    Sync,
    /// Analysis: 100,000 rows, 10 columns, 8 timeframes in flight, 30 consumers, objects from kB to
    /// 200 MB, scaled to the memory.
    Analysis,
    /// Faults: borders inside each table, time backwards, overlaps, too little memory, a slow and
    /// failing source, consumers that are killed. Every byte is checked.
    Adversarial,
    /// Curves of one request's cost over clients, rows, columns, objects and versions.
    Curves,
}

/// One version of an object.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct VersionPlan {
    pub(super) from: i64,
    pub(super) until: i64,
    pub(super) created: i64,
    pub(super) bytes: u64,
    /// CRC-32C of the bytes; set when they are made.
    pub(super) checksum: u32,
}

/// The versions of one path.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct PathPlan {
    pub(super) column: String,
    pub(super) path: String,
    pub(super) versions: Vec<VersionPlan>,
}

impl PathPlan {
    fn new(folder: &str, number: usize, versions: Vec<VersionPlan>) -> Self {
        let (column, path) = (format!("c{number:02}"), format!("Bench/{folder}/Path{number:02}"));
        Self { column, path, versions }
    }

    /// The version that is valid at a time, found by a linear scan.
    pub(super) fn right(&self, at: i64) -> Option<&VersionPlan> {
        let valid = self.versions.iter().filter(|one| (one.from..one.until).contains(&at));
        valid.max_by_key(|one| (one.created, one.from))
    }
}

/// The timestamps of a timeframe.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
enum TimePattern {
    /// One timestamp.
    Single,
    /// Ascending.
    Sorted,
    /// Backwards in time from timeframe to timeframe and, in every other one, from row to row; some
    /// shuffled, some null.
    Hostile,
}

/// A load.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Profile {
    pub(super) name: String,
    pub(super) about: String,
    pub(super) paths: Vec<PathPlan>,
    pub(super) rows: usize,
    pub(super) in_flight: u64,
    pub(super) consumers: usize,
    /// Default rate, in timeframes per second.
    pub(super) rate: f64,
    /// Number of timeframes after which they repeat.
    pub(super) timeframes: u64,
    /// Distance between timeframes that need objects which no earlier one needs.
    pub(super) cold_every: u64,
    /// Shared memory of the service.
    pub(super) memory_bytes: u64,
    /// Consumers check each byte, some are killed, and the source fails.
    pub(super) hostile: bool,
    times: TimePattern,
    /// Milliseconds that a timeframe covers.
    span: i64,
}

/// Size number `step` of `steps` sizes that grow by the same factor from `least` to `most` bytes.
fn size(least: f64, most: f64, step: usize, steps: usize) -> u64 {
    let share = step as f64 / (steps.max(2) - 1) as f64;
    (least * (most / least).powf(share)) as u64
}

fn version(from: i64, until: i64, created: i64, bytes: u64) -> VersionPlan {
    VersionPlan { from, until, created, bytes, checksum: 0 }
}

/// Versions up to `end` that are valid for `each` ms, and versions that overlap them; `bytes` draws
/// their sizes.
fn overlapping(end: i64, each: i64, mut bytes: impl FnMut() -> u64) -> Vec<VersionPlan> {
    let mut versions = Vec::new();
    for n in 0..=end / each {
        versions.push(version(n * each, (n + 1) * each, 10 + n, bytes()));
        match n % 6 {
            // A later correction of the middle.
            0 => {
                let from = n * each + each / 3;
                versions.push(version(from, from + each / 3, 1_000 + n, bytes()));
            }
            // An older version with a long interval, visible only where there is nothing newer.
            3 => versions.push(version(n * each, (n + 4) * each, 1, bytes())),
            _ => {}
        }
    }
    versions
}

impl Profile {
    /// The profile of a part, if it has one.
    pub(super) fn of(part: Part, memory_bytes: u64) -> Option<Self> {
        match part {
            Part::Sync => Some(Self::sync(memory_bytes)),
            Part::Analysis => Some(Self::analysis(memory_bytes)),
            Part::Adversarial => Some(Self::adversarial(memory_bytes)),
            Part::Curves => None,
        }
    }

    fn sync(memory_bytes: u64) -> Self {
        const PATHS: usize = 100;
        const CHANGING: usize = 15;
        const TIMEFRAMES: i64 = 400;
        /// Number of timeframes after which a changing path gets another version.
        const EVERY: i64 = 10;
        let span = 1_000;
        let largest = memory_bytes as f64 / 50.0;
        let steady = |number: usize| {
            let bytes = size(1e3, largest, number - CHANGING, PATHS - CHANGING);
            vec![version(0, TIMEFRAMES * span, 1, bytes)]
        };
        let changing = |number: usize| {
            let bytes = size(1e3, largest / 50.0, number, CHANGING);
            let shift = number as i64 * EVERY / CHANGING as i64;
            let versions = 0..=TIMEFRAMES / EVERY;
            let versions = versions.map(|n| {
                let from = (n * EVERY - shift) * span;
                version(from, from + EVERY * span, n + 1, bytes)
            });
            versions.collect()
        };
        let paths = (0..PATHS).map(|number| {
            let versions = if number < CHANGING { changing(number) } else { steady(number) };
            PathPlan::new("Sync", number, versions)
        });
        Self {
            name: "sync".to_owned(),
            about: "one timestamp per timeframe, 100 paths of which 15 change every 10 timeframes"
                .to_owned(),
            paths: paths.collect(),
            rows: 1,
            in_flight: 64,
            consumers: 20,
            rate: 50.0,
            timeframes: TIMEFRAMES as u64,
            cold_every: EVERY as u64,
            memory_bytes,
            hostile: false,
            times: TimePattern::Single,
            span,
        }
    }

    fn analysis(memory_bytes: u64) -> Self {
        /// Number of versions of each path, the path with the smallest objects first.
        const VERSIONS: [i64; 10] = [48, 40, 32, 24, 16, 12, 8, 6, 4, 2];
        const TIMEFRAMES: i64 = 16;
        let span = 60_000;
        // All objects together take some 0.6 of the memory.
        let largest = (memory_bytes as f64 * 0.15).min(200e6);
        let path = |(number, count): (usize, &i64)| {
            let bytes = size(1e3, largest, number, VERSIONS.len());
            let each = TIMEFRAMES * span / count;
            let one = |n: i64| {
                let until = if n + 1 == *count { TIMEFRAMES * span } else { (n + 1) * each };
                version(n * each, until, n + 1, bytes)
            };
            PathPlan::new("Analysis", number, (0..*count).map(one).collect())
        };
        Self {
            name: "analysis".to_owned(),
            about: "100,000 rows, 10 columns of objects from 1 kB to 0.15 of the memory (at most \
                    200 MB)"
                .to_owned(),
            paths: VERSIONS.iter().enumerate().map(path).collect(),
            rows: 100_000,
            in_flight: 8,
            consumers: 30,
            rate: 4.0,
            timeframes: TIMEFRAMES as u64,
            cold_every: 1,
            memory_bytes,
            hostile: false,
            times: TimePattern::Sorted,
            span,
        }
    }

    fn adversarial(memory_bytes: u64) -> Self {
        const PATHS: usize = 8;
        const TIMEFRAMES: i64 = 32;
        let span = 1_000;
        let end = TIMEFRAMES * span;
        let large = (memory_bytes / 32).min(8 << 20);
        let mut random = Random::new(4);
        let mut path = |number: usize| {
            // The first path has more versions than a server lists at once.
            let each = if number == 0 { span / 8 } else { span * 7 / 10 + number as i64 };
            let mut versions = overlapping(end, each, || match random.below(20) {
                0 => large,
                _ => size(100.0, 65_536.0, random.below(64), 64),
            });
            // The last path has gaps.
            if number + 1 == PATHS {
                versions.retain(|one| one.created % 4 != 1);
            }
            PathPlan::new("Adversarial", number, versions)
        };
        let paths: Vec<PathPlan> = (0..PATHS).map(&mut path).collect();
        let all = paths.iter().flat_map(|path| &path.versions);
        let bytes: u64 = all.map(|one| one.bytes).sum();
        Self {
            name: "adversarial".to_owned(),
            about: "borders inside each table, time backwards, overlaps, gaps, memory for 0.6 of \
                    the objects, a slow and failing source, consumers that die; every byte checked"
                .to_owned(),
            paths,
            rows: 1_000,
            in_flight: 16,
            consumers: 8,
            rate: 8.0,
            timeframes: TIMEFRAMES as u64,
            cold_every: 1,
            memory_bytes: (bytes * 6 / 10).max(32 << 20),
            hostile: true,
            times: TimePattern::Hostile,
            span,
        }
    }

    /// Number of versions.
    pub(super) fn versions(&self) -> usize {
        self.paths.iter().map(|path| path.versions.len()).sum()
    }

    /// Total size of the versions in bytes.
    pub(super) fn object_bytes(&self) -> u64 {
        self.paths.iter().flat_map(|path| &path.versions).map(|version| version.bytes).sum()
    }

    /// The timestamps of timeframe `number` (ms); `None` is null.
    pub(super) fn timestamps(&self, number: u64) -> Vec<Option<i64>> {
        let number = number % self.timeframes;
        let at = |number: u64| i64::try_from(number).unwrap_or(0) * self.span;
        let rows = self.rows as i64;
        let row = |place: i64| place * self.span / rows;
        match self.times {
            TimePattern::Single => vec![Some(at(number) + self.span / 2)],
            TimePattern::Sorted => (0..rows).map(|n| Some(at(number) + row(n))).collect(),
            TimePattern::Hostile => {
                // A stride without a common divisor visits each row once.
                const LEAP: i64 = 7_919;
                /// Milliseconds between two different timestamps.
                const TICK: i64 = 10;
                let begin = at(self.timeframes - 1 - number);
                let place = |n: i64| match number % 4 {
                    3 => n * LEAP % rows,
                    1 => rows - 1 - n,
                    _ => n,
                };
                // There are more rows than milliseconds: several share one.
                let at = |n: i64| begin + row(place(n)) / TICK * TICK;
                let time = |n: i64| (n % 97 != 13).then(|| at(n));
                (0..rows).map(time).collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMORY: u64 = 1 << 30;

    #[test]
    fn the_profiles_are_what_they_are_called() {
        let sync = Profile::of(Part::Sync, MEMORY).unwrap();
        let often = sync.paths.iter().filter(|path| path.versions.len() > 10).count();
        assert_eq!((sync.paths.len(), often, sync.rows), (100, 15, 1));
        assert_eq!((sync.in_flight, sync.consumers), (64, 20));
        let analysis = Profile::of(Part::Analysis, MEMORY).unwrap();
        assert_eq!((analysis.paths.len(), analysis.rows), (10, 100_000));
        assert_eq!((analysis.in_flight, analysis.consumers), (8, 30));
        let largest = Profile::of(Part::Analysis, 4 << 30).unwrap();
        let sizes = largest.paths.iter().map(|path| path.versions[0].bytes);
        let sizes: Vec<u64> = sizes.collect();
        assert!(sizes[0] == 1_000 && (199_999_000..=200_000_000).contains(&sizes[9]), "{sizes:?}");
        assert!(Profile::of(Part::Curves, MEMORY).is_none());
    }

    #[test]
    fn ordinary_histories_fit_and_have_a_version_at_each_time() {
        for part in [Part::Sync, Part::Analysis] {
            for memory in [128 << 20, MEMORY, 16 << 30] {
                let profile = Profile::of(part, memory).unwrap();
                assert!(profile.object_bytes() * 10 < memory * 7, "{part:?} {memory}");
                for number in 0..profile.timeframes {
                    for at in profile.timestamps(number).into_iter().flatten().step_by(9_999) {
                        assert!(profile.paths.iter().all(|path| path.right(at).is_some()), "{at}");
                    }
                }
            }
        }
    }

    #[test]
    fn each_cold_timeframe_needs_what_those_before_did_not() {
        let sync = Profile::of(Part::Sync, MEMORY).unwrap();
        let changing = &sync.paths[..15];
        let mut seen = std::collections::BTreeSet::new();
        for number in (0..sync.timeframes).step_by(10) {
            let at = sync.timestamps(number)[0].unwrap();
            let new = |path: &&PathPlan| {
                seen.insert((path.path.clone(), path.right(at).unwrap().created))
            };
            assert_eq!(changing.iter().filter(new).count(), 15, "timeframe {number}");
        }
    }

    #[test]
    fn the_adversary_has_borders_in_each_table_goes_back_and_leaves_gaps() {
        let profile = Profile::of(Part::Adversarial, MEMORY).unwrap();
        assert!(profile.object_bytes() > profile.memory_bytes);
        let at = |number: u64| profile.timestamps(number);
        assert!(at(1)[0].unwrap() < at(0)[0].unwrap());
        assert!(at(1)[0].unwrap() > at(1)[11].unwrap());
        assert_eq!(at(2)[13], None);
        let mut rows = at(3);
        rows.sort_unstable();
        rows.dedup();
        assert_eq!(rows.len(), 101, "100 times and no time");
        let mut gaps = 0;
        for number in 0..profile.timeframes {
            for path in &profile.paths {
                let right = at(number).into_iter().flatten().map(|at| path.right(at));
                let mut right: Vec<_> = right.map(|one| one.map(|one| one.created)).collect();
                gaps += right.iter().filter(|one| one.is_none()).count();
                right.dedup();
                assert!(right.len() > 1, "{} in timeframe {number}", path.path);
            }
        }
        assert!(gaps > 0);
        assert!(profile.paths[0].versions.len() > 256);
    }
}
