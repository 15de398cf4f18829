//! One connected peer.

use super::{Moment, Spoken};
use crate::reconcile::{Item, Node, Session, Shared};
use narmesh_protocol::HashPart;
use std::collections::VecDeque;

/// After a fault a peer is asked nothing for so long, milliseconds; that the third one sets it aside is the caller's doing.
pub(super) const SHUNNED_MS: u64 = 5_000;
/// Shortest time between two comparisons with one peer, milliseconds.
const REST_MIN_MS: u64 = 500;
/// Queries of a comparison that brought nothing, above which each counts.
const QUERIES_FREE: usize = 4;
/// Halves of such queries with one peer, at once and per second; what is above is rested for. Two honest ledgers that differ in
/// one of many paths with a long common prefix (somebody may have ground them) take up to 41, and each side finds what only it
/// has before the other one asks: that may happen three times in a row. One who always differs costs a query in 2 s.
const VAIN: Bucket = Bucket { burst: 256, per_s: 1 };
/// The longest rest, milliseconds.
const REST_MAX_MS: u64 = 600_000;
/// After a failure, milliseconds; doubles six times.
const AGAIN_MS: u64 = 1_000;
/// Comparisons in a row that named items of which none was handed over.
const UNDELIVERED_MAX: u32 = 3;

/// Units of requests that we answer a peer at once, and per second.
const REQUESTS: Bucket = Bucket { burst: 1_024, per_s: 200 };
/// Requests told *busy* at once, and per second: above, it is a flood. An honest peer waits a second after a *busy*.
const BUSY: Bucket = Bucket { burst: 256, per_s: 16 };
/// A flood is one fault in so many milliseconds.
const BLAMED_MS: u64 = 1_000;

/// A peer, connected or not: what it used up, and that it is set aside, does not end by connecting again.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) is_connected: bool,
    /// Nothing while it is not connected.
    pub(super) spoken: Spoken,
    /// It is to be told of news whether or not there are any.
    pub(super) owed: bool,
    /// When to compare with it.
    due: Option<Moment>,
    /// Not before this.
    pub(super) rest_until: Moment,
    /// Nor before this, after a failure.
    again_at: Moment,
    /// It did wrong: it is not even asked for paths before this.
    pub(super) shunned_until: Moment,
    /// It left a question for paths unanswered: others are asked before this.
    pub(super) silent_until: Moment,
    failures: u32,
    undelivered: u32,
    vain: Tokens,
    pub(super) running: Option<Running>,
    /// Paths to ask it for when it has answered the last question.
    pub(super) queue: VecDeque<(u64, HashPart)>,
    pub(super) asking: bool,
    requests: Tokens,
    busy: Tokens,
    blamed: Option<Moment>,
}

/// A comparison of ours.
#[derive(Debug)]
pub(super) enum Running {
    Comparing(Box<Session>),
    Pulling(Pulling),
}

#[derive(Debug)]
pub(super) struct Pulling {
    pub(super) builders: Shared,
    /// Ascending; those after the ones asked for.
    pub(super) wanted: Vec<(Node, Item)>,
    pub(super) asked: Vec<(Node, Item)>,
    /// Of the items asked for, how many are answered by what is under verification.
    pub(super) answered: usize,
    pub(super) complete: bool,
    pub(super) queries: usize,
    pub(super) verified: usize,
    pub(super) new: usize,
}

/// Whether to answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Admission {
    Answer,
    Busy,
    Flood,
}

impl Peer {
    pub(super) fn new(now: Moment) -> Self {
        Self {
            is_connected: false,
            spoken: nothing(),
            owed: false,
            due: None,
            rest_until: now,
            again_at: now,
            shunned_until: now,
            silent_until: Moment::default(),
            failures: 0,
            undelivered: 0,
            vain: Tokens::default(),
            running: None,
            queue: VecDeque::new(),
            asking: false,
            requests: Tokens::default(),
            busy: Tokens::default(),
            blamed: None,
        }
    }

