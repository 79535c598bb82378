//! Why a client does not get what it asked for.

use std::io;
use std::path::PathBuf;

use tonic::Status;

use crate::error::{Code, ErrorKind, coded, kind_of_file};
use crate::shm::ResolveError;
use crate::shm::attach::AttachError;
use crate::table::{DecodeError, RequestError};

/// Why a client does not get what it asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The address is none.
    #[error(
        "{url:?} is no address of a service: {reason}; expected grpc://host:port, \
             grpc+tls://host:port or grpc+unix:///path/flight.sock"
    )]
    Address {
        /// What was given.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The token is not sent.
    #[error("the token is not sent: {reason}")]
    Token {
        /// Why.
        reason: &'static str,
    },
    /// The request has an invalid value.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The service cannot be reached.
    #[error("cannot reach {url}: {reason}")]
    Connect {
        /// Where.
        url: String,
        /// Why.
        reason: String,
    },
    /// No answer came: the connection broke, or nobody listens any more.
    #[error("no answer came: {reason}")]
    Lost {
        /// What happened.
        reason: String,
    },
    /// The service answered with an error, which is told as it came.
    #[error("{message}")]
    Service {
        /// What the caller can do about it.
        kind: ErrorKind,
        /// The service's own code.
        code: Code,
        /// What it said, without the code.
        message: String,
    },
    /// The service's answer is not what the protocol says.
    #[error("the service's answer cannot be read: {reason}")]
    Answer {
        /// What was expected, what was got.
        reason: String,
    },
    /// The table cannot be read.
    #[error("the table cannot be read")]
    Decode(#[from] DecodeError),
    /// The attach socket does not let us in.
    #[error("cannot attach to {}", path.display())]
    Attach {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        error: AttachError,
    },
    /// A MetaHeader does not resolve.
    #[error("a cell does not resolve")]
    Resolve(#[from] ResolveError),
    /// The cells name shared memory that this client has not mapped.
    #[error(
        "the cells are MetaHeaders and this client is not attached to the service's memory: ask \
         with cell \"payload\", or on the node of the service without \"session\""
    )]
    NotAttached,
    /// No answer came within the time that the call may take.
    #[error("no answer within {limit_millis} ms")]
    NotInTime {
        /// The time that the call may take.
        limit_millis: u128,
    },
    /// The process was forked: the connection and the session are the parent's.
    #[error("this process was forked, and the client is its parent's: connect anew in the child")]
    ForkedProcess,
    /// The service was asked again which versions serve a table, and now others would.
    #[error("versions were put since the table was made: ask for the table anew")]
    Changed,
    /// It is closed.
    #[error("the {what} is closed")]
    Closed {
        /// What: a client, a table.
        what: &'static str,
    },
    /// An argument is none that a call takes.
    #[error("{reason}")]
    Argument {
        /// The argument, what was given, what was expected.
        reason: String,
    },
    /// The table has no such column.
    #[error("the table has no column {name:?}; it has {}", known.join(", "))]
    NoSuchColumn {
        /// What was asked for.
        name: String,
        /// What there is.
        known: Vec<String>,
    },
    /// The column has no such row.
    #[error("row {row} is not in the table: it has {rows}")]
    NoSuchRow {
        /// What was asked for.
        row: usize,
        /// How many there are.
        rows: usize,
    },
    /// Something could not be read or written.
    #[error("{what}")]
    Io {
        /// What was being done.
        what: String,
        /// Why it failed.
        #[source]
        error: io::Error,
    },
}

impl ClientError {
    /// What a status of the service says.
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
        // What the transport says of itself has a cause; what a service says has none.
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

/// The service is stopping: its successor may answer.
const DRAINING: Code = Code(5021);
/// The service does not know our session: it is another one than we attached to.
const UNKNOWN_SESSION: Code = Code(5001);

impl ClientError {
    /// Whether it is no answer of a service that will be there in a moment.
    pub(super) fn is_no_answer(&self) -> bool {
        match self {
            Self::Lost { .. } | Self::Connect { .. } => true,
            Self::Service { code, .. } => *code == DRAINING,
            _ => false,
        }
    }

    /// Whether it says that our session is none of the service's.
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
} }
