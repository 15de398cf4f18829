//! The table of results: before, now, and what must be.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use narmesh_tests::NixVersion;

/// One row of the table. Rows are sorted by what was done and by client, since stories run beside each other.
#[derive(Debug)]
pub(crate) struct Row {
    /// The row's number, and what was done.
    pub(crate) what: &'static str,
    /// The version of Nix, or another client that asked.
    pub(crate) client: &'static str,
    /// What the daemon of version 0.1.0 did, measured by this very story.
    pub(crate) before: &'static str,
    /// What is promised.
    pub(crate) must_be: &'static str,
}

/// How a row names this client.
pub(crate) fn nix(version: NixVersion) -> &'static str {
    match version {
        NixVersion::V2_8 => "Nix 2.8",
        NixVersion::V2_26 => "Nix 2.26",
        NixVersion::V2_34 => "Nix 2.34",
    }
}

impl Row {
    /// Adds the row with the result `now`, and writes the table with all rows known so far.
    pub(crate) fn now(&self, now: &str) {
        static ROWS: Mutex<BTreeMap<(&str, &str), String>> = Mutex::new(BTreeMap::new());
        let line = format!("| {} | {} | {} | {now} | {} |", self.what, self.client, self.before, self.must_be);
        println!("{line}");
        let mut rows = ROWS.lock().unwrap_or_else(PoisonError::into_inner);
        rows.insert((self.what, self.client), line);
        let mut text = "| what | client | before | now | must be |\n| --- | --- | --- | --- | --- |\n".to_owned();
        rows.values().for_each(|row| writeln!(text, "{row}").unwrap());
        // Only a report: no test fails because it cannot be written.
        fs::write(Path::new(env!("CARGO_TARGET_TMPDIR")).join("arrival.md"), text).ok();
    }
}
