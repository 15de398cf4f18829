//! Checks the checkers: cores with one check left out must be noticed.

pub mod rewrite;
pub mod table;

use self::table::{GOSSIP, Mutant, QUORUM, ROSTER};
use crate::{QuorumScenario, RosterScenario, Scenario, Subject, run, run_quorum, run_rosters};
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// How many seeds are tried; each mutant must go red with one of them.
const SEEDS_MAX: u64 = 20;

const SCENARIOS: [(&str, &str); 4] = [
    ("mutants/storm", include_str!("../../scenarios/mutants/storm.toml")),
    ("mutants/slow", include_str!("../../scenarios/mutants/slow.toml")),
    ("mutants/gone", include_str!("../../scenarios/mutants/gone.toml")),
    ("mutants/many", include_str!("../../scenarios/mutants/many.toml")),
];
const QUORUM_SCENARIO: &str = "quorum-100";
const ROSTER_SCENARIO: &str = "rosters-200";

thread_local! {
    /// The number of the mutant that all cores of this thread are; they are numbered in the order of [`GOSSIP`], [`QUORUM`], [`ROSTER`].
    static PRESENT: Cell<Option<usize>> = const { Cell::new(None) };
}

/// Whether the cores of this thread are this mutant. Their copies ask at each place where it differs.
#[cfg_attr(not(feature = "mutants"), expect(dead_code, reason = "only the copies ask"))]
pub(crate) fn is_present(number: usize) -> bool {
    PRESENT.get() == Some(number)
}

/// What became of one mutant.
#[derive(Clone, Debug)]
pub struct MutantOutcome {
    /// The mutant's name; of the cores as they are, which of them.
    pub name: &'static str,
    /// Whether the cores lacked something.
    is_mutant: bool,
    /// The seed, the scenario and the first violation that made it red; `None` when nobody noticed.
    pub red: Option<(u64, &'static str, String)>,
}

impl MutantOutcome {
    /// Red for a mutant, green for the cores as they are.
    pub fn is_right(&self) -> bool {
        self.is_mutant == self.red.is_some()
    }
}

/// All mutants, those of each core after the core as it is.
pub fn judge_all() -> impl Iterator<Item = MutantOutcome> {
    let verdict = |(name, number): (_, Option<usize>), red| MutantOutcome { name, is_mutant: number.is_some(), red };
    let gossip = numbered("none", GOSSIP, 0).map(move |mutant| verdict(mutant, find_red(mutant.1)));
    let quorum = numbered("none, quorum", QUORUM, GOSSIP.len());
    let quorum = quorum.map(move |mutant| verdict(mutant, find_red_of_quorum(mutant.1)));
    let rosters = numbered("none, rosters", ROSTER, GOSSIP.len() + QUORUM.len());
    let rosters = rosters.map(move |mutant| verdict(mutant, find_red_of_rosters(mutant.1)));
    gossip.chain(quorum).chain(rosters)
}

fn numbered(
    none: &'static str,
    mutants: &'static [Mutant],
    first: usize,
) -> impl Iterator<Item = (&'static str, Option<usize>)> {
    let mutants = mutants.iter().zip(first..).map(|(mutant, number)| (mutant.name, Some(number)));
    std::iter::once((none, None)).chain(mutants)
}

fn find_red(number: Option<usize>) -> Option<(u64, &'static str, String)> {
    for seed in 1..=SEEDS_MAX {
        // Scenarios that show the same with every seed are run once.
        for (name, text) in SCENARIOS.iter().take(if seed == 1 { SCENARIOS.len() } else { 1 }) {
            let scenario = Scenario::parse(name, text).expect("tested below");
            if let Some(seen) = find_violation(number, || run(scenario, seed, Subject::None).violations) {
                return Some((seed, name, seen));
            }
        }
    }
    None
}

fn find_red_of_quorum(number: Option<usize>) -> Option<(u64, &'static str, String)> {
    let scenario = QuorumScenario::load(QUORUM_SCENARIO).expect("tested").small();
    (1..=SEEDS_MAX).find_map(|seed| {
        let seen = find_violation(number, || run_quorum(&scenario, seed).violations)?;
        Some((seed, QUORUM_SCENARIO, seen))
    })
}

fn find_red_of_rosters(number: Option<usize>) -> Option<(u64, &'static str, String)> {
    let scenario = RosterScenario::load(ROSTER_SCENARIO).expect("tested").small();
    (1..=SEEDS_MAX).find_map(|seed| {
        let seen = find_violation(number, || run_rosters(&scenario, seed).violations)?;
        Some((seed, ROSTER_SCENARIO, seen))
    })
}

/// The first violation when all cores are this mutant.
fn find_violation(number: Option<usize>, run: impl FnOnce() -> Vec<String>) -> Option<String> {
    PRESENT.set(number);
    let violations = catch_unwind(AssertUnwindSafe(run));
    PRESENT.set(None);
    violations.map_or_else(|_| Some("a core panicked".to_owned()), |violations| violations.into_iter().next())
}

#[cfg(test)]
mod tests {
    use super::rewrite::insert_switches;
    use super::*;
    use std::path::Path;

    #[test]
    fn scenarios_of_the_mutants_are_valid() {
        for (name, text) in SCENARIOS {
            Scenario::parse(name, text).unwrap();
        }
    }

    #[test]
    fn every_text_that_a_mutant_replaces_is_in_its_core_once() {
        for (core, mutants) in [("gossip", GOSSIP), ("quorum", QUORUM), ("roster", ROSTER)] {
            let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates").join(core).join("src");
            for change in mutants.iter().flat_map(|mutant| mutant.changes) {
                let text = std::fs::read_to_string(source.join(change.file)).unwrap();
                let switched = insert_switches(change.file, &text, mutants, 0).unwrap();
                assert!(switched.contains("is_present"), "{}", change.file);
            }
        }
        let wrong = insert_switches("ruling.rs", "", QUORUM, 0).unwrap_err();
        assert!(wrong.contains("GraceForAnyone") && wrong.contains("0 times"), "{wrong}");
    }
}
