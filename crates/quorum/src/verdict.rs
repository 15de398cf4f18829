//! One path: what its builders say, counted.

use crate::Facts;
use crate::evidence::{FingerprintDigest, NameDigest, WallMs};
use crate::ledger::{Ledger, Vote};
use crate::mutation::mutant;
use crate::policy::{Member, Policy};
use narmesh_protocol::{HashPart, StorePath};
use std::collections::{BTreeMap, BTreeSet};

/// The one state of a path.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Two fingerprints reach `k`, or none does and two are attested, or one does and a veto stands against it.
    Conflict,
    /// Nothing that counts is attested.
    None,
    /// One fingerprint is attested, by fewer than `k`.
    Short,
    /// Exactly one fingerprint has `k` groups or more.
    Agreed,
    /// Its contents are checked against its own address.
    ContentAddressed,
}

impl State {
    /// As in reports and metrics.
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

/// One fingerprint and who says so.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attested {
    /// The fingerprint's digest, and the NarHash and NarSize that belong to it.
    pub facts: Facts,
    /// Numbers of builders in the policy, ascending.
    pub builders: Vec<usize>,
    /// Groups that count for it.
    pub groups: usize,
}

/// Why a builder's statement is not counted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Uncounted {
    /// A Nix signature without a date: other tools put the same on what they substituted.
    BareSignature,
    /// Stored here after its key was revoked.
    Revoked,
    /// Its key is revoked, and nobody knows when it was first stored here.
    RevokedWithoutRecord,
    /// The other builders of its group say something else, so the group counts for neither.
    GroupDisagrees,
}

/// How one builder stands to the path.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Standing {
    /// It said nothing.
    Missing,
    /// It counts for this fingerprint (its group may count already).
    For(FingerprintDigest),
    /// It said two things: not reproducible on this builder. Void for this path, kept as evidence.
    Void(Vec<Facts>),
    /// What it says is not counted.
    NotCounted(Uncounted, Facts),
}

/// The result.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Verdict {
    /// The state.
    pub state: State,
    /// Groups asked for.
    pub k: usize,
    /// Groups there are.
    pub of: usize,
    /// What is attested by builders that count: most groups first, then by fingerprint.
    pub attested: Vec<Attested>,
    /// One for each builder of the policy, in its order.
    pub standings: Vec<Standing>,
    /// Whether dissent below `k` made the conflict.
    pub vetoed: bool,
    /// What our own builder key attests where it is not among the builders: it counts for `grace` alone.
    pub own: BTreeSet<FingerprintDigest>,
}

impl Verdict {
    /// The fingerprint that is agreed on.
    pub fn agreed(&self) -> Option<&Attested> {
        (self.state == State::Agreed).then(|| self.attested.first()).flatten()
    }

    /// When agreed: what else is attested, below `k`.
    pub fn disputed_by(&self) -> &[Attested] {
        match self.state {
            State::Agreed => self.attested.get(1..).unwrap_or_default(),
            State::Conflict | State::None | State::Short | State::ContentAddressed => &[],
        }
    }
}

impl Policy {
    /// Counts what the ledger holds of a path. A path that is its own content address needs nobody's word: use
    /// [`Policy::verdict_content_addressed`] for it.
    pub fn verdict(&self, ledger: &Ledger, path: &StorePath) -> Verdict {
        let standings = self.standings(ledger, &path.hash_part());
        let (standings, attested) = self.count(standings);
        let name = NameDigest::of(path.name());
        let is_name_disputed = attested.iter().any(|attested| attested.facts.name != name);
        let k = if is_name_disputed { self.k_of_disputed_name() } else { self.k(path.name()) };
        let heard: usize = attested.iter().map(|attested| attested.groups).sum();
        let k = if mutant!(PercentageOfHeard) { (k * heard).div_ceil(self.groups().max(1)).max(1) } else { k };
        let reached = attested.iter().filter(|attested| attested.groups >= k).count();
        let vetoed = self.require.veto && !mutant!(VetoIgnored) && reached == 1 && attested.len() > 1;
        // Most groups first: the one that reached it.
        let is_ours = attested.first().is_some_and(|first| first.facts.name == name);
        let state = match (reached, attested.len()) {
            (1, _) if !vetoed && is_ours => State::Agreed,
            (0, 0) => State::None,
            (0, 1) if !is_name_disputed => State::Short,
            _ => State::Conflict,
        };
        let own = self.own_word(ledger, &path.hash_part());
        Verdict { state, k, of: self.groups(), attested, standings, vetoed, own }
    }

    /// The same, for a path whose content address was proven.
    pub fn verdict_content_addressed(&self, ledger: &Ledger, path: &StorePath) -> Verdict {
        Verdict { state: State::ContentAddressed, ..self.verdict(ledger, path) }
    }

    fn own_word(&self, ledger: &Ledger, hash_part: &HashPart) -> BTreeSet<FingerprintDigest> {
        let Some(own) = self.own.filter(|own| !self.knows(own)) else { return BTreeSet::new() };
        let counts = |vote: &Vote| vote.builder == own && vote.attested_at.is_some() && !self.is_void(vote);
        ledger.votes(hash_part).filter(counts).map(|vote| vote.facts.fingerprint).collect()
    }

