//! Checks the judge: cores with one rule left out must be noticed.

use super::{QuorumScenario, run};
use crate::mutants::SEEDS_MAX;
use narmesh_quorum::{MUTATIONS, Mutation, mutate};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What became of one mutant.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// What its cores lacked; `None` for the cores as they are.
    pub mutation: Option<Mutation>,
    /// The seed with which it went red and the first violation; `None` when nobody noticed.
    pub red: Option<(u64, String)>,
}

impl Verdict {
    /// Red for a mutant, green for the cores as they are.
    pub fn is_right(&self) -> bool {
        self.mutation.is_some() == self.red.is_some()
    }
}

/// All mutants, after the cores as they are.
pub fn judge_all() -> impl Iterator<Item = Verdict> {
    let scenario = QuorumScenario::load("quorum-100").expect("tested").small();
    std::iter::once(None).chain(MUTATIONS.map(Some)).map(move |mutation| {
        let red = (1..=SEEDS_MAX).find_map(|seed| {
            mutate(mutation);
            let report = catch_unwind(AssertUnwindSafe(|| run(&scenario, seed)));
            mutate(None);
            let seen =
                report.map_or_else(|_| Some("a core panicked".to_owned()), |it| it.violations.into_iter().next());
            Some((seed, seen?))
        });
        Verdict { mutation, red }
    })
}
