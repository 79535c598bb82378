//! The bodies of the actions and of DoPut, and what they answer.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use super::column::{ColumnList, ColumnRequest};
use super::limits::{AtMost, RequestLimits};
use super::range::RangeRequest;
use super::request::{Columns, RequestError, parse_json};
use crate::interval::ValidityInterval;
use crate::object::ObjectPath;

/// Why an action is none.
pub type ActionError = RequestError;

/// `consumed`: who is done with what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Consumed {
    /// With one timeframe.
    One {
        /// Which.
        timeframe: u64,
        /// Who.
        consumer: String,
    },
    /// With all below one.
    Below {
        /// The first with which it may not be done.
        oldest_possible: u64,
        /// Who.
        consumer: String,
    },
}

impl Consumed {
    /// From `{"timeframe", "consumer"}` or `{"consumer", "oldest_possible"}`.
    ///
    /// # Errors
    /// [`RequestError`].
    pub fn parse(json: &[u8]) -> Result<Self, RequestError> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Raw {
            timeframe: Option<u64>,
            oldest_possible: Option<u64>,
            consumer: String,
        }
        const FIELDS: &str = "timeframe, oldest_possible";
        let Raw { timeframe, oldest_possible, consumer } = parse_json("consumed", json)?;
        match (timeframe, oldest_possible) {
            (Some(timeframe), None) => Ok(Self::One { timeframe, consumer }),
            (None, Some(oldest_possible)) => Ok(Self::Below { oldest_possible, consumer }),
            (None, None) => Err(RequestError::NoneOf { fields: FIELDS }),
            (Some(_), Some(_)) => Err(RequestError::TooMany { fields: FIELDS }),
        }
    }
}

/// What `consumed` answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsumedAnswer {
    /// The timeframes of which this was the last consumer.
    pub dropped: Vec<u64>,
    /// How many are in flight now.
    pub in_flight: u64,
}

/// `prefetch`: what to load before it is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prefetch {
    /// Which columns.
    pub columns: Columns,
    /// For which time.
    pub range: ValidityInterval,
}

impl Prefetch {
    /// From `{"columns" or "table", "range": {"from", "until"}}`.
    ///
    /// # Errors
    /// [`RequestError`].
    pub fn parse(json: &[u8]) -> Result<Self, RequestError> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Raw {
            columns: Option<ColumnList>,
            table: Option<String>,
            range: RangeRequest,
        }
        let Raw { columns, table, range } = parse_json("prefetch", json)?;
        if range.step.is_some() || range.gap.is_some() {
            let reason = "a prefetch has neither step nor gap".to_owned();
            return Err(RequestError::Field { field: "range", reason });
        }
        match Columns::of(columns, table)? {
            Columns::Registered => Err(RequestError::NoneOf { fields: "columns, table" }),
            columns => Ok(Self { columns, range: range.interval()? }),
        }
    }
}

/// `invalidate`: forget what is known of a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Invalidate {
    /// Which.
    pub path: ObjectPath,
}

/// `drop_timeframe`: whoever still waits for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DropTimeframe {
    /// Which.
    pub timeframe: u64,
}

/// `release`: a lease is not needed any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Release {
    /// Which.
    pub lease: String,
}

/// `{}`, of `segments` and `status`.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nothing {}

/// What `segments` answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentsAnswer {
    /// The instance.
    pub epoch: String,
    /// Where the attach socket is, if there is one.
    pub attach: Option<String>,
    /// All of them.
    pub segments: Vec<crate::shm::attach::SegmentEntry>,
}

/// What a timeframe is registered with, beside its timestamps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Register {
    /// Which columns.
    pub columns: Columns,
    /// For whom it waits; empty: for whoever asks.
    pub consumers: Vec<String>,
}

impl Register {
    /// Bytes of memory that its names and columns take, about.
    #[cfg(feature = "cache")]
    pub(crate) fn memory_bytes(&self) -> u64 {
        let columns = match &self.columns {
            Columns::Own(columns) => columns.iter().map(ColumnRequest::memory_bytes).sum(),
            Columns::Table(_) | Columns::Registered => 0,
        };
        let names: usize = self.consumers.iter().map(|name| name.len() + 200).sum();
        columns + names as u64
    }

