//! Reports: what people read.

use crate::stage::{checked, hear, heard, ledger, path, policy, result, revocation, rules, says, signs};
use narmesh_quorum::closure::{ClosurePath, Judged};
use narmesh_quorum::{
    Ledger, Mode, PathReport, Policy, PolicyRules, Report, ReportHead, ReportPart, ReportScope, Served, State,
    TurnedReport, WallMs, find_no_longer_agreed,
};

fn member(number: u32, references: &[u32]) -> ClosurePath {
    let references = references.iter().map(|number| path(*number)).collect();
    ClosurePath { path: path(number), references, content_addressed: false, held: None }
}

/// All of a report at once.
struct Whole {
    head: ReportHead,
    conflicts: Vec<String>,
    no_longer_agreed: Vec<TurnedReport>,
    paths: Vec<PathReport>,
}

fn whole(policy: &Policy, ledger: &Ledger, report: &Report) -> Whole {
    Whole {
        head: report.head().clone(),
        conflicts: report.conflicts().map(ToString::to_string).collect(),
        no_longer_agreed: find_no_longer_agreed(policy, ledger, None, 10).0,
        paths: report.judged_paths().map(|judged| PathReport::of(policy, ledger, judged)).collect(),
    }
}

fn report(policy: &Policy, ledger: &Ledger, members: &[ClosurePath]) -> Whole {
    let judged = members.iter().map(|member| Judged::alone(policy, ledger, member)).collect();
    whole(policy, ledger, &Report::paths(policy, ReportScope::All, judged, WallMs(7)))
}

fn one(policy: &Policy, votes: &str) -> PathReport {
    report(policy, &heard(&path(1), votes), &[member(1, &[])]).paths.remove(0)
}

#[test]
fn a_closure_report_has_totals_conflicts_and_the_weakest_link() {
    let mut ledger = ledger();
    hear(&mut ledger, &path(1), "a1 b1 c2");
    hear(&mut ledger, &path(2), "a1 b2");
    hear(&mut ledger, &path(3), "a1");
    let members = [member(1, &[2]), member(2, &[3]), member(3, &[])];
    let policy = policy("a b c", 2);
    let report = whole(&policy, &ledger, &Report::closure(&policy, &ledger, &path(1), &members, WallMs(7)));
    let totals = report.head.totals;
    assert_eq!((totals.paths, totals.agreed, totals.conflict, totals.short, totals.disputed), (3, 1, 1, 1, 1));
    assert_eq!(report.conflicts, [path(2).to_string()]);
    assert_eq!(report.paths[0].path, path(2).to_string());
    let weakest = report.head.weakest.as_ref().unwrap();
    assert_eq!((weakest.verdict, weakest.chain.len()), (State::Conflict, 2));
    assert!(!report.head.agreed);
}

#[test]
fn a_report_on_no_path_is_not_agreed() {
    let report = Report::paths(&policy("a b", 2), ReportScope::All, Vec::new(), WallMs(7));
    assert_eq!((report.head().agreed, report.head().totals.paths), (false, 0));
}

#[test]
fn a_path_report_names_attesting_and_missing_builders_and_the_policy() {
    let report = one(&policy("a b c d", 2), "a1 b1 c2");
    assert_eq!(report.fingerprints[0].builders, ["a", "b"]);
    assert_eq!(
        (report.disputed_by.as_slice(), report.missing.as_slice()),
        (&["c".to_owned()][..], &["d".to_owned()][..])
    );
    assert_eq!(report.policy, "served: agreed");
    assert_eq!(one(&policy("a b c d", 3), "a1").policy, "not served: 3 of 4 groups must agree");
    let observing = checked(PolicyRules { mode: Mode::Observe, ..rules("a b", 2) });
    assert_eq!(one(&observing, "a1").policy, "reported only (mode observe)");
}

#[test]
fn sentences_say_what_would_change_the_verdict() {
    let text = one(&policy("a b c d", 3), "a1 b1 c2 c3").sentences.join("\n");
    for part in [
        "is short: 2 of 4 groups attest one result; 3 are needed.",
        "a and b; counts for 2 groups.",
        "c: not reproducible on this builder: it attested sha256:",
        "Its vote is void for this path, and for no other.",
        "Not heard: d.",
        "Policy: not served",
        "It would be agreed if 1 more group attested the same result (not heard yet: d).",
    ] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
    let text = one(&policy("a b c", 3), "a1 b1 c2").sentences.join("\n");
    assert!(text.contains("every builder has spoken"), "{text}");
}

#[test]
fn a_revocation_names_what_was_served_because_of_the_revoked_key() {
    let mut ledger = heard(&path(1), "a1 b1");
    ledger.note_served(Served { path: path(1), fingerprint: result('1').fingerprint, at: WallMs(5_500) });
    let members = [member(1, &[])];
    assert!(report(&policy("a b c", 2), &ledger, &members).no_longer_agreed.is_empty());
    let revoked = checked(PolicyRules { revoked: vec![revocation("b", 5_000)], ..rules("a b c", 2) });
    let found = report(&revoked, &ledger, &members);
    assert_eq!(found.no_longer_agreed[0].path, path(1).to_string());
    assert_eq!(found.no_longer_agreed[0].revoked_builders, ["b"]);
    assert!(found.paths[0].sentences.join("\n").contains("that does not stand: on the word of b, revoked since"));
    assert!(
        found.paths[0].sentences.join("\n").contains("its key is revoked, and this was stored here after that: stolen")
    );
    hear(&mut ledger, &path(1), "c1");
    assert!(report(&revoked, &ledger, &members).no_longer_agreed.is_empty(), "it stands without the revoked one");
}

