//! Ranges of time, given by two times or by a run.

use serde::{Deserialize, Serialize};

use crate::error::Code;
use crate::index::Timestamps;
use crate::interval::{Timestamp, ValidityInterval};

/// A range is not valid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct RangeError {
    /// The reason, in words.
    pub reason: String,
}

/// JSON of a range: `{"from", "until", "step", "gap"}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RangeRequest {
    /// Start of the range, inclusive, in milliseconds since 1970.
    pub from: Timestamp,
    /// End of the range, exclusive, in milliseconds since 1970.
    pub until: Timestamp,
    /// Milliseconds from row to row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<i64>,
    /// View intervals: longest pause in milliseconds between two neighbouring timestamps that the
    /// spans will be joined with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gap: Option<i64>,
}

/// Code of the error for a range with spans that are shorter than its `gap`.
pub const SHORT_SPAN: Code = Code(2013);

impl RangeRequest {
    /// Maximum number of rows of a range, that of any table.
    pub const MAX_ROWS: u64 = Timestamps::MAX_ROWS as u64;

    pub(super) fn wrong(reason: String) -> RangeError {
        RangeError { reason }
    }

    /// The span from `from` to `until`.
    ///
    /// # Errors
    /// [`RangeError`] if `from` is not before `until`.
    pub fn interval(&self) -> Result<ValidityInterval, RangeError> {
        ValidityInterval::new(self.from, self.until).map_err(|error| Self::wrong(error.to_string()))
    }

    /// One timestamp per step, from `from` (inside) to `until` (not inside). The timestamps are
    /// computed, not stored.
    ///
    /// # Errors
    /// [`RangeError`] if the range has no step, or too many rows.
    pub fn timestamps(&self) -> Result<Timestamps, RangeError> {
        let interval = self.interval()?;
        let Some(step) = self.step else {
            return Err(Self::wrong("it needs a step, except in the view intervals".into()));
        };
        if step <= 0 {
            return Err(Self::wrong(format!("step is {step}, it must be positive")));
        }
        let (from, until) = (interval.from().as_millis(), interval.until().as_millis());
        let rows = until.abs_diff(from).div_ceil(step.unsigned_abs());
        if rows > Self::MAX_ROWS {
            let most = Self::MAX_ROWS;
            return Err(Self::wrong(format!("it has {rows} rows, at most {most} are possible")));
        }
        Ok(Timestamps::stepped(interval.from(), step.unsigned_abs(), rows as usize))
    }
}

/// The time span of a run, looked up by the number of the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunRange {
    /// Number of the run.
    pub run: i64,
    /// Milliseconds from row to row; `None`: the effective spans are requested.
    pub step: Option<i64>,
}

/// JSON of a range: `{"from", "until", "step", "gap"}` or `{"run", "step"}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RawRange", into = "RawRange")]
pub(crate) enum RequestedRange {
    Times(RangeRequest),
    Run { run: RunRange, gap: Option<i64> },
}

impl RequestedRange {
    pub(super) fn step(&self) -> Option<i64> {
        match self {
            Self::Times(range) => range.step,
            Self::Run { run, .. } => run.step,
        }
    }

    pub(super) fn gap(&self) -> Option<i64> {
        match self {
            Self::Times(range) => range.gap,
            Self::Run { gap, .. } => *gap,
        }
    }
}

/// A range as it stands in JSON, before its fields are checked against each other.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRange {
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    until: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    run: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    step: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gap: Option<i64>,
}

impl From<RequestedRange> for RawRange {
    fn from(range: RequestedRange) -> Self {
        let (step, gap) = (range.step(), range.gap());
        let (from, until, run) = match range {
            RequestedRange::Times(range) => (Some(range.from), Some(range.until), None),
            RequestedRange::Run { run, .. } => (None, None, Some(run.run)),
        };
        Self { from, until, run, step, gap }
    }
}

impl TryFrom<RawRange> for RequestedRange {
    type Error = String;

    fn try_from(raw: RawRange) -> Result<Self, String> {
        let RawRange { from, until, run, step, gap } = raw;
        match (from, until, run) {
            (Some(from), Some(until), None) => {
                Ok(Self::Times(RangeRequest { from, until, step, gap }))
            }
            (None, None, Some(run)) => Ok(Self::Run { run: RunRange { run, step }, gap }),
            (_, _, Some(_)) => Err("a range has either run, or from and until".to_owned()),
            (None, ..) => Err("missing field `from`".to_owned()),
            (_, None, _) => Err("missing field `until`".to_owned()),
        }
    }
}
