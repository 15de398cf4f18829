//! Answers the questions of `narmesh quorum` part by part: in the daemon for those who may use its control socket, and
//! in the command itself if there is no daemon.
//!
//! No answer is held whole: a report is put into words path by path, attestations are read path by path, and a file is
//! imported batch by batch. Between two parts no lock is held and no transaction is open, so a slow reader holds up
//! nobody.

use super::import::{Imported, import};
use super::ledger::LiveLedger;
use super::members::{find_closure_members, find_member};
use super::own_builds::{OwnBuilds, OwnStatement};
use super::{now, parse_path};
use anyhow::{Context as _, bail};
use narmesh_protocol::{HashPart, StorePath, attestation_file};
use narmesh_quorum::closure::Judged;
use narmesh_quorum::{PathReport, Policy, Report, ReportPart, ReportScope, find_no_longer_agreed};
use narmesh_store::NixStore;
use serde::{Deserialize, Serialize};
use std::io::{self, BufRead};
use std::thread;
use std::time::Duration;

/// The text of an export is sent when it has at least this many bytes.
const TEXT_BYTES: usize = 64 << 10;
/// How many paths that our Nix got are judged at a time, while the ledger cannot be written: some 300 us.
const SERVED_AT_ONCE: usize = 128;
/// How long to wait for the offer's first check of the store, before the client is told once more that it goes on.
const LOOK: Duration = Duration::from_millis(20);

/// What a report is about: store paths or their base names.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// One path.
    Path(String),
    /// A path with all that it needs at run time.
    Closure(String),
    /// All paths of which anything is attested.
    All,
}

/// A question.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Question {
    /// A report on whether builders agree.
    Report(Scope),
    /// Attestations as text.
    Export {
        /// The path whose attestations are exported; all paths if `None`.
        path: Option<String>,
    },
    /// Takes the attestations in the text that follows.
    Import,
    /// Attests a path of our own, or says whether that is possible.
    Attest {
        /// The store path or its base name.
        path: String,
        /// Whether it was built again, with the same result.
        rebuilt: bool,
    },
}

/// A part of an answer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// The number of paths or lines so far.
    Progress(usize),
    /// Something that the reader should know about this answer, for people.
    Note(String),
    /// A part of a report.
    Report(ReportPart),
    /// A part of an export: whole lines.
    Text(String),
    /// What became of an import.
    Imported(Imported),
    /// Whether our own builder attests the path.
    Word(OwnStatement),
    /// The end of a complete answer.
    Done,
    /// There is no answer, or it breaks off here.
    Refused {
        /// The reason, for people.
        why: String,
    },
}

/// What is needed to answer questions.
#[derive(Clone, Copy, Debug)]
pub struct Queries<'a> {
    /// The store that is compared with what is attested.
    pub store: &'a NixStore,
    /// The ledger that is reported on.
    pub ledger: &'a LiveLedger,
    /// Attests what was built here. `None` without a builder key, and for questions that do not need it.
    pub own: Option<OwnBuilds<'a>>,
}

