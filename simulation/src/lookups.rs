//! The lookups of users, and the samples that are taken now and then.

use crate::number::{ABSENT_FROM, Number, Path, WANTED, part};
use crate::schedule::Happening;
use crate::upset::has;
use crate::world::World;
use narmesh_gossip::{Candidate, Input, ProbeOutcome};

/// Lookups come in turns of 6 s, ten turns a minute.
const TURN_US: u64 = 6_000_000;
const TURNS_PER_MINUTE: u64 = 10;

impl World {
    pub(crate) fn run_lookups(&mut self) {
        self.schedule_after_us(TURN_US, Happening::Lookups);
        let lookups = self.scenario.lookups;
        for number in 0..self.scenario.nodes {
            if !self.machine(number).is_running() || !self.machine(number).is_honest() {
                continue;
            }
            for _ in 0..self.draw_turns(lookups.absent_per_minute) {
                let range = if self.draw.chance(100) { WANTED } else { 0x1000_0000 };
                let path = self.draw.below(u64::from(range));
                self.look_for_absent(number, ABSENT_FROM + u32::try_from(path).unwrap_or(0));
            }
            for _ in 0..self.draw_turns(lookups.present_per_minute) {
                self.look_for_present(number);
            }
        }
    }

    /// The lookups of one turn: a tenth of those of a minute. Chance decides on the remainder.
    fn draw_turns(&mut self, per_minute: u64) -> u64 {
        per_minute / TURNS_PER_MINUTE + u64::from(self.draw.below(TURNS_PER_MINUTE) < per_minute % TURNS_PER_MINUTE)
    }

    /// Whom a lookup asks. A daemon asks demoted peers at a pace of one question a second; that pace is not modelled, so here
    /// they are asked nothing.
    fn find_candidates_to_ask(&self, number: Number, path: Path) -> Vec<Candidate> {
        let mut candidates = self.machine(number).core.find_candidates(&part(path));
        candidates.retain(|candidate| !candidate.is_demoted);
        candidates
    }

    fn look_for_absent(&mut self, number: Number, path: Path) {
        self.figures.probes.absent += 1;
        for candidate in self.find_candidates_to_ask(number, path) {
            let Some(other) = self.checker.number(&candidate.peer) else { continue };
            if self.machine(other).is_honest() {
                self.figures.probes.absent_wasted += 1;
            } else {
                self.figures.probes.absent_lied += 1;
                self.checker.on_lied(number, other, self.now_us);
            }
            self.feed(number, Input::Probe { peer: candidate.peer, outcome: ProbeOutcome::FalseHit });
        }
    }

    fn look_for_present(&mut self, number: Number) {
        let other = self.draw.index(self.scenario.nodes);
        let machine = self.machine(other);
        if other == number || !machine.is_running() || !machine.is_honest() || machine.store.held.is_empty() {
            return;
        }
        let count = machine.store.held.len();
        let at = self.draw.index(count);
        let path = self.machine(other).store.held.get(at).map(|held| held.path);
        let Some(path) = path.filter(|path| has(self.machine(other), *path) && !has(self.machine(number), *path))
        else {
            return;
        };
        self.figures.probes.present += 1;
        for candidate in self.find_candidates_to_ask(number, path) {
            let Some(holder) = self.checker.number(&candidate.peer) else { continue };
            let machine = self.machine(holder);
            if !machine.is_running() {
                continue;
            }
            let held = machine.is_honest() && has(machine, path);
            let outcome = if held { ProbeOutcome::Held } else { ProbeOutcome::FalseHit };
            self.feed(number, Input::Probe { peer: candidate.peer, outcome });
            if held {
                self.figures.probes.found += 1;
                return;
            }
            self.figures.probes.present_wasted += 1;
        }
    }

    /// Adds a point to the curves, and does what must be tidied up now and then.
    pub(crate) fn sample(&mut self) {
        self.schedule_after_us(self.figures.bucket_us, Happening::Sample);
        let now_us = self.now_us;
        self.forget_published();
        self.checker.check_lifetimes(&self.machines, now_us);
        self.figures.sample(now_us, self.machines.iter().map(|machine| &machine.traffic));
    }
}
