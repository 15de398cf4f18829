//! `narmesh-sim`: one scenario, one seed, one verdict.
#![expect(clippy::print_stderr, reason = "a command line prints")]
#![expect(
    clippy::disallowed_methods,
    reason = "how long a run took is told beside its figures, and is no part of them"
)]

mod cli;

use clap::{Parser, Subcommand};
use narmesh_simulation::Subject;
use std::path::PathBuf;
use std::process::ExitCode;

/// The gossip and the verdicts of narmesh in a simulated network: everything follows from the scenario and the seed.
#[derive(Debug, Parser)]
#[command(name = "narmesh-sim", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs a scenario. Exit code 0 only when every checker was content.
    Run {
        /// A built-in name (see `list`) or a TOML file.
        scenario: String,
        /// Everything follows from it.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// At most 12 machines and 150 paths.
        #[arg(long)]
        small: bool,
        /// One JSON object on one line instead of a table.
        #[arg(long)]
        json: bool,
        /// Writes the plots to this directory.
        #[arg(long)]
        svg: Option<PathBuf>,
        /// Tells the story of a machine (its number) or of a path (`path:NUMBER`).
        #[arg(long)]
        trace: Option<Subject>,
    },
    /// Builders that attest, some hostile, and a network that is cut: verdicts. Exit code 0 only when the judge was content.
    Quorum {
        /// The built-in `quorum-100`, or a TOML file.
        #[arg(default_value = "quorum-100")]
        scenario: String,
        /// Everything follows from it.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// 16 builders and 10 paths.
        #[arg(long)]
        small: bool,
        /// One JSON object on one line.
        #[arg(long)]
        json: bool,
    },
    /// Members of a mesh, two that sign its rosters, liars, and a network that is cut. Exit code 0 only when the checkers were
    /// content.
    Rosters {
        /// The built-in `rosters-200` or `rosters-1000`, or a TOML file.
        #[arg(default_value = "rosters-200")]
        scenario: String,
        /// Everything follows from it.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// 24 machines.
        #[arg(long)]
        small: bool,
        /// One JSON object on one line.
        #[arg(long)]
        json: bool,
    },
    /// Names the built-in scenarios.
    List,
    /// Runs every scenario, small, with one seed.
    All {
        /// The seed.
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Runs small scenarios with one seed after the other until one fails, the time is over or enough were run.
    Swarm {
        /// Minutes of the wall clock.
        #[arg(long, default_value_t = 10)]
        minutes: u64,
        /// The first seed; by default from the clock, so that each swarm runs others.
        #[arg(long)]
        first: Option<u64>,
        /// How many seeds, one scenario each.
        #[arg(long)]
        seeds: Option<u64>,
    },
    /// Runs cores with one check left out, each of which must be noticed. Needs `--features mutants` at the build.
    Mutants,
    /// Measures what each kind of liar achieves.
    Hostile,
    /// Compares ways to tell who holds what, with the census of a real store.
    Compare,
    /// Writes docs/simulation.md and its plots; with `--check`, says whether they have today's form.
    Docs {
        /// The file.
        #[arg(default_value = "docs/simulation.md")]
        file: PathBuf,
        /// Runs what is quick, and compares the form of the file with what would be written: all but the numbers.
        #[arg(long)]
        check: bool,
    },
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Run { scenario, seed, small, json, svg, trace } => {
            cli::run::run_one(&scenario, seed, small, json, svg.as_deref(), trace.unwrap_or(Subject::None))
        }
        Command::Quorum { scenario, seed, small, json } => cli::quorum::run_one(&scenario, seed, small, json),
        Command::Rosters { scenario, seed, small, json } => cli::rosters::run_one(&scenario, seed, small, json),
        Command::List => cli::run::list(),
        Command::All { seed } => cli::swarm::run_all(seed),
        Command::Swarm { minutes, first, seeds } => cli::swarm::run_swarm(minutes, first, seeds),
        Command::Mutants => cli::mutants::run_mutants(),
        Command::Hostile => cli::hostile::run_hostile(),
        Command::Compare => cli::compare::run_compare(),
        Command::Docs { file, check } => cli::docs::run_docs(&file, check),
    }
}
