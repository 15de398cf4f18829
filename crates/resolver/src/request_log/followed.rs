//! A request on its way: whatever happens to its body, its end is noted.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures::Stream;

use super::{NarOutcome, Origins, RequestLog};
use crate::nar::{BodyAborted, NarBody};

/// A request on its way. If it is dropped before its end was noted, its client has left.
#[derive(Debug)]
pub(crate) struct RunningRequest {
    log: Arc<RequestLog>,
    number: u64,
    origins: Arc<Origins>,
    given_bytes: Arc<AtomicU64>,
    /// Bytes that Nix asked for.
    wanted_bytes: u64,
}

impl RunningRequest {
    pub(super) fn new(
        log: Arc<RequestLog>,
        number: u64,
        origins: Arc<Origins>,
        given_bytes: Arc<AtomicU64>,
        wanted_bytes: u64,
    ) -> Self {
        Self { log, number, origins, given_bytes, wanted_bytes }
    }

    /// Where the sources of its bytes are to be noted.
    pub(crate) fn origins(&self) -> &Arc<Origins> {
        &self.origins
    }

    /// Notes how it ended.
    pub(crate) fn end(self, outcome: NarOutcome) {
        self.log.end(self.number, outcome);
    }

    /// The same body, of which what Nix takes is counted.
    pub(crate) fn follow(self, body: NarBody) -> NarBody {
        Box::pin(Followed { request: self, body })
    }

    /// Whether Nix has got all that it asked for.
    fn is_whole(&self) -> bool {
        self.given_bytes.load(Ordering::Relaxed) >= self.wanted_bytes
    }
}

impl Drop for RunningRequest {
    fn drop(&mut self) {
        let outcome = if self.is_whole() { NarOutcome::Delivered } else { NarOutcome::ClientLeft };
        self.log.end(self.number, outcome);
    }
}

struct Followed {
    request: RunningRequest,
    body: NarBody,
}

impl Stream for Followed {
    type Item = Result<Bytes, BodyAborted>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        let item = ready!(this.body.as_mut().poll_next(context));
        let RunningRequest { log, number, given_bytes, .. } = &this.request;
        match &item {
            Some(Ok(bytes)) => {
                given_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            }
            Some(Err(BodyAborted)) => log.end(*number, NarOutcome::CutShort),
            // The client may know the length, and ask no more after the last byte: then the drop says that it is whole.
            None if this.request.is_whole() => log.end(*number, NarOutcome::Delivered),
            None => log.end(*number, NarOutcome::CutShort),
        }
        Poll::Ready(item)
    }
}
