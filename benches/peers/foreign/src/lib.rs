//! The work as given on the command line, and how it is measured.

use std::error::Error;
use std::hint::black_box;
use std::path::PathBuf;
use std::time::Instant;

/// Any error.
pub type Failure = Box<dyn Error>;

/// Bytes of each object that is looked up by key.
pub const SMALL_BYTES: usize = 64;
const PAGE_BYTES: usize = 4096;

/// Sizes of the work, and the folder for files.
#[derive(Debug, Clone)]
pub struct Work {
    pub folder: PathBuf,
    pub keys: usize,
    pub large: usize,
    pub large_bytes: usize,
    pub stored: usize,
    pub stored_bytes: usize,
    pub rounds: usize,
}

impl Work {
    /// `FOLDER KEYS LARGE LARGE_BYTES STORED STORED_BYTES ROUNDS`.
    ///
    /// # Errors
    /// If the arguments differ from that.
    pub fn of_arguments(arguments: &[String]) -> Result<Self, Failure> {
        let [folder, numbers @ ..] = arguments else { return Err("no arguments".into()) };
        let numbers: Vec<usize> =
            numbers.iter().map(|number| number.parse()).collect::<Result<_, _>>()?;
        let [keys, large, large_bytes, stored, stored_bytes, rounds] = numbers[..] else {
            return Err("expected a folder and six numbers".into());
        };
        let folder = folder.into();
        Ok(Self { folder, keys, large, large_bytes, stored, stored_bytes, rounds })
    }
}

/// Reads one byte of each page.
pub fn touch(bytes: &[u8]) -> u64 {
    bytes.iter().step_by(PAGE_BYTES).map(|byte| u64::from(*byte)).sum()
}

/// The median of the rounds in nanoseconds; the first one is not counted.
///
/// # Errors
/// The error of a round.
pub fn median(
    rounds: usize,
    mut turn: impl FnMut() -> Result<u64, Failure>,
) -> Result<u128, Failure> {
    let mut took = Vec::new();
    for _ in 0..=rounds {
        let began = Instant::now();
        black_box(turn()?);
        took.push(began.elapsed().as_nanos());
    }
    let mut counted = took.split_off(1);
    counted.sort_unstable();
    Ok(counted[counted.len() / 2])
}
