//! The kinds of errors by what a caller can do about them, and the stable codes of errors.
//!
//! Every module has its own error enum with a fact per field. All of them implement [`Coded`]: a
//! [`ErrorKind`] that says what a caller can do about it, and a stable [`Code`] that its message
//! begins with where it leaves the process (`[IOV-2001] …`). The gRPC status, the C code, the
//! Python exception and the exit status of the program all derive from the kind, in one place each.

use std::fmt;

/// The kind of an error: how a caller can react to it.
///
/// The names are those of the gRPC status codes that the kinds map to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The request is wrong: change it.
    InvalidArgument,
    /// No version is valid at that time, or the timeframe, table or path is unknown.
    NotFound,
    /// The name is in use for something else.
    AlreadyExists,
    /// Try again later: a source is down or its answer unusable, memory is pinned, draining.
    Unavailable,
    /// The request can never fit, or exceeds the quota.
    ResourceExhausted,
    /// The state does not allow the request: lease ended, MetaHeader stale, session unknown.
    FailedPrecondition,
    /// The client presents no valid credentials.
    Unauthenticated,
    /// The client may not do this.
    PermissionDenied,
    /// The caller's deadline passed first.
    DeadlineExceeded,
    /// A bug in iovcache.
    Internal,
}

impl ErrorKind {
    /// The upper-case name of the gRPC status code, e.g. `NOT_FOUND`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::InvalidArgument => "INVALID_ARGUMENT",
            Self::NotFound => "NOT_FOUND",
            Self::AlreadyExists => "ALREADY_EXISTS",
            Self::Unavailable => "UNAVAILABLE",
            Self::ResourceExhausted => "RESOURCE_EXHAUSTED",
            Self::FailedPrecondition => "FAILED_PRECONDITION",
            Self::Unauthenticated => "UNAUTHENTICATED",
            Self::PermissionDenied => "PERMISSION_DENIED",
            Self::DeadlineExceeded => "DEADLINE_EXCEEDED",
            Self::Internal => "INTERNAL",
        }
    }

    /// Exit status of the program: 1 failed, 2 usage, 3 not found, 4 unavailable, 5 not allowed.
    pub const fn exit_status(self) -> u8 {
        match self {
            Self::InvalidArgument => 2,
            Self::NotFound => 3,
            Self::Unavailable | Self::DeadlineExceeded => 4,
            Self::Unauthenticated | Self::PermissionDenied => 5,
            Self::AlreadyExists
            | Self::ResourceExhausted
            | Self::FailedPrecondition
            | Self::Internal => 1,
        }
    }

    /// Whether the same request can succeed later, without a change.
    pub const fn is_transient(self) -> bool {
        matches!(self, Self::Unavailable | Self::DeadlineExceeded)
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The stable number of an error, shown as `IOV-1234`.
///
/// The thousands give the area: 1 requests and tables, 2 validity and look-ups without a result,
/// 3 sources, 4 shared memory, 5 sessions, leases and timeframes, 6 access, 7 the client,
/// 8 the command line, 9 bugs in iovcache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Code(pub u16);

impl Code {
    /// Splits a [`message`](Coded::message) into the code at its beginning and the rest.
    pub(crate) fn of_message(text: &str) -> Option<(Self, &str)> {
        let (number, message) = text.strip_prefix("[IOV-")?.split_once("] ")?;
        Some((Self(number.parse().ok()?), message))
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IOV-{:04}", self.0)
    }
}

/// An error with a kind and a stable code.
pub trait Coded: std::error::Error {
    /// The kind: how a caller can react to it.
    fn kind(&self) -> ErrorKind;

    /// The stable number of this error.
    fn code(&self) -> Code;

    /// `[IOV-1234] ` followed by the error and all of its causes, on one line.
    ///
    /// Errors leave the process in this form.
    fn message(&self) -> String {
        use fmt::Write as _;
        let mut text = format!("[{}] {self}", self.code());
        let mut cause = self.source();
        while let Some(error) = cause {
            // Writing to a String cannot fail.
            let _ = write!(text, ": {error}");
            cause = error.source();
        }
        text
    }
}

/// The kind of an error with a file that the caller names.
pub(crate) fn kind_of_file(error: &std::io::Error) -> ErrorKind {
    match error.kind() {
        std::io::ErrorKind::NotFound => ErrorKind::NotFound,
        std::io::ErrorKind::PermissionDenied => ErrorKind::PermissionDenied,
        _ => ErrorKind::FailedPrecondition,
    }
}

/// Implements [`Coded`] by a table: one line per variant with its kind and its code.
///
/// ```text
/// coded! { EmptyInterval => InvalidArgument 2001 }      one kind and code for all values
/// coded! { SourceError {
///     Down => Unavailable 3001,                         kind and code
///     Claim(error) => error,                            those of the cause
///     Io { error, .. } => (kind_of_file(error)) 3020,   a kind that depends on the content
///     Service { kind, code, .. } => (*kind, *code),     both depend on it
/// } }
/// ```
///
/// The table names every variant: the compiler refuses one that is missing.
macro_rules! coded {
    ($error:ty => $kind:ident $code:literal) => {
        impl $crate::error::Coded for $error {
            fn kind(&self) -> $crate::error::ErrorKind {
                $crate::error::ErrorKind::$kind
            }
            fn code(&self) -> $crate::error::Code {
                $crate::error::Code($code)
            }
        }
    };
    ($error:ident {
        $($variant:ident $(($($tuple:tt)*))? $({$($named:tt)*})? => $kind:tt $($code:literal)?),+ $(,)?
    }) => {
        #[allow(unused_imports, unused_variables, reason = "not every line uses them")]
        const _: () = {
            use $crate::error::{Code, Coded, ErrorKind, coded};
            impl Coded for $error {
                fn kind(&self) -> ErrorKind {
                    match self {
                        $(coded!(@pattern $variant $(($($tuple)*))? $({$($named)*})?) =>
                            coded!(@kind $kind $($code)?),)+
                    }
                }
                fn code(&self) -> Code {
                    match self {
                        $(coded!(@pattern $variant $(($($tuple)*))? $({$($named)*})?) =>
                            coded!(@code $kind $($code)?),)+
                    }
                }
            }
        };
    };
    (@pattern $variant:ident) => { Self::$variant { .. } };
    (@pattern $variant:ident ($($field:tt)*)) => { Self::$variant($($field)*) };
    (@pattern $variant:ident {$($field:tt)*}) => { Self::$variant { $($field)* } };
    (@kind ($kind:expr, $code:expr)) => { $kind };
    (@kind ($kind:expr) $code:literal) => { $kind };
    (@kind $kind:ident $code:literal) => { ErrorKind::$kind };
    (@kind $cause:ident) => { $cause.kind() };
    (@code ($kind:expr, $code:expr)) => { $code };
    (@code ($kind:expr) $code:literal) => { Code($code) };
    (@code $kind:ident $code:literal) => { Code($code) };
    (@code $cause:ident) => { $cause.code() };
}
pub(crate) use coded;