    /// A registration with these columns.
    pub fn new(
        columns: impl IntoIterator<Item = ColumnRequest>,
        consumers: impl IntoIterator<Item = impl Into<String>>,
    ) -> Self {
        let columns = Columns::Own(columns.into_iter().collect());
        Self { columns, consumers: consumers.into_iter().map(Into::into).collect() }
    }

    /// From `{"columns" or "table", "consumers": […]}`.
    ///
    /// # Errors
    /// [`RequestError`].
    pub fn parse(json: &[u8]) -> Result<Self, RequestError> {
        let message = parse_json("registration of a timeframe", json)?;
        let RegisterMessage { columns, table, consumers } = message;
        let consumers = consumers.map(|AtMost(consumers)| consumers).unwrap_or_default();
        let most = RequestLimits::MOST.name_bytes;
        let mut seen = HashSet::with_capacity(consumers.len());
        for name in &consumers {
            let wrong = if name.is_empty() || name.len() > most {
                Some(format!("a name has 1 to {most} bytes, not {}", name.len()))
            } else if !seen.insert(name) {
                Some(format!("{name:?} stands twice"))
            } else {
                None
            };
            if let Some(reason) = wrong {
                return Err(RequestError::Field { field: "consumers", reason });
            }
        }
        match Columns::of(columns, table)? {
            Columns::Registered => Err(RequestError::NoneOf { fields: "columns, table" }),
            columns => Ok(Self { columns, consumers }),
        }
    }

    /// The registration as it crosses the wire (`schemas/register-timeframe.schema.json`).
    pub fn to_json(&self) -> String {
        let (columns, table) = match self.columns.clone() {
            Columns::Own(columns) => (Some(ColumnList(columns)), None),
            Columns::Table(table) => (None, Some(table)),
            Columns::Registered => (None, None),
        };
        let consumers = Some(AtMost(self.consumers.clone()));
        // Strings alone: nothing in them can fail.
        serde_json::to_string(&RegisterMessage { columns, table, consumers }).unwrap_or_default()
    }
}

/// A registration field by field.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RegisterMessage {
    #[serde(skip_serializing_if = "Option::is_none")]
    columns: Option<ColumnList>,
    #[serde(skip_serializing_if = "Option::is_none")]
    table: Option<String>,
    consumers: Option<AtMost<String, { RequestLimits::MOST.consumers }>>,
}

/// What DoPut answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PutAnswer {
    /// The timeframe.
    pub timeframe: u64,
    /// Its timestamps.
    pub rows: u64,
    /// Its distinct objects.
    pub objects: u64,
    /// How far it is: loading, ready, delivered; consumed, if all of its consumers are done with it
    /// already.
    pub state: String,
}

/// The body of an action.
///
/// # Errors
/// [`RequestError`], which names unknown fields.
pub fn parse_action<'a, T: Deserialize<'a>>(
    name: &'static str,
    json: &'a [u8],
) -> Result<T, RequestError> {
    parse_json(name, json)
}

/// The actions that there are, each with a word on it.
#[doc(hidden)]
pub const fn action_types() -> &'static [(&'static str, &'static str)] {
    &[
        ("consumed", "a consumer is done with a timeframe, or with all below one"),
        ("prefetch", "load what a range of time needs, before it is asked for"),
        ("invalidate", "forget what is known of a path and ask the source again"),
        ("drop_timeframe", "drop a timeframe, whoever still waits for it"),
        ("release", "end a lease"),
        ("segments", "the segments of shared memory"),
        ("status", "memory, timeframes, sessions, sources"),
        ("check", "whether pins, places and bytes add up"),
        ("CancelFlightInfo", "end the lease of a ticket"),
        ("RenewFlightEndpoint", "give the lease of a ticket its time anew"),
    ]
}
