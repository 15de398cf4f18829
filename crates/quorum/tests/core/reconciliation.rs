//! Two ledgers compared over encoded messages, counted in bytes.

use crate::stage::{key, ledger, path, result, says, signs};
use narmesh_quorum::reconcile::{Answer, Content, Difference, Next, Node, Query, Session, Shared};
use narmesh_quorum::{Ledger, LedgerLimits, WallMs};
use proptest::prelude::*;
use std::collections::BTreeSet;

const BUILDERS: [&str; 5] = ["a", "b", "c", "d", "e"];

fn shared() -> Shared {
    Shared::new(BUILDERS.map(key))
}

/// Compares two ledgers; returns the difference, the bytes in both directions, and the round trips.
fn compare(asker: &Ledger, ours: Shared, answerer: &Ledger, theirs: &Shared) -> (Difference, usize, usize) {
    let (mut session, mut query) = Session::start(asker, ours);
    let (mut bytes, mut rounds) = (0, 0);
    loop {
        let sent = query.encode().unwrap();
        let answer = answerer.answer(theirs, &Query::decode(&sent).unwrap());
        let received = answer.encode().unwrap();
        bytes += sent.len() + received.len();
        rounds += 1;
        match session.on_answer(asker, &Answer::decode(&received).unwrap()) {
            Next::Ask(next) => query = next,
            Next::Done(difference) => return (difference, bytes, rounds),
        }
    }
}

/// `count` attestations of five builders, without those for which `missing` returns true.
fn filled(count: u32, missing: impl Fn(u32) -> bool) -> Ledger {
    let mut ledger = ledger();
    for number in (0..count).filter(|number| !missing(*number)) {
        let builder = BUILDERS[number as usize % 5];
        ledger.insert(&says(builder, &path(number / 5), result('1')), Some(WallMs(u64::from(number))));
    }
    ledger
}

/// The (builder, path) pairs that the found items stand for at the answerer.
fn found(difference: &Difference, answerer: &Ledger) -> BTreeSet<String> {
    let mut wanted = difference.theirs.clone();
    wanted.sort_unstable();
    answerer.find(&shared(), &wanted).into_iter().flatten().map(|(builder, path)| format!("{builder} {path}")).collect()
}

#[test]
fn a_hundred_thousand_known_on_both_sides_cost_under_a_kilobyte() {
    let (one, two) = (filled(100_000, |_| false), filled(100_000, |_| false));
    let (difference, bytes, rounds) = compare(&one, shared(), &two, &shared());
    assert!(difference.complete && difference.theirs.is_empty() && difference.ours.is_empty());
    assert!(bytes < 1_000 && rounds == 1, "{bytes} bytes, {rounds} round trips");
}

#[test]
fn a_difference_costs_in_proportion() {
    for (count, missing) in [(1u32, 50_000u32), (1_000, 100), (10_000, 10)] {
        let (one, two) = (filled(100_000, |number| number % missing == 7), filled(100_000, |_| false));
        let (difference, bytes, _) = compare(&one, shared(), &two, &shared());
        let found = found(&difference, &two).len();
        assert!(difference.complete && difference.ours.is_empty());
        assert!((found as u32).abs_diff(count) <= 1, "{found} of {count}");
        assert!(bytes / found < 8_000, "{bytes} bytes for {found}");
        let whole = 100_000 * 16;
        assert!(bytes < 2 * whole, "{bytes} bytes: hardly more than all names");
    }
}

#[test]
fn against_an_empty_ledger_every_item_is_found_once() {
    for (one, two) in [(ledger(), filled(20_000, |_| false)), (filled(20_000, |_| false), ledger())] {
        let (difference, bytes, _) = compare(&one, shared(), &two, &shared());
        assert!(difference.complete);
        assert_eq!(difference.theirs.len() + difference.ours.len(), 20_000);
        assert!(bytes < 20_000 * 32, "{bytes}");
    }
}

