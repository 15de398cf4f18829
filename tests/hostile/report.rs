//! The table of attacks: each test adds rows, and the file holds all rows known so far. There is no row without what the attack
//! cost the daemon, all of it measured in the same run.

use narmesh_tests::{Costs, TestNode};
use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// An attack of at least this length goes into the table with what it would write in an hour; a shorter one is over before an
/// hour of it could be told from its beginning.
const LONG: Duration = Duration::from_secs(5);

/// What is known about one attack.
#[derive(Debug, Default, Clone)]
pub struct Row {
    pub outcome: String,
    pub added: Option<f64>,
    pub rise_bytes: Option<u64>,
    pub set_aside: Option<String>,
    /// What the daemon used up during the attack.
    spent: Spent,
}

/// What a daemon used up, and in which time.
#[derive(Debug, Default, Clone, Copy)]
pub struct Spent {
    pub costs: Costs,
    pub took: Duration,
}

/// Measures what a daemon uses up for one row after the other.
#[derive(Debug)]
pub struct Meter(Mutex<(Costs, Instant)>);

impl Meter {
    pub fn start(node: &TestNode) -> Self {
        Self(Mutex::new((node.costs(), Instant::now())))
    }

    /// What was used up since the last call, or since the start.
    pub fn take(&self, node: &TestNode) -> Spent {
        let now = (node.costs(), Instant::now());
        let (before, since) = std::mem::replace(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner), now);
        Spent { costs: now.0.since(before), took: now.1 - since }
    }
}

static ROWS: Mutex<BTreeMap<String, Row>> = Mutex::new(BTreeMap::new());

/// Changes the row of `attack`, which may be new and cost this much, and writes the whole table.
pub fn note(attack: &str, spent: Spent, change: impl FnOnce(&mut Row)) {
    write(attack, |row| {
        row.spent = spent;
        change(row);
    });
}

/// Changes a row that is there.
pub fn amend(attack: &str, change: impl FnOnce(&mut Row)) {
    write(attack, |row| {
        assert!(row.spent.took > Duration::ZERO, "{attack}: what it cost is not noted");
        change(row);
    });
}

fn write(attack: &str, change: impl FnOnce(&mut Row)) {
    let mut rows = ROWS.lock().unwrap_or_else(PoisonError::into_inner);
    change(rows.entry(attack.to_owned()).or_default());
    // The table is only a report: no test fails because it cannot be written.
    let place = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"));
    if let Ok(mut file) = fs::File::create(place.join("attacks.md")) {
        file.write_all(table(&rows).as_bytes()).ok();
    }
}

const HEADER: [&str; 10] = [
    "attack",
    "client",
    "s added",
    "peak RSS above idle, MiB",
    "s",
    "CPU, s",
    "log, kB",
    "disk, kB",
    "disk in an hour of it, MB",
    "set aside",
];

fn table(rows: &BTreeMap<String, Row>) -> String {
    let line = |cells: &[&str]| format!("| {} |\n", cells.join(" | "));
    let mut text = line(&HEADER) + &line(&["---"; HEADER.len()]);
    for (attack, row) in rows {
        let added = row.added.map_or_else(String::new, |seconds| {
            if seconds.abs() < 0.05 { "0.0".to_owned() } else { format!("{seconds:.1}") }
        });
        let rise = row.rise_bytes.map_or_else(String::new, |bytes| format!("{:.1}", bytes as f64 / f64::from(1 << 20)));
        let Spent { costs, took } = row.spent;
        let kb = |bytes: u64| bytes.div_ceil(1_000).to_string();
        let seconds = took.as_secs_f64();
        let hourly = costs.disk_bytes as f64 * 3_600.0 / seconds / 1e6;
        let hourly = if took >= LONG { format!("{hourly:.0}") } else { String::new() };
        text += &line(&[
            attack,
            &row.outcome,
            &added,
            &rise,
            &format!("{seconds:.1}"),
            &format!("{:.2}", costs.cpu_s),
            &kb(costs.log_bytes),
            &kb(costs.disk_bytes),
            &hourly,
            row.set_aside.as_deref().unwrap_or_default(),
        ]);
    }
    text
}
