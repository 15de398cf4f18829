//! One run of builders and verdicts.

use super::{choose, conclude};
use narmesh_simulation::{QuorumScenario, run_quorum};
use std::process::ExitCode;
use std::time::Instant;

pub(crate) fn run_one(name: &str, seed: u64, small: bool, json: bool) -> ExitCode {
    let scenario = match choose(QuorumScenario::load(name), small, QuorumScenario::small) {
        Ok(scenario) => scenario,
        Err(code) => return code,
    };
    let since = Instant::now();
    let report = run_quorum(&scenario, seed);
    if json {
        say!("{}", serde_json::to_string(&report).unwrap_or_default());
    } else {
        let [agreed, short, conflict, none] = report.states;
        say!("{name}: {}", report.about);
        say!("{} machines, seed {seed}; {:.1} s", report.builders, since.elapsed().as_secs_f64());
        say!("paths: {agreed} agreed, {short} short, {conflict} in conflict, {none} without attestations");
        say!(
            "{} attestations, taken in {} times; {} comparisons; {} bytes of one machine; {} verdicts counted anew",
            report.attestations,
            report.taken,
            report.comparisons,
            report.bytes,
            report.judged
        );
        match report.equal_after_ms {
            Some(ms) => say!(
                "the same verdicts on all honest machines {ms} ms after the heal; target {} ms",
                scenario.bound_s * 1_000
            ),
            None => say!("not the same verdicts on all honest machines within {} s", scenario.bound_s),
        }
    }
    let replay = format!("quorum {name}{} --seed {seed}", if small { " --small" } else { "" });
    conclude(&report.violations, &replay, &report.digest, json)
}