    /// Each builder by itself: void if it says two things, not counted if what it says may not count.
    fn standings(&self, ledger: &Ledger, hash_part: &HashPart) -> Vec<(Standing, Option<Facts>)> {
        let mut said: Vec<Vec<(Option<Uncounted>, Facts)>> = vec![Vec::new(); self.builders.len()];
        for vote in ledger.votes(hash_part) {
            let Some(number) = self.numbers.get(&vote.builder) else { continue };
            let (Some(member), Some(said)) = (self.builders.get(*number), said.get_mut(*number)) else { continue };
            said.push((self.why_not(member, &vote), vote.facts));
        }
        said.into_iter().map(|said| standing(&said)).collect()
    }

    fn why_not(&self, member: &Member, vote: &Vote) -> Option<Uncounted> {
        if self.is_void(vote) {
            return Some(match self.since(vote) {
                Some(_) => Uncounted::Revoked,
                None => Uncounted::RevokedWithoutRecord,
            });
        }
        let bare = vote.attested_at.is_none() && !member.signs_only_own_builds && !mutant!(BareSignatureCounted);
        bare.then_some(Uncounted::BareSignature)
    }

    /// Whether it is void because its key is revoked.
    pub(crate) fn is_void(&self, vote: &Vote) -> bool {
        let since = if mutant!(BackdatedAccepted) { vote.attested_at } else { self.since(vote) };
        self.is_revoked(&vote.builder, since)
    }

    /// From when it counts: with its date from when it was stored with it, or a thief could give a date to a signature that was
    /// here before and counted for nothing; its signature alone, of a builder whose signatures count, from when that was stored.
    fn since(&self, vote: &Vote) -> Option<WallMs> {
        let member = self.numbers.get(&vote.builder).and_then(|number| self.builders.get(*number));
        let by_signature = vote.attested_at.is_none() || member.is_some_and(|member| member.signs_only_own_builds);
        if by_signature { vote.stored_at } else { vote.dated_stored_at }
    }

    /// Whether a vote that counts does so by its signature alone.
    pub(crate) fn is_by_signature(&self, vote: &Vote) -> bool {
        vote.attested_at.is_none() || self.is_revoked(&vote.builder, vote.dated_stored_at)
    }

    /// Groups count once, and for nothing when their builders disagree.
    fn count(&self, standings: Vec<(Standing, Option<Facts>)>) -> (Vec<Standing>, Vec<Attested>) {
        let mut by_fingerprint: BTreeMap<FingerprintDigest, Attested> = BTreeMap::new();
        let mut by_group: BTreeMap<usize, BTreeSet<FingerprintDigest>> = BTreeMap::new();
        for (number, ((_, facts), member)) in standings.iter().zip(&self.builders).enumerate() {
            let Some(facts) = facts else { continue };
            let new = || Attested { facts: *facts, builders: Vec::new(), groups: 0 };
            let alone = FingerprintDigest(facts.nar_hash.0);
            let what = if mutant!(NarHashAlone) { alone } else { facts.fingerprint };
            by_fingerprint.entry(what).or_insert_with(new).builders.push(number);
            by_group.entry(member.group).or_default().insert(what);
        }
        for fingerprints in by_group.values() {
            if let Some(only) = fingerprints.first()
                && (fingerprints.len() == 1 || mutant!(DisagreeingGroupCounted))
                && let Some(attested) = by_fingerprint.get_mut(only)
            {
                attested.groups += 1;
            }
        }
        if mutant!(GroupCountedTwice) {
            by_fingerprint.values_mut().for_each(|attested| attested.groups = attested.builders.len());
        }
        let disagrees = |group| by_group.get(&group).is_some_and(|fingerprints| fingerprints.len() > 1);
        let standings = standings.into_iter().zip(&self.builders).map(|((standing, facts), member)| match facts {
            Some(facts) if disagrees(member.group) => Standing::NotCounted(Uncounted::GroupDisagrees, facts),
            Some(_) | None => standing,
        });
        let standings = standings.collect();
        let mut attested: Vec<Attested> = by_fingerprint.into_values().collect();
        attested.sort_by_key(|attested| (usize::MAX - attested.groups, attested.facts.fingerprint));
        (standings, attested)
    }
}

/// What one builder's statements come to, and the facts that it stands for if any.
fn standing(said: &[(Option<Uncounted>, Facts)]) -> (Standing, Option<Facts>) {
    let mut counted: Vec<Facts> =
        said.iter().filter(|(why_not, _)| why_not.is_none()).map(|(_, facts)| *facts).collect();
    counted.sort_unstable();
    match (counted.as_slice(), said.iter().min()) {
        ([], None) => (Standing::Missing, None),
        ([], Some((why_not, facts))) => {
            (Standing::NotCounted(why_not.unwrap_or(Uncounted::BareSignature), *facts), None)
        }
        ([facts], _) => (Standing::For(facts.fingerprint), Some(*facts)),
        ([facts, ..], _) if mutant!(VoidCounted) => (Standing::For(facts.fingerprint), Some(*facts)),
        (_, _) => (Standing::Void(counted), None),
    }
}
