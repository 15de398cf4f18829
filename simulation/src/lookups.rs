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
        self.fleet.schedule.after_us(TURN_US, Happening::Lookups);
        let lookups = self.fleet.scenario.lookups;
        for number in 0..self.fleet.scenario.nodes {
            if !self.fleet.machine(number).is_running() || !self.fleet.machine(number).is_honest() {
                continue;
            }
            for _ in 0..self.draw_turns(lookups.absent_per_minute) {
                let range = if self.fleet.draw.chance(100) { WANTED } else { 0x1000_0000 };
                let path = self.fleet.draw.below(u64::from(range));
                self.look_for_absent(number, ABSENT_FROM + u32::try_from(path).unwrap_or(0));
            }
            for _ in 0..self.draw_turns(lookups.present_per_minute) {
                self.look_for_present(number);
            }
        }
    }

    /// The lookups of one turn: a tenth of those of a minute. Chance decides on the remainder.
    fn draw_turns(&mut self, per_minute: u64) -> u64 {
        per_minute / TURNS_PER_MINUTE
            + u64::from(self.fleet.draw.below(TURNS_PER_MINUTE) < per_minute % TURNS_PER_MINUTE)
    }

    /// Whom a lookup asks. A daemon asks demoted peers at a pace of one question a second; that pace is not modelled, so here
    /// they are asked nothing.
    fn find_candidates_to_ask(&self, number: Number, path: Path) -> Vec<Candidate> {
        let mut candidates = self.fleet.machine(number).core.find_candidates(&part(path));
        candidates.retain(|candidate| !candidate.is_demoted);
        candidates
    }

    fn look_for_absent(&mut self, number: Number, path: Path) {
        self.figures.probes.absent += 1;
        for candidate in self.find_candidates_to_ask(number, path) {
            let Some(other) = self.checker.number(&candidate.peer) else { continue };
            if self.fleet.machine(other).is_honest() {
                self.figures.probes.absent_wasted += 1;
            } else {
                self.figures.probes.absent_lied += 1;
                self.checker.on_lied(number, other, self.fleet.now_us());
            }
            self.feed(number, Input::Probe { peer: candidate.peer, outcome: ProbeOutcome::FalseHit });
        }
    }

    fn look_for_present(&mut self, number: Number) {
        let other = self.fleet.draw.index(self.fleet.scenario.nodes);
        let machine = self.fleet.machine(other);
        if other == number || !machine.is_running() || !machine.is_honest() || machine.store.held.is_empty() {
            return;
        }
        let count = machine.store.held.len();
        let at = self.fleet.draw.index(count);
        let path = self.fleet.machine(other).store.held.get(at).map(|held| held.path);
        let Some(path) =
            path.filter(|path| has(self.fleet.machine(other), *path) && !has(self.fleet.machine(number), *path))
        else {
            return;
        };
        self.figures.probes.present += 1;
        for candidate in self.find_candidates_to_ask(number, path) {
            let Some(holder) = self.checker.number(&candidate.peer) else { continue };
            let machine = self.fleet.machine(holder);
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
        self.fleet.schedule.after_us(self.figures.bucket_us, Happening::Sample);
        let now_us = self.fleet.now_us();
        self.gossipsub.forget_published(now_us);
        self.checker.check_lifetimes(&self.fleet.machines, now_us);
        self.figures.sample(now_us, self.fleet.traffic());
    }
}
