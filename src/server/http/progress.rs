//! A body that reports when a part of it was taken.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::{Body, Bytes, Frame, SizeHint};

use super::visitors::Visitor;

/// The body of an answer to a connection. The connection progresses with each part: a part is
/// requested once the previous one was sent.
#[derive(Debug)]
pub(super) struct ProgressBody {
    body: UnsyncBoxBody<Bytes, Infallible>,
    visitor: Arc<Visitor>,
}

impl ProgressBody {
    pub(super) const fn new(body: UnsyncBoxBody<Bytes, Infallible>, visitor: Arc<Visitor>) -> Self {
        Self { body, visitor }
    }
}

impl Body for ProgressBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if polled.is_ready() {
            self.visitor.progressed();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
