//! The rules of a verdict, one by one.

use crate::stage::{
    checked, hear, heard, key, ledger, named, path, policy, result, revocation, rules, says, signs, special, state,
    verdict,
};
use narmesh_protocol::StorePath;
use narmesh_quorum::{
    Ballot, Builder, Claim, Grounds, Insertion, Ledger, Mode, NameDigest, Policy, PolicyError, PolicyRules,
    PolicyWarning, Preference, Refusal, Require, Ruling, State, Uncounted, WallMs,
};

#[test]
fn agreed_is_one_fingerprint_with_k_groups_or_more() {
    let policy = policy("a b c d e", 3);
    assert_eq!(state(&policy, "a1 b1 c1"), State::Agreed);
    assert_eq!(state(&policy, "a1 b1 c1 d1 e1"), State::Agreed);
    assert_eq!(verdict(&policy, "a1 b1 c1").agreed().unwrap().claim, result('1'));
}

#[test]
fn dissent_below_k_disputes_and_vetoes_only_when_it_may() {
    let disputed = verdict(&policy("a b c d e", 3), "a1 b1 c1 d2 e3");
    assert_eq!(disputed.state, State::Agreed);
    assert_eq!(disputed.disputed_by().len(), 2);
    let mut with_veto = rules("a b c d e", 3);
    with_veto.require.as_mut().unwrap().veto = true;
    let with_veto = checked(with_veto);
    let vetoed = verdict(&with_veto, "a1 b1 c1 d2");
    assert_eq!((vetoed.state, vetoed.vetoed), (State::Conflict, true));
    assert_eq!(state(&with_veto, "a1 b1 c1"), State::Agreed);
    assert_eq!(state(&with_veto, "a1 b1 c1 d2 d3"), State::Agreed, "a void vote vetoes nothing");
}

#[test]
fn conflict_is_two_at_k_or_two_below() {
    assert_eq!(state(&policy("a b c d", 2), "a1 b1 c2 d2"), State::Conflict);
    assert_eq!(state(&policy("a b c d", 3), "a1 b1 c2"), State::Conflict);
    assert_eq!(state(&policy("a b c d", 3), "a1 b2"), State::Conflict);
}

#[test]
fn short_is_one_fingerprint_below_k_and_none_is_nothing() {
    let policy = policy("a b c", 2);
    assert_eq!(state(&policy, "a1"), State::Short);
    assert_eq!(state(&policy, ""), State::None);
    assert!(verdict(&policy, "").ballots.iter().all(|ballot| *ballot == Ballot::Missing));
}

#[test]
fn a_content_address_needs_nobody() {
    let policy = policy("a b c", 2);
    let ledger = heard(&path(1), "a1 b2");
    assert_eq!(policy.judge_content_addressed(&ledger, &path(1)).state, State::ContentAddressed);
    assert_eq!(
        policy.decide(&ledger, &path(1), result('9').fingerprint, true),
        Ruling::Serve(Grounds::ContentAddressed)
    );
}

#[test]
fn k_is_absolute_and_the_missing_are_missing() {
    let policy = policy("a b c d e", 3);
    assert_eq!(state(&policy, "a1 b1"), State::Short, "two of the two that answered are not three");
    let missing = verdict(&policy, "a1 b1").ballots;
    assert_eq!(missing.iter().filter(|ballot| **ballot == Ballot::Missing).count(), 3);
}

#[test]
fn agreement_is_on_the_whole_fingerprint() {
    // The same NarHash, but other References.
    let other = Claim { fingerprint: result('2').fingerprint, ..result('1') };
    let mut ledger = heard(&path(1), "a1 b1");
    ledger.insert(&says("c", &path(1), other), Some(WallMs(1)));
    assert_eq!(policy("a b c", 3).judge(&ledger, &path(1)).state, State::Conflict);
}

