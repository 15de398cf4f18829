//! What the looks found, as text and as JSON.

use crate::cli::findings::{Finding, Severity};
use crate::describe::escaped;
use crate::styles::Mark;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// What one look found.
#[derive(Debug, Serialize)]
pub(super) struct Look {
    about: &'static str,
    findings: Vec<Finding>,
    /// What could not be seen, and why.
    unseen: Vec<String>,
}

impl Look {
    pub(super) fn at(about: &'static str) -> Self {
        Self { about, findings: Vec::new(), unseen: Vec::new() }
    }

    pub(super) fn found(&mut self, finding: Finding) {
        self.findings.push(finding);
    }

    pub(super) fn unseen(&mut self, what_and_why: impl Into<String>) {
        self.unseen.push(what_and_why.into());
    }

    #[cfg(test)]
    pub(super) fn findings(&self) -> &[Finding] {
        &self.findings
    }
}

/// All of it; the output of `--json`. Fields are added, never renamed.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    config: PathBuf,
    errors: usize,
    warnings: usize,
    notes: usize,
    looks: Vec<Look>,
}

impl Report {
    pub(super) fn new(config: &Path, looks: Vec<Look>) -> Self {
        let count = |severity| {
            let all = looks.iter().flat_map(|look| &look.findings);
            all.filter(|finding| finding.severity == severity).count()
        };
        let [errors, warnings, notes] = [Severity::Error, Severity::Warning, Severity::Note].map(count);
        Self { config: config.to_owned(), errors, warnings, notes, looks }
    }

    pub(super) fn is_healthy(&self) -> bool {
        self.errors == 0
    }

    /// The worst first, and of one severity in the order of the looks.
    pub(super) fn text(&self) -> String {
        let mut text = format!("narmesh doctor, for {}\n", self.config.display());
        let all = self.looks.iter().flat_map(|look| look.findings.iter().map(move |finding| (look.about, finding)));
        let mut sorted: Vec<_> = all.collect();
        sorted.sort_by_key(|(_, finding)| finding.severity);
        text.extend(sorted.into_iter().map(|(about, finding)| finding.text(about)));
        for look in &self.looks {
            let line =
                |unseen: &String| format!("{} {}: {}\n", Mark::Aside.paint("not seen:"), look.about, escaped(unseen));
            text.extend(look.unseen.iter().map(line));
        }
        let looked_at: Vec<_> = self.looks.iter().map(|look| look.about).collect();
        text += &format!(
            "looked at {}: {}, {}, {}\n",
            looked_at.join(", "),
            counted(self.errors, "error"),
            counted(self.warnings, "warning"),
            counted(self.notes, "note")
        );
        text
    }
}

fn counted(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::styles::without_colours;

    #[test]
    fn worst_comes_first_and_only_errors_are_unhealthy() {
        let mut disk = Look::at("disk");
        disk.found(Finding::note("small"));
        disk.unseen("/x: Permission denied");
        let mut daemon = Look::at("daemon");
        daemon.found(Finding::warning("a peer said \u{1b}[2J").mended_by("narmesh reload"));
        let report = Report::new(Path::new("/x.toml"), vec![disk, daemon]);
        let text = without_colours(&report.text());
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(
            lines,
            [
                "narmesh doctor, for /x.toml",
                "warning: daemon: a peer said \\u{1b}[2J",
                "    mend: narmesh reload",
                "note: disk: small",
                "not seen: disk: /x: Permission denied",
                "looked at disk, daemon: 0 errors, 1 warning, 1 note",
            ]
        );
        assert!(report.is_healthy());
        let mut broken = Look::at("daemon");
        broken.found(Finding::error("gone"));
        assert!(!Report::new(Path::new("/x.toml"), vec![broken]).is_healthy());
    }
}
