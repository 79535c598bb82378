//! Errors of the cache: why a request fails.

use std::sync::Arc;

use crate::budget::OverBudget;
use crate::error::{Coded as _, coded};
use crate::interval::Timestamp;
use crate::object::{InvalidPath, ObjectId, ObjectPath};
use crate::shm::PoolError;
use crate::source::{ClaimError, SourceError};
use crate::table::{EncodeError, KeyError, RequestError, SHORT_SPAN, TimestampsError};

/// A column without a valid object at some timestamps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MissingColumn {
    /// The column.
    pub column: String,
    /// Its path.
    pub path: ObjectPath,
    /// The earliest timestamp without an object.
    pub first: Timestamp,
    /// The latest timestamp without an object.
    pub last: Timestamp,
    /// Number of rows without an object.
    pub rows: u64,
    /// Name and value of the key in the first row without an object, if the column depends on one.
    pub key: Option<String>,
}

impl std::fmt::Display for MissingColumn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { column, path, first, last, rows, key } = self;
        write!(f, "column {column:?} ({path}): {rows} rows, first at {first}, last at {last}")?;
        match key {
            Some(key) => write!(f, ", first with {key}"),
            None => Ok(()),
        }
    }
}

/// A column without a path for some values of its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnmatchedColumn {
    /// The column.
    pub column: String,
    /// Name of the key.
    pub key: String,
    /// The value in the first row without a path.
    pub value: String,
    /// The first row without a path.
    pub row: usize,
    /// Number of rows without a path.
    pub rows: u64,
}

impl std::fmt::Display for UnmatchedColumn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { column, key, value, row, rows } = self;
        write!(f, "column {column:?}: {rows} rows, first row {row} with {key}={value}")
    }
}

/// Maximum number of columns without a path in a message.
const MAX_UNMATCHED: usize = 64;

fn unmatched(columns: &[UnmatchedColumn]) -> String {
    let told = columns.iter().take(MAX_UNMATCHED).map(ToString::to_string);
    let more = columns.len().saturating_sub(MAX_UNMATCHED);
    let more = (more > 0).then(|| format!("and {more} more columns"));
    told.chain(more).collect::<Vec<_>>().join("; ")
}

/// Longer lists are shown in a short form: a gRPC status has room for a few kB.
const MAX_FULL: usize = 16;

fn list(columns: &[MissingColumn]) -> String {
    if columns.len() <= MAX_FULL {
        return columns.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
    }
    let short =
        |column: &MissingColumn| format!("{}={}..{}", column.column, column.first, column.last);
    let all = columns.iter().map(short).collect::<Vec<_>>().join(",");
    let count = columns.len();
    format!("{count} columns (name=first timestamp..last timestamp without one): {all}")
}

