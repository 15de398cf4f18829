//! Runs the gossip in a simulated world where everything goes wrong and nothing is left to chance.
//!
//! **Purpose.** N unmodified [`narmesh_gossip::Gossip`] cores run under a virtual clock and a virtual network. Everything
//! is drawn from one seed, so that a failure can be replayed, and so that users can see what a fleet will cost before it
//! exists.
//! **Contract.** [`run`] takes a [`Scenario`] and a seed and returns a [`Report`]. The same scenario and seed give the same
//! [`Report::digest`] on any machine.
//!
//! **Walk.** The fleet starts ([`Scenario::settle_s`]). Then it is measured ([`Scenario::run_s`]) under builds,
//! collections, lookups, random faults, scripted events and liars. At each step the checkers ask whether any machine
//! accepted what its owner never published, went back to an older generation, holds or hands out what it may not, misses a
//! path that its summary covers, uses a summary beyond its lifetime, grew beyond a bound, or blamed an honest peer. Then
//! all faults end, and within [`Scenario::bound_s`] every table must equal the present state of every owner that can be
//! reached through honest machines.
//!
//! **Parts.** The fleet (`fleet.rs`) has the machines, the clock and chance, and is what other parts are given. The network
//! and gossipsub carry messages. The world (`world.rs`) tells cores what happened and does what they want. Above it stand the
//! plan of what goes wrong, lookups, and tricks; the simulation (`simulation.rs`) does what is due.
//!
//! **What is modelled.** gossipsub, because it cannot run in virtual time (`gossipsub.rs`, with the daemon's parameters).
//! TCP: order, repair of lost packets, a sender's retries while nothing gets through, dead connections found by ping, the
//! daemon's redialling (`network.rs`). Links with a bandwidth. Bytes are counted as they would be on the wire
//! (`traffic.rs`).
//!
//! **What is not.** The time that a core takes. A machine whose clock was ahead and that then loses its disk twice before
//! any peer has heard it: it may use an epoch twice, is blamed for equivocation once, and then goes on above that epoch. So
//! a machine whose clock was ever wrong keeps its disk here, and one that lost its disk keeps its clock until it has
//! published.
//!
//! **Invariants.** The checkers know what owners truly hold and published, and never ask a core whether it was right.
//! Nothing that happens depends on an unordered map, the system clock or the floating point of the system's library.

mod agenda;
mod checker;
mod cores;
mod draw;
mod fault;
mod figures;
mod fleet;
mod gossipsub;
mod healing;
mod lookups;
mod machine;
mod malice;
mod message;
#[cfg(any(test, feature = "mutants"))]
pub mod mutants;
mod network;
mod number;
mod plan;
mod plot;
pub mod quorum;
mod report;
pub mod rosters;
mod scenario;
mod scenario_file;
mod schedule;
mod simulation;
mod story;
mod trace;
mod traffic;
mod trick;
mod tricks;
mod upset;
mod watch;
mod world;

pub use checker::Violation;
pub use figures::{Encodings, Point, Probes};
pub use plot::draw_plots;
pub use quorum::{QuorumReport, QuorumScenario, run as run_quorum};
pub use report::{Report, Row};
pub use rosters::{RosterReport, RosterScenario, run as run_rosters};
pub use scenario::{Scenario, What, built_in};
pub use scenario_file::ScenarioError;
pub use story::Subject;
pub use traffic::{KINDS, Kind};
pub use traffic::{answer_bytes, question_bytes};
pub use trick::{TRICKS, Trick};
pub use watch::EventFigure;
pub use world::Totals;

use report::Outcome;
use simulation::Simulation;

const SECOND_US: u64 = 1_000_000;
/// How often the tables are compared after the faults, microseconds.
const LOOK_US: u64 = 250_000;

/// Runs one world from its beginning to its verdict.
pub fn run(scenario: Scenario, seed: u64, subject: Subject) -> Report {
    let (settle_us, run_us) = (scenario.settle_s * SECOND_US, scenario.run_s * SECOND_US);
    let bound_us = scenario.bound_s * SECOND_US;
    let mut simulation = Simulation::new(scenario, seed, story::Story::new(subject));
    let (mut reach, mut started_us) = (None, None);
    while simulation.world.fleet.now_us() < settle_us {
        simulation.run_until((simulation.world.fleet.now_us() + SECOND_US).min(settle_us));
        let world = &simulation.world;
        if started_us.is_none() && world.fleet.everyone_runs() {
            let reach = reach.get_or_insert_with(|| world.find_reach());
            if world.checker.seems_converged(&world.fleet.machines, reach) {
                started_us = Some(world.fleet.now_us());
            }
        }
    }
    simulation.begin();
    simulation.run_until(settle_us + run_us);
    simulation.heal();
    let healed_us = simulation.world.fleet.now_us();
    let reach = simulation.world.find_reach();
    let converged_us = loop {
        let now_us = simulation.world.fleet.now_us();
        if simulation.world.are_tables_equal(&reach) {
            break Some(now_us - healed_us);
        }
        if now_us >= healed_us + bound_us {
            break None;
        }
        simulation.run_until(now_us + LOOK_US);
    };
    let Simulation { mut world, plan } = simulation;
    let probes = world.figures.probes;
    world.checker.check_wasted(probes.absent_wasted, probes.absent);
    let mut violations = std::mem::take(&mut world.checker.violations);
    if converged_us.is_none() {
        violations.extend(world.checker.find_unconverged(&world.fleet.machines, &reach).into_iter().take(20));
    }
    let events = plan.watch.figures;
    Report::of(world, seed, Outcome { started_us, converged_us, events, violations })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small(name: &str, seed: u64) -> Report {
        run(Scenario::load(name).unwrap().small(), seed, Subject::None)
    }

    #[test]
    fn same_seed_gives_the_same_digest() {
        let (one, two) = (small("flapping", 7), small("flapping", 7));
        assert_eq!(one.digest, two.digest);
        assert_eq!(one.rows, two.rows);
        assert_ne!(one.digest, small("flapping", 8).digest);
    }

    #[test]
    fn checkers_are_content_with_every_scenario() {
        for name in built_in() {
            let report = small(name, 1);
            assert_eq!(report.violations, [""; 0], "replay: narmesh-sim run {name} --small --seed 1");
            assert!(report.checked > 30, "{name} compared {} summaries", report.checked);
        }
    }

    #[test]
    fn tracing_a_subject_does_not_change_the_run() {
        let scenario = || Scenario::load("lan-5").unwrap().small();
        let told = run(scenario(), 3, Subject::Node(0));
        assert!(told.story.iter().any(|line| line.contains("publishes")), "{:?}", told.story.first());
        let of_a_path = run(scenario(), 3, Subject::Path(2711));
        assert_eq!(told.digest, of_a_path.digest);
        assert_eq!(told.digest, small("lan-5", 3).digest);
    }

    #[test]
    fn tables_that_differ_after_the_bound_are_reported() {
        // No table can be equal at the very moment when a partition ends, so this shows that the liveness checker looks.
        let mut scenario = Scenario::load("partition").unwrap().small();
        scenario.bound_s = 0;
        scenario.event.retain(|event| event.at_s < 300);
        scenario.run_s = 60;
        let report = run(scenario, 3, Subject::None);
        assert!(!report.is_content() && report.violations.iter().any(|line| line.contains("who is at")), "{report:?}");
    }
}
