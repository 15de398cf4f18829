//! A machine that gives its peers nothing for a while, and goes on taking.

use narmesh_tests::{TestMesh, TestNode, promised, wait_until};
use std::time::Duration;

/// Peers hear within this time that a machine has nothing any more.
const TOLD: Duration = Duration::from_secs(5);

fn wait_paths(node: &TestNode, of: &str, paths: u64) {
    wait_until("the peer's summary", promised(TOLD), || {
        node.status()
            .peer(of)
            .is_some_and(|peer| peer.pointer("/summary/paths").and_then(|it| it.as_u64()) == Some(paths))
    });
}

#[test]
fn a_machine_that_is_switched_off_gives_nothing_until_it_is_switched_on_also_after_a_restart() {
    let mesh = TestMesh::new();
    let [mut laptop, mut other] = ["laptop", "other"].map(|name| mesh.node(name));
    let (given, taken) = (laptop.store.build_fresh("given"), other.store.build_fresh("taken"));
    TestMesh::start_all(&mut [&mut laptop, &mut other]);
    laptop.wait_all_advertised(&[&other]);
    other.wait_all_advertised(&[&laptop]);

    let said = laptop.narmesh(&["serve", "off"]).expect_success("serve off");
    assert!(said.contains("peers get nothing of this machine: switched off"), "{said}");
    wait_paths(&other, "laptop", 0);
    assert_eq!(other.get_narinfo(&given).status, 404);
    let status = laptop.narmesh(&["status"]).expect_success("status");
    assert!(status.contains("peers get nothing of it: switched off by `narmesh serve off`"), "{status}");
    let advertised = laptop.narmesh(&["advertised"]).expect_success("advertised");
    assert!(advertised.contains("this machine serves its peers nothing now"), "{advertised}");
    laptop.realise(&[taken]).expect_success("it goes on taking");

    assert!(laptop.terminate().success());
    laptop.start();
    laptop.wait_connected("other", true, promised(TOLD));
    wait_paths(&other, "laptop", 0);
    assert_eq!(other.get_narinfo(&given).status, 404);

    laptop.narmesh(&["serve", "auto"]).expect_success("serve auto");
    laptop.wait_all_advertised(&[&other]);
    other.realise(&[given]).expect_success("it gives again");
}

#[test]
fn configuration_says_whether_and_when_peers_get_anything() {
    let mesh = TestMesh::new();
    let [mut node, mut other] = ["node", "other"].map(|name| mesh.node(name));
    let path = node.store.build_fresh("given");
    // There is no minute of the day in which both spans do not serve, and none in which both do.
    let spans = ["00:00-12:00", "12:00-24:00"];
    node.config.serve_hours = vec![spans[0].to_owned()];
    TestMesh::start_all(&mut [&mut node, &mut other]);
    let serves = |node: &TestNode| node.status().0.pointer("/serve/is_serving").unwrap().as_bool().unwrap();
    let first = serves(&node);
    node.config.serve_hours = vec![spans[1].to_owned()];
    node.write_config();
    node.narmesh(&["reload"]).expect_success("reload");
    assert_ne!(serves(&node), first, "unless it has just struck twelve");
    node.config.serve_hours = spans.map(str::to_owned).into();
    node.write_config();
    node.narmesh(&["reload"]).expect_success("reload");
    node.wait_all_advertised(&[&other]);
    other.realise(&[path]).expect_success("within the hours");
}
