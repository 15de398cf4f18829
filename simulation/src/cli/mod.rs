//! The commands.

pub(crate) mod compare;
pub(crate) mod docs;
pub(crate) mod hostile;
pub(crate) mod mutants;
pub(crate) mod quorum;
pub(crate) mod run;
pub(crate) mod swarm;

use narmesh_simulation::ScenarioError;
use std::process::ExitCode;

/// Prints a table of runs. Success only when every checker of every run was content.
fn shown(table: Result<(String, bool), ScenarioError>) -> ExitCode {
    match table {
        Ok((table, content)) => {
            print!("{table}");
            if content { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("narmesh-sim: {error}");
            ExitCode::from(2)
        }
    }
}
