//! Why a cache does not answer.

use std::sync::Arc;

use crate::budget::OverBudget;
use crate::error::{Coded as _, coded};
use crate::interval::Timestamp;
use crate::object::{InvalidPath, ObjectId, ObjectPath};
use crate::shm::PoolError;
use crate::source::{ClaimError, SourceError};
use crate::table::{EncodeError, KeyError, RequestError, SHORT_SPAN, TimestampsError};

/// Nothing is valid for some timestamps of one column.
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
    /// How many rows have none.
    pub rows: u64,
    /// Name and value of the key in the first row that has none, where the column depends on one.
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

/// Values of a key for which a column has no path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnmatchedColumn {
    /// The column.
    pub column: String,
    /// The key.
    pub key: String,
    /// Its value in the first row without a path.
    pub value: String,
    /// That row.
    pub row: usize,
    /// How many rows have no path.
    pub rows: u64,
}

impl std::fmt::Display for UnmatchedColumn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { column, key, value, row, rows } = self;
        write!(f, "column {column:?}: {rows} rows, first row {row} with {key}={value}")
    }
}

/// At most this many are told.
const MAX_UNMATCHED: usize = 64;

fn unmatched(columns: &[UnmatchedColumn]) -> String {
    let told = columns.iter().take(MAX_UNMATCHED).map(ToString::to_string);
    let more = columns.len().saturating_sub(MAX_UNMATCHED);
    let more = (more > 0).then(|| format!("and {more} more columns"));
    told.chain(more).collect::<Vec<_>>().join("; ")
}

/// More of them are told in a short form: a gRPC status has room for a few kB.
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