#[test]
fn only_builders_that_both_know_and_admit_are_compared() {
    let (one, two) = (filled(1_000, |_| false), filled(1_000, |number| number % 5 == 4));
    let fewer = Shared::new(["a", "b", "x"].map(key));
    let (difference, bytes, rounds) = compare(&one, shared(), &two, &fewer);
    assert!(difference.complete && difference.theirs.is_empty() && difference.ours.is_empty());
    assert_eq!((difference.builders.len(), rounds), (2, 2));
    assert!(bytes < 1_000);
}

#[test]
fn void_votes_compare_equal_and_bare_signatures_take_no_part() {
    let (mut one, mut two) = (ledger(), ledger());
    for (ledger, letters) in [(&mut one, ['1', '2']), (&mut two, ['2', '3'])] {
        for letter in letters {
            ledger.insert(&says("a", &path(1), result(letter)), None);
        }
    }
    one.insert(&signs("b", &path(1), result('1')), None);
    let (difference, _, rounds) = compare(&one, shared(), &two, &shared());
    assert_eq!((rounds, difference.theirs.len(), difference.ours.len()), (1, 0, 0));
    two.insert(&says("c", &path(1), result('1')), None);
    let (difference, ..) = compare(&one, shared(), &two, &shared());
    assert_eq!(difference.theirs.len(), 1);
}

#[test]
fn items_inserted_after_a_comparison_are_found_by_the_next() {
    let (mut one, mut two) = (filled(1_000, |_| false), filled(1_000, |_| false));
    for number in 0..50 {
        assert!(compare(&one, shared(), &two, &shared()).0.theirs.is_empty());
        two.insert(&says("a", &path(5_000 + number), result('1')), None);
        assert_eq!(compare(&one, shared(), &two, &shared()).0.theirs.len(), 1);
        one.insert(&says("a", &path(5_000 + number), result('1')), None);
    }
}

/// If digests told them apart, two paths with more builders than `ITEMS_TOLD_MAX` would lead to the bottom of the tree.
/// That takes forty queries, and after a comparison that brings nothing a rest to match.
#[test]
fn a_path_that_many_builders_attest_costs_no_more_queries_than_another() {
    let names: Vec<String> = (0..60).map(|number| format!("builder-{number}")).collect();
    let all = Shared::new(names.iter().map(|name| key(name)));
    let (mut one, mut two) = (ledger(), ledger());
    for (number, name) in (0u32..).zip(&names) {
        for of in [7, 8] {
            two.insert(&says(name, &path(of), result('1')), None);
            if (number, of) != (30, 7) {
                one.insert(&says(name, &path(of), result('1')), None);
            }
        }
    }
    let (difference, _, rounds) = compare(&one, all.clone(), &two, &all);
    assert!(difference.complete && rounds <= 4, "{rounds} round trips");
    let expected = Some((key("builder-30"), path(7).hash_part()));
    assert_eq!(two.find(&all, &difference.theirs), [expected]);
    let (difference, _, rounds) = compare(&two, all.clone(), &one, &all);
    assert!(difference.theirs.is_empty() && difference.ours.len() == 1 && rounds <= 4, "{rounds} round trips");
}

#[test]
fn an_answer_that_fits_no_query_ends_the_session() {
    let one = filled(1_000, |_| false);
    let node_answers = [
        Answer::Nodes { answered: 0, differing: Vec::new() },
        Answer::Nodes { answered: 2, differing: Vec::new() },
        Answer::Nodes { answered: 1, differing: vec![(1, Content::Items(Vec::new()))] },
        Answer::Nodes { answered: 1, differing: vec![(0, Content::Items(vec![])), (0, Content::Items(vec![]))] },
        Answer::Builders(shared_digests(5)),
    ];
    for answer in node_answers {
        let (mut session, _) = Session::start(&one, shared());
        let Next::Done(difference) = session.on_answer(&one, &answer) else { panic!("{answer:?}") };
        assert!(!difference.complete, "{answer:?}");
    }
}

