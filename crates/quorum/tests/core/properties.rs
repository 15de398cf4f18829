//! Properties that hold for every set of statements.

use crate::stage::{checked, key, ledger, path, result, revocation, rules, says, signs};
use narmesh_quorum::{Ballot, Insertion, Ledger, Policy, PolicyRules, State, VerifiedStatement, WallMs};
use proptest::prelude::*;
use std::collections::BTreeMap;

const BUILDERS: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "x"];

/// Seven builders in five groups; `x` is unknown, `c` is declared to sign only its own builds, and `d` is
/// revoked from 50 on.
fn a_policy(k: usize, veto: bool) -> Policy {
    let mut rules = PolicyRules { revoked: vec![revocation("d", 50)], ..rules("a=one b=one c d e f=two g=two", k) };
    rules.builders[2].signs_only_own_builds = true;
    rules.require.as_mut().unwrap().veto = veto;
    checked(rules)
}

/// A statement about one path: a builder, a result, with a date or bare, and when it was first stored.
fn statement() -> impl Strategy<Value = (VerifiedStatement, Option<WallMs>)> {
    (0..BUILDERS.len(), 0..3u8, prop::bool::weighted(0.2), prop::option::weighted(0.9, 0..100u64)).prop_map(
        |(builder, letter, bare, stored)| {
            let make = if bare { signs } else { says };
            (make(BUILDERS[builder], &path(1), result(char::from(b'1' + letter))), stored.map(WallMs))
        },
    )
}

/// A builder's statement is first stored once, so only the first of equal statements is taken.
fn once_each(statements: Vec<(VerifiedStatement, Option<WallMs>)>) -> Vec<(VerifiedStatement, Option<WallMs>)> {
    let mut first = BTreeMap::new();
    for (verified, stored) in statements {
        first.entry((verified.builder(), verified.claim().fingerprint)).or_insert((verified, stored));
    }
    first.into_values().collect()
}

fn filled(statements: &[(VerifiedStatement, Option<WallMs>)]) -> Ledger {
    let mut ledger = ledger();
    for (verified, stored) in statements {
        ledger.insert(verified, *stored);
    }
    ledger
}

