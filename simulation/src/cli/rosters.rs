//! One run of members and rosters.

use super::{choose, conclude};
use narmesh_simulation::{RosterScenario, run_rosters};
use std::process::ExitCode;
use std::time::Instant;

pub(crate) fn run_one(name: &str, seed: u64, small: bool, json: bool) -> ExitCode {
    let scenario = match choose(RosterScenario::load(name), small, RosterScenario::small) {
        Ok(scenario) => scenario,
        Err(code) => return code,
    };
    let since = Instant::now();
    let report = run_rosters(&scenario, seed);
    if json {
        say!("{}", serde_json::to_string(&report).unwrap_or_default());
    } else {
        say!("{name}: {}", report.about);
        say!("{} machines, seed {seed}; {:.1} s", report.machines, since.elapsed().as_secs_f64());
        let [half, most, last] = report.refused_after_ms;
        say!("a removed machine is refused after {half} ms (p50), {most} ms (p99), {last} ms (last)");
        say!(
            "{} edits, {} made again; {}.{:03} rosters sent for each one taken; the last one has {} bytes",
            report.edits,
            report.completions,
            report.copies_permille / 1_000,
            report.copies_permille % 1_000,
            report.roster_bytes
        );
        say!("bytes of one machine: {} a second at rest, {} in all", report.idle_bytes_per_s, report.bytes);
        match report.equal_after_ms {
            Some(ms) => {
                say!("the newest roster on all members {ms} ms after the heal; target {} ms", scenario.bound_s * 1_000);
            }
            None => say!("not the newest roster on all members within {} s", scenario.bound_s),
        }
    }
    let replay = format!("rosters {name}{} --seed {seed}", if small { " --small" } else { "" });
    conclude(&report.violations, &replay, &report.digest, json)
}
