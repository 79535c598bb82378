//! From an error to a gRPC status, in one place; the message begins with the stable code.

use tonic::{Code, Status};

use crate::error::{Coded, ErrorKind};

/// The gRPC code of a kind of error.
const fn code(kind: ErrorKind) -> Code {
    match kind {
        ErrorKind::InvalidArgument => Code::InvalidArgument,
        ErrorKind::NotFound => Code::NotFound,
        ErrorKind::AlreadyExists => Code::AlreadyExists,
        ErrorKind::Unavailable => Code::Unavailable,
        ErrorKind::ResourceExhausted => Code::ResourceExhausted,
        ErrorKind::FailedPrecondition => Code::FailedPrecondition,
        ErrorKind::Unauthenticated => Code::Unauthenticated,
        ErrorKind::PermissionDenied => Code::PermissionDenied,
        ErrorKind::DeadlineExceeded => Code::DeadlineExceeded,
        ErrorKind::Internal => Code::Internal,
    }
}

/// The longest message that is sent; it travels in a header, which clients limit to some kB.
const MAX_MESSAGE_BYTES: usize = 4_000;

/// The status that a client sees, logged once here, where the error stops.
pub(super) fn status(error: &dyn Coded) -> Status {
    let mut message = error.message();
    if message.len() > MAX_MESSAGE_BYTES {
        let end = (0..=MAX_MESSAGE_BYTES).rev().find(|&at| message.is_char_boundary(at));
        message.truncate(end.unwrap_or(0));
        message.push_str(" …");
    }
    match error.kind() {
        ErrorKind::Internal => tracing::error!("{message}"),
        ErrorKind::Unavailable | ErrorKind::ResourceExhausted | ErrorKind::DeadlineExceeded => {
            tracing::warn!("{message}");
        }
        ErrorKind::InvalidArgument
        | ErrorKind::NotFound
        | ErrorKind::AlreadyExists
        | ErrorKind::FailedPrecondition
        | ErrorKind::Unauthenticated
        | ErrorKind::PermissionDenied => tracing::info!("{message}"),
    }
    Status::new(code(error.kind()), message)
}
