//! The verdict on one path: the statements of its builders, counted.

use crate::Claim;
use crate::ledger::{Ledger, Vote};
use crate::policy::{GroupedBuilder, Policy};
use crate::statement::{FingerprintDigest, NameDigest, WallMs};
use narmesh_protocol::{HashPart, StorePath};
use std::collections::{BTreeMap, BTreeSet};

/// The state of a path.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Two fingerprints reach `k`; or none does and two are attested; or one does and a veto stands against it.
    Conflict,
    /// No statement that counts was made.
    None,
    /// One fingerprint is attested, by fewer than `k` groups.
    Short,
    /// Exactly one fingerprint is attested by `k` groups or more.
    Agreed,
    /// The content is checked against the path, which is its content address.
    ContentAddressed,
}

impl State {
    /// The name used in reports and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Conflict => "conflict",
            Self::None => "none",
            Self::Short => "short",
            Self::Agreed => "agreed",
            Self::ContentAddressed => "content-addressed",
        }
    }
}

/// One fingerprint and the builders that attest it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attested {
    /// The digest of the fingerprint, and its NarHash and NarSize.
    pub claim: Claim,
    /// The builders' numbers in the policy, ascending.
    pub builders: Vec<usize>,
    /// How many groups count for it.
    pub groups: usize,
}

/// Why a builder's statement is not counted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Uncounted {
    /// It is a Nix signature without a date, which other tools also put on what they substituted.
    BareSignature,
    /// It was stored here after its key was revoked.
    Revoked,
    /// Its key is revoked, and nobody knows when it was first stored here.
    RevokedWithoutRecord,
    /// The other builders of its group say something else, so the group counts for no result.
    GroupDisagrees,
}

/// Where one builder stands on the path.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ballot {
    /// It said nothing.
    Missing,
    /// It counts for this fingerprint (its group may already be counted).
    For(FingerprintDigest),
    /// It made two different statements, so the path is not reproducible on this builder. Its vote is void for this path,
    /// and kept as evidence.
    Void(Vec<Claim>),
    /// Its statement is not counted.
    NotCounted(Uncounted, Claim),
}

/// The verdict on a path, and all that it follows from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Verdict {
    /// The state.
    pub state: State,
    /// How many groups must agree.
    pub k: usize,
    /// How many groups of builders there are.
    pub of: usize,
    /// The fingerprints attested by builders that count: those with most groups first, then by fingerprint.
    pub attested: Vec<Attested>,
    /// One for each builder of the policy, in the policy's order.
    pub ballots: Vec<Ballot>,
    /// Whether the conflict comes from a veto by dissent below `k`.
    pub vetoed: bool,
    /// What our own builder key attests when it is not among the builders: this counts for `grace` only.
    pub own: BTreeSet<FingerprintDigest>,
}

impl Verdict {
    /// The fingerprint that is agreed on, if one is.
    pub fn agreed(&self) -> Option<&Attested> {
        (self.state == State::Agreed).then(|| self.attested.first()).flatten()
    }

    /// The fingerprints attested by fewer than `k` groups beside the agreed one.
    pub fn disputed_by(&self) -> &[Attested] {
        match self.state {
            State::Agreed => self.attested.get(1..).unwrap_or_default(),
            State::Conflict | State::None | State::Short | State::ContentAddressed => &[],
        }
    }
}

impl Policy {
    /// Counts the statements that the ledger holds about a path. A path that is its own content address needs nobody's
    /// word; for it use [`Policy::judge_content_addressed`].
    pub fn judge(&self, ledger: &Ledger, path: &StorePath) -> Verdict {
        let ballots = self.collect_ballots(ledger, &path.hash_part());
        let (ballots, attested) = self.count(ballots);
        let name = NameDigest::of(path.name());
        let is_name_disputed = attested.iter().any(|attested| attested.claim.name != name);
        // Overrides go by name, and nobody has proved the name: a made-up one must not lower how many have to agree.
        let k = if is_name_disputed { self.k_of_disputed_name() } else { self.k(path.name()) };
        let reached = attested.iter().filter(|attested| attested.groups >= k).count();
        let vetoed = self.require.veto && reached == 1 && attested.len() > 1;
        // The one with most groups comes first, so this is the fingerprint that reached `k`.
        let is_ours = attested.first().is_some_and(|first| first.claim.name == name);
        let state = match (reached, attested.len()) {
            (1, _) if !vetoed && is_ours => State::Agreed,
            (0, 0) => State::None,
            (0, 1) if !is_name_disputed => State::Short,
            // Two at `k`, several below it, or one under another name than that of the path.
            _ => State::Conflict,
        };
        let own = self.collect_own_word(ledger, &path.hash_part());
        Verdict { state, k, of: self.groups(), attested, ballots, vetoed, own }
    }

    /// Like [`Policy::judge`], for a path whose content address was proven.
    pub fn judge_content_addressed(&self, ledger: &Ledger, path: &StorePath) -> Verdict {
        Verdict { state: State::ContentAddressed, ..self.judge(ledger, path) }
    }