#[test]
fn a_changed_verdict_names_what_was_served_because_of_it() {
    let mut ledger = heard(&path(1), "a1 b1");
    ledger.note_served(Served { path: path(1), fingerprint: result('1').fingerprint, at: WallMs(5_500) });
    let members = [member(1, &[])];
    let text = report(&policy("a b c", 2), &ledger, &members).paths[0].sentences.join("\n");
    assert!(text.contains("given to Nix on the strength of a verdict, which stands"), "{text}");
    hear(&mut ledger, &path(1), "b2");
    let found = report(&policy("a b c", 2), &ledger, &members);
    assert_eq!(
        (&*found.no_longer_agreed[0].why, found.no_longer_agreed[0].served_at_ms),
        ("its verdict is short now", 5_500)
    );
    hear(&mut ledger, &path(2), "a1 b1");
    assert_eq!(
        report(&policy("a b c", 2), &ledger, &[member(2, &[])]).no_longer_agreed.len(),
        1,
        "whatever was asked for"
    );
}

#[test]
fn a_report_names_bare_signatures() {
    let mut ledger = heard(&path(1), "a1");
    ledger.insert(&signs("b", &path(1), result('1')), Some(WallMs(1)));
    let mut flagged = rules("a b c", 2);
    flagged.builders[1].signs_only_own_builds = true;
    let found = report(&checked(flagged), &ledger, &[member(1, &[])]);
    assert_eq!((&found.paths[0].fingerprints[0].by_signature, found.head.agreed), (&vec!["b".to_owned()], true));
    let text = found.paths[0].sentences.join("\n");
    assert!(text.contains("a and b; counts for 2 groups. b by a bare Nix signature, without a date"), "{text}");
    // For a builder without that setting, the report says what the signature is and that it does not count.
    let found = report(&policy("a b c", 2), &ledger, &[member(1, &[])]);
    assert!(found.paths[0].fingerprints[0].by_signature.is_empty() && !found.head.agreed);
    assert!(found.paths[0].not_counted[0].why.starts_with("a Nix signature without a date"));
    // An attestation takes the place of the signature.
    assert_eq!(ledger.bare_signatures(), 1);
    ledger.insert(&says("b", &path(1), result('1')), Some(WallMs(2)));
    assert_eq!((ledger.bare_signatures(), ledger.len()), (0, 2));
    assert!(report(&policy("a b c", 2), &ledger, &[member(1, &[])]).paths[0].fingerprints[0].by_signature.is_empty());
    // A revocation from a time between the two leaves the signature valid.
    let mut revoked = PolicyRules { revoked: vec![revocation("b", 2)], ..rules("a b c", 2) };
    revoked.builders[1].signs_only_own_builds = true;
    let found = report(&checked(revoked), &ledger, &[member(1, &[])]);
    assert_eq!((&found.paths[0].fingerprints[0].by_signature, found.head.agreed), (&vec!["b".to_owned()], true));
}

#[test]
fn the_held_result_is_compared_with_the_agreed_one() {
    let with = |letter| {
        let members = [ClosurePath { held: Some(result(letter).fingerprint), ..member(1, &[]) }];
        report(&policy("a b", 2), &heard(&path(1), "a1 b1"), &members)
    };
    assert!(with('1').head.agreed);
    let differs = with('2');
    assert_eq!((differs.head.agreed, differs.head.totals.held_differs), (false, 1));
    assert!(differs.paths[0].sentences.join(" ").contains("NOT what was agreed on"));
}

#[test]
fn paths_no_longer_agreed_are_listed_in_pages_without_gaps() {
    let mut ledger = ledger();
    for number in 1..=7 {
        ledger.note_served(Served { path: path(number), fingerprint: result('1').fingerprint, at: WallMs(1) });
    }
    hear(&mut ledger, &path(3), "a1 b1");
    let policy = policy("a b", 2);
    let (mut found, mut after, mut looks) = (Vec::new(), None, 0);
    loop {
        let (more, last) = find_no_longer_agreed(&policy, &ledger, after, 3);
        found.extend(more.into_iter().map(|turned| turned.path));
        (after, looks) = (last, looks + 1);
        if last.is_none() {
            break;
        }
    }
    let mut wanted: Vec<_> = [1, 2, 4, 5, 6, 7].map(|number| path(number).to_string()).into();
    wanted.sort();
    assert_eq!((found, looks), (wanted, 3), "path 3 still stands");
}

#[test]
fn the_json_has_these_names() {
    let report = report(&policy("a b", 2), &heard(&path(1), "a1"), &[member(1, &[])]);
    let json = serde_json::to_value(&report.head).unwrap();
    assert_eq!(json["version"], 1);
    assert_eq!(json["made_at_ms"], 7);
    assert_eq!(json["scope"], "all");
    assert_eq!(json["mode"], "require");
    assert_eq!(json["agreed"], false);
    assert_eq!(json["totals"]["short"], 1);
    let path = &serde_json::to_value(&report.paths[0]).unwrap();
    assert_eq!((&path["verdict"], &path["k"], &path["of"]), (&"short".into(), &2.into(), &2.into()));
    assert_eq!(path["fingerprints"][0]["builders"][0], "a");
    assert_eq!(path["missing"][0], "b");
    let part = ReportPart::Path(Box::new(report.paths[0].clone()));
    let read: ReportPart = serde_json::from_str(&serde_json::to_string(&part).unwrap()).unwrap();
    assert_eq!(read, part, "it comes whole through the daemon's socket");
}