/// The rules implemented again from the words of `docs/quorum.md`, simple and slow.
fn by_the_book(k: usize, veto: bool, statements: &[(VerifiedStatement, Option<WallMs>)]) -> State {
    let group = |name: &str| match name {
        "a" | "b" => "one".to_owned(),
        "f" | "g" => "two".to_owned(),
        other => other.to_owned(),
    };
    let mut attested: Vec<(String, [u8; 32])> = Vec::new();
    for name in &BUILDERS[..7] {
        let mut said: Vec<[u8; 32]> = Vec::new();
        for (verified, stored) in statements.iter().filter(|(verified, _)| verified.builder() == key(name)) {
            let bare = *verified == signs(name, &path(1), *verified.claim());
            let revoked = *name == "d" && stored.is_none_or(|at| at.0 >= 50);
            if !revoked && (!bare || *name == "c") {
                said.push(verified.claim().fingerprint.0);
            }
        }
        if let [only] = said[..] {
            attested.push((group(name), only));
        }
    }
    let mut results: Vec<[u8; 32]> = attested.iter().map(|(_, result)| *result).collect();
    results.sort_unstable();
    results.dedup();
    let groups_for = |result: &[u8; 32]| {
        let mut groups: Vec<&String> = attested.iter().filter(|it| it.1 == *result).map(|it| &it.0).collect();
        groups.sort_unstable();
        groups.dedup();
        groups.retain(|group| attested.iter().all(|it| it.0 != **group || it.1 == *result));
        groups.len()
    };
    let reached = results.iter().filter(|result| groups_for(result) >= k).count();
    match (reached, results.len()) {
        (1, 1) => State::Agreed,
        (1, _) if !veto => State::Agreed,
        (0, 0) => State::None,
        (0, 1) => State::Short,
        _ => State::Conflict,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn the_verdict_follows_the_documented_rules(
        statements in prop::collection::vec(statement(), 0..14), k in 1..=5usize, veto: bool,
    ) {
        let statements = once_each(statements);
        let verdict = a_policy(k, veto).judge(&filled(&statements), &path(1));
        prop_assert_eq!(verdict.state, by_the_book(k, veto, &statements));
    }

    #[test]
    fn order_does_not_matter(
        (statements, shuffled) in prop::collection::vec(statement(), 0..14).prop_map(once_each)
            .prop_flat_map(|statements| (Just(statements.clone()), Just(statements).prop_shuffle())),
        k in 1..=5usize,
    ) {
        let policy = a_policy(k, false);
        let verdict = |statements| policy.judge(&filled(statements), &path(1));
        prop_assert_eq!(verdict(&statements), verdict(&shuffled));
    }

    #[test]
    fn repeating_a_statement_changes_nothing(statements in prop::collection::vec(statement(), 0..14), k in 1..=5usize) {
        let statements = once_each(statements);
        let mut ledger = filled(&statements);
        let (len, policy) = (ledger.len(), a_policy(k, false));
        let verdict = policy.judge(&ledger, &path(1));
        for (verified, _) in &statements {
            // Repeated later, with another time.
            prop_assert_eq!(ledger.insert(verified, Some(WallMs(99))), Insertion::Known);
        }
        prop_assert_eq!((ledger.len(), policy.judge(&ledger, &path(1))), (len, verdict));
    }

    /// An honest builder of a reproducible path says only what is true, and the builders of an honest group say the same.
    #[test]
    fn more_honest_evidence_never_turns_agreed_into_less(
        statements in prop::collection::vec(statement(), 0..14), honest in prop::collection::vec(0..7usize, 1..7),
        k in 1..=5usize, veto: bool,
    ) {
        let statements = once_each(statements);
        let policy = a_policy(k, veto);
        let mut ledger = filled(&statements);
        let before = policy.judge(&ledger, &path(1));
        let truth = before.agreed().map_or(result('1'), |agreed| agreed.claim);
        for number in honest {
            let said_else = ledger.votes(&path(1).hash_part())
                .any(|vote| vote.builder == key(BUILDERS[number]) && vote.claim != truth);
            if said_else {
                continue; // It is not honest, or the path not reproducible on it.
            }
            ledger.insert(&says(BUILDERS[number], &path(1), truth), Some(WallMs(1)));
            if before.state == State::Agreed && !group_divided(&policy, &ledger) {
                let after = policy.judge(&ledger, &path(1));
                prop_assert_eq!(after.state, State::Agreed);
                prop_assert_eq!(after.agreed().unwrap().claim, truth);
            }
        }
    }

    #[test]
    fn fewer_hostile_groups_than_k_never_get_a_lie_agreed(
        statements in prop::collection::vec(statement(), 0..14), hostile in prop::collection::btree_set(0..7usize, 0..4),
    ) {
        let policy = a_policy(3, false);
        let groups = ["one", "one", "c", "d", "e", "two", "two"];
        let hostile_groups: std::collections::BTreeSet<_> = hostile.iter().map(|number| groups[*number]).collect();
        prop_assume!(hostile_groups.len() < 3);
        // Honest builders say 1 or nothing, hostile ones anything.
        let statements: Vec<_> = once_each(statements).into_iter().filter(|(verified, _)| {
            let number = BUILDERS.iter().position(|name| key(name) == verified.builder()).unwrap();
            hostile.contains(&number) || number == 7 || *verified.claim() == result('1')
        }).collect();
        let verdict = policy.judge(&filled(&statements), &path(1));
        if let Some(agreed) = verdict.agreed() {
            prop_assert_eq!(agreed.claim, result('1'));
        }
    }

    #[test]
    fn a_builder_that_says_two_things_counts_for_none_and_changes_no_other_path(
        statements in prop::collection::vec(statement(), 0..14), k in 1..=5usize,
    ) {
        let mut statements = once_each(statements);
        statements.retain(|(verified, _)| verified.builder() != key("e"));
        let policy = a_policy(k, false);
        let without = policy.judge(&filled(&statements), &path(1));
        let mut ledger = filled(&statements);
        ledger.insert(&says("e", &path(1), result('1')), Some(WallMs(1)));
        ledger.insert(&says("e", &path(1), result('3')), Some(WallMs(1)));
        let with = policy.judge(&ledger, &path(1));
        prop_assert_eq!(with.state, without.state);
        prop_assert!(matches!(with.ballots[4], Ballot::Void(_)));
    }
}

/// Whether a group is divided, because an honest member says something else than another one. Then it
/// must count for neither.
fn group_divided(policy: &Policy, ledger: &Ledger) -> bool {
    let divided = |ballot: &Ballot| matches!(ballot, Ballot::NotCounted(narmesh_quorum::Uncounted::GroupDisagrees, _));
    policy.judge(ledger, &path(1)).ballots.iter().any(divided)
}
