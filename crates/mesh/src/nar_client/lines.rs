//! Counts what moves between us and one peer, so that a slow source can be told from a dead one.

use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

/// What came over all NAR streams of one peer.
#[derive(Debug, Default)]
pub(super) struct Line {
    received_bytes: AtomicU64,
    last_received: Mutex<Option<Instant>>,
    in_flight: AtomicUsize,
}

/// A snapshot of what moves between us and a peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LineView {
    /// Bytes of all NAR streams of this peer, heads and heartbeats included.
    pub received_bytes: u64,
    /// When the last of them came.
    pub last_received: Option<Instant>,
    /// Requests that have not ended.
    pub in_flight: usize,
}

/// One request that has not ended.
#[derive(Debug)]
pub(super) struct InFlight(Arc<Line>);

impl Line {
    pub(super) fn count(&self, bytes: usize) {
        self.received_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        *self.last_received.lock() = Some(Instant::now());
    }

    pub(super) fn begin(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight(Arc::clone(self))
    }

    pub(super) fn view(&self) -> LineView {
        LineView {
            received_bytes: self.received_bytes.load(Ordering::Relaxed),
            last_received: *self.last_received.lock(),
            in_flight: self.in_flight.load(Ordering::Relaxed),
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}
