//! Objects whose bytes follow from their names, and reproducible random numbers.

use std::path::Path;

use iovcache::source::repository::{NewVersion, RepositoryWriter};
use iovcache::{ObjectPath, Timestamp, ValidityInterval};

/// Number of paths.
pub(crate) const PATHS: u64 = 12;
/// Number of versions of each: version `n` is valid from `n * 10` to `n * 10 + 10`.
pub(crate) const VERSIONS: u64 = 8;

/// The path of a number.
pub(crate) fn path(number: u64) -> String {
    format!("Fault/Path{number}")
}

/// The bytes of the version of a path that is valid at a time.
pub(crate) fn bytes_at(path: u64, at: i64) -> Vec<u8> {
    bytes_of(path, at as u64 / 10)
}

/// The bytes of a version: 20 kB to 120 kB, different for each.
pub(crate) fn bytes_of(path: u64, version: u64) -> Vec<u8> {
    let mut chance = Chance::new(path * VERSIONS + version);
    let size = 20_000 + chance.below(100_000);
    let words = (0..size / 8 + 1).flat_map(|_| chance.next().to_le_bytes());
    words.take(size as usize).collect()
}

/// Fills a repository with all objects.
pub(crate) fn fill(repository: &Path) {
    let writer = RepositoryWriter::new(repository).unwrap();
    for number in 0..PATHS {
        for version in 0..VERSIONS {
            let from = version as i64 * 10;
            let [from, until] = [from, from + 10].map(Timestamp::from_millis);
            let new = NewVersion {
                path: ObjectPath::new(&path(number)).unwrap(),
                validity: ValidityInterval::new(from, until).unwrap(),
                created: Timestamp::from_millis(1),
                id: None,
                file_name: "object".to_owned(),
                metadata: Default::default(),
            };
            writer.put(&new, &mut &bytes_of(number, version)[..]).unwrap();
        }
    }
}

/// Random numbers from a seed (splitmix64).
#[derive(Debug, Clone)]
pub(crate) struct Chance(u64);

impl Chance {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Seeded from `IOVCACHE_FAULTS_SEED`, else from the clock; prints the seed, so that a run can
    /// be repeated.
    pub(crate) fn of_the_test(name: &str) -> Self {
        let given = std::env::var("IOVCACHE_FAULTS_SEED").ok();
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let seed = given.map_or(now.as_nanos() as u64, |seed| seed.parse().unwrap());
        eprintln!("{name}: IOVCACHE_FAULTS_SEED={seed}");
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        word ^ (word >> 31)
    }

    /// Below `limit`.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// True in one of `count` cases on average.
    pub(crate) fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }
}

/// Number of kills of a random test: `quick`, unless the environment variable is set.
pub(crate) fn count_of(variable: &str, quick: u64) -> u64 {
    std::env::var(variable).map_or(quick, |count| count.parse().unwrap())
}
