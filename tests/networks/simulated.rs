//! Runs the steps of the story in the simulation of the unmodified cores too.

use std::fmt::Write as _;
use std::fs;
use std::process::Command;
use std::time::Duration;

use narmesh_tests::{finish, repository_root, scratch_dir};

use crate::report::{Table, seconds};

/// The scenario file with the machines, sites and network.
const SCENARIO: &str = "simulation/scenarios/wan-3-sites.toml";
/// Each step is simulated with these seeds: a single run would be a matter of luck.
const SEEDS: std::ops::RangeInclusive<u64> = 1..=5;

/// What happens in a step, in the words of a scenario, and which figure of the simulation corresponds to the measured one.
#[derive(Debug, Clone, Copy)]
pub struct Scene<'s> {
    /// The lines of each `[[event]]`.
    pub events: &'s [&'s str],
    /// All faults end after this many virtual seconds, and the time until all tables are equal begins.
    pub run_s: u64,
    /// The name of the row in the simulation's report.
    pub figure: &'s str,
}

/// The table of measured and simulated times.
#[derive(Debug)]
pub struct SideBySide {
    table: Table,
}

impl SideBySide {
    pub fn new() -> Self {
        let table = Table::new(
            "sites",
            &["step", "measured", "12 real daemons", "simulation, median of 5 seeds", "slowest", "promise"],
        );
        Self { table }
    }

    /// Adds a measured time that the simulation has no figure for.
    pub fn real_row(&mut self, step: &str, measured: &str, real: Duration, promise: Duration) {
        self.table.row(&[step, measured, &seconds(real), "", "", &seconds(promise)]);
    }

    /// Adds a measured time beside the simulated ones, for which it runs the simulation.
    pub fn row(&mut self, step: &str, measured: &str, real: Duration, promise: Duration, scene: Scene<'_>) {
        let mut simulated: Vec<_> = SEEDS.map(|seed| run(scene, seed)).collect();
        simulated.sort_unstable();
        let (median, slowest) = (simulated[simulated.len() / 2], simulated[simulated.len() - 1]);
        self.table.row(&[step, measured, &seconds(real), &seconds(median), &seconds(slowest), &seconds(promise)]);
    }
}

/// The figure for one seed. Panics if the simulation's checkers find a violation.
fn run(scene: Scene<'_>, seed: u64) -> Duration {
    let text = fs::read_to_string(repository_root().join(SCENARIO)).unwrap();
    let mut scenario: toml::Table = text.parse().unwrap();
    scenario.remove("event");
    scenario.remove("targets");
    scenario.insert("run_s".to_owned(), toml::Value::Integer(scene.run_s.cast_signed()));
    let mut text = scenario.to_string();
    for event in scene.events {
        write!(text, "\n[[event]]\n{event}").unwrap();
    }
    let dir = scratch_dir("simulated");
    let file = dir.path().join("step.toml");
    fs::write(&file, &text).unwrap();
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args([
        "run",
        "--quiet",
        "--release",
        "--package",
        "narmesh-simulation",
        "--bin",
        "narmesh-sim",
        "--",
        "run",
    ]);
    command.arg(&file).args(["--json", "--seed", &seed.to_string()]).current_dir(repository_root());
    let run = finish(&mut command);
    // The digest follows the report on the last line.
    let json = run.stdout.split("\ndigest: ").next().unwrap();
    let report: serde_json::Value =
        serde_json::from_str(json).unwrap_or_else(|error| panic!("{error}: {}\n{text}", run.stderr));
    assert!(run.status.success(), "the simulation's checkers: {}\n{text}", report["violations"]);
    let rows = report["rows"].as_array().unwrap();
    let row = rows.iter().find(|row| row["name"] == scene.figure).unwrap_or_else(|| panic!("no row {}", scene.figure));
    let ms = row["value"].as_f64().unwrap_or_else(|| panic!("{} has no value in\n{text}", scene.figure));
    Duration::from_secs_f64(ms / 1e3)
}
