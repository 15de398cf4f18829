//! One run.

use narmesh_simulation::{Report, Scenario, Subject, built_in, draw_plots, run};
use serde::Serialize;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

/// What `--json` prints: the report, and what differs from machine to machine.
#[derive(Serialize)]
struct Told<'a> {
    #[serde(flatten)]
    report: &'a Report,
    wall_s: f64,
    memory_mib: u64,
}

pub(crate) fn run_one(name: &str, seed: u64, small: bool, json: bool, svg: Option<&Path>, trace: Subject) -> ExitCode {
    let scenario = match Scenario::load(name) {
        Ok(scenario) if small => scenario.small(),
        Ok(scenario) => scenario,
        Err(error) => {
            eprintln!("narmesh-sim: {error}");
            return ExitCode::from(2);
        }
    };
    if let Subject::Node(number) = trace
        && number >= scenario.nodes
    {
        eprintln!("narmesh-sim: --trace {number} is no machine of {name}; accepted: 0 to {}", scenario.nodes - 1);
        return ExitCode::from(2);
    }
    // Before a run that may take minutes, make sure that the plots can be written.
    if let Some(directory) = svg
        && let Err(error) = std::fs::create_dir_all(directory)
    {
        return report_no_plots(directory, &error);
    }
    let since = Instant::now();
    let report = run(scenario, seed, trace);
    let wall_s = since.elapsed().as_secs_f64();
    if let Some(directory) = svg
        && let Err(error) = write_plots(directory, &report)
    {
        return report_no_plots(directory, &error);
    }
    if json {
        let told = Told { report: &report, wall_s, memory_mib: memory_mib() };
        say!("{}", serde_json::to_string(&told).unwrap_or_default());
        say!("digest: {}", report.digest);
    } else {
        print_text(&report, name, small, wall_s);
    }
    if report.is_content() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn report_no_plots(directory: &Path, error: &std::io::Error) -> ExitCode {
    eprintln!("narmesh-sim: --svg {}: {error}", directory.display());
    ExitCode::from(2)
}

pub(crate) fn list() -> ExitCode {
    for name in built_in() {
        match Scenario::load(name) {
            Ok(scenario) => say!("{name:20} {}", scenario.about),
            Err(error) => say!("{name:20} {error}"),
        }
    }
    ExitCode::SUCCESS
}

pub(crate) fn write_plots(directory: &Path, report: &Report) -> std::io::Result<()> {
    std::fs::create_dir_all(directory)?;
    for (name, svg) in draw_plots(report) {
        std::fs::write(directory.join(name), svg)?;
    }
    Ok(())
}

fn print_text(report: &Report, name: &str, small: bool, wall_s: f64) {
    report.story.iter().for_each(|line| say!("{line}"));
    say!("{name}: {}", report.about);
    say!("{} machines, seed {}; {wall_s:.1} s, {} MiB", report.nodes, report.seed, memory_mib());
    say!("{}", report.table());
    if !report.events.is_empty() {
        say!("{}", report.event_table());
    }
    for (kind, rate) in &report.bytes_per_s {
        say!("{rate:>12.0} B/s  {kind}");
    }
    let totals = report.totals;
    say!(
        "{} inputs, {} faults; {} announcements in {} copies; {} bodies, {} of them deltas; {} comparisons",
        totals.inputs,
        totals.faults,
        totals.announcements,
        totals.gossip_copies,
        totals.bodies,
        totals.deltas,
        totals.syncs
    );
    say!("{} summaries compared with the truth", report.checked);
    for (misdeed, times) in &report.blamed {
        say!("blamed on liars: {misdeed}, {times} times");
    }
    for violation in &report.violations {
        say!("violation: {violation}");
    }
    if !report.is_content() {
        say!("replay: narmesh-sim run {name}{} --seed {}", if small { " --small" } else { "" }, report.seed);
    }
    say!("digest: {}", report.digest);
}

/// The most memory that this process had, MiB; 0 where the kernel does not say.
pub(crate) fn memory_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    peak.and_then(|peak| peak.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) / 1_024
}