/// Why the cache rejects or fails a request.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum CacheError {
    /// The request is malformed.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The timestamps cannot be used.
    #[error(transparent)]
    Timestamps(#[from] TimestampsError),
    /// A path is malformed.
    #[error(transparent)]
    Path(#[from] InvalidPath),
    /// The table cannot be encoded in this layout.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// Some timestamps have no valid object.
    #[error("no object is valid for {}", list(columns))]
    Missing {
        /// Every column with missing objects.
        columns: Vec<MissingColumn>,
    },
    /// Values of a key are in no path range of a column, and the column has no fallback.
    #[error(
        "no path is configured for the value of the key in {}: add a range or a fallback, \
         or ask with \"missing\": \"null\"",
        unmatched(columns)
    )]
    NoPath {
        /// Every column without a path for some values of its key.
        columns: Vec<UnmatchedColumn>,
    },
    /// The source has no start and end of a run.
    #[error("the times of run {run} are not known: {path} at {run}: {reason}")]
    UnknownRun {
        /// The number of the run.
        run: i64,
        /// The path of the objects with the times of runs.
        path: ObjectPath,
        /// The missing fact.
        reason: String,
    },
    /// The table exceeds a limit on its look-ups.
    #[error(
        "the table has {queries} queries for its columns and the values of their keys, at most \
         {limit} are allowed; request fewer columns or fewer values at a time"
    )]
    TooManyQueries {
        /// Number of different queries.
        queries: usize,
        /// The limit.
        limit: usize,
    },
    /// A version is effective for less time than the gap between timestamps, so no timestamp may
    /// Length of the effective span in ms.
    #[error(
        "column {column:?} has a version that is effective for {span_ms} ms only, and the timestamps \
         are up to {gap_ms} ms apart: request the timestamps themselves"
    )]
    ShortSpan {
        /// The column.
        column: String,
        /// Length of the effective span.
        span_ms: u64,
        /// Largest gap between timestamps in ms, as given in the request.
        gap_ms: i64,
    },
    /// The source contradicts the lock file about a version.
    #[error("lock")]
    Claim(#[from] ClaimError),
    /// The memory outside the segments exceeds the budget of the client.
    #[error(transparent)]
    Budget(#[from] OverBudget),
    /// The configuration has no such table.
    #[error("no table {name:?} is configured; there are: {}", or_none(known))]
    UnknownTable {
        /// The requested name.
        name: String,
        /// Names of the configured tables.
        known: Vec<String>,
    },
    /// No such timeframe is in flight.
    #[error("timeframe {timeframe} is not in flight: not registered yet, or consumed and dropped")]
    UnknownTimeframe {
        /// The requested timeframe.
        timeframe: u64,
    },
    /// The timeframe is not registered for this consumer.
    #[error("timeframe {timeframe} has no consumer {consumer:?}; it has {}", known.join(", "))]
    UnknownConsumer {
        /// The timeframe.
        timeframe: u64,
        /// The consumer of the request.
        consumer: String,
        /// The consumers that it was registered for.
        known: Vec<String>,
    },
    /// The consumer has already reported the timeframe as consumed.
    #[error("consumer {consumer:?} has reported timeframe {timeframe} as consumed")]
    AlreadyConsumed {
        /// The timeframe.
        timeframe: u64,
        /// The consumer of the request.
        consumer: String,
    },
    /// The id is in use by a timeframe with other content.
    #[error("timeframe {timeframe} is in flight with other {difference}")]
    TimeframeExists {
        /// The id.
        timeframe: u64,
        /// The part that differs: timestamps, keys, columns or consumers.
        difference: &'static str,
    },
    /// Too many timeframes are in flight, or they need too much memory, and the deadline passed.
    #[error(
        "timeframe {timeframe} cannot be registered within the time given: {in_flight} \
         of {limit} timeframes are in flight, and {taken_bytes} of {total_bytes} bytes are taken"
    )]
    NoPlace {
        /// The timeframe.
        timeframe: u64,
        /// Number of timeframes in flight.
        in_flight: usize,
        /// Maximum number of timeframes in flight.
        limit: usize,
        /// Bytes pinned or reserved, at least.
        taken_bytes: u64,
        /// Bytes in total.
        total_bytes: u64,
    },
    /// The session is unknown, or belongs to another user or node. Its id is a secret and therefore
    /// not in the message.
    #[error(
        "the session of this request is not known: its process is gone, or the request does not come \
         from its user on its node"
    )]
    UnknownSession,
    /// The name of the consumer is in use by another client.
    #[error(
        "consumer {consumer:?} is attached or has a stream: only that process or stream, its user or \
         key, or a role that may administer reports and reads in its name"
    )]
    ForeignConsumer {
        /// The name.
        consumer: String,
    },
    /// The consumer would exceed its quota.
    #[error(
        "consumer {consumer:?} would hold {wanted} {what}, and its quota is {limit}: it must \
         release some first"
    )]
    OverQuota {
        /// The consumer of the request.
        consumer: String,
        /// Unit of the quota: bytes, timeframes or requests.
        what: &'static str,
        /// The amount that it would hold.
        wanted: u64,
        /// The amount that it may hold.
        limit: u64,
    },
    /// The consumer holds a table for longer than it may.
    #[error(
        "consumer {consumer:?} holds a table for {held_ms} ms, longer than {limit_ms} ms: it must \
         release the table first"
    )]
    SlowConsumer {
        /// The consumer of the request.
        consumer: String,
        /// How long it has held its oldest table, in ms.
        held_ms: u64,
        /// How long it may hold a table, in ms.
        limit_ms: u64,
    },
    /// The lease has ended. Its id is a secret and therefore not in the message.
    #[error("the lease has ended: released, revoked, or its time ran out")]
    LeaseEnded,
    /// The look-up of a version at the source failed.
    #[error("cannot look up which version of {path} is valid at {at}")]
    LookUp {
        /// The path.
        path: ObjectPath,
        /// The timestamp.
        at: Timestamp,
        /// The error of the source.
        #[source]
        error: SourceError,
    },
    /// The source failed to list its paths.
    #[error("cannot list the paths below {prefix:?}")]
    Paths {
        /// The prefix.
        prefix: String,
        /// The error of the source.
        #[source]
        error: SourceError,
    },
    /// The source did not make a change.
    #[error("cannot change {path}")]
    Change {
        /// The path.
        path: ObjectPath,
        /// The error of the source.
        #[source]
        error: SourceError,
    },
    /// A table needs more look-ups at the source than the limit.
    #[error("{path} would need more than {limit} look-ups for one table")]
    TooManyLookUps {
        /// The path.
        path: ObjectPath,
        /// The limit.
        limit: usize,
    },
    /// The source has no version at many timestamps and does not list the path.
    #[error(
        "nothing is valid for {path} at the first {asked_in_all} timestamps that were looked up; \
         its source does not list the path, so the other timestamps are not looked up"
    )]
    NothingFound {
        /// The path.
        path: ObjectPath,
        /// Number of timestamps asked for.
        asked_in_all: usize,
    },
    /// The bytes of an object could not be loaded.
    #[error("cannot load version {id} of {path}")]
    Load {
        /// The path.
        path: ObjectPath,
        /// The version.
        id: ObjectId,
        /// The error of the source.
        #[source]
        error: SourceError,
    },
    /// One id stands for different bytes, at two sources or at two times of one source.
    #[error("version {id} has different bytes under {path} and under {other}")]
    TwoContents {
        /// The id.
        id: ObjectId,
        /// The requested path.
        path: ObjectPath,
        /// The path under which it is resident.
        other: ObjectPath,
    },
    /// All remaining memory is pinned, and the deadline passed.
    #[error(
        "no room for {needed_bytes} bytes within the time given: {pinned_bytes} of {total_bytes} \
         bytes are pinned"
    )]
    MemoryPinned {
        /// Bytes needed.
        needed_bytes: u64,
        /// Bytes pinned.
        pinned_bytes: u64,
        /// Bytes in total.
        total_bytes: u64,
    },
    /// The table or object is larger than the memory.
    #[error(
        "{what} needs {needed_bytes} bytes, and at most {limit_bytes} fit: make `memory` larger, and \
         `segment` too where segments have the names of FairMQ"
    )]
    NeverFits {
        /// The table or object.
        what: String,
        /// Bytes needed.
        needed_bytes: u64,
        /// Bytes in total.
        limit_bytes: u64,
    },
    /// The system does not provide shared memory.
    #[error("shared memory")]
    Pool(#[source] Arc<PoolError>),
    /// The deadline passed.
    #[error("not done within {wait_ms} ms: {what}")]
    DeadlineExceeded {
        /// The step that did not finish.
        what: String,
        /// Time spent waiting, in ms.
        wait_ms: u64,
    },
    /// The cache is shutting down.
    #[error("the service is shutting down")]
    Draining,
    /// An internal error: a task ended without a result.
    #[error("{what} ended without a result")]
    Lost {
        /// The task.
        what: String,
    },
}

