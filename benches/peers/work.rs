//! The work, which is the same for all.

use std::fmt;
use std::hint::black_box;
use std::time::{Duration, Instant};

/// Bytes of each object that is looked up by its key.
pub(crate) const SMALL_BYTES: usize = 64;
const PAGE_BYTES: usize = 4096;

/// How much of what.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Work {
    pub(crate) keys: usize,
    pub(crate) large: usize,
    pub(crate) large_bytes: usize,
    pub(crate) stored: usize,
    pub(crate) stored_bytes: usize,
    /// The median of so many counts; one before them does not.
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

    /// The numbers in this order: how another program is told.
    pub(crate) fn arguments(&self) -> [String; 6] {
        let Self { keys, large, large_bytes, stored, stored_bytes, rounds } = *self;
        [keys, large, large_bytes, stored, stored_bytes, rounds].map(|number| number.to_string())
    }
}

/// How long all of a work took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Took {
    pub(crate) look_up: Duration,
    pub(crate) get: Duration,
    pub(crate) store: Duration,
}

impl Took {
    /// What another program says: three numbers of nanoseconds.
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

/// Why there is no figure.
#[derive(Debug)]
pub(crate) enum Left {
    /// The peer is not on this machine.
    NotThere(String),
    Failed(String),
}

/// Anything that goes wrong while a peer that is there does its work.
impl<E: fmt::Display> From<E> for Left {
    fn from(error: E) -> Self {
        Self::Failed(error.to_string())
    }
}

/// Reads one byte of each page, as who uses the bytes would.
pub(crate) fn touch(bytes: &[u8]) -> u64 {
    bytes.iter().step_by(PAGE_BYTES).map(|byte| u64::from(*byte)).sum()
}

/// The median of the rounds; the first one is not counted.
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