#[test]
fn a_made_up_name_does_not_lower_how_many_must_agree() {
    let part = path(1).hash_part();
    let doc = StorePath::new(part, "evil-doc").unwrap();
    let of_doc = Claim { name: NameDigest::of("evil-doc"), ..result('9') };
    let mut rules = rules("a b c d", 3);
    let require = rules.require.as_mut().unwrap();
    (require.overrides, require.grace) = (vec![special("*-doc", 1)], Some(vec!["d".to_owned()]));
    let policy = checked(rules);
    let told = |said: &str, liar: bool| {
        let mut ledger = heard(&path(1), said);
        if liar {
            ledger.insert(&says("d", &doc, of_doc), Some(WallMs(1)));
        }
        ledger
    };
    let state = |ledger: &Ledger, path: &StorePath| policy.judge(ledger, path).state;
    // When nobody else speaks, this is what the override is for.
    assert_eq!(state(&told("", true), &doc), State::Agreed);
    // Nobody spoke about the name that is asked about here. That is no agreement, and no case for grace.
    let asked = told("", true);
    assert_eq!(state(&asked, &path(1)), State::Conflict);
    let decided = policy.decide(&asked, &path(1), result('1').fingerprint, false);
    assert_eq!(decided, Ruling::Refuse(Refusal::NotAgreed(State::Conflict)));
    // One honest statement is enough to take the override from the made-up name.
    for said in ["a1", "a1 b1", "a1 b1 c1"] {
        let ledger = told(said, true);
        let verdict = policy.judge(&ledger, &doc);
        assert_eq!((verdict.state, verdict.k), (State::Conflict, 3), "{said}");
        assert!(matches!(policy.decide(&ledger, &doc, of_doc.fingerprint, false), Ruling::Refuse(_)), "{said}");
    }
    // The liar alone blocks nothing on which enough others agree.
    assert_eq!(state(&told("a1 b1", true), &path(1)), State::Conflict);
    let agreed = policy.judge(&told("a1 b1 c1", true), &path(1));
    assert_eq!((agreed.state, agreed.disputed_by().len()), (State::Agreed, 1));
}

#[test]
fn one_group_counts_once() {
    let policy = policy("a=acme b=acme c d", 3);
    assert_eq!(state(&policy, "a1 b1 c1"), State::Short);
    assert_eq!(state(&policy, "a1 b1 c1 d1"), State::Agreed);
    assert_eq!(policy.groups(), 3);
}

#[test]
fn a_group_whose_builders_disagree_counts_for_neither() {
    let policy = policy("a=acme b=acme c d", 2);
    let verdict = verdict(&policy, "a1 b2 c1");
    assert_eq!(verdict.state, State::Conflict);
    assert!(matches!(verdict.ballots[0], Ballot::NotCounted(Uncounted::GroupDisagrees, _)));
    assert_eq!(state(&policy, "a1 b2 c1 d1"), State::Agreed);
    // The group counts for neither result, however many of its builders attest one of them.
    let more = checked(rules("a=acme b=acme c=acme d", 2));
    assert_eq!(state(&more, "a1 b1 d1"), State::Agreed);
    let split = more.judge(&heard(&path(1), "a1 b1 c2 d1"), &path(1));
    assert_eq!((split.state, split.attested[0].groups, split.attested[1].groups), (State::Conflict, 1, 0));
    let split = more.judge(&heard(&path(1), "a1 b1 c2 d2"), &path(1));
    assert_eq!((split.state, split.attested[0].claim, split.attested[0].groups), (State::Conflict, result('2'), 1));
    // What they attest is shown as dissent, and vetoes if dissent has a veto.
    assert_eq!(policy.judge(&heard(&path(1), "a1 b2 c1 d1"), &path(1)).disputed_by().len(), 1);
    let mut veto = rules("a=acme b=acme c d", 2);
    veto.require.as_mut().unwrap().veto = true;
    assert_eq!(state(&checked(veto), "a1 b2 c1 d1"), State::Conflict);
    // `acme` is the name of a group here: a builder with the same name is no member of it.
    assert_eq!(state(&checked(rules("a=acme acme", 2)), "a1 acme1"), State::Agreed);
}

