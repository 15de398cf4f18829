//! A machine that was removed from its mesh hears so, and joins anew.

use crate::membership::{HEARD, founder, invite, join, machine, names, wait_met};
use narmesh_tests::{Status, TestMesh, TestNode, promised, wait_until};
use std::time::Duration;

/// How long the dials at the members are counted. A machine that is not told dials each of them again within 4 s.
const COUNTED: Duration = Duration::from_secs(12);

fn said(node: &TestNode) -> usize {
    node.log().matches("this machine was removed from the mesh").count()
}

fn is_removed(status: &Status) -> bool {
    status.0.pointer("/mesh/removed_in_version").is_some_and(serde_json::Value::is_u64)
}

/// Connections that came in and were not wanted, as the log has them.
fn refusals(node: &TestNode) -> usize {
    node.log().matches("refused an incoming connection").count()
}

#[test]
fn a_machine_that_was_removed_while_it_was_away_is_told_and_joins_anew() {
    let mesh = TestMesh::new();
    let [founder, mut other, mut away] = [founder(&mesh), machine(&mesh, "other"), machine(&mesh, "away")];
    for node in [&mut other, &mut away] {
        node.start();
        join(node, &invite(&founder, &[]));
        wait_met(&founder, node);
    }
    wait_met(&other, &away);
    away.kill();
    founder.narmesh(&["mesh", "remove", "away"]).expect_success("mesh remove");
    other.wait_status("knows away no longer", promised(HEARD), |status| status.peer("away").is_none());

    away.start_as_written(None);
    away.wait_status("was told", promised(Duration::from_secs(5)), is_removed);
    let told = away.narmesh(&["status"]).expect_success("status");
    assert!(told.contains("removed from the mesh home"), "{told}");
    let found = away.narmesh(&["doctor"]);
    assert!(found.stdout.contains("removed from the mesh home"), "{}", found.stdout);
    assert_eq!(names(&away).len(), 3, "it learns nothing else of the mesh");
    assert_eq!(said(&away), 1, "{}", away.log());

    // Nobody is dialled any more.
    let before = [&founder, &other].map(refusals);
    std::thread::sleep(COUNTED);
    assert_eq!([&founder, &other].map(refusals), before, "no dial within {COUNTED:?}");
    // A restart changes nothing of that.
    let logged = said(&away);
    away.kill();
    away.start_as_written(None);
    away.wait_status("still knows", promised(HEARD), is_removed);
    std::thread::sleep(COUNTED / 2);
    assert_eq!(([&founder, &other].map(refusals), said(&away)), (before, logged), "no dial, and nothing in the log");

    // It is no member, so a script that runs at each start joins anew.
    let token = invite(&founder, &[]);
    away.narmesh(&["join", "--unless-member", &token]).expect_success("join");
    wait_met(&founder, &away);
    wait_met(&other, &away);
    assert!(!is_removed(&away.status()));
    // What it was told before counts no more after another start.
    away.kill();
    away.start_as_written(None);
    wait_met(&founder, &away);
    assert!(!is_removed(&away.status()));
    founder.narmesh(&["mesh", "remove", "away"]).expect_success("mesh remove");
    wait_until("it is told while it runs", promised(Duration::from_secs(5)), || is_removed(&away.status()));
}

/// `mesh admit` needs no token, and no command on the machine that was removed: a member dials it.
#[test]
fn a_removed_machine_that_is_admitted_again_is_back_by_itself() {
    let mesh = TestMesh::new();
    let [founder, mut away] = [founder(&mesh), machine(&mesh, "away")];
    away.start();
    join(&away, &invite(&founder, &[]));
    wait_met(&founder, &away);
    founder.narmesh(&["mesh", "remove", "away"]).expect_success("mesh remove");
    away.wait_status("was told", promised(Duration::from_secs(5)), is_removed);
    let file = mesh.path().join("request");
    let file = file.to_str().expect("UTF-8");
    away.narmesh(&["join", "--request", file]).expect_success("join --request");
    founder.narmesh(&["mesh", "admit", file]).expect_success("mesh admit");
    wait_met(&founder, &away);
    away.wait_status("is a member again", promised(HEARD), |status| !is_removed(status));
}
