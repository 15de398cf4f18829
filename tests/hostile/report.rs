//! The table of attacks: each test adds rows, and the file holds all rows known so far.

use narmesh_tests::Costs;
use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::sync::{Mutex, PoisonError};

/// What is known about one attack.
#[derive(Debug, Default, Clone)]
pub struct Row {
    pub outcome: String,
    pub added: Option<f64>,
    pub rise_bytes: Option<u64>,
    pub set_aside: Option<String>,
    /// What the client used up during the attack.
    pub costs: Option<Costs>,
}

static ROWS: Mutex<BTreeMap<String, Row>> = Mutex::new(BTreeMap::new());

/// Changes the row of `attack`, which may be new, and writes the whole table.
pub fn note(attack: &str, change: impl FnOnce(&mut Row)) {
    let mut rows = ROWS.lock().unwrap_or_else(PoisonError::into_inner);
    change(rows.entry(attack.to_owned()).or_default());
    // The table is only a report: no test fails because it cannot be written.
    let place = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"));
    if let Ok(mut file) = fs::File::create(place.join("attacks.md")) {
        file.write_all(table(&rows).as_bytes()).ok();
    }
}

fn table(rows: &BTreeMap<String, Row>) -> String {
    let mut text =
        "| attack | client | s added | peak RSS above idle, MiB | CPU, s | log, kB | disk, kB | set aside |\n|---|---|---|---|---|---|---|---|\n".to_owned();
    for (attack, row) in rows {
        let added = row.added.map_or_else(String::new, |seconds| {
            if seconds.abs() < 0.05 { "0.0".to_owned() } else { format!("{seconds:.1}") }
        });
        let rise = row.rise_bytes.map_or_else(String::new, |bytes| format!("{:.1}", bytes as f64 / f64::from(1 << 20)));
        let set_aside = row.set_aside.clone().unwrap_or_default();
        let costs = row.costs.map_or_else(
            || " |  |".to_owned(),
            |costs| {
                let kb = |bytes: u64| bytes.div_ceil(1_000);
                format!("{:.2} | {} | {}", costs.cpu_s, kb(costs.log_bytes), kb(costs.disk_bytes))
            },
        );
        text += &format!("| {attack} | {} | {added} | {rise} | {costs} | {set_aside} |\n", row.outcome);
    }
    text
}
