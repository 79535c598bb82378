//! The objects: synthetic ones, or those of a manifest.

use std::fs;
use std::path::Path;

use iovcache::source::repository::{NewVersion, RepositoryWriter, import};
use iovcache::{ObjectPath, Timestamp, ValidityInterval};

use crate::Outcome;
use crate::columns::{CONFIGURATION, RUN_NUMBER};
use crate::plan::{FIRST_RUN, RUNS};

/// Synthetic objects: a number of paths, each with versions that follow and overlap each other.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Generated {
    pub(crate) paths: i64,
    pub(crate) versions: i64,
    /// Time between the beginnings of two versions.
    pub(crate) step_millis: i64,
    pub(crate) object_bytes: usize,
}

impl Generated {
    pub(crate) fn path(number: i64) -> String {
        format!("Generated/Calib/Object{number}")
    }

    /// Writes all of them into a repository, and returns the paths.
    pub(crate) fn write(&self, repository: &Path) -> Outcome<Vec<String>> {
        let writer = RepositoryWriter::new(repository)?;
        let mut paths = Vec::new();
        for path in 0..self.paths {
            for number in 0..self.versions {
                let (version, seed) = self.version(path, number)?;
                writer.put(&version, &mut &bytes(seed, self.object_bytes)[..])?;
            }
            paths.push(Self::path(path));
        }
        Ok(paths)
    }

    fn version(&self, path: i64, number: i64) -> Outcome<(NewVersion, u64)> {
        let step = self.step_millis;
        // The borders differ between paths, and none is a round number.
        let from = (number + 1) * step - path * step / 7;
        // Every third version reaches far into the next one, and wins or loses there; every
        // eleventh ends early, so that for a while only the versions that reach that far are valid.
        let until = match number % 33 {
            n if n % 3 == 0 => from + step * 3 / 2,
            n if n % 11 == 10 => from + step * 2 / 3,
            _ => from + step,
        };
        let created = 1_000_000 + (number * 7_919 + path) % 1_000;
        let [from, until, created] = [from, until, created].map(Timestamp::from_millis);
        let version = NewVersion {
            path: ObjectPath::new(&Self::path(path))?,
            validity: ValidityInterval::new(from, until)?,
            created,
            id: None,
            file_name: "object".to_owned(),
            metadata: Default::default(),
        };
        Ok((version, (path as u64) << 32 | number as u64))
    }
}

/// Versions that each run has.
const VERSIONS_OF_RUN: i64 = 12;
const BYTES_OF_RUN: usize = 20_000;
/// Apart from the seeds of other objects.
const SEEDS_OF_RUNS: u64 = 1 << 60;

/// Writes the objects that are for one run each: the runs overlap in time, and each has versions over
/// the time between the first and the last of `borders`.
pub(crate) fn of_runs(repository: &Path, borders: &[i64]) -> Outcome<()> {
    let (Some(&first), Some(&last)) = (borders.first(), borders.last()) else { return Ok(()) };
    let writer = RepositoryWriter::new(repository)?;
    let step = (last - first) / VERSIONS_OF_RUN + 1;
    for run in 0..RUNS {
        for number in 0..VERSIONS_OF_RUN {
            // The borders differ between runs.
            let from = first + number * step + run * step / (RUNS + 1);
            // Some reach into the next one and win there, and some end early.
            let until = match number % 4 {
                1 => from + step * 3 / 2,
                3 => from + step * 3 / 4,
                _ => from + step,
            };
            let created = 2_000_000 + (number * 7_919) % 1_000;
            let [from, until, created] =
                [from, until.max(from + 1), created].map(Timestamp::from_millis);
            let version = NewVersion {
                path: ObjectPath::new(CONFIGURATION)?,
                validity: ValidityInterval::new(from, until)?,
                created,
                id: None,
                file_name: "object".to_owned(),
                metadata: [(RUN_NUMBER.to_owned(), (FIRST_RUN + run).to_string())].into(),
            };
            let seed = SEEDS_OF_RUNS | (run as u64) << 32 | number as u64;
            writer.put(&version, &mut &bytes(seed, BYTES_OF_RUN)[..])?;
        }
    }
    Ok(())
}

/// Bytes that are unique to a seed.
fn bytes(seed: u64, count: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.flatten().take(count).collect()
}

/// Imports the objects of `folder/manifest.csv`, and returns their paths.
pub(crate) fn of_manifest(folder: &Path, repository: &Path) -> Outcome<Vec<String>> {
    let manifest = folder.join("manifest.csv");
    import(&manifest, &RepositoryWriter::new(repository)?, |_| {})?;
    let text = fs::read_to_string(&manifest)?;
    let mut paths: Vec<String> = text
        .lines()
        .skip(1)
        .filter_map(|line| line.split(',').next())
        .filter(|path| !path.is_empty())
        .map(|path| path.trim_matches('"').to_owned())
        .collect();
    paths.sort();
    paths.dedup();
    Ok(paths)
}
