//! What every part of the core works with: the time of the present input, chance, the timers, and what is to be done.

use crate::output::{Event, Output};
use libp2p_identity::PeerId;
use narmesh_machine::{Chance, Now, Timers};
use std::collections::VecDeque;

/// What a timer is for. There is at most one timer for each value, so the peers bound their number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Timer {
    /// Our publication has something to say.
    Publish,
    /// Anti-entropy with the next peer.
    Sync,
    /// The greeting of a new connection, its retry, or the second sync after it.
    Greet(PeerId),
    /// The next attempt of a pull.
    Pull(PeerId),
    /// The first of our requests has waited too long for its answer.
    Requests,
    /// The lifetime of a peer's summary ends.
    Expire(PeerId),
    /// A peer is no longer set aside, or no longer demoted.
    Conduct(PeerId),
}

/// The only way in which the parts of a core hear of time and chance, and have something done.
#[derive(Debug)]
pub(crate) struct Io {
    pub(crate) now: Now,
    pub(crate) timers: Timers<Timer>,
    pub(crate) chance: Chance,
    outputs: VecDeque<Output>,
}

impl Io {
    /// Every random choice follows from `rng_seed`.
    pub(crate) fn new(now: Now, rng_seed: [u8; 32]) -> Self {
        Self { now, timers: Timers::default(), chance: Chance::new(rng_seed), outputs: VecDeque::new() }
    }

    /// Notes the time of an input. Time does not go back, whatever the caller passes.
    pub(crate) fn set_time(&mut self, now: Now) {
        self.now = Now { moment: now.moment.max(self.now.moment), wall_ms: now.wall_ms };
    }

    pub(crate) fn push(&mut self, output: Output) {
        self.outputs.push_back(output);
    }

    pub(crate) fn push_event(&mut self, event: Event) {
        self.push(Output::Event(event));
    }

    /// The next thing to do.
    pub(crate) fn pop(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }
}
