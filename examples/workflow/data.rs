//! The objects: synthetic ones, or those of a manifest.

use std::fs;
use std::path::Path;

use iovcache::source::repository::{NewVersion, RepositoryWriter, import};
use iovcache::{ObjectPath, Timestamp, ValidityInterval};

use crate::Outcome;

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
