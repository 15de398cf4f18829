//! The bodies of responses.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::body::Body;
use bytes::Bytes;
use http_body::{Frame, SizeHint};

use crate::connection::BusyGuard;
use crate::metrics::{GatewayMetrics, Outcome, RequestKind};
use crate::substituter::{BodyAborted, NarBody};

/// A body of the router. Its connection counts as busy until the body ends. A failure is passed on only after all bytes
/// before it were sent: hyper would throw away what it has buffered, perhaps even the head, and Nix would then start again
/// at the first byte instead of requesting a range.
pub(crate) struct RoutedBody {
    body: Body,
    connection: BusyGuard,
    failure: Option<axum::Error>,
}

impl RoutedBody {
    pub(crate) fn new(body: Body, connection: BusyGuard) -> Self {
        Self { body, connection, failure: None }
    }
}

impl http_body::Body for RoutedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = self.get_mut();
        if this.failure.is_none() {
            match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
                Some(Err(failure)) => {
                    this.failure = Some(failure);
                    this.connection.await_flush();
                }
                frame => return Poll::Ready(frame),
            }
        }
        if !this.connection.is_flushed() {
            // The connection wakes this task as soon as it has flushed.
            return Poll::Pending;
        }
        Poll::Ready(this.failure.take().map(Err))
    }

    fn is_end_stream(&self) -> bool {
        self.failure.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A NAR, or a part of one, on its way to a client: exactly `remaining` bytes, or an error that makes hyper close the
/// connection before Content-Length is reached.
pub(crate) struct NarResponseBody {
    stream: NarBody,
    /// The first chunk. It was taken from the stream before the head was written, so that one write sends both.
    first: Option<Bytes>,
    remaining: u64,
    outcome: Option<Outcome>,
    metrics: Arc<GatewayMetrics>,
}

impl NarResponseBody {
    pub(crate) fn new(first: Bytes, stream: NarBody, length: u64, metrics: Arc<GatewayMetrics>) -> Self {
        Self { stream, first: Some(first), remaining: length, outcome: None, metrics }
    }

    fn abort(&mut self) -> Poll<Option<Result<Frame<Bytes>, BodyAborted>>> {
        self.outcome = Some(Outcome::Aborted);
        self.remaining = 0;
        Poll::Ready(Some(Err(BodyAborted)))
    }
}

impl http_body::Body for NarResponseBody {
    type Data = Bytes;
    type Error = BodyAborted;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyAborted>>> {
        let this = self.get_mut();
        if this.remaining == 0 {
            return Poll::Ready(None);
        }
        let item = match this.first.take() {
            Some(chunk) => Some(Ok(chunk)),
            None => ready!(this.stream.as_mut().poll_next(cx)),
        };
        match item {
            Some(Ok(mut chunk)) => {
                // The range can end before the NAR does.
                chunk.truncate(usize::try_from(this.remaining).unwrap_or(usize::MAX));
                this.remaining = this.remaining.saturating_sub(chunk.len() as u64);
                this.metrics.add_body_bytes(RequestKind::Nar, chunk.len() as u64);
                if this.remaining == 0 {
                    this.outcome = Some(Outcome::Served);
                }
                Poll::Ready(Some(Ok(Frame::data(chunk))))
            }
            Some(Err(BodyAborted)) => this.abort(),
            None => {
                tracing::warn!(missing_bytes = this.remaining, "a NAR body ended early without an error");
                this.abort()
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.remaining == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.remaining)
    }
}

impl Drop for NarResponseBody {
    fn drop(&mut self) {
        self.metrics.on_finished(RequestKind::Nar, self.outcome.unwrap_or(Outcome::ClientGone));
    }
}
