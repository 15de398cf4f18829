//! The requests that are answered at once over one connection of HTTP/2.
//!
//! A client of HTTP/1 that takes nothing blocks its socket. One of HTTP/2 can leave single bodies lying while others move, so
//! each request has a state of its own here.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use futures::task::AtomicWaker;

/// The requests under way on one connection. hyper permits no more than its limit of streams.
#[derive(Debug, Default)]
pub(crate) struct Streams(Mutex<Open>);

#[derive(Debug, Default)]
struct Open {
    next_id: u64,
    streams: BTreeMap<u64, Arc<StreamState>>,
}

/// The state of one request.
#[derive(Debug)]
pub(crate) struct StreamState {
    /// When hyper last took a piece of its body, or the request came, in milliseconds since the clock of the connection.
    moved_ms: AtomicU64,
    /// Whether a piece was taken and no other was asked for since: then it lies until the client takes it.
    is_lying: AtomicBool,
    /// Whether its body has failed and waits until the bytes before its failure were sent.
    is_flush_awaited: AtomicBool,
    waker: AtomicWaker,
}

impl Streams {
    fn open(&self) -> MutexGuard<'_, Open> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn enter(&self, now_ms: u64) -> (u64, Arc<StreamState>) {
        let state = Arc::new(StreamState {
            moved_ms: AtomicU64::new(now_ms),
            is_lying: AtomicBool::new(false),
            is_flush_awaited: AtomicBool::new(false),
            waker: AtomicWaker::new(),
        });
        let mut open = self.open();
        let id = open.next_id;
        open.next_id = id.wrapping_add(1);
        open.streams.insert(id, Arc::clone(&state));
        (id, state)
    }

    pub(crate) fn leave(&self, id: u64) {
        self.open().streams.remove(&id);
    }

    /// When the body moved that has stood still longest.
    pub(crate) fn oldest_moved_ms(&self) -> Option<u64> {
        self.open().streams.values().map(|stream| stream.moved_ms.load(Ordering::Relaxed)).min()
    }

    /// The same among the bodies that lie there because the client does not take them.
    pub(crate) fn oldest_lying_ms(&self) -> Option<u64> {
        let open = self.open();
        let lying = open.streams.values().filter(|stream| stream.is_lying.load(Ordering::Relaxed));
        lying.map(|stream| stream.moved_ms.load(Ordering::Relaxed)).min()
    }

    /// Tells all that everything was sent that the client takes now.
    pub(crate) fn on_flushed(&self) {
        for stream in self.open().streams.values() {
            if stream.is_flush_awaited.swap(false, Ordering::AcqRel) {
                stream.waker.wake();
            }
        }
    }
}

impl StreamState {
    /// Notes that hyper asked for a piece, and whether it got one.
    pub(crate) fn note_poll(&self, got_one: bool, now_ms: u64) {
        if got_one {
            self.moved_ms.store(now_ms, Ordering::Relaxed);
        }
        self.is_lying.store(got_one, Ordering::Relaxed);
    }

    pub(crate) fn await_flush(&self) {
        self.is_flush_awaited.store(true, Ordering::Release);
    }

    pub(crate) fn poll_flushed(&self, cx: &Context<'_>) -> Poll<()> {
        self.waker.register(cx.waker());
        if self.is_flush_awaited.load(Ordering::Acquire) { Poll::Pending } else { Poll::Ready(()) }
    }
}
