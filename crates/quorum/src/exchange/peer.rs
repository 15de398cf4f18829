//! One peer, and what it has used up.

use super::{Moment, Spoken};
use crate::reconcile::{Item, Node, Session, Shared};
use narmesh_machine::{Bucket, Tokens};
use narmesh_protocol::HashPart;
use std::collections::VecDeque;

/// After a fault, a peer is asked nothing for this long, milliseconds. Setting it aside after the third fault is
/// up to the caller.
pub(super) const SHUNNED_MS: u64 = 5_000;
/// The shortest time between two comparisons with one peer, milliseconds.
const REST_MIN_MS: u64 = 500;
/// Queries of a fruitless comparison that cost nothing; each further one counts.
const QUERIES_FREE: usize = 4;
/// What one peer may cost us in fruitless queries, at once and per second, counted in half queries; the peer rests for what
/// exceeds this. Two honest ledgers that differ in one of many paths with a long common prefix (somebody may have ground
/// them) take up to 41 queries. Each side finds what only it has before the other asks, and that may happen three times in
/// a row. A peer that always differs costs one query in 2 s, however its comparisons end. Those that end within the free
/// queries go on, at most two a second: an honest peer has news as often that others have brought before.
const VAIN: Bucket = Bucket { burst: 256, per_s: 1 };
/// The longest rest, milliseconds.
const REST_MAX_MS: u64 = 600_000;
/// Wait after a failure, milliseconds; doubles up to six times.
const AGAIN_MS: u64 = 1_000;
/// The most queries counted for a comparison without an end: an honest peer that is busy when we have found thousands of
/// differences is not to rest for all of them.
const FAILED_QUERIES_MAX: usize = 64;
/// How often the pause doubles of a peer whose failed comparisons exceed [`VAIN`]: up to four minutes.
const PAUSE_DOUBLINGS_MAX: u32 = 8;
/// So many comparisons in a row that named items, none of which was handed over, are a fault.
const UNDELIVERED_MAX: u32 = 3;

/// Units of requests that we answer a peer at once, and per second.
const REQUESTS: Bucket = Bucket { burst: 1_024, per_s: 200 };
/// Requests answered with *busy* at once, and per second; more is a flood. An honest peer waits a second after a *busy*.
const BUSY: Bucket = Bucket { burst: 256, per_s: 16 };
/// A flood counts as at most one fault in this time, milliseconds.
const BLAMED_MS: u64 = 1_000;

/// A peer, connected or not. Connecting again does not reset what it used up, nor end its being set aside.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) is_connected: bool,
    /// Empty while the peer is not connected.
    pub(super) spoken: Spoken,
    /// Whether it is to be told of news even if there is none.
    pub(super) owed: bool,
    /// When to compare with it.
    due: Option<Moment>,
    /// No comparison begins before this.
    pub(super) rest_until: Moment,
    /// Nor before this, after a failure.
    again_at: Moment,
    /// It did wrong: before this, it is not even asked for paths.
    pub(super) shunned_until: Moment,
    /// It left a question for paths unanswered: before this, only others are asked.
    pub(super) silent_until: Moment,
    failures: u32,
    undelivered: u32,
    vain: Tokens,
    pub(super) running: Option<Running>,
    /// Paths to ask it for once it has answered the last question.
    pub(super) queue: VecDeque<(u64, HashPart)>,
    pub(super) asking: bool,
    requests: Tokens,
    busy: Tokens,
    blamed: Option<Moment>,
}

/// What a comparison of ours is doing.
#[derive(Debug)]
pub(super) enum Running {
    Comparing(Box<Session>),
    Pulling(Pulling),
}

impl Running {
    /// The number of queries that it took so far.
    fn queries(&self) -> usize {
        match self {
            Self::Comparing(session) => session.queries(),
            Self::Pulling(pulling) => pulling.queries,
        }
    }

    /// The number of new attestations that it brought so far.
    fn brought(&self) -> usize {
        match self {
            Self::Comparing(_) => 0,
            Self::Pulling(pulling) => pulling.new,
        }
    }
}

#[derive(Debug)]
pub(super) struct Pulling {
    pub(super) builders: Shared,
    /// Items still wanted, ascending; they begin with those in `asked`.
    pub(super) wanted: Vec<(Node, Item)>,
    pub(super) asked: Vec<(Node, Item)>,
    /// How many of the items in `asked` are answered by the reply under verification.
    pub(super) answered: usize,
    pub(super) complete: bool,
    pub(super) queries: usize,
    pub(super) verified: usize,
    pub(super) new: usize,
}

