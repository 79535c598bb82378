//! Incoming messages: charged to their client from the first five bytes on.
//!
//! ```text
//!  HTTP/2 frames ─▶ Metered ─▶ tonic, which buffers a message until all of it is there
//!                     │ head of a message: flag, length ─▶ charge(length)
//!                     └ its last byte ─▶ the charge is returned; the call charges the bytes it keeps
//! ```
//!
//! It precedes every service, including health and reflection, which need no token.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf as _, Bytes};
use hyper::body::{Body, Frame, SizeHint};
use tonic::Status;

use super::status::status;
use crate::budget::{Charge, ClientBudget};

/// A gRPC message begins with a flag and its length.
const HEAD_BYTES: usize = 5;

/// The position in a stream of messages.
#[derive(Debug)]
struct MessagePosition {
    budget: ClientBudget,
    head: [u8; HEAD_BYTES],
    /// Bytes of the head received so far.
    head_bytes: usize,
    /// Bytes of the message that are still to come.
    missing: u64,
    charge: Option<Charge>,
}

impl MessagePosition {
    fn new(budget: ClientBudget) -> Self {
        Self { budget, head: [0; HEAD_BYTES], head_bytes: 0, missing: 0, charge: None }
    }

    /// Advances over `bytes`, the next ones of the stream.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED if a message begins that the client's account has no room for.
    fn follow(&mut self, mut bytes: &[u8]) -> Result<(), Status> {
        while !bytes.is_empty() {
            if self.missing > 0 {
                let here = bytes.len().min(usize::try_from(self.missing).unwrap_or(usize::MAX));
                bytes = &bytes[here..];
                self.missing -= here as u64;
            } else {
                let here = bytes.len().min(HEAD_BYTES - self.head_bytes);
                self.head[self.head_bytes..self.head_bytes + here].copy_from_slice(&bytes[..here]);
                bytes = &bytes[here..];
                self.head_bytes += here;
                if self.head_bytes < HEAD_BYTES {
                    return Ok(());
                }
                self.head_bytes = 0;
                self.missing = u64::from((&self.head[1..]).get_u32());
                let charge = self.budget.charge(self.missing, "a message that comes in");
                self.charge = Some(charge.map_err(|error| status(&error))?);
            }
            if self.missing == 0 {
                self.charge = None;
            }
        }
        Ok(())
    }
}

/// The body of a request whose messages are charged while they come in.
#[derive(Debug)]
pub(super) struct Metered<B> {
    body: B,
    messages: MessagePosition,
}

impl<B> Metered<B> {
    pub(super) fn new(body: B, budget: ClientBudget) -> Self {
        Self { body, messages: MessagePosition::new(budget) }
    }
}

impl<B> Body for Metered<B>
where
    B: Body<Data = Bytes, Error = Status> + Unpin,
{
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(context));
        if let Some(Ok(frame)) = &frame
            && let Some(bytes) = frame.data_ref()
            && let Err(refused) = self.messages.follow(bytes)
        {
            return Poll::Ready(Some(Err(refused)));
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::Budget;

    fn message(length: u32) -> Vec<u8> {
        let mut bytes = vec![0];
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.resize(HEAD_BYTES + length as usize, 7);
        bytes
    }

    #[test]
    fn a_message_is_charged_from_its_head_to_its_last_byte_however_it_is_cut() {
        let stream = [message(700), message(0), message(1), message(300)].concat();
        for piece in [1, 2, 3, 7, 400, 10_000] {
            let budget = Budget::new(4_000);
            let mut messages = MessagePosition::new(budget.client("one"));
            let mut most = 0;
            for piece in stream.chunks(piece) {
                messages.follow(piece).unwrap();
                most = most.max(budget.used_bytes());
            }
            assert_eq!(budget.used_bytes(), 0);
            assert!(piece > 400 || most == 700, "{piece}: {most}");
        }
    }

    #[test]
    fn a_message_that_does_not_fit_is_refused_by_its_head_and_charged_nowhere() {
        let budget = Budget::new(4_000);
        let mut messages = MessagePosition::new(budget.client("one"));
        let refused = messages.follow(&message(1_001)[..HEAD_BYTES]).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
        assert!(refused.message().contains("request-memory"), "{refused}");
        assert_eq!(budget.used_bytes(), 0);
    }

    #[test]
    fn the_charge_of_a_half_sent_message_is_returned_with_the_call() {
        let budget = Budget::new(4_000);
        let mut messages = MessagePosition::new(budget.client("one"));
        messages.follow(&message(900)[..HEAD_BYTES + 1]).unwrap();
        assert_eq!(budget.used_bytes(), 900);
        drop(messages);
        assert_eq!(budget.used_bytes(), 0);
    }
}
