//! The gossip, proven in a world where everything goes wrong and nothing is left to chance.
//!
//! **Purpose.** N unmodified [`narmesh_gossip::Gossip`] cores run under a virtual clock and a virtual network, all of it drawn
//! from one seed, so that a failure can be replayed. **Contract.** [`run`] takes [`Settings`] and returns a [`Report`]; the
//! same settings give the same [`Report::digest`].
//!
//! **Walk.** Two phases. *Safety under faults*: builds, garbage collections, crashes between two outputs, restarts with and
//! without a disk, suspended machines, cut links, partitions, lost trust, wrong wall clocks, delay, loss and duplication; after
//! each step the checker asks whether anyone accepted what its owner never published, went back, holds what it may not, or
//! misses a path that its summary covers, and whether an honest peer was blamed. *Liveness after healing*: within
//! [`Settings::patience_ms`] every table equals the present state of every owner that can be reached through machines which
//! it trusts and which trust it.
//!
//! **What is modelled.** gossipsub, because it cannot run in virtual time: an announcement goes to at most 6 neighbours, each
//! forwards it when its core accepts it, lost copies mostly arrive a heartbeat later, some never, some twice. Connections: a
//! message over a connection that breaks is lost, the break is noticed later, a lost request fails after 10 s.
//!
//! **What is not.** Hostile machines. A machine whose clock was ahead and that then loses its disk twice before anyone has heard
//! it: it may use an epoch twice, is blamed for equivocation once and then goes on above; so a machine whose clock was ever
//! wrong keeps its disk here.
//!
//! **Invariants.** The checker knows what owners truly hold and published, and never asks a core whether it was right. No
//! unordered map, no system clock, no floating point of the system's library.

mod checker;
mod draw;
mod faults;
mod machine;
mod network;
mod trace;
mod upset;
mod world;

pub use checker::Violation;
pub use faults::Faults;
pub use world::Totals;

use world::World;

/// How often liveness is looked at, milliseconds.
const LOOK_MS: u64 = 250;

/// One run.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Machines, 2 to 1,000.
    pub nodes: usize,
    /// Everything follows from it.
    pub seed: u64,
    /// Virtual time under faults, milliseconds.
    pub faulty_ms: u64,
    /// Virtual time after healing in which all tables must become equal, milliseconds.
    pub patience_ms: u64,
    /// The network and the faults.
    pub faults: Faults,
}

impl Settings {
    /// Ten virtual minutes on a bad network. 15 minutes of patience: what gossip lost for good in the last moment is found
    /// by anti-entropy, which takes a minute for each of up to ten connections, and there may be two hops.
    pub fn new(nodes: usize, seed: u64) -> Self {
        Self { nodes: nodes.clamp(2, 1_000), seed, faulty_ms: 600_000, patience_ms: 900_000, faults: Faults::WAN }
    }
}

/// What came of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// Over all inputs and outputs, hexadecimal.
    pub digest: String,
    /// Virtual milliseconds from healing until all tables were equal; `None` when they were not in time.
    pub converged_ms: Option<u64>,
    /// Summaries that were compared with the truth.
    pub checked: u64,
    /// Counts.
    pub totals: Totals,
    /// All that was broken; empty when the checkers are content.
    pub violations: Vec<Violation>,
}

/// Runs one world from its beginning to its verdict.
pub fn run(settings: Settings) -> Report {
    let mut world = World::new(settings.nodes, settings.seed, settings.faults);
    world.run_until(settings.faulty_ms);
    world.heal();
    let healed_ms = world.now_ms;
    let links = world.open_links();
    let converged_ms = loop {
        if world.checker.unconverged(&world.machines, &links).is_empty() {
            break Some(world.now_ms - healed_ms);
        }
        if world.now_ms >= healed_ms + settings.patience_ms {
            break None;
        }
        world.run_until(world.now_ms + LOOK_MS);
    };
    let mut violations = std::mem::take(&mut world.checker.violations);
    if converged_ms.is_none() {
        violations.extend(world.checker.unconverged(&world.machines, &links));
    }
    Report {
        digest: world.trace.digest(),
        converged_ms,
        checked: world.checker.checked,
        totals: world.totals,
        violations,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn short(nodes: usize, seed: u64) -> Settings {
        Settings { faulty_ms: 120_000, ..Settings::new(nodes, seed) }
    }

    #[test]
    fn the_same_seed_is_the_same_world() {
        let (one, two) = (run(short(6, 7)), run(short(6, 7)));
        assert_eq!(one, two);
        assert_ne!(one.digest, run(short(6, 8)).digest);
    }

    #[test]
    fn checkers_are_content_over_many_seeds() {
        for seed in 0..12 {
            let report = run(short(5 + usize::try_from(seed).unwrap() % 6, seed));
            assert_eq!(
                report.violations,
                [],
                "replay: narmesh-sim run --nodes {} --seed {seed} --minutes 2",
                5 + seed % 6
            );
            assert!(report.checked > 50 && report.totals.faults > 20, "{report:?}");
        }
    }

    #[test]
    fn impatience_is_reported() {
        // Nobody can be equal at the very moment of healing: the liveness checker does look.
        let report = run(Settings { patience_ms: 0, ..short(8, 3) });
        assert!(!report.violations.is_empty() && report.converged_ms.is_none());
    }
}
