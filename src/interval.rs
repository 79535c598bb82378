//! Timestamps, and the half-open intervals in which versions are valid.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::coded;

/// A point in time: milliseconds since the Unix epoch, UTC, as in CCDB and ALICE's timeframes.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Timestamp(i64);

impl Timestamp {
    /// The earliest timestamp.
    pub const MIN: Self = Self(i64::MIN);
    /// The latest timestamp. No half-open interval contains it; as `until` it means 'without end'.
    pub const MAX: Self = Self(i64::MAX);

    /// From milliseconds since the Unix epoch.
    pub const fn from_millis(millis: i64) -> Self {
        Self(millis)
    }

    /// Milliseconds since the Unix epoch.
    pub const fn as_millis(self) -> i64 {
        self.0
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The time span in which one version of an object is valid: `from` is inside, `until` is not.
///
/// ```
/// # use iovcache::{Timestamp, ValidityInterval};
/// let at = Timestamp::from_millis;
/// let iov = ValidityInterval::new(at(10), at(20))?;
/// assert!(iov.contains(at(10)) && iov.contains(at(19)) && !iov.contains(at(20)));
/// assert!(ValidityInterval::new(at(10), at(10)).is_err());
/// # Ok::<(), iovcache::interval::EmptyInterval>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ValidityInterval {
    from: Timestamp,
    until: Timestamp,
}

impl ValidityInterval {
    /// The longest half-open interval.
    pub const ALL: Self = Self { from: Timestamp::MIN, until: Timestamp::MAX };

    /// The interval `[from, until)`.
    ///
    /// # Errors
    /// [`EmptyInterval`] unless `from < until`.
    pub const fn new(from: Timestamp, until: Timestamp) -> Result<Self, EmptyInterval> {
        if from.0 < until.0 { Ok(Self { from, until }) } else { Err(EmptyInterval { from, until }) }
    }

    /// The first millisecond inside.
    pub const fn from(self) -> Timestamp {
        self.from
    }

    /// The first millisecond that is no longer inside.
    pub const fn until(self) -> Timestamp {
        self.until
    }

    /// Whether `from <= at < until`.
    pub const fn contains(self, at: Timestamp) -> bool {
        self.from.0 <= at.0 && at.0 < self.until.0
    }

    /// The intersection of both intervals, unless it is empty.
    pub fn intersection(self, other: Self) -> Option<Self> {
        Self::new(self.from.max(other.from), self.until.min(other.until)).ok()
    }
}

impl fmt::Display for ValidityInterval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}, {})", self.from, self.until)
    }
}

/// `from` is not before `until`: such an interval is empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an interval needs from < until, got [{from}, {until})")]
pub struct EmptyInterval {
    /// The given begin.
    pub from: Timestamp,
    /// The given end.
    pub until: Timestamp,
}

coded! { EmptyInterval => InvalidArgument 2001 }
