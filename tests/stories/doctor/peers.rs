//! Faults on the way to peers.

use narmesh_tests::TestMesh;

use super::Patient;

#[test]
fn peer_that_stays_away_is_named_with_the_reason_and_what_to_do() {
    let mesh = TestMesh::new();
    let [mut a, mut b, mut c] = ["a", "b", "c"].map(|name| Patient::new(&mesh, name));
    // B is off; C runs and has never heard of A.
    for other in [&b, &c] {
        a.node.allow(&other.node.card());
    }
    b.node.allow(&a.node.card());
    b.node.start();
    a.node.learn_address("b", &b.node.p2p_address());
    b.node.terminate();
    c.node.start();
    a.node.learn_address("c", &c.node.p2p_address());
    a.node.start();
    // For some seconds after its start a daemon has not dialled all its peers yet.
    let (severity, mends) = a.wait_found(&["none of 2 peers is connected"]);
    assert!(severity == "warning" && mends[0].ends_with("check-config --probe"), "{mends:?}");
    a.run(&["sh", "-c", &mends[0]]).expect_failure("peers that cannot be reached");
    let (_, mends) = a.wait_found(&["\"b\" is not connected", "refused"]);
    assert!(mends[0].starts_with("on b: ") && mends[0].contains("start narmesh"), "{mends:?}");
    let (_, mends) = a.wait_found(&["\"c\" is not connected"]);
    assert!(mends.iter().any(|mend| mend.contains("narmesh id")), "{mends:?}");

    // What the commands lead to: both are connected, and the machine is healthy again.
    b.node.start();
    c.node.allow(&a.node.card());
    c.node.reload();
    a.wait_gone(&["not connected"]);
    a.wait_gone(&["is connected"]);
}

#[test]
fn peer_with_another_store_directory_is_named() {
    let mesh = TestMesh::new();
    let mut a = Patient::new(&mesh, "a");
    let elsewhere = mesh.path().join("elsewhere");
    let store = narmesh_tests::NixStoreFixture::relocated_client(&mesh.path().join("b"), &elsewhere);
    let mut b = mesh.node_with_store("b", store);
    a.node.allow(&b.card());
    b.allow(&a.node.card());
    b.start();
    a.node.learn_address("b", &b.p2p_address());
    a.node.start();
    let (severity, mends) = a.wait_found(&["\"b\" has the store directory", "/elsewhere"]);
    assert!(severity == "warning" && mends[0].contains("[[peer]] \"b\""), "{mends:?}");
    a.node.disallow("b");
    a.node.reload();
    a.wait_gone(&["has the store directory"]);
}
