//! Conversion of errors to gRPC statuses. The message begins with the stable code.

use tonic::{Code, Status};

use super::call_origin::described;
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

/// Longest message in its percent-encoded form. It is sent in a header, and clients take 8 kB of
/// headers.
const MAX_MESSAGE_BYTES: usize = 6_000;

/// Length of the prefix of a message that fits into [`MAX_MESSAGE_BYTES`].
fn room(message: &str) -> usize {
    let mut bytes = 0;
    let fits = |&(_, letter): &(usize, char)| {
        let plain = letter.is_ascii_graphic() && !"\"#%<>?`{}".contains(letter);
        bytes += letter.len_utf8() * if plain { 1 } else { 3 };
        bytes <= MAX_MESSAGE_BYTES
    };
    message.char_indices().take_while(fits).last().map_or(0, |(at, last)| at + last.len_utf8())
}

/// The status for a client. The error is logged once, here, with the client of the call.
pub(super) fn status(error: &dyn Coded) -> Status {
    let mut message = error.message();
    let room = room(&message);
    if room < message.len() {
        message.truncate(room);
        message.push_str(" …");
    }
    match error.kind() {
        ErrorKind::Internal => tracing::error!(client = described(), "{message}"),
        ErrorKind::Unavailable | ErrorKind::ResourceExhausted | ErrorKind::DeadlineExceeded => {
            tracing::warn!(client = described(), "{message}");
        }
        ErrorKind::InvalidArgument
        | ErrorKind::NotFound
        | ErrorKind::AlreadyExists
        | ErrorKind::FailedPrecondition
        | ErrorKind::Unauthenticated
        | ErrorKind::PermissionDenied => tracing::info!(client = described(), "{message}"),
    }
    Status::new(code(error.kind()), message)
}

#[cfg(test)]
mod tests {
    use super::room;

    #[test]
    fn a_message_is_cut_where_its_header_would_be_too_long() {
        assert_eq!(room(""), 0);
        assert_eq!(room("[IOV-1001] short"), 16);
        assert_eq!(room(&"x".repeat(9_000)), 6_000);
        assert_eq!(room(&"é".repeat(9_000)), 2_000);
    }
}
