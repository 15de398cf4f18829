//! What the simulation says of meshes that are too large for this machine: figures of its scenarios, with another seed in
//! each round.

use crate::row::{Planned, Target};
use crate::subject::{Bench, Report, Subject};
use anyhow::Context as _;
use std::path::{Path, PathBuf};
use std::process::Command;

const SCENARIOS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../simulation/scenarios");
/// Replacements that turn the internet of `community-200` into a LAN.
const LAN: [(&str, &str); 3] =
    [("delay_ms = 40\n", "delay_ms = 1\n"), ("jitter_ms = 10\n", "jitter_ms = 1\n"), ("loss_permille = 10\n", "")];

/// One figure of a run.
#[derive(Debug)]
pub(super) struct Figure {
    name: &'static str,
    about: &'static str,
    unit: &'static str,
    /// The name of the figure in the simulation.
    row: &'static str,
    /// What the simulation's figure is multiplied by, to be in `unit`.
    factor: f64,
    /// The target: the figure must be at most this.
    most: f64,
}

/// The figures of one scenario.
#[derive(Debug)]
pub(super) struct Simulated {
    scenario: &'static str,
    lan: bool,
    heavy: Option<&'static str>,
    figures: &'static [Figure],
}

const KNOWN: &str = "a new path is known, p99";

/// Every scenario that has a figure with a target.
pub(super) const ALL: [Simulated; 5] = [
    Simulated {
        scenario: "community-200",
        lan: true,
        heavy: Some("some minutes of simulation"),
        figures: &[Figure {
            name: "simulated/known-p99/200-nodes-lan",
            about: "from a build until every other machine knows the path, 200 machines, 1 ms",
            unit: "ms",
            row: KNOWN,
            factor: 1.0,
            most: 2_000.0,
        }],
    },
    Simulated {
        scenario: "community-200",
        lan: false,
        heavy: Some("some minutes of simulation"),
        figures: &[
            Figure {
                name: "simulated/known-p99/200-nodes-wan",
                about: "the same with 40 ms and 1 % loss",
                unit: "ms",
                row: KNOWN,
                factor: 1.0,
                most: 5_000.0,
            },
            Figure {
                name: "simulated/wasted-probes",
                about: "questions to honest machines for one path that nobody has, 200 machines",
                unit: "probes",
                row: "wasted probes for 1,000 absent paths",
                factor: 0.001,
                most: 0.05,
            },
        ],
    },
    Simulated {
        scenario: "fleet-1000",
        lan: false,
        heavy: Some("ten minutes of simulation and 6 GB a round"),
        figures: &[Figure {
            name: "simulated/known-p99/1000-nodes-wan",
            about: "the same with 1,000 machines",
            unit: "ms",
            row: KNOWN,
            factor: 1.0,
            most: 10_000.0,
        }],
    },
    Simulated {
        scenario: "partition",
        lan: false,
        heavy: None,
        figures: &[Figure {
            name: "simulated/after-partition",
            about: "from the end of a partition in which both sites built until all tables are equal",
            unit: "ms",
            row: "after the last fault, tables equal",
            factor: 1.0,
            most: 10_000.0,
        }],
    },
    Simulated {
        scenario: "cold-start",
        lan: false,
        heavy: Some("a minute of simulation a round"),
        figures: &[
            Figure {
                name: "simulated/idle-traffic",
                about: "sent and received by one machine of 100 with 20,000 paths each, 32 connections, nothing changing",
                unit: "B/s",
                row: "idle, bytes of one machine",
                factor: 1.0,
                most: 1_000.0,
            },
            Figure {
                name: "simulated/delta-of-entropy",
                about: "bodies for 1,000 new paths on 20,000, of the entropy of the bits that changed",
                unit: "times",
                row: "pulled for a build, of the entropy",
                factor: 0.01,
                most: 2.0,
            },
            Figure {
                name: "simulated/joiner-bytes",
                about: "received by one that joins 100 machines with 20,000 paths each, of the bytes of their filters",
                unit: "times",
                row: "a joiner received, of the filters",
                factor: 0.01,
                most: 1.1,
            },
            Figure {
                name: "simulated/joiner-time",
                about: "until its table is full, on a LAN",
                unit: "ms",
                row: "a joiner's table is full",
                factor: 1.0,
                most: 5_000.0,
            },
        ],
    },
];

impl Subject for Simulated {
    fn planned(&self) -> Vec<Planned> {
        let planned = |figure: &Figure| {
            let planned = Planned::new(figure.name, figure.unit, figure.about).target(Target::AtMost(figure.most));
            self.heavy.map_or(planned.clone(), |why| planned.heavy(why))
        };
        self.figures.iter().map(planned).collect()
    }

    fn measure(&self, bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
        let dir = bench.scratch.subdir("simulated-")?;
        let file = dir.join("scenario.toml");
        std::fs::write(&file, self.text()?)?;
        let program = bench.binaries.narmesh_sim()?;
        let mut samples = vec![Vec::new(); self.figures.len()];
        for seed in 1..=bench.rounds {
            crate::progress(&format!("{}: seed {seed} of {}", self.scenario, bench.rounds));
            let rows = run(program, &file, seed)?;
            for (figure, samples) in self.figures.iter().zip(&mut samples) {
                let row = rows.iter().find(|row| row.get("name").is_some_and(|name| name == figure.row));
                let value = row.and_then(|row| row.get("value")?.as_f64());
                samples.push(
                    value.with_context(|| format!("the simulation has no figure '{}'", figure.row))? * figure.factor,
                );
            }
        }
        for (figure, samples) in self.figures.iter().zip(&samples) {
            report.figure(figure.name, samples, None);
        }
        Ok(())
    }
}

impl Simulated {
    fn text(&self) -> anyhow::Result<String> {
        let path = PathBuf::from(SCENARIOS).join(self.scenario).with_extension("toml");
        let mut text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        for (wan, lan) in LAN.iter().filter(|_| self.lan) {
            anyhow::ensure!(text.contains(wan), "{} has no line '{}'", path.display(), wan.trim_end());
            text = text.replace(wan, lan);
        }
        Ok(text)
    }
}

/// The rows of one run. An error when a checker was not content.
fn run(program: &Path, scenario: &Path, seed: usize) -> anyhow::Result<Vec<serde_json::Value>> {
    let output =
        Command::new(program).arg("run").arg(scenario).args(["--json", "--seed", &seed.to_string()]).output()?;
    let text = String::from_utf8(output.stdout)?;
    // The last line is the digest.
    let report: serde_json::Value = serde_json::from_str(text.lines().next().unwrap_or_default())?;
    anyhow::ensure!(output.status.success(), "seed {seed}: {:?}", report.get("violations"));
    Ok(report.get("rows").and_then(serde_json::Value::as_array).cloned().unwrap_or_default())
}
