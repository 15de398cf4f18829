//! What every part of the core works with: the time of the present input, chance, the timers, and what is to be done.

use crate::output::{Event, Output};
use crate::time::Now;
use crate::timers::Timers;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::VecDeque;

/// The only way in which the parts of a core hear of time and chance, and have something done.
#[derive(Debug)]
pub(crate) struct Io {
    pub(crate) now: Now,
    pub(crate) timers: Timers,
    rng: ChaCha8Rng,
    outputs: VecDeque<Output>,
}

impl Io {
    /// Every random choice follows from `rng_seed`.
    pub(crate) fn new(now: Now, rng_seed: [u8; 32]) -> Self {
        Self { now, timers: Timers::default(), rng: ChaCha8Rng::from_seed(rng_seed), outputs: VecDeque::new() }
    }

    /// Notes the time of an input. Time does not go back, whatever the caller passes.
    pub(crate) fn set_time(&mut self, now: Now) {
        self.now = Now { moment: now.moment.max(self.now.moment), wall_ms: now.wall_ms };
    }

    /// A random number.
    pub(crate) fn draw(&mut self) -> u64 {
        self.rng.next_u64()
    }

    /// A random number from 0 to `below` - 1; 0 when `below` is 0.
    pub(crate) fn draw_below(&mut self, below: u64) -> u64 {
        self.draw().checked_rem(below).unwrap_or(0)
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