impl From<KeyError> for CacheError {
    fn from(error: KeyError) -> Self {
        Self::Request(error.into())
    }
}

impl CacheError {
    /// Whether the same request can succeed later, without a change.
    pub fn is_transient(&self) -> bool {
        self.kind().is_transient()
    }
}

/// Names for a message.
fn or_none(names: &[String]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

coded! { CacheError {
    Request(error) => error,
    Timestamps(error) => error,
    Path(error) => error,
    Encode(error) => error,
    Claim(error) => error,
    Budget(error) => error,
    LookUp { error, .. } => error,
    Paths { error, .. } => error,
    Change { error, .. } => error,
    Load { error, .. } => error,
    Pool(error) => error,
    Missing => NotFound 2010,
    UnknownTable => NotFound 2011,
    TooManyLookUps => ResourceExhausted 2012,
    ShortSpan => (ErrorKind::FailedPrecondition, SHORT_SPAN),
    NothingFound => NotFound 2015,
    NoPath => NotFound 2016,
    TooManyQueries => ResourceExhausted 2017,
    UnknownRun => NotFound 2018,
    TwoContents => Unavailable 3010,
    MemoryPinned => Unavailable 4010,
    NeverFits => ResourceExhausted 4011,
    UnknownSession => FailedPrecondition 5001,
    LeaseEnded => FailedPrecondition 5002,
    UnknownTimeframe => NotFound 5010,
    UnknownConsumer => NotFound 5011,
    AlreadyConsumed => FailedPrecondition 5012,
    TimeframeExists => AlreadyExists 5013,
    NoPlace => Unavailable 5014,
    OverQuota => ResourceExhausted 5015,
    SlowConsumer => ResourceExhausted 5016,
    ForeignConsumer => PermissionDenied 5017,
    DeadlineExceeded => DeadlineExceeded 5020,
    Draining => Unavailable 5021,
    Lost => Internal 9001,
} }
