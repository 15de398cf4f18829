//! Measures every figure of this project: `cargo run --release -p narmesh-bench -- [NAME…] [--full] [--list] [--json]`.
//!
//! Walk: [`rows::all`] lists the subjects. A [`subject::Subject`] makes its set-up, measures real processes in interleaved
//! rounds and records [`row::Row`]s. `docs/benchmarks.md` explains each row and shows the last table.
//! Invariants: nothing but loopback is contacted; every process started here ends with this one; a row that cannot be
//! measured says why instead of vanishing.

mod binaries;
mod crowd;
mod daemon;
mod fetch;
mod load;
mod nginx;
mod nix;
mod plain_tcp;
mod process;
mod raw_stream;
mod row;
mod rows;
mod sample_cache;
mod scratch;
mod subject;

use anyhow::{Context as _, bail};
use clap::Parser;
use row::{Planned, Row, TABLE_HEAD};
use scratch::Scratch;
use std::io::{self, Write as _};
use std::time::Duration;
use subject::{Bench, Report, Subject};

/// Measures narmesh beside what it is to be compared with, on this machine, over loopback.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Rows or groups of rows by their leading segments, such as `narinfo` or `copy/200-paths`; all if absent
    names: Vec<String>,
    /// Also the rows that take minutes or gigabytes; a row that is named is measured in any case
    #[arg(long)]
    full: bool,
    /// Only say which rows there are, with their targets
    #[arg(long)]
    list: bool,
    /// An array of objects instead of a table
    #[arg(long)]
    json: bool,
    /// Interleaved rounds of each measurement
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// How long each load on a server lasts, milliseconds
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(100..=60_000))]
    load_ms: u32,
    /// Be one of the servers that rows are measured beside
    #[arg(long, hide = true)]
    server: Option<String>,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    if let Some(server) = &arguments.server {
        return serve(server, &arguments.names);
    }
    let subjects = rows::all();
    refuse_unknown_names(&subjects, &arguments.names)?;
    if arguments.list {
        return list(&subjects, &arguments);
    }
    let bench = Bench {
        rounds: usize::try_from(arguments.rounds)?,
        load_duration: Duration::from_millis(arguments.load_ms.into()),
        scratch: Scratch::new()?,
        binaries: binaries::Binaries::default(),
    };
    clean_up_on_signals(bench.scratch.path().to_owned())?;
    warn_of_load()?;
    let mut all = Vec::new();
    if !arguments.json {
        print_line(TABLE_HEAD)?;
    }
    for subject in &subjects {
        let rows = measure(subject.as_ref(), &bench, &arguments);
        if !arguments.json {
            rows.iter().try_for_each(|row| print_line(&row.to_table_line()))?;
        }
        all.extend(rows);
    }
    if arguments.json {
        print_line(&serde_json::to_string_pretty(&all)?)?;
    }
    Ok(())
}

/// Measures the rows of one subject that were asked for.
fn measure(subject: &dyn Subject, bench: &Bench, arguments: &Arguments) -> Vec<Row> {
    let asked_for = subject.planned().into_iter().filter(|planned| is_asked_for(planned, &arguments.names));
    let (now, not_now): (Vec<_>, Vec<_>) =
        asked_for.partition(|planned| arguments.full || planned.heavy.is_none() || !arguments.names.is_empty());
    let skipped = not_now.into_iter().map(|planned| {
        let why = planned.heavy.map(|why| format!("takes {why}: name it, or use --full"));
        planned.unmeasured(&why.unwrap_or_default())
    });
    if now.is_empty() {
        return skipped.collect();
    }
    let mut report = Report::new(now);
    let result = subject.measure(bench, &mut report);
    let why = result.err().map_or_else(|| "nothing recorded it".to_owned(), |error| format!("{error:#}"));
    report.into_rows(&why).into_iter().chain(skipped).collect()
}

fn is_asked_for(planned: &Planned, names: &[String]) -> bool {
    names.is_empty() || names.iter().any(|name| planned.is_named_by(name))
}

fn refuse_unknown_names(subjects: &[Box<dyn Subject>], names: &[String]) -> anyhow::Result<()> {
    let planned: Vec<_> = subjects.iter().flat_map(|subject| subject.planned()).collect();
    match names.iter().find(|name| !planned.iter().any(|planned| planned.is_named_by(name))) {
        Some(name) => bail!("no row or group is called {name}: see --list"),
        None => Ok(()),
    }
}

fn list(subjects: &[Box<dyn Subject>], arguments: &Arguments) -> anyhow::Result<()> {
    let planned = subjects.iter().flat_map(|subject| subject.planned());
    let planned = planned.filter(|planned| is_asked_for(planned, &arguments.names));
    if arguments.json {
        let rows: Vec<_> = planned.map(|planned| planned.unmeasured("only listed")).collect();
        return print_line(&serde_json::to_string_pretty(&rows)?);
    }
    for planned in planned {
        let target = planned.target_sentence().map(|target| format!("; target: {target}")).unwrap_or_default();
        let heavy = planned.heavy.map(|why| format!("; takes {why}")).unwrap_or_default();
        print_line(&format!("{}: {}, {}{target}{heavy}", planned.name, planned.about, planned.unit))?;
    }
    Ok(())
}

/// Runs one of the servers that this program starts as processes of their own.
fn serve(server: &str, arguments: &[String]) -> anyhow::Result<()> {
    match (server, arguments) {
        ("plain-tcp", []) => plain_tcp::serve(),
        ("raw-stream", [security]) => raw_stream::serve(security),
        ("crowd", [peers, audience]) => crowd::serve(peers.parse().context("a number of peers")?, audience),
        _ => bail!("no such server: {server}"),
    }
}

/// Deletes the files when someone presses Ctrl-C, because gigabytes of memory must not stay behind. The processes started
/// here end by themselves.
fn clean_up_on_signals(dir: std::path::PathBuf) -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut interrupted, mut ended) = {
        let _entered = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    std::thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! { _ = interrupted.recv() => {}, _ = ended.recv() => {} }
        });
        progress("stopped");
        scratch::remove(&dir);
        std::process::exit(130);
    });
    Ok(())
}

/// Warns when the machine does something else too, because then its figures are good for ratios at most.
fn warn_of_load() -> anyhow::Result<()> {
    let text = std::fs::read_to_string("/proc/loadavg")?;
    let load: f64 = text.split(' ').next().unwrap_or_default().parse()?;
    if load > 0.5 {
        progress(&format!("this machine is busy (load average {load}): trust ratios, not absolute figures"));
    }
    Ok(())
}

/// Tells whoever waits what goes on. Standard error may be closed.
pub(crate) fn progress(line: &str) {
    writeln!(io::stderr(), "bench: {line}").ok();
}

/// Prints a line of the result.
pub(crate) fn print_line(line: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}