    fn collect_own_word(&self, ledger: &Ledger, hash_part: &HashPart) -> BTreeSet<FingerprintDigest> {
        let Some(own) = self.own.filter(|own| !self.knows(own)) else { return BTreeSet::new() };
        let counts = |vote: &Vote| vote.builder == own && vote.attested_at.is_some() && !self.is_void(vote);
        ledger.votes(hash_part).filter(counts).map(|vote| vote.claim.fingerprint).collect()
    }

    /// Each builder by itself: its vote is void if it said two things, and does not count if its statement must not.
    fn collect_ballots(&self, ledger: &Ledger, hash_part: &HashPart) -> Vec<(Ballot, Option<Claim>)> {
        let mut said: Vec<Vec<(Option<Uncounted>, Claim)>> = vec![Vec::new(); self.builders.len()];
        for vote in ledger.votes(hash_part) {
            // The ledger also holds what keys said that are no builders any more.
            let Some(number) = self.numbers.get(&vote.builder) else { continue };
            let (Some(member), Some(said)) = (self.builders.get(*number), said.get_mut(*number)) else { continue };
            said.push((self.why_not(member, &vote), vote.claim));
        }
        said.into_iter().map(|said| decide_ballot(&said)).collect()
    }

    fn why_not(&self, member: &GroupedBuilder, vote: &Vote) -> Option<Uncounted> {
        // First: of a revoked key, nothing else matters.
        if self.is_void(vote) {
            return Some(match self.since(vote) {
                Some(_) => Uncounted::Revoked,
                None => Uncounted::RevokedWithoutRecord,
            });
        }
        let bare = vote.attested_at.is_none() && !member.signs_only_own_builds;
        bare.then_some(Uncounted::BareSignature)
    }

    /// Whether the vote is void because its key is revoked.
    pub(crate) fn is_void(&self, vote: &Vote) -> bool {
        self.is_revoked(&vote.builder, self.since(vote))
    }

    /// The time from which a vote counts, to be compared with a revocation. An attestation counts from when it was stored
    /// with its date: otherwise a thief of the key could add a date to a signature that was here before and counted for
    /// nothing. Of a builder whose bare signatures count, the signature is enough, and counts from when it was first stored.
    fn since(&self, vote: &Vote) -> Option<WallMs> {
        let member = self.numbers.get(&vote.builder).and_then(|number| self.builders.get(*number));
        let by_signature = vote.attested_at.is_none() || member.is_some_and(|member| member.signs_only_own_builds);
        if by_signature { vote.stored_at } else { vote.dated_stored_at }
    }

    /// Whether a vote that counts does so only by its bare Nix signature.
    pub(crate) fn is_by_signature(&self, vote: &Vote) -> bool {
        vote.attested_at.is_none() || self.is_revoked(&vote.builder, vote.dated_stored_at)
    }

    /// Counts each group once, and not at all when its builders disagree.
    fn count(&self, ballots: Vec<(Ballot, Option<Claim>)>) -> (Vec<Ballot>, Vec<Attested>) {
        let mut by_fingerprint: BTreeMap<FingerprintDigest, Attested> = BTreeMap::new();
        let mut by_group: BTreeMap<usize, BTreeSet<FingerprintDigest>> = BTreeMap::new();
        for (number, ((_, claim), member)) in ballots.iter().zip(&self.builders).enumerate() {
            let Some(claim) = claim else { continue };
            let new = || Attested { claim: *claim, builders: Vec::new(), groups: 0 };
            by_fingerprint.entry(claim.fingerprint).or_insert_with(new).builders.push(number);
            by_group.entry(member.group).or_default().insert(claim.fingerprint);
        }
        // A group with two fingerprints is divided, and counts for neither.
        for fingerprints in by_group.values() {
            if let Some(only) = fingerprints.first()
                && fingerprints.len() == 1
                && let Some(attested) = by_fingerprint.get_mut(only)
            {
                attested.groups += 1;
            }
        }
        let disagrees = |group| by_group.get(&group).is_some_and(|fingerprints| fingerprints.len() > 1);
        let ballots = ballots.into_iter().zip(&self.builders).map(|((ballot, claim), member)| match claim {
            Some(claim) if disagrees(member.group) => Ballot::NotCounted(Uncounted::GroupDisagrees, claim),
            Some(_) | None => ballot,
        });
        let ballots = ballots.collect();
        let mut attested: Vec<Attested> = by_fingerprint.into_values().collect();
        attested.sort_by_key(|attested| (usize::MAX - attested.groups, attested.claim.fingerprint));
        (ballots, attested)
    }
}

/// The ballot that follows from one builder's statements, and the claim that it votes for, if any.
fn decide_ballot(said: &[(Option<Uncounted>, Claim)]) -> (Ballot, Option<Claim>) {
    let mut counted: Vec<Claim> =
        said.iter().filter(|(why_not, _)| why_not.is_none()).map(|(_, claim)| *claim).collect();
    counted.sort_unstable();
    match (counted.as_slice(), said.iter().min()) {
        ([], None) => (Ballot::Missing, None),
        ([], Some((why_not, claim))) => (Ballot::NotCounted(why_not.unwrap_or(Uncounted::BareSignature), *claim), None),
        ([claim], _) => (Ballot::For(claim.fingerprint), Some(*claim)),
        (_, _) => (Ballot::Void(counted), None),
    }
}
