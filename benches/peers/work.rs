//! The work, which all peers share.

use std::fmt;
use std::hint::black_box;
use std::time::{Duration, Instant};

/// Bytes of each object that is looked up by key.
pub(crate) const SMALL_BYTES: usize = 64;
const PAGE_BYTES: usize = 4096;

/// Sizes of the work.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Work {
    pub(crate) keys: usize,
    pub(crate) large: usize,
    pub(crate) large_bytes: usize,
    pub(crate) stored: usize,
    pub(crate) stored_bytes: usize,
    /// Number of rounds whose median is reported; one round before them does not count.
    pub(crate) rounds: usize,
}

impl Work {
    pub(crate) const FULL: Self = Self {
        keys: 10_000,
        large: 100,
        large_bytes: 8 << 20,
        stored: 1_000,
        stored_bytes: 64 << 10,
        rounds: 7,
    };
    pub(crate) const QUICK: Self =
        Self { keys: 1_000, large: 4, large_bytes: 1 << 20, stored: 50, rounds: 1, ..Self::FULL };

    /// The numbers in this order: the arguments of another program.
    pub(crate) fn arguments(&self) -> [String; 6] {
        let Self { keys, large, large_bytes, stored, stored_bytes, rounds } = *self;
        [keys, large, large_bytes, stored, stored_bytes, rounds].map(|number| number.to_string())
    }
}

/// Durations of the three parts of the work.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Took {
    pub(crate) look_up: Duration,
    pub(crate) get: Duration,
    pub(crate) store: Duration,
}

impl Took {
    /// Parses the output of another program: three numbers of nanoseconds.
    pub(crate) fn parse(text: &str) -> Result<Self, Left> {
        let numbers: Vec<u64> =
            text.split_ascii_whitespace().filter_map(|number| number.parse().ok()).collect();
        match numbers[..] {
            [look_up, get, store] => {
                let [look_up, get, store] = [look_up, get, store].map(Duration::from_nanos);
                Ok(Self { look_up, get, store })
            }
            _ => Err(Left::Failed(format!("it said {text:?}, expected three numbers"))),
        }
    }
}

/// Why a figure is missing.
#[derive(Debug)]
pub(crate) enum Left {
    /// The peer is not installed on this machine.
    NotThere(String),
    Failed(String),
}

/// Any error while an installed peer does its work.
impl<E: fmt::Display> From<E> for Left {
    fn from(error: E) -> Self {
        Self::Failed(error.to_string())
    }
}

/// Reads one byte of each page, as a user of the bytes would.
pub(crate) fn touch(bytes: &[u8]) -> u64 {
    bytes.iter().step_by(PAGE_BYTES).map(|byte| u64::from(*byte)).sum()
}

/// The median of the rounds; the first does not count.
pub(crate) fn median(
    rounds: usize,
    mut turn: impl FnMut() -> Result<u64, Left>,
) -> Result<Duration, Left> {
    let mut took = Vec::new();
    for _ in 0..=rounds {
        let began = Instant::now();
        black_box(turn()?);
        took.push(began.elapsed());
    }
    let mut counted = took.split_off(1);
    counted.sort_unstable();
    Ok(counted[counted.len() / 2])
}
