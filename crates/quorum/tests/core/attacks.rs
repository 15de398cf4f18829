//! Attacks that must not change a verdict, one test each, in the order of `docs/quorum.md`.

use crate::stage::{checked, hear, heard, key, ledger, path, policy, result, revocation, rules, says, state, verdict};
use narmesh_protocol::{Attestation, NarHash, NixSecretKey, NixSignature, Statement, StoreDir};
use narmesh_quorum::{
    Builder, Insertion, Ledger, LedgerLimits, Pin, PolicyRules, STATEMENTS_PER_PATH_MAX, State, VerifiedStatement,
    WallMs,
};

#[test]
fn hostile_builder_that_is_heard_alone_does_not_win() {
    // One builder is hostile and the others are cut off: it has all the votes there are.
    assert_eq!(state(&policy("a b c d e", 3), "e2"), State::Short);
}

#[test]
fn order_of_arrival_does_not_change_the_verdict() {
    let policy = policy("a b c d e", 3);
    let first = verdict(&policy, "e2 d2 a1 b1 c1");
    assert_eq!(first, verdict(&policy, "a1 b1 c1 d2 e2"));
    assert_eq!(first.agreed().unwrap().claim, result('1'));
}

#[test]
fn attestation_of_ten_relays_counts_once() {
    // Ten peers hand over the same attestation, perhaps with different times of arrival.
    let mut ledger = heard(&path(1), "a1");
    for relay in 0..10 {
        assert_eq!(ledger.insert(&says("a", &path(1), result('1')), Some(WallMs(relay))), Insertion::Known);
    }
    assert_eq!((ledger.len(), policy("a b", 2).judge(&ledger, &path(1)).state), (1, State::Short));
}

#[test]
fn one_key_under_two_names_counts_once() {
    let mut rules = rules("a b c", 2);
    rules.builders.push(Builder { name: "z".to_owned(), key: key("a"), group: None, signs_only_own_builds: false });
    let policy = checked(rules);
    assert_eq!((policy.groups(), state(&policy, "a1")), (3, State::Short));
}

#[test]
fn old_attestation_that_is_repeated_does_not_win() {
    // When a path was rebuilt with another result, an old attestation of it voids the builder's vote. It does not win.
    assert_eq!(state(&policy("a b", 2), "a1 b1 b2"), State::Short);
    // An attestation repeated after its key was revoked keeps the time at which it was first stored, whatever its date.
    let revoked = checked(PolicyRules { revoked: vec![revocation("b", 6_000)], ..rules("a b", 2) });
    let mut ledger = heard(&path(1), "a1 b1");
    let again = VerifiedStatement::from_record(key("b"), path(1).hash_part(), result('1'), Some(WallMs(9_000)), 300);
    assert_eq!(ledger.insert(&again, Some(WallMs(9_000))), Insertion::Known);
    assert_eq!(revoked.judge(&ledger, &path(1)).state, State::Agreed);
}

#[test]
fn date_of_a_builder_decides_nothing() {
    let revoked = checked(PolicyRules { revoked: vec![revocation("b", 6_000)], ..rules("a b", 2) });
    for date in [0, 1, u64::MAX - 1] {
        let mut ledger = heard(&path(1), "a1");
        let dated = VerifiedStatement::from_record(key("b"), path(1).hash_part(), result('1'), Some(WallMs(date)), 300);
        ledger.insert(&dated, Some(WallMs(7_000)));
        assert_eq!(revoked.judge(&ledger, &path(1)).state, State::Short, "dated {date}, stored after the revocation");
        assert_eq!(policy("a b", 2).judge(&ledger, &path(1)).state, State::Agreed, "and otherwise no date matters");
    }
}

#[test]
fn two_builders_do_not_win_while_three_are_cut_off() {
    let policy = policy("a b c d e", 3);
    assert_eq!(state(&policy, "d2 e2"), State::Short, "three honest ones cut off: two colluding are two");
    assert_eq!(state(&policy, ""), State::None);
}

