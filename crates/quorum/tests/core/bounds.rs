//! Eviction: the oldest first, for each builder by itself, and never anything pinned.

use crate::stage::{hear, key, ledger, path, result, says, signs};
use narmesh_protocol::BuilderKey;
use narmesh_quorum::{
    ASKED_MAX, BUILDERS_MAX, Evicted, Insertion, Ledger, LedgerLimits, PINNED_BYTES_EACH, Pin, SERVED_MAX, Served,
    VerifiedStatement, WallMs,
};
use proptest::prelude::*;

fn small(per_builder: usize) -> Ledger {
    Ledger::new(LedgerLimits { per_builder, bytes_per_builder: 1 << 30 })
}

fn evicted(insertion: Insertion) -> Vec<u32> {
    let Insertion::New { evicted } = insertion else { panic!("{insertion:?}") };
    let number = |bytes: [u8; 20]| u32::from_le_bytes(bytes[..4].try_into().unwrap());
    evicted.iter().map(|it| number(it.hash_part.0)).collect()
}

#[test]
fn the_oldest_attestation_of_the_same_builder_is_evicted_first() {
    let mut ledger = small(3);
    hear(&mut ledger, &path(1), "b1");
    let mut insert = |number| evicted(ledger.insert(&says("a", &path(number), result('1')), None));
    assert_eq!([2, 3, 4].map(&mut insert), [const { Vec::<u32>::new() }; 3]);
    assert_eq!([5, 6].map(&mut insert), [vec![2], vec![3]]);
    assert_eq!(ledger.votes(&path(1).hash_part()).count(), 1);
    assert_eq!(ledger.len(), 4);
}

#[test]
fn attestations_of_each_builder_are_counted_and_bare_signatures_are_not() {
    let mut ledger = small(2);
    let tally = |ledger: &Ledger, name: &str| {
        let tally = ledger.tally_of(&key(name));
        (tally.attestations, tally.last_stored_at.map(|at| at.0))
    };
    assert_eq!(tally(&ledger, "a"), (0, None));
    ledger.insert(&signs("a", &path(1), result('1')), Some(WallMs(7)));
    assert_eq!(tally(&ledger, "a"), (0, None));
    ledger.insert(&says("a", &path(1), result('1')), Some(WallMs(8)));
    ledger.insert(&says("a", &path(1), result('1')), Some(WallMs(9)));
    assert_eq!(tally(&ledger, "a"), (1, None), "first stored as a bare one");
    ledger.insert(&says("a", &path(2), result('1')), Some(WallMs(20)));
    ledger.insert(&says("a", &path(3), result('1')), Some(WallMs(10)));
    ledger.insert(&says("b", &path(3), result('1')), None);
    assert_eq!((tally(&ledger, "a"), ledger.len()), ((2, Some(20)), 3), "one was evicted");
    assert_eq!(tally(&ledger, "b"), (1, None));
}

#[test]
fn each_reason_to_keep_a_path_keeps_it() {
    for pin in [Pin::Held, Pin::Served, Pin::Asked, Pin::Configured] {
        for pinned_first in [true, false] {
            let mut ledger = small(2);
            if pinned_first {
                ledger.pin(path(1).hash_part(), pin);
            }
            ledger.insert(&says("a", &path(1), result('1')), None);
            ledger.pin(path(1).hash_part(), pin);
            for number in 2..10 {
                ledger.insert(&says("a", &path(number), result('1')), None);
            }
            assert_eq!(ledger.votes(&path(1).hash_part()).count(), 1, "{pin:?}");
            ledger.unpin(path(1).hash_part(), pin);
            for number in 10..20 {
                ledger.insert(&says("a", &path(number), result('1')), None);
            }
            assert_eq!(ledger.votes(&path(1).hash_part()).count(), 0, "{pin:?} gone");
            assert_eq!(ledger.len(), 2);
        }
    }
}

#[test]
fn a_path_kept_for_two_reasons_stays_until_both_are_gone() {
    let mut ledger = small(1);
    ledger.pin(path(1).hash_part(), Pin::Held);
    ledger.note_served(Served { path: path(1), fingerprint: result('1').fingerprint, at: WallMs(1) });
    ledger.insert(&says("a", &path(1), result('1')), None);
    ledger.unpin(path(1).hash_part(), Pin::Held);
    ledger.insert(&says("a", &path(2), result('1')), None);
    ledger.insert(&says("a", &path(3), result('1')), None);
    assert_eq!(ledger.votes(&path(1).hash_part()).count(), 1);
}

