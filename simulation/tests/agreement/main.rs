//! Compares the model of gossipsub with the real one: fifty real libp2p nodes in one process, over connections as slow as
//! the simulated ones, and as many simulated machines. How long an announcement takes and how many copies of it a node gets
//! must agree.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::indexing_slicing,
    reason = "a test that tells what it measured"
)]
#![expect(clippy::disallowed_methods, reason = "real nodes live in real time")]

mod real;

use narmesh_simulation::{Report, Row, Scenario, Subject, run};

const NODES: usize = 50;
/// One way: much longer than two busy cores need for fifty nodes.
const DELAY_MS: u64 = 800;
const JITTER_MS: u64 = 80;
/// Announcements measured.
const MESSAGES: u32 = 30;
/// The most that a figure may differ by, in either direction.
const FACTOR_MAX: f64 = 1.5;
/// Other load on this computer can only make the real nodes slower, so what disagrees is measured again.
const RUNS_MAX: u32 = 3;

/// The figures that are compared.
#[derive(Clone, Copy, Debug)]
struct Spread {
    p50_ms: f64,
    p99_ms: f64,
    copies: f64,
}

fn simulated(connections: usize) -> Spread {
    let text = format!(
        "about = 'as the real ones'\nnodes = {NODES}\npaths = 20\nconnections = {connections}\nsettle_s = 60\nrun_s = 60\n\
         bound_s = 30\n[network]\ndelay_ms = {DELAY_MS}\njitter_ms = {JITTER_MS}\n\
         [[event]]\nat_s = 2\nwhat = 'build'\npaths = 1\ntimes = {MESSAGES}\nevery_s = 1\n"
    );
    let report = run(Scenario::parse("agreement", &text).unwrap(), 1, Subject::None);
    assert_eq!(report.violations, [""; 0]);
    let of = |name: &str| value(&report, name);
    Spread {
        p50_ms: of("an announcement is heard, p50"),
        p99_ms: of("an announcement is heard, p99"),
        copies: of("copies of it for each machine"),
    }
}

fn value(report: &Report, name: &str) -> f64 {
    report.rows.iter().find(|row: &&Row| row.name == name).and_then(|row| row.value).unwrap()
}

impl Spread {
    fn agrees(&self, other: &Self) -> bool {
        let pairs = [(self.p50_ms, other.p50_ms), (self.p99_ms, other.p99_ms), (self.copies, other.copies)];
        pairs.iter().all(|(one, other)| (one / other).max(other / one) <= FACTOR_MAX)
    }
}

fn compare(connections: usize) {
    let simulated = simulated(connections);
    let agree = (1..=RUNS_MAX).any(|run| {
        let real = real::measure(NODES, connections, MESSAGES, DELAY_MS, JITTER_MS);
        println!("{connections} connections each, run {run}: real {real:?}, simulated {simulated:?}");
        real.agrees(&simulated)
    });
    assert!(agree, "no run with {connections} connections agrees within {FACTOR_MAX}");
}

/// First with as many connections as in the daemon: most nodes hear an announcement from its publisher. Then over several
/// hops, where forwarding counts. One after the other, so that they do not slow each other.
#[test]
fn fifty_real_nodes_agree_with_the_model() {
    compare(32);
    compare(8);
}

/// The parameters are the daemon's: what it sets is set in `real.rs`, and all else is libp2p's default in both.
#[test]
fn the_parameters_are_those_of_the_daemon() {
    let daemon = include_str!("../../../crates/mesh/src/behaviour.rs");
    let body = daemon.split("fn announcements(").nth(1).and_then(|rest| rest.split("\n}\n").next()).unwrap();
    let set: Vec<_> = body
        .lines()
        .map(str::trim)
        .filter(|line| line.starts_with('.') && ![".expect", ".build"].iter().any(|other| line.starts_with(other)))
        .map(|line| line.split('(').next().unwrap())
        .collect();
    let known = [
        ".validation_mode",
        ".validate_messages",
        ".max_transmit_size",
        ".max_transmit_size_for_topic",
        ".max_control_messages_sent",
        ".heartbeat_initial_delay",
        ".message_id_fn",
    ];
    assert_eq!(set, known, "real.rs and src/gossipsub.rs must follow the daemon");
    assert!(body.contains("heartbeat_initial_delay(Duration::from_millis(500))"), "{body}");
}
