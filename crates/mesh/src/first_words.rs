//! The first moment after a start, in which peers that know us have not told us yet what they have.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// How long after a start the peers are awaited. Connection, greeting, comparison and a summary take seven round trips:
/// half a second between continents, beside the time that both sides need. A peer that is off costs the first build
/// after a start this much.
const AWAITED: Duration = Duration::from_secs(2);

/// Whether peers are awaited that were not heard in this run.
#[derive(Debug)]
pub(super) struct FirstWords {
    since: Instant,
    are_all_heard: AtomicBool,
}

impl FirstWords {
    /// Of a daemon that starts now.
    pub(super) fn new() -> Self {
        Self { since: Instant::now(), are_all_heard: AtomicBool::new(false) }
    }

    /// Whether somebody may still tell us for the first time what it has.
    pub(super) fn are_awaited(&self) -> bool {
        !self.are_all_heard.load(Relaxed) && self.since.elapsed() < AWAITED
    }

    /// Notes that all were heard.
    pub(super) fn end(&self) {
        self.are_all_heard.store(true, Relaxed);
    }
}
