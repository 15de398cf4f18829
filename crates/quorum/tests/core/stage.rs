//! Short ways to write a ledger, statements of builders, and rules.

use narmesh_protocol::{BuilderKey, HashPart, NamePattern, NarHash, StorePath};
use narmesh_quorum::{
    Builder, Claim, FingerprintDigest, Insertion, Ledger, LedgerLimits, Mode, NameDigest, Override, Policy,
    PolicyRules, Require, Revocation, State, Verdict, VerifiedStatement, WallMs,
};

/// A path; different numbers give different paths.
pub(crate) fn path(number: u32) -> StorePath {
    named(number, "x")
}

/// A path with this name.
pub(crate) fn named(number: u32, name: &str) -> StorePath {
    let mut bytes = [0; 20];
    // Spread out, so that the paths lie all over the tree of hash parts.
    bytes[16..].copy_from_slice(&number.wrapping_mul(0x9e37_79b1).to_be_bytes());
    bytes[..4].copy_from_slice(&number.to_le_bytes());
    StorePath::new(HashPart(bytes), name).unwrap()
}

/// A path that is next to all others from this function in the tree of hash parts: they share the first 32 of 40 digits.
pub(crate) fn clustered(number: u32) -> StorePath {
    let mut bytes = [7; 20];
    bytes[..4].copy_from_slice(&number.to_le_bytes());
    StorePath::new(HashPart(bytes), "x").unwrap()
}

/// A possible result of a build; different letters give different fingerprints and NarHashes.
pub(crate) fn result(letter: char) -> Claim {
    let number = letter as u8;
    Claim {
        fingerprint: FingerprintDigest([number; 32]),
        nar_hash: NarHash([number; 32]),
        nar_size: 112,
        name: NameDigest::of("x"),
    }
}

/// The key of a builder; one name always gives the same key.
pub(crate) fn key(name: &str) -> BuilderKey {
    let mut bytes = [0; 32];
    bytes[..name.len()].copy_from_slice(name.as_bytes());
    BuilderKey(bytes)
}

/// An attestation.
pub(crate) fn says(builder: &str, path: &StorePath, claim: Claim) -> VerifiedStatement {
    VerifiedStatement::from_record(key(builder), path.hash_part(), claim, Some(WallMs(1_000)), 300)
}

/// A bare Nix signature.
pub(crate) fn signs(builder: &str, path: &StorePath, claim: Claim) -> VerifiedStatement {
    VerifiedStatement::from_record(key(builder), path.hash_part(), claim, None, 300)
}

/// An empty ledger.
pub(crate) fn ledger() -> Ledger {
    Ledger::new(LedgerLimits::default())
}

/// A ledger that holds "builder result" pairs about one path, such as `"a1 b1 c2"`: builder `a` says `1`.
pub(crate) fn heard(path: &StorePath, votes: &str) -> Ledger {
    let mut ledger = ledger();
    hear(&mut ledger, path, votes);
    ledger
}

/// Adds such pairs to a ledger.
pub(crate) fn hear(ledger: &mut Ledger, path: &StorePath, votes: &str) {
    for vote in votes.split_whitespace() {
        let (builder, letter) = vote.split_at(vote.len() - 1);
        let claim = Claim { name: NameDigest::of(path.name()), ..result(letter.chars().next().unwrap()) };
        assert!(matches!(ledger.insert(&says(builder, path, claim), Some(WallMs(5_000))), Insertion::New { .. }));
    }
}

/// Rules for builders named by letters, such as `"a b c"`; `"a=acme b=acme c"` puts two into a group.
pub(crate) fn rules(builders: &str, k: usize) -> PolicyRules {
    let builder = |text: &str| {
        let (name, group) = text.split_once('=').map_or((text, None), |(name, group)| (name, Some(group.to_owned())));
        Builder { name: name.to_owned(), key: key(name), group, signs_only_own_builds: false }
    };
    PolicyRules {
        builders: builders.split_whitespace().map(builder).collect(),
        mode: Mode::Require,
        require: Some(Require { k, overrides: Vec::new(), grace: None, veto: false }),
        ..PolicyRules::default()
    }
}

/// The policy from these rules.
pub(crate) fn policy(builders: &str, k: usize) -> Policy {
    checked(rules(builders, k))
}

/// The policy from these rules, which must be valid.
pub(crate) fn checked(rules: PolicyRules) -> Policy {
    Policy::new(rules).unwrap().0
}

/// The state of a path about which these votes are known.
pub(crate) fn state(policy: &Policy, votes: &str) -> State {
    verdict(policy, votes).state
}

/// The verdict on a path about which these votes are known.
pub(crate) fn verdict(policy: &Policy, votes: &str) -> Verdict {
    policy.judge(&heard(&path(1), votes), &path(1))
}

/// Another `k` for paths with a name.
pub(crate) fn special(name: &str, k: usize) -> Override {
    Override { name: NamePattern::new(name), k }
}

/// A revocation of a builder's key.
pub(crate) fn revocation(name: &str, from: u64) -> Revocation {
    Revocation { key: key(name), from: WallMs(from), why: "stolen".to_owned() }
}