#[test]
fn a_bare_signature_is_no_vote() {
    let policy = policy("a b", 2);
    let mut ledger = heard(&path(1), "a1");
    ledger.insert(&signs("b", &path(1), result('1')), Some(WallMs(1)));
    let verdict = policy.judge(&ledger, &path(1));
    assert_eq!(verdict.state, State::Short);
    assert_eq!(verdict.ballots[1], Ballot::NotCounted(Uncounted::BareSignature, result('1')));
    assert_eq!(ledger.insert(&says("b", &path(1), result('1')), Some(WallMs(2))), Insertion::Upgraded);
    assert_eq!(policy.judge(&ledger, &path(1)).state, State::Agreed);
}

#[test]
fn a_bare_signature_counts_for_a_builder_that_signs_only_own_builds() {
    let mut rules = rules("a b", 2);
    rules.builders[1].signs_only_own_builds = true;
    let mut ledger = heard(&path(1), "a1");
    ledger.insert(&signs("b", &path(1), result('1')), Some(WallMs(1)));
    assert_eq!(checked(rules).judge(&ledger, &path(1)).state, State::Agreed);
}

#[test]
fn a_bare_signature_of_another_result_does_not_void_an_attestation() {
    let mut ledger = heard(&path(1), "a1 b1");
    ledger.insert(&signs("b", &path(1), result('2')), Some(WallMs(1)));
    assert_eq!(policy("a b", 2).judge(&ledger, &path(1)).state, State::Agreed);
}

#[test]
fn two_fingerprints_void_the_vote_for_that_path_only() {
    let policy = policy("a b c", 2);
    let mut ledger = heard(&path(1), "a1 b1 b2");
    let verdict = policy.judge(&ledger, &path(1));
    assert_eq!(verdict.state, State::Short);
    assert_eq!(verdict.ballots[1], Ballot::Void(vec![result('1'), result('2')]));
    hear(&mut ledger, &path(2), "a1 b1");
    assert_eq!(policy.judge(&ledger, &path(2)).state, State::Agreed, "never a penalty elsewhere");
}

#[test]
fn our_own_rebuild_counts_only_when_it_may() {
    let own = |count| {
        let rules = PolicyRules { own: Some(key("us")), count_own_rebuild: count, ..rules("a b", 2) };
        checked(rules)
    };
    assert_eq!(state(&own(false), "a1 us1"), State::Short);
    assert_eq!(state(&own(true), "a1 us1"), State::Agreed);
    // If its key is listed as a builder, it is not counted twice.
    let listed = PolicyRules { own: Some(key("a")), count_own_rebuild: true, ..rules("a b", 2) };
    assert_eq!(checked(listed).groups(), 2);
    let none = PolicyRules { count_own_rebuild: true, ..rules("a b", 2) };
    assert_eq!(Policy::new(none).unwrap_err(), PolicyError::NoOwnKey);
}

#[test]
fn revocation_looks_at_when_we_first_stored_it() {
    let revoked = |from| checked(PolicyRules { revoked: vec![revocation("b", from)], ..rules("a b", 2) });
    // Stored at 5,000; the builder dated it 1,000.
    let ledger = heard(&path(1), "a1 b1");
    assert_eq!(revoked(5_001).judge(&ledger, &path(1)).state, State::Agreed);
    for from in [0, 1_001, 5_000] {
        let verdict = revoked(from).judge(&ledger, &path(1));
        assert_eq!(verdict.state, State::Short, "revoked from {from}");
        assert_eq!(verdict.ballots[1], Ballot::NotCounted(Uncounted::Revoked, result('1')));
    }
}

