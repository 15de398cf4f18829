//! Checks the checkers.

use std::process::ExitCode;

#[cfg(feature = "mutants")]
pub(crate) fn run_mutants() -> ExitCode {
    use narmesh_simulation::mutants::judge_all;
    // A mutant may panic. That counts as noticed, and its backtrace is not wanted.
    std::panic::set_hook(Box::new(|_| {}));
    let mut right = true;
    for verdict in judge_all() {
        let name = verdict.name;
        match &verdict.red {
            Some((seed, scenario, seen)) => say!("{name:18} red with seed {seed} of {scenario}: {seen}"),
            None => say!("{name:18} not noticed in any seed"),
        }
        right &= verdict.is_right();
    }
    if right { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[cfg(not(feature = "mutants"))]
pub(crate) fn run_mutants() -> ExitCode {
    eprintln!("narmesh-sim: built without mutants; use `cargo run --release -p narmesh-simulation --features mutants`");
    ExitCode::from(2)
}
