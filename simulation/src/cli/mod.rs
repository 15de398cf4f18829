//! The commands.

/// Prints a line as `println!` does, but tolerates a reader that has gone (`| head`): the exit code is still that of the
/// checkers.
macro_rules! say {
    ($($told:tt)*) => { $crate::cli::say_line(format_args!($($told)*)) };
}

pub(crate) mod compare;
pub(crate) mod docs;
pub(crate) mod hostile;
pub(crate) mod mutants;
pub(crate) mod quorum;
pub(crate) mod rosters;
pub(crate) mod run;
pub(crate) mod swarm;

use narmesh_simulation::ScenarioError;
use std::io::Write as _;
use std::process::ExitCode;

fn say_line(line: std::fmt::Arguments<'_>) {
    if let Err(error) = writeln!(std::io::stdout(), "{line}")
        && error.kind() != std::io::ErrorKind::BrokenPipe
    {
        eprintln!("narmesh-sim: {error}");
    }
}

/// The scenario that was asked for, made small if that was asked for; else says why there is none.
fn choose<S>(loaded: Result<S, ScenarioError>, small: bool, shrink: fn(S) -> S) -> Result<S, ExitCode> {
    match loaded {
        Ok(scenario) if small => Ok(shrink(scenario)),
        Ok(scenario) => Ok(scenario),
        Err(error) => {
            eprintln!("narmesh-sim: {error}");
            Err(ExitCode::from(2))
        }
    }
}

/// Says what was broken and how to see it again, and the digest.
fn conclude(violations: &[String], replay: &str, digest: &str, json: bool) -> ExitCode {
    if !json {
        violations.iter().for_each(|violation| say!("violation: {violation}"));
        if !violations.is_empty() {
            say!("replay: narmesh-sim {replay}");
        }
    }
    say!("digest: {digest}");
    if violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Prints a table of runs. Success only when every checker of every run was content.
fn show(table: Result<(String, bool), ScenarioError>) -> ExitCode {
    match table {
        Ok((table, content)) => {
            say!("{}", table.trim_end());
            if content { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("narmesh-sim: {error}");
            ExitCode::from(2)
        }
    }
}