#[test]
fn statements_of_a_revoked_key_without_a_storing_time_are_void() {
    let mut ledger = heard(&path(1), "a1");
    ledger.insert(&says("b", &path(1), result('1')), None);
    assert_eq!(policy("a b", 2).judge(&ledger, &path(1)).state, State::Agreed);
    let revoked = checked(PolicyRules { revoked: vec![revocation("b", u64::MAX)], ..rules("a b", 2) });
    let verdict = revoked.judge(&ledger, &path(1));
    assert_eq!(verdict.ballots[1], Ballot::NotCounted(Uncounted::RevokedWithoutRecord, result('1')));
}

#[test]
fn of_two_revocations_of_one_key_the_earlier_counts() {
    let ledger = heard(&path(1), "a1 b1");
    for order in [[1_000, 9_000], [9_000, 1_000]] {
        let revoked = order.map(|from| revocation("b", from)).to_vec();
        assert_eq!(checked(PolicyRules { revoked, ..rules("a b", 2) }).judge(&ledger, &path(1)).state, State::Short);
    }
}

#[test]
fn a_statement_after_the_revocation_does_not_void_an_earlier_one() {
    let revoked = checked(PolicyRules { revoked: vec![revocation("b", 6_000)], ..rules("a b", 2) });
    let mut ledger = heard(&path(1), "a1 b1");
    ledger.insert(&says("b", &path(1), result('2')), Some(WallMs(7_000)));
    assert_eq!(revoked.judge(&ledger, &path(1)).state, State::Agreed);
}

#[test]
fn a_date_added_to_a_bare_signature_counts_from_when_it_came() {
    let policy = |flagged, from| {
        let mut rules = PolicyRules { revoked: vec![revocation("b", from)], ..rules("a b", 2) };
        rules.builders[1].signs_only_own_builds = flagged;
        checked(rules)
    };
    let state = |ledger: &Ledger, flagged, from| policy(flagged, from).judge(ledger, &path(1)).state;
    // Signed at 5,000, perhaps for something that b had substituted; dated at 7,000, perhaps by a thief of its key.
    let mut ledger = heard(&path(1), "a1");
    ledger.insert(&signs("b", &path(1), result('1')), Some(WallMs(5_000)));
    assert_eq!(ledger.insert(&says("b", &path(1), result('1')), Some(WallMs(7_000))), Insertion::Upgraded);
    for (from, unflagged, flagged) in [
        (4_000, State::Short, State::Short),
        (6_000, State::Short, State::Agreed),
        (7_000, State::Short, State::Agreed),
        (7_001, State::Agreed, State::Agreed),
    ] {
        assert_eq!(state(&ledger, false, from), unflagged, "the attestation, revoked from {from}");
        assert_eq!(state(&ledger, true, from), flagged, "the signature, which counts, revoked from {from}");
    }
    let verdict = policy(false, 6_000).judge(&ledger, &path(1));
    assert_eq!(verdict.ballots[1], Ballot::NotCounted(Uncounted::Revoked, result('1')));
    // Only its date does not count: it is reported as the bare signature that it was.
    let vote = ledger.votes(&path(1).hash_part()).find(|vote| vote.builder == key("b")).unwrap();
    assert_eq!((vote.stored_at, vote.dated_stored_at), (Some(WallMs(5_000)), Some(WallMs(7_000))));

    // A signature that comes after the attestation that contains it changes nothing, and neither does an attestation
    // without a recorded time.
    let mut ledger = heard(&path(1), "a1 b1");
    ledger.insert(&signs("b", &path(1), result('1')), Some(WallMs(9_000)));
    assert_eq!([state(&ledger, false, 6_000), state(&ledger, true, 6_000)], [State::Agreed; 2]);
    let mut ledger = heard(&path(1), "a1");
    ledger.insert(&signs("b", &path(1), result('1')), Some(WallMs(5_000)));
    ledger.insert(&says("b", &path(1), result('1')), None);
    assert_eq!([state(&ledger, false, u64::MAX), state(&ledger, true, 6_000)], [State::Short, State::Agreed]);
}

