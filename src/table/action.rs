//! Bodies of the actions and of DoPut, and their answers.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use super::column::{ColumnList, ColumnRequest};
use super::limits::{AtMost, RequestLimits};
use super::range::RangeRequest;
use super::request::{Columns, RequestError, parse_json};
use crate::interval::ValidityInterval;
use crate::object::ObjectPath;

/// Body of `consumed`: a consumer has finished with one timeframe or with all older ones.
///
/// A timeframe is dropped when each of its consumers has finished with it. A repeated report is no
/// error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Consumed {
    /// The consumer has finished with one timeframe.
    One {
        /// Id of the timeframe.
        timeframe: u64,
        /// Name of the consumer.
        consumer: String,
    },
    /// The consumer has finished with all timeframes below an id.
    Below {
        /// The oldest timeframe that the consumer may still need.
        oldest_possible: u64,
        /// Name of the consumer.
        consumer: String,
    },
}

/// Body of the action `consumed`: a [`Consumed`], and of one timeframe the registration whose table
/// the consumer had, if it knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ConsumptionReport {
    pub(crate) consumed: Consumed,
    /// `iovcache.registration` in the schema of the table.
    pub(crate) registration: Option<u64>,
}

impl ConsumptionReport {
    /// From `{"timeframe", "consumer", "registration"?}` or `{"consumer", "oldest_possible"}`.
    ///
    /// # Errors
    /// [`RequestError`]: no JSON of one of these forms, or an unknown field, which it names.
    pub(crate) fn parse(json: &[u8]) -> Result<Self, RequestError> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Raw {
            timeframe: Option<u64>,
            oldest_possible: Option<u64>,
            consumer: String,
            registration: Option<u64>,
        }
        const FIELDS: &str = "timeframe, oldest_possible";
        let Raw { timeframe, oldest_possible, consumer, registration } =
            parse_json("consumed", json)?;
        let consumed = match (timeframe, oldest_possible) {
            (Some(timeframe), None) => Consumed::One { timeframe, consumer },
            (None, Some(_)) if registration.is_some() => {
                return Err(RequestError::TooMany { fields: "oldest_possible, registration" });
            }
            (None, Some(oldest_possible)) => Consumed::Below { oldest_possible, consumer },
            (None, None) => return Err(RequestError::NoneOf { fields: FIELDS }),
            (Some(_), Some(_)) => return Err(RequestError::TooMany { fields: FIELDS }),
        };
        Ok(Self { consumed, registration })
    }
}

impl Consumed {
    /// From `{"timeframe", "consumer"}` or `{"consumer", "oldest_possible"}`.
    ///
    /// # Errors
    /// [`RequestError`]: no JSON of one of these forms, or an unknown field, which it names.
    pub fn parse(json: &[u8]) -> Result<Self, RequestError> {
        ConsumptionReport::parse(json).map(|report| report.consumed)
    }
}

/// Answer of `consumed`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsumedAnswer {
    /// Ids of the timeframes that were dropped, because this was their last consumer.
    pub dropped: Vec<u64>,
    /// Number of timeframes in flight now.
    pub in_flight: u64,
}

/// Body of `prefetch`: load objects before they are requested. They are not pinned: until a request
/// uses them they can be evicted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prefetch {
    /// The columns to load.
    pub columns: Columns,
    /// The span of time to load them for.
    pub range: ValidityInterval,
}

impl Prefetch {
    /// From `{"columns" or "table", "range": {"from", "until"}}`; times in milliseconds since the
    /// Unix epoch, `until` not inside.
    ///
    /// # Errors
    /// [`RequestError`]: malformed JSON, an unknown field, a range that is empty or has a step, or
    /// neither columns nor a table.
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

/// Body of `invalidate`: discard the known versions of a path, so that the next request looks them
/// up at the source. Pinned objects stay readable for their holders.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Invalidate {
    /// The object path.
    pub path: ObjectPath,
}

/// Body of `drop_timeframe`: drop a timeframe even if consumers still wait for it. Its pins end,
/// and its id can be registered anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DropTimeframe {
    /// Id of the timeframe.
    pub timeframe: u64,
}

/// Body of `release`: end a lease, and with it the pins of its table. A lease that is unknown or
/// has ended is FAILED_PRECONDITION.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Release {
    /// Id of the lease.
    pub lease: String,
}

/// Body of `segments` and `status`: `{}`.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoFields {}

/// Answer of `segments`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentsAnswer {
    /// Epoch of the service instance.
    pub epoch: String,
    /// Path of the attach socket, if there is one.
    pub attach: Option<String>,
    /// All segments and regions of the instance.
    pub segments: Vec<crate::shm::attach::SegmentEntry>,
}

/// Registration of a timeframe, without its timestamps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Register {
    /// The columns.
    pub columns: Columns,
    /// Names of the consumers that must finish with the timeframe; empty: the first consumer that
    /// asks.
    pub consumers: Vec<String>,
}

impl Register {
    /// Approximate memory of the names and columns, in bytes.
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

    /// From `{"columns" or "table", "consumers": […]}`; at most 1,000 consumers.
    ///
    /// # Errors
    /// [`RequestError`]: malformed JSON, an unknown field, or a value over its limit.
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
                Some(format!("{name:?} occurs twice"))
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

/// Answer of DoPut.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PutAnswer {
    /// Id of the timeframe.
    pub timeframe: u64,
    /// Number of its timestamps.
    pub rows: u64,
    /// Number of its distinct objects.
    pub objects: u64,
    /// State of the timeframe: `loading`, `ready` or `delivered`; `consumed` if all of its
    /// consumers have finished with it already.
    pub state: String,
}

/// Parses the body of the action `name`.
///
/// # Errors
/// [`RequestError`], which names unknown fields.
pub fn parse_action<'a, T: Deserialize<'a>>(
    name: &'static str,
    json: &'a [u8],
) -> Result<T, RequestError> {
    parse_json(name, json)
}

/// Name and one-line description of each action.
#[doc(hidden)]
pub const fn action_types() -> &'static [(&'static str, &'static str)] {
    &[
        ("consumed", "a consumer is done with a timeframe, or with all below one"),
        ("prefetch", "load what a range of time needs, before it is asked for"),
        ("invalidate", "forget what is known of a path and ask the source again"),
        ("drop_timeframe", "drop a timeframe even if consumers still wait for it"),
        ("release", "end a lease"),
        ("segments", "the segments of shared memory"),
        ("status", "memory, timeframes, sessions, sources"),
        ("timeline", "the effective spans of a path, page by page; loads nothing"),
        ("check", "whether pins, places and bytes add up"),
        ("CancelFlightInfo", "end the lease of a ticket"),
        ("RenewFlightEndpoint", "give the lease of a ticket its time anew"),
    ]
}
