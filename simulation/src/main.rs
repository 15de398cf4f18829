//! `narmesh-sim`: one scenario, one seed, one verdict.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line prints")]
#![allow(clippy::disallowed_methods, reason = "how long a run took is told beside its figures, and is no part of them")]

use clap::{Parser, Subcommand};
use narmesh_simulation::{Report, Scenario, Subject, built_in, plots, run};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

/// The gossip of narmesh in a simulated network: everything follows from the scenario and the seed.
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
        /// One JSON object instead of a table.
        #[arg(long)]
        json: bool,
        /// Writes the plots to this directory.
        #[arg(long)]
        svg: Option<PathBuf>,
        /// Tells the story of a machine (its number) or of a path (`path:NUMBER`).
        #[arg(long)]
        trace: Option<Subject>,
    },
    /// Names the built-in scenarios.
    List,
    /// Runs cores with one check left out, each of which must be noticed. Needs `--features mutants` at the build.
    Mutants,
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Run { scenario, seed, small, json, svg, trace } => {
            let name = scenario.clone();
            let scenario = match Scenario::load(&scenario) {
                Ok(scenario) if small => scenario.small(),
                Ok(scenario) => scenario,
                Err(error) => {
                    eprintln!("narmesh-sim: {error}");
                    return ExitCode::from(2);
                }
            };
            let since = Instant::now();
            let report = run(scenario, seed, trace.unwrap_or(Subject::None));
            let wall_s = since.elapsed().as_secs_f64();
            if let Some(directory) = svg
                && let Err(error) = write_plots(&directory, &report)
            {
                eprintln!("narmesh-sim: {}: {error}", directory.display());
                return ExitCode::from(2);
            }
            if json {
                println!("{}", serde_json::to_string(&report).unwrap_or_default());
            } else {
                print_text(&report, &name, small, wall_s);
            }
            if report.is_content() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Command::Mutants => mutants(),
        Command::List => {
            for name in built_in() {
                match Scenario::load(name) {
                    Ok(scenario) => println!("{name:20} {}", scenario.about),
                    Err(error) => println!("{name:20} {error}"),
                }
            }
            ExitCode::SUCCESS
        }
    }
}

#[cfg(feature = "mutants")]
fn mutants() -> ExitCode {
    use narmesh_simulation::mutants::verdicts;
    // A mutant may panic: that is noticed as well, and its story is not wanted.
    std::panic::set_hook(Box::new(|_| {}));
    let mut right = true;
    for verdict in verdicts() {
        let name = verdict.mutation.map_or("none".to_owned(), |mutation| format!("{mutation:?}"));
        match &verdict.red {
            Some((seed, scenario, seen)) => println!("{name:18} red with seed {seed} of {scenario}: {seen}"),
            None => println!("{name:18} not noticed in any seed"),
        }
        right &= verdict.is_right();
    }
    if right { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[cfg(not(feature = "mutants"))]
fn mutants() -> ExitCode {
    eprintln!("narmesh-sim: built without mutants; use `cargo run --release -p narmesh-simulation --features mutants`");
    ExitCode::from(2)
}

fn write_plots(directory: &std::path::Path, report: &Report) -> std::io::Result<()> {
    std::fs::create_dir_all(directory)?;
    for (name, svg) in plots(report) {
        std::fs::write(directory.join(name), svg)?;
    }
    Ok(())
}

fn print_text(report: &Report, name: &str, small: bool, wall_s: f64) {
    report.story.iter().for_each(|line| println!("{line}"));
    println!("{name}: {}", report.about);
    println!("{} machines, seed {}; {wall_s:.1} s, {} MiB", report.nodes, report.seed, memory_mib());
    println!("{}", report.table());
    for (kind, rate) in &report.bytes_per_s {
        println!("{rate:>12.0} B/s  {kind}");
    }
    let totals = report.totals;
    println!(
        "{} inputs, {} faults; {} announcements in {} copies; {} bodies, {} of them deltas; {} comparisons",
        totals.inputs,
        totals.faults,
        totals.announcements,
        totals.gossip_copies,
        totals.bodies,
        totals.deltas,
        totals.syncs
    );
    println!("{} summaries compared with the truth", report.checked);
    for (misdeed, times) in &report.blamed {
        println!("blamed on liars: {misdeed}, {times} times");
    }
    for violation in &report.violations {
        println!("violation: {violation}");
    }
    if !report.is_content() {
        println!("replay: narmesh-sim run {name}{} --seed {}", if small { " --small" } else { "" }, report.seed);
    }
    println!("digest: {}", report.digest);
}

/// Most memory that this process had, MiB; 0 where the kernel does not say.
fn memory_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    peak.and_then(|peak| peak.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) / 1_024
}
