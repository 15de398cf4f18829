//! The bodies of responses.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::body::Body;
use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use tokio::sync::OwnedSemaphorePermit;

use crate::access_log::AccessLine;
use crate::connection::BusyGuard;
use crate::metrics::{GatewayMetrics, Outcome, RequestKind};
use crate::nar_body::{BodyAborted, NarBody};

/// Largest piece of a body that hyper gets at once where several bodies share a connection: it keeps a piece until the client
/// takes it, for each of them.
const PIECE_BYTES_MAX: usize = 8 << 10;

/// The body of an answer to a HEAD whose GET has no known length. An empty body would be told as one of 0 bytes, which a client
/// may take for the length of what it asks about (RFC 9110, section 8.6).
pub(crate) fn without_length() -> Body {
    Body::from_stream(futures::stream::empty::<Result<Bytes, Infallible>>())
}

/// A body of the router. Its connection counts as busy until the body ends. A failure is passed on only after all bytes
/// before it were sent: hyper would throw away what it has buffered, perhaps even the head, and Nix would then start again
/// at the first byte instead of requesting a range.
pub(crate) struct RoutedBody {
    body: Body,
    connection: BusyGuard,
    failure: Option<axum::Error>,
    /// What is left of a piece.
    rest: Bytes,
    /// The line of its request in the access log, if there is one.
    line: Option<AccessLine>,
    /// Its turn among the bodies of one connection, where there may be many.
    _turn: Option<OwnedSemaphorePermit>,
}

impl RoutedBody {
    pub(crate) fn new(body: Body, connection: BusyGuard, turn: Option<OwnedSemaphorePermit>) -> Self {
        Self { body, connection, failure: None, rest: Bytes::new(), line: None, _turn: turn }
    }

    /// Counts its bytes for this line, which is written when the body ends.
    pub(crate) fn with_line(self, mut line: Option<AccessLine>) -> Self {
        // hyper takes no piece of a body that is empty.
        if let Some(line) = line.as_mut().filter(|_| self.body.is_end_stream()) {
            line.note_whole();
        }
        Self { line, ..self }
    }

    fn note_for_log(&mut self, polled: &Poll<Option<Result<Frame<Bytes>, axum::Error>>>) {
        let Some(line) = &mut self.line else { return };
        match polled {
            Poll::Ready(Some(Ok(frame))) => {
                line.note_piece(frame.data_ref().map_or(0, Bytes::len));
                // Some of it may still be here in a piece that was not given on.
                if self.failure.is_none() && self.rest.is_empty() && self.body.is_end_stream() {
                    line.note_whole();
                }
            }
            Poll::Ready(None) => line.note_whole(),
            // Written now, while it says that the body is not whole.
            Poll::Ready(Some(Err(_))) => self.line = None,
            Poll::Pending => {}
        }
    }
}

impl RoutedBody {
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.failure.is_none() {
            if self.rest.is_empty() {
                match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                    // A failed body closes the connection, but what was read before it has to arrive.
                    Some(Err(failure)) => {
                        self.failure = Some(failure);
                        self.connection.await_flush();
                    }
                    // Over HTTP/2 a body goes out in small pieces: each stream holds what its client has not taken.
                    Some(Ok(frame)) if self.connection.is_one_of_several() => match frame.into_data() {
                        Ok(data) => self.rest = data,
                        Err(other) => return Poll::Ready(Some(Ok(other))),
                    },
                    frame => return Poll::Ready(frame),
                }
            }
            if self.failure.is_none() {
                let piece = self.rest.split_to(self.rest.len().min(PIECE_BYTES_MAX));
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
        }
        ready!(self.connection.poll_flushed(cx));
        Poll::Ready(self.failure.take().map(Err))
    }
}

impl http_body::Body for RoutedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = self.get_mut();
        let polled = this.poll_piece(cx);
        this.note_for_log(&polled);
        this.connection.note_poll(matches!(polled, Poll::Ready(Some(Ok(_)))));
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.failure.is_none() && self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A body on its way to a client: exactly as many bytes as were announced, or an error that makes hyper close the connection
/// before the end. Where no length was announced, the last chunk is missing then.
pub(crate) struct StreamedBody {
    kind: RequestKind,
    stream: NarBody,
    /// The first chunk. It was taken from the stream before the head was written, so that one write sends both.
    first: Option<Bytes>,
    /// Bytes that are still to come, if a length was announced.
    remaining: Option<u64>,
    outcome: Option<Outcome>,
    metrics: Arc<GatewayMetrics>,
}

impl StreamedBody {
    pub(crate) fn new(
        kind: RequestKind,
        first: Bytes,
        stream: NarBody,
        length: Option<u64>,
        metrics: Arc<GatewayMetrics>,
    ) -> Self {
        // An empty body has no first chunk, and is served when it begins.
        let outcome = (length == Some(0)).then_some(Outcome::Served);
        Self { kind, stream, first: Some(first), remaining: length, outcome, metrics }
    }

    fn abort(&mut self) -> Poll<Option<Result<Frame<Bytes>, BodyAborted>>> {
        self.outcome = Some(Outcome::Aborted);
        self.remaining = Some(0);
        Poll::Ready(Some(Err(BodyAborted)))
    }
}

impl http_body::Body for StreamedBody {
    type Data = Bytes;
    type Error = BodyAborted;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyAborted>>> {
        let this = self.get_mut();
        if this.remaining == Some(0) {
            return Poll::Ready(None);
        }
        let item = match this.first.take().filter(|first| !first.is_empty()) {
            Some(chunk) => Some(Ok(chunk)),
            None => ready!(this.stream.as_mut().poll_next(cx)),
        };
        match item {
            Some(Ok(mut chunk)) => {
                if let Some(remaining) = &mut this.remaining {
                    // The range can end before the file does.
                    chunk.truncate(usize::try_from(*remaining).unwrap_or(usize::MAX));
                    *remaining = remaining.saturating_sub(chunk.len() as u64);
                }
                this.metrics.add_body_bytes(this.kind, chunk.len() as u64);
                if this.remaining == Some(0) {
                    this.outcome = Some(Outcome::Served);
                }
                Poll::Ready(Some(Ok(Frame::data(chunk))))
            }
            Some(Err(BodyAborted)) => this.abort(),
            None => match this.remaining {
                Some(missing_bytes) => {
                    tracing::warn!(missing_bytes, "a body ended early without an error");
                    this.abort()
                }
                None => {
                    this.outcome = Some(Outcome::Served);
                    this.remaining = Some(0);
                    Poll::Ready(None)
                }
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        self.remaining == Some(0)
    }

    fn size_hint(&self) -> SizeHint {
        self.remaining.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl Drop for StreamedBody {
    fn drop(&mut self) {
        self.metrics.on_finished(self.kind, self.outcome.unwrap_or(Outcome::ClientGone));
    }
}