/// How to answer a request.
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

    /// The last connection is gone; returns the questions that it was to be asked.
    pub(super) fn on_gone(&mut self, now: Moment) -> VecDeque<(u64, HashPart)> {
        self.is_connected = false;
        self.spoken = nothing();
        (self.owed, self.asking) = (false, false);
        if let Some(running) = self.running.take() {
            self.pause(now, running.queries(), running.brought());
        }
        self.due = None;
        // After a network has healed, peers compare at once: the old connection may have caused the failures. A peer that
        // did wrong is still shunned, and one that cost too much in vain goes on resting.
        if self.vain.over_ms(VAIN, now) == 0 {
            (self.failures, self.again_at) = (0, Moment::default());
            self.rest_until = self.shunned_until;
        }
        std::mem::take(&mut self.queue)
    }

    /// Plans a comparison with it for then, or for the end of its rest.
    pub(super) fn plan_comparison(&mut self, at: Moment) {
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
    }

    /// When the next comparison is to begin.
    pub(super) fn next_start(&self) -> Option<Moment> {
        self.due.filter(|_| self.running.is_none()).map(|due| due.max(self.rest_until).max(self.again_at))
    }

    pub(super) fn clear_due(&mut self) {
        self.due = None;
    }

    /// There was no answer, or *busy*, after so many queries and new attestations. The comparison is tried again later, with
    /// a longer wait each time; sooner if the peer has news and did not cost too much in vain.
    pub(super) fn retry_later(&mut self, now: Moment, queries: usize, new: usize) {
        self.running = None;
        self.plan_comparison(now + (AGAIN_MS << self.failures.min(6)));
        self.pause(now, queries, new);
    }

    /// A comparison failed. The pause that follows is long only if failed and fruitless ones cost too much.
    fn pause(&mut self, now: Moment, queries: usize, new: usize) {
        // It brought something before it failed, so it is worth another try soon.
        if new > 0 {
            self.failures = 0;
            self.vain = Tokens::default();
        } else {
            let vain = u64::try_from(queries.min(FAILED_QUERIES_MAX)).unwrap_or(u64::MAX);
            self.vain.take(vain.saturating_mul(2));
        }
        let longest_ms = AGAIN_MS << self.failures.min(PAUSE_DOUBLINGS_MAX);
        self.again_at = now + self.vain.over_ms(VAIN, now).min(longest_ms).max(AGAIN_MS);
        self.failures = self.failures.saturating_add(1);
    }

    /// A comparison is over. Returns true when it was the last of several in which the peer named items and delivered none.
    pub(super) fn end_comparison(&mut self, now: Moment, queries: usize, pulled: Option<&Pulling>) -> bool {
        self.running = None;
        self.failures = 0;
        // A comparison that named nothing owes nothing.
        let (new, verified) = pulled.map_or((0, 1), |pulled| (pulled.new, pulled.verified));
        if new > 0 {
            self.vain = Tokens::default();
        } else {
            let vain = u64::try_from(queries.saturating_sub(QUERIES_FREE)).unwrap_or(u64::MAX);
            // Twice, because the bucket fills by one a second, and each such query is rested for 2 s.
            self.vain.take(vain.saturating_mul(2));
        }
        // Only what exceeds the bucket is rested for, so a few fruitless comparisons cost no time.
        let rest_ms = if new > 0 { 0 } else { self.vain.over_ms(VAIN, now).min(REST_MAX_MS) };
        self.rest_until = self.rest_until.max(now + REST_MIN_MS + rest_ms);
        // It delivers and has more, so the rest is compared without a pause.
        if new > 0 && pulled.is_some_and(|pulled| !pulled.complete) {
            self.plan_comparison(now);
        }
        self.undelivered = if verified > 0 { 0 } else { self.undelivered + 1 };
        let liar = self.undelivered >= UNDELIVERED_MAX;
        if liar {
            self.undelivered = 0;
        }
        liar
    }

    /// Charges what an answer cost beyond the expected units.
    pub(super) fn charge(&mut self, units: u64) {
        self.requests.take(units);
    }

    /// Decides how to answer a request, and charges `units` if it is to be answered.
    pub(super) fn admit(&mut self, now: Moment, units: u64) -> Admission {
        if !self.requests.is_full(REQUESTS, now) {
            self.requests.take(units);
            return Admission::Answer;
        }
        // An honest peer waits after a *busy*; only who goes on all the same is blamed.
        if !self.busy.is_full(BUSY, now) {
            self.busy.take(1);
            return Admission::Busy;
        }
        // One flood is one fault. Three in a moment would set the peer aside for one burst.
        if self.blamed.is_some_and(|at| now < at + BLAMED_MS) {
            return Admission::Busy;
        }
        self.blamed = Some(now);
        Admission::Flood
    }
}

fn nothing() -> Spoken {
    Spoken { told: Shared::new([]), counted: Shared::new([]), is_builder: false }
}