#[test]
fn the_path_served_longest_ago_is_forgotten_beyond_the_bound() {
    let mut ledger = small(1);
    let note = |ledger: &mut Ledger, number: u32, at: u64| {
        ledger.note_served(Served { path: path(number), fingerprint: result('1').fingerprint, at: WallMs(at) })
    };
    let most = u32::try_from(SERVED_MAX).unwrap();
    assert!((0..most).all(|number| note(&mut ledger, number, 1 + u64::from(number)).is_none()));
    assert_eq!(note(&mut ledger, 0, 1 << 32), None, "given again");
    assert_eq!(note(&mut ledger, most, 1 << 32), Some(path(1).hash_part()));
    assert_eq!(ledger.served_after(None).count(), SERVED_MAX);
    assert!(ledger.served_of(&path(0).hash_part()).is_some());
}

#[test]
fn bytes_are_bounded_too() {
    let mut ledger = Ledger::new(LedgerLimits { per_builder: 1_000, bytes_per_builder: 1_000 });
    let of = |number: u32, bytes| {
        VerifiedStatement::from_record(key("a"), path(number).hash_part(), result('1'), None, bytes)
    };
    assert_eq!(evicted(ledger.insert(&of(1, 400), None)), [0; 0]);
    assert_eq!(evicted(ledger.insert(&of(2, 400), None)), [0; 0]);
    assert_eq!(evicted(ledger.insert(&of(3, 700), None)), [1, 2]);
    assert_eq!(evicted(ledger.insert(&of(4, 2_000), None)), [3, 4], "one that is too large by itself goes too");
}

#[test]
fn builders_and_questions_are_bounded() {
    let mut ledger = ledger();
    for number in 0..BUILDERS_MAX + 3 {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&number.to_le_bytes());
        let verified = VerifiedStatement::from_record(BuilderKey(bytes), path(1).hash_part(), result('1'), None, 1);
        let insertion = ledger.insert(&verified, None);
        assert_eq!(insertion == Insertion::TooManyBuilders, number >= BUILDERS_MAX, "{number}");
    }
    let mut ledger = small(1);
    ledger.pin(path(1).hash_part(), Pin::Asked);
    ledger.insert(&says("a", &path(1), result('1')), None);
    let more = u32::try_from(ASKED_MAX).unwrap();
    let forgotten = (2..more + 2).filter_map(|number| ledger.pin(path(number).hash_part(), Pin::Asked));
    assert_eq!(forgotten.collect::<Vec<_>>(), [path(1).hash_part()]);
    assert_eq!((ledger.asked_paths().count(), ledger.asked_paths().next()), (ASKED_MAX, Some(path(2).hash_part())));
    ledger.insert(&says("a", &path(more + 5), result('1')), None);
    assert_eq!(ledger.votes(&path(1).hash_part()).count(), 0, "the oldest question is forgotten");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Whatever is inserted, no more is kept than the bound and all that is pinned.
    #[test]
    fn within_bounds_and_nothing_pinned_is_lost(
        steps in prop::collection::vec((0..3usize, 0..40u32, 0..3u8, 0..4u8), 0..300),
    ) {
        let mut ledger = small(5);
        let mut pinned = std::collections::BTreeMap::new();
        for (builder, number, letter, action) in steps {
            let hash_part = path(number).hash_part();
            match action {
                0 if !pinned.contains_key(&number) => {
                    ledger.pin(hash_part, Pin::Held);
                    pinned.insert(number, ledger.votes(&hash_part).count());
                }
                1 if pinned.remove(&number).is_some() => ledger.unpin(hash_part, Pin::Held),
                _ => {
                    let said = says(["a", "b", "c"][builder], &path(number), result(char::from(b'1' + letter)));
                    ledger.insert(&said, Some(WallMs(1)));
                    pinned.entry(number).and_modify(|count| *count = ledger.votes(&hash_part).count());
                }
            }
            for (number, count) in &pinned {
                prop_assert_eq!(ledger.votes(&path(*number).hash_part()).count(), *count);
            }
            for builder in ["a", "b", "c"] {
                let free = (0..40).filter(|number| !pinned.contains_key(number));
                let free: usize = free.map(|number| {
                    ledger.votes(&path(number).hash_part()).filter(|vote| vote.builder == key(builder)).count()
                }).sum();
                // Paths unpinned since the last insertion are evicted by the next one.
                prop_assert!(action == 1 || free <= 5 || ledger.len() > 5);
            }
        }
        let total: usize = (0..40).map(|number| ledger.votes(&path(number).hash_part()).count()).sum();
        prop_assert_eq!(ledger.len(), total);
    }
}

