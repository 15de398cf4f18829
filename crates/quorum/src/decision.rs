//! Whether a path may be substituted.

use crate::evidence::FingerprintDigest;
use crate::ledger::Ledger;
use crate::policy::{Mode, Policy};
use crate::verdict::{Standing, State, Verdict};
use narmesh_protocol::StorePath;

/// What the policy says of one NAR of one path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decision {
    /// Nothing: signatures decide, as in Nix.
    NotAsked,
    /// Signatures decide; whether this NAR is the agreed one decides who is asked first.
    Prefer {
        /// Whether it is.
        agreed: bool,
    },
    /// It may be.
    Serve(Grounds),
    /// It may not be.
    Refuse(Refusal),
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
                let agreed = verdict.agreed().is_some_and(|agreed| agreed.facts.fingerprint == fingerprint);
                Decision::Prefer { agreed: agreed || content_addressed }
            }
            Mode::Require if content_addressed => Decision::Serve(Grounds::ContentAddressed),
            Mode::Require => self.demanded(&self.verdict(ledger, path), fingerprint),
        }
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
        let ([only], State::Short) = (verdict.attested.as_slice(), verdict.state) else { return None };
        let silent_or_graced = |(number, standing): (usize, &Standing)| match standing {
            Standing::Missing => true,
            Standing::For(_) => self.has_grace(number),
            Standing::Void(_) | Standing::NotCounted(..) => false,
        };
        verdict.standings.iter().enumerate().all(silent_or_graced).then_some(only.facts.fingerprint)
    }
}