fn shared_digests(count: usize) -> Vec<narmesh_quorum::reconcile::BuilderDigest> {
    let ledger = ledger();
    let (_, query) = Session::start(&ledger, Shared::new(BUILDERS.map(key).into_iter().take(count)));
    query.builders
}

#[test]
fn a_session_with_a_liar_that_always_differs_ends() {
    let one = filled(100_000, |_| false);
    let (mut session, mut query) = Session::start(&one, shared());
    let mut rounds = 0;
    loop {
        let liar = |number| (number, Content::Children(Box::new([[7; 16]; 16])));
        let answered = u32::try_from(query.nodes.len()).unwrap();
        let answer = Answer::Nodes { answered, differing: (0..answered).map(liar).collect() };
        assert!(query.encode().is_ok());
        rounds += 1;
        match session.on_answer(&one, &answer) {
            Next::Ask(next) => query = next,
            Next::Done(difference) => {
                assert!(!difference.complete);
                break;
            }
        }
    }
    assert!(rounds <= narmesh_quorum::reconcile::QUERIES_MAX);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    /// A copy of a ledger remembers no digest, so it computes all of them.
    #[test]
    fn remembered_digests_equal_computed_ones(
        said in prop::collection::vec((0..5usize, 0..300u32, prop::sample::select(vec!['1', '2'])), 1..20),
        compared in prop::collection::vec(prop::sample::subsequence(BUILDERS.to_vec(), 1..=5), 1..8),
    ) {
        let mut limited = Ledger::new(LedgerLimits { per_builder: 6, ..LedgerLimits::default() });
        for (turn, (builder, number, letter)) in said.into_iter().enumerate() {
            limited.insert(&says(BUILDERS[builder], &path(number), result(letter)), None);
            let builders = Shared::new(compared[turn % compared.len()].iter().map(|name| key(name)));
            for children_too in [false, true] {
                let query = Session::start(&limited, builders.clone()).1;
                let afresh = Session::start(&limited.clone(), builders.clone()).1;
                prop_assert_eq!(&query, &afresh);
                // This digest matches nothing, so both tell what is under the root.
                let nodes = if children_too { vec![(Node::ROOT, [7; 16])] } else { query.nodes.clone() };
                let query = Query { nodes, ..query };
                prop_assert_eq!(limited.answer(&builders, &query), limited.clone().answer(&builders, &query));
            }
        }
    }

    #[test]
    fn each_side_learns_exactly_what_it_lacks(
        both in prop::collection::vec((0..5usize, 0..400u32), 0..300),
        only_one in prop::collection::btree_set((0..5usize, 400..500u32), 0..40),
        only_two in prop::collection::btree_set((0..5usize, 500..600u32), 0..40),
    ) {
        let (mut one, mut two) = (ledger(), ledger());
        let insert = |ledger: &mut Ledger, (builder, number): (usize, u32)| {
            ledger.insert(&says(BUILDERS[builder], &path(number), result('1')), None);
        };
        for pair in both {
            insert(&mut one, pair);
            insert(&mut two, pair);
        }
        only_one.iter().for_each(|pair| insert(&mut one, *pair));
        only_two.iter().for_each(|pair| insert(&mut two, *pair));
        let name = |(builder, number): &(usize, u32)| format!("{} {}", key(BUILDERS[*builder]), path(*number).hash_part());
        let (difference, ..) = compare(&one, shared(), &two, &shared());
        prop_assert!(difference.complete);
        let ours: BTreeSet<String> = difference.ours.iter().map(|(builder, path)| format!("{builder} {path}")).collect();
        prop_assert_eq!(ours, only_one.iter().map(name).collect::<BTreeSet<_>>());
        prop_assert_eq!(found(&difference, &two), only_two.iter().map(name).collect::<BTreeSet<_>>());
    }
}