/// Why a cache does not answer.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum CacheError {
    /// The request is wrong.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The timestamps cannot be used.
    #[error(transparent)]
    Timestamps(#[from] TimestampsError),
    /// A path is none.
    #[error(transparent)]
    Path(#[from] InvalidPath),
    /// The table cannot be put into this shape.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// There is no object at some timestamps.
    #[error("no object is valid for {}", list(columns))]
    Missing {
        /// Every such column.
        columns: Vec<MissingColumn>,
    },
    /// The values of a key lie in no range of the paths of a column, and it has no fallback.
    #[error(
        "no path is for the value of the key in {}: add a range or a fallback, or ask with \
         \"missing\": \"null\"",
        unmatched(columns)
    )]
    NoPath {
        /// Every such column.
        columns: Vec<UnmatchedColumn>,
    },
    /// A table would ask for too much.
    #[error(
        "the table has {queries} different queries for its columns and keys, at most {limit} are possible"
    )]
    TooManyQueries {
        /// How many.
        queries: usize,
        /// The limit.
        limit: usize,
    },
    /// A version is effective for so short a time that none of the timestamps may need it.
    #[error(
        "column {column:?} has a version that is effective for {span_ms} ms only, and the timestamps \
         are up to {gap_ms} ms apart: ask for the timestamps themselves"
    )]
    ShortSpan {
        /// The column.
        column: String,
        /// For how long.
        span_ms: u64,
        /// What the request says of its timestamps.
        gap_ms: i64,
    },
    /// The source does not bear out what a lock says of a version.
    #[error("lock")]
    Claim(#[from] ClaimError),
    /// The memory that it takes beside the segments has no room in the account of its client.
    #[error(transparent)]
    Budget(#[from] OverBudget),
    /// No such table in the configuration.
    #[error("no table {name:?} is configured; there are: {}", known.join(", "))]
    UnknownTable {
        /// What was asked for.
        name: String,
        /// The names of those that are configured.
        known: Vec<String>,
    },
    /// No such timeframe is in flight.
    #[error("timeframe {timeframe} is not in flight: not registered yet, or consumed and dropped")]
    UnknownTimeframe {
        /// What was asked for.
        timeframe: u64,
    },
    /// The timeframe does not wait for this consumer.
    #[error("timeframe {timeframe} has no consumer {consumer:?}; it has {}", known.join(", "))]
    UnknownConsumer {
        /// The timeframe.
        timeframe: u64,
        /// Who asked.
        consumer: String,
        /// Whom it was registered for.
        known: Vec<String>,
    },
    /// The consumer has already said that it is done with the timeframe.
    #[error("consumer {consumer:?} has reported timeframe {timeframe} as consumed")]
    AlreadyConsumed {
        /// The timeframe.
        timeframe: u64,
        /// Who asked.
        consumer: String,
    },
    /// The id is taken by a timeframe of another content.
    #[error("timeframe {timeframe} is in flight with other {difference}")]
    TimeframeExists {
        /// The id.
        timeframe: u64,
        /// What differs: timestamps, keys, columns or consumers.
        difference: &'static str,
    },
    /// Too many timeframes are in flight, or they need too much, and the deadline passed.
    #[error(
        "no place for timeframe {timeframe} within the time given: {in_flight} of {limit} \
         timeframes are in flight, and {taken_bytes} of {total_bytes} bytes are taken"
    )]
    NoPlace {
        /// The timeframe.
        timeframe: u64,
        /// How many are in flight.
        in_flight: usize,
        /// How many can be.
        limit: usize,
        /// What is pinned or reserved, at least.
        taken_bytes: u64,
        /// What there is.
        total_bytes: u64,
    },
    /// No such session, or one of another user or node. Its id is a secret, and not in the message.
    #[error(
        "the session of this request is not known: its process is gone, or the request does not come \
         from its user on its node"
    )]
    UnknownSession,
    /// The name of the consumer is in use by others.
    #[error(
        "consumer {consumer:?} is attached or has a stream: only that process or stream, its user or \
         key, or a role that may administer reports and reads in its name"
    )]
    ForeignConsumer {
        /// The name.
        consumer: String,
    },
    /// The consumer would hold more than it may.
    #[error(
        "consumer {consumer:?} would hold {wanted} {what}, and its quota is {limit}: it has to be \
         done with some first"
    )]
    OverQuota {
        /// Who asked.
        consumer: String,
        /// Bytes, timeframes or requests.
        what: &'static str,
        /// What it would hold.
        wanted: u64,
        /// What it may hold.
        limit: u64,
    },
    /// The consumer does not let go of what it has.
    #[error(
        "consumer {consumer:?} holds a table for {held_ms} ms, longer than {limit_ms} ms: it has \
         to report what it is done with first"
    )]
    SlowConsumer {
        /// Who asked.
        consumer: String,
        /// For how long it holds what it holds longest.
        held_ms: u64,
        /// For how long it may.
        limit_ms: u64,
    },
    /// The lease is over. Its id is a secret, and not in the message.
    #[error("the lease has ended: released, revoked, or its time ran out")]
    LeaseEnded,
    /// The source did not say which version holds.
    #[error("cannot tell which version of {path} holds at {at}")]
    LookUp {
        /// The path.
        path: ObjectPath,
        /// The timestamp.
        at: Timestamp,
        /// What the source answered.
        #[source]
        error: SourceError,
    },
    /// The source did not list its paths.
    #[error("cannot list the paths below {prefix:?}")]
    Paths {
        /// The prefix.
        prefix: String,
        /// What the source answered.
        #[source]
        error: SourceError,
    },
    /// A table would need unreasonably many questions to the source.
    #[error("{path} would need more than {limit} look-ups for one table")]
    TooManyLookUps {
        /// The path.
        path: ObjectPath,
        /// The limit.
        limit: usize,
    },
    /// The source has nothing at many timestamps, and does not list the path.
    #[error(
        "nothing is valid for {path} at the first {asked_in_all} timestamps for which its source was \
         asked; it does not list the path, and is not asked for each of the others"
    )]
    NothingFound {
        /// The path.
        path: ObjectPath,
        /// At how many timestamps.
        asked_in_all: usize,
    },
    /// The bytes of an object could not be loaded.
    #[error("cannot load version {id} of {path}")]
    Load {
        /// The path.
        path: ObjectPath,
        /// The version.
        id: ObjectId,
        /// What the source answered.
        #[source]
        error: SourceError,
    },
    /// Two sources, or one at two times, give different bytes for one id.
    #[error("version {id} stands for other bytes under {path} than under {other}")]
    TwoContents {
        /// The id.
        id: ObjectId,
        /// The path that was asked for.
        path: ObjectPath,
        /// The path under which it is resident.
        other: ObjectPath,
    },
    /// All that is left of the memory is pinned, and the deadline passed.
    #[error(
        "no room for {needed_bytes} bytes within the time given: {pinned_bytes} of {total_bytes} \
         bytes are pinned"
    )]
    MemoryPinned {
        /// What is needed.
        needed_bytes: u64,
        /// What is pinned.
        pinned_bytes: u64,
        /// What there is.
        total_bytes: u64,
    },
    /// It can never fit.
    #[error(
        "{what} needs {needed_bytes} bytes, and at most {limit_bytes} fit: make `memory` larger, and \
         `segment` too where segments have the names of FairMQ"
    )]
    NeverFits {
        /// The table or object.
        what: String,
        /// What it needs.
        needed_bytes: u64,
        /// What there is.
        limit_bytes: u64,
    },
    /// Shared memory cannot be had from the system.
    #[error("shared memory")]
    Pool(#[source] Arc<PoolError>),
    /// The deadline passed.
    #[error("not done within {wait_ms} ms: {what}")]
    DeadlineExceeded {
        /// What was waited for.
        what: String,
        /// How long.
        wait_ms: u64,
    },
    /// The cache is going down.
    #[error("the service is shutting down")]
    Draining,
    /// A bug of ours: a task ended without a result.
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

coded! { CacheError {
    Request(error) => error,
    Timestamps(error) => error,
    Path(error) => error,
    Encode(error) => error,
    Claim(error) => error,
    Budget(error) => error,
    LookUp { error, .. } => error,
    Paths { error, .. } => error,
    Load { error, .. } => error,
    Pool(error) => error,
    Missing => NotFound 2010,
    UnknownTable => NotFound 2011,
    TooManyLookUps => ResourceExhausted 2012,
    ShortSpan => (ErrorKind::FailedPrecondition, SHORT_SPAN),
    NothingFound => NotFound 2015,
    NoPath => NotFound 2016,
    TooManyQueries => ResourceExhausted 2017,
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
