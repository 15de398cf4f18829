//! Checks the checkers: cores with one check left out must be noticed.

use crate::{Report, Scenario, Subject, run};
use narmesh_gossip::{MUTATIONS, Mutation, mutate};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// How many seeds are tried; each mutant must go red with one of them.
pub const SEEDS_MAX: u64 = 20;

const SCENARIOS: [(&str, &str); 4] = [
    ("mutants/storm", include_str!("../scenarios/mutants/storm.toml")),
    ("mutants/slow", include_str!("../scenarios/mutants/slow.toml")),
    ("mutants/gone", include_str!("../scenarios/mutants/gone.toml")),
    ("mutants/many", include_str!("../scenarios/mutants/many.toml")),
];

/// What became of one mutant.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// What its cores lacked; `None` for the cores as they are.
    pub mutation: Option<Mutation>,
    /// The seed, the scenario and the first violation that made it red; `None` when nobody noticed.
    pub red: Option<(u64, &'static str, String)>,
}

impl Verdict {
    /// Red for a mutant, green for the cores as they are.
    pub fn is_right(&self) -> bool {
        self.mutation.is_some() == self.red.is_some()
    }
}

/// All mutants, after the cores as they are.
pub fn judge_all() -> impl Iterator<Item = Verdict> {
    std::iter::once(None).chain(MUTATIONS.map(Some)).map(|mutation| Verdict { mutation, red: find_first_red(mutation) })
}

fn find_first_red(mutation: Option<Mutation>) -> Option<(u64, &'static str, String)> {
    for seed in 1..=SEEDS_MAX {
        // Scenarios that show the same with every seed are run once.
        for (name, text) in SCENARIOS.iter().take(if seed == 1 { SCENARIOS.len() } else { 1 }) {
            let scenario = Scenario::parse(name, text).expect("tested below");
            mutate(mutation);
            let report = catch_unwind(AssertUnwindSafe(|| run(scenario, seed, Subject::None)));
            mutate(None);
            let seen = match report {
                Ok(Report { violations, .. }) => violations.into_iter().next(),
                Err(_) => Some("a core panicked".to_owned()),
            };
            if let Some(seen) = seen {
                return Some((seed, name, seen));
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scenarios_of_the_mutants_are_valid() {
        for (name, text) in SCENARIOS {
            Scenario::parse(name, text).unwrap();
        }
    }
}
