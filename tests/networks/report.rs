//! Tables of measurements, for those who read the output of `./test.sh`.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::Duration;

/// A table that grows row by row.
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

    /// Adds a row, prints it, and writes the table with all rows so far.
    pub fn row(&mut self, cells: &[&str]) {
        writeln!(self.text, "| {} |", cells.join(" | ")).unwrap();
        println!("| {} |", cells.join(" | "));
        // Only a report: no test fails because it cannot be written.
        fs::write(Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}.md", self.name)), &self.text).ok();
    }
}

/// Seconds with one digit.
pub fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}
