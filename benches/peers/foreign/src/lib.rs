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
    pub few: usize,
    pub many: usize,
    pub keys: usize,
    pub large: usize,
    pub large_bytes: usize,
    pub stored: usize,
    pub stored_bytes: usize,
    pub rounds: usize,
}

impl Work {
    /// `FOLDER FEW MANY KEYS LARGE LARGE_BYTES STORED STORED_BYTES ROUNDS`.
    ///
    /// # Errors
    /// If the arguments differ from that.
    pub fn of_arguments(arguments: &[String]) -> Result<Self, Failure> {
        let [folder, numbers @ ..] = arguments else { return Err("no arguments".into()) };
        let numbers: Vec<usize> =
            numbers.iter().map(|number| number.parse()).collect::<Result<_, _>>()?;
        let [few, many, keys, large, large_bytes, stored, stored_bytes, rounds] = numbers[..]
        else {
            return Err("expected a folder and eight numbers".into());
        };
        let folder = folder.into();
        Ok(Self { folder, few, many, keys, large, large_bytes, stored, stored_bytes, rounds })
    }
}

/// Look-ups of one object each that a round makes.
pub const LOOK_UPS: usize = 100_000;

/// The numbers of [`LOOK_UPS`] objects of `count`, at random; the same as in the bench.
pub fn at_random(count: usize) -> impl Iterator<Item = usize> {
    let step = |state: &u64| {
        Some(state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407))
    };
    let states = std::iter::successors(Some(1_u64), step);
    states.take(LOOK_UPS).map(move |state| (state >> 33) as usize % count)
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
