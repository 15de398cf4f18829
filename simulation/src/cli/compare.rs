//! Ways to tell who holds what, compared with the census of a real store.

use narmesh_simulation::{Report, Scenario, ScenarioError, Subject, answer_bytes, question_bytes, run};
use std::process::ExitCode;

/// Virtual hours that are run; a day's figures are computed from them.
const HOURS: u64 = 4;
/// Paths of the census. In a day 5 % of them are new, and 5 % are gone.
const PATHS: u64 = 12_396;
/// Closures that a machine looks for in a day, and paths in each that it does not have.
const CLOSURES: u64 = 20;
const CLOSURE_PATHS: u64 = 62;
/// The delay one way, and packets lost of a thousand, as in `community-200`.
const DELAY_MS: u64 = 40;
const LOSS_PERMILLE: u64 = 10;

const WAYS: [&str; 4] = [
    "(a) filters and deltas",
    "(b) prefixes of 8 bytes and deltas",
    "(c) ask everyone, a closure at a time",
    "(d) rateless IBLT of prefixes",
];

pub(crate) fn run_compare() -> ExitCode {
    super::show(measure_table(false))
}

fn scenario(peers: usize) -> Result<Scenario, ScenarioError> {
    let text = format!(
        "about = 'census'\nnodes = {}\npaths = {PATHS}\nshared_permille = 950\nsettle_s = 300\nrun_s = {}\nbound_s = 60\n\
         [network]\ndelay_ms = {DELAY_MS}\njitter_ms = 10\nloss_permille = {LOSS_PERMILLE}\ndown_mbit = 100\nup_mbit = 40\n\
         [churn]\nbuilds_per_day = 10\ncollections_per_day = 1\ncollect_permille = 50\n\
         [lookups]\nabsent_per_minute = 10\npresent_per_minute = 1\n",
        peers + 1,
        HOURS * 3_600
    );
    Scenario::parse("census", &text)
}

/// For 10 and for 100 peers: what a day costs a machine, how long an answer takes, and how much memory is needed. With
/// `form_only` nothing is run, and the figures are left out.
pub(crate) fn measure_table(form_only: bool) -> Result<(String, bool), ScenarioError> {
    let mut text = String::from(
        "| way | peers | kB a day, of it bodies | a newcomer reads, kB | a miss takes | a hit is found in | memory, kB | wasted \
         probes per absent path |\n|---|---|---|---|---|---|---|---|\n",
    );
    let mut content = true;
    for peers in [10, 100] {
        if form_only {
            text += &WAYS.map(|way| format!("| {way} ||||||||\n")).concat();
            continue;
        }
        let report = run(scenario(peers)?, 1, Subject::None);
        content &= report.is_content();
        report.violations.iter().for_each(|violation| eprintln!("violation: {violation}"));
        text += &rows(peers as u64, &report);
    }
    Ok((text, content))
}

fn rows(peers: u64, report: &Report) -> String {
    let days = HOURS as f64 / 24.0;
    let machines = report.nodes as f64;
    let day_kb = |bytes: f64| bytes / machines / days / 1_000.0;
    // Whatever one machine receives another one sends, so the sum over all machines is twice what was received.
    let of = |received: u64| 2.0 * day_kb(received as f64);
    let bodies = report.bytes_per_s.get("bodies and deltas").copied().unwrap_or(0.0) * 86.4;
    let all: f64 = report.bytes_per_s.values().sum::<f64>() * 86.4;
    let encodings = report.encodings;
    let other = |received: u64| all - bodies + bodies * of(received) / of(encodings.filters);
    let (asked, answered) = (question_bytes(to_usize(CLOSURE_PATHS)), answer_bytes(to_usize(CLOSURE_PATHS)));
    // Each question is sent by one and received by another: twice in the sum over all machines, and so is its answer.
    let asking = 2.0 * (CLOSURES * peers) as f64 * (asked + answered) as f64 / 1_000.0;
    let connections = report.bytes_per_s.get("handshakes and pings").copied().unwrap_or(0.0) * 86.4;
    // Without relays there is a connection with everyone.
    let connections = connections * peers as f64 / peers.min(32) as f64;
    let wasted = report.probes.absent_wasted as f64 / report.probes.absent.max(1) as f64;
    let round_ms = 2 * DELAY_MS;
    let slowest = slowest_ms(peers);
    let newcomer = |each: u64| peers * each / 1_000;
    let filter = report.table_bytes / peers;
    let list = 8 * PATHS;
    let line = |way: &str, day: f64, bodies: f64, new: u64, miss: String, hit: u64, memory: u64, wasted: f64| {
        format!("| {way} | {peers} | {day:.0}, {bodies:.0} | {new} | {miss} | {hit} ms | {memory} | {wasted:.4} |\n")
    };
    let none = || "0 ms".to_owned();
    let [filters, prefixes, asking_all, reconciled] = WAYS;
    let by = |received: u64| bodies * of(received) / of(encodings.filters);
    [
        line(filters, all, bodies, newcomer(filter), none(), round_ms, report.table_bytes / 1_000, wasted),
        line(
            prefixes,
            other(encodings.prefixes),
            by(encodings.prefixes),
            newcomer(list),
            none(),
            round_ms,
            newcomer(list),
            0.0,
        ),
        line(asking_all, asking + connections, 0.0, 0, format!("{slowest} ms"), round_ms, 0, 0.0),
        line(
            reconciled,
            other(encodings.reconciled),
            by(encodings.reconciled),
            newcomer(list),
            none(),
            round_ms,
            newcomer(list),
            0.0,
        ),
    ]
    .concat()
}

/// How long the slowest of `peers` peers takes at the median: a miss is certain only when all have answered.
fn slowest_ms(peers: u64) -> u64 {
    // A lost packet, of the question or of the answer, costs TCP's timeout of 200 ms and a round trip.
    let all_arrive = (0..2 * peers).fold(1.0, |chance, _| chance * (1.0 - LOSS_PERMILLE as f64 / 1_000.0));
    let repair_ms = if all_arrive < 0.5 { 200 + 2 * DELAY_MS } else { 0 };
    2 * DELAY_MS + repair_ms
}

fn to_usize(count: u64) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}
