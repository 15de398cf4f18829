//! The lookups of users, and the probes that follow from them.

use crate::cores::gossip::{Candidate, Input, ProbeOutcome};
use crate::machine::Machine;
use crate::number::{ABSENT_FROM, Number, Path, WANTED, part};
use crate::schedule::Happening;
use crate::world::World;

/// Lookups come in turns of 6 s, ten turns a minute.
const TURN_US: u64 = 6_000_000;
const TURNS_PER_MINUTE: u64 = 10;

/// One turn of lookups, on every honest machine that runs.
pub(crate) fn run_lookups(world: &mut World) {
    world.fleet.schedule.after_us(TURN_US, Happening::Lookups);
    let lookups = world.fleet.scenario.lookups;
    for number in 0..world.fleet.scenario.nodes {
        if !world.fleet.machine(number).is_running() || !world.fleet.machine(number).is_honest() {
            continue;
        }
        for _ in 0..draw_turns(world, lookups.absent_per_minute) {
            let range = if world.fleet.draw.chance(100) { WANTED } else { 0x1000_0000 };
            let path = world.fleet.draw.below(u64::from(range));
            look_for_absent(world, number, ABSENT_FROM + u32::try_from(path).unwrap_or(0));
        }
        for _ in 0..draw_turns(world, lookups.present_per_minute) {
            look_for_present(world, number);
        }
    }
}

/// The lookups of one turn: a tenth of those of a minute. Chance decides on the remainder.
fn draw_turns(world: &mut World, per_minute: u64) -> u64 {
    per_minute / TURNS_PER_MINUTE + u64::from(world.fleet.draw.below(TURNS_PER_MINUTE) < per_minute % TURNS_PER_MINUTE)
}

/// Whom a lookup asks. A daemon asks demoted peers last, 64 questions at a time; that is not modelled, so here
/// they are asked nothing.
fn find_candidates_to_ask(world: &World, number: Number, path: Path) -> Vec<Candidate> {
    let mut candidates = world.fleet.machine(number).core.find_candidates(&part(path));
    candidates.retain(|candidate| !candidate.is_demoted);
    candidates
}

fn look_for_absent(world: &mut World, number: Number, path: Path) {
    world.figures.probes.absent += 1;
    for candidate in find_candidates_to_ask(world, number, path) {
        let Some(other) = world.checker.number(&candidate.peer) else { continue };
        if world.fleet.machine(other).is_honest() {
            world.figures.probes.absent_wasted += 1;
        } else {
            world.figures.probes.absent_lied += 1;
            world.checker.on_lied(number, other, world.fleet.now_us());
        }
        world.feed(number, Input::Probe { peer: candidate.peer, outcome: ProbeOutcome::FalseHit });
    }
}

fn look_for_present(world: &mut World, number: Number) {
    let other = world.fleet.draw.index(world.fleet.scenario.nodes);
    let machine = world.fleet.machine(other);
    if other == number || !machine.is_running() || !machine.is_honest() || machine.store.held.is_empty() {
        return;
    }
    let count = machine.store.held.len();
    let at = world.fleet.draw.index(count);
    let path = world.fleet.machine(other).store.held.get(at).map(|held| held.path);
    let Some(path) =
        path.filter(|path| has(world.fleet.machine(other), *path) && !has(world.fleet.machine(number), *path))
    else {
        return;
    };
    world.figures.probes.present += 1;
    for candidate in find_candidates_to_ask(world, number, path) {
        let Some(holder) = world.checker.number(&candidate.peer) else { continue };
        let machine = world.fleet.machine(holder);
        if !machine.is_running() {
            continue;
        }
        let held = machine.is_honest() && has(machine, path);
        let outcome = if held { ProbeOutcome::Held } else { ProbeOutcome::FalseHit };
        world.feed(number, Input::Probe { peer: candidate.peer, outcome });
        if held {
            world.figures.probes.found += 1;
            return;
        }
        world.figures.probes.present_wasted += 1;
    }
}

/// Whether a machine's store has a path now.
fn has(machine: &Machine, path: Path) -> bool {
    machine.store.live.contains(&path)
}
