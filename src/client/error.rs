//! Errors of a client.

use std::io;
use std::path::PathBuf;

use tonic::Status;

use crate::error::{Code, ErrorKind, coded, kind_of_file};
use crate::shm::attach::AttachError;
use crate::shm::{EventError, ResolveError};
use crate::table::{DecodeError, RequestError};

/// Error of a client.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The address has another form than that of a service.
    #[error(
        "{url:?} is no address of a service: {reason}; expected grpc://host:port, \
             grpc+tls://host:port or grpc+unix:///path/flight.sock"
    )]
    Address {
        /// The address.
        url: String,
        /// The fault, in words.
        reason: String,
    },
    /// The token is not sent, because others could read it or it cannot be a header.
    #[error("the token is not sent: {reason}")]
    Token {
        /// The reason.
        reason: &'static str,
    },
    /// The request has an invalid value.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The service cannot be reached.
    #[error("cannot reach {url}: {reason}")]
    Connect {
        /// The address.
        url: String,
        /// The reason.
        reason: String,
    },
    /// No answer came: the connection broke, or no service listens any more.
    #[error("no answer came: {reason}")]
    Lost {
        /// The reason.
        reason: String,
    },
    /// The service answered with an error.
    #[error("{message}")]
    Service {
        /// Kind of the error: the possible reaction of the caller.
        kind: ErrorKind,
        /// Code of the error in the service.
        code: Code,
        /// Message of the service, without the code.
        message: String,
    },
    /// The answer of the service violates the protocol.
    #[error("the service's answer cannot be read: {reason}")]
    Answer {
        /// The expected and the received value.
        reason: String,
    },
    /// The table cannot be read.
    #[error("the table cannot be read")]
    Decode(#[from] DecodeError),
    /// The service refused to let this process attach, or its attach socket cannot be reached.
    #[error("cannot attach to {}", path.display())]
    Attach {
        /// Path of the attach socket.
        path: PathBuf,
        /// The reason.
        #[source]
        error: AttachError,
    },
    /// A MetaHeader does not resolve.
    #[error("a cell does not resolve")]
    Resolve(#[from] ResolveError),
    /// The cells refer to shared memory that this client has not mapped.
    #[error(
        "the cells are MetaHeaders and this client is not attached to the service's memory: ask \
         with cell \"payload\", or on the node of the service without \"session\""
    )]
    NotAttached,
    /// No answer came within the time limit of the call.
    #[error("no answer within {limit_millis} ms")]
    NotInTime {
        /// The time limit in milliseconds.
        limit_millis: u128,
    },
    /// The process was forked; the connection and the session belong to the parent.
    #[error("this process was forked, and its parent owns the client: connect again in the child")]
    ForkedProcess,
    /// The versions of a table were requested again, and other versions would serve it now.
    #[error("versions were stored since the table was made: request the table again")]
    Changed,
    /// A timeframe was dropped while its table was held, and its id was registered anew.
    #[error(
        "timeframe {timeframe} was dropped while its table was held, and was registered anew: \
             nothing is reported for the new one"
    )]
    Dropped {
        /// The timeframe.
        timeframe: u64,
    },
    /// The client or the table is closed.
    #[error("the {what} is closed")]
    Closed {
        /// The closed object: a client or a table.
        what: &'static str,
    },
    /// An argument is not valid.
    #[error("{reason}")]
    Argument {
        /// The argument, its value, and the expected value.
        reason: String,
    },
    /// The table has no such column.
    #[error("the table has no column {name:?}; it has {}", known.join(", "))]
    NoSuchColumn {
        /// The requested name.
        name: String,
        /// Names of the table's columns.
        known: Vec<String>,
    },
    /// The column has no such row.
    #[error("row {row} is not in the table: it has {rows}")]
    NoSuchRow {
        /// The requested row, from 0.
        row: usize,
        /// Number of rows of the table.
        rows: usize,
    },
    /// No event can be made.
    #[error(transparent)]
    Event(#[from] EventError),
    /// A file or a socket could not be read or written.
    #[error("{what}")]
    Io {
        /// The failed operation.
        what: String,
        /// The error of the system.
        #[source]
        error: io::Error,
    },
}

impl ClientError {
    /// Converts a status of the service.
    pub(super) fn of(status: &Status) -> Self {
        let kind = match status.code() {
            tonic::Code::InvalidArgument => ErrorKind::InvalidArgument,
            tonic::Code::NotFound => ErrorKind::NotFound,
            tonic::Code::AlreadyExists => ErrorKind::AlreadyExists,
            tonic::Code::Unavailable | tonic::Code::Aborted => ErrorKind::Unavailable,
            tonic::Code::ResourceExhausted | tonic::Code::OutOfRange => {
                ErrorKind::ResourceExhausted
            }
            tonic::Code::FailedPrecondition => ErrorKind::FailedPrecondition,
            tonic::Code::Unauthenticated => ErrorKind::Unauthenticated,
            tonic::Code::PermissionDenied => ErrorKind::PermissionDenied,
            tonic::Code::DeadlineExceeded | tonic::Code::Cancelled => ErrorKind::DeadlineExceeded,
            tonic::Code::Ok
            | tonic::Code::Unknown
            | tonic::Code::Unimplemented
            | tonic::Code::Internal
            | tonic::Code::DataLoss => ErrorKind::Internal,
        };
        let text = status.message();
        let coded = Code::of_message(text);
        // A status made by the transport has a cause; one sent by the service has none.
        let told = std::error::Error::source(status).is_none();
        if coded.is_none() && (status.code() == tonic::Code::Unavailable || !told) {
            let mut reason = text.to_owned();
            let mut cause = std::error::Error::source(status);
            while let Some(error) = cause {
                reason = format!("{reason}: {error}");
                cause = error.source();
            }
            return Self::Lost { reason };
        }
        let (code, message) = coded.unwrap_or((Code(7010), text));
        Self::Service { kind, code, message: message.to_owned() }
    }
}

/// The service is stopping; its successor may answer.
const DRAINING: Code = Code(5021);
/// The service does not know the session: it is not the service to which the client attached.
const UNKNOWN_SESSION: Code = Code(5001);

impl ClientError {
    /// Whether no service answered, and one may answer soon.
    pub(super) fn is_no_answer(&self) -> bool {
        match self {
            Self::Lost { .. } | Self::Connect { .. } => true,
            Self::Service { code, .. } => *code == DRAINING,
            _ => false,
        }
    }

    /// Whether the service does not know the session.
    pub(super) fn is_unknown_session(&self) -> bool {
        matches!(self, Self::Service { code, .. } if *code == UNKNOWN_SESSION)
    }
}

impl From<Status> for ClientError {
    fn from(status: Status) -> Self {
        Self::of(&status)
    }
}

coded! { ClientError {
    Decode(error) => error,
    Request(error) => error,
    Attach { error, .. } => error,
    Resolve(error) => error,
    Event(error) => error,
    Service { kind, code, .. } => (*kind, *code),
    Address => InvalidArgument 7001,
    Connect => Unavailable 7002,
    Answer => Internal 7003,
    NoSuchColumn => InvalidArgument 7004,
    NoSuchRow => InvalidArgument 7005,
    Io { error, .. } => (kind_of_file(error)) 7006,
    Token => InvalidArgument 7007,
    Lost => Unavailable 7008,
    NotInTime => DeadlineExceeded 7009,
    NotAttached => FailedPrecondition 7010,
    ForkedProcess => FailedPrecondition 7011,
    Changed => FailedPrecondition 7012,
    Closed => FailedPrecondition 7013,
    Argument => InvalidArgument 7014,
    Dropped => NotFound 7015,
} }
