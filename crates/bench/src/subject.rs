//! What the rows of one subject share: one set-up, measured in interleaved rounds.

use crate::binaries::Binaries;
use crate::row::{Beside, Planned, Row};
use crate::scratch::Scratch;
use std::time::Duration;

/// Rows that are measured together. To add a figure, add a row to a subject, or a subject to `rows::all`.
pub(crate) trait Subject {
    /// All rows, in the order of the table.
    fn planned(&self) -> Vec<Planned>;

    /// Measures what `report` wants and records it. After an error, the rows that are not yet recorded give it as their
    /// reason.
    fn measure(&self, bench: &Bench, report: &mut Report) -> anyhow::Result<()>;
}

/// What every subject may use.
#[derive(Debug)]
pub(crate) struct Bench {
    /// Interleaved rounds of each measurement.
    pub(crate) rounds: usize,
    /// How long each load on a server lasts.
    pub(crate) load_duration: Duration,
    /// The directory for files.
    pub(crate) scratch: Scratch,
    /// The binaries that are measured.
    pub(crate) binaries: Binaries,
}

/// The rows of one subject, as they are measured.
#[derive(Debug)]
pub(crate) struct Report {
    wanted: Vec<Planned>,
    rows: Vec<Row>,
}

impl Report {
    /// A report that waits for the rows in `wanted`.
    pub(crate) fn new(wanted: Vec<Planned>) -> Self {
        Self { wanted, rows: Vec::new() }
    }

    /// Whether a row with this name, or in this group, is wanted.
    pub(crate) fn wants(&self, name: &str) -> bool {
        self.wanted.iter().any(|planned| planned.is_named_by(name))
    }

    /// Records a figure with one sample a round. Does nothing when the row is not wanted.
    pub(crate) fn figure(&mut self, name: &str, samples: &[f64], beside: Option<Beside>) {
        if let Some(planned) = self.wanted.iter().find(|planned| planned.name == name) {
            self.rows.push(planned.measured(samples, beside.as_ref()));
        }
    }

    /// All wanted rows in the order of the plan. Rows without a figure give `why` as their reason.
    pub(crate) fn into_rows(self, why: &str) -> Vec<Row> {
        let Self { wanted, mut rows } = self;
        let close = |planned: Planned| {
            let at = rows.iter().position(|row| row.name == planned.name);
            at.map_or_else(|| planned.unmeasured(why), |at| rows.swap_remove(at))
        };
        wanted.into_iter().map(close).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unmeasured_rows_are_kept_with_a_reason() {
        let wanted = ["a/1", "a/2", "b"].map(|name| Planned::new(name, "ms", ""));
        let mut report = Report::new(wanted.to_vec());
        report.figure("b", &[1.0], None);
        report.figure("nobody asked", &[1.0], None);
        report.figure("a/1", &[2.0], None);
        let rows = report.into_rows("it broke");
        let told: Vec<_> = rows.iter().map(|row| (row.name.as_str(), row.value, row.why_not.as_deref())).collect();
        assert_eq!(told, [("a/1", Some(2.0), None), ("a/2", None, Some("it broke")), ("b", Some(1.0), None)]);
    }
}