fn with_grace(grace: Option<&[&str]>, own: Option<&str>) -> Policy {
    let mut rules = PolicyRules { own: own.map(key), ..rules("a b c", 2) };
    rules.require.as_mut().unwrap().grace = grace.map(|names| names.iter().map(|name| (*name).to_owned()).collect());
    checked(rules)
}

#[test]
fn grace_is_for_paths_that_no_other_builder_has() {
    let decide =
        |policy: &Policy, votes: &str| policy.decide(&heard(&path(1), votes), &path(1), result('1').fingerprint, false);
    let not_agreed = |state| Ruling::Refuse(Refusal::NotAgreed(state));
    assert_eq!(decide(&with_grace(None, None), "a1"), not_agreed(State::Short), "there is no default");
    assert_eq!(decide(&with_grace(None, Some("a")), "a1"), not_agreed(State::Short), "not even for our own key");
    let named = with_grace(Some(&["a"]), None);
    assert_eq!(decide(&named, "a1"), Ruling::Serve(Grounds::Grace));
    assert_eq!(decide(&named, "b1"), not_agreed(State::Short), "only builders named in it");
    assert_eq!(decide(&named, "a2"), not_agreed(State::Short), "only what it attests");
    assert_eq!(decide(&named, "a1 b2"), not_agreed(State::Conflict), "another builder has it");
    assert_eq!(decide(&named, "a1 b2 b3"), not_agreed(State::Short), "and a void vote says that it has it");
    assert_eq!(decide(&named, "a1 a2"), not_agreed(State::None));
    let own = with_grace(Some(&[]), Some("b"));
    assert_eq!(decide(&own, "b1"), Ruling::Serve(Grounds::Grace), "our own key");
    assert_eq!(decide(&own, "a1"), not_agreed(State::Short));
}

#[test]
fn grace_is_for_our_own_key_also_where_it_is_no_builder() {
    let decide = |policy: &Policy, votes: &str, letter| {
        policy.decide(&heard(&path(1), votes), &path(1), result(letter).fingerprint, false)
    };
    let own = with_grace(Some(&[]), Some("x"));
    assert_eq!(decide(&own, "x1", '1'), Ruling::Serve(Grounds::Grace));
    assert_eq!(decide(&own, "x1 stranger1", '1'), Ruling::Serve(Grounds::Grace));
    let refused = |votes, letter| matches!(decide(&own, votes, letter), Ruling::Refuse(_));
    assert!(refused("x1", '2'), "only what it attests");
    assert!(refused("x1 x2", '1'), "it said two things");
    assert!(refused("x1 a1", '1') && refused("x1 a2", '1') && refused("x1 a2 a3", '1'), "another builder has it");
    assert!(refused("stranger1", '1'));
    let both = with_grace(Some(&["a"]), Some("x"));
    assert_eq!(decide(&both, "x1 a1", '1'), Ruling::Serve(Grounds::Grace));
    assert!(matches!(decide(&both, "x1 a2", '2'), Ruling::Refuse(_)), "they do not say the same");
    // Its word is named as the reason why something was served. Where others agree, it adds nothing.
    let vouching =
        |policy: &Policy, votes| policy.find_vouching(&heard(&path(1), votes), &path(1), result('1').fingerprint);
    assert_eq!((vouching(&own, "x1"), vouching(&both, "x1 a1")), (vec![key("x")], vec![key("a"), key("x")]));
    assert_eq!(vouching(&own, "x1 a1 b1"), [key("a"), key("b")]);
    let without = with_grace(None, Some("x"));
    assert!(matches!(decide(&without, "x1", '1'), Ruling::Refuse(_)), "there is no default");
    let rules = PolicyRules { own: Some(key("x")), revoked: vec![revocation("x", 0)], ..rules("a b c", 2) };
    let mut rules = rules;
    rules.require.as_mut().unwrap().grace = Some(Vec::new());
    assert!(matches!(decide(&checked(rules), "x1", '1'), Ruling::Refuse(_)), "its key is revoked");
}

