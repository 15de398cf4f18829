//! Counts anew what a machine took in, by the words of docs/quorum.md, and compares the result with what its core says.

use crate::cores::quorum::{FingerprintDigest, Ledger, Policy, Ruling, State, WallMs};
use narmesh_protocol::StorePath;
use std::collections::{BTreeMap, BTreeSet};

/// Violations that are kept, in words.
const VIOLATIONS_MAX: usize = 50;

/// One builder, as everybody's configuration has it.
#[derive(Clone, Debug)]
pub(super) struct Known {
    pub(super) group: String,
    /// What is stored of this builder from this time on is void; `None` if its key is not revoked.
    pub(super) revoked: Option<WallMs>,
    pub(super) grace: bool,
}

/// A statement that a machine took in.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stored {
    pub(super) builder: usize,
    pub(super) fingerprint: FingerprintDigest,
    /// Whether it came as a dated attestation, and not as a bare signature.
    pub(super) dated: bool,
    pub(super) at: WallMs,
}

/// What follows from the statements about one path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Count {
    state: State,
    agreed: Option<FingerprintDigest>,
    grace: Option<FingerprintDigest>,
}

#[derive(Debug)]
pub(super) struct Judge {
    pub(super) builders: Vec<Known>,
    pub(super) k: usize,
    /// The rules of all machines, without and with a veto.
    pub(super) policies: [Policy; 2],
    /// What honest machines attested, by path.
    pub(super) honest: BTreeMap<StorePath, BTreeSet<FingerprintDigest>>,
    pub(super) judged: u64,
    pub(super) violations: Vec<String>,
}

impl Judge {
    /// Checks a machine's verdict on a path, after its statements about the path changed.
    pub(super) fn judge(&mut self, machine: usize, ledger: &Ledger, path: &StorePath, stored: &[Stored]) {
        let mut broken = Vec::new();
        let none = BTreeSet::new();
        let honest = self.honest.get(path).unwrap_or(&none);
        for (veto, policy) in [false, true].into_iter().zip(&self.policies) {
            let expected = self.count(stored, veto);
            let verdict = policy.judge(ledger, path);
            let agreed = verdict.agreed().map(|agreed| agreed.claim.fingerprint);
            if (verdict.state, agreed) != (expected.state, expected.agreed) {
                let (is, should) = (verdict.state, expected.state);
                broken.push(format!(
                    "machine {machine} says {is:?} of {path}, by the rules it is {should:?} (veto: {veto})"
                ));
            }
            if agreed.is_some_and(|agreed| !honest.contains(&agreed)) {
                broken.push(format!("machine {machine} has {path} agreed on what no honest builder attested"));
            }
            for fingerprint in stored.iter().map(|stored| stored.fingerprint).collect::<BTreeSet<_>>() {
                let serves = matches!(policy.decide(ledger, path, fingerprint, false), Ruling::Serve(_));
                if serves != [expected.agreed, expected.grace].contains(&Some(fingerprint)) {
                    broken.push(format!("machine {machine} lets {path} through: {serves}, against the rules"));
                }
                if serves && !honest.contains(&fingerprint) {
                    broken.push(format!("machine {machine} lets {path} through as no honest builder made it"));
                }
            }
        }
        self.judged += 1;
        let room = VIOLATIONS_MAX.saturating_sub(self.violations.len());
        self.violations.extend(broken.into_iter().take(room));
    }

    fn count(&self, stored: &[Stored], veto: bool) -> Count {
        let mut said: BTreeMap<usize, BTreeSet<FingerprintDigest>> = BTreeMap::new();
        let mut counted = said.clone();
        for one in stored {
            said.entry(one.builder).or_default().insert(one.fingerprint);
            let revoked = self.builders.get(one.builder).and_then(|builder| builder.revoked);
            if one.dated && revoked.is_none_or(|from| one.at < from) {
                counted.entry(one.builder).or_default().insert(one.fingerprint);
            }
        }
        // A builder that said two different things has no vote.
        let votes: BTreeMap<usize, FingerprintDigest> = counted
            .iter()
            .filter(|(_, said)| said.len() == 1)
            .filter_map(|(builder, said)| Some((*builder, *said.first()?)))
            .collect();
        let mut by_group: BTreeMap<&str, BTreeSet<FingerprintDigest>> = BTreeMap::new();
        for (builder, fingerprint) in &votes {
            let group = self.builders.get(*builder).map_or("", |builder| builder.group.as_str());
            by_group.entry(group).or_default().insert(*fingerprint);
        }
        let mut groups: BTreeMap<FingerprintDigest, usize> = votes.values().map(|attested| (*attested, 0)).collect();
        // A group whose builders disagree counts for nothing.
        for agreeing in by_group.values().filter(|said| said.len() == 1).flatten() {
            *groups.entry(*agreeing).or_default() += 1;
        }
        let enough: Vec<_> =
            groups.iter().filter(|(_, count)| **count >= self.k).map(|(attested, _)| *attested).collect();
        let state = match (enough.len(), groups.len()) {
            (1, 1) => State::Agreed,
            (1, _) if !veto => State::Agreed,
            (0, 0) => State::None,
            (0, 1) => State::Short,
            (_, _) => State::Conflict,
        };
        let agreed = enough.first().copied().filter(|_| state == State::Agreed);
        let graced = |builder: &usize| {
            votes.contains_key(builder) && self.builders.get(*builder).is_some_and(|builder| builder.grace)
        };
        // Grace needs that all who said anything about the path have grace and a valid vote.
        let grace = groups.keys().next().copied().filter(|_| state == State::Short && said.keys().all(graced));
        Count { state, agreed, grace }
    }
}