    /// The last connection is gone; gives what it was to be asked for.
    pub(super) fn leaves(&mut self) -> VecDeque<(u64, HashPart)> {
        self.is_connected = false;
        self.spoken = nothing();
        (self.owed, self.asking) = (false, false);
        (self.due, self.running) = (None, None);
        // The line failed, perhaps, and is a new one next time.
        (self.failures, self.again_at) = (0, Moment::default());
        // A network that heals is compared over at once; who did wrong stays set aside.
        self.rest_until = self.shunned_until;
        std::mem::take(&mut self.queue)
    }

    /// Compare with it then, or when its rest is over.
    pub(super) fn wish(&mut self, at: Moment) {
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
    }

    /// When the next comparison is to begin.
    pub(super) fn starts(&self) -> Option<Moment> {
        self.due.filter(|_| self.running.is_none()).map(|due| due.max(self.rest_until).max(self.again_at))
    }

    pub(super) fn begins(&mut self) {
        self.due = None;
    }

    /// No answer, or *busy*: tried again later, and later each time, but for news of it.
    pub(super) fn failed(&mut self, now: Moment) {
        self.running = None;
        self.again_at = now.after(AGAIN_MS);
        self.wish(now.after(AGAIN_MS << self.failures.min(6)));
        self.failures = self.failures.saturating_add(1);
    }

    /// A comparison is over. True when it was the last of several that promised and did not deliver.
    pub(super) fn ended(&mut self, now: Moment, queries: usize, pulled: Option<&Pulling>) -> bool {
        self.running = None;
        self.failures = 0;
        let (new, verified) = pulled.map_or((0, 1), |pulled| (pulled.new, pulled.verified));
        if new == 0 {
            let vain = u64::try_from(queries.saturating_sub(QUERIES_FREE)).unwrap_or(u64::MAX);
            self.vain.take(vain.saturating_mul(2));
        }
        let rest_ms = if new > 0 { 0 } else { self.vain.over_ms(VAIN, now).min(REST_MAX_MS) };
        self.rest_until = self.rest_until.max(now.after(REST_MIN_MS + rest_ms));
        if new > 0 && pulled.is_some_and(|pulled| !pulled.complete) {
            self.wish(now);
        }
        self.undelivered = if verified > 0 { 0 } else { self.undelivered + 1 };
        let liar = self.undelivered >= UNDELIVERED_MAX;
        if liar {
            self.undelivered = 0;
        }
        liar
    }

    /// Counts what an answer cost beyond what it was expected to.
    pub(super) fn charge(&mut self, units: u64) {
        self.requests.take(units);
    }

    /// Counts a request, and `units` of it if it is to be answered.
    pub(super) fn admit(&mut self, now: Moment, units: u64) -> Admission {
        if !self.requests.is_full(REQUESTS, now) {
            self.requests.take(units);
            return Admission::Answer;
        }
        if !self.busy.is_full(BUSY, now) {
            self.busy.take(1);
            return Admission::Busy;
        }
        if self.blamed.is_some_and(|at| now < at.after(BLAMED_MS)) {
            return Admission::Busy;
        }
        self.blamed = Some(now);
        Admission::Flood
    }
}

fn nothing() -> Spoken {
    Spoken { told: Shared::new([]), counted: Shared::new([]), is_builder: false }
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    burst: u64,
    per_s: u64,
}

/// How much of a bucket is used up, in thousandths; it drains with time.
#[derive(Debug, Default)]
struct Tokens {
    used: u64,
    at: Moment,
}

impl Tokens {
    fn is_full(&mut self, bucket: Bucket, now: Moment) -> bool {
        self.drain(bucket, now);
        self.used >= bucket.burst * 1_000
    }

    /// How long until it is no more than full, milliseconds.
    fn over_ms(&mut self, bucket: Bucket, now: Moment) -> u64 {
        self.drain(bucket, now);
        self.used.saturating_sub(bucket.burst * 1_000) / bucket.per_s
    }

    fn drain(&mut self, bucket: Bucket, now: Moment) {
        let drained = now.0.saturating_sub(self.at.0).saturating_mul(bucket.per_s);
        self.used = self.used.saturating_sub(drained);
        self.at = now;
    }

    fn take(&mut self, count: u64) {
        self.used = self.used.saturating_add(count.saturating_mul(1_000));
    }
}
