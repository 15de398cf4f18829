//! What `narmesh quorum` asks, answered part by part: by the daemon for those who may use its control socket, and without a daemon
//! by the command itself.
//!
//! Nothing is held whole: a report is put into words path by path, attestations are read path by path, a file is taken in batch
//! by batch; between two parts no lock is held and no transaction is open, so that a slow reader holds up nobody.

use super::attest::{OwnBuilds, OwnStatement};
use super::import::{Imported, import};
use super::live::LiveLedger;
use super::members::{closure_members, member_of};
use super::now;
use anyhow::{Context as _, bail};
use narmesh_protocol::{HashPart, StoreDir, StorePath, attestation_file};
use narmesh_quorum::closure::Judged;
use narmesh_quorum::{PathReport, Policy, Report, ReportPart, ReportScope, no_longer_agreed};
use narmesh_store::NixStore;
use serde::{Deserialize, Serialize};
use std::io::{self, BufRead};
use std::thread;
use std::time::Duration;

/// Text of an export that is sent at a time, bytes; a path whose attestations are more goes whole.
const TEXT_BYTES: usize = 64 << 10;
/// Paths that our Nix got, judged while the ledger cannot be written: some 300 us.
const SERVED_AT_ONCE: usize = 128;
/// So long the first look of the offer is waited for, before the asker is told that it lasts.
const LOOK: Duration = Duration::from_millis(20);

/// What a report is about: store paths or their base names.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// One path.
    Path(String),
    /// A path with all that it needs at run time.
    Closure(String),
    /// All of which anything is attested.
    All,
}

/// What is asked.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Question {
    /// Who agrees.
    Report(Scope),
    /// Attestations as text.
    Export {
        /// Of this path, or all.
        path: Option<String>,
    },
    /// Take attestations: the text follows.
    Import,
    /// Attest a path of our own, or say whether that could be.
    Attest {
        /// The store path or its base name.
        path: String,
        /// It was built again, with the same result.
        rebuilt: bool,
    },
}

/// A part of an answer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// So many paths or lines so far.
    Progress(usize),
    /// What the reader should know of this answer; for people.
    Note(String),
    /// Of a report.
    Report(ReportPart),
    /// Of an export: whole lines.
    Text(String),
    /// What became of an import.
    Imported(Imported),
    /// What our own builder says of the path.
    Word(OwnStatement),
    /// That was all.
    Done,
    /// There is no answer, or no more of it.
    Refused {
        /// The reason why there is no answer, or why it broke off, for people.
        why: String,
    },
}

/// Who answers.
#[derive(Clone, Copy, Debug)]
pub struct Queries<'a> {
    /// The store that is compared.
    pub store: &'a NixStore,
    /// The ledger that is asked.
    pub ledger: &'a LiveLedger,
    /// Attests what was built here; `None` without a builder key, or where that is not asked.
    pub own: Option<OwnBuilds<'a>>,
}

impl Queries<'_> {
    /// Answers; [`Part::Done`] and [`Part::Refused`] are the caller's to say. Blocks, on the disk and on `tell`, whose first
    /// error ends it.
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
                if self.ledger.policy().keys().next().is_none() {
                    bail!("no [[builder]] is configured: nobody's attestations count, so none are kept");
                }
                let imported = import(input, self.ledger, |lines| tell(Part::Progress(lines)))?;
                Ok(tell(Part::Imported(imported))?)
            }
            Question::Attest { path, rebuilt } => {
                let own = self.own.context("trust.builder_key_file is not set: nothing to sign with")?;
                self.ledger.catch_up()?;
                // What others may hear of is known only after a look at the whole store.
                while !own.offer.has_looked() {
                    tell(Part::Progress(0))?;
                    thread::sleep(LOOK);
                }
                Ok(tell(Part::Word(own.word_on(path, *rebuilt)?))?)
            }
        }
    }

    fn report(&self, scope: &Scope, tell: &mut impl FnMut(Part) -> io::Result<()>) -> anyhow::Result<()> {
        self.ledger.catch_up()?;
        self.ledger.flush()?;
        let policy = self.ledger.policy();
        if policy.k_default().is_none() {
            let groups = policy.groups();
            bail!(
                "quorum.k is not set: it says how many groups of builders must agree, of {groups} that are configured"
            );
        }
        let report = self.judge(&policy, scope, tell)?;
        let mut say = |part| tell(Part::Report(part));
        say(ReportPart::Head(Box::new(report.head().clone())))?;
        report.conflicts().try_for_each(|path| say(ReportPart::Conflict(path.to_string())))?;
        let mut after = None;
        loop {
            let (turned, last) = self.ledger.read(|ledger| no_longer_agreed(&policy, ledger, after, SERVED_AT_ONCE));
            turned.into_iter().try_for_each(|turned| say(ReportPart::NoLongerAgreed(turned)))?;
            after = last;
            if last.is_none() {
                break;
            }
        }
        for judged in report.judged() {
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
            let member = self.ledger.on_disk(|db| Ok(member_of(self.store, db, path)))??;
            anyhow::Ok(self.ledger.read(|ledger| Judged::alone(policy, ledger, &member)))
        };
        Ok(match scope {
            Scope::Path(path) => {
                let path = parse(self.ledger.store_dir(), path)?;
                Report::paths(policy, ReportScope::Path(path.to_string()), vec![alone(&path)?], now)
            }
            Scope::Closure(root) => {
                let root = parse(self.ledger.store_dir(), root)?;
                let members = self.ledger.on_disk(|db| Ok(closure_members(self.store, db, &root, progress)))??;
                self.ledger.read(|ledger| Report::closure(policy, ledger, &root, &members, now))
            }
            Scope::All => {
                let mut judged = Vec::new();
                for path in self.ledger.on_disk(|db| db.paths())? {
                    judged.push(alone(&path)?);
                    progress(judged.len())?;
                }
                Report::paths(policy, ReportScope::All, judged, now)
            }
        })
    }

    /// In the order of path and key: the same each time.
    fn export(&self, path: Option<&str>, tell: &mut impl FnMut(Part) -> io::Result<()>) -> anyhow::Result<()> {
        let store_dir = self.ledger.store_dir();
        let hash_parts = match path {
            Some(text) => vec![parse(store_dir, text)?.hash_part()],
            None => {
                let paths = self.ledger.on_disk(|db| db.paths())?;
                let mut hash_parts: Vec<HashPart> = paths.iter().map(StorePath::hash_part).collect();
                hash_parts.dedup();
                hash_parts
            }
        };
        let mut text = attestation_file::header(store_dir);
        for hash_part in hash_parts {
            for stored in self.ledger.attestations(&hash_part)? {
                text.push_str(&attestation_file::line(store_dir, &stored.key, &stored.attestation));
                if text.len() >= TEXT_BYTES {
                    tell(Part::Text(std::mem::take(&mut text)))?;
                }
            }
        }
        Ok(tell(Part::Text(text))?)
    }
}

pub(super) fn parse(store_dir: &StoreDir, text: &str) -> anyhow::Result<StorePath> {
    let parsed = if text.starts_with('/') { store_dir.parse_path(text) } else { StorePath::parse(text) };
    parsed.with_context(|| format!("{text:?} is no path of {}", store_dir.as_str()))
}
