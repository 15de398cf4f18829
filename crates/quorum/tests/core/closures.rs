//! A closure is as strong as its weakest path.

use crate::stage::{hear, ledger, path, policy, result};
use narmesh_quorum::closure::{ClosurePath, ClosureVerdict, judge_closure};
use narmesh_quorum::{Ledger, State};

fn member(number: u32, references: &[u32]) -> ClosurePath {
    let references = references.iter().map(|number| path(*number)).collect();
    ClosurePath { path: path(number), references, content_addressed: false, held: None }
}

/// 1 -> 2 -> 3 and 1 -> 4, where 1 to 4 refer to themselves as well; nothing refers to 9.
fn members() -> Vec<ClosurePath> {
    vec![member(1, &[1, 2, 4]), member(2, &[2, 3]), member(3, &[3]), member(4, &[4]), member(9, &[])]
}

fn judged(ledger: &Ledger, members: &[ClosurePath]) -> ClosureVerdict {
    judge_closure(&policy("a b c", 2), ledger, &path(1), members)
}

fn all_agreed() -> Ledger {
    let mut ledger = ledger();
    (1..=4).for_each(|number| hear(&mut ledger, &path(number), "a1 b1"));
    ledger
}

#[test]
fn agreed_only_if_everything_needed_is() {
    let verdict = judged(&all_agreed(), &members());
    assert!(verdict.is_agreed() && verdict.breaks_at().is_none());
    assert_eq!(verdict.paths.len(), 4, "what is not needed is not judged");
}

#[test]
fn the_dependency_that_breaks_a_closure_is_named_with_its_chain() {
    let mut ledger = all_agreed();
    hear(&mut ledger, &path(3), "a2");
    let verdict = judged(&ledger, &members());
    let breaks = verdict.breaks_at().unwrap();
    assert_eq!((&breaks.path, breaks.verdict.state), (&path(3), State::Short));
    assert_eq!(verdict.find_chain(&breaks.path), [path(1), path(2), path(3)]);
    assert!(!verdict.is_agreed());
}

#[test]
fn the_weakest_comes_first() {
    let mut ledger = ledger();
    hear(&mut ledger, &path(1), "a1 b1");
    hear(&mut ledger, &path(2), "a1 b2");
    hear(&mut ledger, &path(4), "a1");
    let states: Vec<State> = judged(&ledger, &members()).paths.iter().map(|judged| judged.verdict.state).collect();
    assert_eq!(states, [State::Conflict, State::None, State::Short, State::Agreed]);
}

#[test]
fn a_content_address_breaks_nothing() {
    let mut ledger = all_agreed();
    hear(&mut ledger, &path(3), "a2 c2");
    let mut members = members();
    members[2].content_addressed = true;
    assert!(judged(&ledger, &members).is_agreed());
}

#[test]
fn a_held_result_must_be_the_agreed_one() {
    let mut members = members();
    members[2].held = Some(result('1').fingerprint);
    assert!(judged(&all_agreed(), &members).is_agreed());
    members[2].held = Some(result('2').fingerprint);
    let verdict = judged(&all_agreed(), &members);
    assert_eq!(verdict.breaks_at().unwrap().path, path(3));
}

#[test]
fn a_path_with_unknown_references_breaks_the_closure() {
    let verdict = judged(&all_agreed(), &members()[..2]);
    assert_eq!((verdict.paths.len(), verdict.is_agreed()), (4, false));
    let unknown = verdict.paths.iter().filter(|judged| !judged.known).count();
    assert_eq!(unknown, 2);
}
