//! The loop: take an input whose outcome was new, change it, run it, and keep it if its outcome is new.

use crate::{Outcome, Target, corpus, mutate};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::any::Any;
use std::collections::HashSet;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Inputs that are kept at most. When a target has more outcomes, new inputs replace old ones.
const KEPT_MAX: usize = 20_000;

/// Runs one target on inputs that are made from its seeds, its corpus, and inputs whose outcome was new.
#[derive(Debug)]
pub struct Engine {
    target: Target,
    rng: ChaCha8Rng,
    seen: HashSet<Outcome>,
    kept: Vec<Vec<u8>>,
    /// Inputs run so far.
    pub inputs_run: u64,
}

/// An input that breaks an invariant.
#[derive(Debug)]
pub struct Failure {
    /// The bytes of the input.
    pub input: Vec<u8>,
    /// What the panic said.
    pub message: String,
}

impl Engine {
    /// An engine whose every choice follows from `seed`.
    pub fn new(target: Target, seed: u64) -> Self {
        let rng = ChaCha8Rng::seed_from_u64(seed);
        Self { target, rng, seen: HashSet::new(), kept: Vec::new(), inputs_run: 0 }
    }

    /// Runs seeds and corpus as they are.
    pub fn replay(&mut self) -> io::Result<Result<(), Failure>> {
        let inputs = [vec![Vec::new()], (self.target.seeds)(), corpus::read(self.target.name)?].concat();
        for input in inputs {
            if let Err(failure) = self.run(&input) {
                return Ok(Err(failure));
            }
            self.kept.push(input);
        }
        Ok(Ok(()))
    }

    /// Makes one more input and runs it.
    pub fn step(&mut self) -> Result<(), Failure> {
        let mut input = self.pick();
        let other = self.pick();
        mutate(&mut self.rng, &mut input, self.target.words, &other, self.target.input_bytes_max);
        if self.run(&input)? {
            if self.kept.len() >= KEPT_MAX {
                let at = self.rng.random_range(0..self.kept.len());
                self.kept.swap_remove(at);
            }
            self.kept.push(input);
        }
        Ok(())
    }

    /// How many different outcomes were seen so far.
    pub fn outcomes(&self) -> usize {
        self.seen.len()
    }

    fn pick(&mut self) -> Vec<u8> {
        let at = self.rng.random_range(0..self.kept.len().max(1));
        self.kept.get(at).cloned().unwrap_or_default()
    }

    /// Runs one input. Returns whether its outcome was new.
    fn run(&mut self, input: &[u8]) -> Result<bool, Failure> {
        self.inputs_run += 1;
        match catch_unwind(AssertUnwindSafe(|| (self.target.run)(input))) {
            Ok(outcome) => Ok(self.seen.insert(outcome)),
            Err(panic) => Err(Failure { input: input.to_vec(), message: message(&*panic) }),
        }
    }
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic without a text".to_owned())
}