#[test]
fn a_path_that_falls_short_gets_no_grace_once_another_builder_has_it() {
    let policy = {
        let mut rules = rules("a b c", 3);
        rules.require.as_mut().unwrap().grace = Some(vec!["a".to_owned()]);
        checked(rules)
    };
    let decide = |votes: &str| policy.decide(&heard(&path(1), votes), &path(1), result('1').fingerprint, false);
    assert_eq!(decide("a1"), Ruling::Serve(Grounds::Grace));
    assert_eq!(decide("a1 b1"), Ruling::Refuse(Refusal::NotAgreed(State::Short)));
    assert_eq!(decide("a1 b1 c1"), Ruling::Serve(Grounds::Agreed));
}

#[test]
fn grace_ends_as_soon_as_any_other_builder_says_anything_of_the_path() {
    let mut rules = PolicyRules { revoked: vec![revocation("c", 0)], ..rules("a b c d", 4) };
    rules.require.as_mut().unwrap().grace = Some(vec!["a".to_owned(), "d".to_owned()]);
    let policy = checked(rules);
    let decide = |ledger: &Ledger| policy.decide(ledger, &path(1), result('1').fingerprint, false);
    for graced in ["a1", "d1", "a1 d1", "a1 stranger1"] {
        assert_eq!(decide(&heard(&path(1), graced)), Ruling::Serve(Grounds::Grace), "{graced}");
    }
    // The same result, another one, two different ones, and a statement that is void because its key is revoked.
    for ended in ["a1 b1", "a1 b2", "a1 b2 b3", "a1 c1", "a1 d1 b1"] {
        assert!(matches!(decide(&heard(&path(1), ended)), Ruling::Refuse(Refusal::NotAgreed(_))), "{ended}");
    }
    // Even a signature that does not count: its builder has the path.
    let mut ledger = heard(&path(1), "a1");
    ledger.insert(&signs("b", &path(1), result('1')), Some(WallMs(1)));
    assert_eq!(decide(&ledger), Ruling::Refuse(Refusal::NotAgreed(State::Short)));
    // Statements about another path do not matter.
    let mut ledger = heard(&path(1), "a1");
    hear(&mut ledger, &path(2), "b1 c2");
    assert_eq!(decide(&ledger), Ruling::Serve(Grounds::Grace));
}

#[test]
fn require_serves_only_the_agreed_fingerprint_and_the_other_modes_refuse_nothing() {
    let ledger = heard(&path(1), "a1 b1 c2");
    let decide = |mode, letter| {
        let policy = checked(PolicyRules { mode, ..rules("a b c", 2) });
        policy.decide(&ledger, &path(1), result(letter).fingerprint, false)
    };
    assert_eq!(decide(Mode::Require, '1'), Ruling::Serve(Grounds::Agreed));
    assert_eq!(decide(Mode::Require, '2'), Ruling::Refuse(Refusal::OtherFingerprint));
    assert_eq!(decide(Mode::Prefer, '1'), Ruling::Prefer(Preference::Agreed));
    assert_eq!(decide(Mode::Prefer, '2'), Ruling::Prefer(Preference::Other));
    assert_eq!(decide(Mode::Observe, '2'), Ruling::NotAsked);
    assert_eq!(decide(Mode::Off, '2'), Ruling::NotAsked);
}

#[test]
fn the_first_override_that_matches_the_name_counts() {
    let mut rules = rules("a b c", 3);
    rules.require.as_mut().unwrap().overrides = vec![special("linux-*", 1), special("linux-6*", 2)];
    let policy = checked(rules);
    assert_eq!(["linux-6.1", "glibc"].map(|name| policy.k(name)), [1, 3]);
    let state = |name| policy.judge(&heard(&named(1, name), "a1"), &named(1, name)).state;
    assert_eq!([state("linux-6.1"), state("glibc")], [State::Agreed, State::Short]);
}

