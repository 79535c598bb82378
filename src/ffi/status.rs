//! Status codes of the functions, and the description of the last failure.

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char};

use crate::error::{Coded, ErrorKind};
use crate::shm::ResolveError;

/// Result of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
#[allow(non_camel_case_types)]
pub enum StatusCode {
    /// Success.
    IOVC_OK = 0,
    /// The call is wrong: a null pointer where none is allowed, a text that is not UTF-8, a
    /// malformed header.
    IOVC_INVALID_ARGUMENT = 1,
    /// No object is valid at that time, or the timeframe, table or path is unknown.
    IOVC_NOT_FOUND = 2,
    /// The name is in use already.
    IOVC_ALREADY_EXISTS = 3,
    /// Try again later: the service or a source is down, or memory is pinned.
    IOVC_UNAVAILABLE = 4,
    /// The request can never fit into memory, or exceeds the quota.
    IOVC_RESOURCE_EXHAUSTED = 5,
    /// The state does not allow the call: the header is stale, or the lease has ended.
    IOVC_FAILED_PRECONDITION = 6,
    /// The token is missing or wrong.
    IOVC_UNAUTHENTICATED = 7,
    /// The token does not permit the call.
    IOVC_PERMISSION_DENIED = 8,
    /// The time limit has passed.
    IOVC_DEADLINE_EXCEEDED = 9,
    /// A bug in iovcache.
    IOVC_INTERNAL = 10,
}

/// Text of each status.
const TEXTS: [(StatusCode, &CStr); 11] = [
    (StatusCode::IOVC_OK, c"done"),
    (StatusCode::IOVC_INVALID_ARGUMENT, c"invalid argument"),
    (StatusCode::IOVC_NOT_FOUND, c"not found"),
    (StatusCode::IOVC_ALREADY_EXISTS, c"already exists"),
    (StatusCode::IOVC_UNAVAILABLE, c"unavailable: try again later"),
    (StatusCode::IOVC_RESOURCE_EXHAUSTED, c"can never fit, or over the quota"),
    (StatusCode::IOVC_FAILED_PRECONDITION, c"stale, or not in a state for this"),
    (StatusCode::IOVC_UNAUTHENTICATED, c"unauthenticated"),
    (StatusCode::IOVC_PERMISSION_DENIED, c"permission denied"),
    (StatusCode::IOVC_DEADLINE_EXCEEDED, c"deadline exceeded"),
    (StatusCode::IOVC_INTERNAL, c"internal error of iovcache"),
];

impl From<ErrorKind> for StatusCode {
    fn from(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::InvalidArgument => Self::IOVC_INVALID_ARGUMENT,
            ErrorKind::NotFound => Self::IOVC_NOT_FOUND,
            ErrorKind::AlreadyExists => Self::IOVC_ALREADY_EXISTS,
            ErrorKind::Unavailable => Self::IOVC_UNAVAILABLE,
            ErrorKind::ResourceExhausted => Self::IOVC_RESOURCE_EXHAUSTED,
            ErrorKind::FailedPrecondition => Self::IOVC_FAILED_PRECONDITION,
            ErrorKind::Unauthenticated => Self::IOVC_UNAUTHENTICATED,
            ErrorKind::PermissionDenied => Self::IOVC_PERMISSION_DENIED,
            ErrorKind::DeadlineExceeded => Self::IOVC_DEADLINE_EXCEEDED,
            ErrorKind::Internal => Self::IOVC_INTERNAL,
        }
    }
}

/// Why a call failed.
#[derive(Debug)]
pub(super) enum CallFailure {
    /// A header does not resolve. The text is made on request only, since this can be frequent.
    Resolve {
        error: ResolveError,
        /// Its index in a column of headers.
        place: Option<usize>,
    },
    Other {
        kind: ErrorKind,
        message: String,
    },
}

impl CallFailure {
    pub(super) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self::Other { kind, message: message.into() }
    }

    fn kind(&self) -> ErrorKind {
        match self {
            Self::Resolve { error, .. } => error.kind(),
            Self::Other { kind, .. } => *kind,
        }
    }

    fn message(&self) -> String {
        match self {
            Self::Resolve { error, place: None } => error.message(),
            Self::Resolve { error, place: Some(place) } => {
                format!("{} (number {place})", error.message())
            }
            Self::Other { message, .. } => message.clone(),
        }
    }
}

impl<E: Coded> From<E> for CallFailure {
    fn from(error: E) -> Self {
        Self::new(error.kind(), error.message())
    }
}

/// The last failure of a thread, and its text once it was requested.
#[derive(Default)]
struct Last {
    failure: Option<CallFailure>,
    text: Option<CString>,
}

thread_local! {
    static LAST: RefCell<Last> = RefCell::default();
}

/// Keeps `failure` for `iovc_last_error`.
#[cold]
pub(super) fn remember(failure: CallFailure) -> StatusCode {
    let status = failure.kind().into();
    // A thread that is ending makes no further calls.
    let _ = LAST.try_with(|last| {
        *last.borrow_mut() = Last { failure: Some(failure), text: None };
    });
    status
}

/// Text of a status, e.g. "not found". Never null; it must not be freed.
#[unsafe(no_mangle)]
pub extern "C" fn iovc_strerror(status: i32) -> *const c_char {
    let known = TEXTS.iter().find(|(known, _)| *known as i32 == status);
    known.map_or(c"unknown status", |(_, text)| text).as_ptr()
}

/// Description of the last failure in this thread, beginning with a stable code:
/// `[IOV-4045] stale: …`. Empty if no call has failed. Never null; valid until the next call of
/// this thread into this library.
#[unsafe(no_mangle)]
pub extern "C" fn iovc_last_error() -> *const c_char {
    let text = LAST.try_with(|last| {
        let mut last = last.borrow_mut();
        let Last { failure, text } = &mut *last;
        let Some(failure) = failure else { return c"".as_ptr() };
        let make = || CString::new(failure.message().replace('\0', "?")).unwrap_or_default();
        text.get_or_insert_with(make).as_ptr()
    });
    text.unwrap_or(c"".as_ptr())
}
