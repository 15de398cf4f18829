//! Members of a mesh that come to the newest roster: unmodified [`RosterExchange`]s and [`Journal`]s in virtual time.
//!
//! **Walk.** A [`RosterScenario`] and a seed give a world (`world.rs`). Two machines hold the mesh key. They admit and remove
//! machines, at times in the same moment, and each in its half of a network that is cut. Machines crash and come back. Liars
//! keep an old roster, claim a newest one and say nothing, or hand out forged and old ones. After each change checkers
//! (`checker.rs`) ask whether anybody took what the mesh key did not sign, went back, told a roster to somebody who is not
//! on it, or blamed an honest machine. After the heal all members that run must have the newest roster within `bound_s`,
//! and in it must be what both signers wanted.
//!
//! [`RosterExchange`]: narmesh_roster::RosterExchange
//! [`Journal`]: narmesh_roster::Journal

mod checker;
mod event;
mod liar;
mod machine;
mod plan;
mod verdict;
mod world;

use crate::healing::Healing as _;
use crate::scenario_file::{ScenarioError, decode, demand, read};
use serde::{Deserialize, Serialize};
use world::World;

/// The scenarios that come with the program.
const BUILT_IN: [(&str, &str); 2] = [
    ("rosters-200", include_str!("../../scenarios/rosters-200.toml")),
    ("rosters-1000", include_str!("../../scenarios/rosters-1000.toml")),
];

/// Members, their network, and who lies.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RosterScenario {
    /// What the scenario shows, in one sentence.
    pub about: String,
    /// Members at the beginning; the first two hold the mesh key. 6 to 2,000.
    pub machines: usize,
    /// How many of them lie.
    pub liars: usize,
    /// Machines that join.
    pub joins: usize,
    /// Members that are removed; fewer than the honest ones.
    pub removals: usize,
    /// Restarts of machines.
    pub crashes: usize,
    /// Connections of each machine, on average; at least 2.
    pub connections: usize,
    /// Delay of a message one way, milliseconds.
    pub delay_ms: u64,
    /// Random delay on top of it, at most, milliseconds.
    pub jitter_ms: u64,
    /// Virtual seconds until the network is healed.
    pub run_s: u64,
    /// How many of these seconds, the last ones, the network is cut in two.
    pub cut_s: u64,
    /// Seconds after the heal within which all members must have the newest roster.
    pub bound_s: u64,
}

/// The outcome of a run, with what was counted in it.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct RosterReport {
    /// The scenario's sentence.
    pub about: String,
    /// Members at the beginning.
    pub machines: usize,
    /// The seed.
    pub seed: u64,
    /// Rosters that were signed, without those that only make lost edits again.
    pub edits: u64,
    /// Rosters that make edits again that another signer's roster lacked.
    pub completions: u64,
    /// From the removal of a member to the moment when a machine refuses it, over all that could hear of it and all removals
    /// in the whole network: half of them, 99 of a hundred, and the last, milliseconds.
    pub refused_after_ms: [u64; 3],
    /// How often a machine was sent a roster for each one that it took, in thousandths.
    pub copies_permille: u64,
    /// Bytes of requests and replies, per machine and second, while no roster was under way.
    pub idle_bytes_per_s: u64,
    /// Bytes of requests and replies in all, per machine.
    pub bytes: u64,
    /// Size of the last roster, bytes.
    pub roster_bytes: usize,
    /// How long after the heal all members had the newest roster, milliseconds; `None` beyond the bound.
    pub equal_after_ms: Option<u64>,
    /// Promises that were broken.
    pub violations: Vec<String>,
    /// The digest over all that happened, hexadecimal.
    pub digest: String,
}

impl RosterScenario {
    /// Loads a built-in scenario, or one from a file.
    pub fn load(name_or_file: &str) -> Result<Self, ScenarioError> {
        Self::parse(name_or_file, &read(&BUILT_IN, name_or_file)?)
    }

    fn parse(name: &str, text: &str) -> Result<Self, ScenarioError> {
        let scenario: Self = decode(name, text)?;
        let demand = |holds, field, value: u64, accepted| demand(name, holds, field, value, accepted);
        let (machines, liars) = (scenario.machines, scenario.liars);
        demand((6..=2_000).contains(&machines), "machines", machines as u64, "from 6 to 2000")?;
        demand(liars < machines / 2, "liars", liars as u64, "less than half of the machines")?;
        let fit = scenario.joins + machines <= 2_047;
        demand(fit, "joins", scenario.joins as u64, "so many that a roster holds all, 2047")?;
        let removals = scenario.removals as u64;
        demand(scenario.removals < machines - liars - 2, "removals", removals, "fewer than the honest machines")?;
        demand(scenario.connections >= 2, "connections", scenario.connections as u64, "at least 2")?;
        demand(scenario.run_s > scenario.cut_s, "cut_s", scenario.cut_s, "less than run_s")?;
        Ok(scenario)
    }

    /// The same with 24 machines.
    #[must_use]
    pub fn small(mut self) -> Self {
        (self.machines, self.liars, self.joins, self.removals, self.crashes) = (24, 5, 8, 8, 12);
        self.connections = 6;
        self
    }
}

impl RosterReport {
    /// Whether nothing was broken.
    pub fn is_content(&self) -> bool {
        self.violations.is_empty()
    }
}

/// Runs one world from its beginning to its verdict.
pub fn run(scenario: &RosterScenario, seed: u64) -> RosterReport {
    let mut world = World::new(scenario.clone(), seed);
    let equal_after = world.run_and_heal(scenario.run_s, scenario.bound_s);
    world.checker.violations.extend(equal_after.as_ref().err().cloned());
    world.check_intentions();
    world.into_report(seed, equal_after.ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_scenario_passes_and_repeats_exactly() {
        let scenario = RosterScenario::load("rosters-200").unwrap().small();
        let report = run(&scenario, 1);
        assert_eq!(report.violations, [""; 0]);
        assert!(report.edits > 10 && report.completions > 0, "{report:?}");
        assert_eq!(run(&scenario, 1), report);
        assert_ne!(run(&scenario, 2).digest, report.digest);
    }

    #[test]
    fn refusals_name_the_field() {
        let refused = BUILT_IN[0].1.replace("liars = 20", "liars = 100");
        let error = RosterScenario::parse("mine", &refused).unwrap_err().to_string();
        assert_eq!(error, "scenario 'mine': liars = 100 is not less than half of the machines");
    }
}
