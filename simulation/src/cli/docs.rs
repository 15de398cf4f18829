//! docs/simulation.md, which the runs themselves write.

use crate::cli::{compare, hostile, run};
use narmesh_simulation::{Report, Scenario, ScenarioError, Subject, built_in};
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

/// Scenarios whose curves are drawn.
const DRAWN: [&str; 3] = ["office-50", "partition", "hostile-10-percent"];

const HEAD: &str = include_str!("docs_head.md");
const LIARS: &str = include_str!("docs_liars.md");
const COMPARISON: &str = include_str!("docs_comparison.md");

/// Why the document could not be written or is not current.
#[derive(Debug, thiserror::Error)]
enum DocsError {
    #[error(transparent)]
    Scenario(#[from] ScenarioError),
    #[error("{file}: {error}")]
    File { file: String, error: std::io::Error },
    #[error("line {line} of {file} is '{found}', today it would be like '{wanted}': run `narmesh-sim docs`")]
    Stale { file: String, line: usize, found: String, wanted: String },
    #[error("a checker was not content, see above")]
    Red,
}

pub(crate) fn run_docs(file: &Path, check: bool) -> ExitCode {
    let done = if check { compare_form(file) } else { write(file) };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("narmesh-sim: {error}");
            ExitCode::FAILURE
        }
    }
}

fn write(file: &Path) -> Result<(), DocsError> {
    let failed = |error| DocsError::File { file: file.display().to_string(), error };
    let plots = file.with_extension("");
    let mut text = HEAD.to_owned();
    for name in built_in() {
        eprintln!("{name} …");
        let since = Instant::now();
        let report = narmesh_simulation::run(Scenario::load(name)?, 1, Subject::None);
        text += &format!("\n### {name}\n{}\n\n", report.about);
        let took = format!("{:.0} s and {} MiB at most so far", since.elapsed().as_secs_f64(), run::memory_mib());
        text += &format!(
            "{} machines, seed 1; {took}; digest `{:.16}`.\n\n{}",
            report.nodes,
            report.digest,
            report.table()
        );
        text += &events(&report);
        if DRAWN.contains(&name) {
            run::write_plots(&plots.join(name), &report).map_err(failed)?;
            text += &links(name);
        }
        if !report.is_content() {
            report.violations.iter().for_each(|violation| eprintln!("{name}: violation: {violation}"));
            return Err(DocsError::Red);
        }
    }
    let (liars, content) = hostile::measure_table(false)?;
    let (ways, also) = compare::measure_table(false)?;
    text += &(LIARS.to_owned() + &liars + COMPARISON + &ways);
    std::fs::write(file, text).map_err(failed)?;
    if content && also { Ok(()) } else { Err(DocsError::Red) }
}

/// Compares the file with what small runs would write, without the tables that take minutes: only the form counts.
fn compare_form(file: &Path) -> Result<(), DocsError> {
    let name = file.display().to_string();
    let found = std::fs::read_to_string(file).map_err(|error| DocsError::File { file: name.clone(), error })?;
    let mut wanted = HEAD.to_owned();
    for name in built_in() {
        let report = narmesh_simulation::run(Scenario::load(name)?.small(), 1, Subject::None);
        wanted += &format!("\n### {name}\n{}\n\n", report.about);
        wanted += &format!("1 machines, seed 1; 1 s and 1 MiB at most so far; digest `1`.\n\n{}", report.table());
        wanted += &events(&report);
        wanted += &if DRAWN.contains(&name) { links(name) } else { String::new() };
    }
    wanted += &(LIARS.to_owned() + &hostile::measure_table(true)?.0 + COMPARISON + &compare::measure_table(true)?.0);
    let lines = found.lines().map(form).chain(std::iter::repeat(String::new()));
    let count = wanted.lines().count().max(found.lines().count());
    let pairs = lines.zip(wanted.lines().map(form).chain(std::iter::repeat(String::new()))).take(count);
    for (line, (found, wanted)) in (1..).zip(pairs) {
        if found != wanted {
            return Err(DocsError::Stale { file: name, line, found, wanted });
        }
    }
    say!("{name} has today's form");
    Ok(())
}

/// The table of events, for scenarios that say `watch`.
fn events(report: &Report) -> String {
    if report.events.is_empty() { String::new() } else { format!("\n{}", report.event_table()) }
}

fn links(name: &str) -> String {
    format!(
        "\n![convergence](simulation/{name}/convergence.svg) ![bytes](simulation/{name}/bytes.svg) \
         ![age of tables](simulation/{name}/age.svg) ![false hits](simulation/{name}/false-hits.svg)\n"
    )
}

/// A line without its figures: the first cell and the number of cells of a table's row, the words of any other line.
fn form(line: &str) -> String {
    if line.starts_with('|') {
        let first = line.split('|').nth(1).unwrap_or_default().trim();
        return format!("|{first}|{}", line.matches('|').count());
    }
    if line.contains("; digest `") {
        return "machines, digest".to_owned();
    }
    line.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_is_all_but_the_figures() {
        assert_eq!(form("| a path | 3 ms | 5 ms, **missed** |"), form("| a path | 70 ms | 5 ms |"));
        assert_ne!(form("| a path | 3 ms | |"), form("| b path | 3 ms | |"));
        assert_ne!(form("| a path | 3 ms |"), form("| a path | 3 ms | 4 |"));
        assert_eq!(form("5 machines, seed 1; 3 s; digest `ab`."), form("9 machines, seed 1; 4 s; digest `cd`."));
        assert_ne!(form("words"), form("other words"));
    }
}