#[test]
fn rules_that_cannot_be_met_are_refused_by_name() {
    let refusal = |rules| Policy::new(rules).unwrap_err().to_string();
    assert_eq!(refusal(rules("a b", 0)), "quorum.k = 0 is refused; accepted: 1 to 2, the number of groups of builders");
    assert!(refusal(rules("a=g b=g c", 3)).contains("1 to 2"));
    assert!(refusal(rules("a a", 1)).contains("builder.name = \"a\" stands twice"));
    assert!(refusal(PolicyRules { require: None, ..rules("a b", 1) }).contains("quorum.mode needs quorum.k"));
    let require = |require: Require| PolicyRules { require: Some(require), ..rules("a b c", 2) };
    let plain = Require { k: 2, overrides: Vec::new(), grace: None, veto: false };
    let grace = Require { grace: Some(vec!["z".to_owned()]), ..plain.clone() };
    assert!(refusal(require(grace)).contains("quorum.grace: \"z\""));
    let overrides = Require { overrides: vec![special("x", 4)], ..plain };
    assert!(refusal(require(overrides)).contains("quorum.override[0].k = 4"));
    assert!(Policy::new(PolicyRules::default()).is_ok(), "no builders, mode off");
}

#[test]
fn doubtful_rules_are_accepted_with_warnings() {
    let warnings = |rules| Policy::new(rules).unwrap().1;
    assert_eq!(warnings(rules("a b c", 2)), []);
    let minority = PolicyWarning::Minority { key: "quorum.k".to_owned(), k: 2, of: 4 };
    assert_eq!(warnings(rules("a b c d", 2)), [minority]);
    let twice = Builder { name: "z".to_owned(), key: key("a"), group: None, signs_only_own_builds: false };
    let mut one_key = rules("a b", 2);
    one_key.builders.push(twice);
    let warned = PolicyWarning::OneKeyTwoNames { first: "a".to_owned(), second: "z".to_owned() };
    assert_eq!(warnings(one_key), [warned]);
    let revoked = PolicyRules { revoked: vec![revocation("z", 0)], ..rules("a b", 2) };
    assert_eq!(warnings(revoked), [PolicyWarning::RevokedStranger { key: key("z") }]);
}

#[test]
fn builders_that_come_and_go_may_be_too_few_and_have_no_grace() {
    let with = |builders: &str, k: usize, roster: &[&str]| PolicyRules {
        from_roster: Some(roster.iter().map(|name| key(name)).collect()),
        ..rules(builders, k)
    };
    let (few, warnings) = Policy::new(with("a b=g c=g", 3, &["b", "c"])).unwrap();
    assert_eq!(warnings, [PolicyWarning::OutOfReach { key: "quorum.k".to_owned(), k: 3, of: 2 }]);
    assert_eq!(state(&few, "a1 b1 c1"), State::Short);
    assert!(few.names_from_roster().all(|name| ["b", "c"].contains(&name)) && few.names_from_roster().count() == 2);
    assert_eq!(state(&checked(with("a b", 2, &["b"])), "a1 b1"), State::Agreed);
    assert!(Policy::new(with("", 0, &[])).unwrap_err().to_string().contains("quorum.k = 0 is refused"));
    let grace = |name: &str| Require {
        grace: Some(vec![name.to_owned()]),
        ..Require { k: 2, overrides: Vec::new(), grace: None, veto: false }
    };
    let graced = |name| PolicyRules { require: Some(grace(name)), ..with("a b", 2, &["b"]) };
    let policy = checked(graced("a"));
    let ruling = policy.decide(&heard(&path(1), "a1"), &path(1), result('1').fingerprint, false);
    assert_eq!(ruling, Ruling::Serve(Grounds::Grace));
    assert!(Policy::new(graced("b")).unwrap_err().to_string().contains("quorum.grace: \"b\" is not a builder"));
}

#[test]
fn nothing_is_agreed_without_builders() {
    let policy = checked(PolicyRules::default());
    let mut ledger = ledger();
    hear(&mut ledger, &path(1), "a1 b1");
    assert_eq!(policy.judge(&ledger, &path(1)).state, State::None);
}