#[test]
fn a_withdrawn_statement_leaves_no_trace() {
    let mut ledger = small(2);
    let [one, two] = [says("a", &path(1), result('1')), says("a", &path(1), result('2'))];
    hear(&mut ledger, &path(1), "b1");
    let before = ledger.clone();
    let compared = narmesh_quorum::reconcile::Shared::new([key("a"), key("b")]);
    let root = |ledger: &Ledger| narmesh_quorum::reconcile::Session::start(ledger, compared.clone()).1;
    assert_eq!(root(&before), root(&ledger));
    for verified in [&one, &two] {
        ledger.insert(verified, None);
    }
    assert_ne!(root(&before), root(&ledger));
    assert_eq!(ledger.hash_parts_of(&key("a")), [path(1).hash_part()]);
    ledger.pin(path(1).hash_part(), Pin::Held);
    for verified in [&one, &two, &one] {
        let fingerprint = verified.claim().fingerprint;
        ledger.withdraw(&Evicted { builder: key("a"), hash_part: verified.hash_part(), fingerprint });
    }
    assert_eq!((ledger.len(), root(&ledger)), (before.len(), root(&before)));
    assert!(ledger.hash_parts_of(&key("a")).is_empty() && ledger.is_pinned(&path(1).hash_part(), Pin::Held));
    assert_eq!(ledger.tally_of(&key("a")).attestations, 0);
    let bare = signs("a", &path(1), result('1'));
    ledger.insert(&bare, None);
    ledger.withdraw(&Evicted { builder: key("a"), hash_part: bare.hash_part(), fingerprint: bare.claim().fingerprint });
    assert_eq!((ledger.bare_signatures(), ledger.tally_of(&key("a")).attestations), (0, 0));
    // Its place in the queue is free for others.
    for number in 2..20 {
        ledger.insert(&says("a", &path(number), result('1')), None);
    }
    assert_eq!(ledger.len(), before.len() + 2);
}

#[test]
fn long_statements_about_pinned_paths_are_bounded_and_usual_ones_are_not() {
    let mut ledger = Ledger::new(LedgerLimits { per_builder: 10, bytes_per_builder: 1 << 20 });
    let long = |number: u32, letter| {
        let claim = result(letter);
        VerifiedStatement::from_record(key("a"), path(number).hash_part(), claim, Some(WallMs(1_000)), 60_000)
    };
    let insert = |ledger: &mut Ledger, verified: &VerifiedStatement| {
        ledger.pin(verified.hash_part(), Pin::Held);
        ledger.insert(verified, None)
    };
    let taken = (1..200).take_while(|number| insert(&mut ledger, &long(*number, '1')) != Insertion::TooLong).count();
    let bytes = u64::try_from(taken).unwrap() * 60_000;
    assert!(bytes <= (1 << 20) + PINNED_BYTES_EACH * 200 && taken >= 17, "{taken} long ones");
    // Other builders, and this one where it says as much as one usually does, are not held up.
    let usual = (1_000..5_000).map(|number| insert(&mut ledger, &says("a", &path(number), result('1'))));
    let usual: Vec<_> = usual.filter(|it| matches!(it, Insertion::New { .. })).collect();
    assert!(usual.len() >= 3_990, "{}", usual.len());
    assert!(matches!(insert(&mut ledger, &says("b", &path(1), result('1'))), Insertion::New { .. }));
    // What is no longer pinned takes no such room.
    (1..=u32::try_from(taken).unwrap()).for_each(|number| ledger.unpin(path(number).hash_part(), Pin::Held));
    assert!(matches!(insert(&mut ledger, &long(6_000, '1')), Insertion::New { .. }));
}
