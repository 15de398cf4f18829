//! Many runs.

use narmesh_simulation::{Report, Scenario, Subject, built_in, run};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::available_parallelism;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// What a swarm runs most often, because everything goes wrong there.
const STORMS: [&str; 3] = ["flapping", "hostile-10-percent", "partition"];

/// Runs every scenario, small.
pub(crate) fn run_all(seed: u64) -> ExitCode {
    let mut content = true;
    for name in built_in() {
        let since = Instant::now();
        content &= run_small(name, seed).is_some_and(|report| {
            say!("{name:20} {} in {:.1} s", report.digest, since.elapsed().as_secs_f64());
            report.is_content()
        });
    }
    if content { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Makes one small run, and tells how to replay it when it fails.
fn run_small(name: &str, seed: u64) -> Option<Report> {
    let scenario = match Scenario::load(name) {
        Ok(scenario) => scenario.small(),
        Err(error) => {
            eprintln!("narmesh-sim: {error}");
            return None;
        }
    };
    let report = run(scenario, seed, Subject::None);
    if !report.is_content() {
        report.violations.iter().for_each(|violation| say!("violation: {violation}"));
        say!("replay: narmesh-sim run {name} --small --seed {seed}");
    }
    Some(report)
}

/// Runs fresh seeds on all processors until one fails, the time is over or enough were run.
pub(crate) fn run_swarm(minutes: u64, first: Option<u64>, seeds: Option<u64>) -> ExitCode {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let first = first.unwrap_or(now);
    let until = Instant::now() + Duration::from_secs(minutes.saturating_mul(60));
    let names: Vec<_> = built_in().chain(STORMS).chain(STORMS).collect();
    let (next, failed) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for _ in 0..available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while Instant::now() < until && !failed.load(Relaxed) {
                    let turn = next.fetch_add(1, Relaxed);
                    if seeds.is_some_and(|seeds| turn >= seeds) {
                        break;
                    }
                    let at = usize::try_from(turn).unwrap_or(0) % names.len();
                    let name = names.get(at).copied().unwrap_or("flapping");
                    if !run_small(name, first + turn).is_some_and(|report| report.is_content()) {
                        failed.store(true, Relaxed);
                    }
                }
            });
        }
    });
    let run = next.load(Relaxed).min(seeds.unwrap_or(u64::MAX));
    say!("{run} seeds from {first}: {}", if failed.load(Relaxed) { "one failed" } else { "all content" });
    if failed.load(Relaxed) { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
