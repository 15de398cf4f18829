//! Whether a path may be substituted.

use crate::evidence::FingerprintDigest;
use crate::ledger::Ledger;
use crate::mutation::mutant;
use crate::policy::{Mode, Policy};
use crate::verdict::{Standing, State, Verdict};
use narmesh_protocol::{BuilderKey, StorePath};
use std::collections::BTreeSet;
use std::fmt;

/// What the policy says of one NAR of one path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decision {
    /// Nothing: signatures decide, as in Nix.
    NotAsked,
    /// Signatures decide; this decides who is asked first.
    Prefer(Preference),
    /// It may be.
    Serve(Grounds),
    /// It may not be.
    Refuse(Refusal),
}

/// How a NAR stands to what is agreed on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Preference {
    /// It is what is agreed on, or the path is the address of its contents.
    Agreed,
    /// Something else is.
    Other,
    /// Nothing is.
    Open,
}

/// Why it may.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Grounds {
    /// Enough builders got exactly this.
    Agreed,
    /// Nobody but a builder of `grace` has the path.
    Grace,
    /// The path is the address of its contents.
    ContentAddressed,
}

/// Why it may not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// The state of the path.
    NotAgreed(State),
    /// Something else is agreed on.
    OtherFingerprint,
}

impl Refusal {
    /// All that [`Refusal::name`] gives.
    pub const NAMES: [&str; 4] = ["conflict", "short", "none", "other-fingerprint"];

    /// One word for it: a label of metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::NotAgreed(State::Conflict) => "conflict",
            Self::NotAgreed(State::Short) => "short",
            Self::NotAgreed(State::None | State::Agreed | State::ContentAddressed) => "none",
            Self::OtherFingerprint => "other-fingerprint",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.name() {
            "conflict" => "builders got different results",
            "short" => "fewer builders than asked for say so",
            "none" => "no builder that counts says anything of it",
            _ => "something else is agreed on",
        })
    }
}

impl Policy {
    /// Decides on what a narinfo says; asked at the narinfo and again at the NAR.
    pub fn decide(
        &self,
        ledger: &Ledger,
        path: &StorePath,
        fingerprint: FingerprintDigest,
        content_addressed: bool,
    ) -> Decision {
        match self.mode {
            Mode::Off | Mode::Observe => Decision::NotAsked,
            Mode::Prefer => {
                let verdict = self.verdict(ledger, path);
                Decision::Prefer(match verdict.agreed() {
                    _ if content_addressed => Preference::Agreed,
                    Some(agreed) if agreed.facts.fingerprint == fingerprint => Preference::Agreed,
                    Some(_) => Preference::Other,
                    None => Preference::Open,
                })
            }
            Mode::Require if content_addressed => Decision::Serve(Grounds::ContentAddressed),
            Mode::Require => self.demanded(&self.verdict(ledger, path), fingerprint),
        }
    }

    /// The builders whose word counts for this NAR, in the order of the configuration; our own key where its word has grace and it
    /// is no builder.
    pub fn vouching(&self, ledger: &Ledger, path: &StorePath, fingerprint: FingerprintDigest) -> Vec<BuilderKey> {
        let verdict = self.verdict(ledger, path);
        let attested = verdict.attested.iter().find(|attested| attested.facts.fingerprint == fingerprint);
        let numbers = attested.into_iter().flat_map(|attested| &attested.builders);
        let own =
            self.own.filter(|_| verdict.own.contains(&fingerprint) && self.grace_of(&verdict) == Some(fingerprint));
        numbers.filter_map(|number| Some(self.builders.get(*number)?.key)).chain(own).collect()
    }

    pub(crate) fn demanded(&self, verdict: &Verdict, fingerprint: FingerprintDigest) -> Decision {
        match verdict.agreed() {
            Some(agreed) if agreed.facts.fingerprint == fingerprint => Decision::Serve(Grounds::Agreed),
            Some(_) => Decision::Refuse(Refusal::OtherFingerprint),
            None if self.grace_of(verdict) == Some(fingerprint) => Decision::Serve(Grounds::Grace),
            None => Decision::Refuse(Refusal::NotAgreed(verdict.state)),
        }
    }

    /// The fingerprint that `grace` lets through: only builders of grace, or our own key, said anything of the path, what they
    /// say counts, and all say the same. Else suppressing the others would win.
    pub(crate) fn grace_of(&self, verdict: &Verdict) -> Option<FingerprintDigest> {
        let (Some(_), State::Short | State::None) = (&self.grace, verdict.state) else { return None };
        let attested = verdict.attested.iter().map(|attested| attested.facts.fingerprint);
        let said: BTreeSet<FingerprintDigest> = attested.chain(verdict.own.iter().copied()).collect();
        let only = said.first().filter(|_| said.len() == 1)?;
        let silent_or_graced = |(number, standing): (usize, &Standing)| match standing {
            Standing::Missing => true,
            Standing::For(_) => self.has_grace(number) || mutant!(GraceForAnyone),
            Standing::Void(_) | Standing::NotCounted(..) => false,
        };
        verdict.standings.iter().enumerate().all(silent_or_graced).then_some(*only)
    }
}