#[test]
fn different_references_under_one_nar_hash_are_a_conflict() {
    let store_dir = StoreDir::parse("/nix/store").unwrap();
    let mut ledger = ledger();
    let names = ["a", "b", "c"];
    let keys: Vec<_> =
        (1..).zip(names).map(|(seed, name)| NixSecretKey::from_seed(name, &[seed; 32]).unwrap()).collect();
    for (number, key) in keys.iter().enumerate() {
        let references = if number == 2 { vec![path(9)] } else { Vec::new() };
        let statement = Statement { path: path(1), nar_hash: NarHash([1; 32]), nar_size: 112, references };
        let attestation = Attestation::sign(key, &store_dir, statement, 1);
        let verified = VerifiedStatement::attestation(&store_dir, &attestation, &key.public(), 300).unwrap();
        ledger.insert(&verified, Some(WallMs(1)));
    }
    let mut rules = rules("a b c", 3);
    for (builder, key) in rules.builders.iter_mut().zip(&keys) {
        builder.key = narmesh_protocol::BuilderKey(key.public().bytes());
    }
    let verdict = checked(rules).judge(&ledger, &path(1));
    assert_eq!(verdict.state, State::Conflict);
    assert_eq!(verdict.attested.iter().map(|it| it.claim.nar_hash).collect::<Vec<_>>(), [NarHash([1; 32]); 2]);
}

#[test]
fn flood_of_attestations_displaces_nothing_of_others() {
    // Fewer than a million here, under a bound that is smaller in proportion.
    let mut ledger = Ledger::new(LedgerLimits { per_builder: 1_000, bytes_per_builder: 1 << 20 });
    hear(&mut ledger, &path(1), "a1 b1 c1");
    ledger.pin(path(1).hash_part(), Pin::Held);
    hear(&mut ledger, &path(2), "a1 b1");
    for number in 10..20_010 {
        ledger.insert(&says("c", &path(number), result('2')), Some(WallMs(9_000)));
    }
    let policy = policy("a b c", 3);
    assert_eq!(policy.judge(&ledger, &path(1)).state, State::Agreed, "what is held here stays");
    assert_eq!(ledger.votes(&path(2).hash_part()).count(), 2, "what others said stays");
    assert_eq!(ledger.len(), 5 + 1_000 + usize::from(ledger.votes(&path(1).hash_part()).count() < 3));
}

#[test]
fn statements_of_one_builder_about_one_path_are_bounded() {
    let mut ledger = heard(&path(1), "a1 b1");
    for letter in ('3'..='~').chain('A'..='Z') {
        ledger.insert(&says("c", &path(1), result(letter)), Some(WallMs(1)));
    }
    assert_eq!(ledger.len(), 2 + STATEMENTS_PER_PATH_MAX);
    assert_eq!(policy("a b c", 2).judge(&ledger, &path(1)).state, State::Agreed);
}

#[test]
fn forged_signature_and_changed_date_are_refused() {
    let store_dir = StoreDir::parse("/nix/store").unwrap();
    let key = NixSecretKey::from_seed("a", &[1; 32]).unwrap();
    let statement = Statement { path: path(1), nar_hash: NarHash([1; 32]), nar_size: 112, references: Vec::new() };
    let good = Attestation::sign(&key, &store_dir, statement.clone(), 1);
    assert!(VerifiedStatement::attestation(&store_dir, &good, &key.public(), 300).is_some());
    let bare = Attestation { dated_signature: good.nix_signature, ..good.clone() };
    assert!(
        VerifiedStatement::attestation(&store_dir, &bare, &key.public(), 300).is_none(),
        "a bare signature is no attestation"
    );
    let redated = Attestation { attested_at_ms: 2, ..good };
    assert!(VerifiedStatement::attestation(&store_dir, &redated, &key.public(), 300).is_none());
    let wrong = NixSignature { key_name: "a".to_owned(), bytes: [1; 64] };
    assert!(VerifiedStatement::bare_signature(&store_dir, &statement, &wrong, &key.public(), 300).is_none());
}

#[test]
fn keys_that_nobody_configured_do_not_count() {
    // Keys that nobody configured, however many: `k` counts only configured builders.
    assert_eq!(state(&policy("a b c", 2), "a1 x1 y1 z1"), State::Short);
}
