//! The work, which all peers share.

use std::fmt;
use std::hint::black_box;
use std::time::{Duration, Instant};

/// Versions of each path among many objects.
pub(crate) const VERSIONS: usize = 1_000;
/// Bytes of each object that is looked up by key.
pub(crate) const SMALL_BYTES: usize = 64;
const PAGE_BYTES: usize = 4096;

/// Sizes of the work.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Work {
    /// Objects of 64 bytes that are looked up one at a time, in the processor's cache.
    pub(crate) few: usize,
    /// The same, at random in memory.
    pub(crate) many: usize,
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
        few: 1_000,
        many: 1_000_000,
        keys: 10_000,
        large: 100,
        large_bytes: 8 << 20,
        stored: 1_000,
        stored_bytes: 64 << 10,
        rounds: 7,
    };
    pub(crate) const QUICK: Self = Self {
        few: 100,
        many: 10_000,
        keys: 1_000,
        large: 4,
        large_bytes: 1 << 20,
        stored: 50,
        rounds: 1,
        ..Self::FULL
    };

    /// The numbers in this order: the arguments of another program.
    pub(crate) fn arguments(&self) -> [String; 8] {
        let Self { few, many, keys, large, large_bytes, stored, stored_bytes, rounds } = *self;
        [few, many, keys, large, large_bytes, stored, stored_bytes, rounds]
            .map(|number| number.to_string())
    }
}

/// Look-ups of one object each that a round makes.
pub(crate) const LOOK_UPS: usize = 100_000;

/// The numbers of [`LOOK_UPS`] objects of `count`, at random.
pub(crate) fn at_random(count: usize) -> impl Iterator<Item = usize> {
    let step = |state: &u64| {
        let next =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        Some(next)
    };
    let states = std::iter::successors(Some(1_u64), step);
    states.take(LOOK_UPS).map(move |state| (state >> 33) as usize % count)
}

/// Durations of the parts of the work; `None`: the peer has no such part.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Took {
    /// [`LOOK_UPS`] objects of few, one at a time.
    pub(crate) few: Option<Duration>,
    /// [`LOOK_UPS`] objects of many, one at a time.
    pub(crate) many: Option<Duration>,
    /// All keys.
    pub(crate) look_up: Option<Duration>,
    pub(crate) get: Option<Duration>,
    pub(crate) store: Option<Duration>,
}

impl Took {
    /// Parses the output of another program: five numbers of nanoseconds, or `-`.
    pub(crate) fn parse(text: &str) -> Result<Self, Left> {
        let number = |word: &str| match word {
            "-" => Ok(None),
            word => word.parse().map(|nanos| Some(Duration::from_nanos(nanos))),
        };
        let numbers = text.split_ascii_whitespace().map(number).collect::<Result<Vec<_>, _>>()?;
        match numbers[..] {
            [few, many, look_up, get, store] => Ok(Self { few, many, look_up, get, store }),
            _ => Err(Left::Failed(format!("it said {text:?}, expected five numbers"))),
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