impl Queries<'_> {
    /// Answers with all parts but the last: the caller adds [`Part::Done`] or [`Part::Refused`]. Blocks on the disk and
    /// on `tell`, whose first error ends the answer.
    pub fn answer(
        &self,
        question: &Question,
        input: impl BufRead,
        mut tell: impl FnMut(Part) -> io::Result<()>,
    ) -> anyhow::Result<()> {
        match question {
            Question::Report(scope) => self.report(scope, &mut tell),
            Question::Export { path } => self.export(path.as_deref(), &mut tell),
            Question::Import => {
                // Checked first, or a large file would be read for nothing.
                if self.ledger.policy().keys().next().is_none() {
                    bail!("no [[builder]] is configured: nobody's attestations count, so none are kept");
                }
                let imported = import(input, self.ledger, |lines| tell(Part::Progress(lines)))?;
                Ok(tell(Part::Imported(imported))?)
            }
            Question::Attest { path, rebuilt } => {
                let own = self.own.context("trust.builder_key_file is not set: nothing to sign with")?;
                self.ledger.catch_up()?;
                // What others may hear of is known only after the whole store was checked.
                while !own.offer.has_looked() {
                    tell(Part::Progress(0))?;
                    thread::sleep(LOOK);
                }
                Ok(tell(Part::Word(own.attest_path(path, *rebuilt)?))?)
            }
        }
    }

    fn report(&self, scope: &Scope, tell: &mut impl FnMut(Part) -> io::Result<()>) -> anyhow::Result<()> {
        // What another process wrote, and what this one only noted, belongs into the report.
        self.ledger.catch_up()?;
        self.ledger.flush()?;
        let policy = self.ledger.policy();
        if policy.k_default().is_none() {
            let groups = policy.groups();
            bail!(
                "quorum.k is not set: it says how many groups of builders must agree ({groups} groups are configured)"
            );
        }
        let report = self.judge(&policy, scope, tell)?;
        let mut say = |part| tell(Part::Report(part));
        say(ReportPart::Head(Box::new(report.head().clone())))?;
        report.conflicts().try_for_each(|path| say(ReportPart::Conflict(path.to_string())))?;
        // In portions, between which the ledger can be written, however slow the reader is.
        let mut after = None;
        loop {
            let (turned, last) =
                self.ledger.read(|ledger| find_no_longer_agreed(&policy, ledger, after, SERVED_AT_ONCE));
            turned.into_iter().try_for_each(|turned| say(ReportPart::NoLongerAgreed(turned)))?;
            after = last;
            if last.is_none() {
                break;
            }
        }
        for judged in report.judged_paths() {
            let path = self.ledger.read(|ledger| PathReport::of(&policy, ledger, judged));
            say(ReportPart::Path(Box::new(path)))?;
        }
        Ok(())
    }

    fn judge(
        &self,
        policy: &Policy,
        scope: &Scope,
        tell: &mut impl FnMut(Part) -> io::Result<()>,
    ) -> anyhow::Result<Report> {
        let (now, mut progress) = (now(), |paths| tell(Part::Progress(paths)));
        let alone = |path: &StorePath| {
            let member = self.ledger.with_reader(|db| Ok(find_member(self.store, db, path)))??;
            anyhow::Ok(self.ledger.read(|ledger| Judged::alone(policy, ledger, &member)))
        };
        Ok(match scope {
            Scope::Path(path) => {
                let path = parse_path(self.ledger.store_dir(), path)?;
                Report::paths(policy, ReportScope::Path(path.to_string()), vec![alone(&path)?], now)
            }
            Scope::Closure(root) => {
                let root = parse_path(self.ledger.store_dir(), root)?;
                let members =
                    self.ledger.with_reader(|db| Ok(find_closure_members(self.store, db, &root, progress)))??;
                self.ledger.read(|ledger| Report::closure(policy, ledger, &root, &members, now))
            }
            Scope::All => {
                let mut judged = Vec::new();
                for path in self.ledger.with_reader(|db| db.read_paths())? {
                    judged.push(alone(&path)?);
                    progress(judged.len())?;
                }
                Report::paths(policy, ReportScope::All, judged, now)
            }
        })
    }

    /// Exports in the order of path and key, so that two exports of the same attestations are the same text.
    fn export(&self, path: Option<&str>, tell: &mut impl FnMut(Part) -> io::Result<()>) -> anyhow::Result<()> {
        let store_dir = self.ledger.store_dir();
        let hash_parts = match path {
            Some(text) => vec![parse_path(store_dir, text)?.hash_part()],
            None => {
                let paths = self.ledger.with_reader(|db| db.read_paths())?;
                let mut hash_parts: Vec<HashPart> = paths.iter().map(StorePath::hash_part).collect();
                hash_parts.dedup();
                hash_parts
            }
        };
        let mut text = attestation_file::header(store_dir);
        for hash_part in hash_parts {
            for stored in self.ledger.read_attestations(&hash_part)? {
                text.push_str(&attestation_file::line(store_dir, &stored.key, &stored.attestation));
                // Sent in pieces, so that neither side holds the whole.
                if text.len() >= TEXT_BYTES {
                    tell(Part::Text(std::mem::take(&mut text)))?;
                }
            }
        }
        Ok(tell(Part::Text(text))?)
    }
}
