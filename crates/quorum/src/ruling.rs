//! Whether a path may be substituted.

use crate::ledger::Ledger;
use crate::policy::{Mode, Policy};
use crate::statement::FingerprintDigest;
use crate::verdict::{Ballot, State, Verdict};
use narmesh_protocol::{BuilderKey, StorePath};
use std::collections::BTreeSet;
use std::fmt;

/// What the policy says about one NAR of one path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ruling {
    /// The policy is not asked: signatures decide, as in Nix.
    NotAsked,
    /// Signatures decide; the preference decides which NAR is asked for first.
    Prefer(Preference),
    /// The NAR may be substituted.
    Serve(Grounds),
    /// The NAR may not be substituted.
    Refuse(Refusal),
}

/// How a NAR relates to the agreed fingerprint.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Preference {
    /// It has the agreed fingerprint, or the path is the address of its own content.
    Agreed,
    /// Another fingerprint is agreed on.
    Other,
    /// Nothing is agreed on.
    Open,
}

/// Why a NAR may be substituted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Grounds {
    /// Enough builders got exactly this result.
    Agreed,
    /// Only builders of `grace` have the path.
    Grace,
    /// The path is the address of its own content.
    ContentAddressed,
}

/// Why a NAR may not be substituted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// The builders have not agreed; the state of the path says why.
    NotAgreed(State),
    /// Another fingerprint is agreed on.
    OtherFingerprint,
}

impl Refusal {
    /// All names that [`Refusal::name`] returns.
    pub const NAMES: [&str; 4] = ["conflict", "short", "none", "other-fingerprint"];

    /// A one-word name, used as a label of metrics.
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
    /// Decides on the fingerprint of a narinfo. It is asked at the narinfo and again at the NAR.
    pub fn decide(
        &self,
        ledger: &Ledger,
        path: &StorePath,
        fingerprint: FingerprintDigest,
        content_addressed: bool,
    ) -> Ruling {
        match self.mode {
            // These modes neither refuse nor prefer anything, so no lookup pays for a verdict.
            Mode::Off | Mode::Observe => Ruling::NotAsked,
            Mode::Prefer => {
                let verdict = self.judge(ledger, path);
                Ruling::Prefer(match verdict.agreed() {
                    // It proves itself, whatever builders say.
                    _ if content_addressed => Preference::Agreed,
                    Some(agreed) if agreed.claim.fingerprint == fingerprint => Preference::Agreed,
                    Some(_) => Preference::Other,
                    None => Preference::Open,
                })
            }
            // Its contents are checked against its path: nobody's word is needed.
            Mode::Require if content_addressed => Ruling::Serve(Grounds::ContentAddressed),
            Mode::Require => self.rule_on(&self.judge(ledger, path), fingerprint),
        }
    }

    /// The builders whose word counts for this NAR, in the order of the configuration. Our own key is added if its word has
    /// grace and it is not among the builders.
    pub fn find_vouching(&self, ledger: &Ledger, path: &StorePath, fingerprint: FingerprintDigest) -> Vec<BuilderKey> {
        let verdict = self.judge(ledger, path);
        let attested = verdict.attested.iter().find(|attested| attested.claim.fingerprint == fingerprint);
        let numbers = attested.into_iter().flat_map(|attested| &attested.builders);
        let own =
            self.own.filter(|_| verdict.own.contains(&fingerprint) && self.grace_of(&verdict) == Some(fingerprint));
        numbers.filter_map(|number| Some(self.builders.get(*number)?.key)).chain(own).collect()
    }

    pub(crate) fn rule_on(&self, verdict: &Verdict, fingerprint: FingerprintDigest) -> Ruling {
        match verdict.agreed() {
            Some(agreed) if agreed.claim.fingerprint == fingerprint => Ruling::Serve(Grounds::Agreed),
            Some(_) => Ruling::Refuse(Refusal::OtherFingerprint),
            None if self.grace_of(verdict) == Some(fingerprint) => Ruling::Serve(Grounds::Grace),
            None => Ruling::Refuse(Refusal::NotAgreed(verdict.state)),
        }
    }

    /// The fingerprint that `grace` lets through. Only builders of grace, or our own key, may have said anything about the
    /// path; what they say must count, and they must all say the same. Otherwise an attacker could win by suppressing the
    /// other builders.
    pub(crate) fn grace_of(&self, verdict: &Verdict) -> Option<FingerprintDigest> {
        // Grace helps where too few have spoken, and never against a contradiction.
        let (Some(_), State::Short | State::None) = (&self.grace, verdict.state) else { return None };
        let attested = verdict.attested.iter().map(|attested| attested.claim.fingerprint);
        let said: BTreeSet<FingerprintDigest> = attested.chain(verdict.own.iter().copied()).collect();
        let only = said.first().filter(|_| said.len() == 1)?;
        // A builder that said anything else, even what does not count, ends the grace.
        let silent_or_graced = |(number, ballot): (usize, &Ballot)| match ballot {
            Ballot::Missing => true,
            Ballot::For(_) => self.has_grace(number),
            Ballot::Void(_) | Ballot::NotCounted(..) => false,
        };
        verdict.ballots.iter().enumerate().all(silent_or_graced).then_some(*only)
    }
}
