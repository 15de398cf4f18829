//! What was measured, for those who read the output of `./test.sh`.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::Duration;

/// A table in the making.
#[derive(Debug)]
pub struct Table {
    name: &'static str,
    text: String,
}

impl Table {
    /// A table that is written to `name.md` in cargo's directory for tests.
    pub fn new(name: &'static str, columns: &[&str]) -> Self {
        let mut table = Self { name, text: String::new() };
        table.row(columns);
        table.row(&vec!["---"; columns.len()]);
        table
    }

    /// Adds a row, shows it, and writes the table as far as it is known.
    pub fn row(&mut self, cells: &[&str]) {
        writeln!(self.text, "| {} |", cells.join(" | ")).unwrap();
        println!("| {} |", cells.join(" | "));
        // A report, not a result: no test fails for want of a place to write it.
        fs::write(Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}.md", self.name)), &self.text).ok();
    }
}

/// Seconds with one digit.
pub fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}
