//! `narmesh-sim`: one seed, one world, one verdict.
#![allow(clippy::print_stdout, reason = "a command line prints")]

use clap::{Parser, Subcommand};
use narmesh_simulation::{Report, Settings, run};
use std::process::ExitCode;

/// The gossip of narmesh in a simulated network: everything follows from the seed.
#[derive(Debug, Parser)]
#[command(name = "narmesh-sim", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs one world, or several with seeds one after the other. Exit code 0 only when every checker was content.
    Run {
        /// Machines, 2 to 1000.
        #[arg(long, default_value_t = 12)]
        nodes: usize,
        /// The first seed.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// How many seeds.
        #[arg(long, default_value_t = 1)]
        seeds: u64,
        /// Virtual minutes under faults.
        #[arg(long, default_value_t = 10)]
        minutes: u64,
        /// One JSON object per run instead of sentences.
        #[arg(long)]
        json: bool,
    },
}

fn main() -> ExitCode {
    let Arguments { command: Command::Run { nodes, seed, seeds, minutes, json } } = Arguments::parse();
    let mut content = true;
    for seed in seed..seed.saturating_add(seeds) {
        let settings = Settings { faulty_ms: minutes.saturating_mul(60_000), ..Settings::new(nodes, seed) };
        let report = run(settings);
        content &= report.violations.is_empty();
        if json {
            print_json(settings, &report);
        } else {
            print_text(settings, &report, minutes);
        }
    }
    if content { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn print_text(settings: Settings, report: &Report, minutes: u64) {
    let totals = report.totals;
    println!("{} machines, seed {}, {minutes} virtual minutes under faults", settings.nodes, settings.seed);
    println!(
        "{} inputs, {} faults; {} announcements in {} copies; {} bodies, {} bytes of requests and answers",
        totals.inputs, totals.faults, totals.announcements, totals.gossip_copies, totals.bodies, totals.control_bytes
    );
    println!("{} summaries compared with the truth", report.checked);
    match report.converged_ms {
        Some(ms) => println!("all tables equal {ms} ms after healing"),
        None => println!("tables still differ {} ms after healing", settings.patience_ms),
    }
    for violation in &report.violations {
        println!("violation: {violation}");
    }
    if !report.violations.is_empty() {
        println!("replay: narmesh-sim run --nodes {} --seed {} --minutes {minutes}", settings.nodes, settings.seed);
    }
    println!("digest: {}", report.digest);
}

fn print_json(settings: Settings, report: &Report) {
    let violations: Vec<_> = report.violations.iter().map(ToString::to_string).collect();
    let object = serde_json::json!({
        "nodes": settings.nodes, "seed": settings.seed, "faulty_ms": settings.faulty_ms, "digest": report.digest,
        "converged_ms": report.converged_ms, "checked": report.checked, "totals": report.totals, "violations": violations,
    });
    println!("{object}");
}
