//! For CI: runs every seed, every committed input, and a fixed number of inputs made from them, for each target.

use narmesh_fuzz::{Engine, corpus, targets};
use std::collections::BTreeSet;
use std::fs;

/// Inputs made for each target; they are the same in each run.
const INPUTS: usize = if cfg!(debug_assertions) { 3_000 } else { 30_000 };

/// Targets that exist only with the feature `config`.
const BUILD_THE_DAEMON: [&str; 3] = ["config", "attestation-file", "quorum-page"];

/// All in one test, because memory is counted for the whole process.
#[test]
fn invariants_hold_for_seeds_corpus_and_mutations() {
    for target in targets::all() {
        let mut engine = Engine::new(target, 1);
        let name = target.name;
        engine.replay().unwrap().unwrap_or_else(|failure| panic!("{name}: {failure:?}"));
        let replayed = engine.outcomes();
        for _ in 0..INPUTS {
            engine.step().unwrap_or_else(|failure| panic!("{name}: {failure:?}"));
        }
        assert!(engine.outcomes() > 1 && engine.outcomes() >= replayed, "{name}: its inputs tell nothing apart");
    }
}

#[test]
fn every_corpus_has_its_target() {
    let names: BTreeSet<_> = targets::all().iter().map(|target| target.name).collect();
    let root = corpus::directory("");
    for entry in fs::read_dir(root).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(
            names.contains(name.as_str()) || BUILD_THE_DAEMON.contains(&name.as_str()),
            "{name}: no target of that name"
        );
    }
}
