//! Builders that attest, and nodes that exchange the attestations and count them: unmodified [`Ledger`]s, [`Exchange`]s and
//! [`Policy`]s in virtual time.
//!
//! **Walk.** A [`QuorumScenario`] and a seed give a world (`world.rs`). Each machine is a builder with a key of its own.
//! Honest machines build, and some get two results. Hostile machines attest one lie for each path, hand on nothing of
//! others, and have stolen a key that is revoked. The network is cut in two and healed. After each change a judge
//! (`judge.rs`) counts anew, by the rules of docs/quorum.md and from what the machine took in, and compares. Nothing may
//! ever be agreed or let through that no honest machine attested. After the heal all honest machines must come to the same
//! verdicts within `bound_s`.
//!
//! [`Ledger`]: narmesh_quorum::Ledger
//! [`Exchange`]: narmesh_quorum::exchange::Exchange
//! [`Policy`]: narmesh_quorum::Policy

mod judge;
mod machine;
mod plan;
mod schedule;
mod world;

use crate::healing::Healing as _;
use crate::scenario_file::{ScenarioError, decode, demand, read};
use serde::{Deserialize, Serialize};
use world::World;

/// The scenario that comes with the program.
const BUILT_IN: (&str, &str) = ("quorum-100", include_str!("../../scenarios/quorum-100.toml"));

/// Builders, their network, and who lies.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuorumScenario {
    /// What the scenario shows, in one sentence.
    pub about: String,
    /// Machines, each with a builder key; 4 to 250.
    pub builders: usize,
    /// How many of them are hostile and agree on one lie.
    pub hostile: usize,
    /// Groups, that is owners, of the hostile builders; fewer than `k`.
    pub hostile_groups: usize,
    /// Groups that must agree.
    pub k: usize,
    /// Store paths that are built; 1 to 10,000.
    pub paths: u32,
    /// How many of them are neighbours in the tree that ledgers are compared by. Somebody ground their hash parts to make
    /// comparisons long.
    pub clustered: u32,
    /// Honest builders of each path, at most.
    pub builds_per_path: usize,
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
    /// Seconds after the heal within which all honest machines must have the same verdicts.
    pub bound_s: u64,
}

/// The outcome of a run, with what was counted in it.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct QuorumReport {
    /// The scenario's sentence.
    pub about: String,
    /// Machines.
    pub builders: usize,
    /// The seed.
    pub seed: u64,
    /// Attestations made.
    pub attestations: u64,
    /// Attestations taken in, over all machines.
    pub taken: u64,
    /// Comparisons of two ledgers that came to their end.
    pub comparisons: u64,
    /// Bytes of requests and replies, per machine.
    pub bytes: u64,
    /// Paths by their state at the end, at an honest machine: agreed, short, in conflict, nothing attested.
    pub states: [usize; 4],
    /// Verdicts that the judge counted anew.
    pub judged: u64,
    /// How long after the heal all honest machines had the same verdicts, milliseconds; `None` beyond the bound.
    pub equal_after_ms: Option<u64>,
    /// Promises that were broken.
    pub violations: Vec<String>,
    /// The digest over all that happened, hexadecimal.
    pub digest: String,
}

impl QuorumScenario {
    /// Loads the built-in scenario, or one from a file.
    pub fn load(name_or_file: &str) -> Result<Self, ScenarioError> {
        Self::parse(name_or_file, &read(&[BUILT_IN], name_or_file)?)
    }

    fn parse(name: &str, text: &str) -> Result<Self, ScenarioError> {
        let scenario: Self = decode(name, text)?;
        let demand = |holds, field, value: u64, accepted| demand(name, holds, field, value, accepted);
        let (builders, hostile) = (scenario.builders, scenario.hostile);
        demand((4..=250).contains(&builders), "builders", builders as u64, "from 4 to 250")?;
        demand(hostile >= 1 && hostile < builders / 2, "hostile", hostile as u64, "from 1 to less than half")?;
        let groups = scenario.hostile_groups;
        let fewer = (1..=hostile).contains(&groups) && groups < scenario.k;
        demand(fewer, "hostile_groups", groups as u64, "from 1 to hostile, and fewer than k")?;
        demand(scenario.k <= builders - hostile, "k", scenario.k as u64, "at most the honest builders")?;
        demand((1..=10_000).contains(&scenario.paths), "paths", u64::from(scenario.paths), "from 1 to 10000")?;
        let clustered = u64::from(scenario.clustered);
        demand(scenario.clustered <= scenario.paths, "clustered", clustered, "at most paths")?;
        demand(scenario.connections >= 2, "connections", scenario.connections as u64, "at least 2")?;
        demand(scenario.run_s > scenario.cut_s, "cut_s", scenario.cut_s, "less than run_s")?;
        Ok(scenario)
    }

    /// The same with 16 builders and 10 paths, of which 8 are neighbours.
    #[must_use]
    pub fn small(mut self) -> Self {
        (self.builders, self.hostile, self.hostile_groups, self.k) = (16, 4, 2, 4);
        (self.paths, self.clustered, self.builds_per_path, self.connections) = (10, 8, 8, 5);
        self
    }
}

impl QuorumReport {
    /// Whether nothing was broken.
    pub fn is_content(&self) -> bool {
        self.violations.is_empty()
    }
}

/// Runs one world from its beginning to its verdict.
pub fn run(scenario: &QuorumScenario, seed: u64) -> QuorumReport {
    let mut world = World::new(scenario.clone(), seed);
    let equal_after = world.run_and_heal(scenario.run_s, scenario.bound_s);
    world.judge.violations.extend(equal_after.as_ref().err().cloned());
    world.into_report(seed, equal_after.ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_scenario_passes_and_repeats_exactly() {
        let scenario = QuorumScenario::load("quorum-100").unwrap().small();
        let report = run(&scenario, 1);
        assert_eq!(report.violations, [""; 0]);
        let [agreed, _, conflict, _] = report.states;
        assert!(report.judged > 500 && agreed > 0 && conflict > 0, "{report:?}");
        assert_eq!(run(&scenario, 1), report);
        assert_ne!(run(&scenario, 2).digest, report.digest);
    }

    #[test]
    fn refusals_name_the_field() {
        let refused = BUILT_IN.1.replace("hostile_groups = 5", "hostile_groups = 8");
        let error = QuorumScenario::parse("mine", &refused).unwrap_err().to_string();
        assert_eq!(error, "scenario 'mine': hostile_groups = 8 is not from 1 to hostile, and fewer than k");
    }
}
